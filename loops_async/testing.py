"""For the tests of what uses loops-async; with pytest there are fixtures, too.

    async with InMemoryClient() as loops:
        await welcome(loops, "ada@example.com")  # what is to be tested
        loops.sandbox.assert_event("signup", email="ada@example.com")

The fixtures ``loops_sandbox`` and ``loops_client`` come with the package: see
``pytest --fixtures``.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from multidict import CIMultiDict
from yarl import URL

from ._client import AsyncLoopsClient
from ._http.api_key import Secret
from ._http.protocol import Request, Response
from ._pacing.rate_limiter import RateLimiter
from ._pacing.retry_policy import RetryPolicy
from ._sending.outcomes import Attempt
from .errors import ConnectionLostError, RequestTimeoutError, TransportError
from .sandbox import Sandbox
from .sandbox import _wire as sandbox_wire
from .sandbox._world import pause

__all__ = ["InMemoryClient", "serving"]

QUICKLY: Final = RetryPolicy(base=0.01, cap=0.1)
"""As often as by default, without the waiting."""


class InMemoryClient(AsyncLoopsClient):
    """A client whose requests are answered by a sandbox, without a network.

    All but the network is real: what is checked, limited, tried again and
    raised is as with Loops. No socket is opened, and time passes only between
    tries and where the sandbox was given latencies: a request that it lets
    hang is timed out at once.

    Args:
        sandbox: What answers; need not be started. None makes one without a
            rate limit, for tests should not wait.
        rate_limit: As in AsyncLoopsClient, like the rest; None is that of the
            sandbox.
        timeout: For one attempt.
        deadline: For a whole call.
        retry: By default pauses of 10 to 100 ms.
        allowed_recipients: Who may be sent to.
        on_attempt: Called after each request.

    Attributes:
        sandbox: What answers.
    """

    def __init__(
        self,
        sandbox: Sandbox | None = None,
        *,
        rate_limit: float | RateLimiter | None = None,
        timeout: float | None = 30.0,
        deadline: float | None = 60.0,
        retry: RetryPolicy = QUICKLY,
        allowed_recipients: Iterable[str] | None = None,
        on_attempt: Callable[[Attempt], object] | None = None,
    ) -> None:
        self.sandbox: Sandbox = Sandbox(rate_limit=None) if sandbox is None else sandbox
        super().__init__(
            self.sandbox.api_key,
            base_url=_BASE_URL,
            rate_limit=limiter_of(self.sandbox) if rate_limit is None else rate_limit,
            timeout=timeout,
            deadline=deadline,
            retry=retry,
            allowed_recipients=allowed_recipients,
            on_attempt=on_attempt,
        )

    def _import_late(self) -> None:
        from ._sending import delivery  # noqa: F401, PLC0415 - without aiohttp

    async def _connect(self) -> "_Memory":
        return _Memory(self.sandbox)


_BASE_URL: Final = f"http://localhost{sandbox_wire.API}"


class _Memory:
    """Carries requests to a sandbox in the same event loop."""

    max_connections = 100

    def __init__(self, sandbox: Sandbox) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._world = sandbox._world
        self._answering: set[asyncio.Task[Any]] = set()
        self._under_way: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def usable(self) -> bool:
        here = threading.get_ident() == self._thread
        return here and self.loop.is_running() and not self._closed

    @property
    def in_flight(self) -> int:
        return len(self._under_way)

    async def exchange(
        self, call: Request, secret: Secret, limit: float | None
    ) -> Response | TransportError:
        began = time.monotonic()
        self._idle.clear()
        scope = asyncio.timeout(limit)
        self._under_way.add(scope)
        # Like a server's work, it goes on when nobody waits for it any more.
        answering = self.loop.create_task(self._answer(call, secret))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)
        try:
            async with scope:
                answer, late = await asyncio.shield(answering)
        except TimeoutError:
            answer, late = None, True
        finally:
            self._under_way.discard(scope)
            if not self._under_way:
                self._idle.set()
        if late and self._closed:
            text = "the client was closed before the answer came"
            return ConnectionLostError(text, maybe_accepted=True)
        if late:
            text = "no answer in time"
            return RequestTimeoutError(text, retryable=True, maybe_accepted=True)
        if answer is None:
            text = "the sandbox broke the connection"
            return ConnectionLostError(text, retryable=True, maybe_accepted=True)
        headers = CIMultiDict({"Content-Type": answer.content_type, **answer.headers})
        return Response(
            answer.status,
            headers,
            answer.body[: call.max_body],
            len(answer.body) > call.max_body,
            time.monotonic() - began,
        )

    async def _answer(
        self, call: Request, secret: Secret
    ) -> tuple[sandbox_wire.Answer | None, bool]:
        """Return the answer, None if the connection breaks, and whether it hangs."""
        world, url, body = self._world, URL(call.url), call.body or b""
        headers = CIMultiDict(
            {"Authorization": f"Bearer {secret}", "Content-Type": _JSON}
        )
        if call.key is not None:
            headers["Idempotency-Key"] = call.key
        answer: sandbox_wire.Answer | None
        if len(body) > _MOST:
            body, fault = b"", None
            answer = sandbox_wire.failure(413, sandbox_wire.BODY_TOO_LARGE)
            after = 0.0
        else:
            delays = world.draw_delays(first=False)
            await pause(delays.before)
            sent = sandbox_wire.Call(
                method=call.method,
                path=url.path.removeprefix(sandbox_wire.API),
                query=url.query,
                authorization=headers["Authorization"],
                content_type=_JSON,
                idempotency_key=call.key,
                body=body,
            )
            answer, fault = await world.meet(sent, delays.processing)
            after = delays.after
        world.record(
            method=call.method,
            path=url.raw_path_qs,
            headers=headers,
            body=body,
            answer=answer,
            fault=fault,
        )
        if fault is not None and fault.startswith("hang-"):
            return None, True
        await pause(after)
        return answer, False

    async def close(self, grace: float) -> None:
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            pass
        self._closed = True
        for scope in self._under_way:
            with suppress(RuntimeError):  # it is expiring by itself
                scope.reschedule(self.loop.time())
        await self._idle.wait()


_JSON: Final = sandbox_wire.JSON_TYPE
_MOST: Final = 1024 * 1024  # bytes of a body, as on a port


def limiter_of(sandbox: Sandbox) -> RateLimiter | float:
    """Return the limiter that a sandbox asks for, inf for none."""
    if sandbox.rate_limit is None:
        return math.inf
    return RateLimiter(sandbox.rate_limit, sandbox.period)


def rate_of(sandbox: Sandbox) -> float:
    """Return the requests a second that a sandbox allows, inf for no limit."""
    if sandbox.rate_limit is None:
        return math.inf
    return sandbox.rate_limit / sandbox.period


@contextmanager
def serving(sandbox: Sandbox) -> Iterator[Sandbox]:
    """Serve a sandbox in a thread of its own, for tests that have no event loop.

    Read and steer it from anywhere meanwhile.

    Args:
        sandbox: What to serve; not started yet.

    Yields:
        The same, started.

    Raises:
        OSError: if its port is taken.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loops sandbox")
    thread.start()

    def wait_for(step: Any) -> None:
        asyncio.run_coroutine_threadsafe(step, loop).result()

    try:
        wait_for(sandbox.start())
        try:
            yield sandbox
        finally:
            wait_for(sandbox.aclose())
    finally:
        wait_for(loop.shutdown_default_executor())  # of a host that was looked up
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def close_everywhere(client: AsyncLoopsClient) -> None:
    """Close a client from outside of its event loops; for a test's clean-up.

    Those that stand still are run for that, in others that run it is waited
    for; closed ones have closed their connections themselves.
    """
    client._closed = True  # which no loop may be left to do
    for loop in list(client._deliveries):
        closing = client.aclose(0.0)
        if loop.is_closed():
            closing.close()
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(closing, loop).result()
        else:
            loop.run_until_complete(closing)
