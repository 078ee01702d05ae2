"""The outbox: what was put is durable, and sent in the background."""

import asyncio
import gc
import math
import os
import sqlite3
import statistics
import sys
import warnings
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.answering import bound, run_script, sandbox_beside, url_of
from support.http_server import Connection, Server, answers, reply, run
from support.outboxes import (
    client_of,
    events,
    numbers,
    opened,
    rows,
    states,
    until,
    verdict,
)

from loops_async import (
    AsyncLoopsClient,
    ClientClosedError,
    ConfigurationError,
    Event,
    InvalidEventError,
    JournalError,
    Outbox,
    RecipientNotAllowedError,
)
from loops_async._journal import database as _store
from loops_async._journal.journal import Failure, Journal
from loops_async._outbox import outbox as _outbox
from loops_async._outbox import session as _open_outbox
from loops_async.sandbox import Sandbox

_STRICT = ("-X", "dev", "-W", "error")
NOWHERE = "http://127.0.0.1:9/api"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setattr(_open_outbox, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(_open_outbox, "_LONGEST_PAUSE", 0.04)
    monkeypatch.setattr(_store, "_AGAIN", 0.01)


def sandbox_of(**settings: Any) -> Sandbox:
    return Sandbox(rate_limit=None, **settings)


def waiting(path: Path, **settings: Any) -> Any:
    """An outbox before a Loops that is not there, so that all stays pending."""
    return opened(path, NOWHERE, grace=0.0, **settings)


async def refused(outbox: Outbox) -> list[Failure]:
    return [failure async for failure in outbox.failures()]


# What is put is sent.


def test_what_is_put_is_sent_and_gone(path: Path) -> None:
    async def main() -> None:
        async with sandbox_of() as sandbox:
            async with opened(path, sandbox) as outbox:
                assert repr(outbox) == f"<Outbox {path}, 0 pending>"
                assert await outbox.flush() == 0
                for event in events(10):
                    await outbox.put(event)
                await outbox.put_many(events(5))
                await outbox.put_many([])
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.accepted, stats.pending, stats.duplicates) == (15, 0, 0)
                assert stats.paused is None
            assert repr(outbox) == f"<Outbox {path}, closed>"
            assert sorted(numbers(sandbox)) == sorted([*range(10), *range(5)])
        assert rows(path) == []

    run(main())


@pytest.mark.parametrize("keep", [0.0, None])
def test_what_is_put_after_a_backlog_is_sent_too(
    path: Path, keep: float | None
) -> None:
    """Though the places of what was sent are free again."""

    async def main() -> None:
        async with waiting(path) as outbox:
            await outbox.put_many(events(20))
        async with sandbox_of() as sandbox:
            async with opened(path, sandbox, keep_accepted=keep) as outbox:
                assert await outbox.flush() == 0
                await outbox.put_many(events(25))
                assert await outbox.flush() == 0
            assert len(sandbox.events) == 45

    run(main())


def test_each_contact_gets_its_events_in_the_order_of_the_puts(path: Path) -> None:
    async def main() -> None:
        faults = {"500-before": 0.1, "close-after": 0.1, "429": 0.1}
        async with sandbox_of(faults=faults, seed=3) as sandbox:
            async with opened(path, sandbox) as outbox:
                for event in events(200, contacts=7):
                    await outbox.put(event)
                await outbox.flush()
            for contact in range(7):
                expected = list(range(contact, 200, 7))
                assert numbers(sandbox, f"u{contact}@b.co") == expected

    run(main())


def test_the_same_object_is_opened_in_one_loop_after_the_other(path: Path) -> None:
    client = client_of("http://127.0.0.1:9/api")
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


def test_it_is_opened_again_after_a_loop_that_ended_around_it(path: Path) -> None:
    client = client_of("http://127.0.0.1:9/api")
    outbox = Outbox(path, client)

    async def forgets_to_close(event: Event) -> None:
        await outbox.__aenter__()
        await outbox.put(event)

    async def elsewhere() -> None:
        with pytest.raises(JournalError, match="in another event loop"):
            await outbox.put(events(1)[0])
        assert outbox.stats().pending == 2

    for event in events(2):
        run(forgets_to_close(event))
    run(elsewhere())
    run(outbox.aclose())
    run(client.aclose())
    assert states(path) == ["pending"] * 2


def test_in_another_live_loop_it_is_refused(path: Path) -> None:
    async def main() -> None:
        async with waiting(path) as outbox:

            async def elsewhere() -> None:
                with pytest.raises(JournalError, match="in another event loop"):
                    await outbox.put(events(1)[0])
                with pytest.raises(JournalError, match="in another event loop"):
                    await outbox.aclose()
                with pytest.raises(ConfigurationError, match="is open already"):
                    await outbox.__aenter__()

            await asyncio.to_thread(run, elsewhere())
            await outbox.put(events(1)[0])
        assert states(path) == ["pending"]

    run(main())


