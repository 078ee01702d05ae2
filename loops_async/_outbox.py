"""The outbox: events that are durable first and sent in the background."""

import asyncio
import logging
import math
import os
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import attrs

from ._drain import Drain, looked_at
from ._events import Event
from ._journal import (
    ACCEPTED,
    DUPLICATE,
    PENDING,
    REJECTED,
    UNKNOWN,
    Added,
    Failure,
    Journal,
    New,
    Row,
)
from ._settings import checked_count, checked_seconds
from .errors import ClientClosedError, ConfigurationError, JournalError

if TYPE_CHECKING:
    from ._client import AsyncLoopsClient

_logger = logging.getLogger("loops_async")

_FIRST_PAUSE: Final = 1.0  # seconds, after what stopped the sending
_LONGEST_PAUSE: Final = 60.0
_PURGE_EVERY: Final = 60.0  # seconds
_PAGE: Final = 200
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
        paused: Why nothing is sent, such as a refused key; else None. (In
            an outage the client holds all sends: see `ClientStats.outage`.)
    """

    pending: int
    retrying: int
    rejected: int
    unknown: int
    accepted: int
    duplicates: int
    paused: str | None


class Outbox:
    """Stores events durably and sends them in the background.

    `put` returns when the event is on the disk. It is sent then, and after a
    crash when the outbox is opened again: each contact's events in order,
    within the client's rate limit, for as long as it takes. An event ends
    when Loops has it, or refuses it, or nobody can know: after a crash or a
    lost answer Loops recognises the key, but only for 24 hours, so what is
    ambiguous for more than 23 is not sent again unless `retry` says so.

    Make it anywhere, even at import; it opens with ``async with``, in the
    event loop it is then used in, and can be opened again when closed. A
    file has one owner: another process, or a forked one, cannot use it.

    Args:
        path: The SQLite file; made for its owner's eyes only (mode 0600).
        client: What to send with; to be closed after the outbox. A dry_run
            one only works on a file without pending events, for it drops them.
        capacity: Pending events at most; `put` waits while there are more.
        keep_accepted: Seconds to keep the events that Loops has, so that
            their keys are still recognised when put again.

    Raises:
        ConfigurationError: if a setting cannot work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        client: "AsyncLoopsClient",
        *,
        capacity: int = 100_000,
        keep_accepted: float | None = 0.0,
    ) -> None:
        self._path = Path(path)
        self._client = client
        self._capacity = checked_count("capacity", capacity)
        if keep_accepted != 0:
            keep_accepted = checked_seconds("keep_accepted", keep_accepted)
        self._keep = math.inf if keep_accepted is None else keep_accepted
        self._open: _Open | None = None

    def __repr__(self) -> str:
        state = "closed" if self._open is None else f"{self._open.pending:,} pending"
        return f"<Outbox {self._path}, {state}>"

    async def __aenter__(self) -> Self:
        if self._open is not None and not self._open.loop.is_closed():
            msg = f"{self._path}: this outbox is open already"
            raise ConfigurationError(msg)
        opened = _Open(Journal(self._path), self._client, self._capacity, self._keep)
        await opened.start(self._path)
        self._open = opened
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        opened = getattr(self, "_open", None)
        if opened is not None and opened.process == os.getpid():
            text = f"unclosed outbox {self._path}: use async with, or await aclose()"
            warnings.warn(text, ResourceWarning, stacklevel=2)

    async def put(self, event: Event) -> None:
        """Store an event; it is durable when this returns, and sent later.

        Waits for the disk, and while the outbox is full. If it is cancelled
        the event may be stored all the same; put it again, for an event that
        is there already is stored once.

        Args:
            event: What to send.

        Raises:
            InvalidEventError: and RecipientNotAllowedError, and nothing was
                stored; also if its key already stands for another event.
            JournalError: if it cannot be stored.
            ClientClosedError: if the outbox is not open.
        """
        await self.put_many((event,))

    async def put_many(self, events: Iterable[Event]) -> None:
        """Store all of them or none; as `put`.

        Args:
            events: Not more than the outbox's capacity.

        Raises:
            ValueError: if they are more.
            LoopsError: as `put`.
        """
        opened = self._opened()
        new = []
        for index, event in enumerate(events):
            if not isinstance(event, Event):
                kind = type(event).__name__
                raise TypeError(f"events[{index}] must be an Event, not {kind}")
            body = self._client._prepared(event)
            new.append((event.idempotency_key, body, event.email, event.user_id))
        if len(new) > self._capacity:
            text = f"{len(new):,} events at once are more than the capacity"
            raise ValueError(f"{text} of {self._capacity:,}")
        await opened.add(new)

    async def flush(self, timeout: float | None = None) -> int:
        """Wait until all that is pending has ended.

        Args:
            timeout: Seconds to wait at most; None is no end.

        Returns:
            How many events are still pending.
        """
        return await self._opened().flush(timeout)

    def stats(self) -> OutboxStats:
        """How the outbox stands."""
        return self._opened().stats

    async def failures(self) -> AsyncIterator[Failure]:
        """Yield the events that Loops refused or of which nobody knows.

        They stay in the file, and hold up nothing, until `retry` or `forget`.
        """
        last = 0
        while page := await self._opened().journal.failures(last, _PAGE):
            for failure in page:
                last = failure.id
                yield failure

    async def retry(self, keys: str | Iterable[str] | None = None) -> int:
        """Send failures again, after all that is pending.

        What was rejected gets a new key, as Loops may have used the old one
        up. What is unknown keeps its key: within 24 hours of the lost answer
        Loops recognises it, later it may take the event twice.

        Args:
            keys: Of which; None is all that are rejected, none that are
                unknown.

        Returns:
            How many.
        """
        return await self._opened().retry([keys] if isinstance(keys, str) else keys)

    async def forget(self, keys: str | Iterable[str]) -> int:
        """Remove failures from the file; return how many."""
        return await self._opened().forget([keys] if isinstance(keys, str) else keys)

    async def aclose(self, grace: float = 10.0) -> None:
        """Close the outbox; what was not sent stays in the file.

        New puts get ClientClosedError.

        Args:
            grace: Seconds to go on sending what is pending.
        """
        opened, self._open = self._open, None
        if opened is not None and opened.process == os.getpid():
            await opened.close(grace)

    def _opened(self) -> "_Open":
        opened = self._open
        if opened is None:
            raise ClientClosedError(f"{self._path}: the outbox is not open")
        if opened.process != os.getpid():
            msg = (
                f"{self._path}: the outbox belongs to process {opened.process}, "
                "from which this one was forked; give each process its own file"
            )
            raise JournalError(msg)
        return opened


