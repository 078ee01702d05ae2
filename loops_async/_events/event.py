"""The event, which is validated when it is made."""

from collections.abc import Mapping
from typing import Any, Final, Self, TypedDict, Unpack

import attrs

from loops_async.errors import InvalidEventError

from . import rules
from .rules import (
    NOTHING,
    FrozenDict,
    InvalidItems,
    InvalidValue,
    PropertyValue,
    WireValue,
)


class EventFields(TypedDict, total=False):
    """The arguments of an Event."""

    event_name: str
    email: str | None
    user_id: str | None
    event_properties: Mapping[str, PropertyValue]
    contact_properties: Mapping[str, PropertyValue | None]
    mailing_lists: Mapping[str, bool]
    idempotency_key: str | None


@attrs.define(frozen=True, init=False, hash=False)
class Event:
    """One event of one contact, with its own idempotency key.

    The constructor checks all rules of the API, so every Event can be sent. An
    event is immutable: its mappings are read-only copies. Two events are equal if
    all fields are equal, the idempotency key included.

    **Values.** A property is a string of up to 500 characters (as JSON, with the
    quotes), a number, a boolean or a date. The constructor converts values to
    what Loops receives: an aware datetime to UTC text with milliseconds, a date
    to ISO text, a UUID to text, a Decimal to a number, an Enum to its value.
    It refuses NaN, infinities, integers beyond 2**53, datetimes without a time
    zone, lists and mappings. ``""``, ``0`` and ``False`` are sent as they are.

    **Names.** An event name must match the name in Loops, upper and lower case
    included. A contact property must not have the name of a field of the event or
    a name that Loops reserves, and Loops' own properties are spelled as in Loops:
    ``firstName``, not ``first_name``.

    **Keys.** Loops accepts an idempotency key once in 24 hours, so an event is
    accepted once however often it is sent. The key is a random UUID unless the
    caller passes one. `again` returns the same event with a new key, so that Loops
    accepts it once more; `replace` returns a changed event with a new key.

    **Records.** `event_to_record` returns an event as a JSON object for a file or
    a queue, and `event_from_record` makes an equal event from it, with the same
    key. Events can also be pickled.

    ```python
    from datetime import UTC, datetime

    from loops_async import Event, event_from_record, event_to_record

    event = Event(
        "planUpgraded",
        email="ada@example.com",
        event_properties={"amount": 42, "at": datetime.now(UTC)},
        contact_properties={"firstName": "Ada", "company": None},
    )
    await loops.send_event(event)
    await loops.send_event(event.again())  # a new key: Loops accepts a second event

    record = event_to_record(event)  # a JSON object, for files and queues
    assert event_from_record(record) == event
    ```

    Attributes:
        event_name: The event's name in Loops, without ``:``.
        email: The contact's email address, or None.
        user_id: The contact's user ID, or None if the email is given.
        event_properties: The values by property name, for the emails that the event
            triggers.
        contact_properties: The values by property name that Loops stores with the
            contact; None clears a property.
        mailing_lists: True (subscribe) or False (unsubscribe) by mailing list ID.
        idempotency_key: The idempotency key, up to 100 printable ASCII characters.

    Raises:
        InvalidEventError: If a value breaks a rule; ``problems`` lists every
            broken rule with the path of its value.
    """

    __module__ = "loops_async"

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
        event_properties: Mapping[str, PropertyValue] = NOTHING,
        contact_properties: Mapping[str, PropertyValue | None] = NOTHING,
        mailing_lists: Mapping[str, bool] = NOTHING,
        idempotency_key: str | None = None,
    ) -> None:
        arguments = (
            event_name,
            email,
            user_id,
            event_properties,
            contact_properties,
            mailing_lists,
            idempotency_key,
        )
        try:
            values = rules.field_values(arguments)
        except InvalidValue:
            values = None
        # Raised outside the except clause, so that the error has no context.
        if values is None:
            raise InvalidEventError(problems=_problems(arguments))
        put = object.__setattr__  # the class is frozen
        put(self, "event_name", values[0])
        put(self, "email", values[1])
        put(self, "user_id", values[2])
        put(self, "event_properties", values[3])
        put(self, "contact_properties", values[4])
        put(self, "mailing_lists", values[5])
        put(self, "idempotency_key", values[6])

    def __getstate__(self) -> dict[str, Any]:
        # Plain dicts, so that a pickle does not name the private FrozenDict.
        values = {name: getattr(self, name) for name in _FIELDS}
        return {
            name: dict(value) if isinstance(value, FrozenDict) else value
            for name, value in values.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            frozen = FrozenDict(value) if isinstance(value, dict) else value
            object.__setattr__(self, name, frozen)

    def replace(self, **changes: Unpack[EventFields]) -> Self:
        """Return a changed copy with a new idempotency key.

        Args:
            **changes: The arguments of the constructor. An `idempotency_key` among them
                takes the place of the new key.

        Raises:
            InvalidEventError: If the copy breaks a rule.
        """
        fields: dict[str, Any] = {"idempotency_key": None, **changes}
        return attrs.evolve(self, **fields)

    def again(self) -> Self:
        """Return a copy with a new idempotency key, which Loops accepts as new."""
        return self.replace()


def _problems(arguments: tuple[object, ...]) -> list[str]:
    """Return the message of every broken rule, with the path of the value."""
    _, email, user_id, *_ = arguments
    problems = []
    if email is None and user_id is None:
        problems.append(f"email: {rules.CONTACT_REQUIRED}")
    for name, value in zip(_FIELDS, arguments, strict=True):
        try:
            getattr(rules, name)(value)
        except InvalidItems as invalid:
            problems.extend(f"{name}{problem}" for problem in invalid.args)
        except InvalidValue as invalid:
            problems.extend(f"{name}: {problem}" for problem in invalid.args)
    return problems


_FIELDS: Final = tuple(field.name for field in attrs.fields(Event))
