"""The simulated service without sockets: API, clock, faults, delays, request log."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from . import _wire
from ._api import AdmittedRequest, Api, limited, rate_headers
from ._faults import FaultPlan
from ._records import Counts, SandboxRequest
from ._settings import Range
from ._wire import Request, Response, error_response

MAX_BODY = 1024 * 1024  # bytes

_PAGE = b"<!DOCTYPE html><html><body><h1>%b</h1>cloudflare</body></html>"
_BROKEN = error_response(500, "[sandbox] Internal server error.")
_UNAVAILABLE = Response(
    status=503, body=b"Service Unavailable", content_type="text/plain"
)
_FAULT_RESPONSES = {
    "500-before": _BROKEN,
    "500-after": _BROKEN,
    "502": Response(
        status=502, body=_PAGE % b"502 Bad Gateway", content_type="text/html"
    ),
    "503": _UNAVAILABLE,
    "html-after": Response(
        status=200, body=_PAGE % b"Just a moment...", content_type="text/html"
    ),
    "empty-after": Response(status=200, body=b""),
}


@attrs.frozen(kw_only=True)
class DelayRanges:
    """The ranges from which the delays of each request are drawn, in seconds.

    Attributes:
        setup: Before the first request of a connection.
        round_trip: Split evenly between the way to the API and the way back.
        before: Further delay before the rate window counts the request.
        processing: From that count until the request is accepted.
        after: Further delay before the response leaves.
    """

    setup: Range
    round_trip: Range
    before: Range
    processing: Range
    after: Range


@attrs.frozen(kw_only=True)
class Delays:
    """The delays of one request, in seconds."""

    setup: float
    before: float
    processing: float
    after: float


@attrs.frozen(kw_only=True)
class Outcome:
    """The outcome of one request.

    Attributes:
        response: The response, or None if a fault breaks the connection or lets the
            request hang.
        fault: The name of the injected fault, or None.
        delay: Seconds until the response leaves or the connection breaks.
    """

    response: Response | None
    fault: str | None = None
    delay: float = 0.0

    @property
    def fault_kind(self) -> str:
        """The name of the fault without ``-before`` and ``-after``, or empty."""
        return (self.fault or "").removesuffix("-before").removesuffix("-after")


@attrs.define(eq=False, kw_only=True)
class Simulator:
    """The state of one sandbox.

    Attributes:
        make_api: Function that returns an API without any data.
        clock: Function that returns the time in seconds, which never goes backwards.
        probabilities: Fault name to probability.
        seed: Seed of faults and delays; None makes them differ in each run.
        ranges: The ranges of the delays.
        max_requests: The length of ``requests``, or None for no bound.
        limit: The value of ``x-ratelimit-limit`` in an injected 429.
        period: The seconds of the ``Retry-After`` of an injected 429.
        outage: None, or the treatment of each request: "refuse" or "drop".
        api: The API with the data of the team.
        requests: The latest requests.
    """

    make_api: Callable[[], Api]
    clock: Callable[[], float]
    probabilities: dict[str, float]
    seed: int | str | None
    ranges: DelayRanges
    max_requests: int | None
    limit: int
    period: float
    outage: str | None = attrs.field(init=False, default=None)
    api: Api = attrs.field(init=False)
    requests: deque[SandboxRequest] = attrs.field(init=False)
    _plan: FaultPlan = attrs.field(init=False)
    _advanced: float = attrs.field(init=False, default=0.0)
    _delay_random: random.Random = attrs.field(init=False)
    _status_counts: Counter[int | None] = attrs.field(init=False)
    _fault_counts: Counter[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Restore the initial state, random seeds included; keep the time."""
        self.outage = None
        self.api = self.make_api()
        # Two streams, so that a delay range does not change which faults are drawn.
        self._plan = FaultPlan(self.probabilities, self._random("faults"))
        self._delay_random = self._random("latency")
        self.requests = deque(maxlen=self.max_requests)
        self._status_counts = Counter()
        self._fault_counts = Counter()

    def now(self) -> float:
        """Return the sandbox time in seconds."""
        return self.clock() + self._advanced

    def advance(self, seconds: float) -> None:
        """Move the sandbox time forward.

        Raises:
            ValueError: If ``seconds`` is negative or not finite.
        """
        if not seconds >= 0 or seconds == float("inf"):
            raise ValueError(f"seconds must be zero or more, not {seconds!r}")
        self._advanced += seconds

    def script(self, faults: Iterable[str | None]) -> None:
        """Append the faults of the next requests."""
        self._plan.extend(faults)

    def down(self, down: bool, *, drop: bool) -> None:
        """Begin or end an outage."""
        self.outage = ("drop" if drop else "refuse") if down else None

    async def process(self, request: Request, *, first: bool) -> Outcome:
        """Decide and record one request; wait for the delays up to its acceptance.

        Args:
            request: The request.
            first: Whether the request is the first of its connection.
        """
        if len(request.body) > MAX_BODY:
            return self.refuse_body(request)
        delays = self.draw_delays(first=first)
        await pause(delays.setup + delays.before)
        outcome = await self._decide(request, delays.processing)
        self._record(request, outcome)
        return attrs.evolve(outcome, delay=delays.after)

    def refuse_body(self, request: Request) -> Outcome:
        """Record a request whose body is too large, without the body."""
        outcome = Outcome(response=error_response(413, _wire.BODY_TOO_LARGE))
        self._record(attrs.evolve(request, body=b""), outcome)
        return outcome

    def draw_delays(self, *, first: bool) -> Delays:
        """Return the delays of the next request.

        Args:
            first: Whether the request is the first of its connection.
        """
        ranges = self.ranges
        setup, round_trip = self._draw(ranges.setup), self._draw(ranges.round_trip)
        return Delays(
            setup=setup if first else 0.0,
            before=round_trip / 2 + self._draw(ranges.before),
            processing=self._draw(ranges.processing),
            after=round_trip / 2 + self._draw(ranges.after),
        )

    def counts(self) -> Counts:
        """Return the totals so far."""
        by_status: dict[int, int] = {
            status: count
            for status, count in dict(self._status_counts).items()
            if status is not None
        }
        return Counts(
            requests=self._status_counts.total(),
            by_status=by_status,
            unanswered=self._status_counts[None],
            limited=by_status.get(429, 0),
            faults=dict(self._fault_counts),
            accepted=self.api.accepted,
            duplicates=self.api.duplicates,
        )

    def state(self) -> dict[str, Any]:
        """Return time, events, contacts and counts as plain values."""
        team = self.api.team
        return {
            "now": self.now(),
            "events": [attrs.asdict(event) for event in team.events],
            "contacts": [attrs.asdict(contact) for contact in team.contacts()],
            "counts": attrs.asdict(self.counts()),
        }

    async def _decide(self, request: Request, processing: float) -> Outcome:
        # Keep these objects to the end, even if a reset replaces them meanwhile.
        api, plan = self.api, self._plan
        if self.outage is not None:
            response = _UNAVAILABLE if self.outage == "refuse" else None
            return Outcome(response=response, fault="down")
        fault = plan.draw()
        if fault is not None and not fault.after:
            return self._struck(fault.name)
        response = await self._respond(api, request, processing)
        if fault is None:
            return Outcome(response=response)
        if response.status >= 300 and response.status != 409:
            plan.put_back(fault)
            return Outcome(response=response)
        return self._struck(fault.name)

    async def _respond(self, api: Api, request: Request, processing: float) -> Response:
        admitted = api.begin(request, self.now())
        if not isinstance(admitted, AdmittedRequest):
            return admitted
        try:
            await pause(processing)
        except asyncio.CancelledError:
            api.abandon(admitted)
            raise
        return api.finish(admitted, self.now())

    def _struck(self, fault: str) -> Outcome:
        response = _FAULT_RESPONSES.get(fault)
        if fault == "429":
            response = limited(self.api.behaviour, self.period)
            headers = {**response.headers, **rate_headers(self.limit, 0)}
            response = attrs.evolve(response, headers=headers)
        return Outcome(response=response, fault=fault)

    def _record(self, request: Request, outcome: Outcome) -> None:
        record = SandboxRequest(
            method=request.method,
            path=request.target,
            headers=request.headers,
            body=request.body,
            status=None if outcome.response is None else outcome.response.status,
            fault=outcome.fault,
            at=self.now(),
        )
        self.requests.append(record)
        self._status_counts[record.status] += 1
        if record.fault is not None:
            self._fault_counts[record.fault] += 1

    def _random(self, stream: str) -> random.Random:
        return random.Random(None if self.seed is None else f"{self.seed}:{stream}")

    def _draw(self, bounds: Range) -> float:
        low, high = bounds
        return low if low == high else self._delay_random.uniform(low, high)


async def pause(seconds: float) -> None:
    """Sleep, but do not yield to the event loop for a delay of zero."""
    if seconds > 0:
        await asyncio.sleep(seconds)
