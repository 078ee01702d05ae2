"""All of `loops_async` as users write it, for type checkers; never run."""

import asyncio
import math
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, assert_type
from uuid import UUID, uuid4

import aiohttp
import cattrs

from loops_async import (
    APIError,
    AsyncLoopsClient,
    Attempt,
    AuthenticationError,
    BackfillReport,
    BadRequestError,
    ClientClosedError,
    ClientStats,
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    DeadlineExceededError,
    Event,
    Failure,
    ForbiddenError,
    IdempotencyConflictError,
    InputOptions,
    InvalidEventError,
    JournalError,
    LoopsError,
    NotFoundError,
    NotTriedError,
    Outbox,
    OutboxStats,
    Outcome,
    PayloadTooLargeError,
    Preview,
    Progress,
    PropertyValue,
    RateLimit,
    RateLimiter,
    RateLimitError,
    Receipt,
    RecipientNotAllowedError,
    RequestTimeoutError,
    RetryPolicy,
    SendReport,
    ServerError,
    TransportError,
    UnexpectedResponseError,
    __version__,
    backfill,
    event_from_record,
    event_to_record,
)

_VERSION: str = __version__


class Plan(Enum):
    PRO = "pro"


# Clients.


def clients(session: aiohttp.ClientSession, context: ssl.SSLContext) -> None:
    assert_type(AsyncLoopsClient(), AsyncLoopsClient)
    AsyncLoopsClient(None)
    AsyncLoopsClient("key")
    AsyncLoopsClient(plain_key, rate_limit=math.inf, timeout=None, deadline=None)
    AsyncLoopsClient(fetched_key, rate_limit=5, allowed_recipients={"@example.com"})
    AsyncLoopsClient(lambda: "key", on_attempt=lambda attempt: None)
    AsyncLoopsClient(
        api_key="key",
        base_url="https://loops.example.com/api",
        rate_limit=RateLimiter(8),
        timeout=5,
        deadline=20.0,
        retry=RetryPolicy(attempts=3),
        max_connections=10,
        session=session,
        ssl_context=context,
        proxy="http://proxy.example.com:3128",
        dry_run=False,
        allowed_recipients=["ada@example.com", "user:42"],
        on_attempt=on_attempt,
    )


def plain_key() -> str:
    return "key"


async def fetched_key() -> str:
    return "key"


def on_attempt(attempt: Attempt) -> int:
    assert_type(attempt.idempotency_key, str | None)
    assert_type(attempt.number, int)
    assert_type(attempt.status, int | None)
    assert_type(attempt.error, LoopsError | None)
    assert_type(attempt.elapsed, float)
    assert_type(attempt.retry_in, float | None)
    return attempt.number  # the client ignores the result of a hook


async def life_of_a_client() -> None:
    async with AsyncLoopsClient("key") as loops:
        assert_type(loops, AsyncLoopsClient)
        assert_type(loops.converter, cattrs.Converter)
        assert_type(loops.stats, ClientStats)
    assert_type(await loops.aclose(), None)
    await loops.aclose(2)
    await loops.aclose(grace=0.5)


class Tracking(AsyncLoopsClient):
    """`async with` keeps the type of a subclass."""


async def subclass() -> None:
    async with Tracking() as tracking:
        assert_type(tracking, Tracking)


def client_stats(stats: ClientStats) -> None:
    assert_type(stats.requests, int)
    assert_type(stats.limited, int)
    assert_type(stats.accepted, int)
    assert_type(stats.duplicates, int)
    assert_type(stats.failures, int)
    assert_type(stats.unknown, int)
    assert_type(stats.in_flight, int)
    assert_type(stats.waiting, int)
    assert_type(stats.limit, int | None)
    assert_type(stats.period, float | None)
    assert_type(stats.effective_limit, int | None)
    assert_type(stats.held, float)
    assert_type(stats.outage, bool)


# One event.


