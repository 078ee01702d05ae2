"""Retrying: a value and a pure decision, so plain calls with time as an argument."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import Attempt, RetryPolicy, errors
from loops_async._http.protocol import Request
from loops_async._sending.tries import MAX_RETRY_AFTER, BulkTries, Tries


def first_waits(policy: RetryPolicy, count: int) -> list[float]:
    """Return the longest waits: those without the luck of jitter."""
    return list(itertools.islice(policy.waits(jitter=lambda longest: longest), count))


def tried(
    attempts: int = 1,
    *,
    policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
    repeatable: bool = True,
    end: float | None = None,
    deadline: float | None = None,
) -> Tries:
    call = Request(
        method="POST",
        url="https://loops.example/api/v1/events/send",
        body=b"{}",
        key="k",
        content=None,
        timeout=None,
        deadline=deadline,
        repeatable=repeatable,
    )
    made = Tries(policy, call, end)
    made.attempts = attempts
    return made


def api_error(
    kind: type[errors.APIError],
    *,
    retryable: bool = True,
    maybe_accepted: bool = False,
    retry_after: float | None = None,
) -> errors.APIError:
    return kind(
        "Loops answered",
        retryable=retryable,
        maybe_accepted=maybe_accepted,
        retry_after=retry_after,
    )


def throttled(retry_after: float | None = None) -> errors.APIError:
    return api_error(errors.RateLimitError, retry_after=retry_after)


def failing(retry_after: float | None = None) -> errors.APIError:
    return api_error(errors.ServerError, maybe_accepted=True, retry_after=retry_after)


def lost() -> errors.TransportError:
    return errors.ConnectionLostError("reset", retryable=True, maybe_accepted=True)


def timed_out() -> errors.TransportError:
    return errors.RequestTimeoutError("slow", retryable=True, maybe_accepted=True)


def unreachable() -> errors.TransportError:
    return errors.ConnectFailedError("refused", retryable=True)


# The policy.


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("attempts", value) for value in (0, -1, 1.5, True, "3", None, math.inf)),
        *(
            (name, value)
            for name in ("base", "cap")
            for value in (-1, -0.5, math.nan, math.inf, "1", None, True)
        ),
    ],
)
def test_a_policy_that_cannot_work_is_refused_at_construction(
    setting: str, value: Any
) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        RetryPolicy(**{setting: value})
    assert f"RetryPolicy.{setting} must be" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_policy_is_a_frozen_value() -> None:
    assert RetryPolicy() == RetryPolicy(attempts=10, base=0.5, cap=20.0)
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RetryPolicy().attempts = 3  # type: ignore[misc]


def test_the_longest_waits_double_up_to_the_cap() -> None:
    assert first_waits(RetryPolicy(), 8) == [0.5, 1, 2, 4, 8, 16, 20, 20]
    assert first_waits(RetryPolicy(base=3, cap=2), 2) == [2, 2]


@pytest.mark.parametrize("settings", [{"base": 0}, {"cap": 0}, {"base": 0, "cap": 0}])
def test_no_base_or_no_cap_is_no_wait(settings: dict[str, float]) -> None:
    policy = RetryPolicy(**settings)  # type: ignore[arg-type]
    assert first_waits(policy, 2000) == [0] * 2000
    assert list(itertools.islice(policy.waits(), 3)) == [0, 0, 0]


def test_the_waits_never_end() -> None:
    """Nor overflow, however small the first and however great the cap."""
    assert first_waits(RetryPolicy(base=1e-9, cap=1e9), 5000)[-1] == 1e9


@given(st.floats(0, 100), st.floats(0, 1000))
def test_jitter_is_full_and_never_above_the_longest_wait(
    base: float, cap: float
) -> None:
    policy = RetryPolicy(base=base, cap=cap)
    longest = first_waits(policy, 12)
    waits = itertools.islice(policy.waits(), 12)
    assert all(0 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert longest == [min(cap, base * 2**n) for n in range(12)]


def test_each_call_draws_its_own_waits() -> None:
    """The schedule's state belongs to the call and not to the policy."""
    policy = RetryPolicy()
    first, second = policy.waits(lambda w: w), policy.waits(lambda w: w)
    assert [next(first), next(first), next(second)] == [0.5, 1, 0.5]


