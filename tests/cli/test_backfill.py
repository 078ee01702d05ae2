"""loops-async backfill: reports, the confirmation, and interruptions."""

import contextlib
import gzip
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.backfills import json_lines, row, write
from support.waiting import wait_until

import loops_async
from loops_async import Preview
from loops_async._backfill.backfill import BackfillReport
from loops_async.cli._main import cli
from loops_async.cli._progress import Intervals
from loops_async.sandbox import Sandbox

from .support import (
    API_KEY,
    FREQUENT,
    displayed,
    environment,
    finish,
    flat,
    interrupted_when,
    run,
    running,
    start,
    when,
)

NUMBER = ("--type", "number=number")
TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm"}

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has neither such terminals nor such signals",
)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return write(tmp_path / "events.csv", map(row, range(3)))


def run_json(*arguments: str, sandbox: Sandbox | None = None) -> tuple[int, Any]:
    """Run it with --json; return its exit code and its one object."""
    result = run("backfill", *arguments, "--json", sandbox=sandbox)
    (line,) = result.stdout.splitlines()
    return result.exit_code, json.loads(line)


def in_shell(
    line: str,
    *arguments: str,
    sandbox: Sandbox | None = None,
    input: str = "",  # noqa: A002 - as subprocess calls it
    cwd: Path | None = None,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell, in which "$@" is the command."""
    variables = {**os.environ, "COLUMNS": "80", **environment(sandbox), **env}
    package = str(Path(loops_async.__file__).parent.parent)
    variables["PYTHONPATH"] = package
    command = [sys.executable, "-W", "error", "-m", "loops_async", *arguments]
    return subprocess.run(
        ["bash", "-c", line, "bash", *command],
        input=input,
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
        check=False,
        timeout=60,
    )


def numbers(sandbox: Sandbox) -> list[Any]:
    return sorted(one.event_properties["number"] for one in sandbox.events)


def left_in(directory: Path) -> set[str]:
    """Return the names of the files beside the input."""
    return {file.name for file in directory.iterdir()} - {"events.csv"}


class Terminal:
    """A pseudo-terminal, its output and its keyboard."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the last process has closed it
            while data := os.read(self.master, 65536):
                self.output += data.decode(errors="replace")

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str) -> None:
        while text not in self.output:
            assert self._reader.is_alive(), self.output
            time.sleep(0.005)

    def close(self) -> str:
        os.close(self.slave)
        self._reader.join()
        os.close(self.master)
        return self.output.replace("\r\n", "\n")


@contextmanager
def in_terminal(*arguments: str, sandbox: Sandbox) -> Iterator[tuple[Any, Terminal]]:
    """Run the command in a process that has a controlling terminal."""
    terminal = Terminal()
    variables = {**os.environ, **TERMINAL, "COLUMNS": "80", **environment(sandbox)}
    take_control = (
        "import fcntl, os, sys, termios; os.setsid(); "
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", take_control, "-W", "error", "-m", "loops_async"]
    process = subprocess.Popen(
        [*command, "backfill", *arguments],
        env=variables,  # type: ignore[arg-type]
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
    )
    try:
        yield process, terminal
    finally:
        process.kill()
        process.wait()
        terminal.close()


def run_in_terminal(
    monkeypatch: pytest.MonkeyPatch,
    sandbox: Sandbox,
    *arguments: str,
    keys: str,
    intervals: Intervals | None = None,
) -> tuple[int, str]:
    """Run the command in this process and in a terminal with these keys pressed."""
    terminal = Terminal()
    terminal.write(keys)
    with monkeypatch.context() as patch:
        for name, value in {**TERMINAL, **environment(sandbox)}.items():
            patch.setenv(name, str(value))
        with (
            open(terminal.slave, closefd=False) as stdin,
            open(terminal.slave, "w", closefd=False) as stdout,
        ):
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stdout)
            with pytest.raises(SystemExit) as ended:
                cli(["backfill", *arguments], obj=intervals)
    code = ended.value.code
    assert isinstance(code, int)
    return code, terminal.close()


# Reports and exit codes


