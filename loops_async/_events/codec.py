"""Events to wire bytes and back from records, through a cattrs converter."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import cattrs

from loops_async._json import dumps, strict_dumps
from loops_async.errors import InvalidEventError

from .event import Event
from .rules import item_path

_FIELDS: Final = tuple(field.name for field in attrs.fields(Event))


def make_converter() -> cattrs.Converter:
    """Make the converter a client starts with.

    It unstructures an Event to the body Loops takes (flat, camelCase) and
    structures an Event from a record (nested, snake_case or camelCase).
    """
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Event, _unstructure)
    converter.register_structure_hook(
        Event, lambda record, _: event_from_record(record)
    )
    return converter


def encode(
    event: Event,
    converter: cattrs.Converter,
    check_hooked: Callable[[bytes, str], None] | None = None,
) -> bytes:
    """Return the body of a send, by the converter's hook for the event.

    Args:
        event: What to send.
        converter: With our hook, or one that a user registered.
        check_hooked: Called with the body and the key if a user's hook made
            it, which may say something else than the event.

    Raises:
        InvalidEventError: if another hook than ours made it no JSON.
    """
    hook = converter.get_unstructure_hook(type(event))
    if hook is _unstructure:
        return dumps(_unstructure(event))
    try:
        body = strict_dumps(hook(event))
    except Exception as failure:  # noqa: BLE001 - whatever a hook may raise
        why = f"body: the registered hook failed: {type(failure).__name__}: {failure}"
    else:
        if check_hooked is not None:
            check_hooked(body, event.idempotency_key)
        return body
    invalid = InvalidEventError(problems=[why])
    invalid.idempotency_key = event.idempotency_key
    raise invalid


def _unstructure(event: Event) -> dict[str, Any]:
    body: dict[str, Any] = {"eventName": event.event_name}
    if event.email is not None:
        body["email"] = event.email
    if event.user_id is not None:
        body["userId"] = event.user_id
    if event.event_properties:
        body["eventProperties"] = event.event_properties
    if event.mailing_lists:
        body["mailingLists"] = event.mailing_lists
    body.update(event.contact_properties)  # at the root; no name can collide
    return body


def event_to_record(event: Event) -> dict[str, Any]:
    """Return the event as a JSON object for files and queues.

    Nested, snake_case, with the idempotency key; what is absent or empty is
    left out. `event_from_record` gives an equal event back.
    """
    record = attrs.asdict(event)
    return {name: value for name, value in record.items() if value not in (None, {})}


def event_from_record(record: Mapping[str, Any]) -> Event:
    """Make an event from a record, as a file or queue would hold it.

    Args:
        record: The fields of Event by name, in snake_case or camelCase; all
            but the event name are optional, null is absent. Not the flat
            body of the API: there, contact properties cannot be told from
            mistakes.

    Raises:
        InvalidEventError: with every problem and its path, unknown fields
            included.
    """
    if not isinstance(record, Mapping):
        kind = type(record).__name__
        raise InvalidEventError(problems=[f"record: must be an object, not {kind}"])
    problems: list[str] = []
    given: dict[str, Any] = {}
    for name, value in record.items():
        field = _RECORD_FIELDS.get(name)
        if field is None:
            at = item_path(name).removeprefix(".")
            problems.append(f"{at}: unknown field, expected {', '.join(_FIELDS)}")
        elif field in given:
            problems.append(f"{name}: given twice, as {field} in another spelling")
        elif value is not None:
            given[field] = value
    if "event_name" not in given:
        given["event_name"] = None
    try:
        event = Event(**given)
    except InvalidEventError as invalid:
        problems.extend(invalid.problems)
    else:
        if not problems:
            return event
    raise InvalidEventError(problems=problems)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


_RECORD_FIELDS: Final = {
    spelling: name for name in _FIELDS for spelling in (name, _camel(name))
}
