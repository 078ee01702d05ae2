"""Cancelling sends: what they held is free again, and nobody else notices."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import attrs
import pytest
from support.answering import (
    KEY,
    Server,
    answer,
    bound,
    drip_body,
    failure,
    hang,
    outcomes,
    serving,
    start,
    until,
    url_of,
)

from loops_async import (
    AsyncLoopsClient,
    DeadlineExceededError,
    LoopsError,
    RateLimiter,
    RequestTimeoutError,
    RetryPolicy,
)
from loops_async._client import Receipt

CONNECTIONS = 8


def client_of(url: str, **settings: Any) -> AsyncLoopsClient:
    return AsyncLoopsClient(
        **{"api_key": KEY, "base_url": url, "rate_limit": math.inf, **settings}
    )


@asynccontextmanager
async def pair(treat: Any, **settings: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A server and a client of it, closed without a grace."""
    async with serving(treat) as server:
        client = client_of(server.url, **settings)
        try:
            yield server, client
        finally:
            await client.aclose(grace=0)


def sends_left() -> list[str]:
    return [
        repr(task)
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and task.get_name() != "server"
    ]


async def storm(
    client: AsyncLoopsClient, count: int, seed: int, longest: float
) -> tuple[int, int]:
    """Start many sends and cancel nine in ten, at any stage.

    Returns:
        How many were cancelled, and how many were let through.
    """
    rng = random.Random(seed)
    ended = {"cancelled": 0, "accepted": 0}

    async def cancel_one() -> None:
        (send,) = start(client)
        spared = rng.random() < 0.1
        if not spared and rng.random() < 0.5:  # before admission, while connecting
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
        elif not spared:  # in line, at the server, while reading
            await asyncio.sleep(rng.random() * longest)
        asked = not spared and send.cancel()
        await asyncio.wait([send])
        assert send.cancelled() is asked, send
        if not asked:
            assert isinstance(send.result(), Receipt)
        ended["cancelled" if asked else "accepted"] += 1

    async def cancel_many() -> None:
        while ended["cancelled"] < count:
            await cancel_one()

    await asyncio.gather(*[cancel_many() for _ in range(5 * CONNECTIONS)])
    return ended["cancelled"], ended["accepted"]


