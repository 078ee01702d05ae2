"""Every error this library raises, as one tree.

::

    LoopsError
    ├── ConfigurationError
    ├── InvalidEventError             (also a ValueError)
    ├── RecipientNotAllowedError
    ├── ClientClosedError
    ├── NotTriedError                 a bulk run ended before it
    ├── JournalError                  the file of an outbox or backfill
    ├── DeadlineExceededError         (also a TimeoutError)
    ├── TransportError                no usable answer
    │   ├── ConnectFailedError        never reached Loops
    │   ├── RequestTimeoutError       (also a TimeoutError)
    │   └── ConnectionLostError       closed, reset, truncated, malformed
    └── APIError                      Loops, or a proxy before it, answered
        ├── BadRequestError           400
        ├── AuthenticationError       401
        ├── ForbiddenError            403
        ├── NotFoundError             404
        ├── IdempotencyConflictError  409 that does not mean accepted
        ├── PayloadTooLargeError      413
        ├── RateLimitError            429
        ├── ServerError               5xx
        └── UnexpectedResponseError   anything else

Each prints as one line, survives pickling and never holds the API key or an
exception of another library.
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
    """Something about a call to Loops went wrong.

    Attributes:
        idempotency_key: The key of the event, or None outside a send.
        attempts: How many requests this call made; 0 means none left.
        retryable: Whether making the same call again, later and with the
            same key, may succeed.
        maybe_accepted: Whether Loops may have accepted the event all the
            same: some attempt ended without a definite answer and no later
            one confirmed it. Send again only with the same key.
    """

    # Only the text is positional: pickling calls the class with `args` and
    # restores the rest from `__dict__`, and OSError's children would read
    # further positionals as errno.
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
    """No API key, or a setting that cannot work; raised at construction."""


class InvalidEventError(LoopsError, ValueError):
    """The event breaks a rule of the API; nothing was sent.

    Attributes:
        problems: One line each, all of them, every line with the path of
            the value: ``event_properties.amount: NaN is not a JSON number``.
    """

    def __init__(self, text: str = "", *, problems: Sequence[str] = ()) -> None:
        super().__init__(text or "; ".join(problems))
        self.problems: tuple[str, ...] = tuple(problems)


class RecipientNotAllowedError(LoopsError):
    """The client's ``allowed_recipients`` refused it; nothing was sent."""


class ClientClosedError(LoopsError):
    """The client was closed before this call could send (anything more)."""


class NotTriedError(LoopsError):
    """The run of many events was stopped before this one was sent."""


class JournalError(LoopsError):
    """The file of an outbox or backfill cannot be opened, read or written.

    What was acknowledged before is still in it.

    Attributes:
        in_use: Whether it is because somebody else has the file open.
    """

    in_use: bool = False


class DeadlineExceededError(LoopsError, TimeoutError):
    """The ``deadline`` of the call passed, or was certain to pass."""


class TransportError(LoopsError):
    """The attempt ended without a usable answer.

    The text names the class and message of the cause; the exception itself
    is kept nowhere, because its frames hold the Authorization header.
    """


class ConnectFailedError(TransportError):
    """The connection failed (DNS, refused, TLS), so nothing reached Loops."""


class RequestTimeoutError(TransportError, TimeoutError):
    """One attempt took longer than ``timeout``."""


class ConnectionLostError(TransportError):
    """The connection was closed or reset, or carried no valid HTTP."""


class APIError(LoopsError):
    """Loops, or a proxy before it, answered and did not accept.

    Attributes:
        status: The HTTP status.
        message: What the answer says, in one line; the event's own ids and
            property values are masked in it.
        body: The raw answer, at most 64 KiB of it.
        headers: The answer's headers; look names up in lower case.
        retry_after: Seconds the server asked to wait, or None.
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
    """400: Loops refused the request; the message says why."""


class AuthenticationError(APIError):
    """401: the API key is missing, wrong or revoked."""


class ForbiddenError(APIError):
    """403: a firewall or proxy refused it; Loops itself never answers 403."""


class NotFoundError(APIError):
    """404: no such path (check ``base_url``) or no such object."""


class IdempotencyConflictError(APIError):
    """409 that does not mean "already processed, the event is in"."""


class PayloadTooLargeError(APIError):
    """413: the request was larger than the server takes."""


class RateLimitError(APIError):
    """429: more requests than the team's limit.

    Attributes:
        limit: Requests per second, from ``x-ratelimit-limit``, or None.
        remaining: What is left, from ``x-ratelimit-remaining``, or None.
    """

    limit: int | None = None
    remaining: int | None = None


class ServerError(APIError):
    """5xx: Loops, or something before it, failed."""


class UnexpectedResponseError(APIError):
    """A redirect, a 2xx that is not what the API promises, an odd status."""
