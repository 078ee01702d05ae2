"""``loops-async outbox``: the file of an outbox that no program has open."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import attrs
import click
from rich.table import Table

from loops_async import AsyncLoopsClient, Failure, LoopsError, Outbox, OutboxStats
from loops_async._journal.journal import Journal
from loops_async._journal.records import PENDING, REJECTED, UNKNOWN

from . import _exit_codes, _rendering
from ._options import client_options, finite
from ._progress import STOPPING, Intervals, ProgressDisplay, delay_reason, duration
from ._run import exit_with, run, stop_on_signals

_T = TypeVar("_T")
_PAGE: Final = 200
_CHECK_INTERVAL: Final = 0.1  # seconds
_GRACE: Final = 60.0  # seconds; the client's timeout ends an attempt earlier

_path = click.argument(
    "path", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("outbox", short_help="Inspect an outbox file, and send its events.")
def command() -> None:
    """Inspect the file of an outbox, resolve its failures and send its events.

    Only one program at a time can use the file: stop the application first.
    """


@command.command(short_help="Count the events.")
@_path
@_as_json
def status(path: Path, *, as_json: bool) -> None:
    """Count the events in PATH, and show the age of the oldest pending one."""

    async def read(journal: Journal) -> tuple[dict[str, int], float | None]:
        return await journal.counts(), await journal.oldest()

    counts, oldest = _with_journal(path, read, as_json=as_json)
    age = None if oldest is None else max(0.0, time.time() - oldest)
    shown = {state: counts.pop(state, 0) for state in (PENDING, REJECTED, UNKNOWN)}
    shown |= counts
    if as_json:
        click.echo(json.dumps({**shown, "oldest_seconds": age}))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for state, number in shown.items():
        note = ""
        if state == PENDING and age is not None:
            note = f"oldest added {duration(age)} ago"
        table.add_row(f"{number:,}", state, note)
    _rendering.console().print(table)


@command.command(short_help="List rejected and unknown events.")
@_path
@_as_json
def failures(path: Path, *, as_json: bool) -> None:
    """List the events that Loops rejected, and those with an unknown outcome.

    With --json, each line is an object that includes the body of the event.
    """

    async def read(journal: Journal) -> None:
        after = 0
        while page := await journal.failures(after, _PAGE):
            for failure in page:
                _print_failure(failure, as_json=as_json)
            after = page[-1].id

    _with_journal(path, read, as_json=as_json)


def _print_failure(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(attrs.asdict(failure)))
        return
    body = failure.body
    contact = body.get("email", body.get("userId"))
    out = _rendering.console()
    head = f"{failure.state}  {body.get('eventName')} for {contact}"
    style = _rendering.BAD if failure.state == REJECTED else _rendering.WARNING
    out.print(_rendering.printable(head), style=style, soft_wrap=True)
    out.print(f"  {_rendering.printable(failure.error)}", soft_wrap=True)
    key = _rendering.printable(failure.idempotency_key)
    out.print(f"  key {key}", style="dim", soft_wrap=True)


@command.command(short_help="Make failures pending again.")
@_path
@click.argument("keys", metavar="[KEY...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Select all rejected events.")
def retry(path: Path, *, keys: tuple[str, ...], every: bool) -> None:
    """Make the failures with these KEYs pending again.

    The application sends them when it next opens PATH, or `drain` does. A
    rejected event gets a new key. An unknown event keeps its key, which Loops
    recognizes for 24 hours; later, Loops may accept the event twice.
    """
    _check_selection(keys, every=every)

    async def requeue(journal: Journal) -> int:
        return await journal.requeue(keys or None)

    _report_change(_with_journal(path, requeue), len(keys), "pending again")


@command.command(short_help="Delete failures.")
@_path
@click.argument("keys", metavar="[KEY...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Select all rejected events.")
def forget(path: Path, *, keys: tuple[str, ...], every: bool) -> None:
    """Delete the failures with these KEYs; this cannot be undone."""
    _check_selection(keys, every=every)

    async def delete(journal: Journal) -> int:
        return await journal.forget(keys or None)

    _report_change(_with_journal(path, delete), len(keys), "deleted")


def _check_selection(keys: tuple[str, ...], *, every: bool) -> None:
    if bool(keys) == every:
        raise click.UsageError("pass either the keys of failures or --all")


def _report_change(changed: int, requested: int, change: str) -> None:
    click.echo(f"{_rendering.count(changed, 'event')} {change}")
    if changed < requested:
        missing = _rendering.count(requested - changed, "key")
        click.echo(f"{missing} not found among the failures", err=True)
        click.get_current_context().exit(_exit_codes.FAILED)


@command.command(short_help="Send the pending events, and exit.")
@_path
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    callback=finite,
    help="Events per second; otherwise LOOPS_RATE_LIMIT, or 10.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    callback=finite,
    help="Stop after this time.",
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
    """Send the pending events in PATH, and exit.

    After Ctrl-C, or at the end of --timeout, the command waits for the
    requests in flight; all other events stay pending. A second Ctrl-C cuts
    the requests off.

    \b
    Exit codes:
      0    no event is left
      1    some events were rejected
      2    wrong usage
      3    the file, a setting or the API key cannot be used
      4    some events are unknown or still pending
      130  interrupted
    """  # noqa: D301 - click reads \b
    try:
        client = AsyncLoopsClient(api_key, base_url=base_url, rate_limit=rate)
    except LoopsError as error:
        exit_with(error, as_json=as_json)
    job = Drain(path, client, intervals=Intervals.current())
    stats = run(job.run(timeout), as_json=as_json)
    _report(stats, interrupted=job.interrupted, as_json=as_json)


class Drain:
    """Sends the pending events of an outbox until none is left or it has to stop.

    Args:
        path: The file of the outbox.
        client: Sends the events; closed at the end.
        intervals: Pauses between two displays of the progress.

    Attributes:
        interrupted: Whether a signal stopped the drain.
    """

    def __init__(
        self, path: Path, client: AsyncLoopsClient, *, intervals: Intervals
    ) -> None:
        self._path = path
        self._client = client
        self._intervals = intervals
        self._closing: asyncio.Task[None] | None = None
        self.interrupted = False

    @property
    def stopping(self) -> bool:
        """Whether a signal or the timeout is ending the drain."""
        return self._closing is not None

    async def run(self, timeout: float | None) -> OutboxStats:
        """Send; return the counts of the file and of the requests.

        Args:
            timeout: Seconds after which to stop; None means no limit.
        """
        async with self._client, Outbox(self._path, self._client) as outbox:
            try:
                stop_on_signals(self._interrupt)
                if timeout is not None:
                    asyncio.get_running_loop().call_later(timeout, self._stop)
                paused = await self._watch(outbox)
            finally:
                await outbox.aclose(grace=0.0)
        # The outbox has now recorded the outcome of each request.
        async with Journal(self._path) as journal:
            counts = await journal.counts()
        return OutboxStats(
            pending=counts.get(PENDING, 0),
            retrying=0,
            rejected=counts.get(REJECTED, 0),
            unknown=counts.get(UNKNOWN, 0),
            accepted=self._client.stats.accepted,
            duplicates=self._client.stats.duplicates,
            paused=paused,
        )

    async def _watch(self, outbox: Outbox) -> str | None:
        """Display the progress until the outbox is empty or paused.

        An outbox whose client is closed pauses when its requests have ended.

        Returns:
            The reason for the pause; None if the outbox is empty or the drain stops.
        """
        start = stats = outbox.stats()
        async with self._display() as display:
            while stats.pending and stats.paused is None:
                done = start.pending - stats.pending
                display.update(done, start.pending, stats.rejected - start.rejected)
                await outbox.flush(_CHECK_INTERVAL)
                stats = outbox.stats()
        if self._closing is None:
            return stats.paused
        await self._closing
        return None

    def _display(self) -> ProgressDisplay:
        stats = self._client.stats
        limit = None
        if stats.limit is not None and stats.period is not None:
            limit = stats.limit / stats.period
        console = _rendering.console(stderr=True)
        return ProgressDisplay(
            console, limit, status=self._status, intervals=self._intervals
        )

    def _status(self) -> str:
        return STOPPING if self.stopping else delay_reason(self._client.stats)

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop()

    def _stop(self) -> None:
        """Close the client, which only finishes its requests in flight."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._client.aclose(_GRACE))


def _report(stats: OutboxStats, *, interrupted: bool, as_json: bool) -> None:
    summary = (
        f"{stats.accepted + stats.duplicates:,} sent, {stats.rejected:,} rejected, "
        f"{stats.unknown:,} unknown, {stats.pending:,} pending"
    )
    click.echo(json.dumps(attrs.asdict(stats)) if as_json else summary)
    if stats.paused is not None:
        click.echo(f"stopped by: {_rendering.printable(stats.paused)}", err=True)
    code = _exit_code(stats, interrupted=interrupted)
    click.get_current_context().exit(code)


def _exit_code(stats: OutboxStats, *, interrupted: bool) -> int:
    if interrupted and stats.pending:
        return _exit_codes.INTERRUPTED
    if stats.paused is not None:
        return _exit_codes.CONFIGURATION
    if stats.pending or stats.unknown:
        return _exit_codes.UNKNOWN
    return _exit_codes.FAILED if stats.rejected else 0


def _with_journal(
    path: Path, work: Callable[[Journal], Awaitable[_T]], *, as_json: bool = False
) -> _T:
    async def main() -> _T:
        async with Journal(path) as journal:
            return await work(journal)

    return run(main(), as_json=as_json)
