"""The wire: what an answer means, and what of it may be shown."""

import gzip
import json
import math
import string
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from loops_async import errors
from loops_async._http.protocol import (
    MAX_BODY,
    RateLimit,
    Response,
    masked,
    rate_limit,
    refusal,
    retry_after,
)

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


def answer(status: int, body: bytes = b"", **values: str) -> Response:
    return Response(status, headers(**values), body)


def refused(given: Response, **switches: bool) -> errors.APIError:
    error = refusal(given, **switches)
    assert error is not None
    return error


# The table of design.md, row by row: class or None for accepted, whether to
# try again, whether it may have been accepted.
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
def test_each_answer_means_what_the_delivery_rules_say(
    status: int,
    body: bytes,
    kind: type[errors.APIError] | None,
    meaning: tuple[bool, bool],
) -> None:
    error = refusal(answer(status, body))
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


@settings(max_examples=300)
@given(st.integers(100, 999), st.binary(max_size=60), st.booleans(), st.booleans())
@example(200, b'"\\ud800"', True, True)
def test_no_answer_is_more_than_an_error_of_ours(
    status: int, body: bytes, promised: bool, throttled: bool
) -> None:
    error = refusal(
        answer(status, body), promised_object=promised, only_throttled=throttled
    )
    if error is None:
        assert status == 409 or 200 <= status < 300
    else:
        assert isinstance(error, errors.APIError)
        assert not error.maybe_accepted or error.retryable or status == 409


def test_a_truncated_2xx_is_not_json() -> None:
    """Not even if what was read of it would be."""
    long = Response(200, headers(), b'{"success":1   }', truncated=True)
    error = refused(long)
    assert (error.retryable, error.maybe_accepted) == AMBIGUOUS
    assert "longer than 16 bytes" in str(error)
    error = refused(long, promised_object=False)
    assert (error.retryable, error.maybe_accepted) == (False, True)


def test_the_usual_answer_with_more_behind_it_is_truncated_too() -> None:
    """`request` may be told to read 16 bytes."""
    assert refusal(Response(200, headers(), SUCCESS, truncated=True)) is not None


@pytest.mark.parametrize("body", [b"", b"[1]", b"null", b'"x"', b"{}", b"3"])
def test_other_endpoints_may_answer_with_any_json_or_nothing(body: bytes) -> None:
    assert refusal(answer(200, body), promised_object=False) is None


def test_other_endpoints_must_answer_with_json_all_the_same() -> None:
    error = refused(answer(200, HTML), promised_object=False)
    assert (error.retryable, error.maybe_accepted) == AMBIGUOUS
    error = refused(answer(200, b'{"success":false}'), promised_object=False)
    assert (error.retryable, error.maybe_accepted) == FINAL


def test_a_409_after_nothing_but_429_is_unknown() -> None:
    """Nobody knows whether those burn the key."""
    error = refused(answer(409, PROCESSED), only_throttled=True)
    assert type(error) is errors.IdempotencyConflictError
    assert (error.retryable, error.maybe_accepted) == (False, True)
    assert "409 after nothing but 429" in str(error)
    error = refused(answer(409, OTHER_BODY), only_throttled=True)
    assert (error.retryable, error.maybe_accepted) == FINAL


def test_a_409_without_a_key_is_a_refusal_like_any_other() -> None:
    body = b'{"message":"Email or userId is already on list."}'
    error = refused(answer(409, body), keyed=False)
    assert type(error) is errors.IdempotencyConflictError
    assert (error.retryable, error.maybe_accepted) == FINAL
    assert error.message == "Email or userId is already on list."


# What it says.


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
def test_the_message_is_one_line_of_what_was_said(body: bytes, message: str) -> None:
    error = refused(answer(400, body))
    assert error.message == message
    assert str(error) == f"Loops answered 400: {message}"


def test_a_page_of_html_is_named_and_not_quoted() -> None:
    error = refused(answer(502, HTML, Content_Type="text/html; charset=utf-8"))
    assert error.message == f"Bad Gateway (text/html; charset=utf-8, {len(HTML)} bytes)"
    long = Response(502, headers(), b"<" * MAX_BODY, truncated=True)
    assert refused(long).message == "Bad Gateway (no content type, over 65536 bytes)"


def test_a_status_nobody_knows_has_no_words() -> None:
    assert refused(answer(599)).args == ("Loops answered 599",)
    assert refused(answer(599, b"{}")).message == "(no content type, 2 bytes)"


def test_a_long_message_is_cut_to_200_characters() -> None:
    message = refused(answer(400, json.dumps({"message": "x" * 500}).encode())).message
    assert message == "x" * 199 + "…"
    assert refused(answer(400, b"y" * 200)).message == "y" * 200


def test_an_error_keeps_the_raw_answer() -> None:
    error = refused(answer(503, b"\xff{}", Retry_After="7", X_Id="1"))
    assert error.body == b"\xff{}"
    assert error.retry_after == 7.0
    assert type(error.headers) is dict
    assert {name.lower() for name in error.headers} == {"retry-after", "x-id"}


def test_the_headers_of_an_error_are_looked_up_in_lower_case() -> None:
    """As the docstring of APIError says."""
    assert refused(answer(503, b"", Retry_After="7")).headers == {"retry-after": "7"}


@pytest.mark.parametrize(("body", "read"), [(b"", None), (b"null", None), (b"1", 1)])
def test_an_empty_body_reads_as_none(body: bytes, read: object) -> None:
    assert answer(200, body).json() == read


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
def test_retry_after_is_seconds_from_now_or_nothing(
    value: str, seconds: float | None
) -> None:
    assert retry_after(headers(Retry_After=value), NOW) == seconds


