"""Child processes for the clients and the servers of a benchmark."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

from .stub_server import pin

_T = TypeVar("_T")
_START_TIMEOUT = 120.0  # seconds for all processes to start


class Load:
    """The CPU load of this process; a busy core distorts the measured times."""

    def __init__(self) -> None:
        self._spent, self._began = time.process_time(), time.monotonic()

    def share(self) -> float:
        """Return the share of one core that was used since this object was made."""
        spent = time.process_time() - self._spent
        return spent / (time.monotonic() - self._began)


@contextlib.contextmanager
def child_process(
    work: Callable[..., None], *arguments: object
) -> Iterator[Connection]:
    """Run a function in a child process; the context is the pipe to the process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        process.kill()
        process.join()


def run_together(
    work: Callable[..., Coroutine[Any, Any, _T]], calls: Sequence[tuple[Any, ...]]
) -> list[_T]:
    """Run each call in its own process, all from the same moment on.

    The processes share the first core; the servers use the second one.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(len(calls))
    pipes = []
    for arguments in calls:
        here, there = context.Pipe(duplex=False)
        args = (work, arguments, ready, there)
        context.Process(target=_process, args=args, daemon=True).start()
        there.close()
        pipes.append(here)
    return [pipe.recv() for pipe in pipes]


def _process(
    work: Callable[..., Coroutine[Any, Any, object]],
    arguments: tuple[Any, ...],
    ready: Barrier,
    pipe: Connection,
) -> None:
    pin(0)
    with contextlib.suppress(KeyboardInterrupt):
        ready.wait(_START_TIMEOUT)
        pipe.send(asyncio.run(work(*arguments)))
