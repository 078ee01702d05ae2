"""Lines of a file, and the CSV in them: streamed, in bounded memory.

Syntax only, by https://www.rfc-editor.org/rfc/rfc4180. What breaks it costs
its own record and no other, and what may be inside an open quote is never
taken for a record.
"""

import codecs
import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, Final, TypeAlias

import attrs

from loops_async.errors import ConfigurationError

MAX_RECORD: Final = 1_000_000  # bytes

_CHUNK: Final = 64 * 1024  # bytes
_GZIP: Final = b"\x1f\x8b"
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Lines:
    """The lines of a stream, as UTF-8.

    Iterating gives pieces with their line ends: whole lines, but of one that
    is longer than MAX_RECORD several pieces, each but the last longer than
    that too.

    Attributes:
        number: Of the line the last piece belongs to, from 1.
        encoding: Of the file.
    """

    def __init__(self) -> None:
        self.stream: io.BufferedIOBase = io.BytesIO()
        self.number = 0
        self.encoding = "UTF-8"

    def __iter__(self) -> Iterator[bytes]:
        readline = self.stream.readline
        ended = True
        while piece := readline(MAX_RECORD + 1):
            if ended:
                self.number += 1
                if self.number == 1:
                    piece = piece.removeprefix(codecs.BOM_UTF8)
            ended = piece.endswith(b"\n")
            yield piece


@contextmanager
def open_lines(path: str, told: str) -> Iterator[Lines]:
    """Open a file of UTF-8 or UTF-16, gzipped or not, by its first bytes.

    Args:
        path: Of the file.
        told: The path in an error.

    Raises:
        ConfigurationError: if it cannot be opened or, in the body of the
            ``with``, cannot be read on.
    """
    lines = Lines()
    try:
        with ExitStack() as stack:
            file = stack.enter_context(io.FileIO(path))
            stream: io.BufferedReader[Any] = io.BufferedReader(file, _CHUNK)
            if stream.peek(2)[:2] == _GZIP:
                unzipped = stack.enter_context(gzip.GzipFile(fileobj=stream))
                # Its own readline is written in Python.
                stream = io.BufferedReader(unzipped, _CHUNK)
            if stream.peek(2)[:2] in _UTF_16:
                stream = io.BufferedReader(_AsUtf8(stream), _CHUNK)
                lines.encoding = "UTF-16"
            lines.stream = stream
            yield lines
    except (OSError, EOFError, zlib.error) as failure:
        where = f" after line {lines.number}" if lines.number else ""
        why = getattr(failure, "strerror", None) or failure
        raise ConfigurationError(f"{told}: cannot be read{where}: {why}") from None


class _AsUtf8(io.RawIOBase):
    """UTF-16 as UTF-8; what is no UTF-16 becomes what is no UTF-8 either."""

    def __init__(self, source: io.BufferedIOBase) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = b"-"
        while chunk and not self._ready:
            chunk = self._source.read(_CHUNK)
            try:
                text = self._decoder.decode(chunk, final=not chunk)
                self._ready = text.encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:  # half a character at the end
                self._decoder.reset()
                self._ready = b"\xff"
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


Row: TypeAlias = tuple[int, bytes, list[str] | str]
"""The line it begins on, its text (or the beginning), its cells or what is wrong."""


def rows(lines: Lines, known: Callable[[list[str]], int]) -> Iterator[Row]:
    """Read the rows; blank lines are none.

    Args:
        lines: The text.
        known: Tells how many of the headings have a meaning. The cells are
            separated by what makes most of them known; else by commas; else,
            if there is none, by what makes most cells.
    """
    pieces = iter(lines)
    for first in pieces:
        text = first.decode(errors="replace")
        if not is_blank(first):
            break
    else:
        return

    unquoted = re.sub(r'"[^"]*("|$)', "", text)

    def meaning(delimiter: str) -> tuple[int, bool, int]:
        cells = [cell.strip(' "\r\n') for cell in text.split(delimiter)]
        times = unquoted.count(delimiter)
        return known(cells), delimiter == "," and times > 0, times

    delimiter = max(",\t;", key=meaning)
    grammar = _Grammar.of(delimiter)
    for raw in chain((first,), pieces):
        line = lines.number
        if b'"' in raw or len(raw) > MAX_RECORD:
            yield line, *_with_quotes(raw, pieces, lines, grammar)
            continue
        try:
            text = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield line, raw, undecodable(lines, line, error)
            continue
        if "\0" in text or "\r" in text:
            yield line, raw, _CONTROL
        elif text and not is_blank(raw):
            yield line, raw, text.split(delimiter)


_CONTROL: Final = "a NUL character, or a carriage return within the line"


