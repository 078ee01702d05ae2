"""Many events through one run, in virtual time.

The `send` of these tests is a coroutine that takes virtual seconds and ends as
planned; it speaks to its lane as the real one does. What it saw is compared
with a model: who may go before whom, and what has to become of each event.
"""

import asyncio
import gc
import logging
import math
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import virtual_time as virtual

from loops_async import (
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    Event,
    InvalidEventError,
    LoopsError,
    NotFoundError,
    NotTriedError,
    Outcome,
    Receipt,
    SendReport,
    ServerError,
    UnexpectedResponseError,
)
from loops_async._sending import bulk as _fanout
from loops_async._sending.bulk import LOOK_AHEAD, FanOut
from loops_async._sending.bulk_run import BulkRun


def now() -> float:
    return asyncio.get_running_loop().time()


def others() -> list[str]:
    """Name the tasks there are beside this one."""
    here = asyncio.current_task()
    return [repr(task) for task in asyncio.all_tasks() if task is not here]


def event_for(contact: object, number: int = 0) -> Event:
    return Event("e", user_id=f"u{contact}", event_properties={"number": number})


def events_for_all(count: int) -> list[Event]:
    """Return so many events, each of a contact of its own."""
    return [event_for(number) for number in range(count)]


# How a send may end.

STOPPING: dict[str, Callable[[], LoopsError]] = {
    "401": lambda: AuthenticationError("bad key", status=401),
    "404": lambda: NotFoundError("no such path", status=404),
    "405": lambda: UnexpectedResponseError("wrong address", status=405),
    "closed": lambda: ClientClosedError("the client is closed"),
    "key": lambda: ConfigurationError("api_key: the callable raised"),
}
AT_ONCE = ("closed", "key")  # these come before any request
ENDS: dict[str, Callable[[], LoopsError]] = {
    "refused": lambda: BadRequestError("no", status=400),
    "unknown": lambda: ServerError("down", status=500, maybe_accepted=True),
    **STOPPING,
}


@attrs.frozen
class Plan:
    """How the send of one event goes.

    Attributes:
        before: Seconds it waits for a permit.
        takes: Seconds of its request.
        end: "accepted", "duplicate", or a name of `ENDS`.
    """

    before: float = 0.0
    takes: float = 1.0
    end: str = "accepted"


@attrs.define(eq=False)
class Sends:
    """A `send`, and what it saw.

    Attributes:
        plan: Of the event with that idempotency key.
        slots: The most requests under way; None is any number.
        began: Key to the time its request went out, in that order.
        ended: Key to the time it was over.
    """

    plan: Callable[[Event], Plan] = attrs.field(default=lambda _: Plan())
    slots: asyncio.Semaphore | None = None
    began: dict[str, float] = attrs.field(factory=dict)
    ended: dict[str, float] = attrs.field(factory=dict)
    under_way: int = 0
    most_under_way: int = 0
    callers: int = 0
    most_callers: int = 0
    sent_after_stop: int = 0
    stops: int = 0  # refusals that stop a run

    def has_room(self) -> bool:
        return self.slots is None or not self.slots.locked()

    async def __call__(self, event: Event, body: bytes, lane: BulkRun) -> Receipt:
        self.callers += 1
        self.most_callers = max(self.most_callers, self.callers)
        try:
            return await self._send(event, lane)
        finally:
            self.callers -= 1

    async def _send(self, event: Event, lane: BulkRun) -> Receipt:
        plan = self.plan(event)
        await self._admitted(plan, lane)
        try:
            if plan.end in AT_ONCE:
                self.stops += 1
                raise ENDS[plan.end]()
            lane.sent(event.idempotency_key)
            return await self._exchange(event, plan, lane)
        finally:
            if self.slots is not None:
                self.slots.release()

    async def _admitted(self, plan: Plan, lane: BulkRun) -> None:
        try:
            async with asyncio.timeout_at(None) as scope:
                lane.waiting.add(scope)
                if plan.before:
                    await asyncio.sleep(plan.before)
                if self.slots is not None:
                    await self.slots.acquire()
        except TimeoutError:
            raise NotTriedError("not tried", retryable=True) from None
        finally:
            lane.waiting.discard(scope)
        if lane.stopped_by is not None:  # at this very moment
            if self.slots is not None:
                self.slots.release()
            raise NotTriedError("not tried", retryable=True)

    async def _exchange(self, event: Event, plan: Plan, lane: BulkRun) -> Receipt:
        key = event.idempotency_key
        self.sent_after_stop += lane.stopped_by is not None
        self.began[key] = now()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(plan.takes)
        finally:
            self.under_way -= 1
            self.ended[key] = now()
        if plan.end in ENDS:
            self.stops += plan.end in STOPPING
            error = ENDS[plan.end]()
            error.attempts = 1
            raise error
        return Receipt(key, 1, plan.end == "duplicate", plan.takes, None)


