"""A run of many events: its workers, its source and its outcomes, in virtual time."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import attrs
import pytest
from support import virtual_time as virtual

from loops_async import (
    BadRequestError,
    DeadlineExceededError,
    Event,
    InvalidEventError,
    Outcome,
    Receipt,
    SendReport,
)
from loops_async._sending.bulk import LOOK_AHEAD
from loops_async._sending.bulk_run import BulkRun

from .planned_sends import (
    Plan,
    Sends,
    body_of,
    collect,
    event_for,
    events_for_all,
    make,
    others,
)
from .support import now

# Concurrency.


def test_a_run_has_one_worker_more_than_requests_in_flight() -> None:
    """Latency and rate determine the concurrency."""

    async def main() -> None:
        permits = asyncio.Semaphore(0)

        async def send(event: Event, body: bytes, run: BulkRun) -> Receipt:
            sends.callers += 1
            sends.most_callers = max(sends.most_callers, sends.callers)
            await permits.acquire()
            run.on_sent(event.idempotency_key)
            sends.in_flight += 1
            most.append(sends.callers - sends.in_flight)
            await asyncio.sleep(2.05)
            sends.in_flight -= 1
            sends.callers -= 1
            return Receipt(event.idempotency_key, 1, False, 0, None)

        async def permit() -> None:
            for _ in range(100):
                permits.release()
                await asyncio.sleep(0.1)

        sends, most = Sends(), list[int]()
        permitting = asyncio.create_task(permit())
        found = await collect(make(events_for_all(100), send))
        await permitting
        assert len(found) == 100
        # 2.05 s at 10 per second, and one worker that waits
        assert sends.most_callers == 22
        assert max(most) <= 1
        assert now() == pytest.approx(9.9 + 2.05)

    virtual.run(main())


def test_a_run_without_limits_sends_all_events_at_once() -> None:
    async def main() -> None:
        sends = Sends()
        await collect(make(events_for_all(300), sends))
        assert sends.most_in_flight == 300
        assert now() == 1.0

    virtual.run(main())


def test_a_run_with_five_connections_has_at_most_one_worker_waiting() -> None:
    async def main() -> None:
        sends = Sends(connections=asyncio.Semaphore(5))
        await collect(make(events_for_all(100), sends))
        assert sends.most_in_flight == 5
        assert sends.most_callers <= 6
        assert now() == 20.0

    virtual.run(main())


def test_an_event_that_ends_before_its_request_holds_no_other() -> None:
    """For example, its deadline passes while it waits for the API key."""

    async def main() -> None:
        async def send(event: Event, body: bytes, run: BulkRun) -> Receipt:
            if event.user_id == "u0":
                await asyncio.sleep(3)
                raise DeadlineExceededError("no time left")
            return await sends(event, body, run)

        sends = Sends()
        found = await collect(make(events_for_all(10), send))
        assert [outcome.ok for outcome in found].count(True) == 9
        assert sends.most_in_flight == 9
        assert now() == 4.0

    virtual.run(main())


def test_an_event_that_arrives_as_the_last_worker_ends_is_sent() -> None:
    """This holds although other runs have all connections at that moment."""

    async def main() -> None:
        first_is_over = asyncio.Event()

        async def source() -> AsyncIterator[Event]:
            yield event_for(0)
            await first_is_over.wait()
            yield event_for(1)

        run = make(
            source(),
            Sends(),
            has_room=lambda: False,
            runs=set(),
            on_outcome=lambda _: first_is_over.set(),
        )
        assert len(await collect(run)) == 2

    virtual.run(main())


def test_an_event_is_sent_as_soon_as_it_is_pulled() -> None:
    """The run does not wait for further events of a slow source."""

    async def main() -> None:
        async def source() -> AsyncIterator[Event]:
            for number in range(3):
                await asyncio.sleep(10)
                yield event_for(number)

        sends = Sends()
        stream = make(source(), sends).outcomes()
        times = [now() async for _ in stream]
        assert list(sends.began.values()) == [10, 20, 30]
        assert times == [11, 21, 31]

    virtual.run(main())


def test_the_events_of_a_contact_are_sent_one_after_another() -> None:
    """Other contacts do not wait for them, and a failure does not stop them."""

    async def main() -> None:
        events = [event_for(number % 2, number) for number in range(10)]
        ends = ["accepted", "refused", "unknown", "duplicate", "accepted"] * 2
        plans = {
            event.idempotency_key: Plan(end=end)
            for event, end in zip(events, ends, strict=True)
        }
        sends = Sends(lambda event: plans[event.idempotency_key])
        found = await collect(make(events, sends))
        assert sends.most_in_flight == 2
        assert now() == 5.0
        for contact in (0, 1):
            indexes = [o.index for o in found if o.index % 2 == contact]
            assert indexes == sorted(indexes)

    virtual.run(main())


# Look-ahead.


@pytest.mark.parametrize("kind", ["list", "async"])
def test_at_most_1000_events_are_pulled_ahead_of_the_consumer(
    kind: str,
) -> None:
    async def main() -> None:
        pulled = taken = furthest = 0

        def items() -> Iterator[Event]:
            nonlocal pulled, furthest
            for number in range(2500):
                pulled += 1
                furthest = max(furthest, pulled - taken)
                yield event_for(number)

        async def source() -> AsyncIterator[Event]:
            for event in items():
                yield event

        run = make(items() if kind == "list" else source(), Sends())
        async for _ in run.outcomes():
            taken += 1
            if taken in (1, 500, 2000):
                await asyncio.sleep(100)
            if taken == 1:
                assert 900 <= pulled <= LOOK_AHEAD == 1000
        assert taken == 2500
        assert furthest <= 1001  # one is pulled before the last outcome is taken

    virtual.run(main())


def test_reading_a_long_list_yields_to_other_tasks_every_100_events() -> None:
    async def main() -> None:
        pulled = 0
        counts = []

        def items() -> Iterator[Event]:
            nonlocal pulled
            for event in events:
                pulled += 1
                yield event

        async def beside() -> None:
            while pulled < 1000:
                counts.append(pulled)
                await asyncio.sleep(0)

        events = events_for_all(1000)
        other = asyncio.create_task(beside())
        await collect(make(items(), None))
        await other
        assert max(b - a for a, b in pairwise(counts)) <= 100

    virtual.run(main())


def test_a_run_keeps_no_event_and_no_error_of_a_released_outcome() -> None:
    async def main() -> None:
        alive: list[weakref.ref[Any]] = []

        async def source() -> AsyncIterator[Event]:
            for number in range(40):
                event = event_for(number % 4, number)
                alive.append(weakref.ref(event))
                yield event
                del event
                await asyncio.sleep(1)

        async def send(event: Event, body: bytes, run: BulkRun) -> Receipt:
            run.on_sent(event.idempotency_key)
            await asyncio.sleep(2)
            error = BadRequestError("no", status=400)
            error.attempts = 1
            alive.append(weakref.ref(error))
            raise error

        gc.disable()  # an object in a cycle counts as kept
        try:
            most = 0
            async for outcome in make(source(), send).outcomes():
                del outcome
                most = max(most, sum(one() is not None for one in alive))
        finally:
            gc.enable()
        assert len(alive) == 80
        assert most <= 12

    virtual.run(main())


# Events that are refused before they are sent.


def test_an_item_that_is_not_an_event_is_named_after_earlier_events_are_sent() -> None:
    async def main() -> None:
        reported: list[Outcome] = []
        items: list[Any] = [*events_for_all(2), {"email": "a@b.co"}, event_for(9)]
        sends = Sends()
        with pytest.raises(TypeError) as raised:
            await collect(make(items, sends, on_outcome=reported.append))
        assert str(raised.value) == "events[2] must be an Event, not dict"
        assert [outcome.index for outcome in reported] == [0, 1]
        assert all(outcome.ok for outcome in reported)
        assert others() == []

    virtual.run(main())


def test_an_event_that_cannot_be_encoded_is_a_failure_and_the_others_are_sent() -> None:
    async def main() -> None:
        def prepare(event: Event) -> bytes:
            if event.user_id == "u1":
                raise InvalidEventError(problems=["body: no JSON"])
            return body_of(event)

        found = await collect(make(events_for_all(3), Sends(), prepare=prepare))
        report = SendReport(sorted(found, key=lambda outcome: outcome.index))
        assert [outcome.ok for outcome in report] == [True, False, True]
        assert isinstance(report[1].error, InvalidEventError)
        assert report[1].error.__traceback__ is None

    virtual.run(main())


def test_an_unexpected_error_while_an_event_is_encoded_ends_the_run_with_it() -> None:
    async def main() -> None:
        def prepare(event: Event) -> bytes:
            if event.user_id == "u1":
                raise ZeroDivisionError
            return body_of(event)

        reported: list[Outcome] = []
        run = make(
            events_for_all(3), Sends(), prepare=prepare, on_outcome=reported.append
        )
        with pytest.raises(ZeroDivisionError):
            await collect(run)
        assert reported[0].index == 0
        assert reported[0].ok
        assert others() == []

    virtual.run(main())


def test_an_event_with_a_used_key_and_other_bytes_is_invalid_and_not_sent() -> None:
    async def main() -> None:
        first = Event("e", user_id="u1", idempotency_key="k")
        copy = attrs.evolve(first, user_id="u2")
        sends = Sends()
        found = await collect(make([first, copy, first.again()], sends))
        refused = next(outcome for outcome in found if outcome.index == 1)
        assert isinstance(refused.error, InvalidEventError)
        assert "idempotency_key" in str(refused.error)
        assert "event.replace" in str(refused.error)
        assert refused.error.idempotency_key == "k"
        assert refused.error.attempts == 0
        assert [outcome.ok for outcome in found].count(True) == 2
        assert len(sends.began) == 2

    virtual.run(main())


def test_a_run_with_a_bounded_key_memory_forgets_old_keys() -> None:
    async def main() -> None:
        first = Event("e", user_id="u1", idempotency_key="k")
        copy = attrs.evolve(first, user_id="u2")
        events = [first, *events_for_all(6), copy]
        found = await collect(make(events, Sends(), keys=2))
        assert all(outcome.ok for outcome in found)

    virtual.run(main())


def test_a_dry_run_checks_everything_and_sends_nothing() -> None:
    async def main() -> None:
        first = Event("e", user_id="u1", idempotency_key="k")
        copy = attrs.evolve(first, user_id="u2")
        found = await collect(make([first, copy, *events_for_all(1500)], None))
        assert [outcome.index for outcome in found] == list(range(1502))
        assert [outcome.index for outcome in found if not outcome.ok] == [1]
        receipts = [outcome.receipt for outcome in found if outcome.receipt]
        assert all(receipt.dry_run for receipt in receipts)
        assert {receipt.attempts for receipt in receipts} == {0}
        assert now() == 0

    virtual.run(main())


# The outcome hook.


def test_an_outcome_hook_that_raises_changes_no_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook(outcome: Outcome) -> None:
        raise ValueError(outcome.event.user_id)

    async def main() -> None:
        found = await collect(make(events_for_all(3), Sends(), on_outcome=hook))
        assert all(outcome.ok for outcome in found)

    with caplog.at_level(logging.ERROR, "loops_async"):
        virtual.run(main())
    assert caplog.messages == ["on_outcome raised ValueError"] * 3


def test_the_outcome_hook_runs_before_the_consumer_in_order_of_completion() -> None:
    async def main() -> None:
        reported: list[Outcome] = []
        plans = {f"u{n}": Plan(takes=takes) for n, takes in enumerate([3, 1, 2])}
        sends = Sends(lambda event: plans[str(event.user_id)])
        run = make(events_for_all(3), sends, on_outcome=reported.append)
        async for outcome in run.outcomes():
            assert outcome in reported
        assert [outcome.index for outcome in reported] == [1, 2, 0]

    virtual.run(main())
