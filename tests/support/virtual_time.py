"""An event loop whose time jumps instead of passing, so that waiting is instant."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


_ENDLESS = 100_000  # turns of a loop; no test needs a tenth of them


class Deadlock(Exception):
    """This loop would wait for ever: for nothing, or from timer to timer."""


class _Jumping(selectors.SelectSelector):
    """Moves the time of its loop on by what it was asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.turns = 0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        if self.turns > _ENDLESS:
            msg = f"nothing but timers, and no end at {self.now:g} s"
            raise Deadlock(msg)
        ready = super().select(0)
        if not ready:
            if timeout is None:
                msg = f"nothing can happen any more at {self.now:g} s"
                raise Deadlock(msg)
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at time 0; only for what waits for nothing outside the loop."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    @property
    def turns(self) -> int:
        """How often it looked for something to do: what a busy loop would show."""
        return self._jumping.turns


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run like asyncio.run, in virtual time.

    Raises:
        Deadlock: where asyncio.run would hang.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


async def settle() -> None:
    """Let everything happen that can happen now."""
    for _ in range(10):
        await asyncio.sleep(0)