async def send_event(loops: AsyncLoopsClient, event: Event) -> None:
    assert_type(await loops.send_event(event), Receipt)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(loops.send_event(event))
        assert_type(task, asyncio.Task[Receipt])
    await loops.send_event(event, timeout=5, deadline=None)
    await loops.send_event(event, timeout=..., deadline=...)

    by_email = await loops.send_event("signup", email="ada@example.com")
    assert_type(by_email, Receipt)
    by_user_id = await loops.send_event("signup", user_id="42")
    assert_type(by_user_id, Receipt)
    await loops.send_event(event_name="signup", email="ada@example.com", user_id="42")
    await loops.send_event("signup", email=None, user_id="42")
    await loops.send_event("signup", email="ada@example.com", user_id=None)
    await loops.send_event(
        "signup",
        email="ada@example.com",
        user_id="42",
        event_properties={
            "text": "a",
            "whole": 1,
            "number": 1.5,
            "flag": True,
            "day": date(2026, 1, 31),
            "moment": datetime.now(UTC),
            "plan": Plan.PRO,
            "order": uuid4(),
            "total": Decimal("9.90"),
        },
        contact_properties={"firstName": "Ada", "nickname": None},
        mailing_lists={"list-id": True},
        idempotency_key="signup-42",
        timeout=None,
        deadline=30,
    )
    await loops.send_event(
        "signup",
        user_id="42",
        event_properties={},
        contact_properties={},
        mailing_lists={},
        idempotency_key=None,
        timeout=2.5,
        deadline=math.inf,
    )


async def mappings(
    loops: AsyncLoopsClient,
    texts: dict[str, str],
    orders: Mapping[str, UUID],
    loose: dict[str, Any],
) -> None:
    """Mappings may have narrower value types or values of type Any."""
    await loops.send_event("e", email="a@example.com", event_properties=texts)
    await loops.send_event("e", email="a@example.com", event_properties=orders)
    await loops.send_event("e", user_id="42", event_properties=loose)
    await loops.send_event("e", user_id="42", contact_properties=texts)
    await loops.send_event("e", user_id="42", contact_properties=loose)


async def maybe_an_email(
    loops: AsyncLoopsClient, email: str | None, user_id: str
) -> None:
    """One identifier is enough; the other may be None."""
    assert_type(await loops.send_event("e", email=email, user_id=user_id), Receipt)
    if email is not None:
        await loops.send_event("e", email=email)


def receipt(got: Receipt) -> None:
    assert_type(got.idempotency_key, str)
    assert_type(got.attempts, int)
    assert_type(got.duplicate, bool)
    assert_type(got.elapsed, float)
    assert_type(got.rate_limit, RateLimit | None)
    assert_type(got.dry_run, bool)
    if got.rate_limit:
        assert_type(got.rate_limit.limit, int)
        assert_type(got.rate_limit.remaining, int)


def events() -> None:
    Event("signup", email="ada@example.com")
    event = Event(
        event_name="signup",
        email=None,
        user_id="42",
        event_properties={"plan": Plan.PRO, "day": date.today()},  # noqa: DTZ011
        contact_properties={"nickname": None, "since": datetime.now(UTC)},
        mailing_lists={"list-id": False},
        idempotency_key="signup-42",
    )
    assert_type(event.event_name, str)
    assert_type(event.email, str | None)
    assert_type(event.user_id, str | None)
    assert_type(event.event_properties, Mapping[str, str | int | float | bool])
    assert_type(event.contact_properties, Mapping[str, str | int | float | bool | None])
    assert_type(event.mailing_lists, Mapping[str, bool])
    assert_type(event.idempotency_key, str)
    assert_type(event.replace(email="bo@example.com", user_id=None), Event)
    properties: dict[str, PropertyValue] = {"amount": 42, "at": datetime.now(UTC)}
    assert_type(event.replace(event_properties=properties), Event)
    assert_type(event.again(), Event)
    assert_type(event == event.again(), bool)


