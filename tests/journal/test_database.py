"""The database: group commit, the creation of its file, and its one owner."""

import asyncio
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from support.outboxes import rows, verdict
from support.waiting import run, until

from loops_async import InvalidEventError, JournalError
from loops_async._backfill.journal import BACKFILL
from loops_async._journal.database import Connection, Database, Format
from loops_async._journal.journal import OUTBOX

LINES = Format("a list of lines", 77, 1, ("CREATE TABLE lines (text TEXT UNIQUE)",))

unix_only = pytest.mark.skipif(
    sys.platform == "win32", reason="needs the permissions and signals of Unix"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.db"


def submit_nothing(_: Database) -> None:
    pass


def database(
    path: Path, file_format: Format = LINES, *, lock_timeout: float = 0.02
) -> Database:
    return Database(
        path,
        file_format,
        before_batch=submit_nothing,
        lock_timeout=lock_timeout,
        retry_delay=0.01,
    )


@asynccontextmanager
async def opened(path: Path, file_format: Format = LINES) -> AsyncIterator[Database]:
    db = database(path, file_format)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


def insert(text: str) -> Any:
    def work(db: Connection) -> str:
        db.execute("INSERT INTO lines VALUES (?)", (text,))
        return text

    return work


@asynccontextmanager
async def traced(db: Database) -> AsyncIterator[list[str]]:
    """Record the statements that the thread executes meanwhile."""
    statements: list[str] = []
    await db.submit(lambda db: db.set_trace_callback(statements.append))
    statements.clear()
    yield statements
    await db.submit(lambda db: db.set_trace_callback(None))


def lines(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [text for (text,) in db.execute("SELECT text FROM lines ORDER BY rowid")]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def size(path: Path) -> int:
    return path.stat().st_size


async def refusal(path: Path, file_format: Format = LINES) -> JournalError:
    """Return the error with which opening the file fails."""
    with pytest.raises(JournalError) as caught:
        await database(path, file_format).open()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


# Jobs.


def test_jobs_of_one_moment_run_in_order_and_share_a_commit(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as db, traced(db) as statements:
            texts = [str(number) for number in range(50)]
            results = await asyncio.gather(*[db.submit(insert(t)) for t in texts])
            assert results == texts
            assert statements.count("COMMIT") == 1
        assert lines(path) == texts

    run(main())


def test_a_deferrable_job_shares_the_commit_of_the_next_job(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as db, traced(db) as statements:
            await asyncio.sleep(0)  # a batch without jobs
            statements.clear()
            deferred = [db.submit(insert(text), deferrable=True) for text in "ab"]
            await asyncio.sleep(0)
            await db.submit(insert("c"))
            assert all(job.done() for job in deferred)
            assert statements.count("COMMIT") == 1
            assert await db.submit(insert("d"), deferrable=True) == "d"  # alone, too
        assert lines(path) == ["a", "b", "c", "d"]

    run(main())


def test_a_job_that_fails_is_rolled_back_and_the_others_are_committed(
    path: Path,
) -> None:
    async def main() -> None:
        def bug(db: Connection) -> None:
            insert("written before the bug")(db)
            raise ZeroDivisionError("by a bug")

        def invalid(db: Connection) -> None:
            insert("written before the error")(db)
            raise InvalidEventError(problems=["no"])

        async with opened(path) as db:
            jobs = [insert("a"), bug, insert("b"), insert("a"), invalid, insert("c")]
            ends = await asyncio.gather(*map(db.submit, jobs), return_exceptions=True)
            assert [type(end) for end in ends] == [
                str,
                JournalError,
                str,
                JournalError,
                InvalidEventError,
                str,
            ]
            assert str(ends[1]) == f"{path} cannot be used: ZeroDivisionError: by a bug"
            assert "UNIQUE constraint failed" in str(ends[3])
        assert lines(path) == ["a", "b", "c"]

    run(main())


def test_a_job_that_fails_in_a_batch_of_its_own_runs_once(path: Path) -> None:
    async def main() -> None:
        runs = []

        def bug(db: Connection) -> None:
            runs.append(1)
            raise ZeroDivisionError

        async with opened(path) as db:
            with pytest.raises(JournalError, match="ZeroDivisionError"):
                await db.submit(bug)
            assert await db.submit(insert("a")) == "a"
        assert runs == [1]

    run(main())


def test_a_job_that_must_be_durable_is_repeated_until_it_succeeds(path: Path) -> None:
    async def main() -> None:
        runs = []

        def succeeds_at_last(db: Connection) -> str:
            runs.append(1)
            if len(runs) < 5:
                raise JournalError("not yet", retryable=True)
            return str(insert("durable")(db))

        async with opened(path) as db:
            durable = db.submit(succeeds_at_last, until_durable=True)
            cancelled = db.submit(succeeds_at_last, until_durable=True)
            assert await db.submit(insert("meanwhile")) == "meanwhile"
            assert not durable.done()
            cancelled.cancel()
            assert await durable == "durable"
        assert lines(path) == ["meanwhile", "durable"]

    run(main())


def test_a_job_whose_failure_is_permanent_fails_and_delays_no_other(
    path: Path,
) -> None:
    async def main() -> None:
        def fails(db: Connection) -> None:
            db.execute("INSERT INTO lines VALUES (?)", ("\udce9",))

        async with opened(path) as db:
            failed = db.submit(fails, until_durable=True)
            assert await db.submit(insert("a")) == "a"
            assert failed.done()
            with pytest.raises(JournalError, match="cannot be used: UnicodeEncode"):
                await failed

    run(main())


def test_closing_runs_a_failing_job_once_more_and_reports_its_failure(
    path: Path,
) -> None:
    async def main() -> None:
        def fails(db: Connection) -> None:
            raise JournalError("never", retryable=True)

        db = database(path)
        await db.open()
        failing = db.submit(fails, until_durable=True)
        await db.submit(insert("a"))
        last = db.submit(insert("b"))
        await db.close()
        assert await last == "b"
        with pytest.raises(JournalError, match="never"):
            await failing
        late = db.submit(insert("late"))
        with pytest.raises(JournalError, match="is closed"):
            await late
        await db.close()
        assert lines(path) == ["a", "b"]

    run(main())


def test_closing_finishes_the_submitted_jobs(path: Path) -> None:
    async def main() -> None:
        db = database(path)
        await db.open()
        submitted = [db.submit(insert(str(number))) for number in range(5)]
        closings = [asyncio.create_task(db.close()) for _ in range(3)]
        await asyncio.gather(*closings)
        assert all(job.done() for job in submitted)
        assert lines(path) == ["0", "1", "2", "3", "4"]

    run(main())


def test_a_job_that_is_cancelled_before_its_batch_starts_does_not_run(
    path: Path,
) -> None:
    async def main() -> None:
        async with opened(path) as db:
            db.submit(insert("cancelled")).cancel()
            assert await db.submit(insert("a")) == "a"
            for _ in range(2):
                db.submit(insert("cancelled alone")).cancel()
                await asyncio.sleep(0.01)  # a batch without jobs
            started, go_on = threading.Event(), threading.Event()

            def slow(db: Connection) -> None:
                started.set()
                go_on.wait(60)
                insert("cancelled too late")(db)

            late = db.submit(slow)
            await asyncio.to_thread(started.wait, 60)
            late.cancel()
            go_on.set()
            assert await db.submit(insert("b")) == "b"
        assert lines(path) == ["a", "cancelled too late", "b"]

    run(main())


def test_a_full_database_raises_a_retryable_error(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as db:
            await db.submit(
                lambda db: db.execute("PRAGMA max_page_count = 3").fetchall()
            )
            with pytest.raises(JournalError, match="the disk is full") as caught:
                await db.submit(insert("x" * 50_000))
            assert caught.value.retryable
            assert str(path) in str(caught.value)
            assert await db.submit(insert("a")) == "a"
        assert lines(path) == ["a"]

    run(main())


# Creating a file.


def test_a_reopened_file_has_what_was_committed(path: Path) -> None:
    async def add(text: str) -> None:
        async with opened(path) as db:
            await db.submit(insert(text))

    for text in "abc":
        run(add(text))
    assert lines(path) == ["a", "b", "c"]
    assert names(path.parent) == [path.name]


@unix_only
def test_a_new_file_is_readable_by_its_owner_only(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as db:
            await db.submit(insert("secret"))
            modes = {file.name: mode(file) for file in path.parent.iterdir()}
            assert modes == {"lines.db": 0o600, "lines.db-wal": 0o600}

    before = os.umask(0)
    try:
        run(main())
    finally:
        os.umask(before)


@unix_only
def test_an_empty_file_is_initialized_and_keeps_its_permissions(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as db:
            await db.submit(insert("a"))

    path.touch()
    path.chmod(0o640)
    run(main())
    assert lines(path) == ["a"]
    assert mode(path) == 0o640


_KILLED = """
import asyncio, os, signal, sqlite3, sys
from functools import partial
from pathlib import Path
from loops_async._journal.journal import Journal

connect = sqlite3.connect
statements = 0

class Dying(sqlite3.Connection):
    def execute(self, *args):
        global statements
        result = super().execute(*args)
        statements -= 1
        if not statements:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

sqlite3.connect = partial(connect, factory=Dying)

async def main(path):
    async with Journal(path):
        pass

folder = Path(sys.argv[1])
for number in range(100):
    pid = os.fork()
    if pid == 0:
        statements = number + 1
        asyncio.run(main(folder / f"{number}.db"))
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.waitstatus_to_exitcode(status) == 0:
        print(number)
        break
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status
"""


@unix_only
def test_a_file_whose_creator_is_killed_after_any_statement_can_be_opened(
    tmp_path: Path,
) -> None:
    killed = int(script(_KILLED, str(tmp_path)))
    assert killed > len(OUTBOX.schema)

    async def open_and_close(path: Path) -> None:
        async with opened(path, OUTBOX):
            pass

    for number in range(killed):
        path = tmp_path / f"{number}.db"
        run(open_and_close(path))
        assert rows(path) == []
        assert verdict(path) == "ok"
        assert mode(path) == 0o600
    assert names(tmp_path) == sorted(f"{number}.db" for number in range(killed + 1))


def test_openers_of_one_moment_in_one_process_are_one_owner_and_the_others(
    path: Path,
) -> None:
    """Each holds for a moment a lock that the others need."""

    async def main() -> None:
        for text in "ab":
            openers = [database(path, lock_timeout=1.0) for _ in range(4)]
            errors = await asyncio.gather(
                *(db.open() for db in openers), return_exceptions=True
            )
            owners = [db for db, e in zip(openers, errors, strict=True) if e is None]
            assert len(owners) == 1
            for error in filter(None, errors):
                assert isinstance(error, JournalError)
                assert error.in_use
            await owners[0].submit(insert(text))
            await owners[0].close()

    run(main())
    assert lines(path) == ["a", "b"]
    assert names(path.parent) == [path.name]


_RACE = """
import asyncio, multiprocessing, sys
from pathlib import Path
from loops_async import JournalError
from loops_async._journal.journal import Journal
from loops_async._journal.records import NewEvent

def open_file(path, number, barrier, results):
    async def main():
        journal = Journal(path)
        barrier.wait(60)
        try:
            await journal.open()
        except JournalError as error:
            results.put("in use" if error.in_use else str(error))
            barrier.wait(60)
        else:
            event = NewEvent(f"k{number}", b"{}", None, "u")
            await journal.add([event], lambda counts: None)
            results.put("opened")
            barrier.wait(60)  # until all others have failed
            await journal.close()
    asyncio.run(main())

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    openers = [
        context.Process(
            target=open_file, args=(Path(sys.argv[1]), number, barrier, results)
        )
        for number in range(4)
    ]
    for process in openers:
        process.start()
    print(*sorted(results.get(timeout=60) for _ in openers), sep=", ")
    for process in openers:
        process.join()
        assert process.exitcode == 0, process.exitcode
"""


@unix_only
@pytest.mark.parametrize("exists", [False, True])
def test_processes_that_open_a_new_file_at_one_moment_are_one_owner_and_the_others(
    path: Path, exists: bool
) -> None:
    for number in range(3):
        file = path.with_name(f"{number}.db")
        if exists:
            file.touch()
        assert script(_RACE, str(file)) == "in use, in use, in use, opened"
        assert verdict(file) == "ok"
        assert len(rows(file)) == 1
    assert names(path.parent) == ["0.db", "1.db", "2.db"]


_FORK_WHILE_CREATING = """
import os, sys, threading, warnings
from pathlib import Path
from loops_async._journal.database import _create, _creating

# Python 3.12 and later warn of a fork if the thread of the timer has not ended.
warnings.simplefilter("ignore", DeprecationWarning)
_creating.acquire()
threading.Timer(0.1, _creating.release).start()
pid = os.fork()
if pid == 0:
    _create(Path(sys.argv[1]))
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


@unix_only
def test_a_child_that_is_forked_while_a_file_is_created_can_create_files(
    path: Path,
) -> None:
    script(_FORK_WHILE_CREATING, str(path))
    assert path.exists()


# Refusing a file.


def whole(path: Path) -> bytes:
    """Make a file with some lines and return its bytes."""

    async def main() -> None:
        async with opened(path) as db:
            for number in range(300):
                db.submit(insert(f"{number} " + 100 * "x"))

    run(main())
    return path.read_bytes()


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _bad_header(data: bytes) -> bytes:
    return b"garbage, garbage" + data[16:]


def _bad_middle(data: bytes) -> bytes:
    return data[:8192] + bytes(range(256)) * 32 + data[16384:]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(_half, "is damaged", id="half"),
        pytest.param(lambda data: data[:100], "is ", id="100 bytes"),
        pytest.param(lambda data: data[:1], "is ", id="1 byte"),
        pytest.param(lambda data: data[:-1000], "is damaged", id="a page cut"),
        pytest.param(_bad_header, "is damaged or is not a journal", id="header"),
        pytest.param(_bad_middle, "is damaged", id="middle"),
        pytest.param(lambda data: b"email\na@b.co\n" * 99, "not a journal", id="text"),
    ],
)
def test_a_damaged_file_is_refused_and_not_changed(
    path: Path, damage: Any, problem: str
) -> None:
    data = damage(whole(path))
    path.write_bytes(data)
    error = run(refusal(path))
    assert problem in str(error)
    assert not error.retryable
    assert not error.in_use
    assert path.read_bytes() == data


def test_a_database_of_another_application_is_refused_and_not_changed(
    path: Path,
) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE users (name TEXT)")
    data = path.read_bytes()
    assert "is not a list of lines" in str(run(refusal(path)))
    assert path.read_bytes() == data


@pytest.mark.parametrize(("made", "wanted"), [(BACKFILL, OUTBOX), (OUTBOX, BACKFILL)])
def test_an_outbox_is_not_opened_as_a_backfill_nor_a_backfill_as_an_outbox(
    path: Path, made: Format, wanted: Format
) -> None:
    async def main() -> None:
        async with opened(path, made):
            pass
        assert f"is not {wanted.name}" in str(await refusal(path, wanted))

    run(main())


def test_a_file_of_a_newer_format_is_refused(path: Path) -> None:
    async def main() -> None:
        async with opened(path, Format(LINES.name, LINES.application, 2, LINES.schema)):
            pass
        error = await refusal(path)
        assert "has format 2, but this version of loops-async reads" in str(error)
        assert not error.in_use

    run(main())


def test_a_database_without_tables_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    assert "is not" in str(run(refusal(path)))


def test_a_directory_or_a_path_in_a_missing_directory_cannot_be_opened(
    path: Path,
) -> None:
    path.mkdir()
    assert "cannot be opened" in str(run(refusal(path)))
    missing = path / "no" / "such.db"
    assert "No such file or directory" in str(run(refusal(missing)))
    assert names(path) == []


def test_a_schema_that_fails_leaves_the_file_empty(path: Path) -> None:
    async def main() -> None:
        bad_schemas: list[tuple[Any, str]] = [
            (("CREATE TABLE lines (text)", "CREATE NONSENSE"), "syntax error"),
            ((42,), "TypeError"),
        ]
        for schema, problem in bad_schemas:
            error = await refusal(path, Format("nonsense", 1, 1, schema))
            assert problem in str(error)
            assert names(path.parent) == [path.name]
            assert size(path) == 0
        async with opened(path):
            pass

    run(main())


def test_an_error_that_is_not_from_sqlite_ends_the_opening(path: Path) -> None:
    assert "embedded null" in str(run(refusal(path / "no\0name")))


# One owner.


_OPEN = """
import asyncio, os, resource, signal, sys
from pathlib import Path
from loops_async import JournalError
from loops_async._journal.journal import Journal

{before}
if hasattr(os, "setuid") and os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)

async def main():
    journal = Journal(Path({path!r}), lock_timeout=0.02)
    try:
        await journal.open()
    except JournalError as error:
        print(error)
    else:
        await journal.close()
        print("opened")

asyncio.run(main())
"""


def script(text: str, *args: str, killed_by: int = 0) -> str:
    """Run a script in a process of its own, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", text, *args],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (-killed_by, "")
    return result.stdout.strip()


def open_elsewhere(path: Path, before: str = "", *, killed_by: int = 0) -> str:
    """Open a file in another process, without the rights of root."""
    text = _OPEN.format(path=str(path), before=before)
    return script(text, killed_by=killed_by)


def test_a_file_that_is_open_is_refused_in_the_same_process(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as db:
            error = await refusal(path)
            assert "is in use by another process, or is already open" in str(error)
            assert error.retryable
            assert error.in_use
            await db.submit(insert("a"))
        async with opened(path):
            pass

    run(main())


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may write to."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield path
        path.chmod(0o777)


@unix_only
def test_a_refused_opening_does_not_release_the_lock_of_its_process(
    public: Path,
) -> None:
    """POSIX drops a process's locks when it closes any descriptor of the file."""
    path = public / "events.db"

    async def main() -> None:
        async with opened(path, OUTBOX):
            path.chmod(0o666)
            await refusal(path, OUTBOX)
            printed = await asyncio.to_thread(open_elsewhere, path)
            assert printed.startswith(f"{path} is in use by another process")

    run(main())
    assert open_elsewhere(path) == "opened"


@unix_only
def test_a_file_that_cannot_be_written_is_refused(public: Path) -> None:
    path = public / "events.db"
    assert open_elsewhere(path) == "opened"
    path.chmod(0o400)
    expected = f"{path} cannot be used: PermissionError: Permission denied"
    assert open_elsewhere(path) == expected
    path.chmod(0o000)
    assert open_elsewhere(path) == expected


def test_a_file_without_write_permission_is_not_opened_by_sqlite(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would report an I/O error."""
    whole(path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write any file
    assert "PermissionError: Permission denied" in str(run(refusal(path)))


@unix_only
def test_a_directory_that_cannot_be_written_is_refused(public: Path) -> None:
    path = public / "events.db"
    public.chmod(0o555)
    assert open_elsewhere(path) == (
        f"{path} cannot be used: PermissionError: Permission denied"
    )
    public.chmod(0o777)
    assert open_elsewhere(path) == "opened"
    public.chmod(0o555)
    assert open_elsewhere(path).startswith(f"{path} cannot be ")
    assert names(public) == ["events.db"]


_LIMITED = "resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"


@unix_only
@pytest.mark.parametrize("room", [0, 100, 5000, 12_000])
def test_a_file_that_the_disk_has_no_room_for_stays_empty(
    public: Path, room: int
) -> None:
    path = public / "events.db"
    printed = open_elsewhere(path, _LIMITED.format(room=room))
    assert printed.startswith(f"{path} cannot ")
    assert names(public) == ["events.db"]
    assert open_elsewhere(path) == "opened"
    assert verdict(path) == "ok"


@unix_only
@pytest.mark.parametrize("room", [0, 100, 600, 5000, 9000, 12_000])
def test_a_file_whose_creator_is_killed_while_it_writes_can_be_opened(
    public: Path, room: int
) -> None:
    path = public / "events.db"
    default = "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
    before = default + _LIMITED.format(room=room)
    open_elsewhere(path, before, killed_by=signal.SIGXFSZ)
    assert open_elsewhere(path) == "opened"
    assert names(public) == ["events.db"]
    assert verdict(path) == "ok"
    assert mode(path) == 0o600


# Ending without close().


def test_a_file_is_released_when_its_event_loop_ends_without_closing_it(
    path: Path,
) -> None:
    async def do_not_close() -> None:
        db = database(path)
        await db.open()
        await db.submit(insert("a"))
        for text in "bc":
            db.submit(insert(text))  # may be lost
            await asyncio.sleep(0)

    run(do_not_close())
    gc.collect()

    async def main() -> None:
        def ended() -> bool:
            threads = [thread.name for thread in threading.enumerate()]
            return f"journal {path.name}" not in threads

        await until(ended)
        async with opened(path) as db:
            await db.submit(insert("z"))

    run(main())
    first, *_, last = lines(path)
    assert (first, last) == ("a", "z")


def test_an_opening_that_is_cancelled_releases_the_file(path: Path) -> None:
    async def main() -> None:
        cancelled = []
        for _ in range(3):
            db = database(path)
            cancelled.append(db)
            opening = asyncio.create_task(db.open())
            await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            db._thread.join(10)
            assert not db._thread.is_alive()
        async with opened(path):
            pass

    run(main())


def test_an_opening_that_is_cancelled_and_fails_reports_nothing(path: Path) -> None:
    path.mkdir()

    async def main() -> None:
        db = database(path)
        opening = asyncio.create_task(db.open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.to_thread(db._thread.join, 10)

    run(main())


def test_the_interpreter_exits_without_close(path: Path) -> None:
    text = f"""
import asyncio, threading
from pathlib import Path
from loops_async._journal.journal import Journal
async def main():
    global journal
    journal = Journal(Path({str(path)!r}))
    await journal.open()
asyncio.run(main())
assert threading.active_count() == 2
"""
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", text],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
