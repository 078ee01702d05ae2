"""``POST /v1/events/send``: bodies, contacts and lists, by plain calls."""

from typing import Any

import pytest

from loops_async.sandbox import SandboxContact
from loops_async.sandbox._api import Loops

from .support import event, make_loops, outcome, send


def only_contact(loops: Loops) -> SandboxContact:
    (contact,) = loops.team.contacts()
    return contact


def test_an_event_creates_its_contact_with_the_documented_defaults() -> None:
    loops = make_loops()
    answer = send(loops, event(), now=3.0)
    assert answer.body == b'{"success":true}'
    contact = only_contact(loops)
    assert (contact.email, contact.user_id) == ("ada@example.com", None)
    assert contact.properties == {
        "firstName": None,
        "lastName": None,
        "source": "API",
        "subscribed": True,
        "userGroup": "",
    }
    assert contact.mailing_lists == {}
    record = loops.team.events[0]
    assert (record.name, record.at, record.contact_id) == ("signup", 3.0, contact.id)


def test_everything_of_an_event_is_kept_as_it_was_sent() -> None:
    loops = make_loops()
    properties = {"amount": 42, "ok": True, "note": "", "none": None}
    body = event(
        userId="u1", eventProperties=properties, mailingLists={"l1": True}, plan="pro"
    )
    assert send(loops, body, idempotency_key="k1").status == 200
    record = loops.team.events[0]
    assert (record.email, record.user_id) == ("ada@example.com", "u1")
    assert record.event_properties == properties
    assert record.contact_properties == {"plan": "pro"}
    assert record.mailing_lists == {"l1": True}
    assert record.idempotency_key == "k1"


@pytest.mark.parametrize(
    "extra",
    [
        {"userId": None},
        {"eventProperties": [], "mailingLists": []},
        {"eventProperties": {}, "mailingLists": {}},
        {"eventProperties": None, "mailingLists": None},
        {"mailingLists": {"l1": None}},
    ],
)
def test_what_php_and_ruby_send_for_nothing_is_nothing(extra: dict[str, Any]) -> None:
    loops = make_loops()
    assert send(loops, event(**extra)).status == 200
    assert only_contact(loops).mailing_lists == {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "[sandbox] The body is not valid JSON."),
        (b"{", "[sandbox] The body is not valid JSON."),
        (b"\xff", "[sandbox] The body is not valid JSON."),
        (b'{"a":NaN}', "[sandbox] The body is not valid JSON."),
        (b"[" * 200_000, "[sandbox] The body is not valid JSON."),
        (b"9" * 5_000, "[sandbox] The body is not valid JSON."),
        ([], "[sandbox] The body is not a JSON object."),
        ({"email": "a@b.c"}, "[sandbox] eventName is required."),
        ({"email": "a@b.c", "eventName": ""}, "[sandbox] eventName is required."),
        ({"email": "a@b.c", "eventName": 1}, "[sandbox] eventName is required."),
        (event("a:b"), "[sandbox] eventName must not contain a colon."),
        ({"eventName": "x"}, "[sandbox] An email or userId is required."),
        (
            {"eventName": "x", "email": None, "userId": None},
            "[sandbox] An email or userId is required.",
        ),
        (event(email=""), "Invalid email address."),
        (event(email="ada"), "Invalid email address."),
        (event(email="a@b@c"), "Invalid email address."),
        (event(email="a b@c.d"), "Invalid email address."),
        (event(email=7), "Invalid email address."),
        (
            event(userId=7),
            "[sandbox] userId must be a string with at least one character.",
        ),
        (
            event(userId=""),
            "[sandbox] userId must be a string with at least one character.",
        ),
        ({"eventName": "x", "userId": "nobody"}, "Contact not found."),
        (event(eventProperties=[1]), "[sandbox] eventProperties must be an object."),
        (event(eventProperties="x"), "[sandbox] eventProperties must be an object."),
        (event(mailingLists=[1]), "[sandbox] mailingLists must be an object."),
        (
            event(eventProperties={"a": []}),
            "[sandbox] eventProperties.a must be a string, a number or a boolean.",
        ),
        (
            event(contactProperties={"a": 1}),
            "[sandbox] contactProperties must be a string, a number or a boolean.",
        ),
        (
            event(mailingLists={"l1": 1}),
            "[sandbox] mailingLists.l1 must be true or false.",
        ),
        (event(mailingLists={"no": True}), "[sandbox] Unknown mailing list no."),
    ],
)
def test_a_refused_body_says_why_and_changes_nothing(body: Any, message: str) -> None:
    loops = make_loops()
    assert outcome(send(loops, body)) == (400, message)
    assert not loops.team.events
    assert not loops.team.contacts()
    assert loops.accepted == 0


