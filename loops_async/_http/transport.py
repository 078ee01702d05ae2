"""The only module that knows aiohttp's client.

One AiohttpTransport belongs to one event loop, and is closed by that loop's own
shutdown. What a connection can do to a request ends here in one of our
errors, returned and not raised: foreign exceptions are neither chained nor
left as context, for their frames hold the Authorization header.
"""

import asyncio
import math
import os
import ssl
import threading
import time
import weakref
from collections.abc import AsyncGenerator
from typing import Any, Final, Literal, TypeAlias

import aiohttp
from multidict import istr

from loops_async._http.api_key import Secret
from loops_async._version import __version__
from loops_async.errors import (
    ConnectFailedError,
    ConnectionLostError,
    RequestTimeoutError,
    TransportError,
)

from .protocol import MAX_BODY, Request, Response

CONNECT_TIMEOUT: Final = 10.0


# For the rest see AiohttpTransport._watch: `total` would cost more, and round up to
# whole seconds from 5 s on, as `connect` would without the threshold. Even so it
# costs each request something, so our own connector sees to that itself.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None)
_BORROWED_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=None, connect=CONNECT_TIMEOUT, ceil_threshold=math.inf
)

_Connection: TypeAlias = Literal["none", "new", "used", "unknown"]

_AUTHORIZATION: Final = istr("Authorization")
_IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")
_HEADERS: Final[dict[str, str]] = {
    istr("Accept"): "application/json",
    istr("Accept-Encoding"): "identity",  # what inflates cannot be capped
    istr("Content-Type"): "application/json",
    istr("User-Agent"): f"loops-async/{__version__} aiohttp/{aiohttp.__version__}",
}


