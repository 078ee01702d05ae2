"""The rows of a backfill's files, CSV or JSON Lines, one at a time."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from loops_async.errors import ConfigurationError

from . import csv_rows, json_lines
from .options import InputOptions
from .row import InputRow
from .text_lines import MAX_RECORD, open_lines

__all__ = ["InputOptions", "InputRow", "fingerprint", "path_text", "read"]

_CHUNK: Final = 1024 * 1024  # bytes


def read(
    path: str | os.PathLike[str],
    options: InputOptions,
    *,
    max_record: int = MAX_RECORD,
) -> Iterator[InputRow]:
    """Yield the rows of a file of events, in bounded memory.

    The file is UTF-8, or UTF-16 with a byte order mark; gzipped or not. The cells of
    CSV are separated by commas, tabs or semicolons, as in the heading. An invalid row
    is yielded with its problems.

    Args:
        path: The path of the file.
        options: The options for reading the file.
        max_record: The longest row, in bytes.

    Raises:
        ConfigurationError: If the file as a whole cannot be used: it does not
            exist, its heading is wrong, or its gzip data are damaged.
    """
    file = path_text(path)
    is_csv = _format_of(file, options) == "csv"
    rows = csv_rows.csv_rows if is_csv else json_lines.json_rows
    with open_lines(os.fspath(path), file, max_record=max_record) as lines:
        yield from rows(file, lines, options)


def fingerprint(
    path: str | os.PathLike[str], stopping: Callable[[], bool] = lambda: False
) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal digits.

    Args:
        path: The path of the file.
        stopping: A callable that is called before each chunk; once it returns True, the
            result is an empty string.

    Raises:
        ConfigurationError: If the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.sha256()
            while not stopping():
                chunk = file.read(_CHUNK)
                if not chunk:
                    return digest.hexdigest()
                digest.update(chunk)
    except OSError as error:
        msg = f"{path_text(path)}: cannot be read: {error.strerror}"
        raise ConfigurationError(msg) from None
    return ""


def path_text(path: str | os.PathLike[str]) -> str:
    """Return the path as text that can be stored and shown."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _format_of(file: str, options: InputOptions) -> str:
    if options.format is not None:
        return options.format
    suffix = Path(file.lower().removesuffix(".gz")).suffix
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    msg = (
        f"{file}: the file's name does not show whether it is CSV or JSON Lines; "
        "set the format, csv or jsonl"
    )
    raise ConfigurationError(msg)
