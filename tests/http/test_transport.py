"""The transport over real sockets: time, connections, and its life."""

import asyncio
import gc
import os
import weakref
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from support.clients import KEY, client_with_two_attempts
from support.http_server import (
    OK,
    Connection,
    Script,
    Server,
    answers,
    closes,
    hangs,
    reply,
)
from support.sends import (
    error_of_send,
    error_of_send_in_frozen_time,
    make_request,
    transport_of,
)
from support.virtual_time import advance, run_frozen, settle
from support.waiting import advance_until, run, until

from loops_async import Attempt, LoopsError, RetryPolicy, errors
from loops_async._http import transport as _transport
from loops_async._http.api_key import Secret
from loops_async._http.request import MAX_BODY
from loops_async._http.transport import AiohttpTransport


def test_a_timeout_before_the_connection_is_made_is_certainly_not_accepted() -> None:
    """The server accepts the TCP connection and never completes the TLS handshake."""

    async def main() -> LoopsError | None:
        async with Server(silent) as server:
            url = server.url.replace("http:", "https:")
            async with client_with_two_attempts(url, timeout=5.0) as loops:
                return await error_of_send_in_frozen_time(loops)

    error = run_frozen(main())
    assert type(error) is errors.RequestTimeoutError
    assert "no connection in time" in str(error)
    assert error.retryable
    assert not error.maybe_accepted
    assert error.attempts == 2


async def silent(connection: Connection) -> None:
    await connection.until_closed()


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
def test_a_connection_that_is_not_made_within_ten_seconds_fails(
    borrowed: bool,
) -> None:
    """The limit holds within a longer timeout, also for a borrowed session."""

    async def main() -> tuple[LoopsError | None, float]:
        async with Server(silent) as server, AsyncExitStack() as stack:
            session = None
            if borrowed:
                session = await stack.enter_async_context(aiohttp.ClientSession())
            url = server.url.replace("http:", "https:")
            once = RetryPolicy(attempts=1)
            settings: Any = {"timeout": 20.0, "retry": once, "session": session}
            loops = await stack.enter_async_context(
                client_with_two_attempts(url, **settings)
            )
            error = await error_of_send_in_frozen_time(loops)
            return error, asyncio.get_running_loop().time()

    error, seconds = run_frozen(main())
    assert type(error) is errors.ConnectFailedError
    assert error.retryable
    assert not error.maybe_accepted
    assert seconds == pytest.approx(10, abs=1)


def test_an_unsent_attempt_after_an_ambiguous_attempt_leaves_the_outcome_unknown() -> (
    None
):
    async def main() -> LoopsError | None:
        async with Server(closes) as server:

            async def last(connection: Connection) -> None:
                server._server.close()
                await connection.request()

            server.script = last
            async with client_with_two_attempts(server.url) as loops:
                return await error_of_send(loops)

    error = run(main())
    assert type(error) is errors.ConnectFailedError
    assert error.maybe_accepted


def attempts_of(script: Script, sends: int, **settings: Any) -> list[Attempt]:
    """Send events one after the other and return all attempts."""
    attempts: list[Attempt] = []

    async def main() -> None:
        async with Server(script) as server:
            settings.setdefault("retry", RetryPolicy(attempts=3, base=0.2))
            settings["on_attempt"] = attempts.append
            async with client_with_two_attempts(server.url, **settings) as loops:
                for _ in range(sends):
                    await error_of_send(loops)

    run(main())
    return attempts


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_request_lost_with_a_kept_connection_is_retried_at_once(ending: str) -> None:
    """The server reads the second request of the connection and hangs up."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        if len(connection.server.requests) == 1:
            await connection.request()
            getattr(connection, ending)()
            return
        await connection.request()

    first, lost, retried = attempts_of(script, 2)
    assert first.status == retried.status == 200
    assert type(lost.error) is errors.ConnectionLostError
    assert lost.retry_in == 0.0
    assert retried.number == 2


def test_a_connection_closed_while_idle_costs_no_attempt() -> None:
    """The client notices the end of the connection before the next request."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)

    attempts: list[Attempt] = []

    async def main() -> None:
        async with Server(script) as server:
            async with client_with_two_attempts(
                server.url, on_attempt=attempts.append
            ) as loops:
                await error_of_send(loops)
                await until(lambda: not server.open)
                await settle()
                await error_of_send(loops)
            assert server.connections == 2

    run(main())
    assert [attempt.error for attempt in attempts] == [None, None]