def records(event: Event, record: Mapping[str, object]) -> None:
    assert_type(event_to_record(event), dict[str, Any])
    assert_type(event_from_record(event_to_record(event)), Event)
    assert_type(event_from_record(record), Event)


# Many events.


def generated() -> Iterator[Event]:
    yield Event("e", user_id="42")


async def queued() -> AsyncIterator[Event]:
    yield Event("e", user_id="42")


async def send_events(loops: AsyncLoopsClient, listed: list[Event]) -> SendReport:
    assert_type(await loops.send_events(listed), SendReport)
    await loops.send_events(tuple(listed))
    await loops.send_events(event for event in listed)
    await loops.send_events(generated())
    await loops.send_events(queued())
    return await loops.send_events(
        events=listed,
        timeout=None,
        deadline=...,
        patience=60,
        on_outcome=print,
    )


async def stream_events(loops: AsyncLoopsClient, listed: Sequence[Event]) -> None:
    stream = loops.stream_events(listed)
    assert_type(stream, AsyncGenerator[Outcome, None])
    async with aclosing(stream):
        async for outcome in stream:
            assert_type(outcome, Outcome)
    async for outcome in loops.stream_events(generated()):
        assert_type(outcome.ok, bool)
    seen: list[Outcome] = []
    options = loops.stream_events(
        events=queued(),
        timeout=1,
        deadline=None,
        patience=None,
        on_outcome=seen.append,
    )
    assert_type([outcome.ok async for outcome in options], list[bool])


def outcome(one: Outcome) -> None:
    assert_type(one.index, int)
    assert_type(one.event, Event)
    assert_type(one.receipt, Receipt | None)
    assert_type(one.error, LoopsError | None)
    assert_type(one.ok, bool)


def report(sent: SendReport) -> Sequence[Outcome]:
    assert_type(len(sent), int)
    assert_type(sent[0], Outcome)
    assert_type(sent[-2:], tuple[Outcome, ...])
    assert_type(list(sent), list[Outcome])
    assert_type(list(reversed(sent)), list[Outcome])
    assert_type(sent.count(sent[0]), int)
    assert_type(sent.index(sent[0]), int)
    assert_type(sent.accepted, tuple[Outcome, ...])
    assert_type(sent.duplicates, tuple[Outcome, ...])
    assert_type(sent.failures, tuple[Outcome, ...])
    assert_type(sent.unknown, tuple[Outcome, ...])
    assert_type(sent.not_tried, tuple[Outcome, ...])
    assert_type(sent.stopped_by, LoopsError | None)
    assert_type(sent.elapsed, float)
    try:
        assert_type(sent.raise_for_failures(), None)
    except* RateLimitError as group:
        assert_type(group, ExceptionGroup[RateLimitError])
    made = SendReport([*sent], stopped_by=sent.stopped_by, elapsed=1)
    assert_type(made, SendReport)
    return sent


# The rest of the API.


async def requests(loops: AsyncLoopsClient) -> None:
    assert_type(await loops.request("GET", "/v1/lists"), Any)
    await loops.request(
        method="POST",
        path="/v1/transactional",
        json={"transactionalId": "id", "email": "ada@example.com"},
        params={"page": 1, "verbose": True, "of": "x"},
        idempotency_key="receipt-42",
        timeout=5,
        deadline=None,
        max_body=1_000_000,
    )
    team = await loops.test_api_key()
    assert_type(team, dict[str, Any])


# Rate limit and retries.


