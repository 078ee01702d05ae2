"""The counters and the state of a client."""

import attrs


@attrs.define
class Counts:
    """The counters of one client in one event loop."""

    requests: int = 0
    limited: int = 0
    accepted: int = 0
    duplicates: int = 0
    failures: int = 0
    unknown: int = 0

    def add(self, other: "Counts") -> None:
        """Add the counts of another event loop."""
        for field in attrs.fields(Counts):
            both = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, both)


@attrs.frozen(kw_only=True)
class ClientStats:
    """The counters of a client since it was made, and its current state.

    Attributes:
        requests: Requests sent; every attempt counts.
        limited: Responses that were a 429.
        accepted: Calls that Loops accepted.
        duplicates: Calls that Loops had accepted before (409).
        failures: Calls that Loops did not accept. Events that were refused before
            the network are not counted.
        unknown: Calls whose outcome is unknown.
        in_flight: Requests in flight.
        waiting: Calls that wait for a permit, for the end of an outage, or for
            their next attempt.
        limit: The permits of the rate limiter; None means no limit.
        period: The period of the rate limiter in seconds; None without a limit.
        effective_limit: The permits that this process uses: fewer than `limit`
            while other processes use the same API key. None without a limit.
        held: Seconds for which a 429 still holds all sends.
        outage: Whether the circuit breaker holds the sends of the running event
            loop, because Loops does not respond, or only with errors.
    """

    __module__ = "loops_async"

    requests: int
    limited: int
    accepted: int
    duplicates: int
    failures: int
    unknown: int
    in_flight: int
    waiting: int
    limit: int | None
    period: float | None
    effective_limit: int | None
    held: float
    outage: bool