def test_a_backfill_that_is_run_again_exits_with_0_and_sends_nothing(
    three: Path,
) -> None:
    with running(rate_limit=None) as sandbox:
        result = run("backfill", str(three), "--yes", *NUMBER, sandbox=sandbox)
        assert result.exit_code == 0
        assert result.stdout.startswith("3 rows in ")
        assert "s: 3 accepted\n" in result.stdout
        code, record = run_json(str(three), "--yes", *NUMBER, sandbox=sandbox)
        assert sandbox.counts.requests == 3
    assert numbers(sandbox) == [0, 1, 2]
    assert code == 0
    names = {field.name for field in attrs.fields(BackfillReport)}
    assert set(record) == names
    assert (record["rows"], record["accepted"], record["rejects"]) == (3, 3, None)
    assert record["journal"] == f"{three}.journal.db"
    assert left_in(three.parent) == {"events.csv.journal.db"}


def test_rows_that_are_not_accepted_are_exit_code_1_and_in_the_rejects(
    tmp_path: Path,
) -> None:
    bad = [row(7, email="nobody"), row(8, email="", user_id="ghost")]
    path = write(tmp_path / "events.csv", [row(1), *bad])
    with running(rate_limit=None) as sandbox:
        result = run("backfill", str(path), "--yes", sandbox=sandbox)
        code, record = run_json(str(path), "--yes", sandbox=sandbox)
    assert result.exit_code == code == 1
    assert "1 accepted, 1 invalid, 1 rejected\n" in result.stdout
    assert f"rows not accepted, with reasons: {path}.rejects.jsonl" in result.stdout
    assert "events.csv:3: email: " in result.stderr
    assert record["rejects"] == f"{path}.rejects.jsonl"
    assert [one["line"] for one in json_lines(Path(record["rejects"]))] == [3, 4]


def test_a_run_needs_a_terminal_only_for_rows_that_are_not_confirmed(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    with running(rate_limit=None) as sandbox:
        assert run("backfill", str(path), sandbox=sandbox).exit_code == 2
        assert run("backfill", str(path), "--yes", sandbox=sandbox).exit_code == 0
        assert run("backfill", str(path), sandbox=sandbox).exit_code == 0
        write(path, [row(1), row(2)])
        result = run("backfill", str(path), sandbox=sandbox)
        assert result.exit_code == 2
        assert "no confirmation is possible" in flat(result.stderr)
        assert len(sandbox.events) == 1


def test_the_preview_shows_problems_events_contacts_and_the_time(
    tmp_path: Path,
) -> None:
    bad = [row(n, email="nobody") for n in range(23)]
    good = [row(n, event_name=f"e{n % 22}") for n in range(2000)]
    path = write(tmp_path / "events.csv", good + bad)
    result = run("backfill", str(path), "--dry-run", "--rate", "2.5")
    assert result.exit_code == 1
    assert result.stdout == "nothing was sent\n"
    lines = result.stderr.splitlines()
    assert sum("email: " in line for line in lines) == 20
    assert "and 3 more invalid rows" in lines
    cells = [line.split() for line in lines]
    assert ["91", "e0"] in cells
    assert ["and", "2", "other", "event", "names"] in cells
    assert "2,023 rows, 23 invalid, 2,000 contacts" in lines
    assert "2,000 events to send, about 13 min 20 s at 2.5 a second" in lines
    first = {
        "eventName": "e0",
        "email": "u0@b.co",
        "eventProperties": {"number": "0"},
    }
    assert json.loads(lines[lines.index("the first valid row:") + 1]) == first
    assert left_in(tmp_path) == set()


def test_the_preview_of_an_input_without_a_valid_row_shows_no_row(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1, email="nobody")])
    result = run("backfill", str(path), "--dry-run")
    assert result.exit_code == 1
    assert "1 row, 1 invalid, 0 contacts\n0 events to send, " in result.stderr
    assert "the first valid row" not in result.stderr


def test_the_preview_of_a_dry_run_can_be_json(three: Path) -> None:
    code, record = run_json(str(three), "--dry-run")
    assert code == 0
    assert set(record) == {field.name for field in attrs.fields(Preview)}
    assert (record["rows"], record["to_send"], record["events"]) == (
        3,
        3,
        {"signup": 3},
    )
    assert record["seconds"] == 3 / 8
    assert record["sample"]["email"] == "u0@b.co"
    assert left_in(three.parent) == set()


