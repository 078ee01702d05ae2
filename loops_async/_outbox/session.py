"""An open outbox: its file, its counters and the task that sends."""

import asyncio
import logging
import math
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

from loops_async._journal.database import LOCK_TIMEOUT, RETRY_DELAY, consume_exception
from loops_async._journal.journal import Journal
from loops_async._journal.records import (
    ACCEPTED,
    DUPLICATE,
    PENDING,
    REJECTED,
    UNKNOWN,
    AddedCounts,
    NewEvent,
    Row,
)
from loops_async._journal.sender import JournalSender
from loops_async._sending.bulk import LOOK_AHEAD
from loops_async._sending.sender import Sender
from loops_async.errors import ConfigurationError

from .capacity import Capacity
from .stats import OutboxStats

_logger = logging.getLogger("loops_async")

_SENT: Final = (ACCEPTED, DUPLICATE)


@attrs.frozen(kw_only=True)
class OutboxTiming:
    """The waits and pauses of an outbox, in seconds.

    Attributes:
        lock_timeout: The longest wait for another owner to release the file.
        retry_delay: The pause before recording an outcome is retried.
        first_pause: The first pause after sending stops; each further one is twice as
            long.
        longest_pause: The longest of these pauses.
        purge_interval: The time between two removals of old accepted events.
    """

    lock_timeout: float = LOCK_TIMEOUT
    retry_delay: float = RETRY_DELAY
    first_pause: float = 1.0
    longest_pause: float = 60.0
    purge_interval: float = 60.0


class OutboxSession:
    """An outbox from its opening to its closing, in one event loop.

    Args:
        path: The path of the file.
        sender: The sender of the events.
        capacity: The highest number of pending events.
        retention: Seconds to keep accepted events.
        timing: The waits and pauses of the session.
    """

    def __init__(
        self,
        path: Path,
        sender: Sender,
        *,
        capacity: int,
        retention: float,
        timing: OutboxTiming,
    ) -> None:
        self.journal = Journal(
            path, lock_timeout=timing.lock_timeout, retry_delay=timing.retry_delay
        )
        self.loop = asyncio.get_running_loop()
        self.process = os.getpid()
        self._path = path
        self._dry_run = sender.dry_run
        self.capacity = Capacity(capacity, lambda: self.pending)
        self._retention = retention
        self._timing = timing
        self._purged_at = -math.inf
        self._sender = JournalSender(
            self.journal,
            sender,
            # Enough rows that a contact whose events fail does not delay others.
            look_ahead=LOOK_AHEAD + capacity,
            retain=retention > 0,
            on_end=self._count_end,
        )
        self._counts = dict.fromkeys((PENDING, REJECTED, UNKNOWN, *_SENT), 0)
        self._paused: str | None = None
        self._pause = timing.first_pause
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def pending(self) -> int:
        return self._counts[PENDING]

    @property
    def stats(self) -> OutboxStats:
        return OutboxStats(
            pending=self._counts[PENDING],
            retrying=self._sender.retrying,
            rejected=self._counts[REJECTED],
            unknown=self._counts[UNKNOWN],
            accepted=self._counts[ACCEPTED],
            duplicates=self._counts[DUPLICATE],
            paused=self._paused,
        )

    async def open(self) -> None:
        await self.journal.open()
        try:
            await self._read_counts()
            if self._dry_run and self.pending:
                msg = (
                    f"{self._path} has {self.pending:,} pending events, which a "
                    "dry_run client would drop: use a client without dry_run"
                )
                raise ConfigurationError(msg)
        except BaseException:
            await self.journal.close()
            raise
        self._task = asyncio.create_task(self._send(), name=f"outbox {self._path}")

    async def _read_counts(self) -> None:
        counts = await self.journal.counts()
        for state in (PENDING, REJECTED, UNKNOWN):
            self._counts[state] = counts.get(state, 0)

    async def add(self, events: list[NewEvent]) -> None:
        """Wait for room for all of the events, and store them durably."""
        size = len(events)
        try:
            await self.capacity.reserve(size)
        except asyncio.CancelledError:
            self._notify()  # another put may have room now
            raise

        def count_added(added: AddedCounts | None) -> None:
            self.capacity.reserved -= size
            if added is not None:
                self._counts[PENDING] += added.new + added.requeued
                self._counts[REJECTED] -= added.requeued
                self._sender.wake()
            self._notify()

        await self.journal.add(events, count_added)

    def _notify(self) -> None:
        """Admit waiting puts if there is room for them, and wake `flush`."""
        self.capacity.admit()
        self._changed.set()

    async def flush(self, timeout: float | None) -> int:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while (self.pending or self.capacity.reserved) and not self._closed:
                    self._changed.clear()
                    await self._changed.wait()
        return self.pending

    async def retry(self, keys: Iterable[str] | None) -> int:
        return await self._finish_change(self.journal.requeue(keys))

    async def forget(self, keys: Iterable[str]) -> int:
        return await self._finish_change(self.journal.forget(keys))

    async def _finish_change(self, change: "asyncio.Future[int]") -> int:
        """Wait for a change and read the counts again, even if cancelled."""

        async def finish() -> int:
            number = await change
            await self._read_counts()
            self._sender.wake()
            return number

        return await asyncio.shield(finish())

    async def close(self, grace: float) -> None:
        """Send for the grace period, then close the file."""
        self.capacity.close()
        try:
            await self.flush(grace)
        finally:
            self._task.cancel()
            try:
                await asyncio.wait([self._task])
            finally:
                await self.journal.close()
                self._closed = True
                self._changed.set()  # other calls of flush return

    async def _send(self) -> None:
        while True:
            try:
                self._paused = str(await self._sender.run())
            except Exception as error:  # noqa: BLE001 - no error may end the sending
                self._paused = f"{type(error).__name__}: {error}"
            _logger.warning("outbox: sending is paused: %s", self._paused)
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, self._timing.longest_pause)

    def _count_end(self, _: Row, state: str) -> None:
        self._counts[PENDING] -= 1
        self._counts[state] += 1
        self._notify()
        if state not in _SENT:
            _logger.warning(
                "outbox: an event is %s; failures() gives the reason", state
            )
        if self._paused is not None:
            _logger.warning("outbox: sending continues")
            self._paused = None
            self._pause = self._timing.first_pause
        self._purge()

    def _purge(self) -> None:
        """Remove old accepted events, if the purge interval is over."""
        now = time.time()
        elapsed = now - self._purged_at
        if self._retention and not 0 <= elapsed < self._timing.purge_interval:
            self._purged_at = now
            purged = self.journal.purge(now - self._retention)
            purged.add_done_callback(consume_exception)
