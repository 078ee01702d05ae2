"""Durable puts per second, compared with other stores on the same disk.

Further costs of an outbox are measured as well: sending compared with
`stream_events`, a journal with a million rows, and the duration of a `put` while
other events are sent.

All contenders alternate in one process, and the median of the rounds counts. The
alternatives only store the bytes of an event; `put` also checks and encodes it.
"""

import asyncio
import os
import sqlite3
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TypeAlias

import aiosqlite
from persistqueue import SQLiteAckQueue

from loops_async import AsyncLoopsClient, Event, Outbox, RateLimiter
from loops_async._journal.journal import EVENTS, Journal

from .backfill import file_system, on_disk
from .cpu import CONTACT, LISTS, PROPERTIES
from .stub_server import stub_server
from .table import Row, promise, show

OURS, COMMIT_EACH, FLUSH = "Outbox.put", "one commit per put", "disk flush alone"
PRODUCERS, PROMISED = (1, 50, 500), 50
MIN_OF_COMMITS, MAX_OF_FLUSH = 8.0, 3.0
ROUNDS, PUTS, MORE_PUTS = 7, 1000, 10_000  # more puts for faster contenders
DRAINED, IN_FLIGHT = 5000, 50
FULL, PUTS_IN_FULL = 1_000_000, 500
LIMITS = (0, 10, 1000)  # events sent per second during the puts
PACED, PACE, FEW_ROUNDS = 300, 0.01, 3
_STREAM, _BEFORE, _DURING = "stream_events", "put before", "put during"
_NOWHERE = "http://127.0.0.1:9/api"
_CAPACITY = 10 * FULL
_BODY = b"." * 300
_INSERT = "INSERT INTO events (key, body, email, at) VALUES (?, ?, ?, ?)"
_numbers = count()

Put: TypeAlias = Callable[[Event], Awaitable[object]]


def events(number: int) -> list[Event]:
    """Return events of new contacts, about 300 bytes each."""
    return [
        Event(
            "planUpgraded",
            email=f"ada{next(_numbers)}@example.com",
            user_id=f"usr_{n}",
            event_properties=PROPERTIES,
            contact_properties=CONTACT,
            mailing_lists=LISTS,
        )
        for n in range(number)
    ]


def exhausted() -> RateLimiter:
    """Return a limiter whose only permit is used."""
    limiter = RateLimiter(1)
    assert limiter.try_acquire()
    return limiter


@asynccontextmanager
async def opened(
    path: Path, limiter: RateLimiter, base_url: str = _NOWHERE
) -> AsyncIterator[Outbox]:
    """Open an outbox, and close it without sending the pending events."""
    async with AsyncLoopsClient(
        "key",
        base_url=base_url,
        rate_limit=limiter,
        max_connections=IN_FLIGHT,
        deadline=None,
    ) as loops:
        outbox = await Outbox(path, loops, capacity=_CAPACITY).__aenter__()
        try:
            yield outbox
        finally:
            await outbox.aclose(grace=0.0)


# Ways to store an event on disk.


@asynccontextmanager
async def ours(path: Path) -> AsyncIterator[Put]:
    async with opened(path, exhausted()) as outbox:
        yield outbox.put


@asynccontextmanager
async def commit_each(path: Path) -> AsyncIterator[Put]:
    with ThreadPoolExecutor(1) as thread:
        call = asyncio.get_running_loop().run_in_executor
        db = await call(thread, _connected, path)
        yield lambda event: call(thread, db.execute, _INSERT, _values(event))
        await call(thread, db.close)


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    for statement in _OPENING:
        db.execute(statement)
    return db


_OPENING = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", EVENTS)


def _values(event: Event) -> tuple[object, ...]:
    return event.idempotency_key, _BODY, event.email, time.time()


@asynccontextmanager
async def with_aiosqlite(path: Path) -> AsyncIterator[Put]:
    async with aiosqlite.connect(path, isolation_level=None) as db:
        for statement in _OPENING:
            await db.execute(statement)
        yield lambda event: db.execute(_INSERT, _values(event))


@asynccontextmanager
async def aiosqlite_in_common(path: Path) -> AsyncIterator[Put]:
    """Put with the default transactions, so that one commit includes all open puts."""

    async def put(event: Event) -> None:
        await db.execute(_INSERT, _values(event))
        await db.commit()

    async with aiosqlite.connect(path) as db:
        for statement in _OPENING:
            await db.execute(statement)
        yield put


