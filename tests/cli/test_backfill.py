"""loops-async backfill: its answers, its questions, and how it is interrupted."""

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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.backfills import json_lines, row, write

import loops_async
from loops_async import Preview
from loops_async._backfill.backfill import Backfill, BackfillReport
from loops_async.cli import _progress
from loops_async.cli._main import cli
from loops_async.sandbox import Sandbox

from .support import (
    API_KEY,
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
    sys.platform == "win32", reason="there are no terminals and no signals like these"
)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return write(tmp_path / "events.csv", map(row, range(3)))


def run_json(*arguments: str, sandbox: Sandbox | None = None) -> tuple[int, Any]:
    """Run it with --json: its exit code, and its one object."""
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
    """Run a line of the shell, where the command is "$@"."""
    told = {**os.environ, "COLUMNS": "80", **environment(sandbox), **env}
    package = str(Path(loops_async.__file__).parent.parent)
    told["PYTHONPATH"] = package
    command = [sys.executable, "-W", "error", "-m", "loops_async", *arguments]
    return subprocess.run(
        ["bash", "-c", line, "bash", *command],
        input=input,
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env={name: value for name, value in told.items() if value is not None},
        check=False,
        timeout=30,
    )


def numbers(sandbox: Sandbox) -> list[Any]:
    return sorted(one.event_properties["number"] for one in sandbox.events)


def left_in(directory: Path) -> set[str]:
    """Return what a run left beside its input."""
    return {file.name for file in directory.iterdir()} - {"events.csv"}


