"""Many events while Loops is down, or asks to wait: in virtual time.

All is real but the transport: client, run, limiter, gate and retries. The
Loops behind it answers what it is told for the moment at which it is asked.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import attrs
import pytest
from support import virtual_time as virtual
from support.answering import until

from loops_async import (
    AsyncLoopsClient,
    Attempt,
    ConnectFailedError,
    ConnectionLostError,
    DeadlineExceededError,
    Event,
    LoopsError,
    NotTriedError,
    Outcome,
    RateLimiter,
    RateLimitError,
    RequestTimeoutError,
    RetryPolicy,
    SendReport,
    ServerError,
)
from loops_async._http.api_key import Secret
from loops_async._http.protocol import Request, Response
from loops_async._sending.delivery import Delivery
from loops_async.sandbox import Sandbox

Said = int | tuple[int, float] | LoopsError
"""A status, one with a Retry-After, or what there was instead of an answer."""


@attrs.frozen
class Asked:
    """One request.

    Attributes:
        at: When it went out.
        user_id: Whose event it carried.
        said: What it was answered.
    """

    at: float
    user_id: str | None
    said: Said

    @property
    def ok(self) -> bool:
        return self.said == 200


@attrs.define(eq=False)
class Loops:
    """A transport to a Loops that exists in virtual time only.

    Attributes:
        says: Gives the answer to the request of that event, sent at that time.
        takes: Seconds of each request, or of that of the event.
        asked: All requests.
    """

    says: Callable[[float, Event], Said]
    takes: float | Callable[[Event], float] = 0.1
    max_connections: int = 100
    loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop)
    asked: list[Asked] = attrs.field(factory=list)
    usable: bool = True
    in_flight: int = 0

    async def exchange(
        self, call: Request, secret: Secret, limit: float | None
    ) -> Response | LoopsError:
        assert isinstance(call.content, Event)
        said = self.says(self.loop.time(), call.content)
        self.asked.append(Asked(self.loop.time(), call.content.user_id, said))
        takes = self.takes(call.content) if callable(self.takes) else self.takes
        self.in_flight += 1
        try:
            if limit is not None and limit < takes:
                await asyncio.sleep(limit)
                return timed_out()
            await asyncio.sleep(takes)
        finally:
            self.in_flight -= 1
        if isinstance(said, LoopsError):
            return said
        status, *after = said if isinstance(said, tuple) else (said,)
        headers = {"retry-after": str(after[0])} if after else {}
        body = b'{"success":true}' if status == 200 else b'{"message":"no"}'
        return Response(status, headers, body, False, None)

    async def close(self, grace: float) -> None:
        self.usable = False

    @property
    def failed(self) -> list[Asked]:
        return [one for one in self.asked if not one.ok]

    def rate(self, begin: float, end: float) -> float:
        """Return how many events a second it took in that time."""
        taken = sum(one.ok and begin <= one.at < end for one in self.asked)
        return taken / (end - begin)


def timed_out() -> LoopsError:
    return RequestTimeoutError("no answer", retryable=True, maybe_accepted=True)


def refused() -> LoopsError:
    return ConnectFailedError("refused", retryable=True)


def lost() -> LoopsError:
    return ConnectionLostError("reset", retryable=True, maybe_accepted=True)


@asynccontextmanager
async def client_of(loops: Loops, **settings: Any) -> AsyncIterator[AsyncLoopsClient]:
    """A client of it, by default at 10 a second."""
    limiter = RateLimiter(10, clock=loops.loop.time, chance=lambda: 0.5)
    usual: dict[str, Any] = {
        "base_url": "https://loops.invalid/api",
        "rate_limit": limiter,
        "retry": RetryPolicy(attempts=3, base=0.1),
    }
    client = AsyncLoopsClient("key", **{**usual, **settings})
    loops.max_connections = settings.get("max_connections", 100)
    client._latest = client._deliveries[loops.loop] = Delivery(
        loops,  # type: ignore[arg-type]  # looks like a transport
        api_key=client._api_key,
        limiter=client._limiter,
        policy=client._retry,
        on_attempt=client._on_attempt,
    )
    async with client:
        yield client


def events_for(count: int, contacts: int | None = None) -> list[Event]:
    return [Event("e", user_id=f"u{n % (contacts or count)}") for n in range(count)]


def emails_for(count: int, contacts: int) -> list[Event]:
    return [Event("e", email=f"u{n % contacts}@b.co") for n in range(count)]


@attrs.define
class Told:
    """When each outcome came in."""

    outcomes: list[tuple[float, Outcome]] = attrs.field(factory=list)

    def __call__(self, outcome: Outcome) -> None:
        now = asyncio.get_running_loop().time()
        self.outcomes.append((now, outcome))


def send_all(
    says: Callable[[float, Event], Said],
    events: list[Event],
    *,
    takes: float | Callable[[Event], float] = 0.1,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[SendReport, Loops, float]:
    """Send them, in virtual time.

    Returns:
        The report, the Loops that was asked, and the seconds it took.
    """

    async def main() -> tuple[SendReport, Loops, float]:
        loops = Loops(says, takes)
        async with client_of(loops, **(settings or {})) as client:
            report = await client.send_events(events, **options)
            assert loops.in_flight == 0
            assert len(asyncio.all_tasks()) == 1
            return report, loops, loops.loop.time()

    return virtual.run(main())


def down(begin: float, end: float, failing: Callable[[], Said]) -> Any:
    """Say that all fails between two moments, and nothing before and after."""
    return lambda now, _: failing() if begin <= now < end else 200


def balances(report: SendReport, **parts: int) -> bool:
    names = ("accepted", "duplicates", "failures", "unknown", "not_tried")
    found = {name: len(getattr(report, name)) for name in names}
    return found == {**dict.fromkeys(names, 0), **parts}


NO_LIMIT = {"rate_limit": math.inf}
HELD = {"rate_limit": math.inf, "max_connections": 1}


# Outages.


@pytest.mark.parametrize("failing", [lambda: 503, timed_out, refused, lost])
def test_a_run_outlives_an_outage_and_goes_on_by_itself(
    failing: Callable[[], Said],
) -> None:
    """Ten minutes with three attempts each: nobody's attempts are spent on it."""
    report, loops, took = send_all(down(2.0, 602.0, failing), events_for(200))
    # Those under way as the gate closed may have been the fourth failure.
    assert len(report.accepted) == 200
    assert report.stopped_by is None
    assert took < 602 + 5 + 20 + 5
    # Five that closed the gate, those under way then, and a probe every 5 s.
    assert len(loops.failed) <= 10 + 10 + 602 / 5
    assert loops.rate(610, 615) == pytest.approx(10, rel=0.15)


