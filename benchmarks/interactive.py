"""How long a `send_event` waits while a bulk run uses up the limit.

One client does both. What is asked of it interactively comes at random
moments, as from people; its wait is what it took less its round trips.
"""

import asyncio
import random
import statistics
import sys
import time
import uuid
from typing import Any

from loops_async import AsyncLoopsClient, Attempt, Outcome, RateLimiter

from .answering import pin
from .contenders import endless
from .processes import Load
from .sandboxes import Target, sandboxes
from .table import Row, promise, show

LIMIT = 10
MOST_WAIT, LEAST_BULK = 1.5, 0.9
SETTLE, SECONDS = 5.0, 120.0
RUNS = {1.0: 6, 0.2: 12}  # sends a second to how many runs, all at once
SEED = 20261123


async def run(target: Target, rate: float, dice: random.Random) -> Row:
    """Return the waits of one client, and how fast its bulk run went on."""
    waits: list[float] = []
    done: list[float] = []
    on_the_way: dict[str | None, float] = {}

    def answered(attempt: Attempt) -> None:
        if attempt.idempotency_key in on_the_way:
            on_the_way[attempt.idempotency_key] += attempt.elapsed

    def note(outcome: Outcome) -> None:
        if outcome.ok:
            done.append(time.monotonic())

    async def interact(number: int) -> None:
        key = str(uuid.uuid4())
        on_the_way[key] = 0.0
        receipt = await loops.send_event(
            "clicked", email=f"person{number}@example.com", idempotency_key=key
        )
        waits.append(receipt.elapsed - on_the_way.pop(key))

    limiter = RateLimiter(target.limit)
    async with (
        AsyncLoopsClient(
            target.key,
            base_url=target.url,
            rate_limit=limiter,
            deadline=None,
            on_attempt=answered,
        ) as loops,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(loops.send_events(endless(), on_outcome=note))
        await asyncio.sleep(SETTLE)
        began = time.monotonic()
        async with asyncio.TaskGroup() as people:
            number = 0
            while (pause := dice.expovariate(rate)) < (
                began + SECONDS - time.monotonic()
            ):
                await asyncio.sleep(pause)
                number += 1
                people.create_task(interact(number))
            await asyncio.sleep(began + SECONDS - time.monotonic())
            bulk = sum(at >= began for at in done) / SECONDS
        await loops.aclose()  # or it would go on with what it has read ahead
    left = LIMIT - len(waits) / SECONDS
    return {"rate": rate, "waits": waits, "bulk of what is left": bulk / left}


async def all_of_them(targets: list[Target], rates: list[float]) -> list[Row]:
    load = Load()
    dice = random.Random(SEED)
    running = []
    for rate, target in zip(rates, targets, strict=True):
        own = random.Random(dice.random())
        running.append(asyncio.create_task(run(target, rate, own)))
        await asyncio.sleep(1.0 / len(rates))  # else all would keep step
    rows = await asyncio.gather(*running)
    print(
        f"{len(rows)} at the same time: the clients' core was {load.share():.0%} busy"
    )
    return rows


def measure() -> list[Row]:
    pin(0)
    rates = [rate for rate, runs in RUNS.items() for _ in range(runs)]
    settings: list[dict[str, Any]] = [
        {"rate_limit": LIMIT, "latency": (0.02, 0.07)} for _ in rates
    ]
    with sandboxes(settings) as servers:
        rows = asyncio.run(all_of_them(servers.targets, rates))
        logs = servers.close()
    for row, log in zip(rows, logs, strict=True):
        row["limited"] = log.limited()
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """Return a row for each rate, over its runs."""
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
        "bulk": statistics.fmean(row["bulk of what is left"] for row in rows),
        "limited": statistics.fmean(row["limited"] for row in rows),
    }


def report(rows: list[Row]) -> bool:
    """Print it; return whether it is as promised."""
    summed = summary(rows)
    heads = ("sends/s", "sends", "p50 s", "p99 s", "longest", "bulk of what is left")
    names = ("rate", "sends", "p50", "p99", "longest", "bulk")
    show(
        f"Waits of send_event beside a bulk run at {LIMIT}/s, round trips 20-70 ms",
        [heads, *(tuple(row[name] for name in names) for row in summed)],
    )
    print()
    good = True
    for row in summed:
        what = f"{row['rate']:g} a second"
        good &= promise(f"p99 of the waits, {what}", row["p99"], most=MOST_WAIT)
        good &= promise(f"bulk of what is left, {what}", row["bulk"], least=LEAST_BULK)
    return good


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
