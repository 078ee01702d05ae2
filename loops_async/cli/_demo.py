"""``loops-async demo``: the whole story, with a Loops of its own."""

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

from . import _show
from ._burst import burst
from ._page import Page, call

_ALLOWED: Final = 10  # requests a period, as Loops itself
_BURST: Final = 40
_PEOPLE: Final = ("ada", "grace", "edsger", "barbara")
_KEY: Final = "550e8400-e29b-41d4-a716-446655440000"


@click.command("demo", short_help="See it work, in ten seconds.")
@click.option("--period", type=float, default=1.0, hidden=True)
def command(*, period: float) -> None:
    """See it work, in ten seconds, without a key and without a network.

    Starts a local Loops, sends to it with the real client, and shows what
    went over the wire and what came of it.
    """
    console = _show.console()
    pause = 0.3 * period if console.is_terminal else 0.0
    asyncio.run(tell(console, period=period, pause=pause))


async def tell(console: Console, *, period: float, pause: float) -> Sandbox:
    """Tell the story on the console.

    Args:
        console: Where to.
        period: Seconds of the rate window; less tells it faster.
        pause: Seconds before each chapter, for the reader.

    Returns:
        The sandbox it was told with, closed.
    """
    sandbox = Sandbox(rate_limit=_ALLOWED, period=period, latency=(0.004, 0.012))
    limiter = RateLimiter(_ALLOWED, period)
    async with (
        sandbox,
        AsyncLoopsClient(
            sandbox.api_key, base_url=sandbox.url, rate_limit=limiter
        ) as loops,
    ):
        story = _Story(sandbox, loops, Page(console, pause))
        story.begin()
        await story.examples()
        await story.same_key()
        await story.lost_answer()
        await story.mistakes()
        await story.burst()
        await story.end()
    return sandbox


