"""Many events through a client, over real sockets."""

import asyncio
import gc
import logging
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import attrs
import pytest
from proofs.test_exactly_once import CHANCE, FAULTS, PATIENT
from support.http_server import Server, answers, client, reply

from loops_async import (
    APIError,
    AsyncLoopsClient,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    Event,
    InvalidEventError,
    NotFoundError,
    NotTriedError,
    Outcome,
    RateLimiter,
    RecipientNotAllowedError,
    SendReport,
    UnexpectedResponseError,
)
from loops_async.sandbox import Sandbox

LOOPS = ["asyncio", "uvloop"]
PARTS = ("accepted", "duplicates", "failures", "unknown", "not_tried")


def run(main: Coroutine[Any, Any, None], loop: str = "asyncio") -> None:
    """Run like asyncio.run, in that kind of loop; what hangs fails."""
    factory = None
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main, 60))


def to(sandbox: Sandbox, **settings: Any) -> AsyncLoopsClient:
    usual: dict[str, Any] = {"rate_limit": math.inf, "retry": PATIENT}
    return AsyncLoopsClient(
        sandbox.api_key, base_url=sandbox.url, **{**usual, **settings}
    )


def events_for(count: int, contacts: int | None = None) -> list[Event]:
    return [
        Event("e", email=f"u{n % (contacts or count)}@b.co", event_properties={"n": n})
        for n in range(count)
    ]


def sizes(report: SendReport) -> dict[str, int]:
    found = {part: len(getattr(report, part)) for part in PARTS}
    assert sum(found.values()) == len(report)
    return {part: size for part, size in found.items() if size}


def senders_left() -> list[str]:
    """Name the tasks of the client: what is not the sandbox's nor the test's."""
    names = [repr(task.get_coro()) for task in asyncio.all_tasks()]
    return [name for name in names if "FanOut" in name or "AsyncLoops" in name]


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - of the server
        await asyncio.sleep(0.001)


# What goes in, and what comes out.


def as_list(events: list[Event]) -> Any:
    return events


def as_generator(events: list[Event]) -> Iterator[Event]:
    yield from events


async def as_async(events: list[Event]) -> AsyncIterator[Event]:
    for event in events:
        await asyncio.sleep(0)
        yield event


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("given", [as_list, as_generator, as_async])
def test_any_iterable_of_events_is_sent_and_reported_in_input_order(
    given: Callable[[list[Event]], Any], loop: str
) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None, latency=(0, 0.01)) as sandbox:
            async with to(sandbox) as loops:
                events = events_for(120, 30)
                report = await loops.send_events(given(events))
            assert [outcome.event for outcome in report] == events
            assert [outcome.index for outcome in report] == list(range(120))
            assert sizes(report) == {"accepted": 120}
            assert report.stopped_by is None
            assert report.elapsed > 0
            assert {o.receipt.attempts for o in report if o.receipt} == {1}
            keys = [event.idempotency_key for event in events]
            assert Counter(e.idempotency_key for e in sandbox.events) == Counter(keys)
            report.raise_for_failures()

    run(main(), loop)


def test_nothing_to_send_is_an_empty_report() -> None:
    async def main() -> None:
        async with Sandbox() as sandbox, to(sandbox) as loops:
            assert len(await loops.send_events([])) == 0
            assert [outcome async for outcome in loops.stream_events(())] == []
            assert not sandbox.requests

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_yields_outcomes_as_they_come_in(loop: str) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            sandbox.script("500-before")
            told: list[Outcome] = []
            seen: list[Outcome] = []
            stream = loops.stream_events(events_for(50), on_outcome=told.append)
            async for outcome in stream:
                assert told[len(seen)] is outcome
                seen.append(outcome)
            assert {outcome.index for outcome in seen} == set(range(50))
            assert all(outcome.ok for outcome in seen)
            # Whoever had to try again comes later than who came after it.
            assert [o.index for o in seen] != list(range(50))

    run(main(), loop)


def test_each_outcome_is_told_as_it_comes_in() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            told: list[Outcome] = []
            report = await loops.send_events(events_for(20), on_outcome=told.append)
            assert sorted(told, key=lambda outcome: outcome.index) == list(report)

    run(main())


