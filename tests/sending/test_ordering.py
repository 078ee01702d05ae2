"""The order of the events of a contact, and the body that belongs to a key."""

import copy
import gc
import weakref
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import Event
from loops_async._sending.ordering import ContactOrder, Entry, KeyMemory

Contact: TypeAlias = tuple[str | None, str | None]
AnyEntry: TypeAlias = Entry[Event]
AnyOrder: TypeAlias = ContactOrder[Event]


def entry(index: int, email: str | None = None, user_id: str | None = None) -> AnyEntry:
    return Entry(index, Event("e", email=email, user_id=user_id), b"{}")


def remembers(order: AnyOrder, *contacts: Contact) -> bool:
    """Return whether a new event of any of the contacts would have to wait."""
    for email, user_id in contacts:
        probe = entry(99, email, user_id)
        ready = order.add(probe)
        order.done(probe)
        if not ready:
            return True
    return False


# The order of a contact.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"email": "ada@b.co"}, {"email": "ada@b.co"}),
        ({"email": "ada@b.co"}, {"email": "ADA@B.CO"}),
        ({"user_id": "u1"}, {"user_id": "u1"}),
        ({"email": "ada@b.co", "user_id": "u1"}, {"user_id": "u1"}),
        ({"email": "ada@b.co"}, {"email": "Ada@b.co", "user_id": "u1"}),
        (
            {"email": "ada@b.co", "user_id": "u1"},
            {"email": "ada@b.co", "user_id": "u1"},
        ),
    ],
)
def test_the_second_event_of_a_contact_is_ready_when_the_first_is_done(
    first: dict[str, str], second: dict[str, str]
) -> None:
    order = AnyOrder()
    ahead, behind = entry(0, **first), entry(1, **second)
    assert order.add(ahead)
    assert not order.add(behind)
    assert order.done(ahead) == [behind]
    assert order.done(behind) == []
    contacts = [(one.get("email"), one.get("user_id")) for one in (first, second)]
    assert not remembers(order, *contacts)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"email": "ada@b.co"}, {"email": "eve@b.co"}),
        ({"user_id": "u1"}, {"user_id": "U1"}),  # a user ID is case-sensitive
        ({"email": "ada@b.co"}, {"user_id": "ada@b.co"}),
    ],
)
def test_events_of_different_contacts_are_ready_at_once(
    first: dict[str, str], second: dict[str, str]
) -> None:
    order = AnyOrder()
    assert order.add(entry(0, **first))
    assert order.add(entry(1, **second))


def test_an_event_with_email_and_user_id_waits_for_both_contacts() -> None:
    order = AnyOrder()
    by_email, by_id = entry(0, email="ada@b.co"), entry(1, user_id="u1")
    both, later = entry(2, "ada@b.co", "u1"), entry(3, user_id="u1")
    assert order.add(by_email)
    assert order.add(by_id)
    assert not order.add(both)
    assert not order.add(later)
    assert order.done(by_id) == []
    assert order.done(by_email) == [both]
    assert order.done(both) == [later]


def test_an_event_that_is_done_releases_every_event_that_waited_only_for_it() -> None:
    order = AnyOrder()
    both = entry(0, "ada@b.co", "u1")
    by_email, by_id = entry(1, email="ada@b.co"), entry(2, user_id="u1")
    order.add(both)
    order.add(by_email)
    order.add(by_id)
    assert order.done(both) == [by_email, by_id]


def test_an_event_that_is_done_is_released_before_its_successor() -> None:
    order = AnyOrder()
    first, second = entry(0, email="ada@b.co"), entry(1, email="ada@b.co")
    order.add(first)
    order.add(second)
    assert order.done(first) == [second]
    gone = weakref.ref(first.event)
    del first
    gc.collect()
    assert gone() is None


_contacts = st.tuples(
    st.none() | st.sampled_from(["ada@b.co", "ADA@b.co", "eve@b.co", "Eve@B.co"]),
    st.none() | st.sampled_from(["u1", "u2", "U2"]),
).filter(lambda contact: contact != (None, None))


def share(one: Event, other: Event) -> bool:
    """Return whether two events have a contact in common, as documented."""
    emails = [event.email and event.email.lower() for event in (one, other)]
    return (emails[0] is not None and emails[0] == emails[1]) or (
        one.user_id is not None and one.user_id == other.user_id
    )


@given(st.lists(_contacts, max_size=14), st.data())
def test_an_event_is_ready_as_soon_as_all_earlier_events_of_its_contact_are_done(
    contacts: list[Contact], data: st.DataObject
) -> None:
    """It is ready neither sooner nor later, and no contact remains at the end."""
    order = AnyOrder()
    coming = [entry(index, *contact) for index, contact in enumerate(contacts)]
    coming.reverse()
    pending: list[AnyEntry] = []  # in input order
    ready: set[int] = set()
    while coming or pending:
        going = [one for one in pending if one.index in ready]
        if coming and (not going or data.draw(st.booleans(), label="add")):
            one = coming.pop()
            pending.append(one)
            if order.add(one):
                ready.add(one.index)
        else:
            one = data.draw(st.sampled_from(going), label="done")
            pending.remove(one)
            freed = [other.index for other in order.done(one)]
            assert not ready & set(freed)
            assert len(freed) == len(set(freed))
            ready.update(freed)
        assert {one.index for one in pending if one.index in ready} == {
            one.index
            for place, one in enumerate(pending)
            if not any(share(one.event, other.event) for other in pending[:place])
        }
        assert pending == [] or any(one.index in ready for one in pending)
    assert not remembers(order, *contacts)


# Keys.


def test_a_key_agrees_only_with_its_first_body() -> None:
    memory = KeyMemory(None)
    assert memory.agrees("k", b"one")
    assert memory.agrees("k", b"one")
    assert not memory.agrees("k", b"two")
    assert not memory.agrees("k", b"two")  # a refusal records nothing
    assert memory.agrees("k", b"one")
    assert memory.agrees("other", b"two")


def test_a_bounded_memory_keeps_the_keys_used_last() -> None:
    memory = KeyMemory(2)
    assert memory.agrees("a", b"1")
    assert memory.agrees("b", b"1")
    assert memory.agrees("a", b"1")  # used again
    assert memory.agrees("c", b"1")
    assert not memory.agrees("a", b"2")
    assert not memory.agrees("c", b"2")


def test_a_bounded_memory_forgets_a_key_that_was_not_used_for_long() -> None:
    memory = KeyMemory(2)
    for key in "abcdef":
        assert memory.agrees(key, b"1")
    assert memory.agrees("a", b"2")


@given(
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.sampled_from([b"1", b"2"]))),
    st.none() | st.integers(1, 3),
)
def test_a_memory_keeps_the_keys_used_last_and_at_most_as_many_others(
    uses: list[tuple[str, bytes]], bound: int | None
) -> None:
    memory = KeyMemory(bound)
    model: dict[str, bytes] = {}  # in order of their last use
    for key, body in uses:
        recent = list(model)[-bound:] if bound else list(model)
        agrees = memory.agrees(key, body)
        known = model.pop(key, body)
        if key in recent or known == body:
            assert agrees is (known == body)
        model[key] = body if agrees else known
        if bound:
            remembered = [
                key
                for key in model
                if not copy.deepcopy(memory).agrees(key, b"a third body")
            ]
            assert len(remembered) <= 2 * bound
