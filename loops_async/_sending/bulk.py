"""A bulk run: events are pulled, ordered and sent concurrently, each to its outcome.

An event passes these stations: source, intake, order, queue, worker, outcome,
consumer. Workers are tasks: one for each event that is in flight or waits for another
attempt, and one that waits for a permit.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Generic, TypeAlias, TypeVar

from loops_async._http.protocol import ends_run
from loops_async.errors import (
    ClientClosedError,
    ConnectionLostError,
    LoopsError,
    NotTriedError,
)

from .bulk_run import BulkRun
from .intake import Intake, Source, wake
from .ordering import ContactOrder, Entry, ItemT
from .outcomes import Receipt

_logger = logging.getLogger("loops_async")

LOOK_AHEAD: Final = 1000  # most events pulled ahead of the outcomes taken
STOCK: Final = 100  # ready events at which pulling pauses

OutcomeT = TypeVar("OutcomeT")

Send: TypeAlias = Callable[[ItemT, bytes, BulkRun], Awaitable[Receipt]]


class Bulk(Generic[ItemT, OutcomeT]):
    """One run of `send_events` or `stream_events`, or of a journal.

    Args:
        events: The source of the events.
        kind: The class that each event must have.
        outcome: A callable that makes the outcome of an event.
        prepare: A callable that checks and encodes an event, or raises a LoopsError.
        send: A callable that sends one event; None for a dry run.
        has_room: A callable that returns whether one more request could be in flight.
        runs: The current runs of the client, which this run joins while it runs.
        on_outcome: A hook that gets each outcome, or None.
        patience: Seconds for which the run may be stalled; None means no limit.
        keys: The number of idempotency keys to remember; None means all.
        stock: The number of ready events at which pulling pauses.
        look_ahead: The greatest number of events to pull ahead of the outcomes taken.
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
        runs: set[BulkRun],
        on_outcome: Callable[[OutcomeT], object] | None = None,
        patience: float | None,
        keys: int | None,
        stock: int = STOCK,
        look_ahead: int = LOOK_AHEAD,
    ) -> None:
        self._queue: deque[Entry[ItemT]] = deque()  # ready to be sent
        self._intake: Intake[ItemT] = Intake(
            events,
            kind=kind,
            prepare=prepare,
            keys=keys,
            stock=stock,
            look_ahead=look_ahead,
            queue=self._queue,
        )
        self._outcome = outcome
        self._send = send
        self._has_room = has_room
        self._runs = runs
        self._on_outcome = on_outcome
        self._patience = patience
        self._order: ContactOrder[ItemT] = ContactOrder()
        self._queued: dict[int, Entry[ItemT]] = {}  # pulled, but without a worker
        self._outcomes: deque[OutcomeT] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._workers_admitting = 0  # their event's first request is not sent yet
        self._workers_active = 0  # they take another event when theirs is done
        self._workers_backing_off = 0  # active, but waiting for another attempt
        self._keys_in_flight: set[str | None] = set()
        self._all_pulled = False
        self._source_failure: BaseException | None = None
        self._crash: BaseException | None = None  # an unexpected error in a worker
        self._news: asyncio.Future[None] | None = None  # while the consumer waits

    @property
    def stopped_by(self) -> LoopsError | None:
        """The error that ended the run before its source did, or None."""
        return self._run.stopped_by

    def stop(self, error: LoopsError) -> None:
        """Stop the run, if it has begun: requests in flight finish."""
        self._run.stop(error)

    async def outcomes(self) -> AsyncGenerator[OutcomeT, None]:
        """Run, and yield the outcomes in the order in which they arrive."""
        self._loop = asyncio.get_running_loop()
        self._run = BulkRun(
            self._loop,
            self._patience,
            on_sent=self._note_sent,
            on_pause=self._note_pause,
            on_resume=self._note_resume,
            on_stop=self._settle_queued,
        )
        self._runs.add(self._run)
        intake = self._intake
        self._puller = asyncio.Task(intake.pull(self, self._run), loop=self._loop)
        self._puller.add_done_callback(self._note_source_end)
        try:
            while True:
                while self._outcomes:
                    intake.taken += 1
                    if intake.demand is not None:
                        intake.resume()
                    yield self._outcomes.popleft()
                if self._crash is not None:
                    raise self._crash
                if self._all_pulled and intake.taken == intake.pulled:
                    break
                self._news = self._loop.create_future()
                await self._news
        except GeneratorExit:
            # Let requests in flight finish: if they were cancelled, their outcome
            # would be unknown.
            self._run.stop(ClientClosedError("the consumer left the stream"))
            while self._workers:
                await asyncio.wait(self._workers)
            raise
        except BaseException:
            self._run.stop(ClientClosedError("the run was cancelled"))
            raise
        finally:
            await self._end()
        if self._source_failure is not None:
            raise self._source_failure

    async def _end(self) -> None:
        self._run.cancel_timer()
        self._runs.discard(self._run)
        tasks = [self._puller, *self._workers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._intake.drop_source()

    def add(self, index: int, event: ItemT, body: bytes) -> None:
        """Put an event in order, and into the queue if it is ready."""
        if self._send is None:
            receipt = Receipt(event.idempotency_key, 0, False, 0.0, None, dry_run=True)
            self._settle(index, event, receipt, None)
            return
        entry = Entry(index, event, body)
        self._queued[index] = entry
        if self._order.add(entry):
            self._queue.append(entry)
            if len(self._queue) == 1:  # otherwise a worker waits already
                self._start_worker()

    def refuse(self, index: int, event: ItemT, error: LoopsError | None) -> None:
        """Settle an event that is not sent; None means that the run was stopped."""
        self._settle(index, event, None, error or self._not_tried(event))

    def _start_worker(self) -> None:
        """Start a worker if events are ready and no worker waits for a permit.

        If no connection is free, a new worker is useless, because a worker that
        finishes its event takes the next one. A new worker is needed even then if every
        worker backs off, or if another run could take the connection.
        """
        if (
            self._send is not None
            and self._queue
            and not self._workers_admitting
            and (
                self._workers_backing_off >= self._workers_active
                or len(self._runs) > 1
                or self._has_room()
            )
        ):
            self._workers_admitting += 1
            self._workers_active += 1
            # An eager task would start the next worker before it sends its own event.
            worker = asyncio.Task(self._work(self._send), loop=self._loop)
            self._workers.add(worker)
            worker.add_done_callback(self._note_worker_end)

    async def _work(self, send: Send[ItemT]) -> None:
        while self._queue:
            entry = self._queue.popleft()
            if self._intake.demand is not None:
                self._intake.resume()
            del self._queued[entry.index]
            try:
                receipt = await send(entry.event, entry.body, self._run)
            except LoopsError as error:
                if not error.attempts:
                    self._workers_admitting -= 1
                self._note_failure(entry, error)
            except asyncio.CancelledError:
                cancelled = self._cancelled(entry)
                if not cancelled.attempts:
                    self._workers_admitting -= 1
                self._workers_active -= 1
                self._finish(entry, None, cancelled)
                self._start_worker()
                raise
            else:
                if self._run.stalled:
                    self._run.note_progress()
                self._finish(entry, receipt, None)
            if self._workers_admitting > 1:  # enough workers wait already
                self._workers_active -= 1
                return
            self._workers_admitting += 1
        self._workers_admitting -= 1
        self._workers_active -= 1

    def _note_failure(self, entry: Entry[ItemT], error: LoopsError) -> None:
        if ends_run(error) and self.stopped_by is None:
            if not isinstance(error, ClientClosedError):
                _logger.warning("sending stopped: %s", error)
            self._run.stop(error)
        if isinstance(error, ClientClosedError) and not error.attempts:
            error = self._not_tried(entry.event)
        self._finish(entry, None, error)

    def _note_sent(self, key: str | None) -> None:
        self._keys_in_flight.add(key)
        self._workers_admitting -= 1
        self._start_worker()

    def _note_pause(self) -> None:
        self._workers_backing_off += 1
        self._start_worker()

    def _note_resume(self) -> None:
        self._workers_backing_off -= 1

    def _cancelled(self, entry: Entry[ItemT]) -> LoopsError:
        """Return the error for an event whose run was cancelled."""
        if entry.event.idempotency_key not in self._keys_in_flight:
            return self._not_tried(entry.event)
        text = "the run was cancelled before the response came"
        error = ConnectionLostError(text, retryable=True, maybe_accepted=True)
        error.idempotency_key = entry.event.idempotency_key
        error.attempts = 1  # at least
        return error

    def _finish(
        self, entry: Entry[ItemT], receipt: Receipt | None, error: LoopsError | None
    ) -> None:
        self._keys_in_flight.discard(entry.event.idempotency_key)
        ready = self._order.done(entry)
        if ready and self.stopped_by is None:
            self._queue.extend(ready)
        self._settle(entry.index, entry.event, receipt, error)

    def _settle(
        self,
        index: int,
        event: ItemT,
        receipt: Receipt | None,
        error: LoopsError | None,
    ) -> None:
        if error is not None:
            error.__traceback__ = None  # its frames would keep the run alive
        outcome = self._outcome(index, event, receipt, error)
        if self._on_outcome is not None:
            try:
                self._on_outcome(outcome)
            except Exception as raised:  # noqa: BLE001 - a hook changes no outcome
                _logger.error("on_outcome raised %s", type(raised).__name__)
        self._outcomes.append(outcome)
        self._wake_consumer()

    def _wake_consumer(self) -> None:
        if self._news is not None:
            wake(self._news)
            self._news = None

    def _settle_queued(self) -> None:
        """Settle the events that were pulled and not sent."""
        self._puller.cancel()
        self._queue.clear()
        queued, self._queued = self._queued, {}
        for entry in queued.values():
            self.refuse(entry.index, entry.event, None)

    def _not_tried(self, event: ItemT) -> LoopsError:
        error = NotTriedError(f"not tried: {self.stopped_by}", retryable=True)
        error.idempotency_key = event.idempotency_key
        return error

    def _note_source_end(self, puller: asyncio.Task[None]) -> None:
        if puller.cancelled():
            failure: BaseException | None = asyncio.CancelledError(
                "the source was cancelled"
            )
        else:
            failure = puller.exception()
        if self.stopped_by is None:  # otherwise this run cancelled the puller
            self._source_failure = failure
        self._all_pulled = True
        self._wake_consumer()

    def _note_worker_end(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled():  # a cancelled worker has settled its event
            self._crash = self._crash or worker.exception()
        if self._crash is not None:
            self._wake_consumer()
