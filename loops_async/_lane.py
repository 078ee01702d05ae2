"""What the sends of one bulk run share: when they wait, and when they stop."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress

from .errors import DeadlineExceededError, LoopsError

_logger = logging.getLogger("loops_async")


class Lane:
    """One bulk run, as far as its sends have to know of it.

    Args:
        loop: The running one.
        patience: Seconds it may stand still, with nothing but outage and
            429s, before it is stopped; None is no end.
        on_sent: Called when the first request for an event goes out.
        on_pause: Called when an event has to be tried again later.
        on_stop: Called once, when it stops.

    Attributes:
        stopped_by: Why nothing more is to be sent, or None.
        held_until: Loop time until which nothing is to be sent.
        waiting: Cut short when it stops.
        standing: Whether it has stood still since something.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        patience: float | None,
        *,
        on_sent: Callable[[], None],
        on_pause: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._patience = patience
        self.sent = on_sent
        self.paused = on_pause
        self._on_stop = on_stop
        self._timer: asyncio.TimerHandle | None = None
        self._last: LoopsError | None = None
        self.waiting: set[asyncio.Timeout] = set()
        self.stopped_by: LoopsError | None = None
        self.held_until = -math.inf
        self.standing = False

    def stands(self, error: LoopsError, asked: float = 0.0) -> None:
        """Note an outage or a 429; nothing goes out while the server asks so."""
        self._last = error
        self.held_until = max(self.held_until, self._loop.time() + asked)
        if not self.standing:
            self.standing = True
            if self._patience is not None:
                self._timer = self._loop.call_later(self._patience, self._lose_patience)

    def moves(self) -> None:
        """Note an answer that shows Loops to take events."""
        if self.held_until <= self._loop.time():
            self.standing = False
            self.close()

    def stop(self, error: LoopsError) -> None:
        """Send nothing more; what is under way ends as it may."""
        if self.stopped_by is not None:
            return
        self.stopped_by = error
        self.held_until = math.inf
        self.close()
        for scope in self.waiting:
            with suppress(RuntimeError):  # it is expiring by itself
                scope.reschedule(self._loop.time())
        self._on_stop()

    def close(self) -> None:
        """Stop watching the time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose_patience(self) -> None:
        assert self._last is not None
        text = f"nothing was taken for {self._patience:g} s; the last: {self._last}"
        _logger.warning("sending stopped: %s", text)
        self.stop(DeadlineExceededError(text, retryable=True))
