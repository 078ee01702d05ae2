"""What a name, an ID or a property may be on the wire.

Each reader takes what a user gave and returns the plain wire value, or raises
Refused with every rule it breaks. The rules are those of
https://loops.so/docs/api-reference/send-event,
https://loops.so/docs/events/properties and
https://loops.so/docs/contacts/properties; the limit of 500 characters is in
https://loops.so/docs/api-reference/intro.
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
"""What a property is on the wire, and in an Event."""

PropertyValue: TypeAlias = WireValue | date | Enum | uuid.UUID | Decimal
"""What a property may be given as; a datetime (it is a date) must be aware."""

_V = TypeVar("_V")

MAX_TEXT: Final = 500
MAX_INT: Final = 2**53

# Even if each of its characters is escaped (\u0001), this many fit MAX_TEXT.
SURELY_SHORT: Final = 83


_Rules: TypeAlias = tuple[tuple[re.Pattern[str], str], ...]
"""What a text must match in full, and what to say if it does not."""


class Refused(Exception):
    """A value breaks rules; the arguments say which."""


class RefusedItems(Refused):
    """Items of a mapping break rules; the arguments begin with the item's path."""


class FrozenDict(dict[str, _V]):
    """A dict that stays as it was validated; picklable, equal to any dict."""

    __slots__ = ()

    def _refuse(self, *_args: object, **_kwargs: object) -> Never:
        msg = "the mappings of an Event are frozen: use event.replace(...)"
        raise TypeError(msg)

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, _V]]]:
        return type(self), (dict(self),)


NOTHING: Final[FrozenDict[Any]] = FrozenDict()


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

# Most names and IDs need no closer look.
_plain_name = re.compile(r"(?a)[\w.-]{1,83}").fullmatch
_plain_email = re.compile(r"(?a)[\w.+-]{1,40}@[\w.-]{1,40}").fullmatch


def identifier(given: Any, rules: _Rules = _ALL_NAMES) -> str:
    """Read a name or an ID."""
    value = given.value if isinstance(given, Enum) else given
    if isinstance(value, uuid.UUID):
        return str(value)
    if not isinstance(value, str):
        raise Refused(f"must be a string, not {kind_of(value)}")
    if not value or value.isspace():
        raise Refused("must not be empty")
    broken = [why for good, why in rules if not good.fullmatch(value)]
    if broken:
        raise Refused(*broken)
    return _text(str.__str__(value))


def event_name(given: Any) -> str:
    if type(given) is str and _plain_name(given):
        return given
    return identifier(given, _EVENT_NAME)


def email(given: Any) -> str | None:
    if given is None or (type(given) is str and _plain_email(given)):
        return given
    return identifier(given, _EMAIL)


def user_id(given: Any) -> str | None:
    if given is None or (type(given) is str and _plain_name(given)):
        return given
    return identifier(given)


def idempotency_key(given: Any) -> str:
    """Read the key; None makes a new one: a random UUID, version 4."""
    if given is not None:
        return identifier(given, _KEY)
    # As uuid.uuid4() does, but without its object. The system is asked each
    # time: randomness kept in the process would repeat itself in the clones
    # of a snapshot, and Loops would take their events for duplicates.
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-"
        f"{variant}{digits[17:20]}-{digits[20:]}"
    )


name = lru_cache(maxsize=4096)(identifier)  # names recur


@lru_cache(maxsize=4096)
def contact_property_name(given: Any) -> str:
    """Read the name of a contact property.

    Contact properties share the root of the body with Loops' own fields.
    """
    name = identifier(given)
    twin = without_spelling(name)
    if twin in IDENTITY:
        raise Refused(f"identifies the contact: use the argument {IDENTITY[twin]}")
    known = _KNOWN.get(twin)
    if known is None or (name != known and "_" not in name):
        return name
    if known in _FIELDS:
        raise Refused(f"is a field of the event: use the argument {_FIELDS[known]}")
    if known in _RESERVED:
        raise Refused(f"{known} is reserved by Loops")
    if name != known:
        raise Refused(f"is spelled {known} in Loops")
    return name


def without_spelling(name: str) -> str:
    """Return what a name has in common with its twins: first_name, firstName."""
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


def event_properties(given: Any) -> FrozenDict[WireValue]:
    if type(given) is dict and _fine(name, *given) and _plain(given):
        return FrozenDict(given)
    return _mapping(given, name, value)


def contact_properties(given: Any) -> FrozenDict[WireValue | None]:
    if (
        type(given) is dict
        and _fine(contact_property_name, *given)
        and _plain(given, none_too=True)
    ):
        return FrozenDict(given)
    return _mapping(given, contact_property_name, _value_or_none)


def mailing_lists(given: Any) -> FrozenDict[bool]:
    return _mapping(given, name, _membership)


