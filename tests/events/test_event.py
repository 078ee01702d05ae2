"""Events: what is refused, what is sent, and that nothing changes afterwards."""

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
        return "not what is in it"


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


def refusal_of(value: Any) -> str:
    (problem,) = problems_of(event_properties={"p": value})
    path, _, why = problem.partition(": ")
    assert path == "event_properties.p"
    return why


# What a value becomes.


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
def test_a_value_becomes_the_plain_wire_value_it_stands_for(
    value: Any, wire: Any
) -> None:
    for found in (
        property_of(value),
        make(contact_properties={"p": value}).contact_properties["p"],
    ):
        assert found == wire
        assert type(found) is type(wire)


@pytest.mark.parametrize(
    ("value", "why"),
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
        (None, "None is only for contact properties"),
        (Colour.NONE, "None is only for contact properties"),
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
        (datetime.fromisoformat("2026-01-02"), "the datetime has no time zone"),
        (
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            "the datetime is out of range in UTC",
        ),
        (
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
            "the datetime is out of range in UTC",
        ),
        ("\ud800", "is not valid Unicode (a lone surrogate)"),
        (Text("\udfff"), "is not valid Unicode (a lone surrogate)"),
        ("x" * 499, "longer than 500 characters"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_json_cannot_say_is_refused_and_never_nulled(value: Any, why: str) -> None:
    assert refusal_of(value).startswith(why)
    if value is None:
        return
    (problem,) = problems_of(contact_properties={"p": value})
    assert problem.startswith(f"contact_properties.p: {why}")


@pytest.mark.parametrize("digits", ["1E+1000000", "-1E+99999999"])
def test_a_decimal_beyond_its_own_context_is_refused_like_any_other(
    digits: str,
) -> None:
    """The default context traps Overflow, which is no ValueError."""
    assert refusal_of(Decimal(digits)).startswith("integers beyond 2**53")


@given(st.decimals())
def test_no_decimal_is_more_than_refused(value: Decimal) -> None:
    """Whatever the caller's own decimal context traps."""
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
def test_text_is_500_code_points_as_json_with_its_quotes(unit: str, cost: int) -> None:
    """Quotes and escapes count, as https://loops.so/docs says; astral is one."""
    fits = unit * (498 // cost) + "x" * (498 % cost)
    assert len(json.dumps(fits, ensure_ascii=False)) == 500
    assert property_of(fits) == fits
    assert "longer than 500 characters" in refusal_of(fits + "x")
    assert "longer than 500 characters" in refusal_of(Text(fits + "x"))


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
        ({"event_name": "x" * 499}, "event_name: longer than 500 characters"),
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
def test_a_name_or_id_that_cannot_be_is_refused(
    fields: dict[str, Any], problem: str
) -> None:
    (found,) = problems_of(**fields)
    assert found.startswith(problem)
    assert len(found.splitlines()) == 1


def test_all_broken_rules_of_one_name_are_named() -> None:
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
def test_what_the_api_allows_is_allowed(fields: dict[str, Any]) -> None:
    event = make(**fields)
    for name, value in fields.items():
        assert getattr(event, name) == value


def test_a_uuid_or_an_enum_may_be_an_id() -> None:
    made = uuid.uuid4()
    event = make(user_id=made, idempotency_key=made, event_name=Text("plan"))
    assert (event.user_id, event.idempotency_key) == (str(made), str(made))
    assert type(event.event_name) is str
    assert event.event_name == "plan"
    assert make(event_name=Colour.RED).event_name == "red"


def test_one_of_email_and_user_id_is_needed() -> None:
    assert problems_of(email=None) == ("email: required unless user_id is given",)
    assert problems_of(email=None, user_id="") == ("user_id: must not be empty",)


# Contact properties share the root of the body.


@pytest.mark.parametrize(
    ("name", "why"),
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
def test_a_contact_property_cannot_collide(name: Any, why: str, value: Any) -> None:
    """Each wire name, each reserved name, and their snake_case twins."""
    (problem,) = problems_of(contact_properties={name: value})
    assert problem.startswith(("contact_properties.", "contact_properties["))
    assert f": {why}" in problem


@pytest.mark.parametrize(
    "name", ["firstName", "lastName", "source", "subscribed", "userGroup"]
)
def test_the_default_properties_can_be_set(name: str) -> None:
    assert make(contact_properties={name: "x"}).contact_properties == {name: "x"}


@given(st.text(min_size=1, max_size=30))
def test_no_accepted_contact_property_is_a_wire_name(name: str) -> None:
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
def test_two_spellings_of_one_name_do_not_swallow_a_value(field: str) -> None:
    """Nothing is silently lost: an Enum and its text are one wire name."""
    (problem,) = problems_of(**{field: {Colour.RED: 1, "red": 2}})
    assert problem.startswith(f"{field}.red: ")


# Ten thousand invalid events.

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


def _check_all_problems_are_named(
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
def test_an_invalid_event_names_every_problem_with_its_path(
    bad_items: list[tuple[str, str, Any]],
    bad_fields: list[tuple[str, Any]],
    good: dict[str, Any],
) -> None:
    """And never becomes an Event, so nothing of it can reach the wire."""
    _check_all_problems_are_named(bad_items, bad_fields, good)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@_invalid
def test_ten_thousand_invalid_events_name_every_problem_with_its_path(
    bad_items: list[tuple[str, str, Any]],
    bad_fields: list[tuple[str, Any]],
    good: dict[str, Any],
) -> None:
    """The same at length."""
    _check_all_problems_are_named(bad_items, bad_fields, good)


@given(st.floats() | st.decimals() | st.integers())
@example(Decimal("sNaN"))
@example(math.nan)
def test_no_accepted_number_is_anything_but_a_finite_json_number(number: Any) -> None:
    try:
        accepted = property_of(number)
    except InvalidEventError:
        return
    assert json.loads(json.dumps(accepted, allow_nan=False)) == accepted
    assert math.isclose(accepted, float(number), rel_tol=1e-15)


# Frozen, equal, copied, made again.


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
    "journey",
    [copy.copy, copy.deepcopy, lambda event: pickle.loads(pickle.dumps(event))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_is_the_same_event_and_as_frozen(
    journey: Callable[[Event], Event],
) -> None:
    arrived = journey(full())
    assert arrived == full()
    assert arrived.idempotency_key == "k"
    with pytest.raises(TypeError, match="frozen"):
        arrived.event_properties["x"] = 1  # type: ignore[index]


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
def test_the_mappings_of_an_event_stay_as_they_were_validated(
    event: Event, field: str, change: Callable[[Any], object]
) -> None:
    before = dict(getattr(event, field))
    with pytest.raises(TypeError, match=r"frozen: use event\.replace"):
        change(getattr(event, field))
    assert getattr(event, field) == before
    assert make().event_properties == {}


def test_the_fields_are_frozen_too() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        full().email = "x@y"  # type: ignore[misc]
    assert not hasattr(full(), "__dict__")


def test_what_was_passed_in_may_change_afterwards() -> None:
    given_properties: dict[str, Any] = {"a": 1}
    lists = {"l": True}
    event = make(
        event_properties=given_properties,
        contact_properties=given_properties,
        mailing_lists=lists,
    )
    given_properties["a"] = math.nan
    lists["x"] = True
    assert event.event_properties == event.contact_properties == {"a": 1}
    assert event.mailing_lists == {"l": True}


def test_any_mapping_will_do() -> None:
    proxy: Mapping[str, int] = MappingProxyType({"a": 1})
    assert make(event_properties=proxy).event_properties == {"a": 1}


def test_an_event_is_compared_and_cannot_be_hashed() -> None:
    assert full() == full()
    assert full() != full().again()
    with pytest.raises(TypeError, match="unhashable"):
        hash(full())


def test_each_new_event_has_its_own_key_and_replace_mints_one() -> None:
    """One key for many recipients would send one event."""
    events = [make(), make(), full().again(), full().replace(email="b@example.com")]
    keys = {event.idempotency_key for event in events}
    assert len(keys) == 4
    assert all(str(uuid.UUID(key)) == key for key in keys)


def test_replace_changes_what_it_is_told_and_nothing_else() -> None:
    changed = full().replace(email="b@example.com", event_properties={})
    assert changed.email == "b@example.com"
    assert changed.event_properties == {}
    kept = ("event_name", "user_id", "contact_properties", "mailing_lists")
    assert all(getattr(changed, name) == getattr(full(), name) for name in kept)
    assert full().replace(idempotency_key="mine").idempotency_key == "mine"
    assert attrs.evolve(full(), email="b@example.com").idempotency_key == "k"


def test_replace_checks_again() -> None:
    with pytest.raises(InvalidEventError, match="email: required"):
        full().replace(email=None, user_id=None)


def test_a_subclass_replaced_stays_one() -> None:
    class Special(Event):
        pass

    assert type(Special("a", user_id="u").again()) is Special


def test_the_values_of_an_event_read_again_are_themselves() -> None:
    """What a record holds is what an event holds: reading is idempotent."""
    event = full()
    assert attrs.evolve(event) == event
