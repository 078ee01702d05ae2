"""The API key: its sources, its validation, and how it stays hidden."""

import os
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs

from loops_async.errors import ConfigurationError

KeySource: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""An API key, or a callable (plain or async) that returns the current one."""


class Secret(str):
    """A string whose repr hides it in any dict or traceback that shows it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@attrs.frozen
class WrongType:
    """The stand-in for a value of the wrong type, which may contain the API key."""

    type_name: str


def hide_api_key(value: object) -> object:
    """Return the value in a form that a traceback with locals does not reveal."""
    if isinstance(value, str):
        return Secret(value)
    if value is None or callable(value):
        return value
    return WrongType(type(value).__name__)


def checked_api_key(value: object) -> Secret:
    """Return the API key without surrounding white space.

    Raises:
        ConfigurationError: If the value cannot be an API key. The message does
            not show the value.
    """
    if not isinstance(value, str):
        given = (
            value.type_name if isinstance(value, WrongType) else type(value).__name__
        )
        msg = f"api_key must be a string or a callable that returns one, not {given}"
        raise ConfigurationError(msg)
    api_key = Secret(value.strip())
    if not api_key:
        msg = "api_key is empty: pass it or set LOOPS_API_KEY"
        raise ConfigurationError(msg)
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        msg = "api_key contains a space, a control character or a non-ASCII character"
        raise ConfigurationError(msg)
    return api_key


def key_source(value: object) -> KeySource:
    """Return the checked API key or the callable; None reads LOOPS_API_KEY."""
    if value is None:
        value = hide_api_key(os.environ.get("LOOPS_API_KEY"))
    if value is None:
        msg = "no API key: pass api_key=... or set LOOPS_API_KEY"
        raise ConfigurationError(msg)
    return value if callable(value) else checked_api_key(value)
