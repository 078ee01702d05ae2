"""The events of a backfill's files: CSV or JSON Lines, one row at a time."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from loops_async.errors import ConfigurationError

from ._csv import csv_items
from ._item import Item
from ._jsonl import json_items
from ._lines import open_lines
from ._reading import Reading

__all__ = ["Item", "Reading", "fingerprint", "read"]


def read(path: str | os.PathLike[str], reading: Reading) -> Iterator[Item]:
    """Read a file of events, row by row, in bounded memory.

    UTF-8, or UTF-16 with a byte order mark; gzipped or not. A row that is
    wrong is an item with problems.

    Raises:
        ConfigurationError: for what concerns the whole file, when it comes
            up: it is not there, its heading is wrong, its gzip is damaged.
    """
    file = os.fspath(path)
    items = csv_items if _format_of(file, reading) == "csv" else json_items
    with open_lines(file) as lines:
        yield from items(file, lines, reading)


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the file as it is, in hexadecimal digits.

    Raises:
        ConfigurationError: if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        why = f"{os.fspath(path)}: cannot be read: {error.strerror}"
        raise ConfigurationError(why) from None


def _format_of(file: str, reading: Reading) -> str:
    if reading.format is not None:
        return reading.format
    suffix = Path(file.lower().removesuffix(".gz")).suffix
    if suffix == ".csv":
        return "csv"
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    msg = f"{file}: is it csv or jsonl? The name does not tell, give the format"
    raise ConfigurationError(msg)
