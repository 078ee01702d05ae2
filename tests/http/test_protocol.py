"""The meaning of responses."""

import gzip
import json
import math
import string
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from support.clients import KEY
from support.sends import make_request

from loops_async import errors
from loops_async._http.api_key import Secret
from loops_async._http.protocol import (
    RateLimit,
    Response,
    ends_run,
    judge,
    rate_limit,
    refusal,
    retry_after,
)
from loops_async._http.request import MAX_BODY

SUCCESS = b'{"success":true}'
PROCESSED = json.dumps(
    {
        "success": False,
        "message": "Request with idempotency key k has already been processed.",
    }
).encode()
OTHER_BODY = json.dumps(
    {
        "success": False,
        "message": "Idempotency key already used with a different request body.",
    }
).encode()
HTML = b"<!DOCTYPE html>\n<html><body>Bad gateway</body></html>"


def headers(**values: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(
        CIMultiDict({name.replace("_", "-"): value for name, value in values.items()})
    )


def response(status: int, body: bytes = b"", **values: str) -> Response:
    return Response(status, headers(**values), body)


def refused(received: Response, **options: Any) -> errors.APIError:
    error = refusal(received, **options)
    assert error is not None
    return error


# Status, body, error class (None if the event was accepted), and (retryable,
# maybe_accepted).
FINAL = (False, False)
CERTAIN = (True, False)
AMBIGUOUS = (True, True)
Row = tuple[int, bytes, type[errors.APIError] | None, tuple[bool, bool]]
TABLE: list[Row] = [
    (200, SUCCESS, None, FINAL),
    (201, b'{"id":"1"}', None, FINAL),
    (200, b"{}", None, FINAL),
    (200, b' {"success": null}\n', None, FINAL),
    (200, b'{"success":0}', None, FINAL),
    (200, b'{"success":"false"}', None, FINAL),
    (299, SUCCESS, None, FINAL),
    (200, b'{"success":false}', errors.UnexpectedResponseError, FINAL),
    (
        202,
        b'{"success":false,"message":"no"}',
        errors.UnexpectedResponseError,
        FINAL,
    ),
    (200, b"", errors.UnexpectedResponseError, AMBIGUOUS),
    (204, b"", errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b"[]", errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b"null", errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b"true", errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b'"ok"', errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b"ok", errors.UnexpectedResponseError, AMBIGUOUS),
    (200, HTML, errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b'{"success":tr', errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b'{"success":NaN}', errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b'\xef\xbb\xbf{"success":true}', errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b'{"a":"\xff"}', errors.UnexpectedResponseError, AMBIGUOUS),
    (200, gzip.compress(SUCCESS, mtime=0), errors.UnexpectedResponseError, AMBIGUOUS),
    (200, b"[" * 60_000, errors.UnexpectedResponseError, AMBIGUOUS),
    (409, PROCESSED, None, FINAL),
    (409, b"", None, FINAL),
    (409, HTML, None, FINAL),
    (409, b"[]", None, FINAL),
    (409, b'{"message":null}', None, FINAL),
    (409, OTHER_BODY, errors.IdempotencyConflictError, FINAL),
    (409, b'{"error":"Different BODY"}', errors.IdempotencyConflictError, FINAL),
    (429, b"", errors.RateLimitError, CERTAIN),
    (429, HTML, errors.RateLimitError, CERTAIN),
    (425, b"", errors.UnexpectedResponseError, CERTAIN),
    (408, b"", errors.UnexpectedResponseError, AMBIGUOUS),
    (500, b"", errors.ServerError, AMBIGUOUS),
    (501, SUCCESS, errors.ServerError, AMBIGUOUS),
    (502, HTML, errors.ServerError, AMBIGUOUS),
    (503, b"", errors.ServerError, AMBIGUOUS),
    (504, b"", errors.ServerError, AMBIGUOUS),
    (520, b"", errors.ServerError, AMBIGUOUS),
    (524, b"", errors.ServerError, AMBIGUOUS),
    (599, b"", errors.ServerError, AMBIGUOUS),
    (400, b'{"success":false,"message":"no"}', errors.BadRequestError, FINAL),
    (400, SUCCESS, errors.BadRequestError, FINAL),
    (401, b"", errors.AuthenticationError, FINAL),
    (403, HTML, errors.ForbiddenError, FINAL),
    (404, b'{"message":"Not found"}', errors.NotFoundError, FINAL),
    (413, b"", errors.PayloadTooLargeError, FINAL),
    (402, b"", errors.UnexpectedResponseError, FINAL),
    (405, b"", errors.UnexpectedResponseError, FINAL),
    (418, b"", errors.UnexpectedResponseError, FINAL),
    (422, b"", errors.UnexpectedResponseError, FINAL),
    (451, b"", errors.UnexpectedResponseError, FINAL),
    (499, b"", errors.UnexpectedResponseError, FINAL),
    (300, b"", errors.UnexpectedResponseError, FINAL),
    (301, b"", errors.UnexpectedResponseError, FINAL),
    (302, SUCCESS, errors.UnexpectedResponseError, FINAL),
    (304, b"", errors.UnexpectedResponseError, FINAL),
    (307, b"", errors.UnexpectedResponseError, FINAL),
    (308, b"", errors.UnexpectedResponseError, FINAL),
    (101, b"", errors.UnexpectedResponseError, FINAL),
    (600, b"", errors.UnexpectedResponseError, FINAL),
    (999, SUCCESS, errors.UnexpectedResponseError, FINAL),
]


@pytest.mark.parametrize(
    ("status", "body", "kind", "meaning"),
    TABLE,
    ids=[f"{row[0]}-{row[1][:24]!a}" for row in TABLE],
)
def test_each_response_becomes_the_error_of_the_delivery_rules(
    status: int,
    body: bytes,
    kind: type[errors.APIError] | None,
    meaning: tuple[bool, bool],
) -> None:
    error = refusal(response(status, body))
    if kind is None:
        assert error is None
        return
    assert error is not None
    assert type(error) is kind
    assert (error.retryable, error.maybe_accepted) == meaning
    assert (error.status, error.body) == (status, body)
    assert len(str(error).splitlines()) == 1
    assert str(status) in str(error)
    assert error.message.isprintable()
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [row[:3] for row in TABLE],
    ids=[f"{row[0]}-{row[1][:24]!a}" for row in TABLE],
)
def test_a_judged_response_knows_its_rate_headers_and_whether_it_is_a_duplicate(
    status: int, body: bytes, kind: type[errors.APIError] | None
) -> None:
    rates = {"X_RateLimit_Limit": "10", "X_RateLimit_Remaining": "9"}
    received = response(status, body, **rates)
    error = judge(received, make_request(), Secret(KEY), only_rate_limited=False)
    assert error is None if kind is None else type(error) is kind
    assert received.rate_limit == RateLimit(10, 9)
    assert received.duplicate is (status == 409 and kind is None)


