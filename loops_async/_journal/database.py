"""One SQLite file, held open by one thread: the only module that knows sqlite3.

What several callers want in the same moment is committed in one go (group
commit), because the flush to the disk is what takes the time. One connection
and one owner per file: SQLite before 3.51.3 can damage a write-ahead log that
two connections reset at once (https://sqlite.org/wal.html#walresetbug).
"""

import asyncio
import errno
import os
import queue
import random
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar

import attrs

from loops_async.errors import JournalError, LoopsError

if sys.platform != "win32":  # pragma: no branch - which has no such locks
    import fcntl

_T = TypeVar("_T")

Connection: TypeAlias = sqlite3.Connection
Work: TypeAlias = Callable[[Connection], _T]
"""Reads or writes; all of it is committed, or nothing."""

_LOCKED_FOR: Final = 1.0  # seconds to wait for another owner to let go
_LATER: Final = 0.02  # seconds that what is in no hurry waits for company
_AGAIN: Final = 1.0  # seconds until what must not be lost is tried again


@attrs.define(eq=False)
class _Order(Generic[_T]):
    work: Work[_T]
    done: "asyncio.Future[_T]"
    keep: bool
    result: Any = None
    failure: LoopsError | None = None


@attrs.frozen
class Format:
    """What is in a file.

    Attributes:
        name: Of what it is, for people.
        application: SQLite's application_id.
        version: Of the schema; a file of a newer one is refused.
        schema: The statements that make its tables.
        checkpoint: Pages of the write-ahead log to gather before they are
            moved to the file.
    """

    name: str
    application: int
    version: int
    schema: tuple[str, ...]
    checkpoint: int = 4000


