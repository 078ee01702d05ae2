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
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from multidict import CIMultiDict

from ._client import AsyncLoopsClient
from ._limiter import RateLimiter
from ._retry import Attempt, RetryPolicy
from ._settings import Secret
from ._wire import Answer, Call
from .errors import ConnectionLostError, RequestTimeoutError, TransportError
from .sandbox import Sandbox, SandboxRequest
from .sandbox import _wire as sandbox_wire

__all__ = ["InMemoryClient", "serving"]

QUICKLY: Final = RetryPolicy(base=0.01, cap=0.1)
"""As often as by default, without the waiting."""


class InMemoryClient(AsyncLoopsClient):
    """A client whose requests are answered by a sandbox, without a network.

    All but the network is real: what is checked, limited, tried again and
    raised is as with Loops. No socket is opened, and no time passes unless
    the sandbox was given latencies: a request that it lets hang is timed out
    at once.

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
        self.sandbox = Sandbox(rate_limit=None) if sandbox is None else sandbox
        super().__init__(
            self.sandbox.api_key,
            base_url=_BASE_URL,
            rate_limit=limit_of(self.sandbox) if rate_limit is None else rate_limit,
            timeout=timeout,
            deadline=deadline,
            retry=retry,
            allowed_recipients=allowed_recipients,
            on_attempt=on_attempt,
        )

    def _prepare(self) -> None:
        from . import _delivery  # noqa: F401, PLC0415 - without aiohttp

    async def _connect(self) -> "_Memory":
        return _Memory(self.sandbox)


_BASE_URL: Final = f"http://localhost{sandbox_wire.API}"


class _Memory:
    """Carries requests to a sandbox in the same event loop."""

    max_connections = 100

    def __init__(self, sandbox: Sandbox) -> None:
        self.loop = asyncio.get_running_loop()
        self._world = sandbox._world
        self._under_way: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def usable(self) -> bool:
        return self.loop.is_running() and not self._closed

    @property
    def in_flight(self) -> int:
        return len(self._under_way)

    async def exchange(
        self, call: Call, secret: Secret, limit: float | None
    ) -> Answer | TransportError:
        began = time.monotonic()
        self._idle.clear()
        scope = asyncio.timeout(limit)
        self._under_way.add(scope)
        try:
            async with scope:
                answer = await self._answer(call, secret)
        except TimeoutError:
            if self._closed:
                text = "the client was closed before the answer came"
                return ConnectionLostError(text, maybe_accepted=True)
            text = "no answer in time"
            return RequestTimeoutError(text, retryable=True, maybe_accepted=True)
        finally:
            self._under_way.discard(scope)
            if not self._under_way:
                self._idle.set()
        if answer is None:
            text = "the sandbox broke the connection"
            return ConnectionLostError(text, retryable=True, maybe_accepted=True)
        headers = CIMultiDict(answer.headers)
        headers.setdefault("Content-Type", answer.content_type)
        return Answer(
            answer.status,
            headers,
            answer.body[: call.max_body],
            len(answer.body) > call.max_body,
            time.monotonic() - began,
        )

    async def _answer(self, call: Call, secret: Secret) -> sandbox_wire.Answer | None:
        world, url = self._world, urlsplit(call.url)
        headers = {"Authorization": f"Bearer {secret}"}
        if call.key is not None:
            headers["Idempotency-Key"] = call.key
        delays = world.draw_delays(first=False)
        await asyncio.sleep(delays.before)
        answer, fault = await world.meet(
            sandbox_wire.Call(
                method=call.method,
                path=url.path.removeprefix(sandbox_wire.API),
                query=dict(parse_qsl(url.query, keep_blank_values=True)),
                authorization=headers["Authorization"],
                content_type=sandbox_wire.JSON_TYPE,
                idempotency_key=call.key,
                body=call.body or b"",
            ),
            delays.processing,
        )
        world.record(
            SandboxRequest(
                method=call.method,
                path=call.url.removeprefix(_ORIGIN),
                headers=CIMultiDict(headers),
                body=call.body or b"",
                status=None if answer is None else answer.status,
                fault=fault,
                at=world.now(),
            )
        )
        if fault is not None and fault.startswith("hang-"):
            raise TimeoutError
        await asyncio.sleep(delays.after)
        return answer

    async def close(self, grace: float) -> None:
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            pass
        self._closed = True
        for scope in self._under_way:
            scope.reschedule(self.loop.time())
        await self._idle.wait()


_ORIGIN: Final = _BASE_URL.removesuffix(sandbox_wire.API)


def limit_of(sandbox: Sandbox) -> float:
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
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def close_everywhere(client: AsyncLoopsClient) -> None:
    """Close a client from outside of its event loops; for a test's clean-up.

    Those that stand still are run for that, in others that run it is waited
    for; closed ones have closed their connections themselves.
    """
    for loop in list(client._deliveries):
        closing = client.aclose(0.0)
        if loop.is_closed():
            closing.close()
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(closing, loop).result()
        else:
            loop.run_until_complete(closing)
