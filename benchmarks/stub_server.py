"""A stub of Loops in its own process, which responds immediately.

The stub reads just enough HTTP to accept every request on a persistent connection,
so that the benchmarks measure the client and not the server.
"""

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection

_BODY = b'{"success":true}'
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"x-ratelimit-limit: 10\r\nx-ratelimit-remaining: 9\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class _StubProtocol(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (head := self._received.find(b"\r\n\r\n")) >= 0:
            headers = self._received[:head].lower()
            _, _, rest = headers.partition(b"content-length:")
            length = int(rest.split(b"\r\n", 1)[0] or 0)
            if len(self._received) < head + 4 + length:
                return
            self._received = self._received[head + 4 + length :]
            self._transport.write(_RESPONSE)


def pin(core: int) -> None:
    """Pin this process to one core, if the system supports it."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > core:
        os.sched_setaffinity(0, {core})


def _serve(ready: Connection) -> None:
    pin(1)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_StubProtocol, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


@contextlib.contextmanager
def stub_server() -> Iterator[str]:
    """Run the stub server; the context is its base URL."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}/api"
    finally:
        process.kill()
        process.join()