@pytest.mark.parametrize(
    ("changes", "status", "body", "is_accepted"),
    [
        ({}, 200, b"[]", False),
        ({"promised_object": False}, 200, b"[]", True),
        ({}, 409, b"", True),
        ({"key": None}, 409, b"", False),
    ],
)
def test_the_request_decides_what_its_response_means(
    changes: dict[str, object], status: int, body: bytes, is_accepted: bool
) -> None:
    request = make_request(**changes)
    error = judge(response(status, body), request, Secret(KEY), only_rate_limited=False)
    assert (error is None) is is_accepted


def test_a_409_that_is_judged_after_429s_only_is_an_error() -> None:
    received = response(409, PROCESSED)
    error = judge(received, make_request(), Secret(KEY), only_rate_limited=True)
    assert type(error) is errors.IdempotencyConflictError
    assert not received.duplicate


def test_a_judged_error_shows_neither_the_api_key_nor_the_values_of_the_request() -> (
    None
):
    text = f"ada@example.com with {KEY}"
    body = json.dumps({"message": text}).encode()
    request = make_request(content={"email": "ada@example.com"})
    error = judge(
        response(400, body, X_Echo=KEY), request, Secret(KEY), only_rate_limited=False
    )
    assert error is not None
    assert error.message == "*** with ***"
    assert error.headers == {"x-echo": "***"}
    assert error.body == body.replace(KEY.encode(), b"***")


