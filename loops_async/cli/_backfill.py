"""``loops-async backfill``: send the events of files, each once."""

import asyncio
import json
import math
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.table import Table

from loops_async import (
    AsyncLoopsClient,
    BackfillReport,
    ConfigurationError,
    InputOptions,
    LoopsError,
    Preview,
    Progress,
)
from loops_async._backfill.backfill import Backfill
from loops_async._backfill.preview import Changes, refuse_to_repeat
from loops_async._http.protocol import ends_run

from . import _pairs, _rendering
from ._exit_codes import CONFIGURATION, FAILED, INTERRUPTED, UNKNOWN
from ._options import client_options, finite
from ._progress import STOPPING, Intervals, ProgressDisplay, delay_reason, duration
from ._run import exit_with, run, stop_on_signals

_STDIN: Final = "-"
_NO_TERMINAL: Final = (
    "stdin is not a terminal, so no confirmation is possible: preview with "
    "--dry-run, then pass --yes"
)
_MAX_NAMES: Final = 20  # event names in the preview


@click.command("backfill", short_help="Send the events of CSV or JSON Lines files.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--event-name", metavar="NAME", help="Event name of rows that have none.")
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="FIELD=COLUMN",
    callback=_pairs.texts,
    help="Column from which to read a field, such as email=E-Mail or "
    "amount='Total due'; repeatable.",
)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="FIELD=TYPE",
    callback=_pairs.texts,
    help="Type of a field that is not a string: number, boolean or date; repeatable.",
)
@click.option(
    "--ignore", multiple=True, metavar="COLUMN", help="Column to skip; repeatable."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "jsonl"]),
    help="Format of the files; if omitted, their names determine it.",
)
@click.option("--yes", is_flag=True, help="Send without confirmation.")
@click.option("--dry-run", is_flag=True, help="Check every row; send nothing.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=8.0,
    show_default=True,
    metavar="N",
    callback=finite,
    help="Events per second. Loops permits 10 to a team; leave some to live traffic.",
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the progress of the run, from which a later run continues.  "
    "[default: FILE.journal.db]",
)
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for invalid and rejected rows.  [default: FILE.rejects.jsonl]",
)
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    metavar="N",
    help="Stop if more than N rows are invalid or rejected.",
)
@click.option(
    "--resend-unknown",
    is_flag=True,
    help="Send rows with an unknown outcome again; after 24 hours Loops may accept "
    "them twice.",
)
@client_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *,
    files: tuple[str, ...],
    event_name: str | None,
    mapping: dict[str, str],
    types: dict[str, str],
    ignore: tuple[str, ...],
    file_format: str | None,
    yes: bool,
    dry_run: bool,
    rate: float,
    api_key: str | None,
    base_url: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Send the event of each row of the FILEs once, at a steady rate.

    Files are CSV or JSON Lines, plain or .gz; - is standard input. Columns
    are named email, user_id, event_name, idempotency_key,
    event_properties.NAME, contact_properties.NAME or mailing_lists.ID, or the
    same in camelCase.

    The command checks all rows before it sends the first. After Ctrl-C or a
    crash, run the same command again to continue. Old events start workflows
    in Loops just as new ones do.

    \b
    loops-async backfill signups.csv --event-name signup --type amount=number

    \b
    Exit codes:
      0    all accepted, now or before
      1    some rows are invalid or rejected: see the rejects file
      2    wrong usage
      3    a file or setting cannot be used, or Loops rejected the API key
      4    some rows are pending (run the command again) or unknown
      130  interrupted, or not confirmed
    """  # noqa: D301 - click reads \b
    needs_confirmation = not yes and not dry_run
    cannot_confirm = _STDIN in files or not _is_terminal()
    journal = options["journal"] or Path(f"{files[0]}.journal.db")
    if needs_confirmation and cannot_confirm and not journal.exists():
        raise click.UsageError(_NO_TERMINAL)
    if _STDIN in files and not dry_run and options["journal"] is None:
        msg = "standard input needs --journal FILE, so that a later run can continue"
        raise click.UsageError(msg)
    if files[0] == _STDIN and not dry_run:  # no input file names the rejects
        options["rejects"] = options["rejects"] or f"{options['journal']}.rejects.jsonl"
    try:
        client = AsyncLoopsClient(
            api_key, base_url=base_url, rate_limit=rate, dry_run=dry_run
        )
        input_options = InputOptions(
            event_name=event_name,
            mapping=mapping,
            types=types,
            format=file_format,
            ignore=ignore,
        )
        with _spooled(files, file_format or "jsonl") as paths:
            job = Backfill(paths, client, input_options=input_options, **options)
            if dry_run:
                _report_check(asyncio.run(job.check()), rate, as_json=as_json)
            report = run(
                _send(job, client, rate, needs_confirmation=needs_confirmation),
                as_json=as_json,
            )
        _report(report, stopping=job.stopping, as_json=as_json)
    except LoopsError as error:
        exit_with(error, as_json=as_json)


def _is_terminal() -> bool:
    """Return whether stdin is a terminal; a process may have no stdin."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextmanager
