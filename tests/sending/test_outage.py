"""Loops is down: many sends wait, and one probe at a time goes out.

The time of the event loop is frozen here, so the pauses between probes are exact.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
)
from functools import partial
from typing import Any

import attrs
import pytest
from support.clients import (
    KEY,
    cancel,
    client_without_grace,
    failure_of,
    results_of,
    start_sends,
)
from support.http_server import (
    Connection,
    Handler,
    bound_socket,
    hang,
    respond,
    serving,
    url_of,
)
from support.virtual_time import advance, run_frozen
from support.waiting import advance_until, run, until

from loops_async import (
    AsyncLoopsClient,
    DeadlineExceededError,
    RateLimitError,
    Receipt,
    RetryPolicy,
    ServerError,
)
from loops_async.sandbox import Sandbox

PAUSES = (0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0)  # seconds before each probe
PAUSE = PAUSES[0]
CONNECTIONS = 20
THRESHOLD = 5
MARGIN = 0.05  # seconds before and after a probe is due


def client_at(
    server: Any, **settings: Any
) -> AbstractAsyncContextManager[AsyncLoopsClient]:
    defaults = {
        "max_connections": CONNECTIONS,
        "retry": RetryPolicy(attempts=50, base=0.1),
        "deadline": None,
    }
    return client_without_grace(server, **{**defaults, **settings})


async def until_open(client: AsyncLoopsClient) -> None:
    """Wait until the circuit breaker is open and no request is in flight."""
    await until(lambda: client.stats.outage and not client.stats.in_flight)


async def probe_after(
    pause: float, count: Callable[[], int], *, since: float | None = None
) -> None:
    """Check that exactly one probe goes out, and not before the pause is over.

    Args:
        pause: Seconds between the last failure and the probe.
        count: Returns the number of attempts.
        since: Loop time of the last failure; None for now.
    """
    now = asyncio.get_running_loop().time
    due = (now() if since is None else since) + pause
    before = count()
    await advance(due - MARGIN - now())
    assert count() == before
    await advance(2 * MARGIN)
    await until(lambda: count() > before)
    assert count() == before + 1


async def drop(connection: Connection) -> None:
    """Close the connection without a response."""
    connection.close()


@attrs.frozen
class Outage:
    """A server that is down.

    Attributes:
        url: The base URL of the server.
        requests: The number of requests that arrived; None if it cannot be seen.
        end: Ends the outage.
        accepted: The keys of the events accepted, one for each acceptance.
    """

    url: str
    requests: Callable[[], int] | None
    end: Callable[[], Any]
    accepted: Callable[[], list[str]]


@asynccontextmanager
async def down(handler: Handler) -> AsyncIterator[Outage]:
    async with serving(handler) as server:
        refused: list[int] = []

        async def end() -> None:
            refused.append(len(server.requests))
            server.handler = respond()

        yield Outage(
            server.url,
            lambda: len(server.requests),
            end,
            lambda: server.keys[refused[0] :],
        )


def responding_503() -> AbstractAsyncContextManager[Outage]:
    return down(respond(503))


def dropping() -> AbstractAsyncContextManager[Outage]:
    return down(drop)


@asynccontextmanager
async def refusing() -> AsyncIterator[Outage]:
    async with AsyncExitStack() as stack:
        sock = stack.enter_context(closing(bound_socket()))
        server = serving(respond(), sock)
        end = partial(stack.enter_async_context, server)
        yield Outage(url_of(sock), None, end, lambda: server.keys)


@pytest.mark.parametrize("outage", [responding_503, dropping, refusing])
def test_a_thousand_sends_survive_an_outage_and_each_is_accepted_once(
    outage: Callable[[], AbstractAsyncContextManager[Outage]],
) -> None:
    """After five failures only probes go out, at pauses that grow to 5 s."""

    async def main() -> None:
        now = asyncio.get_running_loop().time
        failures: list[float] = []
        async with (
            outage() as loops,
            client_at(loops.url, on_attempt=lambda _: failures.append(now())) as client,
        ):
            sends = start_sends(client, 1000)
            await until_open(client)
            assert THRESHOLD <= len(failures) < THRESHOLD + CONNECTIONS
            for pause in PAUSES:
                await probe_after(pause, lambda: len(failures), since=failures[-1])
                assert client.stats.outage
            if loops.requests is not None:
                assert loops.requests() == len(failures)
            await loops.end()
            await advance_until(lambda: all(send.done() for send in sends))
            results = await results_of(sends)
            receipts = [one for one in results if isinstance(one, Receipt)]
            assert len(receipts) == 1000
            assert sorted(loops.accepted()) == sorted(
                receipt.idempotency_key for receipt in receipts
            )

    run_frozen(main())


def test_an_outage_ends_sends_by_their_deadline_and_the_others_are_accepted() -> None:
    """An event that was never sent is certainly not accepted."""

    async def main() -> None:
        async with (
            responding_503() as loops,
            client_at(loops.url, deadline=60.0) as client,
        ):
            unhurried = start_sends(client, 500)
            hurried = start_sends(client, 500, deadline=0.8)
            await until_open(client)
            await advance_until(lambda: all(send.done() for send in hurried))
            errors = [await failure_of(send) for send in hurried]
            assert {type(error) for error in errors} == {DeadlineExceededError}
            assert not any(send.done() for send in unhurried)
            for error in errors:
                # A 503 does not show whether the event was accepted.
                assert error.maybe_accepted is (error.attempts > 0)
            assert sum(error.attempts == 0 for error in errors) > 400
            await loops.end()
            await advance_until(lambda: all(send.done() for send in unhurried))
            assert {type(one) for one in await results_of(unhurried)} == {Receipt}
            assert len(loops.accepted()) == len(set(loops.accepted())) == 500

    run_frozen(main())


def test_a_single_send_outlives_an_outage() -> None:
    """One send opens the breaker, probes, and is accepted after the outage."""

    async def main() -> None:
        async with (
            serving(respond(503)) as server,
            client_at(server, retry=RetryPolicy(attempts=50, base=0.001)) as client,
        ):
            (send,) = start_sends(client)
            await advance_until(lambda: len(server.requests) == THRESHOLD, step=0.01)
            await until_open(client)
            await probe_after(PAUSE, lambda: len(server.requests))
            server.handler = respond()
            await advance_until(send.done)
            receipt = await send
            assert receipt.attempts == THRESHOLD + 2
            assert not receipt.duplicate
            assert set(server.keys) == {receipt.idempotency_key}

    run_frozen(main())


def test_a_send_that_is_out_of_attempts_in_an_outage_raises_the_last_error() -> None:
    """The error is that of the last response, not one of the circuit breaker."""

    async def main() -> None:
        policy = RetryPolicy(attempts=6, base=0.001)
        async with (
            serving(respond(503)) as server,
            client_at(server, retry=policy) as client,
        ):
            (send,) = start_sends(client)
            await advance_until(send.done)
            error = await failure_of(send)
            assert type(error) is ServerError
            assert error.attempts == 6
            assert error.maybe_accepted

    run_frozen(main())


def test_a_send_with_a_deadline_before_the_next_probe_fails_at_once() -> None:
    """The breaker knows when the next probe is due."""

    async def main() -> None:
        async with (
            serving(respond(503)) as server,
            client_at(server, retry=RetryPolicy(attempts=50, base=0.001)) as client,
        ):
            (send,) = start_sends(client)
            await advance_until(lambda: client.stats.outage, step=0.01)
            await probe_after(PAUSE, lambda: len(server.requests))
            await until_open(client)  # no request goes out for a second
            began = asyncio.get_running_loop().time()
            error = await failure_of(
                client.send_event("signup", user_id="u1", deadline=0.5)
            )
            assert asyncio.get_running_loop().time() == began
            assert type(error) is DeadlineExceededError
            assert error.attempts == 0
            assert not error.maybe_accepted
            await cancel(send)

    run_frozen(main())


def test_a_cancelled_probe_is_replaced_by_the_next() -> None:
    async def main() -> None:
        async with serving(respond(503)) as server, client_at(server) as client:
            sends = {
                key: start_sends(client, idempotency_key=key)[0] for key in "abcdefg"
            }
            await until_open(client)
            await advance(0.2)  # all sends have paused and wait for the breaker
            before = len(server.requests)
            server.handler = hang
            await advance_until(lambda: len(server.requests) > before)
            probing = server.keys[-1]
            server.handler = respond()
            last = next(key for key in sends if key != probing)
            for key, send in sends.items():
                if key != last:
                    assert send.cancel()
            await advance_until(sends[last].done)
            receipt = await sends[last]
            assert server.keys[-1] == receipt.idempotency_key == last
            await results_of(list(sends.values()))

    run_frozen(main())


def test_a_probe_without_a_response_is_the_only_request_in_flight() -> None:
    """No other request goes out meanwhile, however many sends wait."""

    async def main() -> None:
        async with serving(respond(503)) as server, client_at(server) as client:
            sends = start_sends(client, 10)
            await until_open(client)
            before = len(server.requests)
            server.handler = hang
            await advance_until(lambda: len(server.requests) > before)
            sends += start_sends(client, 10)
            await advance(2 * PAUSE)
            assert len(server.requests) == before + 1
            await cancel(*sends)

    run_frozen(main())


def test_a_probe_that_times_out_keeps_the_breaker_open_and_ends_no_other_send() -> None:
    """All sends end by their own deadline, before a second probe is due."""

    async def main() -> None:
        async with (
            serving(hang) as server,
            client_at(server, timeout=0.4, deadline=2.0) as client,
        ):
            sends = start_sends(client, 50)
            await server.arrived(CONNECTIONS)
            await advance(0.41)
            await until_open(client)
            await probe_after(PAUSE, lambda: len(server.requests))  # at 0.9 s
            assert not any(send.done() for send in sends)
            await advance(0.41)
            await until_open(client)  # until 2.3 s
            await advance_until(lambda: all(send.done() for send in sends))
            errors = [await failure_of(send) for send in sends]
            assert {type(error) for error in errors} == {DeadlineExceededError}
            assert len(server.requests) == CONNECTIONS + 1

    run_frozen(main())


def test_an_outage_of_one_client_does_not_hold_another_client() -> None:
    """Each client has its own breaker, because hosts may differ."""

    async def main() -> None:
        async with (
            serving(respond(503)) as down,
            serving(respond()) as up,
            client_at(down) as client,
            client_at(up) as other,
        ):
            sends = start_sends(client, 10)
            await until_open(client)
            others = start_sends(other, 20)
            await until(lambda: all(send.done() for send in others))
            assert {(await send).attempts for send in others} == {1}
            await cancel(*sends)

    run_frozen(main())


@pytest.mark.parametrize("status", [429, 404])
def test_refusals_never_open_the_breaker(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that responds 429 or 404 is up."""

    async def main() -> None:
        policy = RetryPolicy(attempts=3, base=0.01)
        async with (
            serving(respond(status)) as server,
            client_at(server, retry=policy) as client,
        ):
            results = await results_of(start_sends(client, 200))
            assert {getattr(error, "status", None) for error in results} == {status}
            if status == 429:
                assert {type(error) for error in results} == {RateLimitError}
                assert len(server.requests) == 600
            server.handler = respond()
            assert (await client.send_event("signup", user_id="u1")).attempts == 1

    with caplog.at_level(logging.WARNING, "loops_async"):
        run(main())
    assert not caplog.records


def test_failures_with_successes_between_them_do_not_open_the_breaker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only failures in a row count; every other response resets the count."""

    async def main() -> None:
        policy = RetryPolicy(attempts=2, base=0)
        async with (
            Sandbox(api_key=KEY, rate_limit=None) as sandbox,
            client_at(sandbox, retry=policy) as client,
        ):
            sandbox.script(*["503", None] * 20)
            for n in range(20):
                receipt = await client.send_event("signup", email=f"u{n}@b.co")
                assert receipt.attempts == 2

    with caplog.at_level(logging.WARNING, "loops_async"):
        run(main())
    assert not caplog.records


def test_an_outage_and_its_end_are_logged_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with responding_503() as loops, client_at(loops.url) as client:
            sends = start_sends(client, 200)
            await until_open(client)
            await loops.end()
            await advance_until(lambda: all(send.done() for send in sends))
            assert {type(one) for one in await results_of(sends)} == {Receipt}

    with caplog.at_level(logging.WARNING, "loops_async"):
        run_frozen(main())
    first, last = [record.getMessage() for record in caplog.records]
    assert "holding all sends" in first
    assert "sending resumes" in last
