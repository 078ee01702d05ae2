"""How many requests may be under way at once."""

import asyncio
from collections import deque


class ConcurrencyLimit:
    """A semaphore that can be taken without a wait, and looked at for nothing.

    asyncio's can only be awaited, and scans its line for each question; that
    showed in the CPU of every event. First come, first served: a slot given
    back goes to who has waited longest, so `free` are only those nobody
    waits for. Belongs to the running loop.
    """

    def __init__(self, number: int) -> None:
        self.free = number
        self._loop = asyncio.get_running_loop()
        self._line: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Take one; waits until there is one. Cancelling gives the turn up."""
        if self.free:
            self.free -= 1
            return
        turn = self._loop.create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given one at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give one back."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():  # else it gave up
                turn.set_result(None)
                return
        self.free += 1
