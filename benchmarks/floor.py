"""A lower bound: literal HTTP on persistent connections, with asyncio alone.

This sender does not check the responses, so an application cannot use it. It shows
the cost of asyncio itself, which is a part of the cost of every client.
"""

import asyncio
import uuid
from typing import Any
from urllib.parse import urlsplit

from loops_async._json import dumps, loads


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport
    response: asyncio.Future[bytes]

    def data_received(self, data: bytes) -> None:
        # The stub server writes each response at once, so it arrives in one piece.
        self.response.set_result(data)


class Floor:
    """A sender to one address, with a connection for each concurrent request."""

    def __init__(self, api_key: str, base_url: str) -> None:
        address = urlsplit(base_url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._head = (
            f"POST {address.path}/v1/events/send HTTP/1.1\r\n"
            f"Host: {address.netloc}\r\nAuthorization: Bearer {api_key}\r\n"
            "Content-Type: application/json\r\n"
        ).encode()
        self._idle: list[_Connection] = []

    async def send(self, body: dict[str, Any]) -> Any:
        if not self._idle:
            await self._connect()
        connection = self._idle.pop()
        encoded = dumps(body)
        connection.response = asyncio.get_running_loop().create_future()
        connection.transport.write(
            b"%bIdempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (self._head, str(uuid.uuid4()).encode(), len(encoded), encoded)
        )
        head, _, content = (await connection.response).partition(b"\r\n\r\n")
        self._idle.append(connection)
        assert head.startswith(b"HTTP/1.1 200 ")
        return loads(content)

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(
            _Connection, self._host, self._port
        )
        connection.transport = transport
        self._idle.append(connection)
