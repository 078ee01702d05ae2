"""Many events sent, and a picture of them as the server saw them."""

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

from . import _show

_LOOK: Final = 0.05  # seconds between two pictures


@attrs.frozen
class Seen:
    """What a server saw of a burst.

    Attributes:
        period: Seconds of its rate window.
        allowed: Requests it allows in one.
        arrivals: When each request came, in seconds after the first.
        limited: How many of them it answered with 429.
    """

    period: float
    allowed: int
    arrivals: Sequence[float]
    limited: int

    @classmethod
    def of(
        cls, requests: Sequence[SandboxRequest], *, period: float, allowed: int
    ) -> "Seen":
        """Read it off the requests of the burst."""
        times = sorted(request.at for request in requests)
        arrivals = [at - times[0] for at in times]
        limited = sum(request.status == 429 for request in requests)
        return cls(period, allowed, arrivals, limited)

    @property
    def most(self) -> int:
        """The most requests in any stretch of one period, wherever it begins."""
        most = first = 0
        for last, at in enumerate(self.arrivals):
            while self.arrivals[first] <= at - self.period:
                first += 1
            most = max(most, last - first + 1)
        return most

    def rows(self) -> list[Text]:
        """Return a line for each period, with a block for each request."""
        per_row = Counter(int(at / self.period) for at in self.arrivals)
        return [
            self._row(at, per_row[at]) for at in range(max(per_row, default=-1) + 1)
        ]

    def summary(self, of: int) -> Text:
        """Return the line below the rows."""
        sent = len(self.arrivals)
        return Text.assemble(
            (f"   sent {sent} of {of}", "bold"),
            f", at most {self.most} in any {self.period:g} s, allowed {self.allowed}, ",
            "429s: ",
            (str(self.limited), f"bold {_show.BAD if self.limited else _show.GOOD}"),
        )

    def _row(self, number: int, sent: int) -> Text:
        style = _show.GOOD if sent <= self.allowed else _show.BAD
        return Text.assemble(
            (f"{number * self.period:7.1f} s  ", "dim"),
            ("█" * sent, style),
            ("░" * (self.allowed - sent), "dim"),
            f"  {sent:2} sent, {self.allowed} allowed",
        )


async def burst(
    loops: AsyncLoopsClient,
    sandbox: Sandbox,
    events: Sequence[Event],
    console: Console,
    *,
    allowed: int,
) -> SendReport:
    """Send all the events and show how they go out.

    In a terminal the picture lives; elsewhere each line is printed once,
    when it will not change any more.
    """
    before = sandbox.counts.requests
    sending = asyncio.create_task(loops.send_events(events))
    picture = _Picture(console, len(events))
    try:
        with picture.live or nullcontext():
            final = False
            while not final:
                await asyncio.wait([sending], timeout=_LOOK)
                final = sending.done()
                requests = sandbox.requests[before:]
                seen = Seen.of(requests, period=sandbox.period, allowed=allowed)
                picture.show(seen, final=final)
        return await sending
    finally:
        sending.cancel()
        # Interrupted, nobody asked yet how they ended.
        await asyncio.gather(sending, return_exceptions=True)


class _Picture:
    def __init__(self, console: Console, of: int) -> None:
        self._console = console
        self._of = of
        self._printed = 0
        self.live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self.live = Live(console=console, auto_refresh=False)

    def show(self, seen: Seen, *, final: bool) -> None:
        lines = [*seen.rows(), Text(), seen.summary(self._of)]
        if self.live is not None:
            self.live.update(Group(*lines), refresh=True)
            return
        ready = lines if final else lines[:-3]
        for line in ready[self._printed :]:
            self._console.print(line)
        self._printed = max(self._printed, len(ready))