class Store:
    """An open file; belongs to the running event loop.

    Args:
        path: The file.
        file_format: What is, or is to be, in it.
        gather: Called with the store before anything is done, so that it may
            ask for more.
        patience: Seconds to wait for another owner to let go; None is one.
    """

    def __init__(
        self,
        path: Path,
        file_format: Format,
        *,
        gather: "Callable[[Store], object]",
        patience: float | None = None,
    ) -> None:
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._orders: list[_Order[Any]] = []  # not given to the thread yet
        self._busy = False
        self._later: asyncio.TimerHandle | None = None
        self._closing = False
        self._gather = gather
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # A daemon: who forgets to close the file can leave all the same, for
        # what was acknowledged is on the disk.
        self._thread = threading.Thread(
            target=_serve,
            args=(
                path,
                file_format,
                _LOCKED_FOR if patience is None else patience,
                self._loop,
                self._inbox,
                self._opened,
            ),
            name=f"journal {path.name}",
            daemon=True,
        )

    def __del__(self) -> None:
        self._inbox.put(None)  # the thread lets the file go

    async def open(self) -> None:
        """Open the file; make it, for its owner's eyes only, if there is none.

        Raises:
            JournalError: if it cannot be opened or written, is damaged, is
                something else, or somebody else has it open.
        """
        self._thread.start()
        try:
            await asyncio.shield(self._opened)
        except asyncio.CancelledError:
            self._inbox.put(None)  # or the file would be held for nobody
            self._opened.add_done_callback(consume_exception)
            raise

    def do(
        self, work: Work[_T], *, keep: bool = False, hurry: bool = True
    ) -> "asyncio.Future[_T]":
        """Have something done, after all that was asked for before.

        Args:
            work: What to do, in the thread.
            keep: Whether to try it again as long as that may help.
            hurry: Whether now, or with the next that is, which is cheaper.

        Returns:
            What it returned, when it is durable; fails with a JournalError, or
            the LoopsError that the work raised.
            Cancelling it takes back only what the thread does not have yet.
        """
        done: asyncio.Future[_T] = self._loop.create_future()
        if self._closing:
            done.set_exception(JournalError("the journal is closed"))
            return done
        return self._ordered(_Order(work, done, keep), hurry=hurry)

    async def close(self) -> None:
        """Do what was asked for, and close the file."""
        if not self._closing:
            self._closing = True
            last = self._ordered(_Order(_nothing, self._loop.create_future(), False))
            last.add_done_callback(self._end)
        await asyncio.shield(self._closed)

    async def abandon(self) -> None:
        """Let go of the file, when the event loop it was opened in is closed."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _end(self, last: "asyncio.Future[None]") -> None:
        last.exception()  # if so the others, whom it concerns, have it too
        self._inbox.put(self._closed)

    def _ordered(
        self, order: _Order[_T], *, hurry: bool = True
    ) -> "asyncio.Future[_T]":
        self._orders.append(order)
        if hurry:
            self.wake()
        elif not self._busy and self._later is None:
            self._later = self._loop.call_later(_LATER, self._pass_on)
        return order.done

    def wake(self) -> None:
        """Begin in the next turn, with all that is asked for in this one."""
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._busy = True
        self._gather(self)
        orders = [order for order in self._orders if not order.done.cancelled()]
        self._orders.clear()
        self._busy = bool(orders)
        if orders:
            self._inbox.put((orders, self._finished))

    def _finished(self, orders: list[_Order[Any]]) -> None:
        again = []
        for order in orders:
            if order.done.cancelled():
                continue
            if order.failure is None:
                order.done.set_result(order.result)
            elif order.keep and order.failure.retryable and not self._closing:
                again.append(order)
            else:
                order.done.set_exception(order.failure)
        if again:
            self._orders[:0] = again
            self._loop.call_later(_AGAIN, self._pass_on)
        else:
            # After those who now wake up have said what they want next.
            self._loop.call_soon(self._pass_on)


_Message: TypeAlias = (
    "tuple[list[_Order[Any]], Callable[[list[_Order[Any]]], None]]"
    " | asyncio.Future[None] | None"
)
"""Orders, with whom to tell; the end, with what to resolve; or just the end."""


# In the thread. The connection is a local of it, so that a forked child, where
# the thread does not exist, never closes it: that would edit the parent's file.


def _serve(
    path: Path,
    file_format: Format,
    patience: float,
    loop: asyncio.AbstractEventLoop,
    inbox: "queue.SimpleQueue[_Message]",
    opened: "asyncio.Future[None]",
) -> None:
    def tell(what: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, nobody listens
            loop.call_soon_threadsafe(what, *args)

    try:
        db = _open(path, file_format, patience)
    except Exception as error:  # noqa: BLE001 - or who opens would wait for ever
        tell(opened.set_exception, _ours(path, error))
        return
    tell(opened.set_result, None)
    while isinstance(message := inbox.get(), tuple):
        orders, finished = message
        _commit(path, db, orders)
        tell(finished, orders)
        del orders, finished, message  # they hold who should be let go
    with suppress(sqlite3.Error):  # what is on the disk stays there
        db.close()
    if message is not None:
        tell(message.set_result, None)


def consume_exception(done: "asyncio.Future[Any]") -> object:
    """Return what went wrong, so that nobody misses that it was looked at."""
    return done.cancelled() or done.exception()


def _nothing(_: Connection) -> None:
    pass


def _commit(path: Path, db: Connection, orders: list[_Order[Any]]) -> None:
    """Do all, or if that fails each by itself."""
    if not _done(path, db, orders) and len(orders) > 1:
        for order in orders:
            _done(path, db, [order])


def _done(path: Path, db: Connection, orders: list[_Order[Any]]) -> bool:
    try:
        db.execute("BEGIN IMMEDIATE")
        for order in orders:
            order.failure = None
            order.result = order.work(db)
        db.execute("COMMIT")
    except Exception as error:  # noqa: BLE001 - whoever asked is told
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        for order in orders:
            order.failure = _ours(path, error)
        return False
    return True


def _open(path: Path, file_format: Format, patience: float) -> Connection:
    if not path.exists():
        _make(path, file_format)
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    end = time.monotonic() + patience
    while True:
        try:
            return _connect(path, file_format)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            if time.monotonic() > end:
                raise
        # Two that begin at once each hold a part of what the other needs.
        time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - no secret


def _make(path: Path, file_format: Format) -> None:
    """Make the file, whole or not at all, unless somebody else does."""
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("BEGIN")
            for statement in file_format.schema:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {file_format.application}")
            db.execute(f"PRAGMA user_version = {file_format.version}")
            db.execute("COMMIT")
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            _rename(new, path)
    finally:
        new.unlink(missing_ok=True)


def _rename(new: Path, path: Path) -> None:
    """Rename, unless somebody else just did, whose file it would replace."""
    if sys.platform == "win32":  # pragma: no cover - where it replaces nothing
        with suppress(FileExistsError):
            new.rename(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():
            new.rename(path)
    finally:
        os.close(folder)


def _connect(path: Path, file_format: Format) -> Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    try:
        # A lock that is kept, and no memory shared with anybody.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check(path, db, file_format)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {file_format.checkpoint}")
        db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _check(path: Path, db: Connection, file_format: Format) -> None:
    ((application,),) = db.execute("PRAGMA application_id")
    ((version,),) = db.execute("PRAGMA user_version")
    if not path.stat().st_size:
        what = "is empty, so no journal; delete it if it never was one"
    elif application != file_format.application:
        what = f"is not {file_format.name}"
    elif version > file_format.version:
        what = f"was made by a newer loops-async, in format {version}"
    else:
        ((verdict,),) = db.execute("PRAGMA quick_check(1)")
        if verdict == "ok":
            return
        what = f"is damaged: {verdict.splitlines()[-1]}"
    raise JournalError(f"{path} {what}")


def _ours(path: Path, error: Exception) -> LoopsError:
    """Return what is wrong in our words; its own frames hold events."""
    if isinstance(error, LoopsError):
        return error
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    text, retryable = _MEANINGS.get(code, ("cannot be used", False))
    said = error.strerror if isinstance(error, OSError) else str(error)
    what = f"{path} {text}: {type(error).__name__}: {said}"
    ours = JournalError(what, retryable=retryable)
    ours.in_use = code == sqlite3.SQLITE_BUSY
    return ours


_MEANINGS: Final = {
    sqlite3.SQLITE_FULL: ("cannot grow, the disk is full", True),
    sqlite3.SQLITE_IOERR: ("cannot be read or written", True),
    sqlite3.SQLITE_BUSY: ("is in use by another process, or twice by this one", True),
    sqlite3.SQLITE_READONLY: ("cannot be written", False),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", False),
    sqlite3.SQLITE_CORRUPT: ("is damaged", False),
    sqlite3.SQLITE_NOTADB: ("is damaged, or no journal", False),
}
