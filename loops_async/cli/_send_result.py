"""The result of one send, as a JSON object for other programs."""

import json
from collections.abc import Mapping
from typing import Any

import attrs

from loops_async import (
    APIError,
    Event,
    InvalidEventError,
    LoopsError,
    RateLimit,
    Receipt,
)


@attrs.frozen(kw_only=True)
class SendResult:
    """The result of one send; success and failure have the same fields.

    Attributes:
        ok: Whether Loops has the event; in a dry run, whether the event is valid.
        idempotency_key: The event's key; None if the event is invalid.
        attempts: Number of requests made.
        duplicate: Whether Loops had accepted the event before.
        dry_run: Whether the event was only checked.
        body: The body that would be sent; only in a dry run.
        elapsed: Seconds until Loops had the event; None if it does not.
        rate_limit: The rate limit in the last response, or None.
        error: The class of the error, or None.
        message: One line about the error, or None.
        status: The status of the response that caused the error, or None.
        problems: The reasons why the event is invalid.
        maybe_accepted: Whether Loops may have accepted the event despite the error.
        retryable: Whether sending the event again under its key may succeed.
        retry_after: Seconds for which the server asks the client to wait, or None.
    """

    ok: bool
    idempotency_key: str | None
    attempts: int = 0
    duplicate: bool = False
    dry_run: bool = False
    body: Mapping[str, Any] | None = None
    elapsed: float | None = None
    rate_limit: RateLimit | None = None
    error: str | None = None
    message: str | None = None
    status: int | None = None
    problems: tuple[str, ...] = ()
    maybe_accepted: bool = False
    retryable: bool = False
    retry_after: float | None = None

    @classmethod
    def from_receipt(
        cls, receipt: Receipt, body: Mapping[str, Any] | None = None
    ) -> "SendResult":
        """Return the result of a send that succeeded.

        Args:
            receipt: The receipt.
            body: The body that would be sent, in a dry run.
        """
        return cls(
            ok=True,
            idempotency_key=receipt.idempotency_key,
            attempts=receipt.attempts,
            duplicate=receipt.duplicate,
            dry_run=receipt.dry_run,
            body=body,
            elapsed=None if receipt.dry_run else receipt.elapsed,
            rate_limit=receipt.rate_limit,
        )

    @classmethod
    def from_error(
        cls, error: LoopsError, event: Event | None, *, dry_run: bool
    ) -> "SendResult":
        """Return the result of a send that failed.

        Args:
            error: The error.
            event: The event; None if it is invalid.
            dry_run: Whether the event was only to be checked.
        """
        response = error if isinstance(error, APIError) else None
        invalid = error if isinstance(error, InvalidEventError) else None
        return cls(
            ok=False,
            idempotency_key=None if event is None else event.idempotency_key,
            attempts=error.attempts,
            dry_run=dry_run,
            error=type(error).__name__,
            message=str(error),
            status=None if response is None else response.status,
            problems=() if invalid is None else invalid.problems,
            maybe_accepted=error.maybe_accepted,
            retryable=error.retryable,
            retry_after=None if response is None else response.retry_after,
        )

    def to_json(self) -> str:
        """Return the result as one line of JSON."""
        return json.dumps(attrs.asdict(self))
