"""Clients for tests, the sends that they start, and how those sends end."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeAlias

from loops_async import AsyncLoopsClient, LoopsError, Receipt, RetryPolicy

KEY = "key-0123456789abcdef"
QUICK = RetryPolicy(base=0.01, cap=0.2)
TWICE = RetryPolicy(attempts=2, base=0.01)

SendResult: TypeAlias = Receipt | BaseException


class HasURL(Protocol):
    """A server of a test: a `Server`, a `Sandbox` or a `SandboxProcess`."""

    @property
    def url(self) -> str: ...


def client_of(server: str | HasURL, **settings: Any) -> AsyncLoopsClient:
    """Make a client of a server, without a rate limit and with short retry delays.

    Args:
        server: The server or its base URL. If the server has an API key, the
            client uses that key.
        settings: Arguments of `AsyncLoopsClient`, which replace these defaults.
    """
    defaults = {
        "api_key": getattr(server, "api_key", KEY),
        "base_url": server if isinstance(server, str) else server.url,
        "rate_limit": math.inf,
        "retry": QUICK,
    }
    return AsyncLoopsClient(**{**defaults, **settings})


def client_with_two_attempts(server: Any, **settings: Any) -> AsyncLoopsClient:
    """A client of the server that repeats a failed request once."""
    return client_of(server, **{"retry": TWICE, **settings})


@asynccontextmanager
async def client_without_grace(
    server: str | HasURL, **settings: Any
) -> AsyncIterator[AsyncLoopsClient]:
    """Open a client whose sends end at once when the block is left."""
    client = client_of(server, **settings)
    try:
        yield client
    finally:
        await client.aclose(grace=0)


def start_sends(
    client: AsyncLoopsClient, count: int = 1, **options: Any
) -> list[asyncio.Task[Receipt]]:
    """Start tasks that send one event each, to different contacts."""
    return [
        asyncio.create_task(
            client.send_event("signup", email=f"u{n}@b.co", **options), name="send"
        )
        for n in range(count)
    ]


async def results_of(sends: list[asyncio.Task[Receipt]]) -> list[SendResult]:
    """Wait for all tasks; the result of a cancelled task is its CancelledError."""
    if sends:
        await asyncio.wait(sends)
    return await asyncio.gather(*sends, return_exceptions=True)


async def failure_of(send: Awaitable[Receipt]) -> LoopsError:
    """Return the error that the send raises."""
    try:
        receipt = await send
    except LoopsError as error:
        return error
    raise AssertionError(receipt)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they are done."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
