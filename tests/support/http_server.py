"""Servers that do what a script tells them, and one that is not ours at all."""

import asyncio
import contextlib
import http.server
import json
import math
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import attrs

from loops_async import AsyncLoopsClient, RetryPolicy
from loops_async.sandbox import Sandbox

_T = TypeVar("_T")

KEY = "key-0123456789abcdef"
TWICE = RetryPolicy(attempts=2, base=0.01)
NO_HEADERS: Mapping[str, str] = {}


def run(main: Coroutine[Any, Any, _T], limit: float = 60.0) -> _T:
    """Run like asyncio.run; what hangs fails."""
    return asyncio.run(asyncio.wait_for(main, limit))


def client(url: str, **settings: Any) -> AsyncLoopsClient:
    """A client in a hurry, without a limiter."""
    fast = {"rate_limit": math.inf, "retry": TWICE, "timeout": 10.0, "deadline": 30.0}
    return AsyncLoopsClient(KEY, base_url=url, **{**fast, **settings})


@attrs.frozen
class Request:
    """One request as it was read from the socket.

    Attributes:
        headers: By name in lower case, in order of arrival.
        at: Loop time of its arrival; 0 where there is no loop.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    at: float = 0.0

    def json(self) -> Any:
        return json.loads(self.body)


def reply(
    status: int | str = 200,
    body: bytes | str = b'{"success":true}',
    headers: Mapping[str, str] = NO_HEADERS,
    *,
    kind: str = "application/json",
) -> bytes:
    """Return the bytes of an answer; ``status`` may be a whole status line."""
    line = status if isinstance(status, str) else f"HTTP/1.1 {status} Whatever"
    data = body.encode() if isinstance(body, str) else body
    lines = [line, f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


OK = reply()


@attrs.define(eq=False)
class Connection:
    """One accepted connection, in the hands of a script."""

    server: "Server"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> Request | None:
        """Read and note one request; None if there will be none."""
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
        """Wait until the other side hangs up."""
        while await self.reader.read(65536):
            pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with an RST."""
        raw = self.writer.get_extra_info("socket")
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Script = Callable[[Connection], Awaitable[None]]
"""What a server does with a connection; the connection closes at its end."""


@attrs.define(eq=False)
class Server:
    """Runs a script on each connection.

    Attributes:
        script: What it does.
        tls: For https.
        requests: Those read, in order of arrival.
        connections: How many were accepted.
        errors: What scripts raised other than a lost connection.
    """

    script: Script
    tls: ssl.SSLContext | None = None
    requests: list[Request] = attrs.field(init=False, factory=list)
    connections: int = attrs.field(init=False, default=0)
    errors: list[Exception] = attrs.field(init=False, factory=list)
    _server: asyncio.Server = attrs.field(init=False)
    _busy: set[asyncio.Task[Any]] = attrs.field(init=False, factory=set)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/api"

    async def arrived(self, count: int = 1) -> None:
        """Wait until so many requests have been read."""
        while len(self.requests) < count:  # noqa: ASYNC110 - of any connection
            await asyncio.sleep(0.001)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=self.tls, backlog=1024
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A connection accepted just now gets its task a few ticks later, and
        # never from a server that is closed.
        for _ in range(5):
            await asyncio.sleep(0)
        self._server.close()
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        if kind is None:
            assert self.errors == []

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            await self.script(Connection(self, reader, writer))
        except asyncio.CancelledError:
            writer.transport.abort()  # the test is over
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # told at the end of the test
            self.errors.append(error)
        finally:
            self._busy.discard(task)
            writer.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()


def answers(*replies: bytes) -> Script:
    """Answer the first request with the first, and all further with the last."""

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            count = len(connection.server.requests)
            await connection.send(replies[min(count, len(replies)) - 1])

    return script


async def hangs(connection: Connection) -> None:
    """Read, and never answer."""
    await connection.request()
    await connection.until_closed()


async def closes(connection: Connection) -> None:
    """Read one request and close without an answer."""
    await connection.request()


async def resets(connection: Connection) -> None:
    """Read one request and reset the connection."""
    await connection.request()
    connection.reset()


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


class Recorder:
    """The HTTP server of the standard library, noting what it is sent."""

    def __init__(self, status: int = 200, body: bytes = b'{"success":true}') -> None:
        self.requests: list[Request] = []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                # A repeated header must not hide behind a dict.
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

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/api"

    @property
    def request(self) -> Request:
        """The only request there was."""
        (request,) = self.requests
        return request

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


async def _serve(settings: Mapping[str, Any]) -> None:
    """Be a sandbox until standard input ends, then tell what was requested."""
    async with Sandbox(max_requests=None, **settings) as sandbox:
        _tell({"url": sandbox.url, "api_key": sandbox.api_key})
        await asyncio.to_thread(sys.stdin.read)
        requests = [
            (one.headers.get("Idempotency-Key"), one.body.decode(), one.fault)
            for one in sandbox.requests
        ]
        _tell(requests)


def _tell(value: object) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