def test_a_path_is_what_it_was_when_the_outbox_was_made(
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


def test_an_open_outbox_is_not_opened_again(path: Path) -> None:
    async def main() -> None:
        async with waiting(path) as outbox:
            with pytest.raises(ConfigurationError, match="is open already") as caught:
                await outbox.__aenter__()
            assert str(path) in str(caught.value)

    run(main())


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
def test_a_setting_that_cannot_work_is_refused(
    path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Outbox(path, AsyncLoopsClient("key", dry_run=True), **settings)


# Putting.


def test_an_event_put_twice_is_stored_once(path: Path) -> None:
    async def main() -> None:
        (event,) = events(1)
        async with waiting(path) as outbox:
            await outbox.put(event)
            await asyncio.gather(*[outbox.put(event) for _ in range(5)])
            await outbox.put_many([event, event])
            assert outbox.stats().pending == 1
        assert states(path) == ["pending"]

    run(main())


def test_a_key_that_stands_for_another_event_harms_nobody_else(path: Path) -> None:
    async def main() -> None:
        first, *others = events(6)
        other = first.replace(email="eve@b.co", idempotency_key=first.idempotency_key)
        async with waiting(path) as outbox:
            await outbox.put(first)
            with pytest.raises(InvalidEventError, match="idempotency_key") as caught:
                await outbox.put(other)
            assert caught.value.idempotency_key == first.idempotency_key
            # All in one commit.
            outcomes = await asyncio.gather(
                outbox.put(others[0]),
                outbox.put(other),
                outbox.put_many([others[1], other, others[2]]),
                outbox.put_many(others[3:]),
                return_exceptions=True,
            )
            kinds = [type(outcome) for outcome in outcomes]
            assert kinds == [type(None), InvalidEventError] * 1 + [
                InvalidEventError,
                type(None),
            ]
            assert outbox.stats().pending == 4
        kept = [first, others[0], *others[3:]]
        assert [row["key"] for row in rows(path)] == [e.idempotency_key for e in kept]

    run(main())


def test_a_put_that_is_cancelled_is_stored_at_most_once_and_counted(
    path: Path,
) -> None:
    async def main() -> None:
        async with waiting(path) as outbox:
            given = events(60)
            puts = [asyncio.create_task(outbox.put(event)) for event in given]
            for turn, put in enumerate(puts):
                put.cancel()
                if turn % 3 == 0:
                    await asyncio.sleep(0)
            await asyncio.wait(puts)
            await asyncio.gather(*map(outbox.put, given[:20]))
            await outbox.flush(0.01)
            counted = outbox.stats().pending
        keys = [row["key"] for row in rows(path)]
        assert len(keys) == len(set(keys)) == counted >= 20

    run(main())


def test_a_full_outbox_makes_puts_wait_and_drops_nothing(path: Path) -> None:
    async def main() -> None:
        most = 0
        async with sandbox_of(latency=0.002) as sandbox:
            async with opened(path, sandbox, capacity=5) as outbox:
                puts = asyncio.gather(*map(outbox.put, events(60)))
                while not puts.done():
                    most = max(most, outbox.stats().pending)
                    await asyncio.sleep(0.001)
                await outbox.put_many(events(5))
                with pytest.raises(ValueError, match="6 events at once are more"):
                    await outbox.put_many(events(6))
                assert await outbox.flush() == 0
            assert sorted(numbers(sandbox)) == sorted([*range(60), *range(5)])
        assert most == 5

    run(main())


def test_who_waits_for_room_is_let_in_in_turn(path: Path) -> None:
    async def main() -> None:
        later: list[str] = []

        async def put(outbox: Outbox, name: str, batch: list[Event]) -> None:
            await outbox.put_many(batch)
            later.append(name)

        async with sandbox_of() as sandbox:
            async with opened(path, sandbox, capacity=5) as outbox:
                sandbox.down()
                await outbox.put_many(events(3))
                names = ["gives up", "many", "one", "another"]
                sizes = [4, 5, 1, 1]
                tasks = [
                    asyncio.create_task(put(outbox, name, events(size)))
                    for name, size in zip(names, sizes, strict=True)
                ]
                await asyncio.sleep(0.02)
                assert later == []  # there is room for one, but many were first
                tasks[0].cancel()
                await asyncio.sleep(0)
                assert len(outbox._open._line) == 3
                sandbox.down(False)
                await asyncio.gather(*tasks, return_exceptions=True)
                assert tasks[0].cancelled()
                assert await outbox.flush() == 0
            assert later == ["many", "one", "another"]
            assert len(sandbox.events) == 10

    run(main())


def test_who_gives_up_with_room_in_sight_leaves_it_to_the_next(path: Path) -> None:
    async def main() -> None:
        async with waiting(path, capacity=2) as outbox:
            await outbox.put_many(events(2))
            gone = asyncio.create_task(outbox.put(events(1)[0]))
            first = asyncio.create_task(outbox.put(events(1)[0]))
            second = asyncio.create_task(outbox.put(events(1)[0]))
            await asyncio.sleep(0)
            gone.cancel()
            outbox._open._ended(None, "accepted")
            first.cancel()  # in the moment in which it was let in
            with pytest.raises(asyncio.CancelledError):
                await first
            await second
            outbox._open._counts["pending"] += 1

    run(main())


def test_a_stuck_contact_holds_up_no_other(path: Path) -> None:
    async def refuses_x(connection: Connection) -> None:
        while (request := await connection.request()) is not None:
            stuck = request.json()["email"] == "x@b.co"
            await connection.send(reply(500) if stuck else reply())

    async def main() -> None:
        async with (
            Server(refuses_x) as server,
            opened(path, server.url, capacity=10_500, grace=0.0) as outbox,
        ):
            await outbox.put_many([Event("e", email="x@b.co") for _ in range(10_499)])
            await server.arrived()
            await outbox.put(Event("e", email="y@b.co"))
            await until(lambda: outbox.stats().accepted)
            assert outbox.stats().pending == 10_499

    run(main())


def test_puts_that_fail_or_add_nothing_make_room_for_those_that_wait(
    path: Path,
) -> None:
    async def main() -> None:
        first, second, third = events(3)
        other = first.replace(email="eve@b.co", idempotency_key=first.idempotency_key)
        async with waiting(path, capacity=2) as outbox:
            await outbox.put(first)
            same = asyncio.create_task(outbox.put(first))
            fails = asyncio.create_task(outbox.put(other))
            await asyncio.sleep(0)
            await asyncio.wait_for(outbox.put(second), 5)
            await same
            with pytest.raises(InvalidEventError):
                await fails
            late = asyncio.create_task(outbox.put(third))
            await asyncio.sleep(0.05)
            assert not late.done()
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            assert outbox.stats().pending == 2

    run(main())


def test_flush_is_not_left_waiting_by_a_put_that_adds_nothing(path: Path) -> None:
    async def main() -> None:
        (event,) = events(1)
        async with (
            sandbox_of() as sandbox,
            opened(path, sandbox, keep_accepted=None) as outbox,
        ):
            await outbox.put(event)
            await outbox.flush()
            again = asyncio.create_task(outbox.put(event))
            await asyncio.sleep(0)
            assert await asyncio.wait_for(outbox.flush(), 5) == 0
            await again

    run(main())


def test_who_waits_when_it_is_closed_is_told(path: Path) -> None:
    async def main() -> None:
        first, second, third = events(3)
        async with client_of(NOWHERE) as client:
            outbox = await Outbox(path, client, capacity=1).__aenter__()
            await outbox.put(first)
            put = asyncio.create_task(outbox.put(second))
            gives_up = asyncio.create_task(outbox.put(third))
            flush = asyncio.create_task(outbox.flush())
            await asyncio.sleep(0.01)
            gives_up.cancel()
            await outbox.aclose(0)
            with pytest.raises(ClientClosedError, match="before there was room"):
                await asyncio.wait_for(put, 5)
            assert await asyncio.wait_for(flush, 5) == 1
        assert states(path) == ["pending"]

    run(main())


def nothing_in(directory: Path) -> None:
    assert list(directory.iterdir()) == []


def test_an_outbox_that_is_not_open_says_so(path: Path) -> None:
    async def main() -> None:
        (event,) = events(1)
        async with client_of(NOWHERE) as client:
            outbox = Outbox(path, client)

            async def all_fail() -> None:
                calls: list[Any] = [
                    lambda: outbox.put(event),
                    lambda: outbox.put_many([event]),
                    outbox.flush,
                    lambda: refused(outbox),
                    outbox.retry,
                    lambda: outbox.forget([]),
                ]
                for call in calls:
                    with pytest.raises(ClientClosedError, match="is not open"):
                        await call()
                with pytest.raises(ClientClosedError, match="is not open"):
                    outbox.stats()

            await all_fail()
            await asyncio.to_thread(nothing_in, path.parent)
            async with outbox:
                pass
            await all_fail()

    run(main())


@pytest.mark.parametrize("wrong", ["signup", None, {"event_name": "e"}, Event])
def test_only_events_can_be_put(path: Path, wrong: Any) -> None:
    async def main() -> None:
        async with waiting(path) as outbox:
            kind = type(wrong).__name__
            with pytest.raises(TypeError, match=f"event must be an Event, not {kind}"):
                await outbox.put(wrong)
            with pytest.raises(TypeError, match=r"events\[1\] must be an Event"):
                await outbox.put_many([*events(1), wrong])
            assert outbox.stats().pending == 0

    run(main())


def test_recipients_are_checked_when_put_and_when_sent(path: Path) -> None:
    async def main() -> None:
        allowed = ("u1@b.co",)
        eve, ada = events(2)
        async with waiting(path) as outbox:  # of a client that may write to all
            await outbox.put_many([eve, ada])
        async with sandbox_of() as sandbox:
            async with opened(path, sandbox, allowed_recipients=allowed) as outbox:
                assert await outbox.flush() == 0
                with pytest.raises(RecipientNotAllowedError):
                    await outbox.put_many([ada.again(), eve.again()])
                (failure,) = await refused(outbox)
                assert failure.idempotency_key == eve.idempotency_key
                assert failure.error.startswith("RecipientNotAllowedError: ")
                assert failure.state == "rejected"
            assert numbers(sandbox) == [1]

    run(main())


# Loops is down, the key is refused, the address is wrong.


def test_puts_go_on_while_loops_is_down(path: Path) -> None:
    async def main() -> None:
        async with sandbox_of() as sandbox:
            sandbox.down()
            async with opened(path, sandbox) as outbox:
                for event in events(100, contacts=10):
                    await outbox.put(event)
                await until(lambda: outbox.stats().retrying)
                await until(lambda: outbox._client.stats.outage)
                assert await outbox.flush(0.05) == 100
                sandbox.down(False)
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.accepted, stats.duplicates) == (100, 0)
            assert Counter(numbers(sandbox)) == Counter(range(100))
            for contact in range(10):
                assert numbers(sandbox, f"u{contact}@b.co") == [
                    *range(contact, 100, 10)
                ]

    run(main())


def test_puts_go_on_while_nobody_listens(path: Path) -> None:
    async def main() -> None:
        with closing(bound()) as sock:
            port = int(url_of(sock).split(":")[2].removesuffix("/api"))
            url = url_of(sock)
            async with client_of(url) as client, Outbox(path, client) as outbox:
                await outbox.put_many(events(50))
                await until(lambda: client.stats.outage)
                sock.close()
                async with Sandbox(rate_limit=None, port=port, api_key="the-key") as up:
                    assert await outbox.flush() == 0
                    assert outbox.stats().duplicates == 0
                assert sorted(numbers(up)) == [*range(50)]

    run(main())


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("settings", [{"keep_accepted": None}, {}])
def test_a_refused_key_pauses_the_sending_until_it_works(
    path: Path, settings: dict[str, Any]
) -> None:
    async def main() -> None:
        async with sandbox_of(api_key="new") as sandbox:
            async with opened(path, sandbox, api_key="old", **settings) as outbox:
                await outbox.put_many(events(20, contacts=5))
                await until(lambda: outbox.stats().paused)
                await until(lambda: sandbox.counts.requests > 20)
                stats = outbox.stats()
                assert stats.paused is not None
                assert "401" in stats.paused
                assert "old" not in stats.paused
                assert (stats.pending, stats.rejected) == (20, 0)
                sandbox.api_key = "old"
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert stats.paused is None
                assert (stats.accepted, stats.rejected, stats.duplicates) == (20, 0, 0)
            assert sorted(numbers(sandbox)) == [*range(20)]

    run(main())


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["down", "key refused"])
def test_a_minute_in_which_nothing_can_be_sent(
    path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 events are put every 0.1 s, before it, meanwhile and after it."""

    async def put(outbox: Outbox, seconds: float, given: list[Event]) -> float:
        """Return the median milliseconds that 20 puts took."""
        loop = asyncio.get_running_loop()
        end, took = loop.time() + seconds, []
        while (began := loop.time()) < end:
            batch = [Event("e", email=f"u{n}@b.co") for n in range(20)]
            await asyncio.gather(*map(outbox.put, batch))
            given.extend(batch)
            took.append(loop.time() - began)
            await asyncio.sleep(began + 0.1 - loop.time())
        return statistics.median(took) * 1000

    async def main() -> str:
        given: list[Event] = []
        async with sandbox_of(api_key="key") as sandbox:
            async with opened(path, sandbox, api_key="key") as outbox:
                before = await put(outbox, 5.0, given)
                if how == "down":
                    sandbox.down()
                else:
                    sandbox.api_key = "another"
                meanwhile = await put(outbox, 60.0, given)
                assert outbox.stats().pending > 10_000
                assert (outbox.stats().paused is None) == (how == "down")
                sandbox.down(False)
                sandbox.api_key = "key"
                await put(outbox, 5.0, given)
                began = asyncio.get_running_loop().time()
                assert await outbox.flush() == 0
                took = asyncio.get_running_loop().time() - began
            sent = [(one.email, one.idempotency_key) for one in sandbox.events]
        assert len(sent) == len(given)
        for contact in {one.email for one in given}:
            keys = [key for email, key in sent if email == contact]
            assert keys == [
                one.idempotency_key for one in given if one.email == contact
            ]
        return (
            f"{how} for 60 s: {len(given):,} events put, all sent {took:.0f} s after "
            f"it; 20 puts took {before:.1f} ms before it, {meanwhile:.1f} ms meanwhile"
        )

    figures = run(main(), limit=230.0)
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")


@pytest.mark.usefixtures("hasty")
def test_a_key_that_rotates_is_asked_for_until_it_works(path: Path) -> None:
    async def main() -> None:
        keys = ["first"]

        async def key() -> str:
            return keys[-1]

        async with sandbox_of(api_key="first") as sandbox:
            async with opened(path, sandbox, api_key=key) as outbox:
                await outbox.put_many(events(5))
                await outbox.flush()
                sandbox.api_key = "second"
                await outbox.put_many(events(5))
                await until(lambda: outbox.stats().paused)
                keys.append("second")
                assert await outbox.flush() == 0
                assert outbox.stats().rejected == 0
            assert len(sandbox.events) == 10

    run(main())


@pytest.mark.parametrize("key", ["wrong", lambda: "wrong"])
def test_each_attempt_is_counted_once(
    path: Path, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_open_outbox, "_FIRST_PAUSE", 60.0)  # one try, not another

    async def main() -> None:
        async with (
            sandbox_of() as sandbox,
            opened(path, sandbox, api_key=key, grace=0.0) as outbox,
        ):
            await outbox.put(events(1)[0])
            await until(lambda: outbox.stats().paused)
        assert [row["attempts"] for row in rows(path)] == [sandbox.counts.requests]

    run(main())


@pytest.mark.usefixtures("hasty")
def test_a_wrong_address_pauses_the_sending_until_it_is_right(path: Path) -> None:
    async def main() -> None:
        async def script(connection: Connection) -> None:
            while await connection.request() is not None:
                right = len(connection.server.requests) > 3
                await connection.send(reply(200 if right else 404))

        async with Server(script) as server, opened(path, server.url) as outbox:
            (event,) = events(1)
            await outbox.put(event)
            await until(lambda: outbox.stats().paused)
            assert "404" in str(outbox.stats().paused)
            assert await outbox.flush() == 0
            assert outbox.stats().accepted == 1

    run(main())


@pytest.mark.usefixtures("hasty")
def test_nothing_that_goes_wrong_ends_the_sending(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        pending = Journal.pending

        def broken(*_: object) -> Any:
            raise ZeroDivisionError("by a bug")

        monkeypatch.setattr(Journal, "pending", broken)
        async with sandbox_of() as sandbox, opened(path, sandbox) as outbox:
            await outbox.put_many(events(2))
            await until(lambda: outbox.stats().paused)
            assert outbox.stats().paused == "ZeroDivisionError: by a bug"
            monkeypatch.setattr(Journal, "pending", pending)
            assert await outbox.flush() == 0
            assert outbox.stats().paused is None

    run(main())


def test_a_closed_client_pauses_the_sending(path: Path) -> None:
    async def main() -> None:
        async with (
            sandbox_of() as sandbox,
            client_of(sandbox) as client,
            Outbox(path, client) as outbox,
        ):
            await client.aclose()
            await outbox.put_many(events(3))
            await until(lambda: outbox.stats().paused)
            assert outbox.stats().paused == "the client is closed"
            await outbox.aclose(0)
        assert states(path) == ["pending"] * 3

    run(main())


# What Loops refuses.

_BAD = '{"success":false,"message":"no such list"}'


async def refuse_odd_ones(connection: Connection) -> None:
    while (request := await connection.request()) is not None:
        odd = request.json()["eventProperties"]["number"] % 2
        await connection.send(reply(400, _BAD) if odd else reply())


def test_what_loops_refuses_is_kept_and_holds_up_nobody(path: Path) -> None:
    async def main() -> None:
        given = events(10, contacts=1)
        odd = given[1::2]
        async with Server(refuse_odd_ones) as server:
            async with opened(path, server.url) as outbox:
                await outbox.put_many(given)
                assert await outbox.flush() == 0
                assert [r.json() for r in server.requests] == [
                    {
                        "eventName": "signup",
                        "email": "u0@b.co",
                        "eventProperties": {"number": number},
                    }
                    for number in range(10)
                ]
                before = outbox.stats()
                assert (before.accepted, before.rejected, before.pending) == (5, 5, 0)
            # The same after it was opened again.
            async with opened(path, server.url) as outbox:
                stats = outbox.stats()
                assert (stats.accepted, stats.rejected, stats.pending) == (0, 5, 0)
                failures = await refused(outbox)
                keys = [failure.idempotency_key for failure in failures]
                assert keys == [event.idempotency_key for event in odd]
                for failure, number in zip(failures, range(1, 10, 2), strict=True):
                    assert failure.state == "rejected"
                    assert failure.body["eventProperties"] == {"number": number}
                    assert "no such list" in failure.error
                    assert "BadRequestError" in failure.error
                    assert failure.attempts == 1
                assert len(server.requests) == 10

                assert await outbox.forget(keys[:2]) == 2
                assert await outbox.forget(["no such key", keys[0]]) == 0
                assert outbox.stats().rejected == 3
                server.script = answers(reply())
                assert await outbox.retry([keys[2], keys[2], "no such key"]) == 1
                assert await outbox.flush() == 0
                assert outbox.stats().rejected == 2
                assert await outbox.retry() == 2
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.accepted, stats.rejected) == (3, 0)
                later = server.requests[10:]
                sent = [
                    request.json()["eventProperties"]["number"] for request in later
                ]
                assert sent == [5, 7, 9]
                new = {request.headers["idempotency-key"] for request in later}
                assert len(new) == 3
                assert not new & set(keys)

    run(main())


def test_what_a_server_says_in_no_utf_8_is_kept_readable(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = reply(400, "<html>", kind="text/html; charset=été").replace(
        "é".encode(), b"\xe9"
    )

    async def main() -> None:
        async with (
            Server(answers(odd)) as server,
            opened(path, server.url) as outbox,
        ):
            await outbox.put(events(1)[0])
            assert await outbox.flush() == 0
            (failure,) = await refused(outbox)
            assert "charset=\\udce9t\\udce9" in failure.error

    run(main())
    assert caplog.messages == ["outbox: an event is rejected; failures() says why"]


def test_many_failures_are_listed_page_by_page(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_outbox, "_PAGE", 7)

    async def main() -> None:
        async with (
            Server(answers(reply(400, _BAD))) as server,
            opened(path, server.url) as outbox,
        ):
            given = events(30)
            await outbox.put_many(given)
            await outbox.flush()
            keys = [failure.idempotency_key for failure in await refused(outbox)]
            assert sorted(keys) == sorted(event.idempotency_key for event in given)

    run(main())


def test_a_rejected_event_that_is_put_again_is_sent_again(path: Path) -> None:
    async def main() -> None:
        (event,) = events(1)
        async with (
            Server(answers(reply(400, _BAD), reply())) as server,
            opened(path, server.url) as outbox,
        ):
            await outbox.put(event)
            await outbox.flush()
            assert outbox.stats().rejected == 1
            await outbox.put(event)
            stats = outbox.stats()
            assert (stats.pending, stats.rejected) == (1, 0)
            assert await outbox.flush() == 0
            stats = outbox.stats()
            assert (stats.accepted, stats.pending, stats.rejected) == (1, 0, 0)
        assert rows(path) == []

    run(main())


def test_what_nobody_knows_is_kept_and_retried_under_its_key(path: Path) -> None:
    async def main() -> None:
        given = events(3, contacts=1)
        async with sandbox_of() as sandbox:
            sandbox.script("close-after")
            async with opened(path, sandbox, grace=0, timeout=None) as outbox:
                await outbox.put(given[0])
                await until(lambda: sandbox.counts.accepted)
                await outbox.flush()
            # Again, but its answer is lost and the process dies; a day passes.
            async with waiting(path) as outbox:
                await outbox.put_many(given[1:])
            age_stamps(path, given[1].idempotency_key)
            async with opened(path, sandbox) as outbox:
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.unknown, stats.accepted, stats.rejected) == (1, 1, 0)
                (failure,) = await refused(outbox)
                assert failure.state == "unknown"
                assert failure.error.startswith("ForgottenKeyError: ")
                await outbox.put(given[1])  # is nothing new
                assert outbox.stats().pending == 0
                assert await outbox.retry() == 0  # of the rejected, there are none
                assert await outbox.retry([given[1].idempotency_key]) == 1
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.unknown, stats.accepted) == (0, 2)
            assert numbers(sandbox) == [0, 2, 1]
            keys = [one.idempotency_key for one in sandbox.events]
            assert set(keys) == {event.idempotency_key for event in given}

    run(main())


def age_stamps(path: Path, key: str) -> None:
    """Let an attempt of that event have been made long ago."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE events SET ambiguous_since = 1 WHERE key = ?", (key,))
        db.commit()


