"""How input is to be read: the settings, and what they mean."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

import attrs

from loops_async._events import rules
from loops_async._events.rules import Refused, item_path
from loops_async.errors import ConfigurationError

SPELLED: Final = {
    "event_name": "eventName",
    "email": "email",
    "user_id": "userId",
    "idempotency_key": "idempotencyKey",
    "event_properties": "eventProperties",
    "contact_properties": "contactProperties",
    "mailing_lists": "mailingLists",
}
FIELDS: Final = {twin: name for name in SPELLED for twin in (name, SPELLED[name])}
PROPERTIES: Final = ("event_properties", "contact_properties")
MAPPINGS: Final = (*PROPERTIES, "mailing_lists")
KNOWN: Final = (
    "known are event_name, email, user_id, idempotency_key, event_properties.NAME, "
    "contact_properties.NAME and mailing_lists.ID"
)

# Making a key is slow, and the reader's caller has better ones.
NO_KEY: Final = "unkeyed"

_SHOWN: Final = 60  # characters of a value in a problem
LISTED: Final = 20  # headings in an error
DEEP: Final = 50  # levels of JSON; an event's has two
KEPT: Final = 1000  # characters of a record too long to keep

Target: TypeAlias = tuple[str, str]
"""A field, and the name in it if it is a mapping, else an empty one."""

Read: TypeAlias = Callable[[str], object]
"""Reads a text as a type, or raises Refused."""


def _copied(given: Mapping[str, str]) -> Mapping[str, str]:
    return dict(given)


def _stripped(given: Collection[str]) -> tuple[str, ...]:
    plain = isinstance(given, Collection) and not isinstance(given, str)
    if not plain or not all(isinstance(name, str) for name in given):
        raise ConfigurationError("ignore: must be a list of headings, each a string")
    return tuple(sorted({name.strip() for name in given}))


@attrs.frozen
class InputOptions:
    """How input is to be read.

    Attributes:
        event_name: For rows without one of their own.
        mapping: Field to the heading of its column (or the key in a JSON
            record): ``{"email": "E-Mail", "amount": "Total"}``. A name that
            is no field is an event property.
        types: Property to ``string``, ``number``, ``boolean`` or ``date``;
            a name without ``event_properties.`` or ``contact_properties.``
            before it means both. CSV cells are strings unless told.
        format: ``csv`` or ``jsonl``; None is by the file's name.
        ignore: Headings of columns (or keys in a JSON record) that are left
            out as if they were not there, even if they are fields.

    Raises:
        ConfigurationError: if that cannot be.
    """

    event_name: str | None = None
    mapping: Mapping[str, str] = attrs.field(factory=dict, converter=_copied)
    types: Mapping[str, str] = attrs.field(factory=dict, converter=_copied)
    format: str | None = None
    ignore: Collection[str] = attrs.field(default=(), converter=_stripped)

    def __attrs_post_init__(self) -> None:
        if self.event_name is not None:
            _configured("event_name", rules.event_name, self.event_name)
        if self.format not in (None, "csv", "jsonl"):
            msg = f"format must be csv or jsonl, not {self.format!r}"
            raise ConfigurationError(msg)
        for name, kind in self.types.items():
            if kind not in READERS:
                expected = ", ".join(READERS)
                msg = f"types: {name} must be one of {expected}, not {kind!r}"
                raise ConfigurationError(msg)
            if read_type_target(name) is None:
                msg = f"types: {name!r} is no property"
                raise ConfigurationError(msg)
        for target, column in read_targets(self.mapping).items():
            if column in self.ignore:
                msg = f"ignore: {column!r} is mapped, to {path_of(target)}"
                raise ConfigurationError(msg)


def _configured(where: str, read_name: Callable[[Any], object], given: object) -> None:
    try:
        read_name(given)
    except Refused as refused:
        raise ConfigurationError(f"{where}: {'; '.join(refused.args)}") from None


def read_target(text: str) -> Target | None:
    """Return what a heading means, or None."""
    spelling, dot, name = text.partition(".")
    field = FIELDS.get(spelling)
    if field is None or bool(dot) != bool(name) or bool(name) != (field in MAPPINGS):
        return None
    return field, name


def read_type_target(text: str) -> Target | None:
    """Return which property a type is for; no field means both kinds."""
    spelling, dot, _ = text.partition(".")
    if dot and spelling in FIELDS:
        target = read_target(text)
        return target if target and target[0] in PROPERTIES else None
    return ("", text) if text else None


def read_targets(mapping: Mapping[str, str]) -> dict[Target, str]:
    """Return the mapping by what its targets mean."""
    targets: dict[Target, str] = {}
    for text, column in mapping.items():
        target = read_target(text)
        if target is None and text and "." not in text and text not in FIELDS:
            target = "event_properties", text
        if target is None:
            raise ConfigurationError(f"mapping: {text!r} is no field; {KNOWN}")
        if not isinstance(column, str) or not column.strip():
            raise ConfigurationError(f"mapping: {text} needs the heading of a column")
        if target in targets:
            raise ConfigurationError(f"mapping: {path_of(target)} is given twice")
        check_name("mapping: " + text, target)
        targets[target] = column.strip()
    return targets


def read_types(types: Mapping[str, str]) -> dict[Target, str]:
    """Return the types by property; those for both kinds are for each."""
    both: dict[Target, str] = {}
    one: dict[Target, str] = {}
    for text, kind in types.items():
        target = read_type_target(text)
        assert target is not None  # as InputOptions has seen
        if target[0]:
            one[target] = kind
        else:
            both.update({(field, target[1]): kind for field in PROPERTIES})
    return both | one


def check_name(where: str, target: Target) -> None:
    field, name = target
    if field == "contact_properties":
        _configured(where, rules.contact_property_name, name)
    elif field in MAPPINGS:
        _configured(where, rules.name, name)


def path_of(target: Target) -> str:
    field, name = target
    return f"{field}{item_path(name)}" if name else field


def _number(text: str) -> int | float:
    if _whole(text):
        return int(text)
    if not _decimal(text):
        raise Refused(f"{_shown(text)} is not a number")
    number = float(text)
    if math.isinf(number) or (number == 0 and _not_zero(text)):
        raise Refused(f"{_shown(text)} is out of range")
    if abs(number) >= rules.MAX_INT and loses_digits(text, number):
        raise Refused("numbers beyond 2**53 lose digits, send a string")
    return number


def loses_digits(text: str, number: float) -> bool:
    """Tell whether a number is another than the text says, sent or not."""
    said = Decimal(text)
    return said != Decimal(number) and said != Decimal(repr(number))


# As long as Event may see that it is too long; longer ones are infinite floats.
_whole = re.compile(r"[+-]?[0-9]{1,400}").fullmatch
_decimal = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
).fullmatch
_not_zero = re.compile(r"[^eE]*[1-9]").match


def read_boolean(text: str) -> bool:
    word = text.lower()
    if word not in ("true", "false"):
        raise Refused(f"{_shown(text)} is not true or false")
    return word == "true"


def read_date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        why = f"{_shown(text)} is not a date (ISO 8601: 2026-01-31T12:00:00Z)"
        raise Refused(why) from None
    if moment.utcoffset() is None:
        raise Refused(f"{_shown(text)} has no time zone")
    return moment


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


READERS: Final[dict[str, Read]] = {
    "string": str,
    "number": _number,
    "boolean": read_boolean,
    "date": read_date,
}
_IN_JSON: Final = {"number": (int, float), "boolean": (bool,)}


def read_typed(kind: str, value: object) -> object:
    """Read a value of a JSON record as a type."""
    if isinstance(value, str):
        return READERS[kind](value)
    if value is None or type(value) in _IN_JSON.get(kind, ()):
        return value
    raise Refused(f"{_shown(value)} is not a {kind}")
