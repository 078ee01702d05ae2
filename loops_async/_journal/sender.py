"""The sender of a journal's rows, which records the outcome of each.

The number of attempts never ends a row: a row ends when Loops accepts it, when Loops
refuses it, or when its outcome can no longer be found out.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

import attrs

from loops_async._http.protocol import ends_run
from loops_async._sending.bulk import Bulk
from loops_async._sending.outcomes import Receipt
from loops_async._sending.sender import Sender
from loops_async._sending.tries import Resumable
from loops_async.errors import ClientClosedError, JournalError, LoopsError

from .database import consume_exception
from .journal import Journal
from .records import ACCEPTED, DUPLICATE, REJECTED, UNKNOWN, Row

KNOWN_FOR: Final = 23 * 3600.0  # seconds; Loops forgets a key after 24 hours
_LONGEST_PAUSE: Final = 300.0  # seconds between two attempts of one row
_PAGE: Final = 200  # rows read at once


class ForgottenKeyError(LoopsError):
    """Loops may have forgotten the key of an attempt without a response."""


@attrs.frozen(slots=False)
class RowOutcome:
    """The outcome of one row."""

    index: int
    row: Row
    receipt: Receipt | None
    error: LoopsError | None


class JournalSender:
    """The sender of a journal's rows, in order for each contact.

    Args:
        journal: The open journal.
        sender: The engine to send with.
        look_ahead: The greatest number of rows in memory, those that wait for their
            contact's earlier rows included.
        retain: Whether accepted rows stay in the journal.
        on_end: A callable that gets a row and its final state once the state is
            durable.
        clock: A callable that returns Unix time.
        steady: A callable that returns monotonic seconds.
    """

    def __init__(
        self,
        journal: Journal,
        sender: Sender,
        *,
        look_ahead: int,
        retain: bool,
        on_end: Callable[[Row, str], object],
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._sender = sender
        self._look_ahead = look_ahead
        self._retain = retain
        self._on_end = on_end
        self._clock = clock
        self._steady = steady
        self._rows: dict[str | None, Row] = {}
        # When this process marked the rows of earlier runs as in flight.
        self._marks: dict[int, tuple[float, bool]] = {}
        self._ending: set[int] = set()  # rows whose final state is not durable yet
        self._new_rows = asyncio.Event()
        self._run: Bulk[Row, RowOutcome] | None = None
        self.policy = attrs.evolve(
            sender.retry, attempts=sys.maxsize, cap=_LONGEST_PAUSE
        )

    @property
    def retrying(self) -> int:
        """The number of rows that had an attempt and wait for another."""
        return sum(row.attempts > 0 for row in self._rows.values())

    def wake(self) -> None:
        """Look for new rows."""
        self._new_rows.set()

    def stop(self) -> None:
        """End the run once the requests in flight are finished."""
        if self._run is not None:
            self._run.stop(ClientClosedError("sending was stopped"))

    async def run(self, *, until_empty: bool = False) -> LoopsError | None:
        """Send until the run is stopped or cancelled, or all rows have ended.

        Args:
            until_empty: Whether to return once no row is pending.

        Returns:
            The error that stopped the run, such as a refused API key or a full disk;
            None if the run ended by itself.
        """
        self._rows.clear()
        rows = self._pending(until_empty=until_empty)
        self._run = self._sender.send_rows(
            rows, Row, RowOutcome, self, self._look_ahead
        )
        try:
            async with aclosing(self._run.outcomes()) as outcomes:
                async for outcome in outcomes:
                    self._note_end(outcome.row, outcome.receipt, outcome.error)
        except JournalError as unreadable:
            return unreadable
        return self._run.stopped_by

    async def _pending(self, *, until_empty: bool) -> AsyncIterator[Row]:
        last = 0
        while True:
            self._new_rows.clear()
            page = await self._journal.pending(last, _PAGE)
            for row in [row for row in page if row.id not in self._ending]:
                self._restore_mark(row)
                self._rows[row.idempotency_key] = row
                yield row
            if page:
                last = page[-1].id
            else:
                if until_empty:
                    return
                await self._new_rows.wait()

    def _restore_mark(self, row: Row) -> None:
        """Set the time of the mark on the monotonic clock, which cannot be set back."""
        known = self._marks.pop(row.id, None)
        if row.ambiguous_since is not None:
            began = self._steady() - (self._clock() - row.ambiguous_since)
            row.in_flight_since, row.marked_by_this_process = known or (began, False)

    async def before_attempt(self, key: str | None, tries: Resumable) -> None:
        """Mark a row as in flight, durably, before its request is sent.

        The mark shows that the outcome of the attempt may stay unknown.

        Raises:
            ForgottenKeyError: If an attempt without a response is so old that
                Loops may have forgotten the key.
            JournalError: If the mark cannot be written.
        """
        row = self._rows[key]
        if not tries.attempts and (row.attempts or row.ambiguous_since is not None):
            tries.resumed(ambiguous=row.ambiguous_since is not None)
        now = self._clock()
        if row.ambiguous_since is None:
            row.ambiguous_since, row.in_flight_since = now, self._steady()
            row.marked_for_this_attempt = row.marked_by_this_process = True
            await self._journal.mark_in_flight(row)
            return
        row.marked_for_this_attempt = False
        age = now - row.ambiguous_since
        # Another process's mark in the future shows a clock that was set back, so
        # its age is not known.
        if age >= 0 or row.marked_by_this_process:
            age = max(age, self._steady() - row.in_flight_since)
        if not 0 <= age <= KNOWN_FOR:
            text = (
                f"an attempt without a response is {age / 3600:.1f} h old, and Loops "
                "forgets keys after 24 h"
            )
            raise ForgottenKeyError(text, maybe_accepted=True)

    def after_failure(self, key: str | None, error: LoopsError) -> None:
        """Record that an attempt failed and another will follow."""
        row = self._rows[key]
        row.attempts += 1
        row.recorded_attempts += 1
        if row.marked_for_this_attempt and not error.maybe_accepted:
            row.ambiguous_since = None
        done = self._journal.mark_retrying(row, _one_line(error))
        done.add_done_callback(consume_exception)

    def _note_end(
        self, row: Row, receipt: Receipt | None, error: LoopsError | None
    ) -> None:
        if error is not None and (error.retryable or ends_run(error)):
            if ends_run(error) and error.attempts > row.recorded_attempts:
                self.after_failure(row.idempotency_key, error)
            del self._rows[row.idempotency_key]
            if row.ambiguous_since is not None:
                self._marks[row.id] = row.in_flight_since, row.marked_by_this_process
            return  # the row stays pending
        del self._rows[row.idempotency_key]
        self._ending.add(row.id)
        if receipt is not None:
            row.attempts += 1
            state = DUPLICATE if receipt.duplicate else ACCEPTED
            done = (
                self._journal.mark_final(row, state)
                if self._retain
                else self._journal.delete(row)
            )
        else:
            assert error is not None  # an outcome has a receipt or an error
            row.attempts += error.attempts - row.recorded_attempts
            earlier = not error.attempts and row.ambiguous_since is not None
            state = UNKNOWN if earlier or error.maybe_accepted else REJECTED
            done = self._journal.mark_final(row, state, _one_line(error))

        def note_durable(written: "asyncio.Future[None]") -> None:
            self._ending.discard(row.id)
            if not consume_exception(written):
                self._on_end(row, state)

        done.add_done_callback(note_durable)


def _one_line(error: LoopsError) -> str:
    """Return the error as text that a file can store; a header may hold surrogates."""
    text = str(error.args[0]).encode(errors="backslashreplace").decode()
    return f"{type(error).__name__}: {text}"