def test_a_probe_costs_its_event_no_attempt() -> None:
    """One event alone, one attempt allowed but for what is an outage."""
    attempts: list[Attempt] = []
    report, loops, _ = send_all(
        down(0.0, 100.0, lambda: 503),
        events_for(1),
        settings={
            "retry": RetryPolicy(attempts=5, base=0.1),
            "on_attempt": attempts.append,
        },
    )
    assert balances(report, accepted=1)
    receipt = report[0].receipt
    assert receipt is not None
    assert receipt.attempts == len(loops.asked) == len(attempts) > 20
    assert {one.retry_in for one in attempts[4:-1]} == {0.0}


def test_an_event_out_of_attempts_before_it_is_an_outage_ends() -> None:
    """Until the gate closes each failure is the event's own."""
    report, _, _ = send_all(
        down(0.0, 100.0, lambda: 503),
        events_for(1),
        settings={"retry": RetryPolicy(attempts=4, base=0.1)},
    )
    assert balances(report, unknown=1)
    assert type(report[0].error) is ServerError
    assert report[0].error.attempts == 4


def test_an_outage_costs_none_of_the_deadline() -> None:
    report, _, took = send_all(
        down(1.0, 301.0, lambda: 503), events_for(60), deadline=5.0
    )
    assert balances(report, accepted=60)
    assert took > 301


