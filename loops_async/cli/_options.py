"""Options that several commands have."""

import math
from collections.abc import Callable
from typing import Any, BinaryIO, Final, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
_MOST_KEY_BYTES: Final = 4096
_LEAST: Final = 1e-6  # less would be for ever


def client_options(command: _F) -> _F:
    """Let a command be told what to send with: ``api_key`` and ``base_url``."""
    for option in (
        click.option(
            "--api-key",
            "--apikey",
            "--api_key",
            "--token",
            "key_in_the_open",
            is_flag=False,
            flag_value="",
            expose_value=False,
            hidden=True,
            callback=_no_key_here,
        ),
        click.option(
            "--base-url", metavar="URL", help="Instead of LOOPS_BASE_URL or Loops."
        ),
        click.option(
            "--api-key-file",
            "api_key",
            type=click.File("rb"),
            callback=_read_key,
            help="Read the API key from a file, - is standard input. "
            "Otherwise it comes from LOOPS_API_KEY.",
        ),
    ):
        command = option(command)
    return command


def finite(_: click.Context, __: click.Parameter, given: float | None) -> float | None:
    """Refuse what is no number to reckon with: nan, inf, next to nothing."""
    if given is not None and not _LEAST <= given < math.inf:
        msg = f"{given:g} is nothing to reckon with"
        raise click.BadParameter(msg)
    return given


def _no_key_here(_: click.Context, __: click.Parameter, given: str | None) -> None:
    if given is not None:
        msg = (
            "the API key is not taken from the command line, where other processes "
            "and the shell's history see it: set LOOPS_API_KEY, or write it to a "
            "file and pass --api-key-file FILE (- is standard input)"
        )
        raise click.UsageError(msg)


def _read_key(
    _: click.Context, __: click.Parameter, file: BinaryIO | None
) -> str | None:
    if file is None:
        return None
    # What is no UTF-8 is no key either, and is refused as one.
    return file.read(_MOST_KEY_BYTES).decode("utf-8-sig", errors="replace")
