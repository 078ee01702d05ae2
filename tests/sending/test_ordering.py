"""The order of events, and what their keys stand for: plain calls."""

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import Event
from loops_async._sending.ordering import ContactOrder, Entry, KeyBook


def entry(index: int, email: str | None = None, user_id: str | None = None) -> Entry:
    return Entry(index, Event("e", email=email, user_id=user_id), b"{}")


def tails(order: ContactOrder) -> int:
    """Return how many contacts it still remembers."""
    return len(order._last_by_email) + len(order._last_by_user_id)


# Who waits for whom.


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
def test_the_second_event_of_a_contact_goes_when_the_first_is_done(
    first: dict[str, str], second: dict[str, str]
) -> None:
    order = ContactOrder()
    ahead, behind = entry(0, **first), entry(1, **second)
    assert order.add(ahead)
    assert not order.add(behind)
    assert order.done(ahead) == [behind]
    assert order.done(behind) == []
    assert not tails(order)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"email": "ada@b.co"}, {"email": "eve@b.co"}),
        ({"user_id": "u1"}, {"user_id": "U1"}),  # a user ID is case-sensitive
        ({"email": "ada@b.co"}, {"user_id": "ada@b.co"}),
    ],
)
def test_events_of_different_contacts_go_at_once(
    first: dict[str, str], second: dict[str, str]
) -> None:
    order = ContactOrder()
    assert order.add(entry(0, **first))
    assert order.add(entry(1, **second))


def test_an_event_with_both_ties_two_contacts_together() -> None:
    order = ContactOrder()
    by_email, by_id = entry(0, email="ada@b.co"), entry(1, user_id="u1")
    both, later = entry(2, "ada@b.co", "u1"), entry(3, user_id="u1")
    assert order.add(by_email)
    assert order.add(by_id)
    assert not order.add(both)
    assert not order.add(later)
    assert order.done(by_id) == []
    assert order.done(by_email) == [both]
    assert order.done(both) == [later]


def test_one_that_is_done_sets_all_free_that_waited_for_it_alone() -> None:
    order = ContactOrder()
    both = entry(0, "ada@b.co", "u1")
    by_email, by_id = entry(1, email="ada@b.co"), entry(2, user_id="u1")
    order.add(both)
    order.add(by_email)
    order.add(by_id)
    assert order.done(both) == [by_email, by_id]


def test_what_is_done_is_not_kept() -> None:
    """Though its successor of the same contact still is."""
    order = ContactOrder()
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
    """Tell whether two events are of one contact, as the documentation has it."""
    emails = [event.email and event.email.lower() for event in (one, other)]
    return (emails[0] is not None and emails[0] == emails[1]) or (
        one.user_id is not None and one.user_id == other.user_id
    )


@given(st.lists(_contacts, max_size=14), st.data())
def test_an_event_is_ready_as_soon_as_all_earlier_ones_of_its_contact_are_done(
    contacts: list[tuple[str | None, str | None]], data: st.DataObject
) -> None:
    """No sooner, no later, whenever which is done; and nothing is left behind."""
    order = ContactOrder()
    coming = [entry(index, *contact) for index, contact in enumerate(contacts)]
    coming.reverse()
    pending: list[Entry] = []  # in input order
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
    assert not tails(order)


# Keys.


def test_a_key_agrees_with_its_own_bytes_only() -> None:
    book = KeyBook(None)
    assert book.agrees("k", b"one")
    assert book.agrees("k", b"one")
    assert not book.agrees("k", b"two")
    assert not book.agrees("k", b"two")  # a refusal does not make it right
    assert book.agrees("k", b"one")
    assert book.agrees("other", b"two")


def test_a_bounded_book_remembers_the_keys_last_seen() -> None:
    book = KeyBook(2)
    assert book.agrees("a", b"1")
    assert book.agrees("b", b"1")
    assert book.agrees("a", b"1")  # seen again
    assert book.agrees("c", b"1")
    assert not book.agrees("a", b"2")
    assert not book.agrees("c", b"2")


def test_a_bounded_book_forgets_a_key_not_seen_for_long() -> None:
    book = KeyBook(2)
    for key in "abcdef":
        assert book.agrees(key, b"1")
    assert book.agrees("a", b"2")


@given(
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.sampled_from([b"1", b"2"]))),
    st.none() | st.integers(1, 3),
)
def test_a_book_knows_the_keys_last_seen_and_not_many_more(
    seen: list[tuple[str, bytes]], most: int | None
) -> None:
    book = KeyBook(most)
    model: dict[str, bytes] = {}  # the one last seen is the last
    for key, body in seen:
        recent = list(model)[-most:] if most else list(model)
        agrees = book.agrees(key, body)
        known = model.pop(key, body)
        if key in recent or known == body:
            assert agrees is (known == body)
        model[key] = body if agrees else known
        if most:
            assert len(book._bytes_of) + len(book._before) <= 2 * most
