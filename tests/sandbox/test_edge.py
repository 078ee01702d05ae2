"""The socket side: what a client in any language sees on the wire."""

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

from loops_async.sandbox import Behaviour, Sandbox
from loops_async.sandbox._world import Delays, World

from .support import AUTH, KEY, SEND, Connection, ask, ask_send, event, until

PATH = f"/api{SEND}"


def play(scene: Callable[[Sandbox], Awaitable[None]], **settings: Any) -> Sandbox:
    """Play a scene in a sandbox, see that it leaves no task, and return it."""

    async def stage() -> Sandbox:
        async with Sandbox(api_key=KEY, **{"rate_limit": None, **settings}) as sandbox:
            await scene(sandbox)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return sandbox

    return asyncio.run(stage())


async def struck(sandbox: Sandbox, *faults: str | None) -> bytes:
    """What a connection delivers until its end when the fault strikes."""
    sandbox.script(*faults)
    connection = await Connection.open(sandbox)
    await connection.write("POST", PATH, event(), {**AUTH, "Idempotency-Key": "k1"})
    try:
        return await connection.reader.read()
    finally:
        await connection.close()


def test_an_answer_carries_the_headers_recorded_live() -> None:
    async def scene(sandbox: Sandbox) -> None:
        reply = await ask_send(sandbox, event())
        assert (reply.status, reply.body) == (200, b'{"success":true}')
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["server"] == "cloudflare"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "strict-transport-security" in reply.headers
        assert "referrer-policy" in reply.headers
        assert reply.headers["x-ratelimit-limit"] == "10"
        assert reply.headers["x-ratelimit-remaining"] == "9"

    play(scene, rate_limit=10)


def test_a_client_of_another_make_works_unchanged() -> None:
    """urllib knows nothing of this project."""

    def post(url: str) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"{url}/v1/events/send",
            data=json.dumps(event(userId=None, mailingLists=[])).encode(),
            headers=AUTH,
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)

    async def scene(sandbox: Sandbox) -> None:
        assert await asyncio.to_thread(post, sandbox.url) == (200, {"success": True})
        sandbox.down()
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(post, sandbox.url)
        assert caught.value.code == 503
        caught.value.close()

    play(scene)


def test_queries_are_decoded() -> None:
    async def scene(sandbox: Sandbox) -> None:
        await ask_send(sandbox, event(email="ada+x@example.com"))
        path = "/api/v1/contacts/find?email=ada%2Bx%40example.com"
        (contact,) = (await ask(sandbox, "GET", path)).json()
        assert contact["email"] == "ada+x@example.com"

    play(scene)


@pytest.mark.parametrize("path", ["/", "/v1/lists", "/apiv1/lists", "/api"])
def test_paths_outside_the_api_are_unknown_routes(path: str) -> None:
    async def scene(sandbox: Sandbox) -> None:
        assert (await ask(sandbox, "GET", path)).status == 404
        assert (await ask(sandbox, "GET", path, headers={})).status == 401

    play(scene)


def test_a_head_request_gets_no_body() -> None:
    async def scene(sandbox: Sandbox) -> None:
        reply = await ask(sandbox, "HEAD", "/api/v1/lists")
        assert (reply.status, reply.body) == (405, b"")
        assert reply.headers["allow"] == "GET"

    play(scene)


def test_a_body_over_one_megabyte_answers_413() -> None:
    async def scene(sandbox: Sandbox) -> None:
        headers = {**AUTH, "Expect": "100-continue"}
        connection = await Connection.open(sandbox)
        await connection.write("POST", PATH, b" " * 2**20 + b"  ", headers)
        assert (await connection.read()).status == 100
        assert (await connection.read()).status == 413
        await connection.close()

    assert play(scene).counts.by_status == {413: 1}


def test_a_client_that_expects_to_continue_may() -> None:
    """curl, and with it PHP, waits a second for this before larger bodies."""

    async def scene(sandbox: Sandbox) -> None:
        connection = await Connection.open(sandbox)
        headers = {**AUTH, "Expect": "100-continue"}
        await connection.write("POST", PATH, event(), headers)
        assert (await connection.read()).status == 100
        assert (await connection.read()).status == 200
        await connection.close()

    play(scene)


