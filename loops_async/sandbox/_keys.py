"""Which idempotency keys were used within the last 24 hours."""

import attrs

REMEMBERED = 24 * 60 * 60.0


@attrs.define
class Keys:
    """The keys of one team on one endpoint.

    Only ``events/send`` takes keys here, so there is one scope to keep.
    """

    _used: dict[str, float] = attrs.field(init=False, factory=dict)
    _in_flight: set[str] = attrs.field(init=False, factory=set)

    def used(self, key: str, now: float) -> bool:
        """Whether the key was burned less than 24 hours ago."""
        at = self._used.get(key)
        return at is not None and now - at < REMEMBERED

    def in_flight(self, key: str) -> bool:
        """Whether a request with the key has begun and not ended."""
        return key in self._in_flight

    def begin(self, key: str) -> None:
        """Mark the key as being processed."""
        self._in_flight.add(key)

    def end(self, key: str) -> None:
        """Mark the key as no longer being processed."""
        self._in_flight.discard(key)

    def burn(self, key: str, now: float) -> None:
        """Remember the key from now on, and forget those past their time."""
        self._used.pop(key, None)
        self._used[key] = now
        while now - self._used[oldest := next(iter(self._used))] >= REMEMBERED:
            del self._used[oldest]
