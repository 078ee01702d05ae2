"""Processes that share an API key without communicating, simulated in virtual time."""

import asyncio
import random
from collections import Counter

import attrs

from loops_async import RateLimiter
from loops_async.sandbox._windows import WindowKind, make_window
from support import virtual_time as virtual


@attrs.define
class ServerCounts:
    """Requests that the server accepted and refused within some seconds."""

    seconds: float
    accepted: Counter[int] = attrs.field(factory=Counter)  # by process
    refused: int = 0

    def used_share(self, limit: int, period: float) -> float:
        """Return the fraction of the limit that was accepted."""
        return self.accepted.total() / (limit * self.seconds / period)

    @property
    def refused_share(self) -> float:
        """Fraction of the requests that received a 429."""
        return self.refused / max(1, self.refused + self.accepted.total())

    def fairness(self, processes: int) -> float:
        """Return the lowest number of a process, as a fraction of the fair share."""
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
) -> tuple[ServerCounts, ServerCounts]:
    """Run processes that send as fast as their limiters permit.

    Args:
        processes: Number of processes, each with a limiter of its own.
        window: Kind of window in which the server counts.
        leg: Range of the one-way latency in seconds.
        settling: Seconds until the processes are expected to have adapted.
        seconds: Seconds after that.
        headers: Whether responses report the remaining requests.
        bulk: Whether the requests belong to bulk runs.
        own_limit: Limit of each limiter if it differs from the server's.

    Returns:
        The counts of the settling time and those of the time after it.
    """
    chance = random.Random(seed)
    server = make_window(window, limit, period)
    early, settled = ServerCounts(settling), ServerCounts(seconds)

    async def main() -> None:
        now = asyncio.get_running_loop().time

        async def send(number: int, limiter: RateLimiter) -> None:
            sent = now()
            await asyncio.sleep(chance.uniform(*leg))
            admitted = server.take(now(), charge_refused=True)
            remaining = server.remaining(now()) if headers else None
            counts = early if now() < settling else settled
            if admitted:
                counts.accepted[number] += 1
            else:
                counts.refused += 1
            await asyncio.sleep(chance.uniform(*leg))
            limiter.release(answered=True, round_trip=now() - sent)
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
    return early, settled
