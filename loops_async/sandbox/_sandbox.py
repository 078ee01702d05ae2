"""The sandbox itself: settings in, an address and a record of what came out."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import attrs

from . import _settings as check
from ._api import Loops
from ._assertions import ANYTHING, Anything, describe, matching
from ._behaviour import Behaviour
from ._records import Counts, SandboxContact, SandboxEvent, SandboxRequest
from ._settings import Leg
from ._team import Team
from ._windows import WindowKind, make_window
from ._wire import API
from ._world import World

if TYPE_CHECKING:
    from ._edge import Edge

DOCUMENTED_LISTS: Mapping[str, str] = {"cm06f5v0e45nf0ml5754o9cix": "Main list"}
_DEFAULT_LIMIT = 10


def _own_clock() -> Callable[[], float]:
    started = time.monotonic()
    return lambda: time.monotonic() - started


_SECONDS: Any = {"converter": check.leg, "validator": check.check_leg}


@attrs.define(kw_only=True, eq=False, repr=False, on_setattr=attrs.setters.frozen)
class Sandbox:
    """A Loops of your own: a stateful local imitation of the Loops API.

    Point any Loops client at ``url`` with ``api_key``. Contacts, mailing lists, rate
    windows and idempotency keys behave as documented; what is not documented is a
    switch of ``behaviour``. Not for the open internet.

    Leave it with ``aclose``, or use it with ``async with``; either way what it holds
    can still be read afterwards. It may be read and steered from other threads than
    the one it is served in. All times are in seconds. Bad settings raise ValueError.

    Args:
        api_key: The key that is let in. Assigning another revokes the first.
        host: The interface to listen on.
        port: The port to listen on, 0 for a free one.
        rate_limit: Requests the team may make per ``period``; None for no limit, and
            then no ``x-ratelimit-*`` headers. Loops allows 10 a second.
        period: Length of the rate window.
        window: "sliding" (no stretch of a period holds more than the limit),
            "fixed" (it starts anew at each multiple of a period) or "bucket"
            (``rate_limit`` tokens, refilled evenly).
        latency: Round trip, a number or a (low, high) pair drawn from for each
            request; half of it passes before the request is counted, half after.
        latency_before: On top of that, before the request is counted.
        processing: Between being counted and being accepted; the idempotency key is
            in flight meanwhile.
        latency_after: On top of ``latency``, before the answer leaves.
        setup_latency: On top of all, for the first request of each connection.
        faults: Fault name (see ``FAULTS``) to its probability.
        seed: Makes faults and latencies the same in every run, for requests that
            arrive in the same order.
        lists: Mailing lists: id to name, or ids. The default is the one that the
            examples of the Loops documentation use.
        properties: Custom contact properties of the team: name to "string",
            "number", "boolean" or "date".
        behaviour: What is not documented.
        clock: Seconds, never going backwards; by default since construction.
        max_requests: How many requests ``requests`` keeps, None for all.
        max_events: How many events ``events`` keeps, None for all.
    """

    api_key: str = attrs.field(
        default="sandbox-key",
        validator=check.check_key,
        on_setattr=attrs.setters.validate,
    )
    host: str = attrs.field(default="127.0.0.1", validator=check.check_host)
    port: int = attrs.field(default=0, validator=check.check_port)
    rate_limit: int | None = attrs.field(
        default=_DEFAULT_LIMIT, validator=check.check_count
    )
    period: float = attrs.field(default=1.0, validator=check.check_period)
    window: WindowKind = attrs.field(
        default="sliding",
        validator=attrs.validators.in_(("sliding", "fixed", "bucket")),
    )
    latency: float | Leg = attrs.field(default=0.0, **_SECONDS)
    latency_before: float | Leg = attrs.field(default=0.0, **_SECONDS)
    processing: float | Leg = attrs.field(default=0.0, **_SECONDS)
    latency_after: float | Leg = attrs.field(default=0.0, **_SECONDS)
    setup_latency: float | Leg = attrs.field(default=0.0, **_SECONDS)
    faults: Mapping[str, float] = attrs.field(
        factory=dict, converter=check.probabilities, validator=check.check_probabilities
    )
    seed: int | str | None = None
    lists: Mapping[str, str] | Iterable[str] = attrs.field(
        default=DOCUMENTED_LISTS, converter=check.named_lists
    )
    properties: Mapping[str, str] = attrs.field(
        factory=dict, converter=check.kinds, validator=check.check_kinds
    )
    behaviour: Behaviour = attrs.field(factory=Behaviour)
    clock: Callable[[], float] = attrs.field(factory=_own_clock)
    max_requests: int | None = attrs.field(default=10_000, validator=check.check_count)
    max_events: int | None = attrs.field(default=None, validator=check.check_count)
    _world: World = attrs.field(init=False, on_setattr=attrs.setters.NO_OP)
    _edge: "Edge | None" = attrs.field(
        init=False, default=None, on_setattr=attrs.setters.NO_OP
    )
    _port: int | None = attrs.field(
        init=False, default=None, on_setattr=attrs.setters.NO_OP
    )

    def __attrs_post_init__(self) -> None:
        legs: Any = (
            self.setup_latency,
            self.latency,
            self.latency_before,
            self.processing,
            self.latency_after,
        )
        self._world = World(
            make_loops=self._make_loops,
            clock=self.clock,
            probabilities=dict(self.faults),
            seed=self.seed,
            legs=legs,
            max_requests=self.max_requests,
            limit=self.rate_limit or _DEFAULT_LIMIT,
            period=self.period,
        )

    def __repr__(self) -> str:
        where = "not started" if self._port is None else self.url
        limit = (
            "no limit"
            if self.rate_limit is None
            else f"{self.rate_limit} per {self.period:g} s {self.window}"
        )
        counts = self.counts
        return (
            f"<Sandbox {where}, {limit}, {counts.requests} requests, "
            f"{counts.accepted} events accepted>"
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Listen; raises OSError if the port is taken, RuntimeError if started."""
        if self._edge is not None:
            raise RuntimeError("the sandbox is started already")
        # With aiohttp's server, which takes a while.
        from ._edge import Edge  # noqa: PLC0415

        edge = Edge(world=self._world)
        self._port = await edge.start(self.host, self.port)
        self._edge = edge

    async def aclose(self) -> None:
        """Drop every connection at once, also those that hang; may be repeated."""
        edge, self._edge = self._edge, None
        if edge is not None:
            await edge.stop()

    @property
    def url(self) -> str:
        """The base URL, ending in ``/api``; RuntimeError before the start."""
        if self._port is None:
            raise RuntimeError("the sandbox has no address before it is started")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._port}{API}"

    @property
    def now(self) -> float:
        """Sandbox time."""
        return self._world.now()

    @property
    def events(self) -> list[SandboxEvent]:
        """The accepted events, oldest first."""
        return list(self._world.loops.team.events)

    @property
    def contacts(self) -> list[SandboxContact]:
        """The contacts as they stand, oldest first."""
        return self._world.loops.team.contacts()

    @property
    def requests(self) -> list[SandboxRequest]:
        """The latest requests, in the order in which their fate was settled."""
        return list(self._world.requests)

    @property
    def counts(self) -> Counts:
        """Totals; unlike the lists, cheap to ask for however much arrived."""
        return self._world.counts()

    def contact(
        self, *, email: str | None = None, user_id: str | None = None
    ) -> SandboxContact | None:
        """The contact with that e-mail, else with that user id, else None."""
        return self._world.loops.team.find(email, user_id)

    def advance(self, seconds: float) -> None:
        """Move sandbox time on without waiting: rate windows, 24-hour keys."""
        self._world.advance(seconds)

    def script(self, *faults: str | None) -> None:
        """Give the next requests these faults, in order; None is none.

        They add to what is scripted already. Random faults resume afterwards.
        ValueError for a name that is not in ``FAULTS``.
        """
        self._world.script(faults)

    def down(self, down: bool = True, /, *, drop: bool = False) -> None:
        """Begin or end an outage: every request gets a 503.

        With ``drop`` its connection is closed instead. Scripted faults wait.
        """
        self._world.down(down, drop=drop)

    def reset(self) -> None:
        """Forget everything but the settings, the address and the time."""
        self._world.reset()

    def assert_event(
        self,
        name: str,
        *,
        email: str | Anything | None = ANYTHING,
        user_id: str | Anything | None = ANYTHING,
        event_properties: Mapping[str, Any] | Anything = ANYTHING,
        contact_properties: Mapping[str, Any] | Anything = ANYTHING,
        mailing_lists: Mapping[str, bool] | Anything = ANYTHING,
        idempotency_key: str | Anything | None = ANYTHING,
        times: int | None = 1,
    ) -> SandboxEvent:
        """Assert that such an event was accepted, and return the first.

        Ids and key must be equal, None meaning absent; the maps may hold more than
        what is given here. ``times`` is how many such events there must be, None for
        one or more. AssertionError lists what did arrive.
        """
        __tracebackhide__ = True  # pytest then shows the line that calls this
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1 or None, not {times!r}")
        wanted = {
            "name": name,
            "email": email,
            "user_id": user_id,
            "event_properties": event_properties,
            "contact_properties": contact_properties,
            "mailing_lists": mailing_lists,
            "idempotency_key": idempotency_key,
        }
        found = matching(self.events, wanted)
        if not found or (times is not None and len(found) != times):
            events = "event" if times in (None, 1) else "events"
            expected = f"{times or 'at least 1'} {events}"
            raise AssertionError(describe(self.events, wanted, expected))
        return found[0]

    def assert_no_event(
        self,
        name: str | Anything = ANYTHING,
        *,
        email: str | Anything | None = ANYTHING,
        user_id: str | Anything | None = ANYTHING,
    ) -> None:
        """Assert that no such event was accepted; without arguments, none at all."""
        __tracebackhide__ = True
        wanted = {"name": name, "email": email, "user_id": user_id}
        if matching(self.events, wanted):
            raise AssertionError(describe(self.events, wanted, "no event"))

    def _make_loops(self) -> Loops:
        lists: Any = self.lists
        window = None
        if self.rate_limit is not None:
            window = make_window(self.window, self.rate_limit, self.period)
        return Loops(
            api_key=lambda: self.api_key,
            team=Team(
                lists=dict(lists),
                properties=dict(self.properties),
                behaviour=self.behaviour,
                events=deque(maxlen=self.max_events),
            ),
            window=window,
            behaviour=self.behaviour,
        )
