"""How a run that takes its time ends: told to by a signal, or by an error."""

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Never, TypeVar

import click

from loops_async import LoopsError

from . import _show
from ._result import INTERRUPTED, exit_code

_T = TypeVar("_T")


def on_signals(stop: Callable[[], object]) -> None:
    """Let a first SIGINT or SIGTERM call it, and a second cancel this task."""
    task = asyncio.current_task()
    assert task is not None
    told = False

    def interrupted() -> None:
        nonlocal told
        if told:
            task.cancel()
            return
        told = True
        stop()

    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError, RuntimeError):  # on Windows, in a thread
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)


def run(main: Coroutine[Any, Any, _T], *, as_json: bool) -> _T:
    """Run it; a second signal or an error ends the command."""
    try:
        return asyncio.run(main)
    except asyncio.CancelledError:
        click.echo("stopped; run the same command to go on", err=True)
        click.get_current_context().exit(INTERRUPTED)
    except LoopsError as error:
        fail(error, as_json=as_json)


def fail(error: LoopsError, *, as_json: bool) -> Never:
    """Show why a file, or a setting, cannot be used, and exit."""
    code = exit_code(error)
    if as_json:
        told = {"error": type(error).__name__, "message": str(error)}
        click.echo(json.dumps(told))
    _show.console(stderr=True).print(_show.file_panel(error, code))
    click.get_current_context().exit(code)
