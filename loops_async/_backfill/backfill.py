"""Backfill: files of events, each sent once however often the run is interrupted.

Data flow: input -> validated rows -> journal -> confirmation -> JournalSender ->
journal -> report and rejects file.
"""

import asyncio
import json
import math
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from inspect import isawaitable
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict, Unpack

import attrs

from loops_async._journal.records import PENDING, REJECTED, UNKNOWN, Row
from loops_async._journal.sender import JournalSender
from loops_async.errors import ConfigurationError, LoopsError, NotTriedError

from .input import InputOptions, InputRow, fingerprint, path_text, read
from .journal import INVALID, BackfillJournal
from .preview import Changes, Preview, refuse_to_repeat
from .rejects import RejectsFile
from .report import BackfillReport, Progress, progress_fields
from .summary import InputSummary

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

FilePath: TypeAlias = str | os.PathLike[str]
Confirm: TypeAlias = Callable[[Preview], bool | Awaitable[bool]]

_LOOK_AHEAD: Final = 100_000  # rows in memory that wait for others of their contact
_USABLE_SHARE: Final = 0.95  # of the rate limit, with usual round trips
_STOPPED_EARLY: Final = "the run was stopped before all rows were read"


class BackfillOptions(TypedDict, total=False):
    """Options of `backfill`; see `Backfill`."""

    input_options: InputOptions
    journal: FilePath | None
    rejects: FilePath | None
    confirm: Confirm | None
    on_progress: Callable[[Progress], object] | None
    on_read: Callable[[int], object] | None
    max_errors: int | None
    resend_unknown: bool


async def backfill(
    paths: FilePath | Iterable[FilePath],
    client: "AsyncLoopsClient",
    **options: Unpack[BackfillOptions],
) -> BackfillReport:
    """Send the events of CSV and JSON Lines files, each once.

    The run first validates every row. It then sends the valid rows within the client's
    rate limit, each contact's in the order of the input, and waits for all of them. If
    a run is killed, the next run continues where it stopped. Once all rows are sent,
    another run sends nothing.

    ```python
    from loops_async import InputOptions, backfill

    options = InputOptions(
        event_name="signup",
        mapping={"email": "E-Mail"},
        types={"amount": "number"},
        ignore=["Notes"],
    )
    report = await backfill("signups.csv", loops, input_options=options)
    print(report)  # 1 row in 0.2 s: 1 accepted
    ```

    The snippet reads this file:

    ```csv
    E-Mail,event_properties.plan,event_properties.amount,contact_properties.firstName,Notes
    ada@example.com,Pro,42,Ada,called on Monday
    ```

    Columns of a CSV file, and keys of a JSON Lines record, have the names ``email``,
    ``user_id``, ``event_name``, ``idempotency_key``, ``event_properties.NAME``,
    ``contact_properties.NAME`` and ``mailing_lists.ID``, or the same in camelCase.
    ``InputOptions.mapping`` names other headings, and ``ignore`` leaves headings out. A
    CSV cell is a string unless ``types`` gives it a type, because a zip code is not a
    number. A file may end in ``.gz``.

    Invalid and rejected rows are in the rejects file with line, error and record.
    Correct them there and send that file, or correct the input and run it again, but
    not both: the two would be different events.

    Old events start workflows in Loops like new ones. The command
    ``loops-async backfill`` therefore asks for confirmation; the function asks only
    if you pass ``confirm=``. Exit codes of the command: 0 all accepted, 1 some invalid
    or rejected, 3 a wrong setting or API key, 4 some unknown or pending, 130
    interrupted.

    Args:
        paths: One file, or several files that form one run.
        client: The client to send with. Its rate limit should be below the team's
            (``rate_limit=8``), or live traffic receives 429s during the run.
        **options: The options, by keyword:

            - ``input_options``: How to read the files, as InputOptions.
            - ``journal``: Path of the journal, from which a later run continues; by
              default the path of the first file with ``.journal.db`` appended.
            - ``rejects``: Path of the file for invalid and rejected rows; by default
              the path of the first file with ``.rejects.jsonl`` appended.
            - ``confirm``: Function that gets a Preview before rows are sent that it
              has not confirmed; if it returns False, nothing is sent.
            - ``on_progress``: Function that gets a Progress before the first event
              is sent and after each event.
            - ``on_read``: Function that gets the number of rows read so far.
            - ``max_errors``: Number of invalid or rejected rows above which the run
              stops; None means no limit.
            - ``resend_unknown``: Whether to send rows with an unknown outcome again;
              after 24 hours Loops may accept them twice.

    Returns:
        The number of rows in each state.

    Raises:
        ConfigurationError: If a file or an option cannot be used, or if rows
            that were sent may have changed and no `confirm` is given.
        JournalError: If the journal cannot be read or written.
    """
    return await Backfill(paths, client, **options).run()


