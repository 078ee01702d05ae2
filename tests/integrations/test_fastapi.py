"""The client and the outbox of an app, in this process and under uvicorn."""

import asyncio
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from support import outboxes
from support.apps import Load, Uvicorn, app_of
from support.clients import KEY
from support.sandbox_process import (
    SandboxProcess,
    run_script,
    sandbox_in_environment,
    sandbox_in_thread,
)
from support.waiting import run, until, wait_until

from loops_async import (
    AsyncLoopsClient,
    ConfigurationError,
    Event,
    JournalError,
    LoopsError,
    RetryPolicy,
    errors,
)
from loops_async.fastapi import (
    LoopsClient,
    LoopsOutbox,
    get_client,
    get_outbox,
    loops_error_handler,
    loops_lifespan,
)
from loops_async.sandbox import Behaviour, Sandbox
from loops_async.testing import InMemoryClient

not_on_windows = pytest.mark.skipif(
    sys.platform == "win32", reason="the tests stop processes by signals"
)

EMAIL = "ada.lovelace@private.example"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox to which the environment points."""
    with sandbox_in_environment(monkeypatch) as sandbox:
        yield sandbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def send(web: TestClient, prefix: str = "") -> None:
    """Send an event from a handler, and check that the handler succeeds."""
    response = web.post(f"{prefix}/send", params={"email": EMAIL})
    assert response.status_code == 200, response.text


def put(web: TestClient, number: int, prefix: str = "") -> str:
    """Put an event from a handler; return the name of the outbox file."""
    response = web.post(f"{prefix}/put", params={"number": number})
    assert response.status_code == 200, response.text
    return str(response.json()["file"])


# An app in this process


def test_a_handler_sends_with_the_client_of_its_app(sandbox: Sandbox) -> None:
    app = app_of(loops_lifespan)
    with TestClient(app) as web:
        send(web)
        send(web)
        client = app.state.loops_client
        assert client.stats.accepted == 2
        assert "open" in repr(client)
    assert "closed" in repr(client)
    sandbox.assert_event("signup", email=EMAIL, times=2)


def test_a_handler_puts_into_the_outbox_of_its_app(
    sandbox: Sandbox, path: Path
) -> None:
    app = app_of(partial(loops_lifespan, outbox=path))
    with TestClient(app) as web:
        assert [put(web, number) for number in range(5)] == ["events.db"] * 5
        send(web)
        outbox = app.state.loops_outbox
    assert "closed" in repr(outbox)
    assert sorted(sent_numbers(sandbox)) == [0, 1, 2, 3, 4]
    assert outboxes.rows(path) == []


def sent_numbers(sandbox: Sandbox) -> list[int]:
    """Return the numbers of the accepted events that were put."""
    numbers = (event.event_properties.get("number") for event in sandbox.events)
    return [number for number in numbers if number is not None]


def test_a_relative_outbox_path_does_not_follow_the_working_directory(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = app_of(partial(loops_lifespan, outbox="events.db", scan_interval=0.01))
    with TestClient(app) as web:
        monkeypatch.chdir("/")
        put(web, 1)
        with TestClient(
            app_of(
                partial(
                    loops_lifespan,
                    outbox=tmp_path / "events.db",
                    client=partial(AsyncLoopsClient, rate_limit=0.001),
                    grace=0.0,
                )
            )
        ) as other:
            assert [put(other, number) for number in (2, 3)] == ["events.1.db"] * 2
        wait_until(lambda: sorted(sent_numbers(sandbox)) == [1, 2, 3])
    assert outboxes.rows(tmp_path / "events.db") == []


@pytest.mark.parametrize("yields", [False, True])
def test_the_lifespan_works_inside_another_lifespan(
    sandbox: Sandbox, path: Path, yields: bool
) -> None:
    order = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        async with loops_lifespan(app, outbox=path) as state:
            await get_client(Request(scope_of(app))).send_event("up", email=EMAIL)
            order.append("up")
            yield {**state, "mine": 42} if yields else None
            order.append("down")
            await app.state.loops_outbox.put(Event("down", email=EMAIL))

    app = app_of(lifespan)
    app.mount("/below", app_of(None))
    with TestClient(app) as web:
        order.append("between")
        send(web)
        put(web, 1)
        if yields:
            send(web, "/below")
            put(web, 2, "/below")
        else:
            response = web.post("/below/send", params={"email": EMAIL})
            assert response.status_code == 500
    assert order == ["up", "between", "down"]
    for name in ("up", "down"):
        sandbox.assert_event(name, email=EMAIL)
    sandbox.assert_event("signup", email=EMAIL, times=1 + yields)


def scope_of(app: Starlette) -> dict[str, Any]:
    return {"type": "http", "app": app}


def test_a_mounted_app_shares_the_client_and_the_outbox(
    sandbox: Sandbox, path: Path
) -> None:
    below = app_of(None)
    app = Starlette(
        routes=[Mount("/below", below)], lifespan=partial(loops_lifespan, outbox=path)
    )
    with TestClient(app) as web:
        send(web, "/below")
        put(web, 1, "/below")
        assert app.state.loops_client.stats.accepted >= 1
    assert sent_numbers(sandbox) == [1]
    sandbox.assert_event("signup", email=EMAIL)


def test_a_mounted_app_prefers_the_client_that_it_opened(sandbox: Sandbox) -> None:
    below, other = app_of(None), InMemoryClient()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        async with (
            loops_lifespan(app) as state,  # the mounted app sees this state, too
            loops_lifespan(below, client=lambda: other),
        ):
            yield state

    app = app_of(lifespan)
    app.mount("/below", below)
    with TestClient(app) as web:
        send(web)
        send(web, "/below")
    assert len(sandbox.events) == len(other.sandbox.events) == 1


def test_a_starlette_app_without_fastapi_sends_and_puts(
    sandbox: Sandbox, path: Path
) -> None:
    async def endpoint(request: Request) -> JSONResponse:
        email = request.query_params["email"]
        receipt = await get_client(request).send_event("signup", email=email)
        await get_outbox(request).put(Event("later", email=email))
        return JSONResponse(receipt.attempts)

    app = Starlette(
        routes=[Route("/send", endpoint, methods=["POST"])],
        lifespan=partial(loops_lifespan, outbox=path),
        exception_handlers={LoopsError: loops_error_handler},
    )
    with TestClient(app) as web:
        send(web)
        refused = web.post("/send", params={"email": "ada"})
    assert refused.status_code == 422
    for name in ("signup", "later"):
        sandbox.assert_event(name, email=EMAIL)


def test_the_lifespan_works_as_that_of_a_router(sandbox: Sandbox, path: Path) -> None:
    router = APIRouter(lifespan=partial(loops_lifespan, outbox=path))

    @router.post("/put")
    async def put_there(number: int, outbox: LoopsOutbox) -> dict[str, str]:
        await outbox.put(*outboxes.events(number + 1)[number:])
        return {"file": path.name}

    app = FastAPI()
    app.include_router(router, prefix="/there")
    with TestClient(app) as web:
        put(web, 3, "/there")
    assert sent_numbers(sandbox) == [3]


def test_a_websocket_gets_the_client_and_the_outbox(
    sandbox: Sandbox, path: Path
) -> None:
    app = FastAPI(lifespan=partial(loops_lifespan, outbox=path))
    app.add_exception_handler(LoopsError, loops_error_handler)

    @app.websocket("/events")
    async def take(socket: WebSocket, loops: LoopsClient, outbox: LoopsOutbox) -> None:
        await socket.accept()
        async for email in socket.iter_text():
            await outbox.put(Event("put", email=email))
            await loops.send_event("sent", email=email)
            await socket.send_text("taken")

    def reply(web: TestClient, email: str) -> str:
        with web.websocket_connect("/events") as socket:
            socket.send_text(email)
            return socket.receive_text()

    with TestClient(app) as web:
        assert reply(web, EMAIL) == "taken"
        # A WebSocket has no response with a status, so the server gets the error.
        with pytest.raises(errors.InvalidEventError):
            reply(web, "ada")
    for name in ("put", "sent"):
        sandbox.assert_event(name, email=EMAIL)


def test_each_start_of_an_app_opens_a_new_client_and_the_same_file(
    sandbox: Sandbox, path: Path
) -> None:
    app = app_of(partial(loops_lifespan, outbox=path, grace=0.0))
    web = TestClient(app)
    clients, pending = [], []
    sandbox.down()
    for number in range(3):
        with web:
            assert put(web, number) == "events.db"
            clients.append(app.state.loops_client)
            pending.append(app.state.loops_outbox.stats().pending)
    assert pending == [1, 2, 3]
    assert len(set(map(id, clients))) == 3
    sandbox.down(False)
    with web:
        wait_until(lambda: len(sandbox.events) == 3)
        send(web)
    assert sorted(sent_numbers(sandbox)) == [0, 1, 2]


def test_the_dependencies_are_not_parameters_in_the_openapi_schema() -> None:
    operations = app_of(None).openapi()["paths"]
    parameters = operations["/send"]["post"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == ["email"]
    assert "parameters" not in operations["/state"]["get"]


def test_two_apps_of_one_process_use_different_files(
    sandbox: Sandbox, path: Path
) -> None:
    first, second = (app_of(partial(loops_lifespan, outbox=path)) for _ in range(2))
    with TestClient(first) as web, TestClient(second) as other:
        assert (put(web, 1), put(other, 2)) == ("events.db", "events.1.db")
    assert sorted(sent_numbers(sandbox)) == [1, 2]


def test_a_dependency_override_replaces_the_client() -> None:
    app, client = app_of(loops_lifespan), InMemoryClient()
    app.dependency_overrides[get_client] = lambda: client
    send(TestClient(app))
    client.sandbox.assert_event("signup", email=EMAIL)


@pytest.mark.parametrize("scan_interval", [0, math.nan, "30"])
def test_an_app_does_not_start_with_an_invalid_scan_interval(
    scan_interval: Any,
) -> None:
    with pytest.raises(ConfigurationError, match="scan_interval must be a positive"):
        TestClient(
            app_of(partial(loops_lifespan, scan_interval=scan_interval))
        ).__enter__()


@pytest.mark.parametrize(
    ("lifespan", "call"), [(None, "send"), (loops_lifespan, "put")]
)
def test_a_missing_client_or_outbox_is_a_configuration_error(
    sandbox: Sandbox, lifespan: Any, call: str
) -> None:
    app = app_of(lifespan)
    with TestClient(app) as web:
        response = web.post(f"/{call}", params={"email": EMAIL, "number": 1})
    assert response.status_code == 500
    name = {"send": "client", "put": "outbox"}[call]
    with pytest.raises(
        ConfigurationError,
        match=f"the app has no loops_{name}, because no lifespan has opened it: pass",
    ):
        {"send": get_client, "put": get_outbox}[call](Request(scope_of(app_of(None))))
    assert sandbox.events == []


def test_an_app_does_not_start_with_a_damaged_outbox(
    sandbox: Sandbox, path: Path
) -> None:
    path.write_bytes(b"This is no database. " * 500)
    app = app_of(partial(loops_lifespan, outbox=path))
    with pytest.raises(JournalError, match="is damaged or is not a journal"):
        TestClient(app).__enter__()
    assert not hasattr(app.state, "loops_client")


def test_an_app_does_not_start_without_a_key(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.delenv("LOOPS_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="LOOPS_API_KEY"):
        TestClient(app_of(partial(loops_lifespan, outbox=path))).__enter__()
    assert not path.exists()


@pytest.mark.parametrize("grace", [-1, math.nan, "10"])
def test_an_app_does_not_start_with_an_invalid_grace(grace: Any) -> None:
    with pytest.raises(
        ConfigurationError, match="grace must be a number of seconds from 0, not"
    ):
        TestClient(app_of(partial(loops_lifespan, grace=grace))).__enter__()


@pytest.mark.parametrize("name", ["fastapi", "taskiq"])
def test_an_import_without_the_extra_names_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"loops_async.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module(f"loops_async.{name}")
    (note,) = caught.value.__notes__
    assert note == (
        f"install the extra '{name}': pip install 'loops-async[{name}]', "
        f"or pip install '.[{name}]' in a clone"
    )


def test_an_app_does_not_start_if_its_client_cannot_be_made(path: Path) -> None:
    def client() -> AsyncLoopsClient:
        raise LookupError("no such secret")

    app = app_of(partial(loops_lifespan, client=client, outbox=path))
    with pytest.raises(LookupError, match="no such secret"):
        TestClient(app).__enter__()
    assert not path.exists()


def test_a_stopped_app_leaves_nothing_unclosed(path: Path) -> None:
    script = f"""