def _spooled(files: tuple[str, ...], file_format: str) -> Iterator[list[Path]]:
    """Copy standard input to a temporary file, because a backfill reads it twice.

    Args:
        files: The inputs, one of which may be "-".
        file_format: The format of standard input.
    """
    if _STDIN not in files:
        yield [Path(file) for file in files]
        return
    if sys.stdin is None:
        raise ConfigurationError("cannot read standard input: it is closed")
    with ExitStack() as stack:
        try:
            temporary = tempfile.TemporaryDirectory(prefix="loops-async-")
            spool = Path(stack.enter_context(temporary)) / f"stdin.{file_format}"
            with spool.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            msg = f"cannot copy standard input to a temporary file: {error.strerror}"
            raise ConfigurationError(msg) from None
        yield [spool if file == _STDIN else Path(file) for file in files]


async def _send(
    job: Backfill, client: AsyncLoopsClient, rate: float, *, needs_confirmation: bool
) -> BackfillReport:
    """Run the backfill; the first signal lets the requests in flight finish."""
    console = _rendering.console(stderr=True)
    display = ProgressDisplay(
        console,
        rate,
        status=lambda: STOPPING if job.stopping else delay_reason(client.stats),
        intervals=Intervals.current(),
    )
    confirmation = _Confirmation(console, display, rate, required=needs_confirmation)
    listening = False

    def progressed(progress: Progress) -> None:
        nonlocal listening
        if not listening:  # before the first send, Ctrl-C ends the command at once
            listening = True
            stop_on_signals(job.stop)
        failed = progress.invalid + progress.rejected
        display.update(progress.rows - progress.pending, progress.rows, failed)

    job.confirm = confirmation.confirm
    job.on_progress = progressed
    job.on_read = lambda rows: display.update(rows, 0)
    async with client, display:
        return await job.run()


@attrs.frozen
class _Confirmation:
    """Shows the preview and asks the user to confirm it.

    Attributes:
        console: Receives the preview.
        display: The progress so far, cleared for the question.
        rate: Events per second.
        required: Whether the user has to confirm.
    """

    console: Console
    display: ProgressDisplay
    rate: float
    required: bool

    def confirm(self, preview: Preview) -> bool:
        """Return True, or end the command."""
        self.display.clear()
        _print_preview(preview, self.console, self.rate)
        if not self.required:
            refuse_to_repeat(preview.changes)
        elif not _is_terminal():
            raise click.UsageError(_NO_TERMINAL)
        elif not _ask(f"Send {_rendering.count(preview.to_send, 'event')} to Loops?"):
            self.display.end()
            more = " more" if _has_sent(preview) else ""
            click.echo(f"nothing{more} was sent", err=True)
            click.get_current_context().exit(INTERRUPTED)
        return True


def _has_sent(preview: Preview) -> bool:
    """Return whether an earlier run of the same journal has sent a row."""
    removed = preview.changes is not None and preview.changes.sent_before > 0
    return removed or preview.to_send < preview.rows - preview.invalid