def test_only_the_first_lost_connection_is_retried_at_once() -> None:
    first, second, third = attempts_of(closes, 1)
    assert first.retry_in == 0.0
    assert second.retry_in is not None
    assert second.retry_in > 0.0
    assert third.retry_in is None


def test_successive_sends_share_one_connection() -> None:
    async def main() -> int:
        async with (
            Server(answers(OK)) as server,
            client_with_two_attempts(server.url) as loops,
        ):
            for _ in range(20):
                assert await error_of_send(loops) is None
            return server.connections

    assert run(main()) == 1


def test_a_round_trip_is_measured_on_used_connections_only() -> None:
    """On a new connection it would include the set-up."""

    async def main() -> list[float | None]:
        async with Server(answers(OK)) as server:
            transport = AiohttpTransport(max_connections=1)
            await transport.open()
            request = make_request(url=f"{server.url}/v1/events/send")
            round_trips = []
            for _ in range(3):
                response = await transport.exchange(request, Secret(KEY), None)
                assert not isinstance(response, LoopsError)
                round_trips.append(response.round_trip)
            await transport.close(1.0)
            return round_trips

    first, *others = run(main())
    assert first is None
    assert all(other is not None and other > 0 for other in others)


@pytest.mark.parametrize("size", [0, 1, MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, 10**6])
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "in pieces"])
def test_an_error_keeps_the_first_64_kib_of_the_body(size: int, *, whole: bool) -> None:
    body = b"x" * size

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            data = reply(400, body)
            if whole:
                await connection.send(data)
                continue
            for at in range(0, len(data), 30_000):
                await connection.send(data[at : at + 30_000])
                await asyncio.sleep(0.001)

    async def main() -> tuple[errors.LoopsError | None, int]:
        async with (
            Server(script) as server,
            client_with_two_attempts(server.url) as loops,
        ):
            await error_of_send(loops)
            return await error_of_send(loops), server.connections

    error, connections = run(main())
    assert isinstance(error, errors.BadRequestError)
    assert error.body == body[:MAX_BODY]
    if size > 4 * MAX_BODY:
        assert connections == 2, "the client read a long body to its end"
    if size < MAX_BODY // 2:
        assert connections == 1, "the client did not keep the connection"


def test_the_session_of_a_transport_does_not_hold_the_api_key() -> None:
    async def main() -> None:
        transport = AiohttpTransport(max_connections=1)
        await transport.open()
        assert "Authorization" not in transport._session.headers
        assert not transport.closed
        await transport.close(0.0)
        assert transport.closed

    run(main())


def test_overlapping_requests_with_different_timeouts_each_end_in_time() -> None:
    """One timer serves all requests with the client's timeout."""

    async def main() -> list[tuple[LoopsError | None, float]]:
        loop = asyncio.get_running_loop()
        once = RetryPolicy(attempts=1)

        async def send(**options: Any) -> tuple[LoopsError | None, float]:
            return await error_of_send(loops, **options), loop.time()

        async with (
            Server(hangs) as server,
            client_with_two_attempts(server.url, timeout=4.0, retry=once) as loops,
        ):
            sends = [asyncio.create_task(send()) for _ in range(3)]
            await server.arrived(3)
            await advance(1.0)
            sends.append(asyncio.create_task(send()))
            sends.append(asyncio.create_task(send(timeout=2.0)))
            sends.append(asyncio.create_task(send(timeout=6.0)))
            await server.arrived(6)
            await advance_until(lambda: all(task.done() for task in sends))
            return [task.result() for task in sends]

    results = run_frozen(main())
    for error, _ in results:
        assert type(error) is errors.RequestTimeoutError
        assert error.maybe_accepted
    ends = [seconds for _, seconds in results]
    assert ends == pytest.approx([4, 4, 4, 5, 3, 7], abs=0.1)


