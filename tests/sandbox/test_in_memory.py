"""Requests to a sandbox without a network."""

import asyncio
import json
from typing import Any

import pytest
from support import virtual_time as virtual
from support.clients import KEY

from loops_async.sandbox import FAULTS, Sandbox, SandboxResponse

from .support import AUTH, SEND, event

PATH = f"/api{SEND}"


def run(sandbox: Sandbox, body: object, key: str | None = None) -> SandboxResponse:
    headers = AUTH if key is None else {**AUTH, "Idempotency-Key": key}
    data = json.dumps(body).encode()
    return asyncio.run(sandbox.respond("POST", PATH, headers=headers, body=data))


def test_a_request_gets_the_response_and_is_recorded() -> None:
    sandbox = Sandbox(api_key=KEY)
    response = run(sandbox, event())
    assert (response.status, response.body) == (200, b'{"success":true}')
    assert response.headers["content-type"] == "application/json"
    assert response.headers["X-RateLimit-Remaining"] == "9"
    (request,) = sandbox.requests
    assert (request.method, request.path, request.status) == ("POST", PATH, 200)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    sandbox.assert_event("signup")


def test_a_target_is_decoded_like_that_of_a_request_from_a_socket() -> None:
    sandbox = Sandbox(api_key=KEY)
    run(sandbox, event(email="a+b@example.com"))
    target = "/api/v1/contacts/%66ind?email=a%2Bb%40example.com"
    response = asyncio.run(sandbox.respond("GET", target, headers=AUTH))
    assert [contact["email"] for contact in json.loads(response.body)] == [
        "a+b@example.com"
    ]
    assert sandbox.requests[-1].path == target


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_without_a_response_raises(fault: str) -> None:
    sandbox = Sandbox(api_key=KEY)
    sandbox.script(fault)
    expected: dict[str, Any] = {
        "hang": pytest.raises(TimeoutError, match=fault),
        "close": pytest.raises(ConnectionError, match=fault),
        "reset": pytest.raises(ConnectionError, match=fault),
        "garbage": pytest.raises(ConnectionError, match=fault),
        "truncate": pytest.raises(ConnectionError, match=fault),
    }
    kind = fault.partition("-")[0]
    if kind in expected:
        with expected[kind]:
            run(sandbox, event())
    else:
        assert run(sandbox, event()).status >= 200
    assert [request.fault for request in sandbox.requests] == [fault]
    assert len(sandbox.events) == fault.endswith("-after")


def test_an_outage_returns_503_or_breaks_the_connection() -> None:
    sandbox = Sandbox(api_key=KEY)
    sandbox.down()
    assert run(sandbox, event()).status == 503
    sandbox.down(drop=True)
    with pytest.raises(ConnectionError, match="down"):
        run(sandbox, event())


def test_latencies_delay_the_response() -> None:
    async def main() -> None:
        sandbox = Sandbox(
            api_key=KEY, latency=4, processing=2, latency_after=1, setup_latency=50
        )
        await sandbox.respond("GET", "/api/v1/lists", headers=AUTH)
        assert asyncio.get_running_loop().time() == pytest.approx(7.0)

    virtual.run(main())


def test_a_body_over_one_megabyte_returns_413() -> None:
    sandbox = Sandbox(api_key=KEY)
    for size, status in ((2**20, 400), (2**20 + 1, 413)):
        sending = sandbox.respond("POST", PATH, headers=AUTH, body=b" " * size)
        assert asyncio.run(sending).status == status
    assert [len(request.body) for request in sandbox.requests] == [2**20, 0]


def test_a_target_that_is_not_a_path_is_refused() -> None:
    sending = Sandbox().respond("GET", "http://localhost/api/v1/lists")
    with pytest.raises(ValueError, match="target must be a path that begins with /"):
        asyncio.run(sending)
