"""One outbox per worker: a family of files that are shared out, and adopted."""

import asyncio
import logging
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from support.answering import answer, hang, run_script, sandbox_beside, serving
from support.http_server import run
from support.outboxes import client_of, events, numbers, opened, rows, states, until

from loops_async import (
    JournalError,
    Outbox,
)
from loops_async._outbox import per_worker as _worker_outbox
from loops_async._outbox.per_worker import per_worker
from loops_async.sandbox import Sandbox

NOWHERE = "http://127.0.0.1:9/api"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@asynccontextmanager
async def worker(
    path: Path, url: str | Sandbox = NOWHERE, *, grace: float = 0.0, **settings: Any
) -> AsyncIterator[Outbox]:
    async with (
        client_of(url, **settings) as client,
        per_worker(path, client, grace=grace) as outbox,
    ):
        yield outbox


def name(outbox: Outbox) -> str:
    return outbox._path.name


async def leave(path: Path, count: int, first: int = 0) -> None:
    """Make a file with events that nobody has sent."""
    async with opened(path, NOWHERE, grace=0.0) as outbox:
        await outbox.put_many(events(first + count)[first:])


def adopters() -> list[str]:
    """Return the tasks that look after the files of others."""
    names = (task.get_name() for task in asyncio.all_tasks())
    return [one for one in names if one.startswith("outboxes beside")]


def test_each_takes_the_first_file_that_nobody_has(path: Path) -> None:
    async def main() -> None:
        first, second, third = (AsyncExitStack() for _ in range(3))
        taken = [
            name(await stack.enter_async_context(worker(path)))
            for stack in (first, second, third)
        ]
        assert taken == ["events.db", "events.1.db", "events.2.db"]
        await first.aclose()
        again = await first.enter_async_context(worker(path))
        assert name(again) == "events.db"
        await second.aclose()
        await third.aclose()
        again = await third.enter_async_context(worker(path))
        assert name(again) == "events.1.db"
        for stack in (first, second, third):
            await stack.aclose()

    run(main())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("events", "events.1"),
        ("my.events.sqlite3", "my.events.1.sqlite3"),
        (".events", ".events.1"),
    ],
)
def test_the_number_is_before_the_suffix(
    tmp_path: Path, first: str, second: str
) -> None:
    async def main() -> None:
        path = tmp_path / first
        async with worker(path) as one, worker(path) as other:
            assert (name(one), name(other)) == (first, second)

    run(main())


def test_what_the_worker_before_left_is_sent(path: Path) -> None:
    async def main() -> None:
        await leave(path, 3)
        async with Sandbox(rate_limit=None) as sandbox:
            async with worker(path, sandbox) as outbox:
                assert await outbox.flush(20) == 0
            assert sorted(numbers(sandbox)) == [0, 1, 2]

    run(main())


def test_what_another_worker_left_is_adopted(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_worker_outbox, "LOOK_EVERY", 0.01)
    left = path.with_name("events.1.db")

    async def main() -> None:
        await leave(left, 5)
        async with Sandbox(rate_limit=None) as sandbox:
            async with worker(path, sandbox):
                await until(lambda: len(sandbox.events) == 5)
                # It is let go, and another worker can have it.
                async with opened(left, NOWHERE) as outbox:
                    assert outbox.stats().pending == 0
            assert sorted(numbers(sandbox)) == [0, 1, 2, 3, 4]
        assert rows(left) == []

    with caplog.at_level(logging.WARNING, "loops_async"):
        run(main())
    told = f"sending what a worker has left: <Outbox {left}, 5 pending>"
    assert [line for line in caplog.text.splitlines() if line.endswith(told)] != []
    assert len(caplog.records) == 1


