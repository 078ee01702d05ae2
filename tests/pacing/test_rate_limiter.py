"""The queues of the rate limiter, its count of permits, and its hold."""

import asyncio
import gc
import math
import weakref
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import virtual_time as virtual
from support.limiters import (
    EXACT,
    IDLE,
    QUARTER,
    counts_of,
    limiter_with_credit,
    limits,
    make_limiter,
    now,
)

from loops_async import ConfigurationError, RateLimiter

# The order of the queues.


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    limits,
)
def test_each_queue_is_served_first_in_first_out(
    waiters: list[tuple[bool, bool]], limit: int
) -> None:
    """Each waiter is (bulk, cancelled); cancelled waiters are skipped."""

    async def main() -> None:
        limiter = make_limiter(limit)
        served: list[int] = []

        async def wait(index: int, bulk: bool) -> None:
            await limiter.acquire(bulk=bulk)
            served.append(index)
            limiter.release(answered=True)

        tasks = [
            asyncio.create_task(wait(index, bulk))
            for index, (bulk, _) in enumerate(waiters)
        ]
        await virtual.settle()
        for index, (_, cancelled) in enumerate(waiters):
            if cancelled:
                tasks[index].cancel()
        await asyncio.wait(tasks)
        for kind in (False, True):
            order = [index for index in served if waiters[index][0] is kind]
            assert order == sorted(order)
        expected = {
            index for index, (_, cancelled) in enumerate(waiters) if not cancelled
        }
        assert expected <= set(served)

    virtual.run(main())


async def order_of_service(limiter: RateLimiter, singles: int, bulks: int) -> str:
    """Return one letter per permit: "s" for single and "b" for bulk."""
    order: list[str] = []

    async def wait(*, bulk: bool) -> None:
        await limiter.acquire(bulk=bulk)
        order.append("b" if bulk else "s")
        limiter.release(answered=True)

    await asyncio.gather(
        *(wait(bulk=True) for _ in range(bulks)),
        *(wait(bulk=False) for _ in range(singles)),
    )
    return "".join(order)


def test_bulk_gets_every_tenth_permit_while_both_queues_wait() -> None:
    async def main() -> str:
        limiter = make_limiter(1)
        await limiter.acquire()
        limiter.release(answered=True)
        return await order_of_service(limiter, 45, 10)

    assert virtual.run(main()) == "sssssssssb" * 5 + "b" * 5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(0, 30), limits)
def test_single_sends_go_first_and_bulk_never_starves(
    singles: int, bulks: int, limit: int
) -> None:
    async def main() -> str:
        limiter = make_limiter(limit)
        for _ in range(limit):
            await limiter.acquire()
            limiter.release(answered=True)
        return await order_of_service(limiter, singles, bulks)

    order = virtual.run(main())
    both = order[: min(order.rfind("s"), order.rfind("b")) + 1]
    assert all("b" in both[at : at + 10] for at in range(len(both) - 9))
    assert both.count("b") <= -(-len(both) // 10) + 1
    assert (order.count("s"), order.count("b")) == (singles, bulks)


def test_one_queue_gets_all_permits_while_the_other_queue_is_empty() -> None:
    async def main() -> None:
        limiter = make_limiter(10)
        for bulk in (True, False):
            before = now()
            await asyncio.gather(*(limiter.acquire(bulk=bulk) for _ in range(10)))
            assert now() - before <= 0.4  # bulk spreads permits over part of a period
            for _ in range(10):
                limiter.release(answered=True)
            await asyncio.sleep(1)

    virtual.run(main())


def test_a_new_caller_does_not_overtake_a_waiter() -> None:
    async def main() -> None:
        limiter = make_limiter(1)
        await limiter.acquire()
        waiting = asyncio.create_task(limiter.acquire(bulk=True))
        await virtual.settle()
        limiter.release_unused()
        assert not limiter.try_acquire()
        await waiting

    virtual.run(main())


# The count of permits.

_steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "single",
                "bulk",
                "try",
                "release",
                "lose",
                "unused",
                "cancel",
                "cancel all",
                "hold",
                "wait",
                "wait",
            ]
        ),
        st.integers(0, 20),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=120, deadline=None)