def test_blanks_around_event_property_names_are_trimmed() -> None:
    loops = make_loops()
    send(loops, event(eventProperties={" amount ": 1}))
    assert loops.team.events[0].event_properties == {"amount": 1}


def test_either_id_matches_and_the_other_is_overwritten() -> None:
    loops = make_loops()
    send(loops, event(userId="u1"))
    send(loops, event(userId="u2"))
    send(loops, {"eventName": "x", "userId": "u2", "email": "new@example.com"})
    contact = only_contact(loops)
    assert (contact.email, contact.user_id) == ("new@example.com", "u2")
    assert send(loops, {"eventName": "x", "userId": "u1"}).status == 400
    assert send(loops, event()).status == 200
    assert len(loops.team.contacts()) == 2


def test_a_user_id_alone_is_enough_once_it_is_known() -> None:
    loops = make_loops()
    send(loops, event(userId="u1"))
    assert send(loops, {"eventName": "x", "userId": "u1"}).status == 200
    assert loops.team.events[1].contact_id == only_contact(loops).id


@pytest.mark.parametrize(("fold", "contacts"), [(True, 1), (False, 2)])
def test_whether_case_tells_emails_apart_is_a_switch(fold: bool, contacts: int) -> None:
    loops = make_loops(fold_email=fold)
    send(loops, event())
    send(loops, event(email="ADA@example.com"))
    assert len(loops.team.contacts()) == contacts


@pytest.mark.parametrize(
    ("stance", "named"), [("refuse", None), ("email", 0), ("user-id", 1)]
)
def test_ids_of_two_contacts_follow_their_switch(
    stance: str, named: int | None
) -> None:
    loops = make_loops(two_contacts=stance)
    send(loops, event())
    send(loops, event(email="bob@example.com", userId="u2"))
    before = [(contact.email, contact.user_id) for contact in loops.team.contacts()]
    answer = send(loops, event(userId="u2", plan="pro"))
    after = loops.team.contacts()
    assert [(contact.email, contact.user_id) for contact in after] == before
    updated = [n for n, contact in enumerate(after) if "plan" in contact.properties]
    assert updated == ([] if named is None else [named])
    assert answer.status == (400 if named is None else 200)


def test_contact_properties_are_set_at_the_root_and_reset_by_null() -> None:
    loops = make_loops()
    send(loops, event(firstName="Ada", plan="pro", subscribed=False))
    properties = only_contact(loops).properties
    assert (properties["firstName"], properties["plan"]) == ("Ada", "pro")
    assert properties["subscribed"] is False
    send(loops, event(firstName=None, plan=None))
    properties = only_contact(loops).properties
    assert (properties["firstName"], properties["plan"]) == (None, None)


def test_reset_properties_can_be_absent() -> None:
    loops = make_loops(emptied_properties="absent")
    send(loops, event(plan="pro", firstName="Ada"))
    send(loops, event(plan=None, firstName=None, never=None))
    properties = only_contact(loops).properties
    assert "plan" not in properties
    assert "never" not in properties
    assert properties["firstName"] is None


