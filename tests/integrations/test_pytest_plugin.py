"""The fixtures, in runs of pytest of their own."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

# A run within this process forgets what it was the first to import.
from loops_async import Outbox, errors, testing  # noqa: F401
from loops_async._http import transport as _transport  # noqa: F401
from loops_async.sandbox import _edge  # noqa: F401

pytest_plugins = "pytester"

# Hypothesis would be imported anew at the end of each run.
OTHERS = ("hypothesispytest", "pytest_cov", "timeout")
STRICT = ("-W", "error", "--strict-markers", *(f"-pno:{name}" for name in OTHERS))
ALONE = (*STRICT, "-p", "no:asyncio", "-p", "no:anyio")
ASYNCIO = (*STRICT, "-p", "no:anyio", "-o")

HEAD = """
import asyncio, math, os, threading
import pytest
from loops_async import *

ADA = "ada@example.com"

def nothing_is_left():
    assert [one.name for one in threading.enumerate() if "loops" in one.name] == []
"""


@pytest.fixture
def played(pytester: pytest.Pytester) -> Any:
    """Run the tests of a file within this process."""

    def play(text: str, *arguments: str, **outcomes: int) -> pytest.RunResult:
        pytester.makepyfile(HEAD + text)
        before = threading.enumerate()
        result = pytester.runpytest_inprocess(*ALONE, *arguments)
        assert threading.enumerate() == before
        result.assert_outcomes(**outcomes)
        result.stdout.no_fnmatch_line("*Warning*")
        result.stderr.no_fnmatch_line("*Warning*")
        return result

    return play


def test_a_plain_test_has_a_loops_of_its_own(played: Any) -> None:
    played(
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
    nothing_is_left()
""",
        passed=4,
    )


