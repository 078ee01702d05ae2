"""The transport, the only module that uses aiohttp's client.

A transport belongs to one event loop, whose shutdown closes it. Every connection
failure becomes one of this package's errors, which is returned and not raised: foreign
exceptions are neither chained nor left as context, because their frames hold the
Authorization header.
"""

import asyncio
import math
import os
import ssl
import threading
import time
import weakref
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import aiohttp
from multidict import istr

from loops_async._version import __version__
from loops_async.errors import (
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    LoopsError,
    RequestTimeoutError,
)

from .api_key import Secret
from .protocol import Response
from .request import MAX_BODY, Request

CONNECT_TIMEOUT: Final = 10.0  # seconds

# AiohttpTransport._watch limits the whole request. `total` would cost more and would
# round timeouts above 5 s up to whole seconds, as `connect` does without the threshold.
# _Connector limits connecting, at no cost for requests on kept-alive connections.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None)
_BORROWED_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=None, connect=CONNECT_TIMEOUT, ceil_threshold=math.inf
)

_Connection: TypeAlias = Literal["none", "new", "used", "unknown"]

_AUTHORIZATION: Final = istr("Authorization")
_IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")
_HEADERS: Final[dict[str, str]] = {
    istr("Accept"): "application/json",
    istr("Accept-Encoding"): "identity",  # a decompressed body could not be capped
    istr("Content-Type"): "application/json",
    istr("User-Agent"): f"loops-async/{__version__} aiohttp/{aiohttp.__version__}",
}