class AiohttpTransport:
    """The connections of one client in one event loop, the running one.

    Args:
        session: A session to borrow: never closed, its own connector kept,
            and with it aiohttp's habit of repeating a GET that was lost.
            None makes one, which its loop's shutdown closes.
        max_connections: Of the session made; a borrowed one may allow less.
        usual_limit: Seconds that most requests may take.
        ssl_context: For TLS; None is the default one, which verifies.
        proxy: URL of an HTTP proxy, or None.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession | None = None,
        *,
        max_connections: int,
        usual_limit: float | None = None,
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
            # Or a GET whose connection broke would go out twice on one permit;
            # there is no public switch.
            session._retry_connection = False  # noqa: SLF001
            self._keeper = _close_at_shutdown(session)
            # Only what differs from the session's own goes with each request,
            # and the key: aiohttp gives the session's headers to proxies too.
            self._headers: dict[str, str] = {}
            self._options: dict[str, Any] = {"allow_redirects": False}
        else:
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
        self._secret: Secret | None = None
        # What is under way, in the order of its ends; inf where a timer of
        # its own sees to that. One timer for all the others is cheaper.
        self._under_way: dict[asyncio.Task[Any], float] = {}
        self._usual_limit = usual_limit
        self._alarm: asyncio.TimerHandle | None = None
        self._cut_off: dict[asyncio.Task[Any], str] = {}
        self._drained: asyncio.Future[None] | None = None
        self._closing = asyncio.Lock()
        self._thread = threading.get_ident()
        self._inherited = False
        _unclosed.add(self)

    @property
    def usable(self) -> bool:
        """Whether this is the transport for whoever asks.

        A thread runs one loop at a time, so if ours is running in this one
        it is the running loop. Asking asyncio costs a system call per call.
        """
        return (
            self.loop.is_running()
            and threading.get_ident() == self._thread
            and not self._inherited
            and not self._session.closed
        )

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return len(self._under_way)

    def inherit(self) -> None:
        """Keep for ever what a fork brought.

        Closing or dropping it in the child would edit the epoll set it
        shares with its parent, whose requests would then hang.
        """
        self._inherited = True
        _inherited.append(self)

    async def open(self) -> None:
        """Tie the session to its loop's shutdown; does not wait."""
        if self._keeper is not None:
            await anext(self._keeper)

    async def close(self, grace: float) -> None:
        """Wait for what is under way, cut off what takes longer, and close.

        Args:
            grace: Seconds to wait. What is cut off ends as ConnectionLostError.
        """
        if self._under_way:
            if self._drained is None:
                self._drained = self.loop.create_future()
            drained = self._drained
            await asyncio.wait([drained], timeout=grace)
            for task in self._under_way:
                self._cut(task, _CLOSED)
            await asyncio.wait([drained])
        if self._keeper is not None:
            async with self._closing:  # who comes second waits, too
                await self._keeper.aclose()

    async def exchange(
        self, call: Request, secret: Secret, limit: float | None
    ) -> Response | TransportError:
        """Make one request and read its answer.

        Args:
            call: What to request.
            secret: The API key.
            limit: Seconds it may take; None is no end.

        Returns:
            The answer, whatever its status, or the error there was instead.
        """
        if secret is not self._secret:
            self._authorize(secret)
        headers = self._headers
        if call.key is not None:
            headers = {**headers, _IDEMPOTENCY_KEY: call.key}
        task = asyncio.current_task(self.loop)
        assert task is not None
        cancels = task.cancelling()
        timer = self._watch(task, limit)
        began = time.monotonic()
        try:
            response = await self._session.request(
                call.method,
                call.url,
                data=call.body,
                headers=headers,
                **self._options,
            )
            content = response.content
            if content.is_eof():
                body = content.read_nowait()
            else:
                body = await _read(response, call.max_body)
        except (Exception, asyncio.CancelledError) as error:
            connection = self._connection_of(task)
            cut = self._cut_off.get(task)
            ours = cut is not None and task.uncancel() <= cancels
            if isinstance(error, asyncio.CancelledError) and not ours:
                raise
            return _translated(error, connection, cut)
        finally:
            del self._under_way[task]
            self._cut_off.pop(task, None)
            if timer is not None:
                timer.cancel()
            if self._drained is not None and not self._under_way:
                self._drained.set_result(None)
                self._drained = None
        truncated = len(body) > call.max_body
        if truncated:
            body = body[: call.max_body]
        of = self._connector
        reused = of is not None and of.connections.pop(task, "used") == "used"
        round_trip = time.monotonic() - began if reused else None
        return Response(response.status, response.headers, body, truncated, round_trip)

    def _authorize(self, secret: Secret) -> None:
        """Use the key from now on; what is under way has copied the last."""
        self._secret = secret
        bearer = Secret(f"Bearer {secret}")
        self._headers = {**self._headers, _AUTHORIZATION: bearer}

    def _watch(
        self, task: asyncio.Task[Any], limit: float | None
    ) -> asyncio.TimerHandle | None:
        """See to it that the task's request ends; return a timer of its own."""
        if limit is not None and limit == self._usual_limit:
            self._under_way[task] = self.loop.time() + limit
            if self._alarm is None:
                self._set_alarm(self._under_way[task])
            return None
        self._under_way[task] = math.inf
        if limit is None:
            return None
        return self.loop.call_later(limit, self._cut, task, _TIMED_OUT)

    def _set_alarm(self, end: float) -> None:
        # Weakly, so that a client that was dropped is not kept for so long.
        self._alarm = self.loop.call_at(end, _cut_overdue, weakref.ref(self))

    def cut_overdue(self) -> None:
        """End what is over its time, and wait for the next to be."""
        self._alarm = None
        now = self.loop.time()
        for task, end in self._under_way.items():
            if end <= now:
                self._cut(task, _TIMED_OUT)
            elif end < math.inf:
                self._set_alarm(end)
                return

    def _cut(self, task: asyncio.Task[Any], why: str) -> None:
        """End the task's request; nobody outside `exchange` sees a cancellation."""
        if task not in self._cut_off:
            self._cut_off[task] = why
            task.cancel()

    def _connection_of(self, task: asyncio.Task[Any]) -> _Connection:
        """Tell, once, what connection the task's request got."""
        if self._connector is None:
            return "unknown"
        return self._connector.connections.pop(task, "used")


_TIMED_OUT: Final = "no answer in time"
_CLOSED: Final = "the client was closed before the answer came"


def _translated(
    error: BaseException, connection: _Connection, cut: str | None
) -> TransportError:
    unsent = connection == "none" or error.args == ("Session is closed",)
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
        async with asyncio.timeout(CONNECT_TIMEOUT):
            protocol = await super()._create_connection(*args)
        self.connections[task] = "new"
        return protocol


def _cut_overdue(of: weakref.ref[AiohttpTransport]) -> None:
    transport = of()
    if transport is not None:
        transport.cut_overdue()


async def _close_at_shutdown(session: aiohttp.ClientSession) -> AsyncGenerator[None]:
    """Close the session when closed itself, as a loop's shutdown does."""
    process = os.getpid()
    try:
        yield
    finally:
        # In the child of a fork it is not ours to close: see inherit().
        if os.getpid() == process:  # pragma: no branch - no coverage in a child
            await session.close()


_unclosed: weakref.WeakSet[AiohttpTransport] = weakref.WeakSet()
_inherited: list[AiohttpTransport] = []


def _inherit_all() -> None:
    for transport in list(_unclosed):
        transport.inherit()


# Windows has neither forks nor this.
getattr(os, "register_at_fork", dict)(after_in_child=_inherit_all)