def bytes_of(event: Event) -> bytes:
    """Prepare an event, the simplest way."""
    return repr(attrs.astuple(event)[:-1]).encode()


def make(source: Any, send: Any, **settings: Any) -> FanOut:
    usual = {
        "kind": Event,
        "outcome": Outcome,
        "prepare": bytes_of,
        "has_room": getattr(send, "has_room", lambda: True),
        "lanes": set(),
        "on_outcome": None,
        "patience": None,
        "keys": None,
    }
    return FanOut(source, send=send, **{**usual, **settings})


async def collect(run: FanOut) -> list[Outcome]:
    async with aclosing(run.outcomes()) as stream:
        return [outcome async for outcome in stream]


# The model.


@attrs.define
class Scenario:
    """One run, and what happens to it.

    Attributes:
        contacts: Email and user ID of each event.
        plans: How the send of each goes.
        slots: The most requests under way, or None.
        source: "list", "generator" or "async".
        pauses: Seconds an async source takes for each event.
        breaks: After how many events the source raises, or None.
        pace: Seconds the consumer takes for each outcome.
        leaves: After how many outcomes it leaves, or None.
        cancelled: At what time the consumer is cancelled, or None.
        look_ahead: How many events may be pulled and not taken.
        stock: How many are pulled that could go at once.
    """

    contacts: list[tuple[str | None, str | None]]
    plans: list[Plan]
    slots: int | None
    source: str
    pauses: list[float]
    breaks: int | None
    pace: float
    leaves: int | None
    cancelled: float | None
    look_ahead: int
    stock: int


class SourceBroke(Exception):
    """What a source of the model raises."""


_few_seconds = st.sampled_from([0.0, 0.5, 1.0, 2.5])
_plans = st.builds(
    Plan,
    before=st.sampled_from([0.0, 0.0, 0.25, 2.0]),
    takes=_few_seconds,
    end=st.sampled_from(
        ["accepted"] * 12 + ["duplicate"] * 3 + ["refused"] * 3 + ["unknown"] * 3
    ),
)
_stopping_plans = st.builds(Plan, end=st.sampled_from(sorted(STOPPING)))
_contacts = st.tuples(
    st.none() | st.sampled_from(["ada@b.co", "ADA@b.co", "eve@b.co", "joe@b.co"]),
    st.none() | st.sampled_from(["u1", "u2", "u3", "u4", "u5"]),
).filter(lambda contact: contact != (None, None))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    contacts = draw(st.lists(_contacts, max_size=24))
    count = len(contacts)

    def list_of(what: Any) -> Any:
        return draw(st.lists(what, min_size=count, max_size=count))

    plans = list_of(_plans)
    if count and draw(st.integers(0, 2)) == 0:
        plans[draw(st.integers(0, count - 1))] = draw(_stopping_plans)
    stock = draw(st.integers(1, 5))
    return Scenario(
        contacts=contacts,
        plans=plans,
        slots=draw(st.none() | st.integers(1, 4)),
        source=draw(st.sampled_from(["list", "generator", "async"])),
        pauses=list_of(st.sampled_from([0.0, 0.0, 0.5, 3.0])),
        breaks=draw(st.none() | st.none() | st.integers(0, count)),
        pace=draw(st.sampled_from([0.0, 0.0, 0.0, 1.5])),
        leaves=draw(st.none() | st.none() | st.integers(1, count + 1)),
        cancelled=draw(st.none() | st.none() | st.sampled_from([0.0, 0.3, 1.0, 4.2])),
        look_ahead=stock + draw(st.integers(0, 12)),
        stock=stock,
    )


