"""Runs of many events while Loops is down, in virtual time.

Only the transport is a fake. Client, run, rate limiter, circuit breaker and
retries are real. A script returns the response for each moment and event.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import clients
from support import virtual_time as virtual
from support.waiting import run, until

from loops_async import (
    AsyncLoopsClient,
    Attempt,
    DeadlineExceededError,
    Event,
    RetryPolicy,
    ServerError,
)
from loops_async.sandbox import Sandbox

from .support import (
    ClientOfTransport,
    Result,
    ScriptedTransport,
    TimedOutcomes,
    balances,
    down,
    emails_for,
    events_for,
    lost,
    send_all,
    timed_out,
    unreachable,
)

ONE_CONNECTION = {"rate_limit": math.inf, "max_connections": 1}


# Outages.


@pytest.mark.parametrize("make_result", [lambda: 503, timed_out, unreachable, lost])
def test_a_run_continues_after_an_outage_of_ten_minutes(
    make_result: Callable[[], Result],
) -> None:
    """The outage uses up no event's three attempts."""
    report, transport, took = send_all(down(2.0, 602.0, make_result), events_for(200))
    assert len(report.accepted) == 200
    assert report.stopped_by is None
    assert took < 602 + 5 + 20 + 5
    # Five failures open the breaker, others are in flight, then a probe every 5 s.
    assert len(transport.failed) <= 10 + 10 + 602 / 5
    assert transport.rate(610, 615) == pytest.approx(10, rel=0.15)


def test_a_probe_does_not_count_as_an_attempt_of_its_event() -> None:
    """A single event outlives more than twenty probes with five attempts."""
    attempts: list[Attempt] = []
    report, transport, _ = send_all(
        down(0.0, 100.0, lambda: 503),
        events_for(1),
        settings={
            "retry": RetryPolicy(attempts=5, base=0.1),
            "on_attempt": attempts.append,
        },
    )
    assert balances(report, accepted=1)
    receipt = report[0].receipt
    assert receipt is not None
    assert receipt.attempts == len(transport.requests) == len(attempts) > 20
    assert {one.retry_in for one in attempts[4:-1]} == {0.0}


def test_an_event_that_is_out_of_attempts_before_the_breaker_opens_is_unknown() -> None:
    """Until the breaker opens, each failure counts as an attempt."""
    report, _, _ = send_all(
        down(0.0, 100.0, lambda: 503),
        events_for(1),
        settings={"retry": RetryPolicy(attempts=4, base=0.1)},
    )
    assert balances(report, unknown=1)
    assert type(report[0].error) is ServerError
    assert report[0].error.attempts == 4


def test_an_outage_does_not_count_towards_the_deadline_of_an_event() -> None:
    report, _, took = send_all(
        down(1.0, 301.0, lambda: 503), events_for(60), deadline=5.0
    )
    assert balances(report, accepted=60)
    assert took > 301


def test_a_wait_for_a_permit_does_not_count_towards_the_deadline_of_an_event() -> None:
    report, _, took = send_all(lambda *_: 200, events_for(200), deadline=2.0)
    assert balances(report, accepted=200)
    assert took > 15


def test_attempts_and_the_pauses_between_them_count_towards_the_deadline() -> None:
    """The events of one contact fail one after the other; all others are accepted."""
    events = [*events_for(3, 1), *(Event("e", user_id=f"v{n}") for n in range(400))]
    report, transport, _ = send_all(
        lambda _, event: 500 if event.user_id == "u0" else 200,
        events,
        takes=0.5,
        settings={"retry": RetryPolicy(attempts=1000, base=0.5, cap=0.5)},
        deadline=4.0,
    )
    assert balances(report, accepted=400, unknown=3)
    for outcome in report.unknown:
        assert isinstance(outcome.error, DeadlineExceededError)
        assert "the deadline of 4 s" in str(outcome.error)
        # An attempt takes 0.5 s, a pause up to 0.5 s, and permits take time, too.
        assert 4 <= outcome.error.attempts <= 9
    # Each event has its own 4 s from its first attempt on.
    attempts = [one.at for one in transport.requests if one.user_id == "u0"]
    assert attempts[-1] - attempts[0] > 9.0


