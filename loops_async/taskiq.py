"""taskiq: a task that sends events, and a client for tasks of your own.

    broker = RedisStreamBroker("redis://localhost")
    send_event = add_loops(broker)

    await send_event.kiq(Event("signup", email="ada@example.com"))  # anywhere


    @broker.task
    async def welcome(event: Event, loops: LoopsClient) -> None:
        await loops.send_event(event)

An event is enqueued with the idempotency key that it has from birth, so however
often a task is delivered, Loops takes its event once: for the 24 hours during
which Loops remembers a key.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, TypeAlias

import attrs
from pydantic_core import core_schema
from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    Context,
    TaskiqDepends,
    TaskiqEvents,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqState,
)
from taskiq.exceptions import NoResultError

from ._client import AsyncLoopsClient
from ._codec import event_from_record, event_to_record
from ._events import Event
from ._fanout import stops
from .errors import (
    APIError,
    DeadlineExceededError,
    IdempotencyConflictError,
    LoopsError,
    TransportError,
)

__all__ = ["LoopsClient", "SendEvent", "add_loops", "get_client"]

TASK_NAME: Final = "loops_async:send_event"

_STATE: Final = "loops_client"
_CLOSING: Final = "loops_closing"
_RUNNING: Final = "loops_running"
_REQUEUES: Final = "X-Taskiq-requeue"  # taskiq's own
_AMBIGUOUS: Final = "loops_ambiguous_since"
_TOO_OLD: Final = 23 * 3600.0  # seconds
_SKEW: Final = 600.0  # seconds, between the clocks of two workers
_LONGEST_PAUSE: Final = 60.0  # seconds
_NEXT_TRY: Final = 1.0  # seconds, while the queue takes nothing
_GRACE: Final = 3.0  # seconds for requests when a worker ends; taskiq gives it 5
_LAST: Final = 1.0  # seconds for what then goes back into the queue

_logger = logging.getLogger("loops_async")


def get_client(context: Annotated[Context, TaskiqDepends()]) -> AsyncLoopsClient:
    """Return the worker's client; a dependency."""
    client: AsyncLoopsClient = context.state[_STATE]
    return client


LoopsClient: TypeAlias = Annotated[AsyncLoopsClient, TaskiqDepends(get_client)]
"""A task's parameter of this type is the worker's client.

A task runs again if its worker died, so let the key of what it sends not be made
in it: take an Event as an argument, or derive the key from the task's ID.
"""

SendEvent: TypeAlias = AsyncTaskiqDecoratedTask[
    [Event], Coroutine[Any, Any, dict[str, Any]]
]
"""The task: ``await send_event.kiq(event)``."""


