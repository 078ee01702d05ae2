"""The HTTP server: the bytes that a client in any language receives."""

import asyncio
import contextlib
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.clients import KEY
from support.virtual_time import run_frozen
from support.waiting import advance_until, until

from loops_async.sandbox import Behaviour, Sandbox

from .support import AUTH, SEND, Connection, event, fetch, send_to

PATH = f"/api{SEND}"


def with_sandbox(use: Callable[[Sandbox], Awaitable[None]], **settings: Any) -> Sandbox:
    """Use a sandbox, check that it leaves no task, and return it."""

    async def main() -> Sandbox:
        async with Sandbox(api_key=KEY, **{"rate_limit": None, **settings}) as sandbox:
            await use(sandbox)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return sandbox

    return asyncio.run(main())


async def bytes_of(sandbox: Sandbox, *faults: str | None) -> bytes:
    """Return all bytes that a connection receives, after scripting the faults."""
    sandbox.script(*faults)
    connection = await Connection.open(sandbox)
    await connection.write("POST", PATH, event(), {**AUTH, "Idempotency-Key": "k1"})
    try:
        return await connection.reader.read()
    finally:
        await connection.close()


def test_a_response_has_the_headers_recorded_from_the_live_api() -> None:
    async def use(sandbox: Sandbox) -> None:
        response = await send_to(sandbox, event())
        assert (response.status, response.body) == (200, b'{"success":true}')
        assert response.headers["content-type"] == "application/json"
        assert response.headers["server"] == "cloudflare"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "strict-transport-security" in response.headers
        assert "referrer-policy" in response.headers
        assert response.headers["x-ratelimit-limit"] == "10"
        assert response.headers["x-ratelimit-remaining"] == "9"

    with_sandbox(use, rate_limit=10)


def test_a_client_other_than_this_sdk_can_send() -> None:
    """urllib stands for a client in another language."""

    def post(url: str) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"{url}/v1/events/send",
            data=json.dumps(event(userId=None, mailingLists=[])).encode(),
            headers=AUTH,
        )
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)

    async def use(sandbox: Sandbox) -> None:
        assert await asyncio.to_thread(post, sandbox.url) == (200, {"success": True})
        sandbox.down()
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(post, sandbox.url)
        assert caught.value.code == 503
        caught.value.close()

    with_sandbox(use)


def test_a_query_is_decoded() -> None:
    async def use(sandbox: Sandbox) -> None:
        await send_to(sandbox, event(email="ada+x@example.com"))
        path = "/api/v1/contacts/find?email=ada%2Bx%40example.com"
        (contact,) = (await fetch(sandbox, "GET", path)).json()
        assert contact["email"] == "ada+x@example.com"

    with_sandbox(use)


@pytest.mark.parametrize("path", ["/", "/v1/lists", "/apiv1/lists", "/api"])
def test_a_path_outside_the_api_is_an_unknown_route(path: str) -> None:
    async def use(sandbox: Sandbox) -> None:
        assert (await fetch(sandbox, "GET", path)).status == 404
        assert (await fetch(sandbox, "GET", path, headers={})).status == 401

    with_sandbox(use)


def test_a_response_to_head_has_no_body() -> None:
    async def use(sandbox: Sandbox) -> None:
        response = await fetch(sandbox, "HEAD", "/api/v1/lists")
        assert (response.status, response.body) == (405, b"")
        assert response.headers["allow"] == "GET"

    with_sandbox(use)


def test_a_body_over_one_megabyte_returns_413() -> None:
    async def use(sandbox: Sandbox) -> None:
        headers = {**AUTH, "Expect": "100-continue"}
        connection = await Connection.open(sandbox)
        await connection.write("POST", PATH, b" " * 2**20 + b"  ", headers)
        assert (await connection.read()).status == 100
        assert (await connection.read()).status == 413
        await connection.close()

    assert with_sandbox(use).counts.by_status == {413: 1}


def test_a_request_that_expects_100_continue_gets_it() -> None:
    """curl, and with it PHP, waits a second for it before it sends a larger body."""

    async def use(sandbox: Sandbox) -> None:
        connection = await Connection.open(sandbox)
        headers = {**AUTH, "Expect": "100-continue"}
        await connection.write("POST", PATH, event(), headers)
        assert (await connection.read()).status == 100
        assert (await connection.read()).status == 200
        await connection.close()

    with_sandbox(use)


