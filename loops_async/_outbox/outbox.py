"""The outbox: events that are durable first and sent in the background."""

import asyncio
import math
import os
import warnings
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from loops_async._checks import checked_count, checked_seconds
from loops_async._events.event import Event
from loops_async._journal.journal import Failure, Journal, New
from loops_async.errors import ClientClosedError, ConfigurationError, JournalError

from .session import OutboxSession, OutboxStats

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

_PAGE: Final = 200


class Outbox:
    """Stores events durably and sends them in the background.

    `put` returns when the event is on the disk. It is sent then, and after a
    crash when the outbox is opened again: each contact's events in order,
    within the client's rate limit, for as long as it takes. An event ends
    when Loops has it, or refuses it, or nobody can know: after a crash or a
    lost answer Loops recognises the key, but only for 24 hours, so what is
    ambiguous for more than 23 is not sent again unless `retry` says so.

    Make it anywhere, even at import; it opens with ``async with``, in the
    event loop it is then used in, and can be opened again when that is closed.
    A file has one owner: another process, or a forked one, cannot use it.

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

    _patience: float | None = None  # seconds to wait for another owner to let go

    def __init__(
        self,
        path: str | os.PathLike[str],
        client: "AsyncLoopsClient",
        *,
        capacity: int = 100_000,
        keep_accepted: float | None = 0.0,
    ) -> None:
        self._path = Path(path).resolve()  # so that it stays where it is
        self._client = client
        self._capacity = checked_count("capacity", capacity)
        if keep_accepted != 0:
            keep_accepted = checked_seconds("keep_accepted", keep_accepted)
        self._keep = math.inf if keep_accepted is None else keep_accepted
        self._open: OutboxSession | None = None

    def __repr__(self) -> str:
        state = "closed" if self._open is None else f"{self._open.pending:,} pending"
        return f"<Outbox {self._path}, {state}>"

    async def __aenter__(self) -> Self:
        if self._open is not None:
            if not self._owned(self._open).loop.is_closed():
                msg = f"{self._path}: this outbox is open already"
                raise ConfigurationError(msg)
            await self.aclose()
        journal = Journal(self._path, patience=self._patience)
        opened = OutboxSession(journal, self._client, self._capacity, self._keep)
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
        opened = self._here()
        await opened.add([self._new(event, "event")])

    async def put_many(self, events: Iterable[Event]) -> None:
        """Store all of them or none; as `put`.

        Args:
            events: Not more than the outbox's capacity.

        Raises:
            ValueError: if they are more.
            LoopsError: as `put`.
        """
        opened = self._here()
        new = [self._new(event, f"events[{n}]") for n, event in enumerate(events)]
        if len(new) > self._capacity:
            text = f"{len(new):,} events at once are more than the capacity"
            raise ValueError(f"{text} of {self._capacity:,}")
        await opened.add(new)

    def _new(self, event: Event, where: str) -> New:
        if not isinstance(event, Event):
            raise TypeError(f"{where} must be an Event, not {type(event).__name__}")
        body = self._client.sender.prepare(event)
        return event.idempotency_key, body, event.email, event.user_id

    async def flush(self, timeout: float | None = None) -> int:
        """Wait until all that is pending has ended.

        Args:
            timeout: Seconds to wait at most; None is no end.

        Returns:
            How many events are still pending.
        """
        return await self._here().flush(timeout)

    def stats(self) -> OutboxStats:
        """How the outbox stands."""
        return self._opened().stats

    async def failures(self) -> AsyncGenerator[Failure, None]:
        """Yield the events that Loops refused or of which nobody knows.

        They stay in the file, and hold up nothing, until `retry` or `forget`.
        """
        last = 0
        while page := await self._here().journal.failures(last, _PAGE):
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
        return await self._here().retry([keys] if isinstance(keys, str) else keys)

    async def forget(self, keys: str | Iterable[str]) -> int:
        """Remove failures from the file; return how many."""
        return await self._here().forget([keys] if isinstance(keys, str) else keys)

    async def aclose(self, grace: float = 10.0) -> None:
        """Close the outbox; what was not sent stays in the file.

        New puts get ClientClosedError.

        Args:
            grace: Seconds to go on sending what is pending.
        """
        opened = self._open
        if opened is None or opened.process != os.getpid():
            self._open = None
        elif opened.loop.is_closed():
            self._open = None
            await opened.journal.abandon()
        else:
            self._here()
            self._open = None
            await opened.close(grace)

    def _here(self) -> OutboxSession:
        opened = self._opened()
        if asyncio.get_running_loop() is not opened.loop:
            msg = (
                f"{self._path}: the outbox was opened in another event loop; "
                "open it in the one it is used in"
            )
            raise JournalError(msg)
        return opened

    def _opened(self) -> OutboxSession:
        opened = self._open
        if opened is None:
            raise ClientClosedError(f"{self._path}: the outbox is not open")
        return self._owned(opened)

    def _owned(self, opened: OutboxSession) -> OutboxSession:
        if opened.process != os.getpid():
            msg = (
                f"{self._path}: the outbox belongs to process {opened.process}, "
                "from which this one was forked; give each process its own file"
            )
            raise JournalError(msg)
        return opened
