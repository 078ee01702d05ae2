"""Putting events: each is stored once, and none exceeds the capacity."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.clients import client_of
from support.http_server import Connection, Server, reply
from support.outboxes import NOWHERE, events, numbers, offline, opened, rows, states
from support.waiting import run, until

from loops_async import (
    ClientClosedError,
    Event,
    InvalidEventError,
    Outbox,
    RecipientNotAllowedError,
)
from loops_async.sandbox import Sandbox


def waiting_puts(outbox: Outbox) -> int:
    assert outbox._session is not None
    return outbox._session.capacity.waiting


def test_an_event_that_is_put_twice_is_stored_once(path: Path) -> None:
    async def main() -> None:
        (event,) = events(1)
        async with offline(path) as outbox:
            await outbox.put(event)
            await asyncio.gather(*[outbox.put(event) for _ in range(5)])
            await outbox.put_many([event, event])
            assert outbox.stats().pending == 1
        assert states(path) == ["pending"]

    run(main())


def test_a_put_with_the_key_of_another_event_fails_and_no_other_put_does(
    path: Path,
) -> None:
    async def main() -> None:
        first, *others = events(6)
        conflicting = first.replace(
            email="eve@b.co", idempotency_key=first.idempotency_key
        )
        async with offline(path) as outbox:
            await outbox.put(first)
            with pytest.raises(InvalidEventError, match="idempotency_key") as caught:
                await outbox.put(conflicting)
            assert caught.value.idempotency_key == first.idempotency_key
            outcomes = await asyncio.gather(  # one commit
                outbox.put(others[0]),
                outbox.put(conflicting),
                outbox.put_many([others[1], conflicting, others[2]]),
                outbox.put_many(others[3:]),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [
                type(None),
                InvalidEventError,
                InvalidEventError,
                type(None),
            ]
            assert outbox.stats().pending == 4
        stored = [first, others[0], *others[3:]]
        assert [row["key"] for row in rows(path)] == [e.idempotency_key for e in stored]

    run(main())


def test_a_put_that_is_cancelled_stores_the_event_at_most_once(path: Path) -> None:
    async def main() -> None:
        async with offline(path) as outbox:
            batch = events(60)
            puts = [asyncio.create_task(outbox.put(event)) for event in batch]
            for number, put in enumerate(puts):
                put.cancel()
                if number % 3 == 0:
                    await asyncio.sleep(0)
            await asyncio.wait(puts)
            await asyncio.gather(*map(outbox.put, batch[:20]))
            await outbox.flush(0.01)
            pending = outbox.stats().pending
        keys = [row["key"] for row in rows(path)]
        assert len(keys) == len(set(keys)) == pending >= 20

    run(main())


@pytest.mark.parametrize("wrong", ["signup", None, {"event_name": "e"}, Event])
def test_a_put_of_something_else_than_an_event_raises_type_error(
    path: Path, wrong: Any
) -> None:
    async def main() -> None:
        async with offline(path) as outbox:
            kind = type(wrong).__name__
            with pytest.raises(TypeError, match=f"event must be an Event, not {kind}"):
                await outbox.put(wrong)
            with pytest.raises(TypeError, match=r"events\[1\] must be an Event"):
                await outbox.put_many([*events(1), wrong])
            assert outbox.stats().pending == 0

    run(main())


def test_the_allow_list_is_checked_when_an_event_is_put_and_when_it_is_sent(
    path: Path,
) -> None:
    async def main() -> None:
        allowed = ("u1@b.co",)
        eve, ada = events(2)
        async with offline(path) as outbox:  # a client without an allow-list
            await outbox.put_many([eve, ada])
        async with Sandbox(rate_limit=None) as sandbox:
            async with opened(path, sandbox, allowed_recipients=allowed) as outbox:
                assert await outbox.flush() == 0
                with pytest.raises(RecipientNotAllowedError):
                    await outbox.put_many([ada.again(), eve.again()])
                (failure,) = [failure async for failure in outbox.failures()]
                assert failure.idempotency_key == eve.idempotency_key
                assert failure.error.startswith("RecipientNotAllowedError: ")
                assert failure.state == "rejected"
            assert numbers(sandbox) == [1]

    run(main())


# A full outbox.


def test_a_full_outbox_makes_puts_wait_and_drops_no_event(path: Path) -> None:
    async def main() -> None:
        highest = 0
        async with Sandbox(rate_limit=None, latency=0.002) as sandbox:
            async with opened(path, sandbox, capacity=5) as outbox:
                puts = asyncio.gather(*map(outbox.put, events(60)))
                while not puts.done():
                    highest = max(highest, outbox.stats().pending)
                    await asyncio.sleep(0.001)
                await outbox.put_many(events(5))
                with pytest.raises(ValueError, match="6 events are more than the cap"):
                    await outbox.put_many(events(6))
                assert await outbox.flush() == 0
            assert sorted(numbers(sandbox)) == sorted([*range(60), *range(5)])
        assert highest == 5

    run(main())


def test_puts_that_wait_for_room_are_admitted_in_their_order(path: Path) -> None:
    async def main() -> None:
        admitted: list[str] = []

        async def put(outbox: Outbox, name: str, batch: list[Event]) -> None:
            await outbox.put_many(batch)
            admitted.append(name)

        async with Sandbox(rate_limit=None) as sandbox:
            async with opened(path, sandbox, capacity=5) as outbox:
                sandbox.down()
                await outbox.put_many(events(3))
                # There is room for "one", but "many" came first.
                sizes = {"cancelled": 4, "many": 5, "one": 1, "another": 1}
                tasks = [
                    asyncio.create_task(put(outbox, name, events(size)))
                    for name, size in sizes.items()
                ]
                await until(lambda: waiting_puts(outbox) == 4)
                assert admitted == []
                tasks[0].cancel()
                await until(lambda: waiting_puts(outbox) == 3)
                sandbox.down(False)
                await asyncio.gather(*tasks, return_exceptions=True)
                assert tasks[0].cancelled()
                assert await outbox.flush() == 0
            assert admitted == ["many", "one", "another"]
            assert len(sandbox.events) == 10

    run(main())


def test_a_put_that_is_cancelled_when_it_is_admitted_gives_its_room_to_the_next(
    path: Path,
) -> None:
    async def main() -> None:
        async with offline(path, capacity=2) as outbox:
            session = outbox._session
            await outbox.put_many(events(2))
            cancelled = asyncio.create_task(outbox.put(events(1)[0]))
            admitted = asyncio.create_task(outbox.put(events(1)[0]))
            following = asyncio.create_task(outbox.put(events(1)[0]))
            await until(lambda: waiting_puts(outbox) == 3)
            cancelled.cancel()
            session._count_end(None, "accepted")
            admitted.cancel()
            with pytest.raises(asyncio.CancelledError):
                await admitted
            await following
            session._counts["pending"] += 1

    run(main())


def test_puts_that_fail_or_add_no_event_leave_their_room_to_others(
    path: Path,
) -> None:
    async def main() -> None:
        first, second, third = events(3)
        conflicting = first.replace(
            email="eve@b.co", idempotency_key=first.idempotency_key
        )
        async with offline(path, capacity=2) as outbox:
            await outbox.put(first)
            repeated = asyncio.create_task(outbox.put(first))
            failing = asyncio.create_task(outbox.put(conflicting))
            await asyncio.sleep(0)
            await outbox.put(second)
            await repeated
            with pytest.raises(InvalidEventError):
                await failing
            late = asyncio.create_task(outbox.put(third))
            await until(lambda: waiting_puts(outbox) == 1)
            assert not late.done()
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            assert outbox.stats().pending == 2

    run(main())


def test_a_put_that_waits_for_room_fails_when_the_outbox_closes(path: Path) -> None:
    async def main() -> None:
        first, second, third = events(3)
        async with client_of(NOWHERE) as client:
            outbox = await Outbox(path, client, capacity=1).__aenter__()
            await outbox.put(first)
            put = asyncio.create_task(outbox.put(second))
            cancelled = asyncio.create_task(outbox.put(third))
            flush = asyncio.create_task(outbox.flush())
            await until(lambda: waiting_puts(outbox) == 2)
            cancelled.cancel()
            await outbox.aclose(0)
            with pytest.raises(ClientClosedError, match="while the put waited for"):
                await put
            assert await flush == 1
        assert states(path) == ["pending"]

    run(main())


def test_a_contact_whose_events_fail_delays_no_other_contact(path: Path) -> None:
    async def fail_for_x(connection: Connection) -> None:
        while (request := await connection.request()) is not None:
            fails = request.json()["email"] == "x@b.co"
            await connection.send(reply(500) if fails else reply())

    async def main() -> None:
        async with (
            Server(fail_for_x) as server,
            opened(path, server, capacity=10_500, grace=0.0) as outbox,
        ):
            await outbox.put_many([Event("e", email="x@b.co") for _ in range(10_499)])
            await server.arrived()
            await outbox.put(Event("e", email="y@b.co"))
            await until(lambda: outbox.stats().accepted)
            assert outbox.stats().pending == 10_499

    run(main())


# Waiting until all events are sent.


def test_flush_does_not_wait_for_a_put_that_adds_no_event(path: Path) -> None:
    async def main() -> None:
        (event,) = events(1)
        async with (
            Sandbox(rate_limit=None) as sandbox,
            opened(path, sandbox, keep_accepted=None) as outbox,
        ):
            await outbox.put(event)
            await outbox.flush()
            repeated = asyncio.create_task(outbox.put(event))
            await asyncio.sleep(0)
            assert await outbox.flush() == 0
            await repeated

    run(main())


def test_flush_with_a_timeout_returns_the_number_of_pending_events(
    path: Path,
) -> None:
    async def main() -> None:
        async with offline(path) as outbox:
            await outbox.put_many(events(7))
            assert await outbox.flush(0) == 7
            assert await outbox.flush(0.01) == 7

    run(main())