def test_the_environment_is_set_during_the_test_only(
    played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPS_API_KEY", "outside")
    monkeypatch.delenv("LOOPS_BASE_URL", raising=False)
    played(
        """
NAMES = ("LOOPS_API_KEY", "LOOPS_BASE_URL", "LOOPS_RATE_LIMIT")

def told():
    return [os.environ.get(name) for name in NAMES]

BEFORE = told()

def test_within(loops_sandbox):
    assert told() == [loops_sandbox.api_key, loops_sandbox.url, "inf"]

@pytest.mark.loops_sandbox(api_key="mine", rate_limit=5, period=10)
def test_within_settings(loops_sandbox):
    assert told() == ["mine", loops_sandbox.url, "0.5"]

def test_afterwards():
    assert told() == BEFORE == ["outside", None, None]
""",
        passed=3,
    )


def test_settings_come_from_the_marker(played: Any) -> None:
    played(
        """
pytestmark = pytest.mark.loops_sandbox(rate_limit=7, lists=["one"])

def test_of_the_module(loops_sandbox, loops_client):
    assert loops_sandbox.rate_limit == loops_client.stats.limit == 7
    answer = asyncio.run(loops_client.request("GET", "/v1/lists"))
    assert [one["id"] for one in answer] == ["one"]

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
    ("settings", "complaint"),
    [
        ("10", "settings go by name"),
        ("rate=10", "*unexpected keyword argument 'rate'"),
        ("rate_limit=0", "rate_limit must be a whole number above zero or None, not 0"),
        ("port='80'", "port must be 0 to 65535, not '80'"),
        ("faults={'nope': 1}", "faults: no fault is named 'nope'; there are 429,*"),
        ("faults=3", "*"),
    ],
)
def test_bad_settings_are_named(played: Any, settings: str, complaint: str) -> None:
    result = played(
        f"""
@pytest.mark.loops_sandbox({settings})
def test_never_run(loops_client):
    raise AssertionError
""",
        errors=1,
    )
    result.stdout.fnmatch_lines(
        f"@pytest.mark.loops_sandbox({settings}): {complaint}".replace("[", "[[]")
    )
    result.stdout.no_fnmatch_line("*_pytest_plugin*")  # our frames say nothing


def test_faults_and_time_are_steered_without_waiting(played: Any) -> None:
    played(
        """
def test_a_script(loops_sandbox, loops_client):
    loops_sandbox.script("502", "reset-before", "close-after")
    receipt = asyncio.run(loops_client.send_event("e", email=ADA))
    assert (receipt.attempts, receipt.duplicate) == (4, True)
    assert [one.fault for one in loops_sandbox.requests][:1] == ["502"]
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
    loops_sandbox.advance(2 * 3600)  # past the refused one, too
    asyncio.run(loops.send_event("e", email=ADA))

def test_an_outage(loops_sandbox, loops_client):
    loops_sandbox.down()
    with pytest.raises(DeadlineExceededError):
        asyncio.run(loops_client.send_event("e", email=ADA, deadline=0.05))
    loops_sandbox.assert_no_event()
""",
        passed=4,
    )


def test_a_failing_assertion_shows_what_arrived_and_no_frames_of_ours(
    played: Any,
) -> None:
    result = played(
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
            "E*expected 1 event with name='signup', email=*; 0 arrived",
            "E*1 arrived in all:",
            "E*'signup' email='bo@example.com'*",
            "test_*.py:*: AssertionError",
            '>*loops_sandbox.assert_no_event("signup")  # the other line',
            "E*expected no event with name='signup'; 1 arrived",
        ]
    )
    result.stdout.no_fnmatch_line("*_sandbox.py*")
    result.stdout.no_fnmatch_line("*_assertions.py*")


def test_whatever_becomes_of_a_test_it_cleans_up(played: Any) -> None:
    played(
        """
SEEN = []

@pytest.fixture
def broken(loops_client):
    SEEN.append(loops_client)
    raise ZeroDivisionError

@pytest.fixture(autouse=True)
def around(request):
    before = dict(os.environ)
    yield
    nothing_is_left()
    for name in ("LOOPS_API_KEY", "LOOPS_BASE_URL"):
        assert os.environ.get(name) == before.get(name)

def test_raises(loops_client):
    SEEN.append(loops_client)
    asyncio.run(loops_client.send_event("e", email=ADA))
    raise ZeroDivisionError

def test_is_skipped(loops_client):
    SEEN.append(loops_client)
    pytest.skip()

def test_errs(broken):
    pass

def test_leaves_one_hanging(loops_sandbox, loops_client):
    SEEN.append(loops_client)
    loops_sandbox.script("hang-after")
    async def main():
        task = asyncio.create_task(loops_client.send_event("e", email=ADA))
        while not loops_sandbox.requests:
            await asyncio.sleep(0.001)
    asyncio.run(main())

def test_all_are_closed():
    assert len(SEEN) == 4
    for loops in SEEN:
        with pytest.raises(ClientClosedError):
            asyncio.run(loops.test_api_key())
""",
        passed=2,
        failed=1,
        skipped=1,
        errors=1,
    )


def test_a_loop_that_still_runs_elsewhere_loses_its_connections(played: Any) -> None:
    """As that of Starlette's TestClient does."""
    played(
        """
@pytest.fixture
def elsewhere():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    loop.sent = lambda main: asyncio.run_coroutine_threadsafe(main, loop).result()
    loop.delivery = None
    yield loop  # torn down after the client
    assert loop.delivery.transport._session.closed
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()

def test_it(elsewhere, loops_sandbox, loops_client):
    elsewhere.sent(loops_client.send_event("e", email=ADA))
    elsewhere.delivery = loops_client._deliveries[elsewhere]
    asyncio.run(loops_client.send_event("e", email=ADA))
    loops_sandbox.assert_event("e", times=2)
""",
        passed=1,
    )


def test_what_is_listed_says_what_it_is(pytester: pytest.Pytester) -> None:
    fixtures = pytester.runpytest_inprocess(*ALONE, "--fixtures", "-v")
    fixtures.stdout.fnmatch_lines(
        [
            "loops_sandbox -- *_pytest_plugin.py:*",
            "    A Loops of the test's own, on a real port; without a rate limit *",
            "    LOOPS_API_KEY, LOOPS_BASE_URL and LOOPS_RATE_LIMIT lead to it, *",
            "loops_client -- *_pytest_plugin.py:*",
            "    A client of `loops_sandbox` that tries again quickly; closed *",
        ]
    )
    markers = pytester.runpytest_inprocess(*ALONE, "--markers")
    markers.stdout.fnmatch_lines(
        "@pytest.mark.loops_sandbox(**settings): settings of "
        "loops_async.sandbox.Sandbox for the fixture loops_sandbox, such as *"
    )


@pytest.mark.parametrize("way", ["no:loops", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"])
def test_who_does_not_want_it_does_not_have_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    pytester.makepyfile("def test_it(loops_client): ...")
    if way.isupper():
        monkeypatch.setenv(way, "1")
        result = pytester.runpytest_inprocess(*STRICT)
        asked = pytester.runpytest_inprocess(
            *STRICT, "-p", "loops_async._pytest_plugin"
        )
        asked.assert_outcomes(passed=1)
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
def played_apart(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the tests of a file in another process, which tells of what it leaves."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")

    def play(text: str, *arguments: str, **outcomes: int) -> None:
        pytester.makepyfile(HEAD + SENDS + text)
        result = pytester.runpytest_subprocess(*arguments, timeout=60)
        result.assert_outcomes(**outcomes)
        result.stdout.no_fnmatch_line("*Warning*")
        assert result.stderr.str() == ""

    return play


def test_with_pytest_asyncio_where_it_is_asked(played_apart: Any) -> None:
    played_apart(
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
    nothing_is_left()
    with pytest.raises(ConnectionLostError, match="client was closed"):
        await task
""",
        *ASYNCIO,
        "asyncio_default_fixture_loop_scope=function",
        passed=7,
    )


def test_with_pytest_asyncio_everywhere(played_apart: Any) -> None:
    played_apart(
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


def test_with_anyio(played_apart: Any) -> None:
    played_apart(
        """
@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="module")
async def around(anyio_backend):  # keeps the loop over the tests
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


def test_with_xdist(played_apart: Any) -> None:
    played_apart(
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


def test_a_users_own_tests_pass(pytester: pytest.Pytester) -> None:
    text = (Path(__file__).parents[1] / "user_check.py").read_text()
    pytester.makepyfile(text)
    pytester.runpytest_inprocess(*ALONE).assert_outcomes(passed=2)


def test_who_does_not_use_it_does_not_pay_for_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): ...")
    pytester.makeconftest(
        """
import json, sys

def pytest_sessionfinish():
    with open("modules.json", "w") as told:
        json.dump(list(sys.modules), told)
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
