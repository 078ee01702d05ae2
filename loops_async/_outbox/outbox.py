"""The outbox, which stores events durably and sends them in the background."""

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
from loops_async._journal.records import Failure, NewEvent
from loops_async.errors import ClientClosedError, ConfigurationError, JournalError

from .session import OutboxSession, OutboxTiming
from .stats import OutboxStats

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

_PAGE: Final = 200


class Outbox:
    """A durable store for events, which are sent in the background.

    ```python
    from loops_async import Event, Outbox

    async with Outbox("events.db", loops) as outbox:
        await outbox.put(Event("signup", email="ada@example.com"))
        pending = await outbox.flush(timeout=5.0)  # the number not sent yet
        print(pending, outbox.stats())

        async for failure in outbox.failures():  # rejected, or unknown
            print(failure.state, failure.error, failure.body)
            await outbox.retry([failure.idempotency_key])
    ```

    Durability:
        When `put` returns, the event is on the disk and survives a crash of
        the process or the machine. Pending events are sent in the background,
        within the client's rate limit; those that are left after a crash are
        sent when the outbox is opened again. Failed attempts do not end an
        event, however many there are: it stays pending until Loops accepts or
        rejects it, or until its outcome can no longer be known.

    Order:
        The events of a contact are sent one at a time, in the order of their
        puts. A contact whose events fail does not delay other contacts.

    Crashes and unknown outcomes:
        After a crash or a lost response the outcome of an event is not known. The
        outbox sends it again with the same idempotency key, which Loops recognizes for
        24 hours, so Loops accepts the event once. If the outcome has been unknown for
        more than 23 hours, the event is not sent again but becomes ``unknown``.

    Full outbox:
        While the file has `capacity` pending events, `put` waits; no event is
        dropped. Puts that wait are admitted in the order of their calls.

    Paused sending:
        If no event can be sent, because Loops refuses the API key or the disk is full,
        sending pauses and resumes after 1 to 60 seconds. Meanwhile puts store events as
        long as there is room on the disk, and `stats` gives the reason for the pause.

    Failures:
        Events that are ``rejected`` or ``unknown`` stay in the file and do
        not delay other events. `failures` lists them, `retry` sends them again
        and `forget` removes them. While the application is down, the command
        ``loops-async outbox status|failures|retry|forget|drain events.db``
        works on the file.

    One owner:
        A file belongs to one outbox, which belongs to one process and one event
        loop. A second outbox that opens the file raises a JournalError with
        ``in_use``. A forked child cannot use an outbox that its parent opened; give
        each process a file of its own. If a child is forked while the outbox is open,
        end the child with ``os._exit``, because a normal exit would close what it
        shares with its parent. An outbox can be made anywhere, even at import: it opens
        with ``async with``, and can be opened again after it or its event loop was
        closed.

    Args:
        path: The path of the SQLite file. Only the user that creates a new file can
            read it (mode 0600).
        client: The client that sends the events; close it after the outbox. An outbox
            with a dry_run client would drop events, so it cannot open a file with
            pending events.
        capacity: The greatest number of pending events.
        keep_accepted: Seconds to keep accepted events, so that a second put of the same
            event is recognized; None means no limit.

    Raises:
        ConfigurationError: If a setting is invalid.
    """

    __module__ = "loops_async"

    def __init__(
        self,
        path: str | os.PathLike[str],
        client: "AsyncLoopsClient",
        *,
        capacity: int = 100_000,
        keep_accepted: float | None = 0.0,
        _timing: OutboxTiming | None = None,  # for per_worker and the tests
    ) -> None:
        # Absolute, so that a later change of the working directory has no effect.
        self._path = Path(path).resolve()
        self._sender = client.sender
        self._capacity = checked_count("capacity", capacity)
        if keep_accepted != 0:
            keep_accepted = checked_seconds("keep_accepted", keep_accepted)
        self._retention = math.inf if keep_accepted is None else keep_accepted
        self._timing = OutboxTiming() if _timing is None else _timing
        self._session: OutboxSession | None = None

    def __repr__(self) -> str:
        session = self._session
        state = "closed" if session is None else f"{session.pending:,} pending"
        return f"<Outbox {self._path}, {state}>"

    async def __aenter__(self) -> Self:
        if self._session is not None:
            if not self._checked_process(self._session).loop.is_closed():
                raise ConfigurationError(f"{self._path}: the outbox is already open")
            await self.aclose()
        session = OutboxSession(
            self._path,
            self._sender,
            capacity=self._capacity,
            retention=self._retention,
            timing=self._timing,
        )
        await session.open()
        self._session = session
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and session.process == os.getpid():
            text = f"unclosed outbox {self._path}: use async with, or await aclose()"
            warnings.warn(text, ResourceWarning, stacklevel=2)

    async def put(self, event: Event) -> None:
        """Store an event durably; it is sent later.

        The call waits for the disk and, while the outbox is full, for room. If the call
        is cancelled, the event may or may not be stored. Put it again in that case: an
        event that the outbox already has is stored once.

        Args:
            event: The event to store.

        Raises:
            InvalidEventError: If the event breaks a rule, or if the file has
                another event with the same key. The event is not stored.
            RecipientNotAllowedError: If the client's allow-list does not
                contain the contact. The event is not stored.
            JournalError: If the event cannot be stored.
            ClientClosedError: If the outbox is not open.
        """
        session = self._current_session()
        await session.add([self._prepare(event, "event")])

    async def put_many(self, events: Iterable[Event]) -> None:
        """Store all of the events or none, as `put` stores one.

        Args:
            events: The events to store; at most as many as the capacity.

        Raises:
            ValueError: If there are more events than the capacity.
            LoopsError: If `put` would raise it for one of the events.
        """
        session = self._current_session()
        new = [self._prepare(event, f"events[{n}]") for n, event in enumerate(events)]
        if len(new) > self._capacity:
            msg = (
                f"{len(new):,} events are more than the capacity of "
                f"{self._capacity:,}: put them in smaller groups"
            )
            raise ValueError(msg)
        await session.add(new)

    def _prepare(self, event: Event, name: str) -> NewEvent:
        if not isinstance(event, Event):
            raise TypeError(f"{name} must be an Event, not {type(event).__name__}")
        body = self._sender.prepare(event)
        return NewEvent(event.idempotency_key, body, event.email, event.user_id)

    async def flush(self, timeout: float | None = None) -> int:
        """Wait until no event is pending.

        Args:
            timeout: The longest wait in seconds; None means no limit.

        Returns:
            The number of events that are still pending.
        """
        return await self._current_session().flush(timeout)

    def stats(self) -> OutboxStats:
        """Return the counters and the state of the outbox."""
        return self._open_session().stats

    async def failures(self) -> AsyncGenerator[Failure, None]:
        """Yield the events that Loops rejected or whose outcome is unknown.

        The events stay in the file until `retry` or `forget`.
        """
        last = 0
        while page := await self._current_session().journal.failures(last, _PAGE):
            for failure in page:
                last = failure.id
                yield failure

    async def retry(self, keys: str | Iterable[str] | None = None) -> int:
        """Send failures again, after all events that are pending now.

        A rejected event gets a new key, because Loops may have used up the old
        one. An unknown event keeps its key: Loops recognizes it within 24 hours
        of the lost response; after that Loops may accept the event twice.

        Args:
            keys: The key or keys of the events; None means all rejected events, but not
                the unknown ones.

        Returns:
            The number of events that are pending again.
        """
        keys = [keys] if isinstance(keys, str) else keys
        return await self._current_session().retry(keys)

    async def forget(self, keys: str | Iterable[str]) -> int:
        """Remove failures from the file.

        Args:
            keys: The key or keys of rejected or unknown events.

        Returns:
            The number of events that were removed.
        """
        keys = [keys] if isinstance(keys, str) else keys
        return await self._current_session().forget(keys)

    async def aclose(self, grace: float = 10.0) -> None:
        """Close the outbox; pending events stay in the file.

        A put that waits for room, and any later put, raises ClientClosedError.

        Args:
            grace: Seconds to continue sending pending events.
        """
        session = self._session
        if session is None or session.process != os.getpid():
            self._session = None
        elif session.loop.is_closed():
            self._session = None
            await session.journal.abandon()
        else:
            self._current_session()
            self._session = None
            await session.close(grace)

    def _current_session(self) -> OutboxSession:
        """Return the session, if it belongs to the running event loop."""
        session = self._open_session()
        if asyncio.get_running_loop() is not session.loop:
            msg = (
                f"{self._path}: the outbox was opened in another event loop; open "
                "it in the event loop that uses it"
            )
            raise JournalError(msg)
        return session

    def _open_session(self) -> OutboxSession:
        if self._session is None:
            raise ClientClosedError(f"{self._path}: the outbox is not open")
        return self._checked_process(self._session)

    def _checked_process(self, session: OutboxSession) -> OutboxSession:
        if session.process != os.getpid():
            msg = (
                f"{self._path}: the outbox was opened by process {session.process}, "
                "from which this process was forked; give each process its own file"
            )
            raise JournalError(msg)
        return session
