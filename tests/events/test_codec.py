"""The codec: the body of an event, its record, and the JSON of both."""

import builtins
import importlib.util
import json
import math
import re
import string
from collections.abc import Callable, Mapping
from datetime import UTC
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loops_async import Event, InvalidEventError, _json
from loops_async import event_from_record as from_record
from loops_async import event_to_record as to_record
from loops_async._events.codec import encode, make_converter

FIELDS = {
    "event_name": "eventName",
    "email": "email",
    "user_id": "userId",
    "event_properties": "eventProperties",
    "contact_properties": "contactProperties",
    "mailing_lists": "mailingLists",
    "idempotency_key": "idempotencyKey",
}

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_wire_values = st.one_of(
    _texts,
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.uuids(),
)
_ids = st.text(
    string.ascii_letters + string.digits + "_-.|é😀", min_size=1, max_size=20
)
_safe = _ids.map(lambda name: f"p{name}")
_emails = st.none() | _ids.map(lambda name: f"{name}@example.com")
_events = st.builds(
    lambda name, ids, properties, contact, lists, key: Event(
        name,
        email=ids[0],
        user_id=ids[1],
        event_properties=properties,
        contact_properties=contact,
        mailing_lists=lists,
        idempotency_key=key,
    ),
    _ids,
    st.tuples(_emails, st.none() | _ids).filter(any),
    st.dictionaries(_safe, _wire_values, max_size=4),
    st.dictionaries(_safe, st.none() | _wire_values, max_size=4),
    st.dictionaries(_safe, st.booleans(), max_size=3),
    st.none() | st.text(string.printable[:94], min_size=1, max_size=100),
)


def body_of(event: Event) -> dict[str, Any]:
    body = json.loads(encode(event, make_converter()))
    assert isinstance(body, dict)
    return body


def camel(record: Mapping[str, Any]) -> dict[str, Any]:
    return {FIELDS[name]: value for name, value in record.items()}


def problems_of(record: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidEventError) as caught:
        from_record(record)
    return caught.value.problems


def test_the_body_of_an_event_with_all_fields_is_the_body_of_the_api_page() -> None:
    """https://loops.so/docs/api-reference/send-event"""
    event = Event(
        "planUpgraded",
        email="ada@example.com",
        user_id="u1",
        event_properties={"amount": 42},
        contact_properties={"firstName": "Ada", "company": None},
        mailing_lists={"l1": True, "l2": False},
        idempotency_key="k",
    )
    assert body_of(event) == {
        "eventName": "planUpgraded",
        "email": "ada@example.com",
        "userId": "u1",
        "eventProperties": {"amount": 42},
        "mailingLists": {"l1": True, "l2": False},
        "firstName": "Ada",
        "company": None,
    }


def test_a_field_that_is_empty_is_left_out_of_the_body() -> None:
    assert body_of(Event("e", email="a@b")) == {"eventName": "e", "email": "a@b"}
    assert body_of(Event("e", user_id="u")) == {"eventName": "e", "userId": "u"}


def test_a_falsy_property_is_sent_with_its_value_and_type() -> None:
    falsy: dict[str, Any] = {"text": "", "int": 0, "float": 0.0, "bool": False}
    event = Event("e", email="a@b", event_properties=falsy, contact_properties=falsy)
    body = body_of(event)
    assert body["eventProperties"] == falsy
    assert {name: body[name] for name in falsy} == falsy
    assert [type(body[name]) for name in falsy] == [str, int, float, bool]


@given(_events)
def test_the_body_of_an_event_contains_its_fields_and_nothing_else(
    event: Event,
) -> None:
    body = body_of(event)
    assert body.pop("eventName") == event.event_name
    assert body.pop("email", None) == event.email
    assert body.pop("userId", None) == event.user_id
    assert body.pop("eventProperties", {}) == event.event_properties
    assert body.pop("mailingLists", {}) == event.mailing_lists
    assert body == event.contact_properties


@given(_events)
def test_an_event_that_is_encoded_twice_has_the_same_body(event: Event) -> None:
    converter = make_converter()
    assert encode(event, converter) == encode(event, converter)
    assert converter.unstructure(event) == json.loads(encode(event, converter))


@given(_events)
def test_an_event_read_from_its_record_is_equal(event: Event) -> None:
    """In snake_case and camelCase, and through both JSON implementations."""
    record = to_record(event)
    assert set(record) <= set(FIELDS)
    assert from_record(record) == event
    assert from_record(json.loads(json.dumps(record))) == event
    assert from_record(_json.loads(_json.dumps(camel(record)))) == event
    assert make_converter().structure(record, Event) == event


def test_a_field_that_is_empty_is_left_out_of_the_record() -> None:
    event = Event("e", user_id="u", idempotency_key="k")
    record = to_record(event)
    assert record == {"event_name": "e", "user_id": "u", "idempotency_key": "k"}