# Closing and opening again.


def test_closing_goes_on_sending_for_the_grace(path: Path) -> None:
    async def main() -> None:
        async with sandbox_of(latency=0.01) as sandbox:
            async with opened(path, sandbox, grace=60) as outbox:
                await outbox.put_many(events(30, contacts=3))
            assert len(sandbox.events) == 30
        assert rows(path) == []

    run(main())


def test_what_is_under_way_when_it_closes_is_sent_again_under_its_key(
    path: Path,
) -> None:
    async def main() -> None:
        given = events(20, contacts=10)
        async with sandbox_of() as sandbox:
            sandbox.script(*["hang-after"] * 10)
            async with opened(path, sandbox, grace=0) as outbox:
                await outbox.put_many(given)
                await until(lambda: sandbox.counts.accepted == 10)
            assert states(path) == ["pending"] * 20
        taken = sandbox.counts.accepted
        async with opened(path, NOWHERE, grace=0) as outbox:
            assert outbox.stats().pending == 20
        sandbox_again = sandbox
        async with sandbox_again, opened(path, sandbox_again) as outbox:
            assert await outbox.flush() == 0
            stats = outbox.stats()
            assert stats.duplicates == taken == 10
            assert stats.accepted == 10
        assert Counter(numbers(sandbox)) == Counter(range(20))

    run(main())


