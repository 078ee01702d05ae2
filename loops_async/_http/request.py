"""Requests to Loops: what a caller may send, and how it is encoded."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

import attrs

from loops_async._events.rules import InvalidValue
from loops_async._events.rules import idempotency_key as _read_key
from loops_async._json import strict_dumps

EVENTS_PATH: Final = "/v1/events/send"
API_KEY_PATH: Final = "/v1/api-key"
MAX_BODY: Final = 64 * 1024

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_REPEATABLE: Final = ("GET", "PUT", "DELETE")
_PATH: Final = re.compile(r"(?:/[\w.~%@!$&'()*+,;=:-]+)+/?", re.ASCII)


@attrs.define
class Request:
    """One request to Loops, with its time limits.

    Attributes:
        method: The HTTP method.
        url: The absolute URL.
        body: The encoded JSON, or None.
        key: The idempotency key, or None.
        content: The values that the body was made from; error messages mask them.
        timeout: Seconds for one attempt; None means no limit.
        deadline: Seconds for all attempts; None means no limit.
        promised_object: Whether the endpoint responds with a JSON object.
        repeatable: Whether the request may be sent again after an attempt
            whose outcome is unknown.
        max_body: The greatest number of response bytes to read.
    """

    method: str
    url: str
    body: bytes | None
    key: str | None
    content: object
    timeout: float | None
    deadline: float | None
    promised_object: bool = True
    repeatable: bool = True
    max_body: int = MAX_BODY


def build_request(
    base_url: str,
    method: str,
    path: str,
    *,
    json: Any,
    params: Mapping[str, str | int | bool],
    idempotency_key: str | None,
    timeout: float | None,
    deadline: float | None,
    max_body: int,
) -> Request:
    """Return the request for any endpoint.

    Raises:
        ValueError: If an argument cannot be sent.
    """
    method = method.upper()
    if method not in _METHODS:
        msg = f"method must be one of {', '.join(_METHODS)}, not {method!r}"
        raise ValueError(msg)
    if not _PATH.fullmatch(path) or {".", ".."} & {*unquote(path).split("/")}:
        msg = f"path must be like /v1/lists, with the query in params, not {path!r}"
        raise ValueError(msg)
    if idempotency_key is not None:
        idempotency_key = _checked_idempotency_key(idempotency_key)
    url = base_url + path
    if params:
        query = [(name, _query_value(value)) for name, value in params.items()]
        url += "?" + urlencode(query, quote_via=quote)
    return Request(
        method,
        url,
        None if json is None else checked_json("json", json),
        idempotency_key,
        (json, params),
        timeout,
        deadline,
        promised_object=path == API_KEY_PATH,
        repeatable=idempotency_key is not None or method in _REPEATABLE,
        max_body=max_body,
    )


def checked_json(name: str, value: Any) -> bytes:
    """Return a value as JSON.

    Args:
        name: The argument that the error names.
        value: The value to encode.

    Raises:
        ValueError: If the value cannot be encoded.
    """
    try:
        return strict_dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{name}: {error}"
    raise ValueError(msg)


def _query_value(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked_idempotency_key(value: str) -> str:
    try:
        return _read_key(value)
    except InvalidValue as invalid:
        msg = f"idempotency_key: {'; '.join(invalid.args)}"
    raise ValueError(msg)
