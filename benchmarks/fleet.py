"""Uncoordinated processes that share one API key.

Each process runs an endless `send_events` with the full limit, so its only
information about the other processes is the 429s. The first 30 s, in which the
processes adapt, are reported separately. Fleets of several sizes run at the same
time, each with its own sandbox; 10 requests per second hardly load the machine.
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

from .processes import run_together
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
MIN_SHARE, MAX_LIMITED, MIN_FAIR = 0.90, 0.05, 0.5


@attrs.frozen
class Sent:
    """The result of one process.

    Events that are cut off when the client closes count as neither failed nor lost.

    Attributes:
        acknowledged: The monotonic times of the acknowledgements.
        failed: The number of failed events.
        lost: The number of events without an outcome.
    """

    acknowledged: list[float]
    failed: int
    lost: int


async def send(target: Target, process: int, seconds: float) -> Sent:
    """Send for the given seconds and one more."""
    acknowledged: list[float] = []
    pulled = failed = 0
    closing = False

    def events() -> Iterator[Event]:
        nonlocal pulled
        while True:
            pulled += 1
            yield Event("signup", email=f"{process}-{pulled % 5000}@example.com")

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
            (target, process, COLD + seconds)
            for (size, _), target in zip(FLEETS, servers.targets, strict=True)
            for process in range(size)
        ]
        sent = iter(run_together(send, calls))
        logs = servers.close()
    print(f"{len(calls)} processes; the servers used {servers.load:.0%} of their core")
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
    """Print the results; return whether the fleets of four keep the promises."""
    heads = ("", "", "", "share of limit", "429s", "min / fair", "max / fair")
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
    title = f"One key, {LIMIT}/s, uncoordinated processes, round trips 20-70 ms"
    show(title, [heads, *lines])
    print()
    good = True
    for row in rows:
        if row["processes"] == PROMISED and row["when"] == "settled":
            what = f"{PROMISED} processes, {row['window']}"
            good &= promise(
                f"share of the limit, {what}", row["share"], least=MIN_SHARE
            )
            good &= promise(f"share of 429s, {what}", row["limited"], most=MAX_LIMITED)
            good &= promise(f"min / fair share, {what}", row["least"], least=MIN_FAIR)
    ends = [row for row in rows if row["when"] == "settled"]
    acknowledged = sum(row["acknowledged"] for row in ends)
    for fate in ("failed", "lost"):
        number = sum(row[fate] for row in ends)
        good &= promise(f"{fate} events of {acknowledged:,}", number, most=0)
    return good


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
