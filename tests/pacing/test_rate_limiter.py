"""The rate limiter: its law, its fairness, its books, in virtual time.

The server of these tests counts a request when it arrives. What is proved of
its sliding window holds for every window: with no two of ``limit + 1``
arrivals within a period, an interval of length T holds at most
``limit * (floor(T / period) + 1)`` of them, which is what a fixed window of
any phase (T < period) and a bucket of ``limit`` refilled evenly admit. All
three are counted all the same.
"""

import asyncio
import gc
import math
import re
import sys
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import virtual_time as virtual

from loops_async import ConfigurationError, RateLimiter

EXACT = 1e-9  # seconds; what sums of floats may be off


def now() -> float:
    return asyncio.get_running_loop().time()


def make(limit: int = 10, period: float = 1.0) -> RateLimiter:
    return RateLimiter(limit, period, clock=asyncio.get_running_loop().time)


def books(limiter: RateLimiter) -> dict[str, int]:
    """Read the books from the repr: they are part of what is shown."""
    text = repr(limiter).partition(": ")[2]
    found = re.findall(r"(-?\d+) (free|under way|coming back|waiting)", text)
    return {name: int(number) for number, name in found}


ALL_FREE = {"under way": 0, "coming back": 0, "waiting": 0}


# The server's windows, over the times at which requests arrived.


def most_in_a_sliding_window(arrivals: Sequence[float], period: float) -> int:
    times = sorted(arrivals)
    return max(
        (sum(first <= at < first + period - EXACT for at in times) for first in times),
        default=0,
    )


def most_in_a_fixed_window(
    arrivals: Sequence[float], period: float, phase: float
) -> int:
    """A hair at each window's end belongs to none: floats may be off by it."""
    places = (divmod(at - phase, period) for at in arrivals)
    counts = Counter(index for index, into in places if EXACT < into < period - EXACT)
    return max(counts.values(), default=0)


def least_in_a_bucket(arrivals: Sequence[float], limit: int, period: float) -> float:
    """Return the fewest tokens it had after any arrival; under 0 is a refusal."""
    tokens, at, fewest = float(limit), 0.0, float(limit)
    for arrival in sorted(arrivals):
        tokens = min(limit, tokens + (arrival - at) * limit / period) - 1
        at = arrival
        fewest = min(fewest, tokens)
    return fewest


def assert_lawful(limiter: RateLimiter, arrivals: list[float], phase: float) -> None:
    limit, period = limiter.limit, limiter.period
    assert most_in_a_sliding_window(arrivals, period) <= limit
    assert most_in_a_fixed_window(arrivals, period, phase) <= limit
    assert least_in_a_bucket(arrivals, limit, period) >= -1e-6


@attrs.frozen
class Request:
    """One request of a simulation; times in seconds."""

    start: float
    forward: float
    back: float
    bulk: bool = False
    end: Literal["answered", "lost", "unused", "cancelled"] = "answered"


async def perform(
    limiter: RateLimiter, request: Request, arrivals: list[float], *, reused: bool
) -> None:
    await asyncio.sleep(request.start)
    if request.end == "cancelled":
        try:
            async with asyncio.timeout(request.forward):
                await limiter.acquire(bulk=request.bulk)
        except TimeoutError:
            return
        limiter.release_unused()
        return
    await limiter.acquire(bulk=request.bulk)
    if request.end == "unused":
        await asyncio.sleep(request.forward)
        limiter.release_unused()
        return
    sent = now()
    await asyncio.sleep(request.forward)
    arrivals.append(now())
    await asyncio.sleep(request.back)
    if request.end == "lost":
        limiter.release(answered=False)
    else:
        limiter.release(answered=True, round_trip=now() - sent if reused else None)


async def simulate(
    limiter: RateLimiter, requests: list[Request], *, reused: bool
) -> list[float]:
    """Return when the server counted requests; then all permits are free."""
    arrivals: list[float] = []
    await asyncio.gather(
        *(perform(limiter, request, arrivals, reused=reused) for request in requests)
    )
    await asyncio.sleep(limiter.period)
    assert books(limiter) == {**ALL_FREE, "free": limiter.limit}
    return arrivals