def test_the_rate_limiter_costs_none_of_the_deadline() -> None:
    report, _, took = send_all(lambda *_: 200, events_for(200), deadline=2.0)
    assert balances(report, accepted=200)
    assert took > 15


def test_attempts_and_their_pauses_cost_the_deadline() -> None:
    """An event that fails for itself alone is given up, the others are not."""
    events = [*events_for(3, 1), *(Event("e", user_id=f"v{n}") for n in range(400))]
    report, loops, _ = send_all(
        lambda _, event: 500 if event.user_id == "u0" else 200,
        events,
        takes=0.5,
        settings={"retry": RetryPolicy(attempts=1000, base=0.5, cap=0.5)},
        deadline=4.0,
    )
    assert balances(report, accepted=400, unknown=3)
    for outcome in report.unknown:
        assert isinstance(outcome.error, DeadlineExceededError)
        assert "the deadline of 4 s" in str(outcome.error)
        # 0.5 s each, and pauses from 0 to 0.5 s; more in line for permits
        assert 4 <= outcome.error.attempts <= 9
    # Each had its 4 s from its own first attempt on.
    tries = [one.at for one in loops.asked if one.user_id == "u0"]
    assert tries[-1] - tries[0] > 9.0


def test_a_request_is_cut_short_by_what_is_left_of_the_deadline() -> None:
    report, _, took = send_all(lambda *_: 200, events_for(3), takes=50.0, deadline=2.0)
    assert balances(report, unknown=3)
    assert {type(o.error) for o in report} == {DeadlineExceededError}
    assert took == pytest.approx(2.0, abs=0.5)


def test_without_a_deadline_only_the_attempts_count() -> None:
    report, _, _ = send_all(
        lambda *_: 500,
        events_for(1),
        takes=100.0,
        settings={"timeout": None, "retry": RetryPolicy(attempts=4, base=20)},
        deadline=None,
    )
    assert balances(report, unknown=1)
    assert type(report[0].error) is ServerError


def test_an_event_that_pauses_takes_no_connection_from_the_others() -> None:
    """With one connection, what is between two attempts does not hold it."""
    accepted = []

    def says(now: float, event: Event) -> Said:
        if event.user_id == "u0" and now < 40:
            return 500
        accepted.append(event.user_id)
        return 200

    report, loops, _ = send_all(
        says,
        events_for(4),
        settings={**HELD, "retry": RetryPolicy(attempts=1000, base=30, cap=30)},
        deadline=None,
    )
    assert balances(report, accepted=4)
    assert accepted == ["u1", "u2", "u3", "u0"]
    assert max(one.at for one in loops.asked if one.user_id != "u0") < 2


# 429s.


@pytest.mark.parametrize("settings", [{}, NO_LIMIT], ids=["limiter", "none"])
def test_a_429_costs_its_event_neither_attempts_nor_deadline(
    settings: dict[str, Any],
) -> None:
    report, _, took = send_all(
        down(0.0, 60.0, lambda: 429), events_for(20), settings=settings, deadline=5.0
    )
    assert balances(report, accepted=20)
    assert took > 60
    assert max(o.receipt.attempts for o in report if o.receipt) > 3


@pytest.mark.parametrize("settings", [{}, NO_LIMIT], ids=["limiter", "none"])
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("asked", [7.0, 59.0, 61.0, 300.0])
def test_what_the_server_asks_to_wait_is_never_undercut(
    settings: dict[str, Any], status: int, asked: float
) -> None:
    """Of the event that was asked, whether or not a limiter watches."""
    report, loops, _ = send_all(
        lambda now, _: (status, asked) if now < 1.0 else 200,
        events_for(1),
        settings=settings,
        deadline=5.0,
    )
    assert balances(report, accepted=1)
    first, second = (one.at for one in loops.asked)
    assert second - first >= asked


