"""Requests through a proxy, over real sockets."""

import asyncio
import base64
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import make_certificate, server_context, trusting_context
from support.clients import KEY, client_with_two_attempts
from support.http_server import (
    OK,
    Connection,
    Script,
    Server,
    answers,
    free_port,
    reply,
)
from support.sends import error_of_send
from support.waiting import run
from yarl import URL

from loops_async import LoopsError, errors

BEARER = f"Bearer {KEY}"


@contextlib.contextmanager
def proxy_variables(
    monkeypatch: pytest.MonkeyPatch, **variables: str
) -> Iterator[None]:
    """Set these variables and remove all other proxies from the environment."""
    with monkeypatch.context() as patch:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def forward_to(upstream: Server) -> Script:
    """Act as a proxy to this server, for plain requests and for CONNECT."""
    port = upstream.port

    async def script(connection: Connection) -> None:
        request = await connection.request()
        assert request is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            if request.method == "CONNECT":
                await connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = URL(request.target).raw_path_qs
                head = [f"{request.method} {path} HTTP/1.1"]
                head += [f"{name}: {text}" for name, text in request.headers.items()]
                writer.write("\r\n".join([*head, "", ""]).encode() + request.body)
            await asyncio.gather(
                copy(connection.reader, writer), copy(reader, connection.writer)
            )
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    return script


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()


@pytest.mark.parametrize("source", ["environment", "argument"])
def test_a_plain_http_request_is_sent_to_the_proxy_with_its_full_url(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client does not resolve the name loops.test itself."""

    async def main() -> None:
        async with (
            Server(answers(OK)) as upstream,
            Server(forward_to(upstream)) as proxy,
        ):
            address = f"http://user:pass%40word@127.0.0.1:{proxy.port}"
            variables = {"HTTP_PROXY": address} if source == "environment" else {}
            settings = {} if variables else {"proxy": address}
            with proxy_variables(monkeypatch, **variables):
                loops = client_with_two_attempts(
                    "http://loops.test:8080/api", **settings
                )
            async with loops:
                assert await error_of_send(loops) is None
            (request,) = proxy.requests
            assert request.target == "http://loops.test:8080/api/v1/events/send"
            basic = base64.b64encode(b"user:pass@word").decode()
            assert request.headers["proxy-authorization"] == f"Basic {basic}"
            (arrived,) = upstream.requests
            assert arrived.headers["host"] == "loops.test:8080"
            assert arrived.headers["authorization"] == BEARER

    run(main())


def test_a_client_reads_the_proxy_from_the_environment_at_construction_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with Server(answers(OK)) as proxy:
            with proxy_variables(
                monkeypatch, HTTP_PROXY=f"http://127.0.0.1:{proxy.port}"
            ):
                loops = client_with_two_attempts("http://loops.test/api")
            with proxy_variables(
                monkeypatch, HTTP_PROXY=f"http://127.0.0.1:{free_port()}"
            ):
                async with loops:
                    assert await error_of_send(loops) is None
            assert len(proxy.requests) == 1

    run(main())


def test_a_proxy_that_refuses_connections_is_certainly_not_accepted() -> None:
    async def main() -> LoopsError | None:
        proxy = f"http://127.0.0.1:{free_port()}"
        async with client_with_two_attempts(
            "http://loops.test/api", proxy=proxy
        ) as loops:
            return await error_of_send(loops)

    error = run(main())
    assert type(error) is errors.ConnectFailedError
    assert "ClientProxyConnectionError" in str(error)
    assert not error.maybe_accepted
    assert error.attempts == 2


def test_a_407_of_a_proxy_for_plain_http_is_final() -> None:
    async def main() -> LoopsError | None:
        async with Server(answers(reply(407, b"", kind="text/html"))) as server:
            proxy = f"http://127.0.0.1:{server.port}"
            async with client_with_two_attempts(
                "http://loops.test/api", proxy=proxy
            ) as loops:
                return await error_of_send(loops)

    error = run(main())
    assert type(error) is errors.UnexpectedResponseError
    assert error.status == 407
    assert error.attempts == 1


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_refused_tunnel_is_certainly_not_accepted_and_sees_no_api_key(
    status: int,
) -> None:
    """CONNECT contains the host and the port only."""

    async def main() -> tuple[LoopsError | None, Server]:
        async with Server(answers(reply(status, b""))) as server:
            proxy = f"http://127.0.0.1:{server.port}"
            async with client_with_two_attempts(
                "https://loops.test/api", proxy=proxy
            ) as loops:
                return await error_of_send(loops), server

    error, server = run(main())
    assert type(error) is errors.ConnectFailedError
    assert f"ClientHttpProxyError: {status}" in str(error)
    assert not error.maybe_accepted
    assert error.attempts == 2
    assert {request.method for request in server.requests} == {"CONNECT"}
    assert {request.target for request in server.requests} == {"loops.test:443"}
    assert KEY not in str(server.requests)


@pytest.mark.parametrize("credentials", ["", "user:pass%40word@"])
def test_an_https_request_goes_through_a_tunnel(
    credentials: str, tmp_path: Path
) -> None:
    """The proxy sees neither the API key nor the event."""
    certificate = make_certificate(tmp_path, "DNS:loops.test")

    async def main() -> None:
        async with (
            Server(answers(OK), tls=server_context(certificate)) as upstream,
            Server(forward_to(upstream)) as proxy,
        ):
            loops = client_with_two_attempts(
                "https://loops.test/api",
                proxy=f"http://{credentials}127.0.0.1:{proxy.port}",
                ssl_context=trusting_context(certificate),
            )
            async with loops:
                assert await error_of_send(loops) is None
            (request,) = proxy.requests
            assert request.method == "CONNECT"
            assert KEY not in str(request)
            basic = "Basic " + base64.b64encode(b"user:pass@word").decode()
            sent = request.headers.get("proxy-authorization")
            assert sent == (basic if credentials else None)
            (arrived,) = upstream.requests
            assert arrived.headers["authorization"] == BEARER

    run(main())