async def all_go_at_once(client: AsyncLoopsClient, server: Server) -> None:
    """Assert that as many sends as there are connections are under way together."""
    release = asyncio.Event()
    usual = server.treat

    async def hold(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await answer()(writer)

    server.treat = hold
    sends = start(client, CONNECTIONS)
    await until(lambda: server.under_way == CONNECTIONS)
    assert len(server.open) == CONNECTIONS
    release.set()
    assert [type(outcome) for outcome in await outcomes(sends)] == (
        [Receipt] * CONNECTIONS
    )
    server.treat = usual


async def no_slot_or_connection_leaks(count: int, seed: int) -> None:
    rng = random.Random(seed)
    treat = answer(
        delay=lambda: rng.random() * 0.004,
        body_delay=lambda: rng.choice([0, 0, rng.random() * 0.004]),
    )
    async with pair(treat, max_connections=CONNECTIONS) as (server, client):
        cancelled, accepted = await storm(client, count, seed, longest=0.03)
        assert cancelled >= count
        assert accepted > 0
        # Some had reached the server and some had not, and connections broke.
        assert accepted < len(server.arrivals) < cancelled + accepted
        assert server.opened > 2 * CONNECTIONS
        assert not sends_left()
        await all_go_at_once(client, server)
        await client.aclose()
        await until(lambda: not server.open)


def test_500_cancellations_leak_no_slot_and_no_connection() -> None:
    """A cancelled send shows as cancelled, the others never notice, all is free."""
    asyncio.run(no_slot_or_connection_leaks(500, 1))


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_8000_cancellations_leak_no_slot_and_no_connection(seed: int) -> None:
    """The same, as often as the project promises."""
    asyncio.run(no_slot_or_connection_leaks(8000, seed))


async def all_permits_return(count: int, seed: int) -> None:
    rng = random.Random(seed)
    limiter = RateLimiter(20, 0.2)
    treat = answer(delay=lambda: rng.random() * 0.02)
    async with pair(treat, rate_limit=limiter, max_connections=CONNECTIONS) as (
        server,
        client,
    ):
        await storm(client, count, seed, longest=0.3)
        assert not sends_left()
        await asyncio.sleep(limiter.period + 0.01)
        assert "20 free, 0 under way, 0 coming back, 0 waiting" in repr(limiter)
        await all_go_at_once(client, server)


def test_every_permit_is_back_a_period_after_the_last_cancellation() -> None:
    """No permit is lost with a cancelled send, at whatever stage it was."""
    asyncio.run(all_permits_return(300, 4))


@pytest.mark.soak
def test_every_permit_is_back_after_8000_cancellations() -> None:
    """The same, as often as the project promises."""
    asyncio.run(all_permits_return(8000, 5))


@attrs.frozen
class Stage:
    """Where a send is when it is cancelled.

    Attributes:
        treat: What the server does meanwhile.
        permit: What has become of its permit, as the limiter's repr has it.
        requests: How many requests the server has seen of it.
        settings: Of the client.
    """

    treat: Any = hang
    permit: str = "5 free, 0 under way, 0 coming back"
    requests: int = 0
    settings: Any = attrs.Factory(dict)


async def _slow_key() -> str:
    await asyncio.sleep(3600)
    return KEY


SENT = "4 free, 0 under way, 1 coming back"
STAGES = {
    "asking for the key": Stage(settings={"api_key": _slow_key}),
    "waiting for the answer": Stage(permit=SENT, requests=1),
    "reading the answer": Stage(treat=drip_body, permit=SENT, requests=1),
    "between two attempts": Stage(
        treat=answer(503, "Retry-After: 50"), permit=SENT, requests=1
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_cancelled_send_gives_back_what_it_held(name: str) -> None:
    """A permit comes back at once if nothing was sent, else after a period."""
    stage = STAGES[name]

    async def main() -> None:
        limiter = RateLimiter(5, 600)
        async with pair(stage.treat, rate_limit=limiter, **stage.settings) as (
            server,
            client,
        ):
            (send,) = start(client)
            if stage.requests:
                await until(lambda: len(server.arrivals) == stage.requests)
            await asyncio.sleep(0.05)
            assert send.cancel()
            await asyncio.wait([send])
            assert send.cancelled()
            assert stage.permit in repr(limiter)
            assert "0 waiting" in repr(limiter)
            assert not sends_left()
            assert len(server.arrivals) == stage.requests

    asyncio.run(main())


def test_a_send_cancelled_while_connecting_gives_its_permit_back() -> None:
    """It had a permit and a slot, but nothing was sent.

    What the server may have counted cannot be told from here, so the permit
    takes its period all the same.
    """

    async def main() -> None:
        limiter = RateLimiter(1, 0.1)
        with closing(bound()) as sock:
            sock.listen()  # the kernel accepts, nobody shakes hands
            client = client_of(
                url_of(sock, "https"), rate_limit=limiter, max_connections=1
            )
            for _ in range(3):
                (send,) = start(client)
                await until(lambda: "1 under way" in repr(limiter))
                await asyncio.sleep(0.02)
                assert send.cancel()
                await asyncio.wait([send])
                assert send.cancelled()
            await client.aclose()
            assert not sends_left()

    asyncio.run(main())


def test_sends_cancelled_in_line_leave_it_to_the_others() -> None:
    """Those behind them are served in order, without a pause."""

    async def main() -> None:
        for settings in (
            {"max_connections": 1},
            {"rate_limit": RateLimiter(1, 0.01)},
        ):
            async with pair(hang, **settings) as (server, client):
                first, *others = start(client, 20)
                await until(lambda: server.under_way)
                for send in others[::2]:
                    assert send.cancel()
                await asyncio.sleep(0)
                server.treat = answer()
                assert first.cancel()
                ended = await outcomes([first, *others])
                kinds = [type(outcome) for outcome in ended]
                assert kinds[0] is asyncio.CancelledError
                assert kinds[1::2] == [asyncio.CancelledError] * 10
                assert kinds[2::2] == [Receipt] * 9
                assert len(server.arrivals) == 1 + 9

    asyncio.run(main())


def test_a_send_cancelled_before_it_ran_does_nothing() -> None:
    """It takes no permit and makes no request."""

    async def main() -> None:
        limiter = RateLimiter(5, 600)
        async with pair(answer(), rate_limit=limiter) as (server, client):
            sends = start(client, 20)
            for send in sends:
                assert send.cancel()
            await asyncio.wait(sends)
            assert all(send.cancelled() for send in sends)
            assert "5 free, 0 under way" in repr(limiter)
            assert not server.arrivals

    asyncio.run(main())


def observed(
    send: Any,
) -> tuple[asyncio.Task[None], dict[str, Any]]:
    """Run a send, noting how it ended and what its task knows of cancellations."""
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
        await asyncio.sleep(0)  # a cancellation left behind would strike here

    return asyncio.create_task(observe()), seen


RACES: dict[str, tuple[dict[str, Any], type[LoopsError]]] = {
    "the time-out of an attempt": (
        {"timeout": 0.02, "retry": RetryPolicy(attempts=1)},
        RequestTimeoutError,
    ),
    "the usual time-out of attempts": (
        {"timeout": 0.02, "deadline": None, "retry": RetryPolicy(attempts=1)},
        RequestTimeoutError,
    ),
    "the deadline during an attempt": ({"deadline": 0.02}, DeadlineExceededError),
    "the deadline in line": (
        {"deadline": 0.02, "max_connections": 1},
        DeadlineExceededError,
    ),
}


@pytest.mark.parametrize("name", RACES)
def test_a_cancellation_that_races_with_our_own_end_is_never_lost(name: str) -> None:
    """Both due in one turn of the loop: cancelled if it was still possible.

    The task's count of cancellations then is 1, and 0 where only our own
    end struck: nobody outside sees how a time-out works.
    """
    settings, kind = RACES[name]

    async def main() -> set[str]:
        loop = asyncio.get_running_loop()
        met = set()
        async with pair(hang, **settings) as (server, client):
            if name == "the deadline in line":
                start(client, deadline=None, timeout=None)
                await until(lambda: server.under_way)
            for n in range(45):
                task, seen = observed(client.send_event("signup", user_id="u1"))

                def cancel(
                    task: asyncio.Task[None] = task, seen: dict[str, Any] = seen
                ) -> None:
                    if not seen:  # else it ended before
                        seen["asked"] = task.cancel()

                if n % 3 == 0:  # falls due before our own timer
                    loop.call_later(0.019, cancel)
                await asyncio.sleep(0.01)
                if n % 3 == 1:  # after it, but in the same turn
                    loop.call_later(0.0125, cancel)
                if n % 3 != 2:
                    time.sleep(0.015)  # noqa: ASYNC251 - makes both due at once
                else:
                    loop.call_later(0.009 + 0.00005 * n, cancel)
                await asyncio.wait([task])
                if "asked" in seen:
                    assert task.cancelled()
                    assert seen == {"asked": True, "cancelling": 1}
                    met.add("cancelled")
                else:
                    assert type(seen["error"]) is kind
                    assert seen["cancelling"] == 0
                    met.add("ended")
        return met

    assert "cancelled" in asyncio.run(main())


def test_a_cancellation_that_races_with_the_closing_is_never_lost() -> None:
    """Whichever came first, the canceller gets his cancelled task."""

    async def main() -> None:
        for cancel_first in (True, False):
            async with serving(hang) as server:
                client = client_of(server.url)
                tasks = [
                    observed(client.send_event("signup", user_id=f"u{n}"))
                    for n in range(10)
                ]
                await until(lambda: server.under_way == 10)
                if cancel_first:
                    for task, _ in tasks[:5]:
                        task.cancel()
                closing_it = asyncio.create_task(client.aclose(grace=0))
                if not cancel_first:  # but when our own cut is on its way
                    while not tasks[0][0].cancelling():  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    for task, _ in tasks[:5]:
                        assert task.cancel()
                await closing_it
                await asyncio.wait([task for task, _ in tasks])
                for task, seen in tasks[:5]:
                    assert task.cancelled()
                    assert seen == {"cancelling": 1}
                for task, seen in tasks[5:]:
                    assert not task.cancelled()
                    assert type(seen["error"]).__name__ == "ConnectionLostError"
                    assert seen["cancelling"] == 0

    asyncio.run(main())


def test_a_timeout_around_a_send_works() -> None:
    """asyncio.timeout ends it from outside, also in the very turn of our own."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        policy = RetryPolicy(attempts=1)
        async with pair(hang, retry=policy) as (_, client):
            for limit, own in ((0.01, 30.0), (0.02, 0.02), (0.02, 0.0199)):
                for _ in range(10):
                    with pytest.raises(TimeoutError) as caught:
                        async with asyncio.timeout(limit):
                            await client.send_event("signup", user_id="u1", timeout=own)
                    if own == 30:
                        assert not isinstance(caught.value, LoopsError)
                    assert task.cancelling() == 0
                    await asyncio.sleep(0)

    asyncio.run(main())


def test_a_shielded_send_outlives_its_caller() -> None:
    """The caller may be cancelled; the event is sent all the same."""

    async def main() -> None:
        async with pair(answer(delay=lambda: 0.05)) as (server, client):
            (send,) = start(client)

            async def caller() -> Receipt:
                return await asyncio.shield(send)

            task = asyncio.create_task(caller())
            await until(lambda: server.under_way)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert (await send).attempts == 1

    asyncio.run(main())


def test_a_task_group_cancels_its_sends_and_only_those() -> None:
    """One child fails: the group's sends end, those of others do not."""

    async def main() -> None:
        async with pair(hang) as (server, client):
            (other,) = start(client)

            async def fail() -> None:
                await until(lambda: server.under_way == 6)
                raise LookupError

            async def in_a_group() -> None:
                async with asyncio.TaskGroup() as group:
                    for n in range(5):
                        group.create_task(client.send_event("signup", user_id=f"g{n}"))
                    group.create_task(fail())

            with pytest.raises(ExceptionGroup) as caught:
                await in_a_group()
            assert [type(error) for error in caught.value.exceptions] == [LookupError]
            await until(lambda: server.under_way == 1)
            assert not other.done()
            other.cancel()
            await asyncio.wait([other])

    asyncio.run(main())


def test_a_time_out_in_a_task_group_is_no_cancellation() -> None:
    """A child that handles our error lets the group and its siblings live."""

    async def main() -> None:
        policy = RetryPolicy(attempts=1)
        async with pair(hang, timeout=0.02, retry=policy) as (_, client):
            async with asyncio.TaskGroup() as group:
                children = [
                    group.create_task(
                        failure(client.send_event("signup", user_id=f"u{n}"))
                    )
                    for n in range(10)
                ]
            assert {type(child.result()) for child in children} == {RequestTimeoutError}

    asyncio.run(main())


def test_cancelling_the_last_waiter_wakes_nobody_later() -> None:
    """No timer and no future of a cancelled send complains afterwards."""

    async def main() -> None:
        complaints: list[dict[str, Any]] = []
        handler: Callable[..., None] = lambda _, context: complaints.append(context)  # noqa: E731
        asyncio.get_running_loop().set_exception_handler(handler)
        limiter = RateLimiter(1, 0.05)
        async with pair(hang, rate_limit=limiter) as (server, client):
            sends = start(client, 10)
            await until(lambda: server.under_way)
            for send in sends:
                send.cancel()
            await asyncio.wait(sends)
            await asyncio.sleep(0.15)
            assert "1 free, 0 under way, 0 coming back, 0 waiting" in repr(limiter)
        assert not complaints

    asyncio.run(main())
