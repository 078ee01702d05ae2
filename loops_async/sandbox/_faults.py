"""Fault injection: the faults, and the plan that assigns them to requests."""

import random
from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import attrs

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "429": "respond with 429, whatever the state of the rate window",
        "500-before": "respond with 500, without accepting",
        "502": "respond with 502 and an HTML page, without accepting",
        "503": "respond with 503 and plain text, without accepting",
        "close-before": "close the connection without accepting or responding",
        "reset-before": "reset the connection (RST) without accepting or responding",
        "garbage-before": "send bytes that are not HTTP, without accepting",
        "hang-before": "never respond, without accepting",
        "500-after": "accept, then respond with 500",
        "html-after": "accept, then respond with 200 and an HTML page",
        "empty-after": "accept, then respond with 200 and an empty body",
        "close-after": "accept, then close the connection without responding",
        "reset-after": "accept, then reset the connection (RST) without responding",
        "truncate-after": "accept, send part of the announced response, then close",
        "garbage-after": "accept, then send bytes that are not HTTP",
        "hang-after": "accept, then never respond",
    }
)
"""The name of every fault with its description.

A fault whose name ends in ``-after`` replaces a 2xx response of the API (the event is
accepted, its idempotency key is used) or a 409 (an earlier request was accepted under
that key). Any other response is sent unchanged, and a scripted fault then waits for
the next request. All other faults strike before the API processes the request, so the
request needs no valid API key and uses no rate limit.
"""


@attrs.frozen
class Fault:
    """The fault of one request."""

    name: str
    scripted: bool

    @property
    def after(self) -> bool:
        """Whether the API processes the request before the fault strikes."""
        return self.name.endswith("-after")


@attrs.define(eq=False)
class FaultPlan:
    """A plan that yields the scripted faults first, then random faults."""

    probabilities: Mapping[str, float]
    rng: random.Random
    _script: deque[str | None] = attrs.field(init=False, factory=deque)

    def extend(self, names: Iterable[str | None]) -> None:
        """Append the faults of the next requests; None means no fault."""
        names = tuple(names)
        for name in names:
            if name is not None:
                check_fault("script", name)
        self._script.extend(names)

    def draw(self) -> Fault | None:
        """Return the fault of the next request, or None."""
        if self._script:
            name = self._script.popleft()
            return None if name is None else Fault(name, scripted=True)
        if not self.probabilities:
            return None
        point = self.rng.random()
        for name, probability in self.probabilities.items():
            point -= probability
            if point < 0:
                return Fault(name, scripted=False)
        return None

    def put_back(self, fault: Fault) -> None:
        """Return a scripted fault that did not strike to the next request."""
        if fault.scripted:
            self._script.appendleft(fault.name)


def check_fault(setting: str, name: object) -> None:
    """Check a fault name.

    Raises:
        ValueError: If ``name`` is not in ``FAULTS``.
    """
    if not isinstance(name, str) or name not in FAULTS:
        known = ", ".join(FAULTS)
        raise ValueError(
            f"{setting}: no fault is named {name!r}; the faults are {known}"
        )
