"""Consoles, and the look of requests, errors and durations."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loops_async import (
    APIError,
    InvalidEventError,
    JournalError,
    LoopsError,
    RateLimit,
)

from ._advice import advice_for

if TYPE_CHECKING:  # importing the sandbox loads a web server, which a send never needs
    from loops_async.sandbox import SandboxRequest

GOOD: Final = "green"
WARNING: Final = "yellow"
BAD: Final = "red"
_MAX_WIDTH: Final = 88  # columns; wider lines are hard to read


def console(*, stderr: bool = False) -> Console:
    """Make a console that prints text as it is, without markup or highlighting."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    made.width = min(made.width, _MAX_WIDTH)
    return made


def printable(text: str) -> str:
    """Replace every character of a text that could control the terminal."""
    return "".join(
        one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def round_trip(seconds: float) -> str:
    """Return a short duration, such as ``41 ms`` or ``1.3 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1,200 events``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def delivery(attempts: int, elapsed: float, rate_limit: RateLimit | None) -> str:
    """Return the attempts and duration of a send, and what is left of the limit."""
    facts = [count(attempts, "attempt"), round_trip(elapsed)]
    if rate_limit is not None:
        facts.append(f"{rate_limit.remaining} of {rate_limit.limit} requests left")
    return ", ".join(facts)


def status_style(status: int | None) -> str:
    """Return the style of a response's status; None stands for no response."""
    if status is None or status >= 500:
        return BAD
    return GOOD if status < 300 else WARNING


def body_lines(body: Mapping[str, Any]) -> Iterator[Text]:
    """Yield a JSON object with one line for each of its names."""
    yield Text("{")
    for left, (name, value) in enumerate(body.items(), 1 - len(body)):
        text = f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        yield _JSON(Text(printable(text) + ("," if left else "")))
    yield Text("}")


_JSON: Final = JSONHighlighter()


def request_lines(
    request: "SandboxRequest", *, previous: "SandboxRequest | None" = None
) -> Iterator[Text]:
    """Yield a request as the server read it, with the API key masked.

    Args:
        request: A request that the sandbox recorded.
        previous: A request displayed before; headers that it has too are only
            counted.
    """
    yield Text(f"{request.method} {request.path}", style="bold")
    known: Collection[tuple[str, str]] = ()
    if previous is not None:
        known = list(previous.headers.items())
    new = [item for item in request.headers.items() if item not in known]
    for name, value in new:
        shown = "Bearer ***" if name.lower() == "authorization" else value
        yield Text.assemble((f"{name}: ", "cyan"), printable(shown))
    same = len(request.headers) - len(new)
    if same:
        yield Text(f"and the same {count(same, 'other header')} as above", style="dim")
    yield from body_lines(json.loads(request.body))


def setting_panel(error: LoopsError, code: int) -> Panel:
    """Return a panel about a file or a setting that cannot be used.

    Args:
        error: The error.
        code: The exit code.
    """
    grid = _grid()
    grid.add_row("problem", printable(str(error.args[0])))
    if isinstance(error, JournalError) and error.in_use:
        grid.add_row("next", "Stop the program that has the file open.")
    return _panel(grid, "Cannot use this file or setting", error, code)


def error_panel(error: LoopsError, key: str | None, code: int) -> Panel:
    """Return a panel about a send that failed: the problem and the next step.

    Args:
        error: The error.
        key: The event's idempotency key; None if the event is invalid.
        code: The exit code.
    """
    advice = advice_for(error)
    grid = _grid()
    problems = error.problems if isinstance(error, InvalidEventError) else ()
    for problem in problems or [str(error.args[0])]:
        grid.add_row("problem", printable(problem))
    grid.add_row("next", advice.next_step)
    if error.attempts or error.retryable:
        grid.add_row("attempts", str(error.attempts))
        maybe = "maybe, so send the event again only with this key"
        grid.add_row("accepted", maybe if error.maybe_accepted else "no")
    if isinstance(error, APIError) and error.retry_after is not None:
        grid.add_row("wait", f"{error.retry_after:g} s, as the server requests")
    if key is not None and (error.maybe_accepted or error.retryable):
        grid.add_row("key", f"--key {printable(key)}")
    return _panel(grid, advice.headline, error, code)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _panel(grid: Table, headline: str, error: LoopsError, code: int) -> Panel:
    return Panel(
        grid,
        title=Text(headline, style=f"bold {BAD}"),
        title_align="left",
        subtitle=Text(f"{type(error).__name__}, exit code {code}", style="dim"),
        subtitle_align="right",
        border_style=BAD,
        padding=(1, 2),
    )
