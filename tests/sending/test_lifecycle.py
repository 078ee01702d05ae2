"""The end of a client: how it closes, what its sends raise, and that nothing leaks."""

import asyncio
import contextlib
import gc
import random
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.clients import (
    KEY,
    SendResult,
    cancel,
    client_of,
    failure_of,
    results_of,
    start_sends,
)
from support.http_server import (
    Connection,
    Handler,
    Server,
    bound_socket,
    hang,
    respond,
    respond_after,
    serving,
    url_of,
)
from support.sandbox_process import STRICT, run_script, sandbox_in_thread
from support.virtual_time import FrozenLoop, advance, run_frozen, settle
from support.waiting import run, until

from loops_async import (
    AsyncLoopsClient,
    Attempt,
    ClientClosedError,
    ConnectionLostError,
    LoopsError,
    RateLimiter,
    Receipt,
)

from .support import descriptors


@asynccontextmanager
async def pair(
    handler: Handler, **settings: Any
) -> AsyncIterator[tuple[Server, AsyncLoopsClient]]:
    """Run a server and make a client of it, which the test closes."""
    async with serving(handler) as server:
        yield server, client_of(server, **settings)


def tasks_left() -> list[asyncio.Task[Any]]:
    return [
        task
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and task.get_name() != "server"
    ]


def test_an_unclosed_client_collected_in_a_running_loop_warns_and_disconnects() -> None:
    """It issues exactly one ResourceWarning."""

    async def main() -> None:
        for _ in range(3):  # garbage of other tests must not warn below
            gc.collect()
        # No timeout is near that could close the connections instead.
        async with pair(respond(), timeout=3600, deadline=None) as (server, client):
            await asyncio.gather(*start_sends(client, 5))
            assert len(server.open) == 5
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del client
                gc.collect()
                await until(lambda: not server.open)
                # The server may see it before the client has finished.
                await until(lambda: not tasks_left())
                gc.collect()
            text = "unclosed AsyncLoopsClient: use async with, or await aclose()"
            warned = [(warning.category, str(warning.message)) for warning in caught]
            assert warned == [(ResourceWarning, text)]

    run(main())


def test_an_unclosed_client_collected_after_its_event_loops_does_not_warn() -> None:
    """asyncio.run has already closed its connections."""
    with sandbox_in_thread() as sandbox, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = client_of(sandbox)
        asyncio.run(client.test_api_key())
        del client
        gc.collect()
        client = client_of(sandbox)  # an unused client
        del client
        gc.collect()
    assert not caught


def test_a_closed_client_raises_and_takes_no_permit_and_no_connection() -> None:
    async def main() -> None:
        limiter = RateLimiter(5, 600)
        async with pair(respond(), rate_limit=limiter) as (server, client):
            async with client as entered:
                assert entered is client
            error = await failure_of(
                client.send_event("signup", user_id="u1", idempotency_key="k1")
            )
            assert type(error) is ClientClosedError
            assert error.idempotency_key == "k1"
            assert error.attempts == 0
            assert not error.maybe_accepted
            with pytest.raises(ClientClosedError):
                await client.test_api_key()
            with pytest.raises(ClientClosedError):
                await client.request("GET", "/v1/lists")
            assert "5 free" in repr(limiter)
            assert "closed" in repr(client)
            assert not server.connections

    run(main())


def test_a_client_entered_twice_is_closed_by_the_first_exit() -> None:
    """The second exit raises no error."""

    async def main() -> None:
        async with pair(respond()) as (_, client):
            async with client:
                async with client:
                    await client.send_event("signup", user_id="u1")
                with pytest.raises(ClientClosedError):
                    await client.send_event("signup", user_id="u1")
            async with client:
                with pytest.raises(ClientClosedError):
                    await client.send_event("signup", user_id="u1")

    run(main())


def test_closing_a_closed_client_does_nothing() -> None:
    """This holds also in an event loop that has not used the client."""

    async def main() -> None:
        async with pair(respond()) as (server, client):
            await client.send_event("signup", user_id="u1")
            for _ in range(3):
                await client.aclose()
            await until(lambda: not server.open)
            await asyncio.to_thread(asyncio.run, client.aclose())
            assert not tasks_left()

    run(main())


