"""What slow answers cost of the rate: a permit is held until the answer."""

import asyncio
import sys
import time

from loops_async import AsyncLoopsClient
from loops_async.sandbox import Sandbox

LIMIT = 10
LATENCIES = (0.02, 0.1, 0.3)
SETTLED, MEASURED = 6, 19  # periods; the credit is learned in the first ones


async def rate(latency: float) -> tuple[float, int]:
    """Return the requests a second once settled, and the 429s in all."""
    answered: list[float] = []
    async with (
        Sandbox(rate_limit=LIMIT, latency=latency) as sandbox,
        AsyncLoopsClient(
            sandbox.api_key, base_url=sandbox.url, rate_limit=LIMIT, deadline=None
        ) as loops,
    ):

        async def send(number: int) -> None:
            await loops.send_event("signup", email=f"{number}@example.com")
            answered.append(time.monotonic())

        periods = SETTLED + MEASURED + 1
        await asyncio.gather(*map(send, range(LIMIT * periods)))
        spent = answered[LIMIT * (SETTLED + MEASURED)] - answered[LIMIT * SETTLED]
        return LIMIT * MEASURED / spent, sandbox.counts.limited


async def measure() -> list[tuple[float, int]]:
    return await asyncio.gather(*map(rate, LATENCIES))


def main() -> bool:
    """Print it; return whether no answer was a 429."""
    results = asyncio.run(measure())
    print(f"requests a second of {LIMIT} permitted, sliding window:")
    for latency, (per_second, limited) in zip(LATENCIES, results, strict=True):
        round_trip = f"{latency * 1000:.0f} ms"
        print(f"  round trip {round_trip}: {per_second:.2f}, {limited} answers 429")

    return not any(limited for _, limited in results)


if __name__ == "__main__":
    sys.exit(not main())
