"""The one seam to aiohttp: real sockets, and every exception it could raise."""

import asyncio
import base64
import contextlib
import gc
import inspect
import os
import pickle
import ssl
import subprocess
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import client_exceptions, http_exceptions
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from support.http_server import (
    KEY,
    OK,
    TWICE,
    Connection,
    Script,
    Server,
    answers,
    client,
    closes,
    free_port,
    hangs,
    reply,
    resets,
    run,
)
from yarl import URL

from loops_async import (
    AsyncLoopsClient,
    Attempt,
    LoopsError,
    RetryPolicy,
    errors,
)
from loops_async._http import transport as _transport
from loops_async._http.api_key import Secret
from loops_async._http.protocol import MAX_BODY, Request
from loops_async._http.transport import AiohttpTransport

BEARER = f"Bearer {KEY}"


def families(*roots: type[BaseException]) -> list[type[BaseException]]:
    """Return the classes with all their subclasses that aiohttp defines."""
    found: list[type[BaseException]] = []
    waiting = list(roots)
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found.append(kind)
            waiting += kind.__subclasses__()
    return sorted(
        (kind for kind in found if kind.__module__.startswith("aiohttp")),
        key=lambda kind: f"{kind.__module__}.{kind.__qualname__}",
    )


def defined_in(module: Any) -> set[type[BaseException]]:
    return {
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, BaseException)
        and value.__module__ == module.__name__
    }


AIOHTTP = families(aiohttp.ClientError, http_exceptions.HttpProcessingError)
OTHERS: list[BaseException] = [
    OSError(5, "Input/output error"),
    ConnectionResetError(104, "Connection reset by peer"),
    BrokenPipeError(),
    TimeoutError(),
    TimeoutError("timed out"),
    asyncio.IncompleteReadError(b"", 1),
    ssl.SSLError(1, "bad record mac"),
    ssl.SSLCertVerificationError(1, "self-signed"),
    RuntimeError("Session is closed"),
    RuntimeError("raised by a trace hook of the session, after the answer"),
    RecursionError(),
    ValueError("odd"),
    AssertionError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    KeyError("x"),
]

CERTAIN = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.ServerFingerprintMismatch,
)
HOPELESS = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.ServerFingerprintMismatch,
)


def made(kind: type[BaseException]) -> BaseException:
    """Make an exception as aiohttp would, its text and all."""
    url = URL("https://app.loops.so/api/v1/events/send")
    headers = CIMultiDictProxy(CIMultiDict({"Authorization": BEARER}))
    unknown = dict.fromkeys(ConnectionKey._fields)
    known = {"host": "app.loops.so", "port": 443, "is_ssl": True, "ssl": True}
    where = ConnectionKey(**{**unknown, **known})  # type: ignore[arg-type]
    request = RequestInfo(url, "POST", headers, url)
    recipes: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((where, OSError(111, "Connect call failed")), {}),
        (("/tmp/socket", where, OSError(111, "Connect call failed")), {}),
        ((request, ()), {"status": 400, "message": "Bad\nRequest", "headers": headers}),
        ((b"expected", b"got", "app.loops.so", 443), {}),
        (("some\ntext",), {}),
        ((), {"message": "some\ntext"}),
    ]
    for positional, named in recipes:
        with contextlib.suppress(TypeError, AttributeError):
            error = kind(*positional, **named)
            str(error)
            return error
    raise AssertionError(f"no recipe for {kind}")


class Raising:
    """Stands in for a session whose every request raises."""

    closed = False
    connector = None

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def request(self, *_: object, **options: Any) -> None:
        secret_local = options["headers"]
        assert secret_local
        try:
            raise KeyError(BEARER)  # what it was chained to must go too
        except KeyError as cause:
            raise self.error from cause


def call(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "method": "POST",
        "url": "http://loops.test/api/v1/events/send",
        "body": b"{}",
        "key": "k",
        "content": None,
        "timeout": None,
        "deadline": None,
    }
    return Request(**{**fields, **changes})


async def translated(error: BaseException) -> object:
    session: Any = Raising(error)
    transport = AiohttpTransport(session, max_connections=1)
    await transport.open()
    return await transport.exchange(call(), Secret(KEY), None)


def test_the_list_of_exceptions_is_all_there_are() -> None:
    """So that a new one of aiohttp's cannot be forgotten."""
    there = defined_in(client_exceptions) | defined_in(http_exceptions)
    assert there - set(AIOHTTP) == {aiohttp.WSMessageTypeError}  # for websockets
    assert len(AIOHTTP) > 30