def test_a_failure_of_one_raises_nothing_and_the_others_are_sent() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            strangers = [Event("e", user_id="nobody"), Event("e", user_id="noone")]
            report = await loops.send_events([*strangers, *events_for(5)])
            assert sizes(report) == {"accepted": 5, "failures": 2}
            assert type(report[0].error) is BadRequestError
            assert report[0].error.idempotency_key == strangers[0].idempotency_key
            with pytest.raises(ExceptionGroup) as raised:
                report.raise_for_failures()
            assert raised.group_contains(BadRequestError, match="Contact not found")

    run(main())


def test_an_error_of_an_outcome_holds_on_to_no_frame() -> None:
    """Its traceback, cause and context could show the key."""

    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox:
            async with to(sandbox) as loops:
                events: list[Any] = [Event("e", user_id="nobody"), *events_for(3)]
                events.append(attrs.evolve(events[1], email="other@b.co"))
                report = await loops.send_events(events)
                sandbox.api_key = "another"
                stopped = await loops.send_events(events_for(3))
            errors = [o.error for o in (*report, *stopped) if o.error is not None]
            assert len(errors) == 5
            for error in errors:
                assert error.__traceback__ is None
                assert error.__cause__ is None
                assert error.__context__ is None

    run(main())


@pytest.mark.parametrize("given", [as_list, as_async])
def test_a_dry_run_sends_nothing(given: Callable[[list[Event]], Any]) -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        events = events_for(1200)
        report = await loops.send_events(given([*events, events[0]]))
        assert sizes(report) == {"accepted": 1201}
        assert all(o.receipt and o.receipt.dry_run for o in report)
        copy = attrs.evolve(events[0], email="other@b.co")
        found = [o.ok async for o in loops.stream_events([events[0], copy])]
        assert found == [True, False]
        await loops.aclose()

    run(main())


def test_who_is_not_allowed_is_a_failure_and_the_rest_is_sent() -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
            to(sandbox, allowed_recipients=["@b.co"]) as loops,
        ):
            eve = Event("e", email="eve@elsewhere.example")
            report = await loops.send_events([events_for(1)[0], eve, events_for(2)[1]])
            assert [outcome.ok for outcome in report] == [True, False, True]
            assert type(report[1].error) is RecipientNotAllowedError
            assert report[1].error.idempotency_key == eve.idempotency_key
            assert not sandbox.contact(email="eve@elsewhere.example")

    run(main())


def test_one_key_for_two_events_is_refused_before_the_network() -> None:
    """What attrs.evolve makes has the key of its original."""

    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            first = events_for(1)[0]
            copies = [attrs.evolve(first, email=f"c{n}@b.co") for n in range(3)]
            report = await loops.send_events([first, *copies, first.replace()])
            assert [outcome.ok for outcome in report] == [True, *[False] * 3, True]
            for outcome in report.failures:
                assert type(outcome.error) is InvalidEventError
                assert outcome.error.attempts == 0
            assert len(sandbox.requests) == 2

    run(main())


def test_the_same_event_twice_is_accepted_once() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            event = events_for(1)[0]
            report = await loops.send_events([event, event])
            assert sizes(report) == {"accepted": 1, "duplicates": 1}
            assert report[0].receipt is not None
            assert not report[0].receipt.duplicate
            assert len(sandbox.events) == 1

    run(main())


def test_what_is_no_event_is_named_and_the_report_is_a_note_of_it() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            given: list[Any] = [*events_for(3), "signup"]
            with pytest.raises(TypeError, match=r"events\[3\] must be") as raised:
                await loops.send_events(given)
            (note,) = raised.value.__notes__
            assert note.startswith("3 events in ")
            assert note.endswith(" s: 3 accepted")
            assert len(sandbox.events) == 3

    run(main())


def test_what_a_source_raises_is_raised_once_all_that_was_read_is_sent() -> None:
    async def main() -> None:
        def source() -> Iterator[Event]:
            yield from events_for(150)
            raise OSError("the file is gone")

        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            with pytest.raises(OSError, match="the file is gone") as raised:
                await loops.send_events(source())
            assert "150 accepted" in raised.value.__notes__[0]
            assert len(sandbox.events) == 150

    run(main())


