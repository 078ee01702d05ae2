"""Runs of many events through a client, over real sockets."""

import asyncio
import gc
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import attrs
import pytest
from proofs.test_exactly_once import CHANCE, FAULTS, PERSISTENT
from support.clients import client_of
from support.virtual_time import advance, passing_time, run_frozen
from support.waiting import advance_until, until

from loops_async import (
    AsyncLoopsClient,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    Event,
    InvalidEventError,
    Outcome,
    RateLimiter,
    RecipientNotAllowedError,
)
from loops_async.sandbox import Sandbox

from .client_runs import LOOPS, events_for, run, sizes

# Sources and outcomes.


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
            async with client_of(sandbox) as loops:
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


def test_an_empty_source_gives_an_empty_report_and_sends_nothing() -> None:
    async def main() -> None:
        async with Sandbox() as sandbox, client_of(sandbox) as loops:
            assert len(await loops.send_events([])) == 0
            assert [outcome async for outcome in loops.stream_events(())] == []
            assert not sandbox.requests

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_yields_outcomes_in_order_of_completion(loop: str) -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
            sandbox.script("500-before")
            reported: list[Outcome] = []
            taken: list[Outcome] = []
            stream = loops.stream_events(events_for(50), on_outcome=reported.append)
            async for outcome in stream:
                assert reported[len(taken)] is outcome
                taken.append(outcome)
            assert {outcome.index for outcome in taken} == set(range(50))
            assert all(outcome.ok for outcome in taken)
            # The event that needed a second attempt ends after later events.
            assert [o.index for o in taken] != list(range(50))

    run(main(), loop)


def test_on_outcome_receives_each_outcome_of_the_report() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
            reported: list[Outcome] = []
            report = await loops.send_events(events_for(20), on_outcome=reported.append)
            assert sorted(reported, key=lambda outcome: outcome.index) == list(report)

    run(main())


def test_a_failure_of_one_event_raises_nothing_and_the_others_are_sent() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
            strangers = [Event("e", user_id="nobody"), Event("e", user_id="noone")]
            report = await loops.send_events([*strangers, *events_for(5)])
            assert sizes(report) == {"accepted": 5, "failures": 2}
            assert type(report[0].error) is BadRequestError
            assert report[0].error.idempotency_key == strangers[0].idempotency_key
            with pytest.raises(ExceptionGroup) as raised:
                report.raise_for_failures()
            assert raised.group_contains(BadRequestError, match="Contact not found")

    run(main())


def test_the_error_of_an_outcome_has_no_traceback_cause_or_context() -> None:
    """Their frames could show the API key."""

    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox:
            async with client_of(sandbox) as loops:
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
def test_a_dry_run_of_many_events_sends_nothing(
    given: Callable[[list[Event]], Any],
) -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        events = events_for(1200)
        report = await loops.send_events(given([*events, events[0]]))
        assert sizes(report) == {"accepted": 1201}
        assert all(o.receipt and o.receipt.dry_run for o in report)
        copy = attrs.evolve(events[0], email="other@b.co")
        ok = [o.ok async for o in loops.stream_events([events[0], copy])]
        assert ok == [True, False]
        await loops.aclose()

    run(main())


def test_a_recipient_that_is_not_allowed_is_a_failure_and_the_others_are_sent() -> None:
    async def main() -> None:
        async with (
            Sandbox(rate_limit=None) as sandbox,
            client_of(sandbox, allowed_recipients=["@b.co"]) as loops,
        ):
            eve = Event("e", email="eve@elsewhere.example")
            report = await loops.send_events([events_for(1)[0], eve, events_for(2)[1]])
            assert [outcome.ok for outcome in report] == [True, False, True]
            assert type(report[1].error) is RecipientNotAllowedError
            assert report[1].error.idempotency_key == eve.idempotency_key
            assert not sandbox.contact(email="eve@elsewhere.example")

    run(main())


def test_a_second_event_with_the_key_of_the_first_is_invalid_and_not_sent() -> None:
    """A copy made by attrs.evolve has the key of its original."""

    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
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
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
            event = events_for(1)[0]
            report = await loops.send_events([event, event])
            assert sizes(report) == {"accepted": 1, "duplicates": 1}
            assert report[0].receipt is not None
            assert not report[0].receipt.duplicate
            assert len(sandbox.events) == 1

    run(main())


