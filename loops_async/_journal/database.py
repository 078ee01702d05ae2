"""One SQLite file, which one thread opens; only this module uses sqlite3.

Jobs that are submitted at about the same time share one transaction (group
commit), because flushing to the disk is the expensive part. A file has one
connection and one owner: SQLite before 3.51.3 can corrupt a write-ahead log
that two connections reset at once (https://sqlite.org/wal.html#walresetbug).
"""

import asyncio
import errno
import os
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar

import attrs

from loops_async.errors import JournalError, LoopsError

_T = TypeVar("_T")

Connection: TypeAlias = sqlite3.Connection
Work: TypeAlias = Callable[[Connection], _T]
"""A function that reads or writes within one transaction."""

LOCK_TIMEOUT: Final = 1.0
RETRY_DELAY: Final = 1.0
_BATCH_DELAY: Final = 0.02  # seconds that a deferrable job waits for others


@attrs.define(eq=False)
class _Job(Generic[_T]):
    work: Work[_T]
    done: "asyncio.Future[_T]"
    until_durable: bool
    result: Any = None
    failure: LoopsError | None = None


@attrs.frozen
class Format:
    """The format of a file.

    Attributes:
        name: The name of the format in messages.
        application: SQLite's application_id.
        version: The version of the schema; a file with a newer one is refused.
        schema: The SQL statements that create the tables.
        checkpoint: The number of pages at which SQLite moves the write-ahead log to the
            file.
    """

    name: str
    application: int
    version: int
    schema: tuple[str, ...]
    checkpoint: int = 4000