def test_the_deadline_of_an_event_cuts_its_request_short() -> None:
    report, _, took = send_all(lambda *_: 200, events_for(3), takes=50.0, deadline=2.0)
    assert balances(report, unknown=3)
    assert {type(o.error) for o in report} == {DeadlineExceededError}
    assert took == pytest.approx(2.0, abs=0.5)


def test_without_a_deadline_only_the_attempts_of_an_event_end_it() -> None:
    report, _, _ = send_all(
        lambda *_: 500,
        events_for(1),
        takes=100.0,
        settings={"timeout": None, "retry": RetryPolicy(attempts=4, base=20)},
        deadline=None,
    )
    assert balances(report, unknown=1)
    assert type(report[0].error) is ServerError


def test_an_event_between_two_attempts_holds_no_connection() -> None:
    """All other events use the only connection meanwhile."""
    accepted = []

    def script(now: float, event: Event) -> Result:
        if event.user_id == "u0" and now < 40:
            return 500
        accepted.append(event.user_id)
        return 200

    report, transport, _ = send_all(
        script,
        events_for(4),
        settings={
            **ONE_CONNECTION,
            "retry": RetryPolicy(attempts=1000, base=30, cap=30),
        },
        deadline=None,
    )
    assert balances(report, accepted=4)
    assert accepted == ["u1", "u2", "u3", "u0"]
    assert max(one.at for one in transport.requests if one.user_id != "u0") < 2


# Two runs, and the end of a run.


@pytest.mark.parametrize("rate_limit", [math.inf, None], ids=["unlimited", "limited"])
def test_two_runs_of_a_client_get_equal_shares(rate_limit: float | None) -> None:
    async def main() -> None:
        transport = ScriptedTransport(lambda _, __: 200)
        settings = {} if rate_limit is None else {"rate_limit": rate_limit}
        async with ClientOfTransport(
            transport, max_connections=5, **settings
        ) as client:
            taken: Counter[str] = Counter()

            def events(name: str) -> Any:
                for number in range(10_000):
                    yield Event("e", user_id=f"{name}{number}")

            runs = []
            for name in ("first", "second"):
                outcomes = TimedOutcomes()
                sending = client.send_events(events(name), on_outcome=outcomes)
                runs.append((name, outcomes, asyncio.create_task(sending)))
                await asyncio.sleep(5)
            begin = transport.loop.time()
            await asyncio.sleep(20)
            for name, outcomes, _ in runs:
                taken[name] = sum(at > begin for at, _ in outcomes.outcomes)
            await clients.cancel(*[sending for _, _, sending in runs])
            assert taken["second"] >= 0.8 * taken["first"] > 0

    virtual.run(main())


def test_all_other_events_use_the_only_connection_while_one_event_pauses() -> None:
    """This holds also if a single send has the connection at first."""

    async def main() -> None:
        transport = ScriptedTransport(
            lambda now, event: 500 if event.user_id == "u0" and now < 30 else 200, 1.0
        )
        slow = RetryPolicy(attempts=10, base=20.0)
        async with ClientOfTransport(
            transport, rate_limit=math.inf, max_connections=1, retry=slow
        ) as client:
            single = asyncio.create_task(client.send_event("e", user_id="single"))
            sending = asyncio.create_task(client.send_events(events_for(8)))
            await asyncio.sleep(0.5)
            other = asyncio.create_task(client.send_event("e", user_id="other"))
            await asyncio.sleep(15)
            assert len({one.user_id for one in transport.requests}) == 10
            sending.cancel()
            await asyncio.wait([single, other, sending])

    virtual.run(main())


