"""One send through circuit breaker, rate limiter and transport, where they meet."""

import asyncio
import gc
import warnings
import weakref
from typing import Any

import pytest
from support.clients import client_of, failure_of, start_sends
from support.http_server import (
    OK,
    Connection,
    Server,
    answers,
    hang,
    reply,
    respond,
    serving,
)
from support.virtual_time import advance, run_frozen
from support.waiting import advance_until, run, until

from loops_async import (
    AsyncLoopsClient,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    Event,
    InvalidEventError,
    RateLimiter,
    RateLimitError,
    RecipientNotAllowedError,
    RetryPolicy,
)
from loops_async._http.transport import AiohttpTransport
from loops_async.sandbox import Sandbox

from .support import make_sender

RETRY = RetryPolicy(attempts=30, base=0.01)


@pytest.mark.parametrize(
    "connections", [3, 100], ids=["connections limited", "connections unlimited"]
)
def test_a_send_that_gets_its_permit_in_an_outage_returns_it_and_waits(
    connections: int,
) -> None:
    """Permits become free in the outage, and only the probe uses one of them."""

    async def main() -> None:
        limiter = RateLimiter(5, 0.1, clock=asyncio.get_running_loop().time)
        async with (
            serving(respond(503)) as server,
            client_of(
                server, rate_limit=limiter, retry=RETRY, max_connections=connections
            ) as loops,
        ):
            sends = start_sends(loops, 12)
            await advance_until(lambda: loops.stats.outage, step=0.01)
            await until(lambda: not loops.stats.in_flight)
            before = len(server.requests)
            await advance(0.4)  # four periods, and less than the pause of 0.5 s
            assert len(server.requests) == before
            server.handler = respond()
            await advance_until(lambda: all(send.done() for send in sends))
            assert sum(send.result().attempts for send in sends) == 12 + before
            assert len(server.requests) == 12 + before

    run_frozen(main())


def test_the_timer_of_a_timeout_does_not_keep_a_dropped_client_alive() -> None:
    """The timer expires without an effect."""

    async def main() -> None:
        async with Sandbox() as sandbox:
            transports: list[weakref.ref[AiohttpTransport]] = []

            async def connect() -> AiohttpTransport:
                transport = AiohttpTransport(max_connections=1, usual_timeout=0.05)
                await transport.open()
                transports.append(weakref.ref(transport))
                return transport

            loops = client_of(sandbox)
            loops.sender = make_sender(
                connect, base_url=sandbox.url, api_key=sandbox.api_key, timeout=0.05
            )
            await loops.test_api_key()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del loops
                gc.collect()
                await advance(0.1)
            assert [warning.category for warning in caught] == [ResourceWarning]
            (transport,) = transports
            assert transport() is None

    run_frozen(main())


def test_a_retry_after_that_is_too_long_ends_one_send_and_holds_no_other() -> None:
    """After a Retry-After of a day, the next send waits for one period."""

    async def main() -> None:
        day = reply(429, headers={"Retry-After": "86400"})
        async with (
            Server(answers(day, OK)) as server,
            client_of(server, rate_limit=RateLimiter(5, 0.1)) as loops,
        ):
            with pytest.raises(RateLimitError) as raised:
                await loops.send_event("e", email="ada@example.com")
            assert raised.value.attempts == 1
            receipt = await loops.send_event("e", email="ada@example.com")
            assert receipt.attempts == 1

    run(main())


def test_a_response_that_cannot_be_judged_returns_its_permit_and_its_connection() -> (
    None
):
    """The caller changes the JSON in flight; the error's text cannot be redacted."""
    body: dict[str, Any] = {"name": "a"}

    async def refuse(connection: Connection) -> None:
        body["name"] = "\ud800"
        await connection.send(reply(400, '{"message":"no"}'))

    async def main() -> None:
        limiter = RateLimiter(1, 0.01)
        async with (
            serving(refuse) as server,
            client_of(server, rate_limit=limiter, max_connections=1) as loops,
        ):
            with pytest.raises(UnicodeEncodeError):
                await loops.request("POST", "/v1/lists", json=body)
            server.handler = respond()
            await loops.send_event("signup", email="a@example.com")

    run(main())


