"""The rules for names, IDs and properties, and their conversion to wire values.

Each reader takes the caller's raw value and returns the plain wire value. If the
raw value breaks rules, the reader raises InvalidValue with a message for each broken
rule. Sources of the rules:

- https://loops.so/docs/api-reference/send-event
- https://loops.so/docs/events/properties
- https://loops.so/docs/contacts/properties
- https://loops.so/docs/api-reference/intro (the limit of 500 characters)
"""

import json
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Final, Never, Self, TypeAlias, TypeVar

WireValue: TypeAlias = str | int | float | bool
"""The type of a property on the wire and in an Event."""

PropertyValue: TypeAlias = WireValue | date | Enum | uuid.UUID | Decimal
"""A property as the caller passes it. A datetime (a subclass of date) must be aware."""

_V = TypeVar("_V")

MAX_TEXT: Final = 500
MAX_INT: Final = 2**53

# A text of this length fits MAX_TEXT even if each character is escaped (\u0001).
SHORT_TEXT: Final = 83

CONTACT_REQUIRED: Final = "required unless user_id is given"


_Rules: TypeAlias = tuple[tuple[re.Pattern[str], str], ...]
"""Patterns that a text must match in full, each with the message if it does not."""


class InvalidValue(Exception):
    """A value that breaks rules; the arguments are the messages."""


class InvalidItems(InvalidValue):
    """A mapping whose items break rules; each message begins with the item's path."""


class FrozenDict(dict[str, _V]):
    """A read-only dict, so that validated items cannot change; picklable."""

    __slots__ = ()

    def _refuse(self, *_args: object, **_kwargs: object) -> Never:
        msg = "the mappings of an Event are frozen: use event.replace(...)"
        raise TypeError(msg)

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, _V]]]:
        return type(self), (dict(self),)


NOTHING: Final[FrozenDict[Any]] = FrozenDict()
"""The empty mapping; as a default value it is compared by identity."""


FieldValues: TypeAlias = tuple[
    str,
    str | None,
    str | None,
    FrozenDict[WireValue],
    FrozenDict[WireValue | None],
    FrozenDict[bool],
    str,
]
"""The wire values of an event's fields, in the order of the fields."""


_ALL_NAMES: Final = (
    (re.compile(r"(?s)\S(?:.*\S)?"), "must not begin or end with white space"),
    (re.compile(r"[^\x00-\x1f\x7f-\x9f]+"), "must not contain control characters"),
)
_EVENT_NAME: Final = (
    *_ALL_NAMES,
    (re.compile(r"[^:]+"), "must not contain ':'"),
)
_EMAIL: Final = (
    *_ALL_NAMES,
    (
        re.compile(r"[^@\s]+@[^@\s]+"),
        "must be of the form name@domain, with one @ and no spaces",
    ),
)
_KEY: Final = (
    *_ALL_NAMES,
    (re.compile(r"[\x00-\x7f]+"), "must be ASCII"),
    (re.compile(r"(?s).{1,100}"), "must not be longer than 100 characters"),
)

# Most names and IDs match these patterns, and a match breaks no rule.
_plain_name = re.compile(r"(?a)[\w.-]{1,83}").fullmatch
_plain_email = re.compile(r"(?a)[\w.+-]{1,40}@[\w.-]{1,40}").fullmatch


def field_values(arguments: tuple[Any, ...]) -> FieldValues:
    """Return the wire values of an event's fields.

    Args:
        arguments: The raw values of the fields, in the order of the fields.

    Raises:
        InvalidValue: If a value breaks a rule, or if both the email and the user ID
            are None.
    """
    event, address, user, properties, contact, lists, key = arguments
    if address is None and user is None:
        raise InvalidValue(CONTACT_REQUIRED)
    return (
        event_name(event),
        None if address is None else email(address),
        None if user is None else user_id(user),
        event_properties(properties),
        contact_properties(contact),
        mailing_lists(lists),
        idempotency_key(key),
    )


def identifier(raw: Any, rules: _Rules = _ALL_NAMES) -> str:
    """Read a name or an ID."""
    text = raw.value if isinstance(raw, Enum) else raw
    if isinstance(text, uuid.UUID):
        return str(text)
    if not isinstance(text, str):
        raise InvalidValue(f"must be a string, not {kind_of(text)}")
    if not text or text.isspace():
        raise InvalidValue("must not be empty")
    broken = [message for pattern, message in rules if not pattern.fullmatch(text)]
    if broken:
        raise InvalidValue(*broken)
    return _checked_text(str.__str__(text))


