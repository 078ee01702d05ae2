"""The base of the processes that tests start."""

import os
import signal
import subprocess
from typing import Any, Self


class Process:
    """A process that is killed, with its children, when the block is left.

    Args:
        command: The program and its arguments.
        options: Further arguments of `subprocess.Popen`.
    """

    def __init__(self, *command: str, **options: Any) -> None:
        self._process = subprocess.Popen(command, start_new_session=True, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        with self._process:
            pass  # closes the pipes and waits for the end of the process
