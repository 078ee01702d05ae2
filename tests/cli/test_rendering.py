"""The look of requests, errors, durations and counts."""

import io
import json

import attrs
import pytest
from multidict import CIMultiDict
from rich.console import Console
from rich.panel import Panel

from loops_async import (
    BadRequestError,
    ConfigurationError,
    JournalError,
    LoopsError,
    RateLimit,
    RateLimitError,
    errors,
)
from loops_async.cli import _rendering
from loops_async.cli._advice import advice_for
from loops_async.cli._exit_codes import exit_code
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


def test_a_request_is_shown_in_full_with_the_api_key_masked() -> None:
    lines = [line.plain for line in _rendering.request_lines(REQUEST)]
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


def test_headers_equal_to_those_of_the_previous_request_are_only_counted() -> None:
    headers = CIMultiDict({**REQUEST.headers, "Idempotency-Key": "k2"})
    second = attrs.evolve(REQUEST, headers=headers)
    lines = [line.plain for line in _rendering.request_lines(second, previous=REQUEST)]
    assert lines[1:3] == ["Idempotency-Key: k2", "and the same 1 other header as above"]


def test_text_from_a_server_cannot_control_the_terminal() -> None:
    assert _rendering.printable("a\x1b[2J\x9b\r\u202eb") == "a�[2J���b"
    error = BadRequestError("Loops responded with 400: \x1b[2J", status=400)
    assert "\x1b" not in _text(_rendering.error_panel(error, None, 1))


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_a_headline_a_next_step_and_an_exit_code(name: str) -> None:
    error = getattr(errors, name)("the reason")
    advice = advice_for(error)
    code = exit_code(error)
    text = _text(_rendering.error_panel(error, "the-key", code))
    assert advice.headline in text
    assert f"{name}, exit code {code}" in text
    for word in advice.next_step.split():
        assert word in text


def test_an_error_of_an_unlisted_class_gets_the_advice_of_its_base_class() -> None:
    class NewError(RateLimitError):
        pass

    class OddError(LoopsError):
        pass

    assert advice_for(NewError("x")) is advice_for(RateLimitError("x"))
    assert advice_for(OddError("x")) is advice_for(LoopsError("x"))


def test_the_panel_of_a_rate_limit_shows_the_wait_that_the_server_requests() -> None:
    error = RateLimitError("Loops responded with 429", retry_after=5.0, retryable=True)
    text = _text(_rendering.error_panel(error, "k1", 4))
    assert "wait 5 s, as the server requests" in text
    assert "--key k1" in text


def test_the_panel_of_a_file_in_use_names_the_next_step() -> None:
    """The attribute of the error decides, whatever its text is."""
    in_use = JournalError("the reason")
    in_use.in_use = True
    assert "next Stop the program" in _text(_rendering.setting_panel(in_use, 3))
    for other in (
        JournalError("it is in use by another process"),
        ConfigurationError("the reason"),
    ):
        text = _text(_rendering.setting_panel(other, 3))
        assert "Cannot use this file or setting" in text
        assert "next" not in text


@pytest.mark.parametrize(
    ("status", "style"),
    [
        (200, _rendering.GOOD),
        (409, _rendering.WARNING),
        (429, _rendering.WARNING),
        (503, _rendering.BAD),
        (None, _rendering.BAD),
    ],
)
def test_the_style_of_a_status_shows_success_warning_or_failure(
    status: int | None, style: str
) -> None:
    assert _rendering.status_style(status) == style


def test_the_rest_of_the_rate_limit_is_shown_only_if_the_server_sent_it() -> None:
    assert _rendering.delivery(2, 0.25, None) == "2 attempts, 250 ms"
    rest = RateLimit(limit=10, remaining=3)
    assert _rendering.delivery(1, 0.25, rest).endswith("3 of 10 requests left")


def test_round_trips_and_counts_have_a_unit_or_a_noun() -> None:
    assert [_rendering.round_trip(s) for s in (0.0414, 0.9, 1.26)] == [
        "41 ms",
        "900 ms",
        "1.3 s",
    ]
    assert [_rendering.count(n, "event") for n in (0, 1, 1200)] == [
        "0 events",
        "1 event",
        "1,200 events",
    ]
