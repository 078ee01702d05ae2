"""Sandboxes in a child process, with a log of the requests that arrived.

The server keeps the log, because only the server can record when it counted a request.
All times are those of time.monotonic(), one clock for all processes of a machine.
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

from .processes import Load, child_process
from .stub_server import pin

Settings: TypeAlias = dict[str, Any]
_COLLECT = 0.2  # seconds between reads, because the sandbox drops old requests


@attrs.frozen
class Target:
    """The URL, the API key and the limit per second of a sandbox."""

    url: str
    key: str
    limit: int


@attrs.define
class Log:
    """The time and the status of each request."""

    limit: int
    arrivals: list[tuple[float, int]] = attrs.field(factory=list)

    @property
    def began(self) -> float:
        return self.arrivals[0][0]

    @property
    def accepted(self) -> int:
        return sum(status == 200 for _, status in self.arrivals)

    def share(self, since: float, until: float) -> float:
        """Return the share of the limit that was used between two times."""
        times = [
            at for at, status in self.arrivals if status == 200 and since <= at < until
        ]
        # The mean duration of a whole multiple of the limit. If requests come in
        # bursts, a count in a fixed time would be wrong by up to one burst.
        span = (len(times) // self.limit - 1) * self.limit
        if span <= 0:
            return len(times) / (until - since) / self.limit
        starts = range(len(times) - span)
        spent = statistics.fmean(times[at + span] - times[at] for at in starts)
        return span / spent / self.limit

    def limited(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the share of the responses that are a 429."""
        statuses = [status for at, status in self.arrivals if since <= at < until]
        return statuses.count(429) / max(1, len(statuses))


class Sandboxes:
    """The sandboxes of a child process."""

    def __init__(self, targets: list[Target], pipe: Connection) -> None:
        self.targets = targets
        self.load = 0.0  # the share of a core that the process used; set by close()
        self._pipe = pipe

    def close(self) -> list[Log]:
        """Stop the sandboxes and return their logs."""
        self._pipe.send("close")
        logs: list[Log]
        logs, self.load = self._pipe.recv()
        return logs


@contextlib.contextmanager
def sandboxes(settings: Sequence[Settings]) -> Iterator[Sandboxes]:
    """Run a sandbox for each of the settings; the context begins when all listen."""
    with child_process(_serve, settings) as pipe:
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
            max_requests=max(1000, 4 * each["rate_limit"]),
            **each,
        )
        for each in settings
    ]
    logs = [Log(each["rate_limit"]) for each in settings]
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
    assert new <= len(requests), "the sandbox dropped requests before they were read"
    log.arrivals.extend((one.at, one.status or 0) for one in requests[-new:])
