"""Helpers and pytest fixtures for the tests of an application that sends events.

Fixtures
--------
The package installs two pytest fixtures. ``loops_sandbox`` is a
`loops_async.sandbox.Sandbox` on a real port, served from a thread, with no rate limit.
While the test runs, LOOPS_API_KEY, LOOPS_BASE_URL and LOOPS_RATE_LIMIT point to it, so
a client that the tested code creates sends to the sandbox.

```python
# test_signup.py
import asyncio

from loops_async import AsyncLoopsClient
from loops_async.sandbox import Sandbox


async def sign_up(email: str) -> None:  # the code to test
    async with AsyncLoopsClient() as loops:
        await loops.send_event("signup", email=email)


def test_signup(loops_sandbox: Sandbox) -> None:
    loops_sandbox.script("close-after")  # accept, then close without a response
    asyncio.run(sign_up("ada@example.com"))
    loops_sandbox.assert_event("signup", email="ada@example.com", times=1)
```

``loops_client`` is a client of ``loops_sandbox`` that retries after short pauses. The
fixture closes the client after the test. Both fixtures work in plain tests and with
pytest-asyncio or anyio.

The marker ``loops_sandbox`` passes settings to the sandbox of one test, class or
module. `loops_async.sandbox` describes settings, faults, outages, clock and records.

```python
# test_settings.py
import asyncio

import pytest
from loops_async import AsyncLoopsClient, Event
from loops_async.sandbox import Sandbox


@pytest.mark.loops_sandbox(rate_limit=50, faults={"503": 0.3}, seed=1)
def test_a_retry(loops_sandbox: Sandbox, loops_client: AsyncLoopsClient) -> None:
    event = Event("signup", email="ada@example.com")
    asyncio.run(loops_client.send_event(event))
    loops_sandbox.advance(86_400)  # a day later the idempotency key is unused again
    asyncio.run(loops_client.send_event(event))
    loops_sandbox.assert_event("signup", times=2)
```

To test an application with an outbox, start it in ``with TestClient(app) as http:``
and make the assertions after that block, because the end of the block sends the
pending events. Call ``monkeypatch.chdir(tmp_path)`` before the block, so that the next
test does not find the file of the outbox.

Without pytest
--------------
`serving` serves a sandbox from a thread, for tests without an event loop:

```python
from loops_async.sandbox import Sandbox
from loops_async.testing import serving

with serving(Sandbox(rate_limit=None)) as sandbox:
    print(sandbox.url, sandbox.api_key)  # any Loops client can send here
    sandbox.assert_no_event()
```

Without a network
-----------------
`InMemoryClient` is a client with a sandbox of its own, without sockets and threads:

```python
from loops_async.testing import InMemoryClient

async with InMemoryClient() as loops:
    loops.sandbox.script("hang-after")  # times out at once
    receipt = await loops.send_event("signup", email="ada@example.com")
    assert receipt.duplicate
    loops.sandbox.assert_event("signup", email="ada@example.com", times=1)
```
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from yarl import URL

from ._client import AsyncLoopsClient
from ._http.api_key import Secret, hide_api_key
from ._http.protocol import Response
from ._http.request import Request
from ._pacing.rate_limiter import RateLimiter
from ._pacing.retry_policy import RetryPolicy
from ._sending.outcomes import Attempt
from ._sending.sender import Sender
from .errors import ConnectionLostError, RequestTimeoutError, TransportError
from .sandbox import Sandbox

__all__ = ["InMemoryClient", "serving"]

FAST_RETRIES: Final = RetryPolicy(base=0.01, cap=0.1)
"""The default number of attempts, with pauses of 10 to 100 ms."""


class InMemoryClient(AsyncLoopsClient):
    """A client whose requests go to a sandbox without a network.

    Validation, rate limit, retries and errors are those of `AsyncLoopsClient`. No
    socket is opened. Time passes only between attempts and for the latencies of the
    sandbox. A request that hangs because of a fault times out at once.

    Args:
        sandbox: The sandbox, which need not be started. None creates a sandbox
            without a rate limit, so that tests do not wait.
        rate_limit: Requests per second, or a RateLimiter. None takes the rate limit
            of the sandbox.
        timeout: Seconds for one attempt, or None for no limit.
        deadline: Seconds for a whole call, or None for no limit.
        retry: The retry policy; by default its pauses take 10 to 100 ms.
        allowed_recipients: The allowed recipients, as in AsyncLoopsClient.
        on_attempt: A function to call with an Attempt after each request.

    Attributes:
        sandbox: The sandbox.
    """

    def __init__(
        self,
        sandbox: Sandbox | None = None,
        *,
        rate_limit: float | RateLimiter | None = None,
        timeout: float | None = 30.0,
        deadline: float | None = 60.0,
        retry: RetryPolicy = FAST_RETRIES,
        allowed_recipients: Iterable[str] | None = None,
        on_attempt: Callable[[Attempt], object] | None = None,
    ) -> None:
        self.sandbox: Sandbox = Sandbox(rate_limit=None) if sandbox is None else sandbox
        self.sender: Sender = Sender(
            hide_api_key(self.sandbox.api_key),
            base_url=_BASE_URL,
            timeout=timeout,
            deadline=deadline,
            allowed_recipients=allowed_recipients,
            dry_run=False,
            rate_limit=limiter_of(self.sandbox) if rate_limit is None else rate_limit,
            retry=retry,
            on_attempt=on_attempt,
            connect=lambda *_: self._make_transport,
        )

    async def _make_transport(self) -> "MemoryTransport":
        return MemoryTransport(self.sandbox)


_BASE_URL: Final = "http://localhost/api"


class MemoryTransport:
    """A transport that passes requests to a sandbox in the running event loop.

    Args:
        sandbox: The sandbox.

    Attributes:
        loop: The event loop of the transport.
        thread: The identifier of the thread that runs the event loop.
        max_connections: The number of requests that may be in flight at once.
        closed: Whether the transport accepts no further requests.
        borrowed: None, because the transport has no session.
    """

    max_connections: int = 100

    def __init__(self, sandbox: Sandbox) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._sandbox = sandbox
        self.thread: int = threading.get_ident()
        self._responding: set[asyncio.Task[Any]] = set()
        self._timeouts: set[asyncio.Timeout] = set()  # one per request in flight
        self._idle = asyncio.Event()
        self._idle.set()
        self.closed: bool = False
        self.borrowed: None = None

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return len(self._timeouts)

    async def exchange(
        self, request: Request, api_key: Secret, timeout: float | None
    ) -> Response | TransportError:
        """Return the response to one request, or the error in place of a response.

        Args:
            request: The request.
            api_key: The API key.
            timeout: Seconds until the request times out, or None for no limit.
        """
        scope = asyncio.timeout(timeout)
        self._timeouts.add(scope)
        self._idle.clear()
        # Like a server, the sandbox completes a request that the client has given up.
        responding = self.loop.create_task(self._respond(request, api_key))
        self._responding.add(responding)
        responding.add_done_callback(self._responding.discard)
        try:
            async with scope:
                return await asyncio.shield(responding)
        except TimeoutError:
            if self.closed:
                text = "the client was closed before the response came"
                return ConnectionLostError(text, maybe_accepted=True)
            return _timed_out()
        finally:
            self._timeouts.discard(scope)
            if not self._timeouts:
                self._idle.set()

    async def close(self, grace: float) -> None:
        """Wait for the requests in flight, cut off the rest, and close.

        Args:
            grace: Seconds to wait.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
        self.closed = True
        for scope in self._timeouts:
            with suppress(RuntimeError):  # the timeout is expiring already
                scope.reschedule(self.loop.time())
        await self._idle.wait()

    async def _respond(
        self, request: Request, api_key: Secret
    ) -> Response | TransportError:
        began = time.monotonic()
        headers = {"Authorization": f"Bearer {api_key}", "Content-Type": _JSON}
        if request.key is not None:
            headers["Idempotency-Key"] = request.key
        target, body = URL(request.url).raw_path_qs, request.body or b""
        try:
            response = await self._sandbox.respond(
                request.method, target, headers=headers, body=body
            )
        except TimeoutError:
            return _timed_out()
        except ConnectionError:
            text = "the sandbox broke the connection"
            return ConnectionLostError(text, retryable=True, maybe_accepted=True)
        return Response(
            response.status,
            response.headers,
            response.body[: request.max_body],
            len(response.body) > request.max_body,
            time.monotonic() - began,
        )