# The decision.

Maker = Callable[[], errors.LoopsError]

OURS = ("k", 1)
RETRIED: list[Maker] = [throttled, failing, lost, timed_out, unreachable]


@pytest.mark.parametrize("make", RETRIED)
def test_what_may_succeed_later_is_tried_again(make: Maker) -> None:
    call = tried()
    assert call.failed(make(), now=0.0) is None
    assert 0 <= call.wait <= 0.5
    assert call.ambiguous is make().maybe_accepted


def test_what_cannot_succeed_is_raised_complete() -> None:
    call = tried()
    refused = api_error(errors.BadRequestError, retryable=False)
    assert call.failed(refused, now=0.0) is refused
    assert (refused.idempotency_key, refused.attempts) == OURS
    assert (refused.retryable, refused.maybe_accepted) == (False, False)


@pytest.mark.parametrize("make", RETRIED)
def test_the_last_attempt_s_error_is_raised_when_all_are_spent(make: Maker) -> None:
    call = tried(attempts=3, policy=RetryPolicy(attempts=3))
    error = make()
    assert call.failed(error, now=0.0) is error
    assert error.attempts == 3
    assert error.retryable


@pytest.mark.parametrize("make", RETRIED)
def test_one_attempt_means_no_retry(make: Maker) -> None:
    error = make()
    assert tried(policy=RetryPolicy(attempts=1)).failed(error, now=0.0) is error


def test_the_attempts_are_counted_over_the_whole_call() -> None:
    call = tried(attempts=0, policy=RetryPolicy(attempts=4, base=0))
    results = []
    for _ in range(4):
        call.attempts += 1
        results.append(call.failed(failing(), now=0.0))
    assert results[:3] == [None] * 3
    assert results[3] is not None


@pytest.mark.parametrize("make", [failing, lost, timed_out])
def test_what_must_not_be_repeated_is_not_tried_again_when_ambiguous(
    make: Maker,
) -> None:
    error = make()
    assert tried(repeatable=False).failed(error, now=0.0) is error
    assert error.maybe_accepted


@pytest.mark.parametrize("make", [throttled, unreachable])
def test_what_was_certainly_not_accepted_may_be_repeated(make: Maker) -> None:
    assert tried(repeatable=False).failed(make(), now=0.0) is None


def test_one_ambiguous_attempt_makes_the_whole_call_so() -> None:
    """Whatever the last error: unknown, not failed."""
    call = tried()
    assert call.failed(failing(), now=0.0) is None
    call.attempts = 2
    last = api_error(errors.BadRequestError, retryable=False)
    assert call.failed(last, now=0.0) is last
    assert last.maybe_accepted
    assert call.closed().maybe_accepted
    assert str(last).endswith("(after 2 attempts); the event may have been accepted")


# Only throttled: what makes a 409 unknown.


def test_a_call_is_only_throttled_while_every_answer_was_429() -> None:
    call = tried(attempts=0)
    seen = []
    for error in (throttled(), throttled(), failing(), throttled()):
        call.attempts += 1
        call.failed(error, now=0.0)
        seen.append(call.only_throttled)
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_what_never_reached_loops_used_no_key_up(first: bool) -> None:
    """So a 409 that follows says as little as after the 429 alone."""
    call = tried(attempts=1)
    assert not call.only_throttled
    call.failed(unreachable() if first else throttled(), now=0.0)
    assert call.only_throttled is not first
    call.attempts = 2
    call.failed(throttled() if first else unreachable(), now=0.0)
    assert call.only_throttled


# How long to wait.


def test_the_first_lost_connection_is_tried_again_at_once() -> None:
    """Most likely it was a kept connection that had gone stale."""
    policy = RetryPolicy(base=1000, cap=1000)
    call = tried(policy=policy)
    assert call.failed(lost(), now=0.0) is None
    assert call.wait == 0
    second = tried(attempts=2, policy=policy)
    assert second.failed(lost(), now=0.0) is None
    assert second.wait > 0
    other = tried(policy=policy)
    other.failed(timed_out(), now=0.0)
    assert other.wait > 0


