"""What the limiter learns: how much to use while others use the same key."""

import asyncio
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import fleets
from support import virtual_time as virtual

from loops_async import RateLimiter
from loops_async._pacing.adaptive import Capacity
from loops_async.sandbox._windows import WindowKind

WINDOWS: tuple[WindowKind, ...] = ("sliding", "fixed", "bucket")


def capacity_of(limit: int) -> Capacity:
    return Capacity(limit, 1.0, random.Random(limit).random)


def refused_once(used: int = 10, limit: int = 10) -> Capacity:
    capacity = capacity_of(limit)
    capacity.refused(used, now=0.0)
    return capacity


def after(capacity: Capacity, seconds: int, remaining: int | None) -> Capacity:
    """Let it hear the same each second."""
    for second in range(1, seconds + 1):
        capacity.note_remaining(remaining, now=float(second))
    return capacity


def test_all_permits_are_used_until_a_429() -> None:
    capacity = capacity_of(10)
    assert (capacity.effective_limit, capacity.reduced) == (10, False)


def test_a_429_leaves_no_more_than_the_server_granted() -> None:
    """Of six that were out one was refused, so five were granted at the most."""
    assert refused_once(used=6).effective_limit == 5


def test_each_429_of_a_burst_says_more_about_what_was_granted() -> None:
    capacity = capacity_of(10)
    for number in range(7):
        capacity.refused(10, now=number / 100)
    assert capacity.effective_limit == 3


def test_refusals_of_earlier_periods_are_not_counted_again() -> None:
    capacity = refused_once(used=10)
    capacity.refused(8, now=1.5)
    assert (
        capacity.effective_limit == 7
    )  # 9 less a fifth, not less what was refused before


def test_it_falls_by_a_fifth_at_most_once_a_period() -> None:
    capacity = refused_once(used=10)
    for at in (1.5, 1.6, 1.7):
        capacity.refused(10, now=at)
    assert capacity.effective_limit == 7


@given(st.integers(1, 100), st.lists(st.tuples(st.integers(0, 100), st.floats(0, 9))))
def test_at_least_one_permit_and_at_most_the_limit_are_always_used(
    limit: int, refusals: list[tuple[int, float]]
) -> None:
    capacity = capacity_of(limit)
    now = 0.0
    for used, later in refusals:
        now += later
        capacity.refused(used, now)
        assert 1 <= capacity.effective_limit <= limit
        capacity.note_remaining(limit, now + 1)
        assert 1 <= capacity.effective_limit <= limit


def test_refused_with_a_single_permit_it_spaces_its_requests_more_and_more() -> None:
    capacity = capacity_of(1)
    spaced = [capacity.spacing()]
    for number in range(30):
        capacity.refused(1, now=2.0 * number)
        spaced.append(capacity.spacing())
    assert capacity.reduced
    assert spaced == sorted(spaced)
    assert spaced[-1] == pytest.approx(20)  # and no farther: it must notice an end


def test_nothing_is_added_in_the_first_periods_after_a_429() -> None:
    assert after(refused_once(), 2, remaining=10).effective_limit == 9


def test_more_is_used_again_while_the_server_says_that_some_is_left() -> None:
    capacity = after(refused_once(used=4), 60, remaining=5)
    assert (capacity.effective_limit, capacity.reduced) == (10, False)


def test_without_such_headers_it_adds_too_but_slowly() -> None:
    with_header = after(refused_once(used=4), 30, remaining=5).effective_limit
    without = after(refused_once(used=4), 30, remaining=None).effective_limit
    assert 3 < without < with_header


def test_nothing_is_added_while_nothing_is_left_and_the_large_yield_most() -> None:
    large = after(refused_once(used=9), 120, remaining=0).effective_limit
    small = after(refused_once(used=3), 120, remaining=0).effective_limit
    assert large <= 8 - 3
    assert small >= 1
    assert 8 - large > 2 - small


def test_one_answer_that_nothing_is_left_speaks_for_its_whole_period() -> None:
    capacity = after(refused_once(used=4), 10, remaining=9)
    before = capacity.effective_limit
    for number in range(11, 20):
        capacity.note_remaining(0, now=number + 0.2)
        capacity.note_remaining(9, now=number + 0.4)
    assert capacity.effective_limit <= before


def test_a_change_of_a_whole_permit_is_not_taken_back_at_once() -> None:
    """A level at the brink would waver between two numbers of permits."""
    capacity = refused_once(used=4)
    second = 0
    while capacity.effective_limit == 3:
        second += 1
        capacity.note_remaining(1, now=float(second))
    capacity.note_remaining(0, now=second + 1.0)
    capacity.note_remaining(0, now=second + 2.0)
    assert capacity.effective_limit == 4


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("limit", [10, 50])
def test_alone_it_uses_the_limit_and_meets_no_429(
    window: WindowKind, limit: int
) -> None:
    """Round trips of 20 to 70 ms; what is missing is their half, on average."""
    _, settled = fleets.run(1, window=window, limit=limit, settling=5, seconds=60)
    assert settled.share(limit, 1.0) >= 0.95
    assert settled.refused == 0


@pytest.mark.parametrize(
    ("window", "bulk"),
    [("sliding", True), ("sliding", False), ("fixed", True), ("bucket", True)],
)
@pytest.mark.parametrize("seed", range(3))
def test_four_processes_share_a_key_without_talking(
    window: WindowKind, bulk: bool, seed: int
) -> None:
    """From 30 s after their start on, for two minutes."""
    _, settled = fleets.run(4, window=window, bulk=bulk, seed=seed)
    assert settled.share(10, 1.0) >= 0.90
    assert settled.refused_share <= 0.05
    assert settled.fairness(4) >= 0.5


