"""The output of the benchmarks: tables, and promises kept or missed."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""One result; the results of a benchmark are saved as JSON."""


def show(title: str, rows: Iterable[Sequence[object]]) -> None:
    """Print a table; its first row contains the heads.

    Floats have three decimals, and columns of numbers are aligned on the right.
    """
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    print(f"\n{title}")
    for row in texts:
        cells = (
            cell.rjust(width) if _align_right(column) else cell.ljust(width)
            for cell, width, column in zip(
                row, widths, zip(*texts, strict=True), strict=True
            )
        )
        print("  " + "  ".join(cells).rstrip())


def promise(
    what: str, value: float, *, least: float | None = None, most: float | None = None
) -> bool:
    """Print and return whether a value keeps its promised bound."""
    kept = (least is None or value >= least) and (most is None or value <= most)
    bound = f"at least {least:g}" if least is not None else f"at most {most:g}"
    print(f"  {'kept  ' if kept else 'MISSED'}  {what}: {value:.4g} ({bound})")
    return kept


def percent(share: float) -> str:
    return f"{share:.2%}"


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _align_right(column: Sequence[str]) -> bool:
    return all(cell[:1].isdigit() or cell[:1] in "+-" for cell in column[1:])
