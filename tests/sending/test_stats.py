"""What a client tells of itself, over real sockets."""

import asyncio
import math
from typing import Any

import attrs
import pytest
from support.answering import sandbox_beside, until
from support.http_server import OK, Server, answers, client, hangs, reply

from loops_async import (
    AsyncLoopsClient,
    BadRequestError,
    ClientStats,
    Event,
    LoopsError,
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
    """Return what it has counted, without the zeros."""
    found = {name: getattr(loops.stats, name) for name in COUNTS}
    return {name: count for name, count in found.items() if count}


def events_for(count: int) -> list[Event]:
    return [Event("e", email=f"u{n}@b.co") for n in range(count)]


def test_stats_are_a_frozen_value_of_named_numbers() -> None:
    loops = AsyncLoopsClient(dry_run=True)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        loops.stats.requests = 1  # type: ignore[misc]
    assert loops.stats == loops.stats
    with pytest.raises(TypeError):
        ClientStats(1, 2)  # type: ignore[call-arg,misc]


def test_a_client_that_has_done_nothing_says_so() -> None:
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
def test_without_a_limit_there_is_none_to_tell(settings: dict[str, Any]) -> None:
    stats = AsyncLoopsClient("key", **settings).stats
    assert (stats.limit, stats.period, stats.effective_limit) == (None, None, None)
    assert stats.held == 0.0


def test_counts_of_two_loops_add_up() -> None:
    total = Counts(requests=1, limited=2, accepted=3)
    total.add(Counts(requests=10, duplicates=4, failures=5, unknown=6))
    assert total == Counts(11, 2, 3, 4, 5, 6)


def test_each_answer_is_counted_as_what_it_was() -> None:
    async def main() -> None:
        server = Server(
            answers(
                *(OK, reply(409, '{"message":"Idempotency key has been used"}')),
                *(reply(400, "{}"), reply(500, "{}"), reply(429, "{}")),
                *(reply(429, "{}"), reply(500, "{}"), OK),
            )
        )
        async with server, client(server.url, retry=ONCE) as loops:
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

    asyncio.run(main())


def test_every_attempt_is_a_request_and_every_call_one_result() -> None:
    """Of a run of many as of a single send."""

    async def main() -> None:
        script = (reply(429, "{}"), reply(500, "{}"), reply(429, "{}"), OK)
        async with (
            Server(answers(*script)) as server,
            client(server.url, retry=RetryPolicy(attempts=9, base=0.001)) as loops,
        ):
            report = await loops.send_events(events_for(1))
            assert report[0].ok
            assert counts(loops) == {"requests": 4, "limited": 2, "accepted": 1}
            await loops.send_event("e", email="a@b.co")
            await loops.request("GET", "/v1/lists")
            assert counts(loops) == {"requests": 6, "limited": 2, "accepted": 3}

    asyncio.run(main())


def test_the_counts_of_a_run_are_those_of_its_report() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox:
            settings: dict[str, Any] = {
                "base_url": sandbox.url,
                "rate_limit": math.inf,
                "timeout": 0.2,
                "retry": ONCE,
            }
            async with AsyncLoopsClient(sandbox.api_key, **settings) as loops:
                sandbox.script("500-after", None, "502", "close-after")
                events = [*events_for(20), Event("e", user_id="nobody")]
                report = await loops.send_events([*events, events[7]])
                stats = loops.stats
            assert stats.accepted == len(report.accepted)
            assert stats.duplicates == len(report.duplicates) == 1
            assert stats.failures == len(report.failures) == 1
            assert stats.unknown == len(report.unknown) == 3
            assert stats.requests == sandbox.counts.requests == 22

    asyncio.run(main())


def test_what_was_not_tried_is_no_failure() -> None:
    """Whether it waited for its turn already or was only read."""

    async def main() -> None:
        refusal = reply(401, '{"message":"Invalid API key"}')
        async with (
            Server(answers(refusal)) as server,
            client(server.url, rate_limit=RateLimiter(1, 60.0)) as loops,
        ):
            report = await loops.send_events(events_for(50))
            assert len(report.not_tried) == 49
            assert counts(loops) == {"requests": 1, "failures": 1}

    asyncio.run(main())


def test_what_is_under_way_and_what_waits_is_told_while_it_does() -> None:
    async def main() -> None:
        limiter = RateLimiter(2, 60.0)
        async with (
            Server(hangs) as server,
            client(server.url, rate_limit=limiter, deadline=None) as loops,
        ):
            sends = [
                asyncio.create_task(loops.send_event("e", email=f"u{n}@b.co"))
                for n in range(5)
            ]
            await server.arrived(2)
            assert (loops.stats.in_flight, loops.stats.waiting) == (2, 3)
            assert loops.stats.requests == 2
            for send in sends:
                send.cancel()
            await asyncio.wait(sends)
            assert (loops.stats.in_flight, loops.stats.waiting) == (0, 0)
            assert counts(loops) == {"requests": 2}

    asyncio.run(main())


def test_of_a_run_at_most_one_waits_however_many_are_to_come() -> None:
    async def main() -> None:
        async with (
            Server(hangs) as server,
            client(server.url, max_connections=3) as loops,
        ):
            run = asyncio.create_task(loops.send_events(events_for(500)))
            await server.arrived(3)
            assert loops.stats.in_flight == 3
            assert loops.stats.waiting <= 1
            run.cancel()
            await asyncio.wait([run])
            assert (loops.stats.in_flight, loops.stats.waiting) == (0, 0)

    asyncio.run(main())


def test_the_counts_of_successive_event_loops_add_up() -> None:
    with sandbox_beside() as sandbox:
        loops = AsyncLoopsClient(
            sandbox.api_key, base_url=sandbox.url, rate_limit=math.inf
        )

        async def send(count: int) -> None:
            report = await loops.send_events(events_for(count))
            assert len(report.accepted) == count

        for count in (2, 3, 4):
            asyncio.run(send(count))
        assert counts(loops) == {"requests": 9, "accepted": 9}
        assert loops.stats.in_flight == 0
        asyncio.run(loops.aclose())
        assert counts(loops) == {"requests": 9, "accepted": 9}


def test_an_outage_is_told_until_loops_answers_again() -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key,
                base_url=sandbox.url,
                rate_limit=math.inf,
                retry=RetryPolicy(attempts=50, base=0.01),
            ) as loops,
        ):
            assert not loops.stats.outage
            sandbox.down()
            run = asyncio.create_task(loops.send_events(events_for(20)))
            await until(lambda: loops.stats.outage)
            assert loops.stats.requests >= 5
            assert loops.stats.waiting >= 1
            sandbox.down(False)
            report = await run
            assert len(report.accepted) == 20
            assert not loops.stats.outage
            assert loops.stats.accepted == 20

    asyncio.run(main())


