"""A sandbox that runs beside the test, and commands run against it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from click.testing import CliRunner, Result

from loops_async.cli._main import cli
from loops_async.sandbox import Sandbox
from loops_async.testing import serving

API_KEY = "sk-not-to-be-seen-7f3a"
LIST = "cm06f5v0e45nf0ml5754o9cix"
NOTHING: Mapping[str, str | None] = {}


@contextmanager
def running(**settings: Any) -> Iterator[Sandbox]:
    """Run a sandbox in a thread of its own, as another process would."""
    with serving(Sandbox(**{"api_key": API_KEY, **settings})) as sandbox:
        yield sandbox


def environment(sandbox: Sandbox | None) -> dict[str, str | None]:
    """What points the commands at the sandbox; None unsets a variable."""
    if sandbox is None:
        return {"LOOPS_API_KEY": None, "LOOPS_BASE_URL": None}
    return {"LOOPS_API_KEY": sandbox.api_key, "LOOPS_BASE_URL": sandbox.url}


def run(
    *arguments: str,
    sandbox: Sandbox | None = None,
    env: Mapping[str, str | None] = NOTHING,
    stdin: str | None = None,
) -> Result:
    """Run a command in this process; the API key must not turn up."""
    given = {"COLUMNS": "80", **environment(sandbox), **env}
    result = CliRunner().invoke(cli, arguments, input=stdin, env=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert API_KEY not in result.output
    return result


def run_json(*arguments: str, sandbox: Sandbox | None = None) -> tuple[int, Any]:
    """Run a command with --json: its exit code and its one object."""
    result = run(*arguments, "--json", sandbox=sandbox)
    (line,) = result.stdout.splitlines()
    return result.exit_code, json.loads(line)


def flat(text: str) -> str:
    """Undo the folding and the frame of a panel."""
    return " ".join(text.replace("│", " ").split())


@contextmanager
def interrupted_when(condition: Callable[[], object], number: int) -> Iterator[None]:
    """Send this process a signal, once, when the condition holds."""
    with when(condition, lambda: os.kill(os.getpid(), number)):
        yield


@contextmanager
def when(condition: Callable[[], object], do: Callable[[], object]) -> Iterator[None]:
    """Do something, once, as soon as the condition holds."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            if condition():
                do()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def start(*arguments: str, sandbox: Sandbox | None = None, **env: str) -> Any:
    """Start ``python -m loops_async`` with warnings as errors."""
    told = {**os.environ, "COLUMNS": "80", **environment(sandbox), **env}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "loops_async", *arguments],
        env={name: value for name, value in told.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finish(process: Any, number: signal.Signals | None = None) -> tuple[int, str, str]:
    """Wait for a process, after a signal if one is given."""
    with process:
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err
