"""The redaction of API keys and private values in server-supplied text."""

import json
import string
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clients import KEY

from loops_async import Event, errors
from loops_async._events.codec import encode, make_converter
from loops_async._http.api_key import Secret
from loops_async._http.protocol import Response, refusal
from loops_async._http.redaction import Redactor, masked, redact_api_key

EVENT = Event(
    "signup",
    email="ada@example.com",
    user_id="usr_1815",
    event_properties={"plan": "difference engine"},
    contact_properties={"city": "London", "age": 36},
    mailing_lists={"cm06f5v0e45nf0ml5754o9cix": True},
)
TEXT = (
    "signup of ada@example.com (usr_1815), difference engine, London, 36, "
    "list cm06f5v0e45nf0ml5754o9cix"
)
REDACTED = "signup of *** (***), ***, ***, ***, list cm06f5v0e45nf0ml5754o9cix"


@pytest.mark.parametrize(
    "content",
    [EVENT, encode(EVENT, make_converter())],
    ids=["event", "encoded event"],
)
def test_the_values_of_an_event_are_redacted_but_not_its_name_and_lists(
    content: object,
) -> None:
    assert Redactor(Secret(KEY), content)(TEXT) == REDACTED


@pytest.mark.parametrize(
    "content",
    [
        {"a": "secret word"},
        ["secret word"],
        ("secret word",),
        ({"a": [{"b": ("secret word",)}]}, {}),
        "secret word",
    ],
    ids=repr,
)
def test_every_value_of_any_json_is_redacted(content: object) -> None:
    redact = Redactor(Secret(KEY), content)
    assert redact("no secret word here") == "no *** here"


def test_the_api_key_is_redacted_within_a_word_and_without_content() -> None:
    redact = Redactor(Secret(KEY), None)
    assert redact(f"key=x{KEY}x") == "key=x***x"


def test_the_repr_of_a_redactor_hides_the_api_key_and_the_content() -> None:
    text = repr(Redactor(Secret(KEY), EVENT))
    assert KEY not in text
    assert "ada@example.com" not in text


def test_the_api_key_is_redacted_in_the_body_and_in_each_header_of_an_error() -> None:
    error = errors.ServerError(
        "no", body=f"a {KEY} b {KEY}".encode(), headers={"x-a": KEY, "x-b": "c"}
    )
    assert redact_api_key(error, Secret(KEY)) is error
    assert error.body == b"a *** b ***"
    assert error.headers == {"x-a": "***", "x-b": "c"}


# Private values.


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
        ("text: one two", ["one\n\ttwo"], "text: ***"),
        ("text: Ada Lovelace", ["Ada", "Ada Lovelace"], "text: ***"),
        ("jörg@münchen.example!", ["Jörg@München.example"], "***!"),
        ("+49 30", ["+49 30"], "***"),
    ],
)
def test_private_values_are_masked_in_server_supplied_text(
    text: str, private: list[object], shown: str
) -> None:
    assert masked(text, private) == shown


@given(
    st.lists(st.text(string.printable, min_size=1, max_size=12), max_size=4),
    st.sampled_from(["quoted", "unquoted"]),
)
def test_a_masked_value_is_nowhere_in_the_text(values: list[str], form: str) -> None:
    words = [" ".join(value.split()) for value in values]
    words = [word for word in words if len(word) > 3]
    parts = [quote(word) if form == "quoted" else word for word in words]
    shown = masked(" | ".join(parts), words)
    # A value made of the characters of the mask and the separator is skipped.
    assert not any(word in shown for word in words if set(word) - set("*| "))


@pytest.mark.parametrize("value", [" ", "\n", " \t "])
def test_a_value_of_white_space_only_masks_nothing(value: str) -> None:
    assert masked("a - b: (c)", [value]) == "a - b: (c)"


def _message_of(message: str, private: list[Any]) -> str:
    body = json.dumps({"message": message}).encode()
    response = Response(400, {}, body)
    error = refusal(response, redact=lambda text: masked(text, private))
    assert error is not None
    return error.message


def test_a_value_longer_than_the_message_limit_is_masked() -> None:
    assert _message_of("x" * 300, ["x" * 300]) == "***"


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("Not allowed: " + "secret " * 40, ("secret " * 40).strip()),
        ("x" * 190 + " ada@example.com", "ada@example.com"),
    ],
)
def test_a_value_across_the_message_limit_is_masked(message: str, value: str) -> None:
    shown = _message_of(message, [value])
    assert value[:5] not in shown


def test_an_email_or_a_long_value_is_masked_within_a_word() -> None:
    """An escaped newline, for example, puts a letter in front of the value."""
    text = r"'x\nada@example.com' and _ada@example.com and xLovelace1815x, not xProx"
    private = ["ada@example.com", "Lovelace1815", "Pro"]
    assert masked(text, private) == r"'x\n***' and _*** and x***x, not xProx"
