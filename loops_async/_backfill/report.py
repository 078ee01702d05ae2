"""The results of a backfill."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from loops_async._journal.records import (
    ACCEPTED,
    DUPLICATE,
    PENDING,
    REJECTED,
    UNKNOWN,
)
from loops_async.errors import LoopsError

from .journal import INVALID


@attrs.frozen(kw_only=True)
class Progress:
    """The rows of a backfill by their state; each row is in one state.

    Attributes:
        rows: The number of rows in the input.
        accepted: Rows that Loops accepted.
        duplicates: Rows that Loops had accepted before, under the same
            idempotency key.
        invalid: Rows that cannot be sent because of their content.
        rejected: Rows that Loops rejected.
        unknown: Rows that Loops may or may not have; they are sent again only
            with ``resend_unknown``.
        pending: Rows that are not sent yet.
    """

    __module__ = "loops_async"

    rows: int
    accepted: int
    duplicates: int
    invalid: int
    rejected: int
    unknown: int
    pending: int


@attrs.frozen(kw_only=True)
class BackfillReport(Progress):
    """The result of a backfill; to send the pending rows, run it again.

    Attributes:
        stopped_by: The error that left rows pending; None if no row is pending, or if
            `stop` was called while rows were sent.
        journal: The path of the journal.
        rejects: The path of the file with the invalid and rejected rows; None if there
            are none.
        elapsed: The duration of the run, in seconds.
    """

    __module__ = "loops_async"

    stopped_by: LoopsError | None
    journal: Path
    rejects: Path | None
    elapsed: float

    def __str__(self) -> str:
        counts = {
            "accepted": self.accepted,
            "accepted before": self.duplicates,
            "invalid": self.invalid,
            "rejected": self.rejected,
            "unknown": self.unknown,
            "pending": self.pending,
        }
        parts = [
            f"{count:,} {name}"
            for name, count in counts.items()
            if count or name == "accepted"
        ]
        rows = "row" if self.rows == 1 else "rows"
        text = f"{self.rows:,} {rows} in {self.elapsed:.1f} s: {', '.join(parts)}"
        if self.stopped_by is not None:
            text += f"; stopped by: {self.stopped_by}"
        return text


_FIELDS: Final = {
    ACCEPTED: "accepted",
    DUPLICATE: "duplicates",
    INVALID: "invalid",
    REJECTED: "rejected",
    UNKNOWN: "unknown",
    PENDING: "pending",
}


def progress_fields(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the fields of Progress for the counts of rows by state."""
    fields = {field: counts.get(state, 0) for state, field in _FIELDS.items()}
    return {"rows": sum(fields.values()), **fields}
