"""``loops-async backfill``: files of events, sent once each."""

import asyncio
import json
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
from loops_async._backfill.journal import Changes
from loops_async._backfill.preview import refuse_to_repeat
from loops_async._http.protocol import ends_run

from . import _ending, _show
from ._options import client_options, finite
from ._progress import STOPPING, Bar, duration, how_it_stands
from ._result import CONFIGURATION, INTERRUPTED, REFUSED, UNKNOWN

_STDIN: Final = "-"
_NOBODY: Final = "there is nobody to ask: check it with --dry-run, then say --yes"
_MOST_EVENTS: Final = 20  # shown by name


def _pairs(
    _: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    """Read NAME=VALUE, each name once."""
    found: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            msg = f"{pair!r} is not like {parameter.metavar}"
            raise click.BadParameter(msg)
        if name in found:
            msg = f"{name} is given twice"
            raise click.BadParameter(msg)
        found[name] = value
    return found


@click.command("backfill", short_help="Send the events of CSV or JSON Lines files.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--event-name", metavar="NAME", help="For rows that name none.")
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="FIELD=COLUMN",
    callback=_pairs,
    help="Which column a field is in: email=Email, amount='Total due'.",
)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="FIELD=TYPE",
    callback=_pairs,
    help="number, boolean or date; cells are strings unless told.",
)
@click.option(
    "--ignore", multiple=True, metavar="COLUMN", help="Leave this column out."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "jsonl"]),
    help="If the file's name does not tell.",
)
@click.option("--yes", is_flag=True, help="Send without asking.")
@click.option("--dry-run", is_flag=True, help="Check every row, and write nothing.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=8.0,
    show_default=True,
    metavar="N",
    callback=finite,
    help="Events a second; Loops allows a team 10, and live traffic needs some.",
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What makes it safe to run it again.  [default: FILE.journal.db]",
)
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where rows that are not accepted go.  [default: FILE.rejects.jsonl]",
)
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    metavar="N",
    help="Stop when more rows are invalid or rejected.",
)
@click.option(
    "--resend-unknown",
    is_flag=True,
    help="Send again what Loops may have or not; a day later it may be taken twice.",
)
@client_options
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
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
    """Send every event of each FILE, once, at a steady rate.

    CSV or JSON Lines, plain or .gz; - is standard input. Columns are named
    email, user_id, event_name, event_properties.NAME, contact_properties.NAME,
    mailing_lists.ID, idempotency_key, or in camelCase.

    Every row is checked before the first is sent. Ctrl-C, or a crash: run the
    same command again and it goes on where it was. Old events start
    workflows in Loops like new ones.

    \b
    loops-async backfill signups.csv --event-name signup --type amount=number

    \b
    Exit codes:
      0    all accepted, now or before
      1    some rows are invalid or were refused: see the rejects
      2    wrong usage
      3    a file or setting cannot be used, or the API key was refused
      4    some are unknown or still pending: run it again
      130  interrupted, or the answer was no
    """  # noqa: D301 - click reads \b
    asks = not yes and not dry_run
    nobody = _STDIN in files or not _somebody()
    journal = options["journal"] or Path(f"{files[0]}.journal.db")
    if asks and nobody and not journal.exists():
        raise click.UsageError(_NOBODY)
    if _STDIN in files and not dry_run and options["journal"] is None:
        raise click.UsageError("standard input needs --journal FILE, to go on from")
    if files[0] == _STDIN and not dry_run:  # there is no place beside it
        options["rejects"] = options["rejects"] or f"{options['journal']}.rejects.jsonl"
    console = _show.console(stderr=True)
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
            bar = Bar(console, rate)
            shown = _Shown(console, bar, rate, asks=asks)
            if dry_run:
                _end_check(asyncio.run(job.check()), shown, as_json=as_json)
            job.confirm = shown.confirm
            report = _ending.run(_sent(job, client, bar), as_json=as_json)
        _end(report, stopping=job.stopping, as_json=as_json)
    except LoopsError as error:
        _ending.fail(error, as_json=as_json)


