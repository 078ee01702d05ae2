"""The commands, each loaded when it is asked for."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from loops_async import __version__

from ._result import INTERRUPTED, UNWRITABLE

# Command to the module that has it as ``command``, in the order of the help.
_COMMANDS: Final = {
    "demo": "_demo",
    "send": "_send",
    "backfill": "_backfill",
    "outbox": "_outbox",
    "sandbox": "_sandbox",
}


class _Commands(click.Group):
    """Imports a command's module, and what that needs, only for that command."""

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
            if not _is_of_output(error):
                raise
            with suppress(OSError):  # it may be the one that cannot be written
                why = f"the output cannot be written: {error.strerror}"
                click.echo(f"Error: {why}", err=True)
            _let_go()
            sys.exit(UNWRITABLE)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)  # below the ^C
            ctx.exit(INTERRUPTED)


def _is_of_output(error: OSError) -> bool:
    """Tell it from those of files, which have names, and those of our own."""
    return error.errno is not None and error.filename is None


def _let_go() -> None:
    """Let what is left to be written go, or the end of Python would try again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError):
            stream.flush()
            continue
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="loops-async")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Send events to Loops, and try it all without Loops.

    Begin with `loops-async demo`: it needs no key and no network.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