@asynccontextmanager
async def persist_queue(path: Path) -> AsyncIterator[Put]:
    with ThreadPoolExecutor(1) as thread:
        call = asyncio.get_running_loop().run_in_executor
        queue = SQLiteAckQueue(str(path), multithreading=True)
        yield lambda event: call(thread, queue.put, (event.idempotency_key, _BODY))
        queue.close()


@asynccontextmanager
async def flush_alone(path: Path) -> AsyncIterator[Put]:
    flush = getattr(os, "fdatasync", os.fsync)
    file = os.open(path, os.O_CREAT | os.O_WRONLY)

    def write() -> None:
        os.write(file, _BODY)
        flush(file)

    with ThreadPoolExecutor(1) as thread:
        call = asyncio.get_running_loop().run_in_executor
        yield lambda _: call(thread, write)
    os.close(file)


CONTENDERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Put]]] = {
    OURS: ours,
    COMMIT_EACH: commit_each,
    "aiosqlite": with_aiosqlite,
    "aiosqlite, shared": aiosqlite_in_common,
    "persist-queue": persist_queue,
    FLUSH: flush_alone,
}


async def put_all(put: Put, some: list[Event], producers: int) -> tuple[float, float]:
    """Return the puts per second, and the median seconds of a put."""
    remaining: Iterator[Event] = iter(some)
    durations: list[float] = []

    async def produce() -> None:
        for event in remaining:
            before = time.perf_counter()
            await put(event)
            durations.append(time.perf_counter() - before)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(producers):
            group.create_task(produce())
    return len(some) / (time.perf_counter() - began), statistics.median(durations)


