"""loops-async demo: the page is true, and readable in 80 columns."""

import asyncio
import io
import json
import re
import signal

import pytest
from rich.console import Console

from loops_async.cli._demo import show
from loops_async.cli._demo_page import send_event_code
from loops_async.sandbox import Sandbox

from .support import finish, run, start

KEY = "550e8400-e29b-41d4-a716-446655440000"
PLAIN = {"email": "test@example.com", "eventName": "testEvent"}


@pytest.fixture(scope="module")
def demo() -> tuple[Sandbox, str]:
    """Return the sandbox of a demo, and the page."""
    file = io.StringIO()
    console = Console(file=file, width=80, highlight=False)
    sandbox = asyncio.run(show(console, period=0.2, pause=0.0))
    return sandbox, file.getvalue()


def test_the_demo_sends_the_examples_of_the_loops_documentation(
    demo: tuple[Sandbox, str],
) -> None:
    sandbox, _ = demo
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


def test_the_page_shows_the_requests_that_the_sandbox_received(
    demo: tuple[Sandbox, str],
) -> None:
    sandbox, page = demo
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


def test_a_lost_response_is_recovered_under_the_same_key(
    demo: tuple[Sandbox, str],
) -> None:
    sandbox, page = demo
    lost, retry = sandbox.requests[5:7]
    assert (lost.status, lost.fault, retry.status) == (None, "close-after", 409)
    key = lost.headers["Idempotency-Key"]
    assert retry.headers["Idempotency-Key"] == key
    assert f"→  attempt 1  Idempotency-Key: {key}" in page
    assert "←  no response  fault: accept, " in page
    assert f"→  attempt 2  Idempotency-Key: {key}" in page
    sandbox.assert_event("planUpgraded", email="ada@example.com", times=1)


def test_all_problems_of_an_invalid_event_are_named_and_nothing_is_sent(
    demo: tuple[Sandbox, str],
) -> None:
    _, page = demo
    for path in (
        "event_name",
        "email",
        "event_properties.amount",
        "event_properties.items",
        "contact_properties.first_name",
    ):
        assert f"\n   {path}: " in page
    assert "Requests that reached the server: 0." in page


def test_the_burst_stays_within_the_rate_limit(demo: tuple[Sandbox, str]) -> None:
    sandbox, page = demo
    assert sandbox.counts.limited == 0
    assert "sent 40 of 40" in page
    assert re.search(r"40 events in \d+\.\d s: 40 accepted\.", page)


def test_the_page_ends_with_the_contacts_and_events_of_the_sandbox(
    demo: tuple[Sandbox, str],
) -> None:
    sandbox, page = demo
    assert len(sandbox.contacts) == 5
    for contact in sandbox.contacts:
        assert re.search(rf"^   {contact.email} ", page, re.MULTILINE)
    assert re.search(r"lessonFinished +grace@example.com +10", page)
    assert "firstName=Ada planName=Pro" in page
    assert "47 requests, 45 events accepted, 2 duplicates recognized" in page


def test_no_line_of_the_page_exceeds_80_columns(demo: tuple[Sandbox, str]) -> None:
    _, page = demo
    assert max(map(len, page.splitlines())) <= 80


def test_the_command_prints_the_page_to_standard_output() -> None:
    environment = {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm"}
    result = run("demo", "--period", "0.1", env=environment)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "Your turn" in result.stdout
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", result.stdout)


def test_a_process_without_a_terminal_prints_plain_lines() -> None:
    """The environment's settings of Loops have no effect on the demo."""
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


def test_ctrl_c_ends_the_demo_at_once_without_a_message() -> None:
    """This holds also in the burst, while events wait for a permit."""
    process = start("demo", "--period", "0.4", PYTHONUNBUFFERED="1")
    for line in process.stdout:
        if "0.0 s" in line:
            break
    code, _, err = finish(process, signal.SIGINT)
    assert (code, err) == (130, "\n")


def test_the_code_of_a_send_is_folded_if_it_exceeds_the_width() -> None:
    fields = {"email": "a@b.c", "event_properties": {"n": [1, None, "é"]}}
    short = 'await loops.send_event("e", email="a@b.c", event_properties='
    assert send_event_code("e", fields, 99) == f'{short}{{"n": [1, None, "é"]}})'
    assert send_event_code("e", fields, 80) == (
        "await loops.send_event(\n"
        '    "e",\n'
        '    email="a@b.c",\n'
        '    event_properties={"n": [1, None, "é"]},\n'
        ")"
    )