def test_a_request_without_timeout_and_deadline_waits_for_its_response() -> None:
    """The timer for requests with the client's timeout does not end it."""

    async def main() -> list[LoopsError | None]:
        respond = asyncio.Event()

        async def script(connection: Connection) -> None:
            request = await connection.request()
            assert request is not None
            if b"slow" in request.body:
                await respond.wait()
                await connection.send(OK)
            await connection.until_closed()

        once = RetryPolicy(attempts=1)
        async with (
            Server(script) as server,
            client_with_two_attempts(server.url, timeout=5.0, retry=once) as loops,
        ):
            unlimited: Any = {"timeout": None, "deadline": None}
            slow = asyncio.create_task(
                error_of_send(loops, user_id="slow", **unlimited)
            )
            await server.arrived()
            usual = await error_of_send_in_frozen_time(loops)
            await advance(100.0)
            respond.set()
            return [usual, await slow]

    usual, slow = run_frozen(main())
    assert type(usual) is errors.RequestTimeoutError
    assert slow is None


def test_a_cancelled_send_ends_cancelled_and_its_connection_is_not_reused() -> None:
    async def main() -> None:
        async with (
            Server(hangs) as server,
            client_with_two_attempts(server.url) as loops,
        ):
            task = asyncio.create_task(error_of_send(loops))
            await server.arrived()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            server.script = answers(OK)
            assert await error_of_send(loops) is None
            assert server.connections == 2

    run(main())


def test_a_send_that_is_cancelled_and_times_out_in_one_loop_turn_is_cancelled() -> None:
    async def main() -> None:
        async with (
            Server(hangs) as server,
            client_with_two_attempts(server.url) as loops,
        ):
            task = asyncio.create_task(error_of_send(loops))
            await server.arrived()
            transport = transport_of(loops)
            (inner,) = transport._in_flight
            transport._cut(inner, _transport._TIMED_OUT)
            transport._cut(inner, _transport._TIMED_OUT)  # a second cut has no effect
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_a_forked_child_keeps_the_transport_of_its_parent_and_does_not_use_it() -> None:
    """This test calls the hook of a fork; test_fork.py has tests with real forks."""

    async def main() -> None:
        async with (
            Server(answers(OK)) as server,
            client_with_two_attempts(server.url) as loops,
        ):
            assert await error_of_send(loops) is None
            inherited = transport_of(loops)
            kept: list[AiohttpTransport] = []
            _transport._keep_inherited(kept)
            assert inherited in kept
            assert inherited.closed
            assert await error_of_send(loops) is None
            assert transport_of(loops) is not inherited
            assert server.connections == 2
            assert not inherited._session.closed
            await inherited.close(0.0)

    run(main())


def test_a_loop_that_ends_in_a_forked_child_leaves_the_session_of_its_parent_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shutdown of the loop also closes the generators that the parent started."""

    async def main() -> None:
        transport = AiohttpTransport(max_connections=1)
        await transport.open()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 0)
            await transport.close(0.0)
        assert transport.closed
        assert not transport._session.closed
        await transport._session.close()

    run(main())


def test_the_shutdown_of_an_event_loop_closes_its_transport() -> None:
    async def main() -> AiohttpTransport:
        transport = AiohttpTransport(max_connections=1)
        await transport.open()
        return transport

    transport = run(main())
    assert transport.closed
    assert transport._session.closed


def test_the_shutdown_of_an_event_loop_closes_the_session_of_a_dropped_transport() -> (
    None
):
    async def main() -> aiohttp.ClientSession:
        transport = AiohttpTransport(max_connections=1)
        await transport.open()
        closers.append(transport._closer)
        return transport._session

    closers: list[Any] = []
    session = run(main())
    assert session.closed


def test_a_timer_that_outlives_its_transport_has_no_effect() -> None:
    async def main() -> weakref.ref[AiohttpTransport]:
        return weakref.ref(AiohttpTransport(bare_session(), max_connections=1))

    gone = run(main())
    gc.collect()
    assert gone() is None
    _transport._cut_overdue(gone)


def test_a_session_without_a_connector_does_not_make_a_transport_fail() -> None:
    async def main() -> int:
        return AiohttpTransport(bare_session(), max_connections=4).max_connections

    assert run(main()) == 4


def bare_session() -> Any:
    """Return a session of the running event loop that has no connector."""
    loop = asyncio.get_running_loop()
    return SimpleNamespace(connector=None, closed=False, _loop=loop)
