"""Control of a sandbox over HTTP, for other processes and other languages.

The endpoints lie below ``/_sandbox``, outside the API: they need no API key, use no
rate limit and are never recorded. Any client that can reach the port can use them.
"""

import json
from collections.abc import Callable
from typing import Any

import attrs

from ._simulator import Simulator
from ._wire import Response, error_response, json_response

PREFIX = "/_sandbox/"

_OK = json_response({"success": True})


def control(simulator: Simulator, method: str, path: str, body: bytes) -> Response:
    """Respond to one control request: 200, or 400, 404 or 405 with a message."""
    name = path.removeprefix(PREFIX)
    if name in _VIEWS:
        expected = "GET"
    elif name in _ACTIONS:
        expected = "POST"
    else:
        known = ", ".join([*_VIEWS, *_ACTIONS])
        message = f"no control endpoint is named {name!r}; the endpoints are {known}"
        return error_response(404, message)
    if method != expected:
        return error_response(405, f"{name} takes {expected}, not {method}")
    if name in _VIEWS:
        return json_response(_VIEWS[name](simulator))
    try:
        arguments = json.loads(body or b"{}")
        if not isinstance(arguments, dict):
            raise ValueError("the body must be a JSON object")
        _ACTIONS[name](simulator, **arguments)
    except (TypeError, ValueError) as error:
        return error_response(400, str(error))
    return _OK


def _counts(simulator: Simulator) -> dict[str, Any]:
    return attrs.asdict(simulator.counts())


def _advance(simulator: Simulator, *, seconds: float) -> None:
    simulator.advance(seconds)


def _script(simulator: Simulator, *, faults: list[str | None]) -> None:
    if not isinstance(faults, list):
        raise ValueError(f"faults must be an array, not {faults!r}")
    simulator.script(faults)


def _down(simulator: Simulator, *, down: bool = True, drop: bool = False) -> None:
    if not isinstance(down, bool) or not isinstance(drop, bool):
        raise ValueError("down and drop must be true or false")
    simulator.down(down, drop=drop)


_VIEWS: dict[str, Callable[[Simulator], Any]] = {
    "state": Simulator.state,
    "counts": _counts,
}
_ACTIONS: dict[str, Callable[..., None]] = {
    "advance": _advance,
    "script": _script,
    "down": _down,
    "reset": Simulator.reset,
}
