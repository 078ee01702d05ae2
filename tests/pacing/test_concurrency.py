"""The limit on concurrent requests."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import virtual_time as virtual

from loops_async._pacing.concurrency import ConcurrencyLimit


def test_acquire_takes_a_free_slot_without_suspending() -> None:
    async def main() -> None:
        slots = ConcurrencyLimit(2)
        for free in (1, 0):
            with pytest.raises(StopIteration):
                slots.acquire().send(None)
            assert slots.free == free

    virtual.run(main())


def test_a_released_slot_goes_to_the_longest_waiter() -> None:
    async def main() -> None:
        slots = ConcurrencyLimit(1)
        await slots.acquire()
        served: list[int] = []

        async def wait(number: int) -> None:
            await slots.acquire()
            served.append(number)

        waiting = [asyncio.create_task(wait(number)) for number in range(3)]
        await virtual.settle()
        for number in range(3):
            slots.release()
            assert slots.free == 0  # assigned before the waiter has run
            await virtual.settle()
            assert served == list(range(number + 1))
        slots.release()
        assert slots.free == 1
        await asyncio.gather(*waiting)

    virtual.run(main())


def test_a_slot_assigned_to_a_waiter_that_is_cancelled_goes_to_the_next() -> None:
    async def main() -> None:
        slots = ConcurrencyLimit(1)
        await slots.acquire()
        first, second, third = (asyncio.create_task(slots.acquire()) for _ in range(3))
        await virtual.settle()
        second.cancel()
        await virtual.settle()
        slots.release()  # assigns the slot to the first task ...
        first.cancel()  # ... which has not run yet
        await third
        assert first.cancelled()
        assert slots.free == 0

    virtual.run(main())


@given(
    st.integers(1, 3),
    st.lists(
        st.sampled_from(["acquire", "release", "cancel", "release and cancel", "turn"])
    ),
)
def test_no_sequence_of_cancellations_loses_a_slot(
    limit: int, steps: list[str]
) -> None:
    async def main() -> None:
        slots = ConcurrencyLimit(limit)
        in_use = 0
        waiting: list[asyncio.Task[None]] = []

        async def acquire() -> None:
            nonlocal in_use
            await slots.acquire()
            in_use += 1

        def release() -> None:
            nonlocal in_use
            if in_use:
                in_use -= 1
                slots.release()

        for step in steps:
            if step == "acquire":
                waiting.append(asyncio.create_task(acquire()))
            if step.startswith("release"):
                release()
            if step.endswith("cancel") and waiting:
                waiting.pop(0).cancel()
            if step == "turn":
                await asyncio.sleep(0)
            assert in_use + slots.free <= limit
        for task in waiting:
            task.cancel()
        await virtual.settle()
        assert in_use + slots.free == limit

    virtual.run(main())
