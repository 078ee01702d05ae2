"""The socket side: HTTP in and out, the delays, and the faults."""

import asyncio
import socket
import struct
import sys
from contextlib import suppress

import attrs
from aiohttp import web

from . import _wire
from ._control import PREFIX, control
from ._wire import API, Answer, Call, failure
from ._world import World, pause

# Recorded live, 2026-08-13: the names; the values are the usual ones.
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
_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class _Listener(web.Server):
    """aiohttp's server, telling which connections are new and which have gone."""

    def __init__(self, edge: "Edge") -> None:
        super().__init__(edge.handle, access_log=None, lingering_time=0)
        self.transports: dict[web.RequestHandler, asyncio.Transport] = {}
        self._fresh: set[web.RequestHandler] = set()
        self._gone: dict[web.RequestHandler, asyncio.Future[None]] = {}

    def connection_made(
        self, handler: web.RequestHandler, transport: asyncio.Transport
    ) -> None:
        super().connection_made(handler, transport)
        self.transports[handler] = transport
        self._fresh.add(handler)
        self._gone[handler] = asyncio.get_running_loop().create_future()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        del self.transports[handler]
        self._fresh.discard(handler)
        self._gone.pop(handler).set_result(None)

    def is_first(self, handler: web.RequestHandler) -> bool:
        """Whether this is asked for the first time of that connection."""
        first = handler in self._fresh
        self._fresh.discard(handler)
        return first

    async def gone(self, handler: web.RequestHandler) -> None:
        """Wait until the connection is lost."""
        if handler in self._gone:
            await asyncio.shield(self._gone[handler])


@attrs.define(eq=False, kw_only=True)
class Edge:
    """Serves one world on one port.

    Attributes:
        world: What answers.
    """

    world: World
    _listener: _Listener = attrs.field(init=False)
    _server: asyncio.Server = attrs.field(init=False)
    _busy: set["asyncio.Task[object]"] = attrs.field(init=False, factory=set)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; raises OSError."""
        self._listener = _Listener(self)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._listener, host, port, backlog=1024
        )
        name = self._server.sockets[0].getsockname()
        return int(name[1])

    async def stop(self) -> None:
        """Drop every connection and wait for its tasks, which takes no time."""
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError):  # on Windows
            for listening in self._server.sockets:
                loop.remove_reader(listening)
        # A connection accepted just now is made over the next few ticks, unless the
        # server is closed by then: its socket would stay open.
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()
        busy = list(self._busy)
        for task in busy:
            task.cancel()
        for transport in self._listener.transports.values():
            transport.abort()
        await asyncio.gather(*busy, return_exceptions=True)
        # aiohttp lists a connection until its task is done, and tells nobody then.
        while self._listener.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await self._server.wait_closed()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, in a task of its own that ``stop`` can cancel."""
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            return await self._answer(request)
        finally:
            self._busy.discard(task)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        first = self._listener.is_first(request.protocol)
        try:
            body = await _read(request)
        except web.HTTPRequestEntityTooLarge:
            refusal = failure(413, _wire.BODY_TOO_LARGE)
            self._record(request, b"", refusal, None)
            return _response(refusal)
        except (ConnectionError, web.RequestPayloadError):
            return _close(request)
        if request.path.startswith(PREFIX):
            return _response(control(self.world, request.method, request.path, body))
        delays = self.world.draw_delays(first=first)
        await pause(delays.setup + delays.before)
        answer, fault = await self.world.meet(_call(request, body), delays.processing)
        self._record(request, body, answer, fault)
        kind = (fault or "").removesuffix("-before").removesuffix("-after")
        if kind == "hang":
            await self._listener.gone(request.protocol)
        await pause(delays.after)
        if answer is not None:
            return _response(answer)
        if kind == "reset":
            return _reset(request)
        return _close(request, _FAULT_BYTES.get(kind, b""))

    def _record(
        self,
        request: web.BaseRequest,
        body: bytes,
        answer: Answer | None,
        fault: str | None,
    ) -> None:
        self.world.record(
            method=request.method,
            path=request.raw_path,
            headers=request.headers,
            body=body,
            answer=answer,
            fault=fault,
        )


async def _read(request: web.BaseRequest) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await request.read()


def _call(request: web.BaseRequest, body: bytes) -> Call:
    headers = request.headers
    path = request.path
    return Call(
        method=request.method,
        path=path.removeprefix(API) if path.startswith(f"{API}/") else "",
        query=request.query,
        authorization=headers.get("Authorization"),
        content_type=headers.get("Content-Type"),
        idempotency_key=headers.get("Idempotency-Key"),
        body=body,
    )


def _response(answer: Answer) -> web.Response:
    headers = {**_HEADERS, "Content-Type": answer.content_type, **answer.headers}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def _close(request: web.BaseRequest, last_words: bytes = b"") -> web.Response:
    if request.transport is not None:
        request.transport.write(last_words)
        request.transport.close()
    # aiohttp wants a response; on a closed connection it sends nothing.
    return web.Response()


def _reset(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        raw = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        request.transport.abort()
    return web.Response()
