"""taskiq: a task that sends events, and a client for tasks of your own.

    broker = RedisStreamBroker("redis://localhost")
    send_event = add_loops(broker)

    await send_event.kiq(Event("signup", email="ada@example.com"))  # anywhere


    @broker.task
    async def welcome(
        event: Event, loops: AsyncLoopsClient = TaskiqDepends(get_client)
    ) -> None:
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

try:
    from pydantic_core import SchemaSerializer, core_schema
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
except ModuleNotFoundError as _missing:
    _missing.add_note("it comes with an extra: pip install 'loops-async[taskiq]'")
    raise

from ._checks import checked_seconds
from ._client import AsyncLoopsClient
from ._events.codec import event_from_record, event_to_record
from ._events.event import Event
from ._http.protocol import ends_run
from .errors import (
    APIError,
    ConfigurationError,
    DeadlineExceededError,
    IdempotencyConflictError,
    InvalidEventError,
    LoopsError,
    TransportError,
)

__all__ = ["SendEvent", "add_loops", "get_client"]

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
    """Return the worker's client; a dependency of tasks of your own.

    A task runs again if its worker died, so let the key of what it sends not be
    made in it: take an Event as an argument, or derive the key from the task's ID.
    """
    client: AsyncLoopsClient | None = context.state.get(_STATE)
    if client is None:
        msg = "no Loops client: the broker was not started as a worker's"
        raise ConfigurationError(msg)
    return client


SendEvent: TypeAlias = AsyncTaskiqDecoratedTask[
    [Event], Coroutine[Any, Any, dict[str, Any]]
]
"""The task: ``await send_event.kiq(event)``."""


def add_loops(
    broker: AsyncBroker,
    *,
    client: Callable[[], AsyncLoopsClient] = AsyncLoopsClient,
    deadline: float = 120.0,
) -> SendEvent:
    """Give each worker of a broker a client, and the broker a task that sends.

    The task tries like `AsyncLoopsClient.send_event`. What may work later (an
    outage, a refused key) it puts back into the queue, after a pause that
    grows from 1 s to a minute, for as long as it takes. What Loops refuses
    fails with the LoopsError; so does, as *unknown*, what has been ambiguous
    for 23 hours. A message is acknowledged when its event is sent or in the
    queue again. A retry middleware or a time-out of taskiq's has nothing to
    add, so the labels of those have no effect.

    The task's result is the receipt, as a dict. Of an error, taskiq's result
    backends keep the class and the text, not the attributes.

    Args:
        broker: Whose; not started yet.
        client: Makes the client of a worker, when it starts.
        deadline: Seconds for one run of the task. With the pause, and the time
            for which a fetched task waits for others of its worker, it has to
            stay below the time after which the broker delivers a task again
            (10 minutes in taskiq-redis), or an outage makes copies of it.
            They are sent under one key, so Loops takes one.

    Returns:
        The task.

    Raises:
        ConfigurationError: if the deadline cannot work.
    """
    most = checked_seconds("deadline", deadline)

    async def open_client(state: TaskiqState) -> None:
        if _STATE in state:
            return
        state[_CLOSING] = asyncio.Event()
        state[_RUNNING] = set()
        state[_STATE] = client()

    async def close_client(state: TaskiqState) -> None:
        if _STATE not in state:  # it could not be made, or who enqueues needs none
            return
        state[_CLOSING].set()
        await state[_STATE].aclose(_GRACE)
        if state[_RUNNING]:
            await asyncio.wait(state[_RUNNING], timeout=_LAST)

    async def send_event(
        event: Any,  # a record; of an Event pydantic's complaint would show it
        context: Context = TaskiqDepends(),
    ) -> dict[str, Any]:
        event = _as_event(event)
        await open_client(context.state)  # a receiver may run without a start-up
        closing: asyncio.Event = context.state[_CLOSING]
        was_closing = closing.is_set()
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
            receipt = await get_client(context).send_event(event, deadline=most)
            return attrs.asdict(receipt)
        except LoopsError as error:
            if not _may_pass(error, labels):
                raise
            if error.maybe_accepted:
                labels[_AMBIGUOUS] = str(since)
            pause = _pause(int(labels.get(_REQUEUES, 0)), error)
            text = "an event goes back into the queue in %.0f s: %s: %s"
            _logger.warning(text, pause, type(error).__name__, error)
        if was_closing:  # whoever takes it next may be no other than this worker
            await asyncio.sleep(pause)
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
    broker.add_event_handler(TaskiqEvents.CLIENT_SHUTDOWN, close_client)
    broker.add_middlewares(_Care())
    return broker.register_task(send_event, TASK_NAME)


def _note(task: "asyncio.Task[Any] | None", running: "set[asyncio.Task[Any]]") -> None:
    assert task is not None
    running.add(task)
    task.add_done_callback(running.discard)


def _may_pass(error: LoopsError, labels: Mapping[str, Any]) -> bool:
    """Tell whether the event may get through later."""
    if isinstance(error, IdempotencyConflictError):
        # After 429s; if an earlier run was cut off, it is that which it conflicts with.
        return error.maybe_accepted and _AMBIGUOUS in labels
    return error.retryable or isinstance(error, TransportError) or ends_run(error)


def _pause(requeues: int, error: LoopsError) -> float:
    asked = error.retry_after if isinstance(error, APIError) else None
    return min(max(2.0 ** min(requeues, 10), asked or 0.0), _LONGEST_PAUSE)


class _Care(TaskiqMiddleware):
    """Sees to it that no event is lost on its way."""

    _started = False

    def startup(self) -> None:
        self._started = True

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        given = [*message.args, *message.kwargs.values()]
        if not self._started and any(isinstance(value, Event) for value in given):
            msg = "await broker.startup() before kiq(event), or the event may be lost"
            raise ConfigurationError(msg)
        if message.task_name == TASK_NAME:
            # Whatever was said: it is done when it is sent, and not before.
            message.labels.update(retry_on_error=False, ack_type="when_saved")
            message.labels.pop("timeout", None)
        return message


def _as_event(value: Event | Mapping[str, Any]) -> Event:
    return value if isinstance(value, Event) else event_from_record(value)


def _parsed(value: Event | Mapping[str, Any]) -> Event:
    try:
        return _as_event(value)
    except InvalidEventError as error:
        # Of a ValueError pydantic would show what is in the record.
        raise RuntimeError(str(error)) from None


def _schema(*_: object) -> core_schema.CoreSchema:
    record = core_schema.dict_schema(core_schema.str_schema())
    return core_schema.no_info_plain_validator_function(
        _parsed, json_schema_input_schema=record
    )


def _serializer() -> SchemaSerializer:
    to_record = core_schema.plain_serializer_function_ser_schema(event_to_record)
    return SchemaSerializer(core_schema.any_schema(serialization=to_record))


# taskiq has pydantic write the arguments of a task, and make them what they are
# annotated as.
setattr(Event, "__get_pydantic_core_schema__", staticmethod(_schema))  # noqa: B010
setattr(Event, "__pydantic_serializer__", _serializer())  # noqa: B010
