"""The HTTP server in front of a simulator."""

import asyncio
import socket
import struct
import sys
from contextlib import suppress

import attrs
from aiohttp import web

from ._control import PREFIX, control
from ._simulator import Outcome, Simulator, pause
from ._wire import Request, Response

# Header names as recorded from the live API on 2026-08-13; the values are the usual
# ones.
_HEADERS = {
    "Server": "cloudflare",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}
_FAULT_BYTES = {
    "close": b"",
    "garbage": b"\x15\x03\x01\x00\x02\x02\x46 this is not HTTP\r\n\r\n",
    "truncate": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        b'Content-Length: 4096\r\n\r\n{"succ'
    ),
}
# A linger time of zero makes the kernel send RST instead of FIN.
_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class _Listener(web.Server):
    """The server of aiohttp, extended to track its connections."""

    def __init__(self, edge: "Edge") -> None:
        super().__init__(edge.handle, access_log=None, lingering_time=0)
        self.transports: dict[web.RequestHandler, asyncio.Transport] = {}
        self._unused: set[web.RequestHandler] = set()
        self._closed: dict[web.RequestHandler, asyncio.Future[None]] = {}

    def connection_made(
        self, handler: web.RequestHandler, transport: asyncio.Transport
    ) -> None:
        super().connection_made(handler, transport)
        self.transports[handler] = transport
        self._unused.add(handler)
        self._closed[handler] = asyncio.get_running_loop().create_future()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        del self.transports[handler]
        self._unused.discard(handler)
        self._closed.pop(handler).set_result(None)

    def take_first(self, handler: web.RequestHandler) -> bool:
        """Return True for the first request of a connection, then False."""
        first = handler in self._unused
        self._unused.discard(handler)
        return first

    async def wait_lost(self, handler: web.RequestHandler) -> None:
        """Wait until the connection is lost."""
        if handler in self._closed:
            await asyncio.shield(self._closed[handler])


@attrs.define(eq=False, kw_only=True)
class Edge:
    """An HTTP server that serves one simulator on one port.

    Attributes:
        simulator: The simulator.
    """

    simulator: Simulator
    _listener: _Listener = attrs.field(init=False)
    _server: asyncio.Server = attrs.field(init=False)
    _tasks: set["asyncio.Task[object]"] = attrs.field(init=False, factory=set)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            OSError: If the port is not available.
        """
        self._listener = _Listener(self)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._listener, host, port, backlog=1024
        )
        address = self._server.sockets[0].getsockname()
        return int(address[1])

    async def stop(self) -> None:
        """Drop every connection and wait for its task, without any grace period."""
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError):  # on Windows
            for listening in self._server.sockets:
                loop.remove_reader(listening)
        # The event loop sets up a connection over several turns after the accept. If
        # the server closed before that, the connection's socket would stay open.
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()
        for transport in self._listener.transports.values():
            transport.abort()
        # aiohttp lists a connection until its task is done and offers nothing to await.
        # The task of a request that has just arrived may start in one of these turns.
        while self._listener.connections:
            for task in self._tasks:
                task.cancel()
            await asyncio.sleep(0)
        await self._server.wait_closed()

    async def handle(self, received: web.BaseRequest) -> web.StreamResponse:
        """Respond to one request, in a task that ``stop`` can cancel."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await self._respond(received)
        finally:
            self._tasks.discard(task)

    async def _respond(self, received: web.BaseRequest) -> web.StreamResponse:
        first = self._listener.take_first(received.protocol)
        try:
            body = await _read(received)
        except web.HTTPRequestEntityTooLarge:
            outcome = self.simulator.refuse_body(_request(received, b""))
            return await self._deliver(received, outcome)
        except (ConnectionError, web.RequestPayloadError):
            return _close(received)
        if received.path.startswith(PREFIX):
            return _response(
                control(self.simulator, received.method, received.path, body)
            )
        request = _request(received, body)
        outcome = await self.simulator.process(request, first=first)
        return await self._deliver(received, outcome)

    async def _deliver(
        self, received: web.BaseRequest, outcome: Outcome
    ) -> web.StreamResponse:
        if outcome.fault_kind == "hang":
            await self._listener.wait_lost(received.protocol)
        await pause(outcome.delay)
        if outcome.response is not None:
            return _response(outcome.response)
        if outcome.fault_kind == "reset":
            return _reset(received)
        return _close(received, _FAULT_BYTES.get(outcome.fault_kind, b""))


async def _read(received: web.BaseRequest) -> bytes:
    if received.headers.get("Expect", "").lower() == "100-continue":
        await received.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await received.read()


def _request(received: web.BaseRequest, body: bytes) -> Request:
    return Request(
        method=received.method,
        target=received.raw_path,
        path=received.path,
        query=received.query,
        headers=received.headers,
        body=body,
    )


def _response(response: Response) -> web.Response:
    headers = {**_HEADERS, "Content-Type": response.content_type, **response.headers}
    return web.Response(status=response.status, body=response.body, headers=headers)


def _close(received: web.BaseRequest, last_bytes: bytes = b"") -> web.Response:
    if received.transport is not None:
        received.transport.write(last_bytes)
        received.transport.close()
    # aiohttp requires a response; on a closed connection it sends nothing.
    return web.Response()


def _reset(received: web.BaseRequest) -> web.Response:
    if received.transport is not None:
        raw = received.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        received.transport.abort()
    return web.Response()