_JSON: Final = "application/json"


def _timed_out() -> RequestTimeoutError:
    text = "no response in time"
    return RequestTimeoutError(text, retryable=True, maybe_accepted=True)


def limiter_of(sandbox: Sandbox) -> RateLimiter | float:
    """Return a limiter with the rate limit of a sandbox, or inf for no limit."""
    if sandbox.rate_limit is None:
        return math.inf
    return RateLimiter(sandbox.rate_limit, sandbox.period)


def rate_of(sandbox: Sandbox) -> float:
    """Return the requests per second that a sandbox allows, or inf for no limit."""
    if sandbox.rate_limit is None:
        return math.inf
    return sandbox.rate_limit / sandbox.period


@contextmanager
def serving(sandbox: Sandbox) -> Iterator[Sandbox]:
    """Serve a sandbox from a thread, for tests without an event loop.

    Any thread may read and control the sandbox while it is served.

    Args:
        sandbox: A sandbox that is not started.

    Yields:
        The same sandbox, started.

    Raises:
        OSError: If the port is not available.
        RuntimeError: If the sandbox is already started.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loops sandbox")
    thread.start()

    def run(step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, loop).result()

    try:
        run(sandbox.start())
        try:
            yield sandbox
        finally:
            run(sandbox.aclose())
    finally:
        run(loop.shutdown_default_executor())  # its thread looks up host names
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def close_everywhere(client: AsyncLoopsClient) -> None:
    """Close a client in all of its event loops, from outside these event loops.

    This function runs an event loop that is not running, and waits for an event loop
    that runs in another thread. A closed event loop has closed its connections already.
    """
    client.sender.closed = True  # even if no event loop is left to close it in
    for loop in client.sender.event_loops:
        closing = client.aclose(0.0)
        if loop.is_closed():
            closing.close()
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(closing, loop).result()
        else:
            loop.run_until_complete(closing)
