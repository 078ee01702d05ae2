"""The task for taskiq: events that are sent, that fail, and that are requeued.

The first tests use a queue in memory and virtual time. The last ones use a real Redis
and kill worker processes.
"""

import asyncio
import itertools
import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Self

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from support import virtual_time as virtual
from support import worker_app
from support.clients import client_of
from support.redis_server import RedisServer, needs_redis
from support.sandbox_process import SandboxProcess, sandbox_in_thread
from support.waiting import run
from taskiq import (
    AckableMessage,
    AsyncBroker,
    BrokerMessage,
    InMemoryBroker,
    ScheduledTask,
    ScheduleSource,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqDepends,
)
from taskiq.acks import AcknowledgeType
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.receiver import Receiver
from taskiq.result import TaskiqResult

from loops_async import (
    AsyncLoopsClient,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    Event,
    IdempotencyConflictError,
    InvalidEventError,
    RetryPolicy,
    event_to_record,
)
from loops_async import taskiq as module
from loops_async.sandbox import Behaviour, Sandbox
from loops_async.taskiq import SendEvent, add_loops, get_client
from loops_async.testing import InMemoryClient

ONCE = RetryPolicy(attempts=1)
UNKNOWN_LIST = {"no-such-list": True}  # the sandbox responds with 400


def signup(**fields: Any) -> Event:
    return Event("signup", email="ada@example.com", **fields)


