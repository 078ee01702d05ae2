"""``loops-async outbox``: what an outbox holds, while nobody else has it open."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import attrs
import click
from rich.table import Table

from loops_async import AsyncLoopsClient, Failure, LoopsError, OutboxStats
from loops_async._journal.journal import (
    ACCEPTED,
    DUPLICATE,
    PENDING,
    REJECTED,
    UNKNOWN,
    Journal,
    Row,
)
from loops_async._journal.sender import JournalSender
from loops_async._sending.bulk import LOOK_AHEAD

from . import _ending, _result, _show
from ._options import client_options, finite
from ._progress import STOPPING, Bar, duration, how_it_stands

_T = TypeVar("_T")
_PAGE: Final = 200

_path = click.argument(
    "path", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")


@click.group("outbox", short_help="Look after the file of an outbox.")
def command() -> None:
    """See what an outbox holds, and decide about what failed.

    A file has one owner, so the application that uses it has to be stopped.
    """


@command.command(short_help="How many events it holds.")
@_path
@_as_json
def status(path: Path, *, as_json: bool) -> None:
    """Tell how many events PATH holds, and how long the first has waited."""

    async def look(journal: Journal) -> tuple[dict[str, int], float | None]:
        return await journal.counts(), await journal.oldest()

    counts, oldest = _with(path, look, as_json=as_json)
    waited = None if oldest is None else max(0.0, time.time() - oldest)
    states = {state: counts.pop(state, 0) for state in (PENDING, REJECTED, UNKNOWN)}
    found = {**states, **counts}
    if as_json:
        click.echo(json.dumps({**found, "oldest_seconds": waited}))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for state, number in found.items():
        note = ""
        if state == PENDING and waited is not None:
            note = f"the first for {duration(waited)}"
        table.add_row(f"{number:,}", state, note)
    _show.console().print(table)


@command.command(short_help="What Loops refused, or nobody knows.")
@_path
@_as_json
def failures(path: Path, *, as_json: bool) -> None:
    """List the events that Loops refused, or of which nobody knows.

    With --json one object a line, with the body that was sent.
    """

    async def look(journal: Journal) -> None:
        after = 0
        while page := await journal.failures(after, _PAGE):
            for failure in page:
                _show_failure(failure, as_json=as_json)
            after = page[-1].id

    _with(path, look, as_json=as_json)


def _show_failure(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(attrs.asdict(failure)))
        return
    body = failure.body
    whom = body.get("email", body.get("userId"))
    out = _show.console()
    head = f"{failure.state}  {body.get('eventName')} for {whom}"
    style = _show.BAD if failure.state == REJECTED else _show.ODD
    out.print(_show.printable(head), style=style, soft_wrap=True)
    out.print(f"  {_show.printable(failure.error)}", soft_wrap=True)
    key = _show.printable(failure.idempotency_key)
    out.print(f"  key {key}", style="dim", soft_wrap=True)


@command.command(short_help="Let failures be sent again.")
@_path
@click.argument("keys", metavar="[KEY...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that were rejected.")
def retry(path: Path, *, keys: tuple[str, ...], every: bool) -> None:
    """Let the failures with these keys be sent again, by whoever opens PATH next.

    What was rejected gets a new key. What is unknown keeps its key, by which
    Loops knows it for a day; later it may take the event twice.
    """
    _check_choice(keys, every=every)

    async def do(journal: Journal) -> int:
        return await journal.requeue(keys or None)

    _told(_with(path, do), len(keys), "pending again")


@command.command(short_help="Remove failures.")
@_path
@click.argument("keys", metavar="[KEY...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that were rejected.")
def forget(path: Path, *, keys: tuple[str, ...], every: bool) -> None:
    """Remove the failures with these keys; they cannot be brought back."""
    _check_choice(keys, every=every)

    async def do(journal: Journal) -> int:
        return await journal.forget(keys or None)

    _told(_with(path, do), len(keys), "removed")


def _check_choice(keys: tuple[str, ...], *, every: bool) -> None:
    if bool(keys) == every:
        raise click.UsageError("give the keys, or --all")


def _told(done: int, asked: int, what: str) -> None:
    click.echo(f"{_show.count(done, 'event')} {what}")
    if done < asked:
        click.echo(f"{asked - done:,} not found among the failures", err=True)
        click.get_current_context().exit(_result.REFUSED)


@command.command(short_help="Send what is pending, and leave.")
@_path
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    callback=finite,
    help="Events a second.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    callback=finite,
    help="Give up after that long.",
)
@client_options
@_as_json
def drain(
    path: Path,
    *,
    rate: float | None,
    timeout: float | None,
    api_key: str | None,
    base_url: str | None,
    as_json: bool,
) -> None:
    """Send what is pending in PATH, until nothing is.

    Ctrl-C, or the end of the time, lets what is under way end; the rest stays
    in the file. A second Ctrl-C ends it at once.

    \b
    Exit codes:
      0    nothing is left
      1    some were rejected
      2    wrong usage
      3    the file, a setting or the API key cannot be used
      4    some are unknown or still pending
      130  interrupted
    """  # noqa: D301 - click reads \b
    try:
        client = AsyncLoopsClient(api_key, base_url=base_url, rate_limit=rate)
    except LoopsError as error:
        _ending.fail(error, as_json=as_json)
    job = _Draining(path, client)
    stats = _ending.run(job.run(timeout), as_json=as_json)
    _end(stats, interrupted=job.interrupted, as_json=as_json)


class _Draining:
    """Sends what is pending until nothing is, or it has to stop."""

    def __init__(self, path: Path, client: AsyncLoopsClient) -> None:
        self._path = path
        self._client = client
        self.interrupted = False
        self._stopping = False

    async def run(self, timeout: float | None) -> OutboxStats:
        client = self._client
        limit = client.stats.limit or 1
        bar = Bar(_show.console(stderr=True), limit / (client.stats.period or 1))
        bar.note = lambda: STOPPING if self._stopping else how_it_stands(client.stats)
        ends: Counter[str] = Counter()

        async with client, Journal(self._path) as journal, bar:
            total = (await journal.counts()).get(PENDING, 0)

            def ended(_: Row, state: str) -> None:
                ends[state] += 1
                bar.tell(ends.total(), total, ends[REJECTED])

            drain = JournalSender(
                journal, client, look_ahead=LOOK_AHEAD + total, keep=False, on_end=ended
            )
            bar.tell(0, total)
            _ending.on_signals(lambda: self._interrupt(drain))
            if timeout is not None:
                asyncio.get_running_loop().call_later(timeout, self._stop, drain)
            stopped_by = await drain.run(until_empty=True)
            counts = await journal.counts()
        return OutboxStats(
            pending=counts.get(PENDING, 0),
            retrying=0,
            rejected=counts.get(REJECTED, 0),
            unknown=counts.get(UNKNOWN, 0),
            accepted=ends[ACCEPTED],
            duplicates=ends[DUPLICATE],
            paused=None if self._stopping or stopped_by is None else str(stopped_by),
        )

    def _interrupt(self, drain: JournalSender) -> None:
        self.interrupted = True
        self._stop(drain)

    def _stop(self, drain: JournalSender) -> None:
        self._stopping = True
        drain.stop()


def _end(stats: OutboxStats, *, interrupted: bool, as_json: bool) -> None:
    sent = f"{stats.accepted + stats.duplicates:,} sent"
    books = (
        f"{sent}, {stats.rejected:,} rejected, {stats.unknown:,} unknown, "
        f"{stats.pending:,} left"
    )
    click.echo(json.dumps(attrs.asdict(stats)) if as_json else books)
    if stats.paused is not None:
        click.echo(f"stopped: {_show.printable(stats.paused)}", err=True)
    click.get_current_context().exit(_exit_code(stats, interrupted=interrupted))


def _exit_code(stats: OutboxStats, *, interrupted: bool) -> int:
    if interrupted and stats.pending:
        return _result.INTERRUPTED
    if stats.paused is not None:
        return _result.CONFIGURATION
    if stats.pending or stats.unknown:
        return _result.UNKNOWN
    return _result.REFUSED if stats.rejected else 0


def _with(
    path: Path, work: Callable[[Journal], Awaitable[_T]], *, as_json: bool = False
) -> _T:
    async def main() -> _T:
        async with Journal(path) as journal:
            return await work(journal)

    return _ending.run(main(), as_json=as_json)
