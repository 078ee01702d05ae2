"""What became of events: of one, and of many."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import attrs

from loops_async._events.event import Event
from loops_async._http.protocol import RateLimit
from loops_async.errors import LoopsError, NotTriedError


@attrs.frozen(slots=False)  # cheaper to make than with slots
class Attempt:
    """One request of a call, as `on_attempt` is told of it.

    Attributes:
        idempotency_key: Of the event; None for a request without one.
        number: From 1.
        status: The answer's status; None if there was none.
        error: Why it was not accepted; None if it was.
        elapsed: Seconds from sending to the answer or its absence.
        retry_in: Seconds until the next attempt may begin; None if none will.
    """

    idempotency_key: str | None
    number: int
    status: int | None
    error: LoopsError | None
    elapsed: float
    retry_in: float | None


@attrs.frozen(slots=False)  # cheaper to make than with slots
class Receipt:
    """Loops has the event.

    Attributes:
        idempotency_key: The event's.
        attempts: Requests made for it; 0 in a dry run.
        duplicate: Whether Loops had accepted it before: an earlier attempt
            whose answer was lost, or another send under the same key.
        elapsed: Seconds from the call to the answer, all waiting included.
        rate_limit: The server's last word on the rate limit, or None.
        dry_run: Whether it was only checked and not sent.
    """

    idempotency_key: str
    attempts: int
    duplicate: bool
    elapsed: float
    rate_limit: RateLimit | None
    dry_run: bool = False


@attrs.frozen(slots=False)  # likewise
class Outcome:
    """What became of one event of many.

    Attributes:
        index: Its place in the input, from 0.
        event: The event.
        receipt: If Loops has it; else None.
        error: If not: why, with ``maybe_accepted`` true if nobody knows, or
            a NotTriedError if the run ended before it was sent. Else None.
    """

    index: int
    event: Event
    receipt: Receipt | None
    error: LoopsError | None

    @property
    def ok(self) -> bool:
        """Whether Loops has the event."""
        return self.receipt is not None


class SendReport(Sequence[Outcome]):
    """What became of the events of one `send_events`, in input order.

    Each outcome is in exactly one of five parts: `accepted`, `duplicates`,
    `failures`, `unknown` and `not_tried`.

    Attributes:
        stopped_by: The error that ended the run before its input did, with
            the rest of the input not even read; None if nothing did.
        elapsed: Seconds it took.
    """

    def __init__(
        self,
        outcomes: Iterable[Outcome],
        *,
        stopped_by: LoopsError | None = None,
        elapsed: float = 0.0,
    ) -> None:
        self._outcomes = tuple(outcomes)
        self.stopped_by = stopped_by
        self.elapsed = elapsed
        parts: dict[str, list[Outcome]] = {name: [] for name in _PARTS}
        for outcome in self._outcomes:
            parts[_part_of(outcome)].append(outcome)
        self._parts = {name: tuple(part) for name, part in parts.items()}

    @property
    def accepted(self) -> tuple[Outcome, ...]:
        """Loops has them, by this run."""
        return self._parts["accepted"]

    @property
    def duplicates(self) -> tuple[Outcome, ...]:
        """Loops has them; it had accepted their keys before."""
        return self._parts["duplicates"]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Loops does not have them."""
        return self._parts["failures"]

    @property
    def unknown(self) -> tuple[Outcome, ...]:
        """Nobody knows; send them again only with the same key."""
        return self._parts["unknown"]

    @property
    def not_tried(self) -> tuple[Outcome, ...]:
        """Read from the input, but the run ended before they were sent."""
        return self._parts["not_tried"]

    def raise_for_failures(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            ExceptionGroup: of the errors of `failures` and `unknown`, and of
                `stopped_by`.
        """
        errors = [o.error for o in (*self.failures, *self.unknown) if o.error]
        if self.stopped_by is not None and self.stopped_by not in errors:
            errors.append(self.stopped_by)
        if errors:
            raise ExceptionGroup(str(self), errors)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Outcome, ...]: ...
    def __getitem__(self, index: int | slice) -> Outcome | tuple[Outcome, ...]:
        return self._outcomes[index]

    def __len__(self) -> int:
        return len(self._outcomes)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._outcomes)

    def __str__(self) -> str:
        counts = [
            f"{len(part):,} {_PARTS[name]}"
            for name, part in self._parts.items()
            if part or name == "accepted"
        ]
        number = f"{len(self):,} event{'' if len(self) == 1 else 's'}"
        text = f"{number} in {self.elapsed:.1f} s: {', '.join(counts)}"
        if self.stopped_by is not None:
            text += f"; stopped by: {self.stopped_by}"
        return text

    def __repr__(self) -> str:
        return f"<SendReport {self}>"


_PARTS = {
    "accepted": "accepted",
    "duplicates": "accepted before",
    "failures": "failed",
    "unknown": "unknown",
    "not_tried": "not tried",
}


def _part_of(outcome: Outcome) -> str:
    if outcome.receipt is not None:
        return "duplicates" if outcome.receipt.duplicate else "accepted"
    if isinstance(outcome.error, NotTriedError):
        return "not_tried"
    assert outcome.error is not None
    return "unknown" if outcome.error.maybe_accepted else "failures"
