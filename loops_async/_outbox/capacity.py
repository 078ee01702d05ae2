"""The room of an outbox: puts wait while it is full."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from loops_async.errors import ClientClosedError


class Capacity:
    """The room for events in one outbox, in the running event loop.

    Args:
        limit: The greatest number of events that are pending or reserved.
        pending: A callable that returns the number of pending events.

    Attributes:
        reserved: The number of events that are admitted but not durable yet.
    """

    def __init__(self, limit: int, pending: Callable[[], int]) -> None:
        self.reserved = 0
        self._limit = limit
        self._pending = pending
        # The waiting puts, oldest first, with their numbers of events.
        self._waiting: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    @property
    def waiting(self) -> int:
        """The number of puts that wait."""
        return len(self._waiting)

    async def reserve(self, size: int) -> None:
        """Reserve room for that many events; waits while there is none.

        Raises:
            ClientClosedError: If the outbox closes meanwhile.
        """
        if not self._waiting and self._has_room(size):
            self.reserved += size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = size
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self.reserved -= size  # admitted and cancelled at the same time
            self._waiting.pop(turn, None)
            raise

    def admit(self) -> None:
        """Admit waiting puts in FIFO order while there is room."""
        while self._waiting:
            turn, size = next(iter(self._waiting.items()))
            if not turn.done():  # not cancelled
                if not self._has_room(size):
                    break
                self.reserved += size
                turn.set_result(None)
            del self._waiting[turn]

    def close(self) -> None:
        """Refuse the waiting puts."""
        for turn in self._waiting:
            if not turn.done():
                msg = "the outbox was closed while the put waited for room"
                turn.set_exception(ClientClosedError(msg))
        self._waiting.clear()

    def _has_room(self, size: int) -> bool:
        return self._pending() + self.reserved + size <= self._limit