def test_a_record_that_is_changed_leaves_its_event_unchanged() -> None:
    event = Event("e", user_id="u", event_properties={"a": 1})
    record = to_record(event)
    assert type(record["event_properties"]) is dict
    record["event_properties"]["a"] = 2
    assert event.event_properties == {"a": 1}


def test_null_in_a_record_is_an_absent_field_but_clears_a_contact_property() -> None:
    record = dict.fromkeys(FIELDS) | {
        "event_name": "e",
        "email": "a@b",
        "contact_properties": {"company": None},
    }
    event = from_record(record)
    assert event.user_id is None
    assert event.event_properties == {}
    assert event.contact_properties == {"company": None}


def test_an_event_from_a_record_without_a_key_has_a_new_key() -> None:
    record = {"event_name": "e", "email": "a@b"}
    assert from_record(record).idempotency_key != from_record(record).idempotency_key
    assert from_record(MappingProxyType(record)).email == "a@b"


@pytest.mark.parametrize(
    ("record", "problems"),
    [
        ([], ["record: must be an object, not list"]),
        (None, ["record: must be an object, not NoneType"]),
        ("{}", ["record: must be an object, not str"]),
        (
            {},
            [
                "email: required unless user_id is given",
                "event_name: must be a string, not None",
            ],
        ),
        (
            {"event_name": "e", "eventName": "e", "email": "a@b"},
            ["eventName: given twice, as event_name in another spelling"],
        ),
        (
            {"event_name": "e", "email": "a@b", "firstName": "Ada"},
            ["firstName: unknown field, expected event_name, email, user_id, "],
        ),
        (
            {"evntName": "e", "email": "a", "event_properties": {"p": []}},
            [
                "evntName: unknown field",
                "email: must be of the form",
                "event_name: must be a string",
                "event_properties.p: list cannot be sent",
            ],
        ),
        (
            {"eventName": "e", "email": "a@b", "mailingLists": {"l": "true"}},
            ["mailing_lists.l: must be True or False"],
        ),
    ],
)
def test_an_invalid_record_reports_every_problem(
    record: Any, problems: list[str]
) -> None:
    found = sorted(problems_of(record))
    assert len(found) == len(problems)
    for problem, start in zip(found, sorted(problems), strict=True):
        assert problem.startswith(start)


def test_the_flat_body_of_the_api_is_refused_as_a_record() -> None:
    """In the body, a contact property looks like a misspelt field."""
    body = {"eventName": "e", "email": "a@b", "plan": "pro"}
    assert problems_of(body)[0].startswith("plan: unknown field")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "x" * 1000])
def test_an_unknown_field_with_any_name_is_reported_in_one_short_line(
    name: str,
) -> None:
    (problem,) = problems_of({"event_name": "e", "email": "a@b", name: 1})
    assert len(problem.splitlines()) == 1
    assert "\x1b" not in problem
    assert len(problem) < 400


# Hooks that the caller registers.


def test_a_registered_hook_replaces_the_body_of_its_own_converter_only() -> None:
    converter = make_converter()
    default = converter.unstructure

    def tagged(event: Event) -> dict[str, Any]:
        return {"eventName": event.event_name, "source": "import"}

    assert "source" not in default(Event("e", email="a@b"))
    converter.register_unstructure_hook(Event, tagged)
    body = encode(Event("e", email="a@b"), converter)
    assert json.loads(body) == {"eventName": "e", "source": "import"}
    assert body_of(Event("e", email="a@b")) == {"eventName": "e", "email": "a@b"}


@pytest.mark.parametrize(
    "unwritable", [math.nan, math.inf, {1}, b"a", 1j, "\ud800"], ids=ascii
)
def test_a_hook_result_that_is_not_json_is_refused(unwritable: object) -> None:
    """orjson would write NaN as null."""
    converter = make_converter()
    converter.register_unstructure_hook(Event, lambda _: {"p": unwritable})
    with pytest.raises(InvalidEventError) as caught:
        encode(Event("e", email="a@b"), converter)
    (problem,) = caught.value.problems
    assert problem.startswith("body: the registered hook failed: ")
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__context__ is None


def test_a_body_is_checked_only_if_a_hook_made_it() -> None:
    converter = make_converter()
    event = Event("e", email="a@b", idempotency_key="k")
    checked: list[tuple[bytes, str]] = []
    encode(event, converter, lambda *arguments: checked.append(arguments))
    assert checked == []
    converter.register_unstructure_hook(Event, lambda _: {"email": "b@b"})
    encode(event, converter, lambda *arguments: checked.append(arguments))
    assert checked == [(b'{"email":"b@b"}', "k")]


def test_a_hook_for_a_subclass_is_used_for_the_subclass_only() -> None:
    class Special(Event):
        pass

    converter = make_converter()
    special = Special("e", email="a@b")
    assert json.loads(encode(special, converter)) == {"eventName": "e", "email": "a@b"}
    converter.register_unstructure_hook(Special, lambda _: {"eventName": "special"})
    assert json.loads(encode(special, converter)) == {"eventName": "special"}
    assert b"special" not in encode(Event("e", email="a@b"), converter)


