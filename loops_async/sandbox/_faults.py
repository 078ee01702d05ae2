"""What can go wrong on purpose, and when."""

import random
from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import attrs

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "429": "answer 429, whatever the rate window says",
        "500-before": "answer 500 without accepting",
        "502": "answer 502 with an HTML page, without accepting",
        "503": "answer 503 with plain text, without accepting",
        "close-before": "close the connection without accepting or answering",
        "reset-before": "reset the connection (RST) without accepting or answering",
        "garbage-before": "send bytes that are not HTTP, without accepting",
        "hang-before": "never answer, without accepting",
        "500-after": "accept, then answer 500",
        "html-after": "accept, then answer 200 with an HTML page",
        "empty-after": "accept, then answer 200 with an empty body",
        "close-after": "accept, then close the connection without answering",
        "reset-after": "accept, then reset the connection (RST) without answering",
        "truncate-after": "accept, announce a longer answer than is sent, then close",
        "garbage-after": "accept, then send bytes that are not HTTP",
        "hang-after": "accept, then never answer",
    }
)
"""Every fault by name, with what it does.

Those ending in ``-after`` strike a request that the API has answered with 2xx (the
event is in, its key used) or 409 (it was in before); any other refusal goes out as
it is, and a scripted fault then waits for the next request. The others strike before
the API sees the request: no key is checked, no rate limit used.
"""


@attrs.frozen
class Fault:
    """The fault one request is to meet."""

    name: str
    scripted: bool

    @property
    def after(self) -> bool:
        """Whether the request is processed first."""
        return self.name.endswith("-after")


@attrs.define(eq=False)
class FaultPlan:
    """The scripted faults first, then random ones by their probabilities."""

    probabilities: Mapping[str, float]
    rng: random.Random
    _script: deque[str | None] = attrs.field(init=False, factory=deque)

    def extend(self, names: Iterable[str | None]) -> None:
        """Script the next requests; None is one without a fault."""
        names = tuple(names)
        for name in names:
            if name is not None:
                check_fault("script", name)
        self._script.extend(names)

    def draw(self) -> Fault | None:
        """The fault of the next request."""
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
        """Keep a scripted fault that did not strike for the next request."""
        if fault.scripted:
            self._script.appendleft(fault.name)


def check_fault(setting: str, name: object) -> None:
    """Raise ValueError for a name that is not in ``FAULTS``."""
    if not isinstance(name, str) or name not in FAULTS:
        known = ", ".join(FAULTS)
        raise ValueError(f"{setting}: no fault is named {name!r}; there are {known}")
