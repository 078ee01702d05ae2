"""The script itself: help, version, exit codes and the missing extra."""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from loops_async import __version__
from loops_async.cli import main
from loops_async.cli._main import cli

from .support import run

FULL = Path("/dev/full")


def _without(module: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['x', 'demo']\n"
        "from loops_async.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_the_extra_one_line_names_the_commands_that_install_it(
    module: str,
) -> None:
    process = _without(module)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == (
        "loops-async needs click and rich: install the extra 'cli': "
        "pip install 'loops-async[cli]', or pip install '.[cli]' in a clone\n"
    )


def test_without_the_extra_main_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "loops_async.cli._main")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "install the extra 'cli'" in capsys.readouterr().err


def test_another_missing_module_is_not_mistaken_for_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "loops_async.cli._main", None)
    with pytest.raises(ModuleNotFoundError):
        main()


def test_ctrl_c_before_a_command_runs_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    early = types.SimpleNamespace(cli=interrupted)
    monkeypatch.setitem(sys.modules, "loops_async.cli._main", early)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_a_missing_standard_output_does_not_stop_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    monkeypatch.setitem(sys.modules, "loops_async.cli._main", None)
    with pytest.raises(ModuleNotFoundError):
        main()


def test_python_m_runs_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["loops-async", "--version"])
    monkeypatch.delitem(sys.modules, "loops_async.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("loops_async.__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"loops-async, version {__version__}\n"


def test_without_a_command_the_help_is_shown() -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == run("--help").stdout
    commands = [line.split()[0] for line in result.stdout.splitlines()[-5:]]
    assert commands == ["demo", "send", "backfill", "outbox", "sandbox"]


@pytest.mark.parametrize(
    "command",
    ["demo", "send", "backfill", "outbox", "outbox drain", "outbox retry", "sandbox"],
)
def test_the_help_of_every_command_fits_80_columns(command: str) -> None:
    result = run(*command.split(), "-h")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_an_unknown_command_is_wrong_usage() -> None:
    result = run("sned")
    assert result.exit_code == 2
    assert "sned" in result.stderr


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("send", "--help"),
        ("send", "e", "--email", "ada@example.com", "--dry-run"),
        ("send", "e", "--email", "ada@example.com", "--dry-run", "--json"),
        ("sandbox", "--port", "0"),
        ("demo",),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_1(
    arguments: tuple[str, ...],
) -> None:
    error = "Error: cannot write the output: No space left on device\n"
    for streams, expected in (("stdout",), error), (("stdout", "stderr"), ""):
        with FULL.open("w") as full:
            pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
            process = subprocess.run(
                [sys.executable, "-W", "error", "-m", "loops_async", *arguments],
                **{**pipes, **dict.fromkeys(streams, full)},
                encoding="utf-8",
                check=False,
                timeout=60,
            )
        assert (process.returncode, process.stderr or "") == (1, expected)


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
def test_unwritable_output_is_discarded_so_that_the_exit_of_python_does_not_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            cli(["--version"])
        assert ended.value.code == 1  # and closing the stream raises no error


def test_an_error_of_a_file_or_socket_is_not_mistaken_for_one_of_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = cli.get_command(None, "send")  # type: ignore[arg-type]
    for error in (FileNotFoundError(2, "No such file", "x"), TimeoutError("late")):

        def fails(*_: object, error: OSError = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(command, "callback", fails)
        with pytest.raises(type(error)):
            run("send", "e")


def test_a_broken_pipe_causes_no_message() -> None:
    code = "import sys; sys.stdin.read(); from loops_async.cli import main; main()"
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, "--help"],
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        os.close(writing)
        os.close(reading)
        _, message = process.communicate("")
    assert (process.returncode, message) == (1, "")


def test_a_send_does_not_import_the_sandbox() -> None:
    """The sandbox needs a web server, which takes long to import."""
    code = (
        "import sys, loops_async.cli._send\n"
        "sys.exit('loops_async.sandbox' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == 0
