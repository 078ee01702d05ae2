"""The client: what users call."""

import asyncio
import ssl
import time
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from types import EllipsisType, NoneType, TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    overload,
)

import attrs
import cattrs

from ._checks import checked_count, checked_hook, checked_seconds, checked_type
from ._events.allow_list import recipients
from ._events.codec import encode, make_converter
from ._events.event import Event
from ._events.rules import NOTHING, PropertyValue
from ._http.address import checked_base_url, proxy_for
from ._http.api_key import KeySource, hide_api_key, key_source
from ._http.protocol import API_KEY_PATH, EVENTS_PATH, MAX_BODY, Request, rate_limit
from ._http.request import checked_json, request_call
from ._pacing.rate_limiter import RateLimiter
from ._pacing.retry_policy import RetryPolicy
from ._pacing.shared import limiter_for
from ._sending.bulk import FanOut, OutcomeT, Source
from ._sending.bulk_run import BulkRun, Record
from ._sending.ordering import Sendable
from ._sending.outcomes import Attempt, Outcome, Receipt, SendReport
from ._sending.stats import ClientStats, Counts
from .errors import ClientClosedError, ConfigurationError, LoopsError

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from ._sending.delivery import Delivery, Transport


class Stored(Sendable, Protocol):
    """A row of a journal."""

    @property
    def body(self) -> bytes: ...


RowT = TypeVar("RowT", bound=Stored)
Events: TypeAlias = Source[Event]
Seconds: TypeAlias = float | EllipsisType | None
"""For one call: None and inf are no end, ``...`` is what the client has."""


