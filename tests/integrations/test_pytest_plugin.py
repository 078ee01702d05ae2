"""The fixtures, in separate pytest runs."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

# An in-process run forgets the modules that it was the first to import.
from loops_async import Outbox, errors, testing  # noqa: F401
from loops_async._http import transport as _transport  # noqa: F401
from loops_async.sandbox import _edge  # noqa: F401

pytest_plugins = "pytester"

# Hypothesis would be imported again at the end of each run.
OTHER_PLUGINS = ("hypothesispytest", "pytest_cov", "timeout")
STRICT = (
    "-W",
    "error",
    "--strict-markers",
    *(f"-pno:{name}" for name in OTHER_PLUGINS),
)
ALONE = (*STRICT, "-p", "no:asyncio", "-p", "no:anyio")
ASYNCIO = (*STRICT, "-p", "no:anyio", "-o")

HEAD = """
import asyncio, math, os, threading, time
import pytest
from loops_async import *

ADA = "ada@example.com"

def assert_no_thread_is_left():
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if "loops" in name] == []
"""


@pytest.fixture
def run_tests(pytester: pytest.Pytester) -> Any:
    """Run the tests of a file in this process."""

    def run(text: str, *arguments: str, **outcomes: int) -> pytest.RunResult:
        pytester.makepyfile(HEAD + text)
        before = threading.enumerate()
        result = pytester.runpytest_inprocess(*ALONE, *arguments)
        assert threading.enumerate() == before
        result.assert_outcomes(**outcomes)
        result.stdout.no_fnmatch_line("*Warning*")
        result.stderr.no_fnmatch_line("*Warning*")
        return result

    return run


def test_each_plain_test_has_a_sandbox_of_its_own(run_tests: Any) -> None:
    run_tests(
        """
async def signup():
    async with AsyncLoopsClient() as loops:
        return await loops.send_event("signup", email=ADA)

def test_with_the_client(loops_sandbox, loops_client):
    receipt = asyncio.run(loops_client.send_event("signup", email=ADA))
    assert receipt.rate_limit is None
    assert asyncio.run(loops_client.request("GET", "/v1/lists"))
    assert loops_sandbox.assert_event("signup").email == ADA

def test_with_a_client_of_its_own(loops_sandbox):
    loops_sandbox.assert_no_event()  # of the test before
    asyncio.run(signup())
    loops_sandbox.assert_event("signup", email=ADA)

def test_with_the_client_alone(loops_client):
    asyncio.run(loops_client.test_api_key())

def test_without():
    assert_no_thread_is_left()
""",
        passed=4,
    )


def test_the_environment_variables_are_set_only_during_the_test(
    run_tests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPS_API_KEY", "outside")
    monkeypatch.delenv("LOOPS_BASE_URL", raising=False)
    run_tests(
        """
NAMES = ("LOOPS_API_KEY", "LOOPS_BASE_URL", "LOOPS_RATE_LIMIT")

def variables():
    return [os.environ.get(name) for name in NAMES]

BEFORE = variables()

def test_within(loops_sandbox):
    assert variables() == [loops_sandbox.api_key, loops_sandbox.url, "inf"]

@pytest.mark.loops_sandbox(api_key="mine", rate_limit=5, period=10)
def test_within_settings(loops_sandbox):
    assert variables() == ["mine", loops_sandbox.url, "0.5"]

def test_afterwards():
    assert variables() == BEFORE == ["outside", None, None]
""",
        passed=3,
    )


def test_settings_come_from_the_marker(run_tests: Any) -> None:
    run_tests(
        """
pytestmark = pytest.mark.loops_sandbox(rate_limit=7, lists=["one"])

def test_of_the_module(loops_sandbox, loops_client):
    assert loops_sandbox.rate_limit == loops_client.stats.limit == 7
    lists = asyncio.run(loops_client.request("GET", "/v1/lists"))
    assert [item["id"] for item in lists] == ["one"]

@pytest.mark.loops_sandbox(rate_limit=3, period=60)
def test_of_its_own(loops_sandbox, loops_client):
    assert (loops_client.stats.limit, loops_client.stats.period) == (3, 60)
    receipt = asyncio.run(loops_client.send_event("e", email=ADA))
    assert receipt.rate_limit == RateLimit(limit=3, remaining=2)

@pytest.mark.loops_sandbox(faults={"close-after": 1.0}, seed=1)
class TestClass:
    def test_faults(self, loops_sandbox, loops_client):
        body = {"email": ADA}
        with pytest.raises(ConnectionLostError):
            asyncio.run(loops_client.request("POST", "/v1/contacts/create", json=body))
        assert loops_sandbox.contact(email=ADA)
