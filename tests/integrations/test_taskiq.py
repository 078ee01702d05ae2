"""The task for taskiq: what is sent, what fails, and what goes back into the queue.

First with a queue in memory and a time that jumps, so that minutes take none; then
over a real Redis with workers of their own, which are killed.
"""

import asyncio
import itertools
import json
import math
import random
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Self

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from support import virtual_time as virtual
from support import worker_app
from support.http_server import run
from support.redis_server import RedisServer, needed
from support.sandbox_process import Elsewhere
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
UNKNOWN_LIST = {"no-such-list": True}  # which Loops answers with 400


def signup(**fields: Any) -> Event:
    return Event("signup", email="ada@example.com", **fields)


class Queue(AsyncBroker):
    """A queue in memory, of which the test takes the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.result_backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
        self.is_worker_process = True
        self.messages: deque[bytes] = deque()
        self.refusing: deque[Exception] = deque()

    async def kick(self, message: BrokerMessage) -> None:
        if self.refusing:
            raise self.refusing.popleft()
        self.messages.append(message.message)

    def listen(self) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    def result(self) -> TaskiqResult[Any]:
        """Return the only one there is."""
        (result,) = self.result_backend.results.values()
        return result

    def content(self) -> list[Any]:
        """Return the messages, read."""
        return [self.formatter.loads(message) for message in self.messages]


class Keeping(ScheduleSource):
    """Keeps nothing: what is planned is in what `schedule_by_time` returns."""

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

    async def ended(self) -> None:
        await self._running
        assert self.acked


async def deliver(queue: Queue, **options: Any) -> None:
    """Have the next message run to its end."""
    await Delivery(queue, queue.messages.popleft(), **options).ended()


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
    """A queue and its only worker, whose client this is."""
    queue = Queue()
    send_event = add_loops(queue, client=lambda: client, deadline=deadline)
    async with started(queue):
        yield queue, send_event


def test_the_event_is_sent_and_the_result_is_the_receipt() -> None:
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
def test_a_record_is_as_good_as_an_event(parsing: bool) -> None:
    # A worker with --no-parse sees records only.
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
def test_what_is_no_event_fails_and_is_not_sent(
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


def test_tasks_of_ones_own_take_events_and_the_client() -> None:
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


def again(kind: str) -> Any:
    retries: Any = {"default_retry_count": 3, "default_retry_label": True}
    if kind == "simple":
        return SimpleRetryMiddleware(**retries)
    return SmartRetryMiddleware(default_delay=0.01, **retries)


@pytest.mark.parametrize("kind", ["simple", "smart"])
def test_what_loops_refuses_fails_once_and_no_middleware_retries(kind: str) -> None:
    async def main() -> None:
        async with working(InMemoryClient()) as (queue, send_event):
            queue.add_middlewares(again(kind))
            await send_event.kiq(signup(mailing_lists=UNKNOWN_LIST))
            await deliver(queue)
            assert not queue.messages
            error = queue.result().error
            assert isinstance(error, BadRequestError)
            assert not error.maybe_accepted

    virtual.run(main())


@pytest.mark.parametrize("kind", ["simple", "smart"])
def test_a_middleware_retries_tasks_of_ones_own_with_the_same_event(kind: str) -> None:
    async def main() -> None:
        client = InMemoryClient(retry=ONCE)
        async with working(client) as (queue, _):
            queue.add_middlewares(again(kind))

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
    """What keeps an event from being sent, until it is over."""

    def __init__(self, kind: str) -> None:
        self.sandbox = Sandbox(rate_limit=None)
        self.client = InMemoryClient(self.sandbox)
        self._key, self._url = self.client._api_key, self.client._events_url
        self._store_is_down = kind == "key store"
        match kind:
            case "outage":
                self.sandbox.down()
            case "dropping":
                self.sandbox.down(drop=True)
            case "refused key":
                self.sandbox.api_key = "another"
            case "wrong address":
                self.client._events_url += "/nowhere"
            case "key store":
                self.client._api_key = self._stored_key
            case "slow":
                self.sandbox.script(*["hang-before"] * 10)

    def _stored_key(self) -> Any:
        if self._store_is_down:
            raise OSError("the key store is down")
        return self._key

    def over(self) -> None:
        self.sandbox.down(False)
        self.sandbox.api_key = "sandbox-key"
        self.client._events_url = self._url
        self._store_is_down = False


@pytest.mark.parametrize(
    "kind",
    ["outage", "dropping", "refused key", "wrong address", "key store", "slow"],
)
def test_what_may_work_later_goes_back_into_the_queue(kind: str) -> None:
    async def main() -> None:
        trouble, event = Trouble(kind), signup()
        loop = asyncio.get_running_loop()
        async with working(trouble.client, deadline=5.0) as (queue, send_event):
            queue.add_middlewares(again("simple"))
            task = await send_event.kiq(event)
            (before,) = queue.content()
            for times in range(1, 4 if kind != "slow" else 2):
                before_it = loop.time()
                await deliver(queue)
                assert loop.time() - before_it <= 5.0 + 2.0 ** (times - 1)
                (message,) = queue.content()
                assert message.task_id == before.task_id == task.task_id
                assert message.args == before.args == [event_to_record(event)]
                assert message.labels["X-Taskiq-requeue"] == str(times)
            assert not await task.is_ready()
            assert not trouble.sandbox.events
            trouble.over()
            await deliver(queue)
            assert not queue.messages
            assert not (await task.get_result()).is_err
            trouble.sandbox.assert_event(
                "signup", idempotency_key=event.idempotency_key
            )

    virtual.run(main())


def test_the_pause_grows_up_to_the_longest() -> None:
    async def main() -> None:
        begun: list[float] = []
        loop = asyncio.get_running_loop()
        client = InMemoryClient(on_attempt=lambda _: begun.append(loop.time()))
        client.sandbox.api_key = "another"
        async with working(client) as (queue, send_event):
            await send_event.kiq(signup())
            for _ in range(10):
                await deliver(queue)
        longest = module._LONGEST_PAUSE
        assert [after - before for before, after in itertools.pairwise(begun)] == [
            min(2.0**number, longest) for number in range(9)
        ]

    virtual.run(main())


def test_days_of_trouble_are_no_trouble() -> None:
    async def main() -> None:
        client = InMemoryClient()
        client.sandbox.api_key = "another"
        async with working(client) as (queue, send_event):
            labels: Any = {"X-Taskiq-requeue": 100_000}
            await send_event.kicker().with_labels(**labels).kiq(signup())
            await deliver(queue)
            assert asyncio.get_running_loop().time() == module._LONGEST_PAUSE
            assert len(queue.messages) == 1

    virtual.run(main())


@pytest.mark.parametrize(("asks", "pause"), [(90, 90.0), (9_000, math.inf)])
def test_the_pause_is_as_long_as_loops_asks_for(asks: int, pause: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sandbox = Sandbox(
            rate_limit=1,
            period=asks,
            window="fixed",
            behaviour=Behaviour(retry_after="seconds"),
            clock=loop.time,
        )
        async with working(InMemoryClient(sandbox, rate_limit=math.inf)) as working_:
            queue, send_event = working_
            for _ in range(2):
                await send_event.kiq(signup())
            await deliver(queue)
            await deliver(queue)
            assert sandbox.counts.limited == 1
            longest = min(pause, module._LONGEST_PAUSE)
            assert loop.time() == pytest.approx(longest, abs=1.0)
            assert len(queue.messages) == 1

    virtual.run(main())


def test_a_lost_answer_is_no_second_event() -> None:
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


@pytest.mark.parametrize("known", [True, False])
def test_a_409_after_429s_is_good_only_if_a_run_before_may_have_been_accepted(
    known: bool,
) -> None:
    async def main() -> None:
        client, event = InMemoryClient(), signup()
        await client.send_event(event)  # by a worker that was killed
        async with working(client) as (queue, send_event):
            client.sandbox.script("429", None, None)
            labels: Any = {module._AMBIGUOUS: str(time.time())} if known else {}
            await send_event.kicker().with_labels(**labels).kiq(event)
            await deliver(queue)
            if known:
                await deliver(queue)
                assert queue.result().return_value["duplicate"]
            else:
                error = queue.result().error
                assert isinstance(error, IdempotencyConflictError)
                assert error.maybe_accepted
            assert not queue.messages

    virtual.run(main())


def test_a_409_for_another_body_is_a_refusal_whatever_was_before() -> None:
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


@pytest.mark.parametrize("kind", ["refused key", "wrong address", "key store"])
def test_what_cannot_have_been_accepted_has_no_time_limit(kind: str) -> None:
    async def main() -> None:
        async with working(Trouble(kind).client) as (queue, send_event):
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
        (-300.0, True),  # clocks differ
        (-3600.0, False),
        (math.nan, False),
    ],
)
def test_what_is_ambiguous_for_too_long_is_unknown(ago: float, sent: bool) -> None:
    async def main() -> None:
        client, event = InMemoryClient(), signup()
        async with working(client) as (queue, send_event):
            queue.add_middlewares(again("simple"))
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


def test_a_message_that_is_delivered_twice_is_sent_once() -> None:
    async def main() -> None:
        client, event = InMemoryClient(), signup()
        async with working(client) as (queue, send_event):
            await send_event.kiq(event)
            message = queue.messages.popleft()
            for _ in range(2):
                await Delivery(queue, message).ended()
            assert queue.result().return_value["duplicate"]
            client.sandbox.assert_event("signup", idempotency_key=event.idempotency_key)

    virtual.run(main())


def test_copies_that_an_outage_made_end_with_it() -> None:
    # Who delivers a task again while it runs gets one more for each time.
    async def main() -> None:
        client, event = InMemoryClient(retry=ONCE), signup()
        async with working(client) as (queue, send_event):
            client.sandbox.down()
            await send_event.kiq(event)
            message = queue.messages.popleft()
            twice = [Delivery(queue, message), Delivery(queue, message)]
            for delivery in twice:
                await delivery.ended()
            assert len(queue.messages) == 2
            client.sandbox.down(False)
            while queue.messages:
                await deliver(queue)
            assert client.sandbox.counts.duplicates == 1
            client.sandbox.assert_event("signup", idempotency_key=event.idempotency_key)

    virtual.run(main())


@pytest.mark.parametrize("told", [None, *AcknowledgeType])
@pytest.mark.parametrize("faults", [[None], ["503"]])
def test_a_message_is_only_acknowledged_when_sent_or_back_in_the_queue(
    told: AcknowledgeType | None, faults: list[str | None]
) -> None:
    async def main() -> None:
        client = InMemoryClient(Sandbox(rate_limit=None, latency=1.0), retry=ONCE)
        client.sandbox.script(*faults)
        async with working(client) as (queue, send_event):
            await send_event.kiq(signup())
            delivery = Delivery(queue, queue.messages.popleft(), ack_type=told)
            while not client.sandbox.events and not queue.messages:
                assert delivery.running
                assert not delivery.acked
                await asyncio.sleep(0.01)
            await delivery.ended()

    virtual.run(main())


def test_a_queue_that_takes_nothing_back_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        client = InMemoryClient(retry=ONCE)
        async with working(client) as (queue, send_event):
            client.sandbox.script("503")
            await send_event.kiq(signup())
            queue.refusing.extend(OSError("ada@example.com") for _ in range(5))
            delivery = Delivery(queue, queue.messages.popleft())
            while queue.refusing:
                assert not delivery.acked
                await asyncio.sleep(0.01)
            await delivery.ended()
            assert asyncio.get_running_loop().time() > 5 * module._NEXT_TRY
            await deliver(queue)
            client.sandbox.assert_event("signup")

    virtual.run(main())
    assert caplog.text.count("the queue does not take an event back: OSError") == 5
    assert "ada@" not in caplog.text


@pytest.mark.parametrize("deadline", [2.0, 100.0])
def test_what_waits_when_the_worker_closes_goes_back_at_once(deadline: float) -> None:
    # The one pauses between two runs, the other waits in the client.
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


def test_what_is_cut_off_when_the_worker_closes_goes_back_as_ambiguous() -> None:
    async def main() -> None:
        client, loop = InMemoryClient(Sandbox(latency=20.0)), asyncio.get_running_loop()
        async with working(client) as (queue, send_event):
            await send_event.kiq(signup())
            delivery = Delivery(queue, queue.messages.popleft())
            await asyncio.sleep(1)
        assert loop.time() == 1 + module._GRACE
        await delivery.ended()
        (message,) = queue.content()
        assert module._AMBIGUOUS in message.labels

    virtual.run(main())


@pytest.mark.parametrize("lists", [{}, UNKNOWN_LIST])
def test_what_ends_within_the_grace_is_over_though_the_worker_closes(
    lists: dict[str, bool],
) -> None:
    async def main() -> None:
        client = InMemoryClient(Sandbox(rate_limit=None, latency=2.0))
        async with working(client) as (queue, send_event):
            await send_event.kiq(signup(mailing_lists=lists))
            delivery = Delivery(queue, queue.messages.popleft())
            await asyncio.sleep(1)
        await delivery.ended()
        assert not queue.messages
        assert queue.result().is_err is bool(lists)

    virtual.run(main())


def test_a_worker_whose_client_cannot_be_made_says_why() -> None:
    async def main() -> None:
        queue = Queue()
        add_loops(queue, client=lambda: AsyncLoopsClient(""))
        with pytest.raises(ConfigurationError, match="api_key is empty"):
            await queue.startup()
        await queue.shutdown()

    virtual.run(main())


@pytest.mark.parametrize("deadline", [0, -1.0, math.nan, "120"])
def test_a_deadline_that_cannot_be_is_refused_at_once(deadline: Any) -> None:
    with pytest.raises(ConfigurationError, match="deadline must be a positive"):
        add_loops(Queue(), deadline=deadline)


def test_a_receiver_without_a_start_up_loses_nothing() -> None:
    async def main() -> None:
        client, queue = InMemoryClient(), Queue()
        send_event = add_loops(queue, client=lambda: client)
        queue.is_worker_process = False  # as for a receiver within an application
        async with started(queue):
            await send_event.kiq(signup())
            await deliver(queue)
            client.sandbox.assert_event("signup")
        with pytest.raises(ClientClosedError):
            await client.send_event(signup())

    virtual.run(main())


def test_a_task_of_ones_own_without_a_start_up_is_told_so() -> None:
    async def main() -> None:
        queue = Queue()
        add_loops(queue, client=InMemoryClient)

        @queue.task
        async def own(loops: AsyncLoopsClient = TaskiqDepends(get_client)) -> None:
            await loops.send_event(signup())

        await own.kiq()
        await deliver(queue)
        assert isinstance(queue.result().error, ConfigurationError)
        assert "not started as a worker's" in str(queue.result().error)

    virtual.run(main())


def test_a_record_that_a_task_cannot_read_is_not_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        queue, got = Queue(), []
        add_loops(queue, client=InMemoryClient)

        @queue.task
        async def own(event: Event) -> None:
            got.append(event)

        record = {**event_to_record(signup()), "of_a_newer_version": 1}
        enqueue: Any = own.kiq
        async with started(queue):
            await enqueue(record)
            await deliver(queue)
        assert got == [record]

    virtual.run(main())
    assert "of_a_newer_version: unknown" in caplog.text
    assert "ada@example.com" not in caplog.text


def test_loops_added_twice_is_one_client() -> None:
    async def main() -> None:
        queue, made = Queue(), []
        for _ in range(2):
            add_loops(queue, client=lambda: made.append(InMemoryClient()) or made[-1])
        async with started(queue):
            assert len(made) == 1

    virtual.run(main())


def test_an_event_is_not_enqueued_before_the_start() -> None:
    async def main() -> None:
        queue = Queue()
        send_event = add_loops(queue, client=InMemoryClient)
        with pytest.raises(ConfigurationError, match=r"broker\.startup\(\) before"):
            await send_event.kiq(signup())
        assert not queue.messages

    virtual.run(main())


def test_labels_do_not_make_it_lose_an_event() -> None:
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


def test_events_go_within_other_things_and_into_a_schedule() -> None:
    class Order(BaseModel):
        event: Event
        lines: list[Event]

    async def main() -> None:
        queue, first, second = Queue(), signup(), signup()
        send_event = add_loops(queue, client=InMemoryClient)
        got: list[Order] = []

        @queue.task
        async def take(order: Order) -> None:
            got.append(order)

        async with started(queue):
            await take.kiq(Order(event=first, lines=[second]))
            await deliver(queue)
            when = datetime.now(UTC)
            planned = await send_event.schedule_by_time(Keeping(), when, first)
        assert got == [Order(event=first, lines=[second])]
        assert json.loads(planned.task.model_dump_json())["args"] == [
            event_to_record(first)
        ]

    virtual.run(main())


def test_after_a_shutdown_an_outage_keeps_nothing_busy() -> None:
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


def test_a_client_that_somebody_closed_does_not_keep_the_queue_busy() -> None:
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
def test_a_worker_has_one_client_and_who_only_enqueues_none(worker: bool) -> None:
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
        for one in made:
            assert one.stats.accepted == 3
            assert "closed" in repr(one)

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
    """Many events that are enqueued in Redis, and what became of them."""

    def __init__(self, settings: dict[str, Any], sandbox: Elsewhere) -> None:
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
        counts: dict[str, Any] = self._sandbox.look("counts")
        return counts

    async def accepted(self, count: int) -> None:
        """Wait until Loops has so many."""
        while self.counts()["accepted"] < count:
            await self._look_for_old_ones()

    async def finished(self) -> None:
        """Wait until all have a result and nothing is left to acknowledge."""
        await self.accepted(len(self.events))
        while await self.results() < len(self.events) or (await self.left())[1]:
            await self._look_for_old_ones()

    async def results(self) -> int:
        """Return how many are done."""
        return [await one.is_ready() for one in self._tasks].count(True)

    async def unknown(self) -> int:
        """Return how many are told as unknown; no other has failed."""
        errors = [(await one.get_result()).error for one in self._tasks]
        failed = [error for error in errors if error is not None]
        # Killed after it was accepted, then throttled: as if a 429 used the key up.
        assert all(isinstance(error, IdempotencyConflictError) for error in failed)
        return len(failed)

    async def deliveries(self) -> int:
        counted: list[Any] = await self._redis.hvals(worker_app.DELIVERIES)
        return sum(map(int, counted))

    def check_each_accepted_once(self) -> None:
        accepted = self._sandbox.look("state")["events"]
        assert Counter(one["idempotency_key"] for one in accepted) == Counter(
            event.idempotency_key for event in self.events
        )

    async def left(self) -> tuple[int, int]:
        """Return how many were not taken yet, and how many not acknowledged."""
        (group,) = await self._redis.xinfo_groups("taskiq")
        return group["lag"], group["pending"]

    async def _look_for_old_ones(self) -> None:
        # Which a broker only does when there is a new one.
        await self._tick.kiq()
        await asyncio.sleep(0.05)


async def kill_and_check(
    tasks: int, kills: int, faults: dict[str, float], seed: int
) -> str:
    """Kill the workers so many times in mid-flight, and check the books."""
    dice, began = random.Random(seed), time.monotonic()
    with (
        RedisServer() as redis,
        Elsewhere(rate_limit=None, seed=seed, faults=faults, **LATENCY) as sandbox,
    ):
        settings = {
            "redis": redis.url,
            "url": sandbox.url,
            "key": sandbox.key,
            "idle_timeout": 1000,
        }
        options = ["--workers", "2", "--max-async-tasks", "10"]
        async with Load(settings, sandbox) as load:
            await load.enqueue(tasks)
            for _ in range(kills):
                already = load.counts()["accepted"]
                with worker_app.Workers(settings, *options):
                    share = tasks / (kills + 1)
                    await load.accepted(already + round(share * dice.uniform(0.3, 0.9)))
                    await asyncio.sleep(dice.uniform(0.0, 0.05))
            with worker_app.Workers(settings, *options):
                await load.finished()
            load.check_each_accepted_once()
            counts, deliveries = load.counts(), await load.deliveries()
            unknown = await load.unknown()
    # Some were accepted by Loops and not yet acknowledged in Redis.
    assert deliveries > tasks
    assert unknown <= (deliveries - tasks if faults else 0)
    assert counts["duplicates"] > 0
    return (
        f"{tasks} tasks, {kills} kills, {deliveries - tasks} delivered again; "
        f"{counts['requests']} requests, {sum(counts['faults'].values())} faulted, "
        f"{counts['duplicates']} recognised by their key; each event accepted once, "
        f"{unknown} told as unknown; "
        f"{time.monotonic() - began:.0f} s"
    )


@needed
def test_workers_killed_twice_lose_nothing_and_send_nothing_twice(
    record_property: Any,
) -> None:
    record_property("figures", run(kill_and_check(80, 2, {}, seed=1)))


@needed
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("faults", [{}, FAULTS], ids=["calm", "faults"])
def test_workers_killed_three_times_under_1000_tasks_lose_nothing(
    faults: dict[str, float], record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = run(kill_and_check(1000, 3, faults, seed=2), limit=500)
    record_property("figures", figures)
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")


@needed
def test_workers_that_are_to_end_finish_what_they_have_begun() -> None:
    async def main() -> None:
        with (
            RedisServer() as redis,
            Elsewhere(rate_limit=None, latency_after=0.4) as sandbox,
        ):
            settings = {"redis": redis.url, "url": sandbox.url, "key": sandbox.key}
            async with Load(settings, sandbox) as load:
                await load.enqueue(60)
                with worker_app.Workers(settings, "--max-async-tasks", "5") as workers:
                    await load.accepted(10)
                    assert await workers.stop() == ""
                counts = load.counts()
                assert counts["requests"] == counts["accepted"] < 60
                assert await load.results() == counts["accepted"]
                # What they had fetched and not begun is delivered again.
                settings["idle_timeout"] = 1000
                with worker_app.Workers(settings):
                    await load.finished()
                load.check_each_accepted_once()
                assert await load.unknown() == 0

    run(main())


@needed
def test_a_worker_answers_and_gives_back_what_it_has_no_time_for() -> None:
    async def main() -> None:
        with RedisServer() as redis, Elsewhere(rate_limit=None) as sandbox:
            settings = {"redis": redis.url, "url": sandbox.url, "key": sandbox.key}
            options = ["--workers", "1", "--wait-tasks-timeout", "0.1"]
            async with Load(settings, sandbox) as load:
                with worker_app.Workers(settings, *options) as worker:
                    event = signup()
                    sent = await load.result_of("welcome", event)
                    assert sent.return_value == event.idempotency_key
                    again = await load.result_of(module.TASK_NAME, event)
                    assert again.return_value["duplicate"]
                    refused = signup(mailing_lists=UNKNOWN_LIST)
                    failed = await load.result_of(module.TASK_NAME, refused)
                    assert isinstance(failed.error, BadRequestError)
                    assert load.counts()["requests"] == 3

                    sandbox.steer("down")
                    await load.enqueue(20)
                    while await load.deliveries() < 3 + 20:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    await worker.stop()
                assert await load.left() == (20, 0)

    run(main())
