"""The events of a backfill's files: CSV or JSON Lines, one row at a time."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from loops_async.errors import ConfigurationError

from .csv_rows import csv_items
from .json_lines import json_items
from .options import InputOptions
from .row import Item
from .text_lines import open_lines

__all__ = ["InputOptions", "Item", "fingerprint", "path_text", "read"]

_CHUNK: Final = 1024 * 1024  # bytes


def read(path: str | os.PathLike[str], reading: InputOptions) -> Iterator[Item]:
    """Read a file of events, row by row, in bounded memory.

    UTF-8, or UTF-16 with a byte order mark; gzipped or not. The cells of CSV
    are separated by commas, or by tabs or semicolons if the heading is. A row
    that is wrong is an item with problems.

    Raises:
        ConfigurationError: for what concerns the whole file, when it comes
            up: it is not there, its heading is wrong, its gzip is damaged.
    """
    file = path_text(path)
    items = csv_items if _format_of(file, reading) == "csv" else json_items
    with open_lines(os.fspath(path), file) as lines:
        yield from items(file, lines, reading)


def fingerprint(
    path: str | os.PathLike[str], stopping: Callable[[], bool] = lambda: False
) -> str:
    """Return the SHA-256 of the file as it is, in hexadecimal digits.

    Args:
        path: Of the file.
        stopping: Asked now and then; once it is true, the result is empty.

    Raises:
        ConfigurationError: if it cannot be read.
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
        why = f"{path_text(path)}: cannot be read: {error.strerror}"
        raise ConfigurationError(why) from None
    return ""


def path_text(path: str | os.PathLike[str]) -> str:
    """Return the path as text that can be stored and shown."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _format_of(file: str, reading: InputOptions) -> str:
    if reading.format is not None:
        return reading.format
    suffix = Path(file.lower().removesuffix(".gz")).suffix
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    msg = f"{file}: is it csv or jsonl? The name does not tell, give the format"
    raise ConfigurationError(msg)
