"""One request to its end: waiting, sending, judging, trying again."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import isawaitable
from typing import Protocol, TypeAlias

from loops_async._http.api_key import KeySource, Secret, checked_api_key, hide_api_key
from loops_async._http.protocol import (
    Request,
    Response,
    plainly_accepted,
    rate_limit,
    refusal,
)
from loops_async._http.redaction import Redactor, redact_api_key
from loops_async._pacing.circuit_breaker import CircuitBreaker
from loops_async._pacing.concurrency import ConcurrencyLimit
from loops_async._pacing.rate_limiter import RateLimiter
from loops_async._pacing.retry_policy import RetryPolicy
from loops_async.errors import (
    APIError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    LoopsError,
    NotTriedError,
    RateLimitError,
    RequestTimeoutError,
    TransportError,
)

from .bulk_run import BulkRun
from .outcomes import Attempt
from .stats import Counts
from .tries import MAX_RETRY_AFTER, BulkTries, Tries

_logger = logging.getLogger("loops_async")


Delivered: TypeAlias = tuple[Response, int, float]
"""The answer that ended a call well, after how many attempts and seconds."""


class Transport(Protocol):
    """What a `AiohttpTransport` does; a test may have one without a network."""

    loop: asyncio.AbstractEventLoop
    max_connections: int

    @property
    def usable(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...
    async def exchange(
        self, call: Request, secret: Secret, limit: float | None
    ) -> Response | TransportError: ...
    async def close(self, grace: float) -> None: ...


class Delivery:
    """Delivers the calls of one client in one event loop."""

    def __init__(
        self,
        transport: Transport,
        *,
        api_key: KeySource,
        limiter: RateLimiter | None,
        policy: RetryPolicy,
        on_attempt: Callable[[Attempt], object] | None,
    ) -> None:
        self.transport = transport
        self._loop = transport.loop
        self._api_key = api_key
        self._limiter = limiter
        self._policy = policy
        self._on_attempt = on_attempt
        self._gate = CircuitBreaker()
        self.counts = Counts()
        # Requests wait here, not in the pool, where they would eat time-outs.
        self._slots: ConcurrencyLimit | None = None
        if limiter is None or limiter.limit > transport.max_connections:
            self._slots = ConcurrencyLimit(transport.max_connections)
        self._waiting: set[asyncio.Timeout] = set()
        self._closing = False

    async def close(self, grace: float) -> None:
        """Turn away what waits, let what is under way end, and close."""
        self._closing = True
        for scope in self._waiting:
            with suppress(RuntimeError):  # it is expiring by itself
                scope.reschedule(self._loop.time())
        await self.transport.close(grace)

    @property
    def waiting(self) -> int:
        """How many calls wait for something else than an answer."""
        return len(self._waiting)

    @property
    def outage(self) -> bool:
        """Whether the gate holds all sends."""
        return not self._gate.is_closed

    def has_room(self) -> bool:
        """Whether one more request could be under way."""
        return self._slots is None or self._slots.free > 0

    async def deliver(self, call: Request, lane: BulkRun | None = None) -> Delivered:
        """Make the call; waits for the gate, a permit, a slot and the answer.

        Args:
            call: What to request.
            lane: The bulk run it is part of; None for a single call.

        Raises:
            LoopsError: complete with key, attempts and ``maybe_accepted``.
        """
        began = sent = self._loop.time()
        if lane is None:
            end = None if call.deadline is None else began + call.deadline
            tried = Tries(self._policy, call, end)
        else:
            record = lane.record
            policy = self._policy if record is None else record.policy
            tried = BulkTries(policy, call)
        while True:
            probe = 0
            if (
                tried.wait
                or (lane is not None and lane.held_until > sent)
                or not self._goes_at_once(lane is not None)
            ):
                probe = await self._admitted(tried, lane)
                sent = self._loop.time()
            if lane is not None:
                assert isinstance(tried, BulkTries)
                tried.begins(sent)
                if tried.attempts:
                    lane.resumed()
            sending = False
            try:
                secret = self._api_key
                if not isinstance(secret, Secret):
                    secret = await self._asked(secret, tried, lane)
                    sent = self._loop.time()
                if lane is not None and lane.record is not None:
                    await lane.record.begins(call.key, tried)
                    sent = self._loop.time()
                end, limit = tried.end, call.timeout
                hurried = end is not None and (limit is None or sent + limit > end)
                if end is not None and hurried:
                    limit = max(end - sent, 0.001)
                tried.attempts += 1
                if lane is not None and tried.attempts == 1:
                    # Of many, an event's first has all the time it can have.
                    hurried = False
                    lane.sent(call.key)
                sending = True
                self.counts.requests += 1
                result: Response | LoopsError = await self.transport.exchange(
                    call, secret, limit
                )
            except BaseException:
                self._gate.abandon(probe=probe)
                self._give_back(sent=sending)
                raise
            finally:
                if self._slots is not None:
                    self._slots.release()
            now = self._loop.time()
            # Under the one name, so that no local keeps what was not cleaned.
            result = self._judged(call, tried, result, secret, probe, hurried)
            if isinstance(result, Response):
                if lane is not None and lane.standing:
                    lane.moves()
                if self._on_attempt is not None or _logger.isEnabledFor(logging.DEBUG):
                    self._tell(call, tried, now - sent, result.status)
                if result.status == 409:
                    self.counts.duplicates += 1
                else:
                    self.counts.accepted += 1
                return result, tried.attempts, now - began
            if lane is None:
                final = tried.failed(result, now)
            else:
                final = self._failed_in(lane, tried, result, now, call.key)
            if isinstance(final, AuthenticationError) and self._may_be_old(
                secret, tried
            ):
                tried.refused = secret, final
                tried.wait, final = 0.0, None
            status = result.status if isinstance(result, APIError) else None
            self._tell(call, tried, now - sent, status, result, final)
            if final is not None:
                raise self._counted(final)
            if lane is not None:
                if lane.record is not None:
                    lane.record.failed(call.key, result)
                lane.paused()
            sent = now

    def _failed_in(
        self,
        lane: BulkRun,
        tried: Tries,
        error: LoopsError,
        now: float,
        key: str | None,
    ) -> LoopsError | None:
        """Note a failed attempt of a bulk run; return the error if it is final."""
        assert isinstance(tried, BulkTries)
        outage = self.outage and error.retryable
        held = outage or isinstance(error, RateLimitError)
        asked = (error.retry_after or 0.0) if isinstance(error, APIError) else 0.0
        long = asked > MAX_RETRY_AFTER and error.retryable
        if held and lane.impatient:
            lane.moves()
            return tried.complete(error)
        if held or long:
            # The limiter, if there is one, sees to what all can wait for.
            run_waits = long or (self._limiter is None and not outage)
            lane.stands(error, asked if run_waits else 0.0, key)
        elif lane.standing and not error.retryable:
            lane.moves()
        if not held:
            return tried.failed(error, now)
        # In an outage the gate has its own pauses.
        tried.held(error, pause=not outage)
        return None

    def _may_be_old(self, secret: Secret, tried: Tries) -> bool:
        """Whether a key that Loops refused may have been rotated meanwhile."""
        return self._api_key is not secret and tried.refused is None

    def _counted(self, error: LoopsError) -> LoopsError:
        if error.maybe_accepted:
            self.counts.unknown += 1
        elif not isinstance(error, NotTriedError):
            self.counts.failures += 1
        return error

    def _goes_at_once(self, bulk: bool) -> bool:
        """Take a permit and a slot if nothing at all has to be waited for."""
        slots = self._slots
        if (
            not self._gate.is_closed
            or self._closing
            or (slots is not None and not slots.free)
            or (self._limiter is not None and not self._limiter.try_acquire(bulk=bulk))
        ):
            return False
        if slots is not None:
            slots.free -= 1
        return True

    async def _admitted(self, tried: Tries, lane: BulkRun | None) -> int:
        """Wait until the next attempt may go out.

        Returns:
            The number of the gate's probe it is, or 0.

        Raises:
            DeadlineExceededError: if there is no time left, or will be none.
            ClientClosedError: if the client was closed.
            LoopsError: if the bulk run was stopped.
        """
        end = tried.end if lane is None else None
        if not self._turns_away(lane) and not self._too_late(tried, end):
            try:
                async with asyncio.timeout_at(end) as scope:
                    with self._watched(scope, lane):
                        await asyncio.sleep(tried.wait)
                        probe = await self._pass(lane)
                if not self._turns_away(lane):
                    return probe
                self._step_back(probe)
            except TimeoutError:
                pass
        raise self._counted(self._why_not(tried, lane))

    def _turns_away(self, lane: BulkRun | None) -> bool:
        return self._closing or (lane is not None and lane.stopped_by is not None)

    def _why_not(self, tried: Tries, lane: BulkRun | None) -> LoopsError:
        if lane is not None:
            assert isinstance(tried, BulkTries)
            lane.stop(ClientClosedError("the client is closed"))  # if it was not yet
            assert lane.stopped_by is not None
            return tried.stopped(lane.stopped_by)
        return tried.closed() if self._closing else tried.deadline_passed()

    @contextmanager
    def _watched(self, scope: asyncio.Timeout, lane: BulkRun | None) -> Iterator[None]:
        """Let the closing of the client, or the end of its run, cut it short."""
        holders = [self._waiting] if lane is None else [self._waiting, lane.waiting]
        for holder in holders:
            holder.add(scope)
        try:
            yield
        finally:
            for holder in holders:
                holder.discard(scope)

    def _too_late(self, tried: Tries, end: float | None) -> bool:
        if end is None:
            return False
        in_line = 0.0 if self._limiter is None else self._limiter.shortest_wait()
        wait = max(tried.wait, self._gate.shortest_wait(), in_line)
        return self._loop.time() + wait > end

    async def _pass(self, lane: BulkRun | None) -> int:
        """Pass the gate, and take a permit and a slot; return the probe it is."""
        while True:
            if lane is not None:
                await asyncio.sleep(lane.held_until - self._loop.time())
                if self.outage and not lane.standing:
                    lane.stands(None)
            probe = await self._gate.acquire()
            try:
                if self._limiter is not None:
                    await self._limiter.acquire(bulk=lane is not None)
                try:
                    if self._slots is not None:
                        await self._slots.acquire()
                except BaseException:
                    self._give_back(sent=False)
                    raise
            except BaseException:
                self._gate.abandon(probe=probe)
                raise
            # The gate may have closed, or the run been held, meanwhile.
            if (probe or self._gate.is_closed) and (
                lane is None or lane.held_until <= self._loop.time()
            ):
                return probe
            self._step_back(probe)

    def _step_back(self, probe: int) -> None:
        """Give back all that was taken for an attempt that is not made."""
        self._gate.abandon(probe=probe)
        self._give_back(sent=False)
        if self._slots is not None:
            self._slots.release()

    def _judged(
        self,
        call: Request,
        tried: Tries,
        result: Response | LoopsError,
        secret: Secret,
        probe: int,
        hurried: bool,  # a time-out was the deadline's doing
    ) -> Response | LoopsError:
        """Give back what the attempt took, and judge how it ended."""
        if isinstance(result, LoopsError):
            hurried = hurried and isinstance(result, RequestTimeoutError)
            if result.retryable and (probe or not hurried):
                self._gate.record_failure(probe=probe)
            else:  # a certificate, or our own haste: no sign of an outage
                self._gate.abandon(probe=probe)
            self._give_back(sent=result.maybe_accepted)
            result.args = (Redactor(secret, call.content)(str(result.args[0])),)
            return result
        if self._limiter is not None:
            self._limiter.release(answered=True, round_trip=result.round_trip)
            if self._limiter.slowed and result.status != 429:
                told = rate_limit(result.headers)
                self._limiter.note_remaining(None if told is None else told.remaining)
        if result.status >= 500:
            self._gate.record_failure(probe=probe)
        else:
            self._gate.record_success()
        if plainly_accepted(result):
            return result
        error = refusal(
            result,
            promised_object=call.promised_object,
            keyed=call.key is not None,
            only_throttled=tried.only_throttled,
            clean=Redactor(secret, call.content),
        )
        if error is None:
            return result
        if isinstance(error, RateLimitError):
            self.counts.limited += 1
            if self._limiter is not None:
                asked = error.retry_after or 0.0
                # What is not waited for here nobody else has to wait for.
                self._limiter.note_rate_limited(
                    asked if asked <= MAX_RETRY_AFTER else 0.0
                )
        return redact_api_key(error, secret)

    def _give_back(self, *, sent: bool) -> None:
        if self._limiter is None:
            return
        if sent:
            self._limiter.release(answered=False)
        else:
            self._limiter.release_unused()

    def _tell(
        self,
        call: Request,
        tried: Tries,
        elapsed: float,
        status: int | None,
        error: LoopsError | None = None,
        final: LoopsError | None = None,
    ) -> None:
        retry_in = tried.wait if error is not None and final is None else None
        if _logger.isEnabledFor(logging.DEBUG):
            _logger.debug(
                "attempt %d: %s in %.0f ms%s",
                tried.attempts,
                status if error is None else error.args[0],
                elapsed * 1000,
                "" if retry_in is None else f", again in {retry_in:.1f} s",
            )
        if self._on_attempt is None:
            return
        attempt = Attempt(call.key, tried.attempts, status, error, elapsed, retry_in)
        try:
            self._on_attempt(attempt)
        except Exception as raised:  # noqa: BLE001 - a hook changes no outcome
            _logger.error("on_attempt raised %s", type(raised).__name__)

    async def _asked(
        self, source: KeySource, tried: Tries, lane: BulkRun | None
    ) -> Secret:
        """Ask the callable for the key of now, within the deadline."""
        key: object = None
        failure = ""
        scope = asyncio.timeout_at(tried.end)
        try:
            async with scope:
                with self._watched(scope, lane):
                    key = await _answer_of(source)
        except Exception as error:  # noqa: BLE001 - its frames may hold the key
            failure = f"api_key: the callable raised {type(error).__name__}"
        if self._turns_away(lane):
            raise self._counted(self._why_not(tried, lane))
        if scope.expired():
            raise self._counted(tried.deadline_passed())
        if failure:
            raise self._counted(tried.complete(ConfigurationError(failure)))
        try:
            secret = checked_api_key(key)
        except ConfigurationError as unusable:
            self._counted(tried.complete(unusable))
            raise
        if tried.refused is not None and tried.refused[0] == secret:
            raise self._counted(tried.complete(tried.refused[1]))
        return secret


async def _answer_of(source: KeySource) -> object:
    assert callable(source)
    given = source()
    return hide_api_key(await given if isawaitable(given) else given)