@pytest.mark.parametrize(
    ("stance", "status", "kept"),
    [("store", 200, True), ("ignore", 200, False), ("refuse", 400, False)],
)
def test_a_property_nobody_created_follows_its_switch(
    stance: str, status: int, kept: bool
) -> None:
    loops = make_loops(unknown_properties=stance, properties={"plan": "string"})
    assert send(loops, event(plan="pro")).status == 200
    assert send(loops, event(seats=3)).status == status
    properties = only_contact(loops).properties
    assert properties["plan"] == "pro"
    assert ("seats" in properties) == kept


def test_reserved_property_names_are_never_stored() -> None:
    loops = make_loops()
    assert send(loops, event(id="mine", teamId="t")).status == 200
    assert only_contact(loops).id != "mine"
    assert "teamId" not in only_contact(loops).properties


def test_lists_are_joined_and_left() -> None:
    loops = make_loops()
    send(loops, event(mailingLists={"l1": True, "l2": True}))
    assert only_contact(loops).mailing_lists == {"l1": True, "l2": True}
    send(loops, event(mailingLists={"l1": False}))
    assert only_contact(loops).mailing_lists == {"l2": True}
    send(loops, event(mailingLists={"l1": False}))
    assert only_contact(loops).mailing_lists == {"l2": True}


def test_unknown_lists_can_be_ignored() -> None:
    loops = make_loops(unknown_lists="ignore")
    assert send(loops, event(mailingLists={"no": True, "l1": True})).status == 200
    assert only_contact(loops).mailing_lists == {"l1": True}


@pytest.mark.parametrize(
    ("stance", "status", "joined"),
    [("ignore", 200, {}), ("accept", 200, {"l1": True}), ("refuse", 400, {})],
)
def test_adding_the_unsubscribed_to_a_list_follows_its_switch(
    stance: str, status: int, joined: dict[str, bool]
) -> None:
    loops = make_loops(unsubscribed_lists=stance)
    send(loops, event(subscribed=False))
    assert send(loops, event(mailingLists={"l1": True})).status == status
    assert only_contact(loops).mailing_lists == joined
    again = event(subscribed=True, mailingLists={"l1": True})
    assert send(loops, again).status == 200
    assert only_contact(loops).mailing_lists == {"l1": True}


def test_nested_values_can_be_accepted() -> None:
    loops = make_loops(nested_values="accept")
    assert send(loops, event(eventProperties={"a": [1]}, tags=["x"])).status == 200


@pytest.mark.parametrize(
    ("counting", "text", "status"),
    [
        ("json", "a" * 498, 200),
        ("json", "a" * 499, 400),
        ("json", '"' * 249, 200),
        ("json", '"' * 250, 400),
        ("json", "\U0001f600" * 498, 200),
        ("code-points", '"' * 498, 200),
        ("code-points", '"' * 499, 400),
        ("utf-16", "\U0001f600" * 249, 200),
        ("utf-16", "\U0001f600" * 250, 400),
        ("utf-16", "\ud800" * 498, 200),
    ],
)
def test_the_500_character_rule_counts_as_its_switch_says(
    counting: str, text: str, status: int
) -> None:
    """It holds for values and names, at any depth; the wording is the API's own."""
    loops = make_loops(length=counting, nested_values="accept")
    for body in (
        event(plan=text),
        event(eventProperties={"deep": [{"x": text}]}),
        event(eventProperties={text: 1}),
    ):
        answer = send(loops, body)
        assert answer.status == status
        if status == 400:
            expected = "Some body key or value is longer than allowable"
            assert answer.json()["message"] == expected


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 400),
        ("text/plain", 400),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
    ],
)
def test_a_content_type_is_asked_for_only_on_request(
    content_type: str | None, status: int
) -> None:
    strict = make_loops(require_content_type=True)
    assert send(strict, event(), content_type=content_type).status == status
    assert send(make_loops(), event(), content_type=content_type).status == 200
