"""What an outbox is between its opening and its closing."""

import asyncio
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from loops_async._journal.database import consume_exception
from loops_async._journal.journal import (
    ACCEPTED,
    DUPLICATE,
    PENDING,
    REJECTED,
    UNKNOWN,
    Added,
    Journal,
    New,
    Row,
)
from loops_async._journal.sender import JournalSender
from loops_async._sending.bulk import LOOK_AHEAD
from loops_async.errors import ClientClosedError, ConfigurationError

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

_logger = logging.getLogger("loops_async")

_FIRST_PAUSE: Final = 1.0  # seconds, after what stopped the sending
_LONGEST_PAUSE: Final = 60.0
_PURGE_EVERY: Final = 60.0  # seconds
_TAKEN: Final = (ACCEPTED, DUPLICATE)


@attrs.frozen(kw_only=True)
class OutboxStats:
    """How an outbox stands.

    Attributes:
        pending: Events in the file that are still to be sent.
        retrying: Of these, those that failed at least once.
        rejected: Events in the file that Loops does not take.
        unknown: Events in the file of which nobody knows.
        accepted: Events that Loops took since the outbox was opened.
        duplicates: Events since then that Loops had taken before: an answer
            was lost, by this process or the one before.
        paused: Why sending stopped, such as a refused key, until an event
            gets through; else None. (In an outage the client holds all
            sends: see `ClientStats.outage`.)
    """

    pending: int
    retrying: int
    rejected: int
    unknown: int
    accepted: int
    duplicates: int
    paused: str | None


class OutboxSession:
    """Stores, sends and counts, in the event loop it was opened in."""

    def __init__(
        self,
        journal: Journal,
        client: "AsyncLoopsClient",
        capacity: int,
        keep: float,
    ) -> None:
        self.journal = journal
        self.loop = asyncio.get_running_loop()
        self.process = os.getpid()
        self._dry_run = client.sender.dry_run
        self._capacity = capacity
        self._keep = keep
        self._purged = -math.inf
        self._drain = JournalSender(
            journal,
            client,
            look_ahead=LOOK_AHEAD + capacity,  # a stuck contact holds up no other
            keep=keep > 0,
            on_end=self._ended,
        )
        self._counts = dict.fromkeys((PENDING, REJECTED, UNKNOWN, *_TAKEN), 0)
        self._promised = 0  # events on their way to the disk
        # Who waits for room, first come first served, and for how many.
        self._line: OrderedDict[asyncio.Future[None], int] = OrderedDict()
        self._paused: str | None = None
        self._pause = _FIRST_PAUSE
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def pending(self) -> int:
        return self._counts[PENDING]

    @property
    def stats(self) -> OutboxStats:
        return OutboxStats(
            pending=self._counts[PENDING],
            retrying=self._drain.retrying,
            rejected=self._counts[REJECTED],
            unknown=self._counts[UNKNOWN],
            accepted=self._counts[ACCEPTED],
            duplicates=self._counts[DUPLICATE],
            paused=self._paused,
        )

    async def start(self, path: Path) -> None:
        await self.journal.open()
        try:
            await self._count()
            if self._dry_run and self.pending:
                msg = (
                    f"{path} has {self.pending:,} events to send, which a dry_run "
                    "client would drop"
                )
                raise ConfigurationError(msg)
        except BaseException:
            await self.journal.close()
            raise
        self._task = asyncio.create_task(self._send(), name=f"outbox {path}")

    async def _count(self) -> None:
        known = await self.journal.counts()
        for state in (PENDING, REJECTED, UNKNOWN):
            self._counts[state] = known.get(state, 0)

    async def add(self, new: list[New]) -> None:
        promised = len(new)
        if self._line or not self._fits(promised):
            await self._room(promised)
        else:
            self._promised += promised

        def added(what: Added | None) -> None:
            self._promised -= promised
            if what is not None:
                more, again = what
                self._counts[PENDING] += more + again
                self._counts[REJECTED] -= again
                self._drain.wake()
            self._change()

        await self.journal.add(new, added)

    async def _room(self, number: int) -> None:
        """Wait until so many events are promised."""
        turn = self.loop.create_future()
        self._line[turn] = number
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self._promised -= number  # it was promised at this moment
            self._line.pop(turn, None)
            self._change()
            raise

    def _fits(self, number: int) -> bool:
        return self.pending + self._promised + number <= self._capacity

    def _change(self) -> None:
        """Let in who has waited longest, as far as there is room; tell others."""
        while self._line:
            turn, number = next(iter(self._line.items()))
            if not turn.done():  # else it gave up
                if not self._fits(number):
                    break
                self._promised += number
                turn.set_result(None)
            del self._line[turn]
        self._changed.set()

    async def flush(self, timeout: float | None) -> int:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while (self.pending or self._promised) and not self._closed:
                    self._changed.clear()
                    await self._changed.wait()
        return self.pending

    async def retry(self, keys: Iterable[str] | None) -> int:
        return await self._counted(self.journal.requeue(keys))

    async def forget(self, keys: Iterable[str]) -> int:
        return await self._counted(self.journal.forget(keys))

    async def _counted(self, change: "asyncio.Future[int]") -> int:
        """Wait for a change, and count anew though nobody may wait any more."""

        async def counted() -> int:
            number = await change
            await self._count()
            self._drain.wake()
            return number

        return await asyncio.shield(counted())

    async def close(self, grace: float) -> None:
        for turn in self._line:
            if not turn.done():
                text = "the outbox was closed before there was room"
                turn.set_exception(ClientClosedError(text))
        self._line.clear()
        try:
            await self.flush(grace)
        finally:
            self._task.cancel()
            try:
                await asyncio.wait([self._task])
            finally:
                await self.journal.close()
                self._closed = True
                self._changed.set()  # who waits for the rest need not any more

    async def _send(self) -> None:
        while True:
            try:
                self._paused = str(await self._drain.run())
            except Exception as error:  # noqa: BLE001 - nothing may end this
                self._paused = f"{type(error).__name__}: {error}"
            _logger.warning("outbox: sending is paused: %s", self._paused)
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _ended(self, _: Row, state: str) -> None:
        self._counts[PENDING] -= 1
        self._counts[state] += 1
        self._change()
        if state not in _TAKEN:
            _logger.warning("outbox: an event is %s; failures() says why", state)
        if self._paused is not None:
            _logger.warning("outbox: sending goes on")
            self._paused = None
            self._pause = _FIRST_PAUSE
        now = time.time()
        if self._keep and not 0 <= now - self._purged < _PURGE_EVERY:
            self._purged = now
            self.journal.purge(now - self._keep).add_done_callback(consume_exception)
