"""The API without a socket: route, key, rate window and idempotency in front.

The order of the checks, each answered at once: unknown route (404, or 401 without
a bearer), bearer (401), rate window (429), idempotency key (400, 409). Then comes
the method (405) or the route itself. Time is an argument: seconds, which never go
backwards.
"""

import math
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from urllib.parse import urlencode

import attrs

from . import _wire
from ._behaviour import Behaviour
from ._keys import Keys
from ._routes import ROUTES, Route, Visit, send_event
from ._team import Team
from ._windows import Window
from ._wire import (
    SUCCESS,
    UNAUTHORIZED,
    UNKNOWN_ROUTE,
    Answer,
    Call,
    RefusedError,
    failure,
)

MAX_KEY_LENGTH = 100


@attrs.frozen(kw_only=True, eq=False)
class Ticket:
    """A request that was let in and is being processed.

    Attributes:
        call: The request.
        route: What will process it.
        key: Its idempotency key, in flight until the end, or None.
        admitted: When the rate window counted it.
        remaining: What the window had left then, None without a window.
    """

    call: Call
    route: Route
    key: str | None
    admitted: float
    remaining: int | None


@attrs.define(eq=False, kw_only=True)
class Loops:
    """Loops for one team.

    Attributes:
        api_key: Tells the one key that is let in.
        team: Its data.
        window: Its rate window, None for no limit.
        behaviour: The switches.
        accepted: Events accepted.
        duplicates: Events refused because their idempotency key was in use.
    """

    api_key: Callable[[], str]
    team: Team
    window: Window | None
    behaviour: Behaviour
    accepted: int = attrs.field(init=False, default=0)
    duplicates: int = attrs.field(init=False, default=0)
    _keys: Keys = attrs.field(init=False, factory=Keys)

    def handle(self, call: Call, now: float) -> Answer:
        """Answer a request that takes no time to process."""
        begun = self.begin(call, now)
        return self.finish(begun, now) if isinstance(begun, Ticket) else begun

    def begin(self, call: Call, now: float) -> Answer | Ticket:
        """Count a request and let it in, or answer it at once.

        A ticket must end in ``finish`` or ``abandon``.
        """
        path = call.path
        if path.endswith("/") and path[:-1] in ROUTES:
            if self.behaviour.trailing_slash == "redirect":
                return _redirect(call)
            if self.behaviour.trailing_slash == "accept":
                path = path[:-1]
        methods = ROUTES.get(path)
        bearer, api_key = _bearer(call.authorization), self.api_key()
        if methods is None:
            strict = self.behaviour.unknown_route_checks_key
            known = bearer == api_key if strict else bearer is not None
            return UNKNOWN_ROUTE if known else UNAUTHORIZED
        if bearer != api_key:
            if self.window is not None and 401 not in self.behaviour.uncounted:
                self.window.take(now, charge_refused=True)
            return UNAUTHORIZED
        admitted = self._admit(now)
        route = methods.get(call.method) or _not_allowed(methods)
        ticket = Ticket(
            call=call,
            route=route,
            # An empty header is taken for none, as if it had been left out.
            key=(call.idempotency_key or None) if route is send_event else None,
            admitted=now,
            remaining=None if self.window is None else self.window.remaining(now),
        )
        if not admitted:
            return self._settle(ticket, self._limited(now), now)
        if ticket.key is not None:
            try:
                self._begin_key(ticket.key, now)
            except RefusedError as refusal:
                return self._settle(ticket, refusal.answer, now)
        return ticket

    def finish(self, ticket: Ticket, now: float) -> Answer:
        """Process a request that was let in: the moment an event is accepted."""
        self.abandon(ticket)
        try:
            answer = ticket.route(Visit(self.team, ticket.call, now))
        except RefusedError as refusal:
            answer = refusal.answer
        self.accepted += ticket.route is send_event and answer is SUCCESS
        return self._settle(ticket, answer, now)

    def abandon(self, ticket: Ticket) -> None:
        """Forget a request that was let in, as if its process had died."""
        if ticket.key is not None:
            self._keys.end(ticket.key)

    def _admit(self, now: float) -> bool:
        charge = 429 not in self.behaviour.uncounted
        return self.window is None or self.window.take(now, charge_refused=charge)

    def _begin_key(self, key: str, now: float) -> None:
        if len(key) > MAX_KEY_LENGTH and self.behaviour.long_keys == "refuse":
            raise RefusedError(400, _wire.KEY_TOO_LONG)
        racing = self.behaviour.concurrent_duplicates == "accept"
        if self._keys.used(key, now) or (self._keys.in_flight(key) and not racing):
            self.duplicates += 1
            if self.behaviour.conflict_text == "different-body":
                raise RefusedError(409, _wire.KEY_OTHER_BODY)
            raise RefusedError(409, _wire.KEY_PROCESSED.format(key))
        self._keys.begin(key)

    def _limited(self, now: float) -> Answer:
        wait = 0.0 if self.window is None else self.window.wait(now)
        return limited(self.behaviour, wait)

    def _settle(self, ticket: Ticket, answer: Answer, now: float) -> Answer:
        if ticket.key is not None and answer.status in self.behaviour.burned_by:
            self._keys.burn(ticket.key, now)
        if self.window is None or ticket.remaining is None:
            return answer
        remaining = ticket.remaining
        if answer.status != 429 and answer.status in self.behaviour.uncounted:
            self.window.refund(ticket.admitted)
            remaining += 1
        headers = rate_headers(self.window.limit, remaining)
        return attrs.evolve(answer, headers={**answer.headers, **headers})


def limited(behaviour: Behaviour, wait: float) -> Answer:
    """A 429; ``wait`` is the seconds until the window opens again."""
    headers = {}
    if behaviour.retry_after == "seconds":
        headers["Retry-After"] = str(math.ceil(wait))
    elif behaviour.retry_after == "date":
        headers["Retry-After"] = formatdate(math.ceil(time.time() + wait), usegmt=True)
    if behaviour.limited_body == "json":
        return attrs.evolve(failure(429, _wire.LIMITED), headers=headers)
    body = _wire.LIMITED.encode() if behaviour.limited_body == "text" else b""
    return Answer(status=429, body=body, content_type="text/plain", headers=headers)


def rate_headers(limit: int, remaining: int) -> dict[str, str]:
    """The two rate headers: docs/api-reference/intro."""
    return {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(remaining)}


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _not_allowed(methods: Mapping[str, Route]) -> Route:
    headers = {"Allow": ", ".join(methods)}
    refusal = attrs.evolve(failure(405, _wire.METHOD_NOT_ALLOWED), headers=headers)
    return lambda _: refusal


def _redirect(call: Call) -> Answer:
    query = f"?{urlencode(call.query)}" if call.query else ""
    location = f"/api{call.path[:-1]}{query}"
    return Answer(status=308, body=b"", headers={"Location": location})