class Queue(AsyncBroker):
    """A queue in memory, from which the test takes the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.result_backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
        self.is_worker_process = True
        self.messages: deque[bytes] = deque()
        self.kick_errors: deque[Exception] = deque()

    async def kick(self, message: BrokerMessage) -> None:
        if self.kick_errors:
            raise self.kick_errors.popleft()
        self.messages.append(message.message)

    def listen(self) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    def result(self) -> TaskiqResult[Any]:
        """Return the only result."""
        (result,) = self.result_backend.results.values()
        return result

    def content(self) -> list[Any]:
        """Return the parsed messages."""
        return [self.formatter.loads(message) for message in self.messages]


class ForgetfulSource(ScheduleSource):
    """A source that keeps no schedule: `schedule_by_time` returns the schedule."""

    async def get_schedules(self) -> list[ScheduledTask]:
        return []

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        pass


class Delivery:
    """One delivery of a message to a worker."""

    def __init__(self, queue: Queue, message: bytes, **options: Any) -> None:
        self.acked = False
        receiver = Receiver(queue, max_async_tasks=10, **options)
        ackable = AckableMessage(data=message, ack=self._ack)
        self._running = asyncio.create_task(receiver.callback(ackable))

    def _ack(self) -> None:
        self.acked = True

    @property
    def running(self) -> bool:
        return not self._running.done()

    async def finish(self) -> None:
        """Wait until the task ends, and check that its message is acknowledged."""
        await self._running
        assert self.acked


async def deliver(queue: Queue, **options: Any) -> None:
    """Deliver the next message, and wait until its task ends."""
    await Delivery(queue, queue.messages.popleft(), **options).finish()


@asynccontextmanager
async def started(broker: AsyncBroker) -> AsyncIterator[None]:
    await broker.startup()
    try:
        yield
    finally:
        await broker.shutdown()


@asynccontextmanager
async def working(
    client: AsyncLoopsClient, deadline: float = 5.0
) -> AsyncIterator[tuple[Queue, SendEvent]]:
    """Open a queue and its only worker, which uses this client."""
    queue = Queue()
    send_event = add_loops(queue, client=lambda: client, deadline=deadline)
    async with started(queue):
        yield queue, send_event


def test_the_task_sends_the_event_and_returns_the_receipt() -> None:
    async def main() -> None:
        broker = InMemoryBroker(await_inplace=True)
        sandbox, event = Sandbox(rate_limit=None), signup()
        send_event = add_loops(broker, client=lambda: InMemoryClient(sandbox))
        async with started(broker):
            task = await send_event.kiq(event)
            first = await task.wait_result()
            second = await (await send_event.kiq(event)).wait_result()
        sandbox.assert_event(
            "signup",
            email="ada@example.com",
            idempotency_key=event.idempotency_key,
        )
        assert not first.is_err
        assert first.return_value == {
            "idempotency_key": event.idempotency_key,
            "attempts": 1,
            "duplicate": False,
            "elapsed": pytest.approx(0.0),
            "rate_limit": None,
            "dry_run": False,
        }
        assert second.return_value["duplicate"]

    virtual.run(main())


@pytest.mark.parametrize("parsing", [True, False])
def test_the_task_takes_a_record_like_an_event(parsing: bool) -> None:
    # A worker with --no-parse gets records only.
    async def main() -> None:
        broker = InMemoryBroker(await_inplace=True, cast_types=parsing)
        sandbox, event, other = Sandbox(rate_limit=None), signup(), signup()
        send_event: Any = add_loops(broker, client=lambda: InMemoryClient(sandbox))
        async with started(broker):
            task = await send_event.kiq(event)
            assert not (await task.wait_result()).is_err
            task = await send_event.kiq(event_to_record(other))
            assert not (await task.wait_result()).is_err
        assert [one.idempotency_key for one in sandbox.events] == [
            event.idempotency_key,
            other.idempotency_key,
        ]

    virtual.run(main())


@pytest.mark.parametrize("parsing", [True, False])
@pytest.mark.parametrize(
    "record", [{"email": "ada@x.co"}, {"event_name": "a", "e": 1}, "ada@x.co", 7, None]
)
def test_an_argument_that_is_not_an_event_fails_the_task(
    record: Any, parsing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        broker = InMemoryBroker(await_inplace=True, cast_types=parsing)
        sandbox = Sandbox(rate_limit=None)
        broker.add_middlewares(SimpleRetryMiddleware(default_retry_label=True))
        send_event: Any = add_loops(broker, client=lambda: InMemoryClient(sandbox))
        async with started(broker):
            result = await (await send_event.kiq(record)).wait_result()
        assert isinstance(result.error, InvalidEventError)
        assert sandbox.counts.requests == 0

    virtual.run(main())
    assert "ada@" not in caplog.text


def test_another_task_takes_events_and_the_client() -> None:
    async def main() -> None:
        broker = InMemoryBroker(await_inplace=True)
        client = InMemoryClient()
        add_loops(broker, client=lambda: client)
        taken: list[tuple[Any, ...]] = []

        @broker.task
        async def welcome(
            number: int,
            event: Event,
            loops: AsyncLoopsClient = TaskiqDepends(get_client),
            other: Event | None = None,
            *,
            words: list[str],
            last: Event,
        ) -> str:
            taken.append((number, event, other, words, last, loops))
            return (await loops.send_event(event)).idempotency_key

        first, second, third = signup(), signup(event_properties={"n": 1}), signup()
        async with started(broker):
            task = await welcome.kiq(7, first, last=third, words=["a"])
            assert (await task.wait_result()).return_value == first.idempotency_key
            await welcome.kiq(number=8, event=first, other=second, words=[], last=third)
        assert taken == [
            (7, first, None, ["a"], third, client),
            (8, first, second, [], third, client),
        ]
        client.sandbox.assert_event("signup", idempotency_key=first.idempotency_key)

    virtual.run(main())


def retry_middleware(kind: str) -> Any:
    retries: Any = {"default_retry_count": 3, "default_retry_label": True}
    if kind == "simple":
        return SimpleRetryMiddleware(**retries)
    return SmartRetryMiddleware(default_delay=0.01, **retries)


@pytest.mark.parametrize("kind", ["simple", "smart"])
def test_a_refused_event_fails_its_task_and_no_middleware_retries_it(kind: str) -> None:
    async def main() -> None:
        async with working(InMemoryClient()) as (queue, send_event):
            queue.add_middlewares(retry_middleware(kind))
            await send_event.kiq(signup(mailing_lists=UNKNOWN_LIST))
            await deliver(queue)
            assert not queue.messages
            error = queue.result().error
            assert isinstance(error, BadRequestError)
            assert not error.maybe_accepted

    virtual.run(main())


@pytest.mark.parametrize("kind", ["simple", "smart"])
def test_a_middleware_retries_another_task_with_the_same_event(kind: str) -> None:
    async def main() -> None:
        client = InMemoryClient(retry=ONCE)
        async with working(client) as (queue, _):
            queue.add_middlewares(retry_middleware(kind))

            @queue.task
            async def welcome(
                event: Event, loops: AsyncLoopsClient = TaskiqDepends(get_client)
            ) -> None:
                await loops.send_event(event)

            event = signup()
            client.sandbox.script("close-after", "503")
            await welcome.kiq(event)
            for _ in range(3):
                await deliver(queue)
            assert not queue.messages
            assert not queue.result().is_err
            assert client.sandbox.counts.requests == 3
            client.sandbox.assert_event("signup", idempotency_key=event.idempotency_key)

    virtual.run(main())


class Trouble:
    """A sandbox that accepts no event until `end`."""

    def __init__(self, kind: str) -> None:
        self.sandbox = Sandbox(rate_limit=None)
        self.client = InMemoryClient(self.sandbox)
        self._api_key = self.sandbox.api_key
        match kind:
            case "outage":
                self.sandbox.down()
            case "dropping":
                self.sandbox.down(drop=True)
            case "refused key":
                self.sandbox.api_key = "another"
            case "slow":
                self.sandbox.script(*["hang-before"] * 10)

    def end(self) -> None:
        self.sandbox.down(False)
        self.sandbox.api_key = self._api_key


@pytest.mark.parametrize("kind", ["outage", "dropping", "refused key", "slow"])
def test_an_event_that_may_succeed_later_goes_back_into_the_queue(kind: str) -> None:
    async def main() -> None:
        trouble, event = Trouble(kind), signup()
        loop = asyncio.get_running_loop()
        async with working(trouble.client, deadline=5.0) as (queue, send_event):
            queue.add_middlewares(retry_middleware("simple"))
            task = await send_event.kiq(event)
            (before,) = queue.content()
            for times in range(1, 4 if kind != "slow" else 2):
                began = loop.time()
                await deliver(queue)
                assert loop.time() - began <= 5.0 + 2.0 ** (times - 1)
                (message,) = queue.content()
                assert message.task_id == before.task_id == task.task_id
                assert message.args == before.args == [event_to_record(event)]
                assert message.labels["X-Taskiq-requeue"] == str(times)
            assert not await task.is_ready()
            assert not trouble.sandbox.events
            trouble.end()
            await deliver(queue)
            assert not queue.messages
            assert not (await task.get_result()).is_err
            trouble.sandbox.assert_event(
                "signup", idempotency_key=event.idempotency_key
            )

    virtual.run(main())


@pytest.mark.parametrize("kind", ["wrong address", "key store"])
def test_an_event_with_wrong_settings_is_sent_by_the_next_worker(kind: str) -> None:
    def broken_key_store() -> str:
        raise OSError("the key store is down")

    async def main(sandbox: Sandbox) -> None:
        event = signup()
        wrong: dict[str, Any] = {"api_key": broken_key_store}
        if kind == "wrong address":
            wrong = {"base_url": f"{sandbox.url.removesuffix('api')}nowhere/api"}
        async with working(client_of(sandbox, **wrong)) as (queue, send_event):
            await send_event.kiq(event)
            await deliver(queue)
            (message,) = queue.content()
            assert message.labels["X-Taskiq-requeue"] == "1"
            assert module._AMBIGUOUS not in message.labels
        async with working(client_of(sandbox)) as (other, _):
            other.messages.extend(queue.messages)
            await deliver(other)
            assert not other.messages
        sandbox.assert_event("signup", idempotency_key=event.idempotency_key)

    with sandbox_in_thread() as sandbox:
        run(main(sandbox))


def test_the_pause_doubles_up_to_its_maximum() -> None:
    async def main() -> None:
        attempts: list[float] = []
        loop = asyncio.get_running_loop()
        client = InMemoryClient(on_attempt=lambda _: attempts.append(loop.time()))
        client.sandbox.api_key = "another"
        async with working(client) as (queue, send_event):
            await send_event.kiq(signup())
            for _ in range(10):
                await deliver(queue)
        assert [after - before for before, after in itertools.pairwise(attempts)] == [
            min(2.0**number, module._MAX_PAUSE) for number in range(9)
        ]

    virtual.run(main())


def test_the_pause_stays_at_its_maximum_after_days_of_trouble() -> None:
    async def main() -> None:
        client = InMemoryClient()
        client.sandbox.api_key = "another"
        async with working(client) as (queue, send_event):
            labels: Any = {"X-Taskiq-requeue": 100_000}
            await send_event.kicker().with_labels(**labels).kiq(signup())
            await deliver(queue)
            assert asyncio.get_running_loop().time() == module._MAX_PAUSE
            assert len(queue.messages) == 1

    virtual.run(main())


@pytest.mark.parametrize(
    ("retry_after", "pause"), [(30, 30.0), (9_000, module._MAX_PAUSE)]
)
def test_the_pause_observes_retry_after_up_to_its_maximum(
    retry_after: int, pause: float
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sandbox = Sandbox(
            rate_limit=1,
            period=retry_after,
            window="fixed",
            behaviour=Behaviour(retry_after="seconds"),
            clock=loop.time,
        )
        client = InMemoryClient(sandbox, rate_limit=math.inf)
        async with working(client) as (queue, send_event):
            for _ in range(2):
                await send_event.kiq(signup())
            await deliver(queue)
            await deliver(queue)
            assert sandbox.counts.limited == 1
            assert loop.time() == pytest.approx(pause, abs=1.0)
            assert len(queue.messages) == 1

    virtual.run(main())


def test_a_lost_response_causes_no_second_event() -> None:
    async def main() -> None:
        client, event = InMemoryClient(retry=ONCE), signup()
        async with working(client) as (queue, send_event):
            client.sandbox.script("close-after", "503", None)
            await send_event.kiq(event)
            before = time.time()
            await deliver(queue)
            (first,) = queue.content()
            since = float(first.labels[module._AMBIGUOUS])
            assert before <= since <= time.time()
            await deliver(queue)
            (second,) = queue.content()
            assert second.labels[module._AMBIGUOUS] == str(since)
            await deliver(queue)
            assert queue.result().return_value["duplicate"]
            client.sandbox.assert_event("signup", idempotency_key=event.idempotency_key)

    virtual.run(main())


@pytest.mark.parametrize("ambiguous", [True, False])
def test_a_409_after_a_429_is_a_success_only_after_an_ambiguous_run(
    ambiguous: bool,
) -> None:
    async def main() -> None:
        client, event = InMemoryClient(), signup()
        await client.send_event(event)  # by a worker that was killed
        async with working(client) as (queue, send_event):
            client.sandbox.script("429", None, None)
            labels: Any = {module._AMBIGUOUS: str(time.time())} if ambiguous else {}
            await send_event.kicker().with_labels(**labels).kiq(event)
            await deliver(queue)
            if ambiguous:
                await deliver(queue)
                assert queue.result().return_value["duplicate"]
            else:
                error = queue.result().error
                assert isinstance(error, IdempotencyConflictError)
                assert error.maybe_accepted
            assert not queue.messages

    virtual.run(main())


def test_a_409_for_a_different_body_is_a_refusal_even_after_an_ambiguous_run() -> None:
    async def main() -> None:
        behaviour = Behaviour(conflict_text="different-body")
        client = InMemoryClient(Sandbox(rate_limit=None, behaviour=behaviour))
        event = signup()
        await client.send_event(event)
        async with working(client) as (queue, send_event):
            labels: Any = {module._AMBIGUOUS: str(time.time())}
            await send_event.kicker().with_labels(**labels).kiq(event)
            await deliver(queue)
            assert not queue.messages
            assert isinstance(queue.result().error, IdempotencyConflictError)

    virtual.run(main())


def test_an_event_that_cannot_have_been_accepted_has_no_time_limit() -> None:
    async def main() -> None:
        async with working(Trouble("refused key").client) as (queue, send_event):
            await send_event.kiq(signup())
            await deliver(queue)
            (message,) = queue.content()
            assert module._AMBIGUOUS not in message.labels

    virtual.run(main())


@pytest.mark.parametrize(
    ("ago", "sent"),
    [
        (0.0, True),
        (23 * 3600 - 60, True),
        (23 * 3600 + 1, False),
        (-300.0, True),  # the clocks of two workers differ
        (-3600.0, False),
        (math.nan, False),
    ],
)
def test_an_event_that_is_ambiguous_for_23_hours_is_unknown(
    ago: float, sent: bool
) -> None:
    async def main() -> None:
        client, event = InMemoryClient(), signup()
        async with working(client) as (queue, send_event):
            queue.add_middlewares(retry_middleware("simple"))
            labels: Any = {module._AMBIGUOUS: str(time.time() - ago)}
            await send_event.kicker().with_labels(**labels).kiq(event)
            await deliver(queue)
            assert not queue.messages
            assert client.sandbox.counts.requests == sent
            error = queue.result().error
            if sent:
                assert error is None
            else:
                assert isinstance(error, DeadlineExceededError)
                assert error.maybe_accepted
                assert error.idempotency_key == event.idempotency_key

    virtual.run(main())


def test_a_message_that_is_delivered_twice_causes_one_event() -> None:
    async def main() -> None:
        client, event = InMemoryClient(), signup()
        async with working(client) as (queue, send_event):
            await send_event.kiq(event)
            message = queue.messages.popleft()
            for _ in range(2):
                await Delivery(queue, message).finish()
            assert queue.result().return_value["duplicate"]
            client.sandbox.assert_event("signup", idempotency_key=event.idempotency_key)

    virtual.run(main())


def test_copies_of_a_task_end_with_the_outage_that_made_them() -> None:
    # A broker that delivers a task again while it runs makes a copy each time.
    async def main() -> None:
        client, event = InMemoryClient(retry=ONCE), signup()
        async with working(client) as (queue, send_event):
            client.sandbox.down()
            await send_event.kiq(event)
            message = queue.messages.popleft()
            deliveries = [Delivery(queue, message), Delivery(queue, message)]
            for delivery in deliveries:
                await delivery.finish()
            assert len(queue.messages) == 2
            client.sandbox.down(False)
            while queue.messages:
                await deliver(queue)
            assert client.sandbox.counts.duplicates == 1
            client.sandbox.assert_event("signup", idempotency_key=event.idempotency_key)

    virtual.run(main())


@pytest.mark.parametrize("ack_type", [None, *AcknowledgeType])
@pytest.mark.parametrize("faults", [[None], ["503"]])
def test_a_message_is_acknowledged_when_it_is_sent_or_requeued(
    ack_type: AcknowledgeType | None, faults: list[str | None]
) -> None:
    async def main() -> None:
        client = InMemoryClient(Sandbox(rate_limit=None, latency=1.0), retry=ONCE)
        client.sandbox.script(*faults)
        async with working(client) as (queue, send_event):
            await send_event.kiq(signup())
            delivery = Delivery(queue, queue.messages.popleft(), ack_type=ack_type)
            while not client.sandbox.events and not queue.messages:
                assert delivery.running
                assert not delivery.acked
                await asyncio.sleep(0.01)
            await delivery.finish()

    virtual.run(main())


def test_a_queue_that_rejects_messages_loses_no_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        client = InMemoryClient(retry=ONCE)
        async with working(client) as (queue, send_event):
            client.sandbox.script("503")
            await send_event.kiq(signup())
            queue.kick_errors.extend(OSError("ada@example.com") for _ in range(5))
            delivery = Delivery(queue, queue.messages.popleft())
            while queue.kick_errors:
                assert not delivery.acked
                await asyncio.sleep(0.01)
            await delivery.finish()
            assert asyncio.get_running_loop().time() > 5 * module._REQUEUE_PAUSE
            await deliver(queue)
            client.sandbox.assert_event("signup")

    virtual.run(main())
    assert (
        caplog.text.count(
            "an event cannot be put back into the queue, retrying: OSError"
        )
        == 5
    )
    assert "ada@" not in caplog.text


@pytest.mark.parametrize("deadline", [2.0, 100.0])
def test_a_waiting_event_is_requeued_at_once_when_the_worker_closes(
    deadline: float,
) -> None:
    # With the short deadline the tasks pause; with the long one the client waits.
    async def main() -> None:
        client, loop = InMemoryClient(), asyncio.get_running_loop()
        client.sandbox.down()
        async with working(client, deadline) as (queue, send_event):
            labels: Any = {"X-Taskiq-requeue": 6}
            for _ in range(10):
                await send_event.kicker().with_labels(**labels).kiq(signup())
            deliveries = [Delivery(queue, message) for message in queue.messages]
            queue.messages.clear()
            await asyncio.sleep(10)
            assert all(one.running for one in deliveries)
            closing = loop.time()
        assert not any(one.running for one in deliveries)
        assert loop.time() == closing
        assert len(queue.messages) == 10
        assert not queue.result_backend.results

    virtual.run(main())


def test_an_event_in_flight_is_requeued_as_ambiguous_when_the_worker_closes() -> None:
    async def main() -> None:
        client, loop = InMemoryClient(Sandbox(latency=20.0)), asyncio.get_running_loop()
        async with working(client) as (queue, send_event):
            await send_event.kiq(signup())
            delivery = Delivery(queue, queue.messages.popleft())
            await asyncio.sleep(1)
        assert loop.time() == 1 + module._GRACE
        await delivery.finish()
        (message,) = queue.content()
        assert module._AMBIGUOUS in message.labels

    virtual.run(main())


@pytest.mark.parametrize("lists", [{}, UNKNOWN_LIST])
def test_a_request_in_flight_ends_within_the_grace_of_a_closing_worker(
    lists: dict[str, bool],
) -> None:
    async def main() -> None:
        client = InMemoryClient(Sandbox(rate_limit=None, latency=2.0))
        async with working(client) as (queue, send_event):
            await send_event.kiq(signup(mailing_lists=lists))
            delivery = Delivery(queue, queue.messages.popleft())
            await asyncio.sleep(1)
        await delivery.finish()
        assert not queue.messages
        assert queue.result().is_err is bool(lists)

    virtual.run(main())


def test_a_worker_does_not_start_if_its_client_cannot_be_made() -> None:
    async def main() -> None:
        queue = Queue()
        add_loops(queue, client=lambda: AsyncLoopsClient(""))
        with pytest.raises(ConfigurationError, match="api_key is empty"):
            await queue.startup()
        await queue.shutdown()

    virtual.run(main())


@pytest.mark.parametrize("deadline", [0, -1.0, math.nan, "120"])
def test_add_loops_refuses_an_invalid_deadline(deadline: Any) -> None:
    with pytest.raises(ConfigurationError, match="deadline must be a positive"):
        add_loops(Queue(), deadline=deadline)


def test_a_receiver_without_a_startup_loses_no_event() -> None:
    async def main() -> None:
        client, queue = InMemoryClient(), Queue()
        send_event = add_loops(queue, client=lambda: client)
        queue.is_worker_process = False  # as for a receiver inside an application
        async with started(queue):
            await send_event.kiq(signup())
            await deliver(queue)
            client.sandbox.assert_event("signup")
        with pytest.raises(ClientClosedError):
            await client.send_event(signup())

    virtual.run(main())


def test_another_task_without_a_startup_fails_with_a_configuration_error() -> None:
    async def main() -> None:
        queue = Queue()
        add_loops(queue, client=InMemoryClient)

        @queue.task
        async def own(loops: AsyncLoopsClient = TaskiqDepends(get_client)) -> None:
            await loops.send_event(signup())

        await own.kiq()
        await deliver(queue)
        assert isinstance(queue.result().error, ConfigurationError)
        assert "not a worker of the broker" in str(queue.result().error)

    virtual.run(main())


def test_a_record_that_cannot_be_parsed_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        queue, received = Queue(), []
        add_loops(queue, client=InMemoryClient)

        @queue.task
        async def own(event: Event) -> None:
            received.append(event)

        record = {**event_to_record(signup()), "of_a_newer_version": 1}
        enqueue: Any = own.kiq
        async with started(queue):
            await enqueue(record)
            await deliver(queue)
        assert received == [record]

    virtual.run(main())
    assert "of_a_newer_version: unknown" in caplog.text
    assert "ada@example.com" not in caplog.text


def test_two_calls_of_add_loops_make_one_client() -> None:
    async def main() -> None:
        queue, made = Queue(), []
        for _ in range(2):
            add_loops(queue, client=lambda: made.append(InMemoryClient()) or made[-1])
        async with started(queue):
            assert len(made) == 1

    virtual.run(main())


def test_an_event_is_not_enqueued_before_the_startup() -> None:
    async def main() -> None:
        queue = Queue()
        send_event = add_loops(queue, client=InMemoryClient)
        with pytest.raises(ConfigurationError, match=r"broker\.startup\(\) before"):
            await send_event.kiq(signup())
        assert not queue.messages

    virtual.run(main())


def test_no_label_makes_the_task_lose_an_event() -> None:
    labels = {"timeout": 1, "ack_type": "when_received", "retry_on_error": True}

    async def main() -> None:
        sandbox = Sandbox(rate_limit=None)
        sandbox.down()
        async with working(InMemoryClient(sandbox)) as (queue, send_event):
            await send_event.kicker().with_labels(mine="x", **labels).kiq(signup())
            await deliver(queue)
            sandbox.down(False)
            (message,) = queue.content()
            assert message.labels["mine"] == "x"
            await deliver(queue)
            sandbox.assert_event("signup")

    virtual.run(main())


def test_an_event_can_be_inside_a_model_and_in_a_schedule() -> None:
    class Order(BaseModel):
        event: Event
        lines: list[Event]

    async def main() -> None:
        queue, first, second = Queue(), signup(), signup()
        send_event = add_loops(queue, client=InMemoryClient)
        received: list[Order] = []

        @queue.task
        async def take(order: Order) -> None:
            received.append(order)

        async with started(queue):
            await take.kiq(Order(event=first, lines=[second]))
            await deliver(queue)
            when = datetime.now(UTC)
            planned = await send_event.schedule_by_time(ForgetfulSource(), when, first)
        assert received == [Order(event=first, lines=[second])]
        assert json.loads(planned.task.model_dump_json())["args"] == [
            event_to_record(first)
        ]

    virtual.run(main())


def test_a_worker_that_has_shut_down_pauses_before_it_requeues_an_event() -> None:
    async def main() -> None:
        sandbox = Sandbox(rate_limit=None)
        sandbox.down()
        async with working(InMemoryClient(sandbox)) as (queue, send_event):
            await send_event.kiq(signup())
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(4):
            await deliver(queue)
        assert loop.time() - began >= 1 + 2 + 4 + 8

    virtual.run(main())


def test_a_task_whose_client_is_closed_pauses_before_it_requeues_its_event() -> None:
    async def main() -> None:
        client = InMemoryClient()
        async with working(client) as (queue, send_event):
            await client.aclose()
            await send_event.kiq(signup())
            for _ in range(5):
                await deliver(queue)
            assert asyncio.get_running_loop().time() == 1 + 2 + 4 + 8 + 16
            assert len(queue.messages) == 1

    virtual.run(main())


@pytest.mark.parametrize("worker", [True, False])
def test_a_worker_makes_one_client_and_an_enqueuing_process_none(worker: bool) -> None:
    async def main() -> None:
        made: list[AsyncLoopsClient] = []
        queue = Queue()
        queue.is_worker_process = worker

        def client() -> AsyncLoopsClient:
            made.append(InMemoryClient())
            return made[-1]

        send_event = add_loops(queue, client=client)
        assert not made
        await queue.startup()
        for _ in range(3):
            await send_event.kiq(signup())
        if worker:
            for _ in range(3):
                await deliver(queue)
            assert queue.state["loops_client"] is made[0]
        await queue.shutdown()
        assert len(made) == worker
        for opened in made:
            assert opened.stats.accepted == 3
            assert "closed" in repr(opened)

    virtual.run(main())


LATENCY = {"latency_before": (0.0, 0.02), "latency_after": (0.02, 0.2)}
FAULTS = {
    "429": 0.03,
    "500-before": 0.03,
    "502": 0.02,
    "close-before": 0.02,
    "hang-before": 0.003,
    "500-after": 0.03,
    "html-after": 0.02,
    "close-after": 0.03,
    "truncate-after": 0.017,
    "hang-after": 0.003,
}


class Load:
    """Many events that are enqueued in Redis, and their results."""

    def __init__(self, settings: dict[str, Any], sandbox: SandboxProcess) -> None:
        self.settings = settings
        self._sandbox = sandbox
        self._broker, self._send_event = worker_app.make(**settings)
        self._tick: Any = self._broker.find_task("tick")
        self._tasks: list[Any] = []
        self.events: list[Event] = []

    async def __aenter__(self) -> Self:
        await self._broker.startup()
        self._redis = Redis(connection_pool=self._broker.connection_pool)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._broker.shutdown()

    async def enqueue(self, count: int) -> None:
        for number in range(count):
            event = Event("signup", email=f"user{number}@example.com")
            self._tasks.append(await self._send_event.kiq(event))
            self.events.append(event)

    async def result_of(self, name: str, event: Event) -> TaskiqResult[Any]:
        task: Any = self._broker.find_task(name)
        result: TaskiqResult[Any]
        result = await (await task.kiq(event)).wait_result(0.01)
        return result

    def counts(self) -> dict[str, Any]:
        counts: dict[str, Any] = self._sandbox.get("counts")
        return counts

    async def accepted(self, count: int) -> None:
        """Wait until Loops has accepted that many events."""
        while self.counts()["accepted"] < count:
            await self._wake_broker()

    async def finished(self) -> None:
        """Wait until every task has a result and every message is acknowledged."""
        await self.accepted(len(self.events))
        while await self.results() < len(self.events) or (await self.left())[1]:
            await self._wake_broker()

    async def results(self) -> int:
        """Return the number of tasks that have a result."""
        return [await task.is_ready() for task in self._tasks].count(True)

    async def unknown(self) -> int:
        """Return the number of unknown outcomes, and check that no task failed."""
        errors = [(await task.get_result()).error for task in self._tasks]
        failed = [error for error in errors if error is not None]
        # A 409 after a 429 is unknown, also if a killed worker sent the event.
        assert all(isinstance(error, IdempotencyConflictError) for error in failed)
        return len(failed)

    async def deliveries(self) -> int:
        counts: list[Any] = await self._redis.hvals(worker_app.DELIVERIES)
        return sum(map(int, counts))

    def check_each_accepted_once(self) -> None:
        accepted = self._sandbox.get("state")["events"]
        assert Counter(event["idempotency_key"] for event in accepted) == Counter(
            event.idempotency_key for event in self.events
        )

    async def left(self) -> tuple[int, int]:
        """Return the numbers of messages not fetched and not acknowledged."""
        (group,) = await self._redis.xinfo_groups("taskiq")
        return group["lag"], group["pending"]

    async def _wake_broker(self) -> None:
        # The broker looks for them only when a new message arrives.
        await self._tick.kiq()
        await asyncio.sleep(0.05)


async def kill_and_check(
    tasks: int, kills: int, faults: dict[str, float], seed: int
) -> str:
    """Kill the workers that many times while they send, and check the results."""
    dice, began = random.Random(seed), time.monotonic()
    with (
        RedisServer() as redis,
        SandboxProcess(rate_limit=None, seed=seed, faults=faults, **LATENCY) as sandbox,
    ):
        settings = {
            "redis": redis.url,
            "url": sandbox.url,
            "key": sandbox.api_key,
            "idle_timeout": 1000,
        }
        options = ["--workers", "2", "--max-async-tasks", "10"]
        async with Load(settings, sandbox) as load:
            await load.enqueue(tasks)
            for _ in range(kills):
                already = load.counts()["accepted"]
                share = round(tasks / (kills + 1) * dice.uniform(0.3, 0.9))
                if not faults:  # some events are accepted without a response
                    hangs = [None] * share + ["hang-after"] * 10
                    sandbox.post("script", faults=hangs)
                with worker_app.Workers(settings, *options):
                    await load.accepted(already + share + 1)
                    await asyncio.sleep(dice.uniform(0.0, 0.05))
            with worker_app.Workers(settings, *options):
                await load.finished()
            load.check_each_accepted_once()
            counts, deliveries = load.counts(), await load.deliveries()
            unknown = await load.unknown()
    # Loops had accepted some events whose messages Redis then delivered again.
    assert deliveries > tasks
    assert unknown <= (deliveries - tasks if faults else 0)
    assert counts["duplicates"] > 0
    return (
        f"{tasks} tasks, {kills} kills, {deliveries - tasks} delivered again; "
        f"{counts['requests']} requests, {sum(counts['faults'].values())} faulted, "
        f"{counts['duplicates']} recognised by their key; each event accepted once, "
        f"{unknown} of unknown outcome; "
        f"{time.monotonic() - began:.0f} s"
    )


@needs_redis
def test_workers_that_are_killed_twice_send_every_event_once(
    record_figures: Callable[[str], None],
) -> None:
    record_figures(run(kill_and_check(80, 2, {}, seed=1)))


@needs_redis
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("faults", [{}, FAULTS], ids=["calm", "faults"])
def test_workers_that_are_killed_three_times_send_1000_events_once(
    faults: dict[str, float], record_figures: Callable[[str], None]
) -> None:
    record_figures(run(kill_and_check(1000, 3, faults, seed=2), limit=500))


@needs_redis
def test_workers_that_stop_finish_the_tasks_that_they_began() -> None:
    async def main() -> None:
        with (
            RedisServer() as redis,
            SandboxProcess(rate_limit=None, latency_after=0.4) as sandbox,
        ):
            settings = {"redis": redis.url, "url": sandbox.url, "key": sandbox.api_key}
            async with Load(settings, sandbox) as load:
                await load.enqueue(150)  # the workers take 6 s for them
                with worker_app.Workers(settings, "--max-async-tasks", "5") as workers:
                    await load.accepted(10)
                    assert await workers.stop() == ""
                counts = load.counts()
                assert counts["requests"] == counts["accepted"] < 150
                assert await load.results() == counts["accepted"]
                # Messages that were fetched and not begun are delivered again.
                settings["idle_timeout"] = 1000
                with worker_app.Workers(settings):
                    await load.finished()
                load.check_each_accepted_once()
                assert await load.unknown() == 0

    run(main())


@needs_redis
def test_a_worker_returns_results_and_requeues_waiting_events_when_it_stops() -> None:
    async def main() -> None:
        with RedisServer() as redis, SandboxProcess(rate_limit=None) as sandbox:
            settings = {"redis": redis.url, "url": sandbox.url, "key": sandbox.api_key}
            options = ["--workers", "1", "--wait-tasks-timeout", "0.1"]
            async with Load(settings, sandbox) as load:
                with worker_app.Workers(settings, *options) as worker:
                    event = signup()
                    sent = await load.result_of("welcome", event)
                    assert sent.return_value == event.idempotency_key
                    repeated = await load.result_of(module.TASK_NAME, event)
                    assert repeated.return_value["duplicate"]
                    refused = signup(mailing_lists=UNKNOWN_LIST)
                    failed = await load.result_of(module.TASK_NAME, refused)
                    assert isinstance(failed.error, BadRequestError)
                    assert load.counts()["requests"] == 3

                    sandbox.post("down")
                    await load.enqueue(20)
                    while await load.deliveries() < 3 + 20:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    await worker.stop()
                assert await load.left() == (20, 0)

    run(main())
