"""Steering a sandbox over HTTP, for other processes and other languages.

All below ``/_sandbox``, outside the API: no key, no rate limit, never recorded. Meant
for the loopback interface; whoever can reach the port can steer.
"""

import json
from collections.abc import Callable
from typing import Any

import attrs

from ._wire import Answer, answer, failure
from ._world import World

PREFIX = "/_sandbox/"

_OK = answer({"success": True})


def control(world: World, method: str, path: str, body: bytes) -> Answer:
    """Answer one steering request: 200, or 400, 404 or 405 with a message."""
    name = path.removeprefix(PREFIX)
    if name in _VIEWS:
        expected = "GET"
    elif name in _ACTIONS:
        expected = "POST"
    else:
        return failure(404, f"no such control; there are {[*_VIEWS, *_ACTIONS]}")
    if method != expected:
        return failure(405, f"{name} takes {expected}")
    if name in _VIEWS:
        return answer(_VIEWS[name](world))
    try:
        arguments = json.loads(body or b"{}")
        if not isinstance(arguments, dict):
            raise ValueError("the body must be a JSON object")
        _ACTIONS[name](world, **arguments)
    except (TypeError, ValueError) as error:
        return failure(400, str(error))
    return _OK


def _counts(world: World) -> dict[str, Any]:
    return attrs.asdict(world.counts())


def _advance(world: World, *, seconds: float) -> None:
    world.advance(seconds)


def _script(world: World, *, faults: list[str | None]) -> None:
    if not isinstance(faults, list):
        raise ValueError(f"faults must be an array, not {faults!r}")
    world.script(faults)


def _down(world: World, *, down: bool = True, drop: bool = False) -> None:
    if not isinstance(down, bool) or not isinstance(drop, bool):
        raise ValueError("down and drop must be true or false")
    world.down(down, drop=drop)


_VIEWS: dict[str, Callable[[World], Any]] = {
    "state": World.state,
    "counts": _counts,
}
_ACTIONS: dict[str, Callable[..., None]] = {
    "advance": _advance,
    "script": _script,
    "down": _down,
    "reset": World.reset,
}
