"""The journal of an outbox or a backfill: its events and their states.

An event is added as PENDING and is marked in flight before its first request is sent.
When its outcome is known, the event is deleted or becomes ACCEPTED, DUPLICATE or
REJECTED; if its outcome can no longer be known, it becomes UNKNOWN.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar

from loops_async._events.rules import idempotency_key
from loops_async.errors import InvalidEventError

from .database import (
    LOCK_TIMEOUT,
    RETRY_DELAY,
    Connection,
    Database,
    Format,
    Work,
)
from .records import REJECTED, AddedCounts, Failure, NewEvent, Row

_T = TypeVar("_T")

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
_NEW_KEY: Final = partial(idempotency_key, None)

_Group: TypeAlias = tuple[
    list[NewEvent], "asyncio.Future[None]", Callable[[AddedCounts | None], object]
]
"""Events to add together, the caller's future, and the callback for the end."""


class RowIds:
    """Unused row ids in ascending order, for use in the journal's thread.

    SQLite's AUTOINCREMENT would make each put a tenth slower.
    """

    def __init__(self) -> None:
        self._next = 0

    def take(self, db: Connection, count: int) -> int:
        """Reserve consecutive ids, and return the first of them."""
        if not self._next:
            ((last,),) = db.execute("SELECT coalesce(max(id), 0) FROM events")
            self._next = last + 1
        first = self._next
        self._next += count
        return first


