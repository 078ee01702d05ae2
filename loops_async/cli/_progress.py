"""How far a long run is: a bar on a terminal, elsewhere a line now and then."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loops_async import ClientStats

from . import _show

_EVERY: Final = 5.0  # seconds between two lines
_LOOK: Final = 0.2  # seconds between two pictures
STOPPING: Final = "finishing what is under way"
_RECENT: Final = 20.0  # seconds over which the rate is taken


def duration(seconds: float) -> str:
    """Return how long something takes, as people say it."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def how_it_stands(stats: ClientStats) -> str:
    """Return what keeps a client from sending, or an empty string."""
    if stats.outage:
        return "Loops does not answer: waiting"
    if stats.held > 1:
        return f"Loops asks to wait {duration(stats.held)}"
    return ""


class Bar:
    """Shows how many of how many are done; use it with ``async with``.

    Args:
        console: Where to.
        limit: How many a second may be done.

    Attributes:
        note: Gives what is to be known, now, instead of when it will be done.
    """

    def __init__(self, console: Console, limit: float) -> None:
        self._console = console
        self._limit = limit
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._done = self._total = self._failed = 0
        self.note: Callable[[], str] = str
        self._known: deque[tuple[float, int]] = deque()  # how far it was, and when

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._show())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        _ = self._task.cancelled() or self._task.exception()  # a bar is not worth it
        self.clear()

    def tell(self, done: int, total: int, failed: int = 0) -> None:
        """Say how far it is; cheap enough for every event.

        Args:
            done: How many.
            total: Of how many; 0 if nobody knows.
            failed: How many of the done.
        """
        if total and not self._total:
            self._begun = time.monotonic()
            self._known.append((self._begun, done))
        self._done, self._total, self._failed = done, total, failed

    def clear(self) -> None:
        """Take the picture away, until the next."""
        self._live.stop()

    async def _show(self) -> None:
        while True:
            if not self._console.is_terminal:
                await asyncio.sleep(_EVERY)
                self._console.print(self.line(), soft_wrap=True)
                continue
            await asyncio.sleep(_LOOK)
            self._live.start()
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self._total), completed=self._done, width=24)
        grid.add_row(bar, Text(self.line()))
        return grid

    def line(self) -> str:
        """Return it in words."""
        if not self._total:
            return f"{_show.count(self._done, 'row')} checked"
        now = time.monotonic()
        self._known.append((now, self._done))
        while len(self._known) > 2 and self._known[0][0] < now - _RECENT:
            self._known.popleft()
        since, before = self._known[0]
        # A limit lets the first second's go at once.
        seconds = now - since + (since == self._begun)
        rate = (self._done - before) / seconds
        parts = [f"{self._done:,} of {self._total:,}"]
        parts.append(f"{rate:.1f}/s, {rate / self._limit:.0%} of the limit")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if note := self.note():
            parts.append(note)
        elif rate:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        return ", ".join(parts)
