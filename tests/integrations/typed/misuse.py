"""Wrong uses of `loops_async`: type checkers must reject each line with a comment.

An error without a comment fails the check, and so does a comment without an error.
"""

# An expected error makes a type unknown; reports about that type are switched off.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Iterable
from pathlib import Path

import loops_async
from loops_async import (
    APIError,
    AsyncLoopsClient,
    Attempt,
    BackfillReport,
    ClientStats,
    Event,
    Failure,
    InputOptions,
    InvalidEventError,
    LoopsError,
    Outbox,
    OutboxStats,
    Outcome,
    Preview,
    Progress,
    RateLimit,
    RateLimiter,
    RateLimitError,
    Receipt,
    RetryPolicy,
    SendReport,
    TransportError,
    backfill,
    event_from_record,
    event_to_record,
)


def show(*_: object) -> None: ...


def misspelled() -> None:
    show(loops_async.AsyncLoopClient)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    show(loops_async.outbox)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def clients(api_key: str | None) -> None:
    AsyncLoopsClient(42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(b"key")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(lambda: 42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(lambda: api_key)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(numbered_key)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(key_for_a_team)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient("key", "https://loops.example.com/api")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    AsyncLoopsClient(base_url=Path("api"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(rate_limit="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(timeout="30")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(deadline=...)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(retry=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(max_connections=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(session="session")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(ssl_context=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(proxy=8080)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(dry_run="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(allowed_recipients=[42])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(on_attempt=hook_without_arguments)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(on_attempt=outcome_hook)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncLoopsClient(apikey="key")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with AsyncLoopsClient():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def numbered_key() -> int:
    return 42


def key_for_a_team(team: str) -> str:
    return team


def hook_without_arguments() -> None: ...


def outcome_hook(outcome: Outcome) -> None: ...


async def attributes_of_a_client(loops: AsyncLoopsClient) -> None:
    loops.stats()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
    loops.converter = None  # type: ignore[assignment, misc]  # pyright: ignore[reportAttributeAccessIssue]
    show(loops.limiter)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    loops.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    await loops.aclose("now")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loops.aclose()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    loops.send("signup")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def send_event(loops: AsyncLoopsClient, event: Event) -> None:
    await loops.send_event()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await loops.send_event("signup")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event(email="ada@example.com")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await loops.send_event("signup", email=None)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("signup", email=None, user_id=None)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await loops.send_event("signup", "ada@example.com")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await loops.send_event(None, email="ada@example.com")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("signup", email=b"ada@example.com")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("signup", user_id=42)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("signup", userId="42")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await loops.send_event(event, email="ada@example.com")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event(event, event_properties={"a": 1})  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await loops.send_event(event, idempotency_key="key")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await loops.send_event(event=event)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await loops.send_event([event])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event({"event_name": "signup", "email": "ada@example.com"})  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event(event, timeout="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event(event, deadline="never")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", idempotency_key=42)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", timeout="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", retries=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def send_without_recipient(
    loops: AsyncLoopsClient, email: str | None, user_id: str | None
) -> None:
    await loops.send_event("signup", email=email)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.send_event("signup", email=email, user_id=user_id)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def properties(loops: AsyncLoopsClient, values: dict[str, object]) -> None:
    await loops.send_event("e", user_id="42", event_properties={"a": None})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", event_properties={"a": ["b"]})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", event_properties={"a": {"b": 1}})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", event_properties={"a": b"b"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", event_properties={"a": 1j})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", event_properties={1: "a"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", event_properties=["a"])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", event_properties=values)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", event_properties=None)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", contact_properties={"a": ["b"]})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", contact_properties={"a": b"b"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", mailing_lists={"id": "yes"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", mailing_lists={"id": None})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_event("e", user_id="42", mailing_lists=["id"])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def missing_awaits(loops: AsyncLoopsClient, event: Event) -> None:
    loops.send_event(event)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    loops.send_events([event])  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    loops.test_api_key()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    show(loops.send_event(event).attempts)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    show(loops.send_events([event]).accepted)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    show(loops.request("GET", "/v1/lists")["lists"])  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    receipt: Receipt = loops.send_event(event)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    show(receipt)