def test_json_is_alone_on_standard_output(three: Path) -> None:
    with running(rate_limit=None) as sandbox:
        sandbox.down()
        with when(displayed("0 of 3"), lambda: sandbox.down(False)):
            arguments = ("backfill", str(three), "--yes", "--json")
            result = run(*arguments, sandbox=sandbox, intervals=FREQUENT)
    assert json.loads(result.stdout)["accepted"] == 3
    assert "3 contacts" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "FILE"),
        (("events.csv",), "--yes"),
        (("-", "--journal", "j.db"), "--yes"),
        (("-", "--yes"), "--journal"),
        (("events.csv", "--yes", "--rate", "0"), "--rate"),
        (("events.csv", "--yes", "--rate", "nan"), "--rate"),
        (("events.csv", "--yes", "--rate", "inf"), "--rate"),
        (("events.csv", "--dry-run", "--rate", "nan"), "--rate"),
        (("events.csv", "--dry-run", "--rate", "1e-308"), "--rate"),
        (("events.csv", "--yes", "--max-errors", "-1"), "--max-errors"),
        (("events.csv", "--yes", "--format", "xml"), "--format"),
        (("events.csv", "--yes", "--map", "email"), "FIELD=COLUMN"),
        (("events.csv", "--yes", "--map", "=x"), "FIELD=COLUMN"),
        (("events.csv", "--yes", "--type", "a="), "--type"),
        (("events.csv", "--yes", "--type", "a=date", "--type", "a=date"), "once"),
        (("events.csv", "--yes", "--journal", "."), "--journal"),
        (("events.csv", "--yes", "--api-key", API_KEY), "--api-key-file"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_changes_nothing(
    three: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(three.parent)
    with running() as sandbox:
        result = run("backfill", *arguments, sandbox=sandbox)
    assert result.exit_code == 2
    assert named in flat(result.stderr)
    assert result.stdout == ""
    assert not sandbox.requests
    assert left_in(three.parent) == set()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("none.csv",), "none.csv"),
        (("events.csv", "--rejects", "events.csv"), "events.csv"),
        (("events.csv", "events.csv"), "events.csv"),
        (("events.csv", "--format", "jsonl"), None),  # its rows are not JSON
        (("events.csv", "--type", "number=money"), "money"),
        (("events.csv", "--type", "email.x=date"), "email.x"),
        (("events.csv", "--map", "email=E-Mail"), "E-Mail"),
        (("events.csv", "--event-name", "a:b"), "event_name"),
        (("events.csv", "--journal", "none/j.db"), "none/j.db"),
        (("events.csv", "--base-url", "loops"), "base_url"),
    ],
)
def test_an_unusable_file_or_setting_is_exit_code_3_and_changes_nothing(
    three: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    named: str | None,
) -> None:
    monkeypatch.chdir(three.parent)
    with running() as sandbox:
        result = run("backfill", *arguments, "--yes", sandbox=sandbox)
        if named is None:
            assert result.exit_code == 1
            return
        assert result.exit_code == 3
        assert named in flat(result.stderr)
        assert "Cannot use this file or setting" in result.stderr
        for other in ("attempts", "accepted", "next", "--api-key-file"):
            assert other not in result.stderr
        assert result.stdout == ""
        code, record = run_json(*arguments, "--yes", sandbox=sandbox)
    assert code == 3
    assert record["error"] in ("ConfigurationError", "JournalError")
    assert named in record["message"]
    assert not sandbox.requests
    assert left_in(three.parent) == set()


def test_a_missing_api_key_is_exit_code_3_except_in_a_dry_run(three: Path) -> None:
    result = run("backfill", str(three), "--yes")
    assert result.exit_code == 3
    assert "LOOPS_API_KEY" in flat(result.stderr)
    assert run("backfill", str(three), "--dry-run").exit_code == 0
    assert left_in(three.parent) == set()


