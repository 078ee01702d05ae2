"""loops-async send, against a sandbox in a thread of its own."""

import json
import signal
from pathlib import Path

import pytest
from support.waiting import wait_until

from loops_async.cli._main import cli
from loops_async.cli._send_result import SendResult

from .support import (
    API_KEY,
    LIST,
    finish,
    flat,
    interrupted_when,
    run,
    run_json,
    running,
    start,
)

ADA = ("planUpgraded", "--email", "ada@example.com")
FULL = (
    *ADA,
    *("--user-id", "usr_1", "--prop", "plan=Pro", "--prop", "amount:=42"),
    *("--contact", "firstName=Ada", "--contact", "company:=null"),
    *("--list", f"{LIST}=true", "--key", "key-1"),
)


def test_every_field_of_an_event_arrives() -> None:
    with running() as sandbox:
        result = run("send", *FULL, sandbox=sandbox)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "accepted  planUpgraded for ada@example.com" in result.stdout
    assert "1 attempt, " in result.stdout
    assert "9 of 10 requests left" in result.stdout
    assert "key key-1" in result.stdout
    sandbox.assert_event(
        "planUpgraded",
        email="ada@example.com",
        user_id="usr_1",
        event_properties={"plan": "Pro", "amount": 42},
        contact_properties={"firstName": "Ada", "company": None},
        mailing_lists={LIST: True},
        idempotency_key="key-1",
    )


def test_an_event_that_loops_already_has_is_a_success() -> None:
    with running() as sandbox:
        run("send", *FULL, sandbox=sandbox)
        result = run("send", *FULL, sandbox=sandbox)
        code, record = run_json("send", *FULL, sandbox=sandbox)
    assert result.exit_code == 0
    assert "already accepted  planUpgraded" in result.stdout
    assert (code, record["ok"], record["duplicate"]) == (0, True, True)
    assert len(sandbox.events) == 1


def test_a_contact_without_an_email_is_named_by_its_user_id() -> None:
    with running() as sandbox:
        run("send", *FULL, sandbox=sandbox)
        result = run("send", "again", "--user-id", "usr_1", sandbox=sandbox)
    assert "again for usr_1" in result.stdout


def test_json_has_the_same_fields_for_success_and_failure() -> None:
    with running() as sandbox:
        good_code, good = run_json("send", *FULL, sandbox=sandbox)
        bad_code, bad = run_json("send", "x", "--user-id", "no-one", sandbox=sandbox)
        invalid_code, invalid = run_json("send", "x:y", "--email", "ada")
    names = list(SendResult.__annotations__)
    assert list(good) == list(bad) == list(invalid) == names
    assert (good_code, bad_code, invalid_code) == (0, 1, 1)
    assert good["ok"] is True
    assert good["idempotency_key"] == "key-1"
    assert good["attempts"] == 1
    assert good["rate_limit"] == {"limit": 10, "remaining": 9}
    assert good["elapsed"] > 0
    assert bad["ok"] is False
    assert bad["error"] == "BadRequestError"
    assert bad["status"] == 400
    assert "Contact not found." in bad["message"]
    assert bad["idempotency_key"]
    assert (bad["maybe_accepted"], bad["retryable"]) == (False, False)
    assert invalid["error"] == "InvalidEventError"
    assert len(invalid["problems"]) == 2
    assert invalid["idempotency_key"] is None


def test_an_invalid_event_is_refused_with_all_its_problems() -> None:
    result = run("send", "x:y", "--email", "ada", "--prop", "a:=null")
    assert result.exit_code == 1
    assert result.stdout == ""
    text = flat(result.stderr)
    for path in ("event_name:", "email:", "event_properties.a:"):
        assert f"problem {path}" in text
    assert "InvalidEventError, exit code 1" in text