class Database:
    """An open file that belongs to the running event loop.

    Args:
        path: The path of the file.
        file_format: The format of the file.
        before_batch: A callable that gets the database before each batch of jobs is
            handed to the thread; it may submit more jobs.
        lock_timeout: Seconds to wait for another owner to release the file.
        retry_delay: Seconds until a failed job is repeated if it must become
            durable.
    """

    def __init__(
        self,
        path: Path,
        file_format: Format,
        *,
        before_batch: "Callable[[Database], object]",
        lock_timeout: float = LOCK_TIMEOUT,
        retry_delay: float = RETRY_DELAY,
    ) -> None:
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._jobs: list[_Job[Any]] = []  # not handed to the thread yet
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._before_batch = before_batch
        self._retry_delay = retry_delay
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # Daemon thread: the interpreter can exit without close(), because
        # acknowledged writes are already on disk.
        self._thread = threading.Thread(
            target=_serve,
            args=(
                path,
                file_format,
                lock_timeout,
                self._loop,
                self._inbox,
                self._opened,
            ),
            name=f"journal {path.name}",
            daemon=True,
        )

    def __del__(self) -> None:
        self._inbox.put(None)  # the thread closes the file

    async def open(self) -> None:
        """Open the file, and create or initialize it if necessary.

        Only the user that creates a new file can read it. An empty file is initialized
        like a new one, because a process that is killed while it creates the file
        leaves it empty. The permissions of an empty file stay as they are.

        Raises:
            JournalError: If the file cannot be opened or written, is damaged,
                has another format, or is open elsewhere.
        """
        self._thread.start()
        try:
            await asyncio.shield(self._opened)
        except asyncio.CancelledError:
            self._inbox.put(None)  # otherwise the thread would keep the file locked
            self._opened.add_done_callback(consume_exception)
            raise

    def submit(
        self, work: Work[_T], *, until_durable: bool = False, deferrable: bool = False
    ) -> "asyncio.Future[_T]":
        """Run a function in the thread, after all jobs submitted before it.

        Args:
            work: The function to run. Either all of its writes are committed or none.
            until_durable: Whether to repeat the job after retryable failures
                until it succeeds.
            deferrable: Whether the job may wait 0.02 s, to share the transaction of
                other jobs.

        Returns:
            A future with the function's result, done once its writes are
            durable. It fails with the LoopsError that the function raised, or
            with a JournalError. Cancelling the future prevents the job only
            if the thread does not have it yet.
        """
        done: asyncio.Future[_T] = self._loop.create_future()
        if self._closing:
            done.set_exception(JournalError("the journal is closed"))
            return done
        self._add(_Job(work, done, until_durable), deferrable=deferrable)
        return done

    async def close(self) -> None:
        """Finish the submitted jobs and close the file."""
        if not self._closing:
            self._closing = True
            last = _Job(_do_nothing, self._loop.create_future(), False)
            last.done.add_done_callback(self._stop_thread)
            self._add(last)
        await asyncio.shield(self._closed)

    async def abandon(self) -> None:
        """Close the file after the event loop that opened it has been closed."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def wake(self) -> None:
        """Start a batch in the next iteration of the event loop."""
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._start_batch)

    def _stop_thread(self, last: "asyncio.Future[None]") -> None:
        last.exception()  # retrieve it; the other jobs of the batch report it
        self._inbox.put(self._closed)

    def _add(self, job: _Job[Any], *, deferrable: bool = False) -> None:
        self._jobs.append(job)
        if not deferrable:
            self.wake()
        elif not self._busy and self._timer is None:
            self._timer = self._loop.call_later(_BATCH_DELAY, self._start_batch)

    def _start_batch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._busy = True
        self._before_batch(self)
        batch = [job for job in self._jobs if not job.done.cancelled()]
        self._jobs.clear()
        self._busy = bool(batch)
        if batch:
            self._inbox.put((batch, self._end_batch))

    def _end_batch(self, batch: list[_Job[Any]]) -> None:
        to_repeat = []
        for job in batch:
            if job.done.cancelled():
                continue
            if job.failure is None:
                job.done.set_result(job.result)
            elif job.until_durable and job.failure.retryable and not self._closing:
                to_repeat.append(job)
            else:
                job.done.set_exception(job.failure)
        if to_repeat:
            self._jobs[:0] = to_repeat
            self._loop.call_later(self._retry_delay, self._start_batch)
        else:
            # The tasks that the futures wake run first, so that their next jobs join
            # the next batch.
            self._loop.call_soon(self._start_batch)


_Message: TypeAlias = (
    "tuple[list[_Job[Any]], Callable[[list[_Job[Any]]], None]]"
    " | asyncio.Future[None] | None"
)
"""A batch and the callback for its end, or a request to close the file.

