"""Events: refused values, converted values, and immutability."""

import copy
import enum
import json
import math
import pickle
import string
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from loops_async import Event, InvalidEventError
from loops_async._events.rules import MAX_INT, contact_property_name


class Colour(enum.Enum):
    RED = "red"
    NONE = None
    NAN = math.nan
    NESTED = (1, 2)


class Plan(enum.StrEnum):
    PRO = "pro"


class Size(enum.IntEnum):
    BIG = 3


class Flag(enum.IntFlag):
    ONE = 1
    TWO = 2


class Opaque:
    def __repr__(self) -> str:
        return "Opaque()"


class Text(str):
    def __str__(self) -> str:
        return "another text"


class Whole(int):
    pass


class Real(float):
    pass


class Day(date):
    pass


def make(**fields: Any) -> Event:
    return Event(**{"event_name": "signup", "email": "ada@example.com", **fields})


def problems_of(**fields: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidEventError) as caught:
        make(**fields)
    return caught.value.problems


def property_of(value: Any) -> Any:
    return make(event_properties={"p": value}).event_properties["p"]


def problem_with(value: Any) -> str:
    (problem,) = problems_of(event_properties={"p": value})
    path, _, text = problem.partition(": ")
    assert path == "event_properties.p"
    return text


# Values.


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        ("", ""),
        ("text", "text"),
        ("naïve 😀", "naïve 😀"),
        ("line\nbreak\x00", "line\nbreak\x00"),
        (0, 0),
        (MAX_INT, 2**53),
        (-MAX_INT, -(2**53)),
        (0.0, 0.0),
        (1.5, 1.5),
        (1e308, 1e308),
        (True, True),
        (False, False),
        (Colour.RED, "red"),
        (Plan.PRO, "pro"),
        (Size.BIG, 3),
        (Flag.ONE | Flag.TWO, 3),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), 1.1),
        (Decimal(3), 3),
        (Decimal("3.00"), 3),
        (Decimal("0E+5"), 0),
        (Decimal("-2.5"), -2.5),
        (Decimal(MAX_INT), MAX_INT),
        (Decimal("1E-1000000"), 0.0),
        (datetime(2026, 1, 2, 3, 4, 5, 678999, UTC), "2026-01-02T03:04:05.678Z"),
        (
            datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2))),
            "2026-01-01T22:00:00.000Z",
        ),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000Z"),
        (date(2026, 1, 2), "2026-01-02"),
        (Day(2026, 1, 2), "2026-01-02"),
        (Text("in it"), "in it"),
        (Whole(7), 7),
        (Real(2.5), 2.5),
    ],
    ids=repr,
)
def test_a_value_of_any_accepted_type_becomes_a_plain_wire_value(
    value: Any, wire: Any
) -> None:
    for found in (
        property_of(value),
        make(contact_properties={"p": value}).contact_properties["p"],
    ):
        assert found == wire
        assert type(found) is type(wire)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, "NaN is not a JSON number"),
        (math.inf, "infinity is not a JSON number"),
        (-math.inf, "infinity is not a JSON number"),
        (Real("nan"), "NaN is not a JSON number"),
        (Colour.NAN, "NaN is not a JSON number"),
        (Decimal("NaN"), "NaN is not a JSON number"),
        (Decimal("sNaN"), "NaN is not a JSON number"),
        (Decimal("NaN123"), "NaN is not a JSON number"),
        (Decimal("Infinity"), "infinity is not a JSON number"),
        (Decimal("1E+999999"), "integers beyond 2**53"),
        (Decimal("-1E+999999"), "integers beyond 2**53"),
        (Decimal(2**53 + 1), "integers beyond 2**53"),
        (Decimal("9007199254740992.5"), "integers beyond 2**53"),
        (2**53 + 1, "integers beyond 2**53"),
        (-(2**53) - 1, "integers beyond 2**53"),
        (Whole(2**60), "integers beyond 2**53"),
        (10**400, "integers beyond 2**53"),
        (None, "None is allowed only in contact_properties"),
        (Colour.NONE, "None is allowed only in contact_properties"),
        (Colour.NESTED, "tuple cannot be sent"),
        ([], "list cannot be sent"),
        ([1], "list cannot be sent"),
        ({}, "dict cannot be sent"),
        ({"a": 1}, "dict cannot be sent"),
        (set(), "set cannot be sent"),
        ((), "tuple cannot be sent"),
        (b"bytes", "bytes cannot be sent"),
        (bytearray(), "bytearray cannot be sent"),
        (Opaque(), "Opaque cannot be sent"),
        (1j, "complex cannot be sent"),
        (Fraction(1, 2), "Fraction cannot be sent"),
        (time(1, 2), "time cannot be sent"),
        (timedelta(1), "timedelta cannot be sent"),
        (
            datetime.fromisoformat("2026-01-02"),
            "the datetime has no time zone: use an aware",
        ),
        (
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            "the datetime is out of range in UTC",
        ),
        (
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
            "the datetime is out of range in UTC",
        ),
        ("\ud800", "is not valid Unicode: it contains a lone surrogate"),
        (Text("\udfff"), "is not valid Unicode: it contains a lone surrogate"),
        ("x" * 499, "is longer than 500 characters as JSON"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_value_that_json_does_not_have_is_refused_and_not_sent_as_null(
    value: Any, problem: str
) -> None:
    assert problem_with(value).startswith(problem)
    if value is None:
        return
    (found,) = problems_of(contact_properties={"p": value})
    assert found.startswith(f"contact_properties.p: {problem}")


@pytest.mark.parametrize("digits", ["1E+1000000", "-1E+99999999"])
def test_a_decimal_beyond_the_default_context_is_refused(digits: str) -> None:
    """The default context raises Overflow, which is not a ValueError."""
    assert problem_with(Decimal(digits)).startswith("integers beyond 2**53")


@given(st.decimals())
def test_any_decimal_is_sent_or_refused_in_any_decimal_context(value: Decimal) -> None:
    with localcontext() as context:
        context.prec = 3
        try:
            sent = property_of(value)
        except InvalidEventError:
            assert not value.is_finite() or abs(value) > 2**52
        else:
            assert math.isclose(sent, float(value), rel_tol=1e-15)


@pytest.mark.parametrize(
    ("unit", "cost"),
    [("x", 1), ("é", 1), ("😀", 1), ('"', 2), ("\\", 2), ("\n", 2), ("\x01", 6)],
)
def test_a_text_of_500_code_points_as_json_is_accepted_and_a_longer_one_refused(
    unit: str, cost: int
) -> None:
    """Quotes and escapes count; a character beyond the BMP is one code point."""
    fits = unit * (498 // cost) + "x" * (498 % cost)
    assert len(json.dumps(fits, ensure_ascii=False)) == 500
    assert property_of(fits) == fits
    assert "is longer than 500 characters as JSON" in problem_with(fits + "x")
    assert "is longer than 500 characters as JSON" in problem_with(Text(fits + "x"))


# Names, IDs and keys.


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"event_name": ""}, "event_name: must not be empty"),
        ({"event_name": "  "}, "event_name: must not be empty"),
        ({"event_name": "a:b"}, "event_name: must not contain ':'"),
        ({"event_name": " a"}, "event_name: must not begin or end with white space"),
        ({"event_name": "a\u2003"}, "event_name: must not begin or end with white"),
        ({"event_name": None}, "event_name: must be a string, not None"),
        ({"event_name": 5}, "event_name: must be a string, not int"),
        ({"event_name": b"a"}, "event_name: must be a string, not bytes"),
        ({"event_name": "x" * 499}, "event_name: is longer than 500 characters"),
        ({"event_name": "a\ud800"}, "event_name: is not valid Unicode"),
        ({"email": ""}, "email: must not be empty"),
        ({"email": "ada"}, "email: must be of the form name@domain"),
        ({"email": "@example.com"}, "email: must be of the form name@domain"),
        ({"email": "ada@"}, "email: must be of the form name@domain"),
        ({"email": "a@b@c"}, "email: must be of the form name@domain"),
        ({"email": "a b@c"}, "email: must be of the form name@domain"),
        ({"email": "a\x9f@b"}, "email: must not contain control characters"),
        ({"email": "a\x00@b"}, "email: must not contain control characters"),
        ({"email": 5}, "email: must be a string, not int"),
        ({"user_id": ""}, "user_id: must not be empty"),
        ({"user_id": 5}, "user_id: must be a string, not int"),
        ({"user_id": "a\x7fb"}, "user_id: must not contain control characters"),
        ({"user_id": True}, "user_id: must be a string, not bool"),
        ({"idempotency_key": ""}, "idempotency_key: must not be empty"),
        ({"idempotency_key": "x" * 101}, "idempotency_key: must not be longer than"),
        ({"idempotency_key": "é"}, "idempotency_key: must be ASCII"),
        ({"idempotency_key": "a\r\nb"}, "idempotency_key: must not contain control"),
        ({"idempotency_key": 5}, "idempotency_key: must be a string, not int"),
        ({"event_properties": []}, "event_properties: must be a mapping, not list"),
        ({"event_properties": None}, "event_properties: must be a mapping, not None"),
        ({"contact_properties": "a"}, "contact_properties: must be a mapping, not str"),
        ({"mailing_lists": {"l"}}, "mailing_lists: must be a mapping, not set"),
        ({"mailing_lists": {"l": 1}}, "mailing_lists.l: must be True or False"),
        ({"mailing_lists": {"l": "true"}}, "mailing_lists.l: must be True or False"),
        ({"mailing_lists": {"l": None}}, "mailing_lists.l: must be True or False"),
        ({"mailing_lists": {"": True}}, "mailing_lists['']: must not be empty"),
        ({"event_properties": {5: 1}}, "event_properties[5]: must be a string"),
        ({"event_properties": {None: 1}}, "event_properties[None]: must be a string"),
        ({"event_properties": {"a\nb": 1}}, r"event_properties['a\nb']: must not"),
        ({"event_properties": {" ": 1}}, "event_properties. : must not be empty"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_name_or_id_that_breaks_a_rule_is_refused(
    fields: dict[str, Any], problem: str
) -> None:
    (found,) = problems_of(**fields)
    assert found.startswith(problem)
    assert len(found.splitlines()) == 1


def test_a_name_that_breaks_several_rules_reports_each_of_them() -> None:
    assert len(problems_of(event_name=" a:b\x00")) == 3
    assert len(problems_of(email="ada@example.com\n")) == 3
    assert len(problems_of(idempotency_key=" é\n" + "x" * 100)) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"event_name": "Größe 😀 of it"},
        {"event_name": "x" * 498},
        {"event_name": Plan.PRO},
        {"email": "o'brien+tag@sub.example.co.uk"},
        {"email": "jörg@münchen.example"},
        {"email": "a@b"},
        {"user_id": "auth0|12:34 56"},
        {"email": None, "user_id": "u"},
        {"idempotency_key": "x" * 100},
        {"idempotency_key": "a b:c/d~!"},
        {"event_properties": {"with space": 1, "ä": 2, "id": 3, "email": "a"}},
        {"mailing_lists": {"cm06f5v0e45nf0ml5754o9cix": False}},
        {"contact_properties": {"e": None, "firstname": "a", "plan_name": "b"}},
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_field_that_the_api_accepts_is_accepted_unchanged(
    fields: dict[str, Any],
) -> None:
    event = make(**fields)
    for name, value in fields.items():
        assert getattr(event, name) == value


