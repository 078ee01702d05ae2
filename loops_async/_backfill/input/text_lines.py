"""Lines of a file, streamed in bounded memory."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from loops_async.errors import ConfigurationError

MAX_RECORD: Final = 1_000_000  # bytes

_CHUNK: Final = 64 * 1024  # bytes
_GZIP: Final = b"\x1f\x8b"
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Lines:
    """The lines of a stream, as UTF-8; iterable once.

    An item is a line with its line end. A line that is longer than
    `max_record` comes as several items, all but the last longer than that.

    Attributes:
        number: The number of the current line, from 1.
        encoding: The encoding of the file.
        max_record: The longest record, in bytes.
    """

    def __init__(
        self, stream: io.BufferedIOBase, encoding: str, max_record: int
    ) -> None:
        self.number = 0
        self.encoding = encoding
        self.max_record = max_record
        self._pieces = self._read(stream)

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def _read(self, stream: io.BufferedIOBase) -> Iterator[bytes]:
        limit = self.max_record + 1
        mark = codecs.BOM_UTF8
        piece = stream.readline(limit + len(mark)).removeprefix(mark)
        ended = True
        while piece:
            if ended:
                self.number += 1
            ended = piece.endswith(b"\n")
            yield piece
            piece = stream.readline(limit)

    def is_partial(self, item: bytes) -> bool:
        """Return whether the line continues with the next item."""
        return len(item) > self.max_record and not item.endswith(b"\n")

    def too_long(self) -> str:
        """Return the problem of a record that exceeds `max_record`."""
        return f"longer than {self.max_record:,} bytes"

    def undecodable(self, begin: int, error: UnicodeDecodeError) -> str:
        """Return the problem of a record that cannot be decoded.

        Args:
            begin: The number of the record's first line.
            error: The error raised by decoding the record.
        """
        before = error.object[: error.start]
        line = begin + before.count(b"\n")
        column = len(before.rpartition(b"\n")[2].decode()) + 1
        where = f"line {line}, character {column}"
        return f"{where}: not valid {self.encoding}, save the file as UTF-8"


def is_blank(line: bytes) -> bool:
    return not line.strip(b" \r\n")  # a tab may separate two empty cells


@contextmanager
def open_lines(
    path: str, shown_path: str, *, max_record: int = MAX_RECORD
) -> Iterator[Lines]:
    """Open a file of UTF-8 or UTF-16, gzipped or not; its first bytes decide.

    Args:
        path: The path of the file.
        shown_path: The path as an error shows it.
        max_record: The longest record, in bytes.

    Raises:
        ConfigurationError: If the file cannot be opened or, in the body of
            the ``with`` statement, cannot be read to its end.
    """
    lines = None
    try:
        with ExitStack() as stack:
            file = stack.enter_context(io.FileIO(path))
            stream: io.BufferedReader[Any] = io.BufferedReader(file, _CHUNK)
            encoding = "UTF-8"
            if stream.peek(2)[:2] == _GZIP:
                unzipped = stack.enter_context(gzip.GzipFile(fileobj=stream))
                # GzipFile.readline is written in Python and slow.
                stream = io.BufferedReader(unzipped, _CHUNK)
            if stream.peek(2)[:2] in _UTF_16:
                stream = io.BufferedReader(_Utf16AsUtf8(stream), _CHUNK)
                encoding = "UTF-16"
            lines = Lines(stream, encoding, max_record)
            yield lines
    except (OSError, EOFError, zlib.error) as failure:
        where = f" after line {lines.number}" if lines and lines.number else ""
        why = getattr(failure, "strerror", None) or failure
        msg = f"{shown_path}: cannot be read{where}: {why}"
        raise ConfigurationError(msg) from None


class _Utf16AsUtf8(io.RawIOBase):
    """A UTF-16 stream as UTF-8; invalid UTF-16 becomes invalid UTF-8."""

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
            except UnicodeDecodeError:  # the file ends within a character
                self._decoder.reset()
                self._ready = b"\xff"
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