def add_loops(
    broker: AsyncBroker,
    *,
    client: Callable[[], AsyncLoopsClient] = AsyncLoopsClient,
    patience: float = 120.0,
) -> SendEvent:
    """Give each worker of a broker a client, and the broker a task that sends.

    The task tries like `AsyncLoopsClient.send_event`. What may work later (an
    outage, a refused key) it puts back into the queue when its patience is
    over, after a pause that grows from 1 s to a minute, for as long as it
    takes. What Loops refuses fails with the LoopsError; so does, as *unknown*,
    what has been ambiguous for 23 hours. A retry middleware has nothing to
    add, and is told so. A message is acknowledged when its event is sent or
    in the queue again, whatever the worker does with other tasks.

    The task's result is the receipt, as a dict. Of an error, taskiq's result
    backends keep the class and the text, not the attributes.

    Args:
        broker: Whose; not started yet.
        client: Makes the client of a worker, when it starts.
        patience: Seconds for one run of the task. With the pause, and the time
            for which a fetched task waits for others of its worker, it has to
            stay below the time after which the broker delivers a task again
            (10 minutes in taskiq-redis), or an outage makes copies of it.
            They are sent under one key, so Loops takes one.

    Returns:
        The task.
    """

    async def open_client(state: TaskiqState) -> None:
        state[_STATE] = client()
        state[_CLOSING] = asyncio.Event()
        state[_RUNNING] = set()

    async def close_client(state: TaskiqState) -> None:
        state[_CLOSING].set()
        await state[_STATE].aclose(_GRACE)
        if state[_RUNNING]:
            await asyncio.wait(state[_RUNNING], timeout=_LAST)

    async def send_event(
        event: Any,  # a record; of an Event pydantic's complaint would show it
        context: Context = TaskiqDepends(),  # noqa: B008 - taskiq's way
    ) -> dict[str, Any]:
        event = _as_event(event)
        closing: asyncio.Event = context.state[_CLOSING]
        _note(asyncio.current_task(), context.state[_RUNNING])
        began = time.time()
        labels = context.message.labels
        since = float(labels.get(_AMBIGUOUS, began))
        if not -_SKEW <= began - since < _TOO_OLD:
            text = "not tried again: its first try was too long ago for its key"
            too_late = DeadlineExceededError(text, maybe_accepted=True)
            too_late.idempotency_key = event.idempotency_key
            raise too_late
        try:
            receipt = await get_client(context).send_event(event, deadline=patience)
            return attrs.asdict(receipt)
        except LoopsError as error:
            cut_off = closing.is_set() and isinstance(error, TransportError)
            later = error.retryable or stops(error) or _is_proof(error, labels)
            if not (later or cut_off):
                raise
            if error.maybe_accepted:
                labels[_AMBIGUOUS] = str(since)
            pause = _pause(int(labels.get(_REQUEUES, 0)), error)
        with suppress(TimeoutError):
            await asyncio.wait_for(closing.wait(), pause)
        while True:  # or taskiq would take it for done
            try:
                await context.requeue()
            except NoResultError:  # it is in the queue
                raise
            except Exception as error:  # noqa: BLE001 - whatever a broker may raise
                why = type(error).__name__
                _logger.warning("the queue does not take an event back: %s", why)
                await asyncio.sleep(_NEXT_TRY)

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, open_client)
    broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, close_client)
    broker.add_middlewares(_EventsAsRecords())
    # Whatever the worker is told: an event is only done when it is sent.
    return broker.register_task(
        send_event, TASK_NAME, retry_on_error=False, ack_type="when_saved"
    )


def _note(task: "asyncio.Task[Any] | None", running: "set[asyncio.Task[Any]]") -> None:
    assert task is not None
    running.add(task)
    task.add_done_callback(running.discard)


def _is_proof(error: LoopsError, labels: Mapping[str, Any]) -> bool:
    """Tell whether a 409 after 429s says that an earlier run was accepted."""
    conflict = isinstance(error, IdempotencyConflictError)
    return conflict and error.maybe_accepted and _AMBIGUOUS in labels


def _pause(requeues: int, error: LoopsError) -> float:
    asked = error.retry_after if isinstance(error, APIError) else None
    return min(max(2.0 ** min(requeues, 10), asked or 0.0), _LONGEST_PAUSE)


class _EventsAsRecords(TaskiqMiddleware):
    """Lets tasks of any kind be called with events."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        _as_records(message)
        return message


def _as_records(message: TaskiqMessage) -> None:
    message.args = [_as_record(value) for value in message.args]
    message.kwargs = {name: _as_record(v) for name, v in message.kwargs.items()}


def _as_record(value: Any) -> Any:
    return event_to_record(value) if isinstance(value, Event) else value


def _as_event(value: Event | Mapping[str, Any]) -> Event:
    return value if isinstance(value, Event) else event_from_record(value)


def _schema(*_: object) -> core_schema.CoreSchema:
    return core_schema.no_info_plain_validator_function(_as_event)


# On the worker's side taskiq has pydantic make the arguments what they are
# annotated as.
setattr(Event, "__get_pydantic_core_schema__", staticmethod(_schema))  # noqa: B010
