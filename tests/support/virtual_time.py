"""Event loops whose time the test controls, so that waiting takes no real time."""

import asyncio
import math
import selectors
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

_T = TypeVar("_T")


_MAX_TURNS = 100_000  # no test needs a tenth of these turns of its event loop


class Deadlock(Exception):
    """The event loop would wait forever, either idle or from timer to timer."""


class _JumpingSelector(selectors.SelectSelector):
    """Advances the time of its event loop instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.turns = 0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        if self.turns > _MAX_TURNS:
            msg = f"only timers are left, and they did not end by {self.now:g} s"
            raise Deadlock(msg)
        ready = super().select(0)
        if not ready:
            if timeout is None:
                msg = f"no timer and no callback is left at {self.now:g} s"
                raise Deadlock(msg)
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that starts at time 0 and jumps from timer to timer.

    A test in this loop must not wait for anything outside the loop, such as a
    socket or a thread.
    """

    def __init__(self) -> None:
        self._selector_of_time = _JumpingSelector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        return self._selector_of_time.now

    @property
    def turns(self) -> int:
        """The number of turns so far, which grows fast in a busy loop."""
        return self._selector_of_time.turns


class FrozenLoop(asyncio.SelectorEventLoop):
    """An event loop with real sockets, whose time moves only in `advance`.

    Wait for sockets with `support.waiting.until`, because no timer expires.
    """

    now = 0.0

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run like asyncio.run, in virtual time.

    Raises:
        Deadlock: If asyncio.run would hang.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def run_frozen(main: Coroutine[Any, Any, _T]) -> _T:
    """Run like asyncio.run, in an event loop whose time only `advance` moves."""
    with asyncio.Runner(loop_factory=FrozenLoop) as runner:
        return runner.run(main)


async def advance(seconds: float) -> None:
    """Move the time of a `FrozenLoop`, in steps of about 10 ms.

    All timers that expire on the way run, and so does what they start, as long
    as it does not wait for a socket.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FrozenLoop)
    end = loop.now + seconds
    await settle()
    while loop.now < end:
        loop.now = min(loop.now + _STEP, end)
        await settle()


@asynccontextmanager
async def passing_time() -> AsyncIterator[None]:
    """Let the time of a `FrozenLoop` pass with its turns, and not with the clock."""
    passing = asyncio.create_task(advance(math.inf))
    try:
        yield
    finally:
        passing.cancel()
        await asyncio.wait([passing])


_STEP = 0.0101  # seconds; no multiple of it equals a deadline of a test


async def settle() -> None:
    """Give every task the turns that it can use without waiting."""
    for _ in range(10):
        await asyncio.sleep(0)
