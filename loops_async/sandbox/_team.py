"""A team's data: contacts, mailing lists, contact properties and events."""

import re
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from . import _wire
from ._behaviour import Behaviour
from ._records import SandboxContact, SandboxEvent
from ._wire import RefusedError

# Documented in docs/contacts/properties.
_DEFAULT_PROPERTIES = {
    "email": "string",
    "firstName": "string",
    "lastName": "string",
    "source": "string",
    "subscribed": "boolean",
    "userGroup": "string",
    "userId": "string",
}
_RESERVED = frozenset({"id", "listId", "softDeleteAt", "teamId", "updatedAt"})
_INITIAL_VALUES: Mapping[str, Any] = {
    "firstName": None,
    "lastName": None,
    "source": "API",
    "subscribed": True,
    "userGroup": "",
}
PROPERTY_TYPES = ("string", "number", "boolean", "date")


@attrs.define(eq=False, kw_only=True)
class _Contact:
    id: str
    email: str | None = None
    user_id: str | None = None
    properties: dict[str, Any] = attrs.field(factory=lambda: dict(_INITIAL_VALUES))
    mailing_lists: dict[str, Literal[True]] = attrs.field(factory=dict)


@attrs.define(eq=False, kw_only=True)
class Team:
    """The data of one team.

    Attributes:
        lists: Mailing list ID to name.
        properties: Custom contact property to its type.
        behaviour: The switches.
        events: The accepted events, oldest first.
    """

    lists: dict[str, str]
    properties: dict[str, str]
    behaviour: Behaviour
    events: deque[SandboxEvent]
    _contacts: dict[str, _Contact] = attrs.field(init=False, factory=dict)
    _by_email: dict[str, _Contact] = attrs.field(init=False, factory=dict)
    _by_user_id: dict[str, _Contact] = attrs.field(init=False, factory=dict)
    _created: int = attrs.field(init=False, default=0)

    def contacts(self) -> list[SandboxContact]:
        """Return all contacts, oldest first."""
        return [_snapshot(contact) for contact in list(self._contacts.values())]

    def find(self, email: str | None, user_id: str | None) -> SandboxContact | None:
        """Return the contact with that email, else the one with that user ID."""
        found = self._lookup(email, user_id)
        return _snapshot(found[0]) if found else None

    def upsert(
        self,
        email: str | None,
        user_id: str | None,
        properties: Mapping[str, Any],
        mailing_lists: Mapping[str, Any],
        *,
        create_by_user_id: bool,
    ) -> str:
        """Create or update the contact that either ID matches, and return its ID.

        The other ID of a contact is overwritten. All checks precede the first change.

        Args:
            email: The email, or None.
            user_id: The user ID, or None.
            properties: The contact properties to set.
            mailing_lists: Mailing list ID to membership.
            create_by_user_id: Whether an unknown ``user_id`` without an email creates
                a contact.

        Raises:
            RefusedError: If a rule is broken.
        """
        found = self._lookup(email, user_id)
        if len(found) == 2:
            policy = self.behaviour.two_contacts
            if policy == "refuse":
                raise RefusedError(400, _wire.TWO_CONTACTS)
            contact: _Contact | None = found[policy == "user-id"]
            email = user_id = None
        else:
            contact = found[0] if found else None
            if contact is None and email is None and not create_by_user_id:
                raise RefusedError(400, _wire.CONTACT_NOT_FOUND)
        accepted = self._accepted_properties(properties)
        subscribed = accepted.get(
            "subscribed", contact is None or contact.properties["subscribed"]
        )
        memberships = self._accepted_memberships(
            mailing_lists, subscribed=subscribed is not False
        )
        if contact is None:
            contact = self._create()
        self._set_ids(contact, email, user_id)
        self._set_properties(contact, accepted)
        for list_id, member in memberships.items():
            if member:
                contact.mailing_lists[list_id] = True
            else:
                contact.mailing_lists.pop(list_id, None)
        return contact.id

    def delete(self, contact_id: str) -> None:
        """Delete a contact; its events stay."""
        contact = self._contacts.pop(contact_id)
        if contact.email is not None:
            del self._by_email[self._email_key(contact.email)]
        if contact.user_id is not None:
            del self._by_user_id[contact.user_id]

    def property_list(self, *, only_custom: bool) -> list[dict[str, str]]:
        """Return the contact properties as ``GET /v1/contacts/properties`` does."""
        types = (
            self.properties if only_custom else _DEFAULT_PROPERTIES | self.properties
        )
        return [
            {"key": name, "label": _label(name), "type": property_type}
            for name, property_type in types.items()
        ]

    def create_property(self, name: str, property_type: str) -> None:
        """Add a custom contact property.

        Raises:
            RefusedError: If the name exists or is reserved.
        """
        if name in _DEFAULT_PROPERTIES or name in self.properties:
            raise RefusedError(400, _wire.PROPERTY_EXISTS)
        if name in _RESERVED:
            raise RefusedError(400, _wire.BAD_PROPERTY)
        self.properties[name] = property_type

    def _lookup(self, email: str | None, user_id: str | None) -> list[_Contact]:
        found = []
        if email is not None and (match := self._by_email.get(self._email_key(email))):
            found.append(match)
        if (
            user_id is not None
            and (match := self._by_user_id.get(user_id))
            and match not in found
        ):
            found.append(match)
        return found

    def _create(self) -> _Contact:
        self._created += 1
        contact = _Contact(id=f"clsandbox{self._created:016d}")
        self._contacts[contact.id] = contact
        return contact

    def _set_ids(
        self, contact: _Contact, email: str | None, user_id: str | None
    ) -> None:
        if email is not None:
            if contact.email is not None:
                del self._by_email[self._email_key(contact.email)]
            contact.email = email
            self._by_email[self._email_key(email)] = contact
        if user_id is not None:
            if contact.user_id is not None:
                del self._by_user_id[contact.user_id]
            contact.user_id = user_id
            self._by_user_id[user_id] = contact

    def _accepted_properties(self, requested: Mapping[str, Any]) -> dict[str, Any]:
        policy = self.behaviour.unknown_properties
        accepted = {}
        for name, value in requested.items():
            if name in _INITIAL_VALUES or name in self.properties:
                accepted[name] = value
            elif policy == "refuse":
                raise RefusedError(400, _wire.UNKNOWN_PROPERTY.format(name))
            elif policy == "store" and name not in _RESERVED:
                accepted[name] = value
        return accepted

    def _set_properties(self, contact: _Contact, accepted: Mapping[str, Any]) -> None:
        drop = self.behaviour.emptied_properties == "absent"
        for name, value in accepted.items():
            if name not in _INITIAL_VALUES:
                self.properties.setdefault(name, _type_of(value))
                if value is None and drop:
                    contact.properties.pop(name, None)
                    continue
            contact.properties[name] = value

    def _accepted_memberships(
        self, requested: Mapping[str, Any], *, subscribed: bool
    ) -> dict[str, bool]:
        accepted = {}
        for list_id, member in requested.items():
            # Null is undocumented; the Ruby SDK removes nulls before it sends.
            if member is None:
                continue
            if not isinstance(member, bool):
                raise RefusedError(400, _wire.NOT_A_BOOLEAN.format(list_id))
            if list_id not in self.lists:
                if self.behaviour.unknown_lists == "refuse":
                    raise RefusedError(400, _wire.UNKNOWN_LIST.format(list_id))
                continue
            if member and not subscribed:
                if self.behaviour.unsubscribed_lists == "refuse":
                    raise RefusedError(400, _wire.UNSUBSCRIBED)
                if self.behaviour.unsubscribed_lists == "ignore":
                    continue
            accepted[list_id] = member
        return accepted

    def _email_key(self, email: str) -> str:
        return email.lower() if self.behaviour.fold_email else email


def _snapshot(contact: _Contact) -> SandboxContact:
    return SandboxContact(
        id=contact.id,
        email=contact.email,
        user_id=contact.user_id,
        properties=dict(contact.properties),
        mailing_lists=dict(contact.mailing_lists),
    )


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "string"


def _label(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return spaced[:1].upper() + spaced[1:]