def is_blank(line: bytes) -> bool:
    return not line.strip(b" \r\n")  # a tab may be an empty cell


def undecodable(lines: Lines, line: int, error: UnicodeDecodeError) -> str:
    """Say where a record that begins on the line is not text."""
    before = error.object[: error.start]
    line += before.count(b"\n")
    column = len(before.rpartition(b"\n")[2].decode()) + 1
    where = f"line {line}, character {column}"
    return f"{where}: not valid {lines.encoding}, save the file as UTF-8"


def skip_line(piece: bytes, pieces: Iterator[bytes]) -> int:
    """Read on to the end of the line the piece is of; return the quotes in it."""
    quotes = piece.count(b'"')
    while len(piece) > MAX_RECORD and not piece.endswith(b"\n"):
        piece = next(pieces, b"")
        quotes += piece.count(b'"')
    return quotes


TOO_LONG: Final = f"longer than {MAX_RECORD:,} bytes"


@attrs.frozen
class _Grammar:
    """What a record is, as its lines come in.

    Attributes:
        delimiter: Between the cells.
        whole: Matches a record with its line end.
        begun: Matches one that ends within an open quote.
    """

    delimiter: str
    whole: re.Pattern[bytes]
    begun: re.Pattern[bytes]

    @classmethod
    def of(cls, delimiter: str) -> "_Grammar":
        # Possessive: each text is gone over once, whatever is in it.
        mark = re.escape(delimiter.encode())
        quoted = rb'"' + _INSIDE + rb'"'
        cell = rb"(?:" + quoted + rb'|[^"\n' + mark + rb']*+(?!"))'
        more = rb"(?:" + mark + cell + rb")*" + _ONCE
        before = rb"(?:" + cell + mark + rb")*" + _ONCE
        return cls(
            delimiter,
            re.compile(cell + more + rb"\r?\n?"),
            re.compile(before + rb'"' + _INSIDE),
        )


# Groups that give nothing back match too little before CPython 3.11.5
# (https://github.com/python/cpython/issues/106052).
_ONCE: Final = b"+" if sys.version_info >= (3, 11, 5) else b""
_INSIDE: Final = rb'[^"]*+(?:""[^"]*+)*' + _ONCE
_inside = re.compile(_INSIDE).fullmatch


def _with_quotes(
    raw: bytes, pieces: Iterator[bytes], lines: Lines, grammar: _Grammar
) -> tuple[bytes, list[str] | str]:
    """Read a record that has quotes, or is too long, to its end."""
    begin = opened = lines.number
    parts, size, piece = [raw], len(raw), raw
    while size <= MAX_RECORD and not grammar.whole.fullmatch(piece):
        if not grammar.begun.fullmatch(piece):
            return b"".join(parts), _stray(begin, lines.number)
        # Read on while nothing closes the quote.
        while more := next(pieces, b""):
            parts.append(more)
            size += len(more)
            if size > MAX_RECORD or not _inside(more):
                break
        else:
            why = f"the quote that begins on line {opened} is never closed"
            return b"".join(parts), why
        # As if it began with the quote that is open.
        piece = b'"' + more
        if grammar.begun.fullmatch(piece):
            opened = lines.number
    if size > MAX_RECORD:
        return parts[0], _skip_record(parts, pieces, lines)
    return _cells(b"".join(parts), begin, lines, grammar.delimiter)


def _stray(begin: int, end: int) -> str:
    where = f" (lines {begin} to {end})" if end > begin else ""
    return (
        f"a quote out of place{where}: a cell with quotes in it is put in "
        'quotes, and each of its own is doubled: "say ""hi"""'
    )


def _skip_record(parts: list[bytes], pieces: Iterator[bytes], lines: Lines) -> str:
    """Read over the rest, up to where the quotes are even: none is open."""
    begin = lines.number - len(parts) + 1
    quotes = sum(part.count(b'"') for part in parts[:-1])
    quotes += skip_line(parts[-1], pieces)
    while quotes % 2 and (piece := next(pieces, b"")):
        quotes += skip_line(piece, pieces)
    end = lines.number
    return TOO_LONG + (f" (lines {begin} to {end})" if end > begin else "")


def _cells(
    raw: bytes, begin: int, lines: Lines, delimiter: str
) -> tuple[bytes, list[str] | str]:
    try:
        text = raw.decode()
        (cells,) = csv.reader((text,), delimiter=delimiter, strict=True)
    except UnicodeDecodeError as error:
        return raw, undecodable(lines, begin, error)
    except csv.Error as error:
        if "field limit" in str(error):
            limit = csv.field_size_limit()  # of the whole process: not ours to set
            return raw, f"a cell is longer than {limit:,} characters"
        return raw, f"not CSV: {error}"
    return raw, _CONTROL if "\0" in text else cells