class Journal:
    """A file of events that belongs to the running event loop.

    Args:
        path: The path of the file.
        file_format: The format of the file.
        lock_timeout: Seconds to wait for another owner to release the file.
        retry_delay: Seconds between two attempts to record an outcome.
    """

    def __init__(
        self,
        path: Path,
        file_format: Format = OUTBOX,
        *,
        lock_timeout: float = LOCK_TIMEOUT,
        retry_delay: float = RETRY_DELAY,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._groups: list[_Group] = []
        self._ids = RowIds()
        self._database = Database(
            path,
            file_format,
            # Not a bound method: in a reference cycle an unclosed database would
            # keep its file open until the garbage collector runs.
            before_batch=partial(_submit_groups, self._groups, self._ids),
            lock_timeout=lock_timeout,
            retry_delay=retry_delay,
        )

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

    async def open(self) -> None:
        """Open the file; see `Database.open`."""
        await self._database.open()

    async def close(self) -> None:
        """Finish the submitted jobs and close the file."""
        _submit_groups(self._groups, self._ids, self._database)
        await self._database.close()

    async def abandon(self) -> None:
        """Close the file after the event loop that opened it has been closed."""
        await self._database.abandon()

    def submit(
        self, work: Work[_T], *, until_durable: bool = False, deferrable: bool = False
    ) -> "asyncio.Future[_T]":
        """Run a function in the journal's thread; see `Database.submit`."""
        return self._database.submit(
            work, until_durable=until_durable, deferrable=deferrable
        )

    def add(
        self, events: list[NewEvent], on_end: Callable[[AddedCounts | None], object]
    ) -> "asyncio.Future[None]":
        """Add all of the events or none.

        An event that the journal already has stays as it is, unless it is
        rejected: then it becomes pending again.

        Args:
            events: The events to add.
            on_end: A callable that gets the counts when the events are durable, or None
                if they could not be added; it is called even if the future is
                cancelled.

        Returns:
            A future that is done when the events are durable. It fails with
            an InvalidEventError if the journal has another event with the
            same key, or with a JournalError.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        self._groups.append((events, done, on_end))
        self._database.wake()
        return done

    def pending(self, after: int, limit: int) -> "asyncio.Future[list[Row]]":
        """Return the next pending events in the order of their ids."""

        def read(db: Connection) -> list[Row]:
            # Fix the next id before the caller deletes these rows: otherwise a new
            # event could get the id of a deleted one, behind the reader's position.
            self._ids.take(db, 0)
            return [Row(*row) for row in db.execute(_PENDING, (after, limit))]

        return self.submit(read)

    def mark_in_flight(self, row: Row) -> "asyncio.Future[None]":
        """Record that the outcome of the coming attempt may stay unknown."""
        values = row.ambiguous_since, row.id
        return self._update(
            "UPDATE events SET ambiguous_since = ? WHERE id = ?", values
        )

    def mark_retrying(self, row: Row, error: str) -> "asyncio.Future[None]":
        """Record that an attempt failed and that another will follow."""
        return self._update(
            "UPDATE events SET attempts = ?, ambiguous_since = ?, error = ? "
            "WHERE id = ?",
            (row.attempts, row.ambiguous_since, error, row.id),
            deferrable=True,
        )

    def mark_final(
        self, row: Row, state: str, error: str | None = None
    ) -> "asyncio.Future[None]":
        """Record the outcome of an event; the job is repeated until it succeeds."""
        return self._update(
            "UPDATE events SET state = ?, error = ?, attempts = ?, at = ? WHERE id = ?",
            (state, error, row.attempts, time.time(), row.id),
            until_durable=True,
            deferrable=True,
        )

    def delete(self, row: Row) -> "asyncio.Future[None]":
        """Remove an event; the job is repeated until it succeeds."""
        statement = "DELETE FROM events WHERE id = ?"
        return self._update(statement, (row.id,), until_durable=True, deferrable=True)

    def counts(self) -> "asyncio.Future[dict[str, int]]":
        """Return the number of events by state."""
        query = "SELECT state, count(*) FROM events GROUP BY state"
        return self.submit(lambda db: dict(db.execute(query)))

    def oldest(self) -> "asyncio.Future[float | None]":
        """Return the Unix time at which the first pending event was added."""
        query = "SELECT at FROM events WHERE state = 'pending' ORDER BY id LIMIT 1"
        return self.submit(lambda db: (db.execute(query).fetchone() or (None,))[0])

    def failures(self, after: int, limit: int) -> "asyncio.Future[list[Failure]]":
        """Return the next rejected or unknown events in the order of their ids."""
        return self.submit(
            lambda db: [Failure(*row) for row in db.execute(_FAILURES, (after, limit))]
        )

    def requeue(
        self,
        keys: Iterable[str] | None,
        new_key: Callable[[], str] = _NEW_KEY,
    ) -> "asyncio.Future[int]":
        """Make failures pending again, after all events that are pending now.

        Args:
            keys: The keys of rejected or unknown events; None for all rejected
                events.
            new_key: A callable that makes a key. Rejected events get a new one, because
                Loops may have used up the old one; unknown events keep theirs.

        Returns:
            The number of events that are pending again.
        """
        chosen = None if keys is None else list(keys)
        return self.submit(lambda db: _requeue(db, self._ids, chosen, new_key))

    def forget(self, keys: Iterable[str] | None) -> "asyncio.Future[int]":
        """Remove failures.

        Args:
            keys: The keys of rejected or unknown events; None for all rejected
                events.

        Returns:
            The number of events that were removed.
        """
        chosen = None if keys is None else list(keys)

        def work(db: Connection) -> int:
            failures = _find_failures(db, chosen)
            ids = [(row_id,) for row_id, _, _ in failures]
            db.executemany("DELETE FROM events WHERE id = ?", ids)
            return len(failures)

        return self.submit(work)

    def purge(self, before: float) -> "asyncio.Future[None]":
        """Remove the events that were accepted before a Unix time."""
        statement = (
            "DELETE FROM events WHERE state IN ('accepted', 'duplicate') AND at < ?"
        )
        return self._update(statement, (before,))

    def _update(
        self,
        statement: str,
        values: tuple[object, ...],
        *,
        until_durable: bool = False,
        deferrable: bool = False,
    ) -> "asyncio.Future[None]":
        def work(db: Connection) -> None:
            db.execute(statement, values)

        return self.submit(work, until_durable=until_durable, deferrable=deferrable)


def _submit_groups(groups: list[_Group], ids: RowIds, database: Database) -> None:
    """Submit one job that adds all groups since the last batch."""
    if not groups:
        return
    batch = groups.copy()
    groups.clear()
    events = [group for group, _, _ in batch]
    at = time.time()
    added = database.submit(lambda db: _add_groups(db, ids, events, at))
    added.add_done_callback(lambda added: _end_groups(batch, added))


def _end_groups(
    groups: list[_Group],
    added: "asyncio.Future[list[AddedCounts | InvalidEventError]]",
) -> None:
    failure = added.exception()
    results = [failure] * len(groups) if failure is not None else added.result()
    for (_, done, on_end), result in zip(groups, results, strict=True):
        if isinstance(result, AddedCounts):
            on_end(result)
            if not done.done():
                done.set_result(None)
        else:
            on_end(None)
            if not done.done():
                done.set_exception(result)


def _add_groups(
    db: Connection, ids: RowIds, groups: list[list[NewEvent]], at: float
) -> list[AddedCounts | InvalidEventError]:
    """Add each group completely or not at all.

    In most batches every event is new, and one statement adds them all. The
    savepoints end with the transaction.
    """
    events = list(chain.from_iterable(groups))
    first = ids.take(db, len(events))
    rows = [(row_id, *event, at) for row_id, event in enumerate(events, first)]
    db.execute("SAVEPOINT adding")
    if db.executemany(_INSERT + " ON CONFLICT DO NOTHING", rows).rowcount == len(rows):
        return [AddedCounts(len(group), 0) for group in groups]
    db.execute("ROLLBACK TO adding")
    results: list[AddedCounts | InvalidEventError] = []
    for group in groups:
        db.execute("SAVEPOINT adding")
        try:
            results.append(_add_group(db, ids, group, at))
        except InvalidEventError as error:
            db.execute("ROLLBACK TO adding")
            results.append(error)
    return results


def _add_group(
    db: Connection, ids: RowIds, events: list[NewEvent], at: float
) -> AddedCounts:
    find = "SELECT id, body, state FROM events WHERE key = ?"
    new = requeued = 0
    for event in events:
        key = event.idempotency_key
        existing = db.execute(find, (key,)).fetchone()
        if existing is None:
            db.execute(_INSERT, (ids.take(db, 1), *event, at))
            new += 1
            continue
        row_id, body, state = existing
        if body != event.body:
            raise _key_conflict(db, key)
        if state == REJECTED:
            # An attempt may have used up the key, so the attempts still count: a
            # 409 does not show that Loops has this event.
            _move_to_end(db, ids, row_id, key, reset_attempts=False)
            requeued += 1
    return AddedCounts(new, requeued)


def _key_conflict(db: Connection, key: str) -> InvalidEventError:
    _, _, path = db.execute("PRAGMA database_list").fetchone()
    problem = f"idempotency_key: {path} has another event with the same key"
    error = InvalidEventError(problems=[problem])
    error.idempotency_key = key
    return error


def _requeue(
    db: Connection,
    ids: RowIds,
    keys: list[str] | None,
    new_key: Callable[[], str],
) -> int:
    failures = _find_failures(db, keys)
    for row_id, key, state in failures:
        _move_to_end(db, ids, row_id, new_key() if state == REJECTED else key)
    return len(failures)


def _find_failures(
    db: Connection, keys: list[str] | None
) -> list[tuple[int, str, str]]:
    """Return the failures with these keys, or all rejected events, in order."""
    query = "SELECT id, key, state FROM events WHERE "
    if keys is None:
        return db.execute(query + "state = 'rejected' ORDER BY id").fetchall()
    query += "key = ? AND state IN ('rejected', 'unknown')"
    return sorted({row for key in keys for row in db.execute(query, (key,))})


def _move_to_end(
    db: Connection, ids: RowIds, row_id: int, key: str, *, reset_attempts: bool = True
) -> None:
    """Make an event pending as if it were added now.

    Args:
        db: The connection to the file.
        ids: The ids of the file.
        row_id: The current id of the event.
        key: The new key of the event.
        reset_attempts: Whether a 409 then confirms that Loops has the event.
    """
    db.execute(
        "UPDATE events SET id = ?, key = ?, state = 'pending', "
        "attempts = attempts * ?, ambiguous_since = NULL, error = NULL WHERE id = ?",
        (ids.take(db, 1), key, not reset_attempts, row_id),
    )