""",
        passed=3,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("10", "pass the settings by keyword"),
        ("rate=10", "*unexpected keyword argument 'rate'"),
        ("rate_limit=0", "rate_limit must be a whole number above zero or None, not 0"),
        ("port='80'", "port must be 0 to 65535, not '80'"),
        (
            "faults={'nope': 1}",
            "faults: no fault is named 'nope'; the faults are 429,*",
        ),
        ("faults=3", "*"),
    ],
)
def test_an_invalid_setting_of_the_marker_is_named(
    run_tests: Any, settings: str, message: str
) -> None:
    result = run_tests(
        f"""
@pytest.mark.loops_sandbox({settings})
def test_never_run(loops_client):
    raise AssertionError
""",
        errors=1,
    )
    result.stdout.fnmatch_lines(
        f"@pytest.mark.loops_sandbox({settings}): {message}".replace("[", "[[]")
    )
    result.stdout.no_fnmatch_line("*_pytest_plugin*")  # no frame of this package


def test_the_sandbox_controls_faults_and_time(run_tests: Any) -> None:
    run_tests(
        """
def test_a_script(loops_sandbox, loops_client):
    loops_sandbox.script("502", "reset-before", "close-after")
    receipt = asyncio.run(loops_client.send_event("e", email=ADA))
    assert (receipt.attempts, receipt.duplicate) == (4, True)
    assert loops_sandbox.requests[0].fault == "502"
    loops_sandbox.assert_event("e", times=1)

def test_a_day(loops_sandbox, loops_client):
    event = Event("e", email=ADA)
    assert not asyncio.run(loops_client.send_event(event)).duplicate
    loops_sandbox.advance(24 * 3600 - 60)
    assert asyncio.run(loops_client.send_event(event)).duplicate
    loops_sandbox.advance(60)
    assert not asyncio.run(loops_client.send_event(event)).duplicate
    loops_sandbox.assert_event("e", times=2)

@pytest.mark.loops_sandbox(rate_limit=2, period=3600)
def test_a_rate_window(loops_sandbox):
    once = RetryPolicy(attempts=1)
    loops = AsyncLoopsClient(rate_limit=math.inf, retry=once)
    for _ in range(2):
        asyncio.run(loops.send_event("e", email=ADA))
    with pytest.raises(RateLimitError):
        asyncio.run(loops.send_event("e", email=ADA))
    loops_sandbox.advance(2 * 3600)  # the refused request counts, too
    asyncio.run(loops.send_event("e", email=ADA))

def test_an_outage(loops_sandbox, loops_client):
    loops_sandbox.down()
    with pytest.raises(DeadlineExceededError):
        asyncio.run(loops_client.send_event("e", email=ADA, deadline=0.05))
    loops_sandbox.assert_no_event()
""",
        passed=4,
    )


def test_a_failed_assertion_shows_the_events_and_no_frame_of_this_package(
    run_tests: Any,
) -> None:
    result = run_tests(
        """
def test_it(loops_sandbox, loops_client):
    asyncio.run(loops_client.send_event("signup", email="bo@example.com"))
    loops_sandbox.assert_event("signup", email=ADA)  # the line

def test_none(loops_sandbox, loops_client):
    asyncio.run(loops_client.send_event("signup", email="bo@example.com"))
    loops_sandbox.assert_no_event("signup")  # the other line
""",
        failed=2,
    )
    result.stdout.fnmatch_lines(
        [
            '>*loops_sandbox.assert_event("signup", email=ADA)  # the line',
            "E*expected 1 event with name='signup', email=*; found 0",
            "E*the sandbox accepted 1 event:",
            "E*'signup' email='bo@example.com'*",
            "test_*.py:*: AssertionError",
            '>*loops_sandbox.assert_no_event("signup")  # the other line',
            "E*expected no event with name='signup'; found 1",
        ]
    )
    result.stdout.no_fnmatch_line("*_sandbox.py*")
    result.stdout.no_fnmatch_line("*_assertions.py*")


def test_the_fixtures_clean_up_after_any_outcome_of_a_test(run_tests: Any) -> None:
    run_tests(
        """
CLIENTS = []

@pytest.fixture
def broken(loops_client):
    CLIENTS.append(loops_client)
    raise ZeroDivisionError

