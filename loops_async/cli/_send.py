"""``loops-async send``: send one event."""

import asyncio
import os
from typing import Any

import attrs
import click
from rich.console import Console
from rich.text import Text

from loops_async import AsyncLoopsClient, Attempt, Event, LoopsError

from . import _pairs, _rendering
from ._advice import advice_for
from ._exit_codes import SendInterruptedError, exit_code
from ._options import client_options
from ._send_result import SendResult


@attrs.frozen(kw_only=True)
class _Settings:
    """Settings of the client; None leaves a setting to the environment."""

    api_key: str | None = attrs.field(repr=False)
    base_url: str | None
    timeout: float
    deadline: float
    dry_run: bool


@click.command("send", short_help="Send one event.")
@click.argument("event_name", metavar="EVENT")
@click.option("--email", metavar="EMAIL", help="The contact's email address.")
@click.option("--user-id", metavar="ID", help="The contact's user ID.")
@click.option(
    "--prop",
    "event_properties",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs.scalars,
    help="Event property; repeatable.",
)
@click.option(
    "--contact",
    "contact_properties",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs.scalars,
    help="Property to set on the contact; NAME:=null clears it. Repeatable.",
)
@click.option(
    "--list",
    "mailing_lists",
    multiple=True,
    metavar="ID=true|false",
    callback=_pairs.memberships,
    help="Mailing list to subscribe to or to unsubscribe from; repeatable.",
)
@click.option(
    "--key",
    "idempotency_key",
    metavar="KEY",
    help="Idempotency key; a random one if omitted.",
)
@client_options
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Limit for one attempt; inf means no limit.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Limit for all attempts and pauses together; inf means no limit.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the event and show the request; needs no API key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *,
    api_key: str | None,
    base_url: str | None,
    timeout: float,
    deadline: float,
    dry_run: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Send EVENT for one contact, and wait until Loops accepts it.

    NAME=VALUE is a string; NAME:=JSON is a number, true, false, null or a
    quoted string. Failed attempts are retried under the same idempotency key,
    so Loops accepts the event once.

    \b
    loops-async send planUpgraded --email ada@example.com \\
        --prop plan=Pro --prop amount:=42 --contact firstName=Ada

    \b
    Exit codes:
      0    accepted, now or before
      1    rejected or invalid
      2    wrong usage
      3    a setting is invalid, or Loops rejected the API key
      4    unknown or not accepted yet: send it again with the same key
      130  interrupted
    """  # noqa: D301 - click reads \b
    settings = _Settings(
        api_key=api_key,
        base_url=base_url,
        timeout=timeout,
        deadline=deadline,
        dry_run=dry_run,
    )
    _check_is_not_api_key(fields["idempotency_key"], settings)
    attempts = _AttemptLog(_rendering.console(stderr=True))
    event: Event | None = None
    try:
        event = Event(**fields)
        result = asyncio.run(_send(event, settings, attempts))
    except LoopsError as error:
        _report_error(error, event, dry_run=dry_run, as_json=as_json)
    except KeyboardInterrupt:
        text = "the command was interrupted before the response arrived"
        interrupted = SendInterruptedError(text, retryable=True, maybe_accepted=True)
        interrupted.attempts = attempts.finished
        click.echo(err=True)  # continue below the ^C
        _report_error(interrupted, event, dry_run=dry_run, as_json=as_json)
    else:
        click.echo(result.to_json()) if as_json else _print_result(result, event)


def _check_is_not_api_key(key: str | None, settings: _Settings) -> None:
    """Reject an API key passed as --key, because the idempotency key is displayed."""
    api_key = settings.api_key or os.environ.get("LOOPS_API_KEY")
    if key is not None and api_key is not None and key.strip() == api_key.strip():
        msg = "--key takes the idempotency key of the event, not the API key"
        raise click.UsageError(msg)


@attrs.define
class _AttemptLog:
    """Prints the failed attempts if the console is a terminal.

    Attributes:
        console: Receives the lines.
        finished: Number of attempts that have ended.
    """

    console: Console
    finished: int = 0

    def record(self, attempt: Attempt) -> None:
        self.finished = attempt.number
        if attempt.error is None or attempt.retry_in is None:
            return
        if self.console.is_terminal:
            status = "" if attempt.status is None else f" ({attempt.status})"
            headline = advice_for(attempt.error).headline
            line = f"attempt {attempt.number}: {headline}{status}"
            line += f"; attempt {attempt.number + 1} in {attempt.retry_in:.1f} s"
            self.console.print(line, style="dim")


async def _send(event: Event, settings: _Settings, attempts: _AttemptLog) -> SendResult:
    async with AsyncLoopsClient(
        settings.api_key,
        base_url=settings.base_url,
        timeout=settings.timeout,
        deadline=settings.deadline,
        dry_run=settings.dry_run,
        on_attempt=attempts.record,
    ) as client:
        receipt = await client.send_event(event)
        body = client.converter.unstructure(event) if settings.dry_run else None
    return SendResult.from_receipt(receipt, body)


def _report_error(
    error: LoopsError, event: Event | None, *, dry_run: bool, as_json: bool
) -> None:
    code = exit_code(error)
    result = SendResult.from_error(error, event, dry_run=dry_run)
    if as_json:
        click.echo(result.to_json())
    else:
        panel = _rendering.error_panel(error, result.idempotency_key, code)
        _rendering.console(stderr=True).print(panel)
    click.get_current_context().exit(code)


def _print_result(result: SendResult, event: Event) -> None:
    out = _rendering.console()
    contact = event.email if event.email is not None else event.user_id
    subject = f"{event.event_name} for {contact}"
    if result.body is not None:
        out.print(f"{subject} is valid; nothing was sent", style=_rendering.GOOD)
        out.print("POST /v1/events/send", style="bold")
        out.print(f"Idempotency-Key: {result.idempotency_key}", soft_wrap=True)
        for line in _rendering.body_lines(result.body):
            out.print(line, soft_wrap=True)
        return
    outcome = "already accepted" if result.duplicate else "accepted"
    line = Text.assemble((f"✓ {outcome}", _rendering.GOOD), f"  {subject}")
    out.print(line, soft_wrap=True)
    details = _rendering.delivery(
        result.attempts, result.elapsed or 0.0, result.rate_limit
    )
    out.print(f"  {details}", style="dim", soft_wrap=True)
    out.print(f"  key {result.idempotency_key}", style="dim", soft_wrap=True)
