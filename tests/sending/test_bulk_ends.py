"""How a run of many events ends, in virtual time."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing

import pytest
from support import virtual_time as virtual

from loops_async import (
    AuthenticationError,
    ClientClosedError,
    Event,
    NotFoundError,
    NotTriedError,
    Outcome,
    Receipt,
    SendReport,
    ServerError,
)
from loops_async._sending.bulk_run import BulkRun

from .planned_sends import (
    AT_ONCE,
    ENDS,
    STOPPING,
    Plan,
    Sends,
    collect,
    event_for,
    events_for_all,
    make,
    others,
)
from .support import now

# Stops.


@pytest.mark.parametrize("end", sorted(STOPPING))
def test_an_error_that_every_event_would_get_stops_the_run(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Events in flight end normally; all others are neither tried nor pulled."""

    async def main() -> None:
        pulled = 0

        def items() -> Iterator[Event]:
            nonlocal pulled
            for number in range(3000):
                pulled += 1
                yield event_for(number)

        plans = {"u0": Plan(takes=5), "u1": Plan(takes=2, end=end), "u2": Plan(takes=1)}
        sends = Sends(
            lambda event: plans.get(str(event.user_id), Plan()), asyncio.Semaphore(2)
        )
        run = make(items(), sends)
        report = SendReport(
            sorted(await collect(run), key=lambda outcome: outcome.index),
            stopped_by=run.stopped_by,
        )
        assert len(report) == pulled <= 1000
        assert type(report.stopped_by) is type(ENDS[end]())
        assert report[0].ok
        sent = 1 if end in AT_ONCE else 2
        assert len(sends.began) == sent
        assert len(report.accepted) == 1
        for outcome in report.not_tried:
            assert isinstance(outcome.error, NotTriedError)
            assert outcome.error.idempotency_key == outcome.event.idempotency_key
            assert str(outcome.error) == f"not tried: {run.stopped_by}"
            assert outcome.error.attempts == 0
            assert outcome.error.retryable
        assert now() == 5.0
        assert others() == []

    with caplog.at_level(logging.WARNING, "loops_async"):
        virtual.run(main())
    reported = [] if end == "closed" else ["sending stopped"]
    assert [message[:15] for message in caplog.messages] == reported


def test_a_stop_does_not_wait_for_a_slow_source() -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[Event]:
            yield event_for(0)
            await asyncio.sleep(1e6)
            raise AssertionError

        run = make(source(), Sends(lambda _: Plan(end="401")))
        (outcome,) = await collect(run)
        assert outcome.error is run.stopped_by
        assert now() == 1.0

    virtual.run(main())


def test_an_event_that_a_source_yields_after_a_stop_is_not_tried() -> None:
    """A source that swallows its cancellation may yield one more event."""

    async def main() -> None:
        sends = Sends(lambda _: Plan(end="401"))
        run = make(stubborn(5), sends)
        found = await collect(run)
        assert [outcome.index for outcome in found] == [0, 1]
        assert isinstance(found[0].error, AuthenticationError)
        assert isinstance(found[1].error, NotTriedError)
        assert len(sends.began) == 1
        assert others() == []

    virtual.run(main())


async def stubborn(count: int) -> AsyncIterator[Event]:
    """Yield events ten seconds apart, and swallow every cancellation."""
    for number in range(count):
        try:
            if number:
                await asyncio.sleep(10)
        except asyncio.CancelledError:
            pass
        yield event_for(number)


def test_the_first_error_that_stops_a_run_is_the_one_reported() -> None:
    """Events in flight end with their own errors."""

    async def main() -> None:
        plans = {"u0": Plan(takes=1, end="401"), "u1": Plan(takes=2, end="404")}
        run = make(events_for_all(2), Sends(lambda event: plans[str(event.user_id)]))
        found = await collect(run)
        assert isinstance(run.stopped_by, AuthenticationError)
        assert isinstance(found[1].error, NotFoundError)

    virtual.run(main())


