"""The state that all events of a bulk run share: when they wait and when they stop."""

import asyncio
import logging
import math
from collections.abc import Callable

from loops_async.errors import DeadlineExceededError, LoopsError

from .admission import end_waits

_logger = logging.getLogger("loops_async")


class BulkRun:
    """The state of one bulk run, as the attempts of its events share it.

    Args:
        loop: The running event loop.
        patience: Seconds for which outages and 429s may stall the run before it is
            stopped; None means no limit.
        on_sent: A callable that gets an event's key when its first request is sent.
        on_pause: A callable to call when an event starts to wait for another attempt.
        on_resume: A callable to call when that wait ends.
        on_stop: A callable to call when the run is stopped.

    Attributes:
        stopped_by: The error that stopped the run, or None.
        held_until: The event loop's time before which no request is sent.
        waiting: The scopes of the events that wait; stopping the run ends them.
        stalled: Whether Loops has accepted no event since an outage or a 429.
        one_event_stuck: Whether a single event has stalled the run for the whole
            patience. That event then fails alone, and the run goes on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        patience: float | None,
        *,
        on_sent: Callable[[str | None], None],
        on_pause: Callable[[], None],
        on_resume: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.on_sent = on_sent
        self.on_pause = on_pause
        self.on_resume = on_resume
        self.waiting: set[asyncio.Timeout] = set()
        self.stopped_by: LoopsError | None = None
        self.held_until = -math.inf
        self.stalled = False
        self.one_event_stuck = False
        self._patience = patience
        self._on_stop = on_stop
        self._timer: asyncio.TimerHandle | None = None
        self._last_error: LoopsError | None = None
        self._failing_keys: set[str | None] = set()  # since the run stalled

    def note_stall(
        self, error: LoopsError | None, seconds: float = 0.0, key: str | None = None
    ) -> None:
        """Note an outage or a 429.

        Args:
            error: The error of the event of this run that showed it, or None.
            seconds: Seconds for which the run sends nothing.
            key: The idempotency key of that event.
        """
        if error is not None:
            self._last_error = error
            self._failing_keys.add(key)
        self.held_until = max(self.held_until, self.loop.time() + seconds)
        if not self.stalled:
            self.stalled = True
            if self._patience is not None:
                self._timer = self.loop.call_later(self._patience, self._end_patience)

    def note_progress(self) -> None:
        """Note a response that shows that Loops accepts events."""
        if self.held_until <= self.loop.time():
            self.stalled = self.one_event_stuck = False
            self._failing_keys.clear()
            self.cancel_timer()

    def stop(self, error: LoopsError) -> None:
        """Stop the run: requests in flight finish, no further one is sent."""
        if self.stopped_by is not None:
            return
        self.stopped_by = error
        self.held_until = math.inf
        self.cancel_timer()
        end_waits(self.waiting, self.loop)
        self._on_stop()

    def cancel_timer(self) -> None:
        """Cancel the timer that ends the patience."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_patience(self) -> None:
        self._timer = None
        if len(self._failing_keys) == 1 and self.held_until <= self.loop.time():
            # A single failing event does not show whether Loops is down or cannot
            # process that event.
            self.one_event_stuck = True
            return
        text = f"Loops accepted no event for {self._patience:g} s"
        if self._last_error is not None:
            text += f"; the last error: {self._last_error}"
        _logger.warning("sending stopped: %s", text)
        self.stop(DeadlineExceededError(text, retryable=True))
