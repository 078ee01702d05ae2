"""The records of a journal: events to store, rows to send, and failures."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import attrs

PENDING: Final = "pending"
ACCEPTED: Final = "accepted"
DUPLICATE: Final = "duplicate"  # accepted before, under the same key
REJECTED: Final = "rejected"
UNKNOWN: Final = "unknown"


class NewEvent(NamedTuple):
    """An event to store; ``body`` is the JSON of its request."""

    idempotency_key: str
    body: bytes
    email: str | None
    user_id: str | None


class AddedCounts(NamedTuple):
    """The numbers of events that became pending when a group was added.

    Attributes:
        new: Events that the journal did not have.
        requeued: Events that were rejected before.
    """

    new: int
    requeued: int


@attrs.define(eq=False)
class Row:
    """A pending event of a journal.

    Attributes:
        id: The position of the event in the journal.
        idempotency_key: As in `Event`, like ``email`` and ``user_id``.
        body: The JSON of the request.
        attempts: The number of recorded attempts.
        ambiguous_since: The Unix time of the first attempt whose outcome is not known;
            None if the outcome of every attempt is known.
        in_flight_since: The same time in monotonic seconds of this process.
        marked_by_this_process: Whether this process set ``ambiguous_since``.
        marked_for_this_attempt: Whether ``ambiguous_since`` was set for the
            current attempt.
        recorded_attempts: Attempts of this run that ``attempts`` includes.
    """

    id: int
    idempotency_key: str
    body: bytes
    email: str | None
    user_id: str | None
    attempts: int
    ambiguous_since: float | None
    in_flight_since: float = 0.0
    marked_by_this_process: bool = False
    marked_for_this_attempt: bool = False
    recorded_attempts: int = 0


@attrs.frozen
class Failure:
    """An event that is not sent again unless `Outbox.retry` requests it.

    Attributes:
        id: The position of the event in the journal.
        idempotency_key: The idempotency key of the event.
        body: The JSON object of the request.
        state: ``rejected`` if Loops does not have the event; ``unknown`` if
            Loops may have it.
        error: The reason, in one line.
        attempts: The number of recorded attempts.
        at: The Unix time at which the event became a failure.
    """

    __module__ = "loops_async"

    id: int
    idempotency_key: str
    body: Mapping[str, Any] = attrs.field(converter=json.loads)
    state: str
    error: str
    attempts: int
    at: float
