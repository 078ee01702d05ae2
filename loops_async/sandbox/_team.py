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

# Default contact properties: docs/contacts/properties.
_PROPERTY_TYPES = {
    "email": "string",
    "firstName": "string",
    "lastName": "string",
    "source": "string",
    "subscribed": "boolean",
    "userGroup": "string",
    "userId": "string",
}
_RESERVED = frozenset({"id", "listId", "softDeleteAt", "teamId", "updatedAt"})
_NEW_CONTACT: Mapping[str, Any] = {
    "firstName": None,
    "lastName": None,
    "source": "API",
    "subscribed": True,
    "userGroup": "",
}
PROPERTY_KINDS = ("string", "number", "boolean", "date")


@attrs.define(eq=False, kw_only=True)
class _Contact:
    id: str
    email: str | None = None
    user_id: str | None = None
    properties: dict[str, Any] = attrs.field(factory=lambda: dict(_NEW_CONTACT))
    mailing_lists: dict[str, Literal[True]] = attrs.field(factory=dict)


@attrs.define(eq=False, kw_only=True)
class Team:
    """What Loops would keep for one team.

    Attributes:
        lists: Mailing list id to name.
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
        """All contacts, oldest first."""
        return [_view(contact) for contact in list(self._contacts.values())]

    def find(self, email: str | None, user_id: str | None) -> SandboxContact | None:
        """The contact with that e-mail, else the one with that user id."""
        found = self._lookup(email, user_id)
        return _view(found[0]) if found else None

    def upsert(
        self,
        email: str | None,
        user_id: str | None,
        properties: Mapping[str, Any],
        mailing_lists: Mapping[str, Any],
        *,
        create_by_user_id: bool,
    ) -> str:
        """Create or update the contact that either id matches, and return its id.

        An id that does not match is overwritten. All checks come before the first
        change. An unknown ``user_id`` alone is refused unless
        ``create_by_user_id``. Raises ``RefusedError``.
        """
        found = self._lookup(email, user_id)
        if len(found) == 2:
            stance = self.behaviour.two_contacts
            if stance == "refuse":
                raise RefusedError(400, _wire.TWO_CONTACTS)
            contact: _Contact | None = found[stance == "user-id"]
            email = user_id = None
        else:
            contact = found[0] if found else None
            if contact is None and email is None and not create_by_user_id:
                raise RefusedError(400, _wire.CONTACT_NOT_FOUND)
        known = self._known_properties(properties)
        subscribed = known.get(
            "subscribed", contact is None or contact.properties["subscribed"]
        )
        chosen = self._chosen_lists(mailing_lists, subscribed=subscribed is not False)
        if contact is None:
            contact = self._create()
        self._identify(contact, email, user_id)
        self._set_properties(contact, known)
        for list_id, member in chosen.items():
            if member:
                contact.mailing_lists[list_id] = True
            else:
                contact.mailing_lists.pop(list_id, None)
        return contact.id

    def delete(self, contact_id: str) -> None:
        """Forget a contact; its events stay."""
        contact = self._contacts.pop(contact_id)
        if contact.email is not None:
            del self._by_email[self._folded(contact.email)]
        if contact.user_id is not None:
            del self._by_user_id[contact.user_id]

    def property_list(self, *, only_custom: bool) -> list[dict[str, str]]:
        """The contact properties as ``GET /v1/contacts/properties`` shows them."""
        types = self.properties if only_custom else _PROPERTY_TYPES | self.properties
        return [
            {"key": name, "label": _label(name), "type": kind}
            for name, kind in types.items()
        ]

    def create_property(self, name: str, kind: str) -> None:
        """Add a custom contact property; RefusedError if the name is taken."""
        if name in _PROPERTY_TYPES or name in self.properties:
            raise RefusedError(400, _wire.PROPERTY_EXISTS)
        if name in _RESERVED:
            raise RefusedError(400, _wire.BAD_PROPERTY)
        self.properties[name] = kind

    def _lookup(self, email: str | None, user_id: str | None) -> list[_Contact]:
        found = []
        if email is not None and (match := self._by_email.get(self._folded(email))):
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

    def _identify(
        self, contact: _Contact, email: str | None, user_id: str | None
    ) -> None:
        if email is not None:
            if contact.email is not None:
                del self._by_email[self._folded(contact.email)]
            contact.email = email
            self._by_email[self._folded(email)] = contact
        if user_id is not None:
            if contact.user_id is not None:
                del self._by_user_id[contact.user_id]
            contact.user_id = user_id
            self._by_user_id[user_id] = contact

    def _known_properties(self, given: Mapping[str, Any]) -> dict[str, Any]:
        stance = self.behaviour.unknown_properties
        known = {}
        for name, value in given.items():
            if name in _NEW_CONTACT or name in self.properties:
                known[name] = value
            elif stance == "refuse":
                raise RefusedError(400, _wire.UNKNOWN_PROPERTY.format(name))
            elif stance == "store" and name not in _RESERVED:
                known[name] = value
        return known

    def _set_properties(self, contact: _Contact, known: Mapping[str, Any]) -> None:
        drop = self.behaviour.emptied_properties == "absent"
        for name, value in known.items():
            if name not in _NEW_CONTACT:
                self.properties.setdefault(name, _kind(value))
                if value is None and drop:
                    contact.properties.pop(name, None)
                    continue
            contact.properties[name] = value

    def _chosen_lists(
        self, given: Mapping[str, Any], *, subscribed: bool
    ) -> dict[str, bool]:
        chosen = {}
        for list_id, member in given.items():
            # Undocumented; the Ruby SDK drops nulls before it sends.
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
            chosen[list_id] = member
        return chosen

    def _folded(self, email: str) -> str:
        return email.lower() if self.behaviour.fold_email else email


def _view(contact: _Contact) -> SandboxContact:
    return SandboxContact(
        id=contact.id,
        email=contact.email,
        user_id=contact.user_id,
        properties=dict(contact.properties),
        mailing_lists=dict(contact.mailing_lists),
    )


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "string"


def _label(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return spaced[:1].upper() + spaced[1:]