def test_a_run_without_progress_for_its_patience_stops() -> None:
    async def main() -> None:
        async def send(event: Event, body: bytes, run: BulkRun) -> Receipt:
            run.on_sent(event.idempotency_key)
            run.note_stall(ServerError("down", status=503), key=event.idempotency_key)
            try:
                async with asyncio.timeout_at(None) as scope:
                    run.waiting.add(scope)
                    await asyncio.sleep(1e6)
            except TimeoutError:
                pass
            error = ServerError("down", status=503, maybe_accepted=True)
            error.attempts = 3
            raise error

        run = make([event_for(0), event_for(0), event_for(1)], send, patience=30.0)
        report = SendReport(await collect(run), stopped_by=run.stopped_by)
        assert now() == 30.0
        assert "Loops accepted no event for 30 s" in str(report.stopped_by)
        assert len(report.unknown) == 2
        assert len(report.not_tried) == 1

    virtual.run(main())


# Sources that raise.


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_of_the_source_is_raised_after_the_outcomes_of_its_events(
    kind: str,
) -> None:
    async def main() -> None:
        def items() -> Iterator[Event]:
            yield from events_for_all(3)
            raise OSError("the file is gone")

        async def source() -> AsyncIterator[Event]:
            for event in items():
                yield event

        reported: list[Outcome] = []
        given_by = items() if kind == "sync" else source()
        run = make(given_by, Sends(), on_outcome=reported.append)
        with pytest.raises(OSError, match="the file is gone"):
            await collect(run)
        assert [outcome.index for outcome in reported] == [0, 1, 2]
        assert now() == 1.0
        assert others() == []

    virtual.run(main())


def test_an_error_of_the_source_in_the_turn_of_the_last_outcome_is_raised() -> None:
    """The run must not look complete."""

    async def main() -> None:
        first_is_over = asyncio.Event()

        async def source() -> AsyncIterator[Event]:
            yield event_for(0)
            await first_is_over.wait()
            raise OSError("the queue is gone")

        run = make(source(), Sends(), on_outcome=lambda _: first_is_over.set())
        with pytest.raises(OSError, match="the queue is gone"):
            await collect(run)

    virtual.run(main())


def test_an_error_of_the_source_at_its_start_is_raised_at_once() -> None:
    class Broken(Iterable[Event]):
        def __iter__(self) -> Iterator[Event]:
            raise OSError("no such file")

    async def main() -> None:
        with pytest.raises(OSError, match="no such file"):
            await collect(make(Broken(), Sends()))
        assert others() == []

    virtual.run(main())


def test_a_source_that_raises_a_cancellation_cancels_the_run_after_its_events() -> None:
    """The run does not take it for the end of the source."""

    async def main() -> None:
        async def source() -> AsyncIterator[Event]:
            yield event_for(0)
            raise asyncio.CancelledError

        reported: list[Outcome] = []
        run = make(source(), Sends(), on_outcome=reported.append)
        with pytest.raises(asyncio.CancelledError, match="the source was cancelled"):
            await collect(run)
        assert [outcome.ok for outcome in reported] == [True]
        assert others() == []

    virtual.run(main())


# Consumers that leave.


def test_leaving_the_stream_finishes_events_in_flight_and_sends_no_other() -> None:
    """Every event that was pulled has an outcome."""

    async def main() -> None:
        reported: list[Outcome] = []
        plans = {"u0": Plan(takes=1), "u1": Plan(takes=7), "u2": Plan(before=50)}
        sends = Sends(lambda event: plans[str(event.user_id)])
        run = make(events_for_all(3), sends, on_outcome=reported.append)
        async with aclosing(run.outcomes()) as stream:
            async for _ in stream:
                break
        assert now() == 7.0
        assert others() == []
        report = SendReport(reported)
        assert [outcome.index for outcome in report.accepted] == [0, 1]
        assert [outcome.index for outcome in report.not_tried] == [2]
        assert isinstance(run.stopped_by, ClientClosedError)

    virtual.run(main())


def test_breaking_out_of_the_stream_finishes_in_flight_events() -> None:
    async def main() -> None:
        reported: list[Outcome] = []
        plans = {"u0": Plan(takes=1), "u1": Plan(takes=7), "u2": Plan(before=50)}
        sends = Sends(lambda event: plans[str(event.user_id)])
        async for _ in make(
            events_for_all(3), sends, on_outcome=reported.append
        ).outcomes():
            break
        assert now() == 1.0
        await asyncio.sleep(6.01)
        assert others() == []
        assert sorted(outcome.index for outcome in reported if outcome.ok) == [0, 1]
        assert len(reported) == 3

    virtual.run(main())


