"""The public client; the `Sender` below it does the work."""

import ssl
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

import cattrs

from ._events.event import Event
from ._events.rules import NOTHING, PropertyValue
from ._http.address import Connections
from ._http.api_key import KeySource, hide_api_key
from ._http.request import API_KEY_PATH, MAX_BODY
from ._pacing.rate_limiter import RateLimiter
from ._pacing.retry_policy import RetryPolicy
from ._sending.intake import Source
from ._sending.outcomes import Attempt, Outcome, Receipt, SendReport
from ._sending.sender import STREAMED_KEYS, Seconds, Sender
from ._sending.stats import ClientStats

if TYPE_CHECKING:
    from aiohttp import ClientSession

Events: TypeAlias = Source[Event]


class AsyncLoopsClient:
    """A client that sends events to Loops.

    Make one client per application and share it. It keeps a pool of connections for
    each event loop, whose shutdown closes it. Use the client with ``async with``, or
    call `aclose`, so that requests in flight can finish. ``help(loops_async)``
    describes the rate limit, retries and outages.

    Args:
        api_key: The API key, or a callable (plain or async) that returns it. A
            callable is called before each attempt, so that keys can be rotated. If
            Loops refuses its key, one more attempt follows, unless it returns the same
            key. None means the variable LOOPS_API_KEY.
        base_url: The address of Loops, which ends in ``/api``. None means the variable
            LOOPS_BASE_URL; the default is ``https://app.loops.so/api``.
        rate_limit: Requests per second, ``math.inf`` for no limit, or a RateLimiter to
            share. None means LOOPS_RATE_LIMIT or the 10 of
            https://loops.so/docs/api-reference/intro, in a limiter that all clients of
            the process with this API key and base URL share.
        timeout: Seconds for one attempt; None means no limit. Connecting takes at most
            10 s in either case.
        deadline: Seconds for a whole call with all its waits and attempts; None means
            no limit. Bulk runs count differently: see `send_events`.
        retry: The number of attempts and the pauses between them.
        max_connections: The greatest number of requests in flight in an event loop.
        session: An aiohttp session to borrow, made in the event loop in which it is
            used. The client uses its connector and cookies, and never closes it.
        ssl_context: The TLS settings; None means aiohttp's default.
        proxy: The URL of an HTTP proxy. None means the proxy that the environment names
            when the client is made.
        dry_run: Whether to check events and send nothing; a dry run needs no API key.
        allowed_recipients: The recipients allowed, each as ``name@domain``, ``@domain``
            or ``user:ID``. Both the email and the user ID of an event, if given, must
            match an entry. Case does not count in emails. An empty list refuses all
            recipients; None allows all.
        on_attempt: A hook that gets an Attempt after each request. If it raises, the
            exception is logged and changes nothing.

    Raises:
        ConfigurationError: If a setting is invalid.
    """

    __module__ = "loops_async"

    sender: Sender
    """The engine below this client, which its outboxes and backfills share."""

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
        hidden_key = hide_api_key(api_key)
        del api_key  # a traceback that shows local variables must not show the key
        self.sender = Sender(
            hidden_key,
            base_url=base_url,
            timeout=timeout,
            deadline=deadline,
            allowed_recipients=allowed_recipients,
            dry_run=dry_run,
            rate_limit=rate_limit,
            retry=retry,
            on_attempt=on_attempt,
            connect=partial(
                Connections.checked,
                session=session,
                max_connections=max_connections,
                ssl_context=ssl_context,
                proxy=proxy,
                import_now=not dry_run,
            ),
        )

    def __repr__(self) -> str:
        state = getattr(self, "sender", "with invalid settings")
        return f"<{type(self).__name__} {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @property
    def stats(self) -> ClientStats:
        """The counters and the current state of the client."""
        return self.sender.stats()

    @property
    def converter(self) -> cattrs.Converter:
        """The cattrs converter that encodes events; hooks registered on it apply."""
        return self.sender.converter

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
        """Send one event, and wait until Loops has accepted it.

        The call waits for a permit from the rate limiter, for the response, and between
        attempts, which all carry the same idempotency key and the same bytes.

        Args:
            event_name: The name of the event, or an Event.
            email: As in Event.
            user_id: As in Event.
            event_properties: As in Event.
            contact_properties: As in Event.
            mailing_lists: As in Event.
            idempotency_key: As in Event.
            timeout: Seconds for one attempt; None means no limit. The default is the
                client's.
            deadline: Seconds for the whole call; None means no limit. The default is
                the client's.

        Returns:
            The receipt of the event, which Loops accepted now or earlier.

        Raises:
            InvalidEventError: If the event breaks a rule; nothing is sent.
            RecipientNotAllowedError: If the recipient is not allowed; nothing is
                sent.
            TypeError: If both an Event and its fields are passed.
            LoopsError: If the event was not sent, or not accepted; see
                `loops_async.errors`. If ``maybe_accepted`` is false, Loops does not
                have the event.
        """
        if not isinstance(event_name, Event):
            event = Event(
                event_name,  # type: ignore[arg-type]  # Event refuses None
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
            msg = "pass an Event or its fields, not both: use event.replace(...)"
            raise TypeError(msg)
        return await self.sender.send_event(event, timeout, deadline)

    async def send_events(
        self,
        events: Events,
        *,
        timeout: Seconds = ...,
        deadline: Seconds = ...,
        patience: float | None = 900.0,
        on_outcome: Callable[[Outcome], object] | None = None,
    ) -> SendReport:
        """Send many events, and wait until each has an outcome.

        Events are sent as fast as the rate limit allows, many at a time. The events
        of one contact (same email, whatever its case, or same user ID) are sent one
        after another, in input order. If two different events share an idempotency key,
        the second one fails. All outcomes stay in memory; see also `stream_events`.

        Args:
            events: An iterable or async iterable of Event, read at most 1,000 events
                ahead of the outcomes.
            timeout: Seconds for one attempt; None means no limit. The default is the
                client's.
            deadline: Seconds for the attempts of one event and the pauses between them;
                None means no limit, the default is the client's. Waits for the rate
                limiter, a Retry-After or the end of an outage do not count.
            patience: The longest time in seconds for which Loops may accept no event
                because of an outage, 429s or a long Retry-After; then the run stops.
                None means no limit.
            on_outcome: A hook that gets each Outcome. If it raises, the exception
                is logged and changes nothing.

        Returns:
            The outcomes in input order. The call does not raise if an event fails. A
            failure that every other event would share (401, 404, 405, a redirect, a
            refused certificate, an API key callable that raises, a closed client) stops
            the run, and so does an outage longer than the patience: see
            `SendReport.stopped_by`.

        Raises:
            ClientClosedError: If the client is closed.
            ConfigurationError: If an argument is out of range.
            TypeError: If ``events`` is not iterable, or an item is not an Event. The
                error of an item, or an error that ``events`` raises, is raised once all
                events read so far have an outcome; its notes contain the report.
        """
        began = time.monotonic()
        run = self.sender.bulk(
            events,
            timeout=timeout,
            deadline=deadline,
            patience=patience,
            on_outcome=on_outcome,
            keys=None,
        )
        outcomes: list[Outcome] = []

        def report() -> SendReport:
            outcomes.sort(key=lambda outcome: outcome.index)
            elapsed = time.monotonic() - began
            return SendReport(outcomes, stopped_by=run.stopped_by, elapsed=elapsed)

        try:
            async with aclosing(run.outcomes()) as stream:
                async for outcome in stream:
                    outcomes.append(outcome)  # noqa: PERF401 - kept if it raises
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
        """Send many events, and yield the outcome of each as it arrives.

        This is `send_events` in bounded memory: at most 1,000 events are read ahead of
        the outcomes that the caller has taken. If two different events share an
        idempotency key and are fewer than 10,000 positions apart, the second one fails.
        A run that is stopped yields the outcomes of all events that it has read.

        If the caller leaves its ``async for`` early, the run ends when the stream is
        closed or garbage-collected: requests in flight finish, and nothing more is read
        or sent. `contextlib.aclosing` closes the stream and waits for the requests.

        Args:
            events: As in `send_events`.
            timeout: As in `send_events`.
            deadline: As in `send_events`.
            patience: As in `send_events`.
            on_outcome: As in `send_events`; the hook also gets the outcomes that the
                caller does not take.

        Yields:
            The outcomes, in the order in which they arrive.

        Raises:
            LoopsError: As in `send_events`.
            TypeError: As in `send_events`.
        """
        run = self.sender.bulk(
            events,
            timeout=timeout,
            deadline=deadline,
            patience=patience,
            on_outcome=on_outcome,
            keys=STREAMED_KEYS,
        )
        return run.outcomes()

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
        """Make any other request to Loops, with the same rate limit and retries.

        A GET, PUT or DELETE is repeated like an event, and so is a POST or PATCH with
        an idempotency key. Without a key, a POST or PATCH is repeated only if Loops
        certainly did not accept it.

        Args:
            method: The HTTP method: GET, POST, PUT, PATCH or DELETE.
            path: The path of the endpoint, such as ``/v1/lists``.
            json: The value to send as the JSON body; None means no body.
            params: The query parameters.
            idempotency_key: The idempotency key, if the endpoint takes one. A 409 then
                means that Loops accepted the request before.
            timeout: As in `send_event`.
            deadline: As in `send_event`.
            max_body: The greatest number of response bytes to read.

        Returns:
            The parsed JSON of the response; None if the body is empty, or if the body
            of a 409 is not JSON.

        Raises:
            ValueError: If an argument cannot be sent.
            LoopsError: If the request was not accepted; see `loops_async.errors`.
        """
        return await self.sender.request(
            method,
            path,
            json=json,
            params=params,
            idempotency_key=idempotency_key,
            timeout=timeout,
            deadline=deadline,
            max_body=max_body,
        )

    async def test_api_key(self) -> dict[str, Any]:
        """Check with Loops whether the API key is valid: GET /v1/api-key.

        Returns:
            The response, with the name of the team as ``teamName``.

        Raises:
            AuthenticationError: If the API key is not valid.
            LoopsError: If the request failed otherwise; see `loops_async.errors`.
        """
        response: dict[str, Any] = await self.request("GET", API_KEY_PATH)
        return response

    async def aclose(self, grace: float = 10.0) -> None:
        """Close the client permanently, without cancelling any task.

        New calls, and calls that still wait to send, raise ClientClosedError. A request
        in flight that does not finish within the grace ends as ConnectionLostError.
        Only the connections of the running event loop are closed; the shutdown of
        another event loop closes its own.

        Args:
            grace: Seconds to wait for requests in flight.
        """
        await self.sender.aclose(grace)
