"""The admission of requests to the network, and the permit to send one of them.

A request is admitted when the circuit breaker lets it pass, the rate limiter has a
permit, and a connection is free.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from loops_async._http.protocol import (
    MAX_RETRY_AFTER,
    Response,
    rate_limit,
    retry_after,
)
from loops_async._pacing.circuit_breaker import CircuitBreaker
from loops_async._pacing.concurrency import ConcurrencyLimit
from loops_async.errors import LoopsError, RequestTimeoutError


class Limiter(Protocol):
    """The rate limiter that `Admission` needs, such as a `RateLimiter`.

    Attributes:
        limit: The number of permits.
        slowed: Whether `note_remaining` has an effect.
    """

    limit: int
    slowed: bool

    def try_acquire(self, *, bulk: bool) -> bool:
        """Take a permit if one is free and no caller waits; return whether it did."""

    async def acquire(self, *, bulk: bool) -> None:
        """Take a permit, waiting in line if necessary."""

    def shortest_wait(self) -> float:
        """Return the minimum number of seconds that a new single send would wait."""

    def release(self, *, answered: bool, round_trip: float | None = None) -> None:
        """Return the permit of a request that was sent."""

    def release_unused(self) -> None:
        """Return the permit of a request that was certainly not sent."""

    def note_rate_limited(self, retry_after: float = 0.0) -> None:
        """Note a 429 and its Retry-After in seconds."""

    def note_remaining(self, remaining: int | None) -> None:
        """Note the number of remaining requests in a response, or None."""


class Admission:
    """Admits the requests of one client in the running event loop.

    Args:
        limiter: The rate limiter; None means no limit.
        max_connections: The greatest number of requests in flight.

    Attributes:
        breaker: The circuit breaker.
        limiter: The rate limiter, or None.
        connections: The limit on requests in flight; None if the rate limiter never
            permits more than that.
        waiting: The scopes of the calls that wait for anything but a response.
        closed: Whether further requests are refused.
    """

    def __init__(self, limiter: Limiter | None, max_connections: int) -> None:
        self.breaker: CircuitBreaker = CircuitBreaker()
        self.limiter: Limiter | None = limiter
        self.waiting: set[asyncio.Timeout] = set()
        self.closed: bool = False
        self._loop = asyncio.get_running_loop()
        # A permit that is not a probe has no state, so one object serves all requests.
        self._permit = Permit(self, _NO_PROBE)
        # Requests wait here and not in aiohttp's pool, where waiting would use up
        # their timeouts.
        self.connections: ConcurrencyLimit | None = None
        if limiter is None or limiter.limit > max_connections:
            self.connections = ConcurrencyLimit(max_connections)

    @property
    def outage(self) -> bool:
        """Whether the circuit breaker holds all requests."""
        return not self.breaker.is_closed

    def has_room(self) -> bool:
        """Return whether one more request could be in flight."""
        return self.connections is None or self.connections.free > 0

    def shortest_wait(self) -> float:
        """Return the minimum number of seconds that a new single send would wait."""
        queued = 0.0 if self.limiter is None else self.limiter.shortest_wait()
        return max(self.breaker.shortest_wait(), queued)

    def try_enter(self, *, bulk: bool) -> "Permit | None":
        """Return a permit if the request is admitted without a wait."""
        connections = self.connections
        if (
            not self.breaker.is_closed
            or self.closed
            or (connections is not None and not connections.free)
            or (self.limiter is not None and not self.limiter.try_acquire(bulk=bulk))
        ):
            return None
        if connections is not None:
            connections.free -= 1
        return self._permit

    async def enter(self, *, bulk: bool) -> "Permit | None":
        """Wait until a request is admitted, and return its permit.

        Returns:
            The permit; None if the circuit breaker opened meanwhile, so that the caller
            must enter again.
        """
        probe = await self.breaker.acquire()
        try:
            if self.limiter is not None:
                await self.limiter.acquire(bulk=bulk)
            try:
                if self.connections is not None:
                    await self.connections.acquire()
            except BaseException:
                if self.limiter is not None:
                    self.limiter.release_unused()
                raise
        except BaseException:
            self.breaker.abandon(probe=probe)
            raise
        permit = Permit(self, probe)
        if probe == _NO_PROBE and self.outage:
            permit.unused()
            return None
        return permit

    @asynccontextmanager
    async def waits(
        self, end: float | None, *also_in: set[asyncio.Timeout]
    ) -> AsyncIterator[asyncio.Timeout]:
        """Enter a scope that the deadline or `end_waits` ends with a TimeoutError.

        Args:
            end: The event loop's time at which the deadline passes, or None.
            *also_in: Further sets to which the scope is added, for `end_waits`.

        Raises:
            TimeoutError: If the deadline passes, or `end_waits` ends the scope.
        """
        holders = (self.waiting, *also_in)
        async with asyncio.timeout_at(end) as scope:
            for holder in holders:
                holder.add(scope)
            try:
                yield scope
            finally:
                for holder in holders:
                    holder.discard(scope)

    def close(self) -> None:
        """Admit no further request, and end all waits."""
        self.closed = True
        end_waits(self.waiting, self._loop)


def end_waits(scopes: set[asyncio.Timeout], loop: asyncio.AbstractEventLoop) -> None:
    """End each scope now, as its deadline would."""
    for scope in scopes:
        with suppress(RuntimeError):  # the scope is expiring already
            scope.reschedule(loop.time())


class Permit:
    """The right to send one request; it ends exactly once.

    A connection is released before the rest, so that callers that wait for one keep
    their order.
    """

    __slots__ = ("_admission", "_probe")

    def __init__(self, admission: Admission, probe: int) -> None:
        self._admission = admission
        self._probe = probe  # the number of the circuit breaker's probe

    def unused(self) -> None:
        """End the permit of a request that was not sent."""
        admission = self._admission
        if admission.connections is not None:
            admission.connections.release()
        admission.breaker.abandon(probe=self._probe)
        if admission.limiter is not None:
            admission.limiter.release_unused()

    def answered(self, response: Response) -> None:
        """End the permit of a request that got a response."""
        admission = self._admission
        limiter = admission.limiter
        if admission.connections is not None:
            admission.connections.release()
        if limiter is not None:
            limiter.release(answered=True, round_trip=response.round_trip)
            if response.status == 429:
                seconds = retry_after(response.headers) or 0.0
                # A call does not wait for a Retry-After above this maximum, so other
                # calls are not held for it either.
                limiter.note_rate_limited(
                    seconds if seconds <= MAX_RETRY_AFTER else 0.0
                )
            elif limiter.slowed:
                reported = rate_limit(response.headers)
                limiter.note_remaining(None if reported is None else reported.remaining)
        if response.status >= 500:
            admission.breaker.record_failure(probe=self._probe)
        elif admission.breaker.failures:
            admission.breaker.record_success()

    def unanswered(
        self, error: LoopsError | None = None, *, cut_by_deadline: bool = False
    ) -> None:
        """End the permit of a request that got no response.

        Args:
            error: The error that ended the request; None if its task was cancelled, in
                which case the server may have counted the request.
            cut_by_deadline: Whether the caller's deadline shortened the timeout.
                A timeout then shows an outage only if the request is a probe.
        """
        admission = self._admission
        if admission.connections is not None:
            admission.connections.release()
        shows_outage = error is not None and error.retryable
        if cut_by_deadline and isinstance(error, RequestTimeoutError):
            shows_outage = shows_outage and self._probe != _NO_PROBE
        if shows_outage:
            admission.breaker.record_failure(probe=self._probe)
        else:
            admission.breaker.abandon(probe=self._probe)
        if admission.limiter is not None:
            if error is None or error.maybe_accepted:
                admission.limiter.release(answered=False)
            else:
                admission.limiter.release_unused()


_NO_PROBE: Final = 0