def test_a_uuid_or_an_enum_is_accepted_as_a_name_or_id() -> None:
    made = uuid.uuid4()
    event = make(user_id=made, idempotency_key=made, event_name=Text("plan"))
    assert (event.user_id, event.idempotency_key) == (str(made), str(made))
    assert type(event.event_name) is str
    assert event.event_name == "plan"
    assert make(event_name=Colour.RED).event_name == "red"


def test_an_event_without_email_and_user_id_is_refused() -> None:
    assert problems_of(email=None) == ("email: required unless user_id is given",)
    assert problems_of(email=None, user_id="") == ("user_id: must not be empty",)


# Names of contact properties, which share the root of the body with Loops' fields.


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("email", "identifies the contact: use the argument email"),
        ("Email", "identifies the contact: use the argument email"),
        ("e_mail", "identifies the contact: use the argument email"),
        ("userId", "identifies the contact: use the argument user_id"),
        ("user_id", "identifies the contact: use the argument user_id"),
        ("USERID", "identifies the contact: use the argument user_id"),
        ("eventName", "is a field of the event: use the argument event_name"),
        ("event_name", "is a field of the event: use the argument event_name"),
        ("eventProperties", "is a field of the event: use the argument event_prop"),
        ("event_properties", "is a field of the event: use the argument event_prop"),
        ("mailingLists", "is a field of the event: use the argument mailing_lists"),
        ("mailing_lists", "is a field of the event: use the argument mailing_lists"),
        ("id", "id is reserved by Loops"),
        ("listId", "listId is reserved by Loops"),
        ("list_id", "listId is reserved by Loops"),
        ("softDeleteAt", "softDeleteAt is reserved by Loops"),
        ("soft_delete_at", "softDeleteAt is reserved by Loops"),
        ("teamId", "teamId is reserved by Loops"),
        ("team_id", "teamId is reserved by Loops"),
        ("updatedAt", "updatedAt is reserved by Loops"),
        ("updated_at", "updatedAt is reserved by Loops"),
        ("first_name", "is spelled firstName in Loops"),
        ("First_Name", "is spelled firstName in Loops"),
        ("last_name", "is spelled lastName in Loops"),
        ("user_group", "is spelled userGroup in Loops"),
        ("", "must not be empty"),
        (5, "must be a string, not int"),
    ],
)
@pytest.mark.parametrize("value", [1, None, "text"])
def test_a_contact_property_with_a_name_that_loops_uses_is_refused(
    name: Any, problem: str, value: Any
) -> None:
    """Each field, each reserved name, and their spellings in snake_case."""
    (found,) = problems_of(contact_properties={name: value})
    assert found.startswith(("contact_properties.", "contact_properties["))
    assert f": {problem}" in found


