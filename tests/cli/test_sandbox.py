"""loops-async sandbox: a process that others send to."""

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

from loops_async.cli._sandbox import _line, _Log
from loops_async.cli._show import console

from .support import finish, interrupted_when, run, running, start
from .test_show import REQUEST

WHEN = datetime(2026, 11, 23, 12, 0, 0, 5000, tzinfo=UTC)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _post(port: int, body: bytes, key: str = "sandbox-key") -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/events/send",
        data=body,
        headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "k1"},
    )
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError as refused:
        refused.close()


def _when_sent(port: int, *bodies: bytes) -> Callable[[], bool]:
    def sent() -> bool:
        try:
            for body in bodies:
                _post(port, body)
        except urllib.error.URLError:
            return False  # it does not listen yet
        return True

    return sent


def _serve(*arguments: str, number: int = signal.SIGTERM) -> Any:
    port = _free_port()
    bodies = (
        b'{"eventName":"signup","email":"ada@example.com"}',
        b'{"eventName":"signup","email":"ada@example.com"}',
    )
    with interrupted_when(_when_sent(port, *bodies), number):
        return port, run("sandbox", "--port", str(port), *arguments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_sums_up(number: int) -> None:
    before = signal.getsignal(number)
    port, result = _serve(number=number)
    assert result.exit_code == 0
    assert signal.getsignal(number) is before
    first, *_ = result.stdout.splitlines()
    url = f"http://127.0.0.1:{port}/api"
    assert first == f"A Loops of your own at {url}"
    assert f"export LOOPS_BASE_URL={url} LOOPS_API_KEY=sandbox-key" in result.stdout
    assert "10 requests per 1 s, sliding" in result.stdout
    assert result.stdout.splitlines()[-1] == (
        "2 requests: 1 event accepted, 1 duplicate, 0 over the limit, "
        "0 without an answer, 1 contact"
    )
    accepted, again = result.stderr.splitlines()
    what = "POST /api/v1/events/send  signup  ada@example.com"
    assert accepted[12:] == f"  200   {what}"
    assert again[12:] == f"  409   {what}"


def test_quiet_has_no_line_for_a_request() -> None:
    _, result = _serve("--quiet")
    assert result.stderr == ""
    assert "2 requests" in result.stdout


def test_json_begins_with_the_address_and_ends_with_the_counts() -> None:
    port, result = _serve("--json", "--key", "sandbox-key")
    first, last = map(json.loads, result.stdout.splitlines())
    url = f"http://127.0.0.1:{port}/api"
    assert first == {"url": url, "api_key": "sandbox-key"}
    assert (last["requests"], last["accepted"], last["contacts"]) == (2, 1, 1)


def test_its_settings_reach_the_sandbox() -> None:
    _, result = _serve(
        *("--rate", "0", "--fault", "503=1", "--seed", "7", "--latency", "0-0.001"),
        *("--list", "l1", "--list", "l2", "--key", "a key"),
    )
    assert "no rate limit; 503 100%" in result.stdout
    exports = next(x for x in result.stdout.splitlines() if x.startswith("export"))
    assert "LOOPS_API_KEY=a key" in shlex.split(exports)
    assert "  503   POST" in result.stderr
    assert result.stderr.splitlines()[0].endswith("  fault 503")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--latency", "slow"), "'slow' is not SECONDS or LOW-HIGH"),
        (("--latency", "2-1"), "latency must be seconds or a (low, high) pair"),
        (("--fault", "503"), "FAULT=PROBABILITY"),
        (("--fault", "crash=0.1"), "no fault is named 'crash'"),
        (("--period", "0"), "period must be above zero"),
        (("--rate", "-1"), "--rate"),
        (("--window", "round"), "--window"),
        (("--key", ""), "api_key must be printable"),
    ],
)
def test_wrong_settings_are_wrong_usage(arguments: tuple[str, ...], named: str) -> None:
    result = run("sandbox", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr


def test_a_port_that_is_taken_is_said_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("sandbox", "--port", port)
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: cannot listen on 127.0.0.1 port {port}: ")


def test_a_real_process_can_be_driven_through_its_first_line() -> None:
    process = start("sandbox", "--port", "0", "--json", "--quiet")
    told = json.loads(process.stdout.readline())
    _post(int(told["url"].split(":")[2].split("/")[0]), b"{}", told["api_key"])
    code, out, err = finish(process, signal.SIGTERM)
    assert (code, err) == (0, "")
    assert json.loads(out)["by_status"] == {"400": 1}


@pytest.mark.parametrize(
    ("body", "told"),
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
def test_a_line_tells_what_a_body_names_as_far_as_it_does(
    body: bytes, told: str
) -> None:
    request = attrs.evolve(REQUEST, body=body, status=None)
    assert _line(request, WHEN).plain == (
        f"12:00:00.005  none  POST /api/v1/events/send{told}"
    )


def test_a_reset_begins_the_log_anew(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as sandbox:
        port = int(sandbox.url.split(":")[2].split("/")[0])
        log = _Log(sandbox, console())
        for _ in range(2):
            _post(port, b"{}")
        log.look()
        log.look()
        sandbox.reset()
        _post(port, b"{}")
        log.look()
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_help_names_every_fault_and_the_default_port_is_documented() -> None:
    text = run("sandbox", "--help").stdout
    assert "close-after" in text
    assert "4010" in text
