"""An HTTP server that behaves as a script says, and one from the standard library."""

import asyncio
import contextlib
import http.server
import json
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Self

import attrs

from loops_async import AsyncLoopsClient, LoopsError
from support.clients import client_with_two_attempts
from support.waiting import run, until

NO_HEADERS: Mapping[str, str] = {}


# Requests and responses.


@attrs.frozen
class Request:
    """One request as it was read from the socket.

    Attributes:
        headers: By name in lower case, in order of arrival.
        at: Loop time of its arrival; 0 if no event loop is running.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    at: float = 0.0

    @property
    def key(self) -> str:
        """Its idempotency key, or an empty text."""
        return self.headers.get("idempotency-key", "")

    def json(self) -> Any:
        return json.loads(self.body)


def reply(
    status: int | str = 200,
    body: bytes | str = b'{"success":true}',
    headers: Mapping[str, str] = NO_HEADERS,
    *,
    kind: str = "application/json",
) -> bytes:
    """Return the bytes of a response; ``status`` may be a whole status line."""
    line = status if isinstance(status, str) else f"HTTP/1.1 {status} Whatever"
    data = body.encode() if isinstance(body, str) else body
    lines = [line, f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


OK = reply()


# The server.


@attrs.define(eq=False)
class Connection:
    """One accepted connection, which a script controls."""

    server: "Server"
    reader: "_Reader"
    writer: asyncio.StreamWriter

    async def request(self) -> Request | None:
        """Read and record the next request; return None if there is none."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        now = asyncio.get_running_loop().time()
        request = Request(method, target, headers, body, now)
        self.server.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> None:
        """Wait until the client closes the connection; ignore what it sends."""
        while await self.reader.read(65536):
            pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close the connection with an RST."""
        raw = self.writer.get_extra_info("socket")
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


class _Reader(asyncio.StreamReader):
    """A reader that reports the end of its connection without being read."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.ended.set()


Script = Callable[[Connection], Awaitable[None]]
"""The behaviour of a server on a connection, which closes when the script returns."""

Handler = Callable[[Connection], Coroutine[Any, Any, None]]
"""The behaviour of a server after it has read a request."""