@attrs.define
class Model:
    """Plays a scenario and checks it.

    Attributes:
        told: What `on_outcome` was told.
        taken: What the consumer took.
        pulled: How many events the source gave.
        busy: Whether the consumer does something else than wait for outcomes.
    """

    scenario: Scenario
    sends: Sends = attrs.field(init=False)
    run: FanOut = attrs.field(init=False)
    events: list[Event] = attrs.field(factory=list)
    told: list[Outcome] = attrs.field(factory=list)
    taken: list[Outcome] = attrs.field(factory=list)
    pulled: int = 0
    pulled_after_stop: int = 0
    furthest_ahead: int = 0
    busy: bool = False

    def play(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_fanout, "_STOCK", self.scenario.stock)
            virtual.run(self._main())

    async def _main(self) -> None:
        plans = {}
        for plan, (email, user_id) in zip(
            self.scenario.plans, self.scenario.contacts, strict=True
        ):
            event = Event("e", email=email, user_id=user_id)
            self.events.append(event)
            plans[event.idempotency_key] = plan
        slots = self.scenario.slots
        self.sends = Sends(
            lambda event: plans[event.idempotency_key],
            None if slots is None else asyncio.Semaphore(slots),
        )
        self.run = make(
            self._source(),
            self.sends,
            on_outcome=self.told.append,
            look_ahead=self.scenario.look_ahead,
        )
        consumer = asyncio.create_task(self._consume())
        if self.scenario.cancelled is not None:
            # Not before it has begun.
            asyncio.get_running_loop().call_at(
                self.scenario.cancelled + 0.01, consumer.cancel
            )
        (found,) = await asyncio.gather(consumer, return_exceptions=True)
        self._check(found, now())
        assert others() == []
        await asyncio.sleep(1000)  # nothing comes after
        assert others() == []
        assert not self.sends.under_way

    def _source(self) -> Any:
        if self.scenario.source == "async":
            return self._async_source()
        items = self._items()
        return items if self.scenario.source == "generator" else _Lazily(items)

    def _items(self) -> Iterator[Event]:
        for index, event in enumerate(self.events):
            if index == self.scenario.breaks:
                raise SourceBroke
            self.pulled += 1
            self.pulled_after_stop += self.run.stopped_by is not None
            ahead = self.pulled - len(self.taken)
            self.furthest_ahead = max(self.furthest_ahead, ahead)
            yield event
        if self.scenario.breaks == len(self.events):
            raise SourceBroke

    async def _async_source(self) -> AsyncIterator[Event]:
        pauses = iter([*self.scenario.pauses, 0.0])
        await asyncio.sleep(next(pauses))
        for event in self._items():
            yield event
            await asyncio.sleep(next(pauses))

    async def _consume(self) -> None:
        async with aclosing(self.run.outcomes()) as stream:
            async for outcome in stream:
                self.taken.append(outcome)
                if len(self.taken) == self.scenario.leaves:
                    return
                if self.scenario.pace:
                    self.busy = True
                    await asyncio.sleep(self.scenario.pace)
                    self.busy = False

    def _check(self, found: BaseException | None, at: float) -> None:
        self._check_order()
        assert self.pulled_after_stop == 0
        assert self.sends.sent_after_stop == 0
        assert self.furthest_ahead <= self.scenario.look_ahead
        if self.scenario.slots is not None:
            assert self.sends.most_under_way <= self.scenario.slots
        indexes = [outcome.index for outcome in self.told]
        assert len(set(indexes)) == len(indexes)
        taken = {outcome.index: outcome for outcome in self.taken}
        assert len(taken) == len(self.taken)
        assert all(
            outcome is taken.get(outcome.index, outcome) for outcome in self.told
        )
        for outcome in self.told:
            self._check_outcome(outcome)
        cancelled = isinstance(found, asyncio.CancelledError)
        if cancelled and not self.busy:
            assert self.scenario.cancelled is not None
            assert at <= self.scenario.cancelled + 0.02
        # Each that was pulled, and nothing else.
        assert sorted(indexes) == list(range(self.pulled))
        assert {outcome.index for outcome in self.told} >= set(taken)
        self._check_books()
        if cancelled:  # elsewhere, so that for the run the consumer just left
            return
        if len(self.taken) == self.scenario.leaves:
            assert found is None
            return
        assert sorted(taken) == list(range(self.pulled))
        stopped = self.run.stopped_by is not None
        assert stopped is bool(self.sends.stops)
        if isinstance(found, SourceBroke):
            assert self.pulled == self.scenario.breaks
        else:
            assert found is None
            assert stopped or (
                self.pulled == len(self.events) and self.scenario.breaks is None
            )

    def _check_order(self) -> None:
        """The start of a send is after the end of every earlier one of its contact."""
        for later, event in enumerate(self.events):
            began = self.sends.began.get(event.idempotency_key)
            if began is None:
                continue
            for earlier in self.events[:later]:
                if share(earlier, event):
                    ended = self.sends.ended.get(earlier.idempotency_key, math.inf)
                    plan = self.scenario.plans[self.events.index(earlier)]
                    if plan.end not in AT_ONCE:
                        assert ended <= began

    def _check_outcome(self, outcome: Outcome) -> None:
        event = self.events[outcome.index]
        assert outcome.event is event
        sent = event.idempotency_key in self.sends.began
        plan = self.scenario.plans[outcome.index]
        error = outcome.error
        assert (outcome.receipt is None) is (error is not None)
        if error is not None:
            assert error.__traceback__ is None
        if isinstance(error, NotTriedError):
            assert not sent
            assert error.attempts == 0
            assert error.retryable
            assert self.run.stopped_by is not None
        elif error is not None and "the run was cancelled" in str(error):
            assert sent
            assert error.maybe_accepted
            assert self.scenario.cancelled is not None
        elif plan.end in ENDS:
            assert type(error) is type(ENDS[plan.end]())
            assert sent is (plan.end not in AT_ONCE)
        else:
            assert outcome.receipt is not None
            assert outcome.receipt.idempotency_key == event.idempotency_key
            assert outcome.receipt.duplicate is (plan.end == "duplicate")
            assert sent

    def _check_books(self) -> None:
        report = SendReport(self.told)
        parts = (
            report.accepted,
            report.duplicates,
            report.failures,
            report.unknown,
            report.not_tried,
        )
        assert sum(map(len, parts)) == self.pulled


