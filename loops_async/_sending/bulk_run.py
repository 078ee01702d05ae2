"""What the sends of one bulk run share: when they wait, and when they stop."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from loops_async._pacing.retry_policy import RetryPolicy
from loops_async.errors import DeadlineExceededError, LoopsError

from .tries import Tries

_logger = logging.getLogger("loops_async")


class Record(Protocol):
    """Writes down what is attempted, so that it outlives the process."""

    policy: RetryPolicy

    async def begins(self, key: str | None, tried: Tries) -> None:
        """Note an attempt, durably, before it leaves.

        Raises:
            LoopsError: if it must not leave.
        """

    def failed(self, key: str | None, error: LoopsError) -> None:
        """Note that the attempt failed, and will be repeated."""


class BulkRun:
    """One bulk run, as far as its sends have to know of it.

    Args:
        loop: The running one; an attribute, too.
        patience: Seconds it may stand still, with nothing but outage and
            429s, before it is stopped; None is no end.
        record: Where its attempts are written down; an attribute, too.
        on_sent: See `sent`.
        on_pause: See `paused`.
        on_resume: See `resumed`.
        on_stop: Called once, when it stops.

    Attributes:
        sent: To be called, with its key, when the first request for an event
            goes out.
        paused: To be called when an event has to be tried again later.
        resumed: To be called when it is.
        stopped_by: Why nothing more is to be sent, or None.
        held_until: Loop time until which nothing is to be sent.
        waiting: Cut short when it stops.
        standing: Whether it has stood still since something.
        impatient: Whether it has for as long as it may, because of one event
            alone: that event is to be given up, and not the run.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        patience: float | None,
        *,
        record: Record | None = None,
        on_sent: Callable[[str | None], None],
        on_pause: Callable[[], None],
        on_resume: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.loop = loop
        self._patience = patience
        self.record = record
        self.sent = on_sent
        self.paused = on_pause
        self.resumed = on_resume
        self._on_stop = on_stop
        self._timer: asyncio.TimerHandle | None = None
        self._last: LoopsError | None = None
        self._failing: set[str | None] = set()  # keys, while it stands still
        self.waiting: set[asyncio.Timeout] = set()
        self.stopped_by: LoopsError | None = None
        self.held_until = -math.inf
        self.standing = False
        self.impatient = False

    def stands(
        self, error: LoopsError | None, asked: float = 0.0, key: str | None = None
    ) -> None:
        """Note an outage or a 429.

        Args:
            error: What showed it, if it was met by this run.
            asked: Seconds for which the server wants nothing.
            key: Of the event that met it.
        """
        if error is not None:
            self._last = error
            self._failing.add(key)
        self.held_until = max(self.held_until, self.loop.time() + asked)
        if not self.standing:
            self.standing = True
            if self._patience is not None:
                self._timer = self.loop.call_later(self._patience, self._lose_patience)

    def moves(self) -> None:
        """Note an answer that shows Loops to take events."""
        if self.held_until <= self.loop.time():
            self.standing = self.impatient = False
            self._failing.clear()
            self.disarm()

    def stop(self, error: LoopsError) -> None:
        """Send nothing more; what is under way ends as it may."""
        if self.stopped_by is not None:
            return
        self.stopped_by = error
        self.held_until = math.inf
        self.disarm()
        for scope in self.waiting:
            with suppress(RuntimeError):  # it is expiring by itself
                scope.reschedule(self.loop.time())
        self._on_stop()

    def disarm(self) -> None:
        """Watch the time no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose_patience(self) -> None:
        self._timer = None
        if len(self._failing) == 1 and self.held_until <= self.loop.time():
            # Who knows whether it is Loops, or this event that Loops cannot take.
            self.impatient = True
            return
        text = f"nothing was taken for {self._patience:g} s"
        if self._last is not None:
            text += f"; the last: {self._last}"
        _logger.warning("sending stopped: %s", text)
        self.stop(DeadlineExceededError(text, retryable=True))
