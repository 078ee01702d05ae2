"""The client and the outbox of an app: within it, and in uvicorn's processes."""

import asyncio
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
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
from support.answering import KEY, run_script, sandbox_beside
from support.apps import Load, Uvicorn, app_of, eventually, until
from support.http_server import run
from support.sandbox_process import Elsewhere

from loops_async import (
    AsyncLoopsClient,
    ConfigurationError,
    Event,
    JournalError,
    LoopsError,
    RetryPolicy,
    errors,
)
from loops_async._outbox import per_worker as _worker_outbox
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
    sys.platform == "win32", reason="there are no signals to stop with"
)

EMAIL = "ada.lovelace@private.example"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """What the environment points at."""
    with sandbox_beside() as sandbox:
        monkeypatch.setenv("LOOPS_API_KEY", KEY)
        monkeypatch.setenv("LOOPS_BASE_URL", sandbox.url)
        yield sandbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def send(web: TestClient, prefix: str = "") -> None:
    """Send from a handler, which must succeed."""
    answer = web.post(f"{prefix}/send", params={"email": EMAIL})
    assert answer.status_code == 200, answer.text


def put(web: TestClient, number: int, prefix: str = "") -> str:
    """Put from a handler; return the name of the file."""
    answer = web.post(f"{prefix}/put", params={"number": number})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["file"])


# In an app


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
    assert sorted(sent(sandbox)) == [0, 1, 2, 3, 4]
    assert outboxes.rows(path) == []


def sent(sandbox: Sandbox) -> list[int]:
    """Return the numbers of the events that were put and accepted."""
    numbered = (one.event_properties.get("number") for one in sandbox.events)
    return [number for number in numbered if number is not None]


def test_a_relative_path_stays_where_it_was(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_worker_outbox, "LOOK_EVERY", 0.01)
    app = app_of(partial(loops_lifespan, outbox="events.db"))
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
        eventually(lambda: sorted(sent(sandbox)) == [1, 2, 3])  # where it was, too
    assert outboxes.rows(tmp_path / "events.db") == []


