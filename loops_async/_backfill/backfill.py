"""Backfill: files of events, sent once each however often it is interrupted.

The data's one way: input -> every row checked and entered into the journal ->
a question -> the drain -> the journal's books -> report and rejects.
"""

import asyncio
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import (
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from inspect import isawaitable
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict, Unpack

import attrs

from loops_async._journal.journal import (
    ACCEPTED,
    DUPLICATE,
    PENDING,
    REJECTED,
    UNKNOWN,
    Row,
)
from loops_async._journal.sender import JournalSender
from loops_async.errors import ConfigurationError, LoopsError, NotTriedError

from .input import InputOptions, Item, fingerprint, path_text, read
from .journal import INVALID, BackfillJournal, Changes
from .preview import Preview, Seen, refuse_to_repeat

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

FilePath: TypeAlias = str | os.PathLike[str]

_BATCH: Final = 500  # rows between two turns of the event loop
_LOOK_AHEAD: Final = 100_000  # rows in memory, while their contacts have to wait
_UNREAD: Final = "it was told to stop before all rows were read"
_USED: Final = 0.95  # of the rate limit, at usual round trips


@attrs.frozen(kw_only=True)
class Progress:
    """How far a backfill is; each row is counted in exactly one part.

    Attributes:
        rows: In the input.
        accepted: Loops has them.
        duplicates: Loops has them, and said that it had their keys before.
        invalid: Not sent, because of what they say.
        rejected: Refused by Loops.
        unknown: Nobody knows; sent again only with ``resend_unknown``.
        pending: Not sent yet.
    """

    rows: int
    accepted: int
    duplicates: int
    invalid: int
    rejected: int
    unknown: int
    pending: int


@attrs.frozen(kw_only=True)
class BackfillReport(Progress):
    """What became of the rows; run it again for those that are pending.

    Attributes:
        stopped_by: Why there are pending ones, if not because it was told to
            stop.
        journal: The file that knows all this.
        rejects: The file of what was invalid or rejected, if anything was.
        elapsed: Seconds.
    """

    stopped_by: LoopsError | None
    journal: Path
    rejects: Path | None
    elapsed: float

    def __str__(self) -> str:
        parts = {
            "accepted": self.accepted,
            "accepted before": self.duplicates,
            "invalid": self.invalid,
            "rejected": self.rejected,
            "unknown": self.unknown,
            "pending": self.pending,
        }
        said = [f"{n:,} {name}" for name, n in parts.items() if n or name == "accepted"]
        rows = "row" if self.rows == 1 else "rows"
        text = f"{self.rows:,} {rows} in {self.elapsed:.1f} s: {', '.join(said)}"
        if self.stopped_by is not None:
            text += f"; stopped by: {self.stopped_by}"
        return text


Confirm: TypeAlias = Callable[[Preview], bool | Awaitable[bool]]


class Options(TypedDict, total=False):
    """What `backfill` may be told; see `Backfill`."""

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
    **options: Unpack[Options],
) -> BackfillReport:
    """Send the events of CSV and JSON Lines files, each once.

    Checks every row first, then sends the good ones in order, each contact's
    one after the other, within the client's rate limit, and waits for it all.
    Killed at any moment and run again it goes on where it was. Run again when
    it is done it sends nothing.

    Args:
        paths: One file, or several that are one run.
        client: What to send with. Give it a rate limit below the team's
            (``rate_limit=8``), or live traffic meets 429s meanwhile.
        **options: As in `Backfill`.

    Returns:
        The books of the run.

    Raises:
        ConfigurationError: if a file or an option cannot be used, or rows
            that were sent have changed and there is nobody to `confirm` that
            they are sent again.
        JournalError: if the journal cannot.
    """
    return await Backfill(paths, client, **options).run()