def test_a_consumer_cancelled_while_leaving_does_not_wait() -> None:
    async def main() -> None:
        async def leave() -> None:
            async with aclosing(run.outcomes()) as stream:
                async for _ in stream:
                    break

        plans = {"u0": Plan(takes=1), "u1": Plan(takes=1000)}
        run = make(events_for_all(2), Sends(lambda event: plans[str(event.user_id)]))
        leaving = asyncio.create_task(leave())
        await asyncio.sleep(3)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert leaving.cancelled()
        assert now() == 3.0
        assert others() == []

    virtual.run(main())


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 1.5])
def test_a_cancelled_run_ends_at_once_and_leaves_no_task(at: float) -> None:
    async def main() -> None:
        sends = Sends(connections=asyncio.Semaphore(10))
        run = make(events_for_all(2000), sends)
        task = asyncio.create_task(collect(run))
        await asyncio.sleep(at)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert now() == at
        assert others() == []
        begun = len(sends.began)
        await asyncio.sleep(100)
        assert len(sends.began) == begun
        assert not sends.in_flight

    virtual.run(main())


def test_a_cancelled_run_sends_no_event_of_a_source_that_continues() -> None:
    """A source that swallows cancellations does not keep the run alive."""

    async def main() -> None:
        sends = Sends()
        task = asyncio.create_task(collect(make(stubborn(50), sends)))
        await asyncio.sleep(15)
        assert len(sends.began) == 2
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert now() < 40
        assert len(sends.began) == 2
        assert others() == []

    virtual.run(main())


# Errors that should not occur.


def test_an_unexpected_error_of_a_send_ends_the_run_with_it() -> None:
    async def main() -> None:
        async def send(event: Event, body: bytes, run: BulkRun) -> Receipt:
            run.on_sent(event.idempotency_key)
            await asyncio.sleep(1 if event.user_id == "u1" else 2)
            raise ZeroDivisionError(event.user_id)

        with pytest.raises(ZeroDivisionError, match="u1"):
            await collect(make(events_for_all(3), send))
        assert now() == 1.0
        assert others() == []

    virtual.run(main())


def test_a_send_that_is_cancelled_is_unknown_and_the_run_continues() -> None:
    async def main() -> None:
        async def send(event: Event, body: bytes, run: BulkRun) -> Receipt:
            if event.user_id != "u0":
                run.on_sent(event.idempotency_key)
            if event.user_id in ("u0", "u1"):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            await asyncio.sleep(1)
            return Receipt(event.idempotency_key, 1, False, 1.0, None)

        report = SendReport(await collect(make(events_for_all(3), send)))
        assert [o.event.user_id for o in report.not_tried] == ["u0"]
        assert [o.event.user_id for o in report.unknown] == ["u1"]
        assert [o.event.user_id for o in report.accepted] == ["u2"]
        assert others() == []

    virtual.run(main())


def test_the_first_of_two_unexpected_errors_in_one_turn_is_raised() -> None:
    async def main() -> None:
        async def send(event: Event, body: bytes, run: BulkRun) -> Receipt:
            run.on_sent(event.idempotency_key)
            await asyncio.sleep(1)
            raise ZeroDivisionError(event.user_id)

        with pytest.raises(ZeroDivisionError, match="u0"):
            await collect(make(events_for_all(3), send))

    virtual.run(main())


def test_the_parts_of_a_report_add_up_to_the_events_pulled() -> None:
    async def main() -> None:
        ends = ["accepted", "duplicate", "refused", "unknown"]
        sends = Sends(lambda event: Plan(end=ends[int(str(event.user_id)[1:]) % 4]))
        report = SendReport(await collect(make(events_for_all(40), sends)))
        parts = Counter(
            part
            for part in ("accepted", "duplicates", "failures", "unknown", "not_tried")
            for _ in getattr(report, part)
        )
        assert parts == dict.fromkeys(
            ("accepted", "duplicates", "failures", "unknown"), 10
        )

    virtual.run(main())
