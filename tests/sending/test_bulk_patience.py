"""Runs of many events while Loops requires a wait, in virtual time.

Only the transport is a fake. Client, run, rate limiter, circuit breaker and
retries are real. A script returns the response for each moment and event.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from support import clients
from support import virtual_time as virtual

from loops_async import (
    ConnectFailedError,
    DeadlineExceededError,
    Event,
    NotTriedError,
    RateLimitError,
    RetryPolicy,
    SendReport,
    ServerError,
)

from .support import (
    ClientOfTransport,
    Result,
    ScriptedTransport,
    TimedOutcomes,
    balances,
    down,
    emails_for,
    events_for,
    send_all,
    unreachable,
)

NO_LIMIT = {"rate_limit": math.inf}


# 429s.


@pytest.mark.parametrize("settings", [{}, NO_LIMIT], ids=["limiter", "none"])
def test_a_429_counts_neither_as_an_attempt_nor_towards_the_deadline(
    settings: dict[str, Any],
) -> None:
    report, _, took = send_all(
        down(0.0, 60.0, lambda: 429), events_for(20), settings=settings, deadline=5.0
    )
    assert balances(report, accepted=20)
    assert took > 60
    assert max(o.receipt.attempts for o in report if o.receipt) > 3


@pytest.mark.parametrize("settings", [{}, NO_LIMIT], ids=["limiter", "none"])
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("retry_after", [7.0, 59.0, 61.0, 300.0])
def test_the_next_attempt_of_an_event_follows_after_the_retry_after(
    settings: dict[str, Any], status: int, retry_after: float
) -> None:
    """This holds with and without a rate limiter."""
    report, transport, _ = send_all(
        lambda now, _: (status, retry_after) if now < 1.0 else 200,
        events_for(1),
        settings=settings,
        deadline=5.0,
    )
    assert balances(report, accepted=1)
    first, second = (one.at for one in transport.requests)
    assert second - first >= retry_after


def test_the_next_probe_of_an_outage_follows_after_the_retry_after() -> None:
    report, transport, _ = send_all(
        lambda now, _: (503, 20.0) if now < 300.0 else 200,
        events_for(1),
        settings={"retry": RetryPolicy(attempts=10, base=0.1)},
    )
    assert balances(report, accepted=1)
    times = [one.at for one in transport.requests]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) >= 20.0


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_of_more_than_a_minute_holds_the_whole_run(status: int) -> None:
    """Such a wait concerns the server and not only one event."""
    report, transport, _ = send_all(
        lambda now, event: (
            (status, 200.0) if event.user_id == "u3" and now < 5 else 200
        ),
        events_for(100),
    )
    assert balances(report, accepted=100)
    (held,) = transport.failed
    # Requests in flight were sent before the response arrived.
    assert not [
        one for one in transport.requests if held.at + 0.2 < one.at < held.at + 200
    ]
    assert transport.rate(held.at + 202, held.at + 207) > 3  # less at first after a 429


def test_a_retry_after_that_holds_a_run_does_not_hold_a_single_send() -> None:
    async def main() -> None:
        script = lambda _, event: (503, 3000.0) if event.user_id == "u0" else 200  # noqa: E731
        transport = ScriptedTransport(script)
        async with ClientOfTransport(transport) as client:
            sending = asyncio.create_task(
                client.send_events(events_for(1), patience=99)
            )
            await asyncio.sleep(5)
            receipt = await client.send_event("e", user_id="other")
            assert receipt.attempts == 1
            assert transport.loop.time() < 6
            assert balances(await sending, unknown=1)

    virtual.run(main())


# Patience.


def test_an_outage_longer_than_the_patience_stops_the_run() -> None:
    """Events that were sent are unknown, and all others are not tried."""
    pulled = 0

    def source() -> Any:
        nonlocal pulled
        for event in events_for(3000):
            pulled += 1
            yield event

    report, transport, took = send_all(
        down(2.0, math.inf, lambda: 503),
        source(),
        patience=120.0,
    )
    error = report.stopped_by
    assert type(error) is DeadlineExceededError
    assert "Loops accepted no event for 120 s" in str(error)
    assert "503" in str(error)
    assert took == pytest.approx(122.5, abs=1)
    accepted = [one for one in transport.requests if one.ok]
    assert len(report) == pulled <= 1000 + len(accepted)
    unknown = {one.user_id for one in transport.failed}
    assert balances(
        report,
        accepted=len(accepted),
        unknown=len(unknown),
        not_tried=pulled - len(accepted) - len(unknown),
    )
    for outcome in report.unknown:
        assert type(outcome.error) is ServerError
        assert outcome.error.retryable
    for outcome in report.not_tried:
        assert type(outcome.error) is NotTriedError


def test_an_event_that_was_certainly_not_accepted_is_a_failure_after_the_stop() -> None:
    report, transport, _ = send_all(
        down(0.0, math.inf, unreachable), events_for(50), patience=60.0
    )
    tried = {one.user_id for one in transport.requests}
    assert balances(report, failures=len(tried), not_tried=50 - len(tried))
    assert {type(o.error) for o in report.failures} == {ConnectFailedError}
    assert not any(o.error.maybe_accepted for o in report.failures if o.error)


def test_only_429s_for_longer_than_the_patience_stop_the_run() -> None:
    report, _, took = send_all(lambda *_: 429, events_for(30), patience=60.0)
    assert type(report.stopped_by) is DeadlineExceededError
    assert took == pytest.approx(60, abs=1)
    assert report.not_tried
    assert {type(o.error) for o in report.failures} == {RateLimitError}
    assert len(report.failures) + len(report.not_tried) == 30


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_beyond_the_patience_stops_the_run(status: int) -> None:
    """The run stops as soon as the patience is over."""
    report, transport, took = send_all(
        lambda *_: (status, 3600.0), events_for(30), patience=120.0
    )
    assert type(report.stopped_by) is DeadlineExceededError
    assert took == pytest.approx(120, abs=1.5)
    assert len(transport.requests) <= 10
    assert len(report) == 30


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_beyond_the_patience_stops_a_run_whose_other_events_succeed(
    status: int,
) -> None:
    """Requests that were already in flight are not progress of the events held."""
    report, _, took = send_all(
        lambda _, event: (status, 3600.0) if event.user_id == "u0" else 200,
        events_for(30),
        takes=lambda event: 0.1 if event.user_id == "u0" else 1.0,
        patience=120.0,
    )
    assert type(report.stopped_by) is DeadlineExceededError
    assert took == pytest.approx(121, abs=2)


def test_each_accepted_event_resets_the_patience() -> None:
    """Several outages of 50 s do not add up to 60 s."""
    report, _, took = send_all(
        lambda now, _: 503 if now % 60 < 50 else 200, events_for(300), patience=60.0
    )
    assert balances(report, accepted=300)
    assert took > 120


def test_a_500_between_429s_does_not_reset_the_patience() -> None:
    """No event is accepted, although this is not an outage."""
    count = 0

    def script(now: float, event: Event) -> Result:
        nonlocal count
        count += 1
        if now > 300:
            return 200
        return 500 if count % 2 else 429

    report, _, took = send_all(
        script,
        events_for(5),
        settings={**NO_LIMIT, "retry": RetryPolicy(attempts=10_000, base=1, cap=1)},
        patience=60.0,
        deadline=None,
    )
    assert type(report.stopped_by) is DeadlineExceededError
    assert took == pytest.approx(60, abs=2)


def test_a_refusal_of_one_event_resets_the_patience() -> None:
    """A server that judges events is up, so the run makes progress."""
    refusals = 0

    def script(now: float, event: Event) -> Result:
        nonlocal refusals
        if now > 40 and not refusals:
            refusals += 1
            return 400
        return 429 if now < 90 else 200

    report, _, _ = send_all(script, events_for(30), patience=60.0)
    assert balances(report, accepted=29, failures=1)


def test_a_run_without_patience_waits_for_the_end_of_any_outage() -> None:
    report, _, took = send_all(
        down(0.0, 7200.0, lambda: 503), events_for(20), patience=None
    )
    assert balances(report, accepted=20)
    assert took > 7200


def test_a_run_that_stops_does_not_stop_another_run_of_its_client() -> None:
    """Each run has its own patience."""

    async def main() -> None:
        transport = ScriptedTransport(down(0.0, 100.0, lambda: 503))
        async with ClientOfTransport(transport) as client:
            short, long = await asyncio.gather(
                client.send_events(events_for(20), patience=30.0),
                client.send_events(events_for(20), patience=300.0),
            )
        assert type(short.stopped_by) is DeadlineExceededError
        assert short.not_tried
        assert balances(long, accepted=20)

    virtual.run(main())


def test_no_event_overtakes_another_of_its_contact_in_an_outage() -> None:
    """This holds for the probe and for events in flight as the breaker opens."""
    attempts: list[tuple[float, str | None]] = []
    report, transport, _ = send_all(
        lambda now, _: 503 if 1 < now < 40 or 41 < now < 60 else 200,
        events_for(200, 20),
        settings={
            "retry": RetryPolicy(attempts=9),
            "on_attempt": lambda a: attempts.append((a.elapsed, a.idempotency_key)),
        },
    )
    assert balances(report, accepted=200)
    taken = [one for one in transport.requests if one.ok]
    assert Counter(one.user_id for one in taken) == Counter(
        o.event.user_id for o in report
    )
    keys = [key for _, key in attempts]
    for contact in range(20):
        expected = [o.event.idempotency_key for o in report[contact::20]]
        assert list(dict.fromkeys(k for k in keys if k in expected)) == expected


def test_an_api_key_callable_that_hangs_ends_its_event_by_the_deadline() -> None:
    """The run then continues with the next event."""

    async def main() -> None:
        calls = 0

        async def key() -> str:
            nonlocal calls
            calls += 1
            if calls == 2:
                await asyncio.sleep(1e6)
            return "key"

        transport = ScriptedTransport(lambda *_: 200)
        async with ClientOfTransport(transport, api_key=key) as client:
            report = await client.send_events(events_for(5), deadline=10.0)
        assert balances(report, accepted=4, failures=1)
        (failure,) = report.failures
        assert type(failure.error) is DeadlineExceededError
        assert failure.error.attempts == 0

    virtual.run(main())


def test_leaving_a_run_that_waits_for_its_api_key_sends_nothing_more() -> None:
    async def main() -> None:
        calls = 0
        reported = TimedOutcomes()

        async def key() -> str:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0 if calls == 1 else 1e6)
            return "key"

        transport = ScriptedTransport(lambda *_: 200)
        async with ClientOfTransport(transport, api_key=key) as client:
            async for _ in client.stream_events(events_for(5), on_outcome=reported):
                break
            await asyncio.sleep(1)
            assert len(asyncio.all_tasks()) == 1
        assert len(transport.requests) == 1
        assert balances(
            SendReport(outcome for _, outcome in reported.outcomes),
            accepted=1,
            not_tried=4,
        )

    virtual.run(main())


# One event or all events.


def poisoned(_: float, event: Event) -> Result:
    return 500 if event.user_id == "bad" else 200


def test_an_event_that_always_fails_is_unknown_and_the_run_continues() -> None:
    """If it is alone, it looks like an outage until the patience ends."""

    async def queue() -> AsyncIterator[Event]:
        yield Event("e", user_id="bad")
        await asyncio.sleep(7200)
        yield Event("e", user_id="good")

    report, transport, took = send_all(
        poisoned,
        queue(),
        settings={"retry": RetryPolicy()},
        patience=120.0,
    )
    assert report.stopped_by is None
    assert [outcome.event.user_id for outcome in report.unknown] == ["bad"]
    assert [outcome.event.user_id for outcome in report.accepted] == ["good"]
    assert 120 < transport.failed[-1].at < 130
    assert took < 7210


def test_a_retry_after_beyond_the_patience_stops_a_run_of_one_event() -> None:
    """No further attempt would be made before."""
    report, _, took = send_all(
        lambda _, __: (503, 3600.0), events_for(1), patience=120.0
    )
    assert isinstance(report.stopped_by, DeadlineExceededError)
    assert took == pytest.approx(120, abs=1)


@pytest.mark.parametrize("status", [400, 403, 413])
def test_the_retry_after_of_a_refused_event_holds_no_other_event(status: int) -> None:
    """A refused event is not retried."""
    report, _, took = send_all(
        lambda _, event: (status, 3600.0) if event.user_id == "u5" else 200,
        events_for(20),
    )
    assert report.stopped_by is None
    assert [outcome.index for outcome in report.failures] == [5]
    assert took < 10


@pytest.mark.parametrize(
    "refusal", [301, 308, ConnectFailedError("certificate refused")], ids=str
)
def test_a_result_that_every_event_would_get_stops_the_run(refusal: Result) -> None:
    report, transport, _ = send_all(lambda _, __: refusal, events_for(300))
    assert report.stopped_by is not None
    assert len(transport.requests) <= 5
    assert len(report.not_tried) >= len(report) - 5


@pytest.mark.parametrize("options", [{"deadline": 10.0}, {"timeout": None}])
def test_a_server_that_hangs_is_an_outage_whatever_the_deadline(
    options: dict[str, Any],
) -> None:
    report, transport, _ = send_all(
        lambda now, _: 200,
        events_for(300),
        takes=lambda _: 1e6,
        patience=300.0,
        **options,
    )
    assert isinstance(report.stopped_by, DeadlineExceededError)
    assert len(report.unknown) < 100
    assert len(report.not_tried) > 80  # of the events that were read
    assert len(transport.requests) < 150


def test_probes_that_are_cut_by_their_deadline_keep_the_pauses_of_the_breaker() -> None:
    async def main() -> None:
        transport = ScriptedTransport(lambda now, _: 200, lambda _: 1e6)
        async with ClientOfTransport(transport, rate_limit=math.inf) as client:
            sending = asyncio.create_task(
                client.send_events(events_for(200), deadline=0.05, patience=None)
            )
            await asyncio.sleep(60)
            begun = [one.at for one in transport.requests if one.at > 10]
            assert len(begun) <= 12
            await clients.cancel(sending)

    virtual.run(main())


def test_the_patience_of_a_run_begins_when_the_run_meets_the_outage() -> None:
    async def main() -> None:
        transport = ScriptedTransport(lambda _, __: 500)
        async with ClientOfTransport(transport) as client:
            first = asyncio.create_task(client.send_events(events_for(40)))
            await asyncio.sleep(60)
            began = transport.loop.time()
            report = await client.send_events(emails_for(2, 2), patience=30.0)
            assert transport.loop.time() - began == pytest.approx(30, abs=1)
            assert len(report.not_tried) == 2
            assert "Loops accepted no event for 30 s" in str(report.stopped_by)
            await clients.cancel(first)

    virtual.run(main())


def test_a_429_without_a_rate_limiter_holds_the_run_for_its_retry_after() -> None:
    report, transport, _ = send_all(
        lambda now, _: (429, 5.0) if now < 5 else 200,
        events_for(300),
        settings={"rate_limit": math.inf},
    )
    assert len(report.accepted) == 300
    assert all(one.at < 1 or one.at >= 5 for one in transport.requests)
