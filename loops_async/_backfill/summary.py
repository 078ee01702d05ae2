"""A summary of the input, made while its rows are validated."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from loops_async._events.event import Event
from loops_async.errors import LoopsError

from .input import InputRow
from .journal import InvalidRow, ValidRow

_OTHERS: Final = "(others)"
_MAX_PROBLEMS: Final = 20


class InputSummary:
    """A summary of the rows, which it validates and counts for a preview.

    Args:
        paths: The paths of the input.
        prepare: A callable that encodes an event, or raises a LoopsError.
        max_contacts: The number of contacts to count; each takes 100 bytes.
        max_names: The number of event names to count separately.
    """

    def __init__(
        self,
        paths: list[Path],
        prepare: Callable[[Event], bytes],
        *,
        max_contacts: int = 500_000,
        max_names: int = 1000,
    ) -> None:
        names = {path.name for path in paths}
        self._names_suffice = len(names) == len(paths)
        self._prepare = prepare
        self._max_contacts = max_contacts
        self._max_names = max_names
        self._contacts: set[int] = set()
        self._events: Counter[str] = Counter()
        self._problems: list[str] = []
        self._sample: Mapping[str, Any] | None = None
        self.rows = 0
        self.invalid = 0

    def validate(self, rows: list[InputRow]) -> tuple[list[ValidRow], list[InvalidRow]]:
        """Return the rows that can be sent, and those that cannot."""
        valid: list[ValidRow] = []
        invalid: list[InvalidRow] = []
        for row in rows:
            event, problems, body = row.event, row.problems, b""
            if event is not None:
                try:
                    body = self._prepare(event)
                except LoopsError as error:
                    problems = (str(error),)
            if event is None or problems:
                text = "; ".join(problems)
                invalid.append(InvalidRow(row.file, row.line, text, row.record))
                continue
            if self._sample is None:
                self._sample = json.loads(body)
            self._count(event)
            email, user_id = event.email, event.user_id
            valid.append(ValidRow(row.file, row.line, row.key, body, email, user_id))
        self.rows += len(rows)
        self.add_invalid(invalid)
        return valid, invalid

    def add_invalid(self, rows: Iterable[InvalidRow]) -> None:
        """Count invalid rows, and keep the first problems."""
        for row in rows:
            self.invalid += 1
            if len(self._problems) < _MAX_PROBLEMS:
                file = Path(row.file).name if self._names_suffice else row.file
                self._problems.append(f"{file}:{row.line}: {row.error}")

    def fields(self) -> dict[str, Any]:
        """Return the fields of Preview that concern the input."""
        return {
            "rows": self.rows,
            "invalid": self.invalid,
            "problems": self._problems,
            "events": dict(self._events.most_common()),
            "contacts": len(self._contacts),
            "sample": self._sample,
        }

    def _count(self, event: Event) -> None:
        name = event.event_name
        has_room = name in self._events or len(self._events) < self._max_names
        self._events[name if has_room else _OTHERS] += 1
        if len(self._contacts) < self._max_contacts:
            email = event.email
            self._contacts.add(hash(email.casefold() if email else event.user_id))
