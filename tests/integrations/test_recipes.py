"""Every file in the documentation works as the text beside it says."""

import asyncio
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.documents import README, documents, files
from support.processes import Process
from support.redis_server import RedisServer, needs_redis
from support.sandbox_process import sandbox_in_environment
from support.waiting import until

from loops_async import AsyncLoopsClient, Event, SendReport
from loops_async.sandbox import Sandbox

ROOT, FASTAPI, TASKIQ = "loops_async", "loops_async.fastapi", "loops_async.taskiq"
FILES = {name: files(text) for name, text in documents().items()}
MODULES = [
    (document, name)
    for document, found in FILES.items()
    for name in found
    if not name.startswith("test_")
]
TEST_FILES = [
    (document, name)
    for document, found in FILES.items()
    for name in found
    if name.startswith("test_")
]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with sandbox_in_environment(monkeypatch) as sandbox:
        yield sandbox
    for _, name in MODULES:
        sys.modules.pop(name, None)


def load(document: str, name: str) -> ModuleType:
    """Write the files of a document into the current folder, and import one."""
    for other, text in FILES[document].items():
        Path(f"{other}.py").write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_and_the_guides_of_this_file_have_these_files() -> None:
    assert list(FILES[README]) == ["hello", "app", "tasks", "test_signup"]
    assert list(FILES[FASTAPI]) == [
        "app",
        "settings",
        "own_lifespan",
        "endpoint",
        "test_app",
    ]
    assert list(FILES[TASKIQ]) == ["tasks", "enqueue"]


def test_the_guide_of_the_package_has_these_files() -> None:
    assert list(FILES[ROOT]) == ["jobs", "worker", "old_signups", "function"]


@pytest.mark.parametrize(("document", "name"), MODULES)
def test_a_file_can_be_imported(document: str, name: str, sandbox: Sandbox) -> None:
    load(document, name)


