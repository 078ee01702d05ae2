"""The outage gate, in virtual time."""

import asyncio
import logging
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import virtual_time as virtual

from loops_async._pacing.circuit_breaker import CircuitBreaker


def now() -> float:
    return asyncio.get_running_loop().time()


def closed_gate() -> CircuitBreaker:
    gate = CircuitBreaker()
    for _ in range(5):
        gate.record_failure(probe=0)
    assert not gate.is_closed
    return gate


def test_the_gate_closes_after_five_failures_in_a_row() -> None:
    async def main() -> None:
        gate = CircuitBreaker()
        for _ in range(4):
            gate.record_failure(probe=0)
        assert gate.is_closed
        gate.record_success()
        for _ in range(4):
            gate.record_failure(probe=0)
        assert gate.is_closed
        assert gate.shortest_wait() == 0
        gate.record_failure(probe=0)
        assert not gate.is_closed
        assert gate.shortest_wait() == 0.5

    virtual.run(main())


def test_an_open_gate_holds_nobody() -> None:
    async def main() -> None:
        gate = CircuitBreaker()
        assert [await gate.acquire() for _ in range(100)] == [False] * 100
        assert now() == 0

    virtual.run(main())


def test_one_probe_goes_out_per_pause_and_the_pauses_grow() -> None:
    async def main() -> list[float]:
        gate = closed_gate()
        times = [now()]
        for _ in range(8):
            probe = await gate.acquire()
            assert probe
            times.append(now())
            gate.record_failure(probe=probe)
        return times

    times = virtual.run(main())
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([0.5, 1, 2, 4, 5, 5, 5, 5])


def test_a_closed_again_gate_begins_with_the_short_pause() -> None:
    async def main() -> None:
        gate = closed_gate()
        for _ in range(3):
            gate.record_failure(probe=await gate.acquire())
        gate.record_success()
        for _ in range(5):
            gate.record_failure(probe=0)
        assert gate.shortest_wait() == pytest.approx(0.5)

    virtual.run(main())


def test_a_probe_that_is_due_goes_out_at_once() -> None:
    async def main() -> None:
        gate = closed_gate()
        await asyncio.sleep(30)
        assert gate.shortest_wait() == 0
        assert await gate.acquire()
        assert now() == 30

    virtual.run(main())


def test_while_a_probe_is_out_everybody_else_waits() -> None:
    async def main() -> None:
        gate = closed_gate()
        first, *others = [asyncio.create_task(gate.acquire()) for _ in range(10)]
        assert await first
        await asyncio.sleep(100)
        assert not any(task.done() for task in others)
        assert "9 waiting" in repr(gate)
        gate.record_success()
        assert await asyncio.gather(*others) == [False] * 9

    virtual.run(main())


def test_any_success_opens_the_gate_for_all() -> None:
    """Also that of a request which was under way when it closed."""

    async def main() -> None:
        gate = closed_gate()
        waiting = [asyncio.create_task(gate.acquire()) for _ in range(5)]
        await virtual.settle()
        gate.record_success()
        assert await asyncio.gather(*waiting) == [False] * 5
        assert now() == 0
        assert gate.is_closed

    virtual.run(main())


def test_failures_of_what_was_under_way_do_not_lengthen_the_pause() -> None:
    async def main() -> None:
        gate = closed_gate()
        for _ in range(50):
            gate.record_failure(probe=0)
        assert gate.shortest_wait() == 0.5
        probe = await gate.acquire()
        assert probe
        for _ in range(50):
            gate.record_failure(probe=0)
        assert now() == 0.5
        gate.record_failure(probe=probe)
        assert gate.shortest_wait() == 1.0

    virtual.run(main())


def test_a_probe_that_showed_nothing_hands_its_turn_on() -> None:
    async def main() -> None:
        gate = closed_gate()
        probe = await gate.acquire()
        assert probe
        waiting = [asyncio.create_task(gate.acquire()) for _ in range(2)]
        await asyncio.sleep(1)
        gate.abandon(probe=probe)
        await virtual.settle()
        assert waiting[0].result()
        assert not waiting[1].done()
        gate.record_success()
        assert not await waiting[1]

    virtual.run(main())


def test_who_leaves_without_being_the_probe_changes_nothing() -> None:
    async def main() -> None:
        gate = closed_gate()
        probe = await gate.acquire()
        assert probe
        waiting = asyncio.create_task(gate.acquire())
        gate.abandon(probe=0)
        await asyncio.sleep(10)
        assert not waiting.done()
        gate.record_success()
        gate.abandon(probe=probe)
        assert gate.is_closed
        assert not await waiting

    virtual.run(main())


def test_a_cancelled_waiter_is_passed_over() -> None:
    async def main() -> None:
        gate = closed_gate()
        waiting = [asyncio.create_task(gate.acquire()) for _ in range(3)]
        await virtual.settle()
        waiting[0].cancel()
        waiting[1].cancel()
        assert await waiting[2]
        assert now() == 0.5

    virtual.run(main())


