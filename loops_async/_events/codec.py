"""The conversion of events to request bodies, and to and from records."""

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
    """Return a new converter with the hooks for events.

    It unstructures an Event to the body of a request (flat, camelCase) and
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
    """Return the body of the request that sends an event.

    Args:
        event: The event.
        converter: A converter with the hook of `make_converter` or a hook that
            the caller registered.
        check_hooked: A callable that checks the body and the idempotency key. It is
            called only if the caller's hook made the body, because only then can the
            recipients in the body differ from those of the event.

    Raises:
        InvalidEventError: If the caller's hook fails or its result is not JSON.
    """
    hook = converter.get_unstructure_hook(type(event))
    if hook is _unstructure:
        return dumps(_unstructure(event))
    try:
        body = strict_dumps(hook(event))
    except Exception as error:  # noqa: BLE001 - a hook may raise any exception
        problem = f"body: the registered hook failed: {type(error).__name__}: {error}"
    else:
        if check_hooked is not None:
            check_hooked(body, event.idempotency_key)
        return body
    invalid = InvalidEventError(problems=[problem])
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
    body.update(event.contact_properties)  # the rules exclude the names above
    return body


def event_to_record(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object, for a file or a queue.

    The object is nested, in snake_case, and contains the idempotency key. Empty
    fields are left out. `event_from_record` returns an equal event.

    Args:
        event: The event.
    """
    record = attrs.asdict(event)
    return {name: value for name, value in record.items() if value not in (None, {})}


def event_from_record(record: Mapping[str, Any]) -> Event:
    """Return the event that a record describes.

    Args:
        record: The fields of an Event by name, in snake_case or camelCase. Only
            the event name and one of email and user ID are required; null means
            absent. The flat body of the API is not a record, because a contact
            property there cannot be distinguished from a misspelt field.

    Raises:
        InvalidEventError: If the record has an unknown field, or if a value
            breaks a rule; ``problems`` lists every problem with its path.
    """
    if not isinstance(record, Mapping):
        kind = type(record).__name__
        raise InvalidEventError(problems=[f"record: must be an object, not {kind}"])
    problems: list[str] = []
    fields: dict[str, Any] = {}
    for name, value in record.items():
        field = _RECORD_FIELDS.get(name)
        if field is None:
            path = item_path(name).removeprefix(".")
            problems.append(f"{path}: unknown field, expected {', '.join(_FIELDS)}")
        elif field in fields:
            problems.append(f"{name}: given twice, as {field} in another spelling")
        elif value is not None:
            fields[field] = value
    fields.setdefault("event_name", None)  # so that a missing name is reported
    try:
        event = Event(**fields)
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
