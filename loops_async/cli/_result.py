"""What became of a send, for machines: one object and one exit code."""

import json
from collections.abc import Mapping
from typing import Any, Final

import attrs

from loops_async import (
    APIError,
    AuthenticationError,
    ConfigurationError,
    Event,
    InvalidEventError,
    JournalError,
    LoopsError,
    RateLimit,
    Receipt,
)

REFUSED: Final = 1
CONFIGURATION: Final = 3
UNKNOWN: Final = 4
UNWRITABLE: Final = 74  # EX_IOERR, which Windows has not
INTERRUPTED: Final = 130


class SendInterruptedError(LoopsError):
    """Ctrl-C came before the answer."""


@attrs.frozen(kw_only=True)
class Result:
    """One send; the same names whether it went well or not.

    Attributes:
        ok: Whether Loops has the event, or would be sent it in a dry run.
        idempotency_key: The event's; None if none was made for it.
        attempts: Requests made.
        duplicate: Whether Loops had accepted it before.
        dry_run: Whether it was only checked.
        body: What would be sent, in a dry run only.
        elapsed: Seconds until Loops had it; None if it has not.
        rate_limit: The server's last word on the limit, or None.
        error: The class of the error, or None.
        message: One line on it, or None.
        status: Of the last answer, if that was the error.
        problems: Why the event is not valid.
        maybe_accepted: Whether Loops may have it all the same.
        retryable: Whether the same again, with the same key, may succeed.
        retry_after: Seconds the server asked to wait, or None.
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

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(attrs.asdict(self))


def accepted(receipt: Receipt, body: Mapping[str, Any] | None = None) -> Result:
    """Return what a receipt says; ``body`` is given in a dry run."""
    return Result(
        ok=True,
        idempotency_key=receipt.idempotency_key,
        attempts=receipt.attempts,
        duplicate=receipt.duplicate,
        dry_run=receipt.dry_run,
        body=body,
        elapsed=None if receipt.dry_run else receipt.elapsed,
        rate_limit=receipt.rate_limit,
    )


def failed(error: LoopsError, event: Event | None, *, dry_run: bool) -> Result:
    """Return what an error says; ``event`` is None if it was not valid."""
    answered = error if isinstance(error, APIError) else None
    invalid = error if isinstance(error, InvalidEventError) else None
    return Result(
        ok=False,
        idempotency_key=None if event is None else event.idempotency_key,
        attempts=error.attempts,
        dry_run=dry_run,
        error=type(error).__name__,
        message=str(error),
        status=None if answered is None else answered.status,
        problems=() if invalid is None else invalid.problems,
        maybe_accepted=error.maybe_accepted,
        retryable=error.retryable,
        retry_after=None if answered is None else answered.retry_after,
    )


def exit_code(error: LoopsError) -> int:
    """Return the exit code; that nobody knows outweighs why."""
    if isinstance(error, SendInterruptedError):
        return INTERRUPTED
    if isinstance(error, JournalError):
        return CONFIGURATION
    if error.maybe_accepted or error.retryable:
        return UNKNOWN
    if isinstance(error, ConfigurationError | AuthenticationError):
        return CONFIGURATION
    return REFUSED
