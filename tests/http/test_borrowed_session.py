"""A session that the client borrows from its caller, over real sockets."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from support.clients import KEY, TWICE, client_with_two_attempts
from support.http_server import (
    OK,
    Connection,
    Script,
    Server,
    answers,
    closes,
    free_port,
    hangs,
    reply,
    resets,
)
from support.sends import error_of_send, make_request
from support.waiting import run

from loops_async import AsyncLoopsClient, Attempt, LoopsError, RetryPolicy, errors
from loops_async._http.api_key import Secret
from loops_async._http.transport import AiohttpTransport

BEARER = f"Bearer {KEY}"


@contextlib.asynccontextmanager
async def borrowed(
    script: Script, *, retry: RetryPolicy = TWICE, **options: Any
) -> AsyncIterator[tuple[Server, aiohttp.ClientSession, AsyncLoopsClient]]:
    async with Server(script) as server, aiohttp.ClientSession(**options) as session:
        loops = client_with_two_attempts(server.url, session=session, retry=retry)
        yield server, session, loops
        await loops.aclose()
        assert not session.closed


def test_a_borrowed_session_stays_open_and_never_holds_the_api_key() -> None:
    """Each request carries the headers of the session and those of the client."""

    async def main() -> None:
        session_headers = {"X-Session": "1", "Authorization": "Basic dGhlaXJz"}
        async with borrowed(answers(OK), headers=session_headers) as (
            server,
            session,
            loops,
        ):
            assert await error_of_send(loops) is None
            async with loops:
                assert await error_of_send(loops) is None
            assert dict(session.headers) == session_headers
            async with session.get(server.url) as response:
                assert response.status == 200
            first, _, third = server.requests
            assert first.headers["authorization"] == BEARER
            assert first.headers["x-session"] == "1"
            assert first.headers["accept-encoding"] == "identity"
            assert first.headers["content-type"] == "application/json"
            assert first.headers["user-agent"].startswith("loops-async/")
            assert third.headers["authorization"] == "Basic dGhlaXJz"

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"raise_for_status": True},
        {"timeout": aiohttp.ClientTimeout(total=0.000_001)},
        {"auto_decompress": True},
        {"skip_auto_headers": ["User-Agent", "Content-Type"]},
        {"cookies": {"name": "1"}},
        {"read_bufsize": 16},
        {"requote_redirect_url": False},
        {"trust_env": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_settings_of_a_borrowed_session_do_not_change_a_response(
    options: dict[str, Any],
) -> None:
    """An error status does not raise in the session, and no redirect is followed."""

    async def main() -> None:
        async with Server(answers(OK)) as elsewhere:
            moved = reply(307, headers={"Location": elsewhere.url})
            rejected = reply(400, '{"message":"No."}')
            script = answers(rejected, moved, OK)
            async with borrowed(script, **options) as (server, _, loops):
                error = await error_of_send(loops)
                assert type(error) is errors.BadRequestError, error
                assert error.message == "No."
                error = await error_of_send(loops)
                assert type(error) is errors.UnexpectedResponseError
                assert error.status == 307
                assert await error_of_send(loops) is None
                assert len(server.requests) == 3
            assert elsewhere.connections == 0

    run(main())


@pytest.mark.parametrize("script", [closes, resets], ids=["closes", "resets"])
def test_a_lost_connection_of_a_borrowed_session_is_ambiguous(script: Script) -> None:
    async def main() -> LoopsError | None:
        async with borrowed(script) as (_, _, loops):
            return await error_of_send(loops)

    error = run(main())
    assert type(error) is errors.ConnectionLostError
    assert error.maybe_accepted
    assert error.attempts == 2


def test_a_refused_connection_of_a_borrowed_session_is_certainly_not_accepted() -> None:
    async def main() -> LoopsError | None:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{free_port()}/api"
            async with client_with_two_attempts(url, session=session) as loops:
                return await error_of_send(loops)

    error = run(main())
    assert type(error) is errors.ConnectFailedError
    assert not error.maybe_accepted


def test_a_timeout_over_a_borrowed_session_is_ambiguous() -> None:
    """The client cannot see how far the session had come with the connection."""

    async def main() -> LoopsError | None:
        async with borrowed(hangs, timeout=aiohttp.ClientTimeout()) as (_, _, loops):
            return await error_of_send(loops, timeout=0.3)

    error = run(main())
    assert type(error) is errors.RequestTimeoutError
    assert error.maybe_accepted


@pytest.mark.parametrize("limits", [{"limit": 2}, {"limit_per_host": 2}], ids=str)
def test_the_limits_of_a_borrowed_connector_are_respected(
    limits: dict[str, Any],
) -> None:
    """Requests wait in the client; in the pool of the session timeouts would run."""
    in_flight = most = 0

    async def script(connection: Connection) -> None:
        nonlocal in_flight, most
        while await connection.request() is not None:
            in_flight += 1
            most = max(most, in_flight)
            await asyncio.sleep(0.01)
            in_flight -= 1
            await connection.send(OK)

    async def main() -> int:
        connector = aiohttp.TCPConnector(**limits)
        async with borrowed(script, connector=connector) as (server, _, loops):
            sends = [error_of_send(loops) for _ in range(10)]
            assert await asyncio.gather(*sends) == [None] * 10
            return server.connections

    assert run(main()) == 2
    assert most == 2


def test_a_borrowed_connector_without_limits_gets_the_limit_of_the_client() -> None:
    async def main() -> tuple[int, int]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            borrowing = AiohttpTransport(session, max_connections=7)
            owning = AiohttpTransport(max_connections=3)
            await owning.open()
            await owning.close(0.0)
            return borrowing.max_connections, owning.max_connections

    assert run(main()) == (7, 3)


def test_a_closed_session_is_a_configuration_error() -> None:
    async def main() -> LoopsError | None:
        session = aiohttp.ClientSession()
        await session.close()
        return await error_of_send(
            client_with_two_attempts("http://127.0.0.1:1/api", session=session)
        )

    error = run(main())
    assert type(error) is errors.ConfigurationError
    assert "closed" in str(error)
    assert error.attempts == 0


def test_a_session_closed_between_two_sends_is_a_configuration_error() -> None:
    """The client makes no attempt."""

    async def main() -> LoopsError | None:
        async with Server(answers(OK)) as server:
            async with aiohttp.ClientSession() as session:
                loops = client_with_two_attempts(server.url, session=session)
                assert await error_of_send(loops) is None
            error = await error_of_send(loops)
            await loops.aclose()
            assert len(server.requests) == 1
            return error

    error = run(main())
    assert type(error) is errors.ConfigurationError
    assert "session is closed" in str(error)
    assert error.attempts == 0
    assert not error.maybe_accepted


def test_a_request_in_flight_when_its_session_is_closed_is_a_lost_connection() -> None:
    """The further attempt finds no session, and the outcome stays unknown."""
    attempts: list[Attempt] = []

    async def main() -> LoopsError:
        async with Server(hangs) as server, aiohttp.ClientSession() as session:
            loops = client_with_two_attempts(
                server.url, session=session, on_attempt=attempts.append
            )
            send = asyncio.create_task(error_of_send(loops))
            await server.arrived()
            await session.close()
            error = await send
            await loops.aclose()
            assert error is not None
            return error

    error = run(main())
    lost, refused = attempts
    assert type(lost.error) is errors.ConnectionLostError
    assert type(refused.error) is errors.ConnectFailedError
    assert type(error) is errors.ConnectFailedError
    assert error.attempts == 2
    assert error.maybe_accepted


def test_exchanges_over_a_session_that_is_closed_in_flight_and_before() -> None:
    async def main() -> list[Any]:
        async with Server(hangs) as server, aiohttp.ClientSession() as session:
            transport = AiohttpTransport(session, max_connections=1)
            request = make_request(url=f"{server.url}/v1/events/send")
            exchange = asyncio.create_task(
                transport.exchange(request, Secret(KEY), None)
            )
            await server.arrived()
            await session.close()
            results = [await exchange]
            results.append(await transport.exchange(request, Secret(KEY), None))
            return results

    lost, refused = run(main())
    assert type(lost) is errors.ConnectionLostError
    assert (lost.retryable, lost.maybe_accepted) == (True, True)
    assert type(refused) is errors.ConnectFailedError
    assert (refused.retryable, refused.maybe_accepted) == (True, False)


def test_a_closed_client_does_not_warn_while_its_borrowed_session_is_open() -> None:
    async def main() -> None:
        async with Server(answers(OK)) as server, aiohttp.ClientSession() as session:
            loops = client_with_two_attempts(server.url, session=session)
            assert await error_of_send(loops) is None
            await loops.aclose()
            del loops  # a warning would fail the test
            gc.collect()
            assert not session.closed

    run(main())


def test_an_open_client_of_a_borrowed_session_warns() -> None:
    async def main() -> None:
        async with Server(answers(OK)) as server, aiohttp.ClientSession() as session:
            loops = client_with_two_attempts(server.url, session=session)
            assert await error_of_send(loops) is None
            with pytest.warns(ResourceWarning, match="unclosed AsyncLoopsClient"):
                del loops

    run(main())


def test_a_session_used_in_another_loop_is_a_configuration_error() -> None:
    async def first() -> tuple[AsyncLoopsClient, aiohttp.ClientSession]:
        async with Server(answers(OK)) as server:
            session = aiohttp.ClientSession()
            loops = client_with_two_attempts(server.url, session=session)
            assert await error_of_send(loops) is None
            return loops, session

    with asyncio.Runner() as one, asyncio.Runner() as other:
        loops, session = one.run(first())
        error = other.run(error_of_send(loops))
        one.run(session.close())
    assert type(error) is errors.ConfigurationError
    assert "event loop" in str(error)


def test_a_session_made_in_another_loop_fails_with_an_error_of_this_library() -> None:
    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def second(session: aiohttp.ClientSession) -> LoopsError | None:
        async with Server(answers(OK)) as server:
            loops = client_with_two_attempts(server.url, session=session)
            return await error_of_send(loops, deadline=5)

    with asyncio.Runner() as one, asyncio.Runner() as other:
        session = one.run(make())
        error = other.run(second(session))
        one.run(session.close())
    assert isinstance(error, LoopsError)