def test_what_the_server_asks_for_in_an_outage_is_never_undercut() -> None:
    """The probes have pauses of their own, and no shorter than what it said."""
    report, loops, _ = send_all(
        lambda now, _: (503, 20.0) if now < 300.0 else 200,
        events_for(1),
        settings={"retry": RetryPolicy(attempts=10, base=0.1)},
    )
    assert balances(report, accepted=1)
    times = [one.at for one in loops.asked]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) >= 20.0


@pytest.mark.parametrize("status", [429, 503])
def test_whoever_asks_for_more_than_a_minute_holds_the_whole_run(status: int) -> None:
    """The answer speaks for the server, so nobody is sent before that time."""
    report, loops, _ = send_all(
        lambda now, event: (
            (status, 200.0) if event.user_id == "u3" and now < 5 else 200
        ),
        events_for(100),
    )
    assert balances(report, accepted=100)
    (asked,) = loops.failed
    # Those already under way went out before it was answered.
    assert not [one for one in loops.asked if asked.at + 0.2 < one.at < asked.at + 200]
    assert loops.rate(asked.at + 202, asked.at + 207) > 3  # less at first after a 429


def test_a_single_send_is_not_held_by_what_a_run_was_asked() -> None:
    async def main() -> None:
        says = lambda _, event: (503, 3000.0) if event.user_id == "u0" else 200  # noqa: E731
        loops = Loops(says)
        async with client_of(loops) as client:
            run = asyncio.create_task(client.send_events(events_for(1), patience=99))
            await asyncio.sleep(5)
            receipt = await client.send_event("e", user_id="other")
            assert receipt.attempts == 1
            assert loops.loop.time() < 6
            assert balances(await run, unknown=1)

    virtual.run(main())


# Patience.


def test_an_outage_longer_than_the_patience_stops_the_run() -> None:
    """What nobody knows of is unknown, what was never sent is not tried."""
    pulled = 0

    def source() -> Any:
        nonlocal pulled
        for event in events_for(3000):
            pulled += 1
            yield event

    report, loops, took = send_all(
        down(2.0, math.inf, lambda: 503),
        source(),  # type: ignore[arg-type]
        patience=120.0,
    )
    error = report.stopped_by
    assert type(error) is DeadlineExceededError
    assert "nothing was taken for 120 s" in str(error)
    assert "503" in str(error)
    assert took == pytest.approx(122.5, abs=1)
    accepted = [one for one in loops.asked if one.ok]
    assert len(report) == pulled <= 1000 + len(accepted)
    unknown = {one.user_id for one in loops.failed}
    assert balances(
        report,
        accepted=len(accepted),
        unknown=len(unknown),
        not_tried=pulled - len(accepted) - len(unknown),
    )
    for outcome in report.unknown:
        assert type(outcome.error) is ServerError
        assert outcome.error.retryable
    for outcome in report.not_tried:
        assert type(outcome.error) is NotTriedError


def test_what_certainly_was_not_accepted_is_a_failure_after_the_stop() -> None:
    report, loops, _ = send_all(
        down(0.0, math.inf, refused), events_for(50), patience=60.0
    )
    tried = {one.user_id for one in loops.asked}
    assert balances(report, failures=len(tried), not_tried=50 - len(tried))
    assert {type(o.error) for o in report.failures} == {ConnectFailedError}
    assert not any(o.error.maybe_accepted for o in report.failures if o.error)


def test_nothing_but_429s_for_longer_than_the_patience_stops_the_run() -> None:
    report, _, took = send_all(lambda *_: 429, events_for(30), patience=60.0)
    assert type(report.stopped_by) is DeadlineExceededError
    assert took == pytest.approx(60, abs=1)
    assert report.not_tried
    assert {type(o.error) for o in report.failures} == {RateLimitError}
    assert len(report.failures) + len(report.not_tried) == 30