def test_without_the_header_nothing_was_asked() -> None:
    assert retry_after(headers()) is None


def test_a_date_is_compared_with_the_clock() -> None:
    future = format_datetime(datetime(9999, 1, 1, tzinfo=UTC), usegmt=True)
    found = retry_after(headers(Retry_After=future))
    assert found is not None
    assert found > 86400


@given(
    st.integers(86_400, 7_258_118_400).map(
        lambda seconds: datetime.fromtimestamp(seconds, UTC)
    )
)
def test_any_date_says_how_long_from_now(date: datetime) -> None:
    asked = retry_after(headers(Retry_After=format_datetime(date, usegmt=True)), NOW)
    assert asked == max(0.0, date.timestamp() - NOW)


_HEADER = st.text(string.printable + "\xe9", max_size=40)


@settings(max_examples=400)
@given(_HEADER | st.from_regex(r"\A[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4}.*\Z"))
def test_no_retry_after_is_more_than_ignored(value: str) -> None:
    asked = retry_after(headers(Retry_After=value), NOW)
    assert asked is None or (math.isfinite(asked) and asked >= 0)


@pytest.mark.parametrize("zone", ["+99999999999999", "-" + "9" * 30])
def test_a_zone_beyond_all_bounds_is_ignored(zone: str) -> None:
    value = f"Mon, 23 Nov 2026 05:00:30 {zone}"
    assert retry_after(headers(Retry_After=value), NOW) is None


# The rate headers.


@pytest.mark.parametrize(
    ("limit", "remaining", "told"),
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
def test_rate_headers_are_two_plain_counts_or_nothing(
    limit: str | None, remaining: str | None, told: RateLimit | None
) -> None:
    given: dict[str, str] = {}
    if limit is not None:
        given["x_ratelimit_limit"] = limit
    if remaining is not None:
        given["X_RateLimit_Remaining"] = remaining
    assert rate_limit(headers(**given)) == told
    error = refused(answer(429, b"", **given))
    assert isinstance(error, errors.RateLimitError)
    expected = (None, None) if told is None else (told.limit, told.remaining)
    assert (error.limit, error.remaining) == expected


# Masking.


@pytest.mark.parametrize(
    ("text", "private", "shown"),
    [
        ("no ada@example.com here", ["ada@example.com"], "no *** here"),
        ("no ADA@Example.COM here", ["ada@example.com"], "no *** here"),
        ("ada%40example.com", ["ada@example.com"], "***"),
        ("a%2Bb%40x.y, a%2bb%40x.y", ["a+b@x.y"], "***, ***"),
        ("user 'u 1' unknown", ["u 1"], "user '***' unknown"),
        ("user u%201 unknown", ["u 1"], "user *** unknown"),
        ("a cat sat", ["a"], "*** cat sat"),
        ("abc", ["a"], "abc"),
        ("id 7 of 77", [7], "id *** of 77"),
        ("it costs 1.5 now", [1.5], "it costs *** now"),
        ("True, False or None", [True, False, None], "True, False or None"),
        ("nothing", [""], "nothing"),
        ("nothing", [], "nothing"),
        ("x .* y", [".*"], "x *** y"),
        ("a (b|c) [d] e", ["(b|c)", "[d]"], "a *** *** e"),
        ("^a$ \\d", ["^a$", "\\d"], "*** ***"),
        ("said: one two", ["one\n\ttwo"], "said: ***"),
        ("said: Ada Lovelace", ["Ada", "Ada Lovelace"], "said: ***"),
        ("jörg@münchen.example!", ["Jörg@München.example"], "***!"),
        ("+49 30", ["+49 30"], "***"),
    ],
)
def test_private_values_are_masked_in_what_a_server_says(
    text: str, private: list[object], shown: str
) -> None:
    assert masked(text, private) == shown


@given(
    st.lists(st.text(string.printable, min_size=1, max_size=12), max_size=4),
    st.sampled_from(["quoted", "as it is"]),
)
def test_a_masked_value_is_nowhere_in_the_text(values: list[str], how: str) -> None:
    words = [" ".join(value.split()) for value in values]
    words = [word for word in words if len(word) > 3]
    said = [quote(word) if how == "quoted" else word for word in words]
    shown = masked(" | ".join(said), words)
    # What the marks themselves are made of cannot be told from a value.
    assert not any(word in shown for word in words if set(word) - set("*| "))


@pytest.mark.parametrize("value", [" ", "\n", " \t "])
def test_a_value_of_white_space_masks_nothing(value: str) -> None:
    assert masked("a - b: (c)", [value]) == "a - b: (c)"


def _shown(message: str, private: list[Any]) -> str:
    body = json.dumps({"message": message}).encode()
    error = refusal(answer(400, body), clean=lambda text: masked(text, private))
    assert error is not None
    return error.message


def test_a_long_value_is_masked_where_the_message_begins_with_it() -> None:
    assert _shown("x" * 300, ["x" * 300]) == "***"


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("Not allowed: " + "secret " * 40, ("secret " * 40).strip()),
        ("x" * 190 + " ada@example.com", "ada@example.com"),
    ],
)
def test_a_value_cut_off_by_the_end_of_the_message_is_masked(
    message: str, value: str
) -> None:
    shown = _shown(message, [value])
    assert value[:5] not in shown


def test_an_email_or_a_long_value_is_masked_wherever_it_stands() -> None:
    """Also beside a letter, as after an escaped newline."""
    text = r"'x\nada@example.com' and _ada@example.com and xLovelace1815x, not xProx"
    private = ["ada@example.com", "Lovelace1815", "Pro"]
    assert masked(text, private) == r"'x\n***' and _*** and x***x, not xProx"
