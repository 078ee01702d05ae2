"""What a client has done, and how it stands."""

import attrs


@attrs.define
class Counts:
    """What has become of the calls of one client in one event loop."""

    requests: int = 0
    limited: int = 0
    accepted: int = 0
    duplicates: int = 0
    failures: int = 0
    unknown: int = 0

    def add(self, other: "Counts") -> None:
        for field in attrs.fields(Counts):
            both = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, both)


@attrs.frozen(kw_only=True)
class ClientStats:
    """What a client has done since it was made, and how it stands now.

    Attributes:
        requests: Made, every attempt counted.
        limited: Answers that were a 429.
        accepted: Calls that Loops took.
        duplicates: Calls that Loops had taken before (409).
        failures: Calls that Loops did not take, refused before the network
            not counted.
        unknown: Calls that ended in an error, and nobody knows.
        in_flight: Requests under way.
        waiting: Calls that wait for a permit, the end of an outage, or their
            next attempt.
        limit: Permits of the rate limiter; None is no limit.
        period: Seconds in which each is given once; None without a limit.
        effective_limit: How many of them this process uses: fewer than `limit` while
            others use the same key. None without a limit.
        held: Seconds for which a 429 still holds all sends.
        outage: Whether the sends of the running event loop are held because
            Loops does not answer, or with errors only.
    """

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