def test_a_retry_or_a_closing_that_is_cancelled_leaves_the_books_right(
    path: Path,
) -> None:
    says = [reply(400, _BAD)]

    async def as_told(connection: Connection) -> None:
        while await connection.request() is not None:
            if not says:
                await connection.until_closed()
                return
            await connection.send(says[0])

    async def cancelled(task: asyncio.Task[Any], turns: int) -> None:
        for _ in range(2):
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main() -> None:
        async with Server(as_told) as server, client_of(server.url) as client:
            outbox = await Outbox(path, client).__aenter__()
            await outbox.put(events(1)[0])
            await outbox.flush()
            says[:] = [reply()]
            await cancelled(asyncio.create_task(outbox.retry()), 1)
            await until(lambda: outbox.stats().accepted)
            assert await outbox.flush() == 0
            assert (outbox.stats().pending, outbox.stats().rejected) == (0, 0)
            says.clear()
            await outbox.put(events(1)[0])
            await server.arrived(3)
            await cancelled(asyncio.create_task(outbox.aclose()), 2)
            async with Outbox(path, client) as again:
                assert again.stats().pending == 1
                await again.aclose(0.0)

    run(main())


def test_closing_that_is_cancelled_lets_the_file_go_all_the_same(path: Path) -> None:
    async def main() -> None:
        async with client_of(NOWHERE) as client:
            outbox = await Outbox(path, client).__aenter__()
            await outbox.put_many(events(2))
            closing = asyncio.create_task(outbox.aclose(60))
            await asyncio.sleep(0.01)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            async with Outbox(path, client) as again:
                assert again.stats().pending == 2
                await again.aclose(0)
            assert not [t for t in asyncio.all_tasks() if "outbox" in t.get_name()]

    run(main())