async def limiters() -> None:
    RateLimiter()
    RateLimiter(10, 1.0)
    limiter = RateLimiter(limit=10, period=1, clock=lambda: 0.0, chance=lambda: 0.5)
    assert_type(limiter.limit, int)
    assert_type(limiter.period, float)
    assert_type(limiter.effective_limit, int)
    assert_type(limiter.held, float)
    assert_type(limiter.slowed, bool)
    assert_type(limiter.try_acquire(), bool)
    assert_type(limiter.try_acquire(bulk=True), bool)
    assert_type(await limiter.acquire(), None)
    await limiter.acquire(bulk=True)
    limiter.release(answered=True, round_trip=0.1)
    limiter.release(answered=False)
    limiter.release_unused()
    limiter.hold(1.5)
    limiter.note_rate_limited()
    limiter.note_rate_limited(retry_after=2)
    limiter.note_remaining(3)
    limiter.note_remaining(None)
    limiter.forked()
    assert_type(limiter.shortest_wait(), float)


def retries() -> None:
    policy = RetryPolicy(attempts=5, base=0.1, cap=3)
    assert_type(policy.attempts, int)
    assert_type(policy.base, float)
    assert_type(policy.cap, float)
    assert_type(policy.waits(), Iterator[float])
    assert_type(next(policy.waits(jitter=lambda longest: longest)), float)


# The outbox.


async def outboxes(loops: AsyncLoopsClient, event: Event) -> None:
    Outbox("events.db", loops)
    async with Outbox(
        path=Path("events.db"), client=loops, capacity=1000, keep_accepted=None
    ) as outbox:
        assert_type(outbox, Outbox)
        assert_type(await outbox.put(event), None)
        assert_type(await outbox.put_many([event, event.again()]), None)
        await outbox.put_many(generated())
        assert_type(await outbox.flush(), int)
        await outbox.flush(10)
        await outbox.flush(timeout=None)
        assert_type(outbox.stats(), OutboxStats)
        async for failure in outbox.failures():
            assert_type(failure, Failure)
            await outbox.retry(failure.idempotency_key)
        assert_type(await outbox.retry(), int)
        await outbox.retry(keys={"a", "b"})
        assert_type(await outbox.forget("a"), int)
        await outbox.forget(["a", "b"])
    await outbox.aclose()
    await outbox.aclose(grace=1)


def failures(failure: Failure) -> None:
    assert_type(failure.id, int)
    assert_type(failure.idempotency_key, str)
    assert_type(failure.body, Mapping[str, Any])
    assert_type(failure.state, str)
    assert_type(failure.error, str)
    assert_type(failure.attempts, int)
    assert_type(failure.at, float)


def outbox_stats(stats: OutboxStats) -> None:
    assert_type(stats.pending, int)
    assert_type(stats.retrying, int)
    assert_type(stats.rejected, int)
    assert_type(stats.unknown, int)
    assert_type(stats.accepted, int)
    assert_type(stats.duplicates, int)
    assert_type(stats.paused, str | None)


# Backfills.


async def backfills(loops: AsyncLoopsClient) -> None:
    assert_type(await backfill("old.csv", loops), BackfillReport)
    await backfill(Path("old.csv"), loops)
    await backfill(["a.csv", Path("b.jsonl.gz")], client=loops)
    await backfill((Path(name) for name in ("a.csv", "b.csv")), loops)
    await backfill(
        paths="old.csv",
        client=loops,
        input_options=InputOptions(event_name="signup"),
        journal=Path("journal.db"),
        rejects="rejects.jsonl",
        confirm=confirm,
        on_progress=on_progress,
        on_read=print,
        max_errors=10,
        resend_unknown=True,
    )
    await backfill(
        "old.csv",
        loops,
        journal=None,
        rejects=None,
        confirm=ask,
        on_progress=None,
        on_read=None,
        max_errors=None,
    )


def confirm(preview: Preview) -> bool:
    assert_type(preview.rows, int)
    assert_type(preview.invalid, int)
    assert_type(preview.problems, tuple[str, ...])
    assert_type(preview.events, Mapping[str, int])
    assert_type(preview.contacts, int)
    assert_type(preview.sample, Mapping[str, Any] | None)
    assert_type(preview.to_send, int)
    assert_type(preview.seconds, float | None)
    if preview.changes is not None:
        assert_type(preview.changes.new, int)
        assert_type(preview.changes.first_new, tuple[str, ...])
        assert_type(preview.changes.dropped, int)
        assert_type(preview.changes.sent_before, int)
    return True


