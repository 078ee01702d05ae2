"""The outage gate: no thousand requests at a Loops that is down."""

import asyncio
import logging
from collections import deque

_logger = logging.getLogger("loops_async")


class CircuitBreaker:
    """Holds the sends of one event loop back while Loops is down.

    Open until ``threshold`` attempts in a row failed (5xx, transport). Then
    one probe goes out per pause, the pauses growing from ``base`` to ``cap``
    seconds, until any answer that is no failure opens the gate for all.

    Each `enter` must be followed by one of `succeeded`, `failed` and
    `left`. Belongs to the loop it is made in.
    """

    def __init__(
        self, *, threshold: int = 5, base: float = 0.5, cap: float = 5.0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._threshold = threshold
        self._base = base
        self._cap = cap
        self._failures = 0
        self._pause = 0.0
        self.is_closed = True
        self._probe_due: float | None = None  # None while open
        self._probes = 0
        self._probing = 0  # the number of the probe under way
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "open" if self.is_closed else f"closed, {len(self._waiting)} waiting"
        return f"<CircuitBreaker {state}, {self._failures} failures in a row>"

    def shortest_wait(self) -> float:
        """Return the seconds `enter` will take at least."""
        if self._probe_due is None:
            return 0.0
        return max(0.0, self._probe_due - self._loop.time())

    async def acquire(self) -> int:
        """Wait until the gate is open or it is this caller's turn to probe.

        Returns:
            The number of the probe this caller is; 0 for none.
        """
        if self.is_closed:
            return 0
        turn: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append(turn)
        self._schedule()
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.abandon(probe=turn.result())
            raise

    def record_success(self) -> None:
        """Note an answer that shows Loops to be up."""
        self._failures = 0
        if self.is_closed:
            return
        _logger.warning("Loops answers again: sending resumes")
        self.is_closed = True
        self._probe_due = None
        self._probing = 0
        self._schedule()
        while (turn := self._next_turn()) is not None:
            turn.set_result(0)

    def record_failure(self, *, probe: int) -> None:
        """Note a 5xx or a transport failure."""
        self._failures += 1
        if self.is_closed:
            if self._failures < self._threshold:
                return
            self._pause = self._base
            _logger.warning(
                "%d attempts in a row failed: holding all sends, probing every "
                "%.1f to %.1f s",
                self._failures,
                self._base,
                self._cap,
            )
        elif probe and probe == self._probing:
            self._probing = 0
            self._pause = min(2 * self._pause, self._cap)
        else:
            return  # it was under way already when the gate closed
        self.is_closed = False
        self._probe_due = self._loop.time() + self._pause
        self._schedule()

    def abandon(self, *, probe: int) -> None:
        """Note that an attempt ended before it showed anything."""
        if probe and probe == self._probing:
            self._probing = 0
            self._schedule()

    def _schedule(self) -> None:
        """Let the longest waiting be the probe as soon as one is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._probe_due is not None and self._waiting and not self._probing:
            self._timer = self._loop.call_at(self._probe_due, self._hand_over)

    def _hand_over(self) -> None:
        self._timer = None
        if (turn := self._next_turn()) is not None:
            self._probes += 1
            self._probing = self._probes
            turn.set_result(self._probing)

    def _next_turn(self) -> asyncio.Future[int] | None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else cancelled while it waited
                return turn
        return None
