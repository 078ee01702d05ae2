"""``POST /v1/events/send``: bodies, contacts and mailing lists, without a socket."""

from typing import Any

import pytest

from loops_async.sandbox import SandboxContact
from loops_async.sandbox._api import Api

from .support import event, make_api, outcome, send


def only_contact(api: Api) -> SandboxContact:
    (contact,) = api.team.contacts()
    return contact


def test_an_event_creates_its_contact_with_the_documented_defaults() -> None:
    api = make_api()
    response = send(api, event(), now=3.0)
    assert response.body == b'{"success":true}'
    contact = only_contact(api)
    assert (contact.email, contact.user_id) == ("ada@example.com", None)
    assert contact.properties == {
        "firstName": None,
        "lastName": None,
        "source": "API",
        "subscribed": True,
        "userGroup": "",
    }
    assert contact.mailing_lists == {}
    record = api.team.events[0]
    assert (record.name, record.at, record.contact_id) == ("signup", 3.0, contact.id)


def test_an_event_is_recorded_with_all_its_values() -> None:
    api = make_api()
    properties = {"amount": 42, "ok": True, "note": "", "none": None}
    body = event(
        userId="u1", eventProperties=properties, mailingLists={"l1": True}, plan="pro"
    )
    assert send(api, body, idempotency_key="k1").status == 200
    record = api.team.events[0]
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
def test_the_empty_values_of_the_php_and_ruby_sdks_count_as_absent(
    extra: dict[str, Any],
) -> None:
    api = make_api()
    assert send(api, event(**extra)).status == 200
    assert only_contact(api).mailing_lists == {}


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
def test_an_invalid_body_returns_the_reason_and_changes_nothing(
    body: Any, message: str
) -> None:
    api = make_api()
    assert outcome(send(api, body)) == (400, message)
    assert not api.team.events
    assert not api.team.contacts()
    assert api.accepted == 0


def test_spaces_around_event_property_names_are_removed() -> None:
    api = make_api()
    send(api, event(eventProperties={" amount ": 1}))
    assert api.team.events[0].event_properties == {"amount": 1}


def test_either_id_matches_a_contact_and_the_other_is_overwritten() -> None:
    api = make_api()
    send(api, event(userId="u1"))
    send(api, event(userId="u2"))
    send(api, {"eventName": "x", "userId": "u2", "email": "new@example.com"})
    contact = only_contact(api)
    assert (contact.email, contact.user_id) == ("new@example.com", "u2")
    assert send(api, {"eventName": "x", "userId": "u1"}).status == 400
    assert send(api, event()).status == 200
    assert len(api.team.contacts()) == 2


def test_a_known_user_id_alone_is_sufficient() -> None:
    api = make_api()
    send(api, event(userId="u1"))
    assert send(api, {"eventName": "x", "userId": "u1"}).status == 200
    assert api.team.events[1].contact_id == only_contact(api).id


@pytest.mark.parametrize(("fold", "contacts"), [(True, 1), (False, 2)])
def test_the_case_of_emails_matters_only_if_switched_on(
    fold: bool, contacts: int
) -> None:
    api = make_api(fold_email=fold)
    send(api, event())
    send(api, event(email="ADA@example.com"))
    assert len(api.team.contacts()) == contacts


@pytest.mark.parametrize(
    ("policy", "named"), [("refuse", None), ("email", 0), ("user-id", 1)]
)
def test_ids_of_two_contacts_are_handled_according_to_their_switch(
    policy: str, named: int | None
) -> None:
    api = make_api(two_contacts=policy)
    send(api, event())
    send(api, event(email="bob@example.com", userId="u2"))
    before = [(contact.email, contact.user_id) for contact in api.team.contacts()]
    response = send(api, event(userId="u2", plan="pro"))
    after = api.team.contacts()
    assert [(contact.email, contact.user_id) for contact in after] == before
    updated = [n for n, contact in enumerate(after) if "plan" in contact.properties]
    assert updated == ([] if named is None else [named])
    assert response.status == (400 if named is None else 200)


