"""The retry policy: the number of attempts and the pauses between them."""

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
    """The number of attempts for an event, and the pauses between them.

    The pause before attempt n+1 is a random time between 0 and
    ``base * 2**(n-1)`` seconds, at most ``cap`` (exponential back-off with full
    jitter). It is never shorter than the server's Retry-After.

    Attributes:
        attempts: The greatest number of requests for one event; 1 means no retry.
        base: The longest first pause in seconds.
        cap: The longest pause in seconds.

    Raises:
        ConfigurationError: If a value is out of range.

    ```python
    from loops_async import AsyncLoopsClient, RetryPolicy

    patient = RetryPolicy(attempts=20, cap=60.0)
    loops_with_patience = AsyncLoopsClient("<your-api-key>", retry=patient)
    no_retry = AsyncLoopsClient("<your-api-key>", retry=RetryPolicy(attempts=1))
    ```
    """

    __module__ = "loops_async"

    attempts: int = attrs.field(default=10, validator=_at_least_one)
    base: float = attrs.field(default=0.5, validator=_seconds)
    cap: float = attrs.field(default=20.0, validator=_seconds)

    def waits(
        self, jitter: Callable[[float], float] = backoff.full_jitter
    ) -> Iterator[float]:
        """Return an iterator over the pauses after each failure, in seconds.

        Args:
            jitter: A callable that draws a pause up to the longest one, in seconds.
        """
        longest = self.cap if self.base else 0.0  # 0 would be doubled forever
        schedule = backoff.expo(base=2, factor=self.base, max_value=longest)
        next(schedule)  # the generators of backoff begin with an empty yield
        return map(jitter, schedule)
