"""The rate limiter that the clients of one process share."""

import gc
import math
import weakref

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import ConfigurationError, RateLimiter
from loops_async._http.api_key import checked_api_key
from loops_async._pacing import shared
from loops_async._pacing.shared import limiter_for

KEY = "sk-very-secret-0123456789"
URL = "https://loops.example/api"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the rate limit of the developer from the environment."""
    monkeypatch.delenv("LOOPS_RATE_LIMIT", raising=False)


# Sharing.


def test_clients_with_the_same_api_key_and_base_url_share_a_limiter() -> None:
    """The rate limit applies to the team."""
    first = limiter_for(None, checked_api_key(KEY), URL)
    assert first is not None
    assert limiter_for(None, checked_api_key(f"{KEY} "), URL) is first
    assert limiter_for(None, checked_api_key("other"), URL) is not first
    assert limiter_for(None, checked_api_key(KEY), f"{URL}2") is not first


def test_an_explicit_rate_gives_a_client_its_own_limiter() -> None:
    first = limiter_for(None, KEY, URL)
    own = limiter_for(10, KEY, URL)
    assert own is not None
    assert own is not first
    assert limiter_for(10, KEY, URL) is not own
    assert limiter_for(own, KEY, URL) is own


def test_another_rate_in_the_environment_makes_another_limiter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = limiter_for(None, KEY, URL)
    monkeypatch.setenv("LOOPS_RATE_LIMIT", "5")
    other = limiter_for(None, KEY, URL)
    assert other is not None
    assert other is not first
    assert other.limit == 5


def test_the_shared_limiter_lives_as_long_as_its_clients() -> None:
    """The registry of shared limiters is weak."""
    limiter = limiter_for(None, KEY, URL)
    assert limiter is not None
    gone = weakref.ref(limiter)
    del limiter
    gc.collect()
    assert gone() is None
    assert KEY not in repr(list(shared._limiters.keys()))


def test_clients_share_a_limiter_if_their_callable_is_the_same_object() -> None:
    def one() -> str:
        return KEY

    def two() -> str:
        return KEY

    first = limiter_for(None, one, URL)
    assert limiter_for(None, one, URL) is first
    assert limiter_for(None, two, URL) is not first


def test_a_callable_api_key_need_not_be_hashable() -> None:
    """Instances of attrs classes and dataclasses that compare by value are not."""

    @attrs.define
    class Rotating:
        path: str

        def __call__(self) -> str:
            return KEY

    one, two = Rotating("key.txt"), Rotating("key.txt")
    limiter = limiter_for(None, one, URL)
    assert limiter_for(None, one, URL) is limiter
    assert limiter_for(None, two, URL) is not limiter


# The rate.


def test_an_argument_takes_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPS_RATE_LIMIT", "3")
    from_argument = limiter_for(7, KEY, URL)
    from_environment = limiter_for(None, KEY, URL)
    assert from_argument is not None
    assert from_environment is not None
    assert (from_argument.limit, from_environment.limit) == (7, 3)


def test_the_default_is_ten_requests_per_second() -> None:
    limiter = limiter_for(None, KEY, URL)
    assert limiter is not None
    assert (limiter.limit, limiter.period) == (10, 1.0)


@pytest.mark.parametrize("no_limit", ["inf", "Infinity", "1e999"])
def test_an_infinite_rate_needs_no_limiter(
    monkeypatch: pytest.MonkeyPatch, no_limit: str
) -> None:
    assert limiter_for(math.inf, KEY, URL) is None
    monkeypatch.setenv("LOOPS_RATE_LIMIT", no_limit)
    assert limiter_for(None, KEY, URL) is None


@pytest.mark.parametrize("value", ["0", "-1", "nan", "ten", "10/s"])
def test_the_message_names_an_invalid_rate_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("LOOPS_RATE_LIMIT", value)
    with pytest.raises(ConfigurationError, match="LOOPS_RATE_LIMIT") as caught:
        limiter_for(None, KEY, URL)
    assert value.rstrip("0") in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_rate_in_the_environment_is_not_a_missing_rate(
    monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    monkeypatch.setenv("LOOPS_RATE_LIMIT", empty)
    with pytest.raises(ConfigurationError, match="LOOPS_RATE_LIMIT must be a number"):
        limiter_for(None, KEY, URL)


def test_a_rate_limit_below_the_smallest_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="rate_limit is too small: 1e-320"):
        limiter_for(1e-320, KEY, URL)


@pytest.mark.parametrize(
    ("rate", "limit", "period"),
    [(10, 10, 1.0), (2.5, 3, 1.2), (0.5, 1, 2.0), (1, 1, 1.0), (9.9, 10, 10 / 9.9)],
)
def test_a_fractional_rate_lengthens_the_period(
    rate: float, limit: int, period: float
) -> None:
    """2.5 per second becomes 3 in 1.2 s, so that no second contains more than 3."""
    limiter = limiter_for(rate, KEY, URL)
    assert limiter is not None
    assert limiter.limit == limit
    assert limiter.period == pytest.approx(period)


@given(st.floats(1e-3, 1e6))
def test_a_limiter_has_the_exact_rate_and_a_period_of_at_least_a_second(
    rate: float,
) -> None:
    limiter = limiter_for(rate, KEY, URL)
    assert isinstance(limiter, RateLimiter)
    assert limiter.limit / limiter.period == pytest.approx(rate)
    assert limiter.period >= 1
    assert limiter.limit < rate + 1
