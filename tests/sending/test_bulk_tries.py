"""The attempts of an event of a bulk run, in virtual time."""

import asyncio

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import virtual_time as virtual

from loops_async import RetryPolicy, errors
from loops_async._http.request import Request
from loops_async._sending.admission import Admission
from loops_async._sending.bulk_run import BulkRun
from loops_async._sending.bulk_tries import BulkTries

from .support import (
    RETRIED,
    MakeError,
    bad_request,
    failing,
    lost,
    now,
    rate_limited,
    timed_out,
    unreachable,
)

EXACT = 1e-6  # seconds; the error of sums of floats
KEY_AND_ATTEMPTS = ("k", 1)


@attrs.define(eq=False)
class AttemptsOfEvent:
    """The attempts of one event of a run, which a test starts and ends.

    Attributes:
        policy: The retry policy.
        deadline: The seconds for all attempts, or None.
        patience: The patience of the run, or None.
        calls: The calls of the run's callbacks.
    """

    policy: RetryPolicy = RetryPolicy(base=0)  # noqa: RUF009 - it is frozen
    deadline: float | None = None
    patience: float | None = None
    calls: list[str] = attrs.field(factory=list)
    admission: Admission = attrs.field(init=False)
    run: BulkRun = attrs.field(init=False)
    tries: BulkTries = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.admission = Admission(None, 100)
        self.run = BulkRun(
            asyncio.get_running_loop(),
            self.patience,
            on_sent=lambda key: self.calls.append(f"sent {key}"),
            on_pause=lambda: self.calls.append("pause"),
            on_resume=lambda: self.calls.append("resume"),
            on_stop=lambda: self.calls.append("stop"),
        )
        request = Request(
            "POST", "https://loops.invalid", b"{}", "k", None, 30.0, self.deadline
        )
        self.tries = BulkTries(request, self.policy, now(), None, self.run, None)

    async def start(self, at: float) -> float | None:
        """Start an attempt that gets its permit at that time; return its timeout."""
        await asyncio.sleep(at - now() - self.tries.wait)
        permit = await self.tries.may_start(self.admission)
        permit.unused()
        return self.tries.begin()


# The deadline.


def test_the_deadline_in_a_run_begins_with_the_first_attempt_of_the_event() -> None:
    async def main() -> None:
        event = AttemptsOfEvent(deadline=5.0)
        assert event.tries.end is None
        await event.start(100.0)
        assert event.tries.end == 105.0

    virtual.run(main())


def test_the_deadline_never_shortens_the_first_attempt() -> None:
    async def main() -> None:
        event = AttemptsOfEvent(deadline=5.0)
        assert await event.start(100.0) == 5.0
        assert not event.tries.cut_by_deadline
        assert event.tries.judge(failing(), 102.0) is None
        assert await event.start(200.0) == 3.0
        assert event.tries.cut_by_deadline

    virtual.run(main())


def test_an_event_of_a_run_without_a_deadline_has_no_end() -> None:
    async def main() -> None:
        event = AttemptsOfEvent()
        assert await event.start(100.0) == 30.0
        assert event.tries.end is None
        assert event.tries.judge(failing(), 1e9) is None

    virtual.run(main())


def test_attempts_count_towards_the_deadline_and_waits_for_permits_do_not() -> None:
    async def main() -> None:
        event = AttemptsOfEvent(deadline=5.0)
        await event.start(0.0)
        assert event.tries.judge(failing(), 2.0) is None
        await event.start(1000.0)  # the event has waited for a permit
        assert event.tries.end == 1003.0
        late = event.tries.judge(failing(), 1003.0)
        assert isinstance(late, errors.DeadlineExceededError)
        assert late.args[0] == (
            "the deadline of 5 s leaves no time for another attempt; "
            "the last error: Loops refused"
        )
        assert (late.idempotency_key, late.attempts) == ("k", 2)
        assert late.retryable
        assert late.maybe_accepted

    virtual.run(main())


def test_a_pause_between_attempts_counts_towards_the_deadline() -> None:
    async def main() -> None:
        policy = RetryPolicy(base=1000, cap=1000)
        event = AttemptsOfEvent(policy, deadline=5.0)
        await event.start(0.0)
        while event.tries.judge(failing(), 0.0) is None:
            assert event.tries.wait < 5.0
        assert event.tries.wait > 0

    virtual.run(main())


