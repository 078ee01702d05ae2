"""The records of CSV text: syntax only, see https://www.rfc-editor.org/rfc/rfc4180.

A record that breaks the syntax does not affect other records. Text that may lie within
an open quote is never read as a record.
"""

import csv
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from .text_lines import Lines, is_blank

_CONTROL: Final = "a NUL character, or a carriage return within the line"


class CsvRecord(NamedTuple):
    """One record of CSV text.

    Attributes:
        line: The number of the record's first line, from 1.
        raw: The text, or only its beginning if the record is too long.
        cells: The cells; empty if there is a problem.
        problem: The reason why the record cannot be read, or an empty string.
        cut: Whether the record is too long.
    """

    line: int
    raw: bytes
    cells: list[str]
    problem: str = ""
    cut: bool = False


def csv_records(
    lines: Lines, count_known: Callable[[list[str]], int]
) -> Iterator[CsvRecord]:
    """Yield the records; blank lines are skipped.

    Args:
        lines: The text.
        count_known: A callable that returns how many headings of a list are known. The
            delimiter is the one that makes the most headings known. If several do, it
            is the comma if the heading has one, else the most frequent.
    """
    for first in lines:
        if not is_blank(first):
            break
    else:
        return
    reader = _RecordReader(lines, _delimiter_of(first, count_known))
    for line in chain((first,), lines):
        if not is_blank(line):
            yield reader.read(line)


def _delimiter_of(heading: bytes, count_known: Callable[[list[str]], int]) -> str:
    text = heading.decode(errors="replace")
    unquoted = re.sub(r'"[^"]*("|$)', "", text)

    def rank(delimiter: str) -> tuple[int, bool, int]:
        headings = [cell.strip(' "\r\n') for cell in text.split(delimiter)]
        count = unquoted.count(delimiter)
        return count_known(headings), delimiter == "," and count > 0, count

    return max(",\t;", key=rank)


class _TooLongError(Exception):
    """The record exceeds the limit."""


class _RecordReader:
    """A `csv.reader` that continues after an error, and the lines it reads."""

    def __init__(self, lines: Lines, delimiter: str) -> None:
        self._lines = lines
        self._pieces = iter(lines)
        self._delimiter = delimiter
        self._csv = csv.reader(self, delimiter=delimiter, strict=True)
        self._first = b""  # not read by csv.reader yet
        self._parts: list[bytes] = []
        self._size = 0
        self._quotes = 0
        self._last = b""

    def read(self, first: bytes) -> CsvRecord:
        """Read the record that begins with this line."""
        begin = self._lines.number
        self._first = first
        self._parts = []
        self._size = self._quotes = 0
        cells: list[str] = []
        problem = ""
        try:
            cells = next(self._csv)
        except _TooLongError:
            self._skip_quoted()
        except csv.Error as error:
            problem = self._explain(str(error), begin)
        if self._size > self._lines.max_record:
            problem = self._lines.too_long() + self._line_range(begin)
            return CsvRecord(begin, self._parts[0], [], problem, cut=True)
        raw = b"".join(self._parts)
        if not problem and b"\0" in raw:
            problem = _CONTROL
        if not problem:
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                problem = self._lines.undecodable(begin, error)
        return CsvRecord(begin, raw, [] if problem else cells, problem)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Return the record's next line to `csv.reader`."""
        piece = self._first or next(self._pieces)
        self._first = b""
        self._take(piece)
        if self._size > self._lines.max_record:
            raise _TooLongError
        return piece.decode(errors="replace")  # read() reports invalid bytes

    def _take(self, piece: bytes) -> None:
        self._last = piece
        self._size += len(piece)
        self._quotes += piece.count(b'"')
        if self._size <= self._lines.max_record or not self._parts:
            self._parts.append(piece)

    def _explain(self, error: str, begin: int) -> str:
        """Read on to the end of a broken record; return its problem."""
        if "unexpected end" in error:
            # Within an open quote, all quotes are doubled.
            text = b"".join(self._parts).replace(b'""', b"")
            opened = begin + text.rpartition(b'"')[0].count(b"\n")
            return f"the quote that begins on line {opened} is never closed"
        if "new-line" in error:
            return _CONTROL
        if "field limit" in error:
            self._skip_quoted()
            limit = csv.field_size_limit()  # a setting of the whole process
            return f"a cell is longer than {limit:,} characters"
        self._skip_leniently()
        return (
            f"a quote out of place{self._line_range(begin)}: put a cell that contains "
            'quotes in quotes, and double each of its own: "say ""hi"""'
        )

    def _skip_leniently(self) -> None:
        """Read on to where a reader that accepts stray quotes ends the record."""
        texts = [part.decode(errors="replace") for part in self._parts]
        try:
            next(csv.reader(chain(texts, self), delimiter=self._delimiter))
        except (csv.Error, _TooLongError):
            self._skip_quoted()

    def _skip_quoted(self) -> None:
        """Read on to the end of a line at which no quote is open."""
        while self._quotes % 2 or self._lines.is_partial(self._last):
            piece = next(self._pieces, b"")
            if not piece:
                return
            self._take(piece)

    def _line_range(self, begin: int) -> str:
        end = self._lines.number
        return f" (lines {begin} to {end})" if end > begin else ""
