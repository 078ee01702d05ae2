"""A burst of events, and a picture of it as the server received it."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

import attrs
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from loops_async import AsyncLoopsClient, Event, SendReport
from loops_async.sandbox import Sandbox, SandboxRequest

from . import _rendering

_REDRAW: Final = 0.05  # seconds between two pictures


@attrs.frozen
class BurstSummary:
    """The requests of a burst as a server received them.

    Attributes:
        period: Seconds of the server's rate window.
        allowed: Requests that the server accepts in one period.
        arrivals: Time of each request, in seconds after the first.
        limited: Number of requests that got a 429.
    """

    period: float
    allowed: int
    arrivals: Sequence[float]
    limited: int

    @classmethod
    def of(
        cls, requests: Sequence[SandboxRequest], *, period: float, allowed: int
    ) -> "BurstSummary":
        """Summarize the requests that the sandbox recorded."""
        times = sorted(request.at for request in requests)
        arrivals = [at - times[0] for at in times]
        limited = sum(request.status == 429 for request in requests)
        return cls(period, allowed, arrivals, limited)

    @property
    def peak(self) -> int:
        """The largest number of requests in one period, wherever it begins."""
        peak = first = 0
        for last, at in enumerate(self.arrivals):
            while self.arrivals[first] <= at - self.period:
                first += 1
            peak = max(peak, last - first + 1)
        return peak

    def rows(self) -> list[Text]:
        """Return a line for each period, with a block for each request."""
        per_row = Counter(int(at / self.period) for at in self.arrivals)
        return [
            self._row(at, per_row[at]) for at in range(max(per_row, default=-1) + 1)
        ]

    def totals(self, expected: int) -> Text:
        """Return the line below the rows.

        Args:
            expected: Number of events in the burst.
        """
        sent = len(self.arrivals)
        return Text.assemble(
            (f"   sent {sent} of {expected}", "bold"),
            f", at most {self.peak} in any {self.period:g} s, "
            f"allowed {self.allowed}, 429s: ",
            (
                str(self.limited),
                f"bold {_rendering.BAD if self.limited else _rendering.GOOD}",
            ),
        )

    def _row(self, number: int, sent: int) -> Text:
        style = _rendering.GOOD if sent <= self.allowed else _rendering.BAD
        return Text.assemble(
            (f"{number * self.period:7.1f} s  ", "dim"),
            ("█" * sent, style),
            ("░" * (self.allowed - sent), "dim"),
            f"  {sent:2} sent, {self.allowed} allowed",
        )


async def burst(
    client: AsyncLoopsClient,
    sandbox: Sandbox,
    events: Sequence[Event],
    console: Console,
    *,
    allowed: int,
) -> SendReport:
    """Send the events and display the requests as they arrive.

    A terminal shows a live picture. Any other output gets each line once, when
    the line is final.
    """
    before = sandbox.counts.requests
    sending = asyncio.create_task(client.send_events(events))
    picture = _Picture(console, len(events))
    try:
        with picture.live or nullcontext():
            final = False
            while not final:
                await asyncio.wait([sending], timeout=_REDRAW)
                final = sending.done()
                summary = BurstSummary.of(
                    sandbox.requests[before:], period=sandbox.period, allowed=allowed
                )
                picture.draw(summary, final=final)
        return await sending
    finally:
        sending.cancel()
        # Retrieve the exception so that asyncio does not report it.
        await asyncio.gather(sending, return_exceptions=True)


class _Picture:
    def __init__(self, console: Console, expected: int) -> None:
        self._console = console
        self._expected = expected
        self._printed = 0
        self.live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self.live = Live(console=console, auto_refresh=False)

    def draw(self, summary: BurstSummary, *, final: bool) -> None:
        lines = [*summary.rows(), Text(), summary.totals(self._expected)]
        if self.live is not None:
            self.live.update(Group(*lines), refresh=True)
            return
        ready = lines if final else lines[:-3]  # the last row may still grow
        for line in ready[self._printed :]:
            self._console.print(line)
        self._printed = max(self._printed, len(ready))
