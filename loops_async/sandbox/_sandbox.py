"""The public face of the sandbox: its settings, controls, records and assertions."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import attrs

from . import _settings as check
from ._api import Api
from ._assertions import ANYTHING, Anything, describe, matching
from ._behaviour import Behaviour
from ._in_memory import respond
from ._records import (
    Counts,
    SandboxContact,
    SandboxEvent,
    SandboxRequest,
    SandboxResponse,
)
from ._settings import Range
from ._simulator import DelayRanges, Simulator
from ._team import Team
from ._windows import WindowKind, make_window
from ._wire import API, NO_ITEMS

if TYPE_CHECKING:
    from ._edge import Edge

DOCUMENTED_LISTS: Mapping[str, str] = {"cm06f5v0e45nf0ml5754o9cix": "Main list"}
_DEFAULT_LIMIT = 10


def _clock_from_zero() -> Callable[[], float]:
    started = time.monotonic()
    return lambda: time.monotonic() - started


_SECONDS: Any = {"converter": check.as_range, "validator": check.check_range}


@attrs.define(kw_only=True, eq=False, repr=False, on_setattr=attrs.setters.frozen)
class Sandbox:
    """A stateful local imitation of the Loops API.

    Point any Loops client at ``url`` with ``api_key``. Contacts, mailing lists, rate
    windows and idempotency keys follow the documentation of the API; ``behaviour``
    holds a switch for each question that the documentation leaves open.

    Use the sandbox with ``async with``, or call ``start`` and ``aclose``; its records
    stay readable afterwards. Other threads may read and control it while it serves.
    All times are in seconds. An invalid setting raises ValueError.

    Args:
        api_key: The valid API key. A new value, assigned later, replaces it at once.
        host: The interface to listen on.
        port: The port to listen on, or 0 for a free port.
        rate_limit: Requests of the team per ``period``, or None for no limit and no
            ``x-ratelimit-*`` headers. Loops allows 10 a second.
        period: The length of the rate window.
        window: The algorithm of the rate window: "sliding" (no interval of the length
            of a period contains more requests than the limit), "fixed" (the count
            restarts at each multiple of the period) or "bucket" (``rate_limit``
            tokens, refilled evenly).
        latency: The round trip, as a number or as a (low, high) range from which each
            request draws. Half of it passes before the rate window counts the
            request, half after the request is accepted.
        latency_before: A further delay before the rate window counts the request.
        processing: The delay between that count and the acceptance of the request,
            during which its idempotency key is in flight.
        latency_after: A further delay before the response leaves.
        setup_latency: A further delay for the first request of each connection.
        faults: Fault name (see ``FAULTS``) to its probability.
        seed: The seed of faults and latencies. With a seed, requests that arrive in
            the same order get the same faults and latencies in each run.
        lists: The mailing lists, as ID to name or as IDs. The default is the list in
            the examples of the Loops documentation.
        properties: The custom contact properties of the team, as name to "string",
            "number", "boolean" or "date".
        behaviour: The switches for undocumented behaviour.
        clock: A function that returns seconds and never goes backwards. By default
            the seconds since the sandbox was created.
        max_requests: The number of the latest requests to keep, or None for all.
        max_events: The number of the latest events to keep, or None for all.
    """

    api_key: str = attrs.field(
        default="sandbox-key",
        validator=check.check_api_key,
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
    latency: float | Range = attrs.field(default=0.0, **_SECONDS)
    latency_before: float | Range = attrs.field(default=0.0, **_SECONDS)
    processing: float | Range = attrs.field(default=0.0, **_SECONDS)
    latency_after: float | Range = attrs.field(default=0.0, **_SECONDS)
    setup_latency: float | Range = attrs.field(default=0.0, **_SECONDS)
    faults: Mapping[str, float] = attrs.field(
        factory=dict, converter=check.probabilities, validator=check.check_probabilities
    )
    seed: int | str | None = None
    lists: Mapping[str, str] | Iterable[str] = attrs.field(
        default=DOCUMENTED_LISTS, converter=check.named_lists
    )
    properties: Mapping[str, str] = attrs.field(
        factory=dict,
        converter=check.property_types,
        validator=check.check_property_types,
    )
    behaviour: Behaviour = attrs.field(factory=Behaviour)
    clock: Callable[[], float] = attrs.field(factory=_clock_from_zero)
    max_requests: int | None = attrs.field(default=10_000, validator=check.check_count)
    max_events: int | None = attrs.field(default=None, validator=check.check_count)
    _simulator: Simulator = attrs.field(init=False, on_setattr=attrs.setters.NO_OP)
    _edge: "Edge | None" = attrs.field(
        init=False, default=None, on_setattr=attrs.setters.NO_OP
    )
    _port: int | None = attrs.field(
        init=False, default=None, on_setattr=attrs.setters.NO_OP
    )

    def __attrs_post_init__(self) -> None:
        latencies: Any = {  # converted to ranges
            "setup": self.setup_latency,
            "round_trip": self.latency,
            "before": self.latency_before,
            "processing": self.processing,
            "after": self.latency_after,
        }
        self._simulator = Simulator(
            make_api=self._make_api,
            clock=self.clock,
            probabilities=dict(self.faults),
            seed=self.seed,
            ranges=DelayRanges(**latencies),
            max_requests=self.max_requests,
            limit=self.rate_limit or _DEFAULT_LIMIT,
            period=self.period,
        )

    def __repr__(self) -> str:
        address = "not started" if self._port is None else self.url
        limit = (
            "no limit"
            if self.rate_limit is None
            else f"{self.rate_limit} per {self.period:g} s {self.window}"
        )
        counts = self.counts
        return (
            f"<Sandbox {address}, {limit}, {counts.requests} requests, "
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
        """Start to listen.

        Raises:
            OSError: If the port is not available.
            RuntimeError: If the sandbox is already started.
        """
        if self._edge is not None:
            raise RuntimeError("the sandbox is already started")
        # Imported only here, because the import of aiohttp's server takes long.
        from ._edge import Edge  # noqa: PLC0415

        edge = Edge(simulator=self._simulator)
        self._port = await edge.start(self.host, self.port)
        self._edge = edge

    async def aclose(self) -> None:
        """Drop every connection at once, even one that hangs; do nothing if closed."""
        edge, self._edge = self._edge, None
        if edge is not None:
            await edge.stop()

    @property
    def url(self) -> str:
        """The base URL, which ends in ``/api``.

        Raises:
            RuntimeError: If the sandbox was never started.
        """
        if self._port is None:
            raise RuntimeError(
                "the sandbox has no URL before it is started: use async with"
            )
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._port}{API}"

    @property
    def now(self) -> float:
        """The sandbox time in seconds."""
        return self._simulator.now()

    @property
    def events(self) -> list[SandboxEvent]:
        """The accepted events, oldest first."""
        return list(self._simulator.api.team.events)

    @property
    def contacts(self) -> list[SandboxContact]:
        """Snapshots of the contacts, oldest first."""
        return self._simulator.api.team.contacts()

    @property
    def requests(self) -> list[SandboxRequest]:
        """The latest requests, in the order in which their outcomes were decided."""
        return list(self._simulator.requests)

    @property
    def counts(self) -> Counts:
        """The totals, at a cost that does not grow with the number of requests."""
        return self._simulator.counts()

    def contact(
        self, *, email: str | None = None, user_id: str | None = None
    ) -> SandboxContact | None:
        """Return the contact with that email, else with that user ID, else None."""
        return self._simulator.api.team.find(email, user_id)

    def advance(self, seconds: float) -> None:
        """Move the sandbox time forward without waiting.

        Raises:
            ValueError: If ``seconds`` is negative or not finite.
        """
        self._simulator.advance(seconds)

    def script(self, *faults: str | None) -> None:
        """Assign faults to the next requests, in order; None means no fault.

        The faults follow those scripted earlier; random faults resume after them.

        Raises:
            ValueError: If a name is not in ``FAULTS``.
        """
        self._simulator.script(faults)

    def down(self, down: bool = True, /, *, drop: bool = False) -> None:
        """Begin or end an outage, in which every request gets a 503.

        With ``drop`` the sandbox closes the connection instead. Scripted faults wait
        for the end of the outage.
        """
        self._simulator.down(down, drop=drop)

    def reset(self) -> None:
        """Restore the initial state; keep the settings, the address and the time."""
        self._simulator.reset()

    async def respond(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] = NO_ITEMS,
        body: bytes = b"",
    ) -> SandboxResponse:
        """Return the response to a request without a network, in any event loop.

        The sandbox need not be started. Latencies pass in real time, and the request
        is recorded like one from a socket.

        Args:
            method: The method in upper case.
            target: The encoded path and query, such as ``/api/v1/lists``.
            headers: The headers.
            body: The bytes of the body.

        Raises:
            ConnectionError: If a fault or an outage breaks the connection.
            TimeoutError: If a fault lets the request hang; raised without a wait.
            ValueError: If ``target`` is not a path.
        """
        return await respond(self._simulator, method, target, headers, body)

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
        """Check that the sandbox accepted a matching event, and return the first.

        Omitted arguments match any value. IDs and the idempotency key match exactly,
        and None matches an absent value. A mapping matches if the event has at least
        the given entries.

        Args:
            name: The event name.
            email: The email address.
            user_id: The user ID.
            event_properties: Some of the event properties.
            contact_properties: Some of the contact properties.
            mailing_lists: Some of the mailing lists.
            idempotency_key: The idempotency key.
            times: The exact number of matching events, or None for one or more.

        Raises:
            AssertionError: If the number differs; the message lists the events.
            ValueError: If ``times`` is less than 1.
        """
        __tracebackhide__ = True  # pytest shows the line of the caller instead
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
        matches = matching(self.events, wanted)
        if not matches or (times is not None and len(matches) != times):
            noun = "event" if times in (None, 1) else "events"
            expected = f"{times or 'at least 1'} {noun}"
            raise AssertionError(describe(self.events, wanted, expected))
        return matches[0]

    def assert_no_event(
        self,
        name: str | Anything = ANYTHING,
        *,
        email: str | Anything | None = ANYTHING,
        user_id: str | Anything | None = ANYTHING,
    ) -> None:
        """Check that the sandbox accepted no matching event.

        Without arguments, check that it accepted no event at all.

        Raises:
            AssertionError: If there is a matching event.
        """
        __tracebackhide__ = True
        wanted = {"name": name, "email": email, "user_id": user_id}
        if matching(self.events, wanted):
            raise AssertionError(describe(self.events, wanted, "no event"))

    def _make_api(self) -> Api:
        lists: Any = self.lists
        window = None
        if self.rate_limit is not None:
            window = make_window(self.window, self.rate_limit, self.period)
        return Api(
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