@pytest.fixture(autouse=True)
def around(request):
    before = dict(os.environ)
    yield
    assert_no_thread_is_left()
    for name in ("LOOPS_API_KEY", "LOOPS_BASE_URL"):
        assert os.environ.get(name) == before.get(name)

def test_raises(loops_client):
    CLIENTS.append(loops_client)
    asyncio.run(loops_client.send_event("e", email=ADA))
    raise ZeroDivisionError

def test_is_skipped(loops_client):
    CLIENTS.append(loops_client)
    pytest.skip()

def test_has_a_broken_fixture(broken):
    pass

def test_leaves_a_hanging_request(loops_sandbox, loops_client):
    CLIENTS.append(loops_client)
    loops_sandbox.script("hang-after")
    async def main():
        task = asyncio.create_task(loops_client.send_event("e", email=ADA))
        while not loops_sandbox.requests:
            await asyncio.sleep(0.001)
    asyncio.run(main())

def test_all_are_closed():
    assert len(CLIENTS) == 4
    for loops in CLIENTS:
        with pytest.raises(ClientClosedError):
            asyncio.run(loops.test_api_key())
""",
        passed=2,
        failed=1,
        skipped=1,
        errors=1,
    )


def test_connections_of_a_loop_in_another_thread_are_closed(run_tests: Any) -> None:
    """Starlette's TestClient runs such an event loop."""
    run_tests(
        """
@pytest.fixture
def elsewhere():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    loop.run = lambda main: asyncio.run_coroutine_threadsafe(main, loop).result()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()

@pytest.fixture
def disconnects(loops_sandbox):
    yield  # ends after the client is closed, before the sandbox is
    while loops_sandbox._edge._listener.connections:
        time.sleep(0.001)

def test_it(elsewhere, loops_sandbox, disconnects, loops_client):
    elsewhere.run(loops_client.send_event("e", email=ADA))
    asyncio.run(loops_client.send_event("e", email=ADA))
    loops_sandbox.assert_event("e", times=2)
""",
        passed=1,
    )


def test_fixtures_and_marker_are_listed_with_their_descriptions(
    pytester: pytest.Pytester,
) -> None:
    fixtures = pytester.runpytest_inprocess(*ALONE, "--fixtures", "-v")
    fixtures.stdout.fnmatch_lines(
        [
            "loops_sandbox -- *_pytest_plugin.py:*",
            "    Serve a sandbox of the Loops API on a real port; by default it has *",
            "    LOOPS_API_KEY, LOOPS_BASE_URL and LOOPS_RATE_LIMIT point to the *",
            "loops_client -- *_pytest_plugin.py:*",
            "    Provide a client of `loops_sandbox` with fast retries, *",
        ]
    )
    markers = pytester.runpytest_inprocess(*ALONE, "--markers")
    markers.stdout.fnmatch_lines(
        "@pytest.mark.loops_sandbox(**settings): settings of "
        "loops_async.sandbox.Sandbox for the fixture loops_sandbox, such as *"
    )