@given(_steps, limits)
@example([("single", 0, True)] * 4 + [("unused", 0, False), ("cancel all", 0, True)], 2)
def test_no_sequence_of_steps_loses_or_adds_a_permit(
    steps: list[tuple[str, int, bool]], limit: int
) -> None:
    """The limit equals free + in flight + returning after every step."""

    async def main() -> weakref.ref[asyncio.AbstractEventLoop]:
        limiter = make_limiter(limit)
        tasks: set[asyncio.Task[None]] = set()
        in_flight = 0

        def on_done(task: "asyncio.Task[None]") -> None:
            nonlocal in_flight
            tasks.discard(task)
            in_flight += not task.cancelled()

        for step, number, settled in steps:
            if step in ("single", "bulk"):
                acquiring = limiter.acquire(bulk=step == "bulk")
                task = asyncio.create_task(acquiring)
                tasks.add(task)
                task.add_done_callback(on_done)
            elif step == "try":
                in_flight += limiter.try_acquire()
            elif step == "release" and in_flight:
                in_flight -= 1
                limiter.release(answered=True, round_trip=number / 100)
            elif step == "lose" and in_flight:
                in_flight -= 1
                limiter.release(answered=False)
            elif step == "unused" and in_flight:
                in_flight -= 1
                limiter.release_unused()
            elif step == "cancel" and tasks:
                sorted(tasks, key=id)[number % len(tasks)].cancel()
            elif step == "cancel all":
                for task in tasks:
                    task.cancel()
            elif step == "hold":
                limiter.hold(number / 8)
            elif step == "wait":
                await asyncio.sleep(number / 8)
            if settled:  # otherwise the next step precedes the callbacks of this one
                await virtual.settle()
                counts = counts_of(limiter)
                assert counts["in flight"] == in_flight
                assert counts["waiting"] == len(tasks)
                assert counts["free"] + in_flight + counts["returning"] == limit
                assert min(counts.values()) >= 0
        while tasks:  # each waiter gets a permit in the end
            await asyncio.sleep(1)
            while in_flight:
                in_flight -= 1
                limiter.release(answered=True)
            assert now() < 1000
        await virtual.settle()
        while in_flight:
            in_flight -= 1
            limiter.release(answered=True)
        await asyncio.sleep(limiter.period)
        assert counts_of(limiter) == {**IDLE, "free": limit}
        kept.append(limiter)
        return weakref.ref(asyncio.get_running_loop())

    kept: list[RateLimiter] = []
    loop = virtual.run(main())
    if loop() is not None:
        gc.collect()
    assert loop() is None, "the limiter still refers to its event loop"


def test_a_permit_granted_to_a_waiter_that_is_cancelled_goes_to_the_next() -> None:
    async def main() -> None:
        limiter = make_limiter(1)
        await limiter.acquire()
        first, second = (asyncio.create_task(limiter.acquire()) for _ in range(2))
        await virtual.settle()
        limiter.release_unused()  # grants the permit to the first task ...
        first.cancel()  # ... which has not run yet
        await second
        assert first.cancelled()
        assert counts_of(limiter)["in flight"] == 1

    virtual.run(main())


def test_try_acquire_finds_a_permit_only_after_its_return() -> None:
    async def main() -> None:
        limiter = make_limiter(2)
        assert limiter.try_acquire()
        assert limiter.try_acquire()
        assert not limiter.try_acquire()
        limiter.release(answered=True)
        assert not limiter.try_acquire()
        await asyncio.sleep(1)
        assert limiter.try_acquire()
        assert not limiter.try_acquire()
        limiter.release_unused()
        assert limiter.try_acquire()

    virtual.run(main())


# The hold.


def test_a_hold_delays_single_sends_and_bulk() -> None:
    async def main() -> None:
        limiter = make_limiter(3)
        await limiter.acquire()
        limiter.hold(5)
        limiter.hold(1)  # ends earlier and has no effect
        assert not limiter.try_acquire()
        assert limiter.shortest_wait() == 5
        assert repr(limiter).endswith("0 waiting, held for 5.0 s>")
        limiter.release_unused()
        await asyncio.gather(limiter.acquire(), limiter.acquire(bulk=True))
        assert now() == pytest.approx(5)
        assert limiter.try_acquire()
        assert repr(limiter).endswith("0 waiting>")

    virtual.run(main())


def test_a_hold_delays_waiters_that_were_already_in_line() -> None:
    async def main() -> None:
        limiter = make_limiter(1)
        await limiter.acquire()
        limiter.release(answered=True)
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.5)
        limiter.hold(3)
        await waiting
        assert now() == pytest.approx(3.5)

    virtual.run(main())


# The shortest wait.


async def assert_waits_are_not_shorter(
    limiter: RateLimiter, steps: list[tuple[str, int]], round_trip: float | None
) -> None:
    """Compare `shortest_wait` with the actual wait of every single send."""
    fastest = 0.0 if round_trip is None else round_trip

    async def send(*, bulk: bool, extra: float) -> None:
        predicted = 0.0 if bulk else limiter.shortest_wait()
        before = now()
        await limiter.acquire(bulk=bulk)
        assert now() - before >= predicted - EXACT
        await asyncio.sleep(fastest + extra)
        limiter.release(
            answered=True,
            round_trip=None if round_trip is None else fastest + extra,
        )

    async with asyncio.TaskGroup() as group:
        for step, number in steps:
            if step == "hold":
                limiter.hold(number / 8)
            elif step == "wait":
                await asyncio.sleep(number / 8)
            else:
                group.create_task(send(bulk=step == "bulk", extra=number / 16))
                await asyncio.sleep(0)