def test_an_item_that_is_not_an_event_raises_a_type_error_with_the_report_as_note() -> (
    None
):
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
            given: list[Any] = [*events_for(3), "signup"]
            with pytest.raises(TypeError, match=r"events\[3\] must be") as raised:
                await loops.send_events(given)
            (note,) = raised.value.__notes__
            assert note.startswith("3 events in ")
            assert note.endswith(" s: 3 accepted")
            assert len(sandbox.events) == 3

    run(main())


def test_an_error_of_the_source_is_raised_after_the_events_read_are_sent() -> None:
    async def main() -> None:
        def source() -> Iterator[Event]:
            yield from events_for(150)
            raise OSError("the file is gone")

        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
            with pytest.raises(OSError, match="the file is gone") as raised:
                await loops.send_events(source())
            assert "150 accepted" in raised.value.__notes__[0]
            assert len(sandbox.events) == 150

    run(main())


# Arguments.


@pytest.mark.parametrize("given", [None, 3, Event("e", email="a@b.co")])
def test_a_source_that_is_not_iterable_raises_a_type_error(given: Any) -> None:
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
def test_an_invalid_time_argument_raises_a_configuration_error(
    name: str, value: Any
) -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        with pytest.raises(ConfigurationError, match=f"{name} must be a positive"):
            await loops.send_events([], **{name: value})
        with pytest.raises(ConfigurationError, match=f"{name} must be a positive"):
            loops.stream_events([], **{name: value})

    run(main())


@pytest.mark.parametrize("name", ["timeout", "deadline", "patience"])
@pytest.mark.parametrize("value", [None, math.inf, 5, 0.5])
def test_a_time_argument_may_be_none_infinite_or_positive(
    name: str, value: Any
) -> None:
    async def main() -> None:
        async with Sandbox() as sandbox, client_of(sandbox) as loops:
            report = await loops.send_events(events_for(2), **{name: value})
            assert sizes(report) == {"accepted": 2}

    run(main())


def test_an_on_outcome_that_is_not_callable_raises_a_configuration_error() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        hook: Any = "print"
        with pytest.raises(ConfigurationError, match="on_outcome"):
            await loops.send_events([], on_outcome=hook)
        with pytest.raises(ConfigurationError, match="on_outcome"):
            loops.stream_events([], on_outcome=hook)

    run(main())


def test_the_timeout_of_a_run_applies_to_each_of_its_requests() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
            sandbox.script("hang-after", "hang-before")
            sending = asyncio.create_task(loops.send_events(events_for(1), timeout=1.0))
            for count in (1, 2):
                await advance_until(lambda: sandbox.counts.requests == count)  # noqa: B023
                await advance(1.0)
            await advance_until(sending.done)
            report = await sending
            assert sizes(report) == {"duplicates": 1}
            assert report[0].receipt is not None
            assert report[0].receipt.attempts == 3

    run_frozen(main())


def test_a_closed_client_sends_no_events() -> None:
    async def main() -> None:
        async with Sandbox() as sandbox:
            loops = client_of(sandbox)
            await loops.aclose()
            with pytest.raises(ClientClosedError):
                await loops.send_events(events_for(1))
            with pytest.raises(ClientClosedError):
                loops.stream_events(events_for(1))
            assert not sandbox.requests

    run(main())


def test_a_borrowed_session_of_another_event_loop_stops_the_run() -> None:
    """Such a session can send no event."""
    import aiohttp

    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def main(session: aiohttp.ClientSession) -> None:
        async with Sandbox() as sandbox, client_of(sandbox, session=session) as loops:
            report = await loops.send_events(events_for(5))
            assert type(report.stopped_by) is ConfigurationError
            assert len(report.not_tried) + len(report.failures) == 5
            assert len(report.failures) <= 1

    with asyncio.Runner() as runner:
        session = runner.run(open_session())
        run(main(session))
        runner.run(session.close())


# Concurrent runs and sends.


