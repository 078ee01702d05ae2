"""Opening, closing and reopening an outbox, in one event loop or several."""

import asyncio
import gc
import math
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.clients import client_of
from support.http_server import Server, hangs
from support.outboxes import (
    FAST,
    NOWHERE,
    events,
    numbers,
    offline,
    opened,
    rows,
    states,
)
from support.waiting import run, until

from loops_async import (
    AsyncLoopsClient,
    ClientClosedError,
    ConfigurationError,
    Event,
    JournalError,
    Outbox,
)
from loops_async.sandbox import Sandbox


def assert_empty(folder: Path) -> None:
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"capacity": 0},
        {"capacity": 1.5},
        {"capacity": True},
        {"keep_accepted": -1},
        {"keep_accepted": "day"},
        {"keep_accepted": math.nan},
    ],
)
def test_an_invalid_setting_is_refused(path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Outbox(path, AsyncLoopsClient("key", dry_run=True), **settings)


def test_a_relative_path_does_not_follow_the_working_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.chdir(path.parent)
        async with client_of(NOWHERE) as client:
            outbox = Outbox(path.name, client)
            monkeypatch.chdir("/")
            async with outbox:
                await outbox.put(events(1)[0])
                await outbox.aclose(0.0)
        assert states(path) == ["pending"]

    run(main())


def test_an_outbox_that_is_not_open_raises_an_error_and_creates_no_file(
    path: Path,
) -> None:
    async def main() -> None:
        (event,) = events(1)
        async with client_of(NOWHERE) as client:
            outbox = Outbox(path, client)

            async def all_fail() -> None:
                async def list_failures() -> None:
                    async for _ in outbox.failures():
                        raise AssertionError

                calls: list[Callable[[], Any]] = [
                    lambda: outbox.put(event),
                    lambda: outbox.put_many([event]),
                    outbox.flush,
                    list_failures,
                    outbox.retry,
                    lambda: outbox.forget([]),
                ]
                for call in calls:
                    with pytest.raises(ClientClosedError, match="is not open"):
                        await call()
                with pytest.raises(ClientClosedError, match="is not open"):
                    outbox.stats()

            await all_fail()
            await asyncio.to_thread(assert_empty, path.parent)
            async with outbox:
                pass
            await all_fail()

    run(main())


def test_an_open_outbox_cannot_be_opened_again(path: Path) -> None:
    async def main() -> None:
        async with offline(path) as outbox:
            with pytest.raises(ConfigurationError, match="is already open") as caught:
                await outbox.__aenter__()
            assert str(path) in str(caught.value)

    run(main())


# Event loops.


def test_an_outbox_can_be_opened_in_one_event_loop_after_another(path: Path) -> None:
    client = client_of(NOWHERE)
    outbox = Outbox(path, client)

    async def put(event: Event) -> None:
        async with outbox:
            await outbox.put(event)
            await outbox.aclose(0)
            await outbox.aclose(0)

    for event in events(3):
        run(put(event))
    run(client.aclose())
    assert states(path) == ["pending"] * 3


def test_an_outbox_whose_event_loop_ended_can_be_opened_and_closed(
    path: Path,
) -> None:
    client = client_of(NOWHERE)
    outbox = Outbox(path, client)

    async def put_and_do_not_close(event: Event) -> None:
        await outbox.__aenter__()
        await outbox.put(event)

    async def elsewhere() -> None:
        with pytest.raises(JournalError, match="in another event loop"):
            await outbox.put(events(1)[0])
        assert outbox.stats().pending == 2

    for event in events(2):
        run(put_and_do_not_close(event))
    run(elsewhere())
    run(outbox.aclose())
    run(client.aclose())
    assert states(path) == ["pending"] * 2


def test_an_outbox_is_refused_in_another_event_loop_while_its_own_runs(
    path: Path,
) -> None:
    async def main() -> None:
        async with offline(path) as outbox:

            async def elsewhere() -> None:
                with pytest.raises(JournalError, match="in another event loop"):
                    await outbox.put(events(1)[0])
                with pytest.raises(JournalError, match="in another event loop"):
                    await outbox.aclose()
                with pytest.raises(ConfigurationError, match="is already open"):
                    await outbox.__aenter__()

            await asyncio.to_thread(run, elsewhere())
            await outbox.put(events(1)[0])
        assert states(path) == ["pending"]

    run(main())


# Closing.


def test_closing_continues_to_send_for_the_grace_period(path: Path) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None, latency=0.01) as sandbox:
            async with opened(path, sandbox, grace=60) as outbox:
                await outbox.put_many(events(30, contacts=3))
            assert len(sandbox.events) == 30
        assert rows(path) == []

    run(main())


