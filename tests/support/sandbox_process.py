"""Sandboxes outside the event loop of a test, and processes that send to them."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from loops_async import testing
from loops_async.sandbox import Sandbox
from support.clients import KEY
from support.processes import Process

STRICT = ("-X", "dev", "-W", "error")


class SandboxProcess(Process):
    """A sandbox in a process of its own, which is killed when the block is left.

    Attributes:
        url: The base URL for clients.
        api_key: The key that the sandbox accepts.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            *(sys.executable, __file__, json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        address = self._read()
        self.url: str = address["url"]
        self.api_key: str = address["api_key"]

    def get(self, view: str) -> Any:
        """Return the view of the sandbox: ``state`` or ``counts``."""
        with urllib.request.urlopen(self._address(view)) as response:
            return json.load(response)

    def post(self, action: str, **arguments: Any) -> None:
        """Take the action ``script``, ``down``, ``advance`` or ``reset``."""
        body = json.dumps(arguments).encode()
        urllib.request.urlopen(self._address(action), body).close()

    def requests(self) -> list[tuple[str | None, str, str | None]]:
        """Stop the sandbox; return key, body and fault of each request, in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return [tuple(request) for request in self._read()]

    def start(self, *arguments: str, **popen: Any) -> "subprocess.Popen[str]":
        """Start ``loops-async`` against the sandbox, with warnings as errors."""
        env = {
            **os.environ,
            "LOOPS_API_KEY": self.api_key,
            "LOOPS_BASE_URL": self.url,
            "COLUMNS": "80",
        }
        defaults: Any = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": env,
            "encoding": "utf-8",
        }
        command = [sys.executable, "-W", "error", "-m", "loops_async", *arguments]
        return subprocess.Popen(command, **{**defaults, **popen})

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _address(self, name: str) -> str:
        return f"{self.url.removesuffix('/api')}/_sandbox/{name}"


@contextmanager
def sandbox_in_thread(**settings: Any) -> Iterator[Sandbox]:
    """Run a sandbox in a thread of its own, for other event loops and processes."""
    defaults = {"api_key": KEY, "rate_limit": None}
    with testing.serving(Sandbox(**{**defaults, **settings})) as sandbox:
        yield sandbox


@contextmanager
def sandbox_in_environment(
    monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Iterator[Sandbox]:
    """Do the same, and let the environment variables of clients point to it."""
    with sandbox_in_thread(**settings) as sandbox:
        monkeypatch.setenv("LOOPS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("LOOPS_BASE_URL", sandbox.url)
        yield sandbox


def run_script(text: str, sandbox: Sandbox, *options: str) -> tuple[int, str, str]:
    """Run a Python script in a new interpreter, with the sandbox in its environment.

    Returns:
        Exit code, standard output and standard error.
    """
    result = subprocess.run(
        [sys.executable, *options, "-c", text],
        env={
            **os.environ,
            "LOOPS_API_KEY": sandbox.api_key,
            "LOOPS_BASE_URL": sandbox.url,
        },
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr


async def _serve(settings: Mapping[str, Any]) -> None:
    """Run a sandbox until standard input ends, then print its requests."""
    async with Sandbox(max_requests=None, **settings) as sandbox:
        _print({"url": sandbox.url, "api_key": sandbox.api_key})
        await asyncio.to_thread(sys.stdin.read)
        _print(
            [
                (one.headers.get("Idempotency-Key"), one.body.decode(), one.fault)
                for one in sandbox.requests
            ]
        )


def _print(value: object) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
