"""A headline and a next step for each class of error."""

from typing import Final

import attrs

from loops_async import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    DeadlineExceededError,
    ForbiddenError,
    IdempotencyConflictError,
    InvalidEventError,
    LoopsError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    UnexpectedResponseError,
)

from ._exit_codes import SendInterruptedError


@attrs.frozen
class Advice:
    """A description of an error for the user.

    Attributes:
        headline: What happened.
        next_step: What the user can do about it.
    """

    headline: str
    next_step: str


def advice_for(error: LoopsError) -> Advice:
    """Return the advice for the error's class, or for its nearest base class."""
    return next(_ADVICE[kind] for kind in type(error).__mro__ if kind in _ADVICE)


_ADVICE: Final[dict[type, Advice]] = {
    LoopsError: Advice("The event was not sent", "Resolve the problem."),
    SendInterruptedError: Advice(
        "Interrupted before the response arrived",
        "To be sure, send the event again with the same key.",
    ),
    ConfigurationError: Advice(
        "A setting is missing or invalid",
        "Correct the setting. The API key comes from LOOPS_API_KEY or --api-key-file.",
    ),
    InvalidEventError: Advice(
        "The event is invalid and was not sent", "Correct the event and send it again."
    ),
    DeadlineExceededError: Advice(
        "Deadline exceeded",
        "Send the event again, or allow more time with --deadline.",
    ),
    ConnectFailedError: Advice(
        "Cannot connect to Loops",
        "Check the network, and --base-url or LOOPS_BASE_URL.",
    ),
    RequestTimeoutError: Advice(
        "Loops did not respond in time",
        "Send the event again, or allow more time with --timeout and --deadline.",
    ),
    ConnectionLostError: Advice(
        "Connection lost before the response arrived", "Send the event again."
    ),
    BadRequestError: Advice(
        "Loops rejected the event", "Correct the event and send it again."
    ),
    AuthenticationError: Advice(
        "Loops rejected the API key",
        "Compare LOOPS_API_KEY or --api-key-file with Settings > API in Loops.",
    ),
    ForbiddenError: Advice(
        "A firewall or proxy rejected the request",
        "Contact its operator: Loops itself never responds with 403.",
    ),
    NotFoundError: Advice(
        "Loops is not at this address",
        "Check --base-url or LOOPS_BASE_URL: it ends in /api.",
    ),
    PayloadTooLargeError: Advice(
        "The event is larger than the server accepts",
        "Send fewer or shorter properties.",
    ),
    IdempotencyConflictError: Advice(
        "Loops has another event under this idempotency key",
        "If this is a new event, omit --key.",
    ),
    RateLimitError: Advice(
        "Too many requests for this team",
        "Send the event again later; other clients are using up the limit.",
    ),
    ServerError: Advice("Loops had an internal error", "Send the event again later."),
    UnexpectedResponseError: Advice(
        "The response is not one that Loops sends",
        "Check --base-url or LOOPS_BASE_URL: another server may be responding.",
    ),
}
