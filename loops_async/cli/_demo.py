"""``loops-async demo``: the client at work against a sandbox."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.text import Text

from loops_async import (
    AsyncLoopsClient,
    Event,
    InvalidEventError,
    RateLimiter,
    Receipt,
)
from loops_async.sandbox import FAULTS, Sandbox, SandboxRequest

from . import _rendering
from ._burst import burst
from ._demo_page import DemoPage, send_event_code

_ALLOWED: Final = 10  # requests a period, the same as Loops
_BURST: Final = 40
_PEOPLE: Final = ("ada", "grace", "edsger", "barbara")
_KEY: Final = "550e8400-e29b-41d4-a716-446655440000"


@click.command("demo", short_help="Show the client at work, in ten seconds.")
@click.option("--period", type=float, default=1.0, hidden=True)
def command(*, period: float) -> None:
    """Show the client at work, in ten seconds.

    The demo starts a sandbox that behaves like Loops, sends events to it with
    the real client, and shows the requests, the responses and what the sandbox
    holds in the end. It needs no API key and no network.
    """
    console = _rendering.console()
    pause = 0.3 * period if console.is_terminal else 0.0
    asyncio.run(show(console, period=period, pause=pause))


async def show(console: Console, *, period: float, pause: float) -> Sandbox:
    """Show the demo on the console.

    Args:
        console: Receives the page.
        period: Seconds of the rate window; a shorter one makes a faster demo.
        pause: Seconds before each chapter, for the reader.

    Returns:
        The sandbox, closed.
    """
    sandbox = Sandbox(rate_limit=_ALLOWED, period=period, latency=(0.004, 0.012))
    limiter = RateLimiter(_ALLOWED, period)
    async with (
        sandbox,
        AsyncLoopsClient(
            sandbox.api_key, base_url=sandbox.url, rate_limit=limiter
        ) as client,
    ):
        demo = _Demo(sandbox, client, DemoPage(console, pause))
        demo.introduction()
        await demo.examples()
        await demo.same_key()
        await demo.lost_response()
        await demo.mistakes()
        await demo.burst()
        await demo.summary()
    return sandbox


@attrs.define
class _Demo:
    """The chapters; each shows only what the sandbox recorded."""

    sandbox: Sandbox
    client: AsyncLoopsClient
    page: DemoPage
    _first: SandboxRequest | None = attrs.field(init=False, default=None)

    def introduction(self) -> None:
        self.page.console.print("\nloops-async in ten seconds", style="bold")
        self.page.comment(
            f"A Loops sandbox listens at {self.sandbox.url}. The client, the "
            "requests and the responses are real; no email is sent."
        )

    async def examples(self) -> None:
        """Send the examples of https://loops.so/docs/api-reference/examples/events."""
        plain = {"email": "test@example.com"}
        await self.page.chapter("Send an event")
        await self._send("testEvent", **plain)
        await self.page.chapter("Add event properties", "for use in the emails")
        await self._send(
            "testEvent", **plain, event_properties={"testProperty": "testValue"}
        )
        await self.page.chapter(
            "Add contact properties", "which go to the root of the body"
        )
        await self._send("testEvent", **plain, contact_properties={"planName": "Pro"})
        await self.page.chapter("Choose the idempotency key")
        await self._send("testEvent", **plain, idempotency_key=_KEY)

    async def same_key(self) -> None:
        await self.page.chapter("Send the same key again")
        receipt = await self._send(
            "testEvent", email="test@example.com", idempotency_key=_KEY
        )
        self.page.comment(
            "409 means that Loops already has the event. The client raises no error; "
            f"the receipt has duplicate={receipt.duplicate}. Loops holds "
            f"{self._held(_KEY)} under this key."
        )

    async def lost_response(self) -> None:
        await self.page.chapter("Lose a response", "because the connection breaks")
        fields: dict[str, Any] = {
            "email": "ada@example.com",
            "contact_properties": {"firstName": "Ada", "planName": "Pro"},
            "mailing_lists": {"cm06f5v0e45nf0ml5754o9cix": True},
        }
        self._show_code("planUpgraded", fields)
        before = self.sandbox.counts.requests
        self.sandbox.script("close-after")
        receipt = await self.client.send_event("planUpgraded", **fields)
        for number, request in enumerate(self.sandbox.requests[before:], 1):
            key = request.headers["Idempotency-Key"]
            attempt = (f"attempt {number}", "bold")
            self.page.line(Text.assemble(attempt, f"  Idempotency-Key: {key}"), "→")
            self.page.line(_response(request), "←")
        self._show_receipt(receipt)
        self.page.comment(
            "Each attempt carries the same key, so Loops holds "
            f"{self._held(receipt.idempotency_key)}, not two."
        )

    async def mistakes(self) -> None:
        await self.page.chapter("Make mistakes", "all found before anything is sent")
        before = self.sandbox.counts.requests
        wrong: dict[str, Any] = {
            "email": "ada.example.com",
            "event_properties": {"amount": float("nan"), "items": ["pen"]},
            "contact_properties": {"first_name": "Ada"},
        }
        self._show_code("plan:upgraded", wrong)
        try:
            await self.client.send_event("plan:upgraded", **wrong)
        except InvalidEventError as invalid:
            self.page.line(Text(type(invalid).__name__, style=_rendering.BAD), "✗")
            for problem in invalid.problems:
                self.page.line(problem)
        sent = self.sandbox.counts.requests - before
        self.page.comment(f"Requests that reached the server: {sent}.")

    async def burst(self) -> None:
        await self.page.chapter(
            f"Send {_BURST} events", "at the rate limit and not over it"
        )
        events = [
            Event(
                "lessonFinished",
                email=f"{_PEOPLE[number % len(_PEOPLE)]}@example.com",
                event_properties={"lesson": number // len(_PEOPLE) + 1},
            )
            for number in range(_BURST)
        ]
        self.page.code("report = await loops.send_events(events)")
        pause = "after a pause of one period, so that the whole limit is available"
        self.page.line(Text(pause, style="dim"))
        self.page.console.print()
        await asyncio.sleep(self.sandbox.period)
        report = await burst(
            self.client, self.sandbox, events, self.page.console, allowed=_ALLOWED
        )
        self.page.comment(f"{report}.")

    async def summary(self) -> None:
        await self.page.chapter("See what the sandbox holds")
        self.page.table(("contact", "properties", "lists"), self._contacts())
        self.page.table(("event", "contact", "accepted"), self._events())
        counts = self.sandbox.counts
        facts = (
            _rendering.count(counts.requests, "request"),
            f"{_rendering.count(counts.accepted, 'event')} accepted",
            f"{_rendering.count(counts.duplicates, 'duplicate')} recognized",
            f"429s: {counts.limited}",
        )
        self.page.line(Text(f"{', '.join(facts)}.", style="italic"))
        await self.page.chapter("Your turn")
        self.page.line("loops-async sandbox")
        self.page.line("loops-async send testEvent --email EMAIL")
        self.page.comment(
            "Run the two commands in two terminals. Before the second, paste the "
            "export line that the first prints."
        )
        self.page.console.print()

    async def _send(self, name: str, **fields: Any) -> Receipt:
        """Send an event and show the code, the request and the response."""
        self._show_code(name, fields)
        receipt = await self.client.send_event(name, **fields)
        request = self.sandbox.requests[-1]
        mark = "→"
        for line in _rendering.request_lines(request, previous=self._first):
            self.page.line(line, mark)
            mark = ""
        self._first = self._first or request
        self.page.line(_response(request), "←")
        self._show_receipt(receipt)
        return receipt

    def _show_code(self, name: str, fields: dict[str, Any]) -> None:
        self.page.code(send_event_code(name, fields, self.page.console.width))

    def _show_receipt(self, receipt: Receipt) -> None:
        outcome = "already accepted" if receipt.duplicate else "accepted"
        details = _rendering.delivery(
            receipt.attempts, receipt.elapsed, receipt.rate_limit
        )
        line = Text.assemble((outcome, _rendering.GOOD), (f", {details}", "dim"))
        self.page.line(line, "✓")

    def _held(self, key: str) -> str:
        held = sum(event.idempotency_key == key for event in self.sandbox.events)
        return _rendering.count(held, "event")

    def _contacts(self) -> Iterator[tuple[str, str, str]]:
        for contact in self.sandbox.contacts:
            properties = (
                f"{name}={value}"
                for name, value in contact.properties.items()
                if value not in (None, "") and name not in _DEFAULT_PROPERTIES
            )
            name = contact.email or contact.user_id or contact.id
            yield name, " ".join(properties), " ".join(contact.mailing_lists)

    def _events(self) -> Iterator[tuple[str, str, str]]:
        times = Counter(
            (event.name, event.email or event.contact_id)
            for event in self.sandbox.events
        )
        for (name, contact), accepted in times.items():
            yield name, contact, str(accepted)


_DEFAULT_PROPERTIES: Final = ("source", "subscribed")  # each contact has them


def _response(request: SandboxRequest) -> Text:
    """Return the status of the response, and the fault that the sandbox caused."""
    status = "no response" if request.status is None else str(request.status)
    line = Text(status, style=f"bold {_rendering.status_style(request.status)}")
    if request.fault is not None:
        line.append(f"  fault: {FAULTS[request.fault]}", style="not bold")
    return line
