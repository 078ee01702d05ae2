"""The rate limiter: a counting semaphore whose permits return with a delay."""

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

_BULK_SHARE: Final = (
    10  # while callers wait in both queues, bulk gets every tenth permit
)
_MIN_HOLD: Final = 0.5  # fraction of a period; the shortest pause after a 429
_CATCH_UP: Final = (
    0.005  # seconds; a permit that is late by less does not delay the next one
)
_MIN_DELAY: Final = 0.001  # seconds; a shorter timer would spin on a coarse clock


@attrs.define(eq=False)
class _Waiter:
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Future[None]
    granted: bool = False


_Queue: TypeAlias = OrderedDict[_Waiter, None]


class RateLimiter:
    """A limit of ``limit`` requests in any ``period`` seconds, as the server counts.

    Share one limiter between all clients of a team in this process. The clients
    may run in different event loops and threads.

    A request takes a permit before it is sent. Without the credit described below, the
    permit returns one period after its response arrives. The server counts a request
    before it responds, so it counts two requests with the same permit at least one
    period apart. ``limit`` permits then never let the server count more than ``limit``
    requests in a period, whatever the latencies, in a sliding window, a fixed window or
    a token bucket. Without a response the time of counting is unknown; the permit then
    returns one period after the attempt ended.

    Slow responses cost throughput, because a permit is away for the round trip
    plus the period. Half of the fastest recent round trip is therefore credited:
    the permit returns that much earlier. The credit is safe as long as requests
    and responses each take at least a quarter of the fastest round trip.

    Single sends and bulk runs wait in two queues, each first-in, first-out.
    Single sends go first, but while callers wait in both queues, bulk gets every
    tenth permit. Bulk permits are spread over part of the period, so that a single
    send does not wait behind a burst. A waiter whose event loop is not running
    when its turn comes moves to the back of the queue.

    Several processes that share an API key do not see each other's requests, so
    some of them receive 429s. After a 429 a limiter pauses, uses fewer permits
    and then slowly tries more again; the processes converge to equal shares.
    To avoid 429s altogether, give each process a fixed share with `rate_limit=`.

    Args:
        limit: The number of requests per period, a whole number of at least 1.
        period: The length of the period in seconds.
        clock: A callable that returns monotonic seconds.
        chance: A callable that returns a random number from 0 to 1, used to separate
            processes that received a 429 at the same time.

    Raises:
        ConfigurationError: If the limit or the period is out of range.
    """

    __module__ = "loops_async"

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
        # Re-entrant: a garbage collection inside the lock can close a waiting
        # coroutine, which then takes the lock again in the same thread.
        self._lock = threading.RLock()
        self._free = limit
        self._return_times: deque[float] = deque()  # of used permits, ascending
        self._held_until = -math.inf
        self._spaced_until = -math.inf  # for bulk; while slowed, for single sends too
        self._capacity = Capacity(limit, period, chance)
        self._withheld = 0  # permits that the capacity leaves to other processes
        self.slowed: bool = False  # a 429 showed that other processes use the key
        self._spacing = self._capacity.spacing()
        self._single_queue: _Queue = OrderedDict()
        self._bulk_queue: _Queue = OrderedDict()
        self._singles_in_a_row = 0  # granted while the bulk queue waited
        self._waiters_by_loop: Counter[asyncio.AbstractEventLoop] = Counter()
        self._timers: dict[
            asyncio.AbstractEventLoop, tuple[float, asyncio.TimerHandle]
        ] = {}
        self._credit = Credit()
        _limiters.add(self)

    def __repr__(self) -> str:
        with self._lock:
            now = self._clock()
            self._collect_returned(now)
            waiting = len(self._single_queue) + len(self._bulk_queue)
            held = max(0.0, self._held_until - now)
            return (
                f"<RateLimiter {self.limit} per {self.period:g} s: {self._free} free, "
                f"{self._in_flight} in flight, {len(self._return_times)} returning, "
                f"{waiting} waiting"
                + (
                    f", {self._withheld} left to other processes"
                    if self._withheld
                    else ""
                )
                + (f", held for {held:.1f} s>" if held else ">")
            )

    def try_acquire(self, *, bulk: bool = False) -> bool:
        """Take a permit if one is free and the queues are empty, without waiting.

        Args:
            bulk: Whether the request belongs to a bulk run.

        Returns:
            Whether the caller now has a permit.
        """
        with self._lock:
            now = self._clock()
            if self._return_times and self._return_times[0] <= now:
                self._collect_returned(now)
            if (
                self._free <= self._withheld
                or self._single_queue
                or self._bulk_queue
                or now < self._held_until
            ):
                return False
            if bulk or self.slowed:
                if now < self._spaced_until:
                    return False
                self._delay_next(now)
            self._free -= 1
            return True

    async def acquire(self, *, bulk: bool = False) -> None:
        """Take a permit, waiting in line if necessary; a cancelled caller leaves it.

        Args:
            bulk: Whether the request belongs to a bulk run.
        """
        # A turn passes without a permit if the event loop was not running.
        while not self.try_acquire(bulk=bulk) and not await self._wait(bulk=bulk):
            pass

    async def _wait(self, *, bulk: bool) -> bool:
        """Wait for a turn and return whether it brought a permit."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, loop.create_future())
        queue = self._bulk_queue if bulk else self._single_queue
        with self._lock:
            queue[waiter] = None
            self._waiters_by_loop[loop] += 1
            # A permit may be free for this waiter while the other queue must wait.
            self._grant_permits()
        try:
            await waiter.woken
        except BaseException:  # cancelled, or collected together with its event loop
            with self._lock:
                if waiter.granted:
                    self._free += 1
                elif waiter in queue:
                    self._remove(queue, waiter)
                self._grant_permits()
            raise
        return waiter.granted

    def shortest_wait(self) -> float:
        """Return the minimum number of seconds that a new single send would wait.

        The result assumes that no earlier waiter is cancelled and that each
        permit in flight was used.
        """
        with self._lock:
            now = self._clock()
            self._collect_returned(now)
            rounds, position = divmod(
                len(self._single_queue), self._capacity.effective_limit
            )
            earliest = self._available_at(position, now)
            if earliest is None:  # the permit is still in flight
                credit = self._credit.upper_bound(self.limit, self.period)
                earliest = now + self.period - credit
            return max(earliest, self._held_until) - now + rounds * self.period

    def release(self, *, answered: bool, round_trip: float | None = None) -> None:
        """Return the permit of a request that was sent, once a period has passed.

        Args:
            answered: Whether the response has just arrived. Without a response
                the time of counting is unknown, and the current time is used.
            round_trip: Seconds between sending and the response if the connection was
                reused, otherwise None. The credit depends on these times.
        """
        with self._lock:
            now = self._clock()
            if round_trip is not None:
                self._credit.learn(round_trip, now)
            credit = self._credit.seconds if answered else 0.0
            return_time = now + self.period - credit
            # Ascending order makes collecting cheap; a later return is always safe.
            if self._return_times and self._return_times[-1] > return_time:
                return_time = self._return_times[-1]
            self._return_times.append(return_time)
            if self._single_queue or self._bulk_queue:
                self._grant_permits()

    def release_unused(self) -> None:
        """Return a permit at once because its request was certainly not sent."""
        with self._lock:
            self._free += 1
            self._grant_permits()

    def hold(self, seconds: float) -> None:
        """Do not grant permits for the given number of seconds.

        A hold that would end before the current one has no effect.
        """
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)

    @property
    def effective_limit(self) -> int:
        """The number of permits in use; the rest is left to other processes."""
        return self._capacity.effective_limit

    @property
    def held(self) -> float:
        """Seconds until the current hold ends; 0 without a hold."""
        return max(0.0, self._held_until - self._clock())

    def note_rate_limited(self, retry_after: float = 0.0) -> None:
        """Hold all sends and use fewer permits after a 429.

        Args:
            retry_after: The Retry-After of the response in seconds.
        """
        with self._lock:
            now = self._clock()
            self._collect_returned(now)
            self._capacity.note_rate_limited(self.limit - self._free, now)
            self._apply_capacity()
            # The random part separates processes that received a 429 together.
            offset = self._chance() * self.period / self._capacity.effective_limit
            self.hold(max(retry_after, _MIN_HOLD * self.period) + offset)

    def note_remaining(self, remaining: int | None) -> None:
        """Adapt the number of permits to a response, if `slowed` is true.

        Args:
            remaining: The number of requests left in the server's window; None if the
                response does not report it.
        """
        with self._lock:
            if not self.slowed:
                return
            self._capacity.note_remaining(remaining, self._clock())
            self._apply_capacity()
            if self._single_queue or self._bulk_queue:
                self._grant_permits()

    def forked(self) -> None:
        """Reset the limiter in a forked child, where no waiter is left."""
        self._lock = threading.RLock()
        self._single_queue.clear()
        self._bulk_queue.clear()
        self._waiters_by_loop.clear()
        self._timers.clear()
        self._return_times.extend([self._clock() + self.period] * self._in_flight)

    @property
    def _in_flight(self) -> int:
        return self.limit - self._free - len(self._return_times)

    def _apply_capacity(self) -> None:
        self._withheld = self.limit - self._capacity.effective_limit
        self.slowed = self._capacity.reduced
        self._spacing = self._capacity.spacing()

    def _collect_returned(self, now: float) -> None:
        while self._return_times and self._return_times[0] <= now:
            self._return_times.popleft()
            self._free += 1

    def _grant_permits(self) -> None:
        """Grant all permits that are available and set the timer for the next one."""
        now = self._clock()
        self._collect_returned(now)
        while (queue := self._next_queue(now)) is not None:
            waiter = next(iter(queue))
            self._remove(queue, waiter)
            # A stopped event loop cannot use a permit, so its waiter is woken without
            # one. The waiter leaves the queue, because the queue would keep it alive.
            waiter.granted = waiter.loop.is_running()
            if waiter.granted:
                self._free -= 1
                if queue is self._bulk_queue or self.slowed:
                    self._delay_next(now)
            _wake(waiter)
        loop = _running_loop()
        if loop is not None and self._waiters_by_loop[loop]:
            self._set_timer(loop)

    def _next_queue(self, now: float) -> _Queue | None:
        """Return the queue whose first waiter may get a permit now."""
        if self._free <= self._withheld or now < self._held_until:
            return None
        too_soon = now < self._spaced_until
        bulk_turn = not self._single_queue or self._singles_in_a_row >= _BULK_SHARE - 1
        if self._bulk_queue and bulk_turn and not too_soon:
            self._singles_in_a_row = 0
            return self._bulk_queue
        if not self._single_queue or (too_soon and self.slowed):
            return None
        self._singles_in_a_row += bool(self._bulk_queue)
        return self._single_queue

    def _delay_next(self, now: float) -> None:
        """Space the next permit from the one that is granted now."""
        self._spaced_until = max(self._spaced_until, now - _CATCH_UP) + self._spacing

    def _available_at(self, position: int, now: float) -> float | None:
        """Return the time at which that position gets a permit; None if unknown."""
        missing = position + self._withheld - self._free
        if missing < 0:
            return now
        return (
            self._return_times[missing] if missing < len(self._return_times) else None
        )

    def _remove(self, queue: _Queue, waiter: _Waiter) -> None:
        del queue[waiter]
        self._waiters_by_loop[waiter.loop] -= 1
        if not self._waiters_by_loop[waiter.loop]:  # drop the event loop
            del self._waiters_by_loop[waiter.loop]
            _, timer = self._timers.pop(waiter.loop, (0.0, None))
            if timer is not None and waiter.loop is _running_loop():
                timer.cancel()

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Schedule `_grant_permits` in the running event loop for the next permit.

        While all permits are in flight, their return times are not known. A permit that
        another event loop releases meanwhile returns about one period after that, so
        the timer is set for one period from now.
        """
        now = self._clock()
        when = self._available_at(0, now)
        if when is None:
            when = now + self.period
        if not self._single_queue or self.slowed:
            when = max(when, self._spaced_until)
        when = max(when, self._held_until)
        if loop in self._timers:
            scheduled_for, timer = self._timers[loop]
            if now < scheduled_for <= when:
                return  # a timer that fires early only sets the next one
            timer.cancel()
        delay = max(when - now, _MIN_DELAY)
        self._timers[loop] = when, loop.call_later(delay, self._on_timer, loop)

    def _on_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._timers.pop(loop, None)
            self._grant_permits()


_limiters: weakref.WeakSet[RateLimiter] = weakref.WeakSet()


def _reset_after_fork() -> None:  # pragma: no cover - coverage does not follow a fork
    for limiter in list(_limiters):
        limiter.forked()


# Windows has no fork, and its os module has no register_at_fork.
getattr(os, "register_at_fork", dict)(after_in_child=_reset_after_fork)


def _wake(waiter: _Waiter) -> None:
    if waiter.loop is _running_loop():
        _resolve(waiter.woken)
        return
    with suppress(RuntimeError):  # the event loop is closed, so its waiter is gone
        waiter.loop.call_soon_threadsafe(_resolve, waiter.woken)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # a cancelled waiter returns its permit itself
        future.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
