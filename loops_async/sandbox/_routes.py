"""The routes: what each makes of a request that passed key, window and method."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from . import _wire
from ._records import SandboxContact, SandboxEvent
from ._team import PROPERTY_KINDS, Team
from ._values import check_scalars, map_at, one_id, parse, some_id
from ._wire import SUCCESS, Answer, Call, RefusedError, answer, failure


@attrs.frozen
class Visit:
    """A request, the team it is for, and the time it is processed."""

    team: Team
    call: Call
    now: float


Route = Callable[[Visit], Answer]

_NOT_PROPERTIES = frozenset({"email", "userId", "mailingLists"})
_NOT_PROPERTIES_OF_EVENTS = _NOT_PROPERTIES | {"eventName", "eventProperties"}


def check_key(_: Visit) -> Answer:
    """``GET /v1/api-key``."""
    return answer({"success": True, "teamName": "Sandbox"})


def list_mailing_lists(visit: Visit) -> Answer:
    """``GET /v1/lists``."""
    return answer(
        [
            {"id": list_id, "name": name, "description": "", "isPublic": True}
            for list_id, name in visit.team.lists.items()
        ]
    )


def send_event(visit: Visit) -> Answer:
    """``POST /v1/events/send``: docs/api-reference/send-event."""
    body = _body(visit)
    name = body.get("eventName")
    if not isinstance(name, str) or not name:
        raise RefusedError(400, _wire.EVENT_NAME_REQUIRED)
    if ":" in name:
        raise RefusedError(400, _wire.EVENT_NAME_COLON)
    email, user_id = some_id(body)
    event_properties = {
        key.strip(): value for key, value in map_at(body, "eventProperties").items()
    }
    if visit.team.behaviour.nested_values == "refuse":
        check_scalars(event_properties, "eventProperties.")
    properties = _properties(visit.team, body, _NOT_PROPERTIES_OF_EVENTS)
    mailing_lists = map_at(body, "mailingLists")
    contact_id = visit.team.upsert(
        email, user_id, properties, mailing_lists, create_by_user_id=False
    )
    visit.team.events.append(
        SandboxEvent(
            name=name,
            email=email,
            user_id=user_id,
            event_properties=event_properties,
            contact_properties=properties,
            mailing_lists=mailing_lists,
            idempotency_key=visit.call.idempotency_key,
            at=visit.now,
            contact_id=contact_id,
        )
    )
    return SUCCESS


def create_contact(visit: Visit) -> Answer:
    """``POST /v1/contacts/create``."""
    body = _body(visit)
    email, user_id = some_id(body)
    if email is None:
        raise RefusedError(400, _wire.INVALID_EMAIL)
    if visit.team.find(email, user_id):
        raise RefusedError(409, _wire.ALREADY_ON_LIST)
    return _upsert(visit.team, body, email, user_id)


def update_contact(visit: Visit) -> Answer:
    """``PUT /v1/contacts/update``, which creates what it does not find."""
    body = _body(visit)
    return _upsert(visit.team, body, *some_id(body))


def find_contact(visit: Visit) -> Answer:
    """``GET /v1/contacts/find``: a bare array of one or none."""
    contact = visit.team.find(*one_id(visit.call.query))
    return answer([] if contact is None else [_contact_json(contact)])


def delete_contact(visit: Visit) -> Answer:
    """``POST /v1/contacts/delete``."""
    contact = visit.team.find(*one_id(_body(visit)))
    if contact is None:
        return failure(404, _wire.CONTACT_NOT_FOUND)
    visit.team.delete(contact.id)
    return answer({"success": True, "message": _wire.CONTACT_DELETED})


def list_properties(visit: Visit) -> Answer:
    """``GET /v1/contacts/properties``."""
    which = visit.call.query.get("list", "all")
    if which not in ("all", "custom"):
        raise RefusedError(400, _wire.BAD_LIST_FILTER)
    return answer(visit.team.property_list(only_custom=which == "custom"))


def create_property(visit: Visit) -> Answer:
    """``POST /v1/contacts/properties``."""
    body = _body(visit)
    name, kind = body.get("name"), body.get("type")
    if not isinstance(name, str) or not name or kind not in PROPERTY_KINDS:
        raise RefusedError(400, _wire.BAD_PROPERTY)
    visit.team.create_property(name, kind)
    return SUCCESS


ROUTES: Mapping[str, Mapping[str, Route]] = {
    "/v1/events/send": {"POST": send_event},
    "/v1/api-key": {"GET": check_key},
    "/v1/lists": {"GET": list_mailing_lists},
    "/v1/contacts/create": {"POST": create_contact},
    "/v1/contacts/update": {"PUT": update_contact},
    "/v1/contacts/find": {"GET": find_contact},
    "/v1/contacts/delete": {"POST": delete_contact},
    "/v1/contacts/properties": {"GET": list_properties, "POST": create_property},
}


def _body(visit: Visit) -> dict[str, Any]:
    if visit.team.behaviour.require_content_type:
        kind = (visit.call.content_type or "").partition(";")[0].strip().lower()
        if kind != _wire.JSON_TYPE:
            raise RefusedError(400, _wire.CONTENT_TYPE_REQUIRED)
    return parse(visit.call.body, counting=visit.team.behaviour.length)


def _properties(
    team: Team, body: Mapping[str, Any], others: frozenset[str]
) -> dict[str, Any]:
    properties = {name: value for name, value in body.items() if name not in others}
    if team.behaviour.nested_values == "refuse":
        check_scalars(properties)
    return properties


def _upsert(
    team: Team, body: Mapping[str, Any], email: str | None, user_id: str | None
) -> Answer:
    contact_id = team.upsert(
        email,
        user_id,
        _properties(team, body, _NOT_PROPERTIES),
        map_at(body, "mailingLists"),
        create_by_user_id=team.behaviour.update_creates_by_user_id,
    )
    return answer({"success": True, "id": contact_id})


def _contact_json(contact: SandboxContact) -> dict[str, Any]:
    return {
        **contact.properties,
        "id": contact.id,
        "email": contact.email,
        "userId": contact.user_id,
        "mailingLists": contact.mailing_lists,
        "optInStatus": None,
    }