def test_a_body_cut_off_by_the_client_is_no_request() -> None:
    async def scene(sandbox: Sandbox) -> None:
        connection = await Connection.open(sandbox)
        connection.writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
        )
        await connection.writer.drain()
        # Answered after the first bytes were, so those are being waited on now.
        await ask(sandbox, "GET", "/api/v1/lists")
        await connection.close()
        await ask(sandbox, "GET", "/api/v1/lists")

    assert play(scene).counts.requests == 2


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
def test_an_answering_fault_answers_with_or_without_the_event(
    fault: str, status: int, body: bytes
) -> None:
    async def scene(sandbox: Sandbox) -> None:
        sandbox.script(fault)
        reply = await ask_send(sandbox, event(), "k1")
        assert reply.status == status
        assert body in reply.body
        assert bool(reply.body) == bool(body)

    sandbox = play(scene)
    assert len(sandbox.events) == fault.endswith("-after")
    (request,) = sandbox.requests
    assert (request.status, request.fault) == (status, fault)


def test_an_injected_429_says_that_nothing_remains() -> None:
    async def scene(sandbox: Sandbox) -> None:
        sandbox.script("429")
        reply = await ask_send(sandbox, event())
        assert reply.status == 429
        assert reply.headers["x-ratelimit-limit"] == "10"
        assert reply.headers["x-ratelimit-remaining"] == "0"
        assert reply.headers["retry-after"] == "3"
        assert (await ask_send(sandbox, event())).status == 200

    play(scene, period=2.5, behaviour=Behaviour(retry_after="seconds"))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", ["close", "garbage", "reset"])
def test_a_breaking_fault_breaks_the_connection(kind: str, where: str) -> None:
    fault = f"{kind}-{where}"

    async def scene(sandbox: Sandbox) -> None:
        if kind == "reset":
            with pytest.raises(ConnectionResetError):
                await struck(sandbox, fault)
        else:
            delivered = await struck(sandbox, fault)
            assert bool(delivered) == (kind == "garbage")
            assert not delivered.startswith(b"HTTP")
        again = await ask_send(sandbox, event(), "k1")
        assert again.status == (409 if where == "after" else 200)

    sandbox = play(scene)
    assert len(sandbox.events) == 1
    assert sandbox.requests[0].status is None
    assert sandbox.counts.faults == {fault: 1}
    assert sandbox.counts.unanswered == 1