def test_an_outage_ends_with_the_event_loop_that_saw_it() -> None:
    with sandbox_beside() as sandbox:
        loops = AsyncLoopsClient(
            sandbox.api_key, base_url=sandbox.url, rate_limit=math.inf
        )
        sandbox.down()

        async def give_up() -> None:
            with pytest.raises(LoopsError):
                await loops.send_event("e", email="a@b.co", deadline=30.0)

        async def main() -> None:
            sends = [asyncio.create_task(give_up()) for _ in range(6)]
            await until(lambda: loops.stats.outage)
            for send in sends:
                send.cancel()
            await asyncio.wait(sends)

        asyncio.run(main())
        assert not loops.stats.outage
        assert loops.stats.requests >= 5


def test_a_429_holds_all_and_leaves_permits_to_others() -> None:
    async def main() -> None:
        async with (
            Server(answers(reply(429, "{}", {"Retry-After": "30"}), OK)) as server,
            client(server.url, rate_limit=RateLimiter(10), retry=ONCE) as loops,
        ):
            with pytest.raises(RateLimitError):
                await loops.send_event("e", email="a@b.co")
            stats = loops.stats
            assert 29 < stats.held < 32
            assert stats.effective_limit is not None
            assert 1 <= stats.effective_limit < 10
            assert stats.limit == 10
            assert not stats.outage  # who answers 429 is up

    asyncio.run(main())
