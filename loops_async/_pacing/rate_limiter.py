"""The rate limiter: a counting semaphore whose permits come back late.

Law: a permit returns one period after the latest moment at which the server
can have counted its request. A server counts a request no later than it
answers, so with permits returned at ``answer + period`` no latencies and no
kind of window can make the server see more than ``limit`` in a period. The
credit for fast answers (see Credit) is on top, under a condition of its own.
"""

import asyncio
import math
import os
import random
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

import attrs

from loops_async.errors import ConfigurationError

from .adaptive import Capacity, Credit

_BULK_SHARE: Final = 10  # while both classes wait, bulk gets every tenth permit
_HOLD: Final = 0.5  # of a period, for which a 429 holds everybody at least
_CATCH_UP: Final = 0.005  # seconds by which a grant may be late and lose nothing
_SOONEST: Final = 0.001  # seconds; a shorter timer would spin on a coarse clock


@attrs.define(eq=False)
class _Waiter:
    loop: asyncio.AbstractEventLoop
    turn: asyncio.Future[None]
    granted: bool = False


_Line: TypeAlias = OrderedDict[_Waiter, None]


class RateLimiter:
    """At most ``limit`` requests in any ``period`` seconds, as the server counts.

    Share one between the clients of a team, in whatever event loops and
    threads of the process they run. Two lines, each first come, first
    served: single sends go before bulk, but while both wait bulk gets one
    permit in ten, and spreads its permits, so that a single send need not
    wait for the end of a burst. Who waits in a loop that stands still at its
    turn waits again, at the end.

    After a 429 fewer permits are used, and slowly more again (see Capacity):
    processes that share a key come to equal shares without talking.

    Args:
        limit: Requests, a whole number from 1.
        period: Seconds.
        clock: Monotonic seconds.
        chance: Draws evenly from 0 to 1; it parts those held at one time.

    Raises:
        ConfigurationError: if one is out of range.
    """

    def __init__(
        self,
        limit: int = 10,
        period: float = 1.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if type(limit) is not int or limit < 1:
            msg = f"limit must be a whole number from 1, not {limit!r}"
            raise ConfigurationError(msg)
        if type(period) not in (int, float) or not 0 < period < math.inf:
            msg = f"period must be a positive number of seconds, not {period!r}"
            raise ConfigurationError(msg)
        self.limit = limit
        self.period = period
        self._clock = clock
        self._chance = chance
        # Re-entrant, for a waiter collected as garbage while it is held.
        self._lock = threading.RLock()
        self._free = limit
        self._due: deque[float] = deque()  # when spent permits come back
        self._held_until = -math.inf
        self._spaced_until = -math.inf  # for bulk, and after a 429 for all
        self._capacity = Capacity(limit, period, chance)
        self._kept_back = 0  # permits the capacity leaves to other processes
        self.slowed: bool = False  # a 429 has shown that others use the same key
        self._spacing = self._capacity.spacing()
        self._single: _Line = OrderedDict()
        self._bulk: _Line = OrderedDict()
        self._passed_over = 0  # permits given to single sends while bulk waited
        self._waiting_in: Counter[asyncio.AbstractEventLoop] = Counter()
        self._alarms: dict[
            asyncio.AbstractEventLoop, tuple[float, asyncio.TimerHandle]
        ] = {}
        self._credit = Credit()
        _limiters.add(self)

    def __repr__(self) -> str:
        with self._lock:
            now = self._clock()
            self._collect(now)
            waiting = len(self._single) + len(self._bulk)
            held = max(0.0, self._held_until - now)
            under_way = self.limit - self._free - len(self._due)
            return (
                f"<RateLimiter {self.limit} per {self.period:g} s: {self._free} free, "
                f"{under_way} under way, {len(self._due)} coming back, "
                f"{waiting} waiting"
                + (f", {self._kept_back} left to others" if self._kept_back else "")
                + (f", held for {held:.1f} s>" if held else ">")
            )

    def try_acquire(self, *, bulk: bool = False) -> bool:
        """Take a permit if one is free and nobody waits; never waits itself."""
        with self._lock:
            now = self._clock()
            if self._due and self._due[0] <= now:
                self._collect(now)
            if (
                self._free <= self._kept_back
                or self._single
                or self._bulk
                or now < self._held_until
            ):
                return False
            if bulk or self.slowed:
                if now < self._spaced_until:
                    return False
                self._space(now)
            self._free -= 1
            return True

    async def acquire(self, *, bulk: bool = False) -> None:
        """Take a permit; waits its turn. Cancelling gives the turn up."""
        while not self.try_acquire(bulk=bulk) and not await self._wait(bulk=bulk):
            pass  # the loop stood still when its turn came

    async def _wait(self, *, bulk: bool) -> bool:
        """Wait in line; return whether that brought a permit."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, loop.create_future())
        line = self._bulk if bulk else self._single
        with self._lock:
            line[waiter] = None
            self._waiting_in[loop] += 1
            self._serve()  # a permit may be free, and only bulk have to wait
        try:
            await waiter.turn
        except BaseException:  # cancelled, or thrown away with its loop
            with self._lock:
                if waiter.granted:
                    self._free += 1
                elif waiter in line:
                    self._leave(line, waiter)
                self._serve()
            raise
        return waiter.granted

    def shortest_wait(self) -> float:
        """Return the seconds at least that a single send arriving now waits.

        As things stand: if nobody ahead gives up, and what is under way was
        sent.
        """
        with self._lock:
            now = self._clock()
            self._collect(now)
            rounds, place = divmod(len(self._single), self._capacity.effective_limit)
            soonest = self._due_for(place, now)
            if soonest is None:  # a permit that is under way now
                soonest = now + self.period - self._credit.soon(self.limit, self.period)
            return max(soonest, self._held_until) - now + rounds * self.period

    def release(self, *, answered: bool, round_trip: float | None = None) -> None:
        """Give a permit back one period after the server counted the request.

        Args:
            answered: Whether the answer has just arrived. Without one the
                moment of counting is unknown and now is the best guess.
            round_trip: Seconds from sending to the answer, if the connection
                had been used before; from these the credit is learned.
        """
        with self._lock:
            now = self._clock()
            if round_trip is not None:
                self._credit.learn(round_trip, now)
            credit = self._credit.now if answered else 0.0
            due = now + self.period - credit
            # In order, so that taking them back is cheap; late is lawful.
            if self._due and self._due[-1] > due:
                due = self._due[-1]
            self._due.append(due)
            if self._single or self._bulk:
                self._serve()

    def release_unused(self) -> None:
        """Give a permit back whose request certainly never left."""
        with self._lock:
            self._free += 1
            self._serve()

    def hold(self, seconds: float) -> None:
        """Grant nothing to anybody for so long; a shorter hold changes nothing."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)

    @property
    def effective_limit(self) -> int:
        """How many of the permits are used; the rest is left to others."""
        return self._capacity.effective_limit

    @property
    def held(self) -> float:
        """Seconds for which nothing is granted to anybody."""
        return max(0.0, self._held_until - self._clock())

    def note_rate_limited(self, asked: float = 0.0) -> None:
        """Note a 429: everybody waits, and fewer permits are used.

        Args:
            asked: Seconds the server asked to wait.
        """
        with self._lock:
            now = self._clock()
            self._collect(now)
            self._capacity.refused(self.limit - self._free, now)
            self._adapt()
            # Processes refused together must not come back together.
            apart = self._chance() * self.period / self._capacity.effective_limit
            self.hold(max(asked, _HOLD * self.period) + apart)

    def note_remaining(self, remaining: int | None) -> None:
        """Note what an answer says is left in the server's window, if `slowed`."""
        with self._lock:
            if not self.slowed:
                return
            self._capacity.note_remaining(remaining, self._clock())
            self._adapt()
            if self._single or self._bulk:
                self._serve()

    def forked(self) -> None:
        """Begin again in the child of a fork: nobody here waits or sends yet."""
        self._lock = threading.RLock()
        self._single.clear()
        self._bulk.clear()
        self._waiting_in.clear()
        self._alarms.clear()
        under_way = self.limit - self._free - len(self._due)
        self._due.extend([self._clock() + self.period] * under_way)

    def _adapt(self) -> None:
        self._kept_back = self.limit - self._capacity.effective_limit
        self.slowed = self._capacity.reduced
        self._spacing = self._capacity.spacing()

    def _collect(self, now: float) -> None:
        while self._due and self._due[0] <= now:
            self._due.popleft()
            self._free += 1

    def _serve(self) -> None:
        """Grant what can be granted, and see to it that the rest is woken."""
        now = self._clock()
        self._collect(now)
        while (line := self._line_to_serve(now)) is not None:
            waiter = next(iter(line))
            self._leave(line, waiter)
            # A loop that stands still could not use a permit. Without a
            # place in line it can also be collected, if it was forgotten.
            waiter.granted = waiter.loop.is_running()
            if waiter.granted:
                self._free -= 1
                if line is self._bulk or self.slowed:
                    self._space(now)
            _wake(waiter)
        here = _running_loop()
        if here is not None and self._waiting_in[here]:
            self._set_alarm(here)

    def _line_to_serve(self, now: float) -> _Line | None:
        """Return the line whose first may go now."""
        if self._free <= self._kept_back or now < self._held_until:
            return None
        too_soon = now < self._spaced_until
        its_turn = not self._single or self._passed_over >= _BULK_SHARE - 1
        if self._bulk and its_turn and not too_soon:
            self._passed_over = 0
            return self._bulk
        if not self._single or (too_soon and self.slowed):
            return None
        self._passed_over += bool(self._bulk)
        return self._single

    def _space(self, now: float) -> None:
        """Note a grant after which the next one has to wait a little."""
        self._spaced_until = max(self._spaced_until, now - _CATCH_UP) + self._spacing

    def _due_for(self, place: int, now: float) -> float | None:
        """Return when the permit for that place in line is there, if known."""
        lacking = place + self._kept_back - self._free
        if lacking < 0:
            return now
        return self._due[lacking] if lacking < len(self._due) else None

    def _leave(self, line: _Line, waiter: _Waiter) -> None:
        del line[waiter]
        self._waiting_in[waiter.loop] -= 1
        if not self._waiting_in[waiter.loop]:  # keep no loop alive for nothing
            del self._waiting_in[waiter.loop]
            _, alarm = self._alarms.pop(waiter.loop, (0.0, None))
            if alarm is not None and waiter.loop is _running_loop():
                alarm.cancel()

    def _set_alarm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the loop when the next permit is due; only from inside it.

        While all permits are under way nothing is due. Whatever another loop
        gives back then is due about a period from now, so the alarm is set
        for that.
        """
        now = self._clock()
        when = self._due_for(0, now)
        if when is None:
            when = now + self.period
        if not self._single or self.slowed:
            when = max(when, self._spaced_until)
        when = max(when, self._held_until)
        if loop in self._alarms:
            set_for, alarm = self._alarms[loop]
            if now < set_for <= when:
                return  # it will ring early and be set again
            alarm.cancel()
        delay = max(when - now, _SOONEST)
        self._alarms[loop] = when, loop.call_later(delay, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._alarms.pop(loop, None)
            self._serve()


_limiters: weakref.WeakSet[RateLimiter] = weakref.WeakSet()


def _forked() -> None:  # pragma: no cover - coverage does not follow a fork
    for limiter in list(_limiters):
        limiter.forked()


# Windows has neither forks nor this.
getattr(os, "register_at_fork", dict)(after_in_child=_forked)


def _wake(waiter: _Waiter) -> None:
    if waiter.loop is _running_loop():
        _resolve(waiter.turn)
        return
    with suppress(RuntimeError):  # closed: nobody is there to be woken
        waiter.loop.call_soon_threadsafe(_resolve, waiter.turn)


def _resolve(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # else cancelled, and its permit is on its way back
        turn.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