async def puts(folder: Path) -> list[Row]:
    """Return the rate of each contender for each number of producers."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for number in range(ROUNDS):
        for producers in PRODUCERS:
            for name, contender in CONTENDERS.items():
                fast = name == OURS and producers > 1
                some = events(MORE_PUTS if fast else PUTS)
                path = folder / f"{name} {producers} {number}"
                async with contender(path) as put:
                    result = await put_all(put, some, producers)
                found.setdefault((name, producers), []).append(result)
    return [
        {
            "what": "puts",
            "contender": name,
            "producers": producers,
            "rate": statistics.median(rate for rate, _ in results),
            "p50": statistics.median(p50 for _, p50 in results),
            "disk": file_system(folder),
        }
        for (name, producers), results in found.items()
    ]


# Further costs.


async def fill(path: Path, number: int) -> None:
    """Create a journal with a number of pending rows."""
    journal = Journal(path)
    await journal.open()
    at = time.time()
    rows = (
        (str(uuid.uuid4()), _BODY, f"{name}@example.com", at) for name in range(number)
    )
    await journal.submit(lambda db: db.executemany(_INSERT, rows) and None)
    await journal.close()


async def drain(folder: Path, base_url: str) -> list[Row]:
    """Return the events per second with and without an outbox."""

    async def stream(path: Path) -> None:  # noqa: ARG001 - it uses no file
        async with AsyncLoopsClient(
            "key", base_url=base_url, rate_limit=unlimited(), max_connections=IN_FLIGHT
        ) as loops:
            async for outcome in loops.stream_events(some):
                assert outcome.ok

    async def put_before(path: Path) -> None:
        async with opened(path, unlimited(), base_url) as outbox:
            await outbox.flush()

    async def put_during(path: Path) -> None:
        async with opened(path, unlimited(), base_url) as outbox:
            await put_all(outbox.put, some, IN_FLIGHT)
            await outbox.flush()

    def unlimited() -> RateLimiter:
        return RateLimiter(1_000_000)

    variants = {_STREAM: stream, _BEFORE: put_before, _DURING: put_during}
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(FEW_ROUNDS):
        for name, variant in variants.items():
            path = folder / f"{name} {number}"
            some = events(DRAINED)
            if name == _BEFORE:
                async with opened(path, exhausted()) as outbox:
                    await outbox.put_many(some)
            began = time.perf_counter()
            await variant(path)
            spent[name].append(time.perf_counter() - began)
    return [
        {
            "what": "drain",
            "contender": name,
            "rate": DRAINED / statistics.median(seconds),
        }
        for name, seconds in spent.items()
    ]


async def rows_held(folder: Path) -> list[Row]:
    """Return what opening and a put cost with a full and with an empty journal."""
    paths = {number: folder / f"with {number}" for number in (0, FULL)}
    for number, path in paths.items():
        await fill(path, number)
    sizes = {number: path.stat().st_size / 1e6 for number, path in paths.items()}
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in paths}
    for _ in range(FEW_ROUNDS):
        for number, path in paths.items():
            began = time.perf_counter()
            async with opened(path, exhausted()) as outbox:
                opening = time.perf_counter() - began
                _, p50 = await put_all(outbox.put, events(PUTS_IN_FULL), 1)
            found[number].append((opening, p50))
    return [
        {
            "what": "journal",
            "rows": number,
            "opening": statistics.median(opening for opening, _ in results),
            "p50": statistics.median(p50 for _, p50 in results),
            "megabytes": sizes[number],
        }
        for number, results in found.items()
    ]


async def waits(folder: Path, base_url: str) -> list[Row]:
    """Return the duration of a put while the outbox sends at the limit."""
    durations: dict[int, list[float]] = {limit: [] for limit in LIMITS}
    sent: dict[int, list[float]] = {limit: [] for limit in LIMITS}
    for number in range(FEW_ROUNDS):
        for limit in LIMITS:
            path = folder / f"at {limit} {number}"
            await fill(path, int(3 * limit * PACED * PACE))
            limiter = RateLimiter(limit) if limit else exhausted()
            async with opened(path, limiter, base_url) as outbox:
                began = time.perf_counter()
                for event in events(PACED):
                    before = time.perf_counter()
                    await outbox.put(event)
                    durations[limit].append(time.perf_counter() - before)
                    await asyncio.sleep(PACE)
                seconds = time.perf_counter() - began
                sent[limit].append(outbox.stats().accepted / seconds)
    return [
        {
            "what": "waits",
            "limit": limit,
            "sent": statistics.median(sent[limit]),
            "p50": statistics.median(durations[limit]),
            "p99": statistics.quantiles(durations[limit], n=100, method="inclusive")[
                98
            ],
        }
        for limit in LIMITS
    ]


def measure() -> list[Row]:
    with on_disk() as folder, stub_server() as base_url:

        async def measured() -> list[Row]:
            return [
                *await puts(folder),
                *await drain(folder, base_url),
                *await rows_held(folder),
                *await waits(folder, base_url),
            ]

        return asyncio.run(measured())


def ratio(rows: list[Row], value: str, producers: int, of: str, to: str) -> float:
    """Return the ratio of a value between two contenders."""
    values = {
        row["contender"]: row[value]
        for row in rows
        if row["what"] == "puts" and row["producers"] == producers
    }
    return float(values[of] / values[to])


def report(rows: list[Row]) -> bool:
    """Print the results; return whether they keep the promises."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["what"], []).append(row)
    _show_puts(rows, parts["puts"][0]["disk"])
    stream, *through = (row["rate"] for row in parts["drain"])
    show(
        f"Events per second without a rate limit, {IN_FLIGHT} in flight",
        [
            ("", "events/s", f"/ {_STREAM}"),
            (_STREAM, round(stream), 1.0),
            *(
                (f"outbox, {name}", round(rate), rate / stream)
                for name, rate in zip((_BEFORE, _DURING), through, strict=True)
            ),
        ],
    )
    show(
        "A journal with pending rows",
        [
            ("rows", "open s", "put ms", "put / empty", "MB"),
            *(
                (
                    row["rows"],
                    row["opening"],
                    row["p50"] * 1e3,
                    row["p50"] / parts["journal"][0]["p50"],
                    row["megabytes"],
                )
                for row in parts["journal"]
            ),
        ],
    )
    show(
        "A put while the outbox sends at the limit",
        [
            ("limit/s", "sent/s", "p50 ms", "p99 ms"),
            *(
                (row["limit"], row["sent"], row["p50"] * 1e3, row["p99"] * 1e3)
                for row in parts["waits"]
            ),
        ],
    )
    print()
    faster = ratio(rows, "rate", PROMISED, OURS, COMMIT_EACH)
    what = f"puts per second / {COMMIT_EACH}, {PROMISED} producers"
    good = promise(what, faster, least=MIN_OF_COMMITS)
    slower = ratio(rows, "p50", 1, OURS, FLUSH)
    return good & promise(f"p50 of a put / {FLUSH}", slower, most=MAX_OF_FLUSH)


def _show_puts(rows: list[Row], disk: str) -> None:
    found = {(row["contender"], row["producers"]): row for row in rows if "disk" in row}
    heads = [f"{head}, {n}" for head in ("puts/s", "/ commits") for n in PRODUCERS]
    lines = [
        (
            name,
            *(round(found[name, n]["rate"]) for n in PRODUCERS),
            *(ratio(rows, "rate", n, name, COMMIT_EACH) for n in PRODUCERS),
            found[name, 1]["p50"] * 1e3,
        )
        for name in CONTENDERS
    ]
    title = f"Durable puts by number of producers, on {disk}; p50 of a put in ms"
    show(title, [("", *heads, "ms, 1"), *lines])


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