_sends = st.lists(
    st.tuples(
        st.sampled_from(["single", "single", "single", "bulk", "hold", "wait"]),
        st.integers(0, 20),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(_sends, limits)
def test_the_shortest_wait_is_a_lower_bound_while_no_permit_is_released_unused(
    steps: list[tuple[str, int]], limit: int
) -> None:
    """A deadline that ends before the shortest wait can therefore not be met."""

    async def main() -> None:
        await assert_waits_are_not_shorter(make_limiter(limit), steps, None)

    virtual.run(main())


@settings(max_examples=50, deadline=None)
@given(_sends, limits)
def test_the_shortest_wait_is_a_lower_bound_with_credit(
    steps: list[tuple[str, int]], limit: int
) -> None:
    """No round trip is faster than the fastest that the limiter has learned."""

    async def main() -> None:
        limiter = await limiter_with_credit(limit)
        await assert_waits_are_not_shorter(limiter, steps, 4 * QUARTER)

    virtual.run(main())


def test_the_shortest_wait_is_a_lower_bound_when_the_first_credit_arrives() -> None:
    """The 20th round trip returns its permit earlier than a period."""

    async def main() -> None:
        limiter = make_limiter(1)
        for _ in range(19):
            await limiter.acquire()
            await asyncio.sleep(0.4)
            limiter.release(answered=True, round_trip=0.4)
        await limiter.acquire()
        await asyncio.sleep(0.4)  # the response is about to arrive
        predicted, before = limiter.shortest_wait(), now()
        limiter.release(answered=True, round_trip=0.4)
        await limiter.acquire()
        assert now() - before >= predicted - EXACT

    virtual.run(main())


def test_the_shortest_wait_counts_the_single_sends_ahead() -> None:
    async def main() -> None:
        limiter = make_limiter(2)
        assert limiter.shortest_wait() == 0
        await limiter.acquire()
        assert limiter.shortest_wait() == 0
        await limiter.acquire()
        assert limiter.shortest_wait() == 1  # both permits are in flight
        await asyncio.sleep(0.5)
        limiter.release(answered=True)
        await asyncio.sleep(0.25)
        assert limiter.shortest_wait() == 0.75
        waits = []
        tasks = []
        for _ in range(5):
            waits.append(limiter.shortest_wait())
            tasks.append(asyncio.create_task(limiter.acquire()))
            tasks.append(asyncio.create_task(limiter.acquire(bulk=True)))
            await asyncio.sleep(0)
        assert waits == [0.75, 1, 1.75, 2, 2.75]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    virtual.run(main())


# Arguments, repr and cost.


@pytest.mark.parametrize("limit", [0, -1, 1.5, "10", None, True, math.inf])
def test_a_limit_that_is_not_a_whole_number_from_1_is_rejected(limit: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RateLimiter(limit)
    assert str(caught.value) == f"limit must be a whole number from 1, not {limit!r}"


@pytest.mark.parametrize("period", [0, -1, math.inf, math.nan, "1", None, True])
def test_a_period_that_is_not_a_positive_number_is_rejected(period: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RateLimiter(10, period)
    expected = f"period must be a positive number of seconds, not {period!r}"
    assert str(caught.value) == expected


def test_the_repr_shows_configuration_and_state() -> None:
    async def main() -> str:
        limiter = make_limiter(3, 2)
        for _ in range(3):
            await limiter.acquire()
        limiter.release(answered=True)
        task = asyncio.create_task(limiter.acquire())
        await virtual.settle()
        text = repr(limiter)
        task.cancel()
        return text

    assert virtual.run(main()) == (
        "<RateLimiter 3 per 2 s: 0 free, 2 in flight, 1 returning, 1 waiting>"
    )


def test_the_defaults_are_10_per_second_on_the_monotonic_clock() -> None:
    limiter = RateLimiter()
    assert (limiter.limit, limiter.period) == (10, 1.0)
    assert limiter.try_acquire()
    limiter.release(answered=True)
    assert counts_of(limiter)["returning"] == 1


def test_a_long_queue_costs_a_few_loop_turns_per_permit() -> None:
    """Waiters do not poll: the loop turns only when a permit returns."""

    async def main() -> int:
        limiter = make_limiter(1)

        async def send() -> None:
            await limiter.acquire()
            limiter.release(answered=True)

        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual.VirtualLoop)
        tasks = [asyncio.create_task(send()) for _ in range(100)]
        await asyncio.gather(*tasks)
        assert now() == pytest.approx(99)
        return loop.turns

    assert virtual.run(main()) <= 600
