"""``loops-async sandbox``: a local server that behaves like Loops."""

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

from . import _pairs, _rendering
from ._exit_codes import CONFIGURATION

_LOG_INTERVAL: Final = 0.05  # seconds


def _latency(
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
        f"  {name:<15} {effect}" for name, effect in FAULTS.items()
    )


@click.command(
    "sandbox",
    short_help="Run a local server that behaves like Loops.",
    epilog=_faults_help(),
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="HOST",
    help="Interface to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4010,
    show_default=True,
    metavar="PORT",
    help="Port to listen on; 0 picks a free one.",
)
@click.option(
    "--key",
    "api_key",
    default="sandbox-key",
    show_default=True,
    metavar="KEY",
    help="API key that the sandbox accepts; not a secret.",
)
@click.option(
    "--rate",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="Requests per period; 0 means no limit.",
)
@click.option(
    "--period",
    type=float,
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Length of the rate window.",
)
@click.option(
    "--window",
    type=click.Choice(["sliding", "fixed", "bucket"]),
    metavar="KIND",
    default="sliding",
    show_default=True,
    help="Kind of the rate window: sliding, fixed or bucket.",
)
@click.option(
    "--latency",
    default="0",
    show_default=True,
    metavar="LOW[-HIGH]",
    callback=_latency,
    help="Seconds for a round trip.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="FAULT=PROBABILITY",
    callback=_pairs.probabilities,
    help="Fault to cause at random, such as 503=0.1; repeatable.",
)
@click.option(
    "--seed",
    metavar="SEED",
    help="Seed that makes faults and latencies the same in every run.",
)
@click.option(
    "--list",
    "lists",
    multiple=True,
    metavar="ID",
    help="Mailing list of the team; replaces the default list. Repeatable.",
)
@click.option("--quiet", is_flag=True, help="Do not print a line for each request.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the address and the key as one line of JSON, and the summary as "
    "another.",
)
def command(
    *,
    rate: int,
    lists: Sequence[str],
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run a local server that behaves like Loops, until Ctrl-C or SIGTERM.

    It keeps contacts, mailing lists, rate windows and idempotency keys as
    Loops does, and sends no email. The address, the key and a summary go to
    standard output, and a line for each request to standard error.
    """
    if lists:
        settings["lists"] = lists
    try:
        sandbox = Sandbox(rate_limit=rate or None, **settings)
    except ValueError as invalid:
        raise click.UsageError(str(invalid)) from None
    log = RequestLog(sandbox, None if quiet else _rendering.console(stderr=True))
    asyncio.run(_serve(sandbox, log, as_json=as_json))
    _print_summary(sandbox, as_json=as_json)


async def _serve(sandbox: Sandbox, log: "RequestLog", *, as_json: bool) -> None:
    stop = asyncio.Event()
    with _stop_on_signals(stop):
        async with _listening(sandbox):
            _print_address(sandbox, as_json=as_json)
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOG_INTERVAL)
                log.print_new()


@asynccontextmanager
async def _listening(sandbox: Sandbox) -> AsyncIterator[None]:
    try:
        await sandbox.start()
    except OSError as error:
        click.echo(
            f"Error: cannot listen on {sandbox.host} port {sandbox.port}: "
            f"{error.strerror}. Choose another --port; 0 picks a free one.",
            err=True,
        )
        click.get_current_context().exit(CONFIGURATION)
    try:
        yield
    finally:
        await sandbox.aclose()


@contextmanager
def _stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    # Event loops on Windows have no add_signal_handler.
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


def _print_address(sandbox: Sandbox, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"url": sandbox.url, "api_key": sandbox.api_key}))
        return
    out = _rendering.console()
    limit = "no rate limit"
    if sandbox.rate_limit is not None:
        requests = _rendering.count(sandbox.rate_limit, "request")
        limit = f"{requests} per {sandbox.period:g} s ({sandbox.window} window)"
    line = Text.assemble(("Loops sandbox", "bold"), f" at {sandbox.url}")
    out.print(line, soft_wrap=True)
    facts = [f"API key {sandbox.api_key}", limit]
    facts += [f"fault {name} {chance:.0%}" for name, chance in sandbox.faults.items()]
    out.print(", ".join(facts), style="dim", soft_wrap=True)
    exports = f"export LOOPS_BASE_URL={sandbox.url}"
    exports += f" LOOPS_API_KEY={shlex.quote(sandbox.api_key)}"
    out.print(f"\n{exports}\n", soft_wrap=True)
    out.print("Press Ctrl-C to stop.", style="dim")


@attrs.define
class RequestLog:
    """Prints the requests that a sandbox received.

    Attributes:
        sandbox: The sandbox.
        console: Receives the lines; None prints nothing.
    """

    sandbox: Sandbox
    console: Console | None
    _printed: int = attrs.field(init=False, default=0)

    def print_new(self) -> None:
        """Print the requests since the last call; after a reset, all of them."""
        total = self.sandbox.counts.requests
        new = total - self._printed if total >= self._printed else total
        self._printed = total
        if self.console is None or not new:
            return
        wall, now = datetime.now().astimezone(), self.sandbox.now
        for request in self.sandbox.requests[-new:]:
            at = wall - timedelta(seconds=now - request.at)
            self.console.print(request_line(request, at), soft_wrap=True)


def request_line(request: SandboxRequest, at: datetime) -> Text:
    """Return one line about a request.

    Args:
        request: The request, as the sandbox recorded it.
        at: Time of its arrival.
    """
    status = "none" if request.status is None else str(request.status)
    line = Text.assemble(
        (f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}  ", "dim"),
        (f"{status:<4}", _rendering.status_style(request.status)),
        f"  {request.method} {_rendering.printable(request.path)}",
    )
    for text in _event_and_contact(request.body):
        line.append(f"  {_rendering.printable(text)}", style="bold")
    if request.fault is not None:
        line.append(f"  fault {request.fault}", style=_rendering.WARNING)
    return line


def _event_and_contact(body: bytes) -> list[str]:
    """Return the event's name and the contact if the body contains them."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(fields, dict):
        return []
    found = [fields.get("eventName"), fields.get("email") or fields.get("userId")]
    return [text for text in found if isinstance(text, str)]


def _print_summary(sandbox: Sandbox, *, as_json: bool) -> None:
    counts = sandbox.counts
    if as_json:
        contacts = len(sandbox.contacts)
        click.echo(json.dumps({**attrs.asdict(counts), "contacts": contacts}))
        return
    facts = [
        f"{_rendering.count(counts.accepted, 'event')} accepted",
        _rendering.count(counts.duplicates, "duplicate"),
        f"{counts.limited:,} over the limit",
        f"{counts.unanswered:,} without a response",
        _rendering.count(len(sandbox.contacts), "contact"),
    ]
    requests = _rendering.count(counts.requests, "request")
    _rendering.console().print(f"\n{requests}: {', '.join(facts)}", soft_wrap=True)
