"""How a run of many events through a client ends, over real sockets."""

import asyncio
import logging
import math
import random
from collections.abc import Iterator
from contextlib import aclosing

import pytest
from support.clients import cancel, client_of
from support.http_server import Server, answers, reply, respond, serving
from support.waiting import until

from loops_async import (
    APIError,
    AsyncLoopsClient,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    Event,
    NotFoundError,
    NotTriedError,
    Outcome,
    RateLimiter,
    RetryPolicy,
    SendReport,
    UnexpectedResponseError,
)
from loops_async.sandbox import Sandbox

from .client_runs import LOOPS, events_for, run, senders_left, sizes

# Stops.


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthenticationError), (404, NotFoundError), (405, UnexpectedResponseError)],
)
def test_a_response_that_every_event_would_get_stops_the_run(
    status: int, kind: type[APIError], loop: str
) -> None:
    async def main() -> None:
        refusal = reply(status, '{"message":"no"}')
        read = 0

        def source() -> Iterator[Event]:
            nonlocal read
            for event in events_for(3000):
                read += 1
                yield event

        async with Server(answers(refusal)) as server:
            async with client_of(server, max_connections=3) as loops:
                report = await loops.send_events(source())
            assert type(report.stopped_by) is kind
            assert isinstance(report.stopped_by, APIError)
            assert report.stopped_by.status == status
            assert len(report) == read <= 1000
            sent = len(server.requests)
            assert sent <= 3
            assert sizes(report) == {"failures": sent, "not_tried": read - sent}
            for outcome in report.not_tried:
                error = outcome.error
                assert type(error) is NotTriedError
                assert error.attempts == 0
                assert error.retryable
                assert not error.maybe_accepted
                assert error.idempotency_key == outcome.event.idempotency_key
            with pytest.raises(ExceptionGroup) as raised:
                report.raise_for_failures()
            assert report.stopped_by in raised.value.exceptions
            assert not senders_left()

    run(main(), loop)


def test_an_api_key_that_is_revoked_during_a_run_stops_it() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:

            def revoke(outcome: Outcome) -> None:
                if outcome.index == 49:
                    sandbox.api_key = "another"

            report = await loops.send_events(events_for(500, 1), on_outcome=revoke)
            assert type(report.stopped_by) is AuthenticationError
            assert sizes(report) == {
                "accepted": 50,
                "failures": 1,
                "not_tried": len(report) - 51,
            }
            assert [outcome.ok for outcome in report[:51]] == [*[True] * 50, False]
            assert len(sandbox.events) == 50

    run(main())


def test_an_api_key_callable_that_raises_stops_the_run() -> None:
    async def main() -> None:
        calls = 0

        def key() -> str:
            nonlocal calls
            calls += 1
            if calls > 10:
                raise OSError("the vault is closed")
            return sandbox.api_key

        async with (
            Sandbox(rate_limit=None) as sandbox,
            client_of(sandbox, api_key=key) as loops,
        ):
            report = await loops.send_events(events_for(100, 1))
            assert type(report.stopped_by) is ConfigurationError
            assert "OSError" in str(report.stopped_by)
            assert len(report.accepted) == 10
            assert len(report.not_tried) + len(report.failures) == 90
            assert len(report.failures) <= 1
            assert len(sandbox.requests) == 10

    run(main())


@pytest.mark.parametrize("limit", [math.inf, 200])
def test_closing_the_client_stops_its_run(limit: float) -> None:
    """Events in flight are accepted, and all others are not tried."""

    async def main() -> None:
        async with Sandbox(rate_limit=None, latency=0.02) as sandbox:
            loops = client_of(sandbox, rate_limit=limit, max_connections=5)
            sending = asyncio.create_task(loops.send_events(events_for(2000)))
            await until(lambda: sandbox.counts.accepted >= 20)
            await loops.aclose()
            report = await sending
            assert type(report.stopped_by) is ClientClosedError
            accepted = len(sandbox.events)
            assert sizes(report) == {
                "accepted": accepted,
                "not_tried": len(report) - accepted,
            }
            assert accepted < 2000
            assert not senders_left()

    run(main())


def test_closing_the_client_ends_an_event_between_attempts_with_its_last_error() -> (
    None
):
    async def main() -> None:
        async with serving(respond(500)) as server:
            slow = RetryPolicy(base=60, cap=60)
            loops = client_of(server, retry=slow, deadline=None)
            sending = asyncio.create_task(loops.send_events(events_for(3, 1)))
            await server.arrived()
            await until(lambda: loops.stats.waiting)
            await loops.aclose()
            report = await sending
            assert type(report.stopped_by) is ClientClosedError
            assert sizes(report) == {"unknown": 1, "not_tried": 2}
            assert isinstance(report[0].error, APIError)
            assert report[0].error.status == 500

    run(main())


