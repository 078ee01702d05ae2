"""The API key of a client: a text, or a callable that returns it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.clients import TWICE, client_of
from support.http_server import (
    OK,
    Server,
    answers,
    outcome_of,
    reply,
)
from support.waiting import run

from loops_async import (
    Event,
    LoopsError,
    RateLimiter,
    errors,
)

ADA: dict[str, Any] = {"email": "ada@example.com"}


@pytest.mark.parametrize("later", [False, True], ids=["plain", "async"])
def test_an_api_key_callable_is_called_before_each_attempt(later: bool) -> None:
    """A key that was rotated between two attempts is used."""
    calls = 0

    def source() -> str:
        nonlocal calls
        calls += 1
        return f"key-{calls}"

    async def async_source() -> str:
        await asyncio.sleep(0)
        return source()

    async def main() -> list[str]:
        async with Server(answers(reply(500), OK)) as server:
            async with client_of(
                server, api_key=async_source if later else source, retry=TWICE
            ) as loops:
                await loops.send_event("e", user_id="u")
                await loops.request("GET", "/v1/lists")
            return [one.headers["authorization"] for one in server.requests]

    assert run(main()) == ["Bearer key-1", "Bearer key-2", "Bearer key-3"]


def test_concurrent_sends_each_use_the_key_that_their_own_call_returned() -> None:
    """This holds although they share one session."""

    async def main() -> list[str]:
        numbers = iter(range(50))

        async def source() -> str:
            number = next(numbers)
            await asyncio.sleep(0.001 * (number % 7))
            return f"key-{number}"

        async with Server(answers(OK)) as server:
            async with client_of(server, api_key=source) as loops:
                sends = [loops.send_event("e", user_id=f"{n}") for n in range(50)]
                await asyncio.gather(*sends)
            return [one.headers["authorization"] for one in server.requests]

    assert sorted(run(main())) == sorted(f"Bearer key-{n}" for n in range(50))


def test_a_refused_plain_key_is_not_retried() -> None:
    error, server = outcome_of(lambda loops: loops.send_event("e", **ADA), reply(401))
    assert type(error) is errors.AuthenticationError
    assert not error.retryable
    assert len(server.requests) == 1


def test_a_callable_whose_key_is_refused_is_called_once_more() -> None:
    """A request may be in flight, or just have its key, when the key is revoked."""

    async def main() -> list[str]:
        keys = iter(["old", "new", "new"])
        async with Server(answers(reply(401), OK)) as server:
            async with client_of(server, api_key=lambda: next(keys)) as loops:
                receipt = await loops.send_event("e", user_id="u")
                assert receipt.attempts == 2
                report = await loops.send_events([Event("e", user_id="u")])
                assert report.accepted
            return [one.headers["authorization"] for one in server.requests]

    assert run(main()) == ["Bearer old", "Bearer new", "Bearer new"]


@pytest.mark.parametrize("given", [["old"] * 2, ["old", "new"]], ids=["same", "other"])
def test_a_callable_whose_keys_are_all_refused_is_called_twice(
    given: list[str],
) -> None:
    """No request carries a key that was just refused."""

    async def main() -> None:
        keys = iter(given)
        async with Server(answers(reply(401))) as server:
            async with client_of(server, api_key=lambda: next(keys)) as loops:
                with pytest.raises(errors.AuthenticationError) as caught:
                    await loops.send_event("e", user_id="u")
                assert caught.value.attempts == len(set(given))
                assert len(server.requests) == len(set(given))
            assert next(keys, None) is None

    run(main())


def failing(_: Any = None) -> str:
    raise LookupError("no key today")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (failing, "the callable raised LookupError"),
        (lambda: None, "NoneType"),
        (lambda: "", "empty"),
        (lambda: b"key", "bytes"),
        (lambda: "a b", "space"),
        (lambda: asyncio.sleep(0), "NoneType"),
    ],
)
def test_a_callable_that_returns_no_key_raises_a_configuration_error(
    source: Callable[[], Any], text: str
) -> None:
    """Nothing is sent, and the permit is free at once."""
    limiter = RateLimiter(1, 1000.0)

    async def main() -> None:
        async with Server(answers(OK)) as server:
            loops = client_of(server, api_key=source, rate_limit=limiter)
            for _ in range(3):
                with pytest.raises(errors.ConfigurationError, match=text):
                    await loops.send_event("e", user_id="u")
            await loops.aclose()
            assert server.connections == 0

    run(main())
    assert "1 free" in repr(limiter)


def test_a_callable_that_fails_after_an_ambiguous_attempt_leaves_it_ambiguous() -> None:
    """The error has the key and the number of attempts."""
    keys = iter(["good"])

    def source() -> str:
        return next(keys, "")

    async def main() -> LoopsError:
        async with (
            Server(answers(reply(500))) as server,
            client_of(server, api_key=source, retry=TWICE) as loops,
        ):
            with pytest.raises(errors.ConfigurationError) as raised:
                await loops.send_event("e", user_id="u", idempotency_key="k")
            return raised.value

    error = run(main())
    assert error.idempotency_key == "k"
    assert error.attempts == 1
    assert error.maybe_accepted