import gc
from functools import partial
from fastapi import FastAPI
from starlette.testclient import TestClient
from loops_async import Event
from loops_async.fastapi import LoopsClient, LoopsOutbox, loops_lifespan

app = FastAPI(lifespan=partial(loops_lifespan, outbox={str(path)!r}))

@app.post("/")
async def both(loops: LoopsClient, outbox: LoopsOutbox) -> None:
    await loops.send_event("sent", email="ada@b.co")
    await outbox.put(Event("put", email="ada@b.co"))

for _ in range(2):
    with TestClient(app) as web:
        assert web.post("/").status_code == 200
del app, web
gc.collect()
"""
    with sandbox_in_thread() as sandbox:
        assert run_script(script, sandbox, "-W", "error") == (0, "", "")
        assert len(sandbox.events) == 4


# Responses to errors

INVALID = errors.InvalidEventError(problems=["email: must not be empty", "b: no"])
FROM_LOOPS = {"message": f"no {KEY} {EMAIL}", "body": f"{KEY} {EMAIL}".encode()}
NEVER, NOT_NOW = "The event could not be sent.", "The event could not be sent now."
LATE = "The event could not be sent in time."
REFUSED = "Loops did not accept the event."
MAYBE = "It is unknown whether Loops has the event."
TABLE: list[tuple[LoopsError, int, object, str | None]] = [
    (INVALID, 422, ["email: must not be empty", "b: no"], None),
    (
        errors.RecipientNotAllowedError("no"),
        403,
        "The recipient is not allowed.",
        None,
    ),
    (errors.ConfigurationError("no"), 500, NEVER, None),
    (errors.JournalError("no"), 500, NEVER, None),
    (errors.DeadlineExceededError("no", maybe_accepted=True), 504, MAYBE, None),
    (errors.RequestTimeoutError("no", retryable=True), 504, LATE, None),
    *[
        (error, 503, NOT_NOW, "1")
        for error in (
            errors.ClientClosedError("no"),
            errors.NotTriedError("no", retryable=True),
            errors.JournalError("no", retryable=True),
            errors.ConnectFailedError("no", retryable=True),
            errors.TransportError("no"),
            errors.ServerError("no", status=500, retryable=True, **FROM_LOOPS),
            errors.RateLimitError("no", retryable=True, retry_after=0.2),
            LoopsError("no"),
        )
    ],
    (errors.ConnectionLostError("no", maybe_accepted=True), 503, MAYBE, "1"),
    (errors.ConnectFailedError("no"), 502, REFUSED, None),
    (errors.APIError("no", maybe_accepted=True), 502, MAYBE, None),
    (errors.RateLimitError("no", retryable=True, retry_after=2.4), 503, NOT_NOW, "3"),
    (errors.ServerError("no", retryable=True, retry_after=90.0), 503, NOT_NOW, "90"),
    *[
        (kind("no", status=400, **FROM_LOOPS), 502, REFUSED, None)
        for kind in (
            errors.APIError,
            errors.BadRequestError,
            errors.AuthenticationError,
            errors.ForbiddenError,
            errors.NotFoundError,
            errors.IdempotencyConflictError,
            errors.PayloadTooLargeError,
            errors.UnexpectedResponseError,
        )
    ],
]


def test_the_table_of_responses_has_every_error_class() -> None:
    classes = {getattr(errors, name) for name in errors.__all__}
    assert {type(error) for error, *_ in TABLE} == classes


@pytest.mark.parametrize(
    ("error", "status", "detail", "retry_after"),
    TABLE,
    ids=[type(error).__name__ for error, *_ in TABLE],
)
def test_each_error_becomes_its_response(
    error: LoopsError,
    status: int,
    detail: object,
    retry_after: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()
    app.add_exception_handler(LoopsError, loops_error_handler)

    @app.get("/it")
    async def raises() -> None:
        raise error

    with caplog.at_level(logging.WARNING, "loops_async"):
        response = TestClient(app).get("/it", params={"email": EMAIL})
    assert response.status_code == status
    maybe = error.maybe_accepted
    assert response.json() == {"detail": detail, "maybe_accepted": maybe}
    assert response.headers.get("Retry-After") == retry_after
    kind = type(error).__name__
    message = f"GET /it: response {status} because of {kind}: {error}"
    assert [record.getMessage() for record in caplog.records] == (
        [message] if status >= 500 else []
    )
    assert not secrets_in(caplog.text)


def test_an_error_of_other_code_is_raised_again() -> None:
    app = FastAPI()
    app.add_exception_handler(Exception, loops_error_handler)

    @app.get("/it")
    async def raises() -> None:
        raise LookupError("theirs")

    with pytest.raises(LookupError, match="theirs"):
        TestClient(app).get("/it")


def secrets_in(text: str) -> list[str]:
    return [secret for secret in (KEY, EMAIL) if secret in text]


@pytest.mark.parametrize(
    ("faults", "settings", "status", "detail", "kind"),
    [
        (["500-before"], {}, 503, MAYBE, "ServerError"),
        (["502"], {}, 503, MAYBE, "ServerError"),
        (["close-after"], {}, 503, MAYBE, "ConnectionLostError"),
        (["429"], {}, 503, NOT_NOW, "RateLimitError"),
        ([], {"base_url": "http://127.0.0.1:9/api"}, 503, NOT_NOW, "ConnectFailed"),
        ([], {"api_key": "another"}, 502, REFUSED, "AuthenticationError"),
        ([], {"allowed_recipients": []}, 403, "The recipient", "RecipientNotAllowed"),
    ],
)
def test_a_fault_at_the_sandbox_becomes_its_response(
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    faults: list[str],
    settings: dict[str, Any],
    status: int,
    detail: str,
    kind: str,
) -> None:
    client = partial(AsyncLoopsClient, retry=RetryPolicy(attempts=1), **settings)
    sandbox.script(*faults)
    with (
        caplog.at_level(logging.WARNING, "loops_async"),
        TestClient(app_of(partial(loops_lifespan, client=client))) as web,
    ):
        response = web.post("/send", params={"email": EMAIL})
    assert response.status_code == status
    assert response.json()["detail"].startswith(detail)
    if any(fault.endswith("-after") for fault in faults):
        sandbox.assert_event("signup", email=EMAIL)
        assert response.json()["maybe_accepted"] is True
    else:
        sandbox.assert_no_event()
    assert ("Retry-After" in response.headers) == (status == 503)
    assert (kind in caplog.text) == (status >= 500)
    assert not secrets_in(response.text + caplog.text)


@pytest.mark.parametrize(
    ("fault", "latency", "kind"),
    [
        ("hang-after", 0.0, "RequestTimeoutError"),
        (None, 3600.0, "DeadlineExceededError"),
    ],
)
def test_a_request_without_a_response_becomes_a_504(
    caplog: pytest.LogCaptureFixture, fault: str | None, latency: float, kind: str
) -> None:
    # In the in-memory client a request that hangs times out at once.
    sandbox = Sandbox(rate_limit=None, latency_before=latency)
    client = InMemoryClient(sandbox, deadline=2.0, retry=RetryPolicy(attempts=1))
    sandbox.script(fault)
    with (
        caplog.at_level(logging.WARNING, "loops_async"),
        TestClient(app_of(partial(loops_lifespan, client=lambda: client))) as web,
    ):
        response = web.post("/send", params={"email": EMAIL})
    assert response.status_code == 504
    assert response.json() == {"detail": MAYBE, "maybe_accepted": True}
    assert "Retry-After" not in response.headers
    assert kind in caplog.text
    assert not secrets_in(response.text + caplog.text)
    assert len(sandbox.events) == (fault == "hang-after")


def test_the_retry_after_of_loops_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behaviour = Behaviour(retry_after="seconds")
    with sandbox_in_environment(
        monkeypatch, rate_limit=1, period=3600.0, behaviour=behaviour
    ):
        client = partial(AsyncLoopsClient, retry=RetryPolicy(attempts=1))
        with TestClient(app_of(partial(loops_lifespan, client=client))) as web:
            send(web)
            response = web.post("/send", params={"email": EMAIL})
    assert response.status_code == 503
    assert 1800 <= int(response.headers["Retry-After"]) <= 3600


def test_the_response_lists_all_problems_of_an_event(
    sandbox: Sandbox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(partial(loops_lifespan, outbox=path))

    @app.post("/bad")
    async def bad(outbox: LoopsOutbox) -> None:
        await outbox.put(
            Event("", email=f"{EMAIL} {EMAIL}", event_properties={"a": float("nan")})
        )

    with caplog.at_level(logging.WARNING, "loops_async"), TestClient(app) as web:
        response = web.post("/bad")
    assert response.status_code == 422
    assert [problem.split(":")[0] for problem in response.json()["detail"]] == [
        "event_name",
        "email",
        "event_properties.a",
    ]
    assert not secrets_in(response.text + caplog.text)
    assert sandbox.requests == []


# An app under uvicorn


def drained(loops: SandboxProcess, acknowledged: set[int]) -> list[int]:
    """Wait until Loops has all these events; return the accepted numbers, in order."""

    def accepted() -> list[int]:
        events = loops.get("state")["events"]
        return [event["event_properties"]["number"] for event in events]

    wait_until(
        lambda: (
            loops.get("counts")["accepted"] >= len(acknowledged)
            and acknowledged <= set(accepted())
        )
    )
    return accepted()


def balance(folder: Path, loops: SandboxProcess, acknowledged: set[int]) -> int:
    """Start the app again until Loops has every acknowledged event exactly once.

    One worker sends the events of all files. An event whose response is missing
    when that worker stops is sent again under the same key.

    Returns:
        The number of events that Loops accepted.
    """
    with Uvicorn(folder, loops.url, loops.api_key, scan_interval=0.1) as web:
        drained(loops, acknowledged)
        web.stop()

    async def empty(path: Path) -> None:
        async with outboxes.opened(path, loops.url, api_key=loops.api_key) as outbox:
            assert await outbox.flush(60) == 0
            assert outbox.stats().rejected == outbox.stats().unknown == 0

    for path in folder.glob("events*.db"):
        run(empty(path))
        assert outboxes.verdict(path) == "ok"
    accepted = drained(loops, acknowledged)
    assert len(accepted) == len(set(accepted))
    return len(accepted)


FAULTS = {"500-before": 0.05, "500-after": 0.05, "close-after": 0.05}


async def loaded(url: str, load: Load, clients: int, meanwhile: Any) -> None:
    """Put events through the app until ``meanwhile`` is done."""
    running = asyncio.create_task(load.run(url, clients))
    try:
        await meanwhile
    finally:
        load.stop()
        await running


def stop_under_load(
    folder: Path, workers: int, clients: int, rounds: int, rate: float
) -> str:
    """Stop an app, and kill one of its workers, while it takes events.

    The rate limit is so low that most events are still in the files at the stop.
    """
    load = Load()

    async def meanwhile(web: Uvicorn, number: int) -> None:
        before = load.workers()
        await until(lambda: len(load.workers() - before) >= workers)
        await load.more(3 * clients)
        if workers > 1:
            before = load.workers()
            victim = load.acknowledged[max(load.acknowledged)][0]
            os.kill(victim, signal.SIGKILL)
            await until(lambda: load.workers() - before)  # the replacement works
            await load.more(clients)
        if workers > 1 and number % 3 == 2:
            before = load.workers()
            web.replace_workers()
            await until(lambda: len(load.workers() - before) >= workers)
        await asyncio.to_thread(web.stop)

    options = ["--workers", str(workers)] if workers > 1 else []
    with SandboxProcess(rate_limit=None, seed=6, faults=FAULTS) as loops:
        for number in range(rounds):
            with Uvicorn(folder, loops.url, loops.api_key, *options, rate=rate) as web:
                run(loaded(web.url(), load, clients, meanwhile(web, number)), 100)
        early = loops.get("counts")["accepted"]
        accepted = balance(folder, loops, set(load.acknowledged))
    assert early < len(load.acknowledged) <= accepted
    names = ["events.db", *(f"events.{number}.db" for number in range(1, workers))]
    assert load.files() >= set(names)
    return (
        f"{rounds} starts of {workers} workers, {clients} clients: "
        f"{len(load.acknowledged)} events acknowledged, {early} sent before the last "
        f"stop, {accepted} accepted, none lost or accepted twice"
    )


@not_on_windows
@pytest.mark.parametrize("workers", [1, 2])
def test_an_app_that_stops_under_load_loses_no_event(
    tmp_path: Path, record_figures: Callable[[str], None], workers: int
) -> None:
    record_figures(stop_under_load(tmp_path, workers, 20, 1, rate=0.5))


@not_on_windows
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_app_that_stops_repeatedly_under_load_loses_no_event(
    tmp_path: Path,
    record_figures: Callable[[str], None],
    workers: int,
) -> None:
    record_figures(stop_under_load(tmp_path, workers, 500, 3, rate=10.0))


@not_on_windows
def test_an_app_that_reloads_opens_the_same_file_again(tmp_path: Path) -> None:
    watched = tmp_path / "watched.py"
    watched.touch()
    load = Load()

    async def meanwhile() -> None:
        await load.more(20)
        before = load.workers()
        # The reloader notices a change only if it has seen the file before.
        while not load.workers() - before:
            later = watched.stat().st_mtime + 10
            os.utime(watched, (later, later))
            with suppress(AssertionError):
                await until(lambda: load.workers() - before, limit=5)
        await load.more(20)

    reload = ("--reload", "--reload-delay", "0.05", "--reload-dir", str(tmp_path))
    with (
        SandboxProcess(rate_limit=None) as loops,
        Uvicorn(tmp_path, loops.url, loops.api_key, *reload) as web,
    ):
        loops.post("down")
        run(loaded(web.url(), load, 5, meanwhile()))
        assert loops.get("counts")["accepted"] == 0
        loops.post("down", down=False)
        accepted = drained(loops, set(load.acknowledged))
        web.stop()
    assert load.files() == {"events.db"}
    assert len(load.workers()) >= 2
    assert len(accepted) == len(set(accepted))


@not_on_windows
def test_uvicorn_does_not_start_with_a_damaged_outbox(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"This is no database. " * 500)
    with Uvicorn(tmp_path, "http://127.0.0.1:9/api", KEY) as web:
        assert web.exit_code() == 3
        assert "JournalError" in web.log()
        assert "events.db is damaged or is not a journal" in web.log()
        assert KEY not in web.log()


def test_a_path_with_personal_data_is_logged_as_its_route(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()
    app.add_exception_handler(LoopsError, loops_error_handler)

    @app.get("/of/{email}")
    async def raises(email: str) -> None:
        raise LoopsError("no")

    assert TestClient(app).get(f"/of/{EMAIL}").status_code == 503
    assert "GET /of/{email}: response 503" in caplog.text
    assert not secrets_in(caplog.text)
