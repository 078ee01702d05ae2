"""The idempotency keys used within the last 24 hours."""

import attrs

KEY_LIFETIME = 24 * 60 * 60.0


@attrs.define
class IdempotencyKeys:
    """The idempotency keys of one team.

    Of the simulated routes, only ``events/send`` takes keys, so there is one scope.
    """

    _used_at: dict[str, float] = attrs.field(init=False, factory=dict)
    _in_flight: set[str] = attrs.field(init=False, factory=set)

    def __len__(self) -> int:
        """Return the number of used keys in memory."""
        return len(self._used_at)

    def is_used(self, key: str, now: float) -> bool:
        """Return whether the key was used less than 24 hours ago."""
        used_at = self._used_at.get(key)
        return used_at is not None and now - used_at < KEY_LIFETIME

    def is_in_flight(self, key: str) -> bool:
        """Return whether a request with the key has begun and not ended."""
        return key in self._in_flight

    def begin(self, key: str) -> None:
        """Mark the key as in flight."""
        self._in_flight.add(key)

    def end(self, key: str) -> None:
        """Mark the key as no longer in flight."""
        self._in_flight.discard(key)

    def mark_used(self, key: str, now: float) -> None:
        """Remember the key for 24 hours from now, and drop the expired keys."""
        self._used_at.pop(key, None)
        self._used_at[key] = now
        while now - self._used_at[oldest := next(iter(self._used_at))] >= KEY_LIFETIME:
            del self._used_at[oldest]
