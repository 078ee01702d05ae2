"""Everything a sandbox holds in memory: the API, its time, its plans, its log."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from ._api import Loops, Ticket, limited, rate_headers
from ._faults import FaultPlan
from ._records import Counts, SandboxRequest
from ._settings import Leg
from ._wire import Answer, Call, failure

_PAGE = b"<!DOCTYPE html><html><body><h1>%b</h1>cloudflare</body></html>"
_BROKEN = failure(500, "[sandbox] Internal server error.")
_UNAVAILABLE = Answer(
    status=503, body=b"Service Unavailable", content_type="text/plain"
)
_FAULT_ANSWERS = {
    "500-before": _BROKEN,
    "500-after": _BROKEN,
    "502": Answer(
        status=502, body=_PAGE % b"502 Bad Gateway", content_type="text/html"
    ),
    "503": _UNAVAILABLE,
    "html-after": Answer(
        status=200, body=_PAGE % b"Just a moment...", content_type="text/html"
    ),
    "empty-after": Answer(status=200, body=b""),
}


@attrs.frozen(kw_only=True)
class Delays:
    """How long one request takes, in seconds, before faults have their say."""

    setup: float
    before: float
    processing: float
    after: float


@attrs.define(eq=False, kw_only=True)
class World:
    """The state behind one sandbox, without its sockets.

    Attributes:
        make_loops: Builds the API with nothing in it.
        clock: Seconds, never going backwards.
        probabilities: Fault name to probability.
        seed: Repeats faults and latencies; None never does.
        legs: Low and high of the set-up, the round trip (halved over both ways),
            the way there, the processing and the way back.
        max_requests: How many requests ``requests`` keeps.
        limit: The number of ``x-ratelimit-limit`` in an injected 429.
        period: The seconds of its ``Retry-After``, if that is switched on.
        outage: None, or what meets every request: "refuse" or "drop".
    """

    make_loops: Callable[[], Loops]
    clock: Callable[[], float]
    probabilities: dict[str, float]
    seed: int | str | None
    legs: tuple[Leg, Leg, Leg, Leg, Leg]
    max_requests: int | None
    limit: int
    period: float
    outage: str | None = attrs.field(init=False, default=None)
    loops: Loops = attrs.field(init=False)
    plan: FaultPlan = attrs.field(init=False)
    requests: deque[SandboxRequest] = attrs.field(init=False)
    _ahead: float = attrs.field(init=False, default=0.0)
    _delays: random.Random = attrs.field(init=False)
    _statuses: Counter[int | None] = attrs.field(init=False)
    _faults: Counter[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, seeds included; only time goes on."""
        self.outage = None
        self.loops = self.make_loops()
        # Two streams, so that adding a latency does not move the faults.
        self.plan = FaultPlan(self.probabilities, self._random("faults"))
        self._delays = self._random("latency")
        self.requests = deque(maxlen=self.max_requests)
        self._statuses = Counter()
        self._faults = Counter()

    def now(self) -> float:
        """Sandbox time."""
        return self.clock() + self._ahead

    def advance(self, seconds: float) -> None:
        """Move sandbox time on; a negative number is a ValueError."""
        if not seconds >= 0 or seconds == float("inf"):
            raise ValueError(f"seconds must be zero or more, not {seconds!r}")
        self._ahead += seconds

    def script(self, faults: Iterable[str | None]) -> None:
        """Plan the faults of the next requests."""
        self.plan.extend(faults)

    def down(self, down: bool, *, drop: bool) -> None:
        """Begin or end an outage."""
        self.outage = ("drop" if drop else "refuse") if down else None

    def draw_delays(self, *, first: bool) -> Delays:
        """The delays of the next request; ``first`` of its connection or not."""
        setup, both, before, processing, after = map(self._draw, self.legs)
        return Delays(
            setup=setup if first else 0.0,
            before=both / 2 + before,
            processing=processing,
            after=both / 2 + after,
        )

    async def meet(
        self, call: Call, processing: float
    ) -> tuple[Answer | None, str | None]:
        """Decide one request; waits for as long as it is processed.

        Returns:
            The answer, or None if there is none to speak of, and the fault that
            struck, or None.
        """
        loops, plan = self.loops, self.plan
        if self.outage is not None:
            return (_UNAVAILABLE if self.outage == "refuse" else None), "down"
        fault = plan.draw()
        if fault is not None and not fault.after:
            return self._fault_answer(fault.name), fault.name
        answer = loops.begin(call, self.now())
        if isinstance(answer, Ticket):
            try:
                await pause(processing)
            except asyncio.CancelledError:
                loops.abandon(answer)
                raise
            answer = loops.finish(answer, self.now())
        if fault is None:
            return answer, None
        if answer.status >= 300 and answer.status != 409:
            plan.put_back(fault)
            return answer, None
        return self._fault_answer(fault.name), fault.name

    def _fault_answer(self, name: str) -> Answer | None:
        if name != "429":
            return _FAULT_ANSWERS.get(name)
        answer = limited(self.loops.behaviour, self.period)
        headers = {**answer.headers, **rate_headers(self.limit, 0)}
        return attrs.evolve(answer, headers=headers)

    def record(
        self,
        *,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        answer: Answer | None,
        fault: str | None,
    ) -> None:
        """Log a request whose fate is settled now."""
        request = SandboxRequest(
            method=method,
            path=path,
            headers=headers,
            body=body,
            status=None if answer is None else answer.status,
            fault=fault,
            at=self.now(),
        )
        self.requests.append(request)
        self._statuses[request.status] += 1
        if request.fault is not None:
            self._faults[request.fault] += 1

    def counts(self) -> Counts:
        """The totals so far."""
        by_status: dict[int, int] = {
            status: count
            for status, count in dict(self._statuses).items()
            if status is not None
        }
        return Counts(
            requests=self._statuses.total(),
            by_status=by_status,
            unanswered=self._statuses[None],
            limited=by_status.get(429, 0),
            faults=dict(self._faults),
            accepted=self.loops.accepted,
            duplicates=self.loops.duplicates,
        )

    def state(self) -> dict[str, Any]:
        """Time, events, contacts and counts as plain values."""
        return {
            "now": self.now(),
            "events": [attrs.asdict(event) for event in self.loops.team.events],
            "contacts": [attrs.asdict(one) for one in self.loops.team.contacts()],
            "counts": attrs.asdict(self.counts()),
        }

    def _random(self, stream: str) -> random.Random:
        return random.Random(None if self.seed is None else f"{self.seed}:{stream}")

    def _draw(self, leg: Leg) -> float:
        low, high = leg
        return low if low == high else self._delays.uniform(low, high)


async def pause(seconds: float) -> None:
    """Sleep, if it is for any time at all."""
    if seconds > 0:
        await asyncio.sleep(seconds)