@pytest.mark.parametrize("status", [429, 503])
def test_who_asks_for_more_than_the_patience_stops_the_run(status: int) -> None:
    """As soon as the patience is over, not when the time has come."""
    report, loops, took = send_all(
        lambda *_: (status, 3600.0), events_for(30), patience=120.0
    )
    assert type(report.stopped_by) is DeadlineExceededError
    assert took == pytest.approx(120, abs=1.5)
    assert len(loops.asked) <= 10
    assert len(report) == 30


@pytest.mark.parametrize("status", [429, 503])
def test_who_asks_for_more_than_the_patience_stops_it_though_others_were_taken(
    status: int,
) -> None:
    """A request that was under way beside it is no progress of what is held."""

    report, _, took = send_all(
        lambda _, event: (status, 3600.0) if event.user_id == "u0" else 200,
        events_for(30),
        takes=lambda event: 0.1 if event.user_id == "u0" else 1.0,
        patience=120.0,
    )
    assert type(report.stopped_by) is DeadlineExceededError
    assert took == pytest.approx(121, abs=2)


def test_each_event_taken_gives_the_patience_back() -> None:
    """Outages of 50 s one after the other do not add up to 60."""
    report, _, took = send_all(
        lambda now, _: 503 if now % 60 < 50 else 200, events_for(300), patience=60.0
    )
    assert balances(report, accepted=300)
    assert took > 120


def test_failures_between_429s_give_no_patience_back() -> None:
    """Who answers 500 takes nothing, though it is no outage yet."""
    count = 0

    def says(now: float, event: Event) -> Said:
        nonlocal count
        count += 1
        if now > 300:
            return 200
        return 500 if count % 2 else 429

    report, _, took = send_all(
        says,
        events_for(5),
        settings={**NO_LIMIT, "retry": RetryPolicy(attempts=10_000, base=1, cap=1)},
        patience=60.0,
        deadline=None,
    )
    assert type(report.stopped_by) is DeadlineExceededError
    assert took == pytest.approx(60, abs=2)


def test_a_refusal_of_one_event_gives_the_patience_back() -> None:
    """Loops is up and judges events: that is no standing still."""
    refusals = 0

    def says(now: float, event: Event) -> Said:
        nonlocal refusals
        if now > 40 and not refusals:
            refusals += 1
            return 400
        return 429 if now < 90 else 200

    report, _, _ = send_all(says, events_for(30), patience=60.0)
    assert balances(report, accepted=29, failures=1)


def test_without_a_patience_a_run_waits_for_as_long_as_it_takes() -> None:
    report, _, took = send_all(
        down(0.0, 7200.0, lambda: 503), events_for(20), patience=None
    )
    assert balances(report, accepted=20)
    assert took > 7200


def test_a_run_that_is_stopped_stops_no_other() -> None:
    """Two at once on one client: the patience is each one's own."""

    async def main() -> None:
        loops = Loops(down(0.0, 100.0, lambda: 503))
        async with client_of(loops) as client:
            hasty, patient = await asyncio.gather(
                client.send_events(events_for(20), patience=30.0),
                client.send_events(events_for(20), patience=300.0),
            )
        assert type(hasty.stopped_by) is DeadlineExceededError
        assert hasty.not_tried
        assert balances(patient, accepted=20)

    virtual.run(main())


def test_no_event_overtakes_another_of_its_contact_in_an_outage() -> None:
    """Whoever is the probe, and whatever was under way as the gate closed."""
    attempts: list[tuple[float, str | None]] = []
    report, loops, _ = send_all(
        lambda now, _: 503 if 1 < now < 40 or 41 < now < 60 else 200,
        events_for(200, 20),
        settings={
            "retry": RetryPolicy(attempts=9),
            "on_attempt": lambda a: attempts.append((a.elapsed, a.idempotency_key)),
        },
    )
    assert balances(report, accepted=200)
    taken = [one for one in loops.asked if one.ok]
    assert Counter(one.user_id for one in taken) == Counter(
        o.event.user_id for o in report
    )
    keys = [key for _, key in attempts]
    for contact in range(20):
        of_it = [o.event.idempotency_key for o in report[contact::20]]
        seen = list(dict.fromkeys(key for key in keys if key in of_it))
        assert seen == of_it


