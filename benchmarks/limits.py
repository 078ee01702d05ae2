"""How much of a rate limit is used, and at the price of how many 429s.

Every way to stay below it meets every kind of window and of network, all at
the same time, each with a sandbox of its own; what is counted is what the
server saw. A 429 uses up nothing, which is kind to those who get many; what
happens where it does is one of the networks. At 1,000 a second the machine is
too small for all at once: there it is one at a time, for fewer periods, and
the others against the sliding window only.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import attrs

from loops_async.sandbox import Behaviour

from .contenders import CONTENDERS
from .processes import Load, together
from .sandboxes import Log, Settings, Target, sandboxes
from .table import Row, percent, promise, show

LEAST_SHARE, MOST_LIMITED = 0.95, 0.001
SETTLE = 5.0  # seconds before what is measured
MEASURED = 60.0  # periods, of a second each
FEW = 20.0  # at 1,000 a second, for the others
WINDOWS = ("sliding", "fixed", "bucket")
USUAL = "20-70 ms"
PROFILES: dict[str, Settings] = {
    USUAL: {"latency": (0.02, 0.07)},
    "100-400 ms": {"latency": (0.1, 0.4)},
    "all on the way there": {"latency_before": (0.02, 0.07)},
    "slow to connect": {"latency": (0.02, 0.07), "setup_latency": 0.15},
    "429s count": {
        "latency": (0.02, 0.07),
        "behaviour": Behaviour(uncounted=frozenset({401})),
    },
    "20 ms": {"latency": 0.02},
    "100 ms": {"latency": 0.1},
    "300 ms": {"latency": 0.3},
}
KIND = Behaviour(uncounted=frozenset({401, 429}))
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
        *(Case(who, 50, window, USUAL) for window in WINDOWS for who in CONTENDERS),
        *(Case("ours", 10, "sliding", profile) for profile in STEADY),
    ]
    for window in WINDOWS:
        yield [Case("ours", 1000, window, USUAL)]
    for contender in CONTENDERS:
        if contender != "ours":
            yield [Case(contender, 1000, "sliding", USUAL, FEW)]


def measure() -> list[Row]:
    return [row for cases in rounds() for row in run(cases)]


def run(cases: Sequence[Case]) -> list[Row]:
    """Run the cases at the same time; return a row for each.

    The cases of one contender share a process and its server another, so that
    nobody waits for an event loop that somebody else keeps busy.
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
        loads = together(
            contend,
            [
                (group, server.targets, seconds)
                for group, server in zip(groups, servers, strict=True)
            ],
        )
        logs = [server.close() for server in servers]
    print(
        f"{len(cases)} at the same time: the clients' core was {sum(loads):.0%} busy, "
        f"the servers' {sum(server.load for server in servers):.0%}",
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
        "behaviour": KIND,
        **PROFILES[case.profile],
    }


async def contend(
    cases: Sequence[Case], targets: Sequence[Target], seconds: float
) -> float:
    """Run the cases of one contender for so long; return the load."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for case, target in zip(cases, targets, strict=True):
            group.create_task(CONTENDERS[case.contender](target, stop))
            # Else all of them would send in the same milliseconds.
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
        "limited in all": log.limited(until=until),
    }
    return attrs.asdict(case) | measured


def report(rows: list[Row]) -> bool:
    """Print it; return whether ours is as promised."""
    heads = [f"{window}{what}" for window in WINDOWS for what in ("", " 429")]
    for limit, profile in ((10, USUAL), (50, USUAL), (1000, USUAL)):
        _show(rows, limit, profile, heads)
    for profile in COMPARED[1:]:
        _show(rows, 10, profile, heads)
    steady = [row for row in rows if row["profile"] in STEADY]
    show(
        "What slow answers cost ours, 10/s, sliding window, steady round trips",
        [("round trip", "share of the limit", "429"), *map(_steady, steady)],
    )
    print()
    good = True
    for row in rows:
        if row["contender"] == "ours" and row["profile"] == USUAL:
            what = f"{row['limit']}/s, {row['window']}"
            good &= promise(f"share used, {what}", row["share"], least=LEAST_SHARE)
            good &= promise(f"429s, {what}", row["limited in all"], most=MOST_LIMITED)
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
    title = f"{limit}/s, {profile}: share of the limit used, and 429s (in all)"
    show(title, [("", *heads), *lines])


def _steady(row: Row) -> tuple[object, ...]:
    return row["profile"], row["share"], _limited(row)


def _limited(row: Row) -> str:
    return f"{percent(row['limited'])} ({percent(row['limited in all'])})"


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
