"""`send_event`: its arguments, its receipt, hooks, the converter and limits."""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from support.clients import KEY, TWICE, cancel, client_of, failure_of, start_sends
from support.http_server import (
    OK,
    Connection,
    Server,
    answers,
    free_port,
    hang,
    outcome_of,
    outcome_without_connection,
    reply,
    serving,
)
from support.virtual_time import advance, run_frozen
from support.waiting import run, until

from loops_async import (
    AsyncLoopsClient,
    Attempt,
    Event,
    LoopsError,
    RateLimit,
    RateLimiter,
    Receipt,
    RetryPolicy,
    errors,
)
from loops_async.sandbox import Sandbox

ADA: dict[str, Any] = {"email": "ada@example.com"}
NOWHERE = "http://127.0.0.1:1/api"  # no test connects to it
ONCE = RetryPolicy(attempts=1)
LIMITS = {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "9"}


# The arguments of send_event.


@pytest.mark.parametrize(
    "use",
    [
        lambda loops: loops.send_event("e", email="ada@example.com"),
        lambda loops: loops.send_event(event_name="e", email="ada@example.com"),
        lambda loops: loops.send_event(Event("e", email="ada@example.com")),
        lambda loops: loops.send_event("e", email="ada@example.com", user_id=None),
        lambda loops: loops.send_event(Event("e", **ADA), email=None, user_id=None),
        lambda loops: loops.send_event(Event("e", **ADA), timeout=None, deadline=9),
    ],
)
def test_an_event_and_its_fields_as_arguments_are_sent_alike(
    use: Callable[[AsyncLoopsClient], Any],
) -> None:
    receipt, server = outcome_of(use)
    assert isinstance(receipt, Receipt)
    (request,) = server.requests
    assert request.json() == {"eventName": "e", "email": "ada@example.com"}


def test_an_event_sent_twice_has_the_same_key_and_is_accepted_once() -> None:
    event = Event("e", **ADA)

    async def main() -> tuple[Receipt, Receipt, int]:
        async with Sandbox(rate_limit=None) as sandbox:
            async with client_of(sandbox) as loops:
                first = await loops.send_event(event)
                second = await loops.send_event(event)
                third = await loops.send_event(event.again())
            assert not third.duplicate
            return first, second, len(sandbox.events)

    first, second, accepted = run(main())
    assert first.idempotency_key == second.idempotency_key == event.idempotency_key
    assert (first.duplicate, second.duplicate) == (False, True)
    assert accepted == 2


@pytest.mark.parametrize(
    "field",
    [
        {"email": "ada@example.com"},
        {"user_id": "u"},
        {"event_properties": {}},
        {"contact_properties": {"a": 1}},
        {"mailing_lists": {}},
        {"idempotency_key": "k"},
    ],
    ids=lambda field: next(iter(field)),
)
def test_an_event_together_with_a_field_of_an_event_raises_a_type_error(
    field: dict[str, Any],
) -> None:
    """An empty field counts, too, because either of the two could be meant."""
    error = outcome_without_connection(
        lambda loops: loops.send_event(Event("e", user_id="v"), **field)
    )
    assert type(error) is TypeError
    assert "event.replace" in str(error)


@pytest.mark.parametrize(
    "use",
    [
        lambda loops: loops.send_event("e", "ada@example.com"),
        lambda loops: loops.send_event("e", **ADA, unknown=1),
        lambda loops: loops.send_event(Event("e", **ADA), Event("e", **ADA)),
    ],
)
def test_arguments_that_send_event_does_not_have_raise_a_type_error(
    use: Callable[[AsyncLoopsClient], Any],
) -> None:
    assert type(outcome_without_connection(use)) is TypeError


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({}, "event_name"),
        ({"event_name": None, **ADA}, "event_name"),
        ({"event_name": ""}, "event_name"),
        ({"event_name": "a:b", **ADA}, "event_name"),
        ({"event_name": "e"}, "email"),
        ({"event_name": "e", "email": "ada"}, "email"),
        ({"event_name": "e", "user_id": ""}, "user_id"),
        ({"event_name": "e", **ADA, "event_properties": {"a": math.nan}}, "a: NaN"),
        ({"event_name": "e", **ADA, "idempotency_key": "x" * 101}, "idempotency_key"),
        ({"event_name": {"eventName": "e"}, **ADA}, "event_name"),
    ],
)
def test_an_invalid_event_never_reaches_the_network(
    given: dict[str, Any], path: str
) -> None:
    error = outcome_without_connection(lambda loops: loops.send_event(**given))
    assert isinstance(error, errors.InvalidEventError)
    assert isinstance(error, ValueError)
    assert path in str(error)
    assert error.attempts == 0


