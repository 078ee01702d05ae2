"""The routes other than events/send, without a socket."""

from typing import Any

import pytest

from loops_async.sandbox._api import Api
from loops_async.sandbox._wire import Response

from .support import make_api, make_request, outcome

ADA = {"email": "ada@example.com", "userId": "u1"}


def run(api: Api, method: str, path: str, body: object = None) -> Response:
    return api.handle(make_request(method, f"/v1/contacts/{path}", body), 0.0)


def find(api: Api, **query: str) -> Response:
    return api.handle(make_request("GET", "/v1/contacts/find", query=query), 0.0)


def test_a_contact_is_created_found_and_deleted() -> None:
    api = make_api()
    created = run(api, "POST", "create", {**ADA, "firstName": "Ada", "seats": 3})
    assert created.json() == {"success": True, "id": api.team.contacts()[0].id}
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
    assert find(api, email="Ada@example.com").json() == expected
    assert find(api, userId="u1").json() == expected
    deleted = run(api, "POST", "delete", {"email": "ada@example.com", "userId": None})
    assert deleted.json() == {"success": True, "message": "Contact deleted."}
    assert find(api, email="ada@example.com").json() == []
    repeated = run(api, "POST", "delete", {"userId": "u1"})
    assert outcome(repeated) == (404, "Contact not found.")


def test_a_contact_without_a_user_id_can_be_deleted() -> None:
    api = make_api()
    run(api, "POST", "create", {"email": "ada@example.com"})
    assert run(api, "POST", "delete", {"email": "ada@example.com"}).status == 200


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
def test_an_invalid_or_duplicate_contact_is_refused(
    body: dict[str, Any], expected: tuple[int, str]
) -> None:
    api = make_api()
    run(api, "POST", "create", ADA)
    assert outcome(run(api, "POST", "create", body)) == expected


def test_an_update_of_an_unknown_contact_creates_it() -> None:
    api = make_api()
    created = run(api, "PUT", "update", ADA)
    updated = run(api, "PUT", "update", {**ADA, "lastName": "Lovelace"})
    assert created.json() == updated.json()
    assert find(api, userId="u1").json()[0]["lastName"] == "Lovelace"


def test_an_update_by_an_unknown_user_id_alone_is_handled_according_to_its_switch() -> (
    None
):
    refusing = make_api()
    response = run(refusing, "PUT", "update", {"userId": "u1"})
    assert outcome(response) == (400, "Contact not found.")
    creating = make_api(update_creates_by_user_id=True)
    assert run(creating, "PUT", "update", {"userId": "u1"}).status == 200
    assert find(creating, userId="u1").json()[0]["email"] is None
    assert run(creating, "POST", "delete", {"userId": "u1"}).status == 200


@pytest.mark.parametrize("query", [{}, {"email": "a@b.c", "userId": "u1"}])
def test_find_and_delete_require_exactly_one_id(query: dict[str, str]) -> None:
    api = make_api()
    message = "[sandbox] Exactly one of email and userId is required."
    assert outcome(find(api, **query)) == (400, message)
    assert outcome(run(api, "POST", "delete", query)) == (400, message)


def test_the_lists_route_returns_the_mailing_lists() -> None:
    response = make_api().handle(make_request("GET", "/v1/lists"), 0.0)
    assert response.json() == [
        {"id": "l1", "name": "One", "description": "", "isPublic": True},
        {"id": "l2", "name": "Two", "description": "", "isPublic": True},
    ]


def test_a_property_is_created_once_and_listed() -> None:
    api = make_api()
    body = {"name": "planName", "type": "string"}
    assert run(api, "POST", "properties", body).json() == {"success": True}
    for name in ("planName", "firstName"):
        taken = run(api, "POST", "properties", {"name": name, "type": "string"})
        assert outcome(taken) == (400, "Property already exists.")
    request = make_request("GET", "/v1/contacts/properties", query={"list": "custom"})
    custom = [{"key": "planName", "label": "Plan Name", "type": "string"}]
    assert api.handle(request, 0.0).json() == custom
    properties = run(api, "GET", "properties").json()
    assert len(properties) == 8
    assert properties[-1:] == custom


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
def test_a_property_without_an_unused_name_and_a_type_is_refused(
    body: dict[str, Any],
) -> None:
    assert run(make_api(), "POST", "properties", body).status == 400


def test_an_unknown_filter_of_properties_is_refused() -> None:
    request = make_request("GET", "/v1/contacts/properties", query={"list": "mine"})
    assert make_api().handle(request, 0.0).status == 400


def test_a_stored_property_is_added_to_the_team_with_the_type_of_its_value() -> None:
    api = make_api()
    body = {**ADA, "seats": 3, "trial": True, "plan": "pro", "empty": None}
    run(api, "PUT", "update", body)
    assert api.team.properties == {
        "seats": "number",
        "trial": "boolean",
        "plan": "string",
        "empty": "string",
    }
