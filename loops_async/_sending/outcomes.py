"""The results of sends: of one attempt, of one event, of many events."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import attrs

from loops_async._events.event import Event
from loops_async._http.protocol import RateLimit
from loops_async.errors import LoopsError, NotTriedError


@attrs.frozen(slots=False)  # cheaper to make than with slots
class Attempt:
    """One attempt of a call, as the hook `on_attempt` gets it.

    Attributes:
        idempotency_key: The key of the event; None for a request without a key.
        number: The number of the attempt, from 1.
        status: The status of the response; None without a response.
        error: The error, if the request was not accepted; else None.
        elapsed: Seconds from sending the request to its end.
        retry_in: Seconds until the next attempt may start; None if none follows.
    """

    __module__ = "loops_async"

    idempotency_key: str | None
    number: int
    status: int | None
    error: LoopsError | None
    elapsed: float
    retry_in: float | None


@attrs.frozen(slots=False)  # cheaper to make than with slots
class Receipt:
    """The confirmation that Loops has the event.

    Attributes:
        idempotency_key: The key of the event.
        attempts: The number of requests for it; 0 in a dry run.
        duplicate: Whether Loops had accepted the event before: in an earlier
            attempt whose response was lost, or in another send with the same key.
        elapsed: Seconds from the call to the response, all waits included.
        rate_limit: The rate limit that the response reports, or None.
        dry_run: Whether the event was only checked, and not sent.
    """

    __module__ = "loops_async"

    idempotency_key: str
    attempts: int
    duplicate: bool
    elapsed: float
    rate_limit: RateLimit | None
    dry_run: bool = False


@attrs.frozen(slots=False)  # cheaper to make than with slots
class Outcome:
    """The outcome of one event of a bulk run.

    Attributes:
        index: The position of the event in the input, from 0.
        event: The event.
        receipt: The receipt, if Loops has the event; else None.
        error: The error, if Loops does not have the event; else None. If its
            ``maybe_accepted`` is true, the outcome is unknown. It is a
            NotTriedError if the run ended before the event was sent.
    """

    __module__ = "loops_async"

    index: int
    event: Event
    receipt: Receipt | None
    error: LoopsError | None

    @property
    def ok(self) -> bool:
        """Whether Loops has the event."""
        return self.receipt is not None


class SendReport(Sequence[Outcome]):
    """The outcomes of one call of `send_events`, in input order.

    Each outcome is in exactly one of five parts: `accepted`, `duplicates`,
    `failures`, `unknown` and `not_tried`.

    Attributes:
        stopped_by: The error that stopped the run before the end of its input; the
            rest of the input was not read. None if the run was not stopped.
        elapsed: Seconds that the run took.

    ```python
    from loops_async import Event

    report = await loops.send_events([Event("signup", email="ada@example.com")])
    print(report)  # 1 event in 0.1 s: 1 accepted
    for outcome in report.failures + report.unknown:
        print(outcome.index, outcome.event.email, outcome.error)
    report.raise_for_failures()
    ```

    Send an event of ``failures`` again once the cause of its error is removed. Send an
    event of ``unknown`` again only with the same key, within 24 hours. The events of
    ``not_tried`` were read from the input but not sent; the input after them was not
    read.
    """

    __module__ = "loops_async"

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
        """The events that Loops accepted in this run."""
        return self._parts["accepted"]

    @property
    def duplicates(self) -> tuple[Outcome, ...]:
        """The events whose keys Loops had accepted before."""
        return self._parts["duplicates"]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The events that Loops does not have."""
        return self._parts["failures"]

    @property
    def unknown(self) -> tuple[Outcome, ...]:
        """The events whose outcome is unknown; send them again only with their keys."""
        return self._parts["unknown"]

    @property
    def not_tried(self) -> tuple[Outcome, ...]:
        """The events that were read, and not sent before the run ended."""
        return self._parts["not_tried"]

    def raise_for_failures(self) -> None:
        """Raise the errors of the run, if there are any.

        Raises:
            ExceptionGroup: If `failures` or `unknown` has events, or the run was
                stopped; it contains their errors and `stopped_by`.
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
    assert outcome.error is not None  # an outcome has a receipt or an error
    return "unknown" if outcome.error.maybe_accepted else "failures"