def test_what_is_no_orphan_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In use, damaged, something else, or empty; and it looks behind them."""
    monkeypatch.setattr(_worker_outbox, "LOOK_EVERY", 0.01)
    used, damaged, foreign, done, left = (
        path.with_name(f"events.{n}.db") for n in range(1, 6)
    )

    async def main() -> None:
        damaged.write_bytes(b"This is no database. " * 500)
        with closing(sqlite3.connect(foreign)) as db:
            db.execute("CREATE TABLE events (id INTEGER PRIMARY KEY)")
            db.commit()
        before = damaged.read_bytes(), foreign.read_bytes()
        await leave(done, 0)
        await leave(left, 2)
        async with Sandbox(rate_limit=None) as sandbox:
            async with opened(used, NOWHERE, grace=0.0) as outbox:
                await outbox.put_many(events(3))
                async with worker(path, sandbox):
                    await until(lambda: len(sandbox.events) == 2)
                    # Before the one it was at: it has to look a second time.
                    await leave(done, 1, first=2)
                    await until(lambda: len(sandbox.events) == 3)
                assert outbox.stats().pending == 3
            assert len(sandbox.events) == 3
        assert states(used) == ["pending"] * 3
        assert (damaged.read_bytes(), foreign.read_bytes()) == before
        assert rows(left) == []  # what was in the other may not be noted yet

    with caplog.at_level(logging.WARNING, "loops_async"):
        run(main())
    told = [one for one in caplog.messages if "a worker has left" in one]
    sending = [one for one in told if one.startswith("sending")]
    assert len(sending) == 2, told  # of neither the one in use nor the empty one
    for path_of in (damaged, foreign):
        (once,) = [one for one in told if f"{path_of} is " in one]
        assert once.startswith("what a worker has left cannot be sent: ")
    assert len(told) == 4, told  # each once, however often it looks


def test_a_file_behind_a_gap_is_found_and_another_is_no_file_of_the_family(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker_outbox, "LOOK_EVERY", 0.01)
    far, other = path.with_name("events.3.db"), path.with_name("events.old.db")

    async def main() -> None:
        await leave(other, 1)
        await leave(far, 1, first=1)
        async with Sandbox(rate_limit=None) as sandbox:
            async with worker(path, sandbox):
                await until(lambda: sandbox.events)
            assert numbers(sandbox) == [1]
        assert states(other) == ["pending"]

    run(main())


def test_more_files_in_use_than_there_can_be_workers_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker_outbox, "_MOST", 2)

    async def main() -> None:
        async with Sandbox() as sandbox, worker(path, sandbox), worker(path, sandbox):
            with pytest.raises(JournalError, match="and 1 more files are all in use"):
                await worker(path, sandbox).__aenter__()
        assert not path.with_name("events.2.db").exists()

    run(main())


def test_what_cannot_be_sent_yet_holds_up_no_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker_outbox, "LOOK_EVERY", 0.01)
    left = path.with_name("events.1.db")

    async def main() -> None:
        await leave(left, 3)
        async with serving(hang) as loops:
            async with worker(path, loops.url):
                await until(lambda: loops.under_way)
                assert adopters() == [f"outboxes beside {path}"]
            assert adopters() == []
        assert states(left) == ["pending"] * 3

    run(main())


def test_an_adopted_file_is_let_go_when_its_time_is_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one whose events cannot be sent does not keep others waiting."""
    monkeypatch.setattr(_worker_outbox, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(_worker_outbox, "_LONG", 0.05)
    stuck, left = path.with_name("events.1.db"), path.with_name("events.2.db")

    async def main() -> None:
        await leave(stuck, 1)
        await leave(left, 1, first=1)
        async with serving(hang) as loops, worker(path, loops.url, timeout=0.3):
            await until(lambda: len({key for _, key in loops.arrivals}) == 2)
        assert (states(stuck), states(left)) == (["pending"], ["pending"])

    run(main())


@pytest.mark.parametrize("taken", [False, True])
def test_a_damaged_file_of_its_own_is_an_error(path: Path, taken: bool) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            own = path
            if taken:
                await stack.enter_async_context(worker(path))
                own = path.with_name("events.1.db")
            own.write_bytes(b"This is no database. " * 500)
            with pytest.raises(JournalError, match="is damaged, or no journal") as got:
                await stack.enter_async_context(worker(path))
            assert str(own) in str(got.value)
            assert not got.value.in_use
            assert not path.with_name("events.2.db").exists()

    run(main())


def test_grace_is_how_long_it_goes_on_sending(path: Path) -> None:
    async def main() -> None:
        async with serving(hang) as loops, worker(path, loops.url) as outbox:
            await outbox.put_many(events(3))
            await until(lambda: loops.under_way)
        assert states(path) == ["pending"] * 3
        async with Sandbox(rate_limit=None, latency=0.05) as sandbox:
            async with worker(path, sandbox, grace=20.0):
                assert sandbox.events == []
            assert sorted(numbers(sandbox)) == [0, 1, 2]
        assert rows(path) == []

    run(main())


@pytest.mark.parametrize("taken", [False, True])
def test_cancelled_while_opening_it_holds_nothing(path: Path, taken: bool) -> None:
    dice = random.Random(4)

    async def enter_and_leave() -> None:
        async with worker(path):
            pass

    async def main() -> None:
        async with AsyncExitStack() as stack:
            own = path
            if taken:
                await stack.enter_async_context(worker(path))
                own = path.with_name("events.1.db")
            cancelled = 0
            while cancelled < 12:
                opening = asyncio.create_task(enter_and_leave())
                await asyncio.sleep(dice.choice((0.0, 0.001, 0.003, 0.01)))
                cancelled += opening.cancel()
                with suppress(asyncio.CancelledError):
                    await opening
                async with opened(own, NOWHERE) as outbox:
                    assert outbox.stats().pending == 0
            assert len(adopters()) == taken

    run(main())


def test_closed_while_it_adopts_it_holds_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker_outbox, "LOOK_EVERY", 0.0)
    left, count = path.with_name("events.1.db"), 12
    dice = random.Random(5)

    async def main() -> None:
        async with serving(answer(503)) as loops:
            await leave(left, count)
            for _ in range(count):
                async with worker(path, loops.url, timeout=0.01):
                    await asyncio.sleep(dice.choice((0.0, 0.002, 0.01, 0.03)))
                assert adopters() == []
                async with opened(left, NOWHERE, grace=0.0) as outbox:
                    assert outbox.stats().pending == count
        assert states(left) == ["pending"] * count

    run(main())