class _Open:
    """What an outbox is between its opening and its closing."""

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
        self._dry_run = client._dry_run
        self._capacity = capacity
        self._keep = keep
        self._purged = -math.inf
        self._drain = Drain(journal, client, keep=keep > 0, on_end=self._ended)
        self._counts = dict.fromkeys((PENDING, REJECTED, UNKNOWN, *_TAKEN), 0)
        self._promised = 0  # events on their way to the disk
        self._paused: str | None = None
        self._pause = _FIRST_PAUSE
        self._changed = asyncio.Event()
        self._closing = self._closed = False

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
        while self.pending + self._promised + len(new) > self._capacity:
            await self._change()
            if self._closing:
                raise ClientClosedError("the outbox was closed before there was room")
        self._promised += len(new)
        promised = len(new)

        def added(what: Added | None) -> None:
            self._promised -= promised
            self._changed.set()
            if what is not None:
                more, again = what
                self._counts[PENDING] += more + again
                self._counts[REJECTED] -= again
                self._drain.wake()

        await self.journal.add(new, added)

    async def flush(self, timeout: float | None) -> int:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while (self.pending or self._promised) and not self._closed:
                    await self._change()
        return self.pending

    async def retry(self, keys: Iterable[str] | None) -> int:
        number = await self.journal.again(keys, lambda: str(uuid.uuid4()))
        await self._count()
        self._drain.wake()
        return number

    async def forget(self, keys: Iterable[str]) -> int:
        number = await self.journal.forget(keys)
        await self._count()
        return number

    async def close(self, grace: float) -> None:
        self._closing = True
        self._changed.set()  # who waits for room is turned away
        try:
            await self.flush(grace)
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])
            await self.journal.close()
            self._closed = True
            self._changed.set()  # who waits for the rest need not any more

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

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
        self._changed.set()
        if self._paused is not None:
            _logger.warning("outbox: sending goes on")
            self._paused = None
            self._pause = _FIRST_PAUSE
        now = time.time()
        if self._keep and not 0 <= now - self._purged < _PURGE_EVERY:
            self._purged = now
            self.journal.purge(now - self._keep).add_done_callback(looked_at)
