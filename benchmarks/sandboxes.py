"""Sandboxes in a process of their own, and what reached them when.

The server keeps the books: only it knows when a request was counted. All
times are those of time.monotonic, which the processes of a machine share.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import attrs

from loops_async.sandbox import Sandbox

from .answering import pin
from .processes import Load, beside

Settings: TypeAlias = dict[str, Any]
_COLLECT = 0.2  # seconds; the sandbox forgets old requests, and their bodies


@attrs.frozen
class Target:
    """Where to send, with which key, and how much is permitted a second."""

    url: str
    key: str
    limit: int


@attrs.define
class Log:
    """When each request was counted, and how it was answered."""

    limit: int
    arrivals: list[tuple[float, int]] = attrs.field(factory=list)

    @property
    def began(self) -> float:
        return self.arrivals[0][0]

    @property
    def accepted(self) -> int:
        return sum(status == 200 for _, status in self.arrivals)

    def share(self, since: float, until: float) -> float:
        """Return the share of the limit that was used between the two times."""
        times = [
            at for at, status in self.arrivals if status == 200 and since <= at < until
        ]
        # Whole multiples of the limit, from several starts: where requests
        # come in bursts, a count over a fixed time would be off by one burst.
        span = (len(times) // self.limit - 1) * self.limit
        if span <= 0:
            return len(times) / (until - since) / self.limit
        starts = range(len(times) - span)
        spent = statistics.fmean(times[at + span] - times[at] for at in starts)
        return span / spent / self.limit

    def limited(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the share of the answers that were a 429."""
        statuses = [status for at, status in self.arrivals if since <= at < until]
        return statuses.count(429) / max(1, len(statuses))


class Sandboxes:
    """Sandboxes of another process; `close` ends them and returns their logs."""

    def __init__(self, targets: list[Target], pipe: Connection) -> None:
        self.targets = targets
        self.load = 0.0  # share of a core the process used, known when closed
        self._pipe = pipe

    def close(self) -> list[Log]:
        self._pipe.send("close")
        logs: list[Log]
        logs, self.load = self._pipe.recv()
        return logs


@contextlib.contextmanager
def sandboxes(settings: Sequence[Settings]) -> Iterator[Sandboxes]:
    """Start a sandbox for each of the settings; yields when all listen."""
    with beside(_serve, settings) as pipe:
        yield Sandboxes(pipe.recv(), pipe)


def _serve(pipe: Connection, settings: Sequence[Settings]) -> None:
    pin(1)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(pipe, settings))


async def _run(pipe: Connection, settings: Sequence[Settings]) -> None:
    running = [
        Sandbox(
            clock=time.monotonic,
            max_events=1,
            max_requests=max(1000, 4 * some["rate_limit"]),
            **some,
        )
        for some in settings
    ]
    logs = [Log(some["rate_limit"]) for some in settings]
    for sandbox in running:
        await sandbox.start()
    pipe.send(
        [
            Target(sandbox.url, sandbox.api_key, log.limit)
            for sandbox, log in zip(running, logs, strict=True)
        ]
    )
    load = Load()
    while not pipe.poll():
        await asyncio.sleep(_COLLECT)
        for sandbox, log in zip(running, logs, strict=True):
            _collect(sandbox, log)
    pipe.send((logs, load.share()))


def _collect(sandbox: Sandbox, log: Log) -> None:
    new = sandbox.counts.requests - len(log.arrivals)
    if not new:
        return
    requests = sandbox.requests
    assert new <= len(requests), "the sandbox forgot requests before they were read"
    log.arrivals.extend((one.at, one.status or 0) for one in requests[-new:])
