"""Right and wrong uses of all of `loops_async.fastapi`, for type checkers."""

# An expected error makes a type unknown; reports about that type are switched off.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, assert_type

from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse

from loops_async import AsyncLoopsClient, Event, LoopsError, Outbox, Receipt
from loops_async.fastapi import (
    LoopsClient,
    LoopsOutbox,
    get_client,
    get_outbox,
    loops_error_handler,
    loops_lifespan,
)

app = FastAPI(lifespan=loops_lifespan)
app.add_exception_handler(LoopsError, loops_error_handler)
FastAPI(lifespan=partial(loops_lifespan, outbox="events.db"))
Starlette(lifespan=loops_lifespan)
Starlette(exception_handlers={LoopsError: loops_error_handler})


@app.post("/signup")
async def signup(email: str, loops: LoopsClient) -> str:
    assert_type(loops, AsyncLoopsClient)
    receipt = await loops.send_event("signup", email=email)
    assert_type(receipt, Receipt)
    return receipt.idempotency_key


@app.post("/order")
async def order(email: str, outbox: LoopsOutbox) -> None:
    assert_type(outbox, Outbox)
    await outbox.put(Event("order", email=email))


@app.get("/stats")
async def stats(
    loops: Annotated[AsyncLoopsClient, Depends(get_client)],
    outbox: Annotated[Outbox, Depends(get_outbox)],
) -> dict[str, int]:
    return {"requests": loops.stats.requests, "pending": outbox.stats().pending}


def client() -> AsyncLoopsClient:
    return AsyncLoopsClient(rate_limit=5)


@asynccontextmanager
async def lifespan(own: FastAPI) -> AsyncGenerator[Mapping[str, Any], None]:
    async with loops_lifespan(
        own, client=client, outbox=Path("events.db"), grace=2, scan_interval=30
    ) as state:
        assert_type(state, Mapping[str, Any])
        yield state


FastAPI(lifespan=lifespan)


async def respond(request: Request) -> None:
    assert_type(get_client(request), AsyncLoopsClient)
    assert_type(get_outbox(request), Outbox)
    assert_type(await loops_error_handler(request, LoopsError("no")), JSONResponse)


async def mistakes(request: Request) -> None:
    loops_lifespan()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    loops_lifespan(app, client())  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    loops_lifespan(app, client=client())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loops_lifespan(app, client=respond)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loops_lifespan(app, outbox=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loops_lifespan(app, outbox=Outbox("events.db", client()))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loops_lifespan(app, grace="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loops_lifespan(app, scan_interval="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loops_lifespan("app")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FastAPI(lifespan=loops_lifespan(app))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with loops_lifespan(app):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    await loops_lifespan(app)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    get_client(app)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await get_client(request)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    get_outbox()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    get_client(request).put(Event("order", user_id="42"))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    await get_outbox(request).send_event("order", user_id="42")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    loops_error_handler(request, "no")  # type: ignore[arg-type, unused-coroutine]  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