def event_name(raw: Any) -> str:
    if type(raw) is str and _plain_name(raw):
        return raw
    return identifier(raw, _EVENT_NAME)


def email(raw: Any) -> str | None:
    if raw is None or (type(raw) is str and _plain_email(raw)):
        return raw
    return identifier(raw, _EMAIL)


def user_id(raw: Any) -> str | None:
    if raw is None or (type(raw) is str and _plain_name(raw)):
        return raw
    return identifier(raw)


def idempotency_key(raw: Any) -> str:
    """Read an idempotency key; None generates one, a random UUID (version 4)."""
    if raw is not None:
        if type(raw) is str and _plain_name(raw):
            return raw
        return identifier(raw, _KEY)
    # The same as uuid.uuid4() without the cost of the UUID object. Each key reads
    # the system's randomness: buffered random bytes would repeat in processes
    # restored from one snapshot, and Loops would drop their events as duplicates.
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-"
        f"{variant}{digits[17:20]}-{digits[20:]}"
    )


name = lru_cache(maxsize=4096)(identifier)  # the same names recur in most events


@lru_cache(maxsize=4096)
def contact_property_name(raw: Any) -> str:
    """Read the name of a contact property.

    In the body, contact properties are on the same level as Loops' own fields,
    so the name of a field in any spelling is refused.
    """
    name = identifier(raw)
    folded = fold_spelling(name)
    if folded in IDENTITY:
        raise InvalidValue(
            f"identifies the contact: use the argument {IDENTITY[folded]}"
        )
    known = _KNOWN.get(folded)
    if known is None or (name != known and "_" not in name):
        return name
    if known in _FIELDS:
        raise InvalidValue(
            f"is a field of the event: use the argument {_FIELDS[known]}"
        )
    if known in _RESERVED:
        raise InvalidValue(f"{known} is reserved by Loops")
    if name != known:
        raise InvalidValue(f"is spelled {known} in Loops")
    return name


def fold_spelling(name: str) -> str:
    """Return the form that all spellings of a name share: first_name, firstName."""
    return re.sub(r"[\W_]", "", name).casefold()


IDENTITY: Final = {"email": "email", "userid": "user_id"}
_FIELDS: Final = {
    "eventName": "event_name",
    "eventProperties": "event_properties",
    "mailingLists": "mailing_lists",
}
_RESERVED: Final = ("id", "listId", "softDeleteAt", "teamId", "updatedAt")
_DEFAULTS: Final = ("firstName", "lastName", "source", "subscribed", "userGroup")
_KNOWN: Final = {name.casefold(): name for name in (*_FIELDS, *_RESERVED, *_DEFAULTS)}


def event_properties(raw: object) -> FrozenDict[WireValue]:
    if raw is NOTHING:
        return NOTHING
    if type(raw) is dict and _valid_names(name, *raw) and _plain_items(raw):
        return FrozenDict(raw)
    return _read_items(raw, name, property_value)


def contact_properties(raw: object) -> FrozenDict[WireValue | None]:
    if raw is NOTHING:
        return NOTHING
    if (
        type(raw) is dict
        and _valid_names(contact_property_name, *raw)
        and _plain_items(raw, allow_none=True)
    ):
        return FrozenDict(raw)
    return _read_items(raw, contact_property_name, _property_value_or_none)


def mailing_lists(raw: object) -> FrozenDict[bool]:
    if raw is NOTHING:
        return NOTHING
    return _read_items(raw, name, _subscription)


@lru_cache(maxsize=1024)  # events of one name mostly have the same property names
def _valid_names(read_name: Callable[[Any], str], *names: Any) -> bool:
    return bool(names) and not any(_problems(read_name, raw) for raw in names)


def _plain_items(items: dict[Any, Any], *, allow_none: bool = False) -> bool:
    """Return whether all items can be sent without conversion, as most can."""
    for item_name, item in items.items():
        # The cache of _valid_names does not distinguish equal names of different types.
        if type(item_name) is not str:
            return False
        kind = type(item)
        if kind is str:
            if len(item) > SHORT_TEXT or not item.isascii():
                return False
        elif kind is int:
            if not -MAX_INT <= item <= MAX_INT:
                return False
        elif kind is not bool and not (allow_none and item is None):
            return False
    return True


