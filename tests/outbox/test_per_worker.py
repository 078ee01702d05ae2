"""One outbox for each worker: a shared family of files, and orphans among them."""

import asyncio
import logging
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.clients import HasURL, client_of
from support.http_server import hang, respond, serving
from support.outboxes import (
    NOWHERE,
    events,
    numbers,
    offline,
    opened,
    rows,
    states,
)
from support.sandbox_process import run_script, sandbox_in_thread
from support.waiting import run, until

from loops_async import JournalError, Outbox
from loops_async._outbox.per_worker import per_worker
from loops_async.sandbox import Sandbox

NOT_A_DATABASE = b"This is not a database. " * 500


@asynccontextmanager
async def worker(
    path: Path,
    server: str | HasURL = NOWHERE,
    *,
    grace: float = 0.0,
    scan_interval: float = 3600.0,
    **settings: Any,
) -> AsyncIterator[Outbox]:
    """Open the outbox of a worker; by default it does not search for orphans."""
    async with (
        client_of(server) as client,
        per_worker(
            path, client, grace=grace, scan_interval=scan_interval, **settings
        ) as outbox,
    ):
        yield outbox


scanning = partial(worker, scan_interval=0.01)


def name(outbox: Outbox) -> str:
    return outbox._path.name


async def leave_events(path: Path, count: int, first: int = 0) -> None:
    """Make a file with pending events and without an owner."""
    async with offline(path) as outbox:
        await outbox.put_many(events(first + count)[first:])


def recoveries() -> list[str]:
    """Return the names of the tasks that send the events of orphans."""
    names = (task.get_name() for task in asyncio.all_tasks())
    return [name for name in names if name.startswith("outboxes beside")]


# The file of a worker.


def test_each_worker_opens_the_first_file_that_is_not_in_use(path: Path) -> None:
    async def main() -> None:
        first, second, third = (AsyncExitStack() for _ in range(3))
        names = [
            name(await stack.enter_async_context(worker(path)))
            for stack in (first, second, third)
        ]
        assert names == ["events.db", "events.1.db", "events.2.db"]
        await first.aclose()
        reopened = await first.enter_async_context(worker(path))
        assert name(reopened) == "events.db"
        await second.aclose()
        await third.aclose()
        reopened = await third.enter_async_context(worker(path))
        assert name(reopened) == "events.1.db"
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
def test_the_number_of_a_file_stands_before_its_suffix(
    tmp_path: Path, first: str, second: str
) -> None:
    async def main() -> None:
        path = tmp_path / first
        async with worker(path) as one, worker(path) as other:
            assert (name(one), name(other)) == (first, second)

    run(main())


def test_a_worker_sends_the_events_that_are_in_its_file(path: Path) -> None:
    async def main() -> None:
        await leave_events(path, 3)
        async with Sandbox(rate_limit=None) as sandbox:
            async with worker(path, sandbox) as outbox:
                assert await outbox.flush() == 0
            assert sorted(numbers(sandbox)) == [0, 1, 2]

    run(main())


def test_a_worker_fails_if_all_files_are_in_use(path: Path) -> None:
    async def main() -> None:
        async with worker(path), worker(path):
            with pytest.raises(JournalError, match="and 1 more files are all in use"):
                await worker(path, max_files=2).__aenter__()
        assert not path.with_name("events.2.db").exists()

    run(main())


