"""The circuit breaker, in virtual time."""

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


def open_breaker() -> CircuitBreaker:
    breaker = CircuitBreaker()
    for _ in range(5):
        breaker.record_failure(probe=0)
    assert not breaker.is_closed
    return breaker


def test_five_failures_in_a_row_open_the_breaker() -> None:
    async def main() -> None:
        breaker = CircuitBreaker()
        for _ in range(4):
            breaker.record_failure(probe=0)
        assert breaker.is_closed
        breaker.record_success()
        for _ in range(4):
            breaker.record_failure(probe=0)
        assert breaker.is_closed
        assert breaker.shortest_wait() == 0
        breaker.record_failure(probe=0)
        assert not breaker.is_closed
        assert breaker.shortest_wait() == 0.5

    virtual.run(main())


def test_a_closed_breaker_admits_every_caller_at_once() -> None:
    async def main() -> None:
        breaker = CircuitBreaker()
        assert [await breaker.acquire() for _ in range(100)] == [0] * 100
        assert now() == 0

    virtual.run(main())


def test_an_open_breaker_admits_one_probe_per_pause_and_the_pauses_grow() -> None:
    async def main() -> list[float]:
        breaker = open_breaker()
        times = [now()]
        for _ in range(8):
            probe = await breaker.acquire()
            assert probe
            times.append(now())
            breaker.record_failure(probe=probe)
        return times

    times = virtual.run(main())
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([0.5, 1, 2, 4, 5, 5, 5, 5])


def test_a_breaker_that_opens_again_starts_with_the_shortest_pause() -> None:
    async def main() -> None:
        breaker = open_breaker()
        for _ in range(3):
            breaker.record_failure(probe=await breaker.acquire())
        breaker.record_success()
        for _ in range(5):
            breaker.record_failure(probe=0)
        assert breaker.shortest_wait() == pytest.approx(0.5)

    virtual.run(main())


def test_a_probe_that_is_due_is_admitted_at_once() -> None:
    async def main() -> None:
        breaker = open_breaker()
        await asyncio.sleep(30)
        assert breaker.shortest_wait() == 0
        assert await breaker.acquire()
        assert now() == 30

    virtual.run(main())


def test_a_half_open_breaker_admits_no_caller_besides_the_probe() -> None:
    async def main() -> None:
        breaker = open_breaker()
        first, *others = [asyncio.create_task(breaker.acquire()) for _ in range(10)]
        assert await first
        await asyncio.sleep(100)
        assert not any(task.done() for task in others)
        assert "9 waiting" in repr(breaker)
        breaker.record_success()
        assert await asyncio.gather(*others) == [0] * 9

    virtual.run(main())


def test_any_success_closes_the_breaker_and_admits_all_waiters() -> None:
    """The success may be that of a request sent before the breaker opened."""

    async def main() -> None:
        breaker = open_breaker()
        waiting = [asyncio.create_task(breaker.acquire()) for _ in range(5)]
        await virtual.settle()
        breaker.record_success()
        assert await asyncio.gather(*waiting) == [0] * 5
        assert now() == 0
        assert breaker.is_closed

    virtual.run(main())


def test_failures_of_requests_sent_earlier_do_not_lengthen_the_pause() -> None:
    async def main() -> None:
        breaker = open_breaker()
        for _ in range(50):
            breaker.record_failure(probe=0)
        assert breaker.shortest_wait() == 0.5
        probe = await breaker.acquire()
        assert probe
        for _ in range(50):
            breaker.record_failure(probe=0)
        assert now() == 0.5
        breaker.record_failure(probe=probe)
        assert breaker.shortest_wait() == 1.0

    virtual.run(main())


def test_an_abandoned_probe_passes_its_turn_to_the_next_waiter() -> None:
    async def main() -> None:
        breaker = open_breaker()
        probe = await breaker.acquire()
        assert probe
        waiting = [asyncio.create_task(breaker.acquire()) for _ in range(2)]
        await asyncio.sleep(1)
        breaker.abandon(probe=probe)
        await virtual.settle()
        assert waiting[0].result()
        assert not waiting[1].done()
        breaker.record_success()
        assert not await waiting[1]

    virtual.run(main())


def test_abandoning_an_attempt_that_is_not_the_probe_has_no_effect() -> None:
    async def main() -> None:
        breaker = open_breaker()
        probe = await breaker.acquire()
        assert probe
        waiting = asyncio.create_task(breaker.acquire())
        breaker.abandon(probe=0)
        await asyncio.sleep(10)
        assert not waiting.done()
        breaker.record_success()
        breaker.abandon(probe=probe)
        assert breaker.is_closed
        assert not await waiting

    virtual.run(main())


def test_a_cancelled_waiter_is_skipped() -> None:
    async def main() -> None:
        breaker = open_breaker()
        waiting = [asyncio.create_task(breaker.acquire()) for _ in range(3)]
        await virtual.settle()
        waiting[0].cancel()
        waiting[1].cancel()
        assert await waiting[2]
        assert now() == 0.5

    virtual.run(main())


