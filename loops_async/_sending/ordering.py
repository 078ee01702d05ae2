"""The order of many events: one contact's one after the other."""

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
    """One event on its way, and what has to wait for it.

    Attributes:
        index: Its place in the input.
        event: The event.
        body: Its bytes.
    """

    index: int
    event: ItemT
    body: bytes
    ahead: int = 0  # of its contact's events, those that are not done
    behind: "list[Entry[ItemT]] | None" = None


class ContactOrder(Generic[ItemT]):
    """Lets each event wait for the last one before it of the same contact.

    The same contact is who has the same email, in upper or lower case, or
    the same user ID; an event with both ties the two together. As events
    only wait for earlier ones there is no deadlock.
    """

    def __init__(self) -> None:
        self._last_by_email: dict[str, Entry[ItemT]] = {}
        self._last_by_user_id: dict[str, Entry[ItemT]] = {}

    def add(self, entry: Entry[ItemT]) -> bool:
        """Put an event behind its contact's; return whether it can go now."""
        event = entry.event
        before = None
        if event.email is not None:
            email = event.email.casefold()
            before = self._last_by_email.get(email)
            self._last_by_email[email] = entry
            if before is not None:
                _wait(entry, before)
        if event.user_id is not None:
            same = self._last_by_user_id.get(event.user_id)
            self._last_by_user_id[event.user_id] = entry
            if same is not None and same is not before:
                _wait(entry, same)
        return not entry.ahead

    def done(self, entry: Entry[ItemT]) -> list[Entry[ItemT]]:
        """Take an event out; return those which can go now."""
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


def _wait(entry: Entry[Any], before: Entry[Any]) -> None:
    entry.ahead += 1
    if before.behind is None:
        before.behind = []
    before.behind.append(entry)


def _forget(last: dict[str, Entry[Any]], contact: str, entry: Entry[Any]) -> None:
    if last[contact] is entry:
        del last[contact]


class KeyBook:
    """Remembers which bytes an idempotency key stood for.

    Args:
        most: Keys to remember at least, those last seen; None is all.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._bytes_of: dict[str, int] = {}  # by hash; 64 bits will do
        self._before: dict[str, int] = {}  # forgotten when the other is full

    def agrees(self, key: str, body: bytes) -> bool:
        """Return whether the key never stood for other bytes; remember it."""
        mark = hash(body)
        known = self._bytes_of.get(key)
        if known is None:
            known = self._before.get(key, mark)
            if len(self._bytes_of) == self._most:
                self._bytes_of, self._before = {}, self._bytes_of
            self._bytes_of[key] = known
        return known == mark
