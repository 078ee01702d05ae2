"""The journal of an outbox or a backfill: its events, and how each stands.

An event's way: added as PENDING; stamped before its first attempt may leave;
then gone or ACCEPTED, REJECTED or UNKNOWN.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import attrs

from loops_async._events.rules import idempotency_key
from loops_async.errors import InvalidEventError

from .database import Connection, Format, Store

PENDING: Final = "pending"
ACCEPTED: Final = "accepted"
DUPLICATE: Final = "duplicate"  # accepted, and Loops had had its key before
REJECTED: Final = "rejected"
UNKNOWN: Final = "unknown"

EVENTS: Final = """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        body BLOB NOT NULL,
        email TEXT,
        user_id TEXT,
        state TEXT NOT NULL DEFAULT 'pending',
        attempts INTEGER NOT NULL DEFAULT 0,
        ambiguous_since REAL,
        error TEXT,
        at REAL NOT NULL
    )
"""
FAILED: Final = """
    CREATE INDEX failed ON events (id) WHERE state IN ('rejected', 'unknown')
"""
OUTBOX: Final = Format("an outbox of loops-async", 0x4C6F4F62, 1, (EVENTS, FAILED))

_PENDING: Final = (
    "SELECT id, key, body, email, user_id, attempts, ambiguous_since FROM events "
    "WHERE id > ? AND state = 'pending' ORDER BY id LIMIT ?"
)
_FAILURES: Final = (
    "SELECT id, key, body, state, error, attempts, at FROM events INDEXED BY failed "
    "WHERE id > ? AND state IN ('rejected', 'unknown') ORDER BY id LIMIT ?"
)
_INSERT: Final = (
    "INSERT INTO events (id, key, body, email, user_id, at) VALUES (?, ?, ?, ?, ?, ?)"
)


@attrs.define(eq=False)
class Row:
    """An event that waits to be sent.

    Attributes:
        id: Its place in the journal.
        idempotency_key: As in Event, like the next three.
        body: What is sent.
        attempts: Requests made, as far as is known.
        ambiguous_since: Unix time of the first attempt of which nobody knows
            whether it was accepted; None if there was none.
        stamped: The same in this process's monotonic seconds.
        stamped_here: Whether this process noted it, and not one before.
        stamp_is_new: Whether it did so for the attempt under way.
        noted: Attempts made in this run that are in `attempts`.
    """

    id: int
    idempotency_key: str
    body: bytes
    email: str | None
    user_id: str | None
    attempts: int
    ambiguous_since: float | None
    stamped: float = 0.0
    stamped_here: bool = False
    stamp_is_new: bool = False
    noted: int = 0


@attrs.frozen
class Failure:
    """An event that will not be sent again unless somebody says so.

    Attributes:
        id: Its place in the journal.
        idempotency_key: The event's.
        body: The JSON that was sent.
        state: ``rejected``: Loops does not have it; ``unknown``: nobody
            knows.
        error: Why, in one line.
        attempts: Requests made, as far as is known.
        at: Unix time at which it was given up.
    """

    id: int
    idempotency_key: str
    body: Mapping[str, Any] = attrs.field(converter=json.loads)
    state: str
    error: str
    attempts: int
    at: float


_NEW_KEY: Final = partial(idempotency_key, None)

New: TypeAlias = tuple[str, bytes, str | None, str | None]
"""Key, body, email and user ID."""
Added: TypeAlias = tuple[int, int]
"""How many were new, and how many had been rejected before."""
_Adding: TypeAlias = (
    "tuple[list[New], asyncio.Future[None], Callable[[Added | None], object]]"
)


class Ids:
    """Gives events their places, none twice; for the thread of the journal.

    SQLite's AUTOINCREMENT does too, at the cost of a tenth of each put.
    """

    def __init__(self) -> None:
        self._next = 0

    def take(self, db: Connection, number: int) -> int:
        """Return the first of so many that follow each other."""
        if not self._next:
            ((last,),) = db.execute("SELECT coalesce(max(id), 0) FROM events")
            self._next = last + 1
        first = self._next
        self._next += number
        return first


class Journal:
    """A file of events, and one owner's connection to it."""

    def __init__(
        self, path: Path, file_format: Format = OUTBOX, patience: float | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._adding: list[_Adding] = []
        self._ids = Ids()
        gather = partial(_gather, self._adding, self._ids)
        self._store = Store(path, file_format, gather=gather, patience=patience)
        self.open = self._store.open
        self.abandon = self._store.abandon
        self.do = self._store.do

    def add(
        self, events: list[New], on_end: Callable[[Added | None], object]
    ) -> "asyncio.Future[None]":
        """Add events, all or none.

        One that is there already stays as it is, but is pending again if it
        was rejected.

        Args:
            events: What to add.
            on_end: Called with what was added, None if it failed, whether or
                not anybody still waits for the future.

        Returns:
            Done when they are durable. Fails with an InvalidEventError if a
            key already stands for other bytes, or with a JournalError.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        self._adding.append((events, done, on_end))
        self._store.wake()
        return done

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Do what was asked for, and close the file."""
        _gather(self._adding, self._ids, self._store)
        await self._store.close()

    def pending(self, after: int, most: int) -> "asyncio.Future[list[Row]]":
        """Return the next events that wait, by id."""

        def read(db: Connection) -> list[Row]:
            # What is added from here on comes after what is read now, even when
            # that is gone by then.
            self._ids.take(db, 0)
            return [Row(*row) for row in db.execute(_PENDING, (after, most))]

        return self._store.do(read)

    def mark_in_flight(self, row: Row) -> "asyncio.Future[None]":
        """Note that nobody may ever know of the attempt that comes now."""
        values = row.ambiguous_since, row.id
        return self._update(
            "UPDATE events SET ambiguous_since = ? WHERE id = ?", values
        )

    def mark_retrying(self, row: Row, error: str) -> "asyncio.Future[None]":
        """Note that an attempt failed and another will be made."""
        return self._update(
            "UPDATE events SET attempts = ?, ambiguous_since = ?, error = ? "
            "WHERE id = ?",
            (row.attempts, row.ambiguous_since, error, row.id),
            hurry=False,
        )

    def mark_final(
        self, row: Row, state: str, error: str | None = None
    ) -> "asyncio.Future[None]":
        """Note what became of an event; repeated until that is written."""
        return self._update(
            "UPDATE events SET state = ?, error = ?, attempts = ?, at = ? WHERE id = ?",
            (state, error, row.attempts, time.time(), row.id),
            keep=True,
            hurry=False,
        )

    def delete(self, row: Row) -> "asyncio.Future[None]":
        """Remove an event; repeated until that is written."""
        query = "DELETE FROM events WHERE id = ?"
        return self._update(query, (row.id,), keep=True, hurry=False)

    def counts(self) -> "asyncio.Future[dict[str, int]]":
        """Return how many events there are by state."""
        query = "SELECT state, count(*) FROM events GROUP BY state"
        return self._store.do(lambda db: dict(db.execute(query)))

    def oldest(self) -> "asyncio.Future[float | None]":
        """Return the Unix time at which the first pending event was added."""
        query = "SELECT at FROM events WHERE state = 'pending' ORDER BY id LIMIT 1"
        return self._store.do(lambda db: (db.execute(query).fetchone() or (None,))[0])

    def failures(self, after: int, most: int) -> "asyncio.Future[list[Failure]]":
        """Return the next rejected or unknown events, by id."""
        return self._store.do(
            lambda db: [Failure(*row) for row in db.execute(_FAILURES, (after, most))]
        )

    def requeue(
        self,
        keys: Iterable[str] | None,
        new_key: Callable[[], str] = _NEW_KEY,
    ) -> "asyncio.Future[int]":
        """Let rejected and unknown events be sent after all that is pending.

        Args:
            keys: Which; None is every rejected one.
            new_key: Makes a key; for the rejected, as Loops may have used
                the old one up. Unknown ones keep theirs.

        Returns:
            How many.
        """
        chosen = None if keys is None else list(keys)
        return self._store.do(lambda db: _again(db, self._ids, chosen, new_key))

    def forget(self, keys: Iterable[str] | None) -> "asyncio.Future[int]":
        """Remove rejected or unknown events; None is every rejected one.

        Returns:
            How many.
        """
        chosen = None if keys is None else list(keys)

        def work(db: Connection) -> int:
            found = _chosen(db, chosen)
            db.executemany(
                "DELETE FROM events WHERE id = ?", [row[:1] for row in found]
            )
            return len(found)

        return self._store.do(work)

    def purge(self, before: float) -> "asyncio.Future[None]":
        """Remove the accepted events that were kept since before that time."""
        query = "DELETE FROM events WHERE state IN ('accepted', 'duplicate') AND at < ?"
        return self._update(query, (before,))

    def _update(
        self,
        statement: str,
        values: tuple[object, ...],
        *,
        keep: bool = False,
        hurry: bool = True,
    ) -> "asyncio.Future[None]":
        def work(db: Connection) -> None:
            db.execute(statement, values)

        return self._store.do(work, keep=keep, hurry=hurry)


def _gather(adding: list[_Adding], ids: Ids, store: Store) -> None:
    """Add in one go what was asked for since the last time."""
    if not adding:
        return
    now = adding.copy()
    adding.clear()
    groups = [events for events, _, _ in now]
    at = time.time()
    added = store.do(lambda db: _add_all(db, ids, groups, at))
    added.add_done_callback(lambda added: _tell(now, added))


def _tell(
    adding: list[_Adding], added: "asyncio.Future[list[Added | InvalidEventError]]"
) -> None:
    failure = added.exception()
    results = [failure] * len(adding) if failure is not None else added.result()
    for (_, done, on_end), result in zip(adding, results, strict=True):
        if isinstance(result, tuple):
            on_end(result)
            if not done.done():
                done.set_result(None)
        else:
            on_end(None)
            if not done.done():
                done.set_exception(result)


def _add_all(
    db: Connection, ids: Ids, groups: list[list[New]], at: float
) -> list[Added | InvalidEventError]:
    """Add each group whole or not at all; nearly always all are new.

    The savepoints end with the transaction.
    """
    events = list(chain.from_iterable(groups))
    rows = [
        (n, *event, at) for n, event in enumerate(events, ids.take(db, len(events)))
    ]
    db.execute("SAVEPOINT adding")
    if db.executemany(_INSERT + " ON CONFLICT DO NOTHING", rows).rowcount == len(rows):
        return [(len(group), 0) for group in groups]
    db.execute("ROLLBACK TO adding")
    results: list[Added | InvalidEventError] = []
    for group in groups:
        db.execute("SAVEPOINT adding")
        try:
            results.append(_add(db, ids, group, at))
        except InvalidEventError as reused:
            db.execute("ROLLBACK TO adding")
            results.append(reused)
    return results


def _add(db: Connection, ids: Ids, events: list[New], at: float) -> Added:
    find = "SELECT id, body, state FROM events WHERE key = ?"
    more = again = 0
    for event in events:
        key, body, _, _ = event
        known = db.execute(find, (key,)).fetchone()
        if known is None:
            db.execute(_INSERT, (ids.take(db, 1), *event, at))
            more += 1
        elif known[1] != body:
            why = f"idempotency_key: another event in {_name(db)} has it"
            error = InvalidEventError(problems=[why])
            error.idempotency_key = key
            raise error
        elif known[2] == REJECTED:
            # One of its attempts may have used its key up: a 409 says nothing.
            _put_last(db, ids, known[0], key, forget_attempts=False)
            again += 1
    return more, again


def _name(db: Connection) -> str:
    _, _, path = db.execute("PRAGMA database_list").fetchone()
    return str(path)


def _again(
    db: Connection,
    ids: Ids,
    keys: Iterable[str] | None,
    new_key: Callable[[], str],
) -> int:
    found = _chosen(db, keys)
    for place, key, state in found:
        _put_last(db, ids, place, new_key() if state == REJECTED else key)
    return len(found)


def _chosen(db: Connection, keys: Iterable[str] | None) -> list[tuple[int, str, str]]:
    """Find the failures with these keys, or all that were rejected, in order."""
    query = "SELECT id, key, state FROM events WHERE "
    if keys is None:
        return db.execute(query + "state = 'rejected' ORDER BY id").fetchall()
    query += "key = ? AND state IN ('rejected', 'unknown')"
    return sorted({row for key in keys for row in db.execute(query, (key,))})


def _put_last(
    db: Connection, ids: Ids, place: int, key: str, *, forget_attempts: bool = True
) -> None:
    """Make an event pending as if it had been added now, under that key.

    Args:
        db: The file.
        ids: Of the file.
        place: The event's.
        key: The one to send it with.
        forget_attempts: Whether a 409 shall be news of this event again.
    """
    db.execute(
        "UPDATE events SET id = ?, key = ?, state = 'pending', "
        "attempts = attempts * ?, ambiguous_since = NULL, error = NULL WHERE id = ?",
        (ids.take(db, 1), key, not forget_attempts, place),
    )
