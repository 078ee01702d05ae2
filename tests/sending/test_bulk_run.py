"""The state that the events of a bulk run share, in virtual time."""

import asyncio
import logging
import math
from collections.abc import Callable

import attrs
import pytest
from support import virtual_time as virtual

from loops_async import ClientClosedError, DeadlineExceededError, LoopsError
from loops_async._sending.bulk_run import BulkRun

DOWN = LoopsError("Loops responded with 503")
BUSY = LoopsError("Loops responded with 429")


def now() -> float:
    return asyncio.get_running_loop().time()


@attrs.define
class Stops:
    """The times at which the run called `on_stop`."""

    times: list[float] = attrs.field(factory=list)

    def __call__(self) -> None:
        self.times.append(now())


def make(patience: float | None = None, on_stop: Callable[[], None] = int) -> BulkRun:
    loop = asyncio.get_running_loop()
    return BulkRun(
        loop,
        patience,
        on_sent=lambda key: None,
        on_pause=lambda: None,
        on_resume=lambda: None,
        on_stop=on_stop,
    )


def test_a_new_run_is_neither_held_nor_stalled() -> None:
    async def main() -> None:
        run = make(10.0)
        assert run.stopped_by is None
        assert run.held_until == -math.inf
        assert not run.stalled

    virtual.run(main())


def test_the_patience_counts_from_the_first_stall() -> None:
    """Later failures do not extend it, and the error names the last failure."""

    async def main() -> None:
        stops = Stops()
        run = make(10.0, stops)
        await asyncio.sleep(3)
        for key in "ab":
            run.note_stall(DOWN, key=key)
        await asyncio.sleep(6)
        for key in "ab":
            run.note_stall(BUSY, key=key)
        await asyncio.sleep(100)
        assert stops.times == [13.0]
        error = run.stopped_by
        assert isinstance(error, DeadlineExceededError)
        text = (
            "Loops accepted no event for 10 s; the last error: Loops responded with 429"
        )
        assert str(error) == text
        assert error.retryable
        assert not error.maybe_accepted
        assert run.held_until == math.inf

    virtual.run(main())


def test_a_stop_for_lack_of_progress_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        run = make(10.0)
        for key in "ab":
            run.note_stall(DOWN, key=key)
        await asyncio.sleep(11)

    with caplog.at_level(logging.WARNING, "loops_async"):
        virtual.run(main())
    assert "sending stopped: Loops accepted no event for 10 s" in caplog.text


def test_progress_resets_the_patience() -> None:
    async def main() -> None:
        stops = Stops()
        run = make(10.0, stops)
        for _ in range(3):
            for key in "ab":
                run.note_stall(DOWN, key=key)
            await asyncio.sleep(9)
            run.note_progress()
            assert not run.stalled
        for key in "ab":
            run.note_stall(DOWN, key=key)
        await asyncio.sleep(100)
        assert stops.times == [37.0]

    virtual.run(main())


def test_a_run_that_one_event_has_stalled_is_not_stopped() -> None:
    """A single failing event does not show that Loops is down."""

    async def main() -> None:
        stops = Stops()
        run = make(10.0, stops)
        run.note_stall(DOWN, key="a")
        await asyncio.sleep(9)
        assert not run.one_event_stuck
        run.note_stall(DOWN, key="a")
        await asyncio.sleep(100)
        assert run.one_event_stuck
        assert stops.times == []
        run.note_progress()
        assert not run.one_event_stuck
        assert not run.stalled

    virtual.run(main())


def test_a_response_that_arrives_while_the_run_is_held_is_not_progress() -> None:
    async def main() -> None:
        stops = Stops()
        run = make(10.0, stops)
        run.note_stall(BUSY, 3600.0, "a")
        await asyncio.sleep(5)
        run.note_progress()
        assert run.stalled
        await asyncio.sleep(100)
        assert stops.times == [10.0]

    virtual.run(main())


def test_a_run_without_patience_may_stall_forever() -> None:
    async def main() -> None:
        run = make(None)
        run.note_stall(DOWN)
        await asyncio.sleep(1e6)
        assert run.stopped_by is None
        assert run.stalled

    virtual.run(main())


def test_a_run_is_held_for_the_longest_retry_after() -> None:
    async def main() -> None:
        run = make()
        run.note_stall(BUSY, 100.0)
        await asyncio.sleep(1)
        run.note_stall(BUSY, 5.0)
        assert run.held_until == 100.0
        run.note_stall(BUSY, 200.0)
        assert run.held_until == 201.0

    virtual.run(main())


def test_a_second_stop_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        stops = Stops()
        run = make(10.0, stops)
        first = ClientClosedError("first")
        run.note_stall(DOWN)
        run.stop(first)
        run.stop(ClientClosedError("second"))
        await asyncio.sleep(100)  # the patience ends meanwhile
        assert run.stopped_by is first
        assert stops.times == [0.0]

    with caplog.at_level(logging.WARNING, "loops_async"):
        virtual.run(main())
    assert not caplog.messages


def test_a_stop_ends_all_waits_at_once() -> None:
    async def main() -> None:
        run = make()

        async def wait() -> float:
            try:
                async with asyncio.timeout_at(None) as scope:
                    run.waiting.add(scope)
                    await asyncio.sleep(1e6)
            except TimeoutError:
                return now()
            raise AssertionError

        waits = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(2)
        run.stop(ClientClosedError("over"))
        assert await asyncio.gather(*waits) == [2.0] * 3

    virtual.run(main())


def test_a_stop_ignores_a_wait_that_has_just_ended() -> None:
    async def main() -> None:
        stops = Stops()
        run = make(None, stops)
        async with asyncio.timeout(None) as scope:
            await asyncio.sleep(0)
        run.waiting.add(scope)  # as if it were not removed yet
        run.stop(ClientClosedError("over"))
        assert stops.times == [0.0]

    virtual.run(main())


def test_a_run_whose_timer_is_cancelled_is_not_stopped_by_its_patience() -> None:
    async def main() -> None:
        stops = Stops()
        run = make(10.0, stops)
        run.note_stall(DOWN)
        run.cancel_timer()
        run.cancel_timer()
        await asyncio.sleep(100)
        assert stops.times == []

    virtual.run(main())
