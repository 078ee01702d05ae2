"""Random runs of many events, against a model, in virtual time.

The model checks the order of the requests and the outcome of each event.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import virtual_time as virtual

from loops_async import Event, NotTriedError, Outcome, SendReport
from loops_async._sending.bulk import Bulk

from .planned_sends import AT_ONCE, ENDS, STOPPING, Plan, Sends, make, others
from .support import now

# The model.


@attrs.define
class Scenario:
    """One run, its source and its consumer.

    Attributes:
        contacts: The email and user ID of each event.
        plans: The plan of each event.
        connections: The limit of requests in flight, or None.
        source: "list", "generator" or "async".
        pauses: The seconds that an async source takes for each event.
        breaks: The number of events after which the source raises, or None.
        pace: The seconds that the consumer takes for each outcome.
        leaves: The number of outcomes after which the consumer leaves, or None.
        cancelled: The time at which the consumer is cancelled, or None.
        look_ahead: The limit of events that are pulled and not taken.
        stock: The number of ready events to pull in advance.
    """

    contacts: list[tuple[str | None, str | None]]
    plans: list[Plan]
    connections: int | None
    source: str
    pauses: list[float]
    breaks: int | None
    pace: float
    leaves: int | None
    cancelled: float | None
    look_ahead: int
    stock: int


class SourceBroke(Exception):
    """The error of a source of the model."""


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
        connections=draw(st.none() | st.integers(1, 4)),
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
    """A player and checker of one scenario.

    Attributes:
        reported: The outcomes passed to `on_outcome`.
        taken: The outcomes that the consumer took.
        pulled: The number of events that were pulled from the source.
        busy: Whether the consumer is not waiting for an outcome.
    """

    scenario: Scenario
    sends: Sends = attrs.field(init=False)
    run: Bulk[Event, Outcome] = attrs.field(init=False)
    events: list[Event] = attrs.field(factory=list)
    reported: list[Outcome] = attrs.field(factory=list)
    taken: list[Outcome] = attrs.field(factory=list)
    pulled: int = 0
    pulled_after_stop: int = 0
    furthest_ahead: int = 0
    busy: bool = False

    def play(self) -> None:
        virtual.run(self._main())

    async def _main(self) -> None:
        plans = {}
        for plan, (email, user_id) in zip(
            self.scenario.plans, self.scenario.contacts, strict=True
        ):
            event = Event("e", email=email, user_id=user_id)
            self.events.append(event)
            plans[event.idempotency_key] = plan
        connections = self.scenario.connections
        self.sends = Sends(
            lambda event: plans[event.idempotency_key],
            None if connections is None else asyncio.Semaphore(connections),
        )
        self.run = make(
            self._source(),
            self.sends,
            on_outcome=self.reported.append,
            stock=self.scenario.stock,
            look_ahead=self.scenario.look_ahead,
        )
        consumer = asyncio.create_task(self._consume())
        if self.scenario.cancelled is not None:
            # The consumer must have begun.
            asyncio.get_running_loop().call_at(
                self.scenario.cancelled + 0.01, consumer.cancel
            )
        (found,) = await asyncio.gather(consumer, return_exceptions=True)
        self._check(found, now())
        assert others() == []
        await asyncio.sleep(1000)  # nothing follows
        assert others() == []
        assert not self.sends.in_flight

    def _source(self) -> Any:
        if self.scenario.source == "async":
            return self._async_source()
        items = self._items()
        return items if self.scenario.source == "generator" else _Iterable(items)

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
        if self.scenario.connections is not None:
            assert self.sends.most_in_flight <= self.scenario.connections
        indexes = [outcome.index for outcome in self.reported]
        assert len(set(indexes)) == len(indexes)
        taken = {outcome.index: outcome for outcome in self.taken}
        assert len(taken) == len(self.taken)
        assert all(
            outcome is taken.get(outcome.index, outcome) for outcome in self.reported
        )
        for outcome in self.reported:
            self._check_outcome(outcome)
        cancelled = isinstance(found, asyncio.CancelledError)
        if cancelled and not self.busy:
            assert self.scenario.cancelled is not None
            assert at <= self.scenario.cancelled + 0.02
        # Exactly the events that were pulled have an outcome.
        assert sorted(indexes) == list(range(self.pulled))
        assert {outcome.index for outcome in self.reported} >= set(taken)
        self._check_counts()
        if cancelled:  # if the consumer was busy, it only left
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
        """Check that each request follows the earlier ones of its contact."""
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

    def _check_counts(self) -> None:
        report = SendReport(self.reported)
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
class _Iterable:
    """An iterable that is not an iterator."""

    items: Iterator[Event]

    def __iter__(self) -> Iterator[Event]:
        return self.items


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_each_event_that_is_pulled_has_one_outcome_and_keeps_its_order(
    scenario: Scenario,
) -> None:
    """`Model._check` lists all claims."""
    Model(scenario).play()


@pytest.mark.soak
@settings(max_examples=4000, deadline=None)
@given(scenarios())
def test_the_claims_of_the_model_hold_for_4000_scenarios(scenario: Scenario) -> None:
    Model(scenario).play()