@pytest.mark.parametrize("retry_after", [3.0, 60.0])
def test_a_retry_after_does_not_count_towards_the_deadline(retry_after: float) -> None:
    async def main() -> None:
        event = AttemptsOfEvent(deadline=5.0)
        await event.start(0.0)
        assert event.tries.judge(failing(retry_after), 1.0) is None
        assert event.tries.wait == retry_after
        await event.start(100.0)
        assert event.tries.end == 104.0

    virtual.run(main())


def test_a_retry_after_of_more_than_a_minute_is_left_to_the_run() -> None:
    """The event itself would be retried at once."""

    async def main() -> None:
        event = AttemptsOfEvent()
        await event.start(0.0)
        assert event.tries.judge(failing(3600.0), 1.0) is None
        assert event.tries.wait == 0.0

    virtual.run(main())


def test_a_last_attempt_that_the_deadline_cut_short_raises_deadline_exceeded() -> None:
    async def main() -> None:
        policy = RetryPolicy(attempts=1, base=0)
        event = AttemptsOfEvent(policy, deadline=5.0)
        await event.start(0.0)
        late = event.tries.judge(timed_out(), 5.0)
        assert isinstance(late, errors.DeadlineExceededError)
        in_time = AttemptsOfEvent(policy, deadline=5.0)
        await in_time.start(0.0)
        error = timed_out()
        assert in_time.tries.judge(error, 4.0) is error

    virtual.run(main())


# Held attempts, which cost the event nothing.


@pytest.mark.parametrize("make", [rate_limited, failing, unreachable, timed_out])
def test_a_held_attempt_counts_neither_as_an_attempt_nor_towards_the_deadline(
    make: MakeError,
) -> None:
    async def main() -> None:
        event = AttemptsOfEvent(RetryPolicy(attempts=2, base=0), deadline=5.0)
        for turn in range(20):
            await event.start(turn * 100.0)
            event.tries.hold(make())
        await event.start(5000.0)
        assert event.tries.end == 5005.0
        assert event.tries.judge(failing(), 5001.0) is None
        await event.start(6000.0)
        last = failing()
        assert event.tries.judge(last, 6001.0) is last
        assert last.attempts == 22

    virtual.run(main())


def test_a_held_attempt_that_was_ambiguous_makes_the_event_ambiguous() -> None:
    async def main() -> None:
        event = AttemptsOfEvent()
        await event.start(0.0)
        event.tries.hold(timed_out())
        refusal = bad_request()
        await event.start(1.0)
        assert event.tries.judge(refusal, 1.0) is refusal
        assert refusal.maybe_accepted

    virtual.run(main())


def test_a_held_429_counts_for_only_rate_limited() -> None:
    async def main() -> None:
        event = AttemptsOfEvent()
        await event.start(0.0)
        event.tries.hold(rate_limited())
        assert event.tries.only_rate_limited
        event.tries.hold(lost())
        assert not event.tries.only_rate_limited

    virtual.run(main())


def test_a_held_attempt_waits_for_the_pause_of_the_policy_or_the_retry_after() -> None:
    """In an outage the circuit breaker has pauses of its own."""

    async def main() -> None:
        event = AttemptsOfEvent(RetryPolicy(base=1000, cap=1000))
        await event.start(0.0)
        event.tries.hold(failing())
        assert event.tries.wait > 0
        event.tries.hold(failing(), pause=False)
        assert event.tries.wait == 0
        event.tries.hold(failing(7.0), pause=False)
        assert event.tries.wait == 7.0

    virtual.run(main())


# How an attempt of a run ends.


def test_a_final_error_ends_an_event_of_a_run() -> None:
    async def main() -> None:
        event = AttemptsOfEvent(deadline=5.0)
        await event.start(0.0)
        refusal = bad_request()
        assert event.tries.failed(refusal, 9.0, event.admission) is refusal
        assert (refusal.idempotency_key, refusal.attempts) == KEY_AND_ATTEMPTS
        assert event.calls == ["sent k"]

    virtual.run(main())


def test_an_event_that_waits_for_another_attempt_pauses_and_resumes() -> None:
    """Only its first request is reported as sent."""

    async def main() -> None:
        event = AttemptsOfEvent()
        await event.start(0.0)
        assert event.tries.failed(failing(), 1.0, event.admission) is None
        await event.start(2.0)
        assert event.calls == ["sent k", "pause", "resume"]

    virtual.run(main())


