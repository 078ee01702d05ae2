"""Rate windows: three algorithms that limit the requests of a team.

The documentation of Loops names "10 requests per second" and no algorithm, so each
common one is here. Time is an argument in seconds and must not go backwards.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

import attrs

WindowKind = Literal["sliding", "fixed", "bucket"]


class Window(Protocol):
    """A rate window."""

    limit: int

    def take(self, now: float, *, charge_refused: bool) -> bool:
        """Count a request and return whether the window admits it.

        Args:
            now: The time in seconds.
            charge_refused: Whether a refused request also uses up the limit.
        """

    def refund(self, at: float, /) -> None:
        """Give back the permit of the request admitted at ``at``."""

    def remaining(self, now: float) -> int:
        """Return the number of further requests that the window admits now."""

    def wait(self, now: float) -> float:
        """Return the seconds until the window admits the next request."""


@attrs.define
class SlidingWindow:
    """At most ``limit`` requests in any stretch of ``period`` seconds."""

    limit: int
    period: float
    _arrivals: deque[float] = attrs.field(init=False, factory=deque)

    def take(self, now: float, *, charge_refused: bool) -> bool:
        """See ``Window``."""
        self._expire(now)
        admitted = len(self._arrivals) < self.limit
        if admitted or charge_refused:
            self._arrivals.append(now)
        return admitted

    def refund(self, at: float, /) -> None:
        """See ``Window``."""
        if at in self._arrivals:
            self._arrivals.remove(at)

    def remaining(self, now: float) -> int:
        """See ``Window``."""
        self._expire(now)
        return max(0, self.limit - len(self._arrivals))

    def wait(self, now: float) -> float:
        """See ``Window``."""
        if self.remaining(now):
            return 0.0
        return self._arrivals[-self.limit] + self.period - now

    def _expire(self, now: float) -> None:
        while self._arrivals and self._arrivals[0] <= now - self.period:
            self._arrivals.popleft()


@attrs.define
class FixedWindow:
    """At most ``limit`` requests between two multiples of ``period`` seconds."""

    limit: int
    period: float
    _index: int = attrs.field(init=False, default=0)
    _taken: int = attrs.field(init=False, default=0)

    def take(self, now: float, *, charge_refused: bool) -> bool:
        """See ``Window``; a charge for a refused request ends with its window."""
        admitted = self.remaining(now) > 0
        self._taken += admitted or charge_refused
        return admitted

    def refund(self, at: float, /) -> None:
        """See ``Window``."""
        if self._taken and math.floor(at / self.period) == self._index:
            self._taken -= 1

    def remaining(self, now: float) -> int:
        """See ``Window``."""
        index = math.floor(now / self.period)
        if index != self._index:
            self._index, self._taken = index, 0
        return max(0, self.limit - self._taken)

    def wait(self, now: float) -> float:
        """See ``Window``."""
        if self.remaining(now):
            return 0.0
        return (self._index + 1) * self.period - now


@attrs.define
class TokenBucket:
    """A bucket of ``limit`` tokens, refilled evenly over each ``period`` seconds."""

    limit: int
    period: float
    _tokens: float = attrs.field(init=False)
    _refilled_at: float = attrs.field(init=False, default=-math.inf)

    def __attrs_post_init__(self) -> None:
        self._tokens = float(self.limit)

    def take(self, now: float, *, charge_refused: bool) -> bool:
        """See ``Window``; a charge for a refused request empties a partial token."""
        admitted = self.remaining(now) > 0
        if admitted:
            self._tokens -= 1.0
        elif charge_refused:
            self._tokens = 0.0
        return admitted

    def refund(self, _: float, /) -> None:
        """See ``Window``."""
        self._tokens = min(self._tokens + 1.0, float(self.limit))

    def remaining(self, now: float) -> int:
        """See ``Window``."""
        refill = (now - self._refilled_at) * self.limit / self.period
        self._tokens = min(self._tokens + refill, float(self.limit))
        self._refilled_at = now
        return math.floor(self._tokens)

    def wait(self, now: float) -> float:
        """See ``Window``."""
        if self.remaining(now):
            return 0.0
        return (1.0 - self._tokens) * self.period / self.limit


def make_window(kind: WindowKind, limit: int, period: float) -> Window:
    """Return an empty window of the given kind."""
    kinds: dict[WindowKind, Callable[[int, float], Window]] = {
        "sliding": SlidingWindow,
        "fixed": FixedWindow,
        "bucket": TokenBucket,
    }
    return kinds[kind](limit, period)