def share(one: Event, other: Event) -> bool:
    emails = [event.email and event.email.lower() for event in (one, other)]
    return (emails[0] is not None and emails[0] == emails[1]) or (
        one.user_id is not None and one.user_id == other.user_id
    )


@attrs.define
class _Lazily:
    """An iterable that is no iterator."""

    items: Iterator[Event]

    def __iter__(self) -> Iterator[Event]:
        return self.items


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_whatever_happens_each_event_pulled_has_one_outcome_in_order(
    scenario: Scenario,
) -> None:
    """The model; see `Model._check` for all that holds."""
    Model(scenario).play()


@pytest.mark.soak
@settings(max_examples=4000, deadline=None)
@given(scenarios())
def test_whatever_happens_many_times_over(scenario: Scenario) -> None:
    Model(scenario).play()


# How many at a time.


def test_there_are_as_many_workers_as_requests_under_way_and_one() -> None:
    """Latency times rate: nobody has to choose the concurrency."""

    async def main() -> None:
        permits = asyncio.Semaphore(0)

        async def send(event: Event, body: bytes, lane: BulkRun) -> Receipt:
            sends.callers += 1
            sends.most_callers = max(sends.most_callers, sends.callers)
            await permits.acquire()
            lane.sent(event.idempotency_key)
            sends.under_way += 1
            most.append(sends.callers - sends.under_way)
            await asyncio.sleep(2.05)
            sends.under_way -= 1
            sends.callers -= 1
            return Receipt(event.idempotency_key, 1, False, 0, None)

        async def permit() -> None:
            for _ in range(100):
                permits.release()
                await asyncio.sleep(0.1)

        sends, most = Sends(), list[int]()
        giver = asyncio.create_task(permit())
        found = await collect(make(events_for_all(100), send))
        await giver
        assert len(found) == 100
        assert sends.most_callers == 22  # 2.05 s at 10 a second, and who waits
        assert max(most) <= 1
        assert now() == pytest.approx(9.9 + 2.05)

    virtual.run(main())


def test_without_a_limit_all_go_at_once() -> None:
    async def main() -> None:
        sends = Sends()
        await collect(make(events_for_all(300), sends))
        assert sends.most_under_way == 300
        assert now() == 1.0

    virtual.run(main())


def test_no_more_than_there_is_room_for_wait_for_it() -> None:
    """Room for five: five under way and one waiting, from begin to end."""

    async def main() -> None:
        sends = Sends(slots=asyncio.Semaphore(5))
        await collect(make(events_for_all(100), sends))
        assert sends.most_under_way == 5
        assert sends.most_callers <= 6
        assert now() == 20.0

    virtual.run(main())


def test_an_event_that_ends_before_it_leaves_holds_up_no_other() -> None:
    """Such as one whose deadline passed while the key was asked for."""

    async def main() -> None:
        async def send(event: Event, body: bytes, lane: BulkRun) -> Receipt:
            if event.user_id == "u0":
                await asyncio.sleep(3)
                raise DeadlineExceededError("no time left")
            return await sends(event, body, lane)

        sends = Sends()
        found = await collect(make(events_for_all(10), send))
        assert [outcome.ok for outcome in found].count(True) == 9
        assert sends.most_under_way == 9
        assert now() == 4.0

    virtual.run(main())


def test_an_event_that_comes_as_the_last_worker_leaves_is_sent() -> None:
    """Though others have all the room there is at that moment."""

    async def main() -> None:
        first_is_over = asyncio.Event()

        async def source() -> AsyncIterator[Event]:
            yield event_for(0)
            await first_is_over.wait()
            yield event_for(1)

        run = make(
            source(),
            Sends(),
            has_room=lambda: False,
            lanes=set(),
            on_outcome=lambda _: first_is_over.set(),
        )
        assert len(await collect(run)) == 2

    virtual.run(main())


def test_an_event_is_sent_as_soon_as_it_is_pulled() -> None:
    """A slow source is not waited for until it has filled a batch."""

    async def main() -> None:
        async def source() -> AsyncIterator[Event]:
            for number in range(3):
                await asyncio.sleep(10)
                yield event_for(number)

        sends = Sends()
        stream = make(source(), sends).outcomes()
        times = [now() async for _ in stream]
        assert list(sends.began.values()) == [10, 20, 30]
        assert times == [11, 21, 31]

    virtual.run(main())


def test_a_contact_s_events_are_sent_one_after_the_other() -> None:
    """And other contacts' beside them; a failure lets the next go all the same."""

    async def main() -> None:
        events = [event_for(number % 2, number) for number in range(10)]
        ends = ["accepted", "refused", "unknown", "duplicate", "accepted"] * 2
        plans = {
            event.idempotency_key: Plan(end=end)
            for event, end in zip(events, ends, strict=True)
        }
        sends = Sends(lambda event: plans[event.idempotency_key])
        found = await collect(make(events, sends))
        assert sends.most_under_way == 2
        assert now() == 5.0
        for contact in (0, 1):
            indexes = [o.index for o in found if o.index % 2 == contact]
            assert indexes == sorted(indexes)

    virtual.run(main())