@attrs.define(eq=False)
class Server:
    """An HTTP server in the running event loop.

    Attributes:
        script: What the server does with each connection.
        tls: The TLS context, for https.
        handler: What `each_request` does with a request; it may be replaced at
            any time.
        sock: A bound socket to listen on; None for any free port.
        requests: The requests read, in order of arrival.
        connections: The number of connections accepted.
        open: The connections that are open.
        in_flight: The number of requests that the handler has not answered.
        errors: What scripts raised, except for lost connections.
    """

    script: Script
    tls: ssl.SSLContext | None = None
    handler: Handler | None = attrs.field(default=None, kw_only=True)
    sock: socket.socket | None = attrs.field(default=None, kw_only=True)
    requests: list[Request] = attrs.field(init=False, factory=list)
    connections: int = attrs.field(init=False, default=0)
    open: set[Connection] = attrs.field(init=False, factory=set)
    in_flight: int = attrs.field(init=False, default=0)
    errors: list[Exception] = attrs.field(init=False, factory=list)
    _server: asyncio.Server = attrs.field(init=False)
    _tasks: set[asyncio.Task[Any]] = attrs.field(init=False, factory=set)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/api"

    @property
    def arrivals(self) -> list[float]:
        """Loop time of each request."""
        return [request.at for request in self.requests]

    @property
    def keys(self) -> list[str]:
        """Idempotency key of each request."""
        return [request.key for request in self.requests]

    async def arrived(self, count: int = 1) -> None:
        """Wait until the server has read that many requests."""
        await until(lambda: len(self.requests) >= count)

    async def __aenter__(self) -> Self:
        sock = self.sock or bound_socket()
        self._server = await asyncio.get_running_loop().create_server(
            self._make_protocol, sock=sock, ssl=self.tls, backlog=1024
        )
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        # The event loop starts the task of an accepted connection a few turns
        # later, and a closed server never starts it.
        for _ in range(5):
            await asyncio.sleep(0)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            assert self.errors == []

    def _make_protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(_Reader(), self._accept)

    def _accept(self, reader: Any, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = Connection(self, reader, writer)
        self.open.add(connection)
        task = asyncio.create_task(self._run_script(connection), name="server")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_script(self, connection: Connection) -> None:
        writer = connection.writer
        try:
            await self.script(connection)
        except asyncio.CancelledError:
            writer.transport.abort()  # the test is over
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # the end of the test shows it
            self.errors.append(error)
        finally:
            writer.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()
            self.open.discard(connection)


def serving(handler: Handler, sock: socket.socket | None = None) -> Server:
    """Make a server that answers each request by the handler."""
    return Server(each_request, handler=handler, sock=sock)


# Scripts.


def answers(*replies: bytes) -> Script:
    """Send one reply for each request; repeat the last reply."""

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            count = len(connection.server.requests)
            await connection.send(replies[min(count, len(replies)) - 1])

    return script


async def each_request(connection: Connection) -> None:
    """Read each request and handle it, until the client closes the connection."""
    server = connection.server
    while await connection.request() is not None:
        assert server.handler is not None
        server.in_flight += 1
        handling = asyncio.create_task(server.handler(connection), name="server")
        closing = asyncio.create_task(connection.reader.ended.wait(), name="server")
        try:
            await asyncio.wait({handling, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not handling.done():
                return
            handling.result()
        finally:
            server.in_flight -= 1
            handling.cancel()
            closing.cancel()


async def hangs(connection: Connection) -> None:
    """Read one request and never answer."""
    await connection.request()
    await connection.until_closed()


async def closes(connection: Connection) -> None:
    """Read one request and close the connection without an answer."""
    await connection.request()


async def resets(connection: Connection) -> None:
    """Read one request and reset the connection."""
    await connection.request()
    connection.reset()


# Handlers.


def respond(
    status: int = 200,
    *,
    headers: Mapping[str, str] = NO_HEADERS,
    delay: Callable[[], float] = lambda: 0.0,
    body_delay: Callable[[], float] = lambda: 0.0,
) -> Handler:
    """Send a response with this status.

    Args:
        status: The status of the response.
        headers: Further headers.
        delay: Returns the seconds of loop time before the response.
        body_delay: Returns the seconds of loop time between headers and body.
    """
    body = '{"success":true}' if status < 300 else '{"message":"no"}'
    data = reply(status, body, headers)
    head = len(data) - len(body)

    async def handler(connection: Connection) -> None:
        await asyncio.sleep(delay())
        pause = body_delay()
        if pause:
            await connection.send(data[:head])
            await asyncio.sleep(pause)
            await connection.send(data[head:])
        else:
            await connection.send(data)

    return handler


def respond_after(ready: asyncio.Event, status: int = 200) -> Handler:
    """Send a response with this status as soon as the event is set."""
    response = respond(status)

    async def handler(connection: Connection) -> None:
        await ready.wait()
        await response(connection)

    return handler


async def hang(_: Connection) -> None:
    """Never answer."""
    await asyncio.get_running_loop().create_future()


async def drip_head(connection: Connection) -> None:
    """Send headers byte by byte and never complete them."""
    await connection.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        await connection.send(b"a")
        await asyncio.sleep(0.02)


async def drip_body(connection: Connection) -> None:
    """Send a body byte by byte and never complete it."""
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    while True:
        await connection.send(b" ")
        await asyncio.sleep(0.02)


# One use of a client.


def outcome_of(
    use: Callable[[AsyncLoopsClient], Any], *replies: bytes, **settings: Any
) -> tuple[Any, Server]:
    """Use a client of a server that sends these replies.

    Args:
        use: The call to await; a failed attempt is repeated once.
        replies: As for `answers`; by default the server accepts everything.
        settings: Further settings of the client.

    Returns:
        What the call returned or raised, and the server.
    """

    async def main() -> tuple[Any, Server]:
        async with (
            Server(answers(*(replies or (OK,)))) as server,
            client_with_two_attempts(server.url, **settings) as loops,
        ):
            try:
                return await use(loops), server
            except (LoopsError, TypeError, ValueError) as error:
                return error, server

    return run(main())


def outcome_without_connection(
    use: Callable[[AsyncLoopsClient], Any], **settings: Any
) -> Any:
    """Return what the call returned or raised, and check that it did not connect."""
    outcome, server = outcome_of(use, **settings)
    assert server.connections == 0
    return outcome


# Sockets.


def bound_socket() -> socket.socket:
    """Return a socket that has a port and refuses connections."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    """Return the base URL of a server that listens on the socket."""
    return f"{scheme}://127.0.0.1:{sock.getsockname()[1]}/api"


def free_port() -> int:
    """Return a port on which no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


class Recorder:
    """The HTTP server of the standard library, which records its requests.

    It shares no code with the package or with aiohttp.
    """

    def __init__(self, status: int = 200, body: bytes = b'{"success":true}') -> None:
        self.requests: list[Request] = []
        recorder = self

        class RecordingHandler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                # A dict would hide a repeated header.
                names = [name.lower() for name in self.headers]
                assert len(names) == len(set(names))
                headers = dict(zip(names, self.headers.values(), strict=True))
                recorder.requests.append(
                    Request(self.command, self.path, headers, self.rfile.read(size))
                )
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), RecordingHandler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/api"

    @property
    def request(self) -> Request:
        """The only request of the test."""
        (request,) = self.requests
        return request

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