def test_several_tasks_may_close_a_client_at_once() -> None:
    """Each returns when the client is closed, with idle and with busy connections."""

    async def main() -> None:
        for busy in (0, 5):
            ready = asyncio.Event()
            async with pair(respond()) as (server, client):
                await asyncio.gather(*start_sends(client, 5))
                server.handler = respond_after(ready)
                sends = start_sends(client, busy)
                await until(lambda: server.in_flight == busy)  # noqa: B023
                closings = [asyncio.create_task(client.aclose()) for _ in range(5)]
                await settle()
                assert not busy or not any(closing.done() for closing in closings)
                ready.set()
                await asyncio.gather(*closings)
                await until(lambda: not server.open)
                results = await results_of(sends)
                assert [type(result) for result in results] == [Receipt] * busy

    run(main())


def test_a_cancelled_aclose_ends_no_send_and_may_be_repeated() -> None:
    async def main() -> None:
        async with pair(hang) as (server, client):
            (send,) = start_sends(client)
            await until(lambda: server.in_flight)
            closing = asyncio.create_task(client.aclose())
            await settle()
            await cancel(closing)
            assert closing.cancelled()
            assert not send.done()
            await client.aclose(grace=0)
            assert type(await failure_of(send)) is ConnectionLostError
            await until(lambda: not server.open)

    run(main())


def test_sends_in_flight_that_end_within_the_grace_return_receipts() -> None:
    """Closing waits for them, and not for the rest of the grace."""

    async def main() -> None:
        ready = asyncio.Event()
        async with pair(respond_after(ready)) as (server, client):
            sends = start_sends(client, 10)
            await until(lambda: server.in_flight == 10)
            closing = asyncio.create_task(client.aclose(grace=30))
            await advance(29)
            assert not closing.done()
            ready.set()
            await closing  # the time does not move
            assert all(send.done() for send in sends)
            results = await results_of(sends)
            assert [type(result) for result in results] == [Receipt] * 10
            await until(lambda: not server.open)

    run_frozen(main())


def test_sends_in_flight_after_the_grace_raise_a_lost_connection() -> None:
    """Their events may have been accepted, and no caller sees a cancellation."""

    async def main() -> None:
        async with pair(hang) as (server, client):
            sends = start_sends(client, 10)
            await until(lambda: server.in_flight == 10)
            await client.aclose(grace=0.05)
            assert all(send.done() for send in sends)
            for send in sends:
                error = await failure_of(send)
                assert type(error) is ConnectionLostError
                assert error.maybe_accepted
                assert error.attempts == 1
                assert send.cancelling() == 0
            await until(lambda: not server.open)

    run(main())


def test_events_of_sends_still_connecting_after_the_grace_are_not_accepted() -> None:
    async def main() -> None:
        with contextlib.closing(bound_socket()) as sock:
            sock.listen()  # the kernel accepts the connection, and no TLS follows
            client = client_of(url_of(sock, "https"))
            sends = start_sends(client, 5)
            await until(lambda: client.stats.in_flight == 5)
            await client.aclose(grace=0.05)
            for send in sends:
                error = await failure_of(send)
                assert type(error) is ConnectionLostError
                assert not error.maybe_accepted

    run(main())


async def _blocked_by_the_rate_limit(server: Server) -> AsyncLoopsClient:
    client = client_of(server, rate_limit=RateLimiter(1, 600), deadline=None)
    start_sends(client)
    await until(lambda: server.in_flight)
    return client


async def _blocked_by_the_connections(server: Server) -> AsyncLoopsClient:
    client = client_of(server, max_connections=1)
    start_sends(client)
    await until(lambda: server.in_flight)
    return client


async def _blocked_by_the_breaker(server: Server) -> AsyncLoopsClient:
    server.handler = respond(503)
    client = client_of(server)
    start_sends(client, 5)
    await until(lambda: client.stats.outage)
    server.handler = hang
    return client


