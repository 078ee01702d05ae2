"""Checks of settings: each returns the value or raises a ConfigurationError.

Every message names the setting.
"""

import inspect
from collections.abc import Callable
from types import NoneType
from typing import Any, Final, TypeVar

from .errors import ConfigurationError

_T = TypeVar("_T")

MAX_SECONDS: Final = 1e9  # event loops cannot schedule a timer much further ahead


def checked_seconds(name: str, value: object) -> float | None:
    """Return a positive number of seconds; None means no limit."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        msg = f"{name} must be a positive number of seconds or None, not {value!r}"
        raise ConfigurationError(msg)
    return None if value >= MAX_SECONDS else float(value)


def checked_count(name: str, value: object) -> int:
    """Return a whole number of at least 1."""
    if type(value) is not int or value < 1:
        msg = f"{name} must be a whole number from 1, not {value!r}"
        raise ConfigurationError(msg)
    return value


def checked_type(name: str, value: _T, *types: Any) -> _T:
    """Return an instance of one of the types."""
    if not isinstance(value, types):
        expected = " or ".join(one.__name__ for one in types)
        msg = f"{name} must be {expected}, not {value!r}"
        raise ConfigurationError(msg)
    return value


def checked_hook(name: str, value: Any) -> Any:
    """Return a plain function, or None.

    A coroutine function is refused, because nothing would await it.
    """
    if inspect.iscoroutinefunction(value):
        msg = f"{name} must be a plain function, not a coroutine function"
        raise ConfigurationError(msg)
    return checked_type(name, value, Callable, NoneType)
