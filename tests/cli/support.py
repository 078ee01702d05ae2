"""A sandbox in a thread of its own, and commands that run against it."""

import io
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
from loops_async.cli._progress import Intervals
from loops_async.sandbox import Sandbox
from loops_async.testing import serving

API_KEY = "sk-not-to-be-seen-7f3a"
LIST = "cm06f5v0e45nf0ml5754o9cix"
NO_VARIABLES: Mapping[str, str | None] = {}
FREQUENT = Intervals(line=0.01, bar=0.01)


@contextmanager
def running(**settings: Any) -> Iterator[Sandbox]:
    """Run a sandbox in a thread of its own."""
    with serving(Sandbox(**{"api_key": API_KEY, **settings})) as sandbox:
        yield sandbox


def environment(sandbox: Sandbox | None) -> dict[str, str | None]:
    """Return the variables that lead to the sandbox; None unsets a variable."""
    if sandbox is None:
        return {"LOOPS_API_KEY": None, "LOOPS_BASE_URL": None}
    return {"LOOPS_API_KEY": sandbox.api_key, "LOOPS_BASE_URL": sandbox.url}


def run(
    *arguments: str,
    sandbox: Sandbox | None = None,
    env: Mapping[str, str | None] = NO_VARIABLES,
    stdin: str | None = None,
    intervals: Intervals | None = None,
) -> Result:
    """Run a command in this process, and check that the API key is not displayed."""
    variables = {"COLUMNS": "80", **environment(sandbox), **env}
    runner = CliRunner()
    result = runner.invoke(cli, arguments, input=stdin, env=variables, obj=intervals)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert API_KEY not in result.output
    return result


def run_json(*arguments: str, sandbox: Sandbox | None = None) -> tuple[int, Any]:
    """Run a command with --json; return its exit code and its one object."""
    result = run(*arguments, "--json", sandbox=sandbox)
    (line,) = result.stdout.splitlines()
    return result.exit_code, json.loads(line)


def flat(text: str) -> str:
    """Return the text of a panel without its frame and its line breaks."""
    return " ".join(text.replace("│", " ").split())


def displayed(text: str, times: int = 1) -> Callable[[], bool]:
    """Return a condition: the command run by `run` has printed the text to stderr."""

    def condition() -> bool:
        buffer = getattr(sys.stderr, "buffer", None)  # of click's test runner
        if not isinstance(buffer, io.BytesIO):
            return False
        return buffer.getvalue().count(text.encode()) >= times

    return condition


@contextmanager
def interrupted_when(condition: Callable[[], object], number: int) -> Iterator[None]:
    """Send this process one signal as soon as the condition holds."""
    with when(condition, lambda: os.kill(os.getpid(), number)):
        yield


@contextmanager
def when(condition: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Act once, in another thread, as soon as the condition holds."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            if condition():
                act()
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
    variables = {**os.environ, "COLUMNS": "80", **environment(sandbox), **env}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "loops_async", *arguments],
        env={name: value for name, value in variables.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finish(process: Any, number: signal.Signals | None = None) -> tuple[int, str, str]:
    """Send a process the signal, if any, and wait for its end.

    Returns:
        The exit code, the standard output and the standard error.
    """
    with process:
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err