@pytest.mark.parametrize("yields", [False, True])
def test_it_is_part_of_a_lifespan_of_ones_own(
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
            answer = web.post("/below/send", params={"email": EMAIL})
            assert answer.status_code == 500
    assert order == ["up", "between", "down"]
    for name in ("up", "down"):
        sandbox.assert_event(name, email=EMAIL)
    sandbox.assert_event("signup", email=EMAIL, times=1 + yields)


def scope_of(app: Starlette) -> dict[str, Any]:
    return {"type": "http", "app": app}


def test_an_app_that_is_mounted_shares_it(sandbox: Sandbox, path: Path) -> None:
    below = app_of(None)
    app = Starlette(
        routes=[Mount("/below", below)], lifespan=partial(loops_lifespan, outbox=path)
    )
    with TestClient(app) as web:
        send(web, "/below")
        put(web, 1, "/below")
        assert app.state.loops_client.stats.accepted >= 1
    assert sent(sandbox) == [1]
    sandbox.assert_event("signup", email=EMAIL)


def test_an_app_that_is_mounted_prefers_its_own(sandbox: Sandbox) -> None:
    """What an app opened itself, as its mounted one with other settings may."""
    below, other = app_of(None), InMemoryClient()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        async with (
            loops_lifespan(app) as state,  # which the one below sees, too
            loops_lifespan(below, client=lambda: other),
        ):
            yield state

    app = app_of(lifespan)
    app.mount("/below", below)
    with TestClient(app) as web:
        send(web)
        send(web, "/below")
    assert len(sandbox.events) == len(other.sandbox.events) == 1


def test_starlette_alone(sandbox: Sandbox, path: Path) -> None:
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


def test_the_lifespan_of_a_router(sandbox: Sandbox, path: Path) -> None:
    router = APIRouter(lifespan=partial(loops_lifespan, outbox=path))

    @router.post("/put")
    async def put_there(number: int, outbox: LoopsOutbox) -> dict[str, str]:
        await outbox.put(*outboxes.events(number + 1)[number:])
        return {"file": path.name}

    app = FastAPI()
    app.include_router(router, prefix="/there")
    with TestClient(app) as web:
        put(web, 3, "/there")
    assert sent(sandbox) == [3]


def test_a_websocket_has_them_too(sandbox: Sandbox, path: Path) -> None:
    app = FastAPI(lifespan=partial(loops_lifespan, outbox=path))
    app.add_exception_handler(LoopsError, loops_error_handler)

    @app.websocket("/events")
    async def take(socket: WebSocket, loops: LoopsClient, outbox: LoopsOutbox) -> None:
        await socket.accept()
        async for email in socket.iter_text():
            await outbox.put(Event("put", email=email))
            await loops.send_event("sent", email=email)
            await socket.send_text("taken")

    def said(web: TestClient, email: str) -> str:
        with web.websocket_connect("/events") as socket:
            socket.send_text(email)
            return socket.receive_text()

    with TestClient(app) as web:
        assert said(web, EMAIL) == "taken"
        # It has no answers with a status: what goes wrong is the server's.
        with pytest.raises(errors.InvalidEventError):
            said(web, "ada")
    for name in ("put", "sent"):
        sandbox.assert_event(name, email=EMAIL)


def test_each_start_has_a_client_of_its_own(sandbox: Sandbox, path: Path) -> None:
    app = app_of(partial(loops_lifespan, outbox=path, grace=0.0))
    web = TestClient(app)
    clients, kept = [], []
    sandbox.down()
    for number in range(3):
        with web:
            assert put(web, number) == "events.db"
            clients.append(app.state.loops_client)
            kept.append(app.state.loops_outbox.stats().pending)
    assert kept == [1, 2, 3]
    assert len(set(map(id, clients))) == 3
    sandbox.down(False)
    with web:
        eventually(lambda: len(sandbox.events) == 3)
        send(web)
    assert sorted(sent(sandbox)) == [0, 1, 2]


def test_they_are_no_parameters_of_the_api() -> None:
    operations = app_of(None).openapi()["paths"]
    assert [one["name"] for one in operations["/send"]["post"]["parameters"]] == [
        "email"
    ]
    assert "parameters" not in operations["/state"]["get"]


def test_two_apps_of_one_process_share_no_file(sandbox: Sandbox, path: Path) -> None:
    first, second = (app_of(partial(loops_lifespan, outbox=path)) for _ in range(2))
    with TestClient(first) as web, TestClient(second) as other:
        assert (put(web, 1), put(other, 2)) == ("events.db", "events.1.db")
    assert sorted(sent(sandbox)) == [1, 2]


def test_a_test_can_give_a_handler_another_client() -> None:
    app, client = app_of(loops_lifespan), InMemoryClient()
    app.dependency_overrides[get_client] = lambda: client
    send(TestClient(app))
    client.sandbox.assert_event("signup", email=EMAIL)


@pytest.mark.parametrize(
    ("lifespan", "call"), [(None, "send"), (loops_lifespan, "put")]
)
def test_what_is_not_there_is_said(sandbox: Sandbox, lifespan: Any, call: str) -> None:
    app = app_of(lifespan)
    with TestClient(app) as web:
        answer = web.post(f"/{call}", params={"email": EMAIL, "number": 1})
    assert answer.status_code == 500
    name = {"send": "client", "put": "outbox"}[call]
    with pytest.raises(
        ConfigurationError,
        match=f"the app has no loops_{name}: it did not run loops_lifespan",
    ):
        {"send": get_client, "put": get_outbox}[call](Request(scope_of(app_of(None))))
    assert sandbox.events == []


def test_an_app_does_not_start_with_a_damaged_outbox(
    sandbox: Sandbox, path: Path
) -> None:
    path.write_bytes(b"This is no database. " * 500)
    app = app_of(partial(loops_lifespan, outbox=path))
    with pytest.raises(JournalError, match="is damaged, or no journal"):
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
def test_an_app_does_not_start_with_a_grace_that_cannot_be(grace: Any) -> None:
    with pytest.raises(ConfigurationError, match="grace must be seconds, not"):
        TestClient(app_of(partial(loops_lifespan, grace=grace))).__enter__()


@pytest.mark.parametrize("name", ["fastapi", "taskiq"])
def test_without_its_extra_it_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"loops_async.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as told:
        import_module(f"loops_async.{name}")
    assert f"pip install 'loops-async[{name}]'" in told.value.__notes__[0]


def test_what_makes_the_client_may_raise(path: Path) -> None:
    def client() -> AsyncLoopsClient:
        raise LookupError("no such secret")

    app = app_of(partial(loops_lifespan, client=client, outbox=path))
    with pytest.raises(LookupError, match="no such secret"):
        TestClient(app).__enter__()
    assert not path.exists()


def test_nothing_is_left_unclosed(path: Path) -> None:
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
    with sandbox_beside() as sandbox:
        assert run_script(script, sandbox, "-W", "error") == (0, "", "")
        assert len(sandbox.events) == 4


# Answers to errors

INVALID = errors.InvalidEventError(problems=["email: must not be empty", "b: no"])
FROM_LOOPS = {"message": f"no {KEY} {EMAIL}", "body": f"{KEY} {EMAIL}".encode()}
NEVER, NOT_NOW = "The event could not be sent.", "The event could not be sent now."
LATE, REFUSED = "The event could not be sent in time.", "Loops did not take the event."
MAYBE = "Whether Loops has the event is not known."
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


def test_the_table_has_every_error() -> None:
    every = {getattr(errors, name) for name in errors.__all__}
    assert {type(error) for error, *_ in TABLE} == every


@pytest.mark.parametrize(
    ("error", "status", "detail", "retry_after"),
    TABLE,
    ids=[type(error).__name__ for error, *_ in TABLE],
)
def test_an_answer_for_each_error(
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
        answer = TestClient(app).get("/it", params={"email": EMAIL})
    assert answer.status_code == status
    maybe = error.maybe_accepted
    assert answer.json() == {"detail": detail, "maybe_accepted": maybe}
    assert answer.headers.get("Retry-After") == retry_after
    kind = type(error).__name__
    told = f"GET /it: answered {status} for {kind}: {error}"
    assert [record.getMessage() for record in caplog.records] == (
        [told] if status >= 500 else []
    )
    assert not secrets_in(caplog.text)


def test_what_is_not_ours_is_not_answered() -> None:
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
        (["hang-after"], {"timeout": 0.2}, 504, MAYBE, "RequestTimeoutError"),
        (["hang-before"], {"deadline": 0.2}, 504, MAYBE, "DeadlineExceededError"),
        (["429"], {}, 503, NOT_NOW, "RateLimitError"),
        ([], {"base_url": "http://127.0.0.1:9/api"}, 503, NOT_NOW, "ConnectFailed"),
        ([], {"api_key": "another"}, 502, REFUSED, "AuthenticationError"),
        ([], {"allowed_recipients": []}, 403, "The recipient", "RecipientNotAllowed"),
    ],
)
def test_what_really_goes_wrong_is_answered(
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
        answer = web.post("/send", params={"email": EMAIL})
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)
    if any(fault.endswith("-after") for fault in faults):
        sandbox.assert_event("signup", email=EMAIL)
        assert answer.json()["maybe_accepted"] is True
    else:
        sandbox.assert_no_event()
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert (kind in caplog.text) == (status >= 500)
    assert not secrets_in(answer.text + caplog.text)