def _read_items(
    raw: Any, read_name: Callable[[Any], str], read_value: Callable[[Any], _V]
) -> FrozenDict[_V]:
    if type(raw) is not dict and not isinstance(raw, Mapping):
        raise InvalidValue(f"must be a mapping, not {kind_of(raw)}")
    values: dict[str, _V] = {}
    problems: list[str] = []
    for raw_name, raw_value in raw.items():
        try:
            item_name = read_name(raw_name)
            if item_name in values:
                path = item_path(raw_name)
                problems.append(f"{path}: given twice, in two spellings")
            values[item_name] = read_value(raw_value)
        except InvalidValue:
            path = item_path(raw_name)
            broken = _problems(read_name, raw_name) + _problems(read_value, raw_value)
            problems.extend(f"{path}: {problem}" for problem in broken)
    if problems:
        raise InvalidItems(*problems)
    return FrozenDict(values) if values else NOTHING


def _problems(read: Callable[[Any], object], raw: Any) -> tuple[str, ...]:
    try:
        read(raw)
    except InvalidValue as invalid:
        return invalid.args
    return ()


def item_path(item_name: Any) -> str:
    """Return the path of an item below its mapping: ``.amount``, ``[5]``."""
    short = type(item_name) is str and 0 < len(item_name) <= SHORT_TEXT
    if short and item_name.isprintable():
        return f".{item_name}"
    return f"[{item_name!r:.{SHORT_TEXT}}]"


def _subscription(raw: Any) -> bool:
    if raw is True or raw is False:
        return raw
    raise InvalidValue(f"must be True or False, not {kind_of(raw)}")


def _property_value_or_none(raw: Any) -> WireValue | None:
    return None if raw is None else property_value(raw)


def property_value(raw: Any) -> WireValue:
    """Read the value of a property."""
    kind = type(raw)
    if kind is str:
        if len(raw) <= SHORT_TEXT and raw.isascii():  # saves the call for most texts
            return raw  # type: ignore[no-any-return]
        return _checked_text(raw)
    if kind is bool:
        return raw  # type: ignore[no-any-return]
    if kind is int:
        if -MAX_INT <= raw <= MAX_INT:
            return raw  # type: ignore[no-any-return]
        raise InvalidValue("integers beyond 2**53 lose digits, send a string")
    if kind is float:
        if math.isfinite(raw):
            return raw  # type: ignore[no-any-return]
        number = "NaN" if math.isnan(raw) else "infinity"
        raise InvalidValue(f"{number} is not a JSON number")
    if raw is None:
        raise InvalidValue(
            "None is allowed only in contact_properties: leave the property out"
        )
    return _converted(raw)


def _converted(raw: Any) -> WireValue:
    """Read a value of a type that has no JSON form of its own."""
    match raw:
        case Enum():
            return property_value(raw.value)
        case datetime():
            return _utc_text(raw)
        case date():
            return raw.isoformat()
        case uuid.UUID():
            return str(raw)
        case Decimal():
            return property_value(_binary_number(raw))
        case str():
            return _checked_text(str.__str__(raw))
        case int():
            return property_value(int(raw))
        case float():
            return property_value(float(raw))
    raise InvalidValue(
        f"{kind_of(raw)} cannot be sent: use a string, a number, a boolean or a date"
    )


def _binary_number(number: Decimal) -> int | float:
    if number.is_nan():  # float() raises for a signalling NaN
        return math.nan
    # int() of a huge exponent would fill the memory, and float() would lose digits.
    # The comparison is exact and cheap for every exponent.
    if number.is_finite() and not -MAX_INT <= number <= MAX_INT:
        return MAX_INT + 1
    whole = number.is_finite() and number == number.to_integral_value()
    return int(number) if whole else float(number)


def _utc_text(moment: datetime) -> str:
    if moment.utcoffset() is None:
        raise InvalidValue("the datetime has no time zone: use an aware datetime")
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        raise InvalidValue("the datetime is out of range in UTC") from None
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _checked_text(text: str) -> str:
    if len(text) <= SHORT_TEXT and text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidValue(
            "is not valid Unicode: it contains a lone surrogate"
        ) from None
    if len(json.dumps(text, ensure_ascii=False)) > MAX_TEXT:
        raise InvalidValue(
            f"is longer than {MAX_TEXT} characters as JSON, with the quotes"
        )
    return text


def kind_of(value: object) -> str:
    return "None" if value is None else type(value).__name__
