"""FastAPI and Starlette: a client per worker process, opened and closed with it.

    app = FastAPI(lifespan=loops_lifespan)


    @app.post("/signup")
    async def signup(email: str, loops: LoopsClient) -> None:
        await loops.send_event("signup", email=email)

With an outbox the event is on the disk before the answer, and sent later:

    app = FastAPI(lifespan=partial(loops_lifespan, outbox="events.db"))


    @app.post("/signup")
    async def signup(email: str, outbox: LoopsOutbox) -> None:
        await outbox.put(Event("signup", email=email))
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
    _missing.add_note("it comes with an extra: pip install 'loops-async[fastapi]'")
    raise
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse

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
) -> AsyncIterator[Mapping[str, Any]]:
    """Open a client, and an outbox if asked, for as long as the app runs.

    Pass it as the app's ``lifespan``, with `functools.partial` if it is to
    have arguments, or enter it in a lifespan of your own:

        async with loops_lifespan(app, outbox="events.db"):
            yield

    Each worker process has its own client; they share the rate limit by
    themselves. Each has its own outbox, too: the first of ``events.db``,
    ``events.1.db``, ... that no other has open. What a worker left behind in
    one of these is sent by the others, or by whoever takes it next. A
    contact's events are in order within a worker.

    Args:
        app: The application; ``app.state`` gets what is opened.
        client: Makes the client, each time the app starts.
        outbox: Path of the outbox's file; None is no outbox. Apps with keys
            of their own need paths of their own.
        grace: Seconds for which what is in the outbox is still sent when the
            app shuts down; the rest is sent when it is started again.

    Yields:
        What to yield from your own lifespan if apps that are mounted in this
        one need the client, too.

    Raises:
        ConfigurationError: if a setting cannot work.
        JournalError: if a file of the outbox is damaged or cannot be written.
    """
    if not isinstance(grace, int | float) or not grace >= 0:
        raise ConfigurationError(f"grace must be seconds, not {grace!r}")
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(client())
        state: dict[str, Any] = {_CLIENT: opened}
        if outbox is not None:
            path = Path(outbox).absolute()  # noqa: ASYNC240 - asks no disk
            state[_OUTBOX] = await stack.enter_async_context(
                per_worker(path, opened, grace=grace)
            )
        for name, value in state.items():
            setattr(app.state, name, value)
        yield state


def get_client(connection: HTTPConnection) -> AsyncLoopsClient:
    """Return the client of the running app; a dependency.

    Raises:
        ConfigurationError: if `loops_lifespan` does not run.
    """
    why = 'it did not run loops_lifespan; a test needs "with TestClient(app)"'
    client: AsyncLoopsClient = _found(connection, _CLIENT, why)
    return client


def get_outbox(connection: HTTPConnection) -> Outbox:
    """Return the outbox of the running app; a dependency.

    Raises:
        ConfigurationError: if `loops_lifespan` does not run, or was not asked
            for an outbox.
    """
    why = 'it did not run loops_lifespan with outbox="events.db"'
    outbox: Outbox = _found(connection, _OUTBOX, why)
    return outbox


def _found(connection: HTTPConnection, name: str, why: str) -> Any:
    for state in (connection.app.state, connection.state):  # its own, or the parent's
        if hasattr(state, name):
            return getattr(state, name)
    raise ConfigurationError(f"the app has no {name}: {why}")


LoopsClient: TypeAlias = Annotated[AsyncLoopsClient, Depends(get_client)]
"""A parameter of this type is the app's client."""
LoopsOutbox: TypeAlias = Annotated[Outbox, Depends(get_outbox)]
"""A parameter of this type is the app's outbox."""


async def loops_error_handler(request: Request, error: Exception) -> JSONResponse:
    """Answer for a LoopsError that a handler did not catch.

        app.add_exception_handler(LoopsError, loops_error_handler)

    422 with all problems for an event that breaks a rule, 403 for a recipient
    who is not allowed, 504 when time ran out, 503 with Retry-After when it may
    work later, 502 when Loops refused it (or the key), 500 for a setting that
    cannot work. ``maybe_accepted`` in the body says whether Loops may have the
    event. What went wrong between you and Loops (5xx) is in the log instead.
    """
    if not isinstance(error, LoopsError) or request.scope["type"] != "http":
        raise error  # not ours, or of a WebSocket, which its server closes
    status, detail = _meaning(error)
    headers = {}
    if status >= 500:
        route = request.scope.get("route")
        _logger.warning(
            "%s %s: answered %d for %s: %s",
            request.method,
            getattr(route, "path", "?"),  # the URL's may name somebody
            status,
            type(error).__name__,
            error,
        )
    if status == 503:
        asked = error.retry_after if isinstance(error, APIError) else None
        headers["Retry-After"] = str(math.ceil(asked or 1))
    content = {"detail": detail, "maybe_accepted": error.maybe_accepted}
    return JSONResponse(content, status, headers)


def _meaning(error: LoopsError) -> tuple[int, object]:
    if isinstance(error, InvalidEventError):
        return 422, list(error.problems)
    if isinstance(error, RecipientNotAllowedError):
        return 403, "The recipient is not allowed."
    wrong_file = isinstance(error, JournalError) and not error.retryable
    refused = isinstance(error, APIError | ConnectFailedError)  # as a certificate is
    if isinstance(error, ConfigurationError) or wrong_file:
        status, detail = 500, "The event could not be sent."
    elif isinstance(error, TimeoutError):
        status, detail = 504, "The event could not be sent in time."
    elif error.retryable or not refused:
        status, detail = 503, "The event could not be sent now."
    else:
        status, detail = 502, "Loops did not take the event."
    if error.maybe_accepted:
        detail = "Whether Loops has the event is not known."
    return status, detail
