"""What a request body may hold; a broken rule raises RefusedError with a 400."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from . import _wire
from ._wire import RefusedError

MAX_LENGTH = 500
# A control character grows sixfold in JSON; shorter strings cannot reach the limit.
_SURELY_SHORT = MAX_LENGTH // 6 - 1
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+")


def parse(body: bytes, *, counting: str) -> dict[str, Any]:
    """The JSON object of a body, its strings within the 500-character rule."""
    try:
        # Deep nesting ends in a RecursionError, bad UTF-8 in a ValueError.
        value = json.loads(body.decode("utf-8"), parse_constant=_not_json)
    except (ValueError, RecursionError):
        raise RefusedError(400, _wire.NOT_JSON) from None
    if not isinstance(value, dict):
        raise RefusedError(400, _wire.NOT_AN_OBJECT)
    _check_lengths(value, counting)
    return value


def ids(body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """``email`` and ``userId``; null is absent, as the PHP and Ruby SDKs send it."""
    email, user_id = body.get("email"), body.get("userId")
    if email is not None and not (isinstance(email, str) and _EMAIL.fullmatch(email)):
        raise RefusedError(400, _wire.INVALID_EMAIL)
    if user_id is not None and not (isinstance(user_id, str) and user_id):
        raise RefusedError(400, _wire.USER_ID_NOT_STRING)
    return email, user_id


def some_id(body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """``email``, ``userId`` or both."""
    email, user_id = ids(body)
    if email is None and user_id is None:
        raise RefusedError(400, _wire.ID_REQUIRED)
    return email, user_id


def one_id(body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """``email`` or ``userId``, not both."""
    email, user_id = ids(body)
    if (email is None) == (user_id is None):
        raise RefusedError(400, _wire.ONE_ID_REQUIRED)
    return email, user_id


def map_at(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object at that name; absent, null and ``[]`` (PHP's empty map) are empty."""
    value = body.get(name)
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise RefusedError(400, _wire.NOT_A_MAP.format(name))
    return value


def check_scalars(values: Mapping[str, Any], prefix: str = "") -> None:
    """Arrays and objects are no values; null is, of a property being reset."""
    for name, value in values.items():
        if isinstance(value, dict | list):
            raise RefusedError(400, _wire.NOT_A_SCALAR.format(prefix + name))


def length(text: str, counting: str) -> int:
    """Characters of a string including its quotes, under one way of counting."""
    if counting == "json":
        return len(json.dumps(text, ensure_ascii=False))
    if counting == "utf-16":
        return len(text.encode("utf-16-le", "surrogatepass")) // 2 + 2
    return len(text) + 2


def _check_lengths(body: dict[str, Any], counting: str) -> None:
    pending: list[Any] = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value)
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif (
            isinstance(value, str)
            and len(value) > _SURELY_SHORT
            and length(value, counting) > MAX_LENGTH
        ):
            raise RefusedError(400, _wire.TOO_LONG)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(constant)
