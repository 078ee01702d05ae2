"""FastAPI and Starlette: a client, and an outbox, for each worker process.

`loops_lifespan` opens a client when a worker process starts and closes it when
the process stops. With ``outbox=`` it also opens a durable outbox. Handlers get
the two as dependencies of the types `LoopsClient` and `LoopsOutbox`.

In a clone, install the extra with ``pip install '.[fastapi]'``.

An app
------

```python
# app.py
from functools import partial

from fastapi import FastAPI

from loops_async import Event, LoopsError
from loops_async.fastapi import (
    LoopsClient,
    LoopsOutbox,
    loops_error_handler,
    loops_lifespan,
)

app = FastAPI(lifespan=partial(loops_lifespan, outbox="events.db"))
app.add_exception_handler(LoopsError, loops_error_handler)


@app.post("/signup")
async def signup(email: str, outbox: LoopsOutbox) -> str:
    await outbox.put(Event("signup", email=email))
    return "The event is on disk."


@app.post("/upgrade")
async def upgrade(email: str, loops: LoopsClient) -> str:
    await loops.send_event("planUpgraded", email=email)
    return "Loops has the event."
```

Set LOOPS_API_KEY and run it with ``uvicorn app:app --workers 4``.

Client or outbox
----------------

- ``outbox.put`` returns when the event is on disk. The outbox sends the event
  in the background, so neither a slow Loops nor an outage delays the handler.
  Use it for every event that must not be lost. A full outbox makes ``put``
  wait, and a full disk makes it raise a JournalError.
- ``loops.send_event`` returns when Loops has the event. Use it if the response
  of the handler depends on that. In an outage it waits until its deadline (60 s),
  then raises a DeadlineExceededError.

For an app that needs no outbox, pass ``lifespan=loops_lifespan``.

Settings
--------

``client=`` is a function that makes the client. The lifespan calls it when the
app starts, in each worker process:

```python
# settings.py
from functools import partial

from fastapi import FastAPI

from loops_async import AsyncLoopsClient
from loops_async.fastapi import loops_lifespan


def make_client() -> AsyncLoopsClient:
    return AsyncLoopsClient(deadline=20.0, allowed_recipients=["@example.com"])


app = FastAPI(lifespan=partial(loops_lifespan, client=make_client, grace=5.0))
```

A lifespan of your own
----------------------

```python
# own_lifespan.py
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from loops_async.fastapi import LoopsOutbox, loops_lifespan


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
    async with loops_lifespan(app, outbox="events.db") as state:
        yield {**state, "version": "1.0"}  # state also serves mounted apps


app = FastAPI(lifespan=lifespan)


@app.get("/pending")
async def pending(outbox: LoopsOutbox) -> int:
    return outbox.stats().pending
```

Starlette has no dependencies: a Starlette endpoint calls `get_client` or
`get_outbox` with its request.

```python
# endpoint.py
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from loops_async.fastapi import get_client, loops_lifespan


async def signup(request: Request) -> JSONResponse:
    email = request.query_params["email"]
    receipt = await get_client(request).send_event("signup", email=email)
    return JSONResponse({"attempts": receipt.attempts})


routes = [Route("/signup", signup, methods=["POST"])]
app = Starlette(routes=routes, lifespan=loops_lifespan)
```

Several workers
---------------

Each worker process has its own client and its own outbox file, the first of
``events.db``, ``events.1.db``, ``events.2.db``, ... that no other process has
open. Keep the files on a local disk that survives a restart; a container needs
a volume. Network file systems often lack the locks that prevent two processes
from using the same file.

The workers share the rate limit of their API key without communicating: each
finds its share from the 429 responses that it receives. Run at most as many
workers as Loops permits requests a second (10 by default), because with more
of them few events get through. To avoid 429s altogether, give each worker a
fixed share: ``client=partial(AsyncLoopsClient, rate_limit=2)``.

Shutdown
--------

The server first finishes the HTTP requests that it has begun. The outbox then
continues to send for ``grace`` seconds (10), and the remaining events stay in the
file for the next start. Finally the client waits up to 10 s for its requests in
flight. Give the process at least 20 s between SIGTERM and SIGKILL.

Crash
-----

Every event that ``put`` acknowledged is on disk. The worker that replaces the
dead worker opens the same file and sends its events. If no worker replaces it,
another worker finds the file within 30 s (``scan_interval``) and sends its
events. An event whose response was lost is sent again under its idempotency
key, and Loops accepts it once. A ``send_event`` that the crash interrupts is not
repeated.

Outage
------

The outbox waits for Loops, for days if necessary, while ``put`` still returns
at once, up to 100,000 pending events. A ``send_event`` that reaches its deadline
raises an error, which `loops_error_handler` turns into a response with status 504.
``outbox.stats()`` and ``loops.stats`` show the state for a health check.

Tests
-----

The pytest fixture ``loops_sandbox`` sets the environment, so the app under test
sends its events to a local Loops sandbox:

```python
# test_app.py
from pathlib import Path

import pytest
from app import app
from fastapi.testclient import TestClient

from loops_async.sandbox import Sandbox


def test_a_signup_is_sent(
    loops_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # each test has its own events.db
    with TestClient(app) as http:  # "with" runs the lifespan
        assert http.post("/signup?email=ada@example.com").status_code == 200
    # The end of the block has sent the pending event.
    loops_sandbox.assert_event("signup", email="ada@example.com", times=1)
```

To give a handler another client in a test, set
``app.dependency_overrides[get_client] = lambda: client``.
"""

