"""A simulated server that counts the requests of a rate limiter, in virtual time."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import attrs
from hypothesis import strategies as st

from loops_async import RateLimiter

EXACT = 1e-9  # seconds; rounding error of sums of floats
QUARTER = 0.05  # seconds; a quarter of the fastest round trip in these tests

IDLE = {"in flight": 0, "returning": 0, "waiting": 0}


def now() -> float:
    return asyncio.get_running_loop().time()


def make_limiter(limit: int = 10, period: float = 1.0) -> RateLimiter:
    """Return a limiter that uses the clock of the running loop."""
    return RateLimiter(limit, period, clock=now)


async def limiter_with_credit(limit: int) -> RateLimiter:
    """Return a limiter that has learned a fastest round trip of four quarters."""
    limiter = make_limiter(limit)
    for _ in range(20):
        await limiter.acquire()
        limiter.release(answered=True, round_trip=4 * QUARTER)
    await asyncio.sleep(2)
    return limiter


def counts_of(limiter: RateLimiter) -> dict[str, int]:
    """Read the numbers of permits and waiters from the repr, their public form."""
    text = repr(limiter).partition(": ")[2]
    found = re.findall(r"(-?\d+) (free|in flight|returning|waiting)", text)
    return {name: int(number) for number, name in found}


# The server's windows, over the arrival times of requests.


def most_in_a_sliding_window(arrivals: Sequence[float], period: float) -> int:
    times = sorted(arrivals)
    return max(
        (sum(first <= at < first + period - EXACT for at in times) for first in times),
        default=0,
    )


def most_in_a_fixed_window(
    arrivals: Sequence[float], period: float, phase: float
) -> int:
    """Return the largest count, leaving the rounding error at each edge uncounted."""
    places = (divmod(at - phase, period) for at in arrivals)
    counts = Counter(index for index, into in places if EXACT < into < period - EXACT)
    return max(counts.values(), default=0)


def fewest_tokens_in_a_bucket(
    arrivals: Sequence[float], limit: int, period: float
) -> float:
    """Return the fewest tokens after any arrival; below 0 the server sends a 429."""
    tokens, before, fewest = float(limit), 0.0, float(limit)
    for arrival in sorted(arrivals):
        tokens = min(limit, tokens + (arrival - before) * limit / period) - 1
        before = arrival
        fewest = min(fewest, tokens)
    return fewest


def assert_within_limit(
    limiter: RateLimiter, arrivals: list[float], phase: float
) -> None:
    limit, period = limiter.limit, limiter.period
    assert most_in_a_sliding_window(arrivals, period) <= limit
    assert most_in_a_fixed_window(arrivals, period, phase) <= limit
    assert fewest_tokens_in_a_bucket(arrivals, limit, period) >= -1e-6


@attrs.frozen
class SimulatedRequest:
    """One request of a simulation; times in seconds.

    Attributes:
        forward: Time from the permit to the arrival at the server.
        back: Time from the arrival to the end of the attempt.
    """

    start: float
    forward: float
    back: float
    bulk: bool = False
    end: Literal["answered", "lost", "unused", "cancelled"] = "answered"


async def simulate(
    limiter: RateLimiter, requests: list[SimulatedRequest], *, reused: bool
) -> list[float]:
    """Send the requests, check that all permits return, and return the arrivals.

    Args:
        reused: Whether the connections were used before, so that the limiter
            learns the round trips.
    """
    arrivals: list[float] = []
    await asyncio.gather(
        *(_send(limiter, request, arrivals, reused=reused) for request in requests)
    )
    await asyncio.sleep(limiter.period)
    assert counts_of(limiter) == {**IDLE, "free": limiter.limit}
    return arrivals


async def _send(
    limiter: RateLimiter,
    request: SimulatedRequest,
    arrivals: list[float],
    *,
    reused: bool,
) -> None:
    await asyncio.sleep(request.start)
    if request.end == "cancelled":
        try:
            async with asyncio.timeout(request.forward):
                await limiter.acquire(bulk=request.bulk)
        except TimeoutError:
            return
        limiter.release_unused()
        return
    await limiter.acquire(bulk=request.bulk)
    if request.end == "unused":
        await asyncio.sleep(request.forward)
        limiter.release_unused()
        return
    sent = now()
    await asyncio.sleep(request.forward)
    arrivals.append(now())
    await asyncio.sleep(request.back)
    if request.end == "lost":
        limiter.release(answered=False)
    else:
        limiter.release(answered=True, round_trip=now() - sent if reused else None)


limits = st.integers(1, 5)
phases = st.floats(0, 1)
legs = st.sampled_from([0.0, 0.001, 0.02, 0.25, 0.999, 1.0, 3.0]) | st.floats(0, 1.5)
_starts = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0]) | st.floats(0, 4)


def requests_with(
    legs: st.SearchStrategy[float],
) -> st.SearchStrategy[list[SimulatedRequest]]:
    """Return lists of requests whose ways take a time from ``legs``."""
    return st.lists(
        st.builds(
            SimulatedRequest,
            _starts,
            legs,
            legs,
            st.booleans(),
            st.sampled_from(["answered"] * 4 + ["lost", "unused", "cancelled"]),
        ),
        max_size=30,
    )