# How far ahead.


@pytest.mark.parametrize("kind", ["list", "async"])
def test_no_more_than_1000_are_pulled_ahead_of_who_takes_the_outcomes(
    kind: str,
) -> None:
    async def main() -> None:
        pulled = taken = furthest = 0

        def items() -> Iterator[Event]:
            nonlocal pulled, furthest
            for number in range(2500):
                pulled += 1
                furthest = max(furthest, pulled - taken)
                yield event_for(number)

        async def source() -> AsyncIterator[Event]:
            for event in items():
                yield event

        run = make(items() if kind == "list" else source(), Sends())
        async for _ in run.outcomes():
            taken += 1
            if taken in (1, 500, 2000):
                await asyncio.sleep(100)
            if taken == 1:
                assert 900 <= pulled <= LOOK_AHEAD == 1000
        assert taken == 2500
        assert furthest <= 1001  # the one asked for before the last was taken

    virtual.run(main())


def test_reading_a_long_list_lets_others_have_the_loop() -> None:
    """A hundred at a time: a handler beside a bulk run waits for no thousand."""

    async def main() -> None:
        pulled = 0
        seen = []

        def items() -> Iterator[Event]:
            nonlocal pulled
            for event in events:
                pulled += 1
                yield event

        async def beside() -> None:
            while pulled < 1000:
                seen.append(pulled)
                await asyncio.sleep(0)

        events = events_for_all(1000)
        other = asyncio.create_task(beside())
        await collect(make(items(), None))
        await other
        assert max(b - a for a, b in pairwise(seen)) <= 100

    virtual.run(main())


def test_what_is_finished_is_not_kept() -> None:
    """Neither events nor errors, while the run goes on."""

    async def main() -> None:
        alive: list[weakref.ref[Any]] = []

        async def source() -> AsyncIterator[Event]:
            for number in range(40):
                event = event_for(number % 4, number)
                alive.append(weakref.ref(event))
                yield event
                del event
                await asyncio.sleep(1)

        async def send(event: Event, body: bytes, lane: BulkRun) -> Receipt:
            lane.sent(event.idempotency_key)
            await asyncio.sleep(2)
            error = BadRequestError("no", status=400)
            error.attempts = 1
            alive.append(weakref.ref(error))
            raise error

        gc.disable()  # what is in a cycle counts as kept
        try:
            most = 0
            async for outcome in make(source(), send).outcomes():
                del outcome
                most = max(most, sum(one() is not None for one in alive))
        finally:
            gc.enable()
        assert len(alive) == 80
        assert most <= 12

    virtual.run(main())


# What is refused before it is sent.


def test_an_item_that_is_no_event_is_named_after_the_rest_was_sent() -> None:
    async def main() -> None:
        told: list[Outcome] = []
        items: list[Any] = [*events_for_all(2), {"email": "a@b.co"}, event_for(9)]
        sends = Sends()
        with pytest.raises(TypeError) as raised:
            await collect(make(items, sends, on_outcome=told.append))
        assert str(raised.value) == "events[2] must be an Event, not dict"
        assert [outcome.index for outcome in told] == [0, 1]
        assert all(outcome.ok for outcome in told)
        assert others() == []

    virtual.run(main())


def test_an_event_that_cannot_be_sent_is_a_failure_and_the_rest_is_sent() -> None:
    async def main() -> None:
        def prepare(event: Event) -> bytes:
            if event.user_id == "u1":
                raise InvalidEventError(problems=["body: no JSON"])
            return bytes_of(event)

        found = await collect(make(events_for_all(3), Sends(), prepare=prepare))
        report = SendReport(sorted(found, key=lambda outcome: outcome.index))
        assert [outcome.ok for outcome in report] == [True, False, True]
        assert isinstance(report[1].error, InvalidEventError)
        assert report[1].error.__traceback__ is None

    virtual.run(main())


def test_what_preparing_an_event_raises_of_others_ends_the_run() -> None:
    """Not a LoopsError: a mistake of ours or of a hook; nobody waits for ever."""

    async def main() -> None:
        def prepare(event: Event) -> bytes:
            if event.user_id == "u1":
                raise ZeroDivisionError
            return bytes_of(event)

        told: list[Outcome] = []
        run = make(events_for_all(3), Sends(), prepare=prepare, on_outcome=told.append)
        with pytest.raises(ZeroDivisionError):
            await collect(run)
        assert told[0].index == 0
        assert told[0].ok
        assert others() == []

    virtual.run(main())


