"""loops-async sandbox: a server for other processes."""

import json
import shlex
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from support.http_server import free_port

from loops_async.cli._rendering import console
from loops_async.cli._sandbox import RequestLog, request_line

from .support import finish, interrupted_when, run, running, start
from .test_rendering import REQUEST

WHEN = datetime(2026, 11, 23, 12, 0, 0, 5000, tzinfo=UTC)


def _post(port: int, body: bytes, key: str = "sandbox-key") -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/events/send",
        data=body,
        headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "k1"},
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as refused:
        refused.close()


def _when_sent(port: int, *bodies: bytes) -> Callable[[], bool]:
    """Return a condition that sends the bodies and holds when all are sent."""

    def sent() -> bool:
        try:
            for body in bodies:
                _post(port, body)
        except urllib.error.URLError:
            return False  # the sandbox does not listen yet
        return True

    return sent


def _serve(*arguments: str, number: int = signal.SIGTERM) -> Any:
    port = free_port()
    bodies = (
        b'{"eventName":"signup","email":"ada@example.com"}',
        b'{"eventName":"signup","email":"ada@example.com"}',
    )
    with interrupted_when(_when_sent(port, *bodies), number):
        return port, run("sandbox", "--port", str(port), *arguments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_sandbox_serves_until_a_signal_and_prints_a_summary(number: int) -> None:
    before = signal.getsignal(number)
    port, result = _serve(number=number)
    assert result.exit_code == 0
    assert signal.getsignal(number) is before
    first, second, *_ = result.stdout.splitlines()
    url = f"http://127.0.0.1:{port}/api"
    assert first == f"Loops sandbox at {url}"
    assert second == "API key sandbox-key, 10 requests per 1 s (sliding window)"
    assert f"export LOOPS_BASE_URL={url} LOOPS_API_KEY=sandbox-key" in result.stdout
    assert result.stdout.splitlines()[-1] == (
        "2 requests: 1 event accepted, 1 duplicate, 0 over the limit, "
        "0 without a response, 1 contact"
    )
    accepted, duplicate = result.stderr.splitlines()
    request = "POST /api/v1/events/send  signup  ada@example.com"
    assert accepted[12:] == f"  200   {request}"
    assert duplicate[12:] == f"  409   {request}"


def test_quiet_prints_no_line_for_a_request() -> None:
    _, result = _serve("--quiet")
    assert result.stderr == ""
    assert "2 requests" in result.stdout


def test_json_begins_with_the_address_and_ends_with_the_counts() -> None:
    port, result = _serve("--json", "--key", "sandbox-key")
    first, last = map(json.loads, result.stdout.splitlines())
    url = f"http://127.0.0.1:{port}/api"
    assert first == {"url": url, "api_key": "sandbox-key"}
    assert (last["requests"], last["accepted"], last["contacts"]) == (2, 1, 1)


def test_the_options_of_the_command_reach_the_sandbox() -> None:
    _, result = _serve(
        *("--rate", "0", "--fault", "503=1", "--seed", "7", "--latency", "0-0.001"),
        *("--list", "l1", "--list", "l2", "--key", "a key"),
    )
    assert "no rate limit, fault 503 100%" in result.stdout
    exports = next(x for x in result.stdout.splitlines() if x.startswith("export"))
    assert "LOOPS_API_KEY=a key" in shlex.split(exports)
    assert "  503   POST" in result.stderr
    assert result.stderr.splitlines()[0].endswith("  fault 503")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--latency", "slow"), "'slow' is not SECONDS or LOW-HIGH"),
        (("--latency", "2-1"), "latency"),
        (("--fault", "503"), "FAULT=PROBABILITY"),
        (("--fault", "crash=0.1"), "'crash'"),
        (("--period", "0"), "period"),
        (("--rate", "-1"), "--rate"),
        (("--window", "round"), "--window"),
        (("--key", ""), "api_key"),
    ],
)
def test_invalid_settings_are_wrong_usage(
    arguments: tuple[str, ...], named: str
) -> None:
    result = run("sandbox", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr


def test_a_port_that_is_in_use_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("sandbox", "--port", port)
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: cannot listen on 127.0.0.1 port {port}: ")
    assert line.endswith("Choose another --port; 0 picks a free one.")


def test_the_first_line_of_a_process_tells_other_programs_its_address() -> None:
    process = start("sandbox", "--port", "0", "--json", "--quiet")
    address = json.loads(process.stdout.readline())
    _post(int(address["url"].split(":")[2].split("/")[0]), b"{}", address["api_key"])
    code, out, err = finish(process, signal.SIGTERM)
    assert (code, err) == (0, "")
    assert json.loads(out)["by_status"] == {"400": 1}


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"eventName":"e","email":"a@b.c"}', "  e  a@b.c"),
        (b'{"eventName":"e","userId":"u1"}', "  e  u1"),
        (b'{"eventName":"\\u001b[2J"}', "  �[2J"),
        (b'{"eventName":4}', ""),
        (b"[]", ""),
        (b"not json", ""),
        (b"\xff", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_a_line_shows_the_event_and_the_contact_if_the_body_names_them(
    body: bytes, shown: str
) -> None:
    request = attrs.evolve(REQUEST, body=body, status=None)
    assert request_line(request, WHEN).plain == (
        f"12:00:00.005  none  POST /api/v1/events/send{shown}"
    )


def test_the_log_prints_each_request_once_and_survives_a_reset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with running() as sandbox:
        port = int(sandbox.url.split(":")[2].split("/")[0])
        log = RequestLog(sandbox, console())
        for _ in range(2):
            _post(port, b"{}")
        log.print_new()
        log.print_new()
        sandbox.reset()
        _post(port, b"{}")
        log.print_new()
    assert len(capsys.readouterr().out.splitlines()) == 3
