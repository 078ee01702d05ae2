"""Events: the value a user makes, valid from birth."""

from collections.abc import Mapping
from typing import Any, Self, TypedDict, Unpack

import attrs

from loops_async.errors import InvalidEventError

from . import rules
from .rules import NOTHING, PropertyValue, Refused, RefusedItems, WireValue


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
        event_properties: Mapping[str, PropertyValue] = NOTHING,
        contact_properties: Mapping[str, PropertyValue | None] = NOTHING,
        mailing_lists: Mapping[str, bool] = NOTHING,
        idempotency_key: str | None = None,
    ) -> None:
        put = object.__setattr__  # the one way into a frozen class
        try:
            put(self, "event_name", rules.event_name(event_name))
            put(self, "email", rules.email(email))
            put(self, "user_id", rules.user_id(user_id))
            properties = rules.event_properties(event_properties)
            put(self, "event_properties", properties)
            contact = rules.contact_properties(contact_properties)
            put(self, "contact_properties", contact)
            put(self, "mailing_lists", rules.mailing_lists(mailing_lists))
            key = rules.idempotency_key(idempotency_key)
            put(self, "idempotency_key", key)
            complete = email is not None or user_id is not None
        except Refused:
            complete = False
        if not complete:
            given = (
                event_name,
                email,
                user_id,
                event_properties,
                contact_properties,
                mailing_lists,
                idempotency_key,
            )
            raise InvalidEventError(problems=_problems(given))

    def replace(self, **changes: Unpack[EventFields]) -> Self:
        """Return a changed copy under a new idempotency key.

        Args:
            **changes: Any of the constructor's arguments.

        Raises:
            InvalidEventError: if the result breaks a rule.
        """
        fields: dict[str, Any] = {"idempotency_key": None, **changes}
        return attrs.evolve(self, **fields)

    def again(self) -> Self:
        """Return the same event as a new one: Loops will accept it once more."""
        return self.replace()


def _problems(given: tuple[object, ...]) -> list[str]:
    """List what is wrong with the arguments of an Event, each under its path."""
    _, email, user_id, *_ = given
    problems = []
    if email is None and user_id is None:
        problems.append("email: required unless user_id is given")
    for name, value in zip(_FIELDS, given, strict=True):
        try:
            getattr(rules, name)(value)
        except RefusedItems as refused:
            problems.extend(f"{name}{why}" for why in refused.args)
        except Refused as refused:
            problems.extend(f"{name}: {why}" for why in refused.args)
    return problems


_FIELDS = tuple(field.name for field in attrs.fields(Event))
