"""The limit on concurrent requests."""

import asyncio
from collections import deque


class ConcurrencyLimit:
    """A semaphore whose free slots a caller can read and take without awaiting.

    With `asyncio.Semaphore` taking a slot costs an await, and `locked` scans the
    waiters; both showed in the CPU time per event. Waiters are served first-in,
    first-out: a released slot goes to the longest waiter, so `free` counts only slots
    that no caller waits for. The limit belongs to the running event loop.

    Args:
        limit: The number of slots.
    """

    def __init__(self, limit: int) -> None:
        self.free: int = limit
        self._loop = asyncio.get_running_loop()
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Take a slot, waiting until one is free; cancellation leaves the queue."""
        if self.free:
            self.free -= 1
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # a slot was assigned before the cancellation
                self.release()
            raise

    def release(self) -> None:
        """Return a slot."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():  # a cancelled waiter is done
                waiter.set_result(None)
                return
        self.free += 1
