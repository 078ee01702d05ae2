"""The journal of a backfill: the events, the invalid rows and the run's metadata.

A pass is one reading of the whole input. A row is identified by its key, which is
derived from the run's name, the event's bytes and a number that distinguishes equal
rows. Therefore a row keeps its identity wherever it is in the input, and a corrected
row is a new row.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import attrs

from loops_async._journal.database import Connection, Format
from loops_async._journal.journal import EVENTS, FAILED, Journal

from .preview import Changes

INVALID: Final = "invalid"  # the state of a row that did not become an event

BACKFILL: Final = Format(
    "a backfill of loops-async",
    0x4C6F4266,
    1,
    (
        EVENTS,
        "ALTER TABLE events ADD COLUMN file TEXT",
        "ALTER TABLE events ADD COLUMN line INTEGER",
        "ALTER TABLE events ADD COLUMN first_pass INTEGER",
        "ALTER TABLE events ADD COLUMN pass INTEGER",
        "ALTER TABLE events ADD COLUMN doubted INTEGER NOT NULL DEFAULT 0",
        FAILED,
        "CREATE TABLE invalid (file TEXT, line INTEGER, error TEXT, record TEXT)",
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)",
    ),
    # Keys arrive in random order, so a small log would rewrite each page often.
    checkpoint=10_000,
)
_NEVER_SENT: Final = "state = 'pending' AND ambiguous_since IS NULL AND NOT doubted"
# An event that was never sent moves to the place at which this pass reads it.
_UPSERT: Final = (
    "INSERT INTO events "
    "(id, key, body, email, user_id, file, line, pass, first_pass, at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
    f"id = CASE WHEN {_NEVER_SENT} THEN excluded.id ELSE id END, "
    "file = excluded.file, line = excluded.line, pass = excluded.pass "
    "WHERE events.pass < excluded.pass AND events.body = excluded.body"
)
_DELETE_CORRECTED: Final = (
    f"DELETE FROM events WHERE key = ? AND pass < ? AND body != ? AND {_NEVER_SENT}"
)
_PAGE: Final = 500  # rows per query
_INVALID: Final = (
    "SELECT rowid, file, line, error, record FROM invalid WHERE rowid > ? "
    "ORDER BY rowid LIMIT ?"
)
# The first condition on the state is that of the index, the second narrows it.
_REJECTED: Final = (
    "SELECT id, file, line, error, body FROM events INDEXED BY failed "
    "WHERE id > ? AND state IN ('rejected', 'unknown') AND state = 'rejected' "
    "ORDER BY id LIMIT ?"
)


@attrs.frozen(slots=False)
class ValidRow:
    """A row that can be sent.

    Attributes:
        file: The path of the row's file.
        line: The number of the row's first line.
        key: The idempotency key given in the row; None to derive one.
        body: The body of the request.
        email: The event's email.
        user_id: The event's user ID.
    """

    file: str
    line: int
    key: str | None
    body: bytes
    email: str | None
    user_id: str | None


@attrs.frozen(slots=False)
class InvalidRow:
    """A row that cannot be sent, or that Loops rejected.

    Attributes:
        file: The path of the row's file.
        line: The number of the row's first line.
        error: The problems of the row, in one line.
        record: The row in a form that can be corrected and read again.
    """

    file: str
    line: int
    error: str
    record: object


class BackfillJournal(Journal):
    """The journal of a backfill, and the one connection to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, BACKFILL)
        # How many equal rows each key had: before the last call of add_rows, and in it.
        # They are separate because the journal may run that call's job more than once.
        self._repeats: dict[bytes, int] = {}
        self._last_repeats: dict[bytes, int] = {}

    def metadata(self) -> "asyncio.Future[dict[str, Any]]":
        """Return the metadata of the run."""
        query = "SELECT name, value FROM facts"
        return self.submit(
            lambda db: {name: json.loads(value) for name, value in db.execute(query)}
        )

    def set_metadata(self, **values: object) -> "asyncio.Future[None]":
        """Store metadata of the run."""
        rows = [(name, json.dumps(value)) for name, value in values.items()]

        def work(db: Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

        return self.submit(work)

    def begin_pass(self) -> "asyncio.Future[None]":
        """Delete the invalid rows of the last pass."""

        def work(db: Connection) -> None:
            db.execute("DELETE FROM invalid")

        self._repeats.clear()
        self._last_repeats.clear()
        return self.submit(work)

    def add_rows(
        self, run: str, number: int, valid: list[ValidRow], invalid: list[InvalidRow]
    ) -> "asyncio.Future[list[InvalidRow]]":
        """Add rows of a pass; wait for the last call's result before the next call.

        Args:
            run: The name of the run.
            number: The number of the pass.
            valid: The rows that can be sent.
            invalid: The rows that cannot be sent.

        Returns:
            The valid rows that became invalid because another event has their
            idempotency key.
        """
        self._repeats.update(self._last_repeats)

        def work(db: Connection) -> list[InvalidRow]:
            self._last_repeats.clear()
            conflicts = self._add_valid(db, run.encode(), number, valid)
            values = [
                (row.file, row.line, row.error, json.dumps(row.record))
                for row in invalid + conflicts
            ]
            db.executemany("INSERT INTO invalid VALUES (?, ?, ?, ?)", values)
            return conflicts

        return self.submit(work)

    def _add_valid(
        self, db: Connection, run: bytes, number: int, rows: list[ValidRow]
    ) -> list[InvalidRow]:
        at = time.time()
        salt = blake2b(run, digest_size=32).digest()
        conflicts = []
        for place, row in enumerate(rows, self._ids.take(db, len(rows))):
            values = (
                *(row.body, row.email, row.user_id, row.file, row.line),
                *(number, number, at),
            )
            if row.key is not None:
                db.execute(_DELETE_CORRECTED, (row.key, number, row.body))
                if not db.execute(_UPSERT, (place, row.key, *values)).rowcount:
                    conflicts.append(_key_conflict(row))
                continue
            digest = blake2b(row.body, digest_size=16, key=salt)
            key = digest.hexdigest()
            # An equal row of this pass has the key: derive the next one.
            while not db.execute(_UPSERT, (place, key, *values)).rowcount:
                next_digest = digest.copy()
                next_digest.update(b"\0%d" % self._count_repeat(digest.digest()))
                key = next_digest.hexdigest()
        return conflicts

    def _count_repeat(self, digest: bytes) -> int:
        count = self._last_repeats.get(digest, self._repeats.get(digest, 0)) + 1
        self._last_repeats[digest] = count
        return count

    def end_pass(
        self, number: int, confirmed: int | None
    ) -> "asyncio.Future[Changes | None]":
        """Remove the rows that were not in the pass, unless Loops may have them.

        Args:
            number: The number of the pass.
            confirmed: The number of the last pass that was confirmed, if any.

        Returns:
            The changes since the confirmed pass; None if no pass was confirmed.
        """
        return self.submit(lambda db: _end_pass(db, number, confirmed))

    def counts_of_pass(self, number: int) -> "asyncio.Future[dict[str, int]]":
        """Return the number of rows of the pass by state, including ``invalid``."""
        query = "SELECT state, count(*) FROM events WHERE pass = ? GROUP BY state"

        def work(db: Connection) -> dict[str, int]:
            ((invalid,),) = db.execute("SELECT count(*) FROM invalid")
            return {INVALID: invalid, **dict(db.execute(query, (number,)))}

        return self.submit(work)

    def requeue_unknown(self, number: int) -> "asyncio.Future[None]":
        """Make the unknown rows of the pass pending again, with their keys."""

        def work(db: Connection) -> None:
            db.execute(
                "UPDATE events SET state = 'pending', attempts = 0, "
                "ambiguous_since = NULL, doubted = 1, error = NULL "
                "WHERE state = 'unknown' AND pass = ?",
                (number,),
            )

        return self.submit(work)

    async def rejects(self) -> AsyncIterator[InvalidRow]:
        """Yield the invalid rows, then the rows that Loops rejected."""
        for query, make in ((_INVALID, _invalid_row), (_REJECTED, _rejected_row)):
            after = 0
            while page := await self._page(query, after):
                for row in page:
                    yield make(*row[1:])
                after = page[-1][0]

    def _page(self, query: str, after: int) -> "asyncio.Future[list[Any]]":
        return self.submit(lambda db: db.execute(query, (after, _PAGE)).fetchall())


def _end_pass(db: Connection, number: int, confirmed: int | None) -> Changes | None:
    # An event that Loops may have is kept, so that a later pass with its row does
    # not send it as a new one.
    db.execute(
        "UPDATE events SET state = 'unknown', error = 'no longer in the input' "
        f"WHERE pass < ? AND state = 'pending' AND NOT ({_NEVER_SENT})",
        (number,),
    )
    dropped = db.execute(
        "DELETE FROM events WHERE pass < ? AND state IN ('pending', 'rejected')",
        (number,),
    ).rowcount
    if confirmed is None:
        return None
    query = "SELECT count(*) FROM events WHERE pass < ?"
    ((sent_before,),) = db.execute(query, (number,))
    query = "SELECT file, line FROM events WHERE first_pass > ? ORDER BY id LIMIT 5"
    places = [f"{file}:{line}" for file, line in db.execute(query, (confirmed,))]
    query = "SELECT count(*) FROM events WHERE first_pass > ?"
    ((new,),) = db.execute(query, (confirmed,))
    return Changes(new, places, dropped, sent_before)


def _key_conflict(row: ValidRow) -> InvalidRow:
    error = (
        "idempotency_key: another row has this key, or this row had it before the "
        "row was changed; Loops accepts each key once"
    )
    record = {**_record(row.body), "idempotency_key": row.key}
    return InvalidRow(row.file, row.line, error, record)


def _invalid_row(file: str, line: int, error: str, record: str) -> InvalidRow:
    return InvalidRow(file, line, error, json.loads(record))


def _rejected_row(file: str, line: int, error: str, body: bytes) -> InvalidRow:
    return InvalidRow(file, line, error, _record(body))


_FIELDS: Final = {
    "eventName": "event_name",
    "email": "email",
    "userId": "user_id",
    "eventProperties": "event_properties",
    "mailingLists": "mailing_lists",
}


def _record(body: bytes) -> dict[str, Any]:
    """Return the record of an event from the body of its request."""
    wire = json.loads(body)
    record = {field: wire.pop(name) for name, field in _FIELDS.items() if name in wire}
    if wire:
        record["contact_properties"] = wire
    return record