def _ask(question: str) -> bool:
    # The handler of asyncio.run would take effect only after the user's reply.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _print_preview(preview: Preview, console: Console, rate: float) -> None:
    style = _rendering.WARNING
    for problem in preview.problems:
        console.print(_rendering.printable(problem), style=style, soft_wrap=True)
    if preview.invalid > len(preview.problems):
        others = preview.invalid - len(preview.problems)
        more = _rendering.count(others, "more invalid row")
        console.print(f"and {more}", style=style)
    if preview.changes is not None:
        _print_changes(preview.changes, console)
    console.print(_event_table(preview))
    facts = [_rendering.count(preview.rows, "row")]
    if preview.invalid:
        facts.append(f"{preview.invalid:,} invalid")
    facts.append(_rendering.count(preview.contacts, "contact"))
    console.print(", ".join(facts))
    assert preview.seconds is not None
    events = _rendering.count(preview.to_send, "event")
    time = f"about {duration(math.ceil(preview.seconds))} at {rate:g} a second"
    console.print(f"{events} to send, {time}")
    if preview.sample is not None:
        console.print("the first valid row:", style="dim")
        sample = json.dumps(preview.sample, ensure_ascii=False)
        console.print(_rendering.printable(sample), soft_wrap=True)
    note = "Old events start workflows in Loops just as new ones do."
    console.print(note, style="dim")


def _event_table(preview: Preview) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    for name, number in list(preview.events.items())[:_MAX_NAMES]:
        table.add_row(f"{number:,}", _rendering.printable(name))
    if len(preview.events) > _MAX_NAMES:
        others = _rendering.count(len(preview.events) - _MAX_NAMES, "other event name")
        table.add_row("", f"and {others}")
    return table


def _print_changes(changes: Changes, console: Console) -> None:
    head = "The input, or an option, has changed since this run began:"
    console.print(head, style=_rendering.WARNING)
    lines = ", ".join(changes.first_new)
    if changes.new > len(changes.first_new):
        lines += ", ..."
    new = _rendering.count(changes.new, "row")
    lines = _rendering.printable(lines)
    console.print(f"  new or corrected: {new} ({lines})", soft_wrap=True)
    if changes.dropped:
        dropped = _rendering.count(changes.dropped, "row")
        console.print(f"  removed before sending: {dropped} (will not be sent)")
    if changes.sent_before:
        sent = _rendering.count(changes.sent_before, "row")
        console.print(f"  removed after sending: {sent}")
    console.print("To send the whole input as a new run, pass another --journal.")


def _report_check(preview: Preview, rate: float, *, as_json: bool) -> None:
    # A client in a dry run has no limiter, so its preview contains no duration.
    preview = attrs.evolve(preview, seconds=preview.to_send / rate)
    if as_json:
        click.echo(json.dumps(attrs.asdict(preview)))
    else:
        _print_preview(preview, _rendering.console(stderr=True), rate)
        click.echo("nothing was sent")
    click.get_current_context().exit(FAILED if preview.invalid else 0)


def _report(report: BackfillReport, *, stopping: bool, as_json: bool) -> None:
    if as_json:
        record = attrs.asdict(report, recurse=False)
        click.echo(json.dumps(record, default=str))
    else:
        _print_report(report)
    click.get_current_context().exit(_exit_code(report, stopping=stopping))


def _exit_code(report: BackfillReport, *, stopping: bool) -> int:
    if stopping and report.pending:
        return INTERRUPTED
    if report.stopped_by is not None and ends_run(report.stopped_by):
        return CONFIGURATION
    if report.unknown or report.pending:
        return UNKNOWN
    return FAILED if report.invalid or report.rejected else 0


def _print_report(report: BackfillReport) -> None:
    out = _rendering.console()
    out.print(_rendering.printable(str(report)), soft_wrap=True)
    if report.rejects is not None:
        rejects = _rendering.printable(str(report.rejects))
        out.print(f"rows not accepted, with reasons: {rejects}", soft_wrap=True)
    if report.unknown:
        out.print(
            f"{report.unknown:,} unknown: Loops may have accepted them; "
            "--resend-unknown sends them again",
            soft_wrap=True,
        )
    if report.pending:
        out.print("run the same command again to continue", soft_wrap=True)
