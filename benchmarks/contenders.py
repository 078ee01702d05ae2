"""Ways to stay below a rate limit: this package and the usual alternatives.

The alternatives send with `tuned`, several requests at once, and retry after a 429
with the pauses that most clients use. Every event is therefore accepted in the end,
after more or fewer 429s.
"""

import asyncio
import itertools
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeAlias

from aiolimiter import AsyncLimiter
from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from pyrate_limiter import Duration, Limiter, Rate
from yarl import URL

from loops_async import AsyncLoopsClient, Event, RateLimiter

from . import tuned
from .sandboxes import Target

Admit: TypeAlias = Callable[[], Awaitable[object]]
Contender: TypeAlias = Callable[[Target, asyncio.Event], Coroutine[Any, Any, None]]

OURS = "loops-async"
_BASE, _CAP = 0.5, 20.0  # seconds of full jitter after a 429
_CONTACTS = 5000  # so many that no event waits for another of its contact


def endless() -> Iterator[Event]:
    for number in itertools.count():
        yield Event("signup", email=f"{number % _CONTACTS}@example.com")


async def ours(target: Target, stop: asyncio.Event) -> None:
    limiter = RateLimiter(target.limit)
    async with AsyncLoopsClient(
        target.key, base_url=target.url, rate_limit=limiter, deadline=None
    ) as loops:
        run = asyncio.create_task(loops.send_events(endless()))
        await stop.wait()
        await loops.aclose()  # ends the run, whose source is endless
        await run


def send_time_semaphore(limit: int) -> Admit:
    permits = asyncio.Semaphore(limit)

    async def admit() -> None:
        await permits.acquire()
        asyncio.get_running_loop().call_later(1.0, permits.release)

    return admit


def aiolimiter(limit: int) -> Admit:
    limiter = AsyncLimiter(limit, 1)

    async def admit() -> None:
        await limiter.acquire()

    return admit


def pyrate_limiter(limit: int) -> Admit:
    limiter = Limiter(Rate(limit, Duration.SECOND))
    return lambda: limiter.try_acquire_async("loops")


def moving_window(limit: int) -> Admit:
    limiter = MovingWindowRateLimiter(MemoryStorage())
    item = RateLimitItemPerSecond(limit)
    # The limiter cannot wait, and polling by many workers would be expensive.
    lock = asyncio.Lock()

    async def admit() -> None:
        async with lock:
            while not await limiter.hit(item, "loops"):
                stats = await limiter.get_window_stats(item, "loops")
                await asyncio.sleep(max(0.001, stats.reset_time - time.time()))

    return admit


def no_limiter(_: int) -> Admit:
    return lambda: asyncio.sleep(0)


def with_retries(make: Callable[[int], Admit]) -> Contender:
    """Return a contender that waits for admission before each attempt."""

    async def run(target: Target, stop: asyncio.Event) -> None:
        admit = make(target.limit)
        url = URL(f"{target.url}/v1/events/send")
        in_flight = max(20, target.limit // 5)
        async with tuned.open_session(target.key, in_flight) as session:

            async def work(first: int) -> None:
                for number in itertools.count(first, in_flight):
                    email = f"{number % _CONTACTS}@example.com"
                    body = json.dumps({"eventName": "signup", "email": email}).encode()
                    key = str(uuid.uuid4())
                    for attempt in itertools.count():
                        await admit()
                        if await tuned.send(session, url, body, key) != 429:
                            break
                        longest = min(_CAP, _BASE * 2.0**attempt)
                        await asyncio.sleep(random.uniform(0.0, longest))

            workers = [asyncio.create_task(work(first)) for first in range(in_flight)]
            await stop.wait()
            for worker in workers:
                worker.cancel()
            for result in await asyncio.gather(*workers, return_exceptions=True):
                if not isinstance(result, asyncio.CancelledError):
                    raise result or RuntimeError("a worker ended early")

    return run


CONTENDERS: dict[str, Contender] = {
    OURS: ours,
    "send-time semaphore": with_retries(send_time_semaphore),
    "aiolimiter": with_retries(aiolimiter),
    "pyrate-limiter": with_retries(pyrate_limiter),
    "limits": with_retries(moving_window),
    "retry only": with_retries(no_limiter),
}
