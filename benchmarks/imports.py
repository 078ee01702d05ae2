"""What it costs to have: the import, the client, and the first send.

How long the first send blocks its event loop is asked of a new process each
time, in which aiohttp, the connection and every cache are as cold as can be.
"""

import asyncio
import importlib.util
import math
import statistics
import subprocess
import sys
import time

from loops_async import AsyncLoopsClient

from .answering import answering

ROUNDS = 9
MOST_OF_PYLOOPS = 0.5
MOST_BLOCKED = 0.010


def import_seconds(*imports: str) -> list[float]:
    """Return the wall-clock seconds each statement adds to bare Python.

    Each in a new process, taking turns; the best of the rounds counts.
    """
    programs = ["pass", *imports]
    best = [math.inf] * len(programs)
    for _ in range(ROUNDS + 1):  # the first one also writes the byte code
        for number, program in enumerate(programs):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            best[number] = min(best[number], time.perf_counter() - began)
    return [seconds - best[0] for seconds in best[1:]]


async def first_send(base_url: str) -> tuple[float, float]:
    """Return the seconds the client took to make, and the first send blocked."""
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
    """Return the median of both, over new processes."""
    command = [sys.executable, "-m", "benchmarks.imports", base_url]
    results = [
        tuple(map(float, subprocess.check_output(command, text=True).split()))
        for _ in range(ROUNDS)
    ]
    made, blocked = zip(*results, strict=True)
    return statistics.median(made), statistics.median(blocked)


def main() -> bool:
    """Print it all; return whether it is within what we promise."""
    good = True
    others = [name for name in ("pyloops", "httpx") if importlib.util.find_spec(name)]
    # The package imports what is asked for: all that sending an event takes.
    ours, *theirs = import_seconds(
        "from loops_async import AsyncLoopsClient, Event, LoopsError",
        *(f"import {name}" for name in others),
    )
    print(f"importing our client: {ours * 1000:.0f} ms over bare Python")
    for name, seconds in zip(others, theirs, strict=True):
        print(f"  {name}: {seconds * 1000:.0f} ms, ratio {ours / seconds:.2f}")
        good = good and (name != "pyloops" or ours / seconds <= MOST_OF_PYLOOPS)
    if "pyloops" not in others:
        print("  pyloops is not installed (it needs Python 3.12)")
    with answering() as base_url:
        made, blocked = first_sends(base_url)
    print(f"the client takes {made * 1000:.0f} ms to make, aiohttp's import included")
    print(f"the first send blocks the loop for {blocked * 1000:.1f} ms")
    return good and blocked < MOST_BLOCKED


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*asyncio.run(first_send(sys.argv[1])))
    else:
        sys.exit(not main())
