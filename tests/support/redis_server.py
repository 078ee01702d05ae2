"""A real Redis in its own process, which stores nothing on disk."""

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.processes import Process
from support.waiting import wait_until

PROGRAM = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(
    PROGRAM is None or sys.platform == "win32", reason="needs redis-server"
)


class RedisServer(Process):
    """A Redis that listens on a socket file only, so that it needs no free port."""

    def __init__(self) -> None:
        # pytest's tmp_path can be too long for the path of a socket.
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._socket = Path(self._folder.name, "socket")
        assert PROGRAM is not None
        super().__init__(
            *(PROGRAM, "--port", "0", "--unixsocket", str(self._socket)),
            *("--save", "", "--dir", self._folder.name),
            stdout=subprocess.DEVNULL,
        )
        wait_until(lambda: self._listens() or self._process.poll() is not None)
        assert self._process.poll() is None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        self._folder.cleanup()
