"""How a limiter adapts the number of its permits to 429s and rate headers."""

import asyncio
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import fleets
from support import virtual_time as virtual
from support.limiters import now

from loops_async import RateLimiter
from loops_async._pacing.adaptive import Capacity
from loops_async.sandbox._windows import WindowKind

WINDOWS: tuple[WindowKind, ...] = ("sliding", "fixed", "bucket")


def capacity_of(limit: int) -> Capacity:
    return Capacity(limit, 1.0, random.Random(limit).random)


def after_one_429(used: int = 10, limit: int = 10) -> Capacity:
    capacity = capacity_of(limit)
    capacity.note_rate_limited(used, now=0.0)
    return capacity


def after(capacity: Capacity, seconds: int, remaining: int | None) -> Capacity:
    """Report the same remainder once per second."""
    for second in range(1, seconds + 1):
        capacity.note_remaining(remaining, now=float(second))
    return capacity


# The number of permits.


def test_a_capacity_uses_all_permits_before_the_first_429() -> None:
    capacity = capacity_of(10)
    assert (capacity.effective_limit, capacity.reduced) == (10, False)


def test_a_429_reduces_the_permits_to_the_number_that_the_server_accepted() -> None:
    """Six permits were used and one received the 429, so at most five were accepted."""
    assert after_one_429(used=6).effective_limit == 5


def test_each_429_of_a_burst_lowers_the_number_that_the_server_accepted() -> None:
    capacity = capacity_of(10)
    for number in range(7):
        capacity.note_rate_limited(10, now=number / 100)
    assert capacity.effective_limit == 3


def test_the_429s_of_earlier_periods_are_not_subtracted_again() -> None:
    capacity = after_one_429(used=10)
    capacity.note_rate_limited(8, now=1.5)
    assert capacity.effective_limit == 7  # 80 % of 9


def test_several_429s_of_a_period_lower_the_level_by_a_fifth_once() -> None:
    capacity = after_one_429(used=10)
    for seconds in (1.5, 1.6, 1.7):
        capacity.note_rate_limited(10, now=seconds)
    assert capacity.effective_limit == 7


@given(st.integers(1, 100), st.lists(st.tuples(st.integers(0, 100), st.floats(0, 9))))
def test_any_sequence_of_429s_leaves_between_one_permit_and_the_limit(
    limit: int, refusals: list[tuple[int, float]]
) -> None:
    capacity = capacity_of(limit)
    seconds = 0.0
    for used, later in refusals:
        seconds += later
        capacity.note_rate_limited(used, seconds)
        assert 1 <= capacity.effective_limit <= limit
        capacity.note_remaining(limit, seconds + 1)
        assert 1 <= capacity.effective_limit <= limit


def test_repeated_429s_with_one_permit_increase_the_spacing_up_to_20_periods() -> None:
    """The spacing is bounded so that the process notices when the others stop."""
    capacity = capacity_of(1)
    spacings = [capacity.spacing()]
    for number in range(30):
        capacity.note_rate_limited(1, now=2.0 * number)
        spacings.append(capacity.spacing())
    assert capacity.reduced
    assert spacings == sorted(spacings)
    assert spacings[-1] == pytest.approx(20)


def test_the_first_periods_after_a_429_add_no_permit() -> None:
    assert after(after_one_429(), 2, remaining=10).effective_limit == 9


def test_a_positive_remainder_restores_all_permits_in_time() -> None:
    capacity = after(after_one_429(used=4), 60, remaining=5)
    assert (capacity.effective_limit, capacity.reduced) == (10, False)


def test_missing_rate_headers_slow_the_increase_down() -> None:
    with_header = after(after_one_429(used=4), 30, remaining=5).effective_limit
    without = after(after_one_429(used=4), 30, remaining=None).effective_limit
    assert 3 < without < with_header


def test_a_remainder_of_zero_adds_nothing_and_large_levels_give_up_most() -> None:
    large = after(after_one_429(used=9), 120, remaining=0).effective_limit
    small = after(after_one_429(used=3), 120, remaining=0).effective_limit
    assert large <= 8 - 3
    assert small >= 1
    assert 8 - large > 2 - small