def test_the_callable_of_a_key_that_hangs_costs_the_deadline() -> None:
    """Of an event that has it; the run then goes on with the next."""

    async def main() -> None:
        asked = 0

        async def key() -> str:
            nonlocal asked
            asked += 1
            if asked == 2:
                await asyncio.sleep(1e6)
            return "key"

        loops = Loops(lambda *_: 200)
        async with client_of(loops) as client:
            assert client._latest is not None
            client._latest._api_key = key
            report = await client.send_events(events_for(5), deadline=10.0)
        assert balances(report, accepted=4, failures=1)
        (failure,) = report.failures
        assert type(failure.error) is DeadlineExceededError
        assert failure.error.attempts == 0

    virtual.run(main())


def test_a_run_that_is_left_while_it_asks_for_the_key_sends_nothing_more() -> None:
    async def main() -> None:
        asked = 0
        told = Told()

        async def key() -> str:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0 if asked == 1 else 1e6)
            return "key"

        loops = Loops(lambda *_: 200)
        async with client_of(loops) as client:
            assert client._latest is not None
            client._latest._api_key = key
            async for _ in client.stream_events(events_for(5), on_outcome=told):
                break
            await asyncio.sleep(1)
            assert len(asyncio.all_tasks()) == 1
        assert len(loops.asked) == 1
        assert balances(
            SendReport(outcome for _, outcome in told.outcomes),
            accepted=1,
            not_tried=4,
        )

    virtual.run(main())


# For real.


@pytest.mark.parametrize("drop", [False, True])
def test_a_real_outage_costs_few_requests_and_loses_nobody(drop: bool) -> None:
    """A short one, through sockets; each event is accepted once."""

    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key,
                base_url=sandbox.url,
                rate_limit=400,
                retry=RetryPolicy(attempts=10, base=0.05),
            ) as loops,
        ):
            events = emails_for(300, 60)
            run = asyncio.create_task(loops.send_events(events))
            await until(lambda: sandbox.counts.accepted > 50)
            sandbox.down(drop=drop)
            await until(lambda: loops.stats.outage)
            await asyncio.sleep(0.7)
            sandbox.down(False)
            report = await run
            assert balances(report, accepted=300)
            assert len(sandbox.events) == 300
            assert sandbox.counts.faults["down"] <= 100 + 3
            for contact in range(60):
                sent = [o.event.idempotency_key for o in report[contact::60]]
                assert sent == [
                    event.idempotency_key
                    for event in sandbox.events
                    if event.email == f"u{contact}@b.co"
                ]

    asyncio.run(main())


@pytest.mark.soak
@pytest.mark.timeout(200)
def test_half_a_minute_without_loops_in_the_middle_of_2000_events(
    record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """All accepted once, 30 requests spent on it, and at full rate soon after."""

    async def main() -> str:
        async with (
            Sandbox(rate_limit=50, latency=(0.02, 0.05)) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, rate_limit=50
            ) as loops,
        ):
            run = asyncio.create_task(loops.send_events(emails_for(2000, 400)))
            await asyncio.sleep(15)
            sandbox.down()
            began = sandbox.now
            await asyncio.sleep(30)
            sandbox.down(False)
            ended = sandbox.now
            report = await run
            assert balances(report, accepted=2000)
            keys = [event.idempotency_key for event in sandbox.events]
            assert Counter(keys) == Counter(o.event.idempotency_key for o in report)
            spent = sum(r.fault == "down" for r in sandbox.requests)
            assert spent <= 30
            times = [event.at for event in sandbox.events]

            def rate(begin: float, end: float) -> float:
                return sum(begin <= at < end for at in times) / (end - begin)

            before, after = rate(began - 10, began), rate(ended + 10, ended + 20)
            # Half a burst more or less falls into such a window.
            assert before >= 0.90 * 50
            assert after >= 0.90 * before
            resumed = min(at for at in times if at > ended) - ended
            return (
                f"{spent} requests spent, resumed after {resumed:.1f} s, "
                f"{before:.1f}/s before and {after:.1f}/s after"
            )

    figures = asyncio.run(main())
    record_property("figures", figures)
    with capsys.disabled():
        print(f"\n{figures}")  # noqa: T201


