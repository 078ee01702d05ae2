"""The statistics of a client, over real sockets."""

import asyncio
import math
from typing import Any

import attrs
import pytest
from support.clients import cancel, client_of, start_sends
from support.http_server import OK, Server, answers, hangs, reply
from support.sandbox_process import sandbox_in_thread
from support.waiting import run, until

from loops_async import (
    AsyncLoopsClient,
    BadRequestError,
    ClientStats,
    Event,
    RateLimiter,
    RateLimitError,
    RetryPolicy,
    ServerError,
)
from loops_async._sending.stats import Counts
from loops_async.sandbox import Sandbox

ONCE = RetryPolicy(attempts=1)
COUNTS = ("requests", "limited", "accepted", "duplicates", "failures", "unknown")


def counts(loops: AsyncLoopsClient) -> dict[str, int]:
    """Return the counts of the client, without the zeros."""
    every = {name: getattr(loops.stats, name) for name in COUNTS}
    return {name: count for name, count in every.items() if count}


def events_for(count: int) -> list[Event]:
    return [Event("e", email=f"u{n}@b.co") for n in range(count)]


def test_stats_are_a_frozen_value_with_keyword_arguments() -> None:
    loops = AsyncLoopsClient(dry_run=True)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        loops.stats.requests = 1  # type: ignore[misc]
    assert loops.stats == loops.stats
    with pytest.raises(TypeError):
        ClientStats(1, 2)  # type: ignore[call-arg,misc]


def test_the_stats_of_an_unused_client_are_zero() -> None:
    loops = AsyncLoopsClient("key", rate_limit=RateLimiter(7, 2.0))
    assert loops.stats == ClientStats(
        **dict.fromkeys(COUNTS, 0),
        in_flight=0,
        waiting=0,
        limit=7,
        period=2.0,
        effective_limit=7,
        held=0.0,
        outage=False,
    )


@pytest.mark.parametrize(
    "settings", [{"rate_limit": math.inf}, {"dry_run": True}], ids=["inf", "dry run"]
)
def test_stats_without_a_rate_limit_have_no_limit(settings: dict[str, Any]) -> None:
    stats = AsyncLoopsClient("key", **settings).stats
    assert (stats.limit, stats.period, stats.effective_limit) == (None, None, None)
    assert stats.held == 0.0


def test_the_counts_of_two_event_loops_add_up() -> None:
    total = Counts(requests=1, limited=2, accepted=3)
    total.add(Counts(requests=10, duplicates=4, failures=5, unknown=6))
    assert total == Counts(11, 2, 3, 4, 5, 6)


def test_each_kind_of_response_has_its_own_count() -> None:
    async def main() -> None:
        server = Server(
            answers(
                *(OK, reply(409, '{"message":"Idempotency key has been used"}')),
                *(reply(400, "{}"), reply(500, "{}"), reply(429, "{}")),
                *(reply(429, "{}"), reply(500, "{}"), OK),
            )
        )
        async with server, client_of(server, retry=ONCE) as loops:
            await loops.send_event("e", email="a@b.co")
            assert counts(loops) == {"requests": 1, "accepted": 1}
            assert (await loops.send_event("e", email="a@b.co")).duplicate
            assert counts(loops) == {"requests": 2, "accepted": 1, "duplicates": 1}
            with pytest.raises(BadRequestError):
                await loops.send_event("e", email="a@b.co")
            assert loops.stats.failures == 1
            with pytest.raises(ServerError):
                await loops.send_event("e", email="a@b.co")
            assert (loops.stats.failures, loops.stats.unknown) == (1, 1)
            with pytest.raises(RateLimitError):
                await loops.send_event("e", email="a@b.co")
            assert (loops.stats.failures, loops.stats.limited) == (2, 1)
            assert counts(loops) == {
                "requests": 5,
                "limited": 1,
                "accepted": 1,
                "duplicates": 1,
                "failures": 2,
                "unknown": 1,
            }

    run(main())


def test_each_attempt_counts_as_a_request_and_each_event_as_one_result() -> None:
    """This holds for a run as for a single send."""

    async def main() -> None:
        script = (reply(429, "{}"), reply(500, "{}"), reply(429, "{}"), OK)
        async with (
            Server(answers(*script)) as server,
            client_of(server, retry=RetryPolicy(attempts=9, base=0.001)) as loops,
        ):
            report = await loops.send_events(events_for(1))
            assert report[0].ok
            assert counts(loops) == {"requests": 4, "limited": 2, "accepted": 1}
            await loops.send_event("e", email="a@b.co")
            await loops.request("GET", "/v1/lists")
            assert counts(loops) == {"requests": 6, "limited": 2, "accepted": 3}

    run(main())


