"""A `send` for bulk runs that takes virtual seconds and ends as planned."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import attrs

from loops_async import (
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    Event,
    LoopsError,
    NotFoundError,
    NotTriedError,
    Outcome,
    Receipt,
    ServerError,
    UnexpectedResponseError,
)
from loops_async._sending.bulk import Bulk
from loops_async._sending.bulk_run import BulkRun

from .support import now


def others() -> list[str]:
    """Return all tasks except this one."""
    here = asyncio.current_task()
    return [repr(task) for task in asyncio.all_tasks() if task is not here]


def event_for(contact: object, number: int = 0) -> Event:
    return Event("e", user_id=f"u{contact}", event_properties={"number": number})


def events_for_all(count: int) -> list[Event]:
    """Return events of different contacts."""
    return [event_for(number) for number in range(count)]


# The ends of a send.

STOPPING: dict[str, Callable[[], LoopsError]] = {
    "401": lambda: AuthenticationError("bad key", status=401),
    "404": lambda: NotFoundError("no such path", status=404),
    "405": lambda: UnexpectedResponseError("wrong address", status=405),
    "closed": lambda: ClientClosedError("the client is closed"),
    "key": lambda: ConfigurationError("api_key: the callable raised"),
}
AT_ONCE = ("closed", "key")  # before any request
ENDS: dict[str, Callable[[], LoopsError]] = {
    "refused": lambda: BadRequestError("no", status=400),
    "unknown": lambda: ServerError("down", status=500, maybe_accepted=True),
    **STOPPING,
}


@attrs.frozen
class Plan:
    """The course of the send of one event.

    Attributes:
        before: The seconds of its wait for a permit.
        takes: The seconds of its request.
        end: "accepted", "duplicate", or a name of `ENDS`.
    """

    before: float = 0.0
    takes: float = 1.0
    end: str = "accepted"


@attrs.define(eq=False)
class Sends:
    """A `send` that records its requests.

    Attributes:
        plan: Returns the plan of an event.
        connections: The connections; None for any number.
        began: The time at which the request of each key began, in that order.
        ended: The time at which it ended.
    """

    plan: Callable[[Event], Plan] = attrs.field(default=lambda _: Plan())
    connections: asyncio.Semaphore | None = None
    began: dict[str, float] = attrs.field(factory=dict)
    ended: dict[str, float] = attrs.field(factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0
    callers: int = 0
    most_callers: int = 0
    sent_after_stop: int = 0
    stops: int = 0  # refusals that stop a run

    def has_room(self) -> bool:
        return self.connections is None or not self.connections.locked()

    async def __call__(self, event: Event, body: bytes, run: BulkRun) -> Receipt:
        self.callers += 1
        self.most_callers = max(self.most_callers, self.callers)
        try:
            return await self._send(event, run)
        finally:
            self.callers -= 1

    async def _send(self, event: Event, run: BulkRun) -> Receipt:
        plan = self.plan(event)
        await self._admitted(plan, run)
        try:
            if plan.end in AT_ONCE:
                self.stops += 1
                raise ENDS[plan.end]()
            run.on_sent(event.idempotency_key)
            return await self._exchange(event, plan, run)
        finally:
            if self.connections is not None:
                self.connections.release()

    async def _admitted(self, plan: Plan, run: BulkRun) -> None:
        try:
            async with asyncio.timeout_at(None) as scope:
                run.waiting.add(scope)
                if plan.before:
                    await asyncio.sleep(plan.before)
                if self.connections is not None:
                    await self.connections.acquire()
        except TimeoutError:
            raise NotTriedError("not tried", retryable=True) from None
        finally:
            run.waiting.discard(scope)
        if run.stopped_by is not None:  # at this very moment
            if self.connections is not None:
                self.connections.release()
            raise NotTriedError("not tried", retryable=True)

    async def _exchange(self, event: Event, plan: Plan, run: BulkRun) -> Receipt:
        key = event.idempotency_key
        self.sent_after_stop += run.stopped_by is not None
        self.began[key] = now()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(plan.takes)
        finally:
            self.in_flight -= 1
            self.ended[key] = now()
        if plan.end in ENDS:
            self.stops += plan.end in STOPPING
            error = ENDS[plan.end]()
            error.attempts = 1
            raise error
        return Receipt(key, 1, plan.end == "duplicate", plan.takes, None)


def body_of(event: Event) -> bytes:
    """Return bytes that stand for the encoded event."""
    return repr(attrs.astuple(event)[:-1]).encode()


def make(source: Any, send: Any, **settings: Any) -> Bulk[Event, Outcome]:
    usual = {
        "kind": Event,
        "outcome": Outcome,
        "prepare": body_of,
        "has_room": getattr(send, "has_room", lambda: True),
        "runs": set(),
        "on_outcome": None,
        "patience": None,
        "keys": None,
    }
    return Bulk(source, send=send, **{**usual, **settings})


async def collect(run: Bulk[Event, Outcome]) -> list[Outcome]:
    async with aclosing(run.outcomes()) as stream:
        return [outcome async for outcome in stream]
