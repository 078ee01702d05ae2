"""One file, one thread: group commit, what is refused as a file, and leaving."""

import asyncio
import errno
import gc
import os
import shutil
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
from support.http_server import run
from support.outboxes import until

from loops_async import (
    InvalidEventError,
    JournalError,
)
from loops_async._backfill.journal import BACKFILL
from loops_async._journal import database as _store
from loops_async._journal.database import Connection, Format, Store
from loops_async._journal.journal import OUTBOX

LINES = Format("a list of lines", 77, 1, ("CREATE TABLE lines (text TEXT UNIQUE)",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.db"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "_AGAIN", 0.01)
    monkeypatch.setattr(_store, "_LOCKED_FOR", 0.02)


def no_more(_: Store) -> None:
    """Nothing else is to be done."""


@asynccontextmanager
async def opened(path: Path, file_format: Format = LINES) -> AsyncIterator[Store]:
    store = Store(path, file_format, gather=no_more)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def adds(text: str) -> Any:
    def work(db: Connection) -> str:
        db.execute("INSERT INTO lines VALUES (?)", (text,))
        return text

    return work


def lines(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [text for (text,) in db.execute("SELECT text FROM lines ORDER BY rowid")]


async def refusal(path: Path, file_format: Format = LINES) -> JournalError:
    """Return how opening that file fails."""
    with pytest.raises(JournalError) as caught:
        await Store(path, file_format, gather=no_more).open()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


# Works.


def test_works_are_done_in_order_and_committed_together(path: Path) -> None:
    async def main() -> None:
        commits: list[str] = []

        def trace(db: Connection) -> None:
            db.set_trace_callback(commits.append)

        async with opened(path) as store:
            await store.do(trace)
            commits.clear()
            texts = [str(number) for number in range(50)]
            assert await asyncio.gather(*[store.do(adds(t)) for t in texts]) == texts
            assert commits.count("COMMIT") == 1
            await store.do(lambda db: db.set_trace_callback(None))
        assert lines(path) == texts

    run(main())


def test_a_work_that_fails_does_not_spoil_the_others(path: Path) -> None:
    async def main() -> None:
        def bug(db: Connection) -> None:
            adds("half")(db)
            raise ZeroDivisionError("by a bug")

        def refuse(db: Connection) -> None:
            adds("other half")(db)
            raise InvalidEventError(problems=["no"])

        async with opened(path) as store:
            works = [adds("a"), bug, adds("b"), adds("a"), refuse, adds("c")]
            ends = await asyncio.gather(*map(store.do, works), return_exceptions=True)
            kinds = [type(end) for end in ends]
            failed = JournalError
            assert kinds == [str, failed, str, failed, InvalidEventError, str]
            assert str(ends[1]) == f"{path} cannot be used: ZeroDivisionError: by a bug"
            assert "UNIQUE constraint failed" in str(ends[3])
        assert lines(path) == ["a", "b", "c"]

    run(main())


def test_one_that_fails_alone_fails_once(path: Path) -> None:
    async def main() -> None:
        tries = []

        def bug(db: Connection) -> None:
            tries.append(1)
            raise ZeroDivisionError

        async with opened(path) as store:
            with pytest.raises(JournalError, match="ZeroDivisionError"):
                await store.do(bug)
            assert await store.do(adds("a")) == "a"
        assert tries == [1]

    run(main())


def test_what_must_not_be_lost_is_tried_until_it_is_done(path: Path) -> None:
    async def main() -> None:
        tries = []

        def at_last(db: Connection) -> str:
            tries.append(1)
            if len(tries) < 5:
                raise JournalError("not yet", retryable=True)
            return str(adds("kept")(db))

        async with opened(path) as store:
            kept = store.do(at_last, keep=True)
            given_up = store.do(at_last, keep=True)
            assert await store.do(adds("meanwhile")) == "meanwhile"
            assert not kept.done()
            given_up.cancel()
            assert await kept == "kept"
        assert lines(path) == ["meanwhile", "kept"]

    run(main())


def test_what_can_never_be_done_fails_and_delays_nobody(path: Path) -> None:
    async def main() -> None:
        def never(db: Connection) -> None:
            db.execute("INSERT INTO lines VALUES (?)", ("\udce9",))

        async with opened(path) as store:
            kept = store.do(never, keep=True)
            assert await store.do(adds("a")) == "a"
            assert kept.done()
            with pytest.raises(JournalError, match="cannot be used: UnicodeEncode"):
                await kept

    run(main())


def test_closing_tries_it_once_more_and_then_tells(path: Path) -> None:
    async def main() -> None:
        def never(db: Connection) -> None:
            raise JournalError("never", retryable=True)

        store = Store(path, LINES, gather=no_more)
        await store.open()
        kept = store.do(never, keep=True)
        await store.do(adds("a"))
        last = store.do(adds("b"))
        await store.close()
        assert await last == "b"
        with pytest.raises(JournalError, match="never"):
            await kept
        late = store.do(adds("late"))
        with pytest.raises(JournalError, match="is closed"):
            await late
        await store.close()
        assert lines(path) == ["a", "b"]

    run(main())


def test_closing_does_what_was_asked_for(path: Path) -> None:
    async def main() -> None:
        store = Store(path, LINES, gather=no_more)
        await store.open()
        asked = [store.do(adds(str(number))) for number in range(5)]
        closings = [asyncio.create_task(store.close()) for _ in range(3)]
        await asyncio.gather(*closings)
        assert all(one.done() for one in asked)
        assert lines(path) == ["0", "1", "2", "3", "4"]

    run(main())


def test_what_is_cancelled_in_time_is_not_done(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as store:
            store.do(adds("nobody wants this")).cancel()
            assert await store.do(adds("a")) == "a"
            for _ in range(2):
                store.do(adds("nor this")).cancel()
                await asyncio.sleep(0.01)  # the thread is given nothing
            begun, go_on = threading.Event(), threading.Event()

            def slow(db: Connection) -> None:
                begun.set()
                go_on.wait(10)
                adds("too late")(db)

            late = store.do(slow)
            await asyncio.to_thread(begun.wait, 10)
            late.cancel()
            go_on.set()
            assert await store.do(adds("b")) == "b"
        assert lines(path) == ["a", "too late", "b"]

    run(main())


def test_a_full_database_says_so(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as store:
            await store.do(
                lambda db: db.execute("PRAGMA max_page_count = 3").fetchall()
            )
            with pytest.raises(JournalError, match="the disk is full") as caught:
                await store.do(adds("x" * 50_000))
            assert caught.value.retryable
            assert str(path) in str(caught.value)
            assert await store.do(adds("a")) == "a"
        assert lines(path) == ["a"]

    run(main())


# What is opened, and what is not.


def test_what_was_done_is_there_when_it_is_opened_again(path: Path) -> None:
    async def add(text: str) -> None:
        async with opened(path) as store:
            await store.do(adds(text))

    for text in "abc":
        run(add(text))
    assert lines(path) == ["a", "b", "c"]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="no such modes")
def test_only_its_owner_can_read_it(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as store:
            await store.do(adds("secret"))
            modes = {
                one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()
            }
            assert modes == {"lines.db": 0o600, "lines.db-wal": 0o600}

    before = os.umask(0)
    try:
        run(main())
    finally:
        os.umask(before)


def whole(path: Path) -> bytes:
    """Make a file with some lines; return its bytes."""

    async def main() -> None:
        async with opened(path) as store:
            for number in range(300):
                store.do(adds(f"{number} " + 100 * "x"))

    run(main())
    return path.read_bytes()


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _bad_header(data: bytes) -> bytes:
    return b"garbage, garbage" + data[16:]


def _bad_middle(data: bytes) -> bytes:
    return data[:8192] + bytes(range(256)) * 32 + data[16384:]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(lambda data: b"", "is empty, so no journal", id="0 bytes"),
        pytest.param(_half, "is damaged", id="half"),
        pytest.param(lambda data: data[:100], "is ", id="100 bytes"),
        pytest.param(lambda data: data[:-1000], "is damaged", id="a page cut"),
        pytest.param(_bad_header, "is damaged, or no journal", id="header"),
        pytest.param(_bad_middle, "is damaged", id="middle"),
        pytest.param(lambda data: b"email\na@b.co\n" * 99, "no journal", id="text"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(
    path: Path, damage: Any, why: str
) -> None:
    data = damage(whole(path))
    path.write_bytes(data)
    error = run(refusal(path))
    assert why in str(error)
    assert not error.retryable
    assert path.read_bytes() == data


def test_a_file_of_something_else_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE users (name TEXT)")
    data = path.read_bytes()
    assert "is not a list of lines" in str(run(refusal(path)))
    assert path.read_bytes() == data


@pytest.mark.parametrize(("made", "wanted"), [(BACKFILL, OUTBOX), (OUTBOX, BACKFILL)])
def test_an_outbox_is_no_backfill_and_the_other_way_round(
    path: Path, made: Format, wanted: Format
) -> None:
    async def main() -> None:
        async with opened(path, made):
            pass
        assert f"is not {wanted.name}" in str(await refusal(path, wanted))

    run(main())


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    async def main() -> None:
        async with opened(path, Format(LINES.name, LINES.application, 2, LINES.schema)):
            pass
        error = await refusal(path)
        assert "made by a newer loops-async, in format 2" in str(error)

    run(main())


def test_a_database_of_nothing_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    assert "is not" in str(run(refusal(path)))


def no_link(*_: object) -> None:
    """As where there are no links."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


def late_link(new: Path, to: Path, link: Any = os.link) -> None:
    """As if somebody else had just made it."""
    link(new, to)
    link(new, to)


@pytest.mark.parametrize("link", [no_link, late_link])
def test_a_file_is_made_without_links_or_by_somebody_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, link: Any
) -> None:
    monkeypatch.setattr(os, "link", link)

    async def main() -> None:
        async with opened(path) as store:
            await store.do(adds("a"))

    run(main())
    assert lines(path) == ["a"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_without_links_nobodys_file_is_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that was made since it was looked for."""
    made: list[int] = []

    def no_link_but_a_file(new: Path, to: Path) -> None:
        shutil.copy(new, to)
        made.append(to.stat().st_ino)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link_but_a_file)

    async def main() -> None:
        async with opened(path) as store:
            await store.do(adds("a"))

    run(main())
    assert lines(path) == ["a"]
    assert [path.stat().st_ino] == made


def test_those_who_open_a_file_at_once_are_one_owner_and_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds for a moment what the others need; somebody must win."""
    monkeypatch.setattr(_store, "_LOCKED_FOR", 0.4)

    async def main() -> None:
        for turn in "abc":
            stores = [Store(path, LINES, gather=no_more) for _ in range(4)]
            found = await asyncio.gather(
                *(store.open() for store in stores), return_exceptions=True
            )
            owners = [s for s, error in zip(stores, found, strict=True) if not error]
            assert len(owners) == 1
            assert all("in use" in str(error) for error in found if error)
            await owners[0].do(adds(turn))
            await owners[0].close()

    run(main())
    assert lines(path) == ["a", "b", "c"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_directory_or_what_is_in_none_cannot_be_opened(path: Path) -> None:
    path.mkdir()
    assert "cannot be opened" in str(run(refusal(path)))
    missing = path / "no" / "such.db"
    assert "No such file or directory" in str(run(refusal(missing)))
    assert list(path.iterdir()) == []


def test_a_file_has_one_owner_in_a_process(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as store:
            error = await refusal(path)
            assert "is in use by another process, or twice by this one" in str(error)
            assert error.retryable
            await store.do(adds("a"))
        async with opened(path):
            pass

    run(main())


def test_a_new_file_that_cannot_be_made_leaves_nothing_behind(path: Path) -> None:
    async def main() -> None:
        error = await refusal(path, Format("nonsense", 1, 1, ("CREATE NONSENSE",)))
        assert "syntax error" in str(error)
        assert list(path.parent.iterdir()) == []

    run(main())


def test_what_is_no_error_of_sqlite_leaves_nobody_waiting(path: Path) -> None:
    schema: Any = (42,)

    async def main() -> None:
        error = await refusal(path, Format("nonsense", 1, 1, schema))
        assert "TypeError" in str(error)
        assert list(path.parent.iterdir()) == []
        assert "embedded null" in str(await refusal(path / "no\0name"))

    run(main())


_AS_NOBODY = """
import asyncio, os, resource, sys
from pathlib import Path
from loops_async import JournalError
from loops_async._journal.journal import Journal

{before}
if hasattr(os, "setuid") and os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)

async def main():
    journal = Journal(Path({path!r}))
    try:
        await journal.open()
    except JournalError as error:
        print(error)
    else:
        await journal.close()
        print("opened")

asyncio.run(main())
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that nobody can enter, in the sense of the user."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield path
        path.chmod(0o777)


def as_nobody(path: Path, before: str = "") -> str:
    text = _AS_NOBODY.format(path=str(path), before=before)
    result = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert result.stderr == ""
    return result.stdout.strip()


unix_only = pytest.mark.skipif(sys.platform == "win32", reason="no such rights")


@unix_only
def test_a_file_that_cannot_be_written_is_refused(public: Path) -> None:
    path = public / "events.db"
    assert as_nobody(path) == "opened"
    path.chmod(0o400)
    why = f"{path} cannot be used: PermissionError: Permission denied"
    assert as_nobody(path) == why
    path.chmod(0o000)
    assert as_nobody(path) == why


def test_it_asks_before_it_opens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For SQLite would only tell of an I/O error."""
    whole(path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # else root may do all
    assert "PermissionError: Permission denied" in str(run(refusal(path)))


@unix_only
def test_a_directory_that_cannot_be_written_is_refused(public: Path) -> None:
    path = public / "events.db"
    public.chmod(0o555)
    assert as_nobody(path) == (
        f"{path} cannot be used: PermissionError: Permission denied"
    )
    public.chmod(0o777)
    assert as_nobody(path) == "opened"
    public.chmod(0o555)
    assert as_nobody(path).startswith(f"{path} cannot be ")
    assert [one.name for one in public.iterdir()] == ["events.db"]


@unix_only
@pytest.mark.parametrize("room", [0, 100, 5000, 12_000])
def test_a_disk_without_room_for_a_new_file_is_left_as_it_was(
    public: Path, room: int
) -> None:
    path = public / "events.db"
    said = as_nobody(
        path, f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    )
    assert said.startswith(f"{path} cannot ")
    assert list(public.iterdir()) == []
    assert as_nobody(path) == "opened"


# Leaving without a word.


def test_the_file_is_free_when_its_loop_ended_without_closing_it(path: Path) -> None:
    async def forgets() -> None:
        store = Store(path, LINES, gather=no_more)
        await store.open()
        await store.do(adds("a"))
        for text in "bc":
            store.do(adds(text))  # and is gone before they are done
            await asyncio.sleep(0)

    run(forgets())
    gc.collect()

    async def main() -> None:
        names = [thread.name for thread in threading.enumerate()]
        await until(lambda: f"journal {path.name}" not in names or gc.collect() >= 0)
        async with opened(path) as store:
            await store.do(adds("z"))

    run(main())
    first, *_, last = lines(path)
    assert (first, last) == ("a", "z")


def test_an_opening_that_is_cancelled_frees_the_file(path: Path) -> None:
    async def main() -> None:
        kept = []
        for _ in range(3):
            store = Store(path, LINES, gather=no_more)
            kept.append(store)
            opening = asyncio.create_task(store.open())
            await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            store._thread.join(10)
            assert not store._thread.is_alive()
        async with opened(path):
            pass

    run(main())


def test_an_opening_that_is_cancelled_and_fails_bothers_nobody(path: Path) -> None:
    path.mkdir()

    async def main() -> None:
        opening = asyncio.create_task(Store(path, LINES, gather=no_more).open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.sleep(0.05)

    run(main())


def test_the_end_of_the_interpreter_does_not_wait_for_it(path: Path) -> None:
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