@pytest.mark.parametrize("in_use", [False, True])
def test_a_worker_fails_if_the_first_file_that_is_not_in_use_is_damaged(
    path: Path, in_use: bool
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            own = path
            if in_use:
                await stack.enter_async_context(worker(path))
                own = path.with_name("events.1.db")
            own.write_bytes(NOT_A_DATABASE)
            with pytest.raises(JournalError, match="is damaged or is not") as caught:
                await stack.enter_async_context(worker(path))
            assert str(own) in str(caught.value)
            assert not caught.value.in_use
            assert not path.with_name("events.2.db").exists()

    run(main())


def test_a_worker_continues_to_send_for_the_grace_period(path: Path) -> None:
    async def main() -> None:
        async with serving(hang) as server, worker(path, server) as outbox:
            await outbox.put_many(events(3))
            await until(lambda: server.in_flight)
        assert states(path) == ["pending"] * 3
        async with Sandbox(rate_limit=None, latency=0.05) as sandbox:
            async with worker(path, sandbox, grace=60.0):
                assert sandbox.events == []
            assert sorted(numbers(sandbox)) == [0, 1, 2]
        assert rows(path) == []

    run(main())


@pytest.mark.parametrize("in_use", [False, True])
def test_a_worker_that_is_cancelled_while_it_opens_holds_no_file(
    path: Path, in_use: bool
) -> None:
    dice = random.Random(4)

    async def open_and_close() -> None:
        async with worker(path):
            pass

    async def main() -> None:
        async with AsyncExitStack() as stack:
            own = path
            if in_use:
                await stack.enter_async_context(worker(path))
                own = path.with_name("events.1.db")
            cancelled = 0
            while cancelled < 12:
                opening = asyncio.create_task(open_and_close())
                await asyncio.sleep(dice.choice((0.0, 0.001, 0.003, 0.01)))
                cancelled += opening.cancel()
                with suppress(asyncio.CancelledError):
                    await opening
                async with offline(own) as outbox:
                    assert outbox.stats().pending == 0
            assert len(recoveries()) == in_use

    run(main())


# Orphans.


def test_the_events_that_another_worker_left_are_sent(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = path.with_name("events.1.db")

    async def main() -> None:
        await leave_events(left, 5)
        async with Sandbox(rate_limit=None) as sandbox:
            async with scanning(path, sandbox):
                await until(lambda: len(sandbox.events) == 5)
                # The file is released, and another worker can open it.
                async with offline(left) as outbox:
                    assert outbox.stats().pending == 0
            assert sorted(numbers(sandbox)) == [0, 1, 2, 3, 4]
        assert rows(left) == []

    with caplog.at_level(logging.WARNING, "loops_async"):
        run(main())
    text = f"sending the 5 events that a worker left in {left}"
    assert caplog.messages == [text]


def test_files_that_are_not_orphans_are_left_alone_and_do_not_stop_the_search(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    used, damaged, foreign, sent, left = (
        path.with_name(f"events.{n}.db") for n in range(1, 6)
    )

    async def main() -> None:
        damaged.write_bytes(NOT_A_DATABASE)
        with closing(sqlite3.connect(foreign)) as db:
            db.execute("CREATE TABLE events (id INTEGER PRIMARY KEY)")
            db.commit()
        before = damaged.read_bytes(), foreign.read_bytes()
        await leave_events(sent, 0)
        await leave_events(left, 2)
        async with Sandbox(rate_limit=None) as sandbox:
            async with opened(used, NOWHERE, grace=0.0) as outbox:
                await outbox.put_many(events(3))
                async with scanning(path, sandbox):
                    await until(lambda: len(sandbox.events) == 2)
                    # This file comes before the last one in the search.
                    await leave_events(sent, 1, first=2)
                    await until(lambda: len(sandbox.events) == 3)
                assert outbox.stats().pending == 3
            assert len(sandbox.events) == 3
        assert states(used) == ["pending"] * 3
        assert (damaged.read_bytes(), foreign.read_bytes()) == before
        assert rows(left) == []  # the outcome in the other may not be recorded yet

    with caplog.at_level(logging.WARNING, "loops_async"):
        run(main())
    messages = [one for one in caplog.messages if "that a worker left" in one]
    assert sum(one.startswith("sending the ") for one in messages) == 2
    for file in (damaged, foreign):
        (message,) = [one for one in messages if f"{file} is " in one]
        assert message.startswith("cannot send the events that a worker left: ")
    assert len(messages) == 4, messages


def test_the_search_finds_files_behind_a_gap_and_ignores_other_names(
    path: Path,
) -> None:
    far, other = path.with_name("events.3.db"), path.with_name("events.old.db")

    async def main() -> None:
        await leave_events(other, 1)
        await leave_events(far, 1, first=1)
        async with Sandbox(rate_limit=None) as sandbox:
            async with scanning(path, sandbox):
                await until(lambda: sandbox.events)
            assert numbers(sandbox) == [1]
        assert states(other) == ["pending"]

    run(main())


def test_an_orphan_that_cannot_be_sent_does_not_delay_the_closing(
    path: Path,
) -> None:
    left = path.with_name("events.1.db")

    async def main() -> None:
        await leave_events(left, 3)
        async with serving(hang) as server:
            async with scanning(path, server):
                await until(lambda: server.in_flight)
                assert recoveries() == [f"outboxes beside {path}"]
            assert recoveries() == []
        assert states(left) == ["pending"] * 3

    run(main())


def test_an_orphan_that_cannot_be_sent_does_not_delay_other_orphans_for_ever(
    path: Path,
) -> None:
    stuck, left = path.with_name("events.1.db"), path.with_name("events.2.db")

    async def main() -> None:
        await leave_events(stuck, 1)
        await leave_events(left, 1, first=1)
        async with (
            serving(hang) as server,
            scanning(path, server, orphan_timeout=0.05),
        ):
            await until(lambda: len(set(server.keys)) == 2)
        assert (states(stuck), states(left)) == (["pending"], ["pending"])

    run(main())


def test_a_worker_that_closes_while_it_sends_an_orphan_holds_no_file(
    path: Path,
) -> None:
    left, count = path.with_name("events.1.db"), 12
    dice = random.Random(5)

    async def main() -> None:
        async with serving(respond(503)) as server:
            await leave_events(left, count)
            for _ in range(count):
                async with worker(path, server, scan_interval=0.0):
                    await asyncio.sleep(dice.choice((0.0, 0.002, 0.01, 0.03)))
                assert recoveries() == []
                async with offline(left) as outbox:
                    assert outbox.stats().pending == count
        assert states(left) == ["pending"] * count

    run(main())


# Several workers.


def test_workers_that_open_at_one_moment_in_one_event_loop_share_no_file(
    path: Path,
) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, AsyncExitStack() as stack:
            outboxes = await asyncio.gather(
                *[
                    stack.enter_async_context(worker(path, sandbox, grace=60.0))
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

def work(number, path, barrier, names):
    async def main():
        async with AsyncLoopsClient(rate_limit=math.inf) as client:
            barrier.wait(60)
            async with per_worker(path, client, grace=60.0) as outbox:
                email, properties = f"w{number}@b.co", {"number": number}
                await outbox.put(
                    Event("signup", email=email, event_properties=properties)
                )
                names.put(outbox._path.name)
                await asyncio.to_thread(barrier.wait, 60)  # until all are open
    asyncio.run(main())

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    barrier, names = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=work, args=(number, path, barrier, names))
        for number in range(count)
    ]
    for one in workers:
        one.start()
    print(*sorted(names.get(timeout=60) for _ in workers))
    for one in workers:
        one.join()
        assert one.exitcode == 0, one.exitcode
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_worker_processes_that_start_at_one_moment_share_no_file(path: Path) -> None:
    script = f"import sys; sys.argv[1:] = [{str(path)!r}, '8']\n{_WORKERS}"
    with sandbox_in_thread() as sandbox:
        code, out, err = run_script(script, sandbox, "-W", "error")
        assert (code, err) == (0, "")
        assert len(set(out.split())) == 8
        assert sorted(numbers(sandbox)) == list(range(8))
    for file in out.split():
        assert rows(path.with_name(file)) == []
