"""A server that treats requests as a test needs it, and scripts run beside it."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias

from loops_async import AsyncLoopsClient, LoopsError, testing
from loops_async._client import Receipt
from loops_async.sandbox import Sandbox

KEY = "the-key"

Treatment: TypeAlias = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]
Outcome: TypeAlias = Receipt | BaseException


class Server:
    """What reads requests and hands the rest to its treatment.

    Attributes:
        treat: Answers, or does not; may be exchanged at any time.
        arrivals: Loop time and idempotency key of each request.
        opened: How many connections there ever were.
        open: Those there are.
        under_way: How many requests are being treated.
    """

    def __init__(self, treat: Treatment) -> None:
        self.treat = treat
        self.arrivals: list[tuple[float, str]] = []
        self.opened = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.under_way = 0
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="server")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.opened += 1
        self.open.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    await self._serve_one(reader, writer)
        finally:
            self.open.discard(writer)
            writer.close()

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        headers = dict(
            line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line
        )
        await reader.readexactly(int(headers.get("content-length", 0)))
        now = asyncio.get_running_loop().time()
        self.arrivals.append((now, headers.get("idempotency-key", "")))
        self.under_way += 1
        treatment = asyncio.create_task(self.treat(writer), name="server")
        try:
            while not (await asyncio.wait({treatment}, timeout=0.01))[0]:
                if reader.at_eof() or reader.exception() is not None:
                    raise ConnectionResetError
        finally:
            self.under_way -= 1
            treatment.cancel()


def answer(
    status: int = 200,
    *headers: str,
    delay: Callable[[], float] = lambda: 0.0,
    body_delay: Callable[[], float] = lambda: 0.0,
) -> Treatment:
    """Answer with that status, after a pause, and with one before the body."""
    body = b'{"success":true}' if status < 300 else b'{"message":"no"}'
    lines = [
        f"HTTP/1.1 {status} Whatever",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    head = "\r\n".join([*lines, "", ""]).encode()

    async def treat(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay())
        between = body_delay()
        if between:
            writer.write(head)
            await asyncio.sleep(between)
            writer.write(body)
        else:
            writer.write(head + body)

    return treat


async def hang(_: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.get_running_loop().create_future()


async def drip_head(writer: asyncio.StreamWriter) -> None:
    """Answer one byte at a time and never come to the end of the headers."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        writer.write(b"a")
        await asyncio.sleep(0.02)


async def drip_body(writer: asyncio.StreamWriter) -> None:
    """Answer one byte at a time and never come to the end of the body."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    while True:
        writer.write(b" ")
        await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(
    treat: Treatment, sock: socket.socket | None = None
) -> AsyncIterator[Server]:
    """Run a server in this loop, on a bound socket if one is given."""
    server = Server(treat)
    if sock is None:
        sock = bound()
    listener = await asyncio.start_server(server.accept, sock=sock, backlog=1024)
    server.url = url_of(sock)
    try:
        yield server
    finally:
        listener.close()
        await server.stop()
        await listener.wait_closed()


def bound() -> socket.socket:
    """Return a socket that has a port and refuses connections."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{sock.getsockname()[1]}/api"


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds; the test's time limit is the way out."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.002)


async def outcomes(sends: list[asyncio.Task[Receipt]]) -> list[Outcome]:
    """Wait for all; a cancelled one shows as its CancelledError."""
    if sends:
        await asyncio.wait(sends)
    return await asyncio.gather(*sends, return_exceptions=True)


def start(
    client: AsyncLoopsClient, count: int = 1, **options: Any
) -> list[asyncio.Task[Receipt]]:
    """Start sends to different contacts; they run when the caller waits."""
    return [
        asyncio.create_task(
            client.send_event("signup", email=f"u{n}@b.co", **options), name="send"
        )
        for n in range(count)
    ]


async def failure(send: Awaitable[Receipt]) -> LoopsError:
    """Return the error it ends with."""
    try:
        receipt = await send
    except LoopsError as error:
        return error
    raise AssertionError(receipt)


@contextmanager
def sandbox_beside(**settings: Any) -> Iterator[Sandbox]:
    """Run a sandbox in a thread of its own, for other loops and processes."""
    given = {"api_key": KEY, "rate_limit": None, **settings}
    with testing.serving(Sandbox(**given)) as sandbox:
        yield sandbox


def run_script(text: str, sandbox: Sandbox, *options: str) -> tuple[int, str, str]:
    """Run a script in an interpreter of its own, pointed at the sandbox.

    Returns:
        Its exit code, what it printed, and what it complained of.
    """
    result = subprocess.run(
        [sys.executable, *options, "-c", text],
        env={**os.environ, "LOOPS_API_KEY": KEY, "LOOPS_BASE_URL": sandbox.url},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr
