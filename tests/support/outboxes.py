"""Outboxes on real files, the contents of those files, and a process to be killed."""

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from loops_async import Event, Outbox
from loops_async._journal.records import NewEvent
from loops_async._outbox.session import OutboxTiming
from loops_async.sandbox import Sandbox
from support.clients import HasURL, client_of

NOWHERE = "http://127.0.0.1:9/api"
"""A base URL at which no server listens, so that every event stays pending."""

FAST = OutboxTiming(
    # Long, because a file may be released late on a busy machine.
    lock_timeout=20.0,
    retry_delay=0.01,
    first_pause=0.01,
    longest_pause=0.04,
)


def events(count: int, contacts: int | None = None) -> list[Event]:
    """Make numbered events for that many contacts; None for one contact each."""
    return [
        Event(
            "signup",
            email=f"u{number % (contacts or count)}@b.co",
            event_properties={"number": number},
        )
        for number in range(count)
    ]


def new(count: int, first: int = 0) -> list[NewEvent]:
    """Make events to add to a journal, with the keys k0, k1, ..."""
    return [
        NewEvent(f"k{n}", b'{"n":%d}' % n, f"u{n}@b.co", None)
        for n in range(first, first + count)
    ]


@asynccontextmanager
async def opened(
    path: Path,
    server: str | HasURL,
    *,
    grace: float = 10.0,
    timing: OutboxTiming = FAST,
    **settings: Any,
) -> AsyncIterator[Outbox]:
    """Open an outbox with a client of its own.

    Args:
        path: Path of the file.
        server: The server or its base URL.
        grace: Argument of `Outbox.aclose`.
        timing: Times for which the outbox waits.
        settings: Arguments of `Outbox` and `AsyncLoopsClient`.
    """
    names = ("capacity", "keep_accepted")
    of_outbox = {name: settings.pop(name) for name in names if name in settings}
    async with client_of(server, **settings) as client:
        outbox = await Outbox(path, client, _timing=timing, **of_outbox).__aenter__()
        try:
            yield outbox
        finally:
            await outbox.aclose(grace)


def offline(path: Path, **settings: Any) -> Any:
    """Open an outbox whose events stay pending, because no server listens."""
    return opened(path, NOWHERE, grace=0.0, **settings)


def numbers(sandbox: Sandbox, email: str | None = None) -> list[int]:
    """Return the numbers of the accepted events, in the order of acceptance."""
    return [
        one.event_properties["number"]
        for one in sandbox.events
        if email is None or one.email == email
    ]


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the events in a file that is not in use."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM events ORDER BY id")]


def states(path: Path) -> list[str]:
    """Return the states of the events in a file that is not in use."""
    return [row["state"] for row in rows(path)]


def update(path: Path, statement: str) -> None:
    """Execute a statement on a file that is not in use."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()


def verdict(path: Path) -> str:
    """Return the result of SQLite's check of a file that is not in use."""
    with closing(sqlite3.connect(path)) as db:
        ((result,),) = db.execute("PRAGMA integrity_check")
        return str(result)


async def _work(
    path: str, url: str, key: str, run: int, producers: int, acknowledged: str
) -> None:
    """Put and send events until killed or, without producers, until all are sent.

    Each event whose put returned is written to the file of acknowledged events.
    """
    log = os.open(acknowledged, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
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
                line = [event.email, run, number, event.idempotency_key]
                os.write(log, f"{json.dumps(line)}\n".encode())
                number += 1

        await asyncio.gather(*map(produce, range(producers)))
        pending = await outbox.flush(90)
        stats = outbox.stats()
    assert (pending, stats.rejected, stats.unknown) == (0, 0, 0), (pending, stats)


if __name__ == "__main__":
    asyncio.run(_work(**json.loads(sys.argv[1])))
