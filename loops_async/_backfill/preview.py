"""What a backfill would send, before it does."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from loops_async.errors import ConfigurationError, LoopsError

from .input import Item
from .journal import Changes, InvalidRow, ValidRow

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

_MOST_CONTACTS: Final = 500_000  # counted; 100 bytes each
_MOST_NAMES: Final = 1000
_OTHERS: Final = "(others)"
_FIRST_PROBLEMS: Final = 20


@attrs.frozen(kw_only=True)
class Preview:
    """What a backfill would send.

    Attributes:
        rows: In the input.
        invalid: Rows that cannot be sent.
        problems: The first of these, as ``file:line: problem``.
        events: Valid rows by event name; of the first 1,000 names.
        contacts: Different contacts, counted to 500,000.
        sample: The first valid row, as Loops would get it; None if none is.
        to_send: Rows still to be sent.
        seconds: That this takes at least; None without a rate limit.
        changes: What is different since the input was read before; None the
            first time.
    """

    rows: int
    invalid: int
    problems: tuple[str, ...] = attrs.field(converter=tuple)
    events: Mapping[str, int]
    contacts: int
    sample: Mapping[str, Any] | None
    to_send: int
    seconds: float | None
    changes: Changes | None


class Seen:
    """What was found in an input so far."""

    def __init__(self, paths: list[Path]) -> None:
        names = {path.name for path in paths}
        self._short = len(names) == len(paths)
        self._contacts: set[int] = set()
        self._events: Counter[str] = Counter()
        self._problems: list[str] = []
        self._sample: Mapping[str, Any] | None = None
        self.rows = 0
        self.invalid = 0

    def sort(
        self, items: list[Item], client: "AsyncLoopsClient"
    ) -> tuple[list[ValidRow], list[InvalidRow]]:
        """Tell the rows that can be sent from those that cannot."""
        good: list[ValidRow] = []
        bad: list[InvalidRow] = []
        for item in items:
            event, problems, body = item.event, item.problems, b""
            if event is not None:
                try:
                    body = client.prepare(event)
                except LoopsError as refused:
                    problems = (str(refused),)
            if event is None or problems:
                error = "; ".join(problems)
                bad.append(InvalidRow(item.file, item.line, error, item.record))
                continue
            if self._sample is None:
                self._sample = json.loads(body)
            email, user_id = event.email, event.user_id
            good.append(ValidRow(item.file, item.line, item.key, body, email, user_id))
            name = event.event_name
            known = name in self._events or len(self._events) < _MOST_NAMES
            self._events[name if known else _OTHERS] += 1
            if len(self._contacts) < _MOST_CONTACTS:
                self._contacts.add(hash(email.casefold() if email else user_id))
        self.rows += len(items)
        self.refuse(bad)
        return good, bad

    def refuse(self, bad: list[InvalidRow]) -> None:
        self.invalid += len(bad)
        for row in bad[: max(0, _FIRST_PROBLEMS - len(self._problems))]:
            file = Path(row.file).name if self._short else row.file
            self._problems.append(f"{file}:{row.line}: {row.error}")

    def summary(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "invalid": self.invalid,
            "problems": self._problems,
            "events": dict(self._events.most_common()),
            "contacts": len(self._contacts),
            "sample": self._sample,
        }


def refuse_to_repeat(changes: Changes | None) -> None:
    """Raise a ConfigurationError if rows that were sent may be sent again."""
    if changes is not None and changes.new and changes.sent_before:
        msg = (
            f"{changes.sent_before:,} of the rows that were sent are not in the input "
            f"any more, and {changes.new:,} are new: if these are the same, changed "
            "or read in another way, they would be sent twice. Confirm that, go back "
            "to what it was, or begin a run of its own with another journal"
        )
        raise ConfigurationError(msg)