def test_a_probe_cancelled_as_its_turn_comes_hands_it_on() -> None:
    """Between the turn and the moment its task runs."""

    async def main() -> None:
        gate = closed_gate()
        first, second = (asyncio.create_task(gate.acquire()) for _ in range(2))
        await virtual.settle()
        # Later than the gate's own timer, in the same turn of the loop.
        asyncio.get_running_loop().call_at(0.5, first.cancel)
        assert await second
        assert first.cancelled()
        assert now() == 0.5

    virtual.run(main())


def test_a_waiter_cancelled_as_the_gate_opens_takes_no_turn_along() -> None:
    async def main() -> None:
        gate = closed_gate()
        waiting = asyncio.create_task(gate.acquire())
        await virtual.settle()
        gate.record_success()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert not await gate.acquire()

    virtual.run(main())


def test_when_all_waiters_are_gone_the_next_one_probes() -> None:
    async def main() -> None:
        gate = closed_gate()
        waiting = asyncio.create_task(gate.acquire())
        await virtual.settle()
        waiting.cancel()
        await asyncio.sleep(7)
        assert await gate.acquire()
        assert now() == 7

    virtual.run(main())


def test_a_gate_shows_its_state() -> None:
    async def main() -> None:
        gate = CircuitBreaker()
        assert repr(gate) == "<CircuitBreaker open, 0 failures in a row>"
        for _ in range(6):
            gate.record_failure(probe=0)
        assert repr(gate) == "<CircuitBreaker closed, 0 waiting, 6 failures in a row>"

    virtual.run(main())


def test_an_outage_is_logged_once_at_each_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        gate = closed_gate()
        for _ in range(20):
            gate.record_failure(probe=0)
        gate.record_success()
        gate.record_success()

    with caplog.at_level(logging.WARNING, "loops_async"):
        virtual.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "5 attempts in a row failed: holding all sends, probing every 0.5 to 5.0 s",
        "Loops answers again: sending resumes",
    ]


@pytest.mark.parametrize("how", ["record_failure", "abandon"])
def test_the_probe_of_an_outage_that_is_over_is_no_probe_of_the_next(
    how: Literal["record_failure", "abandon"],
) -> None:
    """A probe may hang while another answer opens the gate, and it closes again."""

    async def main() -> None:
        gate = closed_gate()
        hung = await gate.acquire()
        assert hung
        gate.record_success()
        for _ in range(5):
            gate.record_failure(probe=0)
        assert await gate.acquire()
        third = asyncio.create_task(gate.acquire())
        getattr(gate, how)(probe=hung)
        await asyncio.sleep(60)
        assert not third.done()
        third.cancel()

    virtual.run(main())


Step = Literal["enter", "succeed", "fail", "leave", "cancel", "wait", "other"]
_steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["enter", "enter", "succeed", "fail", "leave", "cancel", "wait", "other"]
        ),
        st.integers(0, 30),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(_steps)
def test_never_two_probes_and_nobody_waits_for_ever(
    steps: list[tuple[Step, int]],
) -> None:
    """Whatever order enter, success, failure and cancellation come in."""

    async def main() -> None:
        gate = CircuitBreaker()
        tasks: list[asyncio.Task[int]] = []
        out: list[asyncio.Task[int]] = []  # probes under way
        last_probe = -1.0
        for step, pick in steps:
            if step == "enter":
                tasks.append(asyncio.create_task(gate.acquire()))
            elif step == "wait":
                await asyncio.sleep(pick / 8)
            elif step == "other":
                gate.record_failure(probe=0)
            elif step == "cancel" and tasks:
                tasks[pick % len(tasks)].cancel()
            elif step == "succeed" and (out or pick % 3 == 0):
                gate.record_success()
                out.clear()  # from now on they are requests like any other
            elif step in ("fail", "leave") and out:
                probe = out.pop().result()
                if step == "fail":
                    gate.record_failure(probe=probe)
                else:
                    gate.abandon(probe=probe)
                    last_probe = -1.0
            if step != "cancel" or pick % 2:  # else cancelled before it runs
                await virtual.settle()
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                if not task.cancelled() and task.result():
                    out.append(task)
                    assert now() - last_probe >= 0.5 - 1e-6
                    last_probe = now()
            assert len(out) <= 1
            assert not gate.is_closed or not tasks
        if not out and tasks:
            # Somebody's turn comes by itself, within the longest pause.
            before = now()
            done, _ = await asyncio.wait(
                tasks, return_when=asyncio.FIRST_COMPLETED, timeout=60
            )
            assert done
            assert now() - before <= 5 + 1e-6
        gate.record_success()
        await virtual.settle()
        assert all(task.done() for task in tasks)
        assert not await gate.acquire()

    virtual.run(main())
