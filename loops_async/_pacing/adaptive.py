"""What a rate limiter learns from answers: how early, and how much."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

_SAMPLES: Final = 20  # round trips to be known before any credit is given
_MARGIN: Final = 0.002  # seconds taken off the credit
_AGE: Final = 60.0  # seconds after which a fastest round trip may be forgotten

# The rest was found by letting 2 to 8 processes share a key in virtual time, on
# sliding, fixed and bucket windows. That permits are whole matters: while those
# of all processes add up to the limit nobody is refused, whatever the latencies.
_SPREAD: Final = 0.4  # of a period, over which the permits are given out at least
_IDLE: Final = 0.6  # seconds after the last of them, at most
_FEWEST: Final = 0.05  # permits a period
_DECREASE: Final = 0.8  # on a 429, at most once a period
_QUIET: Final = 3  # periods after a 429 without any increase
_PROBE: Final = 0.06  # of what the server says is left, added in a period,
_USUAL: Final = 0.25  # of the limit; who has less is faster, who has more slower
_LEAST_HASTE: Final = 0.5  # times as fast
_MOST_HASTE: Final = 2.4
_FASTEST: Final = 0.1  # but at most this part of the limit
_BLIND: Final = 1 / 200  # of the limit, added in a period if no header says what is
_NOTHING: Final = 0.05  # of the limit; when less is left
_YIELD: Final = 0.01  # of level²/limit is taken off, so that the largest give most


class Credit:
    """How much earlier than ``answer + period`` a permit may return: `now`.

    Half the fastest round trip of the last one to two minutes, less a
    margin; nothing until enough are known. Safe while the way back of one
    request and the way out of a later one together take at least as long, so
    always while no way takes less than a quarter of the fastest round trip.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._samples = 0
        self._before = self._fastest = math.inf
        self._since = -math.inf

    def soon(self, under_way: int, period: float) -> float:
        """Return the most it can be when as many more are known."""
        if self._samples + under_way < _SAMPLES:
            return 0.0
        return min(self._before, self._fastest, 2 * period) / 2

    def learn(self, round_trip: float, at: float) -> None:
        self._samples += 1
        if at - self._since >= _AGE:
            self._before, self._fastest, self._since = self._fastest, round_trip, at
        elif round_trip < self._fastest:
            self._fastest = round_trip
        elif self._samples != _SAMPLES:
            return  # nothing new
        if self._samples >= _SAMPLES:
            fastest = min(self._before, self._fastest)
            self.now = max(0.0, fastest / 2 - _MARGIN)


class Capacity:
    """How many of its permits one of several processes may use: `effective_limit`.

    All of them until a 429 shows that others use the same key. Then fewer
    after each 429 (multiplicative decrease), and slowly more again (additive
    increase), so that processes which cannot talk come to equal shares. What
    the server says is left only slows the increase down.

    Args:
        limit: Permits in all.
        period: Seconds.
        chance: Draws evenly from 0 to 1.
    """

    def __init__(self, limit: int, period: float, chance: Callable[[], float]) -> None:
        self._limit = limit
        self._period = period
        self._chance = chance
        self.effective_limit = limit
        self._level = float(limit)
        self._refused: deque[float] = deque()  # times, of the last period
        self._last_refused = -math.inf
        self._decreased = -math.inf  # when it last was
        self._least: float = math.inf  # that was left, in the span now watched
        self._since = -math.inf  # when the span began

    @property
    def reduced(self) -> bool:
        """Whether others have been noticed, and not been gone for long."""
        return self._level < self._limit

    def refused(self, used: int, now: float) -> None:
        """Note a 429.

        Args:
            used: Permits that are under way or coming back, this one included.
            now: Seconds.
        """
        while self._refused and self._refused[0] <= now - self._period:
            self._refused.popleft()
        self._refused.append(now)
        self._last_refused = now
        level = self._level
        if self.reduced and now - self._decreased > self._period:
            level *= _DECREASE
        # No more than the server can have granted in the last period.
        level = min(level, max(_DECREASE, used - len(self._refused)))
        if level < self._level:
            self._decreased = now
        self._watch(level, now)

    def spacing(self) -> float:
        """Return the seconds between two grants that are not to be a burst."""
        part = 1.0
        if self._level >= 1.0:  # of a long period, all but a little
            part = max(_SPREAD, 1 - _IDLE / self._period)
        return part * self._period / min(self._level, self.effective_limit)

    def note_remaining(self, remaining: int | None, now: float) -> None:
        """Note an answer, while not all permits are effective_limit.

        Args:
            remaining: What the server says is left in its window, or None.
            now: Seconds.
        """
        if remaining is not None:
            self._least = min(self._least, remaining)
        if now - self._since < self._period:
            return
        level = self._level
        if self._least < _NOTHING * self._limit:
            level -= _YIELD * level * level / self._limit
        elif now - self._last_refused >= _QUIET * self._period:
            level += self._increase()
        if level >= 1.0 and math.floor(level) != math.floor(self._level):
            level = math.floor(level) + 0.5  # away from the brink, or it wavers
        self._watch(level, now)

    def _increase(self) -> float:
        if self._least == math.inf:
            more = _BLIND * self._limit
        else:
            haste = (_USUAL * self._limit / self._level) ** 2
            haste = min(max(haste, _LEAST_HASTE), _MOST_HASTE)
            more = min(_FASTEST * self._limit, _PROBE * haste * self._least)
        # Whole permits, by chance: if all grew alike all would take the same one.
        return more if self._level < 1.0 else math.floor(more + self._chance())

    def _watch(self, level: float, now: float) -> None:
        self._level = min(max(level, _FEWEST), float(self._limit))
        self.effective_limit = max(1, math.floor(self._level))
        self._least, self._since = math.inf, now
