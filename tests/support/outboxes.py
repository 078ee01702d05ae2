"""Outboxes on real files, what is in those files, and processes to be killed."""

import asyncio
import json
import math
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from loops_async import AsyncLoopsClient, Event, Outbox, RetryPolicy
from loops_async._journal.journal import New
from loops_async.sandbox import Sandbox

HURRIED = RetryPolicy(base=0.01, cap=0.2)


def events(count: int, contacts: int | None = None) -> list[Event]:
    """Make numbered events, for as many contacts as there are events or fewer."""
    return [
        Event(
            "signup",
            email=f"u{number % (contacts or count)}@b.co",
            event_properties={"number": number},
        )
        for number in range(count)
    ]


def new(count: int, first: int = 0) -> list[New]:
    """Make what a journal is given, with keys k0, k1, ..."""
    return [
        (f"k{n}", b'{"n":%d}' % n, f"u{n}@b.co", None)
        for n in range(first, first + count)
    ]


def client_of(url: str | Sandbox, **settings: Any) -> AsyncLoopsClient:
    """A client in a hurry, without a limiter."""
    key = "the-key"
    if isinstance(url, Sandbox):
        url, key = url.url, url.api_key
    usual = {"api_key": key, "base_url": url, "rate_limit": math.inf, "retry": HURRIED}
    return AsyncLoopsClient(**{**usual, **settings})


@asynccontextmanager
async def opened(
    path: Path, url: str | Sandbox, *, grace: float = 10.0, **settings: Any
) -> AsyncIterator[Outbox]:
    """An open outbox with a client of its own."""
    own = {name: settings.pop(name) for name in _OWN if name in settings}
    async with client_of(url, **settings) as client:
        outbox = await Outbox(path, client, **own).__aenter__()
        try:
            yield outbox
        finally:
            await outbox.aclose(grace)


_OWN = ("capacity", "keep_accepted")


def numbers(sandbox: Sandbox, email: str | None = None) -> list[int]:
    """Return the numbers of the events that were accepted, in that order."""
    return [
        one.event_properties["number"]
        for one in sandbox.events
        if email is None or one.email == email
    ]


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the events in a file that nobody has open."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM events ORDER BY id")]


def states(path: Path) -> list[str]:
    """Return how each of them stands."""
    return [row["state"] for row in rows(path)]


def verdict(path: Path) -> str:
    """Return what SQLite says of a file that nobody has open."""
    with closing(sqlite3.connect(path)) as db:
        ((said,),) = db.execute("PRAGMA integrity_check")
        return str(said)


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds; the test's time limit is the way out."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.002)


async def _work(
    path: str, url: str, key: str, run: int, producers: int, acknowledged: str
) -> None:
    """Put and send until killed, or with no producers until all is sent.

    Each event is noted in the file of the acknowledged when it is.
    """
    told = os.open(acknowledged, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    client = client_of(url, api_key=key, timeout=1.0)
    async with client, Outbox(path, client, capacity=300) as outbox:

        async def produce(contact: int) -> None:
            number = 0
            while True:
                event = Event(
                    "e",
                    email=f"p{contact}@b.co",
                    event_properties={"run": run, "number": number},
                )
                await outbox.put(event)
                said = [f"p{contact}@b.co", run, number, event.idempotency_key]
                os.write(told, f"{json.dumps(said)}\n".encode())
                number += 1

        await asyncio.gather(*map(produce, range(producers)))
        left = await outbox.flush(90)
        stats = outbox.stats()
    assert (left, stats.rejected, stats.unknown) == (0, 0, 0), (left, stats)


if __name__ == "__main__":
    asyncio.run(_work(**json.loads(sys.argv[1])))
