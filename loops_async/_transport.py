"""The only module that knows aiohttp's client.

One Transport belongs to one event loop, and is closed by that loop's own
shutdown. What a connection can do to a request ends here in one of our
errors, returned and not raised: foreign exceptions are neither chained nor
left as context, for their frames hold the Authorization header.
"""

import asyncio
import math
import os
import ssl
import time
import weakref
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Final, Literal, TypeAlias

import aiohttp
from multidict import istr

from ._settings import Secret
from ._version import __version__
from ._wire import MAX_BODY, Answer, Call
from .errors import (
    ConnectFailedError,
    ConnectionLostError,
    RequestTimeoutError,
    TransportError,
)

CONNECT_TIMEOUT: Final = 10.0

# Our own scope bounds an attempt: aiohttp's `total` rounds up from 5 s on.
_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=None, connect=CONNECT_TIMEOUT, ceil_threshold=math.inf
)

Exchange: TypeAlias = tuple[Answer, float | None]
"""An answer, and the seconds it took if the connection had been used before."""

_Connection: TypeAlias = Literal["none", "new", "used", "unknown"]

_AUTHORIZATION: Final = istr("Authorization")
_IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")
_HEADERS: Final[dict[str, str]] = {
    istr("Accept"): "application/json",
    istr("Accept-Encoding"): "identity",  # what inflates cannot be capped
    istr("Content-Type"): "application/json",
    istr("User-Agent"): f"loops-async/{__version__} aiohttp/{aiohttp.__version__}",
}


