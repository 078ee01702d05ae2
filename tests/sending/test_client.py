"""What users call: sends, requests, settings, and what each gives or raises."""

import asyncio
import json
import logging
import math
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import attrs
import pytest
from support.http_server import (
    KEY,
    OK,
    TWICE,
    Connection,
    Server,
    answers,
    client,
    closes,
    free_port,
    hangs,
    reply,
    run,
)

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
NOWHERE = "http://127.0.0.1:1/api"  # nobody may get this far
ONCE = RetryPolicy(attempts=1)
LIMITS = {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "9"}


def ended(
    use: Callable[[AsyncLoopsClient], Any], *replies: bytes, **settings: Any
) -> tuple[Any, Server]:
    """Use a client of a server with these answers; return what it gave or raised."""

    async def main() -> tuple[Any, Server]:
        async with (
            Server(answers(*(replies or (OK,)))) as server,
            client(server.url, **settings) as loops,
        ):
            try:
                return await use(loops), server
            except (LoopsError, TypeError, ValueError) as error:
                return error, server

    return run(main())


def untouched(use: Callable[[AsyncLoopsClient], Any], **settings: Any) -> Any:
    """Use a client that must not even connect; return what it gave or raised."""
    outcome, server = ended(use, **settings)
    assert server.connections == 0
    return outcome


# The ways to call send_event.


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
def test_an_event_or_its_arguments_are_sent_alike(
    use: Callable[[AsyncLoopsClient], Any],
) -> None:
    receipt, server = ended(use)
    assert isinstance(receipt, Receipt)
    (request,) = server.requests
    assert request.json() == {"eventName": "e", "email": "ada@example.com"}


def test_an_event_is_sent_under_its_own_key_each_time() -> None:
    """The event is the identity: sent twice, it is one to Loops."""
    event = Event("e", **ADA)

    async def main() -> tuple[Receipt, Receipt, int]:
        async with Sandbox(rate_limit=None) as sandbox:
            loops = AsyncLoopsClient(sandbox.api_key, base_url=sandbox.url)
            async with loops:
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
def test_an_event_together_with_a_field_of_one_is_a_type_error(
    field: dict[str, Any],
) -> None:
    """Also an empty one: which of the two holds would be a guess."""
    error = untouched(lambda loops: loops.send_event(Event("e", user_id="v"), **field))
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
def test_what_send_event_does_not_take_is_a_type_error(
    use: Callable[[AsyncLoopsClient], Any],
) -> None:
    assert type(untouched(use)) is TypeError


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
    error = untouched(lambda loops: loops.send_event(**given))
    assert isinstance(error, errors.InvalidEventError)
    assert isinstance(error, ValueError)
    assert path in str(error)
    assert error.attempts == 0


# The receipt.


def test_a_receipt_says_what_became_of_the_event() -> None:
    script = [reply(500), reply(headers=LIMITS)]
    receipt, _ = ended(
        lambda loops: loops.send_event("e", **ADA, idempotency_key="k"), *script
    )
    assert receipt == Receipt(
        idempotency_key="k",
        attempts=2,
        duplicate=False,
        elapsed=receipt.elapsed,
        rate_limit=RateLimit(10, 9),
        dry_run=False,
    )
    assert 0 < receipt.elapsed < 30
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        receipt.attempts = 3


def test_a_receipt_has_no_rate_limit_where_the_server_names_none() -> None:
    receipt, _ = ended(lambda loops: loops.send_event("e", **ADA))
    assert receipt.rate_limit is None


def test_elapsed_begins_with_the_call() -> None:
    """The wait between the attempts counts in."""
    again = reply(503, headers={"Retry-After": "0.2"})
    receipt, _ = ended(lambda loops: loops.send_event("e", **ADA), again, OK)
    assert receipt.elapsed >= 0.2


# Dry runs.


