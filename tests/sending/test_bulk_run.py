"""What the sends of a bulk run share, in virtual time."""

import asyncio
import logging
import math
from collections.abc import Callable

import attrs
import pytest
from support import virtual_time as virtual

from loops_async import ClientClosedError, DeadlineExceededError, LoopsError
from loops_async._sending.bulk_run import BulkRun

DOWN = LoopsError("Loops answered 503")
BUSY = LoopsError("Loops answered 429")


def now() -> float:
    return asyncio.get_running_loop().time()


@attrs.define
class Stops:
    """When it was told of a stop."""

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


def test_a_new_lane_holds_nobody() -> None:
    async def main() -> None:
        lane = make(10.0)
        assert lane.stopped_by is None
        assert lane.held_until == -math.inf
        assert not lane.standing

    virtual.run(main())


def test_patience_ends_that_long_after_it_first_stood_still() -> None:
    """What fails meanwhile does not begin it anew; the last of it is told."""

    async def main() -> None:
        stops = Stops()
        lane = make(10.0, stops)
        await asyncio.sleep(3)
        for key in "ab":
            lane.stands(DOWN, key=key)
        await asyncio.sleep(6)
        for key in "ab":
            lane.stands(BUSY, key=key)
        await asyncio.sleep(100)
        assert stops.times == [13.0]
        error = lane.stopped_by
        assert isinstance(error, DeadlineExceededError)
        text = "nothing was taken for 10 s; the last: Loops answered 429"
        assert str(error) == text
        assert error.retryable
        assert not error.maybe_accepted
        assert lane.held_until == math.inf

    virtual.run(main())


def test_losing_patience_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        lane = make(10.0)
        for key in "ab":
            lane.stands(DOWN, key=key)
        await asyncio.sleep(11)

    with caplog.at_level(logging.WARNING, "loops_async"):
        virtual.run(main())
    assert "sending stopped: nothing was taken for 10 s" in caplog.text


def test_a_success_gives_the_whole_patience_back() -> None:
    async def main() -> None:
        stops = Stops()
        lane = make(10.0, stops)
        for _ in range(3):
            for key in "ab":
                lane.stands(DOWN, key=key)
            await asyncio.sleep(9)
            lane.moves()
            assert not lane.standing
        for key in "ab":
            lane.stands(DOWN, key=key)
        await asyncio.sleep(100)
        assert stops.times == [37.0]

    virtual.run(main())


def test_without_a_patience_it_stands_for_ever() -> None:
    async def main() -> None:
        lane = make(None)
        lane.stands(DOWN)
        await asyncio.sleep(1e6)
        assert lane.stopped_by is None
        assert lane.standing

    virtual.run(main())


def test_it_is_held_for_the_longest_that_was_asked() -> None:
    async def main() -> None:
        lane = make()
        lane.stands(BUSY, 100.0)
        await asyncio.sleep(1)
        lane.stands(BUSY, 5.0)
        assert lane.held_until == 100.0
        lane.stands(BUSY, 200.0)
        assert lane.held_until == 201.0

    virtual.run(main())


def test_only_the_first_stop_counts(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        stops = Stops()
        lane = make(10.0, stops)
        first = ClientClosedError("first")
        lane.stands(DOWN)
        lane.stop(first)
        lane.stop(ClientClosedError("second"))
        await asyncio.sleep(100)  # the patience that was running is over, too
        assert lane.stopped_by is first
        assert stops.times == [0.0]

    with caplog.at_level(logging.WARNING, "loops_async"):
        virtual.run(main())
    assert not caplog.messages  # nor is a second one told of


def test_a_stop_cuts_all_waiting_short() -> None:
    async def main() -> None:
        lane = make()

        async def wait() -> float:
            try:
                async with asyncio.timeout_at(None) as scope:
                    lane.waiting.add(scope)
                    await asyncio.sleep(1e6)
            except TimeoutError:
                return now()
            raise AssertionError

        waits = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(2)
        lane.stop(ClientClosedError("over"))
        assert await asyncio.gather(*waits) == [2.0] * 3

    virtual.run(main())


def test_a_stop_minds_no_wait_that_is_ending_by_itself() -> None:
    async def main() -> None:
        stops = Stops()
        lane = make(None, stops)
        async with asyncio.timeout(None) as scope:
            await asyncio.sleep(0)
        lane.waiting.add(scope)  # as if not yet taken out
        lane.stop(ClientClosedError("over"))
        assert stops.times == [0.0]

    virtual.run(main())


def test_a_closed_lane_loses_no_patience_any_more() -> None:
    async def main() -> None:
        stops = Stops()
        lane = make(10.0, stops)
        lane.stands(DOWN)
        lane.disarm()
        lane.disarm()
        await asyncio.sleep(100)
        assert stops.times == []

    virtual.run(main())
