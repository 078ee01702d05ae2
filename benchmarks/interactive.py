"""The wait of a `send_event` for its permit while a bulk run uses the whole limit.

One client does both. The interactive sends begin at random moments, like requests of
users. A wait is the duration of a send without its round trips.
"""

import asyncio
import random
import statistics
import sys
import time
import uuid
from typing import Any

from loops_async import AsyncLoopsClient, Attempt, Outcome, RateLimiter

from .contenders import endless
from .processes import Load
from .sandboxes import Target, sandboxes
from .stub_server import pin
from .table import Row, promise, show

LIMIT = 10
MAX_WAIT, MIN_BULK = 1.5, 0.9
SETTLE, SECONDS = 5.0, 120.0
RUNS = {1.0: 6, 0.2: 12}  # sends per second: number of runs, all concurrent
SEED = 20261123


async def run(target: Target, rate: float, dice: random.Random) -> Row:
    """Return the waits of one client, and the rate of its bulk run."""
    waits: list[float] = []
    accepted: list[float] = []
    round_trips: dict[str | None, float] = {}

    def add_round_trip(attempt: Attempt) -> None:
        if attempt.idempotency_key in round_trips:
            round_trips[attempt.idempotency_key] += attempt.elapsed

    def note(outcome: Outcome) -> None:
        if outcome.ok:
            accepted.append(time.monotonic())

    async def interact(number: int) -> None:
        key = str(uuid.uuid4())
        round_trips[key] = 0.0
        receipt = await loops.send_event(
            "clicked", email=f"person{number}@example.com", idempotency_key=key
        )
        waits.append(receipt.elapsed - round_trips.pop(key))

    limiter = RateLimiter(target.limit)
    async with (
        AsyncLoopsClient(
            target.key,
            base_url=target.url,
            rate_limit=limiter,
            deadline=None,
            on_attempt=add_round_trip,
        ) as loops,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(loops.send_events(endless(), on_outcome=note))
        await asyncio.sleep(SETTLE)
        began = time.monotonic()
        async with asyncio.TaskGroup() as sends:
            number = 0
            while (pause := dice.expovariate(rate)) < (
                began + SECONDS - time.monotonic()
            ):
                await asyncio.sleep(pause)
                number += 1
                sends.create_task(interact(number))
            await asyncio.sleep(began + SECONDS - time.monotonic())
            bulk = sum(at >= began for at in accepted) / SECONDS
        await loops.aclose()  # ends the bulk run, whose source is endless
    left = LIMIT - len(waits) / SECONDS
    return {"rate": rate, "waits": waits, "bulk of the rest": bulk / left}


async def run_all(targets: list[Target], rates: list[float]) -> list[Row]:
    load = Load()
    dice = random.Random(SEED)
    running = []
    for rate, target in zip(rates, targets, strict=True):
        own = random.Random(dice.random())
        running.append(asyncio.create_task(run(target, rate, own)))
        await asyncio.sleep(1.0 / len(rates))  # otherwise all runs would be in phase
    rows = await asyncio.gather(*running)
    print(
        f"{len(rows)} runs at once: the clients used {load.share():.0%} of their core"
    )
    return rows


def measure() -> list[Row]:
    pin(0)
    rates = [rate for rate, runs in RUNS.items() for _ in range(runs)]
    settings: list[dict[str, Any]] = [
        {"rate_limit": LIMIT, "latency": (0.02, 0.07)} for _ in rates
    ]
    with sandboxes(settings) as servers:
        rows = asyncio.run(run_all(servers.targets, rates))
        logs = servers.close()
    for row, log in zip(rows, logs, strict=True):
        row["limited"] = log.limited()
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """Return a row for each rate, with the waits of all its runs."""
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    return [_summed([row for row in rows if row["rate"] == rate]) for rate in rates]


def _summed(rows: list[Row]) -> Row:
    waits = [wait for row in rows for wait in row["waits"]]
    cuts = statistics.quantiles(waits, n=100, method="inclusive")
    return {
        "rate": rows[0]["rate"],
        "sends": len(waits),
        "p50": cuts[49],
        "p99": cuts[98],
        "longest": max(waits),
        "bulk": statistics.fmean(row["bulk of the rest"] for row in rows),
        "limited": statistics.fmean(row["limited"] for row in rows),
    }


def report(rows: list[Row]) -> bool:
    """Print the results; return whether they keep the promises."""
    summed = summary(rows)
    heads = ("sends/s", "sends", "p50 s", "p99 s", "max s", "bulk run / rest")
    names = ("rate", "sends", "p50", "p99", "longest", "bulk")
    show(
        f"Waits of send_event during a bulk run at {LIMIT}/s, round trips 20-70 ms",
        [heads, *(tuple(row[name] for name in names) for row in summed)],
    )
    print()
    good = True
    for row in summed:
        what = f"{row['rate']:g} sends/s"
        good &= promise(f"p99 wait in seconds, {what}", row["p99"], most=MAX_WAIT)
        good &= promise(
            f"bulk run / rest of the limit, {what}", row["bulk"], least=MIN_BULK
        )
    return good


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