@attrs.define
class _Story:
    """The chapters; each shows what the sandbox recorded, and nothing else."""

    sandbox: Sandbox
    loops: AsyncLoopsClient
    page: Page
    _first: SandboxRequest | None = attrs.field(init=False, default=None)

    def begin(self) -> None:
        self.page.console.print("\nloops-async, in ten seconds", style="bold")
        self.page.say(
            f"A local Loops listens at {self.sandbox.url}. The client, the "
            "requests and the answers are real; no email is sent."
        )

    async def examples(self) -> None:
        """Send the four of https://loops.so/docs/api-reference/examples/events."""
        plain = {"email": "test@example.com"}
        await self.page.chapter("Send an event")
        await self._send("testEvent", **plain)
        await self.page.chapter("With event properties", "for the emails it triggers")
        await self._send(
            "testEvent", **plain, event_properties={"testProperty": "testValue"}
        )
        await self.page.chapter(
            "With contact properties", "which go to the root of the body"
        )
        await self._send("testEvent", **plain, contact_properties={"planName": "Pro"})
        await self.page.chapter("With an idempotency key of your own")
        await self._send("testEvent", **plain, idempotency_key=_KEY)

    async def same_key(self) -> None:
        await self.page.chapter("The same key a second time")
        receipt = await self._send(
            "testEvent", email="test@example.com", idempotency_key=_KEY
        )
        self.page.say(
            f"409 means that Loops has it: no error, duplicate={receipt.duplicate}. "
            f"Under this key it holds {self._held(_KEY)}."
        )

    async def lost_answer(self) -> None:
        await self.page.chapter("An answer is lost", "the connection breaks")
        fields: dict[str, Any] = {
            "email": "ada@example.com",
            "contact_properties": {"firstName": "Ada", "planName": "Pro"},
            "mailing_lists": {"cm06f5v0e45nf0ml5754o9cix": True},
        }
        self._show_call("planUpgraded", fields)
        before = self.sandbox.counts.requests
        self.sandbox.script("close-after")
        receipt = await self.loops.send_event("planUpgraded", **fields)
        for number, request in enumerate(self.sandbox.requests[before:], 1):
            key = request.headers["Idempotency-Key"]
            attempt = (f"attempt {number}", "bold")
            self.page.line(Text.assemble(attempt, f"  Idempotency-Key: {key}"), "→")
            self.page.line(_answer(request), "←")
        self._show_receipt(receipt)
        self.page.say(
            "The same key on each attempt, so Loops holds "
            f"{self._held(receipt.idempotency_key)}, not two."
        )

    async def mistakes(self) -> None:
        await self.page.chapter("Mistakes", "refused before the network")
        before = self.sandbox.counts.requests
        wrong: dict[str, Any] = {
            "email": "ada.example.com",
            "event_properties": {"amount": float("nan"), "items": ["pen"]},
            "contact_properties": {"first_name": "Ada"},
        }
        self._show_call("plan:upgraded", wrong)
        try:
            await self.loops.send_event("plan:upgraded", **wrong)
        except InvalidEventError as invalid:
            self.page.line(Text(type(invalid).__name__, style=_show.BAD), "✗")
            for problem in invalid.problems:
                self.page.line(problem)
        sent = self.sandbox.counts.requests - before
        self.page.say(f"Requests that reached the server: {sent}.")

    async def burst(self) -> None:
        await self.page.chapter(f"{_BURST} events", "at the limit, not over it")
        events = [
            Event(
                "lessonFinished",
                email=f"{_PEOPLE[number % len(_PEOPLE)]}@example.com",
                event_properties={"lesson": number // len(_PEOPLE) + 1},
            )
            for number in range(_BURST)
        ]
        self.page.code("report = await loops.send_events(events)")
        rest = "after a rest of one period, so that the whole limit is free"
        self.page.line(Text(rest, style="dim"))
        self.page.console.print()
        await asyncio.sleep(self.sandbox.period)
        report = await burst(
            self.loops, self.sandbox, events, self.page.console, allowed=_ALLOWED
        )
        self.page.say(f"{report}.")

    async def end(self) -> None:
        await self.page.chapter("What Loops holds now")
        self.page.table(("contact", "properties", "lists"), self._contacts())
        self.page.table(("event", "contact", "accepted"), self._events())
        counts = self.sandbox.counts
        facts = (
            _show.count(counts.requests, "request"),
            f"{_show.count(counts.accepted, 'event')} accepted",
            f"{_show.count(counts.duplicates, 'duplicate')} recognised",
            f"429s: {counts.limited}",
        )
        self.page.line(Text(f"{', '.join(facts)}.", style="italic"))
        await self.page.chapter("Your turn")
        self.page.line("loops-async sandbox                         a Loops like this")
        self.page.line("loops-async send testEvent --email EMAIL    to either of them")
        self.page.console.print()

    async def _send(self, name: str, **fields: Any) -> Receipt:
        """Send an event and show the call, the request and the answer."""
        self._show_call(name, fields)
        receipt = await self.loops.send_event(name, **fields)
        request = self.sandbox.requests[-1]
        mark = "→"
        for line in _show.request_lines(request, shown_before=self._first):
            self.page.line(line, mark)
            mark = ""
        self._first = self._first or request
        self.page.line(_answer(request), "←")
        self._show_receipt(receipt)
        return receipt

    def _show_call(self, name: str, fields: dict[str, Any]) -> None:
        self.page.code(call(name, fields, self.page.console.width))

    def _show_receipt(self, receipt: Receipt) -> None:
        said = "was in before" if receipt.duplicate else "accepted"
        took = _show.delivery(receipt.attempts, receipt.elapsed, receipt.rate_limit)
        line = Text.assemble((said, _show.GOOD), (f", {took}", "dim"))
        self.page.line(line, "✓")

    def _held(self, key: str) -> str:
        held = sum(event.idempotency_key == key for event in self.sandbox.events)
        return _show.count(held, "event")

    def _contacts(self) -> Iterator[tuple[str, str, str]]:
        for contact in self.sandbox.contacts:
            given = (
                f"{name}={value}"
                for name, value in contact.properties.items()
                if value not in (None, "") and name not in _WITH_EVERY_CONTACT
            )
            name = contact.email or contact.user_id or contact.id
            yield name, " ".join(given), " ".join(contact.mailing_lists)

    def _events(self) -> Iterator[tuple[str, str, str]]:
        times = Counter(
            (event.name, event.email or event.contact_id)
            for event in self.sandbox.events
        )
        for (name, contact), accepted in times.items():
            yield name, contact, str(accepted)


_WITH_EVERY_CONTACT: Final = ("source", "subscribed")


def _answer(request: SandboxRequest) -> Text:
    """Say how the server answered, and what fault it was told to make."""
    status = "no answer" if request.status is None else str(request.status)
    line = Text(status, style=f"bold {_show.status_style(request.status)}")
    if request.fault is not None:
        line.append(f"  told to {FAULTS[request.fault]}", style="not bold")
    return line
