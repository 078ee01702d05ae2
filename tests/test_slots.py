"""So many requests under way at once, and no more."""

import asyncio

import pytest
import virtual
from hypothesis import given
from hypothesis import strategies as st

from loops_async._slots import Slots


def test_what_is_free_is_taken_without_a_wait() -> None:
    async def main() -> None:
        slots = Slots(2)
        for left in (1, 0):
            with pytest.raises(StopIteration):
                slots.take().send(None)
            assert slots.free == left

    virtual.run(main())


def test_a_slot_given_back_goes_to_who_waited_longest() -> None:
    async def main() -> None:
        slots = Slots(1)
        await slots.take()
        served: list[int] = []

        async def wait(number: int) -> None:
            await slots.take()
            served.append(number)

        waiting = [asyncio.create_task(wait(number)) for number in range(3)]
        await virtual.settle()
        for number in range(3):
            slots.give()
            assert slots.free == 0  # it is spoken for, though nobody woke yet
            await virtual.settle()
            assert served == list(range(number + 1))
        slots.give()
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
        slots = Slots(number)
        held = 0
        waiting: list[asyncio.Task[None]] = []

        async def take() -> None:
            nonlocal held
            await slots.take()
            held += 1

        def give() -> None:
            nonlocal held
            if held:
                held -= 1
                slots.give()

        for step in steps:
            if step == "take":
                waiting.append(asyncio.create_task(take()))
            if step.startswith("give"):
                give()
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
