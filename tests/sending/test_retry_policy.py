"""The retry policy: how often an event is tried, and how long the pauses are."""

import itertools
import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import RetryPolicy, errors


def first_waits(policy: RetryPolicy, count: int) -> list[float]:
    """Return the longest possible waits, which are those without jitter."""
    return list(itertools.islice(policy.waits(jitter=lambda longest: longest), count))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("attempts", value) for value in (0, -1, 1.5, True, "3", None, math.inf)),
        *(
            (name, value)
            for name in ("base", "cap")
            for value in (-1, -0.5, math.nan, math.inf, "1", None, True)
        ),
    ],
)
def test_an_invalid_retry_policy_raises_a_configuration_error(
    setting: str, value: Any
) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        RetryPolicy(**{setting: value})
    assert f"RetryPolicy.{setting} must be" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_retry_policy_is_a_frozen_value() -> None:
    assert RetryPolicy() == RetryPolicy(attempts=10, base=0.5, cap=20.0)
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RetryPolicy().attempts = 3  # type: ignore[misc]


def test_the_longest_waits_double_up_to_the_cap() -> None:
    assert first_waits(RetryPolicy(), 8) == [0.5, 1, 2, 4, 8, 16, 20, 20]
    assert first_waits(RetryPolicy(base=3, cap=2), 2) == [2, 2]


@pytest.mark.parametrize("settings", [{"base": 0}, {"cap": 0}, {"base": 0, "cap": 0}])
def test_a_base_or_cap_of_zero_means_no_wait(settings: dict[str, float]) -> None:
    policy = RetryPolicy(**settings)  # type: ignore[arg-type]
    assert first_waits(policy, 2000) == [0] * 2000
    assert list(itertools.islice(policy.waits(), 3)) == [0, 0, 0]


def test_the_waits_neither_end_nor_overflow() -> None:
    assert first_waits(RetryPolicy(base=1e-9, cap=1e9), 5000)[-1] == 1e9


@given(st.floats(0, 100), st.floats(0, 1000))
def test_a_wait_with_jitter_is_between_zero_and_the_longest_wait(
    base: float, cap: float
) -> None:
    policy = RetryPolicy(base=base, cap=cap)
    longest = first_waits(policy, 12)
    waits = itertools.islice(policy.waits(), 12)
    assert all(0 <= wait <= top for wait, top in zip(waits, longest, strict=True))
    assert longest == [min(cap, base * 2**n) for n in range(12)]


def test_each_event_has_its_own_schedule_of_waits() -> None:
    policy = RetryPolicy()
    first, second = policy.waits(lambda w: w), policy.waits(lambda w: w)
    assert [next(first), next(first), next(second)] == [0.5, 1, 0.5]