def test_a_truncated_answer_promises_more_than_it_brings() -> None:
    async def scene(sandbox: Sandbox) -> None:
        head, _, body = (await struck(sandbox, "truncate-after")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"Content-Length: 4096" in head
        assert len(body) < 4096

    assert len(play(scene).events) == 1


@pytest.mark.parametrize("fault", ["hang-before", "hang-after"])
def test_a_hanging_fault_answers_nobody_and_stops_with_the_sandbox(fault: str) -> None:
    async def scene(sandbox: Sandbox) -> None:
        sandbox.script(fault, fault)
        gone, staying = [await Connection.open(sandbox) for _ in "ab"]
        for connection in (gone, staying):
            await connection.write("POST", PATH, event())
        await until(lambda: len(sandbox.requests) == 2)
        await gone.close()
        assert (await ask_send(sandbox, event())).status == 200
        stayed = asyncio.create_task(staying.reader.read())
        await asyncio.sleep(0)
        await sandbox.aclose()
        with contextlib.suppress(ConnectionError):
            assert await stayed == b""
        await staying.close()

    assert len(play(scene).events) == (3 if fault == "hang-after" else 1)


def test_a_client_gone_before_its_fate_is_settled_changes_nothing() -> None:
    async def scene(sandbox: Sandbox) -> None:
        sandbox.script("hang-after", "reset-after", "close-after")
        for _ in "abc":
            connection = await Connection.open(sandbox)
            await connection.write("POST", PATH, event())
            await connection.close()
        await until(lambda: len(sandbox.events) == 3)
        await asyncio.sleep(0.02)

    sandbox = play(scene, latency=0.01)
    assert len(sandbox.requests) == 3


def test_an_after_fault_waits_for_a_request_that_gets_through() -> None:
    async def scene(sandbox: Sandbox) -> None:
        sandbox.script("close-after", "close-after")
        assert (await ask_send(sandbox, {})).status == 400
        assert (await ask(sandbox, "POST", PATH, headers={})).status == 401
        # The second one strikes the 409 of the retry: its event is in as well.
        assert [await struck(sandbox), await struck(sandbox)] == [b"", b""]
        assert (await ask_send(sandbox, event(), "k1")).status == 409

    sandbox = play(scene)
    faults = [request.fault for request in sandbox.requests]
    assert faults == [None, None, "close-after", "close-after", None]


def test_an_outage_refuses_or_drops_everything_and_spends_no_script() -> None:
    async def scene(sandbox: Sandbox) -> None:
        sandbox.script("502")
        sandbox.down()
        assert (await ask_send(sandbox, event())).status == 503
        sandbox.down(drop=True)
        assert await struck(sandbox) == b""
        sandbox.down(False)
        assert (await ask_send(sandbox, event())).status == 502

    sandbox = play(scene)
    assert [request.status for request in sandbox.requests] == [503, None, 502]
    assert sandbox.counts.faults == {"down": 2, "502": 1}


def test_a_request_in_flight_refuses_its_twin() -> None:
    async def scene(sandbox: Sandbox) -> None:
        replies = await asyncio.gather(
            *(ask_send(sandbox, event(), "k1") for _ in range(5))
        )
        assert sorted(reply.status for reply in replies) == [200, 409, 409, 409, 409]

    sandbox = play(scene, processing=0.05)
    assert len(sandbox.events) == 1


def test_stopping_in_the_middle_of_processing_leaves_the_key_unused() -> None:
    async def scene(sandbox: Sandbox) -> None:
        connection = await Connection.open(sandbox)
        headers = {**AUTH, "Idempotency-Key": "k1"}
        await connection.write("POST", PATH, event(), headers)
        keys = sandbox._world.loops._keys
        await until(lambda: keys.in_flight("k1"))
        await sandbox.aclose()
        assert not keys.in_flight("k1")
        await connection.close()

    assert play(scene, processing=3600).events == []


def test_stopping_is_prompt_whatever_the_connections_do() -> None:
    """Idle, just accepted, half a request, waiting for a far answer."""

    async def scene(sandbox: Sandbox) -> None:
        connections = [await Connection.open(sandbox) for _ in range(4)]
        await connections[1].write("GET", "/api/v1/lists")
        connections[2].writer.write(b"POST /api HTTP/1.1\r\nContent-Le")
        await connections[3].write("POST", PATH, event())
        await asyncio.sleep(0)
        await sandbox.aclose()
        for connection in connections:
            await connection.close()

    play(scene, latency_before=3600)


def test_setup_latency_is_paid_once_per_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[float] = []
    draw = World.draw_delays

    def spy(world: World, *, first: bool) -> Delays:
        delays = draw(world, first=first)
        drawn.append(delays.setup)
        return delays

    async def scene(sandbox: Sandbox) -> None:
        for _ in "ab":
            connection = await Connection.open(sandbox)
            for _ in "abc":
                await connection.write("GET", "/api/v1/lists")
                await connection.read()
            await connection.close()

    monkeypatch.setattr(World, "draw_delays", spy)
    play(scene, setup_latency=0.01)
    assert drawn == [0.01, 0.0, 0.0] * 2


def test_a_sandbox_works_under_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def stage() -> None:
        async with Sandbox(api_key=KEY) as sandbox:
            assert (await ask_send(sandbox, event(), "k1")).status == 200
            with pytest.raises(ConnectionResetError):
                await struck(sandbox, "reset-before")
            sandbox.script("hang-after")
            connection = await Connection.open(sandbox)
            await connection.write("POST", PATH, event())
            await until(lambda: len(sandbox.events) == 2)
        await connection.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(stage())


@pytest.mark.parametrize("ticks", range(6))
def test_stopping_drops_what_was_accepted_just_now(ticks: int) -> None:
    async def main() -> None:
        sandbox = Sandbox()
        await sandbox.start()
        address = ("127.0.0.1", urllib.parse.urlsplit(sandbox.url).port)
        with contextlib.ExitStack() as stack:
            sockets = [socket.socket() for _ in range(5)]
            for one in sockets:
                stack.enter_context(contextlib.closing(one))
                one.setblocking(False)
                one.connect_ex(address)
            for _ in range(ticks):
                await asyncio.sleep(0)
            await sandbox.aclose()
            for one in sockets:
                one.settimeout(10)
                with contextlib.suppress(ConnectionError):
                    assert one.recv(1) == b""

    asyncio.run(main())
