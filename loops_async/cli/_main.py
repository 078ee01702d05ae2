"""The command group, which imports each command when it is used."""

import logging
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from loops_async import __version__

from ._exit_codes import FAILED, INTERRUPTED

# Each command and the module that defines it as `command`, in the order of the help.
_COMMANDS: Final = {
    "demo": "_demo",
    "send": "_send",
    "backfill": "_backfill",
    "outbox": "_outbox",
    "sandbox": "_sandbox",
}
_SILENT: Final = logging.NullHandler()


class _Commands(click.Group):
    """Imports the module of a command, and its dependencies, only for that command."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f".{_COMMANDS[cmd_name]}", __package__)
        command: click.Command = module.command
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if not _concerns_output(error):
                raise
            with suppress(OSError):  # stderr may be the unwritable stream
                reason = f"cannot write the output: {error.strerror}"
                click.echo(f"Error: {reason}", err=True)
            _discard_buffers()
            sys.exit(FAILED)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)  # continue below the ^C
            ctx.exit(INTERRUPTED)


def _concerns_output(error: OSError) -> bool:
    """Return whether the error concerns a standard stream, which has no file name."""
    return error.errno is not None and error.filename is None


def _discard_buffers() -> None:
    """Discard unwritten output; otherwise Python fails on it again when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(null, stream.fileno())
    os.close(null)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="loops-async")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Send events to Loops.

    To see it at work, run `loops-async demo`: it needs no API key and no
    network.
    """
    # The commands report by themselves what the library also logs.
    logging.getLogger("loops_async").addHandler(_SILENT)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
