"""The options for reading input, and how they apply to headings and values."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

import attrs

from loops_async._events import rules
from loops_async._events.rules import InvalidValue, item_path
from loops_async.errors import ConfigurationError

CAMEL_CASE: Final = {
    "event_name": "eventName",
    "email": "email",
    "user_id": "userId",
    "idempotency_key": "idempotencyKey",
    "event_properties": "eventProperties",
    "contact_properties": "contactProperties",
    "mailing_lists": "mailingLists",
}
FIELDS: Final = {
    spelling: name for name, camel in CAMEL_CASE.items() for spelling in (name, camel)
}
PROPERTIES: Final = ("event_properties", "contact_properties")
MAPPINGS: Final = (*PROPERTIES, "mailing_lists")
KNOWN_FIELDS: Final = (
    "known are event_name, email, user_id, idempotency_key, event_properties.NAME, "
    "contact_properties.NAME and mailing_lists.ID"
)

# A placeholder: a key from Event would be slow, and the journal makes its own.
NO_KEY: Final = "unkeyed"

_MAX_SHOWN: Final = 60  # characters of a value in a problem

Target: TypeAlias = tuple[str, str]
"""A field, and the name within the field if it is a mapping, else an empty string."""

Parser: TypeAlias = Callable[[str], object]
"""A callable that converts a text to a type, or raises InvalidValue."""


def _sorted_headings(headings: Collection[str]) -> tuple[str, ...]:
    is_list = isinstance(headings, Collection) and not isinstance(headings, str)
    if not is_list or not all(isinstance(heading, str) for heading in headings):
        raise ConfigurationError("ignore: must be a list of headings, each a string")
    return tuple(sorted({heading.strip() for heading in headings}))


def _copy(mapping: Mapping[str, str]) -> Mapping[str, str]:
    return dict(mapping)


@attrs.frozen
class InputOptions:
    """The options for reading input.

    Attributes:
        event_name: The event name of the rows that have none.
        mapping: The heading of a column (or the key in a JSON record) by field:
            ``{"email": "E-Mail", "amount": "Total"}``. A name that is not a field is an
            event property.
        types: ``string``, ``number``, ``boolean`` or ``date`` by property. A name
            without the prefix ``event_properties.`` or ``contact_properties.`` covers
            both. A CSV cell without a type is a string.
        format: ``csv`` or ``jsonl``; None to decide by the file's name.
        ignore: The headings of columns (or keys in a JSON record) to leave out, even if
            they are fields.

    Raises:
        ConfigurationError: If a setting is invalid or two settings conflict.
    """

    __module__ = "loops_async"

    event_name: str | None = None
    mapping: Mapping[str, str] = attrs.field(factory=dict, converter=_copy)
    types: Mapping[str, str] = attrs.field(factory=dict, converter=_copy)
    format: str | None = None
    ignore: Collection[str] = attrs.field(default=(), converter=_sorted_headings)

    def __attrs_post_init__(self) -> None:
        if self.event_name is not None:
            _check("event_name", rules.event_name, self.event_name)
        if self.format not in (None, "csv", "jsonl"):
            msg = f"format must be csv or jsonl, not {self.format!r}"
            raise ConfigurationError(msg)
        for name, type_name in self.types.items():
            if type_name not in PARSERS:
                expected = ", ".join(PARSERS)
                msg = f"types: {name} must be one of {expected}, not {type_name!r}"
                raise ConfigurationError(msg)
            if parse_type_target(name) is None:
                msg = f"types: {name!r} is not a property"
                raise ConfigurationError(msg)
        for target, heading in parse_mapping(self.mapping).items():
            if heading in self.ignore:
                msg = f"ignore: {heading!r} is also mapped, to {path_of(target)}"
                raise ConfigurationError(msg)


def _check(setting: str, rule: Callable[[Any], object], value: object) -> None:
    try:
        rule(value)
    except InvalidValue as refused:
        raise ConfigurationError(f"{setting}: {'; '.join(refused.args)}") from None


def parse_target(heading: str) -> Target | None:
    """Return the field that a heading stands for, or None."""
    spelling, dot, name = heading.partition(".")
    field = FIELDS.get(spelling)
    if field is None or bool(dot) != bool(name) or bool(name) != (field in MAPPINGS):
        return None
    return field, name


def parse_type_target(text: str) -> Target | None:
    """Return the property that a type applies to; an empty field means both kinds."""
    spelling, dot, _ = text.partition(".")
    if dot and spelling in FIELDS:
        target = parse_target(text)
        return target if target and target[0] in PROPERTIES else None
    return ("", text) if text else None


def parse_mapping(mapping: Mapping[str, str]) -> dict[Target, str]:
    """Return the headings of a mapping by their targets."""
    targets: dict[Target, str] = {}
    for text, heading in mapping.items():
        target = parse_target(text)
        if target is None and text and "." not in text and text not in FIELDS:
            target = "event_properties", text
        if target is None:
            msg = f"mapping: {text!r} is not a field; {KNOWN_FIELDS}"
            raise ConfigurationError(msg)
        if not isinstance(heading, str) or not heading.strip():
            raise ConfigurationError(f"mapping: {text} needs the heading of a column")
        if target in targets:
            raise ConfigurationError(f"mapping: {path_of(target)} is mapped twice")
        check_name("mapping: " + text, target)
        targets[target] = heading.strip()
    return targets


def parse_types(types: Mapping[str, str]) -> dict[Target, str]:
    """Return the types by property; a type for both kinds applies to each."""
    of_both: dict[Target, str] = {}
    of_one: dict[Target, str] = {}
    for text, type_name in types.items():
        target = parse_type_target(text)
        assert target is not None  # InputOptions has checked it
        if target[0]:
            of_one[target] = type_name
        else:
            of_both.update({(field, target[1]): type_name for field in PROPERTIES})
    return of_both | of_one


def check_name(setting: str, target: Target) -> None:
    """Raise a ConfigurationError if Loops does not allow the target's name."""
    field, name = target
    if field == "contact_properties":
        _check(setting, rules.contact_property_name, name)
    elif field in MAPPINGS:
        _check(setting, rules.name, name)


