"""How things look: consoles, requests, errors, durations."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loops_async import APIError, InvalidEventError, LoopsError, RateLimit

from ._words import words

if TYPE_CHECKING:  # it brings a web server, which a send does not need
    from loops_async.sandbox import SandboxRequest

GOOD: Final = "green"
ODD: Final = "yellow"
BAD: Final = "red"
_WIDEST: Final = 88  # columns; wider lines are hard to read


def console(*, stderr: bool = False) -> Console:
    """Make a console that shows what it is given and guesses nothing."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    made.width = min(made.width, _WIDEST)
    return made


def printable(text: str) -> str:
    """Return the text with what could steer a terminal replaced."""
    return "".join(
        one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def seconds(elapsed: float) -> str:
    """Return a duration as people say it."""
    return f"{elapsed * 1000:.0f} ms" if elapsed < 1 else f"{elapsed:.1f} s"


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def delivery(attempts: int, elapsed: float, left: RateLimit | None) -> str:
    """Return what it took to deliver an event, and what is left of the limit."""
    facts = [count(attempts, "attempt"), seconds(elapsed)]
    if left is not None:
        facts.append(f"{left.remaining} of {left.limit} requests left")
    return ", ".join(facts)


def status_style(status: int | None) -> str:
    """Return the style of a status; None is no answer."""
    if status is None or status >= 500:
        return BAD
    return GOOD if status < 300 else ODD


def body_lines(body: Mapping[str, Any]) -> Iterator[Text]:
    """Yield a JSON object with a line for each of its names."""
    yield Text("{")
    for left, (name, value) in enumerate(body.items(), 1 - len(body)):
        text = f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        yield _JSON(Text(printable(text) + ("," if left else "")))
    yield Text("}")


_JSON: Final = JSONHighlighter()


def request_lines(
    request: "SandboxRequest", *, shown_before: "SandboxRequest | None" = None
) -> Iterator[Text]:
    """Yield a request as the server read it, but for the API key.

    Args:
        request: From the sandbox.
        shown_before: Headers that are the same as in this one are left out.
    """
    yield Text(f"{request.method} {request.path}", style="bold")
    known: Collection[tuple[str, str]] = ()
    if shown_before is not None:
        known = list(shown_before.headers.items())
    fresh = [item for item in request.headers.items() if item not in known]
    for name, value in fresh:
        told = "Bearer ***" if name.lower() == "authorization" else value
        yield Text.assemble((f"{name}: ", "cyan"), printable(told))
    same = len(request.headers) - len(fresh)
    if same:
        yield Text(f"and the same {count(same, 'other header')} as above", style="dim")
    yield from body_lines(json.loads(request.body))


def file_panel(error: LoopsError, code: int) -> Panel:
    """Show why a file, or a setting, cannot be used.

    Args:
        error: What was raised.
        code: The exit code.
    """
    said = str(error.args[0])
    grid = _grid()
    grid.add_row("problem", printable(said))
    if _IN_USE in said:
        grid.add_row("next", "Stop the program that has it open.")
    return _panel(grid, "It cannot be done", error, code)


_IN_USE: Final = " is in use by another process"


def error_panel(error: LoopsError, key: str | None, code: int) -> Panel:
    """Show an error: what, why, what next.

    Args:
        error: What was raised.
        key: The event's idempotency key, None if it was not valid.
        code: The exit code.
    """
    said = words(error)
    grid = _grid()
    problems = error.problems if isinstance(error, InvalidEventError) else ()
    for problem in problems or [str(error.args[0])]:
        grid.add_row("problem", printable(problem))
    grid.add_row("next", said.advice)
    if error.attempts or error.retryable:
        grid.add_row("attempts", str(error.attempts))
        maybe = "perhaps, so send it again only with this key"
        grid.add_row("accepted", maybe if error.maybe_accepted else "no")
    if isinstance(error, APIError) and error.retry_after is not None:
        grid.add_row("wait", f"{error.retry_after:g} s, as the server asks")
    if key is not None and (error.maybe_accepted or error.retryable):
        grid.add_row("key", f"--key {printable(key)}")
    return _panel(grid, said.headline, error, code)


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
        subtitle=Text(f"{type(error).__name__}, exit {code}", style="dim"),
        subtitle_align="right",
        border_style=BAD,
        padding=(1, 2),
    )
