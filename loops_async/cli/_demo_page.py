"""The page of the demo: chapters, code, marked lines and tables."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

_INDENT: Final = 3  # columns, the first of which holds the mark of a line


@attrs.define
class DemoPage:
    """Prints the demo chapter by chapter.

    Attributes:
        console: Receives the page.
        pause: Seconds before each chapter, for the reader.
    """

    console: Console
    pause: float
    _chapters: int = attrs.field(init=False, default=0)

    async def chapter(self, title: str, aside: str = "") -> None:
        """Begin a chapter."""
        await asyncio.sleep(self.pause)
        self._chapters += 1
        self.console.print()
        heading = Text.assemble(
            (f"{self._chapters}", "bold cyan"), (f"  {title}", "bold")
        )
        if aside:
            heading.append(f", {aside}", style="dim")
        self.console.rule(heading, align="left", style="dim")
        self.console.print()

    def line(self, text: str | Text, mark: str = "") -> None:
        """Print a line with a mark before it; fold it if it is too long."""
        lines = Text("").append(text).wrap(self.console, self.console.width - _INDENT)
        for line in lines:
            line.rstrip()
            start = Text(f"{mark:<{_INDENT}}", style="bold cyan")
            self.console.print(Text.assemble(start, line))
            mark = ""

    def comment(self, text: str) -> None:
        """Print a comment on what the page shows."""
        self.console.print()
        self.line(Text(text, style="italic"))

    def code(self, source: str) -> None:
        """Print Python code."""
        lines = Syntax("", "python", theme="ansi_dark").highlight(source)
        lines.rstrip()
        self.line(lines)
        self.console.print()

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table."""
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            border_style="dim",
        )
        for name in head:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(Padding(table, (0, 0, 1, _INDENT)))


def send_event_code(name: str, fields: Mapping[str, Any], width: int) -> str:
    """Return the Python code of a send, on one line if it fits the width."""
    arguments = [_literal(name)]
    arguments += [f"{field}={_literal(value)}" for field, value in fields.items()]
    source = f"await loops.send_event({', '.join(arguments)})"
    if len(source) <= width - _INDENT:
        return source
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"await loops.send_event(\n{lines})"


def _literal(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        items = (f"{_literal(name)}: {_literal(of)}" for name, of in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return 'float("nan")' if value != value else repr(value)
