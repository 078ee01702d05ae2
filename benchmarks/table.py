"""What the benchmarks print: tables, and promises kept or missed."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""One line of results, as it is also kept in JSON."""


def show(title: str, rows: Iterable[Sequence[object]]) -> None:
    """Print rows aligned, the first of them being the heads.

    Fractions get three digits; columns of numbers are flush right.
    """
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    print(f"\n{title}")
    for row in texts:
        cells = (
            cell.rjust(width) if _flush_right(column) else cell.ljust(width)
            for cell, width, column in zip(
                row, widths, zip(*texts, strict=True), strict=True
            )
        )
        print("  " + "  ".join(cells).rstrip())


def promise(
    what: str, value: float, *, least: float | None = None, most: float | None = None
) -> bool:
    """Print whether a value is within its bar; return that."""
    kept = (least is None or value >= least) and (most is None or value <= most)
    bar = f"at least {least:g}" if least is not None else f"at most {most:g}"
    print(f"  {'kept  ' if kept else 'MISSED'}  {what}: {value:.4g} ({bar})")
    return kept


def percent(share: float) -> str:
    return f"{share:.2%}"


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _flush_right(column: Sequence[str]) -> bool:
    return all(cell[:1].isdigit() or cell[:1] in "+-" for cell in column[1:])