def test_opening_that_is_cancelled_lets_the_file_go(path: Path) -> None:
    async def main() -> None:
        async with client_of(NOWHERE) as client:
            for turns in range(5):
                outbox = Outbox(path, client)
                opening = asyncio.create_task(outbox.__aenter__())
                for _ in range(turns):
                    await asyncio.sleep(0)
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await opening
                async with outbox:
                    assert outbox.stats().pending == 0

    run(main())


def test_flush_tells_what_is_left(path: Path) -> None:
    async def main() -> None:
        async with waiting(path) as outbox:
            await outbox.put_many(events(7))
            assert await outbox.flush(0) == 7
            assert await outbox.flush(0.01) == 7

    run(main())


def test_accepted_events_are_kept_for_as_long_as_is_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_open_outbox, "_PURGE_EVERY", 0.0)

    async def main() -> None:
        old, new, *others = events(4)
        async with sandbox_of() as sandbox:
            async with opened(path, sandbox, keep_accepted=100.0) as outbox:
                await outbox.put(old)
                await outbox.flush()
                await outbox.put(old)  # its key is still recognised
                assert outbox.stats().pending == 0
            assert states(path) == ["accepted"]
            with closing(sqlite3.connect(path)) as db:
                db.execute("UPDATE events SET at = at - 101")
                db.commit()
            async with opened(path, sandbox, keep_accepted=100) as outbox:
                await outbox.put(new)
                await outbox.flush()
            assert [row["key"] for row in rows(path)] == [new.idempotency_key]
            async with opened(path, sandbox, keep_accepted=None) as outbox:
                await outbox.put_many(others)
                await outbox.flush()
            assert states(path) == ["accepted"] * 3
            assert len(sandbox.events) == 4

    run(main())


