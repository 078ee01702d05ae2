"""The engine below the client: it prepares events and delivers requests.

A client, its outboxes and its backfills share one Sender, and with it one limiter,
one allow-list, one converter, and one delivery for each event loop.
"""

import asyncio
import threading
import warnings
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from types import EllipsisType
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import attrs
from cattrs import Converter

from loops_async._checks import (
    checked_count,
    checked_hook,
    checked_seconds,
    checked_type,
)
from loops_async._events.allow_list import parse_allow_list
from loops_async._events.codec import encode, make_converter
from loops_async._events.event import Event
from loops_async._http.address import checked_base_url
from loops_async._http.api_key import KeySource, key_source
from loops_async._http.protocol import Transport
from loops_async._http.request import (
    EVENTS_PATH,
    Request,
    build_request,
    checked_json,
)
from loops_async._pacing.rate_limiter import RateLimiter
from loops_async._pacing.retry_policy import RetryPolicy
from loops_async._pacing.shared import limiter_for
from loops_async.errors import ClientClosedError, ConfigurationError, LoopsError

from .bulk import Bulk, OutcomeT
from .bulk_run import BulkRun
from .bulk_tries import BulkTries
from .delivery import Delivery
from .intake import Source
from .ordering import Sendable
from .outcomes import Attempt, Outcome, Receipt
from .stats import ClientStats, Counts
from .tries import Record, Tries

Seconds: TypeAlias = float | EllipsisType | None
"""For one call: None and inf mean no limit, ``...`` means the client's setting."""

MakeTransport: TypeAlias = Callable[[], Awaitable[Transport]]
"""A callable that makes the transport of the running event loop; does not wait."""

STREAMED_KEYS: Final = 10_000  # idempotency keys that a stream remembers


class Row(Sendable, Protocol):
    """A row of a journal: an event with its encoded body."""

    @property
    def body(self) -> bytes: ...


RowT = TypeVar("RowT", bound=Row)


