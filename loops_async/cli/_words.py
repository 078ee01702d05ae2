"""Errors in plain words: what happened, and what to do next."""

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

from ._result import SendInterruptedError


@attrs.frozen
class Words:
    """An error in plain words.

    Attributes:
        headline: What happened.
        advice: What to do next.
    """

    headline: str
    advice: str


def words(error: LoopsError) -> Words:
    """Return the words for the error's class, or the nearest above it."""
    return next(_WORDS[kind] for kind in type(error).__mro__ if kind in _WORDS)


_WORDS: Final[dict[type, Words]] = {
    LoopsError: Words("It was not sent", "Read the message."),
    SendInterruptedError: Words(
        "Interrupted before the answer came", "Send it again to be sure."
    ),
    ConfigurationError: Words(
        "A setting is missing or wrong",
        "Correct it. The API key comes from LOOPS_API_KEY or --api-key-file.",
    ),
    InvalidEventError: Words(
        "The event is not valid, nothing was sent", "Correct it and send it again."
    ),
    DeadlineExceededError: Words(
        "The time was up", "Send it again, or allow more with --deadline."
    ),
    ConnectFailedError: Words(
        "Loops could not be reached",
        "Check the network, and --base-url or LOOPS_BASE_URL.",
    ),
    RequestTimeoutError: Words(
        "Loops did not answer in time",
        "Send it again, or allow more with --timeout and --deadline.",
    ),
    ConnectionLostError: Words(
        "The connection broke before the answer came", "Send it again."
    ),
    BadRequestError: Words("Loops refused the event", "Correct what the message says."),
    AuthenticationError: Words(
        "Loops refused the API key",
        "Compare LOOPS_API_KEY or --api-key-file with Settings > API in Loops.",
    ),
    ForbiddenError: Words(
        "Something before Loops refused the request",
        "Ask who runs the firewall or proxy: Loops itself never answers 403.",
    ),
    NotFoundError: Words(
        "There is no Loops at this address",
        "Check --base-url or LOOPS_BASE_URL: it ends in /api.",
    ),
    PayloadTooLargeError: Words(
        "The event is larger than the server takes", "Send less with it."
    ),
    IdempotencyConflictError: Words(
        "Loops knows this idempotency key from another event",
        "If this is a new event, leave --key out.",
    ),
    RateLimitError: Words(
        "Too many requests for this team",
        "Send it again later; others are using up the limit.",
    ),
    ServerError: Words("Loops had a fault", "Send it again later."),
    UnexpectedResponseError: Words(
        "The answer is none that Loops gives",
        "Check --base-url: something else may be answering there.",
    ),
}
