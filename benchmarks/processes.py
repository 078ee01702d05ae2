"""Work for processes of their own, as the clients of real fleets are."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

from .answering import pin

_T = TypeVar("_T")
_PATIENCE = 120.0  # seconds until every process must have started


class Load:
    """The CPU time of this process: when its core is busy, times are distorted."""

    def __init__(self) -> None:
        self._spent, self._began = time.process_time(), time.monotonic()

    def share(self) -> float:
        """Return how much of one core was used since it was made."""
        spent = time.process_time() - self._spent
        return spent / (time.monotonic() - self._began)


@contextlib.contextmanager
def beside(work: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run something in a process of its own; yields what to talk to it with."""
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


def together(
    work: Callable[..., Coroutine[Any, Any, _T]], calls: Sequence[tuple[Any, ...]]
) -> list[_T]:
    """Run each call in a process of its own, all beginning at the same time.

    They share the first core; the servers have the other.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(len(calls))
    pipes = []
    for arguments in calls:
        here, there = context.Pipe(duplex=False)
        given = (work, arguments, ready, there)
        context.Process(target=_process, args=given, daemon=True).start()
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
        ready.wait(_PATIENCE)
        pipe.send(asyncio.run(work(*arguments)))