# The receipt.


def test_a_receipt_describes_the_outcome_of_a_send() -> None:
    replies = [reply(500), reply(headers=LIMITS)]
    receipt, _ = outcome_of(
        lambda loops: loops.send_event("e", **ADA, idempotency_key="k"), *replies
    )
    assert receipt == Receipt(
        idempotency_key="k",
        attempts=2,
        duplicate=False,
        elapsed=receipt.elapsed,
        rate_limit=RateLimit(10, 9),
        dry_run=False,
    )
    assert receipt.elapsed > 0
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        receipt.attempts = 3


def test_a_receipt_without_rate_limit_headers_has_no_rate_limit() -> None:
    receipt, _ = outcome_of(lambda loops: loops.send_event("e", **ADA))
    assert receipt.rate_limit is None


def test_the_elapsed_time_of_a_receipt_includes_waits_between_attempts() -> None:
    unavailable = reply(503, headers={"Retry-After": "0.2"})
    receipt, _ = outcome_of(lambda loops: loops.send_event("e", **ADA), unavailable, OK)
    assert receipt.elapsed >= 0.2


# The attempt hook and the log.


def test_on_attempt_receives_each_attempt() -> None:
    attempts: list[Attempt] = []
    _, server = outcome_of(
        lambda loops: loops.send_event("e", **ADA, idempotency_key="k"),
        *(reply(500), reply(429), OK),
        on_attempt=attempts.append,
        retry=RetryPolicy(attempts=3, base=0.01),
    )
    assert [one.number for one in attempts] == [1, 2, 3]
    assert [one.status for one in attempts] == [500, 429, 200]
    assert [one.idempotency_key for one in attempts] == ["k"] * 3
    assert [type(one.error) for one in attempts] == [
        errors.ServerError,
        errors.RateLimitError,
        type(None),
    ]
    first, second, last = attempts
    assert first.retry_in is not None
    assert 0 <= first.retry_in <= 0.01
    assert second.retry_in is not None
    assert last.retry_in is None
    assert all(one.elapsed > 0 for one in attempts)
    assert len(server.requests) == 3


def test_an_attempt_without_a_response_has_no_status() -> None:
    """An attempt of a request without a key has no key."""
    attempts: list[Attempt] = []

    async def main() -> None:
        url = f"http://127.0.0.1:{free_port()}/api"
        async with client_of(url, retry=TWICE, on_attempt=attempts.append) as loops:
            with pytest.raises(errors.ConnectFailedError):
                await loops.request("GET", "/v1/lists")

    run(main())
    first, second = attempts
    assert first.idempotency_key is None
    assert first.status is None
    assert isinstance(first.error, errors.ConnectFailedError)
    assert first.retry_in is not None
    assert second.retry_in is None


def test_an_attempt_cannot_be_changed() -> None:
    attempts: list[Attempt] = []
    outcome_of(lambda loops: loops.send_event("e", **ADA), on_attempt=attempts.append)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        attempts[0].number = 2  # type: ignore[misc]


@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_attempt_hook_that_raises_changes_no_outcome(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(attempt: Attempt) -> None:
        raise LookupError(attempt)

    outcome, server = outcome_of(
        lambda loops: loops.send_event("e", **ADA), reply(status), on_attempt=hook
    )
    expected: Any = {
        200: Receipt,
        400: errors.BadRequestError,
        500: errors.ServerError,
    }[status]
    assert type(outcome) is expected
    assert len(server.requests) == outcome.attempts == (2 if status == 500 else 1)
    errors_logged = [
        one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR
    ]
    assert errors_logged == ["on_attempt raised LookupError"] * outcome.attempts


def test_each_attempt_is_logged_at_debug_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "loops_async")
    outcome_of(
        lambda loops: loops.send_event("e", **ADA), reply(500, '{"message":"Oops"}'), OK
    )
    lines = [one.getMessage() for one in caplog.records if one.name == "loops_async"]
    first, second = lines
    assert first.startswith("attempt 1: Loops responded with 500: Oops in ")
    assert first.endswith(" s")
    assert ", next attempt in 0.0" in first
    assert second.startswith("attempt 2: 200 in ")
    assert second.endswith(" ms")