@pytest.mark.parametrize("way", ["no:loops", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"])
def test_the_plugin_can_be_disabled(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    pytester.makepyfile("def test_it(loops_client): ...")
    if way.isupper():
        monkeypatch.setenv(way, "1")
        result = pytester.runpytest_inprocess(*STRICT)
        enabled = pytester.runpytest_inprocess(
            *STRICT, "-p", "loops_async._pytest_plugin"
        )
        enabled.assert_outcomes(passed=1)
    else:
        result = pytester.runpytest_inprocess(*ALONE, "-p", way)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("*fixture 'loops_client' not found")


SENDS = """
async def sends(sandbox, loops):
    sandbox.script("close-after")
    receipt = await loops.send_event("e", email=ADA)
    assert receipt.duplicate
    sandbox.assert_event("e", times=1)

def test_plainly(loops_sandbox, loops_client):
    asyncio.run(sends(loops_sandbox, loops_client))
"""


@pytest.fixture
def run_tests_apart(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the tests of a file in another process, with warnings as errors."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")

    def run(text: str, *arguments: str, **outcomes: int) -> None:
        pytester.makepyfile(HEAD + SENDS + text)
        result = pytester.runpytest_subprocess(*arguments, timeout=60)
        result.assert_outcomes(**outcomes)
        result.stdout.no_fnmatch_line("*Warning*")
        assert result.stderr.str() == ""

    return run


def test_the_fixtures_work_with_pytest_asyncio_in_strict_mode(
    run_tests_apart: Any,
) -> None:
    run_tests_apart(
        """
import pytest_asyncio

@pytest_asyncio.fixture
async def sent(loops_client):
    await loops_client.send_event("before", email=ADA)
    yield
    await loops_client.send_event("after", email=ADA)

@pytest_asyncio.fixture(loop_scope="session")
async def sent_in_session(loops_client):
    yield await loops_client.send_event("before", email=ADA)
    await loops_client.send_event("after", email=ADA)

@pytest.mark.asyncio
async def test_function(loops_sandbox, loops_client):
    await sends(loops_sandbox, loops_client)

@pytest.mark.asyncio
async def test_fixture(sent, loops_sandbox, loops_client):
    loops_sandbox.assert_event("before")
    await sends(loops_sandbox, loops_client)

@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.asyncio(loop_scope="session")
async def test_session(sent_in_session, loops_sandbox, loops_client, turn):
    loops_sandbox.assert_event("before")
    await sends(loops_sandbox, loops_client)

@pytest.mark.asyncio(loop_scope="session")
async def test_hangs(loops_sandbox, loops_client):
    loops_sandbox.script("hang-after")
    global task
    task = asyncio.create_task(loops_client.send_event("e", email=ADA))
    while not loops_sandbox.requests:
        await asyncio.sleep(0.001)

@pytest.mark.asyncio(loop_scope="session")
async def test_afterwards():
    assert_no_thread_is_left()
    with pytest.raises(ConnectionLostError, match="client was closed"):
        await task
""",
        *ASYNCIO,
        "asyncio_default_fixture_loop_scope=function",
        passed=7,
    )


def test_the_fixtures_work_with_pytest_asyncio_in_auto_mode(
    run_tests_apart: Any,
) -> None:
    run_tests_apart(
        """
async def test_auto(loops_sandbox, loops_client):
    await sends(loops_sandbox, loops_client)

@pytest.fixture
async def sent(loops_client):
    return await loops_client.send_event("before", email=ADA)

async def test_fixture(sent, loops_sandbox, loops_client):
    await sends(loops_sandbox, loops_client)
""",
        *ASYNCIO,
        "asyncio_default_fixture_loop_scope=session",
        "-o",
        "asyncio_default_test_loop_scope=session",
        "-o",
        "asyncio_mode=auto",
        passed=3,
    )


def test_the_fixtures_work_with_anyio(run_tests_apart: Any) -> None:
    run_tests_apart(
        """
@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="module")
async def around(anyio_backend):  # keeps one event loop for all tests
    yield

@pytest.fixture
async def sent(loops_client):
    yield await loops_client.send_event("before", email=ADA)
    await loops_client.send_event("after", email=ADA)

@pytest.mark.anyio
async def test_it(loops_sandbox, loops_client):
    await sends(loops_sandbox, loops_client)

@pytest.mark.anyio
async def test_fixture(around, sent, loops_sandbox, loops_client):
    loops_sandbox.assert_event("before")
    await sends(loops_sandbox, loops_client)
""",
        *STRICT,
        "-p",
        "no:asyncio",
        passed=3,
    )


def test_the_fixtures_work_with_xdist(run_tests_apart: Any) -> None:
    run_tests_apart(
        """
@pytest.mark.loops_sandbox(rate_limit=50)
@pytest.mark.parametrize("turn", range(4))
def test_it(loops_sandbox, loops_client, turn):
    asyncio.run(sends(loops_sandbox, loops_client))
    assert os.environ["PYTEST_XDIST_WORKER"]
""",
        *ALONE,
        "-n",
        "2",
        passed=5,
    )


def test_the_tests_of_user_check_pass(pytester: pytest.Pytester) -> None:
    text = (Path(__file__).parents[1] / "user_check.py").read_text()
    pytester.makepyfile(text)
    pytester.runpytest_inprocess(*ALONE).assert_outcomes(passed=2)


def test_an_unused_plugin_imports_only_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): ...")
    pytester.makeconftest(
        """
import json, sys

def pytest_sessionfinish():
    with open("modules.json", "w") as file:
        json.dump(list(sys.modules), file)
"""
    )

    def loaded(*arguments: str) -> set[str]:
        result = pytester.runpytest_subprocess(*ALONE, "--co", *arguments, timeout=60)
        assert result.ret == 0
        return set(json.loads((pytester.path / "modules.json").read_text()))

    assert loaded() - loaded("-p", "no:loops") == {
        "loops_async",
        "loops_async._pytest_plugin",
        "loops_async._version",
    }
