"""The way of one call through gate, limiter and transport, where they meet."""

import asyncio
import gc
import warnings
import weakref

from loops_async import AsyncLoopsClient, RateLimiter, RetryPolicy
from loops_async._transport import Transport
from loops_async.sandbox import Sandbox

RETRY = RetryPolicy(attempts=30, base=0.01)


def test_who_waited_for_a_permit_while_the_gate_closed_waits_at_the_gate() -> None:
    """The permit goes back unused, and nothing is sent into the outage."""

    async def main() -> None:
        limiter = RateLimiter(1, 0.05)
        async with (
            Sandbox(rate_limit=None) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, rate_limit=limiter, retry=RETRY
            ) as loops,
        ):
            sandbox.script(*["503"] * 5)
            await asyncio.gather(
                *(loops.send_event("e", email=f"{n}@example.com") for n in range(12))
            )
            assert sandbox.counts.accepted == 12
            assert sandbox.counts.requests == 17
            refused = [one.status for one in sandbox.requests][:6]
            assert refused == [503] * 5 + [200]  # the sixth was the probe

    asyncio.run(main())


def test_an_alarm_that_outlives_its_transport_does_nothing() -> None:
    """A client that was dropped is not kept for the time-out of its last request."""

    async def main() -> None:
        async with Sandbox() as sandbox:
            loops = AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, timeout=0.05
            )
            await loops.test_api_key()
            assert loops._latest is not None
            transport: weakref.ref[Transport] = weakref.ref(loops._latest.transport)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del loops
                gc.collect()
                await asyncio.sleep(0.1)
            assert [warning.category for warning in caught] == [ResourceWarning]
            assert transport() is None

    asyncio.run(main())