# What stops a run.


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthenticationError), (404, NotFoundError), (405, UnexpectedResponseError)],
)
def test_what_would_refuse_every_event_stops_the_run(
    status: int, kind: type[APIError], loop: str
) -> None:
    async def main() -> None:
        refusal = reply(status, '{"message":"no"}')
        read = 0

        def source() -> Iterator[Event]:
            nonlocal read
            for event in events_for(3000):
                read += 1
                yield event

        async with Server(answers(refusal)) as server:
            async with client(server.url, max_connections=3) as loops:
                report = await loops.send_events(source())
            assert type(report.stopped_by) is kind
            assert isinstance(report.stopped_by, APIError)
            assert report.stopped_by.status == status
            assert len(report) == read <= 1000
            sent = len(server.requests)
            assert sent <= 3
            assert sizes(report) == {"failures": sent, "not_tried": read - sent}
            for outcome in report.not_tried:
                error = outcome.error
                assert type(error) is NotTriedError
                assert error.attempts == 0
                assert error.retryable
                assert not error.maybe_accepted
                assert error.idempotency_key == outcome.event.idempotency_key
            with pytest.raises(ExceptionGroup) as raised:
                report.raise_for_failures()
            assert report.stopped_by in raised.value.exceptions
            assert not senders_left()

    run(main(), loop)


def test_a_key_that_is_revoked_in_the_middle_stops_the_run_there() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:

            def revoke(outcome: Outcome) -> None:
                if outcome.index == 49:
                    sandbox.api_key = "another"

            report = await loops.send_events(events_for(500, 1), on_outcome=revoke)
            assert type(report.stopped_by) is AuthenticationError
            assert sizes(report) == {
                "accepted": 50,
                "failures": 1,
                "not_tried": len(report) - 51,
            }
            assert [outcome.ok for outcome in report[:51]] == [*[True] * 50, False]
            assert len(sandbox.events) == 50

    run(main())


def test_a_key_that_cannot_be_asked_for_stops_the_run() -> None:
    async def main() -> None:
        asked = 0

        def key() -> str:
            nonlocal asked
            asked += 1
            if asked > 10:
                raise OSError("the vault is closed")
            return sandbox.api_key

        async with (
            Sandbox(rate_limit=None) as sandbox,
            AsyncLoopsClient(key, base_url=sandbox.url, rate_limit=math.inf) as loops,
        ):
            report = await loops.send_events(events_for(100, 1))
            assert type(report.stopped_by) is ConfigurationError
            assert "OSError" in str(report.stopped_by)
            assert len(report.accepted) == 10
            assert len(report.not_tried) + len(report.failures) == 90
            assert len(report.failures) <= 1
            assert len(sandbox.requests) == 10

    run(main())


@pytest.mark.parametrize("limit", [math.inf, 200])
def test_a_client_closed_by_another_stops_its_run(limit: float) -> None:
    """What is under way ends well; what was not sent is not tried, all of it."""

    async def main() -> None:
        async with Sandbox(rate_limit=None, latency=0.02) as sandbox:
            loops = to(sandbox, rate_limit=limit, max_connections=5)
            sending = asyncio.create_task(loops.send_events(events_for(2000)))
            await until(lambda: sandbox.counts.accepted >= 20)
            await loops.aclose()
            report = await sending
            assert type(report.stopped_by) is ClientClosedError
            accepted = len(sandbox.events)
            assert sizes(report) == {
                "accepted": accepted,
                "not_tried": len(report) - accepted,
            }
            assert accepted < 100
            assert not senders_left()

    run(main())


def test_a_client_closed_while_a_send_pauses_ends_it_with_its_last_error() -> None:
    async def main() -> None:
        async with Server(answers(reply(500, "{}"))) as server:
            patient = attrs.evolve(PATIENT, base=60, cap=60)
            loops = client(server.url, retry=patient, deadline=None)
            sending = asyncio.create_task(loops.send_events(events_for(3, 1)))
            await server.arrived()
            await until(lambda: loops.stats.waiting)
            await loops.aclose()
            report = await sending
            assert type(report.stopped_by) is ClientClosedError
            assert sizes(report) == {"unknown": 1, "not_tried": 2}
            assert isinstance(report[0].error, APIError)
            assert report[0].error.status == 500

    run(main())


# Who leaves, and who is cancelled.