def test_two_runs_at_once_share_one_client() -> None:
    async def main() -> None:
        async with Sandbox(rate_limit=None, latency=(0, 0.01)) as sandbox:
            async with client_of(sandbox, max_connections=4) as loops:
                first, second = await asyncio.gather(
                    loops.send_events(events_for(100)),
                    loops.send_events(as_async(events_for(100))),
                )
            assert sizes(first) == sizes(second) == {"accepted": 100}
            assert len(sandbox.events) == 200

    run(main())


def test_a_single_send_does_not_wait_for_the_rest_of_a_run() -> None:
    """It waits for permits that the run has taken, and not for all of its events."""

    async def main() -> None:
        limiter = RateLimiter(20, 0.1, clock=asyncio.get_running_loop().time)
        async with (
            Sandbox(rate_limit=None) as sandbox,
            client_of(sandbox, rate_limit=limiter) as loops,
            passing_time(),
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

    run_frozen(main())


def test_a_slow_consumer_makes_the_run_read_at_most_1000_events_ahead() -> None:
    async def main() -> None:
        read = 0

        def source() -> Iterator[Event]:
            nonlocal read
            for event in events_for(2000, 500):
                read += 1
                yield event

        async with Sandbox(rate_limit=None) as sandbox, client_of(sandbox) as loops:
            taken = 0
            async for _ in loops.stream_events(source()):
                taken += 1
                assert read - taken <= 1001
                if taken == 10:
                    await until(lambda: read - taken >= 900)  # noqa: B023
            assert taken == 2000
            assert sandbox.counts.accepted == 2000

    run(main())


def test_a_stream_keeps_no_event_whose_outcome_was_taken_and_released() -> None:
    async def main() -> None:
        def live_events() -> int:
            gc.collect()
            return sum(type(one) is Event for one in gc.get_objects())

        def source() -> Iterator[Event]:
            for n in range(3000):
                yield Event("e", email=f"u{n}@b.co")

        async with (
            Sandbox(rate_limit=None, max_events=1, max_requests=1) as sandbox,
            client_of(sandbox) as loops,
        ):
            before, taken, most = live_events(), 0, 0
            async for outcome in loops.stream_events(source()):
                del outcome
                taken += 1
                if taken % 500 == 0:
                    most = max(most, live_events() - before)
            assert taken == 3000
            assert most <= 1000
            assert live_events() <= before + 1

    run(main())


# The promise, as in proofs/test_exactly_once.


async def assert_accepted_in_order(count: int, contacts: int) -> str:
    """Send through ten faults; check that each contact's events arrive in order."""
    chance = random.Random(11)
    events = []
    seen: set[int] = set()
    for number in range(count):
        contact = chance.randrange(contacts)
        email, user_id = f"Ada+{contact}@example.com", f"usr_{contact}"
        kind = chance.randrange(4) if contact in seen else 3  # the first has both IDs
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
        async with client_of(sandbox, timeout=1.0, retry=PERSISTENT) as loops:
            report = await loops.send_events(events, deadline=None)
        assert report.stopped_by is None
        assert [o for o in report if not o.ok] == []
        assert len(report) == count
        keys = [event.idempotency_key for event in events]
        accepted = [str(event.idempotency_key) for event in sandbox.events]
        assert Counter(accepted) == Counter(keys)
        # Only events with a common email address or user ID must keep their order.
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
        faulted = Counter(sandbox.counts.faults)
        assert set(faulted) == set(FAULTS)
        return (
            f"{count} events in {report.elapsed:.1f} s, {sandbox.counts.requests} "
            f"requests, {faulted.total()} faults, {len(report.duplicates)} by 409"
        )


def test_300_events_through_ten_faults_are_accepted_once_and_in_order() -> None:
    async def main() -> None:
        await assert_accepted_in_order(300, 50)

    run(main())


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("loop", LOOPS)
def test_3000_events_through_ten_faults_are_accepted_once_and_in_order(
    loop: str, record_figures: Callable[[str], None]
) -> None:
    async def main() -> None:
        figures = await assert_accepted_in_order(3000, 50)
        record_figures(f"{loop}: {figures}")

    run(main(), loop, limit=280)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_500_events_with_eager_tasks_do_not_exceed_the_recursion_limit() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with (
            Sandbox(rate_limit=None) as sandbox,
            client_of(sandbox) as loops,
        ):
            report = await loops.send_events(events_for(500))
            assert sizes(report) == {"accepted": 500}

    run(main())