class AiohttpTransport:
    """The connections of one client in the running event loop.

    Args:
        session: A session to borrow, which is never closed; aiohttp then repeats a lost
            GET by itself. None makes a session that the shutdown of the event loop
            closes.
        max_connections: The greatest number of requests in flight; a borrowed session
            may allow fewer.
        usual_timeout: The timeout of most requests in seconds; None means no limit.
        ssl_context: The TLS settings; None means the default, which verifies.
        proxy: The URL of an HTTP proxy, or None.
        connect_timeout: Seconds to connect.

    Raises:
        ConfigurationError: If the borrowed session is closed or belongs to another
            event loop.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession | None = None,
        *,
        max_connections: int,
        usual_timeout: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.closed = False
        self.borrowed = session
        self._connector: _Connector | None = None
        self._closer: AsyncGenerator[None] | None = None
        if session is None:
            self._connector = _Connector(
                connect_timeout,
                limit=max_connections,
                ttl_dns_cache=60,
                ssl=ssl_context or True,
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
            # Otherwise aiohttp would repeat a lost GET by itself, on the same permit;
            # aiohttp has no public switch for that.
            session._retry_connection = False  # noqa: SLF001
            self._closer = _close_at_shutdown(session, weakref.ref(self))
            # Each request carries only what differs from the session's settings, and
            # the API key, because aiohttp sends a session's headers to proxies.
            self._headers: dict[str, str] = {}
            self._options: dict[str, Any] = {"allow_redirects": False}
        else:
            if session.closed or _loop_of(session) is not self.loop:
                raise ConfigurationError(_UNUSABLE_SESSION)
            if session.connector is not None:
                limits = (session.connector.limit, session.connector.limit_per_host)
                max_connections = min([max_connections, *filter(None, limits)])
            self._headers = _HEADERS
            self._options = {
                "allow_redirects": False,
                "auto_decompress": False,
                "proxy": proxy,
                "raise_for_status": False,
                "read_bufsize": MAX_BODY,
                "ssl": ssl_context or True,
                "timeout": _BORROWED_TIMEOUT,
            }
        self.max_connections = max_connections
        self._session = session
        self._api_key: Secret | None = None
        # The time at which each request in flight times out, in ascending order; inf if
        # the request has a timer of its own. One timer for all others is cheaper.
        self._in_flight: dict[asyncio.Task[Any], float] = {}
        self._usual_timeout = usual_timeout
        self._alarm: asyncio.TimerHandle | None = None
        self._cut_off: dict[asyncio.Task[Any], str] = {}
        self._drained: asyncio.Future[None] | None = None
        self._closing = asyncio.Lock()
        _open_transports.add(self)

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return len(self._in_flight)

    async def open(self) -> None:
        """Make the event loop's shutdown close the session; does not wait."""
        if self._closer is not None:
            await anext(self._closer)

    async def close(self, grace: float) -> None:
        """Let requests in flight finish, cut off those that take longer, and close.

        Args:
            grace: Seconds to wait. A request that is cut off ends as
                ConnectionLostError.
        """
        if self._in_flight:
            if self._drained is None:
                self._drained = self.loop.create_future()
            drained = self._drained
            await asyncio.wait([drained], timeout=grace)
            for task in self._in_flight:
                self._cut(task, _CLOSED)
            await asyncio.wait([drained])
        if self._closer is None:
            self.closed = True
        else:
            async with self._closing:  # a second caller also waits
                await self._closer.aclose()

    async def exchange(
        self, request: Request, api_key: Secret, timeout: float | None
    ) -> Response | LoopsError:
        """Send one request and read its response.

        Args:
            request: The request.
            api_key: The API key.
            timeout: Seconds that the exchange may take; None means no limit.

        Returns:
            The response, whatever its status, or the error that ended the request.
        """
        if api_key is not self._api_key:
            self._authorize(api_key)
        headers = self._headers
        if request.key is not None:
            headers = {**headers, _IDEMPOTENCY_KEY: request.key}
        task = asyncio.current_task(self.loop)
        assert task is not None
        cancellations = task.cancelling()
        timer = self._watch(task, timeout)
        began = time.monotonic()
        try:
            response = await self._session.request(
                request.method,
                request.url,
                data=request.body,
                headers=headers,
                **self._options,
            )
            content = response.content
            if content.is_eof():
                body = content.read_nowait()
            else:
                body = await _read(response, request.max_body)
        except (Exception, asyncio.CancelledError) as error:
            connection = self._connection_of(task)
            cut = self._cut_off.get(task)
            ours = cut is not None and task.uncancel() <= cancellations
            if isinstance(error, asyncio.CancelledError) and not ours:
                raise
            return _translated(error, connection, cut)
        finally:
            del self._in_flight[task]
            self._cut_off.pop(task, None)
            if timer is not None:
                timer.cancel()
            if self._drained is not None and not self._in_flight:
                self._drained.set_result(None)
                self._drained = None
        truncated = len(body) > request.max_body
        if truncated:
            body = body[: request.max_body]
        connector = self._connector
        reused = (
            connector is not None and connector.connections.pop(task, "used") == "used"
        )
        round_trip = time.monotonic() - began if reused else None
        return Response(response.status, response.headers, body, truncated, round_trip)

    def _authorize(self, api_key: Secret) -> None:
        """Use the API key from now on; a request in flight keeps its own headers."""
        self._api_key = api_key
        bearer = Secret(f"Bearer {api_key}")
        self._headers = {**self._headers, _AUTHORIZATION: bearer}

    def _watch(
        self, task: asyncio.Task[Any], timeout: float | None
    ) -> asyncio.TimerHandle | None:
        """Limit the task's request to the timeout; return its own timer, if any."""
        if timeout is not None and timeout == self._usual_timeout:
            self._in_flight[task] = self.loop.time() + timeout
            if self._alarm is None:
                self._set_alarm(self._in_flight[task])
            return None
        self._in_flight[task] = math.inf
        if timeout is None:
            return None
        return self.loop.call_later(timeout, self._cut, task, _TIMED_OUT)

    def _set_alarm(self, end: float) -> None:
        # The weak reference lets a dropped client be collected before the alarm.
        self._alarm = self.loop.call_at(end, _cut_overdue, weakref.ref(self))

    def cut_overdue(self) -> None:
        """End the requests that have timed out, and set the alarm for the next one."""
        self._alarm = None
        now = self.loop.time()
        for task, end in self._in_flight.items():
            if end <= now:
                self._cut(task, _TIMED_OUT)
            elif end < math.inf:
                self._set_alarm(end)
                return

    def _cut(self, task: asyncio.Task[Any], why: str) -> None:
        """End the task's request; `exchange` turns the cancellation into an error."""
        if task not in self._cut_off:
            self._cut_off[task] = why
            task.cancel()

    def _connection_of(self, task: asyncio.Task[Any]) -> _Connection:
        """Return and forget which connection the task's request used."""
        if self._connector is None:
            return "unknown"
        return self._connector.connections.pop(task, "used")


