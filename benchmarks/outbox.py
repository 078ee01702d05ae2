"""Durable puts a second beside other ways to get an event onto the same disk.

And what else an outbox costs: the sending beside `stream_events`, a journal
that holds a million rows, and how long a `put` takes while others are sent.

Everything is in one process and takes turns; the median of the rounds counts.
The others get an event's bytes and just store them, while ours has to check
and encode the event, too.
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

from .answering import answering
from .backfill import file_system, on_disk
from .cpu import CONTACT, LISTS, PROPERTIES
from .table import Row, promise, show

OURS, COMMIT_EACH, FLUSH = "Outbox.put", "a commit each", "the disk's flush alone"
PRODUCERS, PROMISED = (1, 50, 500), 50
LEAST_OF_COMMITS, MOST_OF_FLUSH = 8.0, 3.0
ROUNDS, PUTS, MORE_PUTS = 7, 1000, 10_000  # so many that each takes a while
DRAINED, IN_FLIGHT = 5000, 50
FULL, PUTS_IN_FULL = 1_000_000, 500
LIMITS = (0, 10, 1000)  # events sent a second while some are put
PACED, PACE, FEW_ROUNDS = 300, 0.01, 3
_STREAM, _FILLED, _MEANWHILE = "stream_events", "put before", "put meanwhile"
_NOWHERE = "http://127.0.0.1:9/api"
_CAPACITY = 10 * FULL
_BODY = b"." * 300
_INSERT = "INSERT INTO events (key, body, email, at) VALUES (?, ?, ?, ?)"
_numbers = count()

Put: TypeAlias = Callable[[Event], Awaitable[object]]


def events(number: int) -> list[Event]:
    """Make events of new contacts, of about 300 bytes each."""
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


def held() -> RateLimiter:
    """Return a limiter that lets nothing go."""
    limiter = RateLimiter(1)
    assert limiter.try_acquire()
    return limiter


@asynccontextmanager
async def opened(
    path: Path, limiter: RateLimiter, base_url: str = _NOWHERE
) -> AsyncIterator[Outbox]:
    """Open an outbox, and close it without sending what is left."""
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


# Ways to have an event on the disk.


@asynccontextmanager
async def ours(path: Path) -> AsyncIterator[Put]:
    async with opened(path, held()) as outbox:
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
    """As one would write it: then whoever commits first does so for all."""

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
    """Return the puts a second, and the median seconds of one."""
    left: Iterator[Event] = iter(some)
    took: list[float] = []

    async def produce() -> None:
        for event in left:
            before = time.perf_counter()
            await put(event)
            took.append(time.perf_counter() - before)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(producers):
            group.create_task(produce())
    return len(some) / (time.perf_counter() - began), statistics.median(took)


async def puts(folder: Path) -> list[Row]:
    """Return how fast each is by producers."""
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


# What else it costs.


async def fill(path: Path, number: int) -> None:
    """Make a journal with so many rows to be sent."""
    journal = Journal(path)
    await journal.open()
    at = time.time()
    rows = (
        (str(uuid.uuid4()), _BODY, f"{name}@example.com", at) for name in range(number)
    )
    await journal.do(lambda db: db.executemany(_INSERT, rows) and None)
    await journal.close()


async def drain(folder: Path, base_url: str) -> list[Row]:
    """Return the events a second through an outbox, and without one."""

    async def stream(path: Path) -> None:  # noqa: ARG001 - it needs none
        async with AsyncLoopsClient(
            "key", base_url=base_url, rate_limit=free(), max_connections=IN_FLIGHT
        ) as loops:
            async for outcome in loops.stream_events(some):
                assert outcome.ok

    async def filled(path: Path) -> None:
        async with opened(path, free(), base_url) as outbox:
            await outbox.flush()

    async def meanwhile(path: Path) -> None:
        async with opened(path, free(), base_url) as outbox:
            await put_all(outbox.put, some, IN_FLIGHT)
            await outbox.flush()

    def free() -> RateLimiter:
        return RateLimiter(1_000_000)

    ways = {_STREAM: stream, _FILLED: filled, _MEANWHILE: meanwhile}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(FEW_ROUNDS):
        for name, way in ways.items():
            path = folder / f"{name} {number}"
            some = events(DRAINED)
            if name == _FILLED:
                async with opened(path, held()) as outbox:
                    await outbox.put_many(some)
            began = time.perf_counter()
            await way(path)
            spent[name].append(time.perf_counter() - began)
    return [
        {"what": "drain", "contender": name, "rate": DRAINED / statistics.median(took)}
        for name, took in spent.items()
    ]


async def rows_held(folder: Path) -> list[Row]:
    """Return what a put and the opening cost beside many rows, and beside none."""
    paths = {number: folder / f"with {number}" for number in (0, FULL)}
    for number, path in paths.items():
        await fill(path, number)
    sizes = {number: path.stat().st_size / 1e6 for number, path in paths.items()}
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in paths}
    for _ in range(FEW_ROUNDS):
        for number, path in paths.items():
            began = time.perf_counter()
            async with opened(path, held()) as outbox:
                opening = time.perf_counter() - began
                _, p50 = await put_all(outbox.put, events(PUTS_IN_FULL), 1)
            found[number].append((opening, p50))
    return [
        {
            "what": "held",
            "rows": number,
            "opening": statistics.median(opening for opening, _ in results),
            "p50": statistics.median(p50 for _, p50 in results),
            "megabytes": sizes[number],
        }
        for number, results in found.items()
    ]


async def waits(folder: Path, base_url: str) -> list[Row]:
    """Return what a put takes while the outbox sends at the limit."""
    took: dict[int, list[float]] = {limit: [] for limit in LIMITS}
    sent: dict[int, list[float]] = {limit: [] for limit in LIMITS}
    for number in range(FEW_ROUNDS):
        for limit in LIMITS:
            path = folder / f"at {limit} {number}"
            await fill(path, int(3 * limit * PACED * PACE))
            limiter = RateLimiter(limit) if limit else held()
            async with opened(path, limiter, base_url) as outbox:
                began = time.perf_counter()
                for event in events(PACED):
                    before = time.perf_counter()
                    await outbox.put(event)
                    took[limit].append(time.perf_counter() - before)
                    await asyncio.sleep(PACE)
                seconds = time.perf_counter() - began
                sent[limit].append(outbox.stats().accepted / seconds)
    return [
        {
            "what": "waits",
            "limit": limit,
            "sent": statistics.median(sent[limit]),
            "p50": statistics.median(took[limit]),
            "p99": statistics.quantiles(took[limit], n=100, method="inclusive")[98],
        }
        for limit in LIMITS
    ]


def measure() -> list[Row]:
    with on_disk() as folder, answering() as base_url:

        async def measured() -> list[Row]:
            return [
                *await puts(folder),
                *await drain(folder, base_url),
                *await rows_held(folder),
                *await waits(folder, base_url),
            ]

        return asyncio.run(measured())


def ratio(rows: list[Row], what: str, producers: int, of: str, to: str) -> float:
    """Return how much more of it one has than another."""
    values = {
        row["contender"]: row[what]
        for row in rows
        if row["what"] == "puts" and row["producers"] == producers
    }
    return float(values[of] / values[to])


def report(rows: list[Row]) -> bool:
    """Print it; return whether it is as promised."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["what"], []).append(row)
    _show_puts(rows, parts["puts"][0]["disk"])
    stream, *through = (row["rate"] for row in parts["drain"])
    show(
        f"Events a second without a limit, {IN_FLIGHT} in flight",
        [
            ("", "ev/s", f"over {_STREAM}"),
            (_STREAM, round(stream), 1.0),
            *(
                (f"outbox, {name}", round(rate), rate / stream)
                for name, rate in zip((_FILLED, _MEANWHILE), through, strict=True)
            ),
        ],
    )
    show(
        "A journal by the rows it holds",
        [
            ("rows", "s to open", "ms a put", "over empty", "MB"),
            *(
                (
                    row["rows"],
                    row["opening"],
                    row["p50"] * 1e3,
                    row["p50"] / parts["held"][0]["p50"],
                    row["megabytes"],
                )
                for row in parts["held"]
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
    what = f"puts over {COMMIT_EACH}, {PROMISED} producers"
    good = promise(what, faster, least=LEAST_OF_COMMITS)
    slower = ratio(rows, "p50", 1, OURS, FLUSH)
    return good & promise(f"p50 of a put over {FLUSH}", slower, most=MOST_OF_FLUSH)


def _show_puts(rows: list[Row], disk: str) -> None:
    found = {(row["contender"], row["producers"]): row for row in rows if "disk" in row}
    heads = [f"{what} by {n}" for what in ("puts/s", "over commits") for n in PRODUCERS]
    lines = [
        (
            name,
            *(round(found[name, n]["rate"]) for n in PRODUCERS),
            *(ratio(rows, "rate", n, name, COMMIT_EACH) for n in PRODUCERS),
            found[name, 1]["p50"] * 1e3,
        )
        for name in CONTENDERS
    ]
    title = f"Durable puts by so many producers, on {disk}; ms of one put (p50)"
    show(title, [("", *heads, "ms by 1"), *lines])


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
