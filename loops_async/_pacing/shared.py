"""The rate limiter that the clients of one process share.

Clients that set no rate limit and have the same API key and base URL spend one team's
budget, so they share one limiter. The registry below is weak, so a limiter lives only
as long as its clients.
"""

import math
import os
import weakref
from collections.abc import Hashable
from typing import Final

from loops_async._checks import MAX_SECONDS
from loops_async._http.api_key import KeySource
from loops_async.errors import ConfigurationError

from .rate_limiter import RateLimiter

DEFAULT_RATE: Final = 10.0  # https://loops.so/docs/api-reference/intro

_UNLIMITED: Final = 1e9  # requests a second; more than any machine can send

_limiters: weakref.WeakValueDictionary[Hashable, RateLimiter] = (
    weakref.WeakValueDictionary()
)


def limiter_for(
    rate_limit: float | RateLimiter | None, api_key: KeySource, base_url: str
) -> RateLimiter | None:
    """Return the limiter of a client; None means no limit.

    Args:
        rate_limit: The client's own limiter, or requests a second for a limiter
            of its own; None returns the shared limiter.
        api_key: The client's API key or callable.
        base_url: The client's base URL.

    Raises:
        ConfigurationError: If the rate is out of range.
    """
    if isinstance(rate_limit, RateLimiter):
        return rate_limit
    if rate_limit is not None:
        return _make_limiter(rate_limit, "rate_limit")
    rate: float = DEFAULT_RATE
    text = os.environ.get("LOOPS_RATE_LIMIT")
    if text is not None:
        try:
            rate = float(text)
        except ValueError:
            msg = f"LOOPS_RATE_LIMIT must be a number, not {text!r}"
            raise ConfigurationError(msg) from None
    budget = (_identity(api_key), base_url, rate)
    limiter = _limiters.get(budget)
    if limiter is None:
        limiter = _make_limiter(rate, "LOOPS_RATE_LIMIT")
        if limiter is not None:
            _limiters[budget] = limiter
    return limiter


def _identity(api_key: KeySource) -> Hashable:
    try:
        hash(api_key)
    except TypeError:  # an unhashable callable; its client keeps it alive
        return id(api_key)
    return api_key


def _make_limiter(rate: object, name: str) -> RateLimiter | None:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        msg = f"{name} must be a positive number per second, not {rate!r}"
        raise ConfigurationError(msg)
    if rate >= _UNLIMITED:
        return None
    # 2.5 a second becomes 3 in 1.2 s, so no second ever contains more than 3.
    limit = math.ceil(rate)
    period = limit / rate
    if period > MAX_SECONDS:
        msg = f"{name} is too small: {rate!r} per second"
        raise ConfigurationError(msg)
    return RateLimiter(limit, period)