@pytest.mark.parametrize("loop", LOOPS)
def test_who_leaves_a_stream_early_loses_nothing_that_was_under_way(loop: str) -> None:
    async def main() -> None:
        told: list[Outcome] = []
        async with (
            Sandbox(rate_limit=None, latency=(0.005, 0.03)) as sandbox,
            to(sandbox, max_connections=10) as loops,
        ):
            stream = loops.stream_events(events_for(3000), on_outcome=told.append)
            async with aclosing(stream):
                taken = 0
                async for _ in stream:
                    taken += 1
                    if taken == 25:
                        break
            assert not senders_left()
            report = SendReport(told)
            accepted = len(sandbox.events)
            assert 25 <= accepted <= 25 + 15
            assert sizes(report) == {
                "accepted": accepted,
                "not_tried": len(told) - accepted,
            }
            requests = sandbox.counts.requests
            assert (await loops.send_event(events_for(1)[0])).attempts == 1
            assert sandbox.counts.requests == requests + 1

    run(main(), loop)


def test_who_breaks_a_plain_loop_leaves_no_task_either() -> None:
    async def main() -> None:
        told: list[Outcome] = []
        async with (
            Sandbox(rate_limit=None, latency=(0.005, 0.03)) as sandbox,
            to(sandbox, max_connections=10) as loops,
        ):
            async for _ in loops.stream_events(
                events_for(3000), on_outcome=told.append
            ):
                break
            await until(lambda: not senders_left() and not loops.stats.in_flight)
            accepted = sorted(o.event.idempotency_key for o in told if o.ok)
            assert accepted == sorted(str(e.idempotency_key) for e in sandbox.events)
            assert {type(o.error) for o in told if not o.ok} == {NotTriedError}
            assert sorted(o.index for o in told) == list(range(len(told)))

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_who_breaks_a_loop_and_closes_the_client_gets_what_was_under_way(
    loop: str,
) -> None:
    """The client's grace is theirs, too, and nothing complains afterwards."""
    told: list[Outcome] = []

    async def main() -> None:
        async with Sandbox(rate_limit=None, latency=(0.02, 0.05)) as sandbox:
            async with to(sandbox, max_connections=10) as loops:
                async for _ in loops.stream_events(
                    events_for(3000), on_outcome=told.append
                ):
                    break
                requests = loops.stats.requests
            assert 1 < requests <= 20
            assert sandbox.counts.accepted == loops.stats.accepted
            assert loops.stats.accepted >= requests
            assert sum(outcome.ok for outcome in told) == loops.stats.accepted

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancelled_run_ends_at_once_and_gives_all_back(loop: str) -> None:
    """No task is left, and permits and connections serve whoever is next."""

    async def main() -> None:
        limiter = RateLimiter(10, 0.2)
        async with (
            Sandbox(rate_limit=None, latency=0.05) as sandbox,
            to(sandbox, rate_limit=limiter, max_connections=5) as loops,
        ):
            for _ in range(5):
                sending = asyncio.create_task(loops.send_events(events_for(500)))
                await asyncio.sleep(random.random() * 0.1)
                sending.cancel()
                await asyncio.wait([sending])
                assert sending.cancelled()
                assert not senders_left()
                assert loops.stats.in_flight == loops.stats.waiting == 0
            report = await loops.send_events(events_for(12))
            assert sizes(report) == {"accepted": 12}
            await asyncio.sleep(0.21)
            assert "10 free, 0 under way, 0 coming back, 0 waiting" in repr(limiter)

    run(main(), loop)


def test_a_time_limit_around_a_run_is_kept() -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None, latency=0.1) as sandbox,
            to(sandbox, rate_limit=10) as loops,
        ):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await loops.send_events(events_for(500))
            assert not senders_left()

    run(main())


# Arguments, and a client that is closed.


@pytest.mark.parametrize("given", [None, 3, Event("e", email="a@b.co")])
def test_what_cannot_be_iterated_is_refused_at_once(given: Any) -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        match = f"iterable of Event, not {type(given).__name__}"
        with pytest.raises(TypeError, match=match):
            await loops.send_events(given)
        with pytest.raises(TypeError, match=match):
            loops.stream_events(given)

    run(main())


@pytest.mark.parametrize("name", ["timeout", "deadline", "patience"])
@pytest.mark.parametrize("value", [0, -1, math.nan, "1", True])
def test_times_that_are_none_are_refused_at_once(name: str, value: Any) -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        with pytest.raises(ConfigurationError, match=f"{name} must be a positive"):
            await loops.send_events([], **{name: value})
        with pytest.raises(ConfigurationError, match=f"{name} must be a positive"):
            loops.stream_events([], **{name: value})

    run(main())


