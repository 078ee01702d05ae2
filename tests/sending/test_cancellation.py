"""Cancelled sends: they release what they held, and no other send is affected."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import attrs
import pytest
from support.clients import (
    KEY,
    cancel,
    client_of,
    client_without_grace,
    failure_of,
    results_of,
    start_sends,
)
from support.http_server import (
    Handler,
    Server,
    bound_socket,
    drip_body,
    hang,
    respond,
    respond_after,
    serving,
    url_of,
)
from support.virtual_time import FrozenLoop, advance, run_frozen, settle
from support.waiting import run, until

from loops_async import (
    AsyncLoopsClient,
    Attempt,
    DeadlineExceededError,
    LoopsError,
    RateLimiter,
    Receipt,
    RequestTimeoutError,
    RetryPolicy,
)

CONNECTIONS = 8


@asynccontextmanager
async def pair(
    handler: Handler, **settings: Any
) -> AsyncIterator[tuple[Server, AsyncLoopsClient]]:
    """Run a server and a client of it, which is closed without grace."""
    async with (
        serving(handler) as server,
        client_without_grace(server, **settings) as client,
    ):
        yield server, client


def tasks_left() -> list[str]:
    return [
        repr(task)
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and task.get_name() != "server"
    ]


async def storm(
    client: AsyncLoopsClient, count: int, seed: int, longest: float
) -> tuple[int, int]:
    """Start many sends and cancel nine in ten of them, at any stage.

    Args:
        client: The client of the sends.
        count: The number of sends to cancel.
        seed: The seed of the random stages.
        longest: The longest time in seconds before a cancellation.

    Returns:
        The number of sends that were cancelled, and of those that were accepted.
    """
    rng = random.Random(seed)
    counts = {"cancelled": 0, "accepted": 0}

    async def send_one() -> None:
        (send,) = start_sends(client)
        spared = rng.random() < 0.1
        if not spared and rng.random() < 0.5:  # before admission or while connecting
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
        elif not spared:  # while waiting, at the server or while reading
            await asyncio.sleep(rng.random() * longest)
        cancelled = not spared and send.cancel()
        await asyncio.wait([send])
        assert send.cancelled() is cancelled, send
        if not cancelled:
            assert isinstance(send.result(), Receipt)
        counts["cancelled" if cancelled else "accepted"] += 1

    async def send_many() -> None:
        while counts["cancelled"] < count:
            await send_one()

    await asyncio.gather(*[send_many() for _ in range(5 * CONNECTIONS)])
    return counts["cancelled"], counts["accepted"]


async def assert_all_connections_are_free(
    client: AsyncLoopsClient, server: Server
) -> None:
    """Check that as many sends as there are connections are in flight together."""
    ready = asyncio.Event()
    server.handler = respond_after(ready)
    sends = start_sends(client, CONNECTIONS)
    await until(lambda: server.in_flight == CONNECTIONS)
    assert len(server.open) == CONNECTIONS
    ready.set()
    results = await results_of(sends)
    assert [type(result) for result in results] == [Receipt] * CONNECTIONS


async def assert_no_leak(count: int, seed: int) -> None:
    rng = random.Random(seed)
    handler = respond(
        delay=lambda: rng.random() * 0.004,
        body_delay=lambda: rng.choice([0, 0, rng.random() * 0.004]),
    )
    async with pair(handler, max_connections=CONNECTIONS) as (server, client):
        cancelled, accepted = await storm(client, count, seed, longest=0.03)
        assert cancelled >= count
        assert accepted > 0
        # Some cancelled sends had reached the server, and some had not.
        assert accepted < len(server.requests) < cancelled + accepted
        assert server.connections > 2 * CONNECTIONS
        assert not tasks_left()
        await assert_all_connections_are_free(client, server)
        await client.aclose()
        await until(lambda: not server.open)


def test_500_cancellations_leak_no_permit_and_no_connection() -> None:
    """Each cancelled task is cancelled, and each other send is accepted."""
    run(assert_no_leak(500, 1))


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_8000_cancellations_leak_no_permit_and_no_connection(seed: int) -> None:
    asyncio.run(assert_no_leak(8000, seed))


async def assert_all_permits_return(count: int, seed: int) -> None:
    rng = random.Random(seed)
    limiter = RateLimiter(20, 0.2)
    handler = respond(delay=lambda: rng.random() * 0.02)
    async with pair(handler, rate_limit=limiter, max_connections=CONNECTIONS) as (
        server,
        client,
    ):
        await storm(client, count, seed, longest=0.3)
        assert not tasks_left()
        free = "20 free, 0 in flight, 0 returning, 0 waiting"
        await until(lambda: free in repr(limiter))
        await assert_all_connections_are_free(client, server)


def test_every_permit_is_back_a_period_after_the_last_cancellation() -> None:
    """A cancelled send loses no permit, at whatever stage it was."""
    run(assert_all_permits_return(300, 4))


@pytest.mark.soak
def test_every_permit_is_back_after_8000_cancellations() -> None:
    asyncio.run(assert_all_permits_return(8000, 5))


@attrs.frozen
class Stage:
    """The stage of a send at its cancellation.

    Attributes:
        handler: The behaviour of the server.
        permit: The state of the permits afterwards, as in the limiter's repr.
        requests: The number of requests that reach the server.
        attempts: The number of attempts that have ended.
        settings: Further settings of the client.
    """

    handler: Handler = hang
    permit: str = "5 free, 0 in flight, 0 returning"
    requests: int = 0
    attempts: int = 0
    settings: Any = attrs.Factory(dict)


async def _slow_key() -> str:
    await asyncio.sleep(3600)
    return KEY


SENT = "4 free, 0 in flight, 1 returning"
STAGES = {
    "waiting for the API key": Stage(settings={"api_key": _slow_key}),
    "waiting for the response": Stage(permit=SENT, requests=1),
    "reading the response": Stage(handler=drip_body, permit=SENT, requests=1),
    "between two attempts": Stage(
        handler=respond(503, headers={"Retry-After": "50"}),
        permit=SENT,
        requests=1,
        attempts=1,
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_cancelled_send_releases_what_it_held(name: str) -> None:
    """The permit is free at once if nothing was sent, and otherwise after a period."""
    stage = STAGES[name]

    async def main() -> None:
        limiter = RateLimiter(5, 600)
        attempts: list[Attempt] = []
        settings = {"on_attempt": attempts.append, **stage.settings}
        async with pair(stage.handler, rate_limit=limiter, **settings) as (
            server,
            client,
        ):
            (send,) = start_sends(client)
            await server.arrived(stage.requests)
            await until(lambda: len(attempts) == stage.attempts)
            await settle()
            await cancel(send)
            assert send.cancelled()
            assert stage.permit in repr(limiter)
            assert "0 waiting" in repr(limiter)
            assert not tasks_left()
            assert len(server.requests) == stage.requests

    run(main())


def test_a_send_cancelled_while_connecting_returns_its_permit_after_a_period() -> None:
    """The client cannot know whether the server has counted the request."""

    async def main() -> None:
        limiter = RateLimiter(1, 0.1)
        with closing(bound_socket()) as sock:
            sock.listen()  # the kernel accepts the connection, and no TLS follows
            client = client_of(
                url_of(sock, "https"), rate_limit=limiter, max_connections=1
            )
            for _ in range(3):
                (send,) = start_sends(client)
                await until(lambda: "1 in flight" in repr(limiter))
                await settle()
                await cancel(send)
                assert send.cancelled()
            await client.aclose()
            assert not tasks_left()

    run(main())


def test_sends_cancelled_while_waiting_do_not_hold_the_sends_behind_them() -> None:
    async def main() -> None:
        for settings in (
            {"max_connections": 1},
            {"rate_limit": RateLimiter(1, 0.01)},
        ):
            async with pair(hang, **settings) as (server, client):
                first, *others = start_sends(client, 20)
                await until(lambda: server.in_flight)
                for send in others[::2]:
                    assert send.cancel()
                await asyncio.sleep(0)
                server.handler = respond()
                assert first.cancel()
                results = await results_of([first, *others])
                kinds = [type(result) for result in results]
                assert kinds[0] is asyncio.CancelledError
                assert kinds[1::2] == [asyncio.CancelledError] * 10
                assert kinds[2::2] == [Receipt] * 9
                assert len(server.requests) == 1 + 9

    run(main())


def test_a_send_cancelled_before_it_ran_takes_no_permit_and_sends_nothing() -> None:
    async def main() -> None:
        limiter = RateLimiter(5, 600)
        async with pair(respond(), rate_limit=limiter) as (server, client):
            sends = start_sends(client, 20)
            await cancel(*sends)
            assert all(send.cancelled() for send in sends)
            assert "5 free, 0 in flight" in repr(limiter)
            assert not server.requests

    run(main())


def observed(
    send: Any,
) -> tuple[asyncio.Task[None], dict[str, Any]]:
    """Start a send; return its task and a record of its end and its cancellations."""
    seen: dict[str, Any] = {}

    async def observe() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            seen["receipt"] = await send
        except LoopsError as error:
            seen["error"] = error
        except asyncio.CancelledError:
            seen["cancelling"] = task.cancelling()
            raise
        seen["cancelling"] = task.cancelling()
        await asyncio.sleep(0)  # a cancellation that is still pending is raised here

    return asyncio.create_task(observe()), seen


ONCE = RetryPolicy(attempts=1)
OWN_END = 0.02  # seconds until the send ends by itself
RACES: dict[str, tuple[dict[str, Any], type[LoopsError]]] = {
    "timeout of an attempt": (
        {"timeout": OWN_END, "retry": ONCE},
        RequestTimeoutError,
    ),
    "timeout without a deadline": (
        {"timeout": OWN_END, "deadline": None, "retry": ONCE},
        RequestTimeoutError,
    ),
    "deadline in an attempt": ({"deadline": OWN_END}, DeadlineExceededError),
    "deadline while waiting": (
        {"deadline": OWN_END, "max_connections": 1},
        DeadlineExceededError,
    ),
}


@pytest.mark.parametrize("name", RACES)
def test_a_cancellation_in_the_turn_in_which_the_send_ends_is_never_lost(
    name: str,
) -> None:
    """The task is cancelled if it had not ended before.

    Its count of cancellations is then 1. The count is 0 if only the timeout or
    the deadline ended the send, which no caller can see from outside.
    """
    settings, kind = RACES[name]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with pair(hang, **settings) as (server, client):

            async def started() -> tuple[asyncio.Task[None], dict[str, Any]]:
                count = len(server.requests)
                task, seen = observed(client.send_event("signup", user_id="u1"))
                if name == "deadline while waiting":
                    await until(lambda: client.stats.waiting)
                else:
                    await server.arrived(count + 1)
                return task, seen

            if name == "deadline while waiting":
                start_sends(client, deadline=None, timeout=None)
                await server.arrived()
            for offset in (-0.001, 0.0, 0.001):
                task, seen = await started()
                loop.call_at(loop.time() + OWN_END + offset, task.cancel)
                jump(2 * OWN_END)  # both ends are due in one turn
                await asyncio.wait([task])
                assert task.cancelled()
                assert seen == {"cancelling": 1}
            for turns in range(8):
                task, seen = await started()
                jump(2 * OWN_END)
                for _ in range(turns):
                    await asyncio.sleep(0)
                cancelled = not seen and task.cancel()
                await asyncio.wait([task])
                assert task.cancelled() is cancelled
                if not cancelled:
                    assert type(seen["error"]) is kind
                assert seen["cancelling"] == int(cancelled)
            assert not cancelled

    run_frozen(main())


def jump(seconds: float) -> None:
    """Move the frozen time on in one step, so that its timers expire in one turn."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FrozenLoop)
    loop.now += seconds