@settings(max_examples=300)
@given(st.integers(100, 999), st.binary(max_size=60), st.booleans(), st.booleans())
@example(200, b'"\\ud800"', True, True)
def test_every_response_is_accepted_or_becomes_an_api_error(
    status: int, body: bytes, promised: bool, rate_limited: bool
) -> None:
    error = refusal(
        response(status, body), promised_object=promised, only_rate_limited=rate_limited
    )
    if error is None:
        assert status == 409 or 200 <= status < 300
    else:
        assert isinstance(error, errors.APIError)
        assert not error.maybe_accepted or error.retryable or status == 409


def test_a_truncated_2xx_is_not_read_as_json() -> None:
    """Even if the first part is JSON, the rest may not be."""
    long = Response(200, headers(), b'{"success":1   }', truncated=True)
    error = refused(long)
    assert (error.retryable, error.maybe_accepted) == AMBIGUOUS
    assert "longer than 16 bytes" in str(error)
    error = refused(long, promised_object=False)
    assert (error.retryable, error.maybe_accepted) == (False, True)


def test_the_usual_success_body_is_not_accepted_if_it_is_truncated() -> None:
    """A caller of `request` may limit the body to these 16 bytes."""
    cut = Response(200, headers(), SUCCESS, truncated=True)
    error = judge(cut, make_request(), Secret(KEY), only_rate_limited=False)
    assert type(error) is errors.UnexpectedResponseError


@pytest.mark.parametrize("body", [b"", b"[1]", b"null", b'"x"', b"{}", b"3"])
def test_any_json_or_an_empty_body_is_accepted_from_other_endpoints(
    body: bytes,
) -> None:
    assert refusal(response(200, body), promised_object=False) is None


def test_a_body_that_is_not_json_is_an_error_from_other_endpoints() -> None:
    error = refused(response(200, HTML), promised_object=False)
    assert (error.retryable, error.maybe_accepted) == AMBIGUOUS
    error = refused(response(200, b'{"success":false}'), promised_object=False)
    assert (error.retryable, error.maybe_accepted) == FINAL


def test_a_409_after_429s_only_leaves_the_outcome_unknown() -> None:
    """Loops does not document whether a 429 uses the idempotency key up."""
    error = refused(response(409, PROCESSED), only_rate_limited=True)
    assert type(error) is errors.IdempotencyConflictError
    assert (error.retryable, error.maybe_accepted) == (False, True)
    assert "409 after nothing but 429" in str(error)
    error = refused(response(409, OTHER_BODY), only_rate_limited=True)
    assert (error.retryable, error.maybe_accepted) == FINAL


def test_a_409_without_an_idempotency_key_is_final() -> None:
    body = b'{"message":"Email or userId is already on list."}'
    error = refused(response(409, body), keyed=False)
    assert type(error) is errors.IdempotencyConflictError
    assert (error.retryable, error.maybe_accepted) == FINAL
    assert error.message == "Email or userId is already on list."


# The end of a run.


