"""The floor: hand-made HTTP on kept connections, and nothing else.

What asyncio itself costs. It trusts the server blindly, so that nobody can
send events for less; nobody should send them like this, either.
"""

import asyncio
import uuid
from typing import Any
from urllib.parse import urlsplit

from loops_async._json import dumps, loads


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport
    answer: asyncio.Future[bytes]

    def data_received(self, data: bytes) -> None:
        # The stand-in writes each answer at once, so it is not in pieces.
        self.answer.set_result(data)


class Floor:
    """Sends to one address, on as many connections as are needed at once."""

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
        content = dumps(body)
        connection.answer = asyncio.get_running_loop().create_future()
        connection.transport.write(
            b"%bIdempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (self._head, str(uuid.uuid4()).encode(), len(content), content)
        )
        head, _, answer = (await connection.answer).partition(b"\r\n\r\n")
        self._idle.append(connection)
        assert head.startswith(b"HTTP/1.1 200 ")
        return loads(answer)

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