class Transport:
    """The connections of one client in one event loop, the running one.

    Args:
        session: A session to borrow: never closed, its own connector kept.
            None makes one, which its loop's shutdown closes.
        max_connections: Requests under way at once; the rest waits for one
            of `slots` and so never in the pool, where it would eat time-outs.
        ssl_context: For TLS; None is the default one, which verifies.
        proxy: URL of an HTTP proxy, or None.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession | None = None,
        *,
        max_connections: int,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._connector: _Connector | None = None
        self._keeper: AsyncGenerator[None] | None = None
        if session is None:
            self._connector = _Connector(
                limit=max_connections, ttl_dns_cache=60, ssl=ssl_context or True
            )
            session = aiohttp.ClientSession(
                connector=self._connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                proxy=proxy,
                auto_decompress=False,
                read_bufsize=MAX_BODY,
                timeout=_TIMEOUT,
            )
            self._keeper = _close_at_shutdown(session)
            # Only what differs from the session's own goes with each request.
            self._headers: dict[str, str] = {}
            self._options: dict[str, Any] = {"allow_redirects": False}
        else:
            if session.connector is not None:
                limits = (session.connector.limit, session.connector.limit_per_host)
                max_connections = min(max_connections, *filter(None, limits))
            self._headers = _HEADERS
            self._options = {
                "allow_redirects": False,
                "auto_decompress": False,
                "proxy": proxy,
                "raise_for_status": False,
                "read_bufsize": MAX_BODY,
                "ssl": ssl_context or True,
                "timeout": _TIMEOUT,
            }
        self.slots = asyncio.Semaphore(max_connections)
        self._session = session
        self._under_way: set[asyncio.Timeout] = set()
        self._drained: asyncio.Future[None] | None = None
        self._cut = False
        _unclosed.add(self)

    async def open(self) -> None:
        """Tie the session to its loop's shutdown; does not wait."""
        if self._keeper is not None:
            await anext(self._keeper)

    @property
    def closed(self) -> bool:
        return self._session.closed

    async def close(self, grace: float) -> None:
        """Wait for what is under way, cut off what takes longer, and close.

        Args:
            grace: Seconds to wait. What is cut off ends as ConnectionLostError.
        """
        if self._under_way:
            if self._drained is None:
                self._drained = self.loop.create_future()
            await asyncio.wait([self._drained], timeout=grace)
            self._cut = True
            for scope in self._under_way:
                with suppress(RuntimeError):  # it is expiring by itself
                    scope.reschedule(self.loop.time())
            if self._drained is not None:
                await self._drained
        if self._keeper is not None:
            await self._keeper.aclose()

    async def exchange(
        self, call: Call, secret: Secret, until: float | None
    ) -> Exchange | TransportError:
        """Make one request and read its answer.

        Args:
            call: What to request.
            secret: The API key.
            until: Loop time at which to stop; None is never.

        Returns:
            The answer, whatever its status, or the error there was instead.
        """
        headers = {**self._headers, _AUTHORIZATION: Secret(f"Bearer {secret}")}
        if call.key is not None:
            headers[_IDEMPOTENCY_KEY] = call.key
        task = asyncio.current_task()
        assert task is not None
        scope = asyncio.timeout_at(until)
        started = time.monotonic()
        try:
            async with scope:
                self._under_way.add(scope)
                response = await self._session.request(
                    call.method,
                    call.url,
                    data=call.body,
                    headers=headers,
                    **self._options,
                )
                content = response.content
                if content.is_eof():
                    text = content.read_nowait()
                else:
                    text = await _read(response, call.max_body)
        except Exception as error:  # noqa: BLE001 - this is the one seam
            return self._translate(error, scope, self._connection_of(task))
        except BaseException:
            self._connection_of(task)
            raise
        finally:
            self._under_way.discard(scope)
            if self._drained is not None and not self._under_way:
                self._drained.set_result(None)
                self._drained = None
        reused = self._connection_of(task) == "used"
        truncated = len(text) > call.max_body
        if truncated:
            text = text[: call.max_body]
        answer = Answer(response.status, response.headers, text, truncated)
        return answer, time.monotonic() - started if reused else None

    def _connection_of(self, task: asyncio.Task[Any]) -> _Connection:
        """Tell, once, what connection the task's request got."""
        if self._connector is None:
            return "unknown"
        return self._connector.connections.pop(task, "used")

    def _translate(
        self, error: Exception, scope: asyncio.Timeout, connection: _Connection
    ) -> TransportError:
        unsent = connection == "none"
        if isinstance(error, _FINAL):
            return ConnectFailedError(_describe(error))
        if isinstance(error, _NOT_CONNECTED):
            return ConnectFailedError(_describe(error), retryable=True)
        if scope.expired() and self._cut:
            text = "the client was closed before the answer came"
            return ConnectionLostError(text, maybe_accepted=not unsent)
        if scope.expired():
            text = "no connection in time" if unsent else "no answer in time"
            return RequestTimeoutError(text, retryable=True, maybe_accepted=not unsent)
        text = _describe(error)
        if unsent:
            return ConnectFailedError(text, retryable=True)
        return ConnectionLostError(text, retryable=True, maybe_accepted=True)


_FINAL: Final = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
)
_NOT_CONNECTED: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
)


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(": ")


async def _read(response: aiohttp.ClientResponse, max_body: int) -> bytes:
    """Read the body, or a little more than allowed of it."""
    text = bytearray()
    try:
        while len(text) <= max_body and not response.content.at_eof():
            text += await response.content.readany()
    finally:
        # Frees the connection of a body that was not read to its end; after
        # the end it is back in the pool already and this changes nothing.
        response.close()
    return bytes(text)


class _Connector(aiohttp.TCPConnector):
    """Knows what connection the request of each task got."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.connections: dict[asyncio.Task[Any] | None, _Connection] = {}

    # Called only when no used connection is to be had, so it costs others nothing.
    async def _create_connection(self, *args: Any) -> Any:
        task = asyncio.current_task()
        self.connections[task] = "none"
        protocol = await super()._create_connection(*args)
        self.connections[task] = "new"
        return protocol


async def _close_at_shutdown(session: aiohttp.ClientSession) -> AsyncGenerator[None]:
    """Close the session when closed itself, as a loop's shutdown does."""
    try:
        yield
    finally:
        await session.close()


# A forked child must neither close nor drop what it inherits: either would
# edit the epoll set it shares with its parent, whose requests then hang.
_unclosed: weakref.WeakSet[Transport] = weakref.WeakSet()
_inherited: list[Transport] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _inherited.extend(_unclosed))