def test_a_request_whose_body_breaks_off_is_not_recorded() -> None:
    async def use(sandbox: Sandbox) -> None:
        connection = await Connection.open(sandbox)
        connection.writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
        )
        await connection.writer.drain()
        # This response comes after the sandbox has read the first bytes.
        await fetch(sandbox, "GET", "/api/v1/lists")
        await connection.close()
        await fetch(sandbox, "GET", "/api/v1/lists")

    assert with_sandbox(use).counts.requests == 2


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        ("500-before", 500, b"[sandbox] Internal server error."),
        ("502", 502, b"<html>"),
        ("503", 503, b"Service Unavailable"),
        ("500-after", 500, b"[sandbox] Internal server error."),
        ("html-after", 200, b"<html>"),
        ("empty-after", 200, b""),
    ],
)
def test_a_fault_with_a_response_accepts_the_event_only_if_it_strikes_after(
    fault: str, status: int, body: bytes
) -> None:
    async def use(sandbox: Sandbox) -> None:
        sandbox.script(fault)
        response = await send_to(sandbox, event(), "k1")
        assert response.status == status
        assert body in response.body
        assert bool(response.body) == bool(body)

    sandbox = with_sandbox(use)
    assert len(sandbox.events) == fault.endswith("-after")
    (request,) = sandbox.requests
    assert (request.status, request.fault) == (status, fault)


def test_an_injected_429_has_rate_headers_and_no_remaining_requests() -> None:
    async def use(sandbox: Sandbox) -> None:
        sandbox.script("429")
        response = await send_to(sandbox, event())
        assert response.status == 429
        assert response.headers["x-ratelimit-limit"] == "10"
        assert response.headers["x-ratelimit-remaining"] == "0"
        assert response.headers["retry-after"] == "3"
        assert (await send_to(sandbox, event())).status == 200

    with_sandbox(use, period=2.5, behaviour=Behaviour(retry_after="seconds"))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", ["close", "garbage", "reset"])
def test_a_connection_fault_breaks_the_connection_before_or_after_acceptance(
    kind: str, where: str
) -> None:
    fault = f"{kind}-{where}"

    async def use(sandbox: Sandbox) -> None:
        if kind == "reset":
            with pytest.raises(ConnectionResetError):
                await bytes_of(sandbox, fault)
        else:
            received = await bytes_of(sandbox, fault)
            assert bool(received) == (kind == "garbage")
            assert not received.startswith(b"HTTP")
        repeated = await send_to(sandbox, event(), "k1")
        assert repeated.status == (409 if where == "after" else 200)

    sandbox = with_sandbox(use)
    assert len(sandbox.events) == 1
    assert sandbox.requests[0].status is None
    assert sandbox.counts.faults == {fault: 1}
    assert sandbox.counts.unanswered == 1


def test_a_truncated_response_is_shorter_than_announced() -> None:
    async def use(sandbox: Sandbox) -> None:
        head, _, body = (await bytes_of(sandbox, "truncate-after")).partition(
            b"\r\n\r\n"
        )
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"Content-Length: 4096" in head
        assert len(body) < 4096

    assert len(with_sandbox(use).events) == 1


@pytest.mark.parametrize("fault", ["hang-before", "hang-after"])
def test_a_hanging_request_gets_no_response_and_ends_with_the_sandbox(
    fault: str,
) -> None:
    async def use(sandbox: Sandbox) -> None:
        sandbox.script(fault, fault)
        closed, open_ = [await Connection.open(sandbox) for _ in "ab"]
        for connection in (closed, open_):
            await connection.write("POST", PATH, event())
        await until(lambda: len(sandbox.requests) == 2)
        await closed.close()
        assert (await send_to(sandbox, event())).status == 200
        reading = asyncio.create_task(open_.reader.read())
        await asyncio.sleep(0)
        await sandbox.aclose()
        with contextlib.suppress(ConnectionError):
            assert await reading == b""
        await open_.close()

    assert len(with_sandbox(use).events) == (3 if fault == "hang-after" else 1)


def test_a_request_whose_client_disconnects_is_still_processed() -> None:
    async def use(sandbox: Sandbox) -> None:
        sandbox.script("hang-after", "reset-after", "close-after")
        for _ in "abc":
            connection = await Connection.open(sandbox)
            await connection.write("POST", PATH, event())
            await connection.close()
        await until(lambda: len(sandbox.requests) == 3)
        assert sandbox._edge is not None
        tasks = sandbox._edge._tasks
        await until(lambda: not tasks)

    assert len(with_sandbox(use, latency=0.01).events) == 3


def test_a_scripted_after_fault_waits_for_an_accepted_request() -> None:
    async def use(sandbox: Sandbox) -> None:
        sandbox.script("close-after", "close-after")
        assert (await send_to(sandbox, {})).status == 400
        assert (await fetch(sandbox, "POST", PATH, headers={})).status == 401
        # The second fault strikes the 409 of the retry, whose event is accepted too.
        assert [await bytes_of(sandbox), await bytes_of(sandbox)] == [b"", b""]
        assert (await send_to(sandbox, event(), "k1")).status == 409

    sandbox = with_sandbox(use)
    faults = [request.fault for request in sandbox.requests]
    assert faults == [None, None, "close-after", "close-after", None]


