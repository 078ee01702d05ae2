"""Limiters that share one key without knowing of each other, in virtual time."""

import asyncio
import random
from collections import Counter

import attrs

from loops_async import RateLimiter
from loops_async.sandbox._windows import WindowKind, make_window
from support import virtual_time as virtual


@attrs.define
class Seen:
    """What the server counted in one stretch of time."""

    seconds: float
    accepted: Counter[int] = attrs.field(factory=Counter)  # by process
    refused: int = 0

    def share(self, limit: int, period: float) -> float:
        return self.accepted.total() / (limit * self.seconds / period)

    @property
    def refused_share(self) -> float:
        return self.refused / max(1, self.refused + self.accepted.total())

    def fairness(self, processes: int) -> float:
        """The smallest part a process got of its fair share."""
        fair = self.accepted.total() / processes
        return min(self.accepted[number] for number in range(processes)) / fair


def run(
    processes: int,
    *,
    window: WindowKind = "sliding",
    limit: int = 10,
    period: float = 1.0,
    leg: tuple[float, float] = (0.01, 0.035),
    settling: float = 30.0,
    seconds: float = 120.0,
    headers: bool = True,
    bulk: bool = True,
    own_limit: int | None = None,
    seed: int = 1,
) -> tuple[Seen, Seen]:
    """Let them send as fast as they may; return what was seen before and after.

    Args:
        leg: Seconds that each way takes, drawn evenly.
        headers: Whether answers say what is left.
        own_limit: What each process believes the limit to be.
    """
    chance = random.Random(seed)
    served = make_window(window, limit, period)
    cold, settled = Seen(settling), Seen(seconds)

    async def main() -> None:
        now = asyncio.get_running_loop().time

        async def send(number: int, limiter: RateLimiter) -> None:
            began = now()
            await asyncio.sleep(chance.uniform(*leg))
            admitted = served.take(now(), charge_refused=True)
            remaining = served.remaining(now()) if headers else None
            seen = cold if now() < settling else settled
            if admitted:
                seen.accepted[number] += 1
            else:
                seen.refused += 1
            await asyncio.sleep(chance.uniform(*leg))
            limiter.release(answered=True, round_trip=now() - began)
            if not admitted:
                limiter.note_rate_limited()
            elif limiter.slowed:
                limiter.note_remaining(remaining)

        async def process(number: int) -> None:
            await asyncio.sleep(chance.uniform(0, 0.2))
            limiter = RateLimiter(
                own_limit or limit, period, clock=now, chance=chance.random
            )
            while True:
                await limiter.acquire(bulk=bulk)
                sends.create_task(send(number, limiter))

        try:
            async with asyncio.timeout(settling + seconds):
                async with asyncio.TaskGroup() as sends:
                    for number in range(processes):
                        sends.create_task(process(number))
        except TimeoutError:
            pass

    virtual.run(main())
    return cold, settled