def test_a_probe_that_is_cancelled_before_its_task_runs_passes_its_turn_on() -> None:
    async def main() -> None:
        breaker = open_breaker()
        first, second = (asyncio.create_task(breaker.acquire()) for _ in range(2))
        await virtual.settle()
        # This timer runs after the breaker's timer, in the same turn of the loop.
        asyncio.get_running_loop().call_at(0.5, first.cancel)
        assert await second
        assert first.cancelled()
        assert now() == 0.5

    virtual.run(main())


def test_a_waiter_that_is_cancelled_as_the_breaker_closes_leaves_it_closed() -> None:
    async def main() -> None:
        breaker = open_breaker()
        waiting = asyncio.create_task(breaker.acquire())
        await virtual.settle()
        breaker.record_success()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert not await breaker.acquire()

    virtual.run(main())


def test_a_caller_becomes_the_probe_after_all_waiters_were_cancelled() -> None:
    async def main() -> None:
        breaker = open_breaker()
        waiting = asyncio.create_task(breaker.acquire())
        await virtual.settle()
        waiting.cancel()
        await asyncio.sleep(7)
        assert await breaker.acquire()
        assert now() == 7

    virtual.run(main())


def test_the_repr_shows_the_state() -> None:
    async def main() -> None:
        breaker = CircuitBreaker()
        assert repr(breaker) == "<CircuitBreaker closed, 0 failures in a row>"
        for _ in range(6):
            breaker.record_failure(probe=0)
        assert repr(breaker) == "<CircuitBreaker open, 0 waiting, 6 failures in a row>"
        probe = await breaker.acquire()
        assert breaker.state == "half-open"
        assert repr(breaker).startswith("<CircuitBreaker half-open, 0 waiting, ")
        breaker.record_failure(probe=probe)
        assert breaker.state == "open"
        breaker.record_success()
        assert breaker.state == "closed"

    virtual.run(main())


def test_an_outage_is_logged_once_at_its_start_and_once_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        breaker = open_breaker()
        for _ in range(20):
            breaker.record_failure(probe=0)
        breaker.record_success()
        breaker.record_success()

    with caplog.at_level(logging.WARNING, "loops_async"):
        virtual.run(main())
    opened, closed = (record.getMessage() for record in caplog.records)
    assert opened == (
        "5 attempts in a row failed: holding all sends and probing Loops "
        "every 0.5 to 5.0 s"
    )
    assert closed == "Loops responds again: sending resumes"


@pytest.mark.parametrize("ending", ["record_failure", "abandon"])
def test_the_probe_of_an_earlier_outage_does_not_count_as_the_current_probe(
    ending: Literal["record_failure", "abandon"],
) -> None:
    """A probe may hang while another response ends the outage and a new one starts."""

    async def main() -> None:
        breaker = open_breaker()
        hung = await breaker.acquire()
        assert hung
        breaker.record_success()
        for _ in range(5):
            breaker.record_failure(probe=0)
        assert await breaker.acquire()
        third = asyncio.create_task(breaker.acquire())
        getattr(breaker, ending)(probe=hung)
        await asyncio.sleep(60)
        assert not third.done()
        third.cancel()

    virtual.run(main())


Step = Literal["acquire", "succeed", "fail", "abandon", "cancel", "wait", "other"]
_steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "acquire",
                "acquire",
                "succeed",
                "fail",
                "abandon",
                "cancel",
                "wait",
                "other",
            ]
        ),
        st.integers(0, 30),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(_steps)
def test_no_sequence_of_steps_admits_two_probes_or_leaves_a_waiter_behind(
    steps: list[tuple[Step, int]],
) -> None:
    async def main() -> None:
        breaker = CircuitBreaker()
        tasks: list[asyncio.Task[int]] = []
        probes: list[asyncio.Task[int]] = []  # in flight
        last_probe = -1.0
        for step, number in steps:
            if step == "acquire":
                tasks.append(asyncio.create_task(breaker.acquire()))
            elif step == "wait":
                await asyncio.sleep(number / 8)
            elif step == "other":
                breaker.record_failure(probe=0)
            elif step == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            elif step == "succeed" and (probes or number % 3 == 0):
                breaker.record_success()
                probes.clear()  # a closed breaker no longer counts them as probes
            elif step in ("fail", "abandon") and probes:
                probe = probes.pop().result()
                if step == "fail":
                    breaker.record_failure(probe=probe)
                else:
                    breaker.abandon(probe=probe)
                    last_probe = -1.0
            if step != "cancel" or number % 2:  # otherwise cancelled before it runs
                await virtual.settle()
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                if not task.cancelled() and task.result():
                    probes.append(task)
                    assert now() - last_probe >= 0.5 - 1e-6
                    last_probe = now()
            assert len(probes) <= 1
            assert not breaker.is_closed or not tasks
        if not probes and tasks:
            # One waiter becomes the probe within the longest pause.
            before = now()
            done, _ = await asyncio.wait(
                tasks, return_when=asyncio.FIRST_COMPLETED, timeout=60
            )
            assert done
            assert now() - before <= 5 + 1e-6
        breaker.record_success()
        await virtual.settle()
        assert all(task.done() for task in tasks)
        assert not await breaker.acquire()

    virtual.run(main())
