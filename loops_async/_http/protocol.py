"""The HTTP of Loops, without I/O: what an answer means.

Rules: https://loops.so/docs/api-reference/intro (rate limits, errors) and
https://loops.so/docs/api-reference/send-event (idempotency).
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import attrs

from loops_async import errors
from loops_async._json import loads

EVENTS_PATH: Final = "/v1/events/send"
API_KEY_PATH: Final = "/v1/api-key"
MAX_BODY: Final = 64 * 1024


@attrs.define
class Request:
    """What to request, and how patiently.

    Attributes:
        url: Absolute.
        body: JSON, or None.
        key: The idempotency key, or None.
        content: What the body was made of; its values are masked in errors.
        promised_object: Whether the endpoint answers with a JSON object.
        repeatable: Whether it may be sent again when nobody knows whether
            it was accepted.
        max_body: Bytes of the answer to read at most.
        timeout: Seconds for one attempt; None is no end.
        deadline: Seconds for all of it; None is no end.
    """

    method: str
    url: str
    body: bytes | None
    key: str | None
    content: object
    timeout: float | None
    deadline: float | None
    promised_object: bool = True
    repeatable: bool = True
    max_body: int = MAX_BODY


@attrs.frozen
class RateLimit:
    """The server's last word on the rate limit, from an answer's headers.

    Attributes:
        limit: Requests per second for the team.
        remaining: Requests left in the server's current window.
    """

    limit: int
    remaining: int


@attrs.define
class Response:
    """An HTTP answer, read.

    Attributes:
        status: The HTTP status.
        headers: By any spelling of their names.
        body: The body, or its beginning if it was longer than allowed.
        truncated: Whether it was longer.
        round_trip: Seconds it took, if its connection had been used before;
            a new one's set-up would count in.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False
    round_trip: float | None = None

    def json(self) -> Any:
        """Return the body's JSON; None for an empty body.

        Raises:
            ValueError: if it is none.
        """
        if self.truncated:
            msg = f"longer than {len(self.body)} bytes"
            raise ValueError(msg)
        return loads(self.body) if self.body else None


def rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    """Read the two rate headers; None unless both are plain counts."""
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
    """Read Retry-After: seconds from now, or None if it says nothing usable.

    Args:
        headers: Of the answer.
        now: Unix time, for the form with a date.
    """
    given = headers.get("retry-after")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        try:
            date = parsedate_to_datetime(given)
        except (ValueError, OverflowError):
            return None
        if date.tzinfo is None:  # "-0000" means UTC too
            date = date.replace(tzinfo=UTC)
        seconds = date.timestamp() - (time.time() if now is None else now)
        return max(0.0, seconds)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def plainly_accepted(answer: Response) -> bool:
    """Tell at once what `refusal` would find out: nearly all answers are this."""
    return (
        answer.body == b'{"success":true}'
        and answer.status == 200
        and not answer.truncated
    )


def refusal(
    answer: Response,
    *,
    promised_object: bool = True,
    keyed: bool = True,
    only_throttled: bool = False,
    clean: Callable[[str], str] = str,
) -> errors.APIError | None:
    """Judge an answer: None if Loops accepted, else the error to raise.

    The error's ``retryable`` and ``maybe_accepted`` speak of this one
    attempt. Accepted is a 2xx with a JSON object whose ``success`` is not
    false, and a 409, which refuses a key that was accepted before.

    Args:
        answer: The answer.
        promised_object: Whether the endpoint answers with a JSON object; if
            not, any JSON or an empty body will do.
        keyed: Whether an idempotency key was sent; without one a 409 is a
            refusal like any other.
        only_throttled: Whether of the earlier attempts under this key only
            those answered with 429 reached Loops; nobody knows whether a 429
            burns the key.
        clean: Takes out of the server's words what nobody must see.
    """
    status = answer.status
    if 200 <= status < 300:
        try:
            content = answer.json()
        except ValueError as not_json:
            what = f"{status} whose body is not JSON ({_brief(not_json)})"
        else:
            if isinstance(content, dict) and content.get("success") is False:
                message = _message(answer, content, clean)
                return _error(answer, message, f"{status} without success")
            if isinstance(content, dict) or not promised_object:
                return None
            what = f"{status} whose body is not a JSON object"
        message = _message(answer, None, clean)
        # A list too long to read is as long the next time.
        retryable = promised_object or not answer.truncated
        return _error(answer, message, what, retryable=retryable, maybe_accepted=True)
    message = _message(answer, _content(answer), clean)
    if status == HTTPStatus.CONFLICT and keyed:
        if _OTHER_BODY.search(message):
            return _error(answer, message)
        if only_throttled:
            what = "409 after nothing but 429, which may have used the key up"
            return _error(answer, message, what, maybe_accepted=True)
        return None
    certain = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.TOO_EARLY)
    ambiguous = status == HTTPStatus.REQUEST_TIMEOUT or 500 <= status < 600
    return _error(
        answer, message, retryable=certain or ambiguous, maybe_accepted=ambiguous
    )


