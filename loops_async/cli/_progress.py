"""Progress of a long run: a bar on a terminal, elsewhere a line every few seconds."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import attrs
import click
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loops_async import ClientStats

from . import _rendering

STOPPING: Final = "finishing requests in flight"
_RATE_WINDOW: Final = 20.0  # seconds over which the rate is averaged


@attrs.frozen(kw_only=True)
class Intervals:
    """Pauses between two displays; tests pass shorter ones to `cli`.

    Attributes:
        line: Seconds between two lines of text.
        bar: Seconds between two pictures of the bar.
    """

    line: float = 5.0
    bar: float = 0.2

    @classmethod
    def current(cls) -> "Intervals":
        """Return the intervals of the running command."""
        return click.get_current_context().find_object(cls) or cls()


def duration(seconds: float) -> str:
    """Return a duration in at most two units, such as ``2 h 3 min``."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def delay_reason(stats: ClientStats) -> str:
    """Return why a client sends nothing at the moment, or an empty string."""
    if stats.outage:
        return "Loops is not responding, waiting"
    if stats.held > 1:
        return f"rate limited, waiting {duration(stats.held)}"
    return ""


class ProgressDisplay:
    """Displays how many items of a run are done; use it with ``async with``.

    Args:
        console: Receives the display.
        rate_limit: Items per second that the run may process; None means no limit.
        status: Returns what to display in place of the remaining time, or "".
        intervals: Pauses between two displays.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        console: Console,
        rate_limit: float | None,
        *,
        status: Callable[[], str] = str,
        intervals: Intervals = Intervals(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._rate_limit = rate_limit
        self._status = status
        self._intervals = intervals
        self._clock = clock
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._done = self._total = self._failed = 0
        self._start = 0.0
        self._samples: deque[tuple[float, int]] = deque()  # times and items done

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._display())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
        await asyncio.wait([self._task])
        # A run does not fail because its progress cannot be displayed.
        _ = self._task.cancelled() or self._task.exception()

    def update(self, done: int, total: int, failed: int = 0) -> None:
        """Record the progress; cheap enough to be called for every item.

        Args:
            done: Number of items that are done.
            total: Number of items; 0 while it is unknown.
            failed: Number of the done items that failed.
        """
        if total and not self._total:
            self._start = self._clock()
            self._samples.append((self._start, done))
        self._done, self._total, self._failed = done, total, failed

    def clear(self) -> None:
        """Remove the bar from the terminal until the next picture."""
        self._live.stop()

    def end(self) -> None:
        """Remove the bar from the terminal for good."""
        self._task.cancel()
        self.clear()

    async def _display(self) -> None:
        while True:
            if not self._console.is_terminal:
                await asyncio.sleep(self._intervals.line)
                self._console.print(self.line(), soft_wrap=True)
                continue
            await asyncio.sleep(self._intervals.bar)
            self._live.start()
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self._total), completed=self._done, width=24)
        grid.add_row(bar, Text(self.line()))
        return grid

    def line(self) -> str:
        """Return the progress as one line of text."""
        if not self._total:
            return f"{_rendering.count(self._done, 'row')} checked"
        rate = self._rate()
        parts = [f"{self._done:,} of {self._total:,}", f"{rate:.1f}/s"]
        if self._rate_limit is not None:
            parts.append(f"{rate / self._rate_limit:.0%} of the limit")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if status := self._status():
            parts.append(status)
        elif rate:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _rate(self) -> float:
        """Return the items per second, averaged over the last seconds."""
        now = self._clock()
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and self._samples[0][0] < now - _RATE_WINDOW:
            self._samples.popleft()
        since, before = self._samples[0]
        # A limiter grants the permits of the first second at once.
        seconds = now - since + (since == self._start)
        return (self._done - before) / seconds
