"""The laws of the three rate windows."""

import math
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops_async.sandbox._windows import (
    FixedWindow,
    SlidingWindow,
    TokenBucket,
    Window,
    make_window,
)

KINDS = pytest.mark.parametrize("kind", ["sliding", "fixed", "bucket"])
# Binary fractions, whose sums are exact.
gaps = st.lists(st.integers(0, 300).map(lambda n: n / 256), max_size=80)
limits = st.integers(1, 6)


def admitted(window: Window, gaps: list[float], charge: bool) -> list[float]:
    return [now for now in accumulate(gaps) if window.take(now, charge_refused=charge)]


@settings(max_examples=60, deadline=None)
@given(gaps, limits, st.booleans())
def test_no_interval_of_a_sliding_window_admits_more_than_the_limit(
    gaps: list[float], limit: int, charge: bool
) -> None:
    times = admitted(SlidingWindow(limit, 1.0), gaps, charge)
    for first, beyond in zip(times, times[limit:], strict=False):
        assert beyond - first >= 1.0


@settings(max_examples=60, deadline=None)
@given(gaps, limits, st.booleans())
def test_no_fixed_window_admits_more_than_the_limit(
    gaps: list[float], limit: int, charge: bool
) -> None:
    times = admitted(FixedWindow(limit, 1.0), gaps, charge)
    indices = [math.floor(now) for now in times]
    assert all(indices.count(index) <= limit for index in indices)


@settings(max_examples=60, deadline=None)
@given(gaps, limits, st.booleans())
def test_no_interval_of_a_bucket_admits_more_than_its_size_and_refill(
    gaps: list[float], limit: int, charge: bool
) -> None:
    times = admitted(TokenBucket(limit, 1.0), gaps, charge)
    for i, first in enumerate(times):
        for taken, last in enumerate(times[i:], start=1):
            assert taken <= limit + limit * (last - first) + 1e-9


@KINDS
@settings(max_examples=40, deadline=None)
@given(gaps=gaps, limit=limits)
def test_a_window_admits_exactly_the_remaining_requests(
    kind: Any, gaps: list[float], limit: int
) -> None:
    window = make_window(kind, limit, 1.0)
    admitted(window, gaps, False)
    now = sum(gaps)
    remaining = window.remaining(now)
    assert 0 <= remaining <= limit
    for _ in range(remaining):
        assert window.take(now, charge_refused=False)
    assert not window.take(now, charge_refused=False)


@KINDS
@settings(max_examples=40, deadline=None)
@given(gaps=gaps, limit=limits, charge=st.booleans())
def test_a_window_admits_a_request_after_its_wait(
    kind: Any, gaps: list[float], limit: int, charge: bool
) -> None:
    window = make_window(kind, limit, 1.0)
    admitted(window, gaps, charge)
    now = sum(gaps)
    wait = window.wait(now)
    assert 0 <= wait <= 1.0
    assert window.take(now + wait + 1e-9, charge_refused=charge)


@KINDS
def test_a_refund_admits_one_more(kind: Any) -> None:
    window = make_window(kind, 2, 1.0)
    assert [window.take(5.0, charge_refused=False) for _ in "ab"] == [True, True]
    window.refund(5.0)
    assert window.remaining(5.0) == 1


@KINDS
def test_a_refund_after_the_window_has_passed_changes_nothing(kind: Any) -> None:
    window = make_window(kind, 2, 1.0)
    window.take(5.0, charge_refused=False)
    assert window.remaining(7.0) == 2
    window.refund(5.0)
    assert window.remaining(7.0) == 2


def test_charged_refusals_lock_a_persistent_client_out_of_a_sliding_window() -> None:
    window = SlidingWindow(1, 1.0)
    results = [window.take(0.5 * n, charge_refused=True) for n in range(6)]
    assert results == [True] + [False] * 5


def test_a_charged_refusal_empties_a_bucket() -> None:
    window = TokenBucket(1, 1.0)
    assert window.take(0.0, charge_refused=True)
    assert not window.take(0.75, charge_refused=True)
    assert not window.take(1.0, charge_refused=True)
    assert window.take(2.0, charge_refused=True)
