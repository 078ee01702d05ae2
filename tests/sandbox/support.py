"""Plain calls into the API, and a raw HTTP client without any behaviour of its own."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import attrs
from multidict import CIMultiDict
from support.clients import KEY

from loops_async.sandbox import Behaviour, Sandbox
from loops_async.sandbox._api import Api
from loops_async.sandbox._team import Team
from loops_async.sandbox._windows import WindowKind, make_window
from loops_async.sandbox._wire import API, Request, Response

AUTH = {"Authorization": f"Bearer {KEY}"}
SEND = "/v1/events/send"
EMPTY: Mapping[str, str] = {}


def make_api(
    *,
    limit: int | None = None,
    window: WindowKind = "sliding",
    properties: Mapping[str, str] = EMPTY,
    **switches: Any,
) -> Api:
    behaviour = Behaviour(**switches)
    return Api(
        api_key=lambda: KEY,
        team=Team(
            lists={"l1": "One", "l2": "Two"},
            properties=dict(properties),
            behaviour=behaviour,
            events=deque(),
        ),
        window=None if limit is None else make_window(window, limit, 1.0),
        behaviour=behaviour,
    )


def make_request(
    method: str,
    path: str,
    body: object = None,
    *,
    query: Mapping[str, str] = EMPTY,
    **headers: str | None,
) -> Request:
    """Make a request with the API key; headers are named like ``content_type``."""
    sent = {"authorization": f"Bearer {KEY}", **headers}
    return Request(
        method=method,
        target=f"{API}{path}",
        path=f"{API}{path}",
        query=query,
        headers=CIMultiDict(
            (name.replace("_", "-"), value)
            for name, value in sent.items()
            if value is not None
        ),
        body=body if isinstance(body, bytes) else json.dumps(body).encode(),
    )


def send(
    api: Api, body: object, *, now: float = 0.0, **headers: str | None
) -> Response:
    return api.handle(make_request("POST", SEND, body, **headers), now)


def event(name: str = "signup", **fields: Any) -> dict[str, Any]:
    return {"eventName": name, "email": "ada@example.com", **fields}


def outcome(response: Response) -> tuple[int, str | None]:
    return response.status, response.json().get("message")


@attrs.frozen
class Received:
    """One response as read from the socket."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@attrs.define
class Connection:
    """One keep-alive connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, sandbox: Sandbox) -> "Connection":
        host, _, port = sandbox.url.split("/")[2].rpartition(":")
        return cls(*await asyncio.open_connection(host.strip("[]"), int(port)))

    async def write(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] = AUTH,
    ) -> None:
        data = body if isinstance(body, bytes) else b""
        if body is not None and not data:
            data = json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: sandbox"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(data)}", "", ""]
        self.writer.write("\r\n".join(lines).encode() + data)
        await self.writer.drain()

    async def read(self, *, head: bool = False) -> Received:
        start, _, rest = (await self.reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        headers = {}
        for line in rest.decode().splitlines():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        size = 0 if head else int(headers.get("content-length", 0))
        body = await self.reader.readexactly(size)
        return Received(int(start.split()[1]), headers, body)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def fetch(
    sandbox: Sandbox,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] = AUTH,
) -> Received:
    """Make a request on a new connection; the path begins after the port."""
    connection = await Connection.open(sandbox)
    try:
        await connection.write(method, path, body, headers)
        return await connection.read(head=method == "HEAD")
    finally:
        await connection.close()


async def send_to(sandbox: Sandbox, body: object, key: str | None = None) -> Received:
    headers = AUTH if key is None else {**AUTH, "Idempotency-Key": key}
    return await fetch(sandbox, "POST", f"/api{SEND}", body, headers)