class Sender:
    """The engine that sends the events and requests of one client, in any event loop.

    The settings are those of `AsyncLoopsClient`, in the order in which they are
    checked.

    Args:
        api_key: The API key, hidden by `hide_api_key`, or a callable, or None.
        base_url: The address of Loops, or None.
        timeout: Seconds for one attempt; None means no limit.
        deadline: Seconds for a whole call; None means no limit.
        allowed_recipients: The recipients allowed; None allows all.
        dry_run: Whether events are only checked.
        rate_limit: Requests per second, a limiter, or None.
        retry: The number of attempts and the pauses between them.
        on_attempt: A hook that gets each attempt, or None.
        connect: A callable that gets the base URL and the timeout, and returns a
            factory of transports.

    Attributes:
        base_url: The address of Loops.
        dry_run: Whether events are only checked.
        limiter: The rate limiter; None means no limit.
        retry: The number of attempts and the pauses between them.
        converter: The converter that encodes events.
        closed: Whether further calls are refused.

    Raises:
        ConfigurationError: If a setting is invalid.
    """

    # The state of a sender whose construction failed, which a traceback may show.
    base_url: str = "with invalid settings"
    closed: bool = True
    dry_run: bool = False
    limiter: RateLimiter | None = None

    def __init__(
        self,
        api_key: object,
        *,
        base_url: str | None,
        timeout: float | None,
        deadline: float | None,
        allowed_recipients: Iterable[str] | None,
        dry_run: bool,
        rate_limit: float | RateLimiter | None,
        retry: RetryPolicy,
        on_attempt: Callable[[Attempt], object] | None,
        connect: Callable[[str, float | None], MakeTransport],
    ) -> None:
        self._deliveries: dict[asyncio.AbstractEventLoop, Delivery] = {}
        self._latest: Delivery | None = None
        self._past_counts = Counts()  # of event loops that are closed
        self._runs: set[BulkRun] = set()
        self.closed = False
        self.base_url = checked_base_url(base_url)
        self._events_url = self.base_url + EVENTS_PATH
        self._timeout = checked_seconds("timeout", timeout)
        self._deadline = checked_seconds("deadline", deadline)
        self._allow_list = parse_allow_list(allowed_recipients)
        self.dry_run = checked_type("dry_run", dry_run, bool)
        self._api_key: KeySource = ""
        if not dry_run:
            self._api_key = key_source(api_key)
            self.limiter = limiter_for(rate_limit, self._api_key, self.base_url)
        self.retry: RetryPolicy = checked_type("retry", retry, RetryPolicy)
        self._on_attempt = checked_hook("on_attempt", on_attempt)
        self._make_transport = connect(self.base_url, self._timeout)
        self.converter: Converter = make_converter()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "dry run" if self.dry_run else "open"
        return f"{self.base_url}, {state}, {self.limiter!r}"

    def __del__(self) -> None:
        if hasattr(self, "_deliveries") and self.is_connected:
            text = "unclosed AsyncLoopsClient: use async with, or await aclose()"
            warnings.warn(text, ResourceWarning, stacklevel=2)

    def prepare(self, event: Event) -> bytes:
        """Check the recipient of an event, and return the encoded event.

        Raises:
            LoopsError: If the event must not, or cannot, be sent.
        """
        allow_list = self._allow_list
        if allow_list is None:
            return encode(event, self.converter)
        allow_list.check(event.email, event.user_id, event.idempotency_key)
        return encode(event, self.converter, allow_list.check_body)

    def send_event(
        self, event: Event, timeout: Seconds, deadline: Seconds
    ) -> Awaitable[Receipt]:
        """Check an event, and return an awaitable that sends it.

        Raises:
            LoopsError: If the event is refused, or the sender is closed.
        """
        key = event.idempotency_key
        body = self.prepare(event)
        if timeout is ... and deadline is ...:
            timeout, deadline = self._timeout, self._deadline
        else:
            timeout, deadline = self._times(timeout, deadline)
        if self.closed:
            raise _closed_error(key)
        if self.dry_run:
            return _dry_receipt(key)
        request = Request("POST", self._events_url, body, key, event, timeout, deadline)
        delivery = self._latest
        if delivery is None or not _is_current(delivery):
            loop = asyncio.get_running_loop()
            return self._connect_and_deliver(self._tries(request, loop))
        return delivery.deliver(self._tries(request, delivery.transport.loop))

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any,
        params: Mapping[str, str | int | bool] | None,
        idempotency_key: str | None,
        timeout: Seconds,
        deadline: Seconds,
        max_body: int,
    ) -> Any:
        """Make any request; see `AsyncLoopsClient.request`."""
        timeout, deadline = self._times(timeout, deadline)
        request = build_request(
            self.base_url,
            method,
            path,
            json=json,
            params=params or {},
            idempotency_key=idempotency_key,
            timeout=timeout,
            deadline=deadline,
            max_body=checked_count("max_body", max_body),
        )
        if self._allow_list is not None and request.method != "GET":
            # The query or the body must name a contact that is allowed.
            query = checked_json("params", dict(params or {}))
            self._allow_list.check_body(request.body or b"{}", request.key, query)
        if self.closed:
            raise _closed_error(request.key)
        if self.dry_run:
            what = f"{request.method} {path}"
            msg = f"a dry_run client sends nothing, so {what} has no response"
            raise ConfigurationError(msg)
        tries = self._tries(request, asyncio.get_running_loop())
        await self._connect_and_deliver(tries)
        try:
            return tries.response.json()
        except ValueError:  # the body of an accepted 409 need not be JSON
            return None

    def bulk(
        self,
        events: Source[Event],
        *,
        timeout: Seconds,
        deadline: Seconds,
        patience: float | None,
        on_outcome: Callable[[Outcome], object] | None,
        keys: int | None,
    ) -> Bulk[Event, Outcome]:
        """Return a run that sends many events; see `AsyncLoopsClient.send_events`.

        Raises:
            TypeError: If the events are not iterable.
            ConfigurationError: If an argument is out of range.
            ClientClosedError: If the sender is closed.
        """
        if not isinstance(events, Iterable | AsyncIterable):
            kind = type(events).__name__
            msg = f"events must be an iterable or async iterable of Event, not {kind}"
            raise TypeError(msg)
        one_timeout, one_deadline = self._times(timeout, deadline)
        checked_hook("on_outcome", on_outcome)
        if self.closed:
            raise _closed_error(None)

        def send(event: Event, body: bytes, run: BulkRun) -> Awaitable[Receipt]:
            key = event.idempotency_key
            request = Request(
                "POST", self._events_url, body, key, event, one_timeout, one_deadline
            )
            return self._send_in(run, request, self.retry, None)

        return Bulk(
            events,
            kind=Event,
            outcome=Outcome,
            prepare=self.prepare,
            send=None if self.dry_run else send,
            has_room=self._has_room,
            runs=self._runs,
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
    ) -> Bulk[RowT, OutcomeT]:
        """Return a run that sends the rows of a journal, with unlimited patience.

        Args:
            rows: The rows.
            kind: The class of the rows.
            outcome: A callable that makes the outcome of a row.
            record: The record of the attempts.
            look_ahead: The greatest number of rows in memory, those that wait for their
                contact's earlier rows included.
        """

        def send(row: RowT, body: bytes, run: BulkRun) -> Awaitable[Receipt]:
            key, timeout = row.idempotency_key, self._timeout
            request = Request("POST", self._events_url, body, key, body, timeout, None)
            return self._send_in(run, request, record.policy, record)

        return Bulk(
            rows,
            kind=kind,
            outcome=outcome,
            prepare=self._prepare_row,
            send=None if self.dry_run else send,
            has_room=self._has_room,
            runs=self._runs,
            patience=None,
            keys=1,  # the journal makes sure that they are unique
            look_ahead=look_ahead,
        )

    def stats(self) -> ClientStats:
        """Return the counters and the current state of the sender."""
        total = Counts()
        total.add(self._past_counts)
        deliveries = list(self._deliveries.values())
        for delivery in deliveries:
            total.add(delivery.counts)
        limiter = self.limiter
        return ClientStats(
            **attrs.asdict(total),
            in_flight=sum(d.transport.in_flight for d in deliveries),
            waiting=sum(len(d.admission.waiting) for d in deliveries),
            limit=None if limiter is None else limiter.limit,
            period=None if limiter is None else limiter.period,
            effective_limit=None if limiter is None else limiter.effective_limit,
            held=0.0 if limiter is None else limiter.held,
            outage=any(d.admission.outage for d in deliveries if _is_current(d)),
        )

    @property
    def is_connected(self) -> bool:
        """Whether the running event loop has connections that are not closed."""
        return any(_is_current(delivery) for delivery in self._deliveries.values())

    @property
    def event_loops(self) -> list[asyncio.AbstractEventLoop]:
        """The event loops in which a request was sent."""
        return list(self._deliveries)

    async def aclose(self, grace: float) -> None:
        """Refuse further calls, and close the connections of the running event loop.

        Args:
            grace: Seconds to wait for requests in flight.
        """
        self.closed = True
        loop = asyncio.get_running_loop()
        for run in list(self._runs):
            if run.loop is loop:
                run.stop(ClientClosedError("the client is closed"))
        delivery = self._deliveries.get(loop)
        if delivery is not None:
            await delivery.close(grace)

    def _prepare_row(self, row: Row) -> bytes:
        if self._allow_list is not None:
            key = row.idempotency_key
            self._allow_list.check(row.email, row.user_id, key)
            self._allow_list.check_body(row.body, key)
        return row.body

    def _times(
        self, timeout: Seconds, deadline: Seconds
    ) -> tuple[float | None, float | None]:
        """Return both for one call; ``...`` stands for the client's setting."""
        return (
            self._timeout if timeout is ... else checked_seconds("timeout", timeout),
            self._deadline
            if deadline is ...
            else checked_seconds("deadline", deadline),
        )

    def _tries(self, request: Request, loop: asyncio.AbstractEventLoop) -> Tries:
        began = loop.time()
        end = None if request.deadline is None else began + request.deadline
        return Tries(request, self.retry, began, end)

    def _send_in(
        self,
        run: BulkRun,
        request: Request,
        policy: RetryPolicy,
        record: Record | None,
    ) -> Awaitable[Receipt]:
        """Return an awaitable that sends one event of a run."""
        if self.closed:
            raise _closed_error(request.key)
        tries = BulkTries(request, policy, run.loop.time(), None, run, record)
        delivery = self._latest
        if delivery is None or not _is_current(delivery):
            return self._connect_and_deliver(tries)
        return delivery.deliver(tries)

    async def _connect_and_deliver(self, tries: Tries) -> Receipt:
        delivery = await self._connect()
        return await delivery.deliver(tries)

    def _has_room(self) -> bool:
        return self._latest is None or self._latest.admission.has_room()

    async def _connect(self) -> Delivery:
        """Return the delivery of the running event loop; does not wait."""
        loop = asyncio.get_running_loop()
        known = self._deliveries.get(loop)
        if known is not None and _is_current(known):
            self._latest = known
            return known
        for other in list(self._deliveries):  # a copy, because other threads change it
            if other.is_closed() or other is loop:
                gone = self._deliveries.pop(other, None)
                if gone is not None:
                    self._past_counts.add(gone.counts)
        transport = await self._make_transport()
        self._latest = self._deliveries[loop] = Delivery(
            transport,
            api_key=self._api_key,
            limiter=self.limiter,
            on_attempt=self._on_attempt,
        )
        return self._latest


def _is_current(delivery: Delivery) -> bool:
    """Return whether the delivery belongs to the running event loop.

    A thread runs one event loop at a time, so an event loop that runs in this thread is
    the running one. Asking asyncio would cost a system call per event.
    """
    transport = delivery.transport
    return (
        transport.loop.is_running()
        and transport.thread == threading.get_ident()
        and not transport.closed
        and (transport.borrowed is None or not transport.borrowed.closed)
    )


def _closed_error(key: str | None) -> ClientClosedError:
    error = ClientClosedError("the client is closed")
    error.idempotency_key = key
    return error


async def _dry_receipt(key: str) -> Receipt:
    return Receipt(key, 0, False, 0.0, None, dry_run=True)