@pytest.mark.parametrize(
    ("error", "is_end"),
    [
        (errors.AuthenticationError(status=401), True),
        (errors.NotFoundError(status=404), True),
        (errors.UnexpectedResponseError(status=405), True),
        (errors.UnexpectedResponseError(status=300), True),
        (errors.UnexpectedResponseError(status=399), True),
        (errors.UnexpectedResponseError(status=299), False),
        (errors.UnexpectedResponseError(status=418), False),
        (errors.BadRequestError(status=400), False),
        (errors.ForbiddenError(status=403), False),
        (errors.RateLimitError(status=429, retryable=True), False),
        (errors.ServerError(status=503, retryable=True), False),
        (errors.ConnectFailedError("refused certificate"), True),
        (errors.ConnectFailedError("refused connection", retryable=True), False),
        (errors.ConnectionLostError("closed"), False),
        (errors.RequestTimeoutError("late", retryable=True), False),
        (errors.ClientClosedError("closed"), True),
        (errors.ConfigurationError("session is closed"), True),
        (errors.JournalError("disk full"), True),
        (errors.InvalidEventError("email: required"), False),
        (errors.RecipientNotAllowedError("not allowed"), False),
        (errors.DeadlineExceededError("late"), False),
    ],
    ids=repr,
)
def test_an_error_that_every_event_would_share_ends_a_run(
    error: errors.LoopsError, is_end: bool
) -> None:
    assert ends_run(error) is is_end


# The message.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"message":"m","error":"e"}', "m"),
        (b'{"error":"e"}', "e"),
        (b'{"message":"","error":"e"}', "e"),
        (b'{"message":" \\n","error":"e"}', "e"),
        (b'{"message":null,"error":{"path":"p","message":"deep"}}', "deep"),
        (b'{"error":{"path":"p","reason":"why"}}', "why"),
        (b'{"message":{"message":"deep"}}', "Bad Request (no content type, 30 bytes)"),
        (b'{"message":"two\\nlines\\u2028 and\\ttabs"}', "two lines and tabs"),
        (b"plain text", "plain text"),
        (b"  two\r\nlines ", "two lines"),
        (b"", "Bad Request"),
        (b"  ", "Bad Request"),
        (b"{}", "Bad Request (no content type, 2 bytes)"),
        (b'{"message":5,"error":[]}', "Bad Request (no content type, 24 bytes)"),
        (b'{"error":{"path":"p"}}', "Bad Request (no content type, 22 bytes)"),
        (b"[1]", "Bad Request (no content type, 3 bytes)"),
        (b'{"message":"cut', "Bad Request (no content type, 15 bytes)"),
        (b"a\x00b", "Bad Request (no content type, 3 bytes)"),
        (b"\xff\xfe", "Bad Request"),
    ],
)
def test_the_message_is_one_line_from_the_body(body: bytes, message: str) -> None:
    error = refused(response(400, body))
    assert error.message == message
    assert str(error) == f"Loops responded with 400: {message}"


def test_an_html_page_is_described_and_not_quoted() -> None:
    error = refused(response(502, HTML, Content_Type="text/html; charset=utf-8"))
    assert error.message == f"Bad Gateway (text/html; charset=utf-8, {len(HTML)} bytes)"
    long = Response(502, headers(), b"<" * MAX_BODY, truncated=True)
    assert refused(long).message == "Bad Gateway (no content type, over 65536 bytes)"


def test_an_unknown_status_has_no_reason_phrase() -> None:
    assert refused(response(599)).args == ("Loops responded with 599",)
    assert refused(response(599, b"{}")).message == "(no content type, 2 bytes)"


def test_a_long_message_is_cut_to_200_characters() -> None:
    message = refused(
        response(400, json.dumps({"message": "x" * 500}).encode())
    ).message
    assert message == "x" * 199 + "…"
    assert refused(response(400, b"y" * 200)).message == "y" * 200


def test_an_error_keeps_the_raw_response() -> None:
    error = refused(response(503, b"\xff{}", Retry_After="7", X_Id="1"))
    assert error.body == b"\xff{}"
    assert error.retry_after == 7.0
    assert type(error.headers) is dict
    assert {name.lower() for name in error.headers} == {"retry-after", "x-id"}


def test_the_headers_of_an_error_have_names_in_lower_case() -> None:
    assert refused(response(503, b"", Retry_After="7")).headers == {"retry-after": "7"}


@pytest.mark.parametrize(("body", "value"), [(b"", None), (b"null", None), (b"1", 1)])
def test_the_json_of_an_empty_body_is_none(body: bytes, value: object) -> None:
    assert response(200, body).json() == value