_TIMED_OUT: Final = "no response in time"
_CLOSED: Final = "the client was closed before the response came"
_UNUSABLE_SESSION: Final = (
    "session is closed, or belongs to another event loop: pass an open session of "
    "the event loop in which the client is used"
)


def _loop_of(session: aiohttp.ClientSession) -> asyncio.AbstractEventLoop | None:
    # aiohttp has no public way to get the event loop of a session.
    return session._loop  # noqa: SLF001


def _translated(
    error: BaseException, connection: _Connection, cut: str | None
) -> LoopsError:
    """Return this package's error for the exception that ended a request."""
    no_session = error.args == ("Session is closed",)
    unsent = connection == "none" or no_session
    if cut is _CLOSED:
        return ConnectionLostError(cut, maybe_accepted=not unsent)
    if cut is not None:
        text = "no connection in time" if unsent else cut
        return RequestTimeoutError(text, retryable=True, maybe_accepted=not unsent)
    text = _describe(error)
    if isinstance(error, _FINAL):
        return ConnectFailedError(text)
    if unsent or isinstance(error, _NOT_CONNECTED):
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


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(": ")


async def _read(response: aiohttp.ClientResponse, max_body: int) -> bytes:
    """Return the body, or its beginning, which is longer than `max_body`."""
    body = bytearray()
    try:
        while len(body) <= max_body and not response.content.at_eof():
            body += await response.content.readany()
    finally:
        # This frees the connection if the body was not read to its end. Otherwise the
        # connection is back in the pool, and closing changes nothing.
        response.close()
    return bytes(body)


class _Connector(aiohttp.TCPConnector):
    """A connector that records which connection the request of each task used."""

    def __init__(self, connect_timeout: float, **options: Any) -> None:
        super().__init__(**options)
        self._connect_timeout = connect_timeout
        self.connections: dict[asyncio.Task[Any] | None, _Connection] = {}

    # aiohttp calls this only if no kept-alive connection is free.
    async def _create_connection(self, *args: Any) -> Any:
        task = asyncio.current_task()
        self.connections[task] = "none"
        async with asyncio.timeout(self._connect_timeout):
            protocol = await super()._create_connection(*args)
        self.connections[task] = "new"
        return protocol


async def _close_at_shutdown(
    session: aiohttp.ClientSession, reference: "weakref.ref[AiohttpTransport]"
) -> AsyncGenerator[None]:
    """Close the session when the shutdown of the event loop closes this generator."""
    process = os.getpid()
    try:
        yield
    finally:
        transport = reference()
        if transport is not None:
            transport.closed = True
        # A forked child must not close the session: see _keep_inherited.
        if os.getpid() == process:  # pragma: no branch - no coverage in a child
            await session.close()


def _cut_overdue(reference: weakref.ref[AiohttpTransport]) -> None:
    transport = reference()
    if transport is not None:
        transport.cut_overdue()


_open_transports: weakref.WeakSet[AiohttpTransport] = weakref.WeakSet()


def _keep_inherited(inherited: list[AiohttpTransport]) -> None:
    """Keep the transports that a fork copied, as long as the child lives.

    Closing or dropping one in the child would edit the epoll set that the child
    shares with its parent, and the parent's requests would hang.
    """
    for transport in list(_open_transports):
        transport.closed = True
        inherited.append(transport)


# The interpreter keeps the hook, and with it the list, until it has dropped every
# module. Windows has neither forks nor this function.
getattr(os, "register_at_fork", dict)(after_in_child=partial(_keep_inherited, []))