@pytest.mark.parametrize(
    "name", ["firstName", "lastName", "source", "subscribed", "userGroup"]
)
def test_a_default_contact_property_is_accepted(name: str) -> None:
    assert make(contact_properties={name: "x"}).contact_properties == {name: "x"}


@given(st.text(min_size=1, max_size=30))
def test_a_contact_property_that_is_accepted_is_not_a_name_that_loops_uses(
    name: str,
) -> None:
    try:
        (accepted,) = make(contact_properties={name: 1}).contact_properties
    except InvalidEventError:
        return
    wire = {"email", "userId", "eventName", "eventProperties", "mailingLists"}
    reserved = {"id", "listId", "softDeleteAt", "teamId", "updatedAt"}
    assert accepted == name
    assert accepted not in wire | reserved
    assert contact_property_name(name) == name


@pytest.mark.parametrize("field", ["event_properties", "contact_properties"])
def test_two_spellings_of_one_name_are_refused(field: str) -> None:
    """An Enum and its text become one name, so one of the values would be lost."""
    (problem,) = problems_of(**{field: {Colour.RED: 1, "red": 2}})
    assert problem.startswith(f"{field}.red: ")


# Random invalid events.

_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
_good_values = st.one_of(
    _texts,
    st.integers(-MAX_INT, MAX_INT),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.uuids(),
    st.sampled_from([Plan.PRO, Size.BIG, Colour.RED]),
    st.decimals(-1000, 1000, places=2),
)
_bad_values = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("sNaN")]),
    st.integers(min_value=MAX_INT + 1) | st.integers(max_value=-MAX_INT - 1),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(_texts, st.integers(), max_size=2),
    st.binary(max_size=4),
    st.frozensets(st.integers(), max_size=2),
    st.datetimes(),
    st.times(),
    st.builds(Opaque),
    st.complex_numbers(),
    st.text("xyz", min_size=499, max_size=520),
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=5),
    st.sampled_from([Colour.NAN, Colour.NONE, Colour.NESTED]),
)
_names = st.text(string.ascii_letters, min_size=1, max_size=10).filter(
    lambda name: name.casefold() not in {"email", "userid", "id"}
)
_bad_contact_names = st.sampled_from(
    ["email", "userId", "eventName", "mailingLists", "id", "teamId", "first_name"]
)
_one_bad: list[st.SearchStrategy[tuple[str, str, Any]]] = [
    st.tuples(st.just("event_properties"), _names, _bad_values | st.none()),
    st.tuples(st.just("contact_properties"), _names, _bad_values),
    st.tuples(st.just("contact_properties"), _bad_contact_names, _good_values),
    st.tuples(
        st.just("mailing_lists"), _names, st.none() | st.integers() | st.text("yn")
    ),
    st.tuples(
        st.sampled_from(["event_properties", "mailing_lists"]),
        st.sampled_from(["", " ", "a ", "a\x00", "\ud800", "x" * 499]),
        st.just(True),
    ),
]
_bad_fields: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("event_name"), st.sampled_from(["", "a:b", None, 5, "\x00"])),
    st.tuples(st.just("email"), st.sampled_from(["", "a", "a@b@c", "a b@c", 5])),
    st.tuples(st.just("user_id"), st.sampled_from(["", " a", 5, "\ud800", b"a"])),
    st.tuples(st.just("idempotency_key"), st.sampled_from(["", "é", "x" * 101, 5])),
    st.tuples(
        st.sampled_from(["event_properties", "contact_properties", "mailing_lists"]),
        st.sampled_from([[], "a", 5, None]),
    ),
)


