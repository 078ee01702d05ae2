"""Waiting for conditions, so that no test depends on the speed of the machine."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from support.virtual_time import FrozenLoop, advance

_T = TypeVar("_T")

LIMIT = 60.0  # seconds; a condition that holds late passes, one that never holds fails
_PAUSE = 0.002


async def until(condition: Callable[[], object], *, limit: float = LIMIT) -> None:
    """Wait until the condition holds, also in an event loop whose time is frozen.

    Args:
        condition: Function without arguments; its result is tested for truth.
        limit: Seconds of real time after which the wait fails.

    Raises:
        AssertionError: If the condition does not hold within the limit.
    """
    frozen = isinstance(asyncio.get_running_loop(), FrozenLoop)
    for _ in _until(condition, limit):
        if frozen:
            time.sleep(_PAUSE / 4)  # noqa: ASYNC251 - no timer of this loop ends
        await asyncio.sleep(0 if frozen else _PAUSE)


async def advance_until(
    condition: Callable[[], object], *, step: float = 0.05, limit: float = LIMIT
) -> None:
    """Move the time of a `FrozenLoop` until the condition holds.

    Args:
        condition: Function without arguments; its result is tested for truth.
        step: Seconds of loop time between two looks at the condition.
        limit: Seconds of real time after which the wait fails.

    Raises:
        AssertionError: If the condition does not hold within the limit.
    """
    for _ in _until(condition, limit):
        await advance(step)


def wait_until(condition: Callable[[], object], *, limit: float = LIMIT) -> None:
    """Block this thread until the condition holds.

    Args:
        condition: Function without arguments; its result is tested for truth.
        limit: Seconds of real time after which the wait fails.

    Raises:
        AssertionError: If the condition does not hold within the limit.
    """
    for _ in _until(condition, limit):
        time.sleep(_PAUSE)


def _until(condition: Callable[[], object], limit: float) -> Iterator[None]:
    """Yield whenever the condition does not hold yet, so that the caller can wait."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            msg = f"the condition did not hold within {limit:g} s"
            raise AssertionError(msg)
        yield


def run(
    main: Coroutine[Any, Any, _T],
    limit: float = LIMIT,
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> _T:
    """Run like asyncio.run, and fail if it takes longer than the limit in seconds."""

    async def limited() -> _T:
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(limited())
