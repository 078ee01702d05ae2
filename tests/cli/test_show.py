"""How things look."""

import io
import json

import attrs
import pytest
from multidict import CIMultiDict
from rich.console import Console
from rich.panel import Panel

from loops_async import BadRequestError, LoopsError, RateLimit, RateLimitError, errors
from loops_async.cli import _show
from loops_async.cli._result import exit_code
from loops_async.cli._words import words
from loops_async.sandbox import SandboxRequest

from .support import flat

REQUEST = SandboxRequest(
    method="POST",
    path="/api/v1/events/send",
    headers=CIMultiDict({"Authorization": "Bearer secret", "Idempotency-Key": "k1"}),
    body=b'{"eventName":"e","eventProperties":{"a":1}}',
    status=200,
    fault=None,
    at=0.0,
)


def _text(panel: Panel) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(panel)
    assert isinstance(console.file, io.StringIO)
    return flat(console.file.getvalue())


def test_a_request_shows_what_was_sent_but_for_the_api_key() -> None:
    lines = [line.plain for line in _show.request_lines(REQUEST)]
    assert lines == [
        "POST /api/v1/events/send",
        "Authorization: Bearer ***",
        "Idempotency-Key: k1",
        "{",
        '  "eventName": "e",',
        '  "eventProperties": {"a": 1}',
        "}",
    ]
    assert json.loads("".join(lines[3:])) == json.loads(REQUEST.body)


def test_headers_shown_before_are_counted_only() -> None:
    headers = CIMultiDict({**REQUEST.headers, "Idempotency-Key": "k2"})
    second = attrs.evolve(REQUEST, headers=headers)
    lines = [line.plain for line in _show.request_lines(second, shown_before=REQUEST)]
    assert lines[1:3] == ["Idempotency-Key: k2", "and the same 1 other header as above"]


def test_what_could_steer_a_terminal_is_replaced() -> None:
    """A server, or whoever answers in its place, is not to be trusted."""
    assert _show.printable("a\x1b[2J\x9b\r\u202eb") == "a�[2J���b"
    error = BadRequestError("Loops answered 400: \x1b[2J", status=400)
    assert "\x1b" not in _text(_show.error_panel(error, None, 1))


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_words_and_an_exit_code(name: str) -> None:
    error = getattr(errors, name)("why it was")
    said = words(error)
    text = _text(_show.error_panel(error, "the-key", exit_code(error)))
    assert said.headline in text
    assert name in text
    for word in said.advice.split():
        assert word in text


def test_an_error_of_a_class_to_come_gets_the_words_of_the_nearest() -> None:
    class NewError(RateLimitError):
        pass

    class OddError(LoopsError):
        pass

    assert words(NewError("x")) is words(RateLimitError("x"))
    assert words(OddError("x")) is words(LoopsError("x"))


def test_the_panel_says_how_long_the_server_asks_to_wait() -> None:
    error = RateLimitError("Loops answered 429", retry_after=5.0, retryable=True)
    text = _text(_show.error_panel(error, "k1", 4))
    assert "wait 5 s, as the server asks" in text
    assert "--key k1" in text


@pytest.mark.parametrize(
    ("status", "style"),
    [
        (200, _show.GOOD),
        (409, _show.ODD),
        (429, _show.ODD),
        (503, _show.BAD),
        (None, _show.BAD),
    ],
)
def test_a_status_has_the_style_of_its_meaning(status: int | None, style: str) -> None:
    assert _show.status_style(status) == style


def test_a_server_that_says_nothing_of_its_limit_is_not_quoted_on_it() -> None:
    assert _show.delivery(2, 0.25, None) == "2 attempts, 250 ms"
    left = RateLimit(limit=10, remaining=3)
    assert _show.delivery(1, 0.25, left).endswith("3 of 10 requests left")


def test_durations_and_counts_read_as_people_say_them() -> None:
    assert [_show.seconds(s) for s in (0.0414, 0.9, 1.26)] == [
        "41 ms",
        "900 ms",
        "1.3 s",
    ]
    assert [_show.count(n, "event") for n in (0, 1, 1200)] == [
        "0 events",
        "1 event",
        "1,200 events",
    ]
