"""The way of one call through gate, limiter and transport, where they meet."""

import asyncio
import gc
import math
import warnings
import weakref
from typing import Any

import pytest
from support.http_server import OK, Server, answers, reply

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

RETRY = RetryPolicy(attempts=30, base=0.01)


def test_who_waited_for_a_permit_while_the_gate_closed_waits_at_the_gate() -> None:
    """The permit goes back unused, and nothing is sent into the outage."""

    async def main() -> None:
        limiter = RateLimiter(1, 0.05)
        async with (
            Sandbox(rate_limit=None) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, rate_limit=limiter, retry=RETRY
            ) as loops,
        ):
            sandbox.script(*["503"] * 5)
            await asyncio.gather(
                *(loops.send_event("e", email=f"{n}@example.com") for n in range(12))
            )
            assert sandbox.counts.accepted == 12
            assert sandbox.counts.requests == 17
            refused = [one.status for one in sandbox.requests][:6]
            assert refused == [503] * 5 + [200]  # the sixth was the probe

    asyncio.run(main())


def test_an_alarm_that_outlives_its_transport_does_nothing() -> None:
    """A client that was dropped is not kept for the time-out of its last request."""

    async def main() -> None:
        async with Sandbox() as sandbox:
            loops = AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, timeout=0.05
            )
            await loops.test_api_key()
            assert loops._latest is not None
            transport: weakref.ref[AiohttpTransport] = weakref.ref(
                loops._latest.transport
            )
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del loops
                gc.collect()
                await asyncio.sleep(0.1)
            assert [warning.category for warning in caught] == [ResourceWarning]
            assert transport() is None

    asyncio.run(main())


def test_a_wait_too_long_for_one_is_asked_of_nobody_else() -> None:
    """Retry-After of a day ends that call; the others go on after one period."""

    async def main() -> None:
        day = reply(429, headers={"Retry-After": "86400"})
        async with (
            Server(answers(day, OK)) as server,
            AsyncLoopsClient(
                "key", base_url=server.url, rate_limit=RateLimiter(5, 0.1)
            ) as loops,
        ):
            with pytest.raises(RateLimitError) as raised:
                await loops.send_event("e", email="ada@example.com")
            assert raised.value.attempts == 1
            receipt = await loops.send_event("e", email="ada@example.com", deadline=5)
            assert receipt.attempts == 1

    asyncio.run(main())


def test_the_haste_of_one_caller_closes_the_gate_for_nobody() -> None:
    """An attempt that its own deadline cut short is no sign of an outage."""

    async def main() -> None:
        async with (
            Sandbox(latency=0.3, rate_limit=None) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, rate_limit=math.inf
            ) as loops,
        ):
            hasty = [
                loops.send_event("e", email="ada@example.com", deadline=0.05)
                for _ in range(8)
            ]
            for ended in await asyncio.gather(*hasty, return_exceptions=True):
                assert isinstance(ended, DeadlineExceededError)
            assert loops._latest is not None
            assert loops._latest._gate.is_closed

    asyncio.run(main())


class Text(str):
    __slots__ = ()


def test_a_name_equal_to_one_seen_before_is_still_made_plain() -> None:
    """A cache that takes equal for the same must not let a subclass through."""
    for field in ("event_properties", "contact_properties", "mailing_lists"):
        plain: dict[str, Any] = {field: {"plan": True}}
        Event("e", email="a@b.co", **plain)
        odd: dict[str, Any] = {field: {Text("plan"): True}}
        (name,) = getattr(Event("e", email="a@b.co", **odd), field)
        assert type(name) is str


ALLOWED = ("ada@example.com", "user:usr_1")


def allowing(sandbox: Sandbox) -> AsyncLoopsClient:
    return AsyncLoopsClient(
        sandbox.api_key, base_url=sandbox.url, allowed_recipients=ALLOWED
    )


def test_a_hook_cannot_talk_its_way_around_the_allow_list() -> None:
    """What is checked is what will be sent."""

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

    asyncio.run(main())


class Twin(str):
    """Equal to nothing, and so a second "email" in one dict."""

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
def test_a_request_cannot_talk_its_way_around_the_allow_list(body: Any) -> None:
    async def main() -> None:
        async with Sandbox() as sandbox, allowing(sandbox) as loops:
            with pytest.raises(RecipientNotAllowedError):
                await loops.request("POST", "/v1/events/send", json=body)
            assert not sandbox.requests

    asyncio.run(main())


def test_a_dry_run_finds_what_a_real_one_would() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        with pytest.raises(ConfigurationError, match="timeout"):
            await loops.send_event("e", email="ada@example.com", timeout=-3)
        with pytest.raises(ConfigurationError, match="deadline"):
            await loops.request("GET", "/v1/lists", deadline=0)
        await loops.aclose()
        with pytest.raises(ClientClosedError):
            await loops.send_event("e", email="ada@example.com")

    asyncio.run(main())


def test_a_hook_that_raises_is_an_invalid_event_with_its_key() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True)
        loops.converter.register_unstructure_hook(Event, lambda _: {}["x"])
        with pytest.raises(InvalidEventError, match="KeyError") as raised:
            await loops.send_event("e", email="a@b.co", idempotency_key="k")
        assert raised.value.idempotency_key == "k"
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None

    asyncio.run(main())