@given(st.floats(0, MAX_RETRY_AFTER), st.integers(1, 9), st.sampled_from([0, 0.5, 50]))
def test_what_the_server_asks_for_is_never_undercut(
    asked: float, attempts: int, base: float
) -> None:
    for make in (throttled, failing):
        call = tried(attempts, policy=RetryPolicy(base=base, cap=50))
        assert call.failed(make(asked), now=0.0) is None
        assert asked <= call.wait <= max(asked, 50)


def test_who_asks_for_no_wait_is_given_the_usual_one() -> None:
    """A Retry-After of 0 must not turn the back-off off."""
    call = tried(policy=RetryPolicy(base=1000, cap=1000))
    assert call.failed(throttled(0.0), now=0.0) is None
    assert call.wait > 0


@pytest.mark.parametrize("asked", [60.001, 86400.0])
def test_who_asks_for_more_than_a_minute_is_not_waited_for(asked: float) -> None:
    """The status's own error now, with what was asked."""
    for error in (throttled(asked), failing(asked)):
        assert tried().failed(error, now=0.0) is error
        assert error.retry_after == asked
        assert error.retryable


def test_a_minute_is_still_waited_for() -> None:
    call = tried()
    assert call.failed(throttled(60.0), now=0.0) is None
    assert call.wait == 60.0


# The deadline.


def test_without_a_deadline_there_is_always_time() -> None:
    assert tried().failed(failing(), now=1e9) is None


@pytest.mark.parametrize("make", [failing, throttled, unreachable, timed_out])
def test_a_wait_that_passes_the_deadline_is_not_begun(make: Maker) -> None:
    call = tried(end=10.0, deadline=5.0, policy=RetryPolicy(base=0))
    assert call.failed(make(), now=10.0) is None
    late = call.failed(make(), now=10.001)
    assert isinstance(late, errors.DeadlineExceededError)
    assert isinstance(late, TimeoutError)
    assert late.retryable
    assert late.maybe_accepted is make().maybe_accepted
    assert (late.idempotency_key, late.attempts) == OURS
    expected = "the deadline of 5 s leaves no time for another attempt; the last: "
    assert late.args[0] == expected + make().args[0]
    assert late.__cause__ is None


def test_what_the_server_asks_for_beyond_the_deadline_is_its_own_error() -> None:
    error = throttled(5.0)
    assert tried(end=4.9, deadline=4.9).failed(error, now=0.0) is error
    assert error.retry_after == 5.0
    assert (
        tried(end=5.0, deadline=5.0, policy=RetryPolicy(base=0)).failed(
            throttled(5.0), now=0.0
        )
        is None
    )


def test_an_attempt_cut_short_by_the_deadline_is_the_deadline_s_fault() -> None:
    """Even on the last attempt, and even where nothing may be repeated."""
    for call in (
        tried(end=1.0, deadline=1.0, policy=RetryPolicy(attempts=1)),
        tried(end=1.0, deadline=1.0, repeatable=False),
    ):
        late = call.failed(timed_out(), now=1.5)
        assert isinstance(late, errors.DeadlineExceededError)
        assert late.maybe_accepted


def test_an_attempt_that_timed_out_by_itself_stays_a_timeout() -> None:
    error = timed_out()
    call = tried(end=9.0, deadline=9.0, policy=RetryPolicy(attempts=1, base=0))
    assert call.failed(error, now=1.0) is error


def test_a_final_refusal_beats_the_deadline() -> None:
    refused = api_error(errors.AuthenticationError, retryable=False)
    assert tried(end=1.0, deadline=1.0).failed(refused, now=2.0) is refused


def test_a_deadline_that_passed_in_line_says_so() -> None:
    late = tried(attempts=0, end=1.0, deadline=0.25).deadline_passed()
    assert str(late) == "the deadline of 0.25 s leaves no time"
    assert (late.idempotency_key, late.attempts, late.retryable) == ("k", 0, True)
    assert not late.maybe_accepted


def test_a_client_closed_meanwhile_says_so() -> None:
    closed = tried(attempts=0).closed()
    assert isinstance(closed, errors.ClientClosedError)
    assert str(closed) == "the client is closed"
    call = tried()
    call.failed(failing(), now=0.0)
    assert call.closed().args == ("the client is closed; the last: Loops answered",)
    assert call.closed().maybe_accepted