def test_accepted_events_are_purged_now_and_then_only(path: Path) -> None:
    async def main() -> None:
        async with (
            sandbox_of() as sandbox,
            opened(path, sandbox, keep_accepted=1e-9) as outbox,
        ):
            await outbox.put_many(events(3))
            await outbox.flush()
            first = len(await journal_keys(outbox))
            await outbox.put_many(events(2))
            await outbox.flush()
        assert len(states(path)) == first + 2

    run(main())


async def journal_keys(outbox: Outbox) -> list[str]:
    assert outbox._open is not None
    query = "SELECT key FROM events"
    return await outbox._open.journal.do(lambda db: db.execute(query).fetchall())


def test_a_dry_run_stores_and_sends_nothing(path: Path) -> None:
    async def main() -> None:
        async with AsyncLoopsClient(dry_run=True) as client:
            async with Outbox(path, client) as outbox:
                await outbox.put_many(events(3))
                assert await outbox.flush() == 0
                assert outbox.stats().accepted == 3
            assert rows(path) == []
            async with waiting(path) as outbox:
                await outbox.put_many(events(2))
            with pytest.raises(ConfigurationError, match="2 events to send") as caught:
                await Outbox(path, client).__aenter__()
            assert str(path) in str(caught.value)
        assert states(path) == ["pending"] * 2

    run(main())


