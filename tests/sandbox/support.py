"""Plain calls into the API, and a raw HTTP client that follows nobody's habits."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from loops_async.sandbox import Behaviour, Sandbox
from loops_async.sandbox._api import Loops
from loops_async.sandbox._team import Team
from loops_async.sandbox._windows import WindowKind, make_window
from loops_async.sandbox._wire import Answer, Call

KEY = "the-key"
AUTH = {"Authorization": f"Bearer {KEY}"}
SEND = "/v1/events/send"
BARE: Mapping[str, str] = {}


def make_loops(
    *,
    limit: int | None = None,
    window: WindowKind = "sliding",
    properties: Mapping[str, str] = BARE,
    **switches: Any,
) -> Loops:
    behaviour = Behaviour(**switches)
    return Loops(
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


def make_call(method: str, path: str, body: object = None, **fields: Any) -> Call:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"authorization": f"Bearer {KEY}", **fields}
    return Call(method=method, path=path, body=data, **fields)


def send(loops: Loops, body: object, *, now: float = 0.0, **fields: Any) -> Answer:
    return loops.handle(make_call("POST", SEND, body, **fields), now)


def event(name: str = "signup", **fields: Any) -> dict[str, Any]:
    return {"eventName": name, "email": "ada@example.com", **fields}


def outcome(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.json().get("message")


@attrs.frozen
class Reply:
    """One answer as read from the socket."""

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

    async def read(self, *, head: bool = False) -> Reply:
        start, _, rest = (await self.reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        headers = {}
        for line in rest.decode().splitlines():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        size = 0 if head else int(headers.get("content-length", 0))
        body = await self.reader.readexactly(size)
        return Reply(int(start.split()[1]), headers, body)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def until(condition: Callable[[], object]) -> None:
    """Give way until it holds; the test's time limit is the way out."""
    while not condition():  # noqa: ASYNC110 - the sandbox has no event to wait for
        await asyncio.sleep(0)


async def ask(
    sandbox: Sandbox,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] = AUTH,
) -> Reply:
    """Ask on a connection of its own; the path begins after the port."""
    connection = await Connection.open(sandbox)
    try:
        await connection.write(method, path, body, headers)
        return await connection.read(head=method == "HEAD")
    finally:
        await connection.close()


async def ask_send(sandbox: Sandbox, body: object, key: str | None = None) -> Reply:
    headers = AUTH if key is None else {**AUTH, "Idempotency-Key": key}
    return await ask(sandbox, "POST", f"/api{SEND}", body, headers)