@pytest.mark.parametrize(
    "block",
    [_blocked_by_the_rate_limit, _blocked_by_the_connections, _blocked_by_the_breaker],
)
def test_a_waiting_send_raises_client_closed_before_the_grace_begins(
    block: Any,
) -> None:
    """Its event is never sent."""

    async def main() -> None:
        async with serving(hang) as server:
            client = await block(server)
            others = [task for task in tasks_left() if task.get_name() == "send"]
            before = client.stats.waiting
            waiting = start_sends(client, 20)
            await until(lambda: client.stats.waiting == before + 20)
            requests = len(server.requests)
            closing = asyncio.create_task(client.aclose(grace=0.5))
            for send in waiting:
                error = await failure_of(send)
                assert type(error) is ClientClosedError
                assert error.attempts == 0
                assert not error.maybe_accepted
            if server.in_flight:
                assert not closing.done()
                await advance(0.51)
            await closing
            assert len(server.requests) == requests
            assert not any(task.cancelled() for task in others)
            await results_of(others)
            assert not tasks_left()

    run_frozen(main())


def test_a_send_between_two_attempts_raises_client_closed_at_once() -> None:
    """The error shows whether the earlier attempt may have been accepted."""

    async def main() -> None:
        for status, maybe in ((503, True), (429, False)):
            attempts: list[Attempt] = []
            async with pair(
                respond(status, headers={"Retry-After": "50"}),
                on_attempt=attempts.append,
            ) as (_, client):
                sends = start_sends(client, 3)
                await until(lambda: len(attempts) == 3)  # noqa: B023
                await client.aclose()  # the time does not move
                for send in sends:
                    error = await failure_of(send)
                    assert type(error) is ClientClosedError
                    assert error.attempts == 1
                    assert error.maybe_accepted is maybe

    run_frozen(main())


def test_a_send_started_within_the_grace_raises_client_closed() -> None:
    async def main() -> None:
        async with pair(hang) as (server, client):
            (send,) = start_sends(client)
            await until(lambda: server.in_flight)
            closing = asyncio.create_task(client.aclose(grace=0.2))
            await advance(0.05)
            error = await failure_of(client.send_event("signup", user_id="late"))
            assert type(error) is ClientClosedError
            assert not closing.done()
            await advance(0.2)
            await closing
            assert type(await failure_of(send)) is ConnectionLostError
            assert len(server.requests) == 1

    run_frozen(main())


def test_a_permit_granted_in_the_turn_of_closing_is_not_used() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FrozenLoop)
        limiter = RateLimiter(1, 0.2, clock=loop.time)
        async with pair(respond(), rate_limit=limiter) as (server, client):
            await client.send_event("signup", user_id="u1")
            (send,) = start_sends(client)

            async def close() -> None:
                await asyncio.sleep(0.1)
                await client.aclose()

            closing = asyncio.create_task(close())
            await settle()
            assert client.stats.waiting == 1
            loop.now += 0.4  # both are due in one turn: first aclose(), then the permit
            await closing
            error = await failure_of(send)
            assert type(error) is ClientClosedError
            assert not error.maybe_accepted
            assert error.attempts == 0
            assert len(server.requests) == 1

    run_frozen(main())


def test_a_send_that_waits_for_its_api_key_raises_client_closed_at_once() -> None:
    """Closing does not wait for it, and nothing is sent."""

    async def main() -> None:
        async def key() -> str:
            await asyncio.sleep(0.2)
            return KEY

        async with pair(respond(), api_key=key) as (server, client):
            (send,) = start_sends(client)
            await settle()
            await client.aclose(grace=0.05)  # the time does not move
            error = await failure_of(send)
            assert type(error) is ClientClosedError
            assert error.attempts == 0
            assert not error.maybe_accepted
            assert not server.requests

    run_frozen(main())