def test_an_outage_refuses_or_drops_each_request_and_keeps_the_script() -> None:
    async def use(sandbox: Sandbox) -> None:
        sandbox.script("502")
        sandbox.down()
        assert (await send_to(sandbox, event())).status == 503
        sandbox.down(drop=True)
        assert await bytes_of(sandbox) == b""
        sandbox.down(False)
        assert (await send_to(sandbox, event())).status == 502

    sandbox = with_sandbox(use)
    assert [request.status for request in sandbox.requests] == [503, None, 502]
    assert sandbox.counts.faults == {"down": 2, "502": 1}


def test_concurrent_requests_with_one_key_are_accepted_once() -> None:
    async def use(sandbox: Sandbox) -> None:
        responses = await asyncio.gather(
            *(send_to(sandbox, event(), "k1") for _ in range(5))
        )
        assert sorted(response.status for response in responses) == [
            200,
            409,
            409,
            409,
            409,
        ]

    sandbox = with_sandbox(use, processing=0.05)
    assert len(sandbox.events) == 1


def test_stopping_during_the_processing_leaves_the_key_unused() -> None:
    async def use(sandbox: Sandbox) -> None:
        connection = await Connection.open(sandbox)
        headers = {**AUTH, "Idempotency-Key": "k1"}
        await connection.write("POST", PATH, event(), headers)
        keys = sandbox._simulator.api.keys
        await until(lambda: keys.is_in_flight("k1"))
        await sandbox.aclose()
        assert not keys.is_in_flight("k1")
        await connection.close()

    assert with_sandbox(use, processing=3600).events == []


def test_stopping_drops_connections_in_any_state() -> None:
    """Idle, just accepted, within the head of a request, and before the response."""

    async def use(sandbox: Sandbox) -> None:
        connections = [await Connection.open(sandbox) for _ in range(4)]
        await connections[1].write("GET", "/api/v1/lists")
        connections[2].writer.write(b"POST /api HTTP/1.1\r\nContent-Le")
        await connections[3].write("POST", PATH, event())
        await asyncio.sleep(0)
        await sandbox.aclose()
        for connection in connections:
            await connection.close()

    with_sandbox(use, latency_before=3600)


@pytest.mark.parametrize("turns", range(6))
def test_stopping_drops_a_request_that_has_just_arrived(turns: int) -> None:
    async def use(sandbox: Sandbox) -> None:
        connection = await Connection.open(sandbox)
        await connection.write("POST", PATH, event())
        for _ in range(turns):
            await asyncio.sleep(0)
        await sandbox.aclose()
        await connection.close()

    assert with_sandbox(use, processing=3600).events == []


def test_setup_latency_delays_only_the_first_request_of_a_connection() -> None:
    async def main() -> None:
        now = asyncio.get_running_loop().time
        async with Sandbox(api_key=KEY, setup_latency=1.0) as sandbox:
            for _ in "ab":
                connection, opened = await Connection.open(sandbox), now()
                await connection.write("GET", "/api/v1/lists")
                response = asyncio.create_task(connection.read())
                await advance_until(response.done)
                assert now() >= opened + 1.0
                responded = now()
                for _ in "bc":
                    await connection.write("GET", "/api/v1/lists")
                    await connection.read()
                assert now() == responded
                await connection.close()

    run_frozen(main())


def test_a_sandbox_works_under_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with Sandbox(api_key=KEY) as sandbox:
            assert (await send_to(sandbox, event(), "k1")).status == 200
            with pytest.raises(ConnectionResetError):
                await bytes_of(sandbox, "reset-before")
            sandbox.script("hang-after")
            connection = await Connection.open(sandbox)
            await connection.write("POST", PATH, event())
            await until(lambda: len(sandbox.events) == 2)
        await connection.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("turns", range(6))
def test_stopping_drops_connections_that_are_being_accepted(turns: int) -> None:
    async def main() -> None:
        sandbox = Sandbox()
        await sandbox.start()
        address = ("127.0.0.1", urllib.parse.urlsplit(sandbox.url).port)
        with contextlib.ExitStack() as stack:
            sockets = [socket.socket() for _ in range(5)]
            for client in sockets:
                stack.enter_context(contextlib.closing(client))
                client.setblocking(False)
                client.connect_ex(address)
            for _ in range(turns):
                await asyncio.sleep(0)
            await sandbox.aclose()
            for client in sockets:
                client.settimeout(10)
                with contextlib.suppress(ConnectionError):
                    assert client.recv(1) == b""

    asyncio.run(main())
