"""The preview of a backfill, and the changes since its last run."""

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from loops_async.errors import ConfigurationError


def _tuple(places: Iterable[str]) -> tuple[str, ...]:
    return tuple(places)


@attrs.frozen
class Changes:
    """The changes since the input that was last confirmed.

    Attributes:
        new: The number of rows that were not in the input.
        first_new: The places of the first new rows, as ``file:line``.
        dropped: The number of rows that are no longer in the input and will not be
            sent.
        sent_before: The number of rows that are no longer in the input but that Loops
            has, or may have. If there are new rows too, they may be changed versions of
            these rows.
    """

    new: int
    first_new: tuple[str, ...] = attrs.field(converter=_tuple)
    dropped: int
    sent_before: int


@attrs.frozen(kw_only=True)
class Preview:
    """A preview of what a backfill will send.

    Attributes:
        rows: The number of rows in the input.
        invalid: The number of rows that cannot be sent.
        problems: The first problems, as ``file:line: problem``.
        events: Valid rows by event name; names after the first 1,000 count
            as ``(others)``.
        contacts: The number of different contacts, counted up to 500,000.
        sample: The body of the first valid row, as Loops receives it; None
            if no row is valid.
        to_send: The number of rows still to be sent.
        seconds: The minimum duration of the run, in seconds; None without a rate limit.
        changes: The changes since the input that was last confirmed; None if no input
            was confirmed.
    """

    __module__ = "loops_async"

    rows: int
    invalid: int
    problems: tuple[str, ...] = attrs.field(converter=_tuple)
    events: Mapping[str, int]
    contacts: int
    sample: Mapping[str, Any] | None
    to_send: int
    seconds: float | None
    changes: Changes | None


def refuse_to_repeat(changes: Changes | None) -> None:
    """Raise a ConfigurationError if the run could send rows a second time."""
    if changes is not None and changes.new and changes.sent_before:
        msg = (
            f"{changes.sent_before:,} rows that were sent are no longer in the input, "
            f"and {changes.new:,} rows are new: if these are the same rows, edited or "
            "read with other options, they would be sent twice. Confirm the run, "
            "restore the input and its options, or start a new run with another "
            "journal"
        )
        raise ConfigurationError(msg)