def test_after_a_refused_api_key_the_right_one_continues_the_run(three: Path) -> None:
    with running(rate_limit=None, api_key="another") as sandbox:
        wrong = {"LOOPS_API_KEY": API_KEY}
        arguments = ("backfill", str(three), "--yes", *NUMBER)
        result = run(*arguments, sandbox=sandbox, env=wrong)
        assert result.exit_code == 3
        assert "3 pending; stopped by: " in result.stdout
        assert "401" in result.stdout
        assert "run the same command again to continue" in result.stdout
        assert run(*arguments, sandbox=sandbox).exit_code == 0
    assert numbers(sandbox) == [0, 1, 2]


def test_after_a_wrong_address_the_right_one_continues_the_run(three: Path) -> None:
    with running(rate_limit=None) as sandbox:
        arguments = (str(three), "--yes", *NUMBER)
        wrong = ("--base-url", f"{sandbox.url}/wrong")
        code, record = run_json(*arguments, *wrong, sandbox=sandbox)
        assert (code, record["pending"]) == (3, 3)
        assert "404" in record["stopped_by"]
        assert run_json(*arguments, sandbox=sandbox)[0] == 0
    assert numbers(sandbox) == [0, 1, 2]


def test_an_unknown_row_is_exit_code_4_until_it_is_sent_again(three: Path) -> None:
    arguments = ("backfill", str(three), "--yes", *NUMBER)
    with running(rate_limit=None) as sandbox:
        run(*arguments, sandbox=sandbox)
        with closing(sqlite3.connect(f"{three}.journal.db")) as db:
            since = time.time() - 24 * 3600
            pending = "UPDATE events SET state = 'pending', ambiguous_since = ?"
            db.execute(f"{pending} WHERE id = 2", (since,))
            db.commit()
        for _ in range(2):
            result = run(*arguments, sandbox=sandbox)
            assert result.exit_code == 4
            assert "1 unknown: Loops may have accepted them" in result.stdout
        result = run(*arguments, "--resend-unknown", sandbox=sandbox)
        assert result.exit_code == 0
        assert "2 accepted, 1 accepted before" in result.stdout
    assert numbers(sandbox) == [0, 1, 2]


def test_more_invalid_rows_than_max_errors_are_exit_code_4(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])
    with running() as sandbox:
        arguments = (str(path), "--yes", "--max-errors", "0")
        code, record = run_json(*arguments, sandbox=sandbox)
    assert code == 4
    assert "rows: 1, more than 0" in record["stopped_by"]
    assert (record["invalid"], record["pending"]) == (1, 1)
    assert not sandbox.requests


# Input


def test_an_ignored_column_is_not_sent(three: Path) -> None:
    arguments = ("--ignore", "user_id", "--ignore", "event_properties.number")
    with running(rate_limit=None) as sandbox:
        code, record = run_json(str(three), "--yes", *arguments, sandbox=sandbox)
    assert (code, record["accepted"]) == (0, 3)
    assert [dict(one.event_properties) for one in sandbox.events] == [{}] * 3


def test_a_file_whose_name_is_not_utf_8_is_sent_and_its_name_is_shown(
    tmp_path: Path,
) -> None:
    path = tmp_path / os.fsdecode(b"ev\xff.csv")
    with running(rate_limit=None) as sandbox:
        code, _, err = finish(start("backfill", str(path), "--yes", sandbox=sandbox))
        assert code == 3
        assert "No such file" in flat(err)
        write(path, [row(1), row(2, email="nobody")])
        for as_json in ((), ("--json",)):
            arguments = ("backfill", str(path), "--yes", *as_json)
            code, out, err = finish(start(*arguments, sandbox=sandbox))
            assert code == 1, err
            assert "Traceback" not in err
            if not as_json:
                assert "ev\N{REPLACEMENT CHARACTER}.csv.rejects.jsonl" in out
        assert Path(json.loads(out)["rejects"]) == Path(f"{path}.rejects.jsonl")
        assert sandbox.counts.accepted == 1


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (("events.csv",), 2, "stdin is not a terminal"),
        (("-", "--dry-run"), 3, "cannot read standard input: it is closed"),
        (("events.csv", "--dry-run"), 0, "nothing was sent"),
    ],
)
def test_a_process_without_standard_input_cannot_confirm_or_read_it(
    three: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    shown: str,
) -> None:
    command = ("backfill", *arguments)
    process = in_shell('exec "$@" <&-', *command, cwd=three.parent)
    assert process.returncode == code
    assert shown in flat(process.stderr + process.stdout)
    assert "Traceback" not in process.stderr
    monkeypatch.chdir(three.parent)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as ended:
        cli(command)
    assert ended.value.code == code