def test_one_remainder_of_zero_prevents_an_increase_in_its_period() -> None:
    capacity = after(after_one_429(used=4), 10, remaining=9)
    before = capacity.effective_limit
    for number in range(11, 20):
        capacity.note_remaining(0, now=number + 0.2)
        capacity.note_remaining(9, now=number + 0.4)
    assert capacity.effective_limit <= before


def test_an_added_permit_is_not_removed_by_the_next_small_decrease() -> None:
    """Otherwise the number would alternate while the level is near a whole number."""
    capacity = after_one_429(used=4)
    second = 0
    while capacity.effective_limit == 3:
        second += 1
        capacity.note_remaining(1, now=float(second))
    capacity.note_remaining(0, now=second + 1.0)
    capacity.note_remaining(0, now=second + 2.0)
    assert capacity.effective_limit == 4


def test_a_small_level_grows_faster_than_a_large_level() -> None:
    """Processes therefore converge to equal shares without giving much up."""
    small = after(after_one_429(used=3), 60, remaining=1).effective_limit
    large = after(after_one_429(used=8), 60, remaining=1).effective_limit
    assert small - 2 > large - 7


# Processes that share a key.


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("limit", [10, 50])
def test_a_single_process_uses_the_limit_without_a_429(
    window: WindowKind, limit: int
) -> None:
    """Half of the mean round trip of 45 ms per period remains unused."""
    _, settled = fleets.run(1, window=window, limit=limit, settling=5, seconds=60)
    assert settled.used_share(limit, 1.0) >= 0.95
    assert settled.refused == 0


@pytest.mark.parametrize(
    ("window", "bulk"),
    [("sliding", True), ("sliding", False), ("fixed", True), ("bucket", True)],
)
@pytest.mark.parametrize("seed", range(3))
def test_four_processes_share_a_key_fairly_after_30_seconds(
    window: WindowKind, bulk: bool, seed: int
) -> None:
    _, settled = fleets.run(4, window=window, bulk=bulk, seed=seed)
    assert settled.used_share(10, 1.0) >= 0.90
    assert settled.refused_share <= 0.05
    assert settled.fairness(4) >= 0.5


@pytest.mark.parametrize(
    ("processes", "used", "refused"), [(2, 0.85, 0.01), (8, 0.75, 0.12)]
)
def test_two_or_eight_processes_share_a_key_fairly(
    processes: int, used: float, refused: float
) -> None:
    """Eight processes use a permit each and compete for the other two permits."""
    _, settled = fleets.run(processes)
    assert settled.used_share(10, 1.0) >= used
    assert settled.refused_share <= refused
    assert settled.fairness(processes) >= 0.5


def test_processes_keep_their_throughput_without_rate_headers() -> None:
    _, settled = fleets.run(4, headers=False)
    assert settled.used_share(10, 1.0) >= 0.75
    assert settled.refused_share <= 0.05


def test_more_processes_than_permits_still_use_half_of_the_limit() -> None:
    _, settled = fleets.run(16)
    assert settled.used_share(10, 1.0) >= 0.5


def test_processes_share_a_limit_of_60_per_minute() -> None:
    _, settled = fleets.run(4, limit=60, period=60.0, settling=1800, seconds=3600)
    assert settled.used_share(60, 60.0) >= 0.90
    assert settled.refused_share <= 0.05


def test_a_limiter_below_the_limit_of_the_server_never_uses_the_difference() -> None:
    """A limiter of 8 leaves 2 of 10 requests per second to others and gets no 429."""
    _, settled = fleets.run(1, own_limit=8, settling=5, seconds=60)
    assert settled.used_share(8, 1.0) >= 0.95
    assert settled.accepted.total() <= 8 * 61
    assert settled.refused == 0


# The limiter after a 429.


