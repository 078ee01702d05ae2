"""Errors of attempts, and clients of a transport that exists in virtual time only."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import attrs
from support import virtual_time as virtual
from support.transports import FakeTransport, make_sender

from loops_async import (
    AsyncLoopsClient,
    ConnectFailedError,
    ConnectionLostError,
    Event,
    LoopsError,
    Outcome,
    RateLimiter,
    RequestTimeoutError,
    SendReport,
    errors,
)
from loops_async._http.api_key import Secret
from loops_async._http.protocol import Response
from loops_async._http.request import Request

MakeError: TypeAlias = Callable[[], LoopsError]


def now() -> float:
    return asyncio.get_running_loop().time()


def descriptors() -> int:
    """Return the number of open file descriptors, or 0 without a /proc."""
    fds = Path("/proc/self/fd")
    return len(list(fds.iterdir())) if fds.exists() else 0


# Errors of one attempt.


def api_error(
    kind: type[errors.APIError],
    *,
    retryable: bool = True,
    maybe_accepted: bool = False,
    retry_after: float | None = None,
) -> errors.APIError:
    return kind(
        "Loops refused",
        retryable=retryable,
        maybe_accepted=maybe_accepted,
        retry_after=retry_after,
    )


def rate_limited(retry_after: float | None = None) -> errors.APIError:
    return api_error(errors.RateLimitError, retry_after=retry_after)


def failing(retry_after: float | None = None) -> errors.APIError:
    return api_error(errors.ServerError, maybe_accepted=True, retry_after=retry_after)


def bad_request() -> errors.APIError:
    return api_error(errors.BadRequestError, retryable=False)


def lost() -> LoopsError:
    return ConnectionLostError("reset", retryable=True, maybe_accepted=True)


def timed_out() -> LoopsError:
    return RequestTimeoutError("no response", retryable=True, maybe_accepted=True)


def unreachable() -> LoopsError:
    return ConnectFailedError("refused", retryable=True)


RETRIED: list[MakeError] = [rate_limited, failing, lost, timed_out, unreachable]


# A transport, and a client of it.

Result: TypeAlias = int | tuple[int, float] | LoopsError
"""A status, a status with a Retry-After in seconds, or the error of an attempt."""

Script: TypeAlias = Callable[[float, Event], Result]
"""Returns the result of a request from its loop time and its event."""


@attrs.frozen
class SentRequest:
    """One request.

    Attributes:
        at: Loop time at which it was sent.
        user_id: The user ID of its event.
        result: Its result.
    """

    at: float
    user_id: str | None
    result: Result

    @property
    def ok(self) -> bool:
        return self.result == 200


@attrs.define(eq=False)
class ScriptedTransport(FakeTransport):
    """A transport to a server that exists in virtual time only.

    Attributes:
        script: Returns the result of each request.
        takes: The seconds that each request takes, or a function of its event.
        requests: All requests.
    """

    script: Script
    takes: float | Callable[[Event], float] = 0.1
    requests: list[SentRequest] = attrs.field(factory=list)

    async def exchange(
        self, request: Request, api_key: Secret, timeout: float | None
    ) -> Response | LoopsError:
        event = request.content
        assert isinstance(event, Event)
        result = self.script(self.loop.time(), event)
        self.requests.append(SentRequest(self.loop.time(), event.user_id, result))
        takes = self.takes(event) if callable(self.takes) else self.takes
        self.in_flight += 1
        try:
            if timeout is not None and timeout < takes:
                await asyncio.sleep(timeout)
                return timed_out()
            await asyncio.sleep(takes)
        finally:
            self.in_flight -= 1
        if isinstance(result, LoopsError):
            return result
        status, *after = result if isinstance(result, tuple) else (result,)
        headers = {"retry-after": str(after[0])} if after else {}
        body = b'{"success":true}' if status == 200 else b'{"message":"no"}'
        return Response(status, headers, body)

    @property
    def failed(self) -> list[SentRequest]:
        return [one for one in self.requests if not one.ok]

    def rate(self, begin: float, end: float) -> float:
        """Return the number of events accepted per second between two times."""
        accepted = sum(one.ok and begin <= one.at < end for one in self.requests)
        return accepted / (end - begin)


class ClientOfTransport(AsyncLoopsClient):
    """A client of one transport.

    The default rate limit is 10 events per second, by the clock of the event loop.

    Args:
        transport: The transport.
        max_connections: Requests in flight at most.
        settings: Arguments of `make_sender`.
    """

    def __init__(
        self,
        transport: ScriptedTransport,
        *,
        max_connections: int = 100,
        **settings: Any,
    ) -> None:
        transport.max_connections = max_connections

        async def connect() -> ScriptedTransport:
            return transport

        limiter = RateLimiter(10, clock=transport.loop.time, chance=lambda: 0.5)
        self.sender = make_sender(connect, **{"rate_limit": limiter, **settings})


# Runs of many events.


def events_for(count: int, contacts: int | None = None) -> list[Event]:
    return [Event("e", user_id=f"u{n % (contacts or count)}") for n in range(count)]


def emails_for(count: int, contacts: int) -> list[Event]:
    return [Event("e", email=f"u{n % contacts}@b.co") for n in range(count)]


@attrs.define
class TimedOutcomes:
    """Each outcome with its loop time, in order of arrival."""

    outcomes: list[tuple[float, Outcome]] = attrs.field(factory=list)

    def __call__(self, outcome: Outcome) -> None:
        self.outcomes.append((now(), outcome))


def send_all(
    script: Script,
    events: Any,
    *,
    takes: float | Callable[[Event], float] = 0.1,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[SendReport, ScriptedTransport, float]:
    """Send the events in virtual time.

    Returns:
        The report, the fake transport, and the seconds that the run took.
    """

    async def main() -> tuple[SendReport, ScriptedTransport, float]:
        transport = ScriptedTransport(script, takes)
        async with ClientOfTransport(transport, **(settings or {})) as client:
            report = await client.send_events(events, **options)
            assert transport.in_flight == 0
            assert len(asyncio.all_tasks()) == 1
            return report, transport, transport.loop.time()

    return virtual.run(main())


def down(begin: float, end: float, make_result: Callable[[], Result]) -> Script:
    """Make a script in which every request between two times fails."""
    return lambda at, _: make_result() if begin <= at < end else 200


def balances(report: SendReport, **parts: int) -> bool:
    """Return whether the report has these numbers of outcomes, and no others."""
    names = ("accepted", "duplicates", "failures", "unknown", "not_tried")
    sizes = {name: len(getattr(report, name)) for name in names}
    return sizes == {**dict.fromkeys(names, 0), **parts}