# One event, or everything?


def poisoned(_: float, event: Event) -> Said:
    return 500 if event.user_id == "bad" else 200


def test_an_event_that_loops_cannot_take_is_given_up_and_not_the_run() -> None:
    """Once alone, it cannot be told from an outage until the patience ends."""

    async def queue() -> AsyncIterator[Event]:
        yield Event("e", user_id="bad")
        await asyncio.sleep(7200)
        yield Event("e", user_id="good")

    report, loops, took = send_all(
        poisoned,
        queue(),  # type: ignore[arg-type]
        settings={"retry": RetryPolicy()},
        patience=120.0,
    )
    assert report.stopped_by is None
    assert [outcome.event.user_id for outcome in report.unknown] == ["bad"]
    assert [outcome.event.user_id for outcome in report.accepted] == ["good"]
    assert 120 < loops.failed[-1].at < 130
    assert took < 7210


def test_one_event_that_is_asked_to_wait_past_the_patience_stops_the_run() -> None:
    """It would not even be tried again before."""
    report, _, took = send_all(
        lambda _, __: (503, 3600.0), events_for(1), patience=120.0
    )
    assert isinstance(report.stopped_by, DeadlineExceededError)
    assert took == pytest.approx(120, abs=1)


@pytest.mark.parametrize("status", [400, 403, 413])
def test_the_refusal_of_one_event_makes_nobody_wait(status: int) -> None:
    """Whatever its Retry-After may mean, the event is not tried again."""
    report, _, took = send_all(
        lambda _, event: (status, 3600.0) if event.user_id == "u5" else 200,
        events_for(20),
    )
    assert report.stopped_by is None
    assert [outcome.index for outcome in report.failures] == [5]
    assert took < 10


@pytest.mark.parametrize(
    "refusal", [301, 308, ConnectFailedError("certificate refused")], ids=str
)
def test_what_every_event_would_meet_stops_the_run(refusal: Said) -> None:
    report, loops, _ = send_all(lambda _, __: refusal, events_for(300))
    assert report.stopped_by is not None
    assert len(loops.asked) <= 5
    assert len(report.not_tried) >= len(report) - 5


@pytest.mark.parametrize("options", [{"deadline": 10.0}, {"timeout": None}])
def test_a_loops_that_hangs_is_an_outage_however_short_the_deadline(
    options: dict[str, Any],
) -> None:
    report, loops, _ = send_all(
        lambda now, _: 200,
        events_for(300),
        takes=lambda _: 1e6,
        patience=300.0,
        **options,
    )
    assert isinstance(report.stopped_by, DeadlineExceededError)
    assert len(report.unknown) < 100
    assert len(report.not_tried) > 80  # of what was read
    assert len(loops.asked) < 150


def test_probes_that_their_deadline_cuts_short_keep_the_pauses_of_the_gate() -> None:
    async def main() -> None:
        loops = Loops(lambda now, _: 200, lambda _: 1e6)
        async with client_of(loops, rate_limit=math.inf) as client:
            run = asyncio.create_task(
                client.send_events(events_for(200), deadline=0.05, patience=None)
            )
            await asyncio.sleep(60)
            begun = [one.at for one in loops.asked if one.at > 10]
            assert len(begun) <= 12
            run.cancel()
            await asyncio.wait([run])

    virtual.run(main())


