"""The API without a socket: the checks in front of the routes.

The checks run in this order, and the first that fails decides the response: unknown
route (404, or 401 without a bearer token), API key (401), rate window (429),
idempotency key (400, 409), method (405). Then the route itself processes the request.
Time is an argument in seconds and must not go backwards.
"""

import math
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from urllib.parse import urlencode

import attrs

from . import _wire
from ._behaviour import Behaviour
from ._keys import IdempotencyKeys
from ._routes import ROUTES, Context, Route, send_event
from ._team import Team
from ._windows import Window
from ._wire import (
    API,
    SUCCESS,
    UNAUTHORIZED,
    UNKNOWN_ROUTE,
    RefusedError,
    Request,
    Response,
    error_response,
)

MAX_KEY_LENGTH = 100


@attrs.frozen(kw_only=True, eq=False)
class AdmittedRequest:
    """A request that passed the checks and waits for its processing to end.

    Attributes:
        request: The request.
        route: The route that will process the request.
        key: The idempotency key, in flight until the request ends, or None.
        admitted_at: The time at which the rate window counted the request.
        remaining: The requests left in the window then, or None without a window.
    """

    request: Request
    route: Route
    key: str | None
    admitted_at: float
    remaining: int | None


@attrs.define(eq=False, kw_only=True)
class Api:
    """The API as one team sees it.

    Attributes:
        api_key: Function that returns the one valid API key.
        team: The data of the team.
        window: The rate window, or None for no limit.
        behaviour: The switches.
        accepted: The number of accepted events.
        duplicates: The number of events refused because of a used idempotency key.
    """

    api_key: Callable[[], str]
    team: Team
    window: Window | None
    behaviour: Behaviour
    accepted: int = attrs.field(init=False, default=0)
    duplicates: int = attrs.field(init=False, default=0)
    keys: IdempotencyKeys = attrs.field(init=False, factory=IdempotencyKeys)

    def handle(self, request: Request, now: float) -> Response:
        """Respond to a request whose processing takes no time."""
        admitted = self.begin(request, now)
        if isinstance(admitted, AdmittedRequest):
            return self.finish(admitted, now)
        return admitted

    def begin(self, request: Request, now: float) -> Response | AdmittedRequest:
        """Count and admit a request, or respond to it at once.

        An admitted request must end in ``finish`` or ``abandon``.
        """
        path = request.api_path
        if path.endswith("/") and path[:-1] in ROUTES:
            if self.behaviour.trailing_slash == "redirect":
                return _redirect(path, request.query)
            if self.behaviour.trailing_slash == "accept":
                path = path[:-1]
        methods = ROUTES.get(path)
        bearer, api_key = _bearer(request), self.api_key()
        if methods is None:
            strict = self.behaviour.unknown_route_checks_key
            authorized = bearer == api_key if strict else bearer is not None
            return UNKNOWN_ROUTE if authorized else UNAUTHORIZED
        if bearer != api_key:
            if self.window is not None and 401 not in self.behaviour.uncounted:
                self.window.take(now, charge_refused=True)
            return UNAUTHORIZED
        within_limit = self._take_permit(now)
        route = methods.get(request.method) or _method_not_allowed(methods)
        # An empty header counts as an absent one.
        key = request.headers.get("Idempotency-Key") or None
        admitted = AdmittedRequest(
            request=request,
            route=route,
            key=key if route is send_event else None,
            admitted_at=now,
            remaining=None if self.window is None else self.window.remaining(now),
        )
        if not within_limit:
            return self._settle(admitted, self._limited(now), now)
        if admitted.key is not None:
            try:
                self._begin_key(admitted.key, now)
            except RefusedError as refusal:
                return self._settle(admitted, refusal.response, now)
        return admitted

    def finish(self, admitted: AdmittedRequest, now: float) -> Response:
        """Process an admitted request; an event is accepted at this moment."""
        self.abandon(admitted)
        try:
            response = admitted.route(Context(self.team, admitted.request, now))
        except RefusedError as refusal:
            response = refusal.response
        self.accepted += admitted.route is send_event and response is SUCCESS
        return self._settle(admitted, response, now)

    def abandon(self, admitted: AdmittedRequest) -> None:
        """Drop an admitted request, as if its server process had died."""
        if admitted.key is not None:
            self.keys.end(admitted.key)

    def _take_permit(self, now: float) -> bool:
        charge = 429 not in self.behaviour.uncounted
        return self.window is None or self.window.take(now, charge_refused=charge)

    def _begin_key(self, key: str, now: float) -> None:
        if len(key) > MAX_KEY_LENGTH and self.behaviour.long_keys == "refuse":
            raise RefusedError(400, _wire.KEY_TOO_LONG)
        racing = self.behaviour.concurrent_duplicates == "accept"
        if self.keys.is_used(key, now) or (self.keys.is_in_flight(key) and not racing):
            self.duplicates += 1
            if self.behaviour.conflict_text == "different-body":
                raise RefusedError(409, _wire.KEY_OTHER_BODY)
            raise RefusedError(409, _wire.KEY_PROCESSED.format(key))
        self.keys.begin(key)

    def _limited(self, now: float) -> Response:
        wait = 0.0 if self.window is None else self.window.wait(now)
        return limited(self.behaviour, wait)

    def _settle(
        self, admitted: AdmittedRequest, response: Response, now: float
    ) -> Response:
        if admitted.key is not None and response.status in self.behaviour.burned_by:
            self.keys.mark_used(admitted.key, now)
        if self.window is None or admitted.remaining is None:
            return response
        remaining = admitted.remaining
        if response.status != 429 and response.status in self.behaviour.uncounted:
            self.window.refund(admitted.admitted_at)
            remaining += 1
        headers = rate_headers(self.window.limit, remaining)
        return attrs.evolve(response, headers={**response.headers, **headers})


def limited(behaviour: Behaviour, wait: float) -> Response:
    """Return a 429; ``wait`` is the seconds until the window opens again."""
    headers = {}
    if behaviour.retry_after == "seconds":
        headers["Retry-After"] = str(math.ceil(wait))
    elif behaviour.retry_after == "date":
        headers["Retry-After"] = formatdate(math.ceil(time.time() + wait), usegmt=True)
    if behaviour.limited_body == "json":
        return attrs.evolve(error_response(429, _wire.LIMITED), headers=headers)
    body = _wire.LIMITED.encode() if behaviour.limited_body == "text" else b""
    return Response(status=429, body=body, content_type="text/plain", headers=headers)


def rate_headers(limit: int, remaining: int) -> dict[str, str]:
    """Return the two rate headers of docs/api-reference/intro."""
    return {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(remaining)}


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _method_not_allowed(methods: Mapping[str, Route]) -> Route:
    headers = {"Allow": ", ".join(methods)}
    refusal = attrs.evolve(
        error_response(405, _wire.METHOD_NOT_ALLOWED), headers=headers
    )
    return lambda _: refusal


def _redirect(path: str, query: Mapping[str, str]) -> Response:
    encoded = f"?{urlencode(query)}" if query else ""
    location = f"{API}{path[:-1]}{encoded}"
    return Response(status=308, body=b"", headers={"Location": location})