# Two owners, forks, and outboxes that nobody closes.


def test_a_file_has_one_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "_LOCKED_FOR", 0.01)

    async def main() -> None:
        async with waiting(path) as outbox, client_of(NOWHERE) as client:
            await outbox.put_many(events(1))
            with pytest.raises(JournalError, match="is in use") as caught:
                await Outbox(path, client).__aenter__()
            assert str(path) in str(caught.value)
            assert caught.value.retryable
            await outbox.put_many(events(1))
        assert states(path) == ["pending"] * 2

    run(main())


_OTHER = """
import asyncio, sys
from loops_async import (
    AsyncLoopsClient,
    JournalError,
    Outbox,
)
from loops_async._journal import database as _store
_store._LOCKED_FOR = 0.01

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    async with AsyncLoopsClient() as client:
        try:
            await Outbox({path!r}, client).__aenter__()
        except JournalError as error:
            print(error)

asyncio.run(main())
"""


def test_another_process_is_told_that_the_file_is_in_use(path: Path) -> None:
    with sandbox_beside() as sandbox:

        async def main() -> tuple[int, str, str]:
            async with waiting(path):
                text = _OTHER.format(path=str(path))
                return await asyncio.to_thread(run_script, text, sandbox, *_STRICT)

        code, out, err = run(main())
    assert (code, err) == (0, "")
    assert out.startswith(f"{path} is in use by another process")


_FORKED = """
import asyncio, gc, math, os, selectors, sys
from loops_async import AsyncLoopsClient, Event, JournalError, Outbox

def event(n):
    return Event("e", email=f"u{{n}}@b.co", event_properties={{"number": n}})

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    client = AsyncLoopsClient(rate_limit=math.inf)
    async with Outbox({path!r}, client) as outbox:
        await outbox.put_many([event(n) for n in range(20)])
        await outbox.flush()
        for fork in range(2):
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                {child}
            while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
                await asyncio.sleep(0.002)
            assert os.waitstatus_to_exitcode(ended[1]) == 3, ended
            await outbox.put_many([event(n) for n in range(20)])
            assert await outbox.flush(20) == 0
        assert outbox.stats().accepted == 60
    await client.aclose()

# Not by epoll, whose set a child shares: asyncio takes its own wake-up out of it
# when the child closes the loop, and then no thread can wake the parent.
def make_loop():
    return asyncio.SelectorEventLoop(selectors.SelectSelector())

with asyncio.Runner(loop_factory=make_loop) as runner:
    runner.run(main())
print("parent done")
"""
_REFUSED_THEN_EXIT = """
                try:
                    await outbox.put(event(0))
                except JournalError as error:
                    assert "was forked" in str(error), error
                    sys.exit(3)
"""
_CLOSED_THEN_EXIT = """
                await outbox.aclose()
                del outbox
                gc.collect()
                sys.exit(3)
"""
_DROPPED_THEN_EXIT = """
                del outbox
                gc.collect()
                sys.exit(3)
"""
_JUST_EXIT = """
                sys.exit(3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    "child",
    [
        pytest.param(_REFUSED_THEN_EXIT, id="puts"),
        pytest.param(_CLOSED_THEN_EXIT, id="closes"),
        pytest.param(_DROPPED_THEN_EXIT, id="drops"),
        pytest.param(_JUST_EXIT, id="exits"),
    ],
)
def test_a_forked_child_leaves_the_parents_file_alone(path: Path, child: str) -> None:
    script = _FORKED.format(path=str(path), child=child)
    options = _STRICT
    if sys.version_info >= (3, 12):  # of any fork beside threads, the point here
        options = (*_STRICT, "-W", "ignore:This process:DeprecationWarning")
    with sandbox_beside() as sandbox:
        code, out, err = run_script(script, sandbox, *options)
    assert err == ""
    assert (code, out.strip()) == (0, "parent done")
    assert sandbox.counts.accepted == 60
    assert sandbox.counts.duplicates == 0
    assert verdict(path) == "ok"


def test_of_an_outbox_that_belongs_to_another_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with waiting(path) as outbox:
            opened = outbox._open
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(os, "getpid", lambda: -1)
                with pytest.raises(JournalError, match="was forked") as caught:
                    await outbox.put_many(events(1))
                assert str(path) in str(caught.value)
                with pytest.raises(JournalError, match="was forked"):
                    await outbox.__aenter__()
                await outbox.aclose()  # which is not its business
                outbox._open = opened
                outbox.__del__()  # nor does it warn
            await outbox.put_many(events(1))
        assert states(path) == ["pending"]

    run(main())


def test_an_outbox_that_nobody_closed_warns_and_frees_its_file(path: Path) -> None:
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

    async def again() -> None:
        async with waiting(path) as outbox:
            assert outbox.stats().pending == 2

    run(again())


_UNCLOSED = """
import asyncio
from loops_async import AsyncLoopsClient, Event, Outbox