def test_a_send_logs_nothing_above_debug_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outcome_of(lambda loops: loops.send_event("e", **ADA), reply(400))
    assert [one for one in caplog.records if one.name == "loops_async"] == []


def test_the_repr_of_a_client_shows_its_address_state_and_limiter() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(KEY, base_url="http://127.0.0.1:1/api", rate_limit=7)
        text = repr(loops)
        assert text.startswith("<AsyncLoopsClient http://127.0.0.1:1/api, open, ")
        assert "<RateLimiter 7 per 1 s: 7 free" in text
        await loops.aclose()
        assert "closed" in repr(loops)

    run(main())


# Timeouts and deadlines as arguments.


def calling(call: str, **given: Any) -> Callable[[AsyncLoopsClient], Any]:
    """Return a function that makes a call of a client with the given arguments."""
    if call == "request":
        return lambda loops: loops.request("GET", "/v1/x", **given)
    return lambda loops: loops.send_event("e", user_id="u", **given)


@pytest.mark.parametrize("name", ["timeout", "deadline"])
@pytest.mark.parametrize("value", [0, -1, math.nan, -math.inf, True, "1", b"1", [1]])
@pytest.mark.parametrize("call", ["send_event", "request"])
def test_an_invalid_timeout_or_deadline_raises_a_configuration_error(
    call: str, value: Any, name: str
) -> None:
    error = outcome_without_connection(calling(call, **{name: value}))
    assert isinstance(error, errors.ConfigurationError)
    assert name in str(error)


@pytest.mark.parametrize("name", ["timeout", "deadline"])
@pytest.mark.parametrize("value", [None, math.inf, 10**6, 1e300])
@pytest.mark.parametrize("call", ["send_event", "request"])
def test_a_timeout_or_deadline_may_be_none_infinite_or_huge(
    call: str, value: Any, name: str
) -> None:
    outcome, _ = outcome_of(calling(call, **{name: value}), reply(500), OK)
    assert not isinstance(outcome, Exception), repr(outcome)


def test_a_timeout_or_deadline_as_an_argument_wins_over_that_of_the_client() -> None:
    async def main() -> None:
        async with (
            serving(hang) as server,
            client_of(server, retry=ONCE, timeout=None) as loops,
        ):

            async def error_of(awaitable: Any) -> LoopsError:
                count = len(server.requests)
                task = asyncio.create_task(failure_of(awaitable))
                await server.arrived(count + 1)
                await advance(0.21)
                return await task

            error = await error_of(loops.send_event("e", user_id="u", timeout=0.2))
            assert type(error) is errors.RequestTimeoutError
            error = await error_of(loops.request("POST", "/v1/x", timeout=0.2))
            assert type(error) is errors.RequestTimeoutError
            assert error.maybe_accepted
            assert error.idempotency_key is None
            error = await error_of(loops.request("GET", "/v1/x", deadline=0.2))
            assert type(error) is errors.DeadlineExceededError
            assert isinstance(error, TimeoutError)

    run_frozen(main())


# The converter.


def test_a_converter_hook_changes_the_events_of_its_client_only() -> None:
    def upper_case(event: Event) -> dict[str, Any]:
        return {"eventName": event.event_name.upper(), "email": event.email}

    def use(loops: AsyncLoopsClient) -> Any:
        loops.converter.register_unstructure_hook(Event, upper_case)
        return loops.send_event("e", **ADA)

    _, server = outcome_of(use)
    assert server.requests[0].json() == {"eventName": "E", **ADA}
    _, server = outcome_of(lambda loops: loops.send_event("e", **ADA))
    assert server.requests[0].json() == {"eventName": "e", **ADA}