@given(
    st.lists(st.sampled_from(RETRIED), min_size=1, max_size=12),
    st.integers(1, 10),
    st.none() | st.floats(0, 30),
    st.booleans(),
)
def test_a_call_ends_in_time_and_its_books_balance(
    made: list[Maker], attempts: int, deadline: float | None, repeatable: bool
) -> None:
    """No more attempts than allowed, no wait past the end, nothing forgotten."""
    call = tried(
        0,
        policy=RetryPolicy(attempts=attempts),
        repeatable=repeatable,
        end=deadline,
        deadline=deadline,
    )
    now = 0.0
    ambiguous = False
    for make in made:
        call.attempts += 1
        error = make()
        ambiguous = ambiguous or error.maybe_accepted
        final = call.failed(error, now)
        if final is not None:
            assert final.maybe_accepted is ambiguous
            assert final.attempts == call.attempts <= attempts
            assert final.idempotency_key == "k"
            return
        assert call.attempts < attempts
        assert repeatable or not error.maybe_accepted
        now += call.wait
        assert deadline is None or now <= deadline


def test_an_attempt_is_a_frozen_record() -> None:
    attempt = Attempt("k", 1, 200, None, 0.1, None)
    assert attempt == Attempt("k", 1, 200, None, 0.1, None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        attempt.number = 2  # type: ignore[misc]


# One of many.

EXACT = 1e-6  # seconds; what sums of floats may be off


def bulk(
    *,
    attempts: int = 0,
    policy: RetryPolicy = RetryPolicy(base=0),  # noqa: B008 - it is frozen
    deadline: float | None = None,
    timeout: float | None = None,
) -> BulkTries:
    call = Request("POST", "https://loops.example", b"{}", "k", None, timeout, deadline)
    made = BulkTries(policy, call)
    made.attempts = attempts
    return made


def test_the_deadline_of_one_of_many_begins_with_its_first_attempt() -> None:
    call = bulk(deadline=5.0)
    assert call.end is None
    call.begins(100.0)
    assert call.end == 105.0


def test_one_of_many_without_a_deadline_has_no_end() -> None:
    call = bulk(attempts=1)
    call.begins(100.0)
    assert call.end is None
    assert call.failed(failing(), now=1e9) is None


def test_attempts_and_pauses_cost_one_of_many_its_deadline() -> None:
    """What lies between a pause and the next attempt does not."""
    call = bulk(attempts=1, deadline=5.0)
    call.begins(0.0)
    assert call.failed(failing(), now=2.0) is None
    call.begins(1000.0)  # in line for a permit until then
    assert call.end == 1003.0
    late = call.failed(failing(), now=1003.0)
    assert isinstance(late, errors.DeadlineExceededError)
    expected = "the deadline of 5 s leaves no time for another attempt; the last: "
    assert late.args[0] == expected + "Loops answered"
    assert (late.idempotency_key, late.attempts) == OURS
    assert late.retryable
    assert late.maybe_accepted


def test_a_pause_costs_one_of_many_its_deadline_too() -> None:
    call = bulk(attempts=1, deadline=5.0, policy=RetryPolicy(base=1000, cap=1000))
    call.begins(0.0)
    while call.failed(failing(), now=0.0) is None:
        assert call.wait < 5.0
    assert call.wait > 0


@pytest.mark.parametrize("asked", [3.0, 60.0])
def test_what_the_server_asks_for_is_waited_for_at_no_cost(asked: float) -> None:
    call = bulk(attempts=1, deadline=5.0)
    call.begins(0.0)
    assert call.failed(failing(asked), now=1.0) is None
    assert call.wait == asked
    call.begins(100.0)
    assert call.end == 104.0


def test_more_than_a_minute_is_the_run_s_to_wait_for() -> None:
    """So the event is to be tried again as far as it is concerned."""
    call = bulk(attempts=1)
    call.begins(0.0)
    assert call.failed(failing(3600.0), now=1.0) is None
    assert call.wait == 0.0


@pytest.mark.parametrize("make", [throttled, failing, unreachable, timed_out])
def test_what_is_held_costs_one_of_many_neither_tries_nor_time(make: Maker) -> None:
    call = bulk(policy=RetryPolicy(attempts=2, base=0), deadline=5.0)
    for turn in range(20):
        call.begins(turn * 100.0)
        call.attempts += 1
        call.held(make())
    call.begins(5000.0)
    assert call.end == 5005.0
    call.attempts += 1
    assert call.failed(failing(), now=5001.0) is None
    call.begins(6000.0)
    call.attempts += 1
    spent = failing()
    assert call.failed(spent, now=6001.0) is spent
    assert spent.attempts == 22


def test_what_was_held_still_tells_whether_the_event_may_be_in() -> None:
    call = bulk(attempts=1)
    call.held(timed_out())
    refusal = api_error(errors.BadRequestError, retryable=False)
    call.begins(0.0)
    assert call.failed(refusal, now=0.0) is refusal
    assert refusal.maybe_accepted


def test_a_429_that_was_held_counts_for_what_a_409_means() -> None:
    call = bulk(attempts=1)
    call.held(throttled())
    assert call.only_throttled
    call.held(lost())
    assert not call.only_throttled


def test_what_cannot_succeed_ends_one_of_many_at_once() -> None:
    call = bulk(attempts=1, deadline=5.0)
    call.begins(0.0)
    refusal = api_error(errors.BadRequestError, retryable=False)
    assert call.failed(refusal, now=9.0) is refusal
    assert (refusal.idempotency_key, refusal.attempts) == OURS


def test_a_last_attempt_that_the_deadline_cut_short_is_the_deadline_s_fault() -> None:
    call = bulk(attempts=1, deadline=5.0, policy=RetryPolicy(attempts=1))
    call.begins(0.0)
    assert isinstance(call.failed(timed_out(), now=5.0), errors.DeadlineExceededError)
    in_time = bulk(attempts=1, deadline=5.0, policy=RetryPolicy(attempts=1, base=0))
    in_time.begins(0.0)
    error = timed_out()
    assert in_time.failed(error, now=4.0) is error


def test_one_of_many_that_was_never_sent_is_not_tried_when_the_run_stops() -> None:
    error = bulk().stopped(errors.AuthenticationError("bad key"))
    assert isinstance(error, errors.NotTriedError)
    assert str(error) == "not tried: bad key"
    assert (error.idempotency_key, error.attempts) == ("k", 0)
    assert error.retryable
    assert not error.maybe_accepted


@pytest.mark.parametrize("make", RETRIED)
def test_one_that_was_sent_ends_with_its_last_error_when_the_run_stops(
    make: Maker,
) -> None:
    call = bulk(attempts=1)
    last = make()
    call.held(last)
    assert call.stopped(errors.ClientClosedError("closed")) is last
    assert (last.idempotency_key, last.attempts) == OURS
    assert last.maybe_accepted is make().maybe_accepted


@given(
    st.lists(
        st.tuples(st.sampled_from(RETRIED), st.booleans(), st.floats(0, 9)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 10),
    st.none() | st.floats(0.1, 30),
)
def test_one_of_many_spends_no_more_than_it_has(
    made: list[tuple[Maker, bool, float]], attempts: int, deadline: float | None
) -> None:
    """Tries and time are counted without what was held."""
    call = bulk(policy=RetryPolicy(attempts=attempts), deadline=deadline)
    now = spent = 0.0
    counted = 0
    ambiguous = False
    for make, held, took in made:
        now += 1000.0  # in line
        call.begins(now)
        if deadline is not None:
            assert call.end == pytest.approx(now + deadline - spent)
        call.attempts += 1
        now += took
        error = make()
        ambiguous = ambiguous or error.maybe_accepted
        if held:
            call.held(error)
            continue
        counted += 1
        final = call.failed(error, now)
        spent += took + call.wait
        if deadline is not None and abs(spent - deadline) < EXACT:
            return
        late = deadline is not None and spent > deadline
        assert (final is not None) is (counted >= attempts or late)
        if final is not None:
            assert final.maybe_accepted is ambiguous
            assert final.attempts == call.attempts
            return