@pytest.mark.parametrize(("document", "name"), TEST_FILES)
def test_a_test_file_passes(document: str, name: str, tmp_path: Path) -> None:
    for other, text in FILES[document].items():
        (tmp_path / f"{other}.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-W", "error", "-m", "pytest", f"{name}.py"]
    command += ["-W", "error", "-p", "loops_async._pytest_plugin"]
    # The options of this run may need plugins that the new one does not load.
    own = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_hello_prints_the_key_and_the_number_of_attempts(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    load(README, "hello")
    event = sandbox.assert_event("signup", email="ada@example.com")
    assert capsys.readouterr().out == f"{event.idempotency_key} 1\n"


def test_the_app_of_the_readme_sends_what_a_handler_puts(sandbox: Sandbox) -> None:
    app: Any = load(README, "app").app
    with TestClient(app) as http:
        assert http.post("/signup?email=ada@example.com").status_code == 200
        refused = http.post("/signup?email=ada.example.com")
        assert refused.status_code == 422
        assert refused.json()["detail"][0].startswith("email: ")
    sandbox.assert_event("signup", email="ada@example.com", times=1)


def test_the_app_of_the_guide_puts_and_sends(sandbox: Sandbox) -> None:
    app: Any = load(FASTAPI, "app").app
    with TestClient(app) as http:
        assert http.post("/signup?email=ada@example.com").status_code == 200
        assert http.post("/upgrade?email=ada@example.com").status_code == 200
        assert http.post("/upgrade?email=ada.example.com").status_code == 422
    sandbox.assert_event("signup", email="ada@example.com")
    sandbox.assert_event("planUpgraded", email="ada@example.com")


def test_the_app_with_settings_starts_with_its_own_client(sandbox: Sandbox) -> None:
    app: Any = load(FASTAPI, "settings").app
    with TestClient(app):
        assert isinstance(app.state.loops_client, AsyncLoopsClient)


def test_the_app_with_its_own_lifespan_has_an_outbox(sandbox: Sandbox) -> None:
    app: Any = load(FASTAPI, "own_lifespan").app
    with TestClient(app) as http:
        assert http.get("/pending").json() == 0


def test_the_starlette_endpoint_sends_an_event(sandbox: Sandbox) -> None:
    app: Any = load(FASTAPI, "endpoint").app
    with TestClient(app) as http:
        response = http.post("/signup?email=ada@example.com")
    assert response.json() == {"attempts": 1}
    sandbox.assert_event("signup", email="ada@example.com")


@needs_redis
@pytest.mark.parametrize("document", [README, TASKIQ])
def test_a_worker_runs_the_enqueued_tasks(
    document: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["signup", "welcome"] if document == TASKIQ else ["signup"]
    with RedisServer() as redis:
        text = FILES[document]["tasks"].replace("redis://localhost:6379", redis.url)
        assert redis.url in text
        monkeypatch.setitem(FILES[document], "tasks", text)
        tasks: Any = load(document, "tasks")
        command = [sys.executable, "-m", "taskiq", "worker", "tasks:broker"]
        command += ["--workers", "1", "--log-level", "WARNING"]

        async def main() -> None:
            if document == TASKIQ:
                await load(document, "enqueue").enqueue("ada@example.com")
            else:
                await tasks.broker.startup()
                await tasks.send_event.kiq(Event("signup", email="ada@example.com"))
                await tasks.broker.shutdown()
            with Process(*command):
                await until(lambda: sandbox.counts.accepted == len(names))

        asyncio.run(main())
    for name in names:
        sandbox.assert_event(name, email="ada@example.com")


def test_the_scheduler_enqueues_a_tick_every_minute(sandbox: Sandbox) -> None:
    scheduler: Any = load(TASKIQ, "tasks").scheduler

    async def main() -> list[Any]:
        (source,) = scheduler.sources
        await source.startup()
        schedules: list[Any] = await source.get_schedules()
        return schedules

    (tick,) = asyncio.run(main())
    assert (tick.task_name, tick.cron) == ("tasks:tick", "* * * * *")


def test_a_job_that_runs_again_sends_its_event_once(sandbox: Sandbox) -> None:
    send_receipt = load(ROOT, "jobs").send_receipt

    async def main() -> None:
        async with AsyncLoopsClient() as loops:
            await send_receipt(loops, "7", "ada@example.com")
            await send_receipt(loops, "7", "ada@example.com")
            await send_receipt(loops, "8", "ada@example.com")

    asyncio.run(main())
    sandbox.assert_event("orderPaid", email="ada@example.com", times=2)


def test_the_worker_sends_while_it_reads_and_logs_failures(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    work = load(ROOT, "worker").work

    async def main() -> None:
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        working = asyncio.create_task(work(queue))
        for n in range(5):
            await queue.put(Event("e", email="ada@example.com", idempotency_key=f"{n}"))
        await until(lambda: sandbox.counts.accepted == 5)  # before the input ends
        lists = {"unknown": True}
        await queue.put(Event("refused", email="bo@example.com", mailing_lists=lists))
        await queue.put(None)
        await working

    asyncio.run(main())
    assert [event.idempotency_key for event in sandbox.events] == [*"01234"]
    assert [record.message.split(":")[0] for record in caplog.records] == ["refused"]


def test_old_signups_are_sent_under_keys_of_their_own(sandbox: Sandbox) -> None:
    async def users() -> AsyncIterator[tuple[int, str]]:
        for n in range(5):
            yield n, f"user{n}@example.com"

    async def main() -> SendReport:
        async with AsyncLoopsClient() as loops:
            return await load(ROOT, "old_signups").send_old(loops, users())

    report = asyncio.run(main())
    assert len(report.accepted) == 5
    sandbox.assert_event("signup", user_id=None, idempotency_key="old-signup-4")


def test_a_function_that_runs_again_sends_its_events_once(sandbox: Sandbox) -> None:
    handler = load(ROOT, "function").handler
    order = {"id": "7", "email": "ada@example.com"}
    sandbox.script("close-after")  # the first response is lost
    handler(order, None)
    handler(order, None)
    handler({**order, "id": "8"}, None)
    sandbox.assert_event("orderPaid", times=2)
    sandbox.assert_event("reviewDue", times=2)


def test_a_function_whose_events_fail_raises(sandbox: Sandbox) -> None:
    handler = load(ROOT, "function").handler
    sandbox.api_key = "another"
    with pytest.raises(ExceptionGroup, match="0 accepted, 1 failed, 1 not tried"):
        handler({"id": "7", "email": "ada@example.com"}, None)
