"""Sends what a journal holds, and writes down what became of it.

Nothing here gives an event up because of how often it was tried: it ends
when Loops has it, refuses it, or nobody can know any more.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import attrs

from loops_async._http.protocol import ends_run
from loops_async._sending.bulk import FanOut
from loops_async._sending.outcomes import Receipt
from loops_async._sending.tries import Tries
from loops_async.errors import ClientClosedError, JournalError, LoopsError

from .database import consume_exception
from .journal import ACCEPTED, DUPLICATE, REJECTED, UNKNOWN, Journal, Row

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

KNOWN_FOR: Final = 23 * 3600.0  # seconds; Loops forgets a key after 24 hours
_LONGEST_PAUSE: Final = 300.0  # seconds between two attempts of one event
_PAGE: Final = 200  # rows read at once


class ForgottenKeyError(LoopsError):
    """An attempt without an answer is so old that Loops may have lost its key."""


@attrs.frozen(slots=False)
class Sent:
    """What became of one row."""

    index: int
    row: Row
    receipt: Receipt | None
    error: LoopsError | None


class JournalSender:
    """Sends the rows of a journal, each contact's in order.

    Args:
        journal: An open one.
        client: What to send with.
        look_ahead: Rows in memory at most, while their contacts have to wait.
        keep: Whether rows that Loops has stay in the journal.
        on_end: Called with each row that has ended, durably, and its state.
        clock: Unix time.
        steady: Monotonic seconds.
    """

    def __init__(
        self,
        journal: Journal,
        client: "AsyncLoopsClient",
        *,
        look_ahead: int,
        keep: bool,
        on_end: Callable[[Row, str], object],
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._client = client
        self._look_ahead = look_ahead
        self._keep = keep
        self._on_end = on_end
        self._clock = clock
        self._steady = steady
        self._rows: dict[str | None, Row] = {}
        self._stamps: dict[int, tuple[float, bool]] = {}  # of rows in earlier runs
        self._ending: set[int] = set()  # rows whose end is not on the disk yet
        self._news = asyncio.Event()
        self._fan_out: FanOut[Row, Sent] | None = None
        self.policy = attrs.evolve(
            client.sender.retry, attempts=sys.maxsize, cap=_LONGEST_PAUSE
        )

    @property
    def retrying(self) -> int:
        """How many rows had an attempt that failed, and will have another."""
        return sum(row.attempts > 0 for row in self._rows.values())

    def wake(self) -> None:
        """Look for new rows."""
        self._news.set()

    def stop(self) -> None:
        """End the run when what is under way has ended."""
        if self._fan_out is not None:
            self._fan_out.lane.stop(ClientClosedError("it was told to stop"))

    async def run(self, *, until_empty: bool = False) -> LoopsError | None:
        """Send until it is stopped or cancelled, or all has ended.

        Returns:
            What stopped it: a refused key, a wrong address, a full disk.
        """
        self._rows.clear()
        rows = self._pending(until_empty=until_empty)
        self._fan_out = self._client.sender.send_rows(
            rows, Row, Sent, self, self._look_ahead
        )
        try:
            async with aclosing(self._fan_out.outcomes()) as all_sent:
                async for sent in all_sent:
                    self._note_end(sent.row, sent.receipt, sent.error)
        except JournalError as unreadable:
            return unreadable
        return self._fan_out.stopped_by

    async def _pending(self, *, until_empty: bool) -> AsyncIterator[Row]:
        last = 0
        while True:
            self._news.clear()
            page = await self._journal.pending(last, _PAGE)
            for row in [row for row in page if row.id not in self._ending]:
                self._remember_stamp(row)
                self._rows[row.idempotency_key] = row
                yield row
            if page:
                last = page[-1].id
            else:
                if until_empty:
                    return
                await self._news.wait()

    def _remember_stamp(self, row: Row) -> None:
        """Tell when it was made by the clock that nobody can set back."""
        known = self._stamps.pop(row.id, None)
        if row.ambiguous_since is not None:
            began = self._steady() - (self._clock() - row.ambiguous_since)
            row.stamped, row.stamped_here = known or (began, False)

    async def begins(self, key: str | None, tried: Tries) -> None:
        """Stamp the row of which maybe nobody will know; see `Record`."""
        row = self._rows[key]
        if not tried.attempts and (row.attempts or row.ambiguous_since is not None):
            tried.resumed(ambiguous=row.ambiguous_since is not None)
        now = self._clock()
        if row.ambiguous_since is None:
            row.ambiguous_since, row.stamped = now, self._steady()
            row.stamp_is_new = row.stamped_here = True
            await self._journal.mark_in_flight(row)
            return
        row.stamp_is_new = False
        age = now - row.ambiguous_since
        if age >= 0 or row.stamped_here:  # else who knows what time it was
            age = max(age, self._steady() - row.stamped)
        if not 0 <= age <= KNOWN_FOR:
            text = (
                f"an attempt without an answer is {age / 3600:.1f} h old, and Loops "
                "forgets keys after 24 h"
            )
            error = ForgottenKeyError(text, maybe_accepted=True)
            error.attempts = tried.attempts
            raise error

    def failed(self, key: str | None, error: LoopsError) -> None:
        """Write down that an attempt failed; see `Record`."""
        row = self._rows[key]
        row.attempts += 1
        row.noted += 1
        if row.stamp_is_new and not error.maybe_accepted:
            row.ambiguous_since = None
        done = self._journal.mark_retrying(row, _line(error))
        done.add_done_callback(consume_exception)

    def _note_end(
        self, row: Row, receipt: Receipt | None, error: LoopsError | None
    ) -> None:
        if error is not None and (error.retryable or ends_run(error)):
            if ends_run(error) and error.attempts > row.noted:
                self.failed(row.idempotency_key, error)
            del self._rows[row.idempotency_key]
            if row.ambiguous_since is not None:
                self._stamps[row.id] = row.stamped, row.stamped_here
            return  # it stays pending
        del self._rows[row.idempotency_key]
        self._ending.add(row.id)
        if error is not None:
            row.attempts += error.attempts - row.noted
            before = not error.attempts and row.ambiguous_since is not None
            state = UNKNOWN if before or error.maybe_accepted else REJECTED
            done = self._journal.mark_final(row, state, _line(error))
        else:
            assert receipt is not None
            row.attempts += 1
            state = DUPLICATE if receipt.duplicate else ACCEPTED
            done = (
                self._journal.mark_final(row, state)
                if self._keep
                else self._journal.delete(row)
            )

        def tell(written: "asyncio.Future[None]") -> None:
            self._ending.discard(row.id)
            if not consume_exception(written):
                self._on_end(row, state)

        done.add_done_callback(tell)


def _line(error: LoopsError) -> str:
    """Return it as a text that any file takes: a header may be no UTF-8."""
    said = str(error.args[0]).encode(errors="backslashreplace").decode()
    return f"{type(error).__name__}: {said}"