_legs = st.sampled_from([0.0, 0.001, 0.02, 0.25, 0.999, 1.0, 3.0]) | st.floats(0, 1.5)
_starts = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0]) | st.floats(0, 4)
_limits = st.integers(1, 5)
_phases = st.floats(0, 1)


def requests_with(legs: st.SearchStrategy[float]) -> st.SearchStrategy[list[Request]]:
    return st.lists(
        st.builds(
            Request,
            _starts,
            legs,
            legs,
            st.booleans(),
            st.sampled_from(["answered"] * 4 + ["lost", "unused", "cancelled"]),
        ),
        max_size=30,
    )


# The law.


@settings(max_examples=120, deadline=None)
@given(requests_with(_legs), _limits, _phases)
def test_without_credit_no_window_ever_sees_more_than_the_limit(
    requests: list[Request], limit: int, phase: float
) -> None:
    """Whatever the latencies, both legs; whatever is lost, unused, cancelled."""

    async def main() -> None:
        limiter = make(limit)
        arrivals = await simulate(limiter, requests, reused=False)
        assert_lawful(limiter, arrivals, phase)

    virtual.run(main())


@settings(max_examples=50, deadline=None)
@given(requests_with(_legs).map(lambda requests: requests[:19]), _limits, _phases)
def test_fewer_than_20_round_trips_earn_no_credit(
    requests: list[Request], limit: int, phase: float
) -> None:
    async def main() -> None:
        limiter = make(limit)
        arrivals = await simulate(limiter, requests, reused=True)
        assert_lawful(limiter, arrivals, phase)

    virtual.run(main())


QUARTER = 0.05  # seconds


async def with_credit(limit: int) -> RateLimiter:
    """Make a limiter that knows a fastest round trip of four quarters."""
    limiter = make(limit)
    for _ in range(20):
        await limiter.acquire()
        limiter.release(answered=True, round_trip=4 * QUARTER)
    await asyncio.sleep(2)
    return limiter


@settings(max_examples=80, deadline=None)
@given(
    requests_with(_legs.map(lambda extra: QUARTER + extra)),
    _limits,
    _phases,
    st.booleans(),
)
def test_with_credit_too_if_no_leg_is_under_a_quarter_of_the_fastest_known(
    requests: list[Request], limit: int, phase: float, reused: bool
) -> None:
    """The credit m is half the fastest round trip known, less 2 ms.

    The earlier request was counted its way back before its answer, the later
    one its way out after its permit: a period - m + back + out apart. That is
    a period while back + out >= m, which two quarters are.
    """

    async def main() -> None:
        limiter = await with_credit(limit)
        arrivals = await simulate(limiter, requests, reused=reused)
        assert_lawful(limiter, arrivals, phase)

    virtual.run(main())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Request,
            st.just(0.0),
            st.floats(QUARTER, 2 * QUARTER),
            st.floats(QUARTER, 2 * QUARTER),
            st.booleans(),
        ),
        min_size=25,
        max_size=40,
    ),
    _limits,
    _phases,
)
def test_credit_is_safe_while_no_leg_is_over_twice_the_shortest(
    requests: list[Request], limit: int, phase: float
) -> None:
    """Then any round trip is at most four shortest legs: the condition above.

    Nothing need be known beforehand; what is learned on the way is enough.
    """

    async def main() -> None:
        limiter = make(limit)
        arrivals = await simulate(limiter, requests, reused=True)
        assert_lawful(limiter, arrivals, phase)

    virtual.run(main())


def test_credit_makes_up_for_half_of_the_round_trip() -> None:
    """So the condition above is not met by giving none."""

    async def main() -> tuple[float, float]:
        spans = []
        for limiter in (await with_credit(1), make(1)):
            start = now()
            requests = [Request(0.0, 2 * QUARTER, 2 * QUARTER)] * 11
            arrivals = await simulate(limiter, requests, reused=False)
            spans.append((arrivals[-1] - start) / 10)
        return spans[0], spans[1]

    credited, plain = virtual.run(main())
    assert plain - credited == pytest.approx(2 * QUARTER - 0.002, abs=0.005)
    assert credited > 1


