"""Options that several commands share."""

import math
from collections.abc import Callable
from typing import Any, BinaryIO, Final, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
_MAX_KEY_BYTES: Final = 4096
_SMALLEST: Final = 1e-6  # at a smaller rate, a send would wait for years


def client_options(command: _F) -> _F:
    """Add the options that set the client's ``api_key`` and ``base_url``."""
    for option in (
        click.option(
            "--api-key",
            "refused_api_key",
            is_flag=False,
            flag_value="",
            expose_value=False,
            hidden=True,
            callback=_refuse_api_key,
        ),
        click.option(
            "--base-url",
            metavar="URL",
            help="Address of the API; otherwise LOOPS_BASE_URL, or Loops itself.",
        ),
        click.option(
            "--api-key-file",
            "api_key",
            type=click.File("rb"),
            metavar="FILE",
            callback=_read_api_key,
            help="Read the API key from FILE (- is standard input); otherwise it "
            "comes from LOOPS_API_KEY.",
        ),
    ):
        command = option(command)
    return command


def finite(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Reject nan, inf and numbers that are too close to zero."""
    if value is not None and not _SMALLEST <= value < math.inf:
        msg = f"{value:g} is not a finite number of at least {_SMALLEST:g}"
        raise click.BadParameter(msg)
    return value


def _refuse_api_key(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value is not None:
        msg = (
            "an API key on the command line is visible to other processes and in the "
            "shell's history: set LOOPS_API_KEY, or write the key to a file and pass "
            "--api-key-file FILE (- is standard input)"
        )
        raise click.UsageError(msg)


def _read_api_key(
    _: click.Context, __: click.Parameter, file: BinaryIO | None
) -> str | None:
    if file is None:
        return None
    # Bytes that are not UTF-8 become replacement characters, which the client rejects.
    return file.read(_MAX_KEY_BYTES).decode("utf-8-sig", errors="replace")