def test_one_key_with_other_bytes_is_refused_and_not_sent() -> None:
    async def main() -> None:
        first = Event("e", user_id="u1", idempotency_key="k")
        copy = attrs.evolve(first, user_id="u2")
        sends = Sends()
        found = await collect(make([first, copy, first.again()], sends))
        refused = next(outcome for outcome in found if outcome.index == 1)
        assert isinstance(refused.error, InvalidEventError)
        assert "idempotency_key" in str(refused.error)
        assert "event.replace" in str(refused.error)
        assert refused.error.idempotency_key == "k"
        assert refused.error.attempts == 0
        assert [outcome.ok for outcome in found].count(True) == 2
        assert len(sends.began) == 2

    virtual.run(main())


def test_a_bounded_run_forgets_old_keys() -> None:
    async def main() -> None:
        first = Event("e", user_id="u1", idempotency_key="k")
        copy = attrs.evolve(first, user_id="u2")
        events = [first, *events_for_all(6), copy]
        found = await collect(make(events, Sends(), keys=2))
        assert all(outcome.ok for outcome in found)

    virtual.run(main())


def test_a_dry_run_checks_everything_and_sends_nothing() -> None:
    async def main() -> None:
        first = Event("e", user_id="u1", idempotency_key="k")
        copy = attrs.evolve(first, user_id="u2")
        found = await collect(make([first, copy, *events_for_all(1500)], None))
        assert [outcome.index for outcome in found] == list(range(1502))
        assert [outcome.index for outcome in found if not outcome.ok] == [1]
        receipts = [outcome.receipt for outcome in found if outcome.receipt]
        assert all(receipt.dry_run for receipt in receipts)
        assert {receipt.attempts for receipt in receipts} == {0}
        assert now() == 0

    virtual.run(main())


# Who is told.