def test_standard_input_that_cannot_be_copied_to_a_file_is_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = "cannot copy standard input to a temporary file: "
    process = in_shell(
        *('ulimit -f 64; exec "$@"', "backfill", "-", "--dry-run"),
        input='{"email": "u1@b.co", "event_name": "x"}\n' * 10_000,
        cwd=tmp_path,
        TMPDIR=str(tmp_path),
    )
    assert process.returncode == 3
    assert f"{problem}File too large" in flat(process.stderr)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    result = run("backfill", "-", "--dry-run", stdin="{}")
    assert result.exit_code == 3
    assert problem in flat(result.stderr)


def test_several_files_are_one_run(tmp_path: Path) -> None:
    plain = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])
    zipped = tmp_path / "more.csv.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes().replace(b",1", b",3")))
    with running(rate_limit=None) as sandbox:
        files = (str(plain), str(zipped))
        code, record = run_json(*files, "--yes", *NUMBER, sandbox=sandbox)
    assert code == 1
    assert (record["rows"], record["accepted"], record["invalid"]) == (4, 2, 2)
    assert numbers(sandbox) == [1, 3]
    found = json_lines(Path(record["rejects"]))
    assert [(one["file"], one["line"]) for one in found] == [
        (str(plain), 3),
        (str(zipped), 3),
    ]


def test_standard_input_that_is_run_again_is_sent_once(tmp_path: Path) -> None:
    lines = [
        '{"email": "u1@b.co", "event_name": "x", "event_properties": {"number": 1}}',
        '{"email": "nobody", "event_name": "x"}',
    ]
    more = write(tmp_path / "events.csv", [row(2)])
    journal = tmp_path / "run.db"
    arguments = ("backfill", "-", str(more), "--journal", str(journal), "--yes")
    with running(rate_limit=None) as sandbox:
        for problem in ("stdin.jsonl:2: email: ", ""):
            result = run(
                *arguments, *NUMBER, "--json", sandbox=sandbox, stdin="\n".join(lines)
            )
            record = json.loads(result.stdout)
            assert result.exit_code == 1
            assert (record["rows"], record["accepted"], record["invalid"]) == (3, 2, 1)
            assert problem in result.stderr
        assert sandbox.counts.requests == 2
    assert numbers(sandbox) == [1, 2]
    # Standard input has no directory for the file.
    assert record["rejects"] == f"{journal}.rejects.jsonl"
    (one,) = json_lines(Path(record["rejects"]))
    assert one["record"] == {"email": "nobody", "event_name": "x"}


def test_standard_input_can_be_csv_and_checked_in_a_dry_run(tmp_path: Path) -> None:
    text = write(tmp_path / "events.csv", [row(1)]).read_text(encoding="utf-8")
    result = run("backfill", "-", "--format", "csv", "--dry-run", stdin=text)
    assert result.exit_code == 0
    assert "1 row, 1 contact" in result.stderr
    assert left_in(tmp_path) == set()