def test_an_event_that_is_in_flight_at_the_closing_is_sent_again_with_its_key(
    path: Path,
) -> None:
    async def main() -> None:
        batch = events(20, contacts=10)
        async with Sandbox(rate_limit=None) as sandbox:
            sandbox.script(*["hang-after"] * 10)
            async with opened(path, sandbox, grace=0) as outbox:
                await outbox.put_many(batch)
                await until(lambda: sandbox.counts.accepted == 10)
            assert states(path) == ["pending"] * 20
        async with offline(path) as outbox:
            assert outbox.stats().pending == 20
        reopened = sandbox
        async with reopened, opened(path, reopened) as outbox:
            assert await outbox.flush() == 0
            stats = outbox.stats()
            assert (stats.accepted, stats.duplicates) == (10, 10)
        assert Counter(numbers(sandbox)) == Counter(range(20))

    run(main())


def test_a_closing_that_is_cancelled_during_the_grace_period_releases_the_file(
    path: Path,
) -> None:
    async def main() -> None:
        async with Server(hangs) as server, client_of(server) as client:
            outbox = await Outbox(path, client).__aenter__()
            await outbox.put_many(events(2))
            closing = asyncio.create_task(outbox.aclose(3600))
            await server.arrived(2)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            async with Outbox(path, client, _timing=FAST) as reopened:
                assert reopened.stats().pending == 2
                await reopened.aclose(0)
            tasks = [task.get_name() for task in asyncio.all_tasks()]
            assert not [name for name in tasks if "outbox" in name]

    run(main())


def test_a_closing_that_is_cancelled_twice_releases_the_file(path: Path) -> None:
    async def main() -> None:
        async with Server(hangs) as server, client_of(server) as client:
            outbox = await Outbox(path, client).__aenter__()
            await outbox.put(events(1)[0])
            await server.arrived()
            closing = asyncio.create_task(outbox.aclose())
            for _ in range(2):
                for _ in range(2):
                    await asyncio.sleep(0)
                closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            async with Outbox(path, client, _timing=FAST) as reopened:
                assert reopened.stats().pending == 1
                await reopened.aclose(0.0)

    run(main())


def test_an_opening_that_is_cancelled_releases_the_file(path: Path) -> None:
    async def main() -> None:
        async with client_of(NOWHERE) as client:
            for turns in range(5):
                outbox = Outbox(path, client, _timing=FAST)
                opening = asyncio.create_task(outbox.__aenter__())
                for _ in range(turns):
                    await asyncio.sleep(0)
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await opening
                async with outbox:
                    assert outbox.stats().pending == 0

    run(main())


def test_an_outbox_that_was_not_closed_warns_and_releases_its_file(
    path: Path,
) -> None:
    async def main() -> None:
        client = client_of(NOWHERE)
        outbox = await Outbox(path, client).__aenter__()
        await outbox.put_many(events(2))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            del outbox
            gc.collect()
        (warning,) = [w for w in caught if "outbox" in str(w.message)]
        assert warning.category is ResourceWarning
        assert str(path) in str(warning.message)
        await client.aclose()

    run(main())
    gc.collect()

    async def reopen() -> None:
        async with offline(path) as outbox:
            assert outbox.stats().pending == 2

    run(reopen())
