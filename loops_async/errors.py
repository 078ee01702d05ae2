"""The errors that this package raises, as one tree.

::

    LoopsError
    ├── ConfigurationError
    ├── InvalidEventError             (also a ValueError)
    ├── RecipientNotAllowedError
    ├── ClientClosedError
    ├── NotTriedError                 the bulk run stopped before this event
    ├── JournalError                  the file of an outbox or backfill failed
    ├── DeadlineExceededError         (also a TimeoutError)
    ├── TransportError                no usable response
    │   ├── ConnectFailedError        the request did not reach Loops
    │   ├── RequestTimeoutError       (also a TimeoutError)
    │   └── ConnectionLostError       closed, reset, truncated or malformed
    └── APIError                      Loops or a proxy responded with an error
        ├── BadRequestError           400
        ├── AuthenticationError       401
        ├── ForbiddenError            403
        ├── NotFoundError             404
        ├── IdempotencyConflictError  409, unless it confirms the event
        ├── PayloadTooLargeError      413
        ├── RateLimitError            429
        ├── ServerError               5xx
        └── UnexpectedResponseError   any other response

Each error prints as one line, can be pickled, and holds neither the API key nor
an exception of another package.
"""

from collections.abc import Mapping, Sequence

__all__ = [
    "APIError",
    "AuthenticationError",
    "BadRequestError",
    "ClientClosedError",
    "ConfigurationError",
    "ConnectFailedError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "ForbiddenError",
    "IdempotencyConflictError",
    "InvalidEventError",
    "JournalError",
    "LoopsError",
    "NotFoundError",
    "NotTriedError",
    "PayloadTooLargeError",
    "RateLimitError",
    "RecipientNotAllowedError",
    "RequestTimeoutError",
    "ServerError",
    "TransportError",
    "UnexpectedResponseError",
]


class LoopsError(Exception):
    """The base class of all errors of this package.

    Attributes:
        idempotency_key: The idempotency key of the event or request, or None.
        attempts: The number of requests sent by this call; 0 if it sent none.
        retryable: Whether the same call may succeed later, with the same key.
        maybe_accepted: Whether Loops may have accepted the event despite the
            error, because an attempt ended without a definite response and no
            later attempt settled the outcome. Send the event again only with
            the same key.
    """

    # Only the text is positional: unpickling calls the class with `args` and
    # restores the other attributes from `__dict__`, and subclasses of OSError
    # read further positional arguments as errno.
    def __init__(
        self,
        text: str = "",
        *,
        retryable: bool = False,
        maybe_accepted: bool = False,
    ) -> None:
        super().__init__(text)
        self.idempotency_key: str | None = None
        self.attempts = 0
        self.retryable = retryable
        self.maybe_accepted = maybe_accepted

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.attempts > 1:
            text += f" (after {self.attempts} attempts)"
        if self.maybe_accepted:
            text += "; the event may have been accepted"
        return text


class ConfigurationError(LoopsError):
    """The API key is missing, or a setting or argument is invalid."""


class InvalidEventError(LoopsError, ValueError):
    """The event breaks a rule, or shares its key with another; no request was sent.

    Attributes:
        problems: All problems, each as one line with the path of the value:
            ``event_properties.amount: NaN is not a JSON number``.
    """

    def __init__(self, text: str = "", *, problems: Sequence[str] = ()) -> None:
        super().__init__(text or "; ".join(problems))
        self.problems: tuple[str, ...] = tuple(problems)


class RecipientNotAllowedError(LoopsError):
    """The recipient is not in ``allowed_recipients``; no request was sent."""


class ClientClosedError(LoopsError):
    """The client or outbox is closed, so this call cannot continue."""


class NotTriedError(LoopsError):
    """The bulk run stopped before it sent this event."""


class JournalError(LoopsError):
    """The file of an outbox or backfill cannot be used here.

    Unless the file is damaged, it still holds the events that were stored earlier.

    Attributes:
        in_use: Whether the cause is that another owner has the file open.
    """

    in_use: bool = False


class DeadlineExceededError(LoopsError, TimeoutError):
    """The ``deadline`` of a call, or the ``patience`` of a run, leaves no time."""


class TransportError(LoopsError):
    """The attempt ended without a usable response.

    If an exception is the cause, the text contains its class and message. The
    exception itself is not kept, because its frames hold the Authorization header.
    """


class ConnectFailedError(TransportError):
    """The connection failed (DNS, refused, TLS), so Loops received no request."""


class RequestTimeoutError(TransportError, TimeoutError):
    """The attempt took longer than ``timeout``."""


class ConnectionLostError(TransportError):
    """The connection ended before the whole response came, or it was malformed."""


class APIError(LoopsError):
    """Loops, or a proxy in front of it, responded with an error.

    Attributes:
        status: The HTTP status of the response.
        message: The error message from the response, as one line in which the email,
            the user ID and the property values of the event are masked.
        body: The raw body of the response, at most its first 64 KiB (or ``max_body``).
        headers: The headers of the response, with names in lower case.
        retry_after: The Retry-After of the response in seconds, or None.
    """

    def __init__(
        self,
        text: str = "",
        *,
        status: int = 0,
        message: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
        maybe_accepted: bool = False,
    ) -> None:
        super().__init__(text, retryable=retryable, maybe_accepted=maybe_accepted)
        self.status = status
        self.message = message
        self.body = body
        self.headers: Mapping[str, str] = headers or {}
        self.retry_after = retry_after


class BadRequestError(APIError):
    """400: Loops rejected the request; see the message for the reason."""


class AuthenticationError(APIError):
    """401: the API key is missing, wrong or revoked."""


class ForbiddenError(APIError):
    """403: a firewall or proxy rejected the request; Loops does not send a 403."""


class NotFoundError(APIError):
    """404: the path (check ``base_url``) or the object does not exist."""


class IdempotencyConflictError(APIError):
    """409: the response does not confirm that Loops accepted the event before."""


class PayloadTooLargeError(APIError):
    """413: the request is larger than the server accepts."""


class RateLimitError(APIError):
    """429: the team sent more requests than its rate limit allows.

    Attributes:
        limit: Requests per second, from ``x-ratelimit-limit``, or None.
        remaining: Requests left, from ``x-ratelimit-remaining``, or None.
    """

    limit: int | None = None
    remaining: int | None = None


class ServerError(APIError):
    """5xx: Loops, or a proxy in front of it, failed."""


class UnexpectedResponseError(APIError):
    """The response is a redirect or an invalid 2xx, or has an unknown status."""
