"""Processes that share a key and know nothing of each other.

Each runs `send_events` without end at the full limit; what they learn of the
others they learn from 429s. The first half minute, in which they find each
other, is counted apart. Fleets of several sizes run at the same time, each
with a sandbox of its own: at 10 a second they are no load.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import attrs

from loops_async import AsyncLoopsClient, Event, Outcome, RateLimiter
from loops_async.sandbox import Behaviour

from .processes import together
from .sandboxes import Log, Target, sandboxes
from .table import Row, percent, promise, show

LIMIT, COLD, SECONDS = 10, 30.0, 120.0
KIND = "sliding, 429s free"
FREE = Behaviour(uncounted=frozenset({401, 429}))
FLEETS = (
    (1, "sliding"),
    (2, "sliding"),
    (4, "sliding"),
    (8, "sliding"),
    (4, KIND),
    (4, "fixed"),
    (4, "bucket"),
)
PROMISED = 4  # processes
LEAST_SHARE, MOST_LIMITED, LEAST_FAIR = 0.90, 0.05, 0.5


@attrs.frozen
class Sent:
    """What one process did: when its events were acknowledged, and the rest.

    What the closing of the client cut short is neither failed nor lost.
    """

    acknowledged: list[float]
    failed: int
    lost: int


async def send(target: Target, who: int, seconds: float) -> Sent:
    """Send for so long and a second more."""
    acknowledged: list[float] = []
    pulled = failed = 0
    closing = False

    def events() -> Iterator[Event]:
        nonlocal pulled
        while True:
            pulled += 1
            yield Event("signup", email=f"{who}-{pulled % 5000}@example.com")

    def note(outcome: Outcome) -> None:
        nonlocal failed
        if outcome.ok:
            acknowledged.append(time.monotonic())
        else:
            failed += not closing

    limiter = RateLimiter(target.limit)
    async with AsyncLoopsClient(
        target.key, base_url=target.url, rate_limit=limiter, deadline=None
    ) as loops:
        run = asyncio.create_task(loops.send_events(events(), on_outcome=note))
        await asyncio.sleep(seconds + 1.0)
        closing = True
        await loops.aclose()
        report = await run
    return Sent(acknowledged, failed, lost=pulled - len(report))


def measure(seconds: float = SECONDS) -> list[Row]:
    settings: list[dict[str, Any]] = [
        {
            "rate_limit": LIMIT,
            "window": window.partition(",")[0],
            "latency": (0.02, 0.07),
            "behaviour": FREE if window == KIND else Behaviour(),
        }
        for _, window in FLEETS
    ]
    with sandboxes(settings) as servers:
        calls = [
            (target, who, COLD + seconds)
            for (size, _), target in zip(FLEETS, servers.targets, strict=True)
            for who in range(size)
        ]
        sent = iter(together(send, calls))
        logs = servers.close()
    print(f"{len(calls)} processes; the servers' core was {servers.load:.0%} busy")
    return [
        row
        for (size, window), log in zip(FLEETS, logs, strict=True)
        for row in rows_of(size, window, list(islice(sent, size)), log, seconds)
    ]


def rows_of(
    size: int, window: str, members: list[Sent], log: Log, seconds: float
) -> Iterator[Row]:
    acknowledged = sum(len(member.acknowledged) for member in members)
    lost = sum(member.lost for member in members) + abs(acknowledged - log.accepted)
    settled = log.began + COLD
    for when, since, until in (
        ("cold", log.began, settled),
        ("settled", settled, settled + seconds),
    ):
        each = [
            sum(since <= at < until for at in member.acknowledged) for member in members
        ]
        fair = max(1, sum(each)) / size
        yield {
            "processes": size,
            "window": window,
            "when": when,
            "share": log.share(since, until),
            "limited": log.limited(since, until),
            "least": min(each) / fair,
            "most": max(each) / fair,
            "acknowledged": acknowledged,
            "failed": sum(member.failed for member in members),
            "lost": lost,
        }


def report(rows: list[Row]) -> bool:
    """Print it; return whether the fleet of four is as promised."""
    heads = ("", "", "", "share of limit", "429", "least fair", "most")
    lines = [
        (
            f"{row['processes']} processes",
            row["window"],
            row["when"],
            row["share"],
            percent(row["limited"]),
            row["least"],
            row["most"],
        )
        for row in rows
    ]
    show(f"One key, {LIMIT}/s, uncoordinated, round trips 20-70 ms", [heads, *lines])
    print()
    good = True
    for row in rows:
        if row["processes"] == PROMISED and row["when"] == "settled":
            what = f"{PROMISED} processes, {row['window']}"
            good &= promise(f"share used, {what}", row["share"], least=LEAST_SHARE)
            good &= promise(f"429s, {what}", row["limited"], most=MOST_LIMITED)
            good &= promise(f"of a fair share, {what}", row["least"], least=LEAST_FAIR)
    ends = [row for row in rows if row["when"] == "settled"]
    acknowledged = sum(row["acknowledged"] for row in ends)
    for what in ("failed", "lost"):
        number = sum(row[what] for row in ends)
        good &= promise(f"events {what}, of {acknowledged:,}", number, most=0)
    return good


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