class Terminal:
    """A real one, and somebody who answers in it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody has it open any more
            while data := os.read(self.master, 65536):
                self.said += data.decode(errors="replace")

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, times: int = 1) -> None:
        while self.said.count(text) < times:
            assert self._reader.is_alive(), self.said
            time.sleep(0.005)

    def close(self) -> str:
        os.close(self.slave)
        self._reader.join()
        os.close(self.master)
        return self.said.replace("\r\n", "\n")


@contextmanager
def in_terminal(*arguments: str, sandbox: Sandbox) -> Iterator[tuple[Any, Terminal]]:
    """Run a process whose terminal it is, as a shell would."""
    terminal = Terminal()
    told = {**os.environ, **TERMINAL, "COLUMNS": "80", **environment(sandbox)}
    become = (
        "import fcntl, os, sys, termios; os.setsid(); "
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", become, "-W", "error", "-m", "loops_async"]
    process = subprocess.Popen(
        [*command, "backfill", *arguments],
        env=told,  # type: ignore[arg-type]
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
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, *arguments: str, answer: str
) -> tuple[int, str]:
    """Run it in this process, in a terminal where that is typed already."""
    terminal = Terminal()
    terminal.write(answer)
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
                cli(["backfill", *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code, terminal.close()


# What it answers


def test_all_accepted_is_0_now_and_again(three: Path) -> None:
    with running(rate_limit=None) as sandbox:
        result = run("backfill", str(three), "--yes", *NUMBER, sandbox=sandbox)
        assert result.exit_code == 0
        assert "3 rows in 0." in result.stdout
        assert "s: 3 accepted\n" in result.stdout
        code, told = run_json(str(three), "--yes", *NUMBER, sandbox=sandbox)
        assert sandbox.counts.requests == 3
    assert numbers(sandbox) == [0, 1, 2]
    assert code == 0
    names = {field.name for field in attrs.fields(BackfillReport)}
    assert set(told) == names
    assert (told["rows"], told["accepted"], told["rejects"]) == (3, 3, None)
    assert told["journal"] == f"{three}.journal.db"
    assert left_in(three.parent) == {"events.csv.journal.db"}


def test_some_rejected_is_1_and_says_where_they_are(tmp_path: Path) -> None:
    bad = [row(7, email="nobody"), row(8, email="", user_id="ghost")]
    path = write(tmp_path / "events.csv", [row(1), *bad])
    with running(rate_limit=None) as sandbox:
        result = run("backfill", str(path), "--yes", sandbox=sandbox)
        code, told = run_json(str(path), "--yes", sandbox=sandbox)
    assert result.exit_code == code == 1
    assert "1 accepted, 1 invalid, 1 rejected\n" in result.stdout
    assert f"what was not accepted, and why: {path}.rejects.jsonl" in result.stdout
    assert "events.csv:3: email: must be" in result.stderr
    assert told["rejects"] == f"{path}.rejects.jsonl"
    assert [one["line"] for one in json_lines(Path(told["rejects"]))] == [3, 4]


def test_a_run_goes_on_without_a_terminal_unless_there_is_something_to_ask(
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
        assert "nobody to ask" in result.stderr
        assert len(sandbox.events) == 1


def test_the_preview_shows_what_would_fire(tmp_path: Path) -> None:
    bad = [row(n, email="nobody") for n in range(23)]
    good = [row(n, event_name=f"e{n % 22}") for n in range(2000)]
    path = write(tmp_path / "events.csv", good + bad)
    result = run("backfill", str(path), "--dry-run", "--rate", "2.5")
    assert result.exit_code == 1
    assert result.stdout == "nothing was sent\n"
    told = result.stderr.splitlines()
    assert sum("email: must be" in line for line in told) == 20
    assert "and 3 more" in told
    cells = [line.split() for line in told]
    assert ["91", "e0"] in cells
    assert ["and", "2", "other", "events"] in cells
    assert "2,023 rows, 23 invalid, 2,000 contacts" in told
    assert "2,000 to send in 13 min 20 s at 2.5 a second" in told
    first = {
        "eventName": "e0",
        "email": "u0@b.co",
        "eventProperties": {"number": "0"},
    }
    assert json.loads(told[told.index("the first of them:") + 1]) == first
    assert left_in(tmp_path) == set()


def test_where_every_row_is_invalid_there_is_none_to_show(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1, email="nobody")])
    result = run("backfill", str(path), "--dry-run")
    assert result.exit_code == 1
    assert "1 row, 1 invalid, 0 contacts\n0 to send in 0 s at 8" in result.stderr
    assert "the first of them" not in result.stderr


def test_a_dry_run_is_told_as_json_too(three: Path) -> None:
    code, told = run_json(str(three), "--dry-run")
    assert code == 0
    assert set(told) == {field.name for field in attrs.fields(Preview)}
    assert (told["rows"], told["to_send"], told["events"]) == (3, 3, {"signup": 3})
    assert told["seconds"] == 3 / 8
    assert told["sample"]["email"] == "u0@b.co"
    assert left_in(three.parent) == set()


def test_json_is_alone_on_standard_output(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "_EVERY", 0.01)
    with running(rate_limit=None, latency=0.2) as sandbox:
        result = run("backfill", str(three), "--yes", "--json", sandbox=sandbox)
    assert json.loads(result.stdout)["accepted"] == 3
    assert "3 contacts" in result.stderr
    assert "0 of 3" in result.stderr


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
        (("events.csv", "--yes", "--type", "a="), "FIELD=TYPE"),
        (("events.csv", "--yes", "--type", "a=date", "--type", "a=date"), "twice"),
        (("events.csv", "--yes", "--journal", "."), "--journal"),
        (("events.csv", "--yes", "--api-key", API_KEY), "--api-key-file"),
    ],
)
def test_wrong_usage_is_2(
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
        (("none.csv",), "none.csv: cannot be read"),
        (("events.csv", "--rejects", "events.csv"), "given twice, or is two things"),
        (("events.csv", "events.csv"), "given twice, or is two things"),
        (("events.csv", "--format", "jsonl"), None),  # its rows are not JSON
        (("events.csv", "--type", "number=money"), "money"),
        (("events.csv", "--type", "email.x=date"), "no property"),
        (("events.csv", "--map", "email=E-Mail"), "E-Mail"),
        (("events.csv", "--event-name", "a:b"), "event_name"),
        (("events.csv", "--journal", "none/j.db"), "none/j.db"),
        (("events.csv", "--base-url", "loops"), "base_url"),
    ],
)
def test_what_cannot_be_used_is_3(
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
        assert "It cannot be done" in result.stderr
        for other in ("attempts", "accepted", "next", "--api-key-file"):
            assert other not in result.stderr
        assert result.stdout == ""
        code, told = run_json(*arguments, "--yes", sandbox=sandbox)
    assert code == 3
    assert told["error"] in ("ConfigurationError", "JournalError")
    assert named in told["message"]
    assert not sandbox.requests
    assert left_in(three.parent) == set()


def test_without_a_key_it_is_3_and_a_dry_run_needs_none(three: Path) -> None:
    result = run("backfill", str(three), "--yes")
    assert result.exit_code == 3
    assert "LOOPS_API_KEY" in flat(result.stderr)
    assert run("backfill", str(three), "--dry-run").exit_code == 0
    assert left_in(three.parent) == set()


def test_a_refused_key_is_3_and_the_right_one_goes_on(three: Path) -> None:
    with running(rate_limit=None, api_key="another") as sandbox:
        wrong = {"LOOPS_API_KEY": API_KEY}
        arguments = ("backfill", str(three), "--yes", *NUMBER)
        result = run(*arguments, sandbox=sandbox, env=wrong)
        assert result.exit_code == 3
        assert "3 pending; stopped by: " in result.stdout
        assert "401" in result.stdout
        assert "run the same command to go on" in result.stdout
        assert run(*arguments, sandbox=sandbox).exit_code == 0
    assert numbers(sandbox) == [0, 1, 2]


def test_a_wrong_address_is_3_and_the_right_one_goes_on(three: Path) -> None:
    with running(rate_limit=None) as sandbox:
        arguments = (str(three), "--yes", *NUMBER)
        wrong = ("--base-url", f"{sandbox.url}/wrong")
        code, told = run_json(*arguments, *wrong, sandbox=sandbox)
        assert (code, told["pending"]) == (3, 3)
        assert "404" in told["stopped_by"]
        assert run_json(*arguments, sandbox=sandbox)[0] == 0
    assert numbers(sandbox) == [0, 1, 2]


def test_unknown_is_4_until_it_is_sent_again(three: Path) -> None:
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
            assert "1 unknown: Loops may have them or not" in result.stdout
        result = run(*arguments, "--resend-unknown", sandbox=sandbox)
        assert result.exit_code == 0
        assert "2 accepted, 1 accepted before" in result.stdout
    assert numbers(sandbox) == [0, 1, 2]


def test_too_many_errors_are_4_and_sends_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])
    with running() as sandbox:
        arguments = (str(path), "--yes", "--max-errors", "0")
        code, told = run_json(*arguments, sandbox=sandbox)
    assert code == 4
    assert told["stopped_by"] == "invalid or rejected rows: 1, more than 0"
    assert (told["invalid"], told["pending"]) == (1, 1)
    assert not sandbox.requests


# What it reads


def test_a_column_is_left_out_when_told(three: Path) -> None:
    arguments = ("--ignore", "user_id", "--ignore", "event_properties.number")
    with running(rate_limit=None) as sandbox:
        code, told = run_json(str(three), "--yes", *arguments, sandbox=sandbox)
    assert (code, told["accepted"]) == (0, 3)
    assert [dict(one.event_properties) for one in sandbox.events] == [{}] * 3


def test_names_that_are_not_utf_8_are_shown_and_sent(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"ev\xff.csv")
    with running(rate_limit=None) as sandbox:
        code, _, err = finish(start("backfill", str(path), "--yes", sandbox=sandbox))
        assert code == 3
        assert "cannot be read: No such file" in flat(err)
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
    ("arguments", "code", "said"),
    [
        (("events.csv",), 2, "nobody to ask"),
        (("-", "--dry-run"), 3, "standard input is closed"),
        (("events.csv", "--dry-run"), 0, "nothing was sent"),
    ],
)
def test_without_any_input_there_is_nobody_to_ask(
    three: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    command = ("backfill", *arguments)
    done = in_shell('exec "$@" <&-', *command, cwd=three.parent)
    assert done.returncode == code
    assert said in flat(done.stderr + done.stdout)
    assert "Traceback" not in done.stderr
    monkeypatch.chdir(three.parent)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as ended:
        cli(command)
    assert ended.value.code == code


def test_standard_input_that_cannot_be_kept_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "standard input cannot be kept in a file: "
    done = in_shell(
        *('ulimit -f 64; exec "$@"', "backfill", "-", "--dry-run"),
        input='{"email": "u1@b.co", "event_name": "x"}\n' * 10_000,
        cwd=tmp_path,
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 3
    assert f"{said}File too large" in flat(done.stderr)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    result = run("backfill", "-", "--dry-run", stdin="{}")
    assert result.exit_code == 3
    assert said in flat(result.stderr)


# What cannot be written


def test_books_that_cannot_be_written_are_74(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("backfill", str(three), "--yes", *NUMBER)
    with running(rate_limit=None) as sandbox:
        done = in_shell('exec "$@" >/dev/full', *arguments, sandbox=sandbox)
        assert done.returncode == 74
        last = "Error: the output cannot be written: No space left on device\n"
        assert done.stderr.endswith(last)
        assert "Traceback" not in done.stderr
        assert sandbox.counts.accepted == 3
        assert run(*arguments, sandbox=sandbox).exit_code == 0


def test_a_question_that_cannot_be_written_sends_nothing(three: Path) -> None:
    arguments = ("backfill", str(three), "--yes")
    with running(rate_limit=None) as sandbox:
        done = in_shell('exec "$@" 2>/dev/full', *arguments, sandbox=sandbox)
    assert (done.returncode, done.stdout) == (74, "")
    assert not sandbox.requests


def test_several_files_and_a_gzipped_one_are_one_run(tmp_path: Path) -> None:
    plain = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])
    zipped = tmp_path / "more.csv.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes().replace(b",1", b",3")))
    with running(rate_limit=None) as sandbox:
        files = (str(plain), str(zipped))
        code, told = run_json(*files, "--yes", *NUMBER, sandbox=sandbox)
    assert code == 1
    assert (told["rows"], told["accepted"], told["invalid"]) == (4, 2, 2)
    assert numbers(sandbox) == [1, 3]
    found = json_lines(Path(told["rejects"]))
    assert [(one["file"], one["line"]) for one in found] == [
        (str(plain), 3),
        (str(zipped), 3),
    ]


def test_standard_input_is_sent_once_too(tmp_path: Path) -> None:
    lines = [
        '{"email": "u1@b.co", "event_name": "x", "event_properties": {"number": 1}}',
        '{"email": "nobody", "event_name": "x"}',
    ]
    more = write(tmp_path / "events.csv", [row(2)])
    journal = tmp_path / "run.db"
    arguments = ("backfill", "-", str(more), "--journal", str(journal), "--yes")
    with running(rate_limit=None) as sandbox:
        for problem in ("stdin.jsonl:2: email: must be", ""):
            result = run(
                *arguments, *NUMBER, "--json", sandbox=sandbox, stdin="\n".join(lines)
            )
            told = json.loads(result.stdout)
            assert result.exit_code == 1
            assert (told["rows"], told["accepted"], told["invalid"]) == (3, 2, 1)
            assert problem in result.stderr
        assert sandbox.counts.requests == 2
    assert numbers(sandbox) == [1, 2]
    # Not beside the input, for that is nowhere.
    assert told["rejects"] == f"{journal}.rejects.jsonl"
    (one,) = json_lines(Path(told["rejects"]))
    assert one["record"] == {"email": "nobody", "event_name": "x"}


def test_standard_input_may_be_csv_and_only_be_checked(tmp_path: Path) -> None:
    text = write(tmp_path / "events.csv", [row(1)]).read_text(encoding="utf-8")
    result = run("backfill", "-", "--format", "csv", "--dry-run", stdin=text)
    assert result.exit_code == 0
    assert "1 row, 1 contact" in result.stderr
    assert left_in(tmp_path) == set()


def test_columns_are_named_and_typed_as_told(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("E-Mail,Total,When\nada@b.co,4.5,2026-01-31\n", encoding="utf-8")
    options = ["--event-name", "bought", "--map", "email=E-Mail"]
    options += ["--map", "amount=Total", "--map", "contactProperties.since=When"]
    options += ["--type", "amount=number", "--type", "since=date"]
    with running(rate_limit=None) as sandbox:
        assert run_json(str(path), "--yes", *options, sandbox=sandbox)[0] == 0
    (event,) = sandbox.events
    assert (event.name, event.email) == ("bought", "ada@b.co")
    assert event.event_properties == {"amount": 4.5}
    assert event.contact_properties["since"].startswith("2026-01-31")


def test_a_changed_input_is_told_and_its_new_rows_are_sent(three: Path) -> None:
    arguments = ("backfill", str(three), "--yes", *NUMBER)
    with running(rate_limit=None, api_key="another") as sandbox:
        wrong = {"LOOPS_API_KEY": API_KEY}
        run(*arguments, sandbox=sandbox, env=wrong)
        # One that was pending is gone, and six are new.
        write(three, [row(1), row(2), *map(row, range(10, 16))])
        result = run(*arguments, sandbox=sandbox)
        assert result.exit_code == 0
        what = "The input, or how it is read, is not what it was when this run began:"
        assert what in result.stderr.splitlines()
        lines = ", ".join(f"{three}:{line}" for line in range(4, 9))
        assert f"  6 rows new, or mended: {lines}, ...\n" in result.stderr
        assert "  1 row gone, and not sent; nor will they be\n" in result.stderr
        assert "sent before" not in result.stderr
        assert numbers(sandbox) == [1, 2, *range(10, 16)]

        write(three, [row(1), row(99)])
        result = run(*arguments, sandbox=sandbox)
        assert f"  1 row new, or mended: {three}:3\n" in result.stderr
        assert "  7 rows gone, but sent before\n" in result.stderr
        assert "nor will" not in result.stderr
        assert result.exit_code == 3
        assert "would be sent twice" in " ".join(result.stderr.split())
        assert sandbox.counts.accepted == 8


def test_what_is_gone_is_told_when_it_is_asked(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(three), *NUMBER)
    with running(rate_limit=None) as sandbox:
        run("backfill", *arguments, "--yes", sandbox=sandbox)
        write(three, map(row, range(1, 5)))
        run_in_terminal(monkeypatch, sandbox, *arguments, answer="n\n")
        write(three, map(row, range(2, 5)))
        code, said = run_in_terminal(monkeypatch, sandbox, *arguments, answer="y\n")
    assert code == 0
    assert "  2 rows new, or mended: " in said  # nobody has agreed to them yet
    assert "  2 rows gone, but sent before\n" in said
    assert numbers(sandbox) == [0, 1, 2, 3, 4]


# In a terminal


def test_what_is_declined_is_not_sent_and_asked_again(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(three), *NUMBER)
    with running(rate_limit=None) as sandbox:
        for _ in range(2):
            code, said = run_in_terminal(monkeypatch, sandbox, *arguments, answer="n\n")
            assert code == 130
            assert "Send 3 events to Loops now? [y/N]: " in said
            assert said.endswith("[y/N]: nothing was sent\n")
            assert left_in(three.parent) <= {"events.csv.journal.db"}
        assert not sandbox.requests
        code, said = run_in_terminal(monkeypatch, sandbox, *arguments, answer="y\n")
        assert code == 0
        assert "3 accepted" in said
        # It is done, so there is nothing to ask.
        code, said = run_in_terminal(monkeypatch, sandbox, *arguments, answer="n\n")
        assert code == 0
        assert "[y/N]" not in said
    assert numbers(sandbox) == [0, 1, 2]


@pytest.mark.parametrize("rest", [range(2, 4), range(4)])
def test_what_is_declined_later_is_more(
    three: Path, monkeypatch: pytest.MonkeyPatch, rest: range
) -> None:
    """Whether the rows that were sent are still in the file or not."""
    arguments = (str(three), *NUMBER)
    with running(rate_limit=None) as sandbox:
        write(three, map(row, range(2)))
        run("backfill", *arguments, "--yes", sandbox=sandbox)
        write(three, map(row, rest))
        code, said = run_in_terminal(monkeypatch, sandbox, *arguments, answer="n\n")
    assert code == 130
    assert f"{len(rest)} rows, {len(rest)} contacts\n2 to send in 0 s at 8" in said
    assert said.endswith("[y/N]: nothing more was sent\n")
    assert numbers(sandbox) == [0, 1]


def test_no_answer_is_an_interruption(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(rate_limit=None) as sandbox:
        code, _ = run_in_terminal(monkeypatch, sandbox, str(three), answer="\x04")
    assert code == 130
    assert not sandbox.requests
    assert left_in(three.parent) <= {"events.csv.journal.db"}


def test_ctrl_c_at_the_question_ends_it(three: Path) -> None:
    with (
        running(rate_limit=None) as sandbox,
        in_terminal(str(three), sandbox=sandbox) as (process, terminal),
    ):
        terminal.wait_for("[y/N]")
        terminal.write("\x03")
        assert process.wait(30) == 130
        assert "Traceback" not in terminal.said
    assert not sandbox.requests
    assert left_in(three.parent) <= {"events.csv.journal.db"}


def test_what_was_confirmed_is_so_after_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(40)))
    arguments = (str(path), *NUMBER, "--rate", "20")
    with running(rate_limit=None) as sandbox:
        with in_terminal(*arguments, sandbox=sandbox) as (process, terminal):
            terminal.wait_for("[y/N]")
            assert not sandbox.requests
            terminal.write("y\n")
            wait_until(lambda: sandbox.counts.accepted >= 2)
            process.kill()
            assert process.wait(30) == -9
        before = sandbox.counts.accepted
        assert before < 40
        with in_terminal(*arguments, "--rate", "1000", sandbox=sandbox) as (
            process,
            terminal,
        ):
            assert process.wait(30) == 0
            terminal.wait_for("40 rows in")
            assert "[y/N]" not in terminal.said
    assert numbers(sandbox) == list(range(40))


def test_a_terminal_is_shown_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "events.csv", [*map(row, range(30)), row(1, email="x")])
    monkeypatch.setattr(_progress, "_LOOK", 0.01)
    with running(rate_limit=None, latency=0.1) as sandbox:
        arguments = (str(path), "--rate", "20", *NUMBER)
        code, said = run_in_terminal(monkeypatch, sandbox, *arguments, answer="y\n")
    assert code == 1
    bar = said[said.index("[y/N]") :]
    assert "━" in bar
    assert " of 31, " in bar
    assert "1 failed" in bar
    assert " left" in bar
    assert "30 accepted" in bar


def test_without_a_terminal_there_is_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "events.csv", map(row, range(30)))
    monkeypatch.setattr(_progress, "_EVERY", 0.05)
    with running(rate_limit=None, latency=0.1) as sandbox:
        arguments = ("backfill", str(path), "--yes", "--rate", "20", *NUMBER)
        result = run(*arguments, sandbox=sandbox)
    assert result.exit_code == 0
    assert "\x1b" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if " of 30, " in line]
    assert len(lines) > 2
    assert all("of the limit" in line for line in lines)


def test_an_outage_is_waited_for_and_told(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(three, map(row, range(8)))
    monkeypatch.setattr(_progress, "_EVERY", 0.02)
    with running(rate_limit=None) as sandbox:
        sandbox.down()

        def end() -> None:
            time.sleep(0.1)  # so that there is a line, before the first probe
            sandbox.down(False)

        with when(lambda: sandbox.counts.requests >= 5, end):
            arguments = ("backfill", str(three), "--yes", *NUMBER, "--rate", "100")
            result = run(*arguments, sandbox=sandbox)
    assert result.exit_code == 0
    assert numbers(sandbox) == list(range(8))
    assert "0 of 8, 0.0/s" in result.stderr
    assert ", Loops does not answer: waiting\n" in result.stderr


def wait_until(condition: Callable[[], object]) -> None:
    """Wait; the test's time limit is the way out."""
    while not condition():
        time.sleep(0.002)


# Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_ends_what_is_under_way(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = write(tmp_path / "events.csv", map(row, range(60)))
    arguments = ("backfill", str(path), "--yes", "--json", *NUMBER)
    with running(rate_limit=None, processing=0.1) as sandbox:
        process = start(*arguments, "--rate", "20", sandbox=sandbox)
        wait_until(lambda: sandbox.counts.accepted >= 3)
        code, out, err = finish(process, number)
        told = json.loads(out)
        assert code == 130
        assert "Traceback" not in err
        assert told["stopped_by"] is None
        assert 3 <= told["accepted"] < 60
        assert told["accepted"] + told["pending"] == told["rows"] == 60
        assert told["accepted"] == sandbox.counts.accepted == sandbox.counts.requests
        code, told = run_json(
            *arguments[1:-2], "--rate", "1000", *NUMBER, sandbox=sandbox
        )
    assert (code, told["accepted"], told["duplicates"]) == (0, 60, 0)
    assert numbers(sandbox) == list(range(60))


def test_a_second_signal_ends_it_at_once(three: Path) -> None:
    arguments = ("backfill", str(three), "--yes", *NUMBER)
    with running(rate_limit=None) as sandbox:
        sandbox.script("hang-after", "hang-before")
        process = start(*arguments, sandbox=sandbox)
        wait_until(lambda: sandbox.counts.requests == 3)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # it waits for what is under way
        code, out, err = finish(process, signal.SIGINT)
        assert (code, out) == (130, "")
        assert err.endswith("stopped; run the same command to go on\n")
        code, told = run_json(*arguments[1:], sandbox=sandbox)
    assert code == 0
    assert told["accepted"] + told["duplicates"] == 3
    assert told["duplicates"] >= 1
    assert numbers(sandbox) == [0, 1, 2]


