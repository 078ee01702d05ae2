"""The share of a rate limit that is used, and the share of 429s.

Every contender runs with every kind of window and every network profile, all at the
same time, each with its own sandbox, which counts the requests. A 429 uses no permit,
which favours contenders with many 429s; in one of the profiles a 429 does use a
permit. At 1,000 per second the machine is too small for concurrent cases, so these
run one after another, the alternatives for a shorter time and with the sliding
window only.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import attrs

from loops_async.sandbox import Behaviour

from .contenders import CONTENDERS, OURS
from .processes import Load, run_together
from .sandboxes import Log, Settings, Target, sandboxes
from .table import Row, percent, promise, show

MIN_SHARE, MAX_LIMITED = 0.95, 0.001
SETTLE = 5.0  # seconds before the measurement
MEASURED = 60.0  # seconds
FEW = 20.0  # seconds that each alternative is measured at 1,000 per second
WINDOWS = ("sliding", "fixed", "bucket")
USUAL = "20-70 ms"
PROFILES: dict[str, Settings] = {
    USUAL: {"latency": (0.02, 0.07)},
    "100-400 ms": {"latency": (0.1, 0.4)},
    "20-70 ms before the server": {"latency_before": (0.02, 0.07)},
    "slow connections": {"latency": (0.02, 0.07), "setup_latency": 0.15},
    "429s use permits": {
        "latency": (0.02, 0.07),
        "behaviour": Behaviour(uncounted=frozenset({401})),
    },
    "20 ms": {"latency": 0.02},
    "100 ms": {"latency": 0.1},
    "300 ms": {"latency": 0.3},
}
FREE_429S = Behaviour(uncounted=frozenset({401, 429}))
COMPARED, STEADY = list(PROFILES)[:5], list(PROFILES)[5:]


@attrs.frozen
class Case:
    contender: str
    limit: int
    window: str
    profile: str
    measured: float = MEASURED


def rounds() -> Iterator[list[Case]]:
    """Yield the cases that run at the same time."""
    yield [
        Case(contender, 10, window, profile)
        for window in WINDOWS
        for contender in CONTENDERS
        for profile in COMPARED
    ]
    yield [
        *(Case(name, 50, window, USUAL) for window in WINDOWS for name in CONTENDERS),
        *(Case(OURS, 10, "sliding", profile) for profile in STEADY),
    ]
    for window in WINDOWS:
        yield [Case(OURS, 1000, window, USUAL)]
    for contender in CONTENDERS:
        if contender != OURS:
            yield [Case(contender, 1000, "sliding", USUAL, FEW)]


def measure() -> list[Row]:
    return [row for cases in rounds() for row in run(cases)]


def run(cases: Sequence[Case]) -> list[Row]:
    """Run the cases at the same time; return a row for each.

    The cases of one contender share a process, and their sandboxes another process,
    so that the event loop of one contender does not slow down another contender.
    """
    groups = [
        [case for case in cases if case.contender == contender]
        for contender in dict.fromkeys(case.contender for case in cases)
    ]
    seconds = SETTLE + max(case.measured for case in cases)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(sandboxes(list(map(settings, group))))
            for group in groups
        ]
        loads = run_together(
            contend,
            [
                (group, server.targets, seconds)
                for group, server in zip(groups, servers, strict=True)
            ],
        )
        logs = [server.close() for server in servers]
    print(
        f"{len(cases)} cases at once: the clients used {sum(loads):.0%} of their core, "
        f"the servers {sum(server.load for server in servers):.0%}",
        flush=True,
    )
    return [
        row_of(case, log)
        for group, found in zip(groups, logs, strict=True)
        for case, log in zip(group, found, strict=True)
    ]


def settings(case: Case) -> Settings:
    return {
        "rate_limit": case.limit,
        "window": case.window,
        "behaviour": FREE_429S,
        **PROFILES[case.profile],
    }


async def contend(
    cases: Sequence[Case], targets: Sequence[Target], seconds: float
) -> float:
    """Run the cases of one contender for the given seconds; return the load."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for case, target in zip(cases, targets, strict=True):
            group.create_task(CONTENDERS[case.contender](target, stop))
            # Otherwise all cases would send in the same milliseconds.
            await asyncio.sleep(1.0 / len(cases))
        load = Load()
        await asyncio.sleep(seconds + 0.5)
        stop.set()
        return load.share()


def row_of(case: Case, log: Log) -> Row:
    since = log.began + SETTLE
    until = since + case.measured
    measured = {
        "share": log.share(since, until),
        "limited": log.limited(since, until),
        "limited overall": log.limited(until=until),
    }
    return attrs.asdict(case) | measured


def report(rows: list[Row]) -> bool:
    """Print the results; return whether those of loops-async keep the promises."""
    heads = [f"{window}{suffix}" for window in WINDOWS for suffix in ("", " 429s")]
    for limit, profile in ((10, USUAL), (50, USUAL), (1000, USUAL)):
        _show(rows, limit, profile, heads)
    for profile in COMPARED[1:]:
        _show(rows, 10, profile, heads)
    steady = [row for row in rows if row["profile"] in STEADY]
    show(
        f"{OURS} with steady round trips, 10/s, sliding window",
        [("round trip", "share of limit", "429s"), *map(_steady, steady)],
    )
    print()
    good = True
    for row in rows:
        if row["contender"] == OURS and row["profile"] == USUAL:
            what = f"{row['limit']}/s, {row['window']}"
            good &= promise(f"limit used, {what}", row["share"], least=MIN_SHARE)
            good &= promise(
                f"share of 429s, {what}", row["limited overall"], most=MAX_LIMITED
            )
    return good


def _show(rows: list[Row], limit: int, profile: str, heads: list[str]) -> None:
    lines = []
    for contender in CONTENDERS:
        line: list[object] = [contender]
        for window in WINDOWS:
            found = [
                row
                for row in rows
                if (row["contender"], row["limit"], row["window"], row["profile"])
                == (contender, limit, window, profile)
            ]
            line += [found[0]["share"] if found else None]
            line += [_limited(found[0]) if found else None]
        lines.append(line)
    title = f"{limit}/s, {profile}: share of limit, share of 429s (including warm-up)"
    show(title, [("", *heads), *lines])


def _steady(row: Row) -> tuple[object, ...]:
    return row["profile"], row["share"], _limited(row)


def _limited(row: Row) -> str:
    return f"{percent(row['limited'])} ({percent(row['limited overall'])})"


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