async def ask(preview: Preview) -> bool:
    return preview.invalid == 0


def on_progress(progress: Progress) -> None:
    assert_type(progress.rows, int)
    assert_type(progress.accepted, int)
    assert_type(progress.duplicates, int)
    assert_type(progress.invalid, int)
    assert_type(progress.rejected, int)
    assert_type(progress.unknown, int)
    assert_type(progress.pending, int)


def backfill_report(books: BackfillReport) -> Progress:
    assert_type(books.stopped_by, LoopsError | None)
    assert_type(books.journal, Path)
    assert_type(books.rejects, Path | None)
    assert_type(books.elapsed, float)
    return books


def readings() -> None:
    reading = InputOptions(
        event_name=None,
        mapping={"email": "E-Mail", "amount": "Total"},
        types={"amount": "number"},
        format="csv",
        ignore=["Comment"],
    )
    assert_type(reading.event_name, str | None)
    assert_type(reading.mapping, Mapping[str, str])
    assert_type(reading.types, Mapping[str, str])
    assert_type(reading.format, str | None)
    assert_type(reading.ignore, Collection[str])
    InputOptions("signup", {"email": "E-Mail"}, {}, None, {"Comment"})


# Errors.


async def errors(loops: AsyncLoopsClient) -> None:
    try:
        await loops.send_event("signup", email="ada@example.com")
    except InvalidEventError as error:
        assert_type(error.problems, tuple[str, ...])
    except (ConfigurationError, RecipientNotAllowedError, ClientClosedError) as error:
        assert_type(
            error, ConfigurationError | RecipientNotAllowedError | ClientClosedError
        )
    except (ConnectFailedError, RequestTimeoutError, ConnectionLostError) as error:
        transport: TransportError = error
        assert_type(transport.retryable, bool)
    except RateLimitError as error:
        assert_type(error.limit, int | None)
        assert_type(error.remaining, int | None)
        assert_type(error.retry_after, float | None)
    except (
        AuthenticationError,
        BadRequestError,
        ForbiddenError,
        IdempotencyConflictError,
        NotFoundError,
        PayloadTooLargeError,
        ServerError,
        UnexpectedResponseError,
    ) as error:
        api: APIError = error
        assert_type(api.status, int)
    except APIError as error:
        assert_type(error.status, int)
        assert_type(error.message, str)
        assert_type(error.body, bytes)
        assert_type(error.headers, Mapping[str, str])
        assert_type(error.retry_after, float | None)
    except TimeoutError as error:
        assert_type(error, TimeoutError)
    except JournalError as error:
        assert_type(error.in_use, bool)
    except LoopsError as error:
        assert_type(error.idempotency_key, str | None)
        assert_type(error.attempts, int)
        assert_type(error.retryable, bool)
        assert_type(error.maybe_accepted, bool)


_UNTRIED: list[LoopsError] = [NotTriedError("later"), JournalError("the disk is full")]
_LATE: tuple[TimeoutError, ...] = (DeadlineExceededError(), RequestTimeoutError())
_BAD: ValueError = InvalidEventError(problems=["email: must be a string"])
_MADE: list[Callable[..., LoopsError]] = [LoopsError, APIError, TransportError]


def made_for_tests() -> None:
    """Test doubles construct errors like this."""
    LoopsError(text="no", retryable=True, maybe_accepted=True)
    TransportError("no", maybe_accepted=True)
    ServerError(
        "503",
        status=503,
        message="busy",
        body=b"busy",
        headers={"retry-after": "1"},
        retry_after=1,
        retryable=True,
        maybe_accepted=True,
    )
