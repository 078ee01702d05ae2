"""loops-async demo: the story is true, and readable in 80 columns."""

import asyncio
import io
import json
import re
import signal

import pytest
from rich.console import Console

from loops_async.cli._demo import tell
from loops_async.cli._page import call
from loops_async.sandbox import Sandbox

from .support import finish, run, start

KEY = "550e8400-e29b-41d4-a716-446655440000"
PLAIN = {"email": "test@example.com", "eventName": "testEvent"}


@pytest.fixture(scope="module")
def told() -> tuple[Sandbox, str]:
    file = io.StringIO()
    console = Console(file=file, width=80, highlight=False)
    sandbox = asyncio.run(tell(console, period=0.2, pause=0.0))
    return sandbox, file.getvalue()


def test_the_examples_of_the_documentation_are_sent_as_it_has_them(
    told: tuple[Sandbox, str],
) -> None:
    sandbox, _ = told
    bodies = [json.loads(request.body) for request in sandbox.requests[:5]]
    assert bodies == [
        PLAIN,
        {**PLAIN, "eventProperties": {"testProperty": "testValue"}},
        {**PLAIN, "planName": "Pro"},
        PLAIN,
        PLAIN,
    ]
    assert [r.status for r in sandbox.requests[:5]] == [200, 200, 200, 200, 409]
    keys = [request.headers["Idempotency-Key"] for request in sandbox.requests[:5]]
    assert keys[3:] == [KEY, KEY]


def test_the_page_shows_the_requests_as_they_came(told: tuple[Sandbox, str]) -> None:
    sandbox, page = told
    first, second = sandbox.requests[:2]
    for name, value in first.headers.items():
        if name != "Authorization":
            assert f"   {name}: {value}\n" in page
    assert "   Authorization: Bearer ***\n" in page
    assert sandbox.api_key not in page
    assert f"Idempotency-Key: {second.headers['Idempotency-Key']}" in page
    assert "→  POST /api/v1/events/send" in page
    assert '     "eventProperties": {"testProperty": "testValue"}\n' in page
    assert "←  409" in page


def test_a_lost_answer_is_recovered_under_the_same_key(
    told: tuple[Sandbox, str],
) -> None:
    sandbox, page = told
    lost, again = sandbox.requests[5:7]
    assert (lost.status, lost.fault, again.status) == (None, "close-after", 409)
    key = lost.headers["Idempotency-Key"]
    assert again.headers["Idempotency-Key"] == key
    assert f"→  attempt 1  Idempotency-Key: {key}" in page
    assert f"→  attempt 2  Idempotency-Key: {key}" in page
    sandbox.assert_event("planUpgraded", email="ada@example.com", times=1)


def test_mistakes_are_all_named_and_reach_nobody(told: tuple[Sandbox, str]) -> None:
    _, page = told
    for path in (
        "event_name",
        "email",
        "event_properties.amount",
        "event_properties.items",
        "contact_properties.first_name",
    ):
        assert f"\n   {path}: " in page
    assert "Requests that reached the server: 0." in page


def test_the_burst_keeps_to_the_limit(told: tuple[Sandbox, str]) -> None:
    sandbox, page = told
    assert sandbox.counts.limited == 0
    assert "sent 40 of 40" in page
    assert re.search(r"40 events in \d\.\d s: 40 accepted\.", page)


def test_the_page_ends_with_what_the_sandbox_holds(told: tuple[Sandbox, str]) -> None:
    sandbox, page = told
    assert len(sandbox.contacts) == 5
    for contact in sandbox.contacts:
        assert re.search(rf"^   {contact.email} ", page, re.MULTILINE)
    assert re.search(r"lessonFinished +grace@example.com +10", page)
    assert "firstName=Ada planName=Pro" in page
    assert "47 requests, 45 events accepted, 2 duplicates recognised" in page


def test_no_line_is_wider_than_80_columns(told: tuple[Sandbox, str]) -> None:
    _, page = told
    assert max(map(len, page.splitlines())) <= 80


def test_the_command_tells_it_on_standard_output() -> None:
    environment = {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm"}
    result = run("demo", "--period", "0.1", env=environment)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "Your turn" in result.stdout
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", result.stdout)


def test_a_real_process_tells_it_in_plain_lines() -> None:
    """Whatever the environment says of Loops, nothing leaves the machine."""
    process = start(
        "demo",
        "--period",
        "0.5",
        LOOPS_API_KEY="sk-real",
        LOOPS_BASE_URL="https://127.0.0.1:1/api",
        LOOPS_RATE_LIMIT="1",
    )
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "sk-real" not in out
    assert "sent 40 of 40" in out


def test_ctrl_c_ends_it_at_once_without_a_word() -> None:
    """Also amid the burst, with sends still waiting for their permit."""
    process = start("demo", "--period", "0.4", PYTHONUNBUFFERED="1")
    for line in process.stdout:
        if "0.0 s" in line:
            break
    code, _, err = finish(process, signal.SIGINT)
    assert (code, err) == (130, "\n")


def test_a_call_is_python_on_one_line_or_several() -> None:
    fields = {"email": "a@b.c", "event_properties": {"n": [1, None, "é"]}}
    short = 'await loops.send_event("e", email="a@b.c", event_properties='
    assert call("e", fields, 99) == f'{short}{{"n": [1, None, "é"]}})'
    assert call("e", fields, 80) == (
        "await loops.send_event(\n"
        '    "e",\n'
        '    email="a@b.c",\n'
        '    event_properties={"n": [1, None, "é"]},\n'
        ")"
    )
