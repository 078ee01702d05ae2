"""One row of the input, as it was read."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import attrs

from loops_async._events.event import Event
from loops_async._events.rules import Refused, item_path

from . import text_lines
from .options import KEPT


@attrs.frozen(slots=False)
class Item:
    """One row of the input.

    Attributes:
        file: The path, as given; what is not UTF-8 in it, escaped.
        line: Where the row begins, from 1.
        event: What it says, or None if there are problems. Its key means
            nothing if `key` is None.
        key: The row's own idempotency key, or None.
        problems: All of them, each with its path.
        record: What can be mended and read again: a JSON object, or the text
            if it is none.
    """

    file: str
    line: int
    event: Event | None
    key: str | None
    problems: tuple[str, ...]
    record: object


def converted(
    field: str,
    given: Mapping[str, Any],
    readers: Mapping[str, Callable[[Any], object]],
    problems: list[str],
) -> tuple[dict[str, object], dict[str, object]]:
    """Read a mapping's values as their types; note what cannot be.

    Returns:
        The values that could be read, and all of them as JSON has them:
        dates, and what could not be read, as they were given.
    """
    values, kept = dict(given), dict(given)
    for name in [name for name in readers if name in given]:
        try:
            values[name] = readers[name](given[name])
        except Refused as refused:
            del values[name]
            problems.extend(f"{field}{item_path(name)}: {why}" for why in refused.args)
        else:
            if not isinstance(values[name], date):
                kept[name] = values[name]
    return values, kept


def unread(file: str, line: int, raw: bytes, problem: str) -> Item:
    text = raw.decode(errors="backslashreplace").rstrip("\r\n")
    if len(raw) > text_lines.MAX_RECORD:
        text = text[:KEPT] + "…"
    return Item(file, line, None, None, (problem,), text)


def key_of(record: Mapping[str, Any]) -> str | None:
    key = record.get("idempotency_key")
    return key if isinstance(key, str) else None