import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

try:
    from fastapi import Depends
except ModuleNotFoundError as _missing:
    _missing.add_note(
        "install the extra 'fastapi': pip install 'loops-async[fastapi]', "
        "or pip install '.[fastapi]' in a clone"
    )
    raise
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse

from ._checks import checked_seconds
from ._client import AsyncLoopsClient
from ._outbox.outbox import Outbox
from ._outbox.per_worker import per_worker
from .errors import (
    APIError,
    ConfigurationError,
    ConnectFailedError,
    InvalidEventError,
    JournalError,
    LoopsError,
    RecipientNotAllowedError,
)

__all__ = [
    "LoopsClient",
    "LoopsOutbox",
    "get_client",
    "get_outbox",
    "loops_error_handler",
    "loops_lifespan",
]

_logger = logging.getLogger("loops_async")

_CLIENT: Final = "loops_client"
_OUTBOX: Final = "loops_outbox"


@asynccontextmanager
async def loops_lifespan(
    app: Starlette,
    *,
    client: Callable[[], AsyncLoopsClient] = AsyncLoopsClient,
    outbox: str | os.PathLike[str] | None = None,
    grace: float = 10.0,
    scan_interval: float | None = 30.0,
) -> AsyncIterator[Mapping[str, Any]]:
    """Open a client, and optionally an outbox, while the app runs.

    Pass this function as the app's ``lifespan``, or use it with ``async with``
    in a lifespan of your own. Workers with the same ``outbox`` path do not share
    a file: each worker opens the first of ``events.db``, ``events.1.db``, ... that
    no other process has open, and also sends the events in the files of dead
    workers.

    Args:
        app: The app; its ``state`` receives the client and the outbox.
        client: A function that makes the client; the default reads
            LOOPS_API_KEY.
        outbox: The path of the first outbox file; None opens no outbox. Apps
            with different API keys need different paths.
        grace: The seconds for which the outbox continues to send when the app
            shuts down.
        scan_interval: The seconds between two searches for the files of dead
            workers; None never searches.

    Yields:
        The state to yield from a lifespan of your own, so that mounted apps
        find the client, too.

    Raises:
        ConfigurationError: If a setting cannot work.
        JournalError: If an outbox file is damaged or cannot be written.
    """
    if not isinstance(grace, int | float) or not grace >= 0:
        msg = f"grace must be a number of seconds from 0, not {grace!r}"
        raise ConfigurationError(msg)
    interval = checked_seconds("scan_interval", scan_interval) or math.inf
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(client())
        state: dict[str, Any] = {_CLIENT: opened}
        if outbox is not None:
            path = Path(outbox).absolute()  # noqa: ASYNC240 - does not touch the disk
            state[_OUTBOX] = await stack.enter_async_context(
                per_worker(path, opened, grace=grace, scan_interval=interval)
            )
        for name, value in state.items():
            setattr(app.state, name, value)
        yield state