def test_in_this_process_both_signals_do_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "events.csv", map(row, range(5)))
    arguments = ("backfill", str(path), "--yes", *NUMBER)
    stops: list[object] = []
    stop = Backfill.stop

    def noted(job: Backfill) -> None:
        stop(job)
        stops.append(job)

    monkeypatch.setattr(Backfill, "stop", noted)
    monkeypatch.setattr(_progress, "_EVERY", 0.01)
    with running(rate_limit=None) as sandbox:
        sandbox.script(*["hang-after"] * 5)
        with (
            interrupted_when(lambda: sandbox.counts.accepted == 5, signal.SIGINT),
            interrupted_when(lambda: stops and not time.sleep(0.1), signal.SIGTERM),
        ):
            result = run(*arguments, "--json", sandbox=sandbox)
        assert result.exit_code == 130
        assert "stopped; run the same command to go on" in result.stderr
        assert len(stops) == 1  # the second ended it
        assert "0 of 5, 0.0/s, 0% of the limit, finishing what is" in result.stderr
        code, told = run_json(*arguments[1:], sandbox=sandbox)
        assert (code, told["accepted"] + told["duplicates"]) == (0, 5)
        assert numbers(sandbox) == list(range(5))

        write(path, map(row, range(50)))
        with interrupted_when(lambda: sandbox.counts.accepted > 8, signal.SIGTERM):
            result = run(*arguments, "--rate", "20", sandbox=sandbox)
        assert result.exit_code == 130
        assert "run the same command to go on" in result.stdout


def test_ctrl_c_while_it_checks_leaves_nothing_behind(tmp_path: Path) -> None:
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


def test_a_journal_of_something_else_is_refused(three: Path) -> None:
    with closing(sqlite3.connect(f"{three}.journal.db")) as db:
        db.execute("CREATE TABLE mine (a)")
    with running() as sandbox:
        code, told = run_json(str(three), "--yes", sandbox=sandbox)
    assert (code, told["error"]) == (3, "JournalError")
    assert "is not a backfill of loops-async" in told["message"]
    assert not sandbox.requests


def test_ascii_alone_is_enough(three: Path) -> None:
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
