"""Events that Loops rejects or whose outcome is unknown: kept, listed, retried."""

import asyncio
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import client_of
from support.http_server import Connection, Server, answers, reply
from support.outboxes import events, numbers, offline, opened, rows, update
from support.waiting import run, until

from loops_async import Failure, Outbox, OutboxStats
from loops_async.sandbox import Sandbox

_BAD_REQUEST = reply(400, '{"success":false,"message":"no such list"}')


async def failures_of(outbox: Outbox) -> list[Failure]:
    return [failure async for failure in outbox.failures()]


async def refuse_odd_numbers(connection: Connection) -> None:
    while (request := await connection.request()) is not None:
        odd = request.json()["eventProperties"]["number"] % 2
        await connection.send(_BAD_REQUEST if odd else reply())


def test_rejected_events_stay_in_the_file_and_delay_no_other_event(
    path: Path,
) -> None:
    async def main() -> None:
        batch = events(10, contacts=1)
        odd = batch[1::2]
        async with Server(refuse_odd_numbers) as server:
            async with opened(path, server) as outbox:
                await outbox.put_many(batch)
                assert await outbox.flush() == 0
                assert [request.json() for request in server.requests] == [
                    {
                        "eventName": "signup",
                        "email": "u0@b.co",
                        "eventProperties": {"number": number},
                    }
                    for number in range(10)
                ]
                stats = outbox.stats()
                assert (stats.accepted, stats.rejected, stats.pending) == (5, 5, 0)
            async with opened(path, server) as outbox:
                stats = outbox.stats()
                assert (stats.accepted, stats.rejected, stats.pending) == (0, 5, 0)
                failures = await failures_of(outbox)
                keys = [failure.idempotency_key for failure in failures]
                assert keys == [event.idempotency_key for event in odd]
                for failure, number in zip(failures, range(1, 10, 2), strict=True):
                    assert failure.state == "rejected"
                    assert failure.body["eventProperties"] == {"number": number}
                    assert "no such list" in failure.error
                    assert "BadRequestError" in failure.error
                    assert failure.attempts == 1
                assert len(server.requests) == 10

    run(main())


def test_failures_are_sent_again_by_retry_and_removed_by_forget(path: Path) -> None:
    async def main() -> None:
        batch = events(10, contacts=1)
        keys = [event.idempotency_key for event in batch[1::2]]
        async with Server(refuse_odd_numbers) as server:
            async with opened(path, server) as outbox:
                await outbox.put_many(batch)
                assert await outbox.flush() == 0
                assert await outbox.forget(keys[0]) == 1
                assert await outbox.forget(keys[1:2]) == 1
                assert await outbox.forget(["no such key", keys[0]]) == 0
                assert outbox.stats().rejected == 3
            server.script = answers(reply())
            async with opened(path, server) as outbox:
                assert await outbox.retry([keys[2], keys[2], "no such key"]) == 1
                assert await outbox.flush() == 0
                assert outbox.stats().rejected == 2
                assert await outbox.retry() == 2
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.accepted, stats.rejected) == (3, 0)
            retried = server.requests[10:]
            resent = [one.json()["eventProperties"]["number"] for one in retried]
            assert resent == [5, 7, 9]
            new_keys = {one.key for one in retried}
            assert len(new_keys) == 3
            assert not new_keys & set(keys)
        assert rows(path) == []

    run(main())


def test_an_error_with_bytes_that_are_not_utf8_is_stored_readably(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    response = reply(400, "<html>", kind="text/html; charset=été").replace(
        "é".encode(), b"\xe9"
    )

    async def main() -> None:
        async with (
            Server(answers(response)) as server,
            opened(path, server) as outbox,
        ):
            await outbox.put(events(1)[0])
            assert await outbox.flush() == 0
            (failure,) = await failures_of(outbox)
            assert "charset=\\udce9t\\udce9" in failure.error

    run(main())
    assert caplog.messages == [
        "outbox: an event is rejected; failures() gives the reason"
    ]


def test_more_failures_than_a_page_are_all_listed(path: Path) -> None:
    async def main() -> None:
        batch = events(450)
        async with offline(path) as outbox:
            await outbox.put_many(batch)
        update(path, "UPDATE events SET state = 'rejected', error = 'refused'")
        async with offline(path) as outbox:
            keys = [failure.idempotency_key for failure in await failures_of(outbox)]
        assert keys == [event.idempotency_key for event in batch]

    run(main())


def test_a_rejected_event_that_is_put_again_is_sent_again(path: Path) -> None:
    async def main() -> None:
        (event,) = events(1)
        async with (
            Server(answers(_BAD_REQUEST, reply())) as server,
            opened(path, server) as outbox,
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


def test_an_event_whose_outcome_was_lost_a_day_ago_is_unknown_until_it_is_retried(
    path: Path,
) -> None:
    async def main() -> None:
        first, old, third = events(3, contacts=1)
        async with Sandbox(rate_limit=None) as sandbox:
            sandbox.script("close-after")
            async with opened(path, sandbox) as outbox:
                await outbox.put(first)
                await until(lambda: sandbox.counts.accepted)
                assert await outbox.flush() == 0
                assert outbox.stats().duplicates == 1
            async with offline(path) as outbox:
                await outbox.put_many([old, third])
            # As if a process had died during an attempt, a day ago.
            update(
                path,
                "UPDATE events SET ambiguous_since = 1 "
                f"WHERE key = '{old.idempotency_key}'",
            )
            async with opened(path, sandbox) as outbox:
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.unknown, stats.accepted, stats.rejected) == (1, 1, 0)
                (failure,) = await failures_of(outbox)
                assert failure.state == "unknown"
                assert failure.error.startswith("ForgottenKeyError: ")
                await outbox.put(old)  # the file has it already
                assert outbox.stats().pending == 0
                assert await outbox.retry() == 0  # only rejected events
                assert await outbox.retry(old.idempotency_key) == 1
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.unknown, stats.accepted) == (0, 2)
            assert numbers(sandbox) == [0, 2, 1]
            keys = {one.idempotency_key for one in sandbox.events}
            assert keys == {event.idempotency_key for event in (first, old, third)}

    run(main())


def test_a_retry_that_is_cancelled_still_updates_the_counts(path: Path) -> None:
    async def main() -> None:
        async with (
            Server(answers(_BAD_REQUEST, reply())) as server,
            client_of(server) as client,
            Outbox(path, client) as outbox,
        ):
            await outbox.put(events(1)[0])
            await outbox.flush()
            retry: asyncio.Task[Any] = asyncio.create_task(outbox.retry())
            for _ in range(2):
                await asyncio.sleep(0)
                retry.cancel()
            with pytest.raises(asyncio.CancelledError):
                await retry
            await until(lambda: outbox.stats().accepted)
            assert await outbox.flush() == 0
            assert (outbox.stats().pending, outbox.stats().rejected) == (0, 0)

    run(main())


def test_the_statistics_have_the_documented_fields() -> None:
    assert [field.name for field in attrs.fields(OutboxStats)] == [
        "pending",
        "retrying",
        "rejected",
        "unknown",
        "accepted",
        "duplicates",
        "paused",
    ]