def get_client(connection: HTTPConnection) -> AsyncLoopsClient:
    """Return the client of the running app; a dependency.

    Raises:
        ConfigurationError: If `loops_lifespan` is not running.
    """
    remedy = "pass lifespan=loops_lifespan"
    client: AsyncLoopsClient = _from_state(connection, _CLIENT, remedy)
    return client


def get_outbox(connection: HTTPConnection) -> Outbox:
    """Return the outbox of the running app; a dependency.

    Raises:
        ConfigurationError: If `loops_lifespan` is not running, or runs without
            ``outbox=``.
    """
    remedy = 'pass lifespan=partial(loops_lifespan, outbox="events.db")'
    outbox: Outbox = _from_state(connection, _OUTBOX, remedy)
    return outbox


def _from_state(connection: HTTPConnection, name: str, remedy: str) -> Any:
    # The state of a mounted app goes before that of the app around it.
    for state in (connection.app.state, connection.state):
        if hasattr(state, name):
            return getattr(state, name)
    msg = (
        f"the app has no {name}, because no lifespan has opened it: {remedy}; "
        'in a test, enter "with TestClient(app)"'
    )
    raise ConfigurationError(msg)


LoopsClient: TypeAlias = Annotated[AsyncLoopsClient, Depends(get_client)]
"""The type of a handler's parameter that receives the client of the app."""
LoopsOutbox: TypeAlias = Annotated[Outbox, Depends(get_outbox)]
"""The type of a handler's parameter that receives the outbox of the app."""


async def loops_error_handler(request: Request, error: Exception) -> JSONResponse:
    """Turn a LoopsError that a handler did not catch into an HTTP response.

    Register the function with
    ``app.add_exception_handler(LoopsError, loops_error_handler)``.

    | status | error |
    |---|---|
    | 422 | InvalidEventError; ``detail`` lists every problem |
    | 403 | RecipientNotAllowedError |
    | 500 | ConfigurationError, and a JournalError that a retry does not solve |
    | 504 | DeadlineExceededError, RequestTimeoutError |
    | 503 | other errors that a later retry may solve, with ``Retry-After`` |
    | 502 | other responses of Loops, such as 400 or 401; an untrusted certificate |

    The body is ``{"detail": ..., "maybe_accepted": ...}``. If ``maybe_accepted``
    is true, Loops may have the event. The text of Loops' response is not in the
    body. A status of 500 or more is logged as a warning.
    """
    # A WebSocket has no status: its server closes it because of the error.
    if not isinstance(error, LoopsError) or request.scope["type"] != "http":
        raise error
    status, detail = _status_and_detail(error)
    headers = {}
    if status >= 500:
        route = request.scope.get("route")
        _logger.warning(
            "%s %s: response %d because of %s: %s",
            request.method,
            getattr(route, "path", "?"),  # the URL's path may hold personal data
            status,
            type(error).__name__,
            error,
        )
    if status == 503:
        retry_after = error.retry_after if isinstance(error, APIError) else None
        headers["Retry-After"] = str(math.ceil(retry_after or 1))
    content = {"detail": detail, "maybe_accepted": error.maybe_accepted}
    return JSONResponse(content, status, headers)


def _status_and_detail(error: LoopsError) -> tuple[int, object]:
    if isinstance(error, InvalidEventError):
        return 422, list(error.problems)
    if isinstance(error, RecipientNotAllowedError):
        return 403, "The recipient is not allowed."
    unusable_file = isinstance(error, JournalError) and not error.retryable
    # A ConnectFailedError that is not retryable means an untrusted TLS certificate.
    refused = isinstance(error, APIError | ConnectFailedError)
    if isinstance(error, ConfigurationError) or unusable_file:
        status, detail = 500, "The event could not be sent."
    elif isinstance(error, TimeoutError):
        status, detail = 504, "The event could not be sent in time."
    elif error.retryable or not refused:
        status, detail = 503, "The event could not be sent now."
    else:
        status, detail = 502, "Loops did not accept the event."
    if error.maybe_accepted:
        detail = "It is unknown whether Loops has the event."
    return status, detail
