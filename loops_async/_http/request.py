"""Requests to the rest of the API: what may be asked, and how it is written."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

from loops_async._events.rules import Refused
from loops_async._events.rules import idempotency_key as _read_key
from loops_async._json import strict_dumps

from .protocol import API_KEY_PATH, Request

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_REPEATABLE: Final = ("GET", "PUT", "DELETE")
_PATH: Final = re.compile(r"(?:/[\w.~%@!$&'()*+,;=:-]+)+/?", re.ASCII)


def request_call(
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
    """Return the call for any request.

    Raises:
        ValueError: if one of its parts cannot be sent.
    """
    method = method.upper()
    if method not in _METHODS:
        msg = f"method must be one of {', '.join(_METHODS)}, not {method!r}"
        raise ValueError(msg)
    if not _PATH.fullmatch(path) or {".", ".."} & {*unquote(path).split("/")}:
        msg = f"path must be like /v1/lists, with the query in params, not {path!r}"
        raise ValueError(msg)
    if idempotency_key is not None:
        idempotency_key = _checked_key(idempotency_key)
    url = base_url + path
    if params:
        query = [(name, _query(value)) for name, value in params.items()]
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


def checked_json(name: str, given: Any) -> bytes:
    """Return it as JSON; a ValueError names what cannot be written."""
    try:
        return strict_dumps(given)
    except (TypeError, ValueError, RecursionError) as unwritable:
        msg = f"{name}: {unwritable}"
    raise ValueError(msg)


def _query(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked_key(given: str) -> str:
    try:
        return _read_key(given)
    except Refused as refused:
        msg = f"idempotency_key: {'; '.join(refused.args)}"
    raise ValueError(msg)
