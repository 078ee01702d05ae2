"""The order of a bulk run: the events of one contact are sent one after another."""

from typing import Any, Generic, Protocol, TypeVar

import attrs


class Sendable(Protocol):
    """An event, or a row of a journal."""

    @property
    def idempotency_key(self) -> str: ...
    @property
    def email(self) -> str | None: ...
    @property
    def user_id(self) -> str | None: ...


ItemT = TypeVar("ItemT", bound=Sendable)


@attrs.define(eq=False)
class Entry(Generic[ItemT]):
    """One event of a run, and the events that wait for it.

    Attributes:
        index: The event's position in the input.
        event: The event.
        body: The encoded event.
        ahead: The number of earlier events of its contact that are not done.
        behind: The later events of its contact that wait for this one, or None.
    """

    index: int
    event: ItemT
    body: bytes
    ahead: int = 0
    behind: "list[Entry[ItemT]] | None" = None


class ContactOrder(Generic[ItemT]):
    """The order in which each event waits for the previous event of its contact.

    Two events belong to one contact if they share an email, whatever its case, or
    a user ID; an event with both ties the two together. Events wait only for
    earlier ones, so they cannot deadlock.
    """

    def __init__(self) -> None:
        self._last_by_email: dict[str, Entry[ItemT]] = {}
        self._last_by_user_id: dict[str, Entry[ItemT]] = {}

    def add(self, entry: Entry[ItemT]) -> bool:
        """Add an event behind those of its contact; return whether it is ready."""
        event = entry.event
        previous = None
        if event.email is not None:
            email = event.email.casefold()
            previous = self._last_by_email.get(email)
            self._last_by_email[email] = entry
            if previous is not None:
                _wait(entry, previous)
        if event.user_id is not None:
            other = self._last_by_user_id.get(event.user_id)
            self._last_by_user_id[event.user_id] = entry
            if other is not None and other is not previous:
                _wait(entry, other)
        return not entry.ahead

    def done(self, entry: Entry[ItemT]) -> list[Entry[ItemT]]:
        """Remove an event; return the events that become ready."""
        event = entry.event
        if event.email is not None:
            _forget(self._last_by_email, event.email.casefold(), entry)
        if event.user_id is not None:
            _forget(self._last_by_user_id, event.user_id, entry)
        if entry.behind is None:
            return []
        for waiting in entry.behind:
            waiting.ahead -= 1
        return [waiting for waiting in entry.behind if not waiting.ahead]


def _wait(entry: Entry[Any], previous: Entry[Any]) -> None:
    entry.ahead += 1
    if previous.behind is None:
        previous.behind = []
    previous.behind.append(entry)


def _forget(last: dict[str, Entry[Any]], contact: str, entry: Entry[Any]) -> None:
    if last[contact] is entry:
        del last[contact]


class KeyMemory:
    """A memory of the body that each idempotency key belongs to.

    Args:
        size: The minimum number of latest keys to remember; None means all.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._hashes: dict[str, int] = {}  # 64 bits of the body are enough
        self._older: dict[str, int] = {}  # dropped when _hashes is full again

    def agrees(self, key: str, body: bytes) -> bool:
        """Remember a key and its body; return False if the key had another body."""
        digest = hash(body)
        known = self._hashes.get(key)
        if known is None:
            known = self._older.get(key, digest)
            if len(self._hashes) == self._size:
                self._hashes, self._older = {}, self._hashes
            self._hashes[key] = known
        return known == digest