def test_columns_are_mapped_and_typed(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(
        "E-Mail: private,Total,When\nada@b.co,4.5,2026-01-31\n", encoding="utf-8"
    )
    options = ["--event-name", "bought", "--map", "email=E-Mail: private"]
    options += ["--map", "amount=Total", "--map", "contactProperties.since=When"]
    options += ["--type", "amount=number", "--type", "since=date"]
    with running(rate_limit=None) as sandbox:
        assert run_json(str(path), "--yes", *options, sandbox=sandbox)[0] == 0
    (event,) = sandbox.events
    assert (event.name, event.email) == ("bought", "ada@b.co")
    assert event.event_properties == {"amount": 4.5}
    assert event.contact_properties["since"].startswith("2026-01-31")


def test_the_changes_of_an_input_are_shown_and_its_new_rows_are_sent(
    three: Path,
) -> None:
    arguments = ("backfill", str(three), "--yes", *NUMBER)
    with running(rate_limit=None, api_key="another") as sandbox:
        wrong = {"LOOPS_API_KEY": API_KEY}
        run(*arguments, sandbox=sandbox, env=wrong)
        # One of the pending rows is removed, and six are new.
        write(three, [row(1), row(2), *map(row, range(10, 16))])
        result = run(*arguments, sandbox=sandbox)
        assert result.exit_code == 0
        head = "The input, or an option, has changed since this run began:"
        assert head in result.stderr.splitlines()
        lines = ", ".join(f"{three}:{line}" for line in range(4, 9))
        assert f"  new or corrected: 6 rows ({lines}, ...)\n" in result.stderr
        assert "  removed before sending: 1 row (will not be sent)" in result.stderr
        assert "removed after sending" not in result.stderr
        assert numbers(sandbox) == [1, 2, *range(10, 16)]

        write(three, [row(1), row(99)])
        result = run(*arguments, sandbox=sandbox)
        assert f"  new or corrected: 1 row ({three}:3)\n" in result.stderr
        assert "  removed after sending: 7 rows\n" in result.stderr
        assert "removed before sending" not in result.stderr
        assert result.exit_code == 3
        assert "Cannot use this file or setting" in result.stderr
        assert sandbox.counts.accepted == 8


def test_changes_are_shown_again_until_the_user_confirms_them(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(three), *NUMBER)
    with running(rate_limit=None) as sandbox:
        run("backfill", *arguments, "--yes", sandbox=sandbox)
        write(three, map(row, range(1, 5)))
        run_in_terminal(monkeypatch, sandbox, *arguments, keys="n\n")
        write(three, map(row, range(2, 5)))
        code, output = run_in_terminal(monkeypatch, sandbox, *arguments, keys="y\n")
    assert code == 0
    assert "  new or corrected: 2 rows (" in output
    assert "  removed after sending: 2 rows\n" in output
    assert numbers(sandbox) == [0, 1, 2, 3, 4]


# Output that cannot be written


def test_a_report_that_cannot_be_written_is_exit_code_1(three: Path) -> None:
    arguments = ("backfill", str(three), "--yes", *NUMBER)
    with running(rate_limit=None) as sandbox:
        process = in_shell('exec "$@" >/dev/full', *arguments, sandbox=sandbox)
        assert process.returncode == 1
        last = "Error: cannot write the output: No space left on device\n"
        assert process.stderr.endswith(last)
        assert "Traceback" not in process.stderr
        assert sandbox.counts.accepted == 3
        assert run(*arguments, sandbox=sandbox).exit_code == 0


def test_a_preview_that_cannot_be_written_sends_nothing(three: Path) -> None:
    arguments = ("backfill", str(three), "--yes")
    with running(rate_limit=None) as sandbox:
        process = in_shell('exec "$@" 2>/dev/full', *arguments, sandbox=sandbox)
    assert (process.returncode, process.stdout) == (1, "")
    assert not sandbox.requests


# Confirmation in a terminal


def test_a_backfill_that_is_declined_sends_nothing_and_asks_the_next_time(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(three), *NUMBER)
    with running(rate_limit=None) as sandbox:
        for _ in range(2):
            code, output = run_in_terminal(
                monkeypatch, sandbox, *arguments, keys="n\n", intervals=FREQUENT
            )
            assert code == 130
            assert "Send 3 events to Loops? [y/N]: " in output
            assert output.endswith("[y/N]: nothing was sent\n")
            assert left_in(three.parent) <= {"events.csv.journal.db"}
        assert not sandbox.requests
        code, output = run_in_terminal(monkeypatch, sandbox, *arguments, keys="y\n")
        assert code == 0
        assert "3 accepted" in output
        # The run is complete, so there is nothing to confirm.
        code, output = run_in_terminal(monkeypatch, sandbox, *arguments, keys="n\n")
        assert code == 0
        assert "[y/N]" not in output
    assert numbers(sandbox) == [0, 1, 2]


@pytest.mark.parametrize("rest", [range(2, 4), range(4)])
def test_declining_new_rows_reports_that_nothing_more_was_sent(
    three: Path, monkeypatch: pytest.MonkeyPatch, rest: range
) -> None:
    """This holds whether or not the input still has the rows sent before."""
    arguments = (str(three), *NUMBER)
    with running(rate_limit=None) as sandbox:
        write(three, map(row, range(2)))
        run("backfill", *arguments, "--yes", sandbox=sandbox)
        write(three, map(row, rest))
        code, output = run_in_terminal(monkeypatch, sandbox, *arguments, keys="n\n")
    assert code == 130
    assert f"{len(rest)} rows, {len(rest)} contacts\n2 events to send, " in output
    assert output.endswith("[y/N]: nothing more was sent\n")
    assert numbers(sandbox) == [0, 1]


def test_the_end_of_the_input_at_the_question_is_an_interruption(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(rate_limit=None) as sandbox:
        code, _ = run_in_terminal(monkeypatch, sandbox, str(three), keys="\x04")
    assert code == 130
    assert not sandbox.requests
    assert left_in(three.parent) <= {"events.csv.journal.db"}


def test_ctrl_c_at_the_question_ends_the_command(three: Path) -> None:
    with (
        running(rate_limit=None) as sandbox,
        in_terminal(str(three), sandbox=sandbox) as (process, terminal),
    ):
        terminal.wait_for("[y/N]")
        terminal.write("\x03")
        assert process.wait(60) == 130
        assert "Traceback" not in terminal.output
    assert not sandbox.requests
    assert left_in(three.parent) <= {"events.csv.journal.db"}


def test_a_confirmation_survives_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(40)))
    arguments = (str(path), *NUMBER, "--rate", "10")
    with running(rate_limit=None) as sandbox:
        with in_terminal(*arguments, sandbox=sandbox) as (process, terminal):
            terminal.wait_for("[y/N]")
            assert not sandbox.requests
            terminal.write("y\n")
            wait_until(lambda: sandbox.counts.accepted >= 2)
            process.kill()
            assert process.wait(60) == -9
        before = sandbox.counts.accepted
        assert before < 40
        with in_terminal(*arguments, "--rate", "1000", sandbox=sandbox) as (
            process,
            terminal,
        ):
            assert process.wait(60) == 0
            terminal.wait_for("40 rows in")
            assert "[y/N]" not in terminal.output
    assert numbers(sandbox) == list(range(40))