def test_a_429_stalls_the_run_and_a_refusal_is_progress() -> None:
    async def main() -> None:
        event = AttemptsOfEvent()
        await event.start(0.0)
        assert event.tries.failed(rate_limited(), 1.0, event.admission) is None
        assert event.run.stalled
        await event.start(2.0)
        refusal = bad_request()
        assert event.tries.failed(refusal, 3.0, event.admission) is refusal
        assert not event.run.stalled

    virtual.run(main())


def test_the_only_event_of_a_stalled_run_fails_when_the_patience_ends() -> None:
    """The run then goes on."""

    async def main() -> None:
        event = AttemptsOfEvent(patience=10.0)
        await event.start(0.0)
        assert event.tries.failed(rate_limited(), now(), event.admission) is None
        await event.start(20.0)
        assert event.run.one_event_stuck
        error = rate_limited()
        assert event.tries.failed(error, now(), event.admission) is error
        assert error.attempts == 2
        assert not event.run.stalled
        assert event.run.stopped_by is None

    virtual.run(main())


# The end of the run.


def test_an_event_that_was_never_sent_is_not_tried_if_the_run_stops() -> None:
    async def main() -> None:
        event = AttemptsOfEvent()
        event.run.stop(errors.AuthenticationError("bad key"))
        with pytest.raises(errors.NotTriedError) as raised:
            await event.tries.may_start(event.admission)
        error = raised.value
        assert str(error) == "not tried: bad key"
        assert (error.idempotency_key, error.attempts) == ("k", 0)
        assert error.retryable
        assert not error.maybe_accepted

    virtual.run(main())


@pytest.mark.parametrize("make", RETRIED)
def test_an_event_that_was_sent_ends_with_its_last_error_if_the_run_stops(
    make: MakeError,
) -> None:
    async def main() -> None:
        event = AttemptsOfEvent()
        await event.start(0.0)
        last = make()
        event.tries.hold(last)
        event.run.stop(errors.ClientClosedError("closed"))
        with pytest.raises(errors.LoopsError) as raised:
            await event.tries.may_start(event.admission)
        assert raised.value is last
        assert (last.idempotency_key, last.attempts) == KEY_AND_ATTEMPTS
        assert last.maybe_accepted is make().maybe_accepted

    virtual.run(main())


def test_a_closed_client_stops_the_run() -> None:
    async def main() -> None:
        event = AttemptsOfEvent()
        event.admission.close()
        with pytest.raises(errors.NotTriedError, match="the client is closed"):
            await event.tries.may_start(event.admission)
        assert isinstance(event.run.stopped_by, errors.ClientClosedError)
        assert event.calls == ["stop"]

    virtual.run(main())


def test_a_permit_granted_in_the_turn_of_closing_ends_unused() -> None:
    """The event is not tried, and the connection is free again."""

    async def main() -> None:
        event = AttemptsOfEvent()
        event.admission = admission = Admission(None, 1)
        assert admission.connections is not None
        permit = admission.try_enter(bulk=True)
        assert permit is not None
        waiting = asyncio.create_task(event.tries.may_start(admission))
        await asyncio.sleep(1)
        permit.unused()
        admission.close()
        with pytest.raises(errors.NotTriedError):
            await waiting
        assert admission.connections.free == 1

    virtual.run(main())


@given(
    st.lists(
        st.tuples(st.sampled_from(RETRIED), st.booleans(), st.floats(0, 9)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 10),
    st.none() | st.floats(0.1, 30),
)
def test_an_event_of_a_run_ends_within_its_attempts_and_its_deadline(
    results: list[tuple[MakeError, bool, float]],
    attempts: int,
    deadline: float | None,
) -> None:
    """Held attempts do not count."""

    async def main() -> None:
        event = AttemptsOfEvent(RetryPolicy(attempts=attempts), deadline)
        tries = event.tries
        time = spent = 0.0
        counted = 0
        ambiguous = False
        for make, held, took in results:
            time += 1000.0  # the event waits for a permit
            await event.start(time)
            if deadline is not None:
                assert tries.end == pytest.approx(time + deadline - spent)
            time += took
            await asyncio.sleep(took)
            error = make()
            ambiguous = ambiguous or error.maybe_accepted
            if held:
                tries.hold(error)
                continue
            counted += 1
            final = tries.judge(error, now())
            spent += took + tries.wait
            if deadline is not None and abs(spent - deadline) < EXACT:
                return
            late = deadline is not None and spent > deadline
            assert (final is not None) is (counted >= attempts or late)
            if final is not None:
                assert final.maybe_accepted is ambiguous
                assert final.attempts == tries.attempts
                return

    virtual.run(main())