class AsyncLoopsClient:
    """Sends events to Loops.

    Make one per application and share it; it holds a pool of connections
    per event loop and closes each when its loop shuts down. Use it with
    ``async with``, or call `aclose`, so that what is under way can end.

    Args:
        api_key: The key, or a callable (plain or async) asked before each
            attempt, and once more when Loops refuses what it gave, so that
            keys can be rotated. None reads LOOPS_API_KEY.
        base_url: Ends in ``/api``. None reads LOOPS_BASE_URL, or is
            ``https://app.loops.so/api``.
        rate_limit: Requests a second, ``math.inf`` for no limit, or a
            RateLimiter to share. None reads LOOPS_RATE_LIMIT, or is the 10
            of https://loops.so/docs/api-reference/intro, shared by all
            clients of the process with the same key and base URL.
        timeout: Seconds for one attempt, of which 10 to connect; None is no
            end.
        deadline: Seconds for a whole call, all waiting and attempts
            included; None is no end.
        retry: How often and how patiently to try.
        max_connections: Requests under way at once.
        session: An aiohttp session to borrow, made in the loop it is used
            in. It is never closed; its connector and cookies are kept.
        ssl_context: For TLS, instead of the default one.
        proxy: URL of an HTTP proxy. None reads the environment, once.
        dry_run: Check events and send nothing; needs no key.
        allowed_recipients: ``name@domain``, ``@domain`` or ``user:ID``, each
            exact but for the case of emails. Each identifier of an event
            must be allowed. Empty refuses all; None allows all.
        on_attempt: Called with an Attempt after each request.

    Raises:
        ConfigurationError: if a setting cannot work.
    """

    # So that even one whose construction failed can be shown.
    _base_url = "with bad settings"
    _closed = True
    _dry_run = False
    _limiter: RateLimiter | None = None

    def __init__(
        self,
        api_key: KeySource | None = None,
        *,
        base_url: str | None = None,
        rate_limit: float | RateLimiter | None = None,
        timeout: float | None = 30.0,
        deadline: float | None = 60.0,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
        max_connections: int = 100,
        session: "ClientSession | None" = None,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        dry_run: bool = False,
        allowed_recipients: Iterable[str] | None = None,
        on_attempt: Callable[[Attempt], object] | None = None,
    ) -> None:
        self._deliveries: dict[asyncio.AbstractEventLoop, Delivery] = {}
        self._latest: Delivery | None = None
        self._past = Counts()  # of event loops that are closed
        self._lanes: set[BulkRun] = set()  # of the runs
        self._closed = False
        key = hide_api_key(api_key)
        del api_key  # should anything below raise, no local here shows it
        self._base_url = checked_base_url(base_url)
        self._events_url = self._base_url + EVENTS_PATH
        self._timeout = checked_seconds("timeout", timeout)
        self._deadline = checked_seconds("deadline", deadline)
        self._recipients = recipients(allowed_recipients)
        self._dry_run = checked_type("dry_run", dry_run, bool)
        self._api_key: KeySource = ""
        if not dry_run:
            self._api_key = key_source(key)
            self._limiter = limiter_for(rate_limit, self._api_key, self._base_url)
            self._import_late()
        self._retry = checked_type("retry", retry, RetryPolicy)
        self._on_attempt = checked_hook("on_attempt", on_attempt)
        self._session = session
        self._connections: dict[str, Any] = {
            "max_connections": checked_count("max_connections", max_connections),
            "ssl_context": checked_type(
                "ssl_context", ssl_context, ssl.SSLContext, NoneType
            ),
            "proxy": proxy_for(self._base_url, proxy),
            "usual_limit": self._timeout,
        }
        self._converter = make_converter()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "dry run" if self._dry_run else "open"
        name = type(self).__name__
        return f"<{name} {self._base_url}, {state}, {self._limiter!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if any(d.transport.usable for d in getattr(self, "_deliveries", {}).values()):
            text = "unclosed AsyncLoopsClient: use async with, or await aclose()"
            warnings.warn(text, ResourceWarning, stacklevel=2)

    @property
    def sender(self) -> Self:
        return self

    @property
    def dry_run(self) -> bool:
        return self._dry_run

    @property
    def limiter(self) -> RateLimiter | None:
        return self._limiter

    @property
    def retry(self) -> RetryPolicy:
        return self._retry

    @property
    def stats(self) -> ClientStats:
        """What the client has done, and how it stands now."""
        total = Counts()
        total.add(self._past)
        deliveries = list(self._deliveries.values())
        for delivery in deliveries:
            total.add(delivery.counts)
        limiter = self._limiter
        return ClientStats(
            **attrs.asdict(total),
            in_flight=sum(d.transport.in_flight for d in deliveries),
            waiting=sum(d.waiting for d in deliveries),
            limit=None if limiter is None else limiter.limit,
            period=None if limiter is None else limiter.period,
            effective_limit=None if limiter is None else limiter.effective_limit,
            held=0.0 if limiter is None else limiter.held,
            outage=any(d.outage for d in deliveries if d.transport.usable),
        )

    @property
    def converter(self) -> cattrs.Converter:
        """The converter of this client; hooks registered on it hold."""
        return self._converter

    @overload
    async def send_event(
        self,
        event: Event,
        /,
        *,
        timeout: Seconds = ...,
        deadline: Seconds = ...,
    ) -> Receipt: ...
    @overload
    async def send_event(
        self,
        event_name: str,
        *,
        email: str,
        user_id: str | None = None,
        event_properties: Mapping[str, PropertyValue] = ...,
        contact_properties: Mapping[str, PropertyValue | None] = ...,
        mailing_lists: Mapping[str, bool] = ...,
        idempotency_key: str | None = None,
        timeout: Seconds = ...,
        deadline: Seconds = ...,
    ) -> Receipt: ...
    @overload
    async def send_event(
        self,
        event_name: str,
        *,
        user_id: str,
        email: None = None,
        event_properties: Mapping[str, PropertyValue] = ...,
        contact_properties: Mapping[str, PropertyValue | None] = ...,
        mailing_lists: Mapping[str, bool] = ...,
        idempotency_key: str | None = None,
        timeout: Seconds = ...,
        deadline: Seconds = ...,
    ) -> Receipt: ...
    async def send_event(
        self,
        event_name: Event | str | None = None,
        *,
        email: str | None = None,
        user_id: str | None = None,
        event_properties: Mapping[str, PropertyValue] = NOTHING,
        contact_properties: Mapping[str, PropertyValue | None] = NOTHING,
        mailing_lists: Mapping[str, bool] = NOTHING,
        idempotency_key: str | None = None,
        timeout: Seconds = ...,
        deadline: Seconds = ...,
    ) -> Receipt:
        """Send one event and wait until Loops has it.

        Takes an Event, or the arguments of one. Waits for a permit of the
        rate limiter, for the answer, and between attempts; every attempt
        carries the same idempotency key and the same bytes.

        Args:
            event_name: The name, or an Event.
            email: As in Event, like the others up to the key.
            user_id: As in Event.
            event_properties: As in Event.
            contact_properties: As in Event.
            mailing_lists: As in Event.
            idempotency_key: As in Event.
            timeout: Instead of the client's, for this call.
            deadline: Instead of the client's, for this call.

        Returns:
            The receipt; Loops has accepted the event, now or before.

        Raises:
            InvalidEventError: and nothing was sent.
            RecipientNotAllowedError: and nothing was sent.
            LoopsError: any other of the tree in `loops_async.errors`. If its
                ``maybe_accepted`` is false, Loops does not have the event.
        """
        if not isinstance(event_name, Event):
            event = Event(
                event_name,  # type: ignore[arg-type]  # None is refused with the rest
                email=email,
                user_id=user_id,
                event_properties=event_properties,
                contact_properties=contact_properties,
                mailing_lists=mailing_lists,
                idempotency_key=idempotency_key,
            )
        elif (
            email is None
            and user_id is None
            and event_properties is NOTHING
            and contact_properties is NOTHING
            and mailing_lists is NOTHING
            and idempotency_key is None
        ):
            event = event_name
        else:
            msg = "an Event and fields of one: use event.replace(...)"
            raise TypeError(msg)
        key = event.idempotency_key
        body = self.prepare(event)
        if timeout is not ...:
            timeout = checked_seconds("timeout", timeout)
        if deadline is not ...:
            deadline = checked_seconds("deadline", deadline)
        delivery = self._ready(key)
        if self._dry_run:
            return Receipt(key, 0, False, 0.0, None, dry_run=True)
        call = Request(
            "POST",
            self._events_url,
            body,
            key,
            event,
            self._timeout if timeout is ... else timeout,
            self._deadline if deadline is ... else deadline,
        )
        delivery = delivery or await self._open()
        answer, attempts, elapsed = await delivery.deliver(call)
        duplicate = answer.status == 409
        return Receipt(key, attempts, duplicate, elapsed, rate_limit(answer.headers))

    async def send_events(
        self,
        events: Events,
        *,
        timeout: Seconds = ...,
        deadline: Seconds = ...,
        patience: float | None = 900.0,
        on_outcome: Callable[[Outcome], object] | None = None,
    ) -> SendReport:
        """Send many events and wait until it is known what became of each.

        As fast as the rate limit allows, many at a time, but each contact's
        events (same email, whatever its case, or same user ID) one after the
        other, in input order. Keeps all outcomes until it returns; for more
        events than memory should hold use `stream_events`.

        Args:
            events: Any iterable or async iterable of Event; read at most
                1,000 ahead of what has been sent.
            timeout: Seconds for one attempt, instead of the client's.
            deadline: Seconds for the attempts of one event and the pauses
                between them, instead of the client's; waiting for the rate
                limiter or for the end of an outage does not count.
            patience: Seconds for which Loops may take nothing (an outage,
                429s, a long Retry-After) before the run is stopped; None is
                no end.
            on_outcome: Called with each Outcome as it comes in. What it
                raises is logged and changes nothing.

        Returns:
            The outcomes in input order. That one event fails raises nothing.
            What would refuse every event (401, 404 and 405, a redirect, a
            certificate that is refused, a callable key that raises, the
            client closed) or an outage longer than the patience ends the run:
            see `SendReport.stopped_by`.

        Raises:
            ClientClosedError: if the client is closed already.
            ConfigurationError: if an argument is out of range.
            TypeError: if an item is no Event. Like whatever else reading
                ``events`` raises, only after all that was read is sent; the
                report then is a note of the exception.
        """
        began = time.monotonic()
        run = self._fan_out(events, timeout, deadline, patience, on_outcome, None)
        outcomes: list[Outcome] = []

        def report() -> SendReport:
            outcomes.sort(key=lambda outcome: outcome.index)
            elapsed = time.monotonic() - began
            return SendReport(outcomes, stopped_by=run.stopped_by, elapsed=elapsed)

        try:
            async with aclosing(run.outcomes()) as stream:
                async for outcome in stream:
                    outcomes.append(outcome)  # noqa: PERF401 - kept if one raises
        except Exception as error:
            error.add_note(str(report()))
            raise
        return report()

    def stream_events(
        self,
        events: Events,
        *,
        timeout: Seconds = ...,
        deadline: Seconds = ...,
        patience: float | None = 900.0,
        on_outcome: Callable[[Outcome], object] | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Send many events; yield what became of each as it comes in.

        Like `send_events`, in bounded memory: at most 1,000 events are read
        ahead of the outcomes taken. An idempotency key that two different
        events share is noticed if they are less than 10,000 events apart.
        A run that is stopped ends early, after outcomes that are not ok.

        Leaving the loop early ends the run as soon as the stream is closed,
        which dropping it does: what is under way ends, nothing more is read
        or sent. `contextlib.aclosing` closes it and waits for that.

        Args:
            events: As in `send_events`, like the others.
            timeout: As in `send_events`.
            deadline: As in `send_events`.
            patience: As in `send_events`.
            on_outcome: As in `send_events`; also told what is not taken.

        Yields:
            The outcomes, in the order in which they come in.

        Raises:
            TypeError: as in `send_events`.
        """
        run = self._fan_out(events, timeout, deadline, patience, on_outcome, _RECENT)
        return run.outcomes()

    def _fan_out(
        self,
        events: Events,
        timeout: Seconds,
        deadline: Seconds,
        patience: float | None,
        on_outcome: Callable[[Outcome], object] | None,
        keys: int | None,
    ) -> FanOut[Event, Outcome]:
        if not isinstance(events, Iterable | AsyncIterable):
            kind = type(events).__name__
            msg = f"events must be an iterable or async iterable of Event, not {kind}"
            raise TypeError(msg)
        limit, most = self._times(timeout, deadline)
        checked_hook("on_outcome", on_outcome)
        self._ready(None)

        def send(event: Event, body: bytes, lane: BulkRun) -> Awaitable[Receipt]:
            key = event.idempotency_key
            call = Request("POST", self._events_url, body, key, event, limit, most)
            return self._send_in(lane, call, key)

        return FanOut(
            events,
            kind=Event,
            outcome=Outcome,
            prepare=self.prepare,
            send=None if self._dry_run else send,
            has_room=self._has_room,
            lanes=self._lanes,
            on_outcome=on_outcome,
            patience=checked_seconds("patience", patience),
            keys=keys,
        )

    def send_rows(
        self,
        rows: AsyncIterable[RowT],
        kind: type[RowT],
        outcome: Callable[[int, RowT, Receipt | None, LoopsError | None], OutcomeT],
        record: Record,
        look_ahead: int,
    ) -> FanOut[RowT, OutcomeT]:
        """Send what a journal holds, which has the patience of a disk."""

        def prepare(row: RowT) -> bytes:
            if self._recipients is not None:
                key = row.idempotency_key
                self._recipients.check(row.email, row.user_id, key)
                self._recipients.check_body(row.body, key)
            return row.body

        def send(row: RowT, body: bytes, lane: BulkRun) -> Awaitable[Receipt]:
            key = row.idempotency_key
            limit = self._timeout
            call = Request("POST", self._events_url, body, key, body, limit, None)
            return self._send_in(lane, call, key)

        return FanOut(
            rows,
            kind=kind,
            outcome=outcome,
            prepare=prepare,
            send=None if self._dry_run else send,
            has_room=self._has_room,
            lanes=self._lanes,
            patience=None,
            keys=1,  # the journal sees to it that they are unique
            look_ahead=look_ahead,
            record=record,
        )

    async def _send_in(self, lane: BulkRun, call: Request, key: str) -> Receipt:
        delivery = self._ready(key) or await self._open()
        answer, attempts, elapsed = await delivery.deliver(call, lane)
        duplicate = answer.status == 409
        return Receipt(key, attempts, duplicate, elapsed, rate_limit(answer.headers))

    def _has_room(self) -> bool:
        return self._latest is None or self._latest.has_room()

    def _times(
        self, timeout: Seconds, deadline: Seconds
    ) -> tuple[float | None, float | None]:
        """Return both as the call or else the client has them."""
        if timeout is not ...:
            timeout = checked_seconds("timeout", timeout)
        if deadline is not ...:
            deadline = checked_seconds("deadline", deadline)
        return (
            self._timeout if timeout is ... else timeout,
            self._deadline if deadline is ... else deadline,
        )

    def prepare(self, event: Event) -> bytes:
        """Check whom the event is for; return its bytes."""
        if self._recipients is None:
            return encode(event, self._converter)
        self._recipients.check(event.email, event.user_id, event.idempotency_key)
        return encode(event, self._converter, self._recipients.check_body)

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str | int | bool] | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds = ...,
        deadline: Seconds = ...,
        max_body: int = MAX_BODY,
    ) -> Any:
        """Make any other request to Loops, under the same budget and rules.

        GET, PUT and DELETE are tried again like a send, and so is a POST
        with an idempotency key; without one only what Loops certainly did
        not accept is.

        Args:
            method: GET, POST, PUT, PATCH or DELETE.
            path: Such as ``/v1/lists``.
            json: The body, or None for none.
            params: The query.
            idempotency_key: Where the endpoint takes one; then a 409 means
                that it was accepted before and is returned, not raised.
            timeout: Instead of the client's, for this call.
            deadline: Instead of the client's, for this call.
            max_body: Bytes of the answer to read at most.

        Returns:
            The answer's JSON; None if it is empty.

        Raises:
            ValueError: if an argument cannot be sent.
            LoopsError: any of the tree in `loops_async.errors`.
        """
        limit, most = self._times(timeout, deadline)
        call = request_call(
            self._base_url,
            method,
            path,
            json=json,
            params=params or {},
            idempotency_key=idempotency_key,
            timeout=limit,
            deadline=most,
            max_body=checked_count("max_body", max_body),
        )
        if self._recipients is not None and call.method != "GET":
            # Whoever is named in the query or the body, and at least one.
            query = checked_json("params", dict(params or {}))
            self._recipients.check_body(call.body or b"{}", call.key, query)
        delivery = self._ready(call.key)
        if self._dry_run:
            what = f"{call.method} {path}"
            msg = f"a dry_run client sends nothing, so {what} has no answer"
            raise ConfigurationError(msg)
        delivery = delivery or await self._open()
        answer, _, _ = await delivery.deliver(call)
        try:
            return answer.json()
        except ValueError:  # a 409 that was accepted before need not be JSON
            return None

    async def test_api_key(self) -> dict[str, Any]:
        """Ask Loops whether the key is good: GET /v1/api-key.

        Returns:
            The answer, with the team's name as ``teamName``.

        Raises:
            AuthenticationError: if it is not.
            LoopsError: any other of the tree in `loops_async.errors`.
        """
        answer: dict[str, Any] = await self.request("GET", API_KEY_PATH)
        return answer

    async def aclose(self, grace: float = 10.0) -> None:
        """Close the client for good; nobody is cancelled.

        New calls, and those still waiting to send, get ClientClosedError.
        What is under way ends normally within the grace, then as a
        ConnectionLostError. Speaks for the running event loop; the
        connections in other loops are closed by their own shutdown.

        Args:
            grace: Seconds to wait for what is under way.
        """
        self._closed = True
        here = asyncio.get_running_loop()
        for lane in list(self._lanes):
            if lane.loop is here:
                lane.stop(ClientClosedError("the client is closed"))
        delivery = self._deliveries.get(here)
        if delivery is not None:
            await delivery.close(grace)

    def _ready(self, key: str | None) -> "Delivery | None":
        """Return the delivery of the running loop, if it was used last."""
        if self._closed:
            closed = ClientClosedError("the client is closed")
            closed.idempotency_key = key
            raise closed
        latest = self._latest
        return latest if latest is not None and latest.transport.usable else None

    async def _open(self) -> "Delivery":
        """Connect the client to the running event loop; does not wait."""
        from ._sending.delivery import Delivery  # noqa: PLC0415

        here = asyncio.get_running_loop()
        known = self._deliveries.get(here)
        if known is not None and known.transport.usable:
            self._latest = known
            return known
        for loop in list(self._deliveries):  # other threads do the same
            if loop.is_closed() or loop is here:
                gone = self._deliveries.pop(loop, None)
                if gone is not None:
                    self._past.add(gone.counts)
        transport = await self._connect()
        self._latest = self._deliveries[here] = Delivery(
            transport,
            api_key=self._api_key,
            limiter=self._limiter,
            policy=self._retry,
            on_attempt=self._on_attempt,
        )
        return self._latest

    def _import_late(self) -> None:
        """Import what takes a while: not with the package, nor in the first send."""
        from ._http import transport  # noqa: F401, PLC0415
        from ._sending import delivery  # noqa: F401, PLC0415

    async def _connect(self) -> "Transport":
        """Return what carries requests in the running event loop; does not wait."""
        from ._http.transport import AiohttpTransport  # noqa: PLC0415

        if self._session is not None:
            # There is no public way to ask a session for its loop.
            here = asyncio.get_running_loop()
            elsewhere = getattr(self._session, "_loop", here) is not here
            if elsewhere or self._session.closed:
                msg = "the session passed in is closed, or of another event loop"
                raise ConfigurationError(msg)
        transport = AiohttpTransport(self._session, **self._connections)
        await transport.open()
        return transport


_RECENT: Final = 10_000  # idempotency keys a stream remembers