def test_processes_that_receive_a_429_together_resume_at_different_times() -> None:
    async def main() -> None:
        resumed = []

        async def process(chance: float) -> None:
            limiter = RateLimiter(10, clock=now, chance=lambda: chance)
            limiter.note_rate_limited()
            await limiter.acquire()
            resumed.append(now())

        await asyncio.gather(*(process(number / 4) for number in range(4)))
        assert resumed[0] == pytest.approx(0.5)
        assert all(later - earlier > 0.2 / 10 for earlier, later in pairwise(resumed))

    virtual.run(main())


def test_single_sends_are_spaced_after_a_429() -> None:
    async def main() -> None:
        limiter = RateLimiter(10, clock=now, chance=lambda: 0.0)
        for _ in range(6):
            await limiter.acquire()
        for _ in range(6):
            limiter.release(answered=True)
        limiter.note_rate_limited()
        granted = []

        async def send() -> None:
            await limiter.acquire()
            granted.append(now())

        await asyncio.gather(*(send() for _ in range(5)))
        assert limiter.effective_limit == 5
        assert granted[0] >= 0.5
        gaps = [later - earlier for earlier, later in pairwise(granted)]
        # A late permit may be made up for by a gap that is 5 ms shorter.
        assert all(gap > 0.4 / 5 - 0.006 for gap in gaps)

    virtual.run(main())


def test_a_permit_added_by_a_remainder_goes_to_a_waiter() -> None:
    async def main() -> None:
        limiter = RateLimiter(2, clock=now, chance=lambda: 0.95)
        for _ in range(2):
            await limiter.acquire()
        limiter.note_rate_limited()
        limiter.release(answered=True)
        await asyncio.sleep(1.5)
        assert limiter.effective_limit == 1
        assert not limiter.try_acquire()  # the other permit is in flight
        waiting = asyncio.create_task(limiter.acquire())
        while limiter.effective_limit < 2:
            await asyncio.sleep(1)
            limiter.note_remaining(2)
        await virtual.settle()
        assert waiting.done()
        assert not limiter.slowed

    virtual.run(main())


def test_a_permit_added_by_a_remainder_stays_free_without_a_waiter() -> None:
    async def main() -> None:
        limiter = RateLimiter(2, clock=now, chance=lambda: 0.95)
        await limiter.acquire()
        await limiter.acquire()
        limiter.note_rate_limited()
        limiter.release_unused()
        while limiter.effective_limit < 2:
            await asyncio.sleep(1)
            limiter.note_remaining(2)
        assert limiter.try_acquire()

    virtual.run(main())


def test_the_repr_shows_the_permits_left_to_others() -> None:
    limiter = RateLimiter(10, clock=lambda: 0.0, chance=lambda: 0.0)
    assert "others" not in repr(limiter)
    for _ in range(6):
        assert limiter.try_acquire()
    limiter.note_rate_limited()
    assert ", 5 left to other processes, held for 0.5 s>" in repr(limiter)
    assert math.isclose(limiter.held, 0.5)


@pytest.mark.parametrize("limit", [60, 600])
def test_a_single_send_behind_a_bulk_run_waits_briefly_in_a_long_period(
    limit: int,
) -> None:
    """Bulk permits are spread over nearly all of a period of a minute."""

    async def main() -> None:
        limiter = RateLimiter(limit, 60.0, clock=now)
        waits = []

        async def send(bulk: bool) -> None:
            before = now()
            await limiter.acquire(bulk=bulk)
            if not bulk:
                waits.append(now() - before)
            await asyncio.sleep(0.1)
            limiter.release(answered=True)

        async def worker() -> None:
            while True:
                await send(bulk=True)

        workers = [asyncio.create_task(worker()) for _ in range(100)]
        await asyncio.sleep(300)
        for _ in range(50):
            await asyncio.sleep(7.3)
            await send(bulk=False)
        assert max(waits) <= 2.5
        for task in workers:
            task.cancel()
        await asyncio.wait(workers)

    virtual.run(main())


def test_a_remainder_before_any_429_has_no_effect() -> None:
    limiter = RateLimiter(10)
    limiter.note_remaining(0)
    limiter.note_remaining(3)
    assert (limiter.effective_limit, limiter.slowed) == (10, False)