def test_beyond_the_condition_one_more_may_be_seen() -> None:
    """The price of credit: all the time on one leg of each, on opposite ones."""

    async def main() -> int:
        limiter = await with_credit(1)
        requests = [
            Request(0.0, 4 * QUARTER, 0.0),
            Request(0.0, 0.0, 4 * QUARTER),
        ]
        arrivals = await simulate(limiter, requests, reused=True)
        return most_in_a_sliding_window(arrivals, 1.0)

    assert virtual.run(main()) == 2


def test_a_faster_round_trip_takes_credit_away_at_once() -> None:
    async def main() -> float:
        limiter = await with_credit(1)
        await limiter.acquire()
        limiter.release(answered=True, round_trip=0.001)
        before = now()
        await limiter.acquire()
        return now() - before

    assert virtual.run(main()) == pytest.approx(1.0)


def test_the_fastest_round_trip_is_forgotten_after_two_minutes() -> None:
    """Or one fast answer would cost rate for ever."""

    async def main() -> list[float]:
        limiter = await with_credit(1)
        pauses = []
        for _ in range(200):
            await limiter.acquire()
            limiter.release(answered=True, round_trip=12 * QUARTER)
            before = now()
            await limiter.acquire()
            pauses.append(now() - before)
            limiter.release_unused()
        return pauses

    pauses = virtual.run(main())
    assert pauses[0] == pytest.approx(1 - 2 * QUARTER + 0.002)
    assert pauses[-1] == pytest.approx(1 - 6 * QUARTER + 0.002)
    grown = sum(pause > 0.75 for pause in pauses)
    assert 60 <= grown <= 130  # of about a second each


def test_no_credit_without_an_answer() -> None:
    """When the server counted is unknown, and now is the best guess."""

    async def main() -> float:
        limiter = await with_credit(1)
        await limiter.acquire()
        limiter.release(answered=False)
        before = now()
        await limiter.acquire()
        return now() - before

    assert virtual.run(main()) == pytest.approx(1.0)


# Fairness.


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    _limits,
)
def test_each_class_is_served_first_come_first_served(
    arriving: list[tuple[bool, bool]], limit: int
) -> None:
    """Those that were cancelled are passed over."""

    async def main() -> None:
        limiter = make(limit)
        served: list[int] = []

        async def one(index: int, bulk: bool) -> None:
            await limiter.acquire(bulk=bulk)
            served.append(index)
            limiter.release(answered=True)

        tasks = [
            asyncio.create_task(one(index, bulk))
            for index, (bulk, _) in enumerate(arriving)
        ]
        await virtual.settle()
        for index, (_, cancelled) in enumerate(arriving):
            if cancelled:
                tasks[index].cancel()
        await asyncio.wait(tasks)
        for kind in (False, True):
            order = [index for index in served if arriving[index][0] is kind]
            assert order == sorted(order)
        expected = {
            index for index, (_, cancelled) in enumerate(arriving) if not cancelled
        }
        assert expected <= set(served)

    virtual.run(main())


async def order_of_service(limiter: RateLimiter, singles: int, bulks: int) -> str:
    order: list[str] = []

    async def one(*, bulk: bool) -> None:
        await limiter.acquire(bulk=bulk)
        order.append("b" if bulk else "s")
        limiter.release(answered=True)

    await asyncio.gather(
        *(one(bulk=True) for _ in range(bulks)),
        *(one(bulk=False) for _ in range(singles)),
    )
    return "".join(order)


def test_while_both_wait_bulk_gets_every_tenth_permit() -> None:
    async def main() -> str:
        limiter = make(1)
        await limiter.acquire()
        limiter.release(answered=True)
        return await order_of_service(limiter, 45, 10)

    assert virtual.run(main()) == "sssssssssb" * 5 + "b" * 5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(0, 30), _limits)