def test_a_cancellation_that_races_with_aclose_is_never_lost() -> None:
    """The task is cancelled, whichever of the two comes first."""

    async def main() -> None:
        for cancel_first in (True, False):
            async with serving(hang) as server:
                client = client_of(server)
                tasks = [
                    observed(client.send_event("signup", user_id=f"u{n}"))
                    for n in range(10)
                ]
                await until(lambda: server.in_flight == 10)
                if cancel_first:
                    for task, _ in tasks[:5]:
                        task.cancel()
                closing = asyncio.create_task(client.aclose(grace=0))
                if not cancel_first:  # but when aclose() has begun to end the sends
                    while not tasks[0][0].cancelling():  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    for task, _ in tasks[:5]:
                        assert task.cancel()
                await closing
                await asyncio.wait([task for task, _ in tasks])
                for task, seen in tasks[:5]:
                    assert task.cancelled()
                    assert seen == {"cancelling": 1}
                for task, seen in tasks[5:]:
                    assert not task.cancelled()
                    assert type(seen["error"]).__name__ == "ConnectionLostError"
                    assert seen["cancelling"] == 0

    run(main())


def test_a_timeout_around_a_send_ends_it_from_outside() -> None:
    """This holds also in the turn in which the send's own timeout expires."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with pair(hang, retry=ONCE) as (server, client):

            async def pass_time() -> None:
                await server.arrived(len(server.requests) + 1)
                jump(0.03)

            for limit, own in ((0.01, 30.0), (0.02, 0.02), (0.02, 0.0199)):
                for _ in range(3):
                    passing = asyncio.create_task(pass_time())
                    with pytest.raises(TimeoutError) as caught:
                        async with asyncio.timeout(limit):
                            await client.send_event("signup", user_id="u1", timeout=own)
                    if own == 30:
                        assert not isinstance(caught.value, LoopsError)
                    assert task.cancelling() == 0
                    await passing

    run_frozen(main())


def test_a_shielded_send_continues_after_its_caller_is_cancelled() -> None:
    async def main() -> None:
        ready = asyncio.Event()
        async with pair(respond_after(ready)) as (server, client):
            (send,) = start_sends(client)

            async def caller() -> Receipt:
                return await asyncio.shield(send)

            task = asyncio.create_task(caller())
            await until(lambda: server.in_flight)
            await cancel(task)
            assert task.cancelled()
            ready.set()
            assert (await send).attempts == 1

    run(main())


def test_a_task_group_whose_child_fails_cancels_only_its_own_sends() -> None:
    async def main() -> None:
        async with pair(hang) as (server, client):
            (other,) = start_sends(client)

            async def fail() -> None:
                await until(lambda: server.in_flight == 6)
                raise LookupError

            async def in_a_group() -> None:
                async with asyncio.TaskGroup() as group:
                    for n in range(5):
                        group.create_task(client.send_event("signup", user_id=f"g{n}"))
                    group.create_task(fail())

            with pytest.raises(ExceptionGroup) as caught:
                await in_a_group()
            assert [type(error) for error in caught.value.exceptions] == [LookupError]
            await until(lambda: server.in_flight == 1)
            assert not other.done()
            await cancel(other)

    run(main())


def test_a_timeout_in_a_task_group_does_not_cancel_the_group() -> None:
    """A child that handles the error leaves its siblings alone."""

    async def main() -> None:
        async with pair(hang, timeout=0.02, retry=ONCE) as (server, client):
            async with asyncio.TaskGroup() as group:
                children = [
                    group.create_task(
                        failure_of(client.send_event("signup", user_id=f"u{n}"))
                    )
                    for n in range(10)
                ]
                await server.arrived(10)
                await advance(0.03)
            assert {type(child.result()) for child in children} == {RequestTimeoutError}

    run_frozen(main())


def test_the_timers_of_cancelled_sends_cause_no_error_later() -> None:
    async def main() -> None:
        contexts: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: contexts.append(context)
        )
        limiter = RateLimiter(1, 0.05)
        async with pair(hang, rate_limit=limiter) as (server, client):
            sends = start_sends(client, 10)
            await server.arrived()
            await cancel(*sends)
            free = "1 free, 0 in flight, 0 returning, 0 waiting"
            await until(lambda: free in repr(limiter))
        assert not contexts

    run(main())