async def _close_amid(seed: int) -> set[str]:
    """Close while 50 sends are at all stages; return the kinds of results."""
    rng = random.Random(seed)

    async def handler(connection: Connection) -> None:
        chance = rng.random()
        if chance < 0.2:
            await hang(connection)
        elif chance < 0.3:
            await respond(503)(connection)
        elif chance < 0.4:
            connection.close()
        else:
            await respond(
                delay=lambda: rng.random() * 0.03,
                body_delay=lambda: rng.choice([0, 0.01]),
            )(connection)

    kind = seed % 3
    settings: dict[str, Any] = {"max_connections": 8}
    if kind == 1:
        settings["rate_limit"] = RateLimiter(10, 0.02)
    if kind == 2:
        settings = {}
    async with pair(handler, **settings) as (server, client):
        sends: list[asyncio.Task[Receipt]] = []

        async def start_all() -> None:
            for n in range(50):
                await asyncio.sleep(rng.random() * 0.002)
                sends.extend(start_sends(client, idempotency_key=f"k{n}"))

        starting = asyncio.create_task(start_all())
        await asyncio.sleep(rng.random() * 0.12)
        await client.aclose(grace=rng.choice([0, 0.01, 0.05]))
        await starting
        results: list[SendResult] = await results_of(sends)
        await until(lambda: not server.open)
        for send, result in zip(sends, results, strict=True):
            assert send.cancelling() == 0
            if isinstance(result, Receipt):
                continue
            assert isinstance(result, LoopsError)
            assert type(result) in (ClientClosedError, ConnectionLostError), result
            if result.idempotency_key in server.keys:
                assert result.attempts >= 1
            elif result.maybe_accepted:
                # The connection was cut before the server read the request.
                assert type(result) is ConnectionLostError
        assert not tasks_left()
        return {type(result).__name__ for result in results}


def test_closing_amid_50_sends_at_all_stages_cancels_no_send() -> None:
    """Each send ends with a receipt, ClientClosedError or ConnectionLostError."""
    kinds = set()
    for seed in range(30):
        kinds |= run(_close_amid(seed))
    assert kinds == {"Receipt", "ClientClosedError", "ConnectionLostError"}


@pytest.mark.soak
def test_closing_at_300_other_moments_cancels_no_send() -> None:
    for seed in range(1000, 1300):
        asyncio.run(_close_amid(seed))


_DEBUG = """
import asyncio, gc, math, warnings
from loops_async import AsyncLoopsClient, LoopsError

async def main():
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = 60.0
    async with AsyncLoopsClient(rate_limit=math.inf, max_connections=5) as client:
        async def send(n):
            return await client.send_event("signup", email=f"u{n}@b.co", deadline=0.5)
        await asyncio.gather(*[send(n) for n in range(50)], return_exceptions=True)
        tasks = [asyncio.create_task(send(n)) for n in range(50)]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        rest = [asyncio.create_task(send(n)) for n in range(20)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*rest, return_exceptions=True)
    assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()

asyncio.run(main(), debug=True)
gc.collect()
print("done")
"""


def test_debug_mode_reports_nothing_about_deadlines_cancellations_and_faults() -> None:
    faults = {"503": 0.1, "close-before": 0.1, "garbage-after": 0.1, "hang-after": 0.1}
    with sandbox_in_thread(faults=faults, seed=1, latency=(0.0, 0.02)) as sandbox:
        code, out, err = run_script(_DEBUG, sandbox, *STRICT)
    outage = ("attempts in a row", "sending resumes")
    assert [
        line for line in err.splitlines() if not any(text in line for text in outage)
    ] == []
    assert (code, out.strip()) == (0, "done")


def test_a_client_leaves_no_task_between_sends_and_after_closing() -> None:
    async def main() -> None:
        async with pair(respond()) as (_, client):
            for _ in range(3):
                await asyncio.gather(*start_sends(client, 20))
                assert not tasks_left()
            await client.aclose()
            assert not tasks_left()

    run(main())


def test_50_clients_leave_no_descriptor_open_however_they_are_closed() -> None:
    """They are closed when idle, with sends in flight, or by the event loop's end."""
    kept = []

    async def round_of(n: int) -> None:
        async with pair(respond()) as (server, client):
            kept.append(client)
            await asyncio.gather(*start_sends(client, 10))
            if n % 3 == 1:
                server.handler = hang
                sends = start_sends(client, 10)
                await until(lambda: server.in_flight == 10)
                await client.aclose(grace=0)
                await results_of(sends)
            elif n % 3 == 2:
                await client.aclose()

    asyncio.run(round_of(1))
    gc.collect()
    before = descriptors()
    counts = []
    for n in range(50):
        asyncio.run(round_of(n))
        counts.append(descriptors())
    assert set(counts) == {before}