def _path(field: str, name: str) -> str:
    return f"{field}.{name}" if name.isprintable() and 0 < len(name) < 80 else field


def _check_every_problem_is_reported(
    bad_items: list[tuple[str, str, Any]],
    bad_fields: list[tuple[str, Any]],
    good: dict[str, Any],
) -> None:
    fields: dict[str, Any] = {
        "event_properties": dict(good),
        "contact_properties": {f"{name}Ok": value for name, value in good.items()},
        "mailing_lists": {},
    }
    expected = set()
    for field, name, value in bad_items:
        fields[field][name] = value
        expected.add(_path(field, name))
    fields.update(bad_fields)
    whole = {field for field, _ in bad_fields}
    expected = {path for path in expected if path.partition(".")[0] not in whole}
    expected |= whole
    assume(expected)
    found = problems_of(**fields)
    for path in expected:
        assert any(problem.startswith((f"{path}:", f"{path}[")) for problem in found)
    for problem in found:
        assert len(problem.splitlines()) == 1
        assert problem.startswith(tuple(expected))


_invalid = given(
    st.lists(st.one_of(_one_bad), max_size=3),
    st.lists(_bad_fields, max_size=2),
    st.dictionaries(_names, _good_values, max_size=3),
)


@settings(max_examples=400, deadline=None)
@_invalid
def test_an_invalid_event_reports_every_problem_with_its_path(
    bad_items: list[tuple[str, str, Any]],
    bad_fields: list[tuple[str, Any]],
    good: dict[str, Any],
) -> None:
    _check_every_problem_is_reported(bad_items, bad_fields, good)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@_invalid