def test_a_dry_run_needs_no_api_key_and_shows_the_body() -> None:
    result = run("send", *FULL, "--dry-run")
    assert result.exit_code == 0
    assert "nothing was sent" in result.stdout
    assert "Idempotency-Key: key-1" in result.stdout
    body = result.stdout[result.stdout.index("{") :]
    assert json.loads(body) == {
        "eventName": "planUpgraded",
        "email": "ada@example.com",
        "userId": "usr_1",
        "eventProperties": {"plan": "Pro", "amount": 42},
        "mailingLists": {LIST: True},
        "firstName": "Ada",
        "company": None,
    }
    code, record = run_json("send", *FULL, "--dry-run")
    assert (code, record["ok"], record["dry_run"]) == (0, True, True)
    assert record["attempts"] == 0
    assert record["body"] == json.loads(body)
    assert record["elapsed"] is None


def test_a_dry_run_that_fails_is_marked_as_a_dry_run() -> None:
    code, record = run_json("send", *ADA, "--dry-run", "--base-url", "loops")
    assert (code, record["dry_run"]) == (3, True)
    assert record["error"] == "ConfigurationError"


def test_a_long_value_is_not_folded_in_the_body() -> None:
    text = "word " * 60
    result = run("send", *ADA, "--dry-run", "--prop", f"text={text}")
    body = json.loads(result.stdout[result.stdout.index("{") :])
    assert body["eventProperties"]["text"] == text


def test_a_missing_api_key_is_exit_code_3() -> None:
    result = run("send", *ADA)
    assert result.exit_code == 3
    text = flat(result.stderr)
    assert "LOOPS_API_KEY or --api-key-file" in text
    assert "attempts" not in text


def test_a_refused_api_key_is_exit_code_3() -> None:
    with running(api_key="another") as sandbox:
        result = run("send", *ADA, sandbox=sandbox, env={"LOOPS_API_KEY": API_KEY})
    assert result.exit_code == 3
    text = flat(result.stderr)
    assert "Loops rejected the API key" in text
    assert "attempts 1 accepted no" in text
    assert "--key" not in text


def test_the_api_key_can_come_from_a_file_or_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"\ufeff{API_KEY}\n", encoding="utf-8")
    with running() as sandbox:
        wrong = {"LOOPS_API_KEY": "wrong"}
        for arguments, stdin in ((str(file), None), ("-", f"{API_KEY}\n")):
            result = run(
                *("send", *ADA, "--api-key-file", arguments),
                sandbox=sandbox,
                env=wrong,
                stdin=stdin,
            )
            assert result.exit_code == 0


def test_a_file_without_a_valid_api_key_is_refused_and_not_displayed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "key"
    for content in (b"", b"\xff\xfe two words"):
        file.write_bytes(content)
        result = run("send", *ADA, "--api-key-file", str(file))
        assert result.exit_code == 3
        assert "two words" not in result.output
    missing = run("send", *ADA, "--api-key-file", str(tmp_path / "none"))
    assert missing.exit_code == 2
    assert "--api-key-file" in missing.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--api-key", API_KEY),
        (f"--api-key={API_KEY}",),
        ("--api-key",),
        ("--key", API_KEY),
    ],
)
def test_an_api_key_on_the_command_line_is_refused_and_not_displayed(
    arguments: tuple[str, ...],
) -> None:
    with running() as sandbox:
        result = run("send", *ADA, *arguments, sandbox=sandbox)
    assert result.exit_code == 2  # run() checks that the key is not displayed
    assert "API key" in result.stderr
    assert not sandbox.requests


