"""The other routes of the runtime surface, by plain calls."""

from typing import Any

import pytest

from loops_async.sandbox._api import Loops
from loops_async.sandbox._wire import Answer

from .support import make_call, make_loops, outcome

ADA = {"email": "ada@example.com", "userId": "u1"}


def run(loops: Loops, method: str, path: str, body: object = None) -> Answer:
    return loops.handle(make_call(method, f"/v1/contacts/{path}", body), 0.0)


def find(loops: Loops, **query: str) -> Answer:
    return loops.handle(make_call("GET", "/v1/contacts/find", query=query), 0.0)


def test_a_contact_is_created_found_and_deleted() -> None:
    loops = make_loops()
    created = run(loops, "POST", "create", {**ADA, "firstName": "Ada", "seats": 3})
    assert created.json() == {"success": True, "id": loops.team.contacts()[0].id}
    expected = [
        {
            "id": created.json()["id"],
            "email": "ada@example.com",
            "userId": "u1",
            "firstName": "Ada",
            "lastName": None,
            "source": "API",
            "subscribed": True,
            "userGroup": "",
            "mailingLists": {},
            "optInStatus": None,
            "seats": 3,
        }
    ]
    assert find(loops, email="Ada@example.com").json() == expected
    assert find(loops, userId="u1").json() == expected
    deleted = run(loops, "POST", "delete", {"email": "ada@example.com", "userId": None})
    assert deleted.json() == {"success": True, "message": "Contact deleted."}
    assert find(loops, email="ada@example.com").json() == []
    again = run(loops, "POST", "delete", {"userId": "u1"})
    assert outcome(again) == (404, "Contact not found.")


def test_a_contact_without_a_user_id_is_deleted_as_well() -> None:
    loops = make_loops()
    run(loops, "POST", "create", {"email": "ada@example.com"})
    assert run(loops, "POST", "delete", {"email": "ada@example.com"}).status == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"email": "ada@example.com"}, (409, "Email or userId is already on list.")),
        (
            {"email": "bob@example.com", "userId": "u1"},
            (409, "Email or userId is already on list."),
        ),
        ({"userId": "u2"}, (400, "Invalid email address.")),
        ({}, (400, "[sandbox] An email or userId is required.")),
    ],
)
def test_creating_what_cannot_be_created_is_refused(
    body: dict[str, Any], expected: tuple[int, str]
) -> None:
    loops = make_loops()
    run(loops, "POST", "create", ADA)
    assert outcome(run(loops, "POST", "create", body)) == expected


def test_an_update_creates_what_it_does_not_find() -> None:
    loops = make_loops()
    created = run(loops, "PUT", "update", ADA)
    updated = run(loops, "PUT", "update", {**ADA, "lastName": "Lovelace"})
    assert created.json() == updated.json()
    assert find(loops, userId="u1").json()[0]["lastName"] == "Lovelace"


def test_an_update_by_an_unknown_user_id_alone_follows_its_switch() -> None:
    refusing = make_loops()
    answer = run(refusing, "PUT", "update", {"userId": "u1"})
    assert outcome(answer) == (400, "Contact not found.")
    creating = make_loops(update_creates_by_user_id=True)
    assert run(creating, "PUT", "update", {"userId": "u1"}).status == 200
    assert find(creating, userId="u1").json()[0]["email"] is None
    assert run(creating, "POST", "delete", {"userId": "u1"}).status == 200


@pytest.mark.parametrize("query", [{}, {"email": "a@b.c", "userId": "u1"}])
def test_find_and_delete_take_exactly_one_id(query: dict[str, str]) -> None:
    loops = make_loops()
    message = "[sandbox] Exactly one of email and userId is required."
    assert outcome(find(loops, **query)) == (400, message)
    assert outcome(run(loops, "POST", "delete", query)) == (400, message)


def test_the_mailing_lists_are_listed() -> None:
    answer = make_loops().handle(make_call("GET", "/v1/lists"), 0.0)
    assert answer.json() == [
        {"id": "l1", "name": "One", "description": "", "isPublic": True},
        {"id": "l2", "name": "Two", "description": "", "isPublic": True},
    ]


def test_properties_are_created_once_and_listed() -> None:
    loops = make_loops()
    body = {"name": "planName", "type": "string"}
    assert run(loops, "POST", "properties", body).json() == {"success": True}
    for name in ("planName", "firstName"):
        taken = run(loops, "POST", "properties", {"name": name, "type": "string"})
        assert outcome(taken) == (400, "Property already exists.")
    call = make_call("GET", "/v1/contacts/properties", query={"list": "custom"})
    custom = [{"key": "planName", "label": "Plan Name", "type": "string"}]
    assert loops.handle(call, 0.0).json() == custom
    everything = run(loops, "GET", "properties").json()
    assert len(everything) == 8
    assert everything[-1:] == custom


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "", "type": "string"},
        {"name": "a"},
        {"name": "a", "type": "array"},
        {"name": "teamId", "type": "string"},
    ],
)
def test_a_property_needs_a_free_name_and_a_type(body: dict[str, Any]) -> None:
    assert run(make_loops(), "POST", "properties", body).status == 400


def test_an_unknown_filter_of_properties_is_refused() -> None:
    call = make_call("GET", "/v1/contacts/properties", query={"list": "mine"})
    assert make_loops().handle(call, 0.0).status == 400


def test_stored_properties_join_the_team_with_the_type_of_their_value() -> None:
    loops = make_loops()
    body = {**ADA, "seats": 3, "trial": True, "plan": "pro", "empty": None}
    run(loops, "PUT", "update", body)
    assert loops.team.properties == {
        "seats": "number",
        "trial": "boolean",
        "plan": "string",
        "empty": "string",
    }
