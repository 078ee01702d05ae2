"""What it costs to have: the import, and how long the first send blocks the loop."""

import asyncio
import importlib.util
import math
import subprocess
import sys
import time

from loops_async import AsyncLoopsClient

from .answering import answering

ROUNDS = 9


def import_seconds(*modules: str) -> list[float]:
    """Return the wall-clock seconds each import adds to bare Python.

    Each in a new process, taking turns; the best of the rounds counts.
    """
    programs = ["pass", *(f"import {module}" for module in modules)]
    best = [math.inf] * len(programs)
    for _ in range(ROUNDS + 1):  # the first one also writes the byte code
        for number, program in enumerate(programs):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            best[number] = min(best[number], time.perf_counter() - began)
    return [seconds - best[0] for seconds in best[1:]]


async def first_send_blocks(base_url: str) -> float:
    """Return the longest time, in seconds, in which the loop did nothing else."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)

    async with AsyncLoopsClient("key", base_url=base_url) as loops:
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.1)
        longest = 0.0
        await loops.send_event("signup", email="ada@example.com")
        ticking.cancel()
    return longest


def main() -> None:
    others = [name for name in ("pyloops", "httpx") if importlib.util.find_spec(name)]
    ours, *theirs = import_seconds("loops_async", *others)
    print(f"import loops_async: {ours * 1000:.0f} ms over bare Python")
    for name, seconds in zip(others, theirs, strict=True):
        print(f"  {name}: {seconds * 1000:.0f} ms, ratio {ours / seconds:.2f}")
    if "pyloops" not in others:
        print("  pyloops is not installed (it needs Python 3.12)")
    with answering() as base_url:
        blocked = min(asyncio.run(first_send_blocks(base_url)) for _ in range(ROUNDS))
    print(f"the first send blocks the loop for {blocked * 1000:.1f} ms")


if __name__ == "__main__":
    main()