@pytest.mark.parametrize(
    "arguments", [("--token", API_KEY), (f"--apikey={API_KEY}",), ("--api_key", "x")]
)
def test_other_spellings_of_api_key_are_unknown_options(
    arguments: tuple[str, ...],
) -> None:
    result = run("send", *ADA, *arguments)
    assert result.exit_code == 2  # run() checks that the key is not displayed
    assert "No such option" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--prop", "Pro"), "--prop"),
        (("--contact", "a=1", "--contact", "a=2"), "--contact"),
        (("--list", "one=maybe"), "--list"),
        (("--timeout", "0"), "--timeout"),
        (("--deadline", "soon"), "--deadline"),
    ],
)
def test_wrong_usage_names_the_option(arguments: tuple[str, ...], named: str) -> None:
    result = run("send", *ADA, *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stdout == ""


def test_a_send_with_an_unknown_outcome_displays_the_key_for_the_next_one() -> None:
    """A 409 after nothing but 429s does not show which attempt used the key."""
    with running() as sandbox:
        run("send", *FULL, sandbox=sandbox)
        sandbox.script("429")
        result = run("send", *FULL, sandbox=sandbox)
    assert result.exit_code == 4
    text = flat(result.stderr)
    assert "attempts 2 accepted maybe" in text
    assert "key --key key-1" in text


def test_a_server_that_cannot_be_reached_is_exit_code_4() -> None:
    with running() as sandbox:
        url = sandbox.url
    arguments = ("send", *ADA, "--base-url", url, "--deadline", "0.05")
    code, record = run_json(*arguments, sandbox=sandbox)
    assert code == 4
    assert record["retryable"] is True
    assert record["maybe_accepted"] is False


def test_a_terminal_shows_each_failed_attempt_and_another_output_does_not() -> None:
    with running() as sandbox:
        sandbox.script("503", "close-before")
        terminal = {"FORCE_COLOR": "1", "NO_COLOR": "1"}
        shown = run("send", *ADA, sandbox=sandbox, env=terminal)
        sandbox.script("close-before")
        silent = run("send", *ADA, sandbox=sandbox)
    assert "attempt 1: Loops had an internal error (503); attempt 2 in " in shown.stderr
    assert "attempt 2: Connection lost" in shown.stderr
    assert "3 attempts" in shown.stdout
    assert silent.stderr == ""
    assert "2 attempts" in silent.stdout


def test_ctrl_c_reports_the_key_of_an_event_that_loops_may_have() -> None:
    with running() as sandbox:
        sandbox.script("503", "hang-after")
        with interrupted_when(lambda: sandbox.events, signal.SIGINT):
            code, record = run_json("send", *ADA, "--key", "k1", sandbox=sandbox)
        sandbox.script("hang-before")
        with interrupted_when(lambda: sandbox.counts.requests == 3, signal.SIGINT):
            result = run("send", *ADA, "--key", "k2", sandbox=sandbox)
    assert code == 130
    assert record["error"] == "SendInterruptedError"
    assert record["maybe_accepted"] is True
    assert record["idempotency_key"] == "k1"
    assert record["attempts"] == 1
    assert result.exit_code == 130
    assert "--key k2" in flat(result.stderr)


def test_ctrl_c_before_an_event_exists_causes_no_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = cli.get_command(None, "send")  # type: ignore[arg-type]
    monkeypatch.setattr(command, "callback", interrupted)
    result = run("send", *ADA)
    assert (result.exit_code, result.output) == (130, "\n")


def test_a_process_that_is_interrupted_exits_with_130() -> None:
    with running() as sandbox:
        sandbox.script("hang-before")
        process = start("send", *ADA, "--json", sandbox=sandbox)
        wait_until(lambda: sandbox.requests or process.poll() is not None)
        code, out, err = finish(process, signal.SIGINT)
    assert code == 130
    assert json.loads(out)["ok"] is False
    assert err.strip() == ""


def test_no_color_is_respected_and_an_ascii_stream_causes_no_error() -> None:
    dry = ("send", *ADA, "--dry-run")
    coloured = start(*dry, FORCE_COLOR="1", TERM="xterm-256color")
    plain = start(*dry, FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    with running() as sandbox:
        ascii_only = start("send", *ADA, sandbox=sandbox, PYTHONIOENCODING="ascii")
        assert "? accepted" in finish(ascii_only)[1]
    assert "\x1b[32m" in finish(coloured)[1]
    _, out, _ = finish(plain)
    assert "\x1b[3" not in out
    assert "planUpgraded" in out
