"""Admission: what a permit takes, and that each of its ends returns exactly that."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
from support import virtual_time as virtual

from loops_async import Event, LoopsError, RateLimiter, RetryPolicy
from loops_async._http.api_key import Secret
from loops_async._http.protocol import Response
from loops_async._http.request import Request
from loops_async._pacing.concurrency import ConcurrencyLimit
from loops_async._sending.admission import Admission, Permit
from loops_async._sending.delivery import Delivery
from loops_async._sending.tries import Tries

from .support import (
    RETRIED,
    ScriptedTransport,
    bad_request,
    failing,
    lost,
    now,
    timed_out,
    unreachable,
)


@attrs.define(eq=False)
class MinimalLimiter:
    """A limiter that implements the protocol `Limiter`, and records its calls.

    A permit returns at once.

    Attributes:
        limit: The number of permits.
        slowed: Whether the limiter wants to know the remaining requests.
        wait: The result of `shortest_wait`.
        calls: The calls, except `shortest_wait`.
    """

    limit: int = 1
    slowed: bool = False
    wait: float = 0.0
    calls: list[Any] = attrs.field(factory=list)
    permits: ConcurrencyLimit = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.permits = ConcurrencyLimit(self.limit)

    def try_acquire(self, *, bulk: bool) -> bool:
        if not self.permits.free:
            return False
        self.permits.free -= 1
        self.calls.append("bulk" if bulk else "single")
        return True

    async def acquire(self, *, bulk: bool) -> None:
        await self.permits.acquire()
        self.calls.append("bulk" if bulk else "single")

    def shortest_wait(self) -> float:
        return self.wait

    def release(self, *, answered: bool, round_trip: float | None = None) -> None:
        self.calls.append(("answered", round_trip) if answered else "unanswered")
        self.permits.release()

    def release_unused(self) -> None:
        self.calls.append("unused")
        self.permits.release()

    def note_rate_limited(self, retry_after: float = 0.0) -> None:
        self.calls.append(("rate limited", retry_after))

    def note_remaining(self, remaining: int | None) -> None:
        self.calls.append(("remaining", remaining))


def response(status: int = 200, **headers: str) -> Response:
    return Response(status, headers, b"{}", round_trip=0.25)


@attrs.define(eq=False)
class Parts:
    """An admission with two permits of its limiter and one connection.

    Attributes:
        limited: Whether there is a limiter.
    """

    limited: bool = True
    limiter: MinimalLimiter = attrs.field(init=False)
    admission: Admission = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.limiter = MinimalLimiter(limit=2)
        self.admission = Admission(self.limiter if self.limited else None, 1)

    @property
    def connections(self) -> ConcurrencyLimit:
        assert self.admission.connections is not None
        return self.admission.connections

    @property
    def free(self) -> tuple[int, int]:
        """The free permits of the limiter, and the free connections."""
        return self.limiter.permits.free, self.connections.free

    def open_breaker(self) -> None:
        for _ in range(5):
            self.admission.breaker.record_failure(probe=0)
        assert self.admission.breaker.state == "open"

    async def probe(self) -> Permit:
        """Open the breaker, and return the permit of a probe."""
        self.open_breaker()
        permit = await self.admission.enter(bulk=False)
        assert permit is not None
        assert self.admission.breaker.state == "half-open"
        return permit


async def entered(parts: Parts, *, wait: bool) -> Permit:
    admission = parts.admission
    permit = (
        await admission.enter(bulk=False) if wait else admission.try_enter(bulk=False)
    )
    assert permit is not None
    return permit


# The ends of a permit.

End = Callable[[Permit], None]

ENDS: dict[str, tuple[End, list[Any]]] = {
    "unused": (lambda permit: permit.unused(), ["unused"]),
    "200": (lambda permit: permit.answered(response()), [("answered", 0.25)]),
    "500": (lambda permit: permit.answered(response(500)), [("answered", 0.25)]),
    "429": (
        lambda permit: permit.answered(response(429)),
        [("answered", 0.25), ("rate limited", 0.0)],
    ),
    "cancelled": (lambda permit: permit.unanswered(), ["unanswered"]),
    "lost": (lambda permit: permit.unanswered(lost()), ["unanswered"]),
    "unreachable": (lambda permit: permit.unanswered(unreachable()), ["unused"]),
    "cut": (
        lambda permit: permit.unanswered(timed_out(), cut_by_deadline=True),
        ["unanswered"],
    ),
}


@pytest.mark.parametrize("wait", [False, True], ids=["try_enter", "enter"])
@pytest.mark.parametrize("name", sorted(ENDS))
def test_each_end_of_a_permit_returns_the_limiter_permit_and_the_connection(
    name: str, wait: bool
) -> None:
    async def main() -> None:
        end, calls = ENDS[name]
        parts = Parts()
        permit = await entered(parts, wait=wait)
        assert parts.free == (1, 0)
        end(permit)
        assert parts.free == (2, 1)
        assert parts.limiter.calls == ["single", *calls]

    virtual.run(main())


@pytest.mark.parametrize("name", sorted(ENDS))
def test_each_end_of_a_permit_without_a_limiter_returns_the_connection(
    name: str,
) -> None:
    async def main() -> None:
        end, _ = ENDS[name]
        parts = Parts(limited=False)
        end(await entered(parts, wait=True))
        assert parts.connections.free == 1

    virtual.run(main())


@pytest.mark.parametrize("name", sorted(ENDS))
def test_each_end_of_a_permit_without_a_connection_limit_returns_the_rest(
    name: str,
) -> None:
    async def main() -> None:
        end, calls = ENDS[name]
        limiter = MinimalLimiter(limit=5)
        admission = Admission(limiter, 5)
        assert admission.connections is None
        permit = await admission.enter(bulk=True)
        assert permit is not None
        end(permit)
        assert limiter.permits.free == 5
        assert limiter.calls == ["bulk", *calls]

    virtual.run(main())


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("unused", "open"),
        ("200", "closed"),
        ("429", "closed"),
        ("500", "open"),
        ("cancelled", "open"),
        ("lost", "open"),
        ("unreachable", "open"),
        ("cut", "open"),
    ],
)
def test_each_end_of_a_probe_ends_the_probe(name: str, state: str) -> None:
    """Another request can then become the probe, or pass."""

    async def main() -> None:
        end, _ = ENDS[name]
        parts = Parts()
        end(await parts.probe())
        assert parts.admission.breaker.state == state
        following = await entered(parts, wait=True)
        following.unused()
        assert parts.free == (2, 1)

    virtual.run(main())


@pytest.mark.parametrize(
    ("name", "pause"),
    [
        ("unused", 0.0),
        ("cancelled", 0.0),
        ("500", 1.0),
        ("lost", 1.0),
        ("unreachable", 1.0),
        ("cut", 1.0),
    ],
)
def test_only_a_probe_that_failed_doubles_the_pause_of_the_breaker(
    name: str, pause: float
) -> None:
    """This includes a probe whose timeout the deadline shortened."""

    async def main() -> None:
        end, _ = ENDS[name]
        parts = Parts()
        end(await parts.probe())
        assert parts.admission.shortest_wait() == pytest.approx(pause)

    virtual.run(main())


@pytest.mark.parametrize(
    ("end", "opens"),
    [
        *((lambda p, make=make: p.unanswered(make()), True) for make in RETRIED[2:]),
        (lambda permit: permit.answered(response(500)), True),
        (lambda permit: permit.answered(response(503)), True),
        (lambda permit: permit.answered(response(400)), False),
        (lambda permit: permit.answered(response(429)), False),
        (lambda permit: permit.unanswered(bad_request()), False),
        (lambda permit: permit.unanswered(), False),
        (lambda permit: permit.unused(), False),
        (
            lambda permit: permit.unanswered(timed_out(), cut_by_deadline=True),
            False,
        ),
        (lambda permit: permit.unanswered(lost(), cut_by_deadline=True), True),
    ],
)
def test_five_ends_in_a_row_that_show_an_outage_open_the_breaker(
    end: End, opens: bool
) -> None:
    """A timeout that the deadline shortened does not show an outage."""

    async def main() -> None:
        parts = Parts()
        for _ in range(5):
            assert not parts.admission.outage
            end(await entered(parts, wait=False))
        assert parts.admission.outage is opens

    virtual.run(main())


@pytest.mark.parametrize(
    ("headers", "held"),
    [({}, 0.0), ({"retry-after": "7"}, 7.0), ({"retry-after": "61"}, 0.0)],
)
def test_the_limiter_is_held_for_the_retry_after_of_a_429(
    headers: dict[str, str], held: float
) -> None:
    """A Retry-After of more than a minute holds no other request."""

    async def main() -> None:
        parts = Parts()
        (await entered(parts, wait=False)).answered(response(429, **headers))
        assert parts.limiter.calls[-1] == ("rate limited", held)

    virtual.run(main())


@pytest.mark.parametrize("reported", [None, 4])
def test_a_slowed_limiter_gets_the_remaining_requests_of_each_response(
    reported: int | None,
) -> None:
    async def main() -> None:
        parts = Parts()
        parts.limiter.slowed = True
        headers = {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": str(reported)}
        result = response() if reported is None else response(**headers)
        (await entered(parts, wait=False)).answered(result)
        assert parts.limiter.calls == [
            "single",
            ("answered", 0.25),
            ("remaining", reported),
        ]

    virtual.run(main())


# Entering.


def test_try_enter_takes_nothing_if_any_part_has_to_be_waited_for() -> None:
    async def main() -> None:
        parts = Parts()
        first = await entered(parts, wait=False)
        assert parts.admission.try_enter(bulk=False) is None  # no connection
        assert parts.free == (1, 0)
        first.unused()
        parts.limiter.permits.free = 0
        assert parts.admission.try_enter(bulk=False) is None
        assert parts.free == (0, 1)
        parts.limiter.permits.free = 2
        parts.open_breaker()
        assert parts.admission.try_enter(bulk=False) is None
        assert parts.free == (2, 1)

    virtual.run(main())


def test_a_closed_admission_gives_no_permit_without_a_wait() -> None:
    async def main() -> None:
        parts = Parts()
        parts.admission.close()
        assert parts.admission.closed
        assert parts.admission.try_enter(bulk=False) is None
        assert parts.free == (2, 1)

    virtual.run(main())


@pytest.mark.parametrize("bulk", [False, True])
def test_the_limiter_learns_whether_a_request_belongs_to_a_run(bulk: bool) -> None:
    async def main() -> None:
        parts = Parts()
        permit = parts.admission.try_enter(bulk=bulk)
        assert permit is not None
        permit.unused()
        assert await parts.admission.enter(bulk=bulk) is not None
        kind = "bulk" if bulk else "single"
        assert parts.limiter.calls == [kind, "unused", kind]

    virtual.run(main())


@pytest.mark.parametrize("limited", [False, True], ids=["unlimited", "limited"])
def test_enter_returns_none_if_the_breaker_opens_while_it_waits(limited: bool) -> None:
    """The caller enters again, and everything that enter took is back."""

    async def main() -> None:
        parts = Parts(limited=limited)
        first = await entered(parts, wait=False)
        waiting = asyncio.create_task(parts.admission.enter(bulk=False))
        await asyncio.sleep(1)
        parts.open_breaker()
        first.unused()
        assert await waiting is None
        assert parts.free == (2, 1)
        assert parts.admission.breaker.state == "open"

    virtual.run(main())


def test_a_probe_enters_although_the_breaker_is_open() -> None:
    async def main() -> None:
        parts = Parts()
        permit = await parts.probe()
        assert now() == pytest.approx(0.5)
        assert parts.free == (1, 0)
        permit.unused()

    virtual.run(main())


def test_cancelling_a_wait_for_the_breaker_gives_everything_back() -> None:
    async def main() -> None:
        parts = Parts()
        parts.open_breaker()
        await cancelled(asyncio.create_task(parts.admission.enter(bulk=False)))
        assert parts.free == (2, 1)
        assert parts.limiter.calls == []
        (await entered(parts, wait=True)).unused()  # it becomes the probe

    virtual.run(main())


@pytest.mark.parametrize("probe", [False, True], ids=["closed", "probe"])
def test_cancelling_a_wait_for_the_limiter_gives_everything_back(probe: bool) -> None:
    """If the request was to be the probe, another request becomes the probe."""

    async def main() -> None:
        parts = Parts()
        parts.limiter.permits.free = 0
        if probe:
            parts.open_breaker()
        waiting = asyncio.create_task(parts.admission.enter(bulk=False))
        await asyncio.sleep(1)
        assert parts.admission.breaker.state == ("half-open" if probe else "closed")
        await cancelled(waiting)
        assert parts.free == (0, 1)
        assert parts.limiter.calls == []
        parts.limiter.permits.free = 2
        (await entered(parts, wait=True)).unused()

    virtual.run(main())


@pytest.mark.parametrize("limited", [False, True], ids=["unlimited", "limited"])
@pytest.mark.parametrize("probe", [False, True], ids=["closed", "probe"])
def test_cancelling_a_wait_for_a_connection_gives_everything_back(
    probe: bool, limited: bool
) -> None:
    async def main() -> None:
        parts = Parts(limited=limited)
        first = await entered(parts, wait=False)
        if probe:
            parts.open_breaker()
        waiting = asyncio.create_task(parts.admission.enter(bulk=False))
        await asyncio.sleep(1)
        assert parts.free == (0 if limited else 2, 0)
        await cancelled(waiting)
        assert parts.free == (1 if limited else 2, 0)
        first.unused()
        assert parts.free == (2, 1)
        (await entered(parts, wait=True)).unused()

    virtual.run(main())


async def cancelled(waiting: "asyncio.Task[Any]") -> None:
    """Cancel a task that waits, and check that it was still waiting."""
    await asyncio.sleep(0.1)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()


# Waits, and their end.


@pytest.mark.parametrize("part", ["breaker", "limiter", "connection"])
def test_closing_ends_a_wait_for_each_part(part: str) -> None:
    async def main() -> None:
        parts = Parts()
        if part == "breaker":
            parts.open_breaker()
        elif part == "limiter":
            parts.limiter.permits.free = 0
        else:
            parts.connections.free = 0
        before = parts.free
        others: set[asyncio.Timeout] = set()

        async def wait() -> None:
            with pytest.raises(TimeoutError):
                async with parts.admission.waits(None, others):
                    await parts.admission.enter(bulk=False)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.1)
        assert len(parts.admission.waiting) == len(others) == 1
        parts.admission.close()
        await waiting
        assert now() == pytest.approx(0.1)
        assert parts.admission.waiting == others == set()
        assert parts.free == before

    virtual.run(main())


def test_a_wait_ends_at_its_deadline() -> None:
    async def main() -> None:
        parts = Parts()

        async def wait() -> None:
            async with parts.admission.waits(3.0):
                await asyncio.sleep(10)

        with pytest.raises(TimeoutError):
            await wait()
        assert now() == 3.0
        assert not parts.admission.waiting

    virtual.run(main())


def test_closing_ignores_a_wait_whose_deadline_has_just_passed() -> None:
    async def main() -> None:
        parts = Parts()

        async def wait() -> None:
            async with parts.admission.waits(3.0):
                try:
                    await asyncio.sleep(10)
                finally:
                    parts.admission.close()

        with pytest.raises(TimeoutError):
            await wait()
        assert now() == 3.0
        assert parts.admission.closed

    virtual.run(main())


# What an admission reports.


def test_the_shortest_wait_is_that_of_the_slowest_part() -> None:
    async def main() -> None:
        parts = Parts()
        assert parts.admission.shortest_wait() == 0.0
        parts.limiter.wait = 0.2
        assert parts.admission.shortest_wait() == 0.2
        parts.open_breaker()
        assert parts.admission.shortest_wait() == pytest.approx(0.5)
        parts.limiter.wait = 9.0
        assert parts.admission.shortest_wait() == 9.0

    virtual.run(main())


def test_the_shortest_wait_without_a_limiter_is_that_of_the_breaker() -> None:
    async def main() -> None:
        parts = Parts(limited=False)
        assert parts.admission.shortest_wait() == 0.0
        parts.open_breaker()
        assert parts.admission.shortest_wait() == pytest.approx(0.5)

    virtual.run(main())


def test_an_admission_has_room_while_a_connection_is_free() -> None:
    async def main() -> None:
        parts = Parts()
        assert parts.admission.has_room()
        permit = await entered(parts, wait=False)
        assert not parts.admission.has_room()
        permit.unused()
        assert parts.admission.has_room()
        assert Admission(MinimalLimiter(limit=1), 1).has_room()

    virtual.run(main())


# Another limiter than `RateLimiter`.


def delivery_of(transport: ScriptedTransport, limiter: MinimalLimiter) -> Delivery:
    return Delivery(transport, api_key=Secret("key"), limiter=limiter, on_attempt=None)


def tries_of(event: Event) -> Tries:
    key = event.idempotency_key
    request = Request("POST", "https://loops.invalid", b"{}", key, event, 30.0, None)
    return Tries(request, RetryPolicy(base=0.1), now(), None)


def test_a_delivery_takes_and_returns_the_permits_of_any_limiter() -> None:
    """The limiter allows two requests in flight, and learns how each ended."""

    async def main() -> None:
        results: list[int | LoopsError] = [lost(), unreachable(), 503, 429]
        script = iter(results)
        transport = ScriptedTransport(lambda at, event: next(script, 200))
        limiter = MinimalLimiter(limit=2)
        delivery = delivery_of(transport, limiter)
        assert delivery.admission.connections is None
        receipts = await asyncio.gather(
            *[delivery.deliver(tries_of(Event("e", user_id=f"u{n}"))) for n in range(9)]
        )
        assert len(receipts) == 9
        assert sum(receipt.attempts for receipt in receipts) == 13
        assert limiter.permits.free == 2
        ends = [call for call in limiter.calls if call != "single"]
        assert ends.count("unanswered") == ends.count("unused") == 1
        assert ends.count(("rate limited", 0.0)) == 1
        assert len(ends) == 13 + 1
        assert max_in_flight(transport) <= 2

    virtual.run(main())


def max_in_flight(transport: ScriptedTransport) -> int:
    times = [one.at for one in transport.requests]
    return max(sum(at <= other < at + 0.09 for other in times) for at in times)


def test_the_rate_limiter_is_a_limiter() -> None:
    async def main() -> None:
        limiter = RateLimiter(2, clock=now)
        admission = Admission(limiter, 100)
        for _ in range(2):
            permit = admission.try_enter(bulk=False)
            assert permit is not None
            permit.unanswered(failing())
        assert admission.try_enter(bulk=False) is None
        permit = await admission.enter(bulk=False)
        assert permit is not None
        assert now() == pytest.approx(1.0, abs=0.01)
        permit.unused()

    virtual.run(main())