@pytest.mark.parametrize("name", ["timeout", "deadline", "patience"])
@pytest.mark.parametrize("value", [None, math.inf, 5, 0.5])
def test_times_that_can_be_kept_are_taken(name: str, value: Any) -> None:
    async def main() -> None:
        async with Sandbox() as sandbox, to(sandbox) as loops:
            report = await loops.send_events(events_for(2), **{name: value})
            assert sizes(report) == {"accepted": 2}

    run(main())


def test_who_cannot_be_told_is_refused_at_once() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        nobody: Any = "print"
        with pytest.raises(ConfigurationError, match="on_outcome"):
            await loops.send_events([], on_outcome=nobody)
        with pytest.raises(ConfigurationError, match="on_outcome"):
            loops.stream_events([], on_outcome=nobody)

    run(main())


def test_the_timeout_of_a_run_holds_for_each_of_its_requests() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            sandbox.script("hang-after", "hang-before")
            report = await loops.send_events(events_for(1), timeout=0.1)
            assert sizes(report) == {"duplicates": 1}
            assert report[0].receipt is not None
            assert report[0].receipt.attempts == 3

    run(main())


def test_a_closed_client_sends_no_events() -> None:
    async def main() -> None:
        async with Sandbox() as sandbox:
            loops = to(sandbox)
            await loops.aclose()
            with pytest.raises(ClientClosedError):
                await loops.send_events(events_for(1))
            with pytest.raises(ClientClosedError):
                loops.stream_events(events_for(1))
            assert not sandbox.requests

    run(main())


def test_a_borrowed_session_of_another_loop_stops_the_run() -> None:
    """It is a setting that cannot work, for this event and all others."""
    import aiohttp

    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def main(session: aiohttp.ClientSession) -> None:
        async with Sandbox() as sandbox, to(sandbox, session=session) as loops:
            report = await loops.send_events(events_for(5))
            assert type(report.stopped_by) is ConfigurationError
            assert len(report.not_tried) + len(report.failures) == 5
            assert len(report.failures) <= 1

    with asyncio.Runner() as runner:
        session = runner.run(open_session())
        run(main(session))
        runner.run(session.close())


# Beside each other.


def test_two_runs_at_once_share_one_client() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None, latency=(0, 0.01)) as sandbox:
            async with to(sandbox, max_connections=4) as loops:
                first, second = await asyncio.gather(
                    loops.send_events(events_for(100)),
                    loops.send_events(as_async(events_for(100))),
                )
            assert sizes(first) == sizes(second) == {"accepted": 100}
            assert len(sandbox.events) == 200

    run(main())


def test_a_single_send_goes_before_the_rest_of_a_run() -> None:
    """It meets at most the permits the run has taken, not its thousand events."""

    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
            to(sandbox, rate_limit=RateLimiter(20, 0.1)) as loops,
        ):
            sending = asyncio.create_task(loops.send_events(events_for(240)))
            await until(lambda: sandbox.counts.accepted > 40)
            before = sandbox.counts.accepted
            singles = [
                await loops.send_event("single", email="s@b.co") for _ in range(10)
            ]
            between = sandbox.counts.accepted - before - len(singles)
            assert not sending.done()
            assert between < 150
            assert sizes(await sending) == {"accepted": 240}

    run(main())


def test_a_stream_slowly_taken_reads_no_more_than_1000_ahead() -> None:
    async def main() -> None:
        read = 0

        def source() -> Iterator[Event]:
            nonlocal read
            for event in events_for(2000, 500):
                read += 1
                yield event

        async with Sandbox(rate_limit=None) as sandbox, to(sandbox) as loops:
            taken = 0
            async for _ in loops.stream_events(source()):
                taken += 1
                assert read - taken <= 1001
                if taken == 10:
                    await asyncio.sleep(0.5)
            assert taken == 2000
            assert sandbox.counts.accepted == 2000

    run(main())


