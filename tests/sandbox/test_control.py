"""Steering over HTTP."""

import asyncio
import json
from typing import Any

import pytest

from loops_async.sandbox import Sandbox

from .support import KEY, ask, ask_send, event


async def steer(sandbox: Sandbox, name: str, body: object = None) -> Any:
    method = "GET" if name in ("state", "counts") else "POST"
    reply = await ask(sandbox, method, f"/_sandbox/{name}", body, headers={})
    return reply.status, reply.json()


def test_another_process_can_steer_and_look() -> None:
    async def scene() -> None:
        async with Sandbox(api_key=KEY, rate_limit=1) as sandbox:
            body = event(userId="u1", plan="pro", mailingLists={})
            assert (await ask_send(sandbox, body)).status == 200
            assert (await ask_send(sandbox, event())).status == 429
            done = (200, {"success": True})
            assert await steer(sandbox, "advance", {"seconds": 2}) == done
            assert await steer(sandbox, "script", {"faults": [None, "502"]}) == done
            assert (await ask_send(sandbox, event())).status == 200
            assert (await ask_send(sandbox, event())).status == 502
            assert await steer(sandbox, "down", {"down": True}) == done
            assert (await ask_send(sandbox, event())).status == 503
            assert await steer(sandbox, "down", {"down": False}) == done
            _, counts = await steer(sandbox, "counts")
            assert counts == {
                "requests": 5,
                "by_status": {"200": 2, "429": 1, "502": 1, "503": 1},
                "unanswered": 0,
                "limited": 1,
                "faults": {"502": 1, "down": 1},
                "accepted": 2,
                "duplicates": 0,
            }
            _, state = await steer(sandbox, "state")
            assert state["now"] >= 2
            assert [one["name"] for one in state["events"]] == ["signup", "signup"]
            assert state["events"][0]["contact_properties"] == {"plan": "pro"}
            assert state["contacts"][0]["user_id"] == "u1"
            assert state["counts"] == counts
            assert await steer(sandbox, "reset") == done
            assert (await steer(sandbox, "counts"))[1]["requests"] == 0

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("method", "name", "body", "status", "message"),
    [
        ("GET", "nope", None, 404, "no such control"),
        ("GET", "reset", None, 405, "reset takes POST"),
        ("POST", "state", None, 405, "state takes GET"),
        ("POST", "advance", None, 400, "seconds"),
        ("POST", "advance", {"seconds": -1}, 400, "seconds must be zero or more"),
        ("POST", "advance", {"seconds": "1"}, 400, "str"),
        ("POST", "advance", {"minutes": 1}, 400, "minutes"),
        ("POST", "advance", b"{", 400, "Expecting"),
        ("POST", "advance", [1], 400, "JSON object"),
        ("POST", "script", {"faults": "502"}, 400, "faults must be an array"),
        ("POST", "script", {"faults": ["nope"]}, 400, "no fault is named 'nope'"),
        ("POST", "down", {"down": 1}, 400, "true or false"),
        ("POST", "down", {"drop": 1}, 400, "true or false"),
    ],
)
def test_a_steering_mistake_is_explained(
    method: str, name: str, body: object, status: int, message: str
) -> None:
    async def scene() -> None:
        async with Sandbox() as sandbox:
            reply = await ask(sandbox, method, f"/_sandbox/{name}", body)
            assert reply.status == status
            assert json.loads(reply.body)["success"] is False
            assert message in reply.json()["message"]
            assert sandbox.requests == []

    asyncio.run(scene())
