"""Sending in the background: the order, and the pauses when no event can be sent."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import KEY, client_of
from support.http_server import (
    Connection,
    Server,
    bound_socket,
    reply,
    url_of,
)
from support.outboxes import (
    FAST,
    events,
    numbers,
    offline,
    opened,
    rows,
    states,
    update,
)
from support.waiting import run, until

from loops_async import (
    AsyncLoopsClient,
    ConfigurationError,
    Event,
    Outbox,
    RateLimiter,
)
from loops_async._outbox.session import OutboxTiming
from loops_async.sandbox import Sandbox


def test_an_event_that_is_put_is_sent_and_removed_from_the_file(path: Path) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox:
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


@pytest.mark.parametrize("keep_accepted", [0.0, None])
def test_events_that_are_put_after_a_backlog_was_sent_are_sent_too(
    path: Path, keep_accepted: float | None
) -> None:
    """The ids of the deleted rows are not used again."""

    async def main() -> None:
        async with offline(path) as outbox:
            await outbox.put_many(events(20))
        async with Sandbox(rate_limit=None) as sandbox:
            async with opened(path, sandbox, keep_accepted=keep_accepted) as outbox:
                assert await outbox.flush() == 0
                await outbox.put_many(events(25))
                assert await outbox.flush() == 0
            assert len(sandbox.events) == 45

    run(main())


def test_the_events_of_a_contact_arrive_in_the_order_of_their_puts(
    path: Path,
) -> None:
    async def main() -> None:
        faults = {"500-before": 0.1, "close-after": 0.1, "429": 0.1}
        async with Sandbox(rate_limit=None, faults=faults, seed=3) as sandbox:
            async with opened(path, sandbox) as outbox:
                for event in events(200, contacts=7):
                    await outbox.put(event)
                await outbox.flush()
            for contact in range(7):
                expected = list(range(contact, 200, 7))
                assert numbers(sandbox, f"u{contact}@b.co") == expected

    run(main())


def test_accepted_events_are_kept_for_the_requested_time(path: Path) -> None:
    async def main() -> None:
        old, new, *others = events(4)
        timing = attrs.evolve(FAST, purge_interval=0.0)
        async with Sandbox(rate_limit=None) as sandbox:
            async with opened(
                path, sandbox, keep_accepted=100.0, timing=timing
            ) as outbox:
                await outbox.put(old)
                await outbox.flush()
                await outbox.put(old)
                assert outbox.stats().pending == 0
            assert states(path) == ["accepted"]
            age(path, 101)
            async with opened(
                path, sandbox, keep_accepted=100, timing=timing
            ) as outbox:
                await outbox.put(new)
                await outbox.flush()
            assert [row["key"] for row in rows(path)] == [new.idempotency_key]
            async with opened(
                path, sandbox, keep_accepted=None, timing=timing
            ) as outbox:
                await outbox.put_many(others)
                await outbox.flush()
            assert states(path) == ["accepted"] * 3
            assert len(sandbox.events) == 4

    run(main())


def age(path: Path, seconds: float) -> None:
    """Make the events of a file older."""
    update(path, f"UPDATE events SET at = at - {seconds}")


def test_accepted_events_are_not_purged_within_the_purge_interval(
    path: Path,
) -> None:
    async def main() -> None:
        timing = attrs.evolve(FAST, purge_interval=3600.0)
        async with (
            Sandbox(rate_limit=None) as sandbox,
            opened(path, sandbox, keep_accepted=1e-9, timing=timing) as outbox,
        ):
            await outbox.put_many(events(3))
            await outbox.flush()
            query = "SELECT count(*) FROM events"
            assert outbox._session is not None
            ((kept,),) = await outbox._session.journal.submit(
                lambda db: db.execute(query).fetchall()
            )
            await outbox.put_many(events(2))
            await outbox.flush()
        assert len(states(path)) == kept + 2

    run(main())


def test_a_dry_run_drops_new_events_and_refuses_a_file_with_pending_events(
    path: Path,
) -> None:
    async def main() -> None:
        async with AsyncLoopsClient(dry_run=True) as client:
            async with Outbox(path, client) as outbox:
                await outbox.put_many(events(3))
                assert await outbox.flush() == 0
                assert outbox.stats().accepted == 3
            assert rows(path) == []
            async with offline(path) as outbox:
                await outbox.put_many(events(2))
            with pytest.raises(ConfigurationError, match="2 pending events") as caught:
                await Outbox(path, client).__aenter__()
            assert str(path) in str(caught.value)
        assert states(path) == ["pending"] * 2

    run(main())


# Loops is down.


def test_puts_succeed_while_loops_is_down_and_the_events_are_sent_afterwards(
    path: Path,
) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as client:
            sandbox.down()
            async with Outbox(path, client, _timing=FAST) as outbox:
                for event in events(100, contacts=10):
                    await outbox.put(event)
                await until(lambda: outbox.stats().retrying)
                await until(lambda: client.stats.outage)
                assert await outbox.flush(0.05) == 100
                sandbox.down(False)
                assert await outbox.flush() == 0
                stats = outbox.stats()
                assert (stats.accepted, stats.duplicates) == (100, 0)
            assert Counter(numbers(sandbox)) == Counter(range(100))
            for contact in range(10):
                expected = list(range(contact, 100, 10))
                assert numbers(sandbox, f"u{contact}@b.co") == expected

    run(main())


def test_puts_succeed_while_no_server_listens_and_the_events_are_sent_afterwards(
    path: Path,
) -> None:
    async def main() -> None:
        with closing(bound_socket()) as sock:
            port = sock.getsockname()[1]
            async with client_of(url_of(sock)) as client, Outbox(path, client) as out:
                await out.put_many(events(50))
                await until(lambda: client.stats.outage)
                sock.close()
                async with Sandbox(rate_limit=None, port=port, api_key=KEY) as sandbox:
                    assert await out.flush() == 0
                    assert out.stats().duplicates == 0
                assert sorted(numbers(sandbox)) == [*range(50)]

    run(main())


# Sending is paused.


@pytest.mark.parametrize("settings", [{"keep_accepted": None}, {}])
def test_a_refused_api_key_pauses_sending_until_loops_accepts_it(
    path: Path, settings: dict[str, Any]
) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None, api_key="new") as sandbox:
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


def test_sending_uses_a_rotated_api_key_as_soon_as_the_client_gets_it(
    path: Path,
) -> None:
    async def main() -> None:
        keys = ["first"]

        async def key() -> str:
            return keys[-1]

        async with Sandbox(rate_limit=None, api_key="first") as sandbox:
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
def test_an_attempt_that_pauses_sending_is_counted_once(path: Path, key: Any) -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
            opened(
                path,
                sandbox,
                api_key=key,
                grace=0.0,
                timing=OutboxTiming(first_pause=3600.0),
            ) as outbox,
        ):
            await outbox.put(events(1)[0])
            await until(lambda: outbox.stats().paused)
        assert [row["attempts"] for row in rows(path)] == [sandbox.counts.requests]

    run(main())


def test_a_wrong_address_pauses_sending_until_it_is_right(path: Path) -> None:
    async def main() -> None:
        async def script(connection: Connection) -> None:
            while await connection.request() is not None:
                right = len(connection.server.requests) > 3
                await connection.send(reply(200 if right else 404))

        async with Server(script) as server, opened(path, server) as outbox:
            (event,) = events(1)
            await outbox.put(event)
            await until(lambda: outbox.stats().paused)
            assert "404" in str(outbox.stats().paused)
            assert await outbox.flush() == 0
            assert outbox.stats().accepted == 1

    run(main())


def test_an_unexpected_error_pauses_sending_and_does_not_end_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        broken = True

        def clock() -> float:
            if broken:
                raise ZeroDivisionError("by a bug")
            return time.monotonic()

        limiter = RateLimiter(10, clock=clock)
        async with (
            Sandbox(rate_limit=None) as sandbox,
            opened(path, sandbox, rate_limit=limiter) as outbox,
        ):
            await outbox.put_many(events(2))
            await until(lambda: outbox.stats().paused)
            assert outbox.stats().paused == "ZeroDivisionError: by a bug"
            broken = False
            assert await outbox.flush() == 0
            assert outbox.stats().paused is None

    run(main())
    first, *_, last = caplog.messages
    assert first == "outbox: sending is paused: ZeroDivisionError: by a bug"
    assert last == "outbox: sending continues"


def test_a_closed_client_pauses_sending(path: Path) -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
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


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("cause", ["down", "key refused"])
def test_puts_succeed_during_a_minute_in_which_no_event_can_be_sent(
    path: Path, cause: str, record_figures: Callable[[str], None]
) -> None:
    """20 events are put every 0.1 s before, during and after that minute."""

    async def put(outbox: Outbox, seconds: float, batch: list[Event]) -> float:
        """Return the median milliseconds that 20 puts took."""
        loop = asyncio.get_running_loop()
        end, durations = loop.time() + seconds, []
        while (started := loop.time()) < end:
            some = [Event("e", email=f"u{n}@b.co") for n in range(20)]
            await asyncio.gather(*map(outbox.put, some))
            batch.extend(some)
            durations.append(loop.time() - started)
            await asyncio.sleep(started + 0.1 - loop.time())
        return statistics.median(durations) * 1000

    async def main() -> str:
        batch: list[Event] = []
        async with Sandbox(rate_limit=None, api_key="key") as sandbox:
            # The usual pauses, because the figures are reported.
            async with opened(
                path, sandbox, api_key="key", timing=OutboxTiming()
            ) as outbox:
                before = await put(outbox, 5.0, batch)
                if cause == "down":
                    sandbox.down()
                else:
                    sandbox.api_key = "another"
                meanwhile = await put(outbox, 60.0, batch)
                assert outbox.stats().pending > 10_000
                assert (outbox.stats().paused is None) == (cause == "down")
                sandbox.down(False)
                sandbox.api_key = "key"
                await put(outbox, 5.0, batch)
                started = asyncio.get_running_loop().time()
                assert await outbox.flush() == 0
                seconds = asyncio.get_running_loop().time() - started
            sent = [(one.email, one.idempotency_key) for one in sandbox.events]
        assert len(sent) == len(batch)
        for contact in {one.email for one in batch}:
            keys = [key for email, key in sent if email == contact]
            assert keys == [
                one.idempotency_key for one in batch if one.email == contact
            ]
        return (
            f"{cause} for 60 s: {len(batch):,} events put, all sent {seconds:.0f} s "
            f"afterwards; 20 puts took {before:.1f} ms before and {meanwhile:.1f} ms "
            "meanwhile"
        )

    record_figures(run(main(), limit=230.0))