def test_single_sends_go_first_and_bulk_is_never_starved(
    singles: int, bulks: int, limit: int
) -> None:
    async def main() -> str:
        limiter = make(limit)
        for _ in range(limit):
            await limiter.acquire()
            limiter.release(answered=True)
        return await order_of_service(limiter, singles, bulks)

    order = virtual.run(main())
    both = order[: min(order.rfind("s"), order.rfind("b")) + 1]
    assert all("b" in both[at : at + 10] for at in range(len(both) - 9))
    assert both.count("b") <= -(-len(both) // 10) + 1
    assert (order.count("s"), order.count("b")) == (singles, bulks)


def test_without_single_sends_bulk_has_it_all_and_the_other_way_round() -> None:
    async def main() -> None:
        limiter = make(10)
        for bulk in (True, False):
            before = now()
            await asyncio.gather(*(limiter.acquire(bulk=bulk) for _ in range(10)))
            assert now() - before <= 0.4  # bulk spreads them, over part of a period
            for _ in range(10):
                limiter.release(answered=True)
            await asyncio.sleep(1)

    virtual.run(main())


# The books.

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
                "scatter",
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
@given(_steps, _limits)
@example([("single", 0, True)] * 4 + [("unused", 0, False), ("scatter", 0, True)], 2)
def test_no_permit_is_lost_or_made(
    steps: list[tuple[str, int, bool]], limit: int
) -> None:
    """Limit == free + under way + coming back, at every step."""

    async def main() -> None:
        limiter = make(limit)
        tasks: set[asyncio.Task[None]] = set()
        held = 0

        def take(task: "asyncio.Task[None]") -> None:
            nonlocal held
            tasks.discard(task)
            held += not task.cancelled()

        for step, pick, settled in steps:
            if step in ("single", "bulk"):
                acquiring = limiter.acquire(bulk=step == "bulk")
                task = asyncio.create_task(acquiring)
                tasks.add(task)
                task.add_done_callback(take)
            elif step == "try":
                held += limiter.try_acquire()
            elif step == "release" and held:
                held -= 1
                limiter.release(answered=True, round_trip=pick / 100)
            elif step == "lose" and held:
                held -= 1
                limiter.release(answered=False)
            elif step == "unused" and held:
                held -= 1
                limiter.release_unused()
            elif step == "cancel" and tasks:
                sorted(tasks, key=id)[pick % len(tasks)].cancel()
            elif step == "scatter":
                for task in tasks:
                    task.cancel()
            elif step == "hold":
                limiter.hold(pick / 8)
            elif step == "wait":
                await asyncio.sleep(pick / 8)
            if settled:  # else the next step falls between two turns of the loop
                await virtual.settle()
                found = books(limiter)
                assert found["under way"] == held
                assert found["waiting"] == len(tasks)
                assert found["free"] + held + found["coming back"] == limit
                assert min(found.values()) >= 0
        while tasks:  # everybody is served in the end
            await asyncio.sleep(1)
            while held:
                held -= 1
                limiter.release(answered=True)
            assert now() < 1000
        await virtual.settle()
        while held:
            held -= 1
            limiter.release(answered=True)
        await asyncio.sleep(limiter.period)
        assert books(limiter) == {**ALL_FREE, "free": limit}
        assert not limiter._alarms
        assert not limiter._waiting_in

    virtual.run(main())


def test_a_turn_cancelled_as_it_comes_goes_to_the_next() -> None:
    async def main() -> None:
        limiter = make(1)
        await limiter.acquire()
        first, second = (asyncio.create_task(limiter.acquire()) for _ in range(2))
        await virtual.settle()
        limiter.release_unused()  # grants it to the first ...
        first.cancel()  # ... whose task has not run yet
        await second
        assert first.cancelled()
        assert books(limiter)["under way"] == 1

    virtual.run(main())


def test_a_permit_never_comes_back_before_one_given_back_earlier() -> None:
    """Late is lawful; the way back is kept in order."""

    async def main() -> list[float]:
        limiter = await with_credit(2)
        await limiter.acquire()
        await limiter.acquire()
        limiter.release(answered=False)
        limiter.release(answered=True)
        before = now()
        times = []
        for _ in range(2):
            await limiter.acquire()
            times.append(now() - before)
        return times

    assert virtual.run(main()) == pytest.approx([1.0, 1.0])


def test_a_permit_comes_back_to_whoever_does_not_wait_too() -> None:
    async def main() -> None:
        limiter = make(2)
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


def test_nobody_overtakes_who_waits() -> None:
    async def main() -> None:
        limiter = make(1)
        await limiter.acquire()
        waiting = asyncio.create_task(limiter.acquire(bulk=True))
        await virtual.settle()
        limiter.release_unused()
        assert not limiter.try_acquire()
        await waiting

    virtual.run(main())


# Holding.


def test_a_hold_holds_everybody() -> None:
    async def main() -> None:
        limiter = make(3)
        await limiter.acquire()
        limiter.hold(5)
        limiter.hold(1)  # a shorter one changes nothing
        assert not limiter.try_acquire()
        assert limiter.shortest_wait() == 5
        assert repr(limiter).endswith("0 waiting, held for 5.0 s>")
        limiter.release_unused()
        await asyncio.gather(limiter.acquire(), limiter.acquire(bulk=True))
        assert now() == pytest.approx(5)
        assert limiter.try_acquire()
        assert repr(limiter).endswith("0 waiting>")

    virtual.run(main())


def test_a_hold_that_comes_while_they_wait_holds_them_too() -> None:
    async def main() -> None:
        limiter = make(1)
        await limiter.acquire()
        limiter.release(answered=True)
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.5)
        limiter.hold(3)
        await waiting
        assert now() == pytest.approx(3.5)

    virtual.run(main())


