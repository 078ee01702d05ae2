"""How often and how patiently one event is tried."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import backoff

from loops_async.errors import ConfigurationError


def _at_least_one(_: object, attribute: "attrs.Attribute[int]", value: Any) -> None:
    if type(value) is not int or value < 1:
        msg = (
            f"RetryPolicy.{attribute.name} must be a whole number from 1, not {value!r}"
        )
        raise ConfigurationError(msg)


def _seconds(_: object, attribute: "attrs.Attribute[float]", value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        msg = f"RetryPolicy.{attribute.name} must be seconds from 0, not {value!r}"
        raise ConfigurationError(msg)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often and how patiently one event is tried.

    The wait before try n+1 is drawn evenly from 0 to ``base * 2**(n-1)``
    seconds, at most ``cap`` (exponential back-off with full jitter). What a
    server asks for with Retry-After is never undercut.

    Attributes:
        attempts: The most requests made for one event; 1 means no retry.
        base: Seconds, the longest first wait.
        cap: Seconds, the longest wait.

    Raises:
        ConfigurationError: if one is out of range.
    """

    attempts: int = attrs.field(default=10, validator=_at_least_one)
    base: float = attrs.field(default=0.5, validator=_seconds)
    cap: float = attrs.field(default=20.0, validator=_seconds)

    def waits(
        self, jitter: Callable[[float], float] = backoff.full_jitter
    ) -> Iterator[float]:
        """Yield the seconds to wait after the first failure, the second, ..."""
        longest = self.cap if self.base else 0.0  # 0 would double for ever
        schedule = backoff.expo(base=2, factor=self.base, max_value=longest)
        next(schedule)  # the generators of backoff begin with an empty yield
        return map(jitter, schedule)