The future, if there is one, is resolved when the file is closed.
"""


# The functions below run in the thread. The connection is a local variable there,
# so that a forked child, which does not have the thread, never closes it: closing
# it would write to the parent's file.


def _serve(
    path: Path,
    file_format: Format,
    lock_timeout: float,
    loop: asyncio.AbstractEventLoop,
    inbox: "queue.SimpleQueue[_Message]",
    opened: "asyncio.Future[None]",
) -> None:
    def notify(callback: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(callback, *args)

    try:
        db = _open(path, file_format, lock_timeout)
    except Exception as error:  # noqa: BLE001 - otherwise open() would not end
        notify(opened.set_exception, _as_loops_error(path, error))
        return
    notify(opened.set_result, None)
    while isinstance(message := inbox.get(), tuple):
        batch, on_end = message
        _commit(path, db, batch)
        notify(on_end, batch)
        del batch, on_end, message  # they keep the database and its callers alive
    with suppress(sqlite3.Error):  # committed writes are durable already
        db.close()
    if message is not None:
        notify(message.set_result, None)


def consume_exception(done: "asyncio.Future[Any]") -> object:
    """Retrieve the exception so that asyncio does not report it as unretrieved."""
    return done.cancelled() or done.exception()


def _do_nothing(_: Connection) -> None:
    pass


def _commit(path: Path, db: Connection, batch: list[_Job[Any]]) -> None:
    """Commit all jobs at once or, if that fails, one by one."""
    if not _commit_together(path, db, batch) and len(batch) > 1:
        for job in batch:
            _commit_together(path, db, [job])


def _commit_together(path: Path, db: Connection, jobs: list[_Job[Any]]) -> bool:
    try:
        db.execute("BEGIN IMMEDIATE")
        for job in jobs:
            job.failure = None
            job.result = job.work(db)
        db.execute("COMMIT")
    except Exception as error:  # noqa: BLE001 - the jobs' futures raise it
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        for job in jobs:
            job.failure = _as_loops_error(path, error)
        return False
    return True


def _open(path: Path, file_format: Format, lock_timeout: float) -> Connection:
    _create(path)
    if not os.access(path, os.W_OK):  # SQLite would report an I/O error
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    deadline = time.monotonic() + lock_timeout
    while True:
        try:
            return _connect(path, file_format)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            if time.monotonic() > deadline:
                raise
        # A random pause, because two openers can keep blocking each other.
        time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - no secret


def _create(path: Path) -> None:
    """Create an empty file that only this user can read, unless the file exists.

    POSIX drops all of a process's locks on a file when any descriptor of the file is
    closed. `_creating` makes sure that no other thread has connected to the file by
    then.
    """
    with _creating, suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


_creating: Final = threading.Lock()
# A child that is forked while another thread holds the lock could never take it.
getattr(os, "register_at_fork", dict)(
    before=_creating.acquire,
    after_in_parent=_creating.release,
    after_in_child=_creating.release,
)


def _connect(path: Path, file_format: Format) -> Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    try:
        # SQLite then keeps its locks and uses no shared memory.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        if path.stat().st_size:
            _check(path, db, file_format)
        else:
            _initialize(db, file_format)
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {file_format.checkpoint}")
        # SQLite locks the write-ahead log only when it is first used.
        db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _initialize(db: Connection, file_format: Format) -> None:
    """Turn an empty file into a journal, in the transaction that has begun."""
    for statement in file_format.schema:
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {file_format.application}")
    db.execute(f"PRAGMA user_version = {file_format.version}")


def _check(path: Path, db: Connection, file_format: Format) -> None:
    ((application,),) = db.execute("PRAGMA application_id")
    ((version,),) = db.execute("PRAGMA user_version")
    if application != file_format.application:
        problem = f"is not {file_format.name}"
    elif version > file_format.version:
        problem = (
            f"has format {version}, but this version of loops-async reads format "
            f"{file_format.version} at most: upgrade loops-async"
        )
    else:
        ((verdict,),) = db.execute("PRAGMA quick_check(1)")
        if verdict == "ok":
            return
        problem = f"is damaged: {verdict.splitlines()[-1]}"
    raise JournalError(f"{path} {problem}")


def _as_loops_error(path: Path, error: Exception) -> LoopsError:
    """Return a LoopsError as it is, and a JournalError for any other error.

    The new error does not keep the traceback, whose frames hold events.
    """
    if isinstance(error, LoopsError):
        return error
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    problem, retryable = _PROBLEMS.get(code, ("cannot be used", False))
    detail = error.strerror if isinstance(error, OSError) else str(error)
    message = f"{path} {problem}: {type(error).__name__}: {detail}"
    translated = JournalError(message, retryable=retryable)
    translated.in_use = code == sqlite3.SQLITE_BUSY
    return translated


_PROBLEMS: Final = {
    sqlite3.SQLITE_FULL: ("cannot grow because the disk is full", True),
    sqlite3.SQLITE_IOERR: ("cannot be read or written", True),
    sqlite3.SQLITE_BUSY: (
        "is in use by another process, or is already open in this one",
        True,
    ),
    sqlite3.SQLITE_READONLY: ("cannot be written", False),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", False),
    sqlite3.SQLITE_CORRUPT: ("is damaged", False),
    sqlite3.SQLITE_NOTADB: ("is damaged or is not a journal", False),
}