class Backfill:
    """One run of `backfill`, which can be told to stop.

    Args:
        paths: One file, or several that are one run.
        client: What to send with.
        input_options: How the files are to be read.
        journal: The file that makes it safe to run it again; None is beside
            the first input, with ``.journal.db`` added to its name.
        rejects: Where to write what was not accepted, as JSON Lines that can
            be mended and sent as a run of their own; None is beside the first
            input, with ``.rejects.jsonl`` added.
        confirm: Asked, with what would be sent, before anything new is; None
            sends. Old events start workflows like new ones.
        on_progress: Called after each event.
        on_read: Called with how many rows are checked, now and then.
        max_errors: Stop when more rows are invalid or rejected; None never.
        resend_unknown: Send again, under their keys, those of which nobody
            knows; if Loops took them more than a day ago it takes them twice.

    Raises:
        ConfigurationError: if two of the files are one.
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
    ) -> None:
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise ConfigurationError("a backfill needs a file")
        first = self.paths[0]
        self.journal = Path(journal or f"{first}.journal.db")
        self.rejects = Path(rejects or f"{first}.rejects.jsonl")
        times = Counter(map(_identity, (*self.paths, self.journal, self.rejects)))
        for path in (*self.paths, self.journal):
            if times[_identity(path)] > 1:
                msg = f"{path_text(path)} is given twice, or is two things"
                raise ConfigurationError(msg)
        self._client = client
        self._input_options = input_options
        self.confirm = confirm
        self.on_progress = on_progress
        self.on_read = on_read
        self._most_errors = math.inf if max_errors is None else max_errors
        self._resend_unknown = resend_unknown
        self._drain: JournalSender | None = None
        self.stopping = False
        self._entered = False  # all rows, into the journal
        self._stopped_by: LoopsError | None = None

    def stop(self) -> None:
        """Read and send nothing more; what is under way ends."""
        self.stopping = True
        if self._drain is not None:
            self._drain.stop()

    async def check(self) -> Preview:
        """Check the whole input; write and send nothing.

        What was sent before is only known if neither the input nor how it is
        read has changed since.
        """
        seen = Seen(self.paths)
        for items in self._batches():
            seen.sort(items, self._client.sender)
            await asyncio.sleep(0)
        to_send = seen.rows - seen.invalid
        if self.journal.exists():
            mark = await asyncio.to_thread(self._mark)
            async with BackfillJournal(self.journal) as book:
                facts = await book.facts()
                tally = await book.tally(facts.get("passes", 0))
            if facts.get("mark") == mark:
                to_send = tally.get(PENDING, 0)
                if self._resend_unknown:
                    to_send += tally.get(UNKNOWN, 0)
        return self._preview(seen.summary(), to_send, None)

    async def run(self) -> BackfillReport:
        """Send what is not sent yet; see `backfill`."""
        if self._client.sender.dry_run:
            msg = "a dry_run client would let rows count as accepted that are not"
            raise ConfigurationError(msg)
        for path in self.paths:
            if path.exists() and not path.is_file():
                msg = f"{path_text(path)} is no file, so it cannot be reread"
                raise ConfigurationError(msg)
        if self.rejects.is_dir() or not os.access(self.rejects.parent, os.W_OK):
            msg = (
                f"{path_text(self.rejects)} cannot be written: it is a directory, "
                "or is in none that is yours"
            )
            raise ConfigurationError(msg)
        began = time.monotonic()
        mark = await asyncio.to_thread(self._mark)
        is_new = not self.journal.exists()
        book = BackfillJournal(self.journal)
        await book.open()
        try:
            number, tally = await self._enter(book, mark)
            if tally is not None and not self.stopping:
                await self._send(book, tally)
            return await self._report(book, number, began)
        finally:
            await book.close()
            if is_new and not self._entered:  # it knows nothing
                self.journal.unlink()

    def _mark(self) -> object:
        """Return what tells this input, read this way, from every other."""
        prints = [fingerprint(path, lambda: self.stopping) for path in self.paths]
        mark = {"inputs": prints, "reading": attrs.asdict(self._input_options)}
        return json.loads(json.dumps(mark))  # as the journal will say it

    def _batches(self) -> Iterator[list[Item]]:
        items = chain.from_iterable(
            read(path, self._input_options) for path in self.paths
        )
        while batch := list(islice(items, _BATCH)):
            yield batch

    async def _enter(
        self, book: BackfillJournal, mark: object
    ) -> tuple[int, dict[str, int] | None]:
        """See to it that all rows are in the journal, and may be sent.

        Returns:
            The number of the pass that read them, and how many rows it has by
            state; None if they may not be sent.
        """
        facts = await book.facts()
        number, agreed_to = facts.get("passes", 0), facts.get("agreed")
        summary: dict[str, Any] = facts.get("summary", {})
        told = facts.get("changes")  # to who did not agree
        changes = None if told is None else Changes(**told)
        if self.stopping:
            self._stopped_by = NotTriedError(_UNREAD)
            return number, None
        if facts.get("mark") != mark:
            number += 1
            run = facts.get("run", path_text(self.journal.resolve()))
            await book.note(run=run, passes=number, mark=None)
            summary = await self._read(book, run, number)
            if self.stopping:
                self._stopped_by = NotTriedError(_UNREAD)
                return number, None
            changes = await book.end(number, agreed_to)
            if changes is not None and not changes.new:
                agreed_to = number
            told = None if changes is None else attrs.asdict(changes)
            await book.note(changes=told, summary=summary, agreed=agreed_to)
            await book.note(mark=mark, complete=number)
            self._entered = True
        if self._resend_unknown:
            await book.send_unknown(number)
        tally = await book.tally(number)
        if self._too_many(tally):
            return number, None
        if tally.get(PENDING) and agreed_to != number:
            preview = self._preview(summary, tally[PENDING], changes)
            if not await self._agrees(preview):
                self._stopped_by = NotTriedError("it was not confirmed")
                return number, None
            await book.note(agreed=number)
        return number, tally

    async def _read(
        self, book: BackfillJournal, run: str, number: int
    ) -> dict[str, Any]:
        """Check and enter every row; return a summary."""
        seen = Seen(self.paths)
        await book.begin()
        entered = book.enter(run, number, [], [])
        for items in self._batches():
            good, bad = seen.sort(items, self._client.sender)
            seen.refuse(await entered)  # the last batch, while this one was read
            if self.stopping:
                break
            entered = book.enter(run, number, good, bad)
            if self.on_read is not None:
                self.on_read(seen.rows)
        seen.refuse(await entered)
        return seen.summary()

    def _preview(
        self, summary: dict[str, Any], to_send: int, changes: Changes | None
    ) -> Preview:
        limiter = self._client.sender.limiter
        seconds = None
        if limiter is not None:
            seconds = to_send * limiter.period / (limiter.limit * _USED)
        return Preview(**summary, to_send=to_send, seconds=seconds, changes=changes)

    async def _agrees(self, preview: Preview) -> bool:
        if self.confirm is None:
            refuse_to_repeat(preview.changes)
            return True
        answer = self.confirm(preview)
        return bool(await answer if isawaitable(answer) else answer)

    async def _send(self, book: BackfillJournal, tally: dict[str, int]) -> None:
        self._tell(tally)
        if not tally.get(PENDING) or self.stopping:  # maybe it was told just now
            return

        def ended(_: Row, state: str) -> None:
            tally[PENDING] -= 1
            tally[state] = tally.get(state, 0) + 1
            if self._too_many(tally):
                drain.stop()
            self._tell(tally)

        drain = self._drain = JournalSender(
            book, self._client, look_ahead=_LOOK_AHEAD, keep=True, on_end=ended
        )
        stopped_by = await drain.run(until_empty=True)
        if not self.stopping:
            self._stopped_by = self._stopped_by or stopped_by

    def _too_many(self, tally: Mapping[str, int]) -> bool:
        """Tell whether more rows are bad than may be; then that is why it stops."""
        bad = tally[INVALID] + tally.get(REJECTED, 0)
        if bad > self._most_errors:
            text = f"invalid or rejected rows: {bad:,}, more than {self._most_errors:,}"
            self._stopped_by = NotTriedError(text)
        return bad > self._most_errors

    def _tell(self, tally: dict[str, int]) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(**_parts(tally)))

    async def _report(
        self, book: BackfillJournal, number: int, began: float
    ) -> BackfillReport:
        parts = _parts(await book.tally(number))
        bad = parts[INVALID] + parts[REJECTED]
        rejects = None
        try:
            if await self._keep_rejects(book, number, bad):
                rejects = self.rejects
        except OSError as error:
            msg = f"{path_text(self.rejects)} cannot be written: {error.strerror}"
            self._stopped_by = self._stopped_by or ConfigurationError(msg)
        return BackfillReport(
            **parts,
            stopped_by=self._stopped_by,
            journal=self.journal,
            rejects=rejects,
            elapsed=time.monotonic() - began,
        )

    async def _keep_rejects(self, book: BackfillJournal, number: int, bad: int) -> bool:
        """See to it that the file says what the journal does.

        Returns:
            Whether there is anything in it.
        """
        facts = await book.facts()
        written = facts.get("rejects")
        if facts.get("complete") != number:
            return False  # half a pass says nothing
        if [number, bad] == written:
            return True  # it may have been mended meanwhile
        if bad:
            await self._write_rejects(book)
        elif written is not None:  # or it would be sent, and the mended rows too
            self.rejects.unlink(missing_ok=True)
        await book.note(rejects=[number, bad] if bad else None)
        return bad > 0

    async def _write_rejects(self, book: BackfillJournal) -> None:
        """Write the file anew, for its owner's eyes only, or leave it as it was."""
        path = self.rejects.resolve()
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f"{path.name}.", delete=False
        ) as file:
            try:
                async for row in book.rejects():
                    at = {"file": row.file} if len(self.paths) > 1 else {}
                    said = {"line": row.line, "error": row.error, "record": row.record}
                    file.write(json.dumps({**at, **said}, ensure_ascii=False) + "\n")
                file.flush()
                os.replace(file.name, path)  # noqa: PTH105 - in milliseconds
            except BaseException:
                os.unlink(file.name)  # noqa: PTH108
                raise


def _identity(path: Path) -> Hashable:
    """Return what tells one file from another, whatever it is called."""
    try:
        known = path.stat()
    except OSError:  # there is none yet
        return path.resolve()
    return known.st_dev, known.st_ino


def _parts(tally: Mapping[str, int]) -> dict[str, int]:
    """Return the parts of the books, and their sum."""
    names = {DUPLICATE: "duplicates"}
    states = (ACCEPTED, DUPLICATE, INVALID, REJECTED, UNKNOWN, PENDING)
    parts = {names.get(state, state): tally.get(state, 0) for state in states}
    return {"rows": sum(parts.values()), **parts}