holder = []

async def main():
    holder.append(Outbox({path!r}, AsyncLoopsClient()))
    await holder[0].__aenter__()
    await holder[0].put(Event("e", email="ada@b.co"))

asyncio.run(main())
print("done")
"""


def test_the_interpreter_exits_although_the_outbox_was_not_closed(path: Path) -> None:
    with sandbox_beside(latency=60) as sandbox:
        code, out, err = run_script(_UNCLOSED.format(path=str(path)), sandbox)
    assert (code, out.strip(), err) == (0, "done", "")
    assert states(path) == ["pending"]
    assert verdict(path) == "ok"


# The disk is full.

_FULL = """
import asyncio, math, os, resource, sys
from loops_async import AsyncLoopsClient, Event, JournalError, Outbox
from loops_async._http.transport import AiohttpTransport
from loops_async._journal import database as _store
from loops_async._outbox import session as _open_outbox
from loops_async.sandbox import Sandbox

_open_outbox._FIRST_PAUSE = _store._AGAIN = 0.01
_open_outbox._LONGEST_PAUSE = 0.02
path = {path!r}
exchange = AiohttpTransport.exchange
is_full = asyncio.Event()

async def answered_when_full(*args):
    answer = await exchange(*args)
    await is_full.wait()
    return answer

# So that of each contact exactly one event has left when the disk is full.
AiohttpTransport.exchange = answered_when_full

def event(n, contact):
    return Event("e", email=f"u{{contact}}@b.co", event_properties={{"number": n}})

async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    async with (
        Sandbox(rate_limit=None) as sandbox,
        AsyncLoopsClient(sandbox.api_key, base_url=sandbox.url, rate_limit=math.inf)
        as client,
        Outbox(path, client) as outbox,
    ):
        await outbox.put_many([event(n, n % 10) for n in range(30)])
        await until(lambda: sandbox.counts.accepted == 10)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Neither the journal nor anything else can grow from here on.
        full = os.stat(path + "-wal").st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
        failed = 0
        for n in range(5):
            try:
                await outbox.put(event(100 + n, n))
            except JournalError as error:
                failed += 1
                assert error.retryable
                text = str(error)
        assert failed == 5
        is_full.set()
        await until(lambda: outbox.stats().paused)
        assert path in outbox.stats().paused
        await asyncio.sleep(0.3)  # many tries, and nothing is sent
        assert sandbox.counts.requests == 10, sandbox
        assert outbox.stats().pending == 30
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await outbox.put(event(200, 0))
        assert await outbox.flush(20) == 0
        stats = outbox.stats()
        assert (stats.accepted, stats.duplicates, stats.paused) == (31, 0, None), stats
        assert sandbox.counts.requests == 31, sandbox
        numbers = [one.event_properties["number"] for one in sandbox.events]
        assert sorted(numbers) == [*range(30), 200]
        for contact in range(10):
            own = [n for n in numbers if n % 10 == contact]
            assert own == sorted(own)
    print(text)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_a_full_disk_loses_nothing_and_sends_nothing_twice(path: Path) -> None:
    with sandbox_beside() as unused:
        code, out, err = run_script(_FULL.format(path=str(path)), unused, *_STRICT)
    shown = [line for line in err.splitlines() if "outbox:" not in line]
    assert [line for line in shown if "sending stopped" not in line] == []
    assert code == 0
    assert out.startswith(f"{path} cannot ")
    assert verdict(path) == "ok"
    assert rows(path) == []


def test_stats_are_what_they_say() -> None:
    fields = [field.name for field in attrs.fields(_open_outbox.OutboxStats)]
    assert fields == [
        "pending",
        "retrying",
        "rejected",
        "unknown",
        "accepted",
        "duplicates",
        "paused",
    ]
