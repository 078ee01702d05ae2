"""One row of the input."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, Final

import attrs

from loops_async._events.event import Event
from loops_async._events.rules import InvalidValue, item_path

MAX_TEXT: Final = 1000  # characters kept of a record that is too long


@attrs.frozen(slots=False)
class InputRow:
    """One row of the input.

    Attributes:
        file: The path of the file, with bytes that are not UTF-8 escaped.
        line: The number of the row's first line, from 1.
        event: The row's event, or None if the row has problems. The event's
            idempotency key is a placeholder if `key` is None.
        key: The idempotency key given in the row, or None.
        problems: All problems of the row, each with its path.
        record: The row in a form that can be corrected and read again: a
            JSON object, or the text if it cannot be parsed.
    """

    file: str
    line: int
    event: Event | None
    key: str | None
    problems: tuple[str, ...]
    record: object


def convert_items(
    field: str,
    items: Mapping[str, Any],
    parsers: Mapping[str, Callable[[Any], object]],
    problems: list[str],
) -> tuple[dict[str, object], dict[str, object]]:
    """Convert the items of a mapping to their types, and collect the problems.

    Returns:
        The items that could be converted, and all items as JSON can hold
        them: dates and items that could not be converted keep their text.
    """
    values, record = dict(items), dict(items)
    for name in [name for name in parsers if name in items]:
        try:
            values[name] = parsers[name](items[name])
        except InvalidValue as refused:
            del values[name]
            problems.extend(f"{field}{item_path(name)}: {why}" for why in refused.args)
        else:
            if not isinstance(values[name], date):
                record[name] = values[name]
    return values, record


def unparsed(
    file: str, line: int, raw: bytes, problem: str, *, cut: bool = False
) -> InputRow:
    """Return a row that cannot be parsed, with its text as the record.

    Args:
        file: The path of the file.
        line: The number of the row's first line.
        raw: The text of the row.
        problem: The reason why the row cannot be parsed.
        cut: Whether to keep only the beginning of the text.
    """
    text = raw.decode(errors="backslashreplace").rstrip("\r\n")
    if cut:
        text = text[:MAX_TEXT] + "…"
    return InputRow(file, line, None, None, (problem,), text)


def key_of(record: Mapping[str, Any]) -> str | None:
    """Return the idempotency key that a record gives, or None."""
    key = record.get("idempotency_key")
    return key if isinstance(key, str) else None