def test_a_stop_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with (
            Server(answers(reply(401, "{}"))) as server,
            client_of(server) as loops,
        ):
            await loops.send_events(events_for(30))

    with caplog.at_level(logging.WARNING, "loops_async"):
        run(main())
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("sending stopped: Loops responded with 401")


def test_closing_in_one_event_loop_stops_no_run_of_another() -> None:
    loops = AsyncLoopsClient(dry_run=True)
    stream = loops.stream_events(Event("e", user_id=f"{n}") for n in range(2))
    with asyncio.Runner() as other:

        async def take() -> Outcome:
            return await anext(stream)

        assert other.run(take()).ok
        asyncio.run(loops.aclose())
        assert other.run(take()).ok
        other.run(stream.aclose())


# Consumers that leave a stream, and cancelled runs.


@pytest.mark.parametrize("loop", LOOPS)
def test_leaving_a_stream_early_loses_no_event_in_flight(loop: str) -> None:
    async def main() -> None:
        reported: list[Outcome] = []
        async with (
            Sandbox(rate_limit=None, latency=(0.005, 0.03)) as sandbox,
            client_of(sandbox, max_connections=10) as loops,
        ):
            stream = loops.stream_events(events_for(3000), on_outcome=reported.append)
            async with aclosing(stream):
                taken = 0
                async for _ in stream:
                    taken += 1
                    if taken == 25:
                        break
            assert not senders_left()
            report = SendReport(reported)
            accepted = len(sandbox.events)
            assert 25 <= accepted < 3000
            assert sizes(report) == {
                "accepted": accepted,
                "not_tried": len(reported) - accepted,
            }
            requests = sandbox.counts.requests
            assert (await loops.send_event(events_for(1)[0])).attempts == 1
            assert sandbox.counts.requests == requests + 1

    run(main(), loop)


def test_breaking_out_of_a_stream_without_aclosing_leaves_no_task() -> None:
    async def main() -> None:
        reported: list[Outcome] = []
        async with (
            Sandbox(rate_limit=None, latency=(0.005, 0.03)) as sandbox,
            client_of(sandbox, max_connections=10) as loops,
        ):
            async for _ in loops.stream_events(
                events_for(3000), on_outcome=reported.append
            ):
                break
            await until(lambda: not senders_left() and not loops.stats.in_flight)
            accepted = sorted(o.event.idempotency_key for o in reported if o.ok)
            assert accepted == sorted(str(e.idempotency_key) for e in sandbox.events)
            assert {type(o.error) for o in reported if not o.ok} == {NotTriedError}
            assert sorted(o.index for o in reported) == list(range(len(reported)))

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_closing_the_client_after_breaking_out_of_a_stream_finishes_events_in_flight(
    loop: str,
) -> None:
    """They have the grace of the client, and no warning follows."""
    reported: list[Outcome] = []

    async def main() -> None:
        async with Sandbox(rate_limit=None, latency=(0.02, 0.05)) as sandbox:
            async with client_of(sandbox, max_connections=10) as loops:
                async for _ in loops.stream_events(
                    events_for(3000), on_outcome=reported.append
                ):
                    break
                requests = loops.stats.requests
            assert 1 < requests < 3000
            assert sandbox.counts.accepted == loops.stats.accepted
            assert loops.stats.accepted >= requests
            assert sum(outcome.ok for outcome in reported) == loops.stats.accepted

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancelled_run_leaves_no_task_and_releases_permits_and_connections(
    loop: str,
) -> None:
    async def main() -> None:
        limiter = RateLimiter(10, 0.2)
        async with (
            Sandbox(rate_limit=None, latency=0.05) as sandbox,
            client_of(sandbox, rate_limit=limiter, max_connections=5) as loops,
        ):
            for _ in range(5):
                sending = asyncio.create_task(loops.send_events(events_for(500)))
                await asyncio.sleep(random.random() * 0.1)
                await cancel(sending)
                assert sending.cancelled()
                assert not senders_left()
                assert loops.stats.in_flight == loops.stats.waiting == 0
            report = await loops.send_events(events_for(12))
            assert sizes(report) == {"accepted": 12}
            free = "10 free, 0 in flight, 0 returning, 0 waiting"
            await until(lambda: free in repr(limiter))

    run(main(), loop)


def test_a_timeout_around_a_run_ends_it() -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None, latency=0.1) as sandbox,
            client_of(sandbox, rate_limit=10) as loops,
        ):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await loops.send_events(events_for(500))
            assert not senders_left()

    run(main())
