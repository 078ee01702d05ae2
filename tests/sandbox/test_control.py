"""Control of a sandbox over HTTP."""

import asyncio
import json
from typing import Any

import pytest
from support.clients import KEY

from loops_async.sandbox import Sandbox

from .support import event, fetch, send_to


async def control(sandbox: Sandbox, name: str, body: object = None) -> Any:
    method = "GET" if name in ("state", "counts") else "POST"
    response = await fetch(sandbox, method, f"/_sandbox/{name}", body, headers={})
    return response.status, response.json()


def test_the_control_endpoints_control_and_show_the_sandbox() -> None:
    async def use() -> None:
        async with Sandbox(api_key=KEY, rate_limit=1) as sandbox:
            body = event(userId="u1", plan="pro", mailingLists={})
            assert (await send_to(sandbox, body)).status == 200
            assert (await send_to(sandbox, event())).status == 429
            success = (200, {"success": True})
            assert await control(sandbox, "advance", {"seconds": 2}) == success
            assert (
                await control(sandbox, "script", {"faults": [None, "502"]}) == success
            )
            assert (await send_to(sandbox, event())).status == 200
            assert (await send_to(sandbox, event())).status == 502
            assert await control(sandbox, "down", {"down": True}) == success
            assert (await send_to(sandbox, event())).status == 503
            assert await control(sandbox, "down", {"down": False}) == success
            _, counts = await control(sandbox, "counts")
            assert counts == {
                "requests": 5,
                "by_status": {"200": 2, "429": 1, "502": 1, "503": 1},
                "unanswered": 0,
                "limited": 1,
                "faults": {"502": 1, "down": 1},
                "accepted": 2,
                "duplicates": 0,
            }
            _, state = await control(sandbox, "state")
            assert state["now"] >= 2
            assert [one["name"] for one in state["events"]] == ["signup", "signup"]
            assert state["events"][0]["contact_properties"] == {"plan": "pro"}
            assert state["contacts"][0]["user_id"] == "u1"
            assert state["counts"] == counts
            assert await control(sandbox, "reset") == success
            assert (await control(sandbox, "counts"))[1]["requests"] == 0

    asyncio.run(use())


@pytest.mark.parametrize(
    ("method", "name", "body", "status", "message"),
    [
        ("GET", "nope", None, 404, "no control endpoint is named 'nope'"),
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
def test_a_bad_control_request_returns_the_reason_and_is_not_recorded(
    method: str, name: str, body: object, status: int, message: str
) -> None:
    async def use() -> None:
        async with Sandbox() as sandbox:
            response = await fetch(sandbox, method, f"/_sandbox/{name}", body)
            assert response.status == status
            assert json.loads(response.body)["success"] is False
            assert message in response.json()["message"]
            assert sandbox.requests == []

    asyncio.run(use())
