"""So many requests under way at once, and no more."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import virtual_time as virtual

from loops_async._pacing.concurrency import ConcurrencyLimit


def test_what_is_free_is_taken_without_a_wait() -> None:
    async def main() -> None:
        slots = ConcurrencyLimit(2)
        for left in (1, 0):
            with pytest.raises(StopIteration):
                slots.acquire().send(None)
            assert slots.free == left

    virtual.run(main())


def test_a_slot_given_back_goes_to_who_waited_longest() -> None:
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
            assert slots.free == 0  # it is spoken for, though nobody woke yet
            await virtual.settle()
            assert served == list(range(number + 1))
        slots.release()
        assert slots.free == 1
        await asyncio.gather(*waiting)

    virtual.run(main())


@given(
    st.integers(1, 3),
    st.lists(st.sampled_from(["take", "give", "cancel", "give and cancel", "turn"])),
)
def test_whoever_gives_up_in_whatever_moment_leaks_none(
    number: int, steps: list[str]
) -> None:
    async def main() -> None:
        slots = ConcurrencyLimit(number)
        held = 0
        waiting: list[asyncio.Task[None]] = []

        async def acquire() -> None:
            nonlocal held
            await slots.acquire()
            held += 1

        def release() -> None:
            nonlocal held
            if held:
                held -= 1
                slots.release()

        for step in steps:
            if step == "take":
                waiting.append(asyncio.create_task(acquire()))
            if step.startswith("give"):
                release()
            if step.endswith("cancel") and waiting:
                waiting.pop(0).cancel()
            if step == "turn":
                await asyncio.sleep(0)
            assert held + slots.free <= number
        for task in waiting:
            task.cancel()
        await virtual.settle()
        assert held + slots.free == number

    virtual.run(main())
