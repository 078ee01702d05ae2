"""name=value and name:=json."""

import json
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async.cli import _pairs

_CONTEXT = click.Context(click.Command("send"))
_OPTION = click.Option(["--prop"])


def _scalars(*texts: str) -> dict[str, Any]:
    return _pairs.scalars(_CONTEXT, _OPTION, texts)


def _refusal(*texts: str, read: Any = _pairs.scalars) -> str:
    with pytest.raises(click.BadParameter) as caught:
        read(_CONTEXT, _OPTION, texts)
    return caught.value.format_message()


@pytest.mark.parametrize(
    ("text", "name", "value"),
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
def test_a_pair_is_a_text_or_json(text: str, name: str, value: object) -> None:
    read = _scalars(text)
    assert read == {name: value}
    assert type(read[name]) is type(value)


@given(
    name=st.text(min_size=1).filter(lambda name: "=" not in name and name[-1] != ":"),
    text=st.text(),
    value=st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
)
def test_any_text_and_any_scalar_can_be_written(
    name: str, text: str, value: float | None
) -> None:
    assert _scalars(f"{name}={text}") == {name: text}
    if value not in (float("inf"), float("-inf")):
        assert _scalars(f"{name}:={json.dumps(value)}") == {name: value}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Pro", "'Pro' is not name=value or name:=JSON"),
        ("=Pro", "'=Pro' is not name=value"),
        (":=1", "':=1' is not name=value"),
        ("a:=Pro", "'a:=Pro': 'Pro' is not JSON"),
        ("a:=", "'' is not JSON"),
        ("a:=NaN", "'NaN' is not JSON"),
        ("a:=Infinity", "'Infinity' is not JSON"),
        (f"a:={'9' * 5000}", "is not JSON"),
        ("a:=[1]", "'a:=[1]': only a string, a number"),
        ("a:={}", "only a string, a number"),
        ("a:=" + "[" * 100_000, "[[…' is not JSON"),
    ],
)
def test_what_is_no_pair_is_refused_with_the_option_and_the_text(
    text: str, why: str
) -> None:
    refusal = _refusal(text)
    assert why in refusal
    assert "--prop" in refusal


def test_a_name_given_twice_is_refused_in_either_spelling() -> None:
    assert "'a' is given twice" in _refusal("a=1", "b=1", "a:=2")


def test_a_list_is_true_or_false() -> None:
    texts = ["one=true", "two=false", "three:=true"]
    read = _pairs.memberships(_CONTEXT, _OPTION, texts)
    assert read == {"one": True, "two": False, "three": True}
    assert "not 'yes'" in _refusal("one=yes", read=_pairs.memberships)
    assert "ID=true or ID=false" in _refusal("one", read=_pairs.memberships)


def test_a_fault_has_a_probability() -> None:
    read = _pairs.probabilities(_CONTEXT, _OPTION, ["503=0.1", "502=1"])
    assert read == {"503": 0.1, "502": 1.0}
    assert "'often' is not a number" in _refusal("503=often", read=_pairs.probabilities)
    assert "FAULT=PROBABILITY" in _refusal("503", read=_pairs.probabilities)
