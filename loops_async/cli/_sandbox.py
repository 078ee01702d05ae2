"""``loops-async sandbox``: a Loops of your own, until Ctrl-C."""

import asyncio
import json
import shlex
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.text import Text

from loops_async.sandbox import FAULTS, Sandbox, SandboxRequest

from . import _pairs, _show
from ._result import CONFIGURATION

_LOOK: Final = 0.05  # seconds between two looks at what arrived


def _span(
    _: click.Context, option: click.Parameter, text: str
) -> float | tuple[float, float]:
    low, dash, high = text.partition("-")
    try:
        return (float(low), float(high)) if dash else float(low)
    except ValueError:
        msg = f"{text!r} is not SECONDS or LOW-HIGH"
        raise click.BadParameter(msg, param=option) from None


def _faults_help() -> str:
    return "\b\nFaults:\n" + "\n".join(
        f"  {name:<15} {what}" for name, what in FAULTS.items()
    )


@click.command(
    "sandbox",
    short_help="Run a local Loops to try things on.",
    epilog=_faults_help(),
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4010,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--key",
    "api_key",
    default="sandbox-key",
    show_default=True,
    metavar="KEY",
    help="The API key it lets in; no secret.",
)
@click.option(
    "--rate",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Requests per period; 0 is no limit.",
)
@click.option("--period", type=float, default=1.0, show_default=True, metavar="SECONDS")
@click.option(
    "--window",
    type=click.Choice(["sliding", "fixed", "bucket"]),
    default="sliding",
    show_default=True,
    help="How it counts them.",
)
@click.option(
    "--latency",
    default="0",
    show_default=True,
    metavar="LOW[-HIGH]",
    callback=_span,
    help="Seconds of a round trip.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="FAULT=PROBABILITY",
    callback=_pairs.probabilities,
    help="Something that goes wrong, such as close-after=0.1.",
)
@click.option("--seed", help="Makes faults and latencies the same in every run.")
@click.option(
    "--list",
    "lists",
    multiple=True,
    metavar="ID",
    help="A mailing list it knows, instead of that of the Loops documentation.",
)
@click.option("--quiet", is_flag=True, help="No line per request.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Address and key as a line of JSON, and so the summary at the end.",
)
def command(
    *,
    rate: int,
    lists: Sequence[str],
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run a local Loops until Ctrl-C or SIGTERM.

    It keeps contacts, lists, rate windows and idempotency keys as the real
    one does, and sends no email. Address, key and the summary go to standard
    output, a line per request to standard error.
    """
    if lists:
        settings["lists"] = lists
    try:
        sandbox = Sandbox(rate_limit=rate or None, **settings)
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    log = _Log(sandbox, None if quiet else _show.console(stderr=True))
    asyncio.run(_serve(sandbox, log, as_json=as_json))
    _sum_up(sandbox, as_json=as_json)


async def _serve(sandbox: Sandbox, log: "_Log", *, as_json: bool) -> None:
    stop = asyncio.Event()
    with _stopped_by_signals(stop):
        async with _listening(sandbox):
            _announce(sandbox, as_json=as_json)
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK)
                log.look()


@asynccontextmanager
async def _listening(sandbox: Sandbox) -> AsyncIterator[None]:
    try:
        await sandbox.start()
    except OSError as taken:
        click.echo(
            f"Error: cannot listen on {sandbox.host} port {sandbox.port}: "
            f"{taken.strerror}. Try --port 0.",
            err=True,
        )
        click.get_current_context().exit(CONFIGURATION)
    try:
        yield
    finally:
        await sandbox.aclose()


@contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    # Not loop.add_signal_handler, which Windows lacks.
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [
        signal.signal(one, lambda *_: loop.call_soon_threadsafe(stop.set))
        for one in signals
    ]
    try:
        yield
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


def _announce(sandbox: Sandbox, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"url": sandbox.url, "api_key": sandbox.api_key}))
        return
    out = _show.console()
    limit = "no rate limit"
    if sandbox.rate_limit is not None:
        limit = f"{sandbox.rate_limit} requests per {sandbox.period:g} s"
        limit += f", {sandbox.window}"
    line = Text.assemble(("A Loops of your own", "bold"), f" at {sandbox.url}")
    out.print(line, soft_wrap=True)
    facts = [f"key {sandbox.api_key}", limit]
    facts += [f"{name} {chance:.0%}" for name, chance in sandbox.faults.items()]
    out.print("; ".join(facts), style="dim", soft_wrap=True)
    exports = f"export LOOPS_BASE_URL={sandbox.url}"
    exports += f" LOOPS_API_KEY={shlex.quote(sandbox.api_key)}"
    out.print(f"\n{exports}\n", soft_wrap=True)
    out.print("Ctrl-C ends it.", style="dim")


@attrs.define
class _Log:
    """Shows what arrived since it last looked; None shows nothing."""

    sandbox: Sandbox
    console: Console | None
    _seen: int = attrs.field(init=False, default=0)

    def look(self) -> None:
        """Show the requests that are new; after a reset all are."""
        total = self.sandbox.counts.requests
        new = total - self._seen if total >= self._seen else total
        self._seen = total
        if self.console is None or not new:
            return
        wall, now = datetime.now().astimezone(), self.sandbox.now
        for request in self.sandbox.requests[-new:]:
            at = wall - timedelta(seconds=now - request.at)
            self.console.print(_line(request, at), soft_wrap=True)


def _line(request: SandboxRequest, at: datetime) -> Text:
    answer = "none" if request.status is None else str(request.status)
    line = Text.assemble(
        (f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}  ", "dim"),
        (f"{answer:<4}", _show.status_style(request.status)),
        f"  {request.method} {_show.printable(request.path)}",
    )
    for told in _content(request.body):
        line.append(f"  {_show.printable(told)}", style="bold")
    if request.fault is not None:
        line.append(f"  fault {request.fault}", style=_show.ODD)
    return line


def _content(body: bytes) -> list[str]:
    """Return the event and the contact a body names, as far as it does."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(given, dict):
        return []
    told = [given.get("eventName"), given.get("email") or given.get("userId")]
    return [text for text in told if isinstance(text, str)]


def _sum_up(sandbox: Sandbox, *, as_json: bool) -> None:
    counts = sandbox.counts
    if as_json:
        contacts = len(sandbox.contacts)
        click.echo(json.dumps({**attrs.asdict(counts), "contacts": contacts}))
        return
    facts = [
        f"{_show.count(counts.accepted, 'event')} accepted",
        _show.count(counts.duplicates, "duplicate"),
        f"{counts.limited:,} over the limit",
        f"{counts.unanswered:,} without an answer",
        _show.count(len(sandbox.contacts), "contact"),
    ]
    said = f"{_show.count(counts.requests, 'request')}: {', '.join(facts)}"
    _show.console().print(f"\n{said}", soft_wrap=True)