# The shortest wait.


async def bounded(
    limiter: RateLimiter, steps: list[tuple[str, int]], round_trip: float | None
) -> None:
    """Compare what was said with what came true, for every single send."""
    minimum = 0.0 if round_trip is None else round_trip

    async def one(*, bulk: bool, takes: float) -> None:
        said = 0.0 if bulk else limiter.shortest_wait()
        asked = now()
        await limiter.acquire(bulk=bulk)
        assert now() - asked >= said - EXACT
        await asyncio.sleep(minimum + takes)
        limiter.release(
            answered=True,
            round_trip=None if round_trip is None else minimum + takes,
        )

    async with asyncio.TaskGroup() as group:
        for step, pick in steps:
            if step == "hold":
                limiter.hold(pick / 8)
            elif step == "wait":
                await asyncio.sleep(pick / 8)
            else:
                group.create_task(one(bulk=step == "bulk", takes=pick / 16))
                await asyncio.sleep(0)


_bound_steps = st.lists(
    st.tuples(
        st.sampled_from(["single", "single", "single", "bulk", "hold", "wait"]),
        st.integers(0, 20),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(_bound_steps, _limits)
def test_the_shortest_wait_is_never_longer_than_the_wait(
    steps: list[tuple[str, int]], limit: int
) -> None:
    """While nothing is given back unused: so a deadline may be judged by it."""

    async def main() -> None:
        await bounded(make(limit), steps, None)

    virtual.run(main())


@settings(max_examples=50, deadline=None)
@given(_bound_steps, _limits)
def test_it_is_so_with_credit_while_no_round_trip_is_faster_than_known(
    steps: list[tuple[str, int]], limit: int
) -> None:
    async def main() -> None:
        limiter = await with_credit(limit)
        await bounded(limiter, steps, 4 * QUARTER)

    virtual.run(main())


def test_it_is_so_when_the_first_credit_is_given_meanwhile() -> None:
    """The 20th round trip brings its permit back earlier than was said."""

    async def main() -> None:
        limiter = make(1)
        for _ in range(19):
            await limiter.acquire()
            await asyncio.sleep(0.4)
            limiter.release(answered=True, round_trip=0.4)
        await limiter.acquire()
        await asyncio.sleep(0.4)  # the answer is about to arrive
        said, asked = limiter.shortest_wait(), now()
        limiter.release(answered=True, round_trip=0.4)
        await limiter.acquire()
        assert now() - asked >= said - EXACT

    virtual.run(main())


def test_the_shortest_wait_counts_who_is_ahead() -> None:
    async def main() -> None:
        limiter = make(2)
        assert limiter.shortest_wait() == 0
        await limiter.acquire()
        assert limiter.shortest_wait() == 0
        await limiter.acquire()
        assert limiter.shortest_wait() == 1  # both under way
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


# Loops and threads.


def test_two_loops_in_two_threads_share_one_limit_and_are_both_served() -> None:
    """Real threads and time; what is asserted does not depend on their speed."""
    limiter = RateLimiter(4, 0.02)
    arrivals: dict[int, list[float]] = {0: [], 1: []}
    failures: list[BaseException] = []
    begin = threading.Barrier(2)

    async def one(index: int) -> None:
        await limiter.acquire(bulk=len(arrivals[index]) % 3 == 0)
        arrivals[index].append(time.monotonic())
        await asyncio.sleep(0)
        limiter.release(answered=True)

    async def main(index: int) -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(*(one(index) for _ in range(40)))

    def run(index: int) -> None:
        try:
            begin.wait(60)
            asyncio.run(main(index))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in arrivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert [len(times) for times in arrivals.values()] == [40, 40]
    everything = arrivals[0] + arrivals[1]
    assert most_in_a_sliding_window(everything, limiter.period) <= 4
    assert not limiter._alarms
    assert not limiter._waiting_in


def test_a_permit_given_back_in_one_loop_wakes_the_other() -> None:
    """Across threads, and long before the period is over."""
    limiter = RateLimiter(1, 3600.0)
    assert limiter.try_acquire()
    waiting = threading.Event()
    served = threading.Event()

    async def main() -> None:
        task = asyncio.create_task(limiter.acquire())
        await virtual.settle()
        waiting.set()
        async with asyncio.timeout(60):
            await task
        served.set()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert waiting.wait(60)
    limiter.release_unused()
    thread.join(60)
    assert served.is_set()
    assert not limiter._alarms
    assert not limiter._waiting_in


def test_successive_loops_leave_nothing_behind() -> None:
    limiter = RateLimiter(3, 0.004)

    async def one(*, bulk: bool) -> None:
        await limiter.acquire(bulk=bulk)
        limiter.release(answered=True)

    async def main() -> None:
        await asyncio.gather(*(one(bulk=n % 2 == 0) for n in range(5)))
        late = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        if late.done():
            limiter.release(answered=True)
        # else cancelled by the end of the loop, in line

    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    for _ in range(20):
        with asyncio.Runner() as runner:
            runner.run(main())
            loops.append(weakref.ref(runner.get_loop()))
        assert not limiter._alarms
        assert not limiter._waiting_in
    del runner
    gc.collect()
    assert [loop() for loop in loops] == [None] * 20
    assert books(limiter)["under way"] == 0


@contextmanager
def unraisable() -> Iterator[list[Any]]:
    """Collect what is raised where nobody can catch it."""
    raised: list[Any] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda hook: raised.append(hook.exc_value)
    try:
        yield raised
    finally:
        sys.unraisablehook = before


def waiting_in(
    loop: asyncio.AbstractEventLoop, limiter: RateLimiter, count: int = 3
) -> None:
    """Let tasks of the loop wait in line, and leave it at that."""

    async def main() -> None:
        for bulk in [False, False, True][:count]:
            task = asyncio.ensure_future(limiter.acquire(bulk=bulk))
            kept.append(task)
        await asyncio.sleep(0)

    kept: list[asyncio.Future[None]] = []
    loop.run_until_complete(main())
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed ..."


async def acquire_soon(limiter: RateLimiter) -> None:
    async with asyncio.timeout(60):
        await limiter.acquire()


def test_a_loop_closed_with_waiters_in_line_blocks_nobody() -> None:
    limiter = RateLimiter(1, 0.001)
    assert limiter.try_acquire()
    loop = asyncio.new_event_loop()
    waiting_in(loop, limiter)
    loop.close()
    limiter.release_unused()
    asyncio.run(acquire_soon(limiter))
    limiter.release(answered=True)
    asyncio.run(acquire_soon(limiter))
    assert books(limiter) == {**ALL_FREE, "free": 0, "under way": 1}
    assert not limiter._alarms
    assert not limiter._waiting_in
    with unraisable():  # see the next test
        gc.collect()


def test_its_waiters_are_collected_without_a_word() -> None:
    limiter = RateLimiter(1, 0.001)
    assert limiter.try_acquire()
    loop = asyncio.new_event_loop()
    waiting_in(loop, limiter)
    loop.close()
    limiter.release_unused()
    asyncio.run(acquire_soon(limiter))
    with unraisable() as raised:
        del loop
        gc.collect()
    assert raised == []


def test_a_loop_forgotten_unclosed_gives_its_permit_back_as_garbage() -> None:
    limiter = RateLimiter(1, 0.001)
    assert limiter.try_acquire()
    waiting_in(asyncio.new_event_loop(), limiter, 1)
    limiter.release_unused()  # it is granted, and will never run
    with warnings.catch_warnings(), unraisable() as raised:
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert raised == []
    assert books(limiter) == {**ALL_FREE, "free": 1}
    assert not limiter._alarms
    assert not limiter._waiting_in


def test_a_loop_that_stands_still_blocks_nobody() -> None:
    """Left unclosed with more waiters in line than there are permits."""
    with asyncio.Runner(loop_factory=virtual.VirtualLoop) as runner:
        loop = runner.get_loop()
        limiter = RateLimiter(1, 1.0, clock=loop.time)
        assert limiter.try_acquire()
        still = virtual.VirtualLoop()
        waiting_in(still, limiter)
        limiter.release_unused()
        try:
            runner.run(acquire_soon(limiter))
        finally:
            for task in asyncio.all_tasks(still):
                task.cancel()
            still.run_until_complete(virtual.settle())
            still.close()


def test_a_loop_that_stood_still_at_its_turn_queues_again_when_it_goes_on() -> None:
    """Its waiter loses its place, not its permit."""
    still = virtual.VirtualLoop()
    limiter = RateLimiter(1, 1.0, clock=still.time)
    assert limiter.try_acquire()
    waiting = still.create_task(limiter.acquire())
    still.run_until_complete(virtual.settle())
    limiter.release_unused()  # its turn, but nobody there
    assert books(limiter) == {**ALL_FREE, "free": 1}
    still.run_until_complete(waiting)
    still.close()
    assert books(limiter) == {**ALL_FREE, "free": 0, "under way": 1}


def test_the_child_of_a_fork_begins_with_an_empty_line() -> None:
    """What was under way comes back a period after the fork; the rest stays due.

    Coverage does not follow a real fork: those are in test_fork.py.
    """

    async def main() -> None:
        limiter = make(3)
        for _ in range(3):
            await limiter.acquire()
        limiter.release(answered=True)
        waiting = asyncio.create_task(limiter.acquire())
        await virtual.settle()
        limiter.forked()
        assert books(limiter) == {**ALL_FREE, "free": 0, "coming back": 3}
        await asyncio.sleep(1)
        assert books(limiter) == {**ALL_FREE, "free": 3}
        assert not waiting.done()
        waiting.cancel()
        await virtual.settle()
        assert books(limiter) == {**ALL_FREE, "free": 3}

    virtual.run(main())


# What it is made of.


@pytest.mark.parametrize("limit", [0, -1, 1.5, "10", None, True, math.inf])
def test_a_limit_is_a_whole_number_from_1(limit: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RateLimiter(limit)
    assert str(caught.value) == f"limit must be a whole number from 1, not {limit!r}"


@pytest.mark.parametrize("period", [0, -1, math.inf, math.nan, "1", None, True])
def test_a_period_is_a_positive_number_of_seconds(period: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RateLimiter(10, period)
    expected = f"period must be a positive number of seconds, not {period!r}"
    assert str(caught.value) == expected


def test_it_shows_its_configuration_and_its_state() -> None:
    async def main() -> str:
        limiter = make(3, 2)
        for _ in range(3):
            await limiter.acquire()
        limiter.release(answered=True)
        task = asyncio.create_task(limiter.acquire())
        await virtual.settle()
        text = repr(limiter)
        task.cancel()
        return text

    assert virtual.run(main()) == (
        "<RateLimiter 3 per 2 s: 0 free, 2 under way, 1 coming back, 1 waiting>"
    )


def test_it_uses_the_monotonic_clock_unless_told() -> None:
    limiter = RateLimiter()
    assert (limiter.limit, limiter.period) == (10, 1.0)
    assert limiter.try_acquire()
    limiter.release(answered=True)
    assert books(limiter)["coming back"] == 1


def test_a_full_line_does_not_keep_the_loop_busy() -> None:
    """A turn of the loop per permit that comes back, not a poll per waiter."""

    async def main() -> int:
        limiter = make(1)

        async def one() -> None:
            await limiter.acquire()
            limiter.release(answered=True)

        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual.VirtualLoop)
        tasks = [asyncio.create_task(one()) for _ in range(100)]
        await asyncio.gather(*tasks)
        assert now() == pytest.approx(99)
        return loop.turns

    assert virtual.run(main()) <= 600
