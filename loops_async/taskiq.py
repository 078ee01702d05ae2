"""taskiq: a task that sends an event, and a client for your own tasks.

`add_loops` gives each worker process of a broker one client, and gives the
broker the task ``send_event``. An event enters the queue together with its
idempotency key. However often the queue delivers the task, Loops accepts the
event once within the 24 hours for which it remembers a key.

In a clone, install the extra with ``pip install '.[taskiq]'``, and a broker such
as ``taskiq-redis``.

Tasks
-----

```python
# tasks.py
from loops_async import AsyncLoopsClient, Event
from loops_async.taskiq import add_loops, get_client
from taskiq import TaskiqDepends, TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker("redis://localhost:6379")
send_event = add_loops(broker)
scheduler = TaskiqScheduler(broker, [LabelScheduleSource(broker)])


@broker.task
async def welcome(
    event: Event, loops: AsyncLoopsClient = TaskiqDepends(get_client)
) -> None:
    await loops.send_event(event)


@broker.task(schedule=[{"cron": "* * * * *"}])
async def tick() -> None:
    pass  # a new message makes the broker look for messages of dead workers
```

Run ``taskiq worker tasks:broker --wait-tasks-timeout 10`` and, for ``tick``,
``taskiq scheduler tasks:scheduler``. The worker processes read LOOPS_API_KEY. A
process that only enqueues tasks needs no key.

Start the broker before you enqueue, or ``kiq`` raises a ConfigurationError:

```python
# enqueue.py
from loops_async import Event
from tasks import broker, send_event, welcome


async def enqueue(email: str) -> None:
    await broker.startup()
    await send_event.kiq(Event("signup", email=email))
    await welcome.kiq(Event("welcome", email=email))
    await broker.shutdown()
```

An application starts the broker once, for example in its lifespan. The result
of ``send_event`` is the receipt as a dict. The result backends of taskiq keep
the class and the text of an error, but not its attributes.

Your own tasks
--------------

A task such as ``welcome`` takes an Event as its argument, so a second delivery
sends the event with the same key. A task that makes events itself must derive
their keys from its arguments or its task ID. The retry middlewares of taskiq
work with such tasks.

Retries and errors
------------------

The task ``send_event`` retries like ``AsyncLoopsClient.send_event``, for up to
``deadline`` seconds. What happens then depends on the error:

- An error that may pass (an outage, a 429, a rejected API key) puts the event
  back into the queue, any number of times. The pause before each return doubles
  from 1 s to 60 s; a Retry-After of the server lengthens it, but not beyond 60 s.
- A response such as 400 fails the task with its LoopsError.
- An event whose outcome has been unknown for 23 hours fails with a
  DeadlineExceededError whose ``maybe_accepted`` is true, because Loops forgets
  its key after 24 hours.

The task needs neither a retry middleware nor a timeout of taskiq: the labels
``retry_on_error``, ``ack_type`` and ``timeout`` have no effect on it.

Crash
-----

A message is acknowledged when its event is sent or back in the queue. If a
worker dies before that, the queue delivers the message to another worker. Loops
may accept an event twice if the two deliveries are more than 24 hours apart.

Shutdown
--------

On SIGTERM taskiq first waits for the running tasks, without a limit unless you
set ``--wait-tasks-timeout``. In an outage a task runs for two minutes or more.
Then the worker's client closes: requests in flight have 3 s to end, and every
event that is not sent goes back into the queue. Both fit into the 5 s of
taskiq's ``--shutdown-timeout``. Messages that the worker fetched but did not
start are delivered to another worker, as after a crash.

Outage
------

In an outage every task slot of a worker waits for Loops. If other tasks must
continue, give the events a broker of their own.

A task keeps its message unacknowledged while it retries and pauses. The sum of
``deadline``, the pause and the time that a fetched message waits for a slot must
stay below the time after which the broker delivers the message again (10 minutes
in taskiq-redis). Otherwise an outage makes copies of the task, although Loops
still accepts the event once.

Several workers
---------------

The workers share the rate limit of their API key without communicating. Run at
most as many worker processes as Loops permits requests a second (10 by default).
One is usually enough, because it runs many tasks at a time
(``--max-async-tasks``).

taskiq-redis
------------

- ``RedisStreamBroker`` gives the messages of a dead worker to another worker 10
  minutes after they were fetched (``idle_timeout``), and only when a new message
  arrives. The task ``tick`` above is such a message.
- ``maxlen=`` would delete events that are not sent yet.
- ``PubSubBroker`` and ``ListQueueBroker`` acknowledge a message when they
  deliver it, so a worker that dies loses its events.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, NoReturn, TypeAlias

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
    _missing.add_note(
        "install the extra 'taskiq': pip install 'loops-async[taskiq]', "
        "or pip install '.[taskiq]' in a clone"
    )
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

_CLIENT: Final = "loops_client"
_CLOSING: Final = "loops_closing"
_RUNNING: Final = "loops_running"
_REQUEUES: Final = "X-Taskiq-requeue"  # taskiq's own label
_AMBIGUOUS: Final = "loops_ambiguous_since"
_MAX_AMBIGUITY: Final = 23 * 3600.0  # seconds
_CLOCK_SKEW: Final = 600.0  # seconds, between the clocks of two workers
_MAX_PAUSE: Final = 60.0  # seconds
_REQUEUE_PAUSE: Final = 1.0  # seconds, while the queue rejects messages
_GRACE: Final = 3.0  # seconds for requests in flight; taskiq's shutdown takes 5
_REQUEUE_GRACE: Final = 1.0  # seconds in which unsent events are requeued

_logger = logging.getLogger("loops_async")


def get_client(context: Annotated[Context, TaskiqDepends()]) -> AsyncLoopsClient:
    """Return the worker's client; a dependency of your own tasks.

    A task whose worker dies runs again and must then send the same keys: let the
    task take an Event as an argument, or derive each key from the task's ID.

    Raises:
        ConfigurationError: If this process is not a worker of the broker.
    """
    client: AsyncLoopsClient | None = context.state.get(_CLIENT)
    if client is None:
        msg = (
            "this process has no Loops client, because it is not a worker of the "
            "broker: run the task in a taskiq worker"
        )
        raise ConfigurationError(msg)
    return client


SendEvent: TypeAlias = AsyncTaskiqDecoratedTask[
    [Event], Coroutine[Any, Any, dict[str, Any]]
]
"""The type of the task: ``await send_event.kiq(event)``."""


def add_loops(
    broker: AsyncBroker,
    *,
    client: Callable[[], AsyncLoopsClient] = AsyncLoopsClient,
    deadline: float = 120.0,
) -> SendEvent:
    """Give each worker of a broker a client, and the broker a task that sends events.

    The task retries like `AsyncLoopsClient.send_event`. If a later run may succeed,
    the event goes back into the queue; if Loops rejects the event, the task fails
    with a LoopsError. ``help(loops_async.taskiq)`` has the details.

    Args:
        broker: The broker, before its start.
        client: A function that makes the client of a worker when it starts; the
            default reads LOOPS_API_KEY.
        deadline: The seconds for one run of the task.

    Returns:
        The task. Its result is the receipt as a dict.

    Raises:
        ConfigurationError: If the deadline is not a positive number.
    """
    seconds = checked_seconds("deadline", deadline)

    async def open_client(state: TaskiqState) -> None:
        if _CLIENT in state:
            return
        state[_CLOSING] = asyncio.Event()
        state[_RUNNING] = set()
        state[_CLIENT] = client()

    async def close_client(state: TaskiqState) -> None:
        if _CLIENT not in state:  # a process that enqueues, or a failed start
            return
        state[_CLOSING].set()
        await state[_CLIENT].aclose(_GRACE)
        if state[_RUNNING]:
            await asyncio.wait(state[_RUNNING], timeout=_REQUEUE_GRACE)

    async def send_event(
        event: Any,  # not Event: pydantic's error would show the whole record
        context: Context = TaskiqDepends(),
    ) -> dict[str, Any]:
        event = _as_event(event)
        await open_client(context.state)  # a receiver may run without a startup
        closing: asyncio.Event = context.state[_CLOSING]
        was_closing = closing.is_set()
        _track_current_task(context.state[_RUNNING])
        labels = context.message.labels
        ambiguous_since = _ambiguous_since(event, labels)
        try:
            receipt = await get_client(context).send_event(event, deadline=seconds)
            return attrs.asdict(receipt)
        except LoopsError as error:
            if not _may_succeed_later(error, labels):
                raise
            if error.maybe_accepted:
                labels[_AMBIGUOUS] = str(ambiguous_since)
            pause = _pause(int(labels.get(_REQUEUES, 0)), error)
            text = "an event goes back into the queue in %.0f s: %s: %s"
            _logger.warning(text, pause, type(error).__name__, error)
        if was_closing:  # this worker may be the one that takes the event next
            await asyncio.sleep(pause)
        with suppress(TimeoutError):
            await asyncio.wait_for(closing.wait(), pause)
        return await _requeue(context)

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, open_client)
    broker.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, close_client)
    broker.add_event_handler(TaskiqEvents.CLIENT_SHUTDOWN, close_client)
    broker.add_middlewares(_EventGuard())
    return broker.register_task(send_event, TASK_NAME)


def _track_current_task(running: "set[asyncio.Task[Any]]") -> None:
    task = asyncio.current_task()
    assert task is not None
    running.add(task)
    task.add_done_callback(running.discard)


def _ambiguous_since(event: Event, labels: Mapping[str, Any]) -> float:
    """Return the start of the first run whose outcome is unknown, or now.

    Raises:
        DeadlineExceededError: If that run is too long ago for the event's key.
    """
    now = time.time()
    since = float(labels.get(_AMBIGUOUS, now))
    if -_CLOCK_SKEW <= now - since < _MAX_AMBIGUITY:
        return since
    text = (
        "the event is not sent again, because its first attempt was too long ago: "
        "Loops remembers a key for 24 hours"
    )
    error = DeadlineExceededError(text, maybe_accepted=True)
    error.idempotency_key = event.idempotency_key
    raise error


def _may_succeed_later(error: LoopsError, labels: Mapping[str, Any]) -> bool:
    if isinstance(error, IdempotencyConflictError):
        # The conflict may be with the event itself, sent by an earlier run.
        return error.maybe_accepted and _AMBIGUOUS in labels
    return error.retryable or isinstance(error, TransportError) or ends_run(error)


def _pause(requeues: int, error: LoopsError) -> float:
    retry_after = error.retry_after if isinstance(error, APIError) else None
    return min(max(2.0 ** min(requeues, 10), retry_after or 0.0), _MAX_PAUSE)


async def _requeue(context: Context) -> NoReturn:
    """Put the message back; retry until the queue takes it, or taskiq would ack it."""
    while True:
        try:
            await context.requeue()
        except NoResultError:  # taskiq's signal that the message is in the queue
            raise
        except Exception as error:  # noqa: BLE001 - brokers raise anything
            kind = type(error).__name__
            text = "an event cannot be put back into the queue, retrying: %s"
            _logger.warning(text, kind)
            await asyncio.sleep(_REQUEUE_PAUSE)


class _EventGuard(TaskiqMiddleware):
    """A middleware that keeps events from being lost in the queue."""

    _started = False

    def startup(self) -> None:
        self._started = True

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        arguments = [*message.args, *message.kwargs.values()]
        if not self._started and any(isinstance(value, Event) for value in arguments):
            msg = (
                "the broker is not started, so the event could be lost: "
                "await broker.startup() before kiq(event)"
            )
            raise ConfigurationError(msg)
        if message.task_name == TASK_NAME:
            # With other labels taskiq could acknowledge an event that is not sent.
            message.labels.update(retry_on_error=False, ack_type="when_saved")
            message.labels.pop("timeout", None)
        return message


def _as_event(value: Event | Mapping[str, Any]) -> Event:
    return value if isinstance(value, Event) else event_from_record(value)


def _validated(value: Event | Mapping[str, Any]) -> Event:
    try:
        return _as_event(value)
    except InvalidEventError as error:
        # Not a ValueError: pydantic's error would show the whole record.
        raise RuntimeError(str(error)) from None


def _schema(*_: object) -> core_schema.CoreSchema:
    record = core_schema.dict_schema(core_schema.str_schema())
    return core_schema.no_info_plain_validator_function(
        _validated, json_schema_input_schema=record
    )


def _serializer() -> SchemaSerializer:
    to_record = core_schema.plain_serializer_function_ser_schema(event_to_record)
    return SchemaSerializer(core_schema.any_schema(serialization=to_record))


# taskiq uses pydantic to serialize the arguments of a task and to parse them again.
setattr(Event, "__get_pydantic_core_schema__", staticmethod(_schema))  # noqa: B010
setattr(Event, "__pydantic_serializer__", _serializer())  # noqa: B010