def test_10_000_invalid_events_report_every_problem_with_its_path(
    bad_items: list[tuple[str, str, Any]],
    bad_fields: list[tuple[str, Any]],
    good: dict[str, Any],
) -> None:
    _check_every_problem_is_reported(bad_items, bad_fields, good)


@given(st.floats() | st.decimals() | st.integers())
@example(Decimal("sNaN"))
@example(math.nan)
def test_a_number_that_is_accepted_is_a_finite_json_number_of_the_same_value(
    number: Any,
) -> None:
    try:
        accepted = property_of(number)
    except InvalidEventError:
        return
    assert json.loads(json.dumps(accepted, allow_nan=False)) == accepted
    assert math.isclose(accepted, float(number), rel_tol=1e-15)


# Copies and changes.


def full() -> Event:
    return Event(
        "planUpgraded",
        email="ada@example.com",
        user_id="u1",
        event_properties={"amount": 42, "at": datetime(2026, 1, 1, tzinfo=UTC)},
        contact_properties={"firstName": "Ada", "company": None},
        mailing_lists={"l1": True},
        idempotency_key="k",
    )


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda event: pickle.loads(pickle.dumps(event))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_an_event_or_of_its_mapping_is_equal_and_frozen(
    duplicate: Callable[[Any], Any],
) -> None:
    copied = duplicate(full())
    assert copied == full()
    assert copied.idempotency_key == "k"
    for properties in (copied.event_properties, duplicate(full().event_properties)):
        assert properties == full().event_properties
        with pytest.raises(TypeError, match="frozen"):
            properties["x"] = 1