@pytest.mark.parametrize(
    "error",
    [
        *map(made, AIOHTTP),
        *OTHERS,
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_every_exception_comes_out_as_one_of_ours(error: BaseException) -> None:
    """Bare: what it was and what it chained had the Authorization header."""
    ours = run(translated(error))
    assert isinstance(ours, errors.TransportError)
    assert ours.__cause__ is None
    assert ours.__context__ is None
    assert ours.__traceback__ is None
    assert not hasattr(ours, "__notes__")
    text = str(ours)
    assert type(error).__name__ in text
    assert "\n" not in text
    assert len(text) < 400
    assert KEY not in repr(vars(ours)) + text + repr(ours)
    assert not any(isinstance(value, BaseException) for value in vars(ours).values())
    again = pickle.loads(pickle.dumps(ours))
    assert vars(again) == vars(ours)
    certain = isinstance(error, CERTAIN) or "Session is closed" in text
    assert ours.maybe_accepted is not certain
    assert ours.retryable is not isinstance(error, HOPELESS)
    expected = errors.ConnectFailedError if certain else errors.ConnectionLostError
    assert type(ours) is expected


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt])
def test_what_is_no_exception_of_the_network_passes(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        asyncio.run(translated(kind()))


def test_a_long_text_is_cut() -> None:
    ours = run(translated(OSError("x" * 10_000)))
    assert len(str(ours)) < 400


# What may have reached the server, by real connections.


async def ends(loops: AsyncLoopsClient, **given: Any) -> LoopsError | None:
    """Send one event; return its error, or None."""
    try:
        await loops.send_event("e", email="ada@example.com", **given)
    except LoopsError as error:
        return error
    return None


def test_a_connection_that_is_not_made_in_time_left_nothing() -> None:
    """The TCP connection is there, but the TLS one never comes."""

    async def silent(connection: Connection) -> None:
        await connection.until_closed()

    async def main() -> LoopsError | None:
        async with Server(silent) as server:
            url = server.url.replace("http:", "https:")
            async with client(url, timeout=0.3) as loops:
                return await ends(loops)

    error = run(main())
    assert type(error) is errors.RequestTimeoutError
    assert "no connection in time" in str(error)
    assert error.retryable
    assert not error.maybe_accepted
    assert error.attempts == 2


def test_connecting_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of the time-out; shortened here."""
    assert _transport._BORROWED_TIMEOUT.connect == _transport.CONNECT_TIMEOUT == 10
    monkeypatch.setattr(_transport, "CONNECT_TIMEOUT", 0.3)

    async def main() -> LoopsError | None:
        async with Server(hangs) as server:
            url = server.url.replace("http:", "https:")
            async with client(url, timeout=20) as loops:
                return await ends(loops)

    error = run(main())
    assert type(error) is errors.ConnectFailedError
    assert error.retryable
    assert not error.maybe_accepted


def test_an_unsent_attempt_after_an_ambiguous_one_does_not_make_it_certain() -> None:
    async def main() -> LoopsError | None:
        async with Server(closes) as server:

            async def last(connection: Connection) -> None:
                server._server.close()
                await connection.request()

            server.script = last
            async with client(server.url) as loops:
                return await ends(loops)

    error = run(main())
    assert type(error) is errors.ConnectFailedError
    assert error.maybe_accepted


def attempts_of(script: Script, sends: int, **settings: Any) -> list[Attempt]:
    """Send one event after the other; return what on_attempt was told."""
    told: list[Attempt] = []

    async def main() -> None:
        async with Server(script) as server:
            settings.setdefault("retry", RetryPolicy(attempts=3, base=0.2))
            async with client(server.url, on_attempt=told.append, **settings) as loops:
                for _ in range(sends):
                    await ends(loops)

    run(main())
    return told


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_kept_connection_that_had_gone_stale_is_retried_at_once(ending: str) -> None:
    """The server took the second request of the connection and hung up on it."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        if len(connection.server.requests) == 1:
            await connection.request()
            getattr(connection, ending)()
            return
        await connection.request()

    first, lost, again = attempts_of(script, 2)
    assert first.status == again.status == 200
    assert type(lost.error) is errors.ConnectionLostError
    assert lost.retry_in == 0.0
    assert again.number == 2


def test_a_connection_closed_while_idle_costs_no_attempt() -> None:
    """It is known to be closed before the next request is written."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)

    told: list[Attempt] = []

    async def main() -> None:
        async with Server(script) as server:
            async with client(server.url, on_attempt=told.append) as loops:
                await ends(loops)
                await asyncio.sleep(0.2)
                await ends(loops)
            assert server.connections == 2

    run(main())
    assert [one.error for one in told] == [None, None]


def test_only_the_first_lost_connection_is_retried_at_once() -> None:
    first, second, third = attempts_of(closes, 1)
    assert first.retry_in == 0.0
    assert second.retry_in is not None
    assert second.retry_in > 0.0
    assert third.retry_in is None


def test_connections_are_kept_and_shared() -> None:
    async def main() -> int:
        async with Server(answers(OK)) as server, client(server.url) as loops:
            for _ in range(20):
                assert await ends(loops) is None
            return server.connections

    assert run(main()) == 1


def test_round_trips_are_known_of_used_connections_only() -> None:
    """The set-up of a new one would count in."""

    async def main() -> list[float | None]:
        async with Server(answers(OK)) as server:
            transport = AiohttpTransport(max_connections=1)
            await transport.open()
            made = call(url=f"{server.url}/v1/events/send")
            found = []
            for _ in range(3):
                answer = await transport.exchange(made, Secret(KEY), None)
                assert not isinstance(answer, LoopsError)
                found.append(answer.round_trip)
            await transport.close(1.0)
            return found

    first, *others = run(main())
    assert first is None
    assert all(other is not None and 0 < other < 30 for other in others)


@pytest.mark.parametrize("size", [0, 1, MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, 10**6])
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "in pieces"])
def test_of_a_body_64_kib_are_kept(size: int, *, whole: bool) -> None:
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
        async with Server(script) as server, client(server.url) as loops:
            await ends(loops)
            return await ends(loops), server.connections

    error, connections = run(main())
    assert isinstance(error, errors.BadRequestError)
    assert error.body == body[:MAX_BODY]
    if size > 4 * MAX_BODY:
        assert connections == 2, "read to its end"
    if size < MAX_BODY // 2:
        assert connections == 1, "not kept"


# Proxies.


@contextlib.contextmanager
def only(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Iterator[None]:
    """Let the environment name these proxies and no others."""
    with monkeypatch.context() as patch:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def forward_to(upstream: Server) -> Script:
    """Be a proxy: forward what is in full, tunnel what is asked by CONNECT."""
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
                pump(connection.reader, writer), pump(reader, connection.writer)
            )
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    return script


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()


@pytest.mark.parametrize("told", ["environment", "argument"])
def test_plain_http_goes_through_a_proxy_in_full(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy finds the host; nothing here knows loops.test."""

    async def main() -> None:
        async with (
            Server(answers(OK)) as upstream,
            Server(forward_to(upstream)) as proxy,
        ):
            address = f"http://user:pass%40word@127.0.0.1:{proxy.port}"
            variables = {"HTTP_PROXY": address} if told == "environment" else {}
            settings = {} if variables else {"proxy": address}
            with only(monkeypatch, **variables):
                loops = client("http://loops.test:8080/api", **settings)
            async with loops:
                assert await ends(loops) is None
            (request,) = proxy.requests
            assert request.target == "http://loops.test:8080/api/v1/events/send"
            basic = base64.b64encode(b"user:pass@word").decode()
            assert request.headers["proxy-authorization"] == f"Basic {basic}"
            (arrived,) = upstream.requests
            assert arrived.headers["host"] == "loops.test:8080"
            assert arrived.headers["authorization"] == BEARER

    run(main())


def test_the_proxy_is_read_from_the_environment_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At construction: what comes later changes nothing."""

    async def main() -> None:
        async with Server(answers(OK)) as proxy:
            with only(monkeypatch, HTTP_PROXY=f"http://127.0.0.1:{proxy.port}"):
                loops = client("http://loops.test/api")
            with only(monkeypatch, HTTP_PROXY=f"http://127.0.0.1:{free_port()}"):
                async with loops:
                    assert await ends(loops) is None
            assert len(proxy.requests) == 1

    run(main())


def test_a_proxy_that_refuses_connections_left_nothing() -> None:
    async def main() -> LoopsError | None:
        proxy = f"http://127.0.0.1:{free_port()}"
        async with client("http://loops.test/api", proxy=proxy) as loops:
            return await ends(loops)

    error = run(main())
    assert type(error) is errors.ConnectFailedError
    assert "ClientProxyConnectionError" in str(error)
    assert not error.maybe_accepted
    assert error.attempts == 2


def test_a_proxy_that_wants_a_password_is_an_answer() -> None:
    """For plain HTTP the 407 comes like any status, and is final."""

    async def main() -> LoopsError | None:
        async with Server(answers(reply(407, b"", kind="text/html"))) as server:
            proxy = f"http://127.0.0.1:{server.port}"
            async with client("http://loops.test/api", proxy=proxy) as loops:
                return await ends(loops)

    error = run(main())
    assert type(error) is errors.UnexpectedResponseError
    assert error.status == 407
    assert error.attempts == 1


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_refused_tunnel_left_nothing_and_showed_nothing(status: int) -> None:
    """CONNECT names the host and the port; the key stays here."""

    async def main() -> tuple[LoopsError | None, Server]:
        async with Server(answers(reply(status, b""))) as server:
            proxy = f"http://127.0.0.1:{server.port}"
            async with client("https://loops.test/api", proxy=proxy) as loops:
                return await ends(loops), server

    error, server = run(main())
    assert type(error) is errors.ConnectFailedError
    assert f"ClientHttpProxyError: {status}" in str(error)
    assert not error.maybe_accepted
    assert error.attempts == 2
    assert {one.method for one in server.requests} == {"CONNECT"}
    assert {one.target for one in server.requests} == {"loops.test:443"}
    assert KEY not in str(server.requests)


@pytest.mark.parametrize("who", ["", "user:pass%40word@"])
def test_https_goes_through_a_tunnel(who: str, tmp_path: Path) -> None:
    """The proxy sees neither the key nor the event."""
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate)),
            *("-subj", "/CN=loops.test", "-addext", "subjectAltName=DNS:loops.test"),
        ],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def main() -> None:
        async with (
            Server(answers(OK), tls=tls) as upstream,
            Server(forward_to(upstream)) as proxy,
        ):
            loops = client(
                "https://loops.test/api",
                proxy=f"http://{who}127.0.0.1:{proxy.port}",
                ssl_context=trusting,
            )
            async with loops:
                assert await ends(loops) is None
            (request,) = proxy.requests
            assert request.method == "CONNECT"
            assert KEY not in str(request)
            basic = "Basic " + base64.b64encode(b"user:pass@word").decode()
            given = request.headers.get("proxy-authorization")
            assert given == (basic if who else None)
            (arrived,) = upstream.requests
            assert arrived.headers["authorization"] == BEARER

    run(main())


# A borrowed session.


@contextlib.asynccontextmanager
async def borrowed(
    script: Script, *, retry: RetryPolicy = TWICE, **options: Any
) -> AsyncIterator[tuple[Server, aiohttp.ClientSession, AsyncLoopsClient]]:
    async with Server(script) as server, aiohttp.ClientSession(**options) as session:
        loops = client(server.url, session=session, retry=retry)
        yield server, session, loops
        await loops.aclose()
        assert not session.closed


def test_a_borrowed_session_is_never_closed_and_the_key_goes_with_each_request() -> (
    None
):
    """Its own headers stay, ours go on top, and it keeps nothing of ours."""

    async def main() -> None:
        theirs = {"X-Theirs": "1", "Authorization": "Basic dGhlaXJz"}
        async with borrowed(answers(OK), headers=theirs) as (server, session, loops):
            assert await ends(loops) is None
            async with loops:
                assert await ends(loops) is None
            assert dict(session.headers) == theirs
            async with session.get(server.url) as response:
                assert response.status == 200
            first, _, third = server.requests
            assert first.headers["authorization"] == BEARER
            assert first.headers["x-theirs"] == "1"
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
        {"cookies": {"theirs": "1"}},
        {"read_bufsize": 16},
        {"requote_redirect_url": False},
        {"trust_env": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_defaults_of_a_borrowed_session_do_not_matter(
    options: dict[str, Any],
) -> None:
    """An answer is an answer, and a redirect is not followed."""

    async def main() -> None:
        async with Server(answers(OK)) as elsewhere:
            moved = reply(307, headers={"Location": elsewhere.url})
            refused = reply(400, '{"message":"No."}')
            script = answers(refused, moved, OK)
            async with borrowed(script, **options) as (server, _, loops):
                error = await ends(loops)
                assert type(error) is errors.BadRequestError, error
                assert error.message == "No."
                error = await ends(loops)
                assert type(error) is errors.UnexpectedResponseError
                assert error.status == 307
                assert await ends(loops) is None
                assert len(server.requests) == 3
            assert elsewhere.connections == 0

    run(main())


@pytest.mark.parametrize("script", [closes, resets], ids=["closes", "resets"])
def test_over_a_borrowed_session_a_lost_connection_is_ambiguous(script: Script) -> None:
    async def main() -> LoopsError | None:
        async with borrowed(script) as (_, _, loops):
            return await ends(loops)

    error = run(main())
    assert type(error) is errors.ConnectionLostError
    assert error.maybe_accepted
    assert error.attempts == 2


def test_over_a_borrowed_session_a_refused_connection_is_certain() -> None:
    async def main() -> LoopsError | None:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{free_port()}/api"
            async with client(url, session=session) as loops:
                return await ends(loops)

    error = run(main())
    assert type(error) is errors.ConnectFailedError
    assert not error.maybe_accepted


def test_over_a_borrowed_session_a_time_out_is_ambiguous() -> None:
    """Nobody can see from outside how far its connection had come."""

    async def main() -> LoopsError | None:
        async with borrowed(hangs, timeout=aiohttp.ClientTimeout()) as (_, _, loops):
            return await ends(loops, timeout=0.3)

    error = run(main())
    assert type(error) is errors.RequestTimeoutError
    assert error.maybe_accepted


@pytest.mark.parametrize("limits", [{"limit": 2}, {"limit_per_host": 2}], ids=str)
def test_the_limits_of_a_borrowed_connector_are_kept(limits: dict[str, Any]) -> None:
    """Who waits, waits with us: in its pool the time-out would run."""
    under_way = most = 0

    async def script(connection: Connection) -> None:
        nonlocal under_way, most
        while await connection.request() is not None:
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            under_way -= 1
            await connection.send(OK)

    async def main() -> int:
        connector = aiohttp.TCPConnector(**limits)
        async with borrowed(script, connector=connector) as (server, _, loops):
            sends = [ends(loops) for _ in range(10)]
            assert await asyncio.gather(*sends) == [None] * 10
            return server.connections

    assert run(main()) == 2
    assert most == 2


def test_a_borrowed_connector_without_limits_has_ours() -> None:
    async def main() -> tuple[int, int]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            ours = AiohttpTransport(session, max_connections=7)
            fewer = AiohttpTransport(max_connections=3)
            await fewer.open()
            await fewer.close(0.0)
            return ours.max_connections, fewer.max_connections

    assert run(main()) == (7, 3)


def test_a_closed_session_is_a_configuration_error() -> None:
    async def main() -> LoopsError | None:
        session = aiohttp.ClientSession()
        await session.close()
        return await ends(client("http://127.0.0.1:1/api", session=session))

    error = run(main())
    assert type(error) is errors.ConfigurationError
    assert "closed" in str(error)
    assert error.attempts == 0


def test_a_session_closed_between_two_sends_is_a_configuration_error() -> None:
    async def main() -> LoopsError | None:
        async with Server(answers(OK)) as server:
            async with aiohttp.ClientSession() as session:
                loops = client(server.url, session=session)
                assert await ends(loops) is None
            return await ends(loops)

    error = run(main())
    assert type(error) is errors.ConfigurationError


def test_a_session_of_another_loop_is_an_error_of_ours() -> None:
    """It was used in one; then it cannot be used in the next."""

    async def first() -> tuple[AsyncLoopsClient, aiohttp.ClientSession]:
        async with Server(answers(OK)) as server:
            session = aiohttp.ClientSession()
            loops = client(server.url, session=session)
            assert await ends(loops) is None
            return loops, session

    with asyncio.Runner() as one, asyncio.Runner() as other:
        loops, session = one.run(first())
        error = other.run(ends(loops))
        one.run(session.close())
    assert type(error) is errors.ConfigurationError
    assert "event loop" in str(error)


def test_a_session_made_in_another_loop_is_an_error_of_ours() -> None:
    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def second(session: aiohttp.ClientSession) -> LoopsError | None:
        async with Server(answers(OK)) as server:
            loops = client(server.url, session=session)
            return await ends(loops, deadline=5)

    with asyncio.Runner() as one, asyncio.Runner() as other:
        session = one.run(make())
        error = other.run(second(session))
        one.run(session.close())
    assert isinstance(error, LoopsError)


# The life of a transport.


def test_the_key_is_no_header_of_the_session_until_it_is_needed() -> None:
    async def main() -> None:
        transport = AiohttpTransport(max_connections=1)
        await transport.open()
        assert "Authorization" not in transport._session.headers
        assert transport.usable
        await transport.close(0.0)
        assert not transport.usable

    run(main())


def test_a_time_out_of_its_own_and_the_usual_one_both_cut() -> None:
    """Overlapping requests: one alarm serves the usual, timers the others."""

    async def main() -> list[LoopsError | None]:
        once = RetryPolicy(attempts=1)
        async with (
            Server(hangs) as server,
            client(server.url, timeout=0.4, retry=once) as loops,
        ):
            tasks = [asyncio.create_task(ends(loops)) for _ in range(3)]
            await asyncio.sleep(0.1)
            tasks.append(asyncio.create_task(ends(loops)))
            tasks.append(asyncio.create_task(ends(loops, timeout=0.2)))
            tasks.append(asyncio.create_task(ends(loops, timeout=0.6)))
            return await asyncio.gather(*tasks)

    found = run(main())
    assert [type(error) for error in found] == [errors.RequestTimeoutError] * 6
    assert all(error is not None and error.maybe_accepted for error in found)


def test_a_request_without_any_end_waits_until_the_answer() -> None:
    """Also while the alarm of the usual ones rings."""

    async def main() -> list[LoopsError | None]:
        answer = asyncio.Event()

        async def script(connection: Connection) -> None:
            request = await connection.request()
            assert request is not None
            if b"slow" in request.body:
                await answer.wait()
                await connection.send(OK)
            await connection.until_closed()

        once = RetryPolicy(attempts=1)
        async with (
            Server(script) as server,
            client(server.url, timeout=0.2, retry=once) as loops,
        ):
            given: Any = {"timeout": None, "deadline": None}
            slow = asyncio.create_task(ends(loops, user_id="slow", **given))
            await server.arrived()
            usual = await ends(loops)
            answer.set()
            return [usual, await slow]

    usual, slow = run(main())
    assert type(usual) is errors.RequestTimeoutError
    assert slow is None


def test_a_send_cancelled_from_outside_is_cancelled() -> None:
    """And its connection is not used again."""

    async def main() -> None:
        async with Server(hangs) as server, client(server.url) as loops:
            task = asyncio.create_task(ends(loops))
            await server.arrived()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            server.script = answers(OK)
            assert await ends(loops) is None
            assert server.connections == 2

    run(main())


def test_a_cancellation_that_meets_a_time_out_is_not_lost() -> None:
    """Both in one tick of the loop: the task must end cancelled."""

    async def main() -> None:
        async with Server(hangs) as server, client(server.url) as loops:
            task = asyncio.create_task(ends(loops))
            await server.arrived()
            assert loops._latest is not None
            transport = loops._latest.transport
            (inner,) = transport._under_way
            transport._cut(inner, _transport._TIMED_OUT)
            transport._cut(inner, _transport._TIMED_OUT)  # once is enough
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_after_a_fork_a_transport_is_kept_and_not_used() -> None:
    """As in the child of one; for real ones see test_fork."""

    async def main() -> None:
        async with Server(answers(OK)) as server, client(server.url) as loops:
            assert await ends(loops) is None
            assert loops._latest is not None
            parents = loops._latest.transport
            _transport._inherit_all()
            try:
                assert parents in _transport._inherited
                assert not parents.usable
                assert await ends(loops) is None
                assert loops._latest.transport is not parents
                assert server.connections == 2
            finally:
                _transport._inherited.clear()
                parents._inherited = False
                await parents.close(0.0)

    run(main())


def test_a_loop_that_ends_in_a_child_closes_nothing_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shutdown of the child's loop reaches what the parent opened in it."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            keeper = _transport._close_at_shutdown(session)
            await anext(keeper)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 0)
                await keeper.aclose()
            assert not session.closed

    run(main())


def test_an_alarm_that_outlives_its_transport_rings_for_nobody() -> None:
    async def main() -> weakref.ref[AiohttpTransport]:
        session: Any = SimpleNamespace(connector=None, closed=False)
        return weakref.ref(AiohttpTransport(session, max_connections=1))

    gone = run(main())
    gc.collect()
    assert gone() is None
    _transport._cut_overdue(gone)


def test_a_session_without_a_connector_is_no_reason_to_fail() -> None:
    """A closed session has none; `AsyncLoopsClient` refuses it earlier."""

    async def main() -> int:
        session: Any = SimpleNamespace(connector=None, closed=False)
        return AiohttpTransport(session, max_connections=4).max_connections

    assert run(main()) == 4