# Retry-After.

NOW = datetime(2026, 11, 23, 5, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("86400", 86400.0),
        ("1e3", 1000.0),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", None),
        ("-1", None),
        ("", None),
        (" ", None),
        ("soon", None),
        ("7 seconds", None),
        ("7,8", None),
        ("Mon, 23 Nov 2026 05:00:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 05:00:30 -0000", 30.0),
        ("Mon, 23 Nov 2026 05:00:30", 30.0),
        ("Mon, 23 Nov 2026 06:00:30 +0100", 30.0),
        ("Monday, 23-Nov-26 05:00:30 GMT", 30.0),
        ("Mon Nov 23 05:00:30 2026", 30.0),
        ("Mon, 23 Nov 2026 04:59:59 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Mon, 23 Nov 2026 25:00:00 GMT", None),
        ("Mon, 32 Nov 2026 05:00:00 GMT", None),
        ("Mon, 23 Nov 99999 05:00:00 GMT", None),
        ("2026-11-23T05:00:30Z", None),
    ],
)
def test_retry_after_is_seconds_from_now_or_none(
    value: str, seconds: float | None
) -> None:
    assert retry_after(headers(Retry_After=value), NOW) == seconds


def test_retry_after_is_none_without_the_header() -> None:
    assert retry_after(headers()) is None


def test_a_date_is_compared_with_the_system_clock() -> None:
    future = format_datetime(datetime(9999, 1, 1, tzinfo=UTC), usegmt=True)
    found = retry_after(headers(Retry_After=future))
    assert found is not None
    assert found > 86400


@given(
    st.integers(86_400, 7_258_118_400).map(
        lambda seconds: datetime.fromtimestamp(seconds, UTC)
    )
)
def test_any_date_becomes_seconds_from_now(date: datetime) -> None:
    seconds = retry_after(headers(Retry_After=format_datetime(date, usegmt=True)), NOW)
    assert seconds == max(0.0, date.timestamp() - NOW)


_HEADER = st.text(string.printable + "\xe9", max_size=40)


@settings(max_examples=400)
@given(_HEADER | st.from_regex(r"\A[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4}.*\Z"))
def test_no_value_of_retry_after_raises(value: str) -> None:
    seconds = retry_after(headers(Retry_After=value), NOW)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


@pytest.mark.parametrize("zone", ["+99999999999999", "-" + "9" * 30])
def test_a_date_with_an_impossible_time_zone_is_ignored(zone: str) -> None:
    value = f"Mon, 23 Nov 2026 05:00:30 {zone}"
    assert retry_after(headers(Retry_After=value), NOW) is None


# The rate headers.


@pytest.mark.parametrize(
    ("limit", "remaining", "expected"),
    [
        ("10", "0", RateLimit(10, 0)),
        ("10", "9", RateLimit(10, 9)),
        ("0", "0", RateLimit(0, 0)),
        ("0010", "5", RateLimit(10, 5)),
        ("999999999", "1", RateLimit(999999999, 1)),
        ("10", None, None),
        (None, "9", None),
        (None, None, None),
        ("", "", None),
        ("10", "-1", None),
        ("10", "9.5", None),
        ("ten", "9", None),
        ("10, 10;w=1", "9", None),
        (" 10", "9", None),
        ("10", "٣", None),
        ("1e1", "9", None),
        ("9" * 5000, "1", None),
    ],
)
def test_rate_headers_are_two_plain_counts_or_none(
    limit: str | None, remaining: str | None, expected: RateLimit | None
) -> None:
    values: dict[str, str] = {}
    if limit is not None:
        values["x_ratelimit_limit"] = limit
    if remaining is not None:
        values["X_RateLimit_Remaining"] = remaining
    assert rate_limit(headers(**values)) == expected
    error = refused(response(429, b"", **values))
    assert isinstance(error, errors.RateLimitError)
    counts = (None, None) if expected is None else attrs.astuple(expected)
    assert (error.limit, error.remaining) == counts