def test_patience_counts_from_when_a_run_meets_an_outage_others_know_of() -> None:
    async def main() -> None:
        loops = Loops(lambda _, __: 500)
        async with client_of(loops) as client:
            first = asyncio.create_task(client.send_events(events_for(40)))
            await asyncio.sleep(60)
            began = loops.loop.time()
            report = await client.send_events(emails_for(2, 2), patience=30.0)
            assert loops.loop.time() - began == pytest.approx(30, abs=1)
            assert len(report.not_tried) == 2
            assert "nothing was taken for 30 s" in str(report.stopped_by)
            first.cancel()
            await asyncio.wait([first])

    virtual.run(main())


def test_without_a_limiter_a_429_holds_the_run_for_what_it_asks() -> None:
    report, loops, _ = send_all(
        lambda now, _: (429, 5.0) if now < 5 else 200,
        events_for(300),
        settings={"rate_limit": math.inf},
    )
    assert len(report.accepted) == 300
    assert all(one.at < 1 or one.at >= 5 for one in loops.asked)


# Two runs, and the end of one.


@pytest.mark.parametrize("rate_limit", [math.inf, None], ids=["unlimited", "limited"])
def test_two_runs_of_a_client_share_what_there_is(rate_limit: float | None) -> None:
    async def main() -> None:
        loops = Loops(lambda _, __: 200)
        settings = {} if rate_limit is None else {"rate_limit": rate_limit}
        async with client_of(loops, max_connections=5, **settings) as client:
            taken: Counter[str] = Counter()

            def events(name: str) -> Any:
                for number in range(10_000):
                    yield Event("e", user_id=f"{name}{number}")

            runs = []
            for name in ("first", "second"):
                note = Told()
                run = client.send_events(events(name), on_outcome=note)
                runs.append((name, note, asyncio.create_task(run)))
                await asyncio.sleep(5)
            begin = loops.loop.time()
            await asyncio.sleep(20)
            for name, note, run in runs:
                taken[name] = sum(at > begin for at, _ in note.outcomes)
                run.cancel()
            await asyncio.wait([run for _, _, run in runs])
            assert taken["second"] >= 0.8 * taken["first"] > 0

    virtual.run(main())


def test_with_one_connection_others_go_on_while_an_event_pauses() -> None:
    """Also if somebody else had the connection when it began to."""

    async def main() -> None:
        loops = Loops(
            lambda now, event: 500 if event.user_id == "u0" and now < 30 else 200, 1.0
        )
        slow = RetryPolicy(attempts=10, base=20.0)
        async with client_of(
            loops, rate_limit=math.inf, max_connections=1, retry=slow
        ) as client:
            single = asyncio.create_task(client.send_event("e", user_id="single"))
            run = asyncio.create_task(client.send_events(events_for(8)))
            await asyncio.sleep(0.5)
            other = asyncio.create_task(client.send_event("e", user_id="other"))
            await asyncio.sleep(15)
            assert len({one.user_id for one in loops.asked}) == 10
            run.cancel()
            await asyncio.wait([single, other, run])

    virtual.run(main())


def test_closing_the_client_ends_a_run_whose_source_is_idle() -> None:
    async def main() -> None:
        loops = Loops(lambda _, __: 200)
        queue: asyncio.Queue[Event] = asyncio.Queue()

        async def events() -> AsyncIterator[Event]:
            while True:
                yield await queue.get()

        async with client_of(loops) as client:
            run = asyncio.create_task(client.send_events(events()))
            queue.put_nowait(Event("e", user_id="u"))
            await asyncio.sleep(60)
        report = await run
        assert len(report.accepted) == 1
        assert "closed" in str(report.stopped_by)

    virtual.run(main())


def test_a_generator_made_for_a_run_is_closed_with_it() -> None:
    closed: list[float] = []

    def events() -> Any:
        try:
            while True:
                yield Event("e", user_id=f"{len(closed)}")
        finally:
            closed.append(1)

    async def main() -> None:
        loops = Loops(lambda _, __: 401)
        async with client_of(loops) as client:
            report = await client.send_events(events())
            assert report.stopped_by is not None
            assert closed

    virtual.run(main())
