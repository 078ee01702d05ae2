"""Memory and cost of a million events through `stream_events`: both stay constant.

The source makes an event when the stream requests it. After every 100,000 events the
stream alternates with the hand-written loop, because over minutes the machine's speed
drifts and only the ratio of the two is comparable.
"""

import asyncio
import gc
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from loops_async import AsyncLoopsClient, Event, RateLimiter

from . import baseline
from .stub_server import pin, stub_server
from .table import Row, promise, show

EVENTS, STEP, FIRST = 1_000_000, 100_000, 10_000
TURNS, EVENTS_A_TURN, IN_FLIGHT = 6, 1500, 50
MAX_GROWTH, SPAN = 3.0, 300_000  # MB per number of events, after the first STEP
MAX_COST_RATIO = 1.10


class Source:
    """A source of events that waits for `release` before each batch."""

    def __init__(self) -> None:
        self._left = 0
        self._number = 0
        self._released = asyncio.Event()
        self._ended = False

    async def events(self) -> AsyncIterator[Event]:
        while True:
            while not self._left:
                if self._ended:
                    return
                self._released.clear()
                await self._released.wait()
            self._left -= 1
            self._number += 1
            yield Event(
                "planUpgraded",
                email=f"{self._number}@example.com",
                event_properties={"amount": self._number, "plan": "Pro"},
            )

    def release(self, count: int) -> None:
        self._left += count
        self._released.set()

    def end(self) -> None:
        self._ended = True
        self._released.set()


async def stream(base_url: str, events: int) -> list[Row]:
    """Return memory, open files and cost at FIRST and at every STEP."""
    limiter = RateLimiter(1_000_000)
    source = Source()
    rows = []
    async with (
        baseline.open_session("key") as session,
        AsyncLoopsClient(
            "key", base_url=base_url, rate_limit=limiter, max_connections=IN_FLIGHT
        ) as loops,
    ):
        outcomes = aiter(loops.stream_events(source.events()))

        async def ours(count: int) -> float:
            spent = time.process_time()
            source.release(count)
            for _ in range(count):
                outcome = await anext(outcomes)
                assert outcome.ok
            return time.process_time() - spent

        sent = 0
        for until in (FIRST, *range(STEP, events + 1, STEP)):
            turns = TURNS * EVENTS_A_TURN
            cpu = await ours(until - sent - turns)
            pairs = [
                (await ours(EVENTS_A_TURN), await _by_hand(session, base_url))
                for _ in range(TURNS)
            ]
            ratio = statistics.median(our / hand for our, hand in pairs)
            gc.collect()
            rows.append(
                {
                    "events": until,
                    "megabytes": _megabytes(),
                    "files": _files(),
                    "cpu": cpu / (until - sent - turns) * 1e6,
                    "ratio": ratio,
                }
            )
            sent = until
        source.end()
        async for _ in outcomes:
            raise AssertionError
    return rows


async def _by_hand(session: aiohttp.ClientSession, base_url: str) -> float:
    body = {
        "email": "ada@example.com",
        "eventName": "planUpgraded",
        "eventProperties": {"amount": 42, "plan": "Pro"},
    }

    async def send_some() -> None:
        for _ in range(EVENTS_A_TURN // IN_FLIGHT):
            await baseline.send_event(session, base_url, body)

    spent = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(send_some())
    return time.process_time() - spent


def _megabytes() -> float | None:
    """Return the current resident memory, or None if the system is not Linux."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _files() -> int | None:
    files = Path("/proc/self/fd")
    return len(list(files.iterdir())) if files.exists() else None


def measure(events: int = EVENTS) -> list[Row]:
    pin(0)
    with stub_server() as base_url:
        return asyncio.run(stream(base_url, events))


def growth(rows: list[Row]) -> float:
    """Return the largest growth of memory in any SPAN after the first STEP, in MB."""
    after = [row for row in rows if row["events"] >= STEP]
    grown: list[float] = [
        later["megabytes"] - row["megabytes"]
        for row in after
        for later in after
        if 0 <= later["events"] - row["events"] <= SPAN
    ]
    return max(grown)


def report(rows: list[Row]) -> bool:
    """Print the results; return whether they keep the promises."""
    heads = ("events", "MB resident", "open files", "CPU us", "CPU / hand-written")
    names = ("events", "megabytes", "files", "cpu", "ratio")
    lines = [tuple(row[name] for name in names) for row in rows]
    show("stream_events, 50 in flight", [heads, *lines])
    print()
    cost_ratio = rows[-1]["ratio"] / rows[0]["ratio"]
    what = f"cost at {rows[-1]['events']:,} / cost at {rows[0]['events']:,}"
    good = promise(what, cost_ratio, most=MAX_COST_RATIO)
    if rows[0]["megabytes"] is None:
        print("  Memory and open files are measured on Linux only.")
        return good
    good &= promise(f"MB of growth in {SPAN:,} events", growth(rows), most=MAX_GROWTH)
    opened = max(row["files"] for row in rows) - rows[0]["files"]
    return good & promise("additional open files", opened, most=0)


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
