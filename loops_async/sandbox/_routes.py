"""The routes, for requests that passed the checks of the API key, rate and method."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from . import _wire
from ._records import SandboxContact, SandboxEvent
from ._team import PROPERTY_TYPES, Team
from ._values import (
    check_scalars,
    mapping_field,
    parse_body,
    require_an_id,
    require_one_id,
)
from ._wire import (
    SUCCESS,
    RefusedError,
    Request,
    Response,
    error_response,
    json_response,
)


@attrs.frozen
class Context:
    """A request, its team, and the time at which the route processes it."""

    team: Team
    request: Request
    now: float


Route = Callable[[Context], Response]

_NOT_PROPERTIES = frozenset({"email", "userId", "mailingLists"})
_NOT_PROPERTIES_OF_EVENTS = _NOT_PROPERTIES | {"eventName", "eventProperties"}


def check_api_key(_: Context) -> Response:
    """``GET /v1/api-key``."""
    return json_response({"success": True, "teamName": "Sandbox"})


def list_mailing_lists(context: Context) -> Response:
    """``GET /v1/lists``."""
    return json_response(
        [
            {"id": list_id, "name": name, "description": "", "isPublic": True}
            for list_id, name in context.team.lists.items()
        ]
    )


def send_event(context: Context) -> Response:
    """``POST /v1/events/send``: docs/api-reference/send-event."""
    body = _body(context)
    name = body.get("eventName")
    if not isinstance(name, str) or not name:
        raise RefusedError(400, _wire.EVENT_NAME_REQUIRED)
    if ":" in name:
        raise RefusedError(400, _wire.EVENT_NAME_COLON)
    email, user_id = require_an_id(body)
    event_properties = {
        key.strip(): value
        for key, value in mapping_field(body, "eventProperties").items()
    }
    if context.team.behaviour.nested_values == "refuse":
        check_scalars(event_properties, "eventProperties.")
    properties = _properties(context.team, body, _NOT_PROPERTIES_OF_EVENTS)
    mailing_lists = mapping_field(body, "mailingLists")
    contact_id = context.team.upsert(
        email, user_id, properties, mailing_lists, create_by_user_id=False
    )
    context.team.events.append(
        SandboxEvent(
            name=name,
            email=email,
            user_id=user_id,
            event_properties=event_properties,
            contact_properties=properties,
            mailing_lists=mailing_lists,
            idempotency_key=context.request.headers.get("Idempotency-Key"),
            at=context.now,
            contact_id=contact_id,
        )
    )
    return SUCCESS


def create_contact(context: Context) -> Response:
    """``POST /v1/contacts/create``."""
    body = _body(context)
    email, user_id = require_an_id(body)
    if email is None:
        raise RefusedError(400, _wire.INVALID_EMAIL)
    if context.team.find(email, user_id):
        raise RefusedError(409, _wire.ALREADY_ON_LIST)
    return _upsert(context.team, body, email, user_id)


def update_contact(context: Context) -> Response:
    """``PUT /v1/contacts/update``, which creates a contact that does not exist."""
    body = _body(context)
    return _upsert(context.team, body, *require_an_id(body))


def find_contact(context: Context) -> Response:
    """``GET /v1/contacts/find``: a bare array of one contact or none."""
    contact = context.team.find(*require_one_id(context.request.query))
    return json_response([] if contact is None else [_contact_json(contact)])


def delete_contact(context: Context) -> Response:
    """``POST /v1/contacts/delete``."""
    contact = context.team.find(*require_one_id(_body(context)))
    if contact is None:
        return error_response(404, _wire.CONTACT_NOT_FOUND)
    context.team.delete(contact.id)
    return json_response({"success": True, "message": _wire.CONTACT_DELETED})


def list_properties(context: Context) -> Response:
    """``GET /v1/contacts/properties``."""
    selection = context.request.query.get("list", "all")
    if selection not in ("all", "custom"):
        raise RefusedError(400, _wire.BAD_LIST_FILTER)
    return json_response(context.team.property_list(only_custom=selection == "custom"))


def create_property(context: Context) -> Response:
    """``POST /v1/contacts/properties``."""
    body = _body(context)
    name, property_type = body.get("name"), body.get("type")
    if not isinstance(name, str) or not name or property_type not in PROPERTY_TYPES:
        raise RefusedError(400, _wire.BAD_PROPERTY)
    context.team.create_property(name, property_type)
    return SUCCESS


ROUTES: Mapping[str, Mapping[str, Route]] = {
    "/v1/events/send": {"POST": send_event},
    "/v1/api-key": {"GET": check_api_key},
    "/v1/lists": {"GET": list_mailing_lists},
    "/v1/contacts/create": {"POST": create_contact},
    "/v1/contacts/update": {"PUT": update_contact},
    "/v1/contacts/find": {"GET": find_contact},
    "/v1/contacts/delete": {"POST": delete_contact},
    "/v1/contacts/properties": {"GET": list_properties, "POST": create_property},
}


def _body(context: Context) -> dict[str, Any]:
    if context.team.behaviour.require_content_type:
        content_type = context.request.headers.get("Content-Type", "")
        if content_type.partition(";")[0].strip().lower() != _wire.JSON_TYPE:
            raise RefusedError(400, _wire.CONTENT_TYPE_REQUIRED)
    return parse_body(context.request.body, counting=context.team.behaviour.length)


def _properties(
    team: Team, body: Mapping[str, Any], excluded: frozenset[str]
) -> dict[str, Any]:
    properties = {name: value for name, value in body.items() if name not in excluded}
    if team.behaviour.nested_values == "refuse":
        check_scalars(properties)
    return properties


def _upsert(
    team: Team, body: Mapping[str, Any], email: str | None, user_id: str | None
) -> Response:
    contact_id = team.upsert(
        email,
        user_id,
        _properties(team, body, _NOT_PROPERTIES),
        mapping_field(body, "mailingLists"),
        create_by_user_id=team.behaviour.update_creates_by_user_id,
    )
    return json_response({"success": True, "id": contact_id})


def _contact_json(contact: SandboxContact) -> dict[str, Any]:
    return {
        **contact.properties,
        "id": contact.id,
        "email": contact.email,
        "userId": contact.user_id,
        "mailingLists": contact.mailing_lists,
        "optInStatus": None,
    }
