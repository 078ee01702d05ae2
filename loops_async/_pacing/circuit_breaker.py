"""The circuit breaker, which holds requests back while Loops is down."""

import asyncio
import logging
from collections import deque
from typing import Literal

_logger = logging.getLogger("loops_async")


class CircuitBreaker:
    """The circuit breaker for all attempts of one client in one event loop.

    The breaker is closed until ``threshold`` attempts in a row have failed (5xx or
    transport failure). Then it opens: attempts wait, and after a pause the longest
    waiter goes out as a probe. While a probe is in flight the breaker is half-open. If
    the probe fails, the next pause is twice as long, up to ``cap`` seconds. Any
    response that is not a failure closes the breaker and admits all waiters.

    Each `acquire` must be followed by exactly one of `record_success`, `record_failure`
    and `abandon`. The breaker belongs to the running event loop.

    Args:
        threshold: The number of consecutive failures that open the breaker.
        base: The first pause before a probe, in seconds.
        cap: The longest pause before a probe, in seconds.

    Attributes:
        is_closed: Whether attempts pass without a wait.
        failures: The number of consecutive failures.
    """

    def __init__(
        self, *, threshold: int = 5, base: float = 0.5, cap: float = 5.0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._threshold = threshold
        self._base = base
        self._cap = cap
        self.failures = 0
        self._pause = 0.0
        # A plain attribute, because every attempt reads it.
        self.is_closed: bool = True
        self._next_probe_at: float | None = None  # None while closed
        self._probes_started = 0
        self._current_probe = 0  # number of the probe in flight; 0 means none
        self._waiters: deque[asyncio.Future[int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state: str = self.state
        if not self.is_closed:
            state += f", {len(self._waiters)} waiting"
        return f"<CircuitBreaker {state}, {self.failures} failures in a row>"

    @property
    def state(self) -> Literal["closed", "half-open", "open"]:
        """The state of the breaker; "half-open" while a probe is in flight."""
        if self.is_closed:
            return "closed"
        return "half-open" if self._current_probe else "open"

    def shortest_wait(self) -> float:
        """Return the minimum number of seconds that `acquire` would wait now."""
        if self._next_probe_at is None:
            return 0.0
        return max(0.0, self._next_probe_at - self._loop.time())

    async def acquire(self) -> int:
        """Wait until the breaker is closed or this caller becomes the probe.

        Returns:
            The number of the caller's probe; 0 if the caller is not a probe.
        """
        if self.is_closed:
            return 0
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._waiters.append(waiter)
        self._schedule_probe()
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # admitted before the cancellation
                self.abandon(probe=waiter.result())
            raise

    def record_success(self) -> None:
        """Record a response that shows that Loops is up."""
        self.failures = 0
        if self.is_closed:
            return
        _logger.warning("Loops responds again: sending resumes")
        self.is_closed = True
        self._next_probe_at = None
        self._current_probe = 0
        self._schedule_probe()
        while (waiter := self._pop_waiter()) is not None:
            waiter.set_result(0)

    def record_failure(self, *, probe: int) -> None:
        """Record a 5xx response or a transport failure.

        Args:
            probe: The return value of `acquire` for this attempt.
        """
        self.failures += 1
        if self.is_closed:
            if self.failures < self._threshold:
                return
            self._pause = self._base
            _logger.warning(
                "%d attempts in a row failed: holding all sends and probing Loops "
                "every %.1f to %.1f s",
                self.failures,
                self._base,
                self._cap,
            )
        elif probe and probe == self._current_probe:
            self._current_probe = 0
            self._pause = min(2 * self._pause, self._cap)
        else:
            return  # this attempt was in flight before the breaker opened
        self.is_closed = False
        self._next_probe_at = self._loop.time() + self._pause
        self._schedule_probe()

    def abandon(self, *, probe: int) -> None:
        """Record that an attempt ended without showing whether Loops is up.

        Args:
            probe: The return value of `acquire` for this attempt.
        """
        if probe and probe == self._current_probe:
            self._current_probe = 0
            self._schedule_probe()

    def _schedule_probe(self) -> None:
        """Set the timer for the next probe if a waiter can become the probe."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (
            self._next_probe_at is not None
            and self._waiters
            and not self._current_probe
        ):
            self._timer = self._loop.call_at(self._next_probe_at, self._start_probe)

    def _start_probe(self) -> None:
        self._timer = None
        if (waiter := self._pop_waiter()) is not None:
            self._probes_started += 1
            self._current_probe = self._probes_started
            waiter.set_result(self._current_probe)

    def _pop_waiter(self) -> asyncio.Future[int] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():  # a cancelled waiter is done
                return waiter
        return None