def path_of(target: Target) -> str:
    field, name = target
    return f"{field}{item_path(name)}" if name else field


def parse_number(text: str) -> int | float:
    if _integer(text):
        return int(text)
    if not _decimal(text):
        raise InvalidValue(f"{_quoted(text)} is not a number")
    number = float(text)
    if math.isinf(number) or (number == 0 and _has_nonzero_digit(text)):
        raise InvalidValue(f"{_quoted(text)} is out of range")
    if abs(number) >= rules.MAX_INT and loses_digits(text, number):
        raise InvalidValue("numbers beyond 2**53 lose digits, send a string")
    return number


def loses_digits(text: str, number: float) -> bool:
    """Return whether neither the float nor its shortest text equals the text."""
    exact = Decimal(text)
    return exact != Decimal(number) and exact != Decimal(repr(number))


# Event reports an integer of up to 400 digits; a longer one is an infinite float.
_integer = re.compile(r"[+-]?[0-9]{1,400}").fullmatch
_decimal = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
).fullmatch
_has_nonzero_digit = re.compile(r"[^eE]*[1-9]").match


def parse_boolean(text: str) -> bool:
    word = text.lower()
    if word not in ("true", "false"):
        raise InvalidValue(f"{_quoted(text)} is not true or false")
    return word == "true"


def parse_date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        problem = f"{_quoted(text)} is not a date (ISO 8601: 2026-01-31T12:00:00Z)"
        raise InvalidValue(problem) from None
    if moment.utcoffset() is None:
        raise InvalidValue(f"{_quoted(text)} has no time zone")
    return moment


def _quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


PARSERS: Final[dict[str, Parser]] = {
    "string": str,
    "number": parse_number,
    "boolean": parse_boolean,
    "date": parse_date,
}
_JSON_TYPES: Final = {"number": (int, float), "boolean": (bool,)}


def convert_json(type_name: str, value: object) -> object:
    """Convert a value of a JSON record to a type, or raise InvalidValue."""
    if isinstance(value, str):
        return PARSERS[type_name](value)
    if value is None or type(value) in _JSON_TYPES.get(type_name, ()):
        return value
    raise InvalidValue(f"{_quoted(value)} is not a {type_name}")