def test_how_long_loops_asked_to_wait_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behaviour = Behaviour(retry_after="seconds")
    with sandbox_beside(rate_limit=1, period=30.0, behaviour=behaviour) as sandbox:
        monkeypatch.setenv("LOOPS_API_KEY", KEY)
        monkeypatch.setenv("LOOPS_BASE_URL", sandbox.url)
        client = partial(AsyncLoopsClient, retry=RetryPolicy(attempts=1))
        with TestClient(app_of(partial(loops_lifespan, client=client))) as web:
            send(web)
            answer = web.post("/send", params={"email": EMAIL})
    assert answer.status_code == 503
    assert 20 <= int(answer.headers["Retry-After"]) <= 30


def test_all_problems_of_an_event_are_answered(
    sandbox: Sandbox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(partial(loops_lifespan, outbox=path))

    @app.post("/bad")
    async def bad(outbox: LoopsOutbox) -> None:
        await outbox.put(
            Event("", email=f"{EMAIL} {EMAIL}", event_properties={"a": float("nan")})
        )

    with caplog.at_level(logging.WARNING, "loops_async"), TestClient(app) as web:
        answer = web.post("/bad")
    assert answer.status_code == 422
    assert [problem.split(":")[0] for problem in answer.json()["detail"]] == [
        "event_name",
        "email",
        "event_properties.a",
    ]
    assert not secrets_in(answer.text + caplog.text)
    assert sandbox.requests == []


# In uvicorn's processes


def drained(loops: Elsewhere, acknowledged: set[int]) -> list[int]:
    """Wait until Loops has all of them; return what it accepted, in order."""

    def accepted() -> list[int]:
        found = loops.look("state")["events"]
        return [one["event_properties"]["number"] for one in found]

    eventually(
        lambda: (
            loops.look("counts")["accepted"] >= len(acknowledged)
            and acknowledged <= set(accepted())
        )
    )
    return accepted()


def balance(folder: Path, loops: Elsewhere, acknowledged: set[int]) -> int:
    """Start again, wait for all that was acknowledged, and check the books.

    One worker looks after the files of all. What it still waits to hear of when
    it is stopped is sent once more, and recognised.

    Returns:
        How many events are in Loops.
    """
    with Uvicorn(folder, loops.url, loops.key, look_every=0.1) as web:
        drained(loops, acknowledged)
        web.stop()

    async def empty(path: Path) -> None:
        async with outboxes.opened(path, loops.url, api_key=loops.key) as outbox:
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
    """Put until what is done meanwhile has been done."""
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

    Its workers send only so many a second, so nearly all is left for later.
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
            await until(lambda: load.workers() - before)  # its successor is here
            await load.more(clients)
        if workers > 1 and number % 3 == 2:
            before = load.workers()
            web.hang_up()  # new workers for old ones
            await until(lambda: len(load.workers() - before) >= workers)
        await asyncio.to_thread(web.stop)

    options = ["--workers", str(workers)] if workers > 1 else []
    with Elsewhere(rate_limit=None, seed=6, faults=FAULTS) as loops:
        for number in range(rounds):
            with Uvicorn(folder, loops.url, loops.key, *options, rate=rate) as web:
                run(loaded(web.url(), load, clients, meanwhile(web, number)), 100)
        early = loops.look("counts")["accepted"]
        accepted = balance(folder, loops, set(load.acknowledged))
    assert early < len(load.acknowledged) <= accepted
    names = ["events.db", *(f"events.{number}.db" for number in range(1, workers))]
    assert load.files() >= set(names)
    return (
        f"{rounds} starts of {workers} workers, {clients} clients: "
        f"{len(load.acknowledged)} events acknowledged, {early} sent before the last "
        f"stop, {accepted} accepted, none lost or twice"
    )


@not_on_windows
@pytest.mark.parametrize("workers", [1, 2])
def test_an_app_that_is_stopped_under_load_loses_nothing(
    tmp_path: Path, record_property: Any, workers: int
) -> None:
    record_property("figures", stop_under_load(tmp_path, workers, 20, 1, rate=2.0))


@not_on_windows
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_app_that_is_stopped_again_and_again_loses_nothing(
    tmp_path: Path,
    record_property: Any,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    figures = stop_under_load(tmp_path, workers, 500, 3, rate=10.0)
    record_property("figures", figures)
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")


@not_on_windows
def test_an_app_that_is_reloaded_takes_its_file_again(tmp_path: Path) -> None:
    watched = tmp_path / "watched.py"
    watched.touch()
    load = Load()

    async def meanwhile() -> None:
        await load.more(20)
        before = load.workers()
        await asyncio.sleep(0.1)  # so that it has seen the file
        later = watched.stat().st_mtime + 10
        os.utime(watched, (later, later))
        await until(lambda: load.workers() - before)
        await load.more(20)

    reload = ("--reload", "--reload-delay", "0.05", "--reload-dir", str(tmp_path))
    with (
        Elsewhere(rate_limit=None) as loops,
        Uvicorn(tmp_path, loops.url, loops.key, *reload) as web,
    ):
        loops.steer("down")
        run(loaded(web.url(), load, 5, meanwhile()))
        assert loops.look("counts")["accepted"] == 0
        loops.steer("down", down=False)
        accepted = drained(loops, set(load.acknowledged))
        web.stop()
    assert load.files() == {"events.db"}
    assert len(load.workers()) == 2
    assert len(accepted) == len(set(accepted))


@not_on_windows
def test_uvicorn_does_not_start_with_a_damaged_outbox(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"This is no database. " * 500)
    with Uvicorn(tmp_path, "http://127.0.0.1:9/api", KEY) as web:
        assert web.ended() == 3
        assert "JournalError" in web.log()
        assert "events.db is damaged, or no journal" in web.log()
        assert KEY not in web.log()


def test_a_path_that_names_somebody_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()
    app.add_exception_handler(LoopsError, loops_error_handler)

    @app.get("/of/{email}")
    async def raises(email: str) -> None:
        raise LoopsError("no")

    assert TestClient(app).get(f"/of/{EMAIL}").status_code == 503
    assert "GET /of/{email}: answered 503" in caplog.text
    assert not secrets_in(caplog.text)
