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
import time
from collections.abc import Callable, Coroutine, Mapping
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

from ._client import AsyncLoopsClient
from ._codec import event_from_record, event_to_record
from ._events import Event
from ._fanout import stops
from .errors import ClientClosedError, DeadlineExceededError, LoopsError

__all__ = ["LoopsClient", "SendEvent", "add_loops", "get_client"]

TASK_NAME: Final = "loops_async:send_event"

_STATE: Final = "loops_client"
_REQUEUES: Final = "X-Taskiq-requeue"  # taskiq's own
_AMBIGUOUS: Final = "loops_ambiguous_since"
_TOO_OLD: Final = 23 * 3600.0  # seconds
_LONGEST_PAUSE: Final = 240.0  # seconds


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
    patience: float = 240.0,
) -> SendEvent:
    """Give each worker of a broker a client, and the broker a task that sends.

    The task tries like `AsyncLoopsClient.send_event`. What may work later (an
    outage, a refused key) it puts back into the queue when its patience is
    over, after a pause that grows from 1 s to 4 minutes, for as long as it
    takes. What Loops refuses fails with the LoopsError; so does, as *unknown*,
    what has been ambiguous for 23 hours. A retry middleware has nothing to
    add, and is told so.

    The task's result is the receipt, as a dict.

    Args:
        broker: Whose; not started yet.
        client: Makes the client of a worker, when it starts.
        patience: Seconds for one run of the task. With the pause it has to stay
            below the time after which the broker delivers a task again:
            10 minutes in taskiq-redis.

    Returns:
        The task.
    """

    async def open_client(state: TaskiqState) -> None:
        state[_STATE] = client()

    async def close_client(state: TaskiqState) -> None:
        await state[_STATE].aclose()

    async def send_event(
        event: Event,
        context: Context = TaskiqDepends(),  # noqa: B008 - taskiq's way
    ) -> dict[str, Any]:
        event = _as_event(
            event
        )  # a mapping still, if it is none or --no-parse was said
        began = time.time()
        labels = context.message.labels
        since = float(labels.get(_AMBIGUOUS, began))
        if not 0 <= began - since < _TOO_OLD:
            text = "not tried again: its first try was too long ago for its key"
            error = DeadlineExceededError(text, maybe_accepted=True)
            error.idempotency_key = event.idempotency_key
            raise error
        try:
            receipt = await get_client(context).send_event(event, deadline=patience)
            return attrs.asdict(receipt)
        except LoopsError as error:
            if not (error.retryable or stops(error)):
                raise
            if error.maybe_accepted:
                labels[_AMBIGUOUS] = str(since)
            if not isinstance(error, ClientClosedError):
                requeues = int(labels.get(_REQUEUES, 0))
                await asyncio.sleep(min(2.0**requeues, _LONGEST_PAUSE))
        _as_records(context.message)
        await context.requeue()
        raise AssertionError  # requeue raises, for there is no result

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, open_client)
    broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, close_client)
    broker.add_middlewares(_EventsAsRecords())
    return broker.register_task(send_event, TASK_NAME, retry_on_error=False)


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