def test_many_at_once_in_one_loop_share_no_file(path: Path) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, AsyncExitStack() as stack:
            outboxes = await asyncio.gather(
                *[
                    stack.enter_async_context(worker(path, sandbox, grace=20.0))
                    for _ in range(6)
                ]
            )
            assert len({name(outbox) for outbox in outboxes}) == 6
            for outbox, event in zip(outboxes, events(6), strict=True):
                await outbox.put(event)
            await until(lambda: len(sandbox.events) == 6)
            assert sorted(numbers(sandbox)) == list(range(6))

    run(main())


_WORKERS = """
import asyncio, math, multiprocessing, sys
from pathlib import Path
from loops_async import AsyncLoopsClient, Event
from loops_async._outbox.per_worker import per_worker

def work(number, path, barrier, told):
    async def main():
        async with AsyncLoopsClient(rate_limit=math.inf) as client:
            barrier.wait(60)
            async with per_worker(path, client, grace=20.0) as outbox:
                email, properties = f"w{number}@b.co", {"number": number}
                await outbox.put(
                    Event("signup", email=email, event_properties=properties)
                )
                told.put(outbox._path.name)
                await asyncio.to_thread(barrier.wait, 60)  # until all have theirs
    asyncio.run(main())

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    barrier, told = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=work, args=(number, path, barrier, told))
        for number in range(count)
    ]
    for one in workers:
        one.start()
    print(*sorted(told.get(timeout=60) for _ in workers))
    for one in workers:
        one.join()
        assert one.exitcode == 0, one.exitcode
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_processes_that_start_at_one_moment_share_no_file(path: Path) -> None:
    script = f"import sys; sys.argv[1:] = [{str(path)!r}, '8']\n{_WORKERS}"
    with sandbox_beside() as sandbox:
        code, out, err = run_script(script, sandbox, "-W", "error")
        assert (code, err) == (0, "")
        assert len(set(out.split())) == 8
        assert sorted(numbers(sandbox)) == list(range(8))
    for taken in out.split():
        assert rows(path.with_name(taken)) == []
