"""The rules for request bodies; a broken rule raises RefusedError with a 400."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from . import _wire
from ._wire import RefusedError

MAX_LENGTH = 500
# In JSON a control character takes six characters, so no string of up to this length
# exceeds the limit.
_SURELY_SHORT = MAX_LENGTH // 6 - 1
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+")


def parse_body(body: bytes, *, counting: str) -> dict[str, Any]:
    """Return the JSON object of a body, after a check of the 500-character rule."""
    try:
        # Deep nesting raises RecursionError, invalid UTF-8 raises ValueError.
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RefusedError(400, _wire.NOT_JSON) from None
    if not isinstance(value, dict):
        raise RefusedError(400, _wire.NOT_AN_OBJECT)
    _check_lengths(value, counting)
    return value


def parse_ids(body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return ``email`` and ``userId``; the PHP and Ruby SDKs send null for absent."""
    email, user_id = body.get("email"), body.get("userId")
    if email is not None and not (isinstance(email, str) and _EMAIL.fullmatch(email)):
        raise RefusedError(400, _wire.INVALID_EMAIL)
    if user_id is not None and not (isinstance(user_id, str) and user_id):
        raise RefusedError(400, _wire.USER_ID_NOT_STRING)
    return email, user_id


def require_an_id(body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return ``email`` and ``userId``, of which at least one is present."""
    email, user_id = parse_ids(body)
    if email is None and user_id is None:
        raise RefusedError(400, _wire.ID_REQUIRED)
    return email, user_id


def require_one_id(body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return ``email`` and ``userId``, of which exactly one is present."""
    email, user_id = parse_ids(body)
    if (email is None) == (user_id is None):
        raise RefusedError(400, _wire.ONE_ID_REQUIRED)
    return email, user_id


def mapping_field(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the object at ``name``; absent, null and PHP's ``[]`` mean empty."""
    value = body.get(name)
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise RefusedError(400, _wire.NOT_A_MAP.format(name))
    return value


def check_scalars(values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse arrays and objects as values; null is allowed, as it resets a property."""
    for name, value in values.items():
        if isinstance(value, dict | list):
            raise RefusedError(400, _wire.NOT_A_SCALAR.format(prefix + name))


def length(text: str, counting: str) -> int:
    """Return the characters of a string and its quotes, counted in the given way."""
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


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(constant)
