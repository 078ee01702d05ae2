"""The intake of a bulk run, which pulls events no faster than they are sent."""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Sized
from typing import Generic, Protocol, TypeAlias, TypeVar

from loops_async.errors import InvalidEventError, LoopsError

from .bulk_run import BulkRun
from .ordering import ItemT, KeyMemory, Sendable

Source: TypeAlias = Iterable[ItemT] | AsyncIterable[ItemT]


_ItemT_contra = TypeVar("_ItemT_contra", contravariant=True)


class Sink(Protocol[_ItemT_contra]):
    """The part of a run that receives the events."""

    def add(self, index: int, event: _ItemT_contra, body: bytes) -> None:
        """Add an event that can be sent."""

    def refuse(
        self, index: int, event: _ItemT_contra, error: LoopsError | None
    ) -> None:
        """Settle an event that is not sent; None means that the run was stopped."""


class Intake(Generic[ItemT]):
    """The intake of one run, which pulls, checks and encodes its events.

    Args:
        source: The events.
        kind: The class that each event must have.
        prepare: A callable that checks and encodes an event, or raises a LoopsError.
        keys: The number of idempotency keys to remember; None means all.
        stock: The number of ready events at which pulling pauses.
        look_ahead: The greatest number of events to pull ahead of the outcomes taken.
        queue: The sink's queue of events that could be sent now.

    Attributes:
        pulled: The number of events pulled so far.
        taken: The number of outcomes that the consumer has taken.
        demand: A future that `resume` resolves, while pulling pauses.
    """

    def __init__(
        self,
        source: Source[ItemT],
        *,
        kind: type[ItemT],
        prepare: Callable[[ItemT], bytes],
        keys: int | None,
        stock: int,
        look_ahead: int,
        queue: Sized,
    ) -> None:
        self.pulled = 0
        self.taken = 0
        self.demand: asyncio.Future[None] | None = None
        self._source = source
        self._kind = kind
        self._prepare = prepare
        self._keys = KeyMemory(keys)
        self._stock = stock
        self._look_ahead = look_ahead
        self._queue = queue

    async def pull(self, sink: Sink[ItemT], run: BulkRun) -> None:
        """Pull until the source ends; waits while enough events are ready.

        Args:
            sink: The part of the run that receives the events.
            run: The run.

        Raises:
            TypeError: If an item is not an event.
            CancelledError: If the run was stopped and the source yielded another event.
        """
        if isinstance(self._source, AsyncIterable):
            async for event in self._source:
                self._take(event, sink, run)
                if self._has_enough():
                    await self._wait_for_demand()
        else:
            for event in self._source:
                self._take(event, sink, run)
                if not self.pulled % self._stock:
                    await asyncio.sleep(0)  # let other tasks run
                if self._has_enough():
                    await self._wait_for_demand()

    def resume(self) -> None:
        """Resume pulling if there is room for a worthwhile number of events."""
        if (
            self.demand is not None
            and len(self._queue) <= self._stock // 2
            and self.pulled - self.taken <= self._look_ahead - self._stock
        ):
            wake(self.demand)
            self.demand = None

    def drop_source(self) -> None:
        """Drop the source, so that a generator made for this run closes at once."""
        self._source = ()

    def _has_enough(self) -> bool:
        return (
            len(self._queue) >= self._stock
            or self.pulled - self.taken >= self._look_ahead
        )

    async def _wait_for_demand(self) -> None:
        self.demand = asyncio.get_running_loop().create_future()
        await self.demand

    def _take(self, event: ItemT, sink: Sink[ItemT], run: BulkRun) -> None:
        index = self.pulled
        if not isinstance(event, self._kind):
            kind = type(event).__name__
            raise TypeError(f"events[{index}] must be an Event, not {kind}")
        if run.stopped_by is not None:
            self.pulled += 1
            sink.refuse(index, event, None)
            raise asyncio.CancelledError  # the source suppressed the cancellation
        body, error = b"", None
        try:
            body = self._prepare(event)
            if not self._keys.agrees(event.idempotency_key, body):
                error = _reused_key(event)
        except LoopsError as refused:
            error = refused
        self.pulled += 1
        if error is None:
            sink.add(index, event, body)
        else:
            sink.refuse(index, event, error)


def _reused_key(event: Sendable) -> LoopsError:
    problem = (
        "idempotency_key: another event of this run has the same key, and Loops would "
        "accept only one of them; event.replace(...) makes a copy with a new key"
    )
    error = InvalidEventError(problems=[problem])
    error.idempotency_key = event.idempotency_key
    return error


def wake(waiting: asyncio.Future[None]) -> None:
    """Resolve a future unless it is done."""
    if not waiting.done():
        waiting.set_result(None)
