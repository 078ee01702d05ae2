"""Redaction of API keys and personal data in server-supplied text."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

import attrs

from loops_async._events.event import Event
from loops_async.errors import APIError

from .api_key import Secret


@attrs.frozen
class Redactor:
    """A callable that masks the API key and the request's own values in a text.

    Attributes:
        api_key: The API key that the request carried.
        content: The event, its encoded body, or the JSON values of the request.
    """

    api_key: Secret
    content: object = attrs.field(repr=False)

    def __call__(self, text: str) -> str:
        return masked(text.replace(self.api_key, "***"), _leaves(self.content))


def redact_api_key(error: APIError, api_key: Secret) -> APIError:
    """Remove the API key from the body and the headers that an error keeps."""
    error.body = error.body.replace(api_key.encode(), b"***")
    error.headers = {
        name: value.replace(api_key, "***") for name, value in error.headers.items()
    }
    return error


def masked(text: str, values: Iterable[object]) -> str:
    """Return the text with each private value in it replaced by ``***``.

    Args:
        text: The server-supplied text.
        values: The identifiers and property values of a request. Booleans and
            None identify no contact and stay.
    """
    words = {
        str(value)
        for value in values
        if value is not None and not isinstance(value, bool) and str(value).strip()
    }
    words |= set(map(quote, words))
    words = {word for word in words if len(" ".join(word.split())) <= len(text)}
    if not words:
        return text
    # The longest word comes first, so that a shorter one never masks a part of it.
    longest_first = sorted(words, key=len, reverse=True)
    patterns = (_word_pattern(word) for word in longest_first)
    return re.sub("(?i)" + "|".join(patterns), "***", text)


def _word_pattern(word: str) -> str:
    pattern = r"\s+".join(map(re.escape, word.split()))
    # A short value matches as a whole word only: otherwise "a" would mask the text.
    is_short = len(word) < 8 and "@" not in word
    return rf"(?<!\w){pattern}(?!\w)" if is_short else pattern


def _leaves(content: object) -> Iterator[object]:
    """Yield the values of an event, of an encoded body, or of any JSON value."""
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
