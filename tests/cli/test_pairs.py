"""NAME=VALUE and NAME:=JSON."""

import json
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async.cli import _pairs

_CONTEXT = click.Context(click.Command("send"))
_OPTION = click.Option(["--prop"])
_MAP = click.Option(["--map"], metavar="FIELD=COLUMN")


def _scalars(*pairs: str) -> dict[str, Any]:
    return _pairs.scalars(_CONTEXT, _OPTION, pairs)


def _texts(*pairs: str) -> dict[str, str]:
    return _pairs.texts(_CONTEXT, _MAP, pairs)


def _refusal(*pairs: str, read: Any = _pairs.scalars, option: Any = _OPTION) -> str:
    with pytest.raises(click.BadParameter) as caught:
        read(_CONTEXT, option, pairs)
    return caught.value.format_message()


@pytest.mark.parametrize(
    ("pair", "name", "value"),
    [
        ("plan=Pro", "plan", "Pro"),
        ("plan=", "plan", ""),
        ("amount=42", "amount", "42"),
        ("amount:=42", "amount", 42),
        ("amount:=4.5", "amount", 4.5),
        ("on:=true", "on", True),
        ("company:=null", "company", None),
        ('text:="4"', "text", "4"),
        ("url=http://x/?a:=b", "url", "http://x/?a:=b"),
        ("a b=c", "a b", "c"),
    ],
)
def test_a_property_is_a_string_after_an_equals_sign_and_json_after_a_colon(
    pair: str, name: str, value: object
) -> None:
    read = _scalars(pair)
    assert read == {name: value}
    assert type(read[name]) is type(value)


@given(
    name=st.text(min_size=1).filter(lambda name: "=" not in name and name[-1] != ":"),
    text=st.text(),
    value=st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
)
def test_any_string_and_any_json_scalar_can_be_written_as_a_property(
    name: str, text: str, value: float | None
) -> None:
    assert _scalars(f"{name}={text}") == {name: text}
    if value not in (float("inf"), float("-inf")):
        assert _scalars(f"{name}:={json.dumps(value)}") == {name: value}


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("Pro", "'Pro' is not NAME=VALUE or NAME:=JSON"),
        ("=Pro", "'=Pro' is not NAME=VALUE"),
        (":=1", "':=1' is not NAME=VALUE"),
        ("a:=Pro", "'a:=Pro': 'Pro' is not JSON"),
        ("a:=", "'' is not JSON"),
        ("a:=NaN", "'NaN' is not JSON"),
        ("a:=Infinity", "'Infinity' is not JSON"),
        (f"a:={'9' * 5000}", "is not JSON"),
        ("a:=[1]", "'a:=[1]': a value must be a string, a number"),
        ("a:={}", "a value must be a string, a number"),
        ("a:=" + "[" * 100_000, "[[…' is not JSON"),
    ],
)
def test_a_malformed_property_is_refused_with_the_option_and_the_pair(
    pair: str, reason: str
) -> None:
    refusal = _refusal(pair)
    assert reason in refusal
    assert "--prop" in refusal


def test_a_name_that_occurs_twice_is_refused_in_either_spelling() -> None:
    assert "'a' is given more than once" in _refusal("a=1", "b=1", "a:=2")
    refusal = _refusal("a=date", "a=date", read=_pairs.texts, option=_MAP)
    assert "'a' is given more than once" in refusal


def test_a_mailing_list_is_true_or_false() -> None:
    pairs = ["one=true", "two=false", "three:=true"]
    read = _pairs.memberships(_CONTEXT, _OPTION, pairs)
    assert read == {"one": True, "two": False, "three": True}
    assert "not 'yes'" in _refusal("one=yes", read=_pairs.memberships)
    assert "ID=true or ID=false" in _refusal("one", read=_pairs.memberships)


def test_a_fault_has_a_probability() -> None:
    read = _pairs.probabilities(_CONTEXT, _OPTION, ["503=0.1", "502=1"])
    assert read == {"503": 0.1, "502": 1.0}
    assert "'often' is not a number" in _refusal("503=often", read=_pairs.probabilities)
    assert "FAULT=PROBABILITY" in _refusal("503", read=_pairs.probabilities)


@pytest.mark.parametrize(
    ("pair", "name", "text"),
    [
        ("email=E-Mail", "email", "E-Mail"),
        ("email=E-Mail: private", "email", "E-Mail: private"),
        ("amount=a=b", "amount", "a=b"),  # only the first = splits
        ("amount=:=b", "amount", ":=b"),
        ("amount:=Total", "amount:", "Total"),  # a column has no JSON value
    ],
)
def test_a_column_keeps_its_colons_and_equals_signs(
    pair: str, name: str, text: str
) -> None:
    assert _texts(pair) == {name: text}


@given(st.text(min_size=1))
def test_any_heading_can_be_mapped(heading: str) -> None:
    assert _texts(f"email={heading}") == {"email": heading}


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("email", "'email' is not FIELD=COLUMN"),
        ("=x", "'=x' is not FIELD=COLUMN"),
        ("email=", "'email=': the value is empty"),
    ],
)
def test_a_malformed_column_is_refused_with_the_option_and_the_pair(
    pair: str, reason: str
) -> None:
    refusal = _refusal(pair, read=_pairs.texts, option=_MAP)
    assert reason in refusal
    assert "--map" in refusal
