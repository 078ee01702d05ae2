"""The adaptive parts of the rate limiter: its credit and its number of permits."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

_MIN_SAMPLES: Final = 20  # round trips needed for a credit
_MARGIN: Final = 0.002  # seconds subtracted from the credit
_MAX_AGE: Final = 60.0  # seconds after which a new fastest round trip is sought

# These values come from simulations of 2 to 8 processes that share an API key, on
# sliding, fixed and token-bucket windows. The number of permits stays whole because
# processes whose permits add up to the limit never receive a 429 at any latency.
_MIN_SPREAD: Final = 0.4  # fraction of a period over which permits are spread
_MAX_IDLE: Final = 0.6  # seconds between the last spread permit and the period's end
_MIN_LEVEL: Final = 0.05  # permits per period
_DECREASE: Final = 0.8  # factor on a 429, at most once per period
_QUIET_PERIODS: Final = 3  # periods after a 429 without an increase
_PROBE_SHARE: Final = 0.06  # fraction of the server's remaining budget that is added
_FAIR_SHARE: Final = 0.25  # fraction of the limit; smaller levels grow faster
_MIN_SPEED: Final = 0.5  # factors on the increase
_MAX_SPEED: Final = 2.4
_MAX_INCREASE: Final = 0.1  # fraction of the limit added per period
_BLIND_INCREASE: Final = 1 / 200  # the same, if the remaining budget is unknown
_EXHAUSTED: Final = 0.05  # fraction of the limit below which nothing remains
_YIELD: Final = 0.01  # fraction of level²/limit that is given up


class Credit:
    """The time by which a permit may return earlier than a period after its response.

    The credit is half of the fastest round trip in the last one to two minutes, less a
    margin, and zero until 20 round trips are known. The credit is safe while the way
    back of one response and the way out of a later request together take at least the
    credit. This holds while neither way takes less than a quarter of the fastest round
    trip.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._samples = 0
        self._fastest_before = self._fastest = math.inf  # two consecutive intervals
        self._interval_start = -math.inf

    def upper_bound(self, in_flight: int, period: float) -> float:
        """Return the largest credit possible after ``in_flight`` more round trips."""
        if self._samples + in_flight < _MIN_SAMPLES:
            return 0.0
        return min(self._fastest_before, self._fastest, 2 * period) / 2

    def learn(self, round_trip: float, now: float) -> None:
        """Update the credit with a round trip, in seconds, that ended at ``now``."""
        self._samples += 1
        if now - self._interval_start >= _MAX_AGE:
            self._fastest_before, self._fastest = self._fastest, round_trip
            self._interval_start = now
        elif round_trip < self._fastest:
            self._fastest = round_trip
        elif self._samples != _MIN_SAMPLES:
            return  # the credit stays as it is
        if self._samples >= _MIN_SAMPLES:
            fastest = min(self._fastest_before, self._fastest)
            self.seconds = max(0.0, fastest / 2 - _MARGIN)


class Capacity:
    """The number of permits that this process may use, as `effective_limit`.

    All permits are used until a 429 shows that other processes use the same
    key. Each 429 lowers the number by a factor, and quiet periods raise it
    again step by step (multiplicative decrease, additive increase), so that
    processes converge to equal shares without communicating. The budget that
    the server reports as remaining sets the size of the steps.

    Args:
        limit: The total number of permits.
        period: The length of the period in seconds.
        chance: A callable that returns a random number from 0 to 1.
    """

    def __init__(self, limit: int, period: float, chance: Callable[[], float]) -> None:
        self._limit = limit
        self._period = period
        self._chance = chance
        self.effective_limit = limit
        self._level = float(limit)
        self._recent_429s: deque[float] = deque()  # times in the last period
        self._last_429 = -math.inf
        self._last_decrease = -math.inf
        self._least_remaining: float = math.inf  # in the current interval
        self._interval_start = -math.inf

    @property
    def reduced(self) -> bool:
        """Whether a 429 lowered the number, which has not fully recovered."""
        return self._level < self._limit

    def note_rate_limited(self, used: int, now: float) -> None:
        """Lower the number after a 429.

        Args:
            used: The number of permits in flight or returning, including this one.
            now: The current time in seconds.
        """
        while self._recent_429s and self._recent_429s[0] <= now - self._period:
            self._recent_429s.popleft()
        self._recent_429s.append(now)
        self._last_429 = now
        level = self._level
        if self.reduced and now - self._last_decrease > self._period:
            level *= _DECREASE
        # The server accepted at most as many requests as used permits got no 429.
        level = min(level, max(_DECREASE, used - len(self._recent_429s)))
        if level < self._level:
            self._last_decrease = now
        self._start_interval(level, now)

    def spacing(self) -> float:
        """Return the seconds between two permits that are spread over a period."""
        spread = 1.0
        if self._level >= 1.0:
            spread = max(_MIN_SPREAD, 1 - _MAX_IDLE / self._period)
        return spread * self._period / min(self._level, self.effective_limit)

    def note_remaining(self, remaining: int | None, now: float) -> None:
        """Adjust the number after a response that arrived while the number is reduced.

        Args:
            remaining: The number of requests left in the server's window; None if the
                response does not report it.
            now: The current time in seconds.
        """
        if remaining is not None:
            self._least_remaining = min(self._least_remaining, remaining)
        if now - self._interval_start < self._period:
            return
        level = self._level
        if self._least_remaining < _EXHAUSTED * self._limit:
            level -= _YIELD * level * level / self._limit
        elif now - self._last_429 >= _QUIET_PERIODS * self._period:
            level += self._increase()
        # Just above a whole number, the next small decrease would undo the change.
        if level >= 1.0 and math.floor(level) != math.floor(self._level):
            level = math.floor(level) + 0.5
        self._start_interval(level, now)

    def _increase(self) -> float:
        if self._least_remaining == math.inf:
            added = _BLIND_INCREASE * self._limit
        else:
            speed = (_FAIR_SHARE * self._limit / self._level) ** 2
            speed = min(max(speed, _MIN_SPEED), _MAX_SPEED)
            added = min(
                _MAX_INCREASE * self._limit,
                _PROBE_SHARE * speed * self._least_remaining,
            )
        if self._level < 1.0:
            return added
        # Random rounding, so that processes do not all take the same free permit.
        return math.floor(added + self._chance())

    def _start_interval(self, level: float, now: float) -> None:
        self._level = min(max(level, _MIN_LEVEL), float(self._limit))
        self.effective_limit = max(1, math.floor(self._level))
        self._least_remaining, self._interval_start = math.inf, now
