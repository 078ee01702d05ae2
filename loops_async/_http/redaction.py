"""What others said, without what nobody must see."""

import json
from collections.abc import Iterator, Mapping

import attrs

from loops_async._events.event import Event
from loops_async._http.api_key import Secret
from loops_async.errors import APIError

from .protocol import masked


@attrs.frozen
class Redactor:
    """Takes the API key and a call's own values out of what others said."""

    secret: Secret
    content: object = attrs.field(repr=False)

    def __call__(self, text: str) -> str:
        return masked(text.replace(self.secret, "***"), _leaves(self.content))


def redact_api_key(error: APIError, secret: Secret) -> APIError:
    """Take the API key out of what the error keeps of an answer."""
    error.body = error.body.replace(secret.encode(), b"***")
    error.headers = {
        name: value.replace(secret, "***") for name, value in error.headers.items()
    }
    return error


def _leaves(content: object) -> Iterator[object]:
    """Yield the values of an event, of its body, or of any JSON."""
    if isinstance(content, Event):
        yield content.email
        yield content.user_id
        yield from content.event_properties.values()
        yield from content.contact_properties.values()
    elif isinstance(content, bytes):
        body = json.loads(content)
        names = [name for name in body if name not in ("eventName", "mailingLists")]
        yield from _leaves([body[name] for name in names])
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _leaves(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _leaves(value)
    else:
        yield content
