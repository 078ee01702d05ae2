"""Running a command's coroutine: signals, errors and the exit code."""

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Never, TypeVar

import click

from loops_async import LoopsError

from ._exit_codes import INTERRUPTED, exit_code
from ._rendering import console, setting_panel

_T = TypeVar("_T")


def stop_on_signals(stop: Callable[[], object]) -> None:
    """Call `stop` at the first SIGINT or SIGTERM, and cancel this task at the second.

    Args:
        stop: Function that ends the command's work without cutting requests off.
    """
    task = asyncio.current_task()
    assert task is not None
    stopping = False

    def interrupt() -> None:
        nonlocal stopping
        if stopping:
            task.cancel()
            return
        stopping = True
        stop()

    loop = asyncio.get_running_loop()
    # Event loops on Windows and in other threads do not support this.
    with suppress(NotImplementedError, RuntimeError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)


def run(main: Coroutine[Any, Any, _T], *, as_json: bool) -> _T:
    """Run a coroutine; a second signal or a LoopsError ends the command."""
    try:
        return asyncio.run(main)
    except asyncio.CancelledError:
        click.echo("stopped; run the same command again to continue", err=True)
        click.get_current_context().exit(INTERRUPTED)
    except LoopsError as error:
        exit_with(error, as_json=as_json)


def exit_with(error: LoopsError, *, as_json: bool) -> Never:
    """Report why a file or a setting cannot be used, and exit."""
    code = exit_code(error)
    if as_json:
        record = {"error": type(error).__name__, "message": str(error)}
        click.echo(json.dumps(record))
    console(stderr=True).print(setting_panel(error, code))
    click.get_current_context().exit(code)
