"""Many events: pulled, put in order, sent side by side, accounted for.

One event walks: source -> `_take` -> order -> ready -> a worker -> outcome ->
consumer. At most `LOOK_AHEAD` are anywhere on that way, and only while their
contacts have to wait are there many more than are under way.
"""

import asyncio
import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
)
from typing import Final, Generic, TypeAlias, TypeVar

from loops_async._http.protocol import ends_run
from loops_async.errors import (
    ClientClosedError,
    ConnectionLostError,
    InvalidEventError,
    LoopsError,
    NotTriedError,
)

from .bulk_run import BulkRun, Record
from .ordering import ContactOrder, Entry, ItemT, KeyBook, Sendable
from .outcomes import Receipt

_logger = logging.getLogger("loops_async")

LOOK_AHEAD: Final = 1000  # events pulled whose outcomes were not taken yet
_STOCK: Final = 100  # events that can go at once: more are pulled for order only

OutcomeT = TypeVar("OutcomeT")

Source: TypeAlias = Iterable[ItemT] | AsyncIterable[ItemT]
Send: TypeAlias = Callable[[ItemT, bytes, BulkRun], Awaitable[Receipt]]


class FanOut(Generic[ItemT, OutcomeT]):
    """One run of `send_events` or `stream_events`, or of a journal.

    Args:
        events: Where they come from.
        kind: What each of them has to be.
        outcome: Makes what is told of one.
        prepare: Checks an event and gives its bytes; raises a LoopsError.
        send: Sends one event; None sends nothing, for a dry run.
        has_room: Whether one more request could be under way.
        lanes: Of all runs of the client, while they run.
        on_outcome: Told each outcome; it changes none.
        patience: Seconds without any progress, after which the run ends.
        keys: How many idempotency keys to remember; None is all.
        look_ahead: Events to pull before their outcomes were taken.
        record: Where attempts are written down.
    """

    def __init__(
        self,
        events: Source[ItemT],
        *,
        kind: type[ItemT],
        outcome: Callable[[int, ItemT, Receipt | None, LoopsError | None], OutcomeT],
        prepare: Callable[[ItemT], bytes],
        send: Send[ItemT] | None,
        has_room: Callable[[], bool],
        lanes: set[BulkRun],
        on_outcome: Callable[[OutcomeT], object] | None = None,
        patience: float | None,
        keys: int | None,
        look_ahead: int = LOOK_AHEAD,
        record: Record | None = None,
    ) -> None:
        self._source = events
        self._kind = kind
        self._outcome = outcome
        self._look_ahead = look_ahead
        self._record = record
        self._prepare = prepare
        self._send = send
        self._has_room = has_room
        self._lanes = lanes
        self._on_outcome = on_outcome
        self._patience = patience
        self._order: ContactOrder[ItemT] = ContactOrder()
        self._keys = KeyBook(keys)
        self._ready: deque[Entry[ItemT]] = deque()
        self._unsent: dict[int, Entry[ItemT]] = {}  # pulled, and with no worker yet
        self._outcomes: deque[OutcomeT] = deque()
        self._pulled = 0
        self._taken = 0  # outcomes the consumer has
        self._starting = 0  # workers whose event did not leave yet
        self._busy = 0  # workers that will take another event when done
        self._pausing = 0  # of these, with an event to be tried again later
        self._left: set[str | None] = set()  # keys of the events that did
        self._workers: set[asyncio.Task[None]] = set()
        self._all_pulled = False
        self._source_failure: BaseException | None = None
        self._crash: BaseException | None = None  # of ours
        self._news: asyncio.Future[None] | None = None  # the consumer waits
        self._room: asyncio.Future[None] | None = None  # the puller waits

    @property
    def stopped_by(self) -> LoopsError | None:
        """What ended the run before its source did, or None."""
        return self.lane.stopped_by

    async def outcomes(self) -> AsyncGenerator[OutcomeT, None]:
        """Run; yield the outcomes as they come in."""
        self._loop = asyncio.get_running_loop()
        self.lane = BulkRun(
            self._loop,
            self._patience,
            record=self._record,
            on_sent=self._sent,
            on_pause=self._paused,
            on_resume=self._resumed,
            on_stop=self._stopped,
        )
        self._lanes.add(self.lane)
        self._puller = asyncio.Task(self._pull(), loop=self._loop)
        self._puller.add_done_callback(self._puller_left)
        try:
            while True:
                while self._outcomes:
                    self._taken += 1
                    if self._room is not None:
                        self._restock()
                    yield self._outcomes.popleft()
                if self._crash is not None:
                    raise self._crash
                if self._all_pulled and not self._ahead():
                    break
                self._news = self._loop.create_future()
                await self._news
        except GeneratorExit:
            # What is under way may as well end: cut off, nobody would know.
            self.lane.stop(ClientClosedError("nobody takes the outcomes any more"))
            while self._workers:
                await asyncio.wait(self._workers)
            raise
        except BaseException:
            self.lane.stop(ClientClosedError("the run was cancelled"))
            raise
        finally:
            await self._end()
        if self._source_failure is not None:
            raise self._source_failure

    def _ahead(self) -> int:
        return self._pulled - self._taken

    async def _end(self) -> None:
        self.lane.disarm()
        self._lanes.discard(self.lane)
        tasks = [self._puller, *self._workers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._source = ()  # so that a generator made for this is closed at once

    # The way of an event, from here on.

    async def _pull(self) -> None:
        if isinstance(self._source, AsyncIterable):
            async for event in self._source:
                self._take(event)
                if self._has_enough():
                    await self._until_wanted()
        else:
            for event in self._source:
                self._take(event)
                if not self._pulled % _STOCK:
                    await asyncio.sleep(0)  # let others have the loop
                if self._has_enough():
                    await self._until_wanted()

    def _has_enough(self) -> bool:
        return len(self._ready) >= _STOCK or self._ahead() >= self._look_ahead

    async def _until_wanted(self) -> None:
        self._room = self._loop.create_future()
        await self._room

    def _restock(self) -> None:
        """Pull more, if enough is wanted to be worth it."""
        low = len(self._ready) <= _STOCK // 2
        if (
            self._room is not None
            and low
            and self._ahead() <= self._look_ahead - _STOCK
        ):
            _wake(self._room)
            self._room = None

    def _take(self, event: ItemT) -> None:
        index = self._pulled
        if not isinstance(event, self._kind):
            kind = type(event).__name__
            raise TypeError(f"events[{index}] must be an Event, not {kind}")
        if self.lane.stopped_by is not None:
            self._pulled += 1
            self._settle(index, event, None, self._not_tried(event))
            raise asyncio.CancelledError  # the source did not mind that it was
        body = b""
        error: LoopsError | None = None
        try:
            body = self._prepare(event)
            if not self._keys.agrees(event.idempotency_key, body):
                error = _reused(event)
        except LoopsError as refused:
            error = refused
        self._pulled += 1
        if error is not None:
            self._settle(index, event, None, error)
            return
        if self._send is None:
            receipt = Receipt(event.idempotency_key, 0, False, 0.0, None, dry_run=True)
            self._settle(index, event, receipt, None)
            return
        entry = Entry(index, event, body)
        self._unsent[index] = entry
        if self._order.add(entry):
            self._ready.append(entry)
            if len(self._ready) == 1:  # else somebody will come for it
                self._start_worker()

    def _start_worker(self) -> None:
        """See to it that somebody waits to send what is ready, and not more.

        So there are as many workers as requests under way or to be tried
        again, and one: rate times latency. That one is not needed where the
        connections are the limit: who ends takes the next. Unless there may
        be nobody who ends, or somebody else to take the connection.
        """
        if (
            self._ready
            and not self._starting
            and (
                self._pausing >= self._busy or len(self._lanes) > 1 or self._has_room()
            )
        ):
            self._starting += 1
            self._busy += 1
            # Never eagerly, or each would start the next before it has sent.
            worker = asyncio.Task(self._work(), loop=self._loop)
            self._workers.add(worker)
            worker.add_done_callback(self._worker_left)

    async def _work(self) -> None:
        assert self._send is not None
        while self._ready:
            entry = self._ready.popleft()
            if self._room is not None:
                self._restock()
            del self._unsent[entry.index]
            try:
                receipt = await self._send(entry.event, entry.body, self.lane)
            except LoopsError as error:
                if not error.attempts:
                    self._starting -= 1
                self._failed(entry, error)
            except asyncio.CancelledError:
                cut_off = self._cut_off(entry)
                if not cut_off.attempts:
                    self._starting -= 1
                self._busy -= 1
                self._done(entry, None, cut_off)
                self._start_worker()
                raise
            else:
                self._done(entry, receipt, None)
            if self._starting > 1:  # enough wait already
                self._busy -= 1
                return
            self._starting += 1
        self._starting -= 1
        self._busy -= 1

    def _failed(self, entry: Entry[ItemT], error: LoopsError) -> None:
        if ends_run(error) and self.lane.stopped_by is None:
            if not isinstance(error, ClientClosedError):
                _logger.warning("sending stopped: %s", error)
            self.lane.stop(error)
        if isinstance(error, ClientClosedError) and not error.attempts:
            error = self._not_tried(entry.event)
        self._done(entry, None, error)

    def _sent(self, key: str | None = None) -> None:
        self._left.add(key)
        self._starting -= 1
        self._start_worker()

    def _paused(self) -> None:
        self._pausing += 1
        self._start_worker()

    def _resumed(self) -> None:
        self._pausing -= 1

    def _cut_off(self, entry: Entry[ItemT]) -> LoopsError:
        """Return the error for an event whose run was cancelled around it."""
        if entry.event.idempotency_key not in self._left:
            return self._not_tried(entry.event)
        text = "the run was cancelled before the answer came"
        error = ConnectionLostError(text, retryable=True, maybe_accepted=True)
        error.idempotency_key = entry.event.idempotency_key
        error.attempts = 1  # at least
        return error

    def _done(
        self, entry: Entry[ItemT], receipt: Receipt | None, error: LoopsError | None
    ) -> None:
        self._left.discard(entry.event.idempotency_key)
        free = self._order.done(entry)
        if free and self.lane.stopped_by is None:
            self._ready.extend(free)
        self._settle(entry.index, entry.event, receipt, error)

    def _settle(
        self,
        index: int,
        event: ItemT,
        receipt: Receipt | None,
        error: LoopsError | None,
    ) -> None:
        if error is not None:
            error.__traceback__ = None  # its frames hold more than is wanted
        outcome = self._outcome(index, event, receipt, error)
        if self._on_outcome is not None:
            try:
                self._on_outcome(outcome)
            except Exception as raised:  # noqa: BLE001 - a hook changes no outcome
                _logger.error("on_outcome raised %s", type(raised).__name__)
        self._outcomes.append(outcome)
        if self._news is not None:
            self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            _wake(self._news)
            self._news = None

    # How it ends.

    def _stopped(self) -> None:
        """Give back what was pulled and not sent."""
        self._puller.cancel()
        self._ready.clear()
        unsent, self._unsent = self._unsent, {}
        for entry in unsent.values():
            error = self._not_tried(entry.event)
            self._settle(entry.index, entry.event, None, error)

    def _not_tried(self, event: ItemT) -> NotTriedError:
        error = NotTriedError(f"not tried: {self.lane.stopped_by}", retryable=True)
        error.idempotency_key = event.idempotency_key
        return error

    def _puller_left(self, puller: asyncio.Task[None]) -> None:
        if puller.cancelled():
            failure: BaseException | None = asyncio.CancelledError("by the source")
        else:
            failure = puller.exception()
        if self.lane.stopped_by is None:  # else it was cut short by us
            self._source_failure = failure
        self._all_pulled = True
        self._tell()

    def _worker_left(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled():  # else its event has its outcome
            self._crash = self._crash or worker.exception()
        if self._crash is not None:
            self._tell()


def _reused(event: Sendable) -> InvalidEventError:
    why = (
        "idempotency_key: another event of this run has it, and Loops would "
        "take only one of them; event.replace(...) makes a copy with its own"
    )
    error = InvalidEventError(problems=[why])
    error.idempotency_key = event.idempotency_key
    return error


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