def _somebody() -> bool:
    """Tell whether there is somebody to ask; Python may have no input at all."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextmanager
def _spooled(files: tuple[str, ...], file_format: str) -> Iterator[list[Path]]:
    """Give standard input a file of that format, as it is read more than once."""
    if _STDIN not in files:
        yield [Path(file) for file in files]
        return
    if sys.stdin is None:
        raise ConfigurationError("standard input is closed, so it cannot be read")
    with ExitStack() as stack:
        try:
            temporary = tempfile.TemporaryDirectory(prefix="loops-async-")
            spool = Path(stack.enter_context(temporary)) / f"stdin.{file_format}"
            with spool.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            msg = f"standard input cannot be kept in a file: {error.strerror}"
            raise ConfigurationError(msg) from None
        yield [spool if file == _STDIN else Path(file) for file in files]


async def _sent(job: Backfill, client: AsyncLoopsClient, bar: Bar) -> BackfillReport:
    """Run it; Ctrl-C lets what is under way end, a second one does not."""
    listening = False

    def tell(progress: Progress) -> None:
        nonlocal listening
        if not listening:  # until then Ctrl-C just ends it: nothing was sent
            listening = True
            _ending.on_signals(job.stop)
        failed = progress.invalid + progress.rejected
        bar.tell(progress.rows - progress.pending, progress.rows, failed)

    bar.note = lambda: STOPPING if job.stopping else how_it_stands(client.stats)
    job.on_progress = tell
    job.on_read = lambda rows: bar.tell(rows, 0)
    async with client, bar:
        return await job.run()


@attrs.frozen
class _Shown:
    """Shows what would be sent, and asks."""

    console: Console
    bar: Bar
    rate: float
    asks: bool

    def confirm(self, preview: Preview) -> bool:
        """Return True, or end the command."""
        self.bar.clear()
        _show_preview(preview, self.console, self.rate)
        many = _show.count(preview.to_send, "event")
        if not self.asks:
            refuse_to_repeat(preview.changes)
        elif not _somebody():
            raise click.UsageError(_NOBODY)
        elif not _asked(f"Send {many} to Loops now?"):
            more = " more" if _sent_before(preview) else ""
            click.echo(f"nothing{more} was sent", err=True)
            click.get_current_context().exit(INTERRUPTED)
        return True


def _sent_before(preview: Preview) -> bool:
    gone = preview.changes is not None and preview.changes.sent_before > 0
    return gone or preview.to_send < preview.rows - preview.invalid


def _asked(question: str) -> bool:
    # The handler of asyncio.run would note a Ctrl-C, and the question stand.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _show_preview(preview: Preview, console: Console, rate: float) -> None:
    for problem in preview.problems:
        console.print(_show.printable(problem), style=_show.ODD, soft_wrap=True)
    if preview.invalid > len(preview.problems):
        more = preview.invalid - len(preview.problems)
        console.print(f"and {more:,} more", style=_show.ODD)
    if preview.changes is not None:
        _show_changes(preview.changes, console)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    for name, number in list(preview.events.items())[:_MOST_EVENTS]:
        table.add_row(f"{number:,}", _show.printable(name))
    if len(preview.events) > _MOST_EVENTS:
        others = _show.count(len(preview.events) - _MOST_EVENTS, "other event")
        table.add_row("", f"and {others}")
    console.print(table)
    facts = [_show.count(preview.rows, "row")]
    if preview.invalid:
        facts.append(f"{preview.invalid:,} invalid")
    facts.append(_show.count(preview.contacts, "contact"))
    console.print(", ".join(facts))
    assert preview.seconds is not None
    takes = f"{duration(preview.seconds)} at {rate:g} a second"
    console.print(f"{preview.to_send:,} to send in {takes}")
    if preview.sample is not None:
        console.print("the first of them:", style="dim")
        sample = json.dumps(preview.sample, ensure_ascii=False)
        console.print(_show.printable(sample), soft_wrap=True)
    console.print("Events start workflows in Loops, old ones like new.", style="dim")


def _show_changes(changes: Changes, console: Console) -> None:
    what = "The input, or how it is read, is not what it was when this run began:"
    console.print(what, style=_show.ODD)
    where = ", ".join(changes.first_new) + (
        ", ..." if changes.new > len(changes.first_new) else ""
    )
    new = _show.count(changes.new, "row")
    console.print(f"  {new} new, or mended: {_show.printable(where)}", soft_wrap=True)
    if changes.dropped:
        gone = _show.count(changes.dropped, "row")
        console.print(f"  {gone} gone, and not sent; nor will they be")
    if changes.sent_before:
        sent = _show.count(changes.sent_before, "row")
        console.print(f"  {sent} gone, but sent before")
    console.print("To send all of it as a new run, give another --journal.")


def _end_check(preview: Preview, shown: _Shown, *, as_json: bool) -> None:
    # A dry run has no limiter, so it cannot know.
    preview = attrs.evolve(preview, seconds=preview.to_send / shown.rate)
    if as_json:
        click.echo(json.dumps(attrs.asdict(preview)))
    else:
        _show_preview(preview, shown.console, shown.rate)
        click.echo("nothing was sent")
    click.get_current_context().exit(REFUSED if preview.invalid else 0)


def _end(report: BackfillReport, *, stopping: bool, as_json: bool) -> None:
    if as_json:
        told = attrs.asdict(report, recurse=False)
        click.echo(json.dumps(told, default=str))
    else:
        _show_report(report)
    click.get_current_context().exit(_exit_code(report, stopping=stopping))


def _exit_code(report: BackfillReport, *, stopping: bool) -> int:
    if stopping and report.pending:
        return INTERRUPTED
    if report.stopped_by is not None and ends_run(report.stopped_by):
        return CONFIGURATION
    if report.unknown or report.pending:
        return UNKNOWN
    return REFUSED if report.invalid or report.rejected else 0


def _show_report(report: BackfillReport) -> None:
    out = _show.console()
    out.print(_show.printable(str(report)), soft_wrap=True)
    if report.rejects is not None:
        rejects = _show.printable(str(report.rejects))
        out.print(f"what was not accepted, and why: {rejects}", soft_wrap=True)
    if report.unknown:
        out.print(
            f"{report.unknown:,} unknown: Loops may have them or not; "
            "--resend-unknown sends them again",
            soft_wrap=True,
        )
    if report.pending:
        out.print("run the same command to go on", soft_wrap=True)