@lru_cache(maxsize=1024)  # events of one name have the same names in them
def _fine(read_name: Callable[[Any], str], *names: Any) -> bool:
    return bool(names) and not any(_refusals(read_name, given) for given in names)


def _plain(given: dict[Any, Any], *, none_too: bool = False) -> bool:
    """Tell whether all names and values can be sent as they are, as most can."""
    for item_name, item in given.items():
        if type(item_name) is not str:  # not told apart by the cache of _fine
            return False
        kind = type(item)
        if kind is str:
            if len(item) > SURELY_SHORT or not item.isascii():
                return False
        elif kind is int:
            if not -MAX_INT <= item <= MAX_INT:
                return False
        elif kind is not bool and not (none_too and item is None):
            return False
    return True


def _mapping(
    given: Any, read_name: Callable[[Any], str], read: Callable[[Any], _V]
) -> FrozenDict[_V]:
    if given is NOTHING:
        return given
    if type(given) is not dict and not isinstance(given, Mapping):
        raise Refused(f"must be a mapping, not {kind_of(given)}")
    values: dict[str, _V] = {}
    problems: list[str] = []
    for item_name, item in given.items():
        try:
            plain = read_name(item_name)
            if plain in values:
                at = item_path(item_name)
                problems.append(f"{at}: given twice, in two spellings")
            values[plain] = read(item)
        except Refused:
            at = item_path(item_name)
            problems.extend(f"{at}: {why}" for why in _refusals(read_name, item_name))
            problems.extend(f"{at}: {why}" for why in _refusals(read, item))
    if problems:
        raise RefusedItems(*problems)
    return FrozenDict(values) if values else NOTHING


def _refusals(read: Callable[[Any], object], given: Any) -> tuple[str, ...]:
    try:
        read(given)
    except Refused as refused:
        return refused.args
    return ()


def item_path(item_name: Any) -> str:
    short = type(item_name) is str and 0 < len(item_name) <= SURELY_SHORT
    if short and item_name.isprintable():
        return f".{item_name}"
    return f"[{item_name!r:.{SURELY_SHORT}}]"


def _membership(given: Any) -> bool:
    if given is True or given is False:
        return given
    raise Refused(f"must be True or False, not {kind_of(given)}")


def _value_or_none(given: Any) -> WireValue | None:
    return None if given is None else value(given)


def value(given: Any) -> WireValue:
    """Read a property's value."""
    kind = type(given)
    if kind is str:
        # Most are short; for them, no further call.
        if len(given) <= SURELY_SHORT and given.isascii():
            return given  # type: ignore[no-any-return]
        return _text(given)
    if kind is bool:
        return given  # type: ignore[no-any-return]
    if kind is int:
        if -MAX_INT <= given <= MAX_INT:
            return given  # type: ignore[no-any-return]
        raise Refused("integers beyond 2**53 lose digits, send a string")
    if kind is float:
        if math.isfinite(given):
            return given  # type: ignore[no-any-return]
        what = "NaN" if math.isnan(given) else "infinity"
        raise Refused(f"{what} is not a JSON number")
    if given is None:
        raise Refused("None is only for contact properties, leave it out")
    return _converted(given)


def _converted(given: Any) -> WireValue:
    """Read what is no plain JSON scalar but stands for one."""
    match given:
        case Enum():
            return value(given.value)
        case datetime():
            return _moment(given)
        case date():
            return given.isoformat()
        case uuid.UUID():
            return str(given)
        case Decimal():
            return value(_number(given))
        case str():
            return _text(str.__str__(given))
        case int():
            return value(int(given))
        case float():
            return value(float(given))
    raise Refused(
        f"{kind_of(given)} cannot be sent, only strings, numbers, booleans and dates"
    )


def _number(given: Decimal) -> int | float:
    if given.is_nan():  # float() refuses a signalling one
        return math.nan
    # An int of a huge exponent would fill the memory, a float lose digits;
    # comparing is exact and cheap whatever the exponent.
    if given.is_finite() and not -MAX_INT <= given <= MAX_INT:
        return MAX_INT + 1
    whole = given.is_finite() and given == given.to_integral_value()
    return int(given) if whole else float(given)


def _moment(given: datetime) -> str:
    if given.utcoffset() is None:
        raise Refused("the datetime has no time zone")
    try:
        utc = given.astimezone(UTC)
    except OverflowError:
        raise Refused("the datetime is out of range in UTC") from None
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(text: str) -> str:
    if len(text) <= SURELY_SHORT and text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused("is not valid Unicode (a lone surrogate)") from None
    if len(json.dumps(text, ensure_ascii=False)) > MAX_TEXT:
        raise Refused(f"longer than {MAX_TEXT} characters, as JSON with its quotes")
    return text


def kind_of(value: object) -> str:
    return "None" if value is None else type(value).__name__
