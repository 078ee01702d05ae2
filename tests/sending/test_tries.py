"""The attempts of a single call: pure decisions, with the time as an argument."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import virtual_time as virtual

from loops_async import Attempt, RetryPolicy, errors
from loops_async._http.protocol import MAX_RETRY_AFTER
from loops_async._http.request import Request
from loops_async._sending.admission import Admission
from loops_async._sending.tries import Tries

from .support import (
    RETRIED,
    MakeError,
    api_error,
    bad_request,
    failing,
    lost,
    rate_limited,
    timed_out,
    unreachable,
)

KEY_AND_ATTEMPTS = ("k", 1)


def make_tries(
    attempts: int = 1,
    *,
    policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
    repeatable: bool = True,
    end: float | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
) -> Tries:
    """Return tries after that many attempts."""
    request = Request(
        method="POST",
        url="https://loops.example/api/v1/events/send",
        body=b"{}",
        key="k",
        content=None,
        timeout=timeout,
        deadline=deadline,
        repeatable=repeatable,
    )
    tries = Tries(request, policy, 0.0, end)
    tries.attempts = attempts
    return tries


# The decision after an attempt.


@pytest.mark.parametrize("make", RETRIED)
def test_an_error_that_may_not_recur_is_retried(make: MakeError) -> None:
    tries = make_tries()
    assert tries.judge(make(), 0.0) is None
    assert 0 <= tries.wait <= 0.5
    assert tries.ambiguous is make().maybe_accepted


def test_a_final_error_is_raised_with_key_and_attempts() -> None:
    tries = make_tries()
    refused = bad_request()
    assert tries.judge(refused, 0.0) is refused
    assert (refused.idempotency_key, refused.attempts) == KEY_AND_ATTEMPTS
    assert (refused.retryable, refused.maybe_accepted) == (False, False)


@pytest.mark.parametrize("make", RETRIED)
def test_the_error_of_the_last_attempt_is_raised(make: MakeError) -> None:
    tries = make_tries(attempts=3, policy=RetryPolicy(attempts=3))
    error = make()
    assert tries.judge(error, 0.0) is error
    assert error.attempts == 3
    assert error.retryable


@pytest.mark.parametrize("make", RETRIED)
def test_a_policy_of_one_attempt_means_no_retry(make: MakeError) -> None:
    error = make()
    assert make_tries(policy=RetryPolicy(attempts=1)).judge(error, 0.0) is error


def test_the_attempts_of_an_event_are_counted_together() -> None:
    tries = make_tries(attempts=0, policy=RetryPolicy(attempts=4, base=0))
    results = []
    for _ in range(4):
        tries.attempts += 1
        results.append(tries.judge(failing(), 0.0))
    assert results[:3] == [None] * 3
    assert results[3] is not None


@pytest.mark.parametrize("make", [failing, lost, timed_out])
def test_an_ambiguous_attempt_that_must_not_be_repeated_is_not_retried(
    make: MakeError,
) -> None:
    error = make()
    assert make_tries(repeatable=False).judge(error, 0.0) is error
    assert error.maybe_accepted


@pytest.mark.parametrize("make", [rate_limited, unreachable])
def test_an_attempt_that_was_certainly_not_accepted_is_retried(make: MakeError) -> None:
    assert make_tries(repeatable=False).judge(make(), 0.0) is None


def test_one_ambiguous_attempt_makes_the_event_unknown_whatever_follows() -> None:
    tries = make_tries()
    assert tries.judge(failing(), 0.0) is None
    tries.attempts = 2
    last = bad_request()
    assert tries.judge(last, 0.0) is last
    assert last.maybe_accepted
    assert str(last).endswith("(after 2 attempts); the event may have been accepted")


# Whether every attempt was refused with a 429, so that a 409 is ambiguous.


def test_an_event_is_only_rate_limited_while_every_response_was_a_429() -> None:
    tries = make_tries(attempts=0)
    states = []
    for error in (rate_limited(), rate_limited(), failing(), rate_limited()):
        tries.attempts += 1
        tries.judge(error, 0.0)
        states.append(tries.only_rate_limited)
    assert states == [True, True, False, False]


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_an_attempt_that_did_not_connect_does_not_change_only_rate_limited(
    first: bool,
) -> None:
    """Such an attempt cannot have used up the key."""
    tries = make_tries(attempts=1)
    assert not tries.only_rate_limited
    tries.judge(unreachable() if first else rate_limited(), 0.0)
    assert tries.only_rate_limited is not first
    tries.attempts = 2
    tries.judge(rate_limited() if first else unreachable(), 0.0)
    assert tries.only_rate_limited


# The wait before the next attempt.


def test_the_first_lost_connection_is_retried_at_once() -> None:
    """Most likely the connection was an idle one that the server had closed."""
    policy = RetryPolicy(base=1000, cap=1000)
    tries = make_tries(policy=policy)
    assert tries.judge(lost(), 0.0) is None
    assert tries.wait == 0
    second = make_tries(attempts=2, policy=policy)
    assert second.judge(lost(), 0.0) is None
    assert second.wait > 0
    other = make_tries(policy=policy)
    other.judge(timed_out(), 0.0)
    assert other.wait > 0


@given(st.floats(0, MAX_RETRY_AFTER), st.integers(1, 9), st.sampled_from([0, 0.5, 50]))
def test_the_wait_is_never_shorter_than_the_retry_after(
    retry_after: float, attempts: int, base: float
) -> None:
    for make in (rate_limited, failing):
        tries = make_tries(attempts, policy=RetryPolicy(base=base, cap=50))
        assert tries.judge(make(retry_after), 0.0) is None
        assert retry_after <= tries.wait <= max(retry_after, 50)


def test_a_retry_after_of_zero_keeps_the_wait_of_the_policy() -> None:
    tries = make_tries(policy=RetryPolicy(base=1000, cap=1000))
    assert tries.judge(rate_limited(0.0), 0.0) is None
    assert tries.wait > 0


@pytest.mark.parametrize("retry_after", [60.001, 86400.0])
def test_a_retry_after_of_more_than_a_minute_raises_the_error_at_once(
    retry_after: float,
) -> None:
    for error in (rate_limited(retry_after), failing(retry_after)):
        assert make_tries().judge(error, 0.0) is error
        assert error.retry_after == retry_after
        assert error.retryable


def test_a_retry_after_of_a_minute_is_waited_for() -> None:
    tries = make_tries()
    assert tries.judge(rate_limited(60.0), 0.0) is None
    assert tries.wait == 60.0


# The deadline.


def test_an_event_without_a_deadline_is_retried_at_any_time() -> None:
    assert make_tries().judge(failing(), 1e9) is None


@pytest.mark.parametrize("make", [failing, rate_limited, unreachable, timed_out])
def test_a_wait_beyond_the_deadline_raises_deadline_exceeded_at_once(
    make: MakeError,
) -> None:
    tries = make_tries(end=10.0, deadline=5.0, policy=RetryPolicy(base=0))
    assert tries.judge(make(), 10.0) is None
    late = tries.judge(make(), 10.001)
    assert isinstance(late, errors.DeadlineExceededError)
    assert isinstance(late, TimeoutError)
    assert late.retryable
    assert late.maybe_accepted is make().maybe_accepted
    assert (late.idempotency_key, late.attempts) == KEY_AND_ATTEMPTS
    expected = (
        "the deadline of 5 s leaves no time for another attempt; the last error: "
    )
    assert late.args[0] == expected + make().args[0]
    assert late.__cause__ is None


def test_a_retry_after_beyond_the_deadline_raises_the_error_of_the_response() -> None:
    error = rate_limited(5.0)
    assert make_tries(end=4.9, deadline=4.9).judge(error, 0.0) is error
    assert error.retry_after == 5.0
    assert (
        make_tries(end=5.0, deadline=5.0, policy=RetryPolicy(base=0)).judge(
            rate_limited(5.0), 0.0
        )
        is None
    )


def test_an_attempt_cut_short_by_the_deadline_raises_deadline_exceeded() -> None:
    """This holds for the last attempt and for one that must not be repeated."""
    for tries in (
        make_tries(end=1.0, deadline=1.0, policy=RetryPolicy(attempts=1)),
        make_tries(end=1.0, deadline=1.0, repeatable=False),
    ):
        late = tries.judge(timed_out(), 1.5)
        assert isinstance(late, errors.DeadlineExceededError)
        assert late.maybe_accepted


def test_an_attempt_that_timed_out_before_the_deadline_raises_the_timeout() -> None:
    error = timed_out()
    tries = make_tries(end=9.0, deadline=9.0, policy=RetryPolicy(attempts=1, base=0))
    assert tries.judge(error, 1.0) is error


def test_a_refusal_after_the_deadline_raises_the_refusal() -> None:
    refused = api_error(errors.AuthenticationError, retryable=False)
    assert make_tries(end=1.0, deadline=1.0).judge(refused, 2.0) is refused


def test_a_deadline_that_passed_before_the_first_attempt_has_its_own_message() -> None:
    late = make_tries(attempts=0, end=1.0, deadline=0.25).deadline_passed()
    assert str(late) == "the deadline of 0.25 s leaves no time for an attempt"
    assert (late.idempotency_key, late.attempts, late.retryable) == ("k", 0, True)
    assert not late.maybe_accepted


def test_no_attempt_starts_after_the_client_was_closed() -> None:
    """The error describes the attempts that were made before."""

    async def main() -> None:
        admission = Admission(None, 1)
        admission.close()
        with pytest.raises(errors.ClientClosedError) as raised:
            make_tries(attempts=0).refuse_to_start(admission)
        assert str(raised.value) == "the client is closed"
        tries = make_tries()
        tries.judge(failing(), 0.0)
        with pytest.raises(errors.ClientClosedError) as raised:
            await tries.may_start(admission)
        text = "the client is closed; the last error: Loops refused"
        assert raised.value.args == (text,)
        assert raised.value.maybe_accepted
        assert raised.value.attempts == 1

    virtual.run(main())


@given(
    st.lists(st.sampled_from(RETRIED), min_size=1, max_size=12),
    st.integers(1, 10),
    st.none() | st.floats(0, 30),
    st.booleans(),
)
def test_an_event_ends_within_its_attempts_and_its_deadline(
    makers: list[MakeError], attempts: int, deadline: float | None, repeatable: bool
) -> None:
    """Its error counts all attempts and is ambiguous if any of them was."""
    tries = make_tries(
        0,
        policy=RetryPolicy(attempts=attempts),
        repeatable=repeatable,
        end=deadline,
        deadline=deadline,
    )
    now = 0.0
    ambiguous = False
    for make in makers:
        tries.attempts += 1
        error = make()
        ambiguous = ambiguous or error.maybe_accepted
        final = tries.judge(error, now)
        if final is not None:
            assert final.maybe_accepted is ambiguous
            assert final.attempts == tries.attempts <= attempts
            assert final.idempotency_key == "k"
            return
        assert tries.attempts < attempts
        assert repeatable or not error.maybe_accepted
        now += tries.wait
        assert deadline is None or now <= deadline


def test_an_attempt_is_a_frozen_record() -> None:
    attempt = Attempt("k", 1, 200, None, 0.1, None)
    assert attempt == Attempt("k", 1, 200, None, 0.1, None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        attempt.number = 2  # type: ignore[misc]