def test_who_has_little_takes_what_is_free_sooner_than_who_has_much() -> None:
    """So they come to equal shares without giving much away."""
    little = after(refused_once(used=3), 60, remaining=1).effective_limit
    much = after(refused_once(used=8), 60, remaining=1).effective_limit
    assert little - 2 > much - 7


@pytest.mark.parametrize(
    ("processes", "share", "refused"), [(2, 0.85, 0.01), (8, 0.75, 0.12)]
)
def test_fewer_and_more_processes_do_too(
    processes: int, share: float, refused: float
) -> None:
    """Eight have one permit each, and two that they find each other at."""
    _, settled = fleets.run(processes)
    assert settled.share(10, 1.0) >= share
    assert settled.refused_share <= refused
    assert settled.fairness(processes) >= 0.5


def test_they_do_not_collapse_where_the_server_tells_them_nothing() -> None:
    _, settled = fleets.run(4, headers=False)
    assert settled.share(10, 1.0) >= 0.75
    assert settled.refused_share <= 0.05


def test_more_processes_than_permits_still_get_something_done() -> None:
    _, settled = fleets.run(16)
    assert settled.share(10, 1.0) >= 0.5


def test_other_units_are_shared_as_well() -> None:
    """60 in 60 seconds."""
    _, settled = fleets.run(4, limit=60, period=60.0, settling=1800, seconds=3600)
    assert settled.share(60, 60.0) >= 0.90
    assert settled.refused_share <= 0.05


def test_headroom_left_to_others_is_never_touched() -> None:
    """8 of 10: two of them are free at any time, so nobody meets a 429."""
    _, settled = fleets.run(1, own_limit=8, settling=5, seconds=60)
    assert settled.share(8, 1.0) >= 0.95
    assert settled.accepted.total() <= 8 * 61
    assert settled.refused == 0


def test_processes_refused_together_come_back_apart() -> None:
    async def main() -> None:
        now = asyncio.get_running_loop().time
        returned = []

        async def process(chance: float) -> None:
            limiter = RateLimiter(10, clock=now, chance=lambda: chance)
            limiter.note_rate_limited()
            await limiter.acquire()
            returned.append(now())

        await asyncio.gather(*(process(number / 4) for number in range(4)))
        assert returned[0] == pytest.approx(0.5)
        assert all(later - earlier > 0.2 / 10 for earlier, later in pairwise(returned))

    virtual.run(main())


def test_after_a_429_nobody_bursts() -> None:
    """Single sends, too, are spaced then."""

    async def main() -> None:
        now = asyncio.get_running_loop().time
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
        assert all(gap > 0.4 / 5 - 0.006 for gap in gaps)  # one may be caught up

    virtual.run(main())


def test_what_the_server_says_grants_permits_to_those_who_wait() -> None:
    async def main() -> None:
        now = asyncio.get_running_loop().time
        limiter = RateLimiter(2, clock=now, chance=lambda: 0.95)
        for _ in range(2):
            await limiter.acquire()
        limiter.note_rate_limited()
        limiter.release(answered=True)
        await asyncio.sleep(1.5)
        assert limiter.effective_limit == 1
        assert not limiter.try_acquire()  # the other one is still under way
        waiting = asyncio.create_task(limiter.acquire())
        while limiter.effective_limit < 2:
            await asyncio.sleep(1)
            limiter.note_remaining(2)
        await virtual.settle()
        assert waiting.done()
        assert not limiter.slowed

    virtual.run(main())


def test_the_repr_says_what_is_left_to_others() -> None:
    limiter = RateLimiter(10, clock=lambda: 0.0, chance=lambda: 0.0)
    assert "others" not in repr(limiter)
    for _ in range(6):
        assert limiter.try_acquire()
    limiter.note_rate_limited()
    assert ", 5 left to others, held for 0.5 s>" in repr(limiter)
    assert math.isclose(limiter.held, 0.5)


@pytest.mark.parametrize("limit", [60, 600])
def test_of_a_long_period_no_more_than_a_moment_is_without_a_permit(
    limit: int,
) -> None:
    """Or a handler's event would wait for most of it behind a bulk run."""

    async def main() -> None:
        now = asyncio.get_running_loop().time
        limiter = RateLimiter(limit, 60.0, clock=now)
        waits = []

        async def send(bulk: bool) -> None:
            began = now()
            await limiter.acquire(bulk=bulk)
            if not bulk:
                waits.append(now() - began)
            await asyncio.sleep(0.1)
            limiter.release(answered=True)

        async def bulk() -> None:
            while True:
                await send(bulk=True)

        runs = [asyncio.create_task(bulk()) for _ in range(100)]
        await asyncio.sleep(300)
        for _ in range(50):
            await asyncio.sleep(7.3)
            await send(bulk=False)
        assert max(waits) <= 2.5
        for run in runs:
            run.cancel()
        await asyncio.wait(runs)

    virtual.run(main())


def test_what_is_told_before_any_429_changes_nothing() -> None:
    limiter = RateLimiter(10)
    limiter.note_remaining(0)
    limiter.note_remaining(3)
    assert (limiter.effective_limit, limiter.slowed) == (10, False)