def test_a_long_stream_keeps_no_event() -> None:
    """What was taken and let go of is gone, while the stream goes on."""

    async def main() -> None:
        def alive() -> int:
            gc.collect()
            return sum(type(one) is Event for one in gc.get_objects())

        def source() -> Iterator[Event]:
            for n in range(3000):
                yield Event("e", email=f"u{n}@b.co")

        async with (
            Sandbox(rate_limit=None, max_events=1, max_requests=1) as sandbox,
            to(sandbox) as loops,
        ):
            before, taken, most = alive(), 0, 0
            async for outcome in loops.stream_events(source()):
                del outcome
                taken += 1
                if taken % 500 == 0:
                    most = max(most, alive() - before)
            assert taken == 3000
            assert most <= 1000
            assert alive() <= before + 1

    run(main())


# The promise.


async def in_order(count: int, contacts: int) -> str:
    """Send through ten faults; each once, and each contact's in input order."""
    chance = random.Random(11)
    events = []
    seen: set[int] = set()
    for number in range(count):
        contact = chance.randrange(contacts)
        email, user_id = f"Ada+{contact}@example.com", f"usr_{contact}"
        kind = chance.randrange(4) if contact in seen else 3  # who is new says both
        seen.add(contact)
        event = Event(
            "planUpgraded",
            email=(email, email.upper(), None, email)[kind],
            user_id=(None, None, user_id, user_id)[kind],
            event_properties={"number": number},
        )
        events.append(event)
    faults = dict.fromkeys(FAULTS, CHANCE)
    async with Sandbox(
        rate_limit=None, seed=7, faults=faults, max_requests=None
    ) as sandbox:
        async with to(sandbox, timeout=0.5) as loops:
            report = await loops.send_events(events, deadline=None)
        assert report.stopped_by is None
        assert [o for o in report if not o.ok] == []
        assert len(report) == count
        keys = [event.idempotency_key for event in events]
        accepted = [str(event.idempotency_key) for event in sandbox.events]
        assert Counter(accepted) == Counter(keys)
        # Who is named in no common way cannot be known to be the same.
        place = {key: index for index, key in enumerate(accepted)}
        last: dict[str, int] = {}
        for event in events:
            for name in filter(None, (event.email, event.user_id)):
                at = place[event.idempotency_key]
                assert at > last.get(name.lower(), -1)
                last[name.lower()] = at
        bodies = defaultdict(set)
        for request in sandbox.requests:
            bodies[request.headers["Idempotency-Key"]].add(request.body)
        assert all(len(sent) == 1 for sent in bodies.values())
        struck = Counter(sandbox.counts.faults)
        assert set(struck) == set(FAULTS)
        return (
            f"{count} events in {report.elapsed:.1f} s, {sandbox.counts.requests} "
            f"requests, {struck.total()} faults, {len(report.duplicates)} by 409"
        )


def test_300_events_through_ten_faults_are_accepted_once_and_in_order() -> None:
    async def main() -> None:
        await in_order(300, 50)

    run(main())


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("loop", LOOPS)
def test_3000_events_through_ten_faults_are_accepted_once_and_in_order(
    loop: str, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        figures = await in_order(3000, 50)
        record_property("figures", figures)
        with capsys.disabled():
            sys.stdout.write(f"\n{loop}: {figures}\n")

    factory = None
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), 280))


def test_a_stop_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with (
            Server(answers(reply(401, "{}"))) as server,
            client(server.url) as loops,
        ):
            await loops.send_events(events_for(30))

    with caplog.at_level(logging.WARNING, "loops_async"):
        run(main())
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("sending stopped: Loops answered 401")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_tasks_that_start_eagerly_do_not_start_each_other_without_end() -> None:
    async def main() -> SendReport:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with (
            Sandbox(rate_limit=None) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, rate_limit=math.inf
            ) as loops,
        ):
            events = [Event("e", email=f"{n}@example.com") for n in range(500)]
            return await loops.send_events(events)

    assert len(asyncio.run(main()).accepted) == 500


def test_closing_in_one_loop_stops_no_run_of_another() -> None:
    loops = AsyncLoopsClient(dry_run=True)
    stream = loops.stream_events(Event("e", user_id=f"{n}") for n in range(2))
    with asyncio.Runner() as elsewhere:

        async def take() -> Outcome:
            return await anext(stream)

        assert elsewhere.run(take()).ok
        asyncio.run(loops.aclose())
        assert elsewhere.run(take()).ok
        elsewhere.run(stream.aclose())
