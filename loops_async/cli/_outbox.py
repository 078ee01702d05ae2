"""``loops-async outbox``: what an outbox holds, while nobody else has it open."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click
from rich.table import Table

from loops_async import AsyncLoopsClient, Failure, LoopsError, Outbox, OutboxStats
from loops_async._journal import PENDING, REJECTED, UNKNOWN, Journal

from . import _result, _show
from ._options import client_options
from ._progress import Bar, duration, how_it_stands

_T = TypeVar("_T")
_PAGE: Final = 200
_LOOK: Final = 0.2  # seconds between two looks

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

    counts, oldest = _with(path, look)
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

    _with(path, look)


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
    out.print(f"  key {failure.idempotency_key}", style="dim", soft_wrap=True)


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
        return await journal.again(keys or None, lambda: str(uuid.uuid4()))

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
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N")
@client_options
def drain(
    path: Path, *, rate: float | None, api_key: str | None, base_url: str | None
) -> None:
    """Send what is pending in PATH, until nothing is.

    \b
    Exit codes: 0 nothing is left, 1 some were rejected, 3 the file, a setting
    or the API key cannot be used, 4 some are unknown or still pending.
    """  # noqa: D301 - click reads \b

    async def main() -> OutboxStats:
        client = AsyncLoopsClient(api_key, base_url=base_url, rate_limit=rate)
        limit = client.stats.limit or 1
        async with client, Outbox(path, client) as outbox:
            total = outbox.stats().pending
            bar = Bar(_show.console(stderr=True), limit / (client.stats.period or 1))
            bar.note = lambda: outbox.stats().paused or how_it_stands(client.stats)
            async with bar:
                while (stats := outbox.stats()).pending and stats.paused is None:
                    bar.tell(total - stats.pending, total, stats.rejected)
                    await asyncio.sleep(_LOOK)
            await outbox.aclose(grace=0.0)  # what is paused does not end in time
            return stats

    _end(_run(main))


def _end(stats: OutboxStats) -> None:
    sent = f"{stats.accepted + stats.duplicates:,} sent"
    click.echo(
        f"{sent}, {stats.rejected:,} rejected, {stats.unknown:,} unknown, "
        f"{stats.pending:,} left"
    )
    if stats.paused is not None:
        click.echo(f"stopped: {stats.paused}", err=True)
    click.get_current_context().exit(_exit_code(stats))


def _exit_code(stats: OutboxStats) -> int:
    if stats.paused is not None:
        return _result.CONFIGURATION
    if stats.pending or stats.unknown:
        return _result.UNKNOWN
    return _result.REFUSED if stats.rejected else 0


def _with(path: Path, work: Callable[[Journal], Awaitable[_T]]) -> _T:
    async def main() -> _T:
        async with _opened(path) as journal:
            return await work(journal)

    return _run(main)


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[Journal]:
    journal = Journal(path)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


def _run(main: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    try:
        return asyncio.run(main())
    except LoopsError as error:
        code = _result.exit_code(error)
        _show.console(stderr=True).print(_show.error_panel(error, None, code))
        click.get_current_context().exit(code)
