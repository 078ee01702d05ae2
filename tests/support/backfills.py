"""Inputs of backfills."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEAD = "email,user_id,event_name,event_properties.number"


def row(number: int, /, **given: str) -> str:
    """Return a line of CSV below HEAD."""
    usual = {"email": f"u{number}@b.co", "user_id": "", "event_name": "signup"}
    cells = {**usual, "number": str(number), **given}
    return ",".join(cells.values())


def write(path: Path, rows: Iterable[str], head: str = HEAD) -> Path:
    """Write a CSV file."""
    path.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    return path


def json_lines(path: Path) -> list[Any]:
    """Return what is in a file of JSON Lines."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
