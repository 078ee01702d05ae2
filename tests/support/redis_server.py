"""A real Redis in a process of its own, with nothing on the disk."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

PROGRAM = shutil.which("redis-server")

needed = pytest.mark.skipif(
    PROGRAM is None or sys.platform == "win32", reason="there is no redis-server here"
)


class RedisServer:
    """Listens on a socket file only, so that it never takes anybody's port."""

    def __init__(self) -> None:
        # Not pytest's own: the path of a socket is short.
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._socket = Path(self._folder.name, "socket")

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def __enter__(self) -> Self:
        assert PROGRAM is not None
        settings = ["--port", "0", "--unixsocket", str(self._socket), "--save", ""]
        self._process = subprocess.Popen(
            [PROGRAM, *settings, "--dir", self._folder.name],
            stdout=subprocess.DEVNULL,
        )
        while not self._listens():
            assert self._process.poll() is None
            time.sleep(0.005)
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(str(self._socket)) == 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
