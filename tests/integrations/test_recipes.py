"""The README's files, each used as the text beside it says."""

import asyncio
import importlib.util
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.answering import until
from support.redis_server import RedisServer, needed

from loops_async import AsyncLoopsClient, Event, SendReport
from loops_async.sandbox import Sandbox
from loops_async.testing import serving

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
)


def test_each_file_is_used_by_a_test() -> None:
    assert list(FILES) == [
        "hello",
        "app",
        "tasks",
        "jobs",
        "worker",
        "old_signups",
        "function",
        "test_signup",
    ]
    assert {f"test_{name}" for name in FILES} <= set(globals())


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    monkeypatch.chdir(tmp_path)
    with serving(Sandbox(rate_limit=None)) as sandbox:
        monkeypatch.setenv("LOOPS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("LOOPS_BASE_URL", sandbox.url)
        yield sandbox
    for name in FILES:
        sys.modules.pop(name, None)


def load(name: str) -> ModuleType:
    """Import the README's file from where the test is."""
    path = Path(f"{name}.py")
    path.write_text(FILES[name], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hello(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    load("hello")
    event = sandbox.assert_event("signup", email="ada@example.com")
    assert capsys.readouterr().out == f"{event.idempotency_key} 1\n"


def test_app(sandbox: Sandbox) -> None:
    app: Any = load("app").app
    with TestClient(app) as http:
        assert http.post("/signup?email=ada@example.com").status_code == 200
        assert http.post("/upgrade?email=ada@example.com").status_code == 200
        refused = http.post("/upgrade?email=ada.example.com")
        assert refused.status_code == 422
        assert refused.json()["detail"][0].startswith("email: ")
    sandbox.assert_event("signup", email="ada@example.com")
    sandbox.assert_event("planUpgraded", email="ada@example.com")


@needed
def test_tasks(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer() as redis:
        text = FILES["tasks"].replace("redis://localhost:6379", redis.url)
        assert redis.url in text
        monkeypatch.setitem(FILES, "tasks", text)
        tasks = load("tasks")
        command = [sys.executable, "-m", "taskiq", "worker", "tasks:broker"]
        command += ["--workers", "1", "--log-level", "WARNING"]

        async def main() -> None:
            await tasks.broker.startup()
            with subprocess.Popen(command) as worker:  # noqa: ASYNC220
                try:
                    await tasks.send_event.kiq(Event("signup", email="ada@example.com"))
                    await tasks.welcome.kiq(Event("welcome", email="ada@example.com"))
                    await until(lambda: sandbox.counts.accepted == 2)
                finally:
                    worker.terminate()
            await tasks.broker.shutdown()

        asyncio.run(main())
    sandbox.assert_event("signup", email="ada@example.com")
    sandbox.assert_event("welcome", email="ada@example.com")


def test_jobs(sandbox: Sandbox) -> None:
    send_receipt = load("jobs").send_receipt

    async def main() -> None:
        async with AsyncLoopsClient() as loops:
            await send_receipt(loops, "7", "ada@example.com")
            await send_receipt(loops, "7", "ada@example.com")  # delivered again
            await send_receipt(loops, "8", "ada@example.com")

    asyncio.run(main())
    sandbox.assert_event("orderPaid", email="ada@example.com", times=2)


def test_worker(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    work = load("worker").work

    async def main() -> None:
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        working = asyncio.create_task(work(queue))
        for n in range(5):
            await queue.put(Event("e", email="ada@example.com", idempotency_key=f"{n}"))
        await until(lambda: sandbox.counts.accepted == 5)  # not only at the end
        lists = {"unknown": True}
        await queue.put(Event("refused", email="bo@example.com", mailing_lists=lists))
        await queue.put(None)
        await working

    asyncio.run(main())
    assert [event.idempotency_key for event in sandbox.events] == [*"01234"]
    assert [record.message.split(":")[0] for record in caplog.records] == ["refused"]


def test_old_signups(sandbox: Sandbox) -> None:
    async def users() -> AsyncIterator[tuple[int, str]]:
        for n in range(5):
            yield n, f"user{n}@example.com"

    async def main() -> SendReport:
        async with AsyncLoopsClient() as loops:
            return await load("old_signups").send_old(loops, users())

    report = asyncio.run(main())
    assert len(report.accepted) == 5
    sandbox.assert_event("signup", user_id=None, idempotency_key="old-signup-4")


def test_function(sandbox: Sandbox) -> None:
    handler = load("function").handler
    order = {"id": "7", "email": "ada@example.com"}
    sandbox.script("close-after")  # the first answer is lost
    handler(order, None)
    handler(order, None)  # called again for the same order
    handler({**order, "id": "8"}, None)
    sandbox.assert_event("orderPaid", times=2)
    sandbox.assert_event("reviewDue", times=2)


def test_function_that_fails(sandbox: Sandbox) -> None:
    """What could not be sent is told to who calls, to call again."""
    handler = load("function").handler
    sandbox.api_key = "another"
    with pytest.raises(ExceptionGroup, match="0 accepted, 1 failed, 1 not tried"):
        handler({"id": "7", "email": "ada@example.com"}, None)


def test_test_signup(tmp_path: Path) -> None:
    (tmp_path / "test_signup.py").write_text(FILES["test_signup"], encoding="utf-8")
    plugin = ("-p", "no:loops", "-p", "loops_async._pytest_plugin")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:asyncio",
        *plugin,
        "-W",
        "error",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