class Backfill:
    """One run of `backfill`, with a method that stops it.

    Args:
        paths: One file, or several files that form one run.
        client: The client to send with.
        input_options: The options for reading the files.
        journal: The path of the journal, by which a later run continues this one; None
            for the path of the first file with ``.journal.db`` appended.
        rejects: The path of the JSON Lines file for the invalid and rejected rows,
            which can be corrected and sent as a run of its own; None for the path of
            the first file with ``.rejects.jsonl`` appended.
        confirm: A callable, plain or async, that gets a preview before unconfirmed rows
            are sent; if it returns False, nothing is sent. None sends without
            confirmation. Events start workflows in Loops, however old they are.
        on_progress: A callable that gets the progress before the first event is sent
            and after each event.
        on_read: A callable that gets the number of rows read so far, after each batch.
        max_errors: The number of invalid or rejected rows above which the run stops;
            None for no limit.
        resend_unknown: Whether to send the unknown rows again, with their
            keys. If Loops accepted them more than a day ago, it accepts them
            twice.
        batch_size: The number of rows to validate before other tasks can run.

    Raises:
        ConfigurationError: If a file is used more than once, or none is given.
    """

    def __init__(
        self,
        paths: FilePath | Iterable[FilePath],
        client: "AsyncLoopsClient",
        *,
        input_options: InputOptions = InputOptions(),  # noqa: B008 - it is frozen
        journal: FilePath | None = None,
        rejects: FilePath | None = None,
        confirm: Confirm | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        on_read: Callable[[int], object] | None = None,
        max_errors: int | None = None,
        resend_unknown: bool = False,
        batch_size: int = 500,
    ) -> None:
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise ConfigurationError("a backfill needs at least one file")
        first = self.paths[0]
        self.journal = Path(journal or f"{first}.journal.db")
        self.rejects = Path(rejects or f"{first}.rejects.jsonl")
        self._check_distinct()
        self._sender = client.sender
        self._input_options = input_options
        self.confirm = confirm
        self.on_progress = on_progress
        self.on_read = on_read
        self._max_errors = math.inf if max_errors is None else max_errors
        self._resend_unknown = resend_unknown
        self._batch_size = batch_size
        self._journal_sender: JournalSender | None = None
        self.stopping = False
        self._complete = False  # whether the journal has all rows of the input
        self._stopped_by: LoopsError | None = None

    def _check_distinct(self) -> None:
        counts = Counter(map(_identity, (*self.paths, self.journal, self.rejects)))
        for path in (*self.paths, self.journal):
            if counts[_identity(path)] > 1:
                msg = (
                    f"{path_text(path)} is used more than once among input, journal "
                    "and rejects"
                )
                raise ConfigurationError(msg)

    def stop(self) -> None:
        """Read and send no more rows; requests in flight finish."""
        self.stopping = True
        if self._journal_sender is not None:
            self._journal_sender.stop()

    async def check(self) -> Preview:
        """Validate the whole input; write and send nothing.

        The preview excludes rows that were already sent, but only if neither the input
        nor its options have changed since.
        """
        summary = InputSummary(self.paths, self._sender.prepare)
        for rows in self._batches():
            summary.validate(rows)
            await asyncio.sleep(0)
        to_send = summary.rows - summary.invalid
        if self.journal.exists():
            mark = await asyncio.to_thread(self._mark)
            async with BackfillJournal(self.journal) as journal:
                metadata = await journal.metadata()
                counts = await journal.counts_of_pass(metadata.get("passes", 0))
            if metadata.get("mark") == mark:
                to_send = counts.get(PENDING, 0)
                if self._resend_unknown:
                    to_send += counts.get(UNKNOWN, 0)
        return self._preview(summary.fields(), to_send, None)

    async def run(self) -> BackfillReport:
        """Send the rows that are not sent yet; see `backfill`."""
        self._check_runnable()
        began = time.monotonic()
        mark = await asyncio.to_thread(self._mark)
        is_new = not self.journal.exists()
        journal = BackfillJournal(self.journal)
        await journal.open()
        try:
            number, counts = await self._enter(journal, mark)
            if counts is not None and not self.stopping:
                await self._send(journal, counts)
            return await self._report(journal, number, began)
        finally:
            await journal.close()
            if is_new and not self._complete:  # the next run must read all of the input
                self.journal.unlink()

    def _check_runnable(self) -> None:
        if self._sender.dry_run:
            msg = (
                "a client with dry_run=True cannot run a backfill: its rows would "
                "count as accepted without being sent"
            )
            raise ConfigurationError(msg)
        for path in self.paths:
            if path.exists() and not path.is_file():
                msg = (
                    f"{path_text(path)} is not a regular file; a backfill reads its "
                    "input twice"
                )
                raise ConfigurationError(msg)
        if self.rejects.is_dir():
            msg = f"{path_text(self.rejects)} cannot be written: it is a directory"
            raise ConfigurationError(msg)
        if not os.access(self.rejects.parent, os.W_OK):
            msg = (
                f"{path_text(self.rejects)} cannot be written: its directory does not "
                "exist or is not writable"
            )
            raise ConfigurationError(msg)

    def _mark(self) -> object:
        """Return a value that identifies the input and its options."""
        prints = [fingerprint(path, lambda: self.stopping) for path in self.paths]
        mark = {"inputs": prints, "reading": attrs.asdict(self._input_options)}
        return json.loads(json.dumps(mark))  # as the journal returns it

    def _batches(self) -> Iterator[list[InputRow]]:
        rows = chain.from_iterable(
            read(path, self._input_options) for path in self.paths
        )
        while batch := list(islice(rows, self._batch_size)):
            yield batch

    async def _enter(
        self, journal: BackfillJournal, mark: object
    ) -> tuple[int, dict[str, int] | None]:
        """Store all rows in the journal, and get them confirmed.

        Returns:
            The number of the pass that read the rows, and their number by
            state; None in place of these if the rows must not be sent.
        """
        metadata = await journal.metadata()
        number = metadata.get("passes", 0)
        if self.stopping:
            self._stopped_by = NotTriedError(_STOPPED_EARLY)
            return number, None
        if metadata.get("mark") != mark:
            number += 1
            if not await self._read_pass(journal, metadata, number, mark):
                self._stopped_by = NotTriedError(_STOPPED_EARLY)
                return number, None
            metadata = await journal.metadata()
        if self._resend_unknown:
            await journal.requeue_unknown(number)
        counts = await journal.counts_of_pass(number)
        if self._exceeds_max_errors(counts):
            return number, None
        if counts.get(PENDING) and metadata["agreed"] != number:
            stored = metadata["changes"]
            changes = None if stored is None else Changes(**stored)
            preview = self._preview(metadata["summary"], counts[PENDING], changes)
            if not await self._is_confirmed(preview):
                self._stopped_by = NotTriedError("the run was not confirmed")
                return number, None
            await journal.set_metadata(agreed=number)
        return number, counts

    async def _read_pass(
        self,
        journal: BackfillJournal,
        metadata: Mapping[str, Any],
        number: int,
        mark: object,
    ) -> bool:
        """Read the whole input; return False if the run was stopped meanwhile."""
        run = metadata.get("run", path_text(self.journal.resolve()))
        await journal.set_metadata(run=run, passes=number, mark=None)
        summary = await self._read(journal, run, number)
        if self.stopping:
            return False
        confirmed = metadata.get("agreed")
        changes = await journal.end_pass(number, confirmed)
        if changes is not None and not changes.new:
            confirmed = number
        stored = None if changes is None else attrs.asdict(changes)
        await journal.set_metadata(
            changes=stored, summary=summary.fields(), agreed=confirmed
        )
        # Set last, because the mark means that the journal has the whole input.
        await journal.set_metadata(mark=mark, complete=number)
        self._complete = True
        return True

    async def _read(
        self, journal: BackfillJournal, run: str, number: int
    ) -> InputSummary:
        """Validate every row and add it to the journal."""
        summary = InputSummary(self.paths, self._sender.prepare)
        await journal.begin_pass()
        adding = journal.add_rows(run, number, [], [])
        for rows in self._batches():
            valid, invalid = summary.validate(rows)
            # The journal added the last batch while this one was read.
            summary.add_invalid(await adding)
            if self.stopping:
                break
            adding = journal.add_rows(run, number, valid, invalid)
            if self.on_read is not None:
                self.on_read(summary.rows)
        summary.add_invalid(await adding)
        return summary

    def _preview(
        self, summary: dict[str, Any], to_send: int, changes: Changes | None
    ) -> Preview:
        limiter = self._sender.limiter
        seconds = None
        if limiter is not None:
            seconds = to_send * limiter.period / (limiter.limit * _USABLE_SHARE)
        return Preview(**summary, to_send=to_send, seconds=seconds, changes=changes)

    async def _is_confirmed(self, preview: Preview) -> bool:
        if self.confirm is None:
            refuse_to_repeat(preview.changes)
            return True
        result = self.confirm(preview)
        return bool(await result if isawaitable(result) else result)

    async def _send(self, journal: BackfillJournal, counts: dict[str, int]) -> None:
        self._report_progress(counts)
        if not counts.get(PENDING) or self.stopping:  # on_progress may call stop()
            return

        def on_end(_: Row, state: str) -> None:
            counts[PENDING] -= 1
            counts[state] = counts.get(state, 0) + 1
            if self._exceeds_max_errors(counts):
                journal_sender.stop()
            self._report_progress(counts)

        journal_sender = self._journal_sender = JournalSender(
            journal, self._sender, look_ahead=_LOOK_AHEAD, retain=True, on_end=on_end
        )
        stopped_by = await journal_sender.run(until_empty=True)
        if not self.stopping:
            self._stopped_by = self._stopped_by or stopped_by

    def _exceeds_max_errors(self, counts: Mapping[str, int]) -> bool:
        """Return whether too many rows are invalid or rejected; store why."""
        errors = counts[INVALID] + counts.get(REJECTED, 0)
        if errors <= self._max_errors:
            return False
        self._stopped_by = NotTriedError(
            f"invalid or rejected rows: {errors:,}, more than {self._max_errors:,}"
        )
        return True

    def _report_progress(self, counts: Mapping[str, int]) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(**progress_fields(counts)))

    async def _report(
        self, journal: BackfillJournal, number: int, began: float
    ) -> BackfillReport:
        fields = progress_fields(await journal.counts_of_pass(number))
        rejects = None
        try:
            file = RejectsFile(path=self.rejects, with_file=len(self.paths) > 1)
            count = fields["invalid"] + fields["rejected"]
            if await file.update(journal, number, count):
                rejects = self.rejects
        except OSError as error:
            msg = f"{path_text(self.rejects)} cannot be written: {error.strerror}"
            self._stopped_by = self._stopped_by or ConfigurationError(msg)
        return BackfillReport(
            **fields,
            stopped_by=self._stopped_by,
            journal=self.journal,
            rejects=rejects,
            elapsed=time.monotonic() - began,
        )


def _identity(path: Path) -> Hashable:
    """Return a value that is the same for all names of a file."""
    try:
        status = path.stat()
    except OSError:  # the file does not exist yet
        return path.resolve()
    return status.st_dev, status.st_ino
