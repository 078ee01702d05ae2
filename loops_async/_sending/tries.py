"""When to try one event again."""

from collections.abc import Iterator
from typing import Final

from loops_async._http.protocol import Request
from loops_async._pacing.retry_policy import RetryPolicy
from loops_async.errors import (
    APIError,
    ClientClosedError,
    ConnectionLostError,
    DeadlineExceededError,
    LoopsError,
    NotTriedError,
    RateLimitError,
    RequestTimeoutError,
)

MAX_RETRY_AFTER: Final = 60.0  # seconds; who asks for more is not waited for


class Tries:
    """What has become of a call so far, and what is to become of it.

    Args:
        policy: How often and how patiently.
        call: What is tried.
        end: Loop time of its deadline, or None.
    """

    # Defaults, because most calls need no other values.
    attempts = 0
    wait = 0.0  # seconds until the next attempt may begin
    ambiguous = False  # some attempt may have been accepted
    only_throttled = False  # nothing but 429s can have used the key up
    refused: tuple[str, LoopsError] | None = None  # which API key was, and how
    _throttled = False
    _waits: Iterator[float] | None = None
    _last: LoopsError | None = None

    def __init__(
        self, policy: RetryPolicy, call: Request, end: float | None = None
    ) -> None:
        self._policy = policy
        self._call = call
        self.end = end

    def failed(self, error: LoopsError, now: float) -> LoopsError | None:
        """Note how an attempt ended.

        Returns:
            The error to raise, or None to try again after `wait`.
        """
        asked = self._note(error)
        if asked is not None:
            self.wait = max(self.wait, asked)
        late = self.end is not None and now + self.wait > self.end
        if self._is_final(error, self.attempts) or (
            asked is not None and (asked > MAX_RETRY_AFTER or late)
        ):
            cut_short = isinstance(error, RequestTimeoutError) and late
            return self.deadline_passed() if cut_short else self.complete(error)
        return self.deadline_passed() if late else None

    def resumed(self, *, ambiguous: bool) -> None:
        """Note that there were attempts before, made by another process."""
        self.ambiguous = ambiguous
        self._throttled = True  # for all that is known
        self.only_throttled = not ambiguous

    def _note(self, error: LoopsError) -> float | None:
        """Draw the next wait; return the seconds the server asked for."""
        self.ambiguous = self.ambiguous or error.maybe_accepted
        self._throttled = self._throttled or isinstance(error, RateLimitError)
        self.only_throttled = self._throttled and not self.ambiguous
        self._last = error
        if self._waits is None:
            self._waits = self._policy.waits()
        self.wait = next(self._waits)
        if self.attempts == 1 and isinstance(error, ConnectionLostError):
            self.wait = 0.0  # most likely a kept connection that had gone stale
        return error.retry_after if isinstance(error, APIError) else None

    def _is_final(self, error: LoopsError, attempts: int) -> bool:
        return (
            not error.retryable
            or attempts >= self._policy.attempts
            or (error.maybe_accepted and not self._call.repeatable)
        )

    def deadline_passed(self) -> LoopsError:
        """Return the error for a deadline that is over, or certain to be."""
        text = f"the deadline of {self._call.deadline:g} s leaves no time"
        if self.attempts:
            text += " for another attempt"
        return self.complete(DeadlineExceededError(self._with_last(text)))

    def closed(self) -> LoopsError:
        """Return the error for a client that was closed meanwhile."""
        return self.complete(ClientClosedError(self._with_last("the client is closed")))

    def _with_last(self, text: str) -> str:
        return text if self._last is None else f"{text}; the last: {self._last.args[0]}"

    def complete(self, error: LoopsError) -> LoopsError:
        """Give an error what it has to tell of the whole call."""
        error.idempotency_key = self._call.key
        error.attempts = self.attempts
        error.maybe_accepted = self.ambiguous
        if isinstance(error, DeadlineExceededError):
            error.retryable = True
        return error


class BulkTries(Tries):
    """The same for one event of many, which may wait as long as it takes.

    Its deadline bounds the attempts and the pauses between them, from the
    first attempt on. The rate limiter, an outage and what a server asks for
    with Retry-After cost it neither time nor tries.
    """

    _counted = 0  # attempts that cost it a try
    _began = 0.0

    def __init__(self, policy: RetryPolicy, call: Request) -> None:
        super().__init__(policy, call)
        self._left = call.deadline

    def begins(self, now: float) -> None:
        """Note that the next attempt begins; sets its `end`."""
        self._began = now
        if self._left is not None:
            self.end = now + self._left

    def held(self, error: LoopsError, *, pause: bool = True) -> None:
        """Note a 429, or an attempt that ended in an outage.

        Args:
            error: How it ended.
            pause: Whether to wait before the next even if not asked to.
        """
        asked = self._note(error)
        self._wait_as_asked(asked, self.wait if pause else 0.0)

    def failed(self, error: LoopsError, now: float) -> LoopsError | None:
        """Note how an attempt ended otherwise; see `Tries.failed`."""
        asked = self._note(error)
        self._counted += 1
        late = False
        if self._left is not None:
            self._left -= now - self._began + self.wait
            late = self._left <= 0
        self._wait_as_asked(asked, self.wait)
        if self._is_final(error, self._counted):
            cut_short = isinstance(error, RequestTimeoutError) and late
            return self.deadline_passed() if cut_short else self.complete(error)
        return self.deadline_passed() if late else None

    def _wait_as_asked(self, asked: float | None, at_least: float) -> None:
        if asked is None or asked > MAX_RETRY_AFTER:  # then the whole run waits
            asked = 0.0
        self.wait = max(asked, at_least)

    def stopped(self, by: LoopsError) -> LoopsError:
        """Return the error for a run that was stopped meanwhile."""
        if self._last is not None:
            return self.complete(self._last)
        return self.complete(NotTriedError(f"not tried: {by}", retryable=True))
