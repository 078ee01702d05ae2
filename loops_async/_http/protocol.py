"""The HTTP of Loops, without I/O: the meaning of a response.

Rules: https://loops.so/docs/api-reference/intro (rate limits, errors) and
https://loops.so/docs/api-reference/send-event (idempotency).
"""

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Protocol

import attrs

from loops_async import errors
from loops_async._json import loads

from .api_key import Secret
from .redaction import Redactor, redact_api_key
from .request import Request

MAX_RETRY_AFTER: Final = 60.0  # seconds; a call does not wait for a longer one

_SUCCESS: Final = b'{"success":true}'


@attrs.frozen
class RateLimit:
    """The rate limit that the headers of a response report.

    Attributes:
        limit: Requests per second for the team.
        remaining: Requests left in the server's current window.
    """

    __module__ = "loops_async"

    limit: int
    remaining: int


@attrs.define
class Response:
    """One HTTP response with its body.

    Attributes:
        status: The HTTP status.
        headers: The headers; the lookup ignores case.
        body: The body, or its beginning if it was longer than allowed.
        truncated: Whether the body was longer than allowed.
        round_trip: Seconds from sending to the response; None for the first request of
            a connection, whose time includes the set-up, and with a borrowed session.
        rate_limit: The rate limit that the headers report; `judge` sets it.
        duplicate: Whether Loops had accepted the idempotency key before;
            `judge` sets it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False
    round_trip: float | None = None
    rate_limit: RateLimit | None = None
    duplicate: bool = False

    def json(self) -> Any:
        """Return the JSON in the body; None for an empty body.

        Raises:
            ValueError: If the body is truncated or is not JSON.
        """
        if self.truncated:
            msg = f"longer than {len(self.body)} bytes"
            raise ValueError(msg)
        return loads(self.body) if self.body else None


class Transport(Protocol):
    """The connections of one client in one event loop.

    Attributes:
        loop: The event loop that the connections belong to.
        thread: The identifier of the thread that runs the event loop.
        max_connections: The greatest number of requests in flight.
        closed: Whether the transport accepts no further requests.
        borrowed: The session whose owner may close it at any time, or None.
    """

    loop: asyncio.AbstractEventLoop
    thread: int
    max_connections: int
    closed: bool
    borrowed: Any

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""

    async def exchange(
        self, request: Request, api_key: Secret, timeout: float | None
    ) -> Response | errors.LoopsError:
        """Send one request; return its response, or the error that ended it."""

    async def close(self, grace: float) -> None:
        """Let requests in flight finish within the grace (seconds), then close."""


def judge(
    response: Response, request: Request, api_key: Secret, *, only_rate_limited: bool
) -> errors.APIError | None:
    """Return None if Loops accepted the request, else the error to raise.

    The function sets `Response.rate_limit` and `Response.duplicate`. The error's
    ``retryable`` and ``maybe_accepted`` describe this one attempt.

    Args:
        response: The response.
        request: The request that it belongs to.
        api_key: The API key that the request carried; the error does not show it.
        only_rate_limited: Whether an earlier attempt got a 429, and no earlier attempt
            may have been accepted. Loops does not document whether a 429 uses up a key.
    """
    response.rate_limit = rate_limit(response.headers)
    if response.status == 200 and response.body == _SUCCESS and not response.truncated:
        return None  # nearly every response
    error = refusal(
        response,
        promised_object=request.promised_object,
        keyed=request.key is not None,
        only_rate_limited=only_rate_limited,
        redact=Redactor(api_key, request.content),
    )
    return None if error is None else redact_api_key(error, api_key)


def refusal(
    response: Response,
    *,
    promised_object: bool = True,
    keyed: bool = True,
    only_rate_limited: bool = False,
    redact: Callable[[str], str] = str,
) -> errors.APIError | None:
    """Return None if Loops accepted the request, else the error; see `judge`.

    Accepted means a 2xx with a JSON object whose ``success`` is not false, or a
    409 for an idempotency key that was accepted before.

    Args:
        response: The response.
        promised_object: Whether the endpoint responds with a JSON object. If not,
            any JSON and an empty body are accepted.
        keyed: Whether the request carried an idempotency key. Without one, a 409
            is a refusal like any other.
        only_rate_limited: As in `judge`.
        redact: A callable that removes private values from server-supplied text.
    """
    status = response.status
    if 200 <= status < 300:
        try:
            content = response.json()
        except ValueError as error:
            what = f"a {status} whose body cannot be read as JSON ({_one_line(error)})"
        else:
            if isinstance(content, dict) and content.get("success") is False:
                message = _message(response, content, redact)
                return _error(response, message, f"a {status} whose success is false")
            if isinstance(content, dict) or not promised_object:
                return None
            what = f"a {status} whose body is not a JSON object"
        message = _message(response, None, redact)
        # Without a promised object the body may be a list, which stays too long.
        retryable = promised_object or not response.truncated
        return _error(response, message, what, retryable=retryable, maybe_accepted=True)
    message = _message(response, _content(response), redact)
    if status == HTTPStatus.CONFLICT and keyed:
        if _OTHER_BODY.search(message):
            return _error(response, message)
        if only_rate_limited:
            what = "a 409 after nothing but 429s, which may have used up the key"
            return _error(response, message, what, maybe_accepted=True)
        response.duplicate = True
        return None
    certain = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.TOO_EARLY)
    ambiguous = status == HTTPStatus.REQUEST_TIMEOUT or 500 <= status < 600
    return _error(
        response, message, retryable=certain or ambiguous, maybe_accepted=ambiguous
    )


_OTHER_BODY: Final = re.compile(r"(?i)\bdifferent\b.*\bbody\b")


def ends_run(error: errors.LoopsError) -> bool:
    """Return whether every other event would fail in the same way.

    Such an error stops a bulk run and pauses an outbox.
    """
    if isinstance(error, errors.APIError):
        wrong_address = error.status in (404, 405) or 300 <= error.status < 400
        return wrong_address or isinstance(error, errors.AuthenticationError)
    if isinstance(error, errors.ConnectFailedError):
        return not error.retryable  # the server's certificate was refused
    return isinstance(
        error,
        errors.ClientClosedError | errors.ConfigurationError | errors.JournalError,
    )


def rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    """Return the rate limit in the headers; None unless both are plain counts."""
    return _rate_limit(headers.get(_LIMIT, ""), headers.get(_REMAINING, ""))


@lru_cache(maxsize=1024)
def _rate_limit(limit: str, remaining: str) -> RateLimit | None:
    if _COUNT.fullmatch(limit) and _COUNT.fullmatch(remaining):
        return RateLimit(int(limit), int(remaining))
    return None


_LIMIT: Final = "X-RateLimit-Limit"
_REMAINING: Final = "X-RateLimit-Remaining"
_COUNT: Final = re.compile(r"[0-9]{1,9}")


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the Retry-After in seconds from now; None if it is absent or malformed.

    Args:
        headers: The headers of the response.
        now: The current Unix time, for the form with a date; None means now.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        if date.tzinfo is None:  # "-0000" means UTC, too
            date = date.replace(tzinfo=UTC)
        seconds = date.timestamp() - (time.time() if now is None else now)
        return max(0.0, seconds)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _content(response: Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _error(
    response: Response,
    message: str,
    what: str = "",
    *,
    retryable: bool = False,
    maybe_accepted: bool = False,
) -> errors.APIError:
    status = response.status
    if 500 <= status < 600:
        error_class: type[errors.APIError] = errors.ServerError
    else:
        error_class = _BY_STATUS.get(status, errors.UnexpectedResponseError)
    text = f"Loops responded with {what or status}"
    error = error_class(
        f"{text}: {message}" if message else text,
        status=status,
        message=message,
        body=response.body,
        headers={name.lower(): value for name, value in response.headers.items()},
        retry_after=retry_after(response.headers),
        retryable=retryable,
        maybe_accepted=maybe_accepted,
    )
    if isinstance(error, errors.RateLimitError):
        reported = rate_limit(response.headers)
        if reported is not None:
            error.limit, error.remaining = reported.limit, reported.remaining
    return error


_BY_STATUS: Final[Mapping[int, type[errors.APIError]]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    409: errors.IdempotencyConflictError,
    413: errors.PayloadTooLargeError,
    429: errors.RateLimitError,
}


def _message(response: Response, content: Any, redact: Callable[[str], str]) -> str:
    """Return the response's message in one line, or a description of the response."""
    if isinstance(content, dict):
        # The deprecated `error` is a text, or an object with a message or a reason.
        error = content.get("error")
        nested = error if isinstance(error, dict) else {}
        for text in (
            content.get("message"),
            error,
            nested.get("message"),
            nested.get("reason"),
        ):
            if isinstance(text, str) and text.strip():
                return _one_line(redact(text))
    reason = _REASONS.get(response.status, "")
    text = _one_line(redact(response.body.decode(errors="ignore")))
    if not text:
        return reason
    if text.isprintable() and not text.startswith(("<", "{", "[")):
        return text
    content_type = response.headers.get("content-type", "no content type")
    size = f"{'over ' if response.truncated else ''}{len(response.body)} bytes"
    return f"{reason} ({_one_line(redact(content_type))}, {size})".lstrip()


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


def _one_line(text: object) -> str:
    """Return the text as one line of at most 200 characters."""
    line = " ".join(str(text).encode(errors="backslashreplace").decode().split())
    return line if len(line) <= 200 else line[:199] + "…"