def test_a_dry_run_checks_everything_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a key, a network or a permit."""
    monkeypatch.delenv("LOOPS_API_KEY", raising=False)

    async def main() -> Receipt:
        async with AsyncLoopsClient(dry_run=True, base_url=NOWHERE) as loops:
            assert "dry run" in repr(loops)
            receipts = [
                await loops.send_event("e", **ADA, idempotency_key="k")
                for _ in range(100)
            ]
            with pytest.raises(errors.InvalidEventError):
                await loops.send_event("a:b", user_id="u")
            with pytest.raises(errors.ConfigurationError, match="dry_run"):
                await loops.request("GET", "/v1/lists")
            with pytest.raises(errors.ConfigurationError, match="dry_run"):
                await loops.test_api_key()
            assert loops._deliveries == {}
            return receipts[-1]

    assert run(main()) == Receipt(
        "k", attempts=0, duplicate=False, elapsed=0.0, rate_limit=None, dry_run=True
    )


def test_a_dry_run_keeps_to_the_allow_list() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True, allowed_recipients=("@example.com",))
        await loops.send_event("e", email="ada@example.com")
        with pytest.raises(errors.RecipientNotAllowedError):
            await loops.send_event("e", email="ada@example.org")

    run(main())


# The allow-list, end to end.

ALLOWED = ("Ada@Example.com", "@staging.example", "user:usr_1")


@pytest.mark.parametrize(
    "given",
    [
        {"email": "ada@example.com"},
        {"email": "ADA@EXAMPLE.COM"},
        {"email": "anybody@staging.example"},
        {"email": "Anybody@STAGING.example"},
        {"user_id": "usr_1"},
        {"email": "ada@example.com", "user_id": "usr_1"},
        {"user_id": Enum("Id", {"ONE": "usr_1"}).ONE},  # type: ignore[attr-defined]
    ],
    ids=str,
)
def test_who_is_allowed_is_sent_to(given: dict[str, Any]) -> None:
    receipt, server = ended(
        lambda loops: loops.send_event("e", **given), allowed_recipients=ALLOWED
    )
    assert isinstance(receipt, Receipt)
    assert len(server.requests) == 1


REFUSED: list[dict[str, Any]] = [
    {"email": "bob@example.com"},
    {"email": "ada@example.com."},
    {"email": "ada@example.com.evil.example"},
    {"email": "ada@sub.staging.example"},
    {"email": "ada@xstaging.example"},
    {"email": "ada@staging.example."},
    {"email": "adа@example.com"},  # noqa: RUF001 - a Cyrillic a
    {"email": "x@staging.exampl\u0435"},  # a Cyrillic e
    {"email": "x@\u017ftaging.example"},  # a long s, which upper() folds
    {"email": "x@staging\u3002example"},  # a full stop that IDNA folds
    {"user_id": "usr_2"},
    {"user_id": "USR_1"},
    {"user_id": "usr_1."},
    {"user_id": "ada@example.com"},
    {"user_id": "user:usr_1"},
    {"email": "ada@example.com", "user_id": "usr_2"},
    {"email": "bob@example.com", "user_id": "usr_1"},
]


@pytest.mark.parametrize("given", REFUSED, ids=str)
def test_who_is_not_allowed_is_not_sent_to(given: dict[str, Any]) -> None:
    """Neither as an event nor by any other request that names a contact."""
    error = untouched(
        lambda loops: loops.send_event("e", **given, idempotency_key="k"),
        allowed_recipients=ALLOWED,
    )
    assert isinstance(error, errors.RecipientNotAllowedError)
    assert error.idempotency_key == "k"
    assert error.attempts == 0
    assert not error.retryable
    assert not error.maybe_accepted
    for value in given.values():
        assert value not in str(error)

    wire = {{"email": "email", "user_id": "userId"}[k]: v for k, v in given.items()}
    for method, path, named in (
        ("POST", "/v1/events/send", {"json": {"eventName": "e", **wire}}),
        ("POST", "/v1/events/send/", {"json": wire}),
        ("PUT", "/v1/contacts/update", {"json": wire}),
        ("PATCH", "/v1/contacts/update", {"json": wire}),
        ("post", "/v1/contacts/create", {"json": wire}),
        ("DELETE", "/v1/contacts/suppression", {"params": wire}),
        ("POST", "/v1/contacts/update", {"params": wire, "json": {}}),
    ):
        error = untouched(
            lambda loops, m=method, p=path, n=named: loops.request(m, p, **n),  # type: ignore[misc]
            allowed_recipients=ALLOWED,
        )
        assert isinstance(error, errors.RecipientNotAllowedError), (method, path)


def test_an_empty_allow_list_refuses_everybody() -> None:
    for use in (
        lambda loops: loops.send_event("e", **ADA),
        lambda loops: loops.request("POST", "/v1/events/send", json=ADA),
        lambda loops: loops.request("DELETE", "/v1/campaigns/1"),
        lambda loops: loops.request("POST", "/v1/x", json=[ADA]),
    ):
        error = untouched(use, allowed_recipients=())
        assert isinstance(error, errors.RecipientNotAllowedError)


def test_who_is_allowed_may_be_written_to_by_a_request() -> None:
    """And reading is always allowed."""
    for use in (
        lambda loops: loops.request(
            "POST", "/v1/events/send", json={"email": "ADA@example.com"}
        ),
        lambda loops: loops.request(
            "PUT", "/v1/contacts/update", json={"userId": "usr_1", "email": None}
        ),
        lambda loops: loops.request("GET", "/v1/contacts/find", params={"email": "x"}),
    ):
        answer, _ = ended(use, allowed_recipients=ALLOWED)
        assert answer == {"success": True}


def test_a_name_in_the_body_does_not_hide_one_in_the_query() -> None:
    error = untouched(
        lambda loops: loops.request(
            "POST",
            "/v1/contacts/delete",
            params={"email": "bob@example.com"},
            json={"email": "ada@example.com"},
        ),
        allowed_recipients=ALLOWED,
    )
    assert isinstance(error, errors.RecipientNotAllowedError)


# The hook and the log.


def test_on_attempt_is_told_of_each_request() -> None:
    told: list[Attempt] = []
    _, server = ended(
        lambda loops: loops.send_event("e", **ADA, idempotency_key="k"),
        *(reply(500), reply(429), OK),
        on_attempt=told.append,
        retry=RetryPolicy(attempts=3, base=0.01),
    )
    assert [one.number for one in told] == [1, 2, 3]
    assert [one.status for one in told] == [500, 429, 200]
    assert [one.idempotency_key for one in told] == ["k"] * 3
    assert [type(one.error) for one in told] == [
        errors.ServerError,
        errors.RateLimitError,
        type(None),
    ]
    first, second, last = told
    assert first.retry_in is not None
    assert 0 <= first.retry_in <= 0.01
    assert second.retry_in is not None
    assert last.retry_in is None
    assert all(0 < one.elapsed < 30 for one in told)
    assert len(server.requests) == 3


def test_on_attempt_is_told_of_requests_without_a_key_and_without_an_answer() -> None:
    told: list[Attempt] = []

    async def main() -> None:
        url = f"http://127.0.0.1:{free_port()}/api"
        async with client(url, on_attempt=told.append) as loops:
            with pytest.raises(errors.ConnectFailedError):
                await loops.request("GET", "/v1/lists")

    run(main())
    first, second = told
    assert first.idempotency_key is None
    assert first.status is None
    assert isinstance(first.error, errors.ConnectFailedError)
    assert first.retry_in is not None
    assert second.retry_in is None


def test_an_attempt_cannot_be_changed() -> None:
    told: list[Attempt] = []
    ended(lambda loops: loops.send_event("e", **ADA), on_attempt=told.append)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        told[0].number = 2  # type: ignore[misc]


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_hook_that_raises_changes_no_outcome(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(attempt: Attempt) -> None:
        raise LookupError(attempt)

    outcome, server = ended(
        lambda loops: loops.send_event("e", **ADA), reply(status), on_attempt=hook
    )
    expected: Any = {
        200: Receipt,
        400: errors.BadRequestError,
        500: errors.ServerError,
    }[status]
    assert type(outcome) is expected
    assert len(server.requests) == outcome.attempts == (2 if status == 500 else 1)
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert said == ["on_attempt raised LookupError"] * outcome.attempts


def test_each_attempt_is_a_line_of_the_log_at_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "loops_async")
    ended(
        lambda loops: loops.send_event("e", **ADA), reply(500, '{"message":"Oops"}'), OK
    )
    lines = [one.getMessage() for one in caplog.records if one.name == "loops_async"]
    first, second = lines
    assert first.startswith("attempt 1: Loops answered 500: Oops in ")
    assert first.endswith(" s")
    assert ", again in 0.0" in first
    assert second.startswith("attempt 2: 200 in ")
    assert second.endswith(" ms")


def test_above_debug_a_send_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ended(lambda loops: loops.send_event("e", **ADA), reply(400))
    assert [one for one in caplog.records if one.name == "loops_async"] == []


def test_a_repr_shows_the_address_the_state_and_the_limiter() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(KEY, base_url="http://127.0.0.1:1/api", rate_limit=7)
        text = repr(loops)
        assert text.startswith("<AsyncLoopsClient http://127.0.0.1:1/api, open, ")
        assert "<RateLimiter 7 per 1 s: 7 free" in text
        await loops.aclose()
        assert "closed" in repr(loops)

    run(main())


# The key.


@pytest.mark.parametrize("later", [False, True], ids=["plain", "async"])
def test_a_callable_is_asked_for_the_key_before_each_attempt(later: bool) -> None:
    """So that a key rotated between two attempts is used."""
    asked = 0

    def source() -> str:
        nonlocal asked
        asked += 1
        return f"key-{asked}"

    async def source_later() -> str:
        await asyncio.sleep(0)
        return source()

    async def main() -> list[str]:
        async with Server(answers(reply(500), OK)) as server:
            async with AsyncLoopsClient(
                source_later if later else source,
                base_url=server.url,
                rate_limit=math.inf,
                retry=TWICE,
            ) as loops:
                await loops.send_event("e", user_id="u")
                await loops.request("GET", "/v1/lists")
            return [one.headers["authorization"] for one in server.requests]

    assert run(main()) == ["Bearer key-1", "Bearer key-2", "Bearer key-3"]


def test_concurrent_sends_each_carry_the_key_they_asked_for() -> None:
    """Though they share one session."""

    async def main() -> list[str]:
        given = iter(range(50))

        async def source() -> str:
            number = next(given)
            await asyncio.sleep(0.001 * (number % 7))
            return f"key-{number}"

        async with Server(answers(OK)) as server:
            async with AsyncLoopsClient(
                source, base_url=server.url, rate_limit=math.inf
            ) as loops:
                sends = [loops.send_event("e", user_id=f"{n}") for n in range(50)]
                await asyncio.gather(*sends)
            return [one.headers["authorization"] for one in server.requests]

    assert sorted(run(main())) == sorted(f"Bearer key-{n}" for n in range(50))


def test_a_refused_key_is_final() -> None:
    error, server = ended(lambda loops: loops.send_event("e", **ADA), reply(401))
    assert type(error) is errors.AuthenticationError
    assert not error.retryable
    assert len(server.requests) == 1


def test_a_key_refused_after_its_rotation_is_asked_for_again() -> None:
    """Requests may be under way, or just asked for their key, when it is revoked."""

    async def main() -> list[str]:
        given = iter(["old", "new", "new"])
        async with Server(answers(reply(401), OK)) as server:
            async with AsyncLoopsClient(
                lambda: next(given), base_url=server.url, rate_limit=math.inf
            ) as loops:
                receipt = await loops.send_event("e", user_id="u")
                assert receipt.attempts == 2
                report = await loops.send_events([Event("e", user_id="u")])
                assert report.accepted
            return [one.headers["authorization"] for one in server.requests]

    assert run(main()) == ["Bearer old", "Bearer new", "Bearer new"]


@pytest.mark.parametrize("keys", [["old"] * 2, ["old", "new"]], ids=["same", "other"])
def test_a_callable_whose_keys_are_refused_is_not_asked_for_ever(
    keys: list[str],
) -> None:
    """Once more, and no request goes out with a key that was just refused."""

    async def main() -> None:
        given = iter(keys)
        async with Server(answers(reply(401))) as server:
            async with AsyncLoopsClient(
                lambda: next(given), base_url=server.url, rate_limit=math.inf
            ) as loops:
                with pytest.raises(errors.AuthenticationError) as caught:
                    await loops.send_event("e", user_id="u")
                assert caught.value.attempts == len(set(keys))
                assert len(server.requests) == len(set(keys))
            assert next(given, None) is None

    run(main())


def failing(_: Any = None) -> str:
    raise LookupError("no key today")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (failing, "the callable raised LookupError"),
        (lambda: None, "NoneType"),
        (lambda: "", "empty"),
        (lambda: b"key", "bytes"),
        (lambda: "a b", "space"),
        (lambda: asyncio.sleep(0), "NoneType"),
    ],
)
def test_a_callable_that_gives_no_key_is_a_configuration_error(
    source: Callable[[], Any], said: str
) -> None:
    """Nothing is sent, and the permit is free again at once."""
    limiter = RateLimiter(1, 1000.0)

    async def main() -> None:
        async with Server(answers(OK)) as server:
            loops = AsyncLoopsClient(source, base_url=server.url, rate_limit=limiter)
            for _ in range(3):
                with pytest.raises(errors.ConfigurationError, match=said):
                    await loops.send_event("e", user_id="u")
            await loops.aclose()
            assert server.connections == 0

    run(main())
    assert "1 free" in repr(limiter)


def test_a_key_that_fails_after_an_ambiguous_attempt_leaves_it_ambiguous() -> None:
    """And the error is complete: the event may have been accepted."""
    keys = iter(["good"])

    def source() -> str:
        return next(keys, "")

    async def main() -> LoopsError:
        async with (
            Server(answers(reply(500))) as server,
            AsyncLoopsClient(
                source, base_url=server.url, rate_limit=math.inf, retry=TWICE
            ) as loops,
        ):
            with pytest.raises(errors.ConfigurationError) as raised:
                await loops.send_event("e", user_id="u", idempotency_key="k")
            return raised.value

    error = run(main())
    assert error.idempotency_key == "k"
    assert error.attempts == 1
    assert error.maybe_accepted


# request().


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_request_goes_out_as_it_is_given(method: str) -> None:
    params: Any = {
        "email": "a+b c@x.y",
        "n": 1,
        "yes": True,
        "no": False,
        "é": "ü&=#/?",
    }
    answer, server = ended(
        lambda loops: loops.request(
            method.lower(), "/v1/things/a%20b", json={"a": [1, None]}, params=params
        ),
        reply(body='{"id":1}'),
    )
    assert answer == {"id": 1}
    (request,) = server.requests
    assert request.method == method
    path, _, query = request.target.partition("?")
    assert path == "/api/v1/things/a%20b"
    assert urllib.parse.parse_qs(query) == {
        "email": ["a+b c@x.y"],
        "n": ["1"],
        "yes": ["true"],
        "no": ["false"],
        "é": ["ü&=#/?"],
    }
    assert request.json() == {"a": [1, None]}
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert "idempotency-key" not in request.headers


def test_a_request_without_json_has_no_body() -> None:
    _, server = ended(lambda loops: loops.request("GET", "/v1/lists", params={}))
    (request,) = server.requests
    assert request.body == b""
    assert request.target == "/api/v1/lists"


@pytest.mark.parametrize("value", [{}, [], 0, False, "", 1.5])
def test_falsy_json_is_not_absent(value: Any) -> None:
    _, server = ended(lambda loops: loops.request("POST", "/v1/x", json=value))
    (request,) = server.requests
    assert request.json() == value
    assert request.body


@pytest.mark.parametrize(
    ("body", "expected"),
    [("[]", []), ('[{"id":"1"}]', [{"id": "1"}]), ("", None), ("1", 1), ("null", None)],
)
def test_a_request_gives_whatever_json_there_is(body: str, expected: Any) -> None:
    answer, _ = ended(lambda loops: loops.request("GET", "/v1/x"), reply(body=body))
    assert answer == expected


def test_204_is_none() -> None:
    nothing = b"HTTP/1.1 204 No Content\r\n\r\n"
    answer, _ = ended(lambda loops: loops.request("DELETE", "/v1/x/1"), nothing)
    assert answer is None


def tries(method: str, *replies: bytes, **given: Any) -> tuple[Any, int]:
    outcome, server = ended(
        lambda loops: loops.request(method, "/v1/x", **given), *replies
    )
    return outcome, len(server.requests)


HTML = reply(200, "<html></html>", kind="text/html")


@pytest.mark.parametrize(
    "again", [reply(500), reply(408), HTML], ids=["500", "408", "html"]
)
@pytest.mark.parametrize(
    ("method", "given", "repeated"),
    [
        ("GET", {}, True),
        ("PUT", {}, True),
        ("DELETE", {}, True),
        ("POST", {}, False),
        ("PATCH", {}, False),
        ("POST", {"idempotency_key": "k"}, True),
        ("PATCH", {"idempotency_key": "k"}, True),
    ],
)
def test_what_may_have_been_accepted_is_repeated_only_where_that_is_harmless(
    method: str, given: dict[str, Any], repeated: bool, again: bytes
) -> None:
    outcome, count = tries(method, again, OK, **given)
    if repeated:
        assert outcome == {"success": True}
        assert count == 2
    else:
        assert isinstance(outcome, errors.APIError)
        assert outcome.maybe_accepted
        assert outcome.attempts == count == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST", "PATCH"])
@pytest.mark.parametrize("status", [429, 425])
def test_what_was_certainly_not_accepted_is_always_repeated(
    method: str, status: int
) -> None:
    assert tries(method, reply(status), OK) == ({"success": True}, 2)


@pytest.mark.parametrize(("method", "count"), [("GET", 2), ("POST", 1)])
def test_a_lost_connection_is_ambiguous_for_a_request_too(
    method: str, count: int
) -> None:
    """And aiohttp does not repeat a GET by itself: each has a permit of its own."""

    async def main() -> tuple[LoopsError, int]:
        async with Server(closes) as server, client(server.url) as loops:
            with pytest.raises(errors.ConnectionLostError) as raised:
                await loops.request(method, "/v1/x")
            return raised.value, len(server.requests)

    error, seen = run(main())
    assert error.attempts == count
    assert seen == count
    assert error.maybe_accepted


def test_a_refused_connection_is_repeated_even_for_a_post() -> None:
    async def main() -> LoopsError:
        async with client(f"http://127.0.0.1:{free_port()}/api") as loops:
            with pytest.raises(errors.ConnectFailedError) as raised:
                await loops.request("POST", "/v1/x")
            return raised.value

    assert run(main()).attempts == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
def test_a_refusal_of_a_request_is_final(status: int) -> None:
    error, count = tries("GET", reply(status, '{"message":"No."}'))
    assert isinstance(error, errors.APIError)
    assert error.status == status
    assert error.message == "No."
    assert error.idempotency_key is None
    assert count == 1


def test_success_false_is_a_refusal_of_a_request_too() -> None:
    error, count = tries("GET", reply(body='{"success":false,"message":"No."}'))
    assert type(error) is errors.UnexpectedResponseError
    assert count == 1


@pytest.mark.parametrize("body", ['{"message":"done before"}', "", "{}"])
def test_a_409_under_a_key_is_what_was_done_before(body: str) -> None:
    answer, count = tries("POST", reply(409, body), idempotency_key="k", json={})
    assert answer == (json.loads(body) if body else None)
    assert count == 1


@pytest.mark.parametrize("body", ["Conflict", "<html></html>", "x" * 70_000])
def test_a_409_under_a_key_need_not_be_json(body: str) -> None:
    answer, count = tries("POST", reply(409, body), idempotency_key="k", json={})
    assert answer is None
    assert count == 1


def test_a_409_under_a_key_with_another_body_is_a_conflict() -> None:
    body = '{"message":"Idempotency key already used with a different request body."}'
    error, _ = tries("POST", reply(409, body), idempotency_key="k")
    assert type(error) is errors.IdempotencyConflictError
    assert error.idempotency_key == "k"


def test_a_409_without_a_key_is_a_conflict() -> None:
    error, count = tries("POST", reply(409, '{"message":"Already on list."}'))
    assert type(error) is errors.IdempotencyConflictError
    assert error.message == "Already on list."
    assert not error.maybe_accepted
    assert count == 1


def test_the_key_of_a_request_is_sent_and_trimmed_of_nothing() -> None:
    _, server = ended(
        lambda loops: loops.request("POST", "/v1/x", idempotency_key="a key!")
    )
    assert server.requests[0].headers["idempotency-key"] == "a key!"


BAD_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("a method of its own", {"method": "BREW"}),
    ("no method", {"method": ""}),
    ("two methods", {"method": "GET POST"}),
    ("HEAD", {"method": "HEAD"}),
    ("no path", {"path": ""}),
    ("the root", {"path": "/"}),
    ("a relative path", {"path": "v1/lists"}),
    ("an absolute URL", {"path": "https://evil.example/v1/lists"}),
    ("another host", {"path": "//evil.example/v1"}),
    ("another host further on", {"path": "/v1//evil.example"}),
    ("credentials", {"path": "@evil.example/v1"}),
    ("a port", {"path": ":80/v1"}),
    ("a back slash", {"path": "/\\evil.example"}),
    ("up", {"path": "/../v1/lists"}),
    ("up at the end", {"path": "/v1/.."}),
    ("up in between", {"path": "/v1/../../x"}),
    ("up with a slash", {"path": "/v1/../"}),
    ("a query", {"path": "/v1/lists?limit=1"}),
    ("a fragment", {"path": "/v1/lists#x"}),
    ("a space", {"path": "/v1/a b"}),
    ("a line", {"path": "/v1/lists\r\nX: y"}),
    ("a line at the end", {"path": "/v1/lists\n"}),
    ("an accent", {"path": "/v1/é"}),
    ("a NUL", {"path": "/v1/\0"}),
    ("an empty key", {"idempotency_key": ""}),
    ("a key too long", {"idempotency_key": "x" * 101}),
    ("a key beyond ASCII", {"idempotency_key": "é"}),
    ("a key of two lines", {"idempotency_key": "a\r\nX: y"}),
    ("a key that is none", {"idempotency_key": 5}),
    ("NaN", {"json": {"a": math.nan}}),
    ("infinity", {"json": math.inf}),
    ("a set", {"json": {1, 2}}),
    ("bytes", {"json": b"{}"}),
    ("a datetime", {"json": datetime(2026, 1, 1, tzinfo=UTC)}),
    ("half a surrogate pair", {"json": "\ud800"}),
]


@pytest.mark.parametrize(
    "given",
    [given for _, given in BAD_REQUESTS],
    ids=[name for name, _ in BAD_REQUESTS],
)
def test_a_request_that_cannot_be_sent_is_a_value_error(given: dict[str, Any]) -> None:
    fields = {"method": "POST", "path": "/v1/x", **given}
    method, path = fields.pop("method"), fields.pop("path")
    error = untouched(lambda loops: loops.request(method, path, **fields))
    assert isinstance(error, ValueError), repr(error)
    assert error.__cause__ is None


def test_json_that_holds_itself_is_a_value_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep):
        error = untouched(
            lambda loops, v=value: loops.request("POST", "/v1/x", json=v)  # type: ignore[misc]
        )
        assert isinstance(error, ValueError), repr(error)


@pytest.mark.parametrize("path", ["/v1/%2e%2e/%2e%2e/x", "/v1/.%2e/x", "/v1/a/%2E%2E"])
def test_dots_in_disguise_do_not_leave_the_path(path: str) -> None:
    """Refused, or sent as they are."""
    outcome, server = ended(lambda loops: loops.request("GET", path))
    if isinstance(outcome, ValueError):
        return
    assert server.requests[0].target == f"/api{path}"


@pytest.mark.parametrize("max_body", [20, 200_000])
def test_max_body_bounds_what_is_read(max_body: int) -> None:
    """A list too long to read is as long the next time: it is not asked for again."""
    body = json.dumps(["x" * (max_body - 4)])
    assert len(body) == max_body
    answer, _ = tries("GET", reply(body=body), max_body=max_body)
    assert answer == ["x" * (max_body - 4)]
    error, count = tries("GET", reply(body=body), max_body=max_body - 1)
    assert type(error) is errors.UnexpectedResponseError
    assert f"longer than {max_body - 1} bytes" in str(error)
    assert len(error.body) == max_body - 1
    assert count == 1


def test_without_max_body_64_kib_are_read() -> None:
    body = json.dumps("x" * 65_534)
    assert tries("GET", reply(body=body)) == ("x" * 65_534, 1)
    error, _ = tries("GET", reply(body=body + " "))
    assert type(error) is errors.UnexpectedResponseError


@pytest.mark.parametrize("max_body", [-1, 0, "1", 1.5, None, True])
def test_a_max_body_that_cannot_be_is_refused(max_body: Any) -> None:
    error = untouched(lambda loops: loops.request("GET", "/v1/x", max_body=max_body))
    assert isinstance(error, ValueError | errors.ConfigurationError)


# test_api_key().


def test_a_good_key_is_told_with_its_team() -> None:
    async def main() -> dict[str, Any]:
        async with Sandbox() as sandbox:
            async with AsyncLoopsClient(sandbox.api_key, base_url=sandbox.url) as loops:
                answer = await loops.test_api_key()
            (request,) = sandbox.requests
            assert (request.method, request.path) == ("GET", "/api/v1/api-key")
            return answer

    answer = run(main())
    assert answer["success"] is True
    assert isinstance(answer["teamName"], str)


def test_a_bad_key_is_an_authentication_error() -> None:
    async def main() -> None:
        async with Sandbox() as sandbox:
            async with AsyncLoopsClient("another", base_url=sandbox.url) as loops:
                with pytest.raises(errors.AuthenticationError, match="Invalid API key"):
                    await loops.test_api_key()
            assert sandbox.counts.requests == 1

    run(main())


@pytest.mark.parametrize("body", ["<html></html>", "[]", "", "null", '"ok"'])
def test_an_answer_that_is_no_object_does_not_make_a_key_good(body: str) -> None:
    error, server = ended(lambda loops: loops.test_api_key(), reply(200, body))
    assert type(error) is errors.UnexpectedResponseError
    assert len(server.requests) == 2


# Time-outs and deadlines per call.


@pytest.mark.parametrize("name", ["timeout", "deadline"])
@pytest.mark.parametrize("value", [0, -1, math.nan, -math.inf, True, "1", b"1", [1]])
@pytest.mark.parametrize("call", ["send_event", "request"])
def test_seconds_that_cannot_be_are_refused_per_call(
    call: str, value: Any, name: str
) -> None:
    def use(loops: AsyncLoopsClient) -> Any:
        given = {name: value}
        if call == "request":
            return loops.request("GET", "/v1/x", **given)
        return loops.send_event("e", user_id="u", **given)

    error = untouched(use)
    assert isinstance(error, errors.ConfigurationError)
    assert name in str(error)


@pytest.mark.parametrize("name", ["timeout", "deadline"])
@pytest.mark.parametrize("value", [None, math.inf, 10**6, 1e300])
@pytest.mark.parametrize("call", ["send_event", "request"])
def test_no_end_is_an_end_too(call: str, value: Any, name: str) -> None:
    def use(loops: AsyncLoopsClient) -> Any:
        given = {name: value}
        if call == "request":
            return loops.request("GET", "/v1/x", **given)
        return loops.send_event("e", user_id="u", **given)

    outcome, _ = ended(use, reply(500), OK)
    assert not isinstance(outcome, Exception), repr(outcome)


def test_a_time_out_per_call_beats_that_of_the_client() -> None:
    async def main() -> None:
        async with (
            Server(hangs) as server,
            client(server.url, retry=ONCE, timeout=None) as loops,
        ):
            with pytest.raises(errors.RequestTimeoutError):
                await loops.send_event("e", user_id="u", timeout=0.2)
            with pytest.raises(errors.RequestTimeoutError) as raised:
                await loops.request("POST", "/v1/x", timeout=0.2)
            assert raised.value.maybe_accepted
            assert raised.value.idempotency_key is None
            with pytest.raises(errors.DeadlineExceededError) as late:
                await loops.request("GET", "/v1/x", deadline=0.2)
            assert isinstance(late.value, TimeoutError)

    run(main())


# The converter.


def test_a_hook_on_the_converter_holds_for_this_client_alone() -> None:
    def shout(event: Event) -> dict[str, Any]:
        return {"eventName": event.event_name.upper(), "email": event.email}

    def use(loops: AsyncLoopsClient) -> Any:
        loops.converter.register_unstructure_hook(Event, shout)
        return loops.send_event("e", **ADA)

    _, server = ended(use)
    assert server.requests[0].json() == {"eventName": "E", **ADA}
    _, server = ended(lambda loops: loops.send_event("e", **ADA))
    assert server.requests[0].json() == {"eventName": "e", **ADA}


@pytest.mark.parametrize("made", [{"a": math.nan}, {1, 2}, object()])
def test_a_hook_that_makes_no_json_is_an_invalid_event(made: Any) -> None:
    def use(loops: AsyncLoopsClient) -> Any:
        loops.converter.register_unstructure_hook(Event, lambda _: made)
        return loops.send_event("e", **ADA)

    error = untouched(use)
    assert isinstance(error, errors.InvalidEventError)
    assert "hook" in str(error)


def test_the_converter_reads_records() -> None:
    async def main() -> None:
        loops = client(NOWHERE)
        record = {"eventName": "e", "userId": "u", "idempotency_key": "k"}
        event = loops.converter.structure(record, Event)
        assert event == Event("e", user_id="u", idempotency_key="k")

    run(main())


def test_every_attempt_carries_the_bytes_of_the_first() -> None:
    """The event is encoded once, though the hook would make another each time."""
    count = 0

    def counting(event: Event) -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"eventName": event.event_name, "count": count}

    def use(loops: AsyncLoopsClient) -> Any:
        loops.converter.register_unstructure_hook(Event, counting)
        return loops.send_event("e", **ADA)

    _, server = ended(use, reply(500), OK)
    first, second = server.requests
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert count == 1


# The limit.


def test_a_429_holds_everybody_and_nobody_retries_alone() -> None:
    """For the period of the limiter at least, or for what was asked."""

    async def main() -> float:
        limiter = RateLimiter(100, 0.3)
        async with Server(answers(reply(429), OK)) as server:
            async with client(server.url, rate_limit=limiter) as loops:
                first = asyncio.create_task(loops.send_event("e", user_id="u"))
                await server.arrived()
                await asyncio.sleep(0.05)
                others = [loops.send_event("e", user_id=f"{n}") for n in range(5)]
                await asyncio.gather(first, *others)
            throttled, *rest = server.requests
            assert len(rest) == 6
            return min(one.at for one in rest) - throttled.at

    assert run(main()) >= 0.3


def test_a_429_asking_for_more_holds_for_more() -> None:
    async def main() -> float:
        script = answers(reply(429, headers={"Retry-After": "0.4"}), OK)
        async with Server(script) as server:
            limiter = RateLimiter(100, 0.1)
            async with client(server.url, rate_limit=limiter) as loops:
                await loops.send_event("e", user_id="u")
            first, second = server.requests
            return second.at - first.at

    assert run(main()) >= 0.4


def test_no_more_requests_are_under_way_than_connections() -> None:
    under_way = most = 0

    async def script(connection: Connection) -> None:
        nonlocal under_way, most
        while await connection.request() is not None:
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            under_way -= 1
            await connection.send(OK)

    async def main() -> int:
        async with Server(script) as server:
            async with client(server.url, max_connections=3) as loops:
                sends = [loops.send_event("e", user_id=f"{n}") for n in range(30)]
                await asyncio.gather(*sends)
            return server.connections

    assert run(main()) == 3
    assert most == 3


def test_every_way_a_send_can_end_gives_its_permit_and_slot_back() -> None:
    """After all of them as many go out at once as at the beginning."""
    limiter = RateLimiter(5, 0.05)

    async def script(connection: Connection) -> None:
        server = connection.server
        while await connection.request() is not None:
            kind = len(server.requests) % 5
            if kind == 0:
                return
            if kind == 1:
                await connection.until_closed()
                return
            await connection.send({2: OK, 3: reply(400), 4: reply(500)}[kind])

    async def main() -> None:
        async with (
            Server(script) as server,
            client(
                server.url, rate_limit=limiter, max_connections=4, timeout=0.2
            ) as loops,
        ):
            sends = [
                loops.send_event("e", user_id=f"{n}", timeout=wait, deadline=0.5)
                for n in range(20)
                for wait in (0.1, 0.2, 0.3)
            ]
            tasks = [asyncio.create_task(one) for one in sends]
            await asyncio.sleep(0.3)
            for task in tasks[::4]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.1)
            assert "5 free, 0 under way, 0 coming back, 0 waiting" in repr(limiter)
            assert loops._latest is not None
            slots = loops._latest._slots
            assert slots is not None
            assert slots.free == 4
            assert loops._latest.transport._under_way == {}

    run(main())


# An outage.


@pytest.mark.parametrize("connections", [3, 100], ids=["slots", "no slots"])
def test_a_send_that_got_its_permit_after_the_gate_closed_waits_for_it(
    connections: int,
) -> None:
    """The permit goes back, and to the probe. For the rest see test_outage."""
    down = True

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            await connection.send(reply(503) if down else OK)

    async def main() -> None:
        nonlocal down
        limiter = RateLimiter(5, 0.1)
        retry = RetryPolicy(attempts=9, base=0.01)
        async with (
            Server(script) as server,
            client(
                server.url, retry=retry, rate_limit=limiter, max_connections=connections
            ) as loops,
        ):
            sends = [loops.send_event("e", user_id=f"{n}") for n in range(12)]
            tasks = [asyncio.create_task(one) for one in sends]
            await server.arrived(5)
            await asyncio.sleep(0.3)  # permits are back, and were handed on
            count = len(server.requests)
            down = False
            receipts = await asyncio.gather(*tasks)
            assert count <= 5 + 4  # those under way as it closed, and probes
            assert sum(receipt.attempts for receipt in receipts) == 12 + count

    run(main())


# Closing; for the rest see test_lifecycle.


def test_a_closed_client_sends_nothing_more() -> None:
    async def main() -> None:
        async with Server(answers(OK)) as server:
            loops = client(server.url)
            async with loops as same:
                assert same is loops
                await loops.send_event("e", user_id="u")
            with pytest.raises(errors.ClientClosedError) as raised:
                await loops.send_event("e", user_id="u", idempotency_key="k")
            assert raised.value.idempotency_key == "k"
            assert raised.value.attempts == 0
            assert not raised.value.maybe_accepted
            with pytest.raises(errors.ClientClosedError):
                await loops.request("GET", "/v1/lists")
            await loops.aclose()
            assert len(server.requests) == 1

    run(main())
