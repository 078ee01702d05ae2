"""The limit as the server counts it, and the credit for fast responses.

The simulated server counts a request when the request arrives. Its sliding window
is the strictest of all windows: if any ``limit + 1`` arrivals span more than a
period, an interval of length T contains at most ``limit * (floor(T / period) + 1)``
arrivals, which a fixed window of any phase (T < period) and an evenly refilled
bucket of ``limit`` tokens admit. The tests check all three nevertheless.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import virtual_time as virtual
from support.limiters import (
    QUARTER,
    SimulatedRequest,
    assert_within_limit,
    legs,
    limiter_with_credit,
    limits,
    make_limiter,
    most_in_a_sliding_window,
    now,
    phases,
    requests_with,
    simulate,
)


@settings(max_examples=120, deadline=None)
@given(requests_with(legs), limits, phases)
def test_without_credit_no_window_contains_more_requests_than_the_limit(
    requests: list[SimulatedRequest], limit: int, phase: float
) -> None:
    """The claim holds for all latencies, lost responses and cancellations."""

    async def main() -> None:
        limiter = make_limiter(limit)
        arrivals = await simulate(limiter, requests, reused=False)
        assert_within_limit(limiter, arrivals, phase)

    virtual.run(main())


@settings(max_examples=50, deadline=None)
@given(requests_with(legs).map(lambda requests: requests[:19]), limits, phases)
def test_fewer_than_20_round_trips_earn_no_credit(
    requests: list[SimulatedRequest], limit: int, phase: float
) -> None:
    async def main() -> None:
        limiter = make_limiter(limit)
        arrivals = await simulate(limiter, requests, reused=True)
        assert_within_limit(limiter, arrivals, phase)

    virtual.run(main())


@settings(max_examples=80, deadline=None)
@given(
    requests_with(legs.map(lambda extra: QUARTER + extra)),
    limits,
    phases,
    st.booleans(),
)
def test_credit_keeps_the_limit_if_each_leg_takes_a_quarter_of_the_fastest_round_trip(
    requests: list[SimulatedRequest], limit: int, phase: float, reused: bool
) -> None:
    """The credit c is half of the fastest known round trip, less 2 ms.

    Two requests with the same permit are counted ``back + period - c + out``
    apart. That is at least a period if ``back + out >= c``, which holds for two
    quarters.
    """

    async def main() -> None:
        limiter = await limiter_with_credit(limit)
        arrivals = await simulate(limiter, requests, reused=reused)
        assert_within_limit(limiter, arrivals, phase)

    virtual.run(main())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            SimulatedRequest,
            st.just(0.0),
            st.floats(QUARTER, 2 * QUARTER),
            st.floats(QUARTER, 2 * QUARTER),
            st.booleans(),
        ),
        min_size=25,
        max_size=40,
    ),
    limits,
    phases,
)
def test_credit_keeps_the_limit_if_no_leg_takes_twice_the_shortest_leg(
    requests: list[SimulatedRequest], limit: int, phase: float
) -> None:
    """A round trip is then at most four shortest legs, the condition of the last test.

    The limiter learns all round trips from these requests.
    """

    async def main() -> None:
        limiter = make_limiter(limit)
        arrivals = await simulate(limiter, requests, reused=True)
        assert_within_limit(limiter, arrivals, phase)

    virtual.run(main())


def test_credit_saves_half_of_the_round_trip() -> None:
    """The tests above would also pass with a credit of zero."""

    async def main() -> tuple[float, float]:
        spans = []
        for limiter in (await limiter_with_credit(1), make_limiter(1)):
            start = now()
            requests = [SimulatedRequest(0.0, 2 * QUARTER, 2 * QUARTER)] * 11
            arrivals = await simulate(limiter, requests, reused=False)
            spans.append((arrivals[-1] - start) / 10)
        return spans[0], spans[1]

    with_credit, without = virtual.run(main())
    assert without - with_credit == pytest.approx(2 * QUARTER - 0.002, abs=0.005)
    assert with_credit > 1


def test_credit_admits_one_request_too_many_if_two_legs_take_no_time() -> None:
    """This is the price of the credit where its condition does not hold."""

    async def main() -> int:
        limiter = await limiter_with_credit(1)
        requests = [
            SimulatedRequest(0.0, 4 * QUARTER, 0.0),
            SimulatedRequest(0.0, 0.0, 4 * QUARTER),
        ]
        arrivals = await simulate(limiter, requests, reused=True)
        return most_in_a_sliding_window(arrivals, 1.0)

    assert virtual.run(main()) == 2


def test_a_faster_round_trip_removes_the_credit_at_once() -> None:
    async def main() -> float:
        limiter = await limiter_with_credit(1)
        await limiter.acquire()
        limiter.release(answered=True, round_trip=0.001)
        before = now()
        await limiter.acquire()
        return now() - before

    assert virtual.run(main()) == pytest.approx(1.0)


def test_the_fastest_round_trip_expires_within_two_minutes() -> None:
    """Otherwise one fast response would lower the throughput for ever."""

    async def main() -> list[float]:
        limiter = await limiter_with_credit(1)
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
    with_old_credit = sum(pause > 0.75 for pause in pauses)
    assert 60 <= with_old_credit <= 130  # each pause takes about a second


def test_a_lost_response_earns_no_credit() -> None:
    """The time at which the server counted the request is unknown."""

    async def main() -> float:
        limiter = await limiter_with_credit(1)
        await limiter.acquire()
        limiter.release(answered=False)
        before = now()
        await limiter.acquire()
        return now() - before

    assert virtual.run(main()) == pytest.approx(1.0)


def test_a_permit_never_returns_before_a_permit_released_earlier() -> None:
    """A credit for the second permit would break the order of return times."""

    async def main() -> list[float]:
        limiter = await limiter_with_credit(2)
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
