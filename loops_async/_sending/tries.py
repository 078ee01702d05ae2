"""The attempts of one request: whether another one follows, and when it may start.

`Tries` serves a single call. `BulkTries`, in a module of its own, serves one event of
a bulk run.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol, TypeAlias

import attrs

from loops_async._http.api_key import Secret
from loops_async._http.protocol import MAX_RETRY_AFTER, Response
from loops_async._http.request import Request
from loops_async._pacing.retry_policy import RetryPolicy
from loops_async.errors import (
    APIError,
    AuthenticationError,
    ClientClosedError,
    ConnectionLostError,
    DeadlineExceededError,
    LoopsError,
    RateLimitError,
    RequestTimeoutError,
)

from .admission import Admission, Permit

_SHORTEST: Final = 0.001  # seconds; the least timeout of an attempt

Scope: TypeAlias = AbstractAsyncContextManager[asyncio.Timeout]


class Resumable(Protocol):
    """The part of `Tries` that a `Record` needs."""

    @property
    def attempts(self) -> int:
        """The number of requests that this process sent."""

    def resumed(self, *, ambiguous: bool) -> None:
        """Note attempts of an earlier run, of which Loops may have accepted one."""


class Record(Protocol):
    """A durable record of the attempts of events, which outlives the process.

    Attributes:
        policy: The number of attempts of an event, and the pauses between them.
    """

    policy: RetryPolicy

    async def before_attempt(self, key: str | None, tries: Resumable) -> None:
        """Record an attempt durably, before its request is sent.

        Raises:
            LoopsError: If the request must not be sent.
        """

    def after_failure(self, key: str | None, error: LoopsError) -> None:
        """Record that an attempt failed and another will follow."""


class _State:
    """The state of the attempts so far; the class attributes are the initial state.

    Attributes:
        attempts: The number of requests that were sent.
        sent: The event loop's time from which the current attempt is measured.
        wait: Seconds until the next attempt may start.
        ambiguous: Whether Loops may have accepted an attempt.
        only_rate_limited: Whether an earlier attempt got a 429, and no earlier attempt
            may have been accepted.
        cut_by_deadline: Whether the deadline shortened the last timeout.
        refused: The API key that Loops refused, and the error.
        response: The response that accepted the request.
        record: The record of the attempts; None if they are not recorded.
    """

    attempts: int = 0
    sent: float = 0.0
    wait: float = 0.0
    ambiguous: bool = False
    only_rate_limited: bool = False
    cut_by_deadline: bool = False
    refused: tuple[Secret, LoopsError] | None = None
    response: Response
    record: "Record | None" = None
    _rate_limited = False
    _waits: Iterator[float] | None = None
    _last: LoopsError | None = None


@attrs.define(slots=False, eq=False)
class Tries(_State):
    """The attempts of a single call.

    Attributes:
        request: The request that is repeated.
        policy: The number of attempts, and the pauses between them.
        began: The event loop's time at which the call began.
        end: The event loop's time at which the deadline passes; None means never.
    """

    request: Request
    policy: RetryPolicy
    began: float
    end: float | None

    def try_start(self, admission: Admission) -> Permit | None:
        """Return a permit if the next attempt may start without a wait."""
        return None if self.wait else admission.try_enter(bulk=False)

    async def may_start(self, admission: Admission) -> Permit:
        """Wait until the next attempt may start, and return its permit.

        Raises:
            DeadlineExceededError: If no time is left, or if the wait certainly takes
                longer than the time left.
            ClientClosedError: If the client is closed.
        """
        self.refuse_to_start(admission)
        loop = asyncio.get_running_loop()
        if self.end is not None:
            wait = max(self.wait, admission.shortest_wait())
            if loop.time() + wait > self.end:
                raise self.deadline_passed()
        permit = None
        with suppress(TimeoutError):
            async with self.waits(admission, self.end):
                await asyncio.sleep(self.wait)
                while permit is None:
                    permit = await admission.enter(bulk=False)
        self.refuse_to_start(admission, permit)
        if permit is None:
            raise self.deadline_passed()
        self.sent = loop.time()
        return permit

    def waits(self, admission: Admission, end: float | None) -> Scope:
        """Return a scope for a wait, which ends when the client is closed."""
        return admission.waits(end)

    def refuse_to_start(
        self, admission: Admission, permit: Permit | None = None
    ) -> None:
        """Raise if no further attempt may start; the permit then ends unused.

        Raises:
            ClientClosedError: If the client is closed.
        """
        if admission.closed:
            if permit is not None:
                permit.unused()
            raise self.complete(
                ClientClosedError(self._with_last("the client is closed"))
            )

    def begin(self) -> float | None:
        """Count an attempt; return its timeout in seconds, or None for no limit."""
        self.attempts += 1
        timeout, end = self.request.timeout, self.end
        if end is None or (timeout is not None and self.sent + timeout <= end):
            self.cut_by_deadline = False
            return timeout
        self.cut_by_deadline = True
        return max(end - self.sent, _SHORTEST)

    def failed(
        self,
        error: LoopsError,
        now: float,
        admission: Admission,  # noqa: ARG002 - BulkTries uses it
        api_key: Secret | None = None,
    ) -> LoopsError | None:
        """Note the error of an attempt, and decide whether another attempt follows.

        Args:
            error: The error of the attempt.
            now: The event loop's time.
            admission: The admission, after the attempt's permit has ended.
            api_key: The API key of the attempt, if a callable returned it.

        Returns:
            The error to raise; None if another attempt follows after `wait` seconds.
        """
        return self._with_rotation(self.judge(error, now), api_key)

    def judge(self, error: LoopsError, now: float) -> LoopsError | None:
        """Note the error; return the error to raise, or None to try again."""
        retry_after = self._note(error)
        if retry_after is not None:
            self.wait = max(self.wait, retry_after)
        late = self.end is not None and now + self.wait > self.end
        final = self._is_final(error, self.attempts) or (
            retry_after is not None and (retry_after > MAX_RETRY_AFTER or late)
        )
        return self._verdict(error, final=final, late=late)

    def _verdict(
        self, error: LoopsError, *, final: bool, late: bool
    ) -> LoopsError | None:
        """Return the error to raise, or None to try again.

        Args:
            error: The error of the attempt.
            final: Whether the error allows no further attempt.
            late: Whether the deadline leaves no time for a further attempt.
        """
        timed_out = late and isinstance(error, RequestTimeoutError)
        if final and not timed_out:
            return self.complete(error)
        return self.deadline_passed() if late else None

    def _with_rotation(
        self, final: LoopsError | None, api_key: Secret | None
    ) -> LoopsError | None:
        """Allow one more attempt if the refused API key may have been rotated."""
        if (
            isinstance(final, AuthenticationError)
            and api_key is not None
            and self.refused is None
        ):
            self.refused = api_key, final
            self.wait = 0.0
            return None
        return final

    def resumed(self, *, ambiguous: bool) -> None:
        """Note attempts of an earlier run, of which Loops may have accepted one."""
        self.ambiguous = ambiguous
        self._rate_limited = True  # unknown, so assume it
        self.only_rate_limited = not ambiguous

    def _note(self, error: LoopsError) -> float | None:
        """Note the error and draw the next wait; return the Retry-After in seconds."""
        self.ambiguous = self.ambiguous or error.maybe_accepted
        self._rate_limited = self._rate_limited or isinstance(error, RateLimitError)
        self.only_rate_limited = self._rate_limited and not self.ambiguous
        self._last = error
        if self._waits is None:
            self._waits = self.policy.waits()
        self.wait = next(self._waits)
        if self.attempts == 1 and isinstance(error, ConnectionLostError):
            self.wait = 0.0  # the kept-alive connection had most likely gone stale
        return error.retry_after if isinstance(error, APIError) else None

    def _is_final(self, error: LoopsError, attempts: int) -> bool:
        return (
            not error.retryable
            or attempts >= self.policy.attempts
            or (error.maybe_accepted and not self.request.repeatable)
        )

    def deadline_passed(self) -> LoopsError:
        """Return the error of a deadline that has passed or is certain to pass."""
        text = f"the deadline of {self.request.deadline:g} s leaves no time"
        text += " for another attempt" if self.attempts else " for an attempt"
        return self.complete(DeadlineExceededError(self._with_last(text)))

    def _with_last(self, text: str) -> str:
        if self._last is None:
            return text
        return f"{text}; the last error: {self._last.args[0]}"

    def complete(self, error: LoopsError) -> LoopsError:
        """Set the attributes of an error that describe the call; return the error."""
        error.idempotency_key = self.request.key
        error.attempts = self.attempts
        error.maybe_accepted = self.ambiguous
        if isinstance(error, DeadlineExceededError):
            error.retryable = True
        return error