def test_the_counts_of_a_run_are_those_of_its_report() -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
            client_of(sandbox, retry=ONCE) as loops,
        ):
            sandbox.script("500-after", None, "502", "close-after")
            events = [*events_for(20), Event("e", user_id="nobody")]
            report = await loops.send_events([*events, events[7]])
            stats = loops.stats
            assert stats.accepted == len(report.accepted) == 17
            assert stats.duplicates == len(report.duplicates) == 1
            assert stats.failures == len(report.failures) == 1
            assert stats.unknown == len(report.unknown) == 3
            assert stats.requests == sandbox.counts.requests == 22

    run(main())


def test_events_that_were_not_tried_do_not_count_as_failures() -> None:
    """This holds for events that waited for a permit and for those only read."""

    async def main() -> None:
        refusal = reply(401, '{"message":"Invalid API key"}')
        async with (
            Server(answers(refusal)) as server,
            client_of(server, rate_limit=RateLimiter(1, 60.0)) as loops,
        ):
            report = await loops.send_events(events_for(50))
            assert len(report.not_tried) == 49
            assert counts(loops) == {"requests": 1, "failures": 1}

    run(main())


def test_stats_show_the_sends_in_flight_and_those_that_wait() -> None:
    async def main() -> None:
        limiter = RateLimiter(2, 60.0)
        async with (
            Server(hangs) as server,
            client_of(server, rate_limit=limiter, deadline=None) as loops,
        ):
            sends = [
                asyncio.create_task(loops.send_event("e", email=f"u{n}@b.co"))
                for n in range(5)
            ]
            await server.arrived(2)
            assert (loops.stats.in_flight, loops.stats.waiting) == (2, 3)
            assert loops.stats.requests == 2
            await cancel(*sends)
            assert (loops.stats.in_flight, loops.stats.waiting) == (0, 0)
            assert counts(loops) == {"requests": 2}

    run(main())


def test_at_most_one_event_of_a_run_waits_for_a_permit() -> None:
    async def main() -> None:
        async with (
            Server(hangs) as server,
            client_of(server, max_connections=3) as loops,
        ):
            sending = asyncio.create_task(loops.send_events(events_for(500)))
            await server.arrived(3)
            assert loops.stats.in_flight == 3
            assert loops.stats.waiting <= 1
            await cancel(sending)
            assert (loops.stats.in_flight, loops.stats.waiting) == (0, 0)

    run(main())


def test_the_counts_of_successive_event_loops_add_up() -> None:
    with sandbox_in_thread() as sandbox:
        loops = client_of(sandbox)

        async def send(count: int) -> None:
            report = await loops.send_events(events_for(count))
            assert len(report.accepted) == count

        for count in (2, 3, 4):
            run(send(count))
        assert counts(loops) == {"requests": 9, "accepted": 9}
        assert loops.stats.in_flight == 0
        run(loops.aclose())
        assert counts(loops) == {"requests": 9, "accepted": 9}


def test_stats_show_an_outage_until_loops_responds_again() -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
            client_of(sandbox, retry=RetryPolicy(attempts=50, base=0.01)) as loops,
        ):
            assert not loops.stats.outage
            sandbox.down()
            sending = asyncio.create_task(loops.send_events(events_for(20)))
            await until(lambda: loops.stats.outage)
            assert loops.stats.requests >= 5
            await until(lambda: loops.stats.waiting)
            sandbox.down(False)
            report = await sending
            assert len(report.accepted) == 20
            assert not loops.stats.outage
            assert loops.stats.accepted == 20

    run(main())


def test_an_outage_ends_with_the_event_loop_that_saw_it() -> None:
    with sandbox_in_thread() as sandbox:
        loops = client_of(sandbox)
        sandbox.down()

        async def main() -> None:
            sends = start_sends(loops, 6, deadline=None)
            await until(lambda: loops.stats.outage)
            await cancel(*sends)

        run(main())
        assert not loops.stats.outage
        assert loops.stats.requests >= 5


def test_stats_after_a_429_show_the_hold_and_the_lower_limit() -> None:
    async def main() -> None:
        now = 0.0
        limiter = RateLimiter(10, clock=lambda: now)
        async with (
            Server(answers(reply(429, "{}", {"Retry-After": "30"}), OK)) as server,
            client_of(server, rate_limit=limiter, retry=ONCE) as loops,
        ):
            with pytest.raises(RateLimitError):
                await loops.send_event("e", email="a@b.co")
            stats = loops.stats
            assert stats.held == pytest.approx(30.0, abs=2.0)
            assert stats.effective_limit is not None
            assert 1 <= stats.effective_limit < 10
            assert stats.limit == 10
            assert not stats.outage  # a server that responds 429 is up

    run(main())
