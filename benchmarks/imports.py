"""The cost of the import, of a new client and of its first send.

Each measurement of the first send uses a new process, so that aiohttp, the connection
and every cache are cold.
"""

import asyncio
import importlib.util
import math
import statistics
import subprocess
import sys
import time

from loops_async import AsyncLoopsClient

from .stub_server import stub_server

ROUNDS = 9
MAX_OF_PYLOOPS = 0.5
MAX_BLOCKED = 0.010  # seconds


def import_seconds(*imports: str) -> list[float]:
    """Return the wall-clock seconds that each statement adds to bare Python.

    The statements alternate, each in a new process. The best round counts.
    """
    programs = ["pass", *imports]
    best = [math.inf] * len(programs)
    for _ in range(ROUNDS + 1):  # the first round also writes the byte code
        for number, program in enumerate(programs):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            best[number] = min(best[number], time.perf_counter() - began)
    return [seconds - best[0] for seconds in best[1:]]


async def first_send(base_url: str) -> tuple[float, float]:
    """Make a client and send an event; return two durations in seconds.

    The first is that of making the client. The second is the longest time for which
    its first send blocks the event loop.
    """
    began = time.perf_counter()
    loops = AsyncLoopsClient("key", base_url=base_url)
    made = time.perf_counter() - began
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)

    async with loops:
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.1)
        longest = 0.0
        await loops.send_event("signup", email="ada@example.com")
        ticking.cancel()
    return made, longest


def first_sends(base_url: str) -> tuple[float, float]:
    """Return the medians of `first_send` over several processes."""
    command = [sys.executable, "-m", "benchmarks.imports", base_url]
    results = [
        tuple(map(float, subprocess.check_output(command, text=True).split()))
        for _ in range(ROUNDS)
    ]
    made, blocked = zip(*results, strict=True)
    return statistics.median(made), statistics.median(blocked)


def main() -> bool:
    """Print the results; return whether they keep the promises."""
    good = True
    others = [name for name in ("pyloops", "httpx") if importlib.util.find_spec(name)]
    # The package imports names lazily, so the statement names all that a send needs.
    ours, *theirs = import_seconds(
        "from loops_async import AsyncLoopsClient, Event, LoopsError",
        *(f"import {name}" for name in others),
    )
    print(f"import of the client: {ours * 1000:.0f} ms more than bare Python")
    for name, seconds in zip(others, theirs, strict=True):
        print(f"  {name}: {seconds * 1000:.0f} ms, ratio {ours / seconds:.2f}")
        good = good and (name != "pyloops" or ours / seconds <= MAX_OF_PYLOOPS)
    if "pyloops" not in others:
        print("  pyloops is not installed; it needs Python 3.12")
    with stub_server() as base_url:
        made, blocked = first_sends(base_url)
    print(f"new client, with the import of aiohttp: {made * 1000:.0f} ms")
    print(f"the first send blocks the event loop for {blocked * 1000:.1f} ms")
    return good and blocked < MAX_BLOCKED


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*asyncio.run(first_send(sys.argv[1])))
    else:
        sys.exit(not main())
