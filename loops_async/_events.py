"""Events: the value a user makes, valid from birth."""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, Never, Self, TypeAlias, TypeVar

import attrs

from . import _values
from ._values import PropertyValue, Refused, WireValue
from .errors import InvalidEventError

_V = TypeVar("_V")
_Reader: TypeAlias = Callable[[Any], Any]


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


_NOTHING: Final[FrozenDict[Any]] = FrozenDict()


@attrs.define(frozen=True, init=False, hash=False)
class Event:
    """One event for one contact, with its identity.

    Checked and normalised when made, so an Event that exists can be sent:
    mappings are copied and frozen, datetimes become UTC text with
    milliseconds, Enums their value, UUIDs text, Decimals numbers.

    Attributes:
        event_name: The event's name in Loops, case-sensitive, without ``:``.
        email: The contact's email, or None.
        user_id: The contact's user ID, or None; one of the two is needed.
        event_properties: Values for the emails this event triggers; str,
            number, bool or date. ``""``, ``0`` and ``False`` are sent.
        contact_properties: Values to set on the contact; None resets one.
        mailing_lists: Mailing list ID to True (subscribe) or False.
        idempotency_key: Up to 100 printable ASCII characters. Loops refuses
            a key it has seen in the last 24 hours, so one event is accepted
            once however often it is sent.

    Raises:
        InvalidEventError: with all problems, each with its path.
    """

    event_name: str
    email: str | None
    user_id: str | None
    event_properties: Mapping[str, WireValue]
    contact_properties: Mapping[str, WireValue | None]
    mailing_lists: Mapping[str, bool]
    idempotency_key: str

    def __init__(
        self,
        event_name: str,
        *,
        email: str | None = None,
        user_id: str | None = None,
        event_properties: Mapping[str, PropertyValue] = _NOTHING,
        contact_properties: Mapping[str, PropertyValue | None] = _NOTHING,
        mailing_lists: Mapping[str, bool] = _NOTHING,
        idempotency_key: str | None = None,
    ) -> None:
        read = _Reading()
        put = object.__setattr__  # the one way into a frozen class
        name = read.one("event_name", event_name, _values.event_name)
        put(self, "event_name", name)
        if email is not None:
            email = read.one("email", email, _values.email)
        elif user_id is None:
            read.problems.append("email: required unless user_id is given")
        put(self, "email", email)
        if user_id is not None:
            user_id = read.one("user_id", user_id, _values.identifier)
        put(self, "user_id", user_id)
        event_properties = read.all(
            "event_properties", event_properties, _values.name, _values.value
        )
        put(self, "event_properties", event_properties)
        contact_properties = read.all(
            "contact_properties",
            contact_properties,
            _values.contact_property_name,
            _values.value_or_none,
        )
        put(self, "contact_properties", contact_properties)
        mailing_lists = read.all(
            "mailing_lists", mailing_lists, _values.name, _values.membership
        )
        put(self, "mailing_lists", mailing_lists)
        if idempotency_key is None:
            key = str(uuid.uuid4())
        else:
            key = read.one("idempotency_key", idempotency_key, _values.idempotency_key)
        put(self, "idempotency_key", key)
        if read.problems:
            raise InvalidEventError(problems=read.problems)

    def replace(self, **changes: Any) -> Self:
        """Return a changed copy under a new idempotency key.

        Args:
            **changes: Any of the constructor's arguments.

        Raises:
            InvalidEventError: if the result breaks a rule.
        """
        return attrs.evolve(self, **{"idempotency_key": None, **changes})

    def again(self) -> Self:
        """Return the same event as a new one: Loops will accept it once more."""
        return self.replace()


class _Reading:
    """Reads values and collects, under their paths, why any was refused."""

    __slots__ = ("problems",)

    def __init__(self) -> None:
        self.problems: list[str] = []

    def one(self, path: str, given: Any, reader: _Reader) -> Any:
        try:
            return reader(given)
        except Refused as refused:
            self.problems.extend(f"{path}: {why}" for why in refused.args)
        return None

    def all(
        self, path: str, given: object, name_reader: _Reader, reader: _Reader
    ) -> FrozenDict[Any]:
        if given is _NOTHING:
            return _NOTHING
        if not isinstance(given, Mapping):
            kind = _values.kind_of(given)
            self.problems.append(f"{path}: must be a mapping, not {kind}")
            return _NOTHING
        values: dict[str, Any] = {}
        for name, value in given.items():
            try:
                values[name_reader(name)] = reader(value)
            except Refused:
                at = _item_path(path, name)
                self.one(at, name, name_reader)
                self.one(at, value, reader)
        return FrozenDict(values) if values else _NOTHING


def _item_path(path: str, name: Any) -> str:
    short = type(name) is str and 0 < len(name) <= _values.SURELY_SHORT
    if short and name.isprintable():
        return f"{path}.{name}"
    return f"{path}[{name!r:.{_values.SURELY_SHORT}}]"