def test_closing_the_client_ends_a_run_whose_source_is_idle() -> None:
    async def main() -> None:
        transport = ScriptedTransport(lambda _, __: 200)
        queue: asyncio.Queue[Event] = asyncio.Queue()

        async def events() -> AsyncIterator[Event]:
            while True:
                yield await queue.get()

        async with ClientOfTransport(transport) as client:
            sending = asyncio.create_task(client.send_events(events()))
            queue.put_nowait(Event("e", user_id="u"))
            await asyncio.sleep(60)
        report = await sending
        assert len(report.accepted) == 1
        assert "closed" in str(report.stopped_by)

    virtual.run(main())


def test_the_generator_of_a_run_is_closed_when_the_run_stops() -> None:
    closed: list[float] = []

    def events() -> Any:
        try:
            while True:
                yield Event("e", user_id=f"{len(closed)}")
        finally:
            closed.append(1)

    async def main() -> None:
        transport = ScriptedTransport(lambda _, __: 401)
        async with ClientOfTransport(transport) as client:
            report = await client.send_events(events())
            assert report.stopped_by is not None
            assert closed

    virtual.run(main())


# Real sockets.


@pytest.mark.parametrize("drop", [False, True])
def test_a_real_outage_costs_few_requests_and_loses_no_event(drop: bool) -> None:
    """Each event is accepted once, in the order of its contact."""

    async def main() -> None:
        outages = iter([drop])

        def break_down(_: Attempt) -> None:
            if sandbox.counts.accepted >= 50:
                for drop in outages:
                    sandbox.down(drop=drop)

        async with (
            Sandbox(rate_limit=None) as sandbox,
            clients.client_of(
                sandbox,
                rate_limit=400,
                retry=RetryPolicy(attempts=10, base=0.05),
                on_attempt=break_down,
            ) as loops,
        ):
            sending = asyncio.create_task(loops.send_events(emails_for(300, 60)))
            await until(lambda: loops.stats.outage and not loops.stats.in_flight)
            before = sandbox.counts.faults["down"]
            await until(lambda: sandbox.counts.faults["down"] > before)  # the probe
            sandbox.down(False)
            report = await sending
            assert balances(report, accepted=300)
            assert len(sandbox.events) == 300
            assert sandbox.counts.faults["down"] <= 100 + 3
            for contact in range(60):
                sent = [o.event.idempotency_key for o in report[contact::60]]
                assert sent == [
                    event.idempotency_key
                    for event in sandbox.events
                    if event.email == f"u{contact}@b.co"
                ]

    run(main())


@pytest.mark.soak
@pytest.mark.timeout(200)
def test_an_outage_of_30_s_costs_at_most_30_requests_of_a_run(
    record_figures: Callable[[str], None],
) -> None:
    """Each of 2,000 events is accepted once, and the rate recovers soon."""

    async def main() -> str:
        async with (
            Sandbox(rate_limit=50, latency=(0.02, 0.05)) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, rate_limit=50
            ) as loops,
        ):
            sending = asyncio.create_task(loops.send_events(emails_for(2000, 400)))
            await asyncio.sleep(15)
            sandbox.down()
            began = sandbox.now
            await asyncio.sleep(30)
            sandbox.down(False)
            ended = sandbox.now
            report = await sending
            assert balances(report, accepted=2000)
            keys = [event.idempotency_key for event in sandbox.events]
            assert Counter(keys) == Counter(o.event.idempotency_key for o in report)
            spent = sum(r.fault == "down" for r in sandbox.requests)
            assert spent <= 30
            times = [event.at for event in sandbox.events]

            def rate(begin: float, end: float) -> float:
                return sum(begin <= at < end for at in times) / (end - begin)

            before, after = rate(began - 10, began), rate(ended + 10, ended + 20)
            # A window may contain half a burst more or less.
            assert before >= 0.90 * 50
            assert after >= 0.90 * before
            resumed = min(at for at in times if at > ended) - ended
            return (
                f"{spent} requests spent, resumed after {resumed:.1f} s, "
                f"{before:.1f}/s before and {after:.1f}/s after"
            )

    record_figures(run(main(), limit=180))
