"""The journal of a backfill: also where each event came from, and the run's facts.

Each reading of the whole input is a pass. A row is known by its key, which is
made of the run's name, the event's bytes and which of several equal rows it
is; so a row that is read again is the same row, wherever it now stands, and a
row that was mended is a new one.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import attrs

from loops_async._journal.database import Connection, Format
from loops_async._journal.journal import EVENTS, FAILED, Journal

INVALID: Final = "invalid"  # of a row that never became an event

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
    checkpoint=10_000,  # for a million keys in no order
)
_NEVER_SENT: Final = "state = 'pending' AND ambiguous_since IS NULL AND NOT doubted"
# What was never sent comes where it is read now.
_UPSERT: Final = (
    "INSERT INTO events "
    "(id, key, body, email, user_id, file, line, pass, first_pass, at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
    f"id = CASE WHEN {_NEVER_SENT} THEN excluded.id ELSE id END, "
    "file = excluded.file, line = excluded.line, pass = excluded.pass "
    "WHERE events.pass < excluded.pass AND events.body = excluded.body"
)
_MENDED: Final = (
    f"DELETE FROM events WHERE key = ? AND pass < ? AND body != ? AND {_NEVER_SENT}"
)


@attrs.frozen(slots=False)
class ValidRow:
    """A row that can be sent.

    Attributes:
        key: The record's own; None to derive one.
    """

    file: str
    line: int
    key: str | None
    body: bytes
    email: str | None
    user_id: str | None


@attrs.frozen(slots=False)
class InvalidRow:
    """A row that cannot."""

    file: str
    line: int
    error: str
    record: object


def _texts(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(given)


@attrs.frozen
class Changes:
    """What another pass found different.

    Attributes:
        new: Rows that were not there before.
        first_new: Where the first of them are, as ``file:line``.
        dropped: Rows that are there no more, and will not be sent.
        sent_before: Rows that are there no more, but Loops has them or may.
            If there are new ones too, these may be the same, only changed.
    """

    new: int
    first_new: tuple[str, ...] = attrs.field(converter=_texts)
    dropped: int
    sent_before: int


class BackfillJournal(Journal):
    """A backfill's journal."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, BACKFILL)
        self._seen: dict[bytes, int] = {}  # times, of rows that are there twice
        self._seen_last: dict[bytes, int] = {}  # likewise, by the last batch

    def facts(self) -> "asyncio.Future[dict[str, Any]]":
        """Return what is known of the run."""
        query = "SELECT name, value FROM facts"
        return self.do(
            lambda db: {name: json.loads(value) for name, value in db.execute(query)}
        )

    def note(self, **facts: object) -> "asyncio.Future[None]":
        """Remember facts of the run."""
        rows = [(name, json.dumps(value)) for name, value in facts.items()]

        def work(db: Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

        return self.do(work)

    def begin(self) -> "asyncio.Future[None]":
        """Begin a pass: forget the invalid rows of the one before."""

        def work(db: Connection) -> None:
            db.execute("DELETE FROM invalid")

        self._seen.clear()
        self._seen_last.clear()
        return self.do(work)

    def enter(
        self, run: str, number: int, good: list[ValidRow], bad: list[InvalidRow]
    ) -> "asyncio.Future[list[InvalidRow]]":
        """Enter rows of a pass; not before the last ones are entered.

        Returns:
            Those of the good that are bad after all: their key is taken.
        """
        self._seen.update(self._seen_last)

        def work(db: Connection) -> list[InvalidRow]:
            self._seen_last.clear()  # if it is done again
            taken = self._enter(db, run.encode(), number, good)
            rows = [
                (b.file, b.line, b.error, json.dumps(b.record)) for b in bad + taken
            ]
            db.executemany("INSERT INTO invalid VALUES (?, ?, ?, ?)", rows)
            return taken

        return self.do(work)

    def _enter(
        self, db: Connection, run: bytes, number: int, good: list[ValidRow]
    ) -> list[InvalidRow]:
        at = time.time()
        salt = blake2b(run, digest_size=32).digest()
        taken = []
        for place, row in enumerate(good, self._ids.take(db, len(good))):
            whom = row.email, row.user_id
            rest = row.body, *whom, row.file, row.line, number, number, at
            if row.key is not None:
                db.execute(_MENDED, (row.key, number, row.body))  # Loops never saw it
                if not db.execute(_UPSERT, (place, row.key, *rest)).rowcount:
                    taken.append(_taken(row))
                continue
            digest = blake2b(row.body, digest_size=16, key=salt)
            key = digest.hexdigest()
            while not db.execute(_UPSERT, (place, key, *rest)).rowcount:
                before = self._seen.get(digest.digest(), 0)
                times = self._seen_last.get(digest.digest(), before) + 1
                self._seen_last[digest.digest()] = times
                another = digest.copy()
                another.update(b"\0%d" % times)
                key = another.hexdigest()
        return taken

    def end(self, number: int, before: int | None) -> "asyncio.Future[Changes | None]":
        """End a pass: let go of the rows that were not in it.

        Args:
            number: Of the pass.
            before: The last one that was agreed to, if one was.

        Returns:
            What is different since then.
        """
        return self.do(lambda db: _end(db, number, before))

    def tally(self, number: int) -> "asyncio.Future[dict[str, int]]":
        """Return how many rows the pass has by state, ``invalid`` included."""
        count = "SELECT state, count(*) FROM events WHERE pass = ? GROUP BY state"

        def work(db: Connection) -> dict[str, int]:
            ((invalid,),) = db.execute("SELECT count(*) FROM invalid")
            return {INVALID: invalid, **dict(db.execute(count, (number,)))}

        return self.do(work)

    def send_unknown(self, number: int) -> "asyncio.Future[None]":
        """Let the rows of which nobody knows be sent again, under their keys."""

        def work(db: Connection) -> None:
            db.execute(
                "UPDATE events SET state = 'pending', attempts = 0, "
                "ambiguous_since = NULL, doubted = 1, error = NULL "
                "WHERE state = 'unknown' AND pass = ?",
                (number,),
            )

        return self.do(work)

    async def rejects(self) -> AsyncIterator[InvalidRow]:
        """Yield the rows that were invalid, then those that Loops refused."""
        for query, read in ((_INVALID, _as_read), (_REFUSED, _as_sent)):
            after = 0
            while page := await self._page(query, after):
                for row in page:
                    yield read(*row[1:])
                after = page[-1][0]

    def _page(self, query: str, after: int) -> "asyncio.Future[list[Any]]":
        return self.do(lambda db: db.execute(query, (after, _PAGE)).fetchall())


_PAGE: Final = 500
_INVALID: Final = (
    "SELECT rowid, file, line, error, record FROM invalid WHERE rowid > ? "
    "ORDER BY rowid LIMIT ?"
)
# Its condition on the state is that of the index, and narrower.
_REFUSED: Final = (
    "SELECT id, file, line, error, body FROM events INDEXED BY failed "
    "WHERE id > ? AND state IN ('rejected', 'unknown') AND state = 'rejected' "
    "ORDER BY id LIMIT ?"
)


def _as_read(file: str, line: int, error: str, record: str) -> InvalidRow:
    return InvalidRow(file, line, error, json.loads(record))


def _as_sent(file: str, line: int, error: str, body: bytes) -> InvalidRow:
    return InvalidRow(file, line, error, _record(body))


def _record(body: bytes) -> dict[str, Any]:
    wire = json.loads(body)
    record = {field: wire.pop(name) for name, field in _FIELDS.items() if name in wire}
    if wire:
        record["contact_properties"] = wire
    return record


_FIELDS: Final = {
    "eventName": "event_name",
    "email": "email",
    "userId": "user_id",
    "eventProperties": "event_properties",
    "mailingLists": "mailing_lists",
}


def _taken(row: ValidRow) -> InvalidRow:
    error = (
        "idempotency_key: another row has it, or this one had it before it was "
        "changed, and Loops takes a key once"
    )
    record = {**_record(row.body), "idempotency_key": row.key}
    return InvalidRow(row.file, row.line, error, record)


def _end(db: Connection, number: int, before: int | None) -> Changes | None:
    # What may be with Loops already is not sent again for a row that is gone.
    db.execute(
        "UPDATE events SET state = 'unknown', error = 'no longer in the input' "
        f"WHERE pass < ? AND state = 'pending' AND NOT ({_NEVER_SENT})",
        (number,),
    )
    dropped = db.execute(
        "DELETE FROM events WHERE pass < ? AND state IN ('pending', 'rejected')",
        (number,),
    ).rowcount
    if before is None:
        return None
    query = "SELECT count(*) FROM events WHERE pass < ?"
    ((sent_before,),) = db.execute(query, (number,))
    query = "SELECT file, line FROM events WHERE first_pass > ? ORDER BY id LIMIT 5"
    where = tuple(f"{file}:{line}" for file, line in db.execute(query, (before,)))
    query = "SELECT count(*) FROM events WHERE first_pass > ?"
    ((new,),) = db.execute(query, (before,))
    return Changes(new, where, dropped, sent_before)