_OTHER_BODY: Final = re.compile(r"(?i)\bdifferent\b.*\bbody\b")


def _content(answer: Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _error(
    answer: Response,
    message: str,
    what: str = "",
    *,
    retryable: bool = False,
    maybe_accepted: bool = False,
) -> errors.APIError:
    status = answer.status
    if 500 <= status < 600:
        kind: type[errors.APIError] = errors.ServerError
    else:
        kind = _BY_STATUS.get(status, errors.UnexpectedResponseError)
    text = f"Loops answered {what or status}"
    error = kind(
        f"{text}: {message}" if message else text,
        status=status,
        message=message,
        body=answer.body,
        headers={name.lower(): value for name, value in answer.headers.items()},
        retry_after=retry_after(answer.headers),
        retryable=retryable,
        maybe_accepted=maybe_accepted,
    )
    if isinstance(error, errors.RateLimitError):
        told = rate_limit(answer.headers)
        if told is not None:
            error.limit, error.remaining = told.limit, told.remaining
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


def ends_run(error: errors.LoopsError) -> bool:
    """Return whether every other event would end like this one."""
    if isinstance(error, errors.APIError):
        wrong_address = error.status in (404, 405) or 300 <= error.status < 400
        return wrong_address or isinstance(error, errors.AuthenticationError)
    if isinstance(error, errors.ConnectFailedError):
        return not error.retryable  # a certificate that is refused
    return isinstance(
        error,
        errors.ClientClosedError | errors.ConfigurationError | errors.JournalError,
    )


def _message(answer: Response, content: Any, clean: Callable[[str], str]) -> str:
    """Say in one line what the answer says, or what it is."""
    if isinstance(content, dict):
        # `error` is deprecated: a text, or an object with a message or reason.
        error = content.get("error")
        nested = error if isinstance(error, dict) else {}
        for said in (
            content.get("message"),
            error,
            nested.get("message"),
            nested.get("reason"),
        ):
            if isinstance(said, str) and said.strip():
                return _brief(clean(said))
    reason = _REASONS.get(answer.status, "")
    text = _brief(clean(answer.body.decode(errors="ignore")))
    if not text:
        return reason
    if text.isprintable() and not text.startswith(("<", "{", "[")):
        return text
    kind = _brief(clean(answer.headers.get("content-type", "no content type")))
    size = f"{'over ' if answer.truncated else ''}{len(answer.body)} bytes"
    return f"{reason} ({kind}, {size})".lstrip()


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


def _brief(text: object) -> str:
    """Return it as one line of at most 200 characters, all of which can be printed."""
    line = " ".join(str(text).encode(errors="backslashreplace").decode().split())
    return line if len(line) <= 200 else line[:199] + "…"


def masked(text: str, private: Iterable[object]) -> str:
    """Return the text with each private value in it replaced by ``***``.

    Args:
        text: What a server said.
        private: The IDs and property values of an event; booleans and None
            say nothing about anybody and stay.
    """
    words = {
        str(value)
        for value in private
        if value is not None and not isinstance(value, bool) and str(value).strip()
    }
    words |= set(map(quote, words))
    words = {word for word in words if len(" ".join(word.split())) <= len(text)}
    if not words:
        return text
    # Longest first, so that none is half masked by a part of it.
    longest_first = sorted(words, key=len, reverse=True)
    patterns = (_word_pattern(word) for word in longest_first)
    return re.sub("(?i)" + "|".join(patterns), "***", text)


def _word_pattern(word: str) -> str:
    pattern = r"\s+".join(map(re.escape, word.split()))
    # A short value is looked for as a whole word only, or "a" would blot out
    # the text.
    short = len(word) < 8 and "@" not in word
    return rf"(?<!\w){pattern}(?!\w)" if short else pattern