def test_contact_properties_are_set_at_the_root_and_reset_by_null() -> None:
    api = make_api()
    send(api, event(firstName="Ada", plan="pro", subscribed=False))
    properties = only_contact(api).properties
    assert (properties["firstName"], properties["plan"]) == ("Ada", "pro")
    assert properties["subscribed"] is False
    send(api, event(firstName=None, plan=None))
    properties = only_contact(api).properties
    assert (properties["firstName"], properties["plan"]) == (None, None)


def test_a_reset_property_is_absent_if_switched_on() -> None:
    api = make_api(emptied_properties="absent")
    send(api, event(plan="pro", firstName="Ada"))
    send(api, event(plan=None, firstName=None, never=None))
    properties = only_contact(api).properties
    assert "plan" not in properties
    assert "never" not in properties
    assert properties["firstName"] is None


@pytest.mark.parametrize(
    ("policy", "status", "kept"),
    [("store", 200, True), ("ignore", 200, False), ("refuse", 400, False)],
)
def test_an_unknown_property_is_handled_according_to_its_switch(
    policy: str, status: int, kept: bool
) -> None:
    api = make_api(unknown_properties=policy, properties={"plan": "string"})
    assert send(api, event(plan="pro")).status == 200
    assert send(api, event(seats=3)).status == status
    properties = only_contact(api).properties
    assert properties["plan"] == "pro"
    assert ("seats" in properties) == kept


def test_reserved_property_names_are_never_stored() -> None:
    api = make_api()
    assert send(api, event(id="mine", teamId="t")).status == 200
    assert only_contact(api).id != "mine"
    assert "teamId" not in only_contact(api).properties


def test_a_contact_is_added_to_and_removed_from_mailing_lists() -> None:
    api = make_api()
    send(api, event(mailingLists={"l1": True, "l2": True}))
    assert only_contact(api).mailing_lists == {"l1": True, "l2": True}
    send(api, event(mailingLists={"l1": False}))
    assert only_contact(api).mailing_lists == {"l2": True}
    send(api, event(mailingLists={"l1": False}))
    assert only_contact(api).mailing_lists == {"l2": True}


def test_an_unknown_mailing_list_is_ignored_if_switched_on() -> None:
    api = make_api(unknown_lists="ignore")
    assert send(api, event(mailingLists={"no": True, "l1": True})).status == 200
    assert only_contact(api).mailing_lists == {"l1": True}


@pytest.mark.parametrize(
    ("policy", "status", "joined"),
    [("ignore", 200, {}), ("accept", 200, {"l1": True}), ("refuse", 400, {})],
)
def test_an_unsubscribed_contact_is_added_to_a_list_only_if_switched_on(
    policy: str, status: int, joined: dict[str, bool]
) -> None:
    api = make_api(unsubscribed_lists=policy)
    send(api, event(subscribed=False))
    assert send(api, event(mailingLists={"l1": True})).status == status
    assert only_contact(api).mailing_lists == joined
    resubscribed = event(subscribed=True, mailingLists={"l1": True})
    assert send(api, resubscribed).status == 200
    assert only_contact(api).mailing_lists == {"l1": True}


def test_nested_values_are_accepted_if_switched_on() -> None:
    api = make_api(nested_values="accept")
    assert send(api, event(eventProperties={"a": [1]}, tags=["x"])).status == 200


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
def test_the_500_character_rule_counts_according_to_its_switch(
    counting: str, text: str, status: int
) -> None:
    """The rule holds for values and names at any depth, with the message of the API."""
    api = make_api(length=counting, nested_values="accept")
    for body in (
        event(plan=text),
        event(eventProperties={"deep": [{"x": text}]}),
        event(eventProperties={text: 1}),
    ):
        response = send(api, body)
        assert response.status == status
        if status == 400:
            expected = "Some body key or value is longer than allowable"
            assert response.json()["message"] == expected


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 400),
        ("text/plain", 400),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
    ],
)
def test_a_content_type_is_required_only_if_switched_on(
    content_type: str | None, status: int
) -> None:
    strict = make_api(require_content_type=True)
    assert send(strict, event(), content_type=content_type).status == status
    assert send(make_api(), event(), content_type=content_type).status == 200
