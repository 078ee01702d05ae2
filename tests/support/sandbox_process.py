"""A sandbox in another process, and command lines that send to it."""

import json
import os
import subprocess
import sys
import urllib.request
from types import TracebackType
from typing import Any, Self

from support import http_server as servers


class Elsewhere:
    """A sandbox in another process."""

    def __init__(self, **settings: Any) -> None:
        command = [sys.executable, servers.__file__, json.dumps(settings)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        self.url, self.key = told["url"], told["api_key"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def look(self, view: str) -> Any:
        """Return ``state`` or ``counts``."""
        with urllib.request.urlopen(self._address(view)) as answer:
            return json.load(answer)

    def steer(self, action: str, **arguments: Any) -> None:
        """``script``, ``down``, ``advance`` or ``reset`` it."""
        body = json.dumps(arguments).encode()
        urllib.request.urlopen(self._address(action), body).close()

    def _address(self, name: str) -> str:
        return f"{self.url.removesuffix('/api')}/_sandbox/{name}"

    def start(self, *arguments: str, **popen: Any) -> "subprocess.Popen[str]":
        """Start ``loops-async`` against it, with warnings as errors."""
        env = {
            **os.environ,
            "LOOPS_API_KEY": self.key,
            "LOOPS_BASE_URL": self.url,
            "COLUMNS": "80",
        }
        usual: Any = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": env,
            "encoding": "utf-8",
        }
        command = [sys.executable, "-W", "error", "-m", "loops_async", *arguments]
        return subprocess.Popen(command, **{**usual, **popen})