def test_who_is_told_of_outcomes_changes_none_by_raising(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook(outcome: Outcome) -> None:
        raise ValueError(outcome.event.user_id)

    async def main() -> None:
        found = await collect(make(events_for_all(3), Sends(), on_outcome=hook))
        assert all(outcome.ok for outcome in found)

    with caplog.at_level(logging.ERROR, "loops_async"):
        virtual.run(main())
    assert caplog.messages == ["on_outcome raised ValueError"] * 3


def test_outcomes_are_told_before_they_are_taken_in_the_order_they_come_in() -> None:
    async def main() -> None:
        told: list[Outcome] = []
        plans = {f"u{n}": Plan(takes=takes) for n, takes in enumerate([3, 1, 2])}
        sends = Sends(lambda event: plans[str(event.user_id)])
        run = make(events_for_all(3), sends, on_outcome=told.append)
        async for outcome in run.outcomes():
            assert outcome in told
        assert [outcome.index for outcome in told] == [1, 2, 0]

    virtual.run(main())


# What stops a run.


@pytest.mark.parametrize("end", sorted(STOPPING))
def test_what_would_refuse_every_event_stops_the_run(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is under way ends as it may; the rest is not tried, nor read."""

    async def main() -> None:
        pulled = 0

        def items() -> Iterator[Event]:
            nonlocal pulled
            for number in range(3000):
                pulled += 1
                yield event_for(number)

        plans = {"u0": Plan(takes=5), "u1": Plan(takes=2, end=end), "u2": Plan(takes=1)}
        sends = Sends(
            lambda event: plans.get(str(event.user_id), Plan()), asyncio.Semaphore(2)
        )
        run = make(items(), sends)
        report = SendReport(
            sorted(await collect(run), key=lambda outcome: outcome.index),
            stopped_by=run.stopped_by,
        )
        assert len(report) == pulled <= 1000
        assert type(report.stopped_by) is type(ENDS[end]())
        assert report[0].ok
        sent = 1 if end in AT_ONCE else 2
        assert len(sends.began) == sent
        assert len(report.accepted) == 1
        for outcome in report.not_tried:
            assert isinstance(outcome.error, NotTriedError)
            assert outcome.error.idempotency_key == outcome.event.idempotency_key
            assert str(outcome.error) == f"not tried: {run.stopped_by}"
            assert outcome.error.attempts == 0
            assert outcome.error.retryable
        assert now() == 5.0
        assert others() == []

    with caplog.at_level(logging.WARNING, "loops_async"):
        virtual.run(main())
    told = [] if end == "closed" else ["sending stopped"]
    assert [message[:15] for message in caplog.messages] == told


def test_a_stop_is_not_waited_for_by_a_source_that_is_slow() -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[Event]:
            yield event_for(0)
            await asyncio.sleep(1e6)
            raise AssertionError

        run = make(source(), Sends(lambda _: Plan(end="401")))
        (outcome,) = await collect(run)
        assert outcome.error is run.stopped_by
        assert now() == 1.0

    virtual.run(main())


def test_what_a_source_gives_after_a_stop_is_not_tried() -> None:
    """It swallowed its cancellation: the event it then gives is accounted for."""

    async def main() -> None:
        sends = Sends(lambda _: Plan(end="401"))
        run = make(stubborn(5), sends)
        found = await collect(run)
        assert [outcome.index for outcome in found] == [0, 1]
        assert isinstance(found[0].error, AuthenticationError)
        assert isinstance(found[1].error, NotTriedError)
        assert len(sends.began) == 1
        assert others() == []

    virtual.run(main())


async def stubborn(count: int) -> AsyncIterator[Event]:
    """Give events ten seconds apart, and swallow every cancellation."""
    for number in range(count):
        try:
            if number:
                await asyncio.sleep(10)
        except asyncio.CancelledError:
            pass
        yield event_for(number)


def test_only_the_first_refusal_stops_the_run() -> None:
    """Those that were under way end with errors of their own."""

    async def main() -> None:
        plans = {"u0": Plan(takes=1, end="401"), "u1": Plan(takes=2, end="404")}
        run = make(events_for_all(2), Sends(lambda event: plans[str(event.user_id)]))
        found = await collect(run)
        assert isinstance(run.stopped_by, AuthenticationError)
        assert isinstance(found[1].error, NotFoundError)

    virtual.run(main())


def test_patience_that_is_lost_stops_the_run() -> None:
    async def main() -> None:
        async def send(event: Event, body: bytes, lane: BulkRun) -> Receipt:
            lane.sent(event.idempotency_key)
            lane.stands(ServerError("down", status=503), key=event.idempotency_key)
            try:
                async with asyncio.timeout_at(None) as scope:
                    lane.waiting.add(scope)
                    await asyncio.sleep(1e6)
            except TimeoutError:
                pass
            error = ServerError("down", status=503, maybe_accepted=True)
            error.attempts = 3
            raise error

        run = make([event_for(0), event_for(0), event_for(1)], send, patience=30.0)
        report = SendReport(await collect(run), stopped_by=run.stopped_by)
        assert now() == 30.0
        assert "nothing was taken for 30 s" in str(report.stopped_by)
        assert len(report.unknown) == 2
        assert len(report.not_tried) == 1

    virtual.run(main())


# Sources that fail.


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_source_raises_comes_after_the_outcomes_of_what_was_read(
    kind: str,
) -> None:
    async def main() -> None:
        def items() -> Iterator[Event]:
            yield from events_for_all(3)
            raise OSError("the file is gone")

        async def source() -> AsyncIterator[Event]:
            for event in items():
                yield event

        told: list[Outcome] = []
        given_by = items() if kind == "sync" else source()
        run = make(given_by, Sends(), on_outcome=told.append)
        with pytest.raises(OSError, match="the file is gone"):
            await collect(run)
        assert [outcome.index for outcome in told] == [0, 1, 2]
        assert now() == 1.0
        assert others() == []

    virtual.run(main())


def test_a_source_that_fails_as_the_last_outcome_comes_in_is_heard() -> None:
    """Both at one turn of the loop: the run must not look complete."""

    async def main() -> None:
        first_is_over = asyncio.Event()

        async def source() -> AsyncIterator[Event]:
            yield event_for(0)
            await first_is_over.wait()
            raise OSError("the queue is gone")

        run = make(source(), Sends(), on_outcome=lambda _: first_is_over.set())
        with pytest.raises(OSError, match="the queue is gone"):
            await collect(run)

    virtual.run(main())


def test_a_source_that_cannot_even_begin_raises_at_once() -> None:
    class Broken(Iterable[Event]):
        def __iter__(self) -> Iterator[Event]:
            raise OSError("no such file")

    async def main() -> None:
        with pytest.raises(OSError, match="no such file"):
            await collect(make(Broken(), Sends()))
        assert others() == []

    virtual.run(main())


def test_a_source_that_was_cancelled_by_another_cancels_the_run_at_its_end() -> None:
    """It is not mistaken for a source that has come to its end."""

    async def main() -> None:
        async def source() -> AsyncIterator[Event]:
            yield event_for(0)
            raise asyncio.CancelledError

        told: list[Outcome] = []
        run = make(source(), Sends(), on_outcome=told.append)
        with pytest.raises(asyncio.CancelledError, match="by the source"):
            await collect(run)
        assert [outcome.ok for outcome in told] == [True]
        assert others() == []

    virtual.run(main())


# Consumers that go.


def test_who_leaves_lets_what_is_under_way_end() -> None:
    """And all that was pulled is told of; nothing more is pulled or sent."""

    async def main() -> None:
        told: list[Outcome] = []
        plans = {"u0": Plan(takes=1), "u1": Plan(takes=7), "u2": Plan(before=50)}
        sends = Sends(lambda event: plans[str(event.user_id)])
        run = make(events_for_all(3), sends, on_outcome=told.append)
        async with aclosing(run.outcomes()) as stream:
            async for _ in stream:
                break
        assert now() == 7.0
        assert others() == []
        report = SendReport(told)
        assert [outcome.index for outcome in report.accepted] == [0, 1]
        assert [outcome.index for outcome in report.not_tried] == [2]
        assert isinstance(run.stopped_by, ClientClosedError)

    virtual.run(main())


def test_who_just_breaks_the_loop_has_the_same_done_behind_his_back() -> None:
    async def main() -> None:
        told: list[Outcome] = []
        plans = {"u0": Plan(takes=1), "u1": Plan(takes=7), "u2": Plan(before=50)}
        sends = Sends(lambda event: plans[str(event.user_id)])
        async for _ in make(
            events_for_all(3), sends, on_outcome=told.append
        ).outcomes():
            break
        assert now() == 1.0
        await asyncio.sleep(6.01)
        assert others() == []
        assert sorted(outcome.index for outcome in told if outcome.ok) == [0, 1]
        assert len(told) == 3

    virtual.run(main())


def test_who_is_cancelled_while_leaving_waits_for_nothing() -> None:
    async def main() -> None:
        async def leave() -> None:
            async with aclosing(run.outcomes()) as stream:
                async for _ in stream:
                    break

        plans = {"u0": Plan(takes=1), "u1": Plan(takes=1000)}
        run = make(events_for_all(2), Sends(lambda event: plans[str(event.user_id)]))
        leaving = asyncio.create_task(leave())
        await asyncio.sleep(3)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert leaving.cancelled()
        assert now() == 3.0
        assert others() == []

    virtual.run(main())


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 1.5])
def test_a_cancelled_run_ends_at_once_and_leaves_no_task(at: float) -> None:
    async def main() -> None:
        sends = Sends(slots=asyncio.Semaphore(10))
        run = make(events_for_all(2000), sends)
        task = asyncio.create_task(collect(run))
        await asyncio.sleep(at)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert now() == at
        assert others() == []
        begun = len(sends.began)
        await asyncio.sleep(100)
        assert len(sends.began) == begun
        assert not sends.under_way

    virtual.run(main())


def test_a_cancelled_run_sends_nothing_more_of_a_source_that_goes_on() -> None:
    """A source that swallows cancellation keeps no cancelled run alive."""

    async def main() -> None:
        sends = Sends()
        task = asyncio.create_task(collect(make(stubborn(50), sends)))
        await asyncio.sleep(15)
        assert len(sends.began) == 2
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert now() < 40
        assert len(sends.began) == 2
        assert others() == []

    virtual.run(main())


# What must not happen.


def test_a_send_that_raises_no_error_of_ours_ends_the_run_with_it() -> None:
    """A mistake of ours is told as it is, and hangs nobody."""

    async def main() -> None:
        async def send(event: Event, body: bytes, lane: BulkRun) -> Receipt:
            lane.sent(event.idempotency_key)
            await asyncio.sleep(1 if event.user_id == "u1" else 2)
            raise ZeroDivisionError(event.user_id)

        with pytest.raises(ZeroDivisionError, match="u1"):
            await collect(make(events_for_all(3), send))
        assert now() == 1.0
        assert others() == []

    virtual.run(main())


def test_a_send_that_another_cancels_is_unknown_and_the_run_goes_on() -> None:
    async def main() -> None:
        async def send(event: Event, body: bytes, lane: BulkRun) -> Receipt:
            if event.user_id != "u0":
                lane.sent(event.idempotency_key)
            if event.user_id in ("u0", "u1"):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            await asyncio.sleep(1)
            return Receipt(event.idempotency_key, 1, False, 1.0, None)

        report = SendReport(await collect(make(events_for_all(3), send)))
        assert [o.event.user_id for o in report.not_tried] == ["u0"]
        assert [o.event.user_id for o in report.unknown] == ["u1"]
        assert [o.event.user_id for o in report.accepted] == ["u2"]
        assert others() == []

    virtual.run(main())


def test_two_crashes_at_once_are_told_as_the_first() -> None:
    async def main() -> None:
        async def send(event: Event, body: bytes, lane: BulkRun) -> Receipt:
            lane.sent(event.idempotency_key)
            await asyncio.sleep(1)
            raise ZeroDivisionError(event.user_id)

        with pytest.raises(ZeroDivisionError, match="u0"):
            await collect(make(events_for_all(3), send))

    virtual.run(main())


def test_the_outcomes_of_all_kinds_add_up_to_what_was_pulled() -> None:
    async def main() -> None:
        ends = ["accepted", "duplicate", "refused", "unknown"]
        sends = Sends(lambda event: Plan(end=ends[int(str(event.user_id)[1:]) % 4]))
        report = SendReport(await collect(make(events_for_all(40), sends)))
        parts = Counter(
            part
            for part in ("accepted", "duplicates", "failures", "unknown", "not_tried")
            for _ in getattr(report, part)
        )
        assert parts == dict.fromkeys(
            ("accepted", "duplicates", "failures", "unknown"), 10
        )

    virtual.run(main())