def test_each_call_makes_a_new_converter() -> None:
    assert make_converter() is not make_converter()


# JSON with and without orjson.


def without_orjson(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a second copy of the module, imported as if orjson were not installed."""
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        if name == "orjson":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert _json.__spec__ is not None
    module = importlib.util.module_from_spec(_json.__spec__)
    assert _json.__spec__.loader is not None
    _json.__spec__.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def standard() -> ModuleType:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return without_orjson(monkeypatch)


@pytest.fixture(scope="module", params=["orjson", "standard library"])
def both(request: pytest.FixtureRequest, standard: ModuleType) -> ModuleType:
    if request.param == "standard library":
        return standard
    pytest.importorskip("orjson", reason="the speed extra is not installed")
    return _json


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(value=_values)
def test_both_implementations_write_texts_that_both_read_as_the_same_value(
    standard: ModuleType, value: Any
) -> None:
    pytest.importorskip("orjson", reason="the speed extra is not installed")
    written = [_json.dumps(value), standard.dumps(value), _json.strict_dumps(value)]
    for text in written:
        assert _json.loads(text) == standard.loads(text) == json.loads(text) == value


def test_the_standard_library_is_used_if_orjson_is_not_installed(
    standard: ModuleType,
) -> None:
    assert standard.dumps is standard.strict_dumps
    assert standard.dumps({"a": ["é", 1.5, None]}) == '{"a":["é",1.5,null]}'.encode()


def test_a_value_is_written_as_compact_utf8(both: ModuleType) -> None:
    assert both.dumps({"a": ["é", 1, True]}) == '{"a":["é",1,true]}'.encode()


NOT_JSON = [
    b"",
    b" ",
    b"NaN",
    b"[NaN]",
    b"Infinity",
    b"-Infinity",
    b"\xef\xbb\xbf{}",
    b"{}x",
    b"{'a':1}",
    b"{a:1}",
    b"[1,]",
    b"01",
    b"+1",
    b"1.",
    b".5",
    b'"\x01"',
    b'"\xff"',
    b'"\xed\xa0\x80"',
    b'"\xc0\x80"',
    b'{"a":"\xf0\x9f"}',
    b"\x1f\x8b\x08\x00garbage",
    b"<html>",
    b"null null",
    "{}".encode("utf-16"),
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
]


@pytest.mark.parametrize("text", NOT_JSON, ids=lambda text: ascii(text[:12]))
def test_a_text_that_is_not_json_raises_a_value_error(
    both: ModuleType, text: bytes
) -> None:
    with pytest.raises(ValueError, match=r"."):
        both.loads(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "\ud800"], ids=ascii)
def test_strict_dumps_of_a_value_that_is_not_json_raises_a_value_error(
    both: ModuleType, value: object
) -> None:
    with pytest.raises(ValueError, match=r"."):
        both.strict_dumps({"a": [value]})


def test_strict_dumps_of_a_foreign_type_or_a_cycle_raises(both: ModuleType) -> None:
    with pytest.raises(TypeError):
        both.strict_dumps({1, 2})
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="Circular"):
        both.strict_dumps(cycle)


@pytest.mark.parametrize(
    "text",
    [
        b"1e400",
        b"-1e400",
        rb'"\ud800"',
        rb'{"message":"\udfff"}',
        b"-0",
        b"1E5",
        b'{"a":1,"a":2}',
        rb'"\u0000\ud83d\ude00"',
        b" [1 , 2] \n",
    ],
)
def test_a_borderline_text_is_read_or_refused_by_both_implementations(
    standard: ModuleType, text: bytes
) -> None:
    pytest.importorskip("orjson", reason="the speed extra is not installed")
    assert _result_of(_json.loads, text) == _result_of(standard.loads, text)


def test_an_integer_beyond_64_bits_is_read_as_a_number(both: ModuleType) -> None:
    """orjson returns a float, the standard library an int with every digit."""
    assert both.loads(b"123456789012345678901234567890") == pytest.approx(1.2345678e29)


_HUGE = re.compile(rb"(?i)e\+?\d{3}")
_json_like = st.lists(
    st.sampled_from(
        [
            *(b'[ ] { } , : " - + . 0 1 9 e E a \\ \n true false null NaN'.split()),
            b'"a"',
            b'"\\u00e9"',
            b'"\xc3\xa9"',
            b"1.5e3",
            b" ",
            b"\xff",
        ]
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=500)
@given(text=_json_like | st.binary(max_size=8))
def test_any_text_is_read_or_refused_by_both_implementations(
    standard: ModuleType, text: bytes
) -> None:
    pytest.importorskip("orjson", reason="the speed extra is not installed")
    assume(not _HUGE.search(text))  # a number that orjson may read differently
    assert _result_of(_json.loads, text) == _result_of(standard.loads, text)


def _result_of(loads: Callable[[bytes], Any], text: bytes) -> tuple[bool, Any]:
    try:
        return True, loads(text)
    except ValueError:
        return False, None