def test_the_pickle_of_an_event_names_no_private_module() -> None:
    """Pickles in a queue can be read after a private module is moved."""
    assert Event.__module__ == "loops_async"
    assert b"loops_async" in pickle.dumps(full())
    assert b"loops_async._" not in pickle.dumps(full())


_CHANGES: list[Callable[[Any], object]] = [
    lambda mapping: mapping.__setitem__("a", 1),
    lambda mapping: mapping.__delitem__("amount"),
    lambda mapping: mapping.__ior__({"a": 1}),
    lambda mapping: mapping.update(a=1),
    lambda mapping: mapping.clear(),
    lambda mapping: mapping.pop("amount"),
    lambda mapping: mapping.popitem(),
    lambda mapping: mapping.setdefault("a", 1),
]


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize(
    "field", ["event_properties", "contact_properties", "mailing_lists"]
)
@pytest.mark.parametrize("event", [full(), make()], ids=["full", "empty"])
def test_a_change_to_a_mapping_of_an_event_raises(
    event: Event, field: str, change: Callable[[Any], object]
) -> None:
    before = dict(getattr(event, field))
    with pytest.raises(TypeError, match=r"frozen: use event\.replace"):
        change(getattr(event, field))
    assert getattr(event, field) == before
    assert make().event_properties == {}


def test_an_assignment_to_a_field_of_an_event_raises() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        full().email = "x@y"  # type: ignore[misc]
    assert not hasattr(full(), "__dict__")


def test_a_change_to_an_argument_leaves_the_event_unchanged() -> None:
    properties: dict[str, Any] = {"a": 1}
    lists = {"l": True}
    event = make(
        event_properties=properties,
        contact_properties=properties,
        mailing_lists=lists,
    )
    properties["a"] = math.nan
    lists["x"] = True
    assert event.event_properties == event.contact_properties == {"a": 1}
    assert event.mailing_lists == {"l": True}


def test_any_mapping_is_accepted_as_properties() -> None:
    proxy: Mapping[str, int] = MappingProxyType({"a": 1})
    assert make(event_properties=proxy).event_properties == {"a": 1}


def test_events_with_equal_fields_are_equal_and_unhashable() -> None:
    assert full() == full()
    assert full() != full().again()
    with pytest.raises(TypeError, match="unhashable"):
        hash(full())


def test_each_event_has_its_own_key_and_replace_and_again_make_a_new_one() -> None:
    """Of several events with one key, Loops would accept one."""
    events = [make(), make(), full().again(), full().replace(email="b@example.com")]
    keys = {event.idempotency_key for event in events}
    assert len(keys) == 4
    assert all(str(uuid.UUID(key)) == key for key in keys)


def test_replace_changes_the_given_fields_and_no_others() -> None:
    changed = full().replace(email="b@example.com", event_properties={})
    assert changed.email == "b@example.com"
    assert changed.event_properties == {}
    kept = ("event_name", "user_id", "contact_properties", "mailing_lists")
    assert all(getattr(changed, name) == getattr(full(), name) for name in kept)
    assert full().replace(idempotency_key="mine").idempotency_key == "mine"
    assert attrs.evolve(full(), email="b@example.com").idempotency_key == "k"


def test_replace_with_an_invalid_result_raises() -> None:
    with pytest.raises(InvalidEventError, match="email: required"):
        full().replace(email=None, user_id=None)


def test_a_copy_of_a_subclass_is_of_the_subclass() -> None:
    class Special(Event):
        pass

    assert type(Special("a", user_id="u").again()) is Special


def test_an_event_made_from_the_values_of_an_event_is_equal() -> None:
    event = full()
    assert attrs.evolve(event) == event