def events(event: Event) -> None:
    Event()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Event(email="ada@example.com")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Event(None, email="ada@example.com")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Event("signup", "ada@example.com")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Event("signup", email=42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Event("signup", user_id=42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Event("signup", user_id="42", properties={"a": 1})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Event("signup", user_id="42", event_properties={"a": None})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Event("signup", user_id="42", event_properties={"a": ["b"]})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Event("signup", user_id="42", event_properties={"a": b"b"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Event("signup", user_id="42", contact_properties={"a": {"b": 1}})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Event("signup", user_id="42", mailing_lists={"id": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Event("signup", user_id="42", mailing_lists={"id"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Event("signup", user_id="42", idempotency_key=42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event.email.casefold()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    event.event_name = "login"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    event.idempotency_key = "key"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    del event.user_id  # pyright: ignore[reportAttributeAccessIssue]
    event.event_properties["a"] = 1  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    event.contact_properties["a"] = None  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    event.mailing_lists.update({"id": True})  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    event.replace(emial="bo@example.com")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    event.again(email="bo@example.com")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    show(event.key)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    show(event < event.idempotency_key)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]


def records(event: Event) -> None:
    event_to_record({"event_name": "signup"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event_to_record([event])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event_from_record(event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event_from_record("{}")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event_from_record([{"event_name": "signup"}])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event_from_record({1: "signup"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]


async def send_events(loops: AsyncLoopsClient, event: Event, name: str) -> None:
    await loops.send_events()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await loops.send_events(event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.send_events(name)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.send_events(["signup"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await loops.send_events([{"event_name": "signup"}])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await loops.send_events([event, None])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await loops.send_events({"a": event})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.send_events([event], 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await loops.send_events([event], timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.send_events([event], patience=...)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.send_events([event], on_outcome=attempt_hook)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.send_events([event], concurrency=10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await loops.send_events(one_event())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def attempt_hook(attempt: Attempt) -> None: ...


async def one_event() -> Event:
    return Event("e", user_id="42")


async def stream_events(loops: AsyncLoopsClient, event: Event) -> None:
    for outcome in loops.stream_events([event]):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        show(outcome)
    await loops.stream_events([event])  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    async with loops.stream_events([event]):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    list(loops.stream_events([event]))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    loops.stream_events(["signup"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    loops.stream_events([event], deadline="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loops.stream_events([event], buffer=10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    async for outcome in loops.stream_events([event]):
        show(outcome.receipt.attempts)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        show(outcome.error.retryable)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        show(outcome.attempts)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        outcome.ok()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
    async for report in loops.send_events([event]):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        show(report)


def outcomes(receipt: Receipt, outcome: Outcome, report: SendReport) -> None:
    receipt.attempts = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    show(receipt.rate_limit.remaining)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    show(receipt.status)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    show(receipt["attempts"])  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    outcome.receipt = receipt  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    outcome.ok = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    report.not_tried = ()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    report.accepted.append(outcome)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    report[0] = outcome  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    show(report["accepted"])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    report.append(outcome)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    report.raise_for_status()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    SendReport(outcome)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SendReport([receipt])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    accepted: list[Outcome] = report.accepted  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    show(accepted)


async def requests(loops: AsyncLoopsClient) -> None:
    await loops.request("/v1/lists")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await loops.request("GET", 42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.request("POST", "/v1/x", {"a": 1})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await loops.request("GET", "/v1/x", params={"a": ["b"]})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await loops.request("GET", "/v1/x", params="a=b")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.request("GET", "/v1/x", headers={"a": "b"})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await loops.request("GET", "/v1/x", timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await loops.request("GET", "/v1/x", max_body=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    team: str = await loops.test_api_key()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    show(team)


async def limits(limiter: RateLimiter, policy: RetryPolicy, limit: RateLimit) -> None:
    RateLimiter("10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RateLimiter(2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RateLimiter(10, None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RateLimiter(10, 1.0, 0.0)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    RateLimiter(per=1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    limiter.try_acquire(True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    limiter.acquire()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    limiter.release()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    limiter.effective_limit = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    async with limiter:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    RetryPolicy(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RetryPolicy(attempts="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(attempts=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(base=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(jitter=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    policy.attempts = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    limit.remaining = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def outboxes(loops: AsyncLoopsClient, event: Event, key: bytes) -> None:
    Outbox(loops, "events.db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Outbox("events.db")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Outbox(42, loops)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Outbox("events.db", loops, 1000)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Outbox("events.db", loops, capacity="1000")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Outbox("events.db", loops, capacity=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Outbox("events.db", loops, keep_accepted="1 day")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with Outbox("events.db", loops):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    async with Outbox("events.db", loops) as outbox:
        outbox.put(event)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
        await outbox.put("signup")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await outbox.put([event])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await outbox.put("signup", email="ada@example.com")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
        await outbox.put_many(event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await outbox.put_many([event, "signup"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
        await outbox.flush("10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await outbox.stats()  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        show(outbox.stats.pending)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        for failure in outbox.failures():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
            show(failure)
        await outbox.failures()  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
        await outbox.retry(42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await outbox.retry(key)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await outbox.forget()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await outbox.forget(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        outbox.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def frozen(
    stats: ClientStats,
    attempt: Attempt,
    outbox_stats: OutboxStats,
    failure: Failure,
    progress: Progress,
    report: BackfillReport,
    preview: Preview,
    reading: InputOptions,
) -> None:
    stats.requests = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    show(stats.limit + 1)  # type: ignore[operator]  # pyright: ignore[reportOptionalOperand]
    attempt.number = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    outbox_stats.pending = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    failure.state = "pending"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    failure.body["email"] = "bo@example.com"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    progress.rows = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    report.rejects = None  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    preview.invalid = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    reading.format = "csv"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def backfills(loops: AsyncLoopsClient, paths: Iterable[int]) -> None:
    await backfill("old.csv")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await backfill(loops, "old.csv")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill(42, loops)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill(paths, loops)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, {"event_name": "e"})  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    await backfill("old.csv", loops, input_options=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, input_options={"event_name": "signup"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, event_name="signup")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await backfill("old.csv", loops, dry_run=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await backfill("old.csv", loops, journal=42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, rejects=False)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, confirm=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, confirm=confirm_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, confirm=confirm_a_count)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, on_progress=confirm_a_count)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, on_read=on_progress)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, max_errors="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await backfill("old.csv", loops, resend_unknown=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    backfill("old.csv", loops)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    (await backfill("old.csv", loops)).rejects.unlink()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


def confirm_nothing(preview: Preview) -> None: ...


def confirm_a_count(rows: int) -> bool:
    return rows < 10


def on_progress(progress: Progress) -> None: ...


def readings() -> None:
    InputOptions(42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InputOptions(mapping=["email"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InputOptions(mapping={"email": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    InputOptions(types={"amount": float})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    InputOptions(format=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InputOptions(ignore=42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InputOptions(ignore=(column for column in ["a"]))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InputOptions(columns={})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def errors(loops: AsyncLoopsClient, error: LoopsError) -> None:
    show(error.status)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    show(error.problems)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    error.attempts = "3"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    error.retryable()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
    try:
        await loops.test_api_key()
    except TransportError as transport:
        show(transport.status)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    except RateLimitError as limited:
        show(limited.retry_after + 1)  # type: ignore[operator]  # pyright: ignore[reportOptionalOperand]
        limited.headers["retry-after"] = "1"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    except APIError as api:
        show(api.limit)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        api.body.encode()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    except InvalidEventError as invalid:
        invalid.problems.append("no")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    LoopsError("no", False)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    LoopsError("no", idempotency_key="key")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    TransportError("no", status=503)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    APIError("no", status="503")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InvalidEventError(problems=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
