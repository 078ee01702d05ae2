"""The script itself: help, version, and what it says without the extra."""

import runpy
import subprocess
import sys
import types

import pytest

from loops_async import __version__
from loops_async.cli import main

from .support import run


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
def test_without_the_extra_one_line_says_how_to_get_it(module: str) -> None:
    done = _without(module)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "loops-async needs click and rich: pip install 'loops-async[cli]'\n"
    )


def test_without_the_extra_main_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "loops_async.cli._main")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "pip install 'loops-async[cli]'" in capsys.readouterr().err


def test_another_module_that_is_missing_is_not_taken_for_the_extra(
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


def test_a_stream_that_cannot_be_reconfigured_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    monkeypatch.setitem(sys.modules, "loops_async.cli._main", None)
    with pytest.raises(ModuleNotFoundError):
        main()


def test_python_m_is_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["loops-async", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("loops_async", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"loops-async, version {__version__}\n"


def test_without_a_command_the_help_is_shown() -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == run("--help").stdout
    shown = [line.split()[0] for line in result.stdout.splitlines()[-5:]]
    assert shown == ["demo", "send", "backfill", "outbox", "sandbox"]


@pytest.mark.parametrize("command", ["demo", "send", "backfill", "outbox", "sandbox"])
def test_every_command_has_help_that_fits_80_columns(command: str) -> None:
    result = run(command, "-h")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_command_there_is_not_is_a_usage_error() -> None:
    result = run("sned")
    assert result.exit_code == 2
    assert "sned" in result.stderr


def test_a_send_does_not_load_the_sandbox() -> None:
    """A web server is a lot to load for one event."""
    code = (
        "import sys, loops_async.cli._send\n"
        "sys.exit('loops_async.sandbox' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