@pytest.mark.parametrize("value", [{"a": math.nan}, {1, 2}, object()])
def test_a_converter_hook_that_returns_no_json_makes_the_event_invalid(
    value: Any,
) -> None:
    def use(loops: AsyncLoopsClient) -> Any:
        loops.converter.register_unstructure_hook(Event, lambda _: value)
        return loops.send_event("e", **ADA)

    error = outcome_without_connection(use)
    assert isinstance(error, errors.InvalidEventError)
    assert "hook" in str(error)


def test_the_converter_structures_a_record_as_an_event() -> None:
    async def main() -> None:
        loops = client_of(NOWHERE)
        record = {"eventName": "e", "userId": "u", "idempotency_key": "k"}
        event = loops.converter.structure(record, Event)
        assert event == Event("e", user_id="u", idempotency_key="k")

    run(main())


def test_all_attempts_of_an_event_send_the_same_bytes() -> None:
    """The event is encoded once, although the hook returns another value each time."""
    count = 0

    def counting(event: Event) -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"eventName": event.event_name, "count": count}

    def use(loops: AsyncLoopsClient) -> Any:
        loops.converter.register_unstructure_hook(Event, counting)
        return loops.send_event("e", **ADA)

    _, server = outcome_of(use, reply(500), OK)
    first, second = server.requests
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert count == 1


# Limits.


def test_a_429_holds_all_sends_for_a_period_of_the_limiter() -> None:
    async def main() -> float:
        limiter = RateLimiter(100, 0.3)
        async with Server(answers(reply(429), OK)) as server:
            async with client_of(server, rate_limit=limiter) as loops:
                first = asyncio.create_task(loops.send_event("e", user_id="u"))
                await until(lambda: loops.stats.limited)
                others = [loops.send_event("e", user_id=f"{n}") for n in range(5)]
                await asyncio.gather(first, *others)
            refused, *later = server.requests
            assert len(later) == 6
            return min(one.at for one in later) - refused.at

    assert run(main()) >= 0.3


def test_a_retry_after_longer_than_the_period_holds_all_sends_for_its_time() -> None:
    async def main() -> float:
        script = answers(reply(429, headers={"Retry-After": "0.4"}), OK)
        async with Server(script) as server:
            limiter = RateLimiter(100, 0.1)
            async with client_of(server, rate_limit=limiter) as loops:
                await loops.send_event("e", user_id="u")
            first, second = server.requests
            return second.at - first.at

    assert run(main()) >= 0.4


def test_at_most_max_connections_requests_are_in_flight() -> None:
    in_flight = []

    async def handler(connection: Connection) -> None:
        in_flight.append(connection.server.in_flight)
        await asyncio.sleep(0.01)
        await connection.send(OK)

    async def main() -> int:
        async with serving(handler) as server:
            async with client_of(server, max_connections=3) as loops:
                sends = [loops.send_event("e", user_id=f"{n}") for n in range(30)]
                await asyncio.gather(*sends)
            return server.connections

    assert run(main()) == 3
    assert max(in_flight) == 3


def test_a_send_returns_its_permit_and_connection_however_it_ends() -> None:
    limiter = RateLimiter(5, 0.05)
    over = asyncio.Event()

    async def script(connection: Connection) -> None:
        server = connection.server
        while await connection.request() is not None:
            kind = 1 if over.is_set() else len(server.requests) % 5
            if kind == 0:
                return
            if kind == 1:
                await connection.until_closed()
                return
            await connection.send({2: OK, 3: reply(400), 4: reply(500)}[kind])

    async def main() -> None:
        async with (
            Server(script) as server,
            client_of(
                server, rate_limit=limiter, max_connections=4, retry=TWICE
            ) as loops,
        ):
            sends = [
                loops.send_event("e", user_id=f"{n}", timeout=wait, deadline=0.5)
                for n in range(20)
                for wait in (0.1, 0.2, 0.3)
            ]
            tasks = [asyncio.create_task(one) for one in sends]
            await server.arrived(6)
            for task in tasks[::4]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            free = "5 free, 0 in flight, 0 returning, 0 waiting"
            await until(lambda: free in repr(limiter))
            assert loops.stats.in_flight == loops.stats.waiting == 0
            over.set()
            before = len(server.requests)
            together = start_sends(loops, 4, timeout=None, deadline=None)
            await server.arrived(before + 4)
            await cancel(*together)

    run(main())
