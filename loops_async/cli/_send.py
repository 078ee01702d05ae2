"""``loops-async send``: one event."""

import asyncio
import os
from typing import Any

import attrs
import click
from rich.console import Console
from rich.text import Text

from loops_async import AsyncLoopsClient, Attempt, Event, LoopsError

from . import _pairs, _show
from ._options import client_options
from ._result import Result, SendInterruptedError, accepted, exit_code, failed
from ._words import words


@attrs.frozen(kw_only=True)
class _Settings:
    """What the client is told; None leaves a setting to the environment."""

    api_key: str | None = attrs.field(repr=False)
    base_url: str | None
    timeout: float
    deadline: float
    dry_run: bool


@click.command("send", short_help="Send one event.")
@click.argument("event_name", metavar="EVENT")
@click.option("--email", metavar="EMAIL", help="The contact's email.")
@click.option("--user-id", metavar="ID", help="The contact's user ID.")
@click.option(
    "--prop",
    "event_properties",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs.scalars,
    help="An event property.",
)
@click.option(
    "--contact",
    "contact_properties",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs.scalars,
    help="A property to set on the contact; NAME:=null resets it.",
)
@click.option(
    "--list",
    "mailing_lists",
    multiple=True,
    metavar="ID=true|false",
    callback=_pairs.memberships,
    help="A mailing list to subscribe to or to leave.",
)
@click.option(
    "--key",
    "idempotency_key",
    metavar="KEY",
    help="The idempotency key; one is made if you give none.",
)
@client_options
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For one attempt; inf is no end.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For all attempts together.",
)
@click.option("--dry-run", is_flag=True, help="Check and show it; needs no key.")
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
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
    """Send EVENT for one contact, and wait until Loops has it.

    NAME=VALUE is a text; NAME:=JSON is a number, true, false, null or a
    quoted string. Tries again by itself, always under the same key, so the
    event is accepted once.

    \b
    loops-async send planUpgraded --email ada@example.com \\
        --prop plan=Pro --prop amount:=42 --contact firstName=Ada

    \b
    Exit codes:
      0    accepted, now or before
      1    refused, or not valid
      2    wrong usage
      3    a setting is wrong, or the API key was refused
      4    unknown or not now: send it again with the same key
      130  interrupted
    """  # noqa: D301 - click reads \b
    settings = _Settings(
        api_key=api_key,
        base_url=base_url,
        timeout=timeout,
        deadline=deadline,
        dry_run=dry_run,
    )
    _check_not_api_key(fields["idempotency_key"], settings)
    progress = _Progress(_show.console(stderr=True))
    event: Event | None = None
    try:
        event = Event(**fields)
        result = asyncio.run(_sent(event, settings, progress))
    except LoopsError as error:
        _end(error, event, dry_run=dry_run, as_json=as_json)
    except KeyboardInterrupt:
        text = "interrupted; the answer was not waited for"
        interrupted = SendInterruptedError(text, retryable=True, maybe_accepted=True)
        interrupted.attempts = progress.ended
        click.echo(err=True)  # below the ^C
        _end(interrupted, event, dry_run=dry_run, as_json=as_json)
    else:
        click.echo(result.to_json()) if as_json else _show_result(result, event)


def _check_not_api_key(key: str | None, settings: _Settings) -> None:
    """Refuse an API key given as --key: the idempotency key is shown."""
    secret = settings.api_key or os.environ.get("LOOPS_API_KEY")
    if key is not None and secret is not None and key.strip() == secret.strip():
        raise click.UsageError("--key is the idempotency key, and not the API key")


@attrs.define
class _Progress:
    """Tells a terminal of the attempts that failed; elsewhere it is silent."""

    console: Console
    ended: int = 0

    def tell(self, attempt: Attempt) -> None:
        self.ended = attempt.number
        if attempt.error is None or attempt.retry_in is None:
            return
        if self.console.is_terminal:
            status = "" if attempt.status is None else f" ({attempt.status})"
            line = f"attempt {attempt.number}: {words(attempt.error).headline}{status}"
            line += f"; attempt {attempt.number + 1} in {attempt.retry_in:.1f} s"
            self.console.print(line, style="dim")


async def _sent(event: Event, settings: _Settings, progress: _Progress) -> Result:
    async with AsyncLoopsClient(
        settings.api_key,
        base_url=settings.base_url,
        timeout=settings.timeout,
        deadline=settings.deadline,
        dry_run=settings.dry_run,
        on_attempt=progress.tell,
    ) as loops:
        receipt = await loops.send_event(event)
        body = loops.converter.unstructure(event) if settings.dry_run else None
    return accepted(receipt, body)


def _end(
    error: LoopsError, event: Event | None, *, dry_run: bool, as_json: bool
) -> None:
    code = exit_code(error)
    result = failed(error, event, dry_run=dry_run)
    if as_json:
        click.echo(result.to_json())
    else:
        panel = _show.error_panel(error, result.idempotency_key, code)
        _show.console(stderr=True).print(panel)
    click.get_current_context().exit(code)


def _show_result(result: Result, event: Event) -> None:
    out = _show.console()
    contact = event.email if event.email is not None else event.user_id
    what = f"{event.event_name} for {contact}"
    if result.body is not None:
        out.print(f"{what} is valid; nothing was sent", style=_show.GOOD)
        out.print("POST /v1/events/send", style="bold")
        out.print(f"Idempotency-Key: {result.idempotency_key}", soft_wrap=True)
        for line in _show.body_lines(result.body):
            out.print(line, soft_wrap=True)
        return
    said = "was in before" if result.duplicate else "accepted"
    line = Text.assemble(("✓ ", _show.GOOD), (said, _show.GOOD), f"  {what}")
    out.print(line, soft_wrap=True)
    took = _show.delivery(result.attempts, result.elapsed or 0.0, result.rate_limit)
    out.print(f"  {took}", style="dim", soft_wrap=True)
    out.print(f"  key {result.idempotency_key}", style="dim", soft_wrap=True)
