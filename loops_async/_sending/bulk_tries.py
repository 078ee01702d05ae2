"""The attempts of one event of a bulk run.

The run shares its waits: an event waits while the run is held, and the waits that
concern every event cost it nothing.
"""

import asyncio
from contextlib import suppress

import attrs

from loops_async._http.api_key import Secret
from loops_async._http.protocol import MAX_RETRY_AFTER
from loops_async.errors import (
    APIError,
    ClientClosedError,
    LoopsError,
    NotTriedError,
    RateLimitError,
)

from .admission import Admission, Permit
from .bulk_run import BulkRun
from .tries import Record, Scope, Tries


@attrs.define(slots=False, eq=False)
class BulkTries(Tries):
    """The attempts of one event of a bulk run.

    The deadline bounds the attempts and the pauses between them, from the first attempt
    on. Waits for the rate limiter, an outage or a Retry-After do not count against the
    deadline, and an attempt that ends in a 429 or an outage does not count against the
    policy.

    Attributes:
        run: The run that the event belongs to.
        record: The record of the attempts, or None.
    """

    run: BulkRun
    record: Record | None

    _counted = 0  # attempts that count against the policy
    _spent = 0.0  # seconds of the deadline that are used up
    _began_attempt = 0.0

    def try_start(self, admission: Admission) -> Permit | None:
        if self.wait or self.run.held_until > self.sent:
            return None
        permit = admission.try_enter(bulk=True)
        if permit is not None:
            self._admitted(self.sent)
        return permit

    async def may_start(self, admission: Admission) -> Permit:
        """Wait until the next attempt may start, and return its permit.

        Raises:
            LoopsError: If the run was stopped, or the client is closed: the
                event's last error, or NotTriedError.
        """
        permit = None
        while permit is None:
            self.refuse_to_start(admission)
            with suppress(TimeoutError):  # the next iteration raises
                async with self.waits(admission, None):
                    await asyncio.sleep(self.wait)
                    permit = await self._enter(admission)
        self.refuse_to_start(admission, permit)
        self._admitted(self.run.loop.time())
        return permit

    async def _enter(self, admission: Admission) -> Permit:
        """Wait until the run is not held, and enter."""
        run = self.run
        while True:
            await asyncio.sleep(run.held_until - run.loop.time())
            if admission.outage and not run.stalled:
                run.note_stall(None)
            permit = await admission.enter(bulk=True)
            if permit is None:
                continue
            if run.held_until <= run.loop.time():
                return permit
            permit.unused()  # the run was held meanwhile

    def waits(self, admission: Admission, end: float | None) -> Scope:
        """Return a scope for a wait, which also ends when the run is stopped."""
        return admission.waits(end, self.run.waiting)

    def refuse_to_start(
        self, admission: Admission, permit: Permit | None = None
    ) -> None:
        if admission.closed:
            self.run.stop(ClientClosedError("the client is closed"))
        stopped_by = self.run.stopped_by
        if stopped_by is None:
            return
        if permit is not None:
            permit.unused()
        if self._last is not None:
            raise self.complete(self._last)
        text = f"not tried: {stopped_by}"
        raise self.complete(NotTriedError(text, retryable=True))

    def _admitted(self, now: float) -> None:
        self.sent = self._began_attempt = now
        if self.request.deadline is not None:
            self.end = now + self.request.deadline - self._spent
        if self.attempts:
            self.run.on_resume()

    def begin(self) -> float | None:
        timeout = super().begin()
        if self.attempts == 1:
            # In a bulk run the deadline never shortens the first attempt.
            self.cut_by_deadline = False
            self.run.on_sent(self.request.key)
        return timeout

    def failed(
        self,
        error: LoopsError,
        now: float,
        admission: Admission,
        api_key: Secret | None = None,
    ) -> LoopsError | None:
        final = self._with_rotation(self._judge_in_run(error, now, admission), api_key)
        if final is None:
            if self.record is not None:
                self.record.after_failure(self.request.key, error)
            self.run.on_pause()
        return final

    def _judge_in_run(
        self, error: LoopsError, now: float, admission: Admission
    ) -> LoopsError | None:
        """Hold the run if every event would fail; return the error if it is final."""
        run = self.run
        outage = admission.outage and error.retryable
        concerns_all = outage or isinstance(error, RateLimitError)
        retry_after = (error.retry_after or 0.0) if isinstance(error, APIError) else 0.0
        long = retry_after > MAX_RETRY_AFTER and error.retryable
        if concerns_all and run.one_event_stuck:
            run.note_progress()
            return self.complete(error)
        if concerns_all or long:
            # After a 429 the limiter, if there is one, holds all calls by itself.
            run_waits = long or (admission.limiter is None and not outage)
            key = self.request.key
            run.note_stall(error, retry_after if run_waits else 0.0, key)
        elif run.stalled and not error.retryable:
            run.note_progress()
        if not concerns_all:
            return self.judge(error, now)
        # In an outage the circuit breaker has pauses of its own.
        self.hold(error, pause=not outage)
        return None

    def hold(self, error: LoopsError, *, pause: bool = True) -> None:
        """Note a 429 or an outage, which does not count against the policy.

        Args:
            error: The error of the attempt.
            pause: Whether to wait before the next attempt even without a Retry-After.
        """
        retry_after = self._note(error)
        self._wait_at_least(retry_after, self.wait if pause else 0.0)

    def judge(self, error: LoopsError, now: float) -> LoopsError | None:
        retry_after = self._note(error)
        self._counted += 1
        late = False
        if self.request.deadline is not None:
            self._spent += now - self._began_attempt + self.wait
            late = self.request.deadline - self._spent <= 0
        self._wait_at_least(retry_after, self.wait)
        final = self._is_final(error, self._counted)
        return self._verdict(error, final=final, late=late)

    def _wait_at_least(self, retry_after: float | None, seconds: float) -> None:
        if retry_after is None or retry_after > MAX_RETRY_AFTER:
            retry_after = 0.0  # the whole run waits for a longer one
        self.wait = max(retry_after, seconds)