# Progress


def test_a_terminal_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "events.csv", [*map(row, range(10)), row(1, email="x")])
    with running(rate_limit=None, latency=0.2) as sandbox:
        code, output = run_in_terminal(
            *(monkeypatch, sandbox, str(path), "--rate", "10", *NUMBER),
            keys="y\n",
            intervals=FREQUENT,
        )
    assert code == 1
    bar = output[output.index("[y/N]") :]
    assert "━" in bar
    assert " of 11, " in bar
    assert "1 failed" in bar
    assert "10 accepted" in bar


def test_an_output_that_is_not_a_terminal_gets_lines_without_control_codes(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", map(row, range(10)))
    with running(rate_limit=None) as sandbox:
        sandbox.down()
        with when(displayed("0 of 10, ", times=3), lambda: sandbox.down(False)):
            arguments = ("backfill", str(path), "--yes", *NUMBER)
            result = run(*arguments, sandbox=sandbox, intervals=FREQUENT)
    assert result.exit_code == 0
    assert "\x1b" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if " of 10, " in line]
    assert all("of the limit" in line for line in lines)


def test_the_progress_shows_an_outage_that_the_run_waits_for(three: Path) -> None:
    write(three, map(row, range(8)))
    outage = ", Loops is not responding, waiting\n"
    with running(rate_limit=None) as sandbox:
        sandbox.down()
        with when(displayed(outage), lambda: sandbox.down(False)):
            arguments = ("backfill", str(three), "--yes", *NUMBER, "--rate", "100")
            result = run(*arguments, sandbox=sandbox, intervals=FREQUENT)
    assert result.exit_code == 0
    assert numbers(sandbox) == list(range(8))
    assert "0 of 8, 0.0/s" in result.stderr


# Interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_requests_in_flight_finish(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = write(tmp_path / "events.csv", map(row, range(60)))
    arguments = ("backfill", str(path), "--yes", "--json", *NUMBER)
    with running(rate_limit=None, processing=0.1) as sandbox:
        process = start(*arguments, "--rate", "10", sandbox=sandbox)
        wait_until(lambda: sandbox.counts.accepted >= 3)
        code, out, err = finish(process, number)
        record = json.loads(out)
        assert code == 130
        assert "Traceback" not in err
        assert record["stopped_by"] is None
        assert 3 <= record["accepted"] < 60
        assert record["accepted"] + record["pending"] == record["rows"] == 60
        assert record["accepted"] == sandbox.counts.accepted == sandbox.counts.requests
        code, record = run_json(
            *arguments[1:-2], "--rate", "1000", *NUMBER, sandbox=sandbox
        )
    assert (code, record["accepted"], record["duplicates"]) == (0, 60, 0)
    assert numbers(sandbox) == list(range(60))


def test_the_second_signal_cuts_off_requests_in_flight(three: Path) -> None:
    arguments = ("backfill", str(three), "--yes", *NUMBER)
    with running(rate_limit=None) as sandbox:
        sandbox.script("hang-after", "hang-before")
        process = start(*arguments, sandbox=sandbox)
        wait_until(lambda: sandbox.counts.requests == 3)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # the requests are in flight
        code, out, err = finish(process, signal.SIGINT)
        assert (code, out) == (130, "")
        assert err.endswith("stopped; run the same command again to continue\n")
        code, record = run_json(*arguments[1:], sandbox=sandbox)
    assert code == 0
    assert record["accepted"] + record["duplicates"] == 3
    assert record["duplicates"] >= 1
    assert numbers(sandbox) == [0, 1, 2]


def test_the_progress_shows_that_the_run_is_stopping(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(5)))
    arguments = ("backfill", str(path), "--yes", *NUMBER)
    stopping = "0 of 5, 0.0/s, 0% of the limit, finishing requests in flight"
    with running(rate_limit=None) as sandbox:
        sandbox.script(*["hang-after"] * 5)
        with (
            interrupted_when(lambda: sandbox.counts.accepted == 5, signal.SIGINT),
            interrupted_when(displayed(stopping), signal.SIGTERM),
        ):
            result = run(*arguments, "--json", sandbox=sandbox, intervals=FREQUENT)
        assert (result.exit_code, result.stdout) == (130, "")
        assert "stopped; run the same command again to continue" in result.stderr
        code, record = run_json(*arguments[1:], sandbox=sandbox)
        assert (code, record["accepted"] + record["duplicates"]) == (0, 5)
        assert numbers(sandbox) == list(range(5))


def test_an_interrupted_run_reports_how_to_continue(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(50)))
    arguments = ("backfill", str(path), "--yes", *NUMBER, "--rate", "10")
    with (
        running(rate_limit=None) as sandbox,
        interrupted_when(lambda: sandbox.counts.accepted > 3, signal.SIGTERM),
    ):
        result = run(*arguments, sandbox=sandbox)
    assert result.exit_code == 130
    assert "run the same command again to continue" in result.stdout


def test_ctrl_c_while_rows_are_checked_leaves_no_file_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(20_000)))
    log = Path(f"{path}.journal.db-wal")

    def has_rows() -> bool:
        return log.exists() and log.stat().st_size > 100_000

    with running() as sandbox, interrupted_when(has_rows, signal.SIGINT):
        result = run("backfill", str(path), "--yes", sandbox=sandbox)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert not sandbox.requests
    assert left_in(tmp_path) == set()


def test_a_database_that_is_not_a_journal_is_refused(three: Path) -> None:
    with closing(sqlite3.connect(f"{three}.journal.db")) as db:
        db.execute("CREATE TABLE mine (a)")
    with running() as sandbox:
        code, record = run_json(str(three), "--yes", sandbox=sandbox)
    assert (code, record["error"]) == (3, "JournalError")
    assert "backfill of loops-async" in record["message"]
    assert not sandbox.requests


def test_characters_beyond_ascii_are_escaped_for_an_ascii_terminal(three: Path) -> None:
    write(three, [row(1, event_name="größe"), row(2, email="é")])
    with running(rate_limit=None) as sandbox:
        process = start(
            *("backfill", str(three), "--yes"),
            sandbox=sandbox,
            PYTHONIOENCODING="ascii",
        )
        code, out, err = finish(process)
    assert code == 1
    assert "1 accepted, 1 invalid" in out
    assert "gr\\xf6\\xdfe" in err