def test_attempts_cut_by_their_deadline_do_not_open_the_breaker() -> None:
    """They are not a sign of an outage."""

    async def main() -> None:
        async with serving(hang) as server, client_of(server) as loops:
            sends = start_sends(loops, 8, deadline=0.05)
            await server.arrived(8)
            await advance(0.06)
            for send in sends:
                assert type(await failure_of(send)) is DeadlineExceededError
            assert not loops.stats.outage

    run_frozen(main())


class Text(str):
    __slots__ = ()


def test_a_property_name_of_a_str_subclass_becomes_a_plain_str() -> None:
    """This holds if an equal name was checked, and cached, before."""
    for field in ("event_properties", "contact_properties", "mailing_lists"):
        plain: dict[str, Any] = {field: {"plan": True}}
        Event("e", email="a@b.co", **plain)
        odd: dict[str, Any] = {field: {Text("plan"): True}}
        (name,) = getattr(Event("e", email="a@b.co", **odd), field)
        assert type(name) is str


ALLOWED = ("ada@example.com", "user:usr_1")


def allowing(sandbox: Sandbox) -> AsyncLoopsClient:
    return client_of(sandbox, allowed_recipients=ALLOWED)


def test_the_allow_list_checks_the_recipient_that_a_converter_hook_sets() -> None:
    """The check sees what will be sent."""

    async def main() -> None:
        async with Sandbox() as sandbox, allowing(sandbox) as loops:
            to = "eve@example.com"
            loops.converter.register_unstructure_hook(
                Event, lambda event: {"eventName": event.event_name, "email": to}
            )
            with pytest.raises(RecipientNotAllowedError) as raised:
                await loops.send_event("e", email="ada@example.com")
            assert raised.value.idempotency_key is not None
            to = "ada@example.com"
            await loops.send_event("e", email="ada@example.com")
            assert [event.email for event in sandbox.events] == ["ada@example.com"]

    run(main())


class Twin(str):
    """A text that equals nothing, so that a dict can hold "email" twice."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize(
    "body",
    [
        {
            "eventName": "e",
            "email": "ada@example.com",
            Twin("email"): "eve@example.com",
        },
        {"eventName": "e", "email": "ada@example.com", "Email": "eve@example.com"},
        {"eventName": "e", "userId": "usr_1", "user_id": "usr_2"},
        {"eventName": "e", "email": None},
        {"eventName": "e", "email": ["ada@example.com"]},
        [["email", "ada@example.com"]],
    ],
    ids=["twice", "other case", "snake case", "null", "list", "array"],
)
def test_a_request_with_an_ambiguous_recipient_is_not_allowed(body: Any) -> None:
    async def main() -> None:
        async with Sandbox() as sandbox, allowing(sandbox) as loops:
            with pytest.raises(RecipientNotAllowedError):
                await loops.request("POST", "/v1/events/send", json=body)
            assert not sandbox.requests

    run(main())


def test_a_dry_run_raises_the_errors_that_need_no_request() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        with pytest.raises(ConfigurationError, match="timeout"):
            await loops.send_event("e", email="ada@example.com", timeout=-3)
        with pytest.raises(ConfigurationError, match="deadline"):
            await loops.request("GET", "/v1/lists", deadline=0)
        await loops.aclose()
        with pytest.raises(ClientClosedError):
            await loops.send_event("e", email="ada@example.com")

    run(main())


def test_a_converter_hook_that_raises_makes_the_event_invalid() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        loops.converter.register_unstructure_hook(Event, lambda _: {}["x"])
        with pytest.raises(InvalidEventError, match="KeyError") as raised:
            await loops.send_event("e", email="a@b.co", idempotency_key="k")
        assert raised.value.idempotency_key == "k"
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None

    run(main())
