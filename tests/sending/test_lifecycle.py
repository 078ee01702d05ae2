"""The life of a client: loops come and go, it closes, and nothing is left."""

import asyncio
import gc
import math
import random
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from support.answering import (
    KEY,
    Outcome,
    Server,
    answer,
    bound,
    failure,
    hang,
    outcomes,
    run_script,
    sandbox_beside,
    serving,
    start,
    until,
    url_of,
)

from loops_async import (
    AsyncLoopsClient,
    ClientClosedError,
    ConnectionLostError,
    LoopsError,
    RateLimiter,
)
from loops_async._client import Receipt

_STRICT = ("-X", "dev", "-W", "error")


def client_of(url: str, **settings: Any) -> AsyncLoopsClient:
    return AsyncLoopsClient(
        **{"api_key": KEY, "base_url": url, "rate_limit": math.inf, **settings}
    )


@asynccontextmanager
async def pair(treat: Any, **settings: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A server and a client of it; the test closes the client."""
    async with serving(treat) as server:
        yield server, client_of(server.url, **settings)


def tasks_left() -> list[asyncio.Task[Any]]:
    return [
        task
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and task.get_name() != "server"
    ]


def descriptors() -> int:
    """How many are open, where that can be told."""
    fds = Path("/proc/self/fd")
    return len(list(fds.iterdir())) if fds.exists() else 0


_MANY_RUNS = """
import asyncio, gc, math
from loops_async import AsyncLoopsClient
{factory}
client = AsyncLoopsClient(rate_limit=math.inf)

async def main(n):
    asyncio.get_running_loop().slow_callback_duration = 60.0
    sends = [client.send_event("signup", email=f"u{{n}}@b.co") for _ in range(3)]
    for receipt in await asyncio.gather(*sends):
        assert receipt.attempts == 1, receipt
    assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()

for n in range(100):
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(n))
    if n % 10 == 0:
        gc.collect()
del client
gc.collect()
print("done")
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_one_client_serves_a_hundred_loops_in_turn(loop: str) -> None:
    """100 times asyncio.run, all warnings errors: it need not even be closed."""
    factory = "factory = None"
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
        factory = "import uvloop; factory = uvloop.new_event_loop"
    with sandbox_beside() as sandbox:
        code, out, err = run_script(
            _MANY_RUNS.format(factory=factory), sandbox, *_STRICT
        )
    assert err == ""
    assert (code, out.strip()) == (0, "done")
    assert sandbox.counts.accepted == 300


def test_a_loop_may_be_closed_without_its_shutdown() -> None:
    """The client works on in the next loop, and what was left is collected."""
    # What a loop did not shut down warns when collected; that is its owner's.
    with sandbox_beside() as sandbox, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        client = client_of(sandbox.url)
        before = descriptors()
        for n in range(5):
            loop = asyncio.new_event_loop()
            receipt = loop.run_until_complete(
                client.send_event("signup", email=f"u{n}@b.co")
            )
            assert receipt.attempts == 1
            loop.close()
        asyncio.run(client.test_api_key())
        del loop
        gc.collect()
        # The sandbox has ends of its own to close, in its own time.
        for _ in range(1000):
            if descriptors() == before:
                break
            time.sleep(0.01)
        assert descriptors() == before
        asyncio.run(client.aclose())


def test_a_loop_may_be_left_and_come_back_to() -> None:
    """Two loops in turn in one thread: each keeps its own connections."""
    with sandbox_beside() as sandbox:
        client = client_of(sandbox.url)
        with asyncio.Runner() as one, asyncio.Runner() as two:
            for n in range(6):
                runner = (one, two)[n % 2]
                receipt = runner.run(client.send_event("signup", email=f"u{n}@b.co"))
                assert receipt.attempts == 1
            one.run(client.aclose())
            with pytest.raises(ClientClosedError):
                two.run(client.send_event("signup", email="u9@b.co"))
            two.run(client.aclose())


def test_two_threads_use_one_client_at_the_same_time() -> None:
    """Their loops share the limiter and nothing else."""
    limiter = RateLimiter(20, 0.1)
    barrier = threading.Barrier(2)
    kinds: list[Any] = []

    def run(client: AsyncLoopsClient, who: str) -> None:
        async def main() -> None:
            await asyncio.to_thread(barrier.wait)
            sends = [
                client.send_event("signup", email=f"{who}{n}@b.co") for n in range(100)
            ]
            kinds.extend(await asyncio.gather(*sends, return_exceptions=True))

        asyncio.run(main())

    with sandbox_beside(rate_limit=20, period=0.1) as sandbox:
        client = client_of(sandbox.url, rate_limit=limiter)
        threads = [threading.Thread(target=run, args=(client, who)) for who in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [type(kind) for kind in kinds] == [Receipt] * 200
        assert {receipt.attempts for receipt in kinds} == {1}
        assert sandbox.counts.limited == 0
        asyncio.run(client.aclose())


def test_many_threads_open_and_leave_loops_at_random() -> None:
    """However their loops come and go, no send of another thread breaks."""
    failures: list[BaseException] = []

    def run(client: AsyncLoopsClient, who: int) -> None:
        try:
            for n in range(15):
                asyncio.run(client.send_event("signup", email=f"u{n}.{who}@b.co"))
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with sandbox_beside() as sandbox:
            client = client_of(sandbox.url)
            threads = [
                threading.Thread(target=run, args=(client, who)) for who in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert not failures
            assert sandbox.counts.accepted == 8 * 15
    finally:
        sys.setswitchinterval(interval)


class _SlowToTell(asyncio.SelectorEventLoop):
    """Lets other threads run while it is asked whether it is closed."""

    def is_closed(self) -> bool:
        closed = super().is_closed()
        if closed:
            time.sleep(0.1)
        return closed


def test_two_threads_forget_the_same_closed_loop() -> None:
    """Both find it dead and clear it away; neither send fails of that."""
    barrier = threading.Barrier(2)
    kinds: list[Any] = []

    def run(client: AsyncLoopsClient, who: str) -> None:
        async def main() -> None:
            await asyncio.to_thread(barrier.wait)
            send = client.send_event("signup", email=f"{who}@b.co")
            kinds.extend(await asyncio.gather(send, return_exceptions=True))

        asyncio.run(main())

    with sandbox_beside() as sandbox:
        client = client_of(sandbox.url)
        with asyncio.Runner(loop_factory=_SlowToTell) as runner:
            runner.run(client.test_api_key())
        threads = [threading.Thread(target=run, args=(client, who)) for who in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [type(kind) for kind in kinds] == [Receipt] * 2


def test_a_client_dropped_in_a_running_loop_warns_once_and_lets_go() -> None:
    """One ResourceWarning says what was left open; the connections still close."""

    async def main() -> None:
        for _ in range(3):  # what others left, and what that held, warns before
            gc.collect()
        # With no time-out near that could be what closes the connections.
        async with pair(answer(), timeout=3600, deadline=None) as (server, client):
            await asyncio.gather(*start(client, 5))
            assert len(server.open) == 5
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del client
                gc.collect()
                await until(lambda: not server.open)
                # The server may see it before the client is through with it.
                await until(lambda: not tasks_left())
                gc.collect()
            text = "unclosed AsyncLoopsClient: use async with, or await aclose()"
            said = [(warning.category, str(warning.message)) for warning in caught]
            assert said == [(ResourceWarning, text)]

    asyncio.run(main())


def test_a_client_dropped_after_its_loops_does_not_warn() -> None:
    """What asyncio.run has shut down is closed, so there is nothing to say."""
    with sandbox_beside() as sandbox, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = client_of(sandbox.url)
        asyncio.run(client.test_api_key())
        del client
        gc.collect()
        client = client_of(sandbox.url)  # never used at all
        del client
        gc.collect()
    assert not caught


def test_a_closed_client_refuses_whatever_is_asked_of_it() -> None:
    """Before anything else: no permit, no connection, and it says so."""

    async def main() -> None:
        limiter = RateLimiter(5, 600)
        async with pair(answer(), rate_limit=limiter) as (server, client):
            async with client as entered:
                assert entered is client
            error = await failure(
                client.send_event("signup", user_id="u1", idempotency_key="k1")
            )
            assert type(error) is ClientClosedError
            assert error.idempotency_key == "k1"
            assert error.attempts == 0
            assert not error.maybe_accepted
            with pytest.raises(ClientClosedError):
                await client.test_api_key()
            assert "5 free" in repr(limiter)
            assert "closed" in repr(client)
            assert not server.opened

    asyncio.run(main())


def test_a_client_may_be_entered_twice_and_stays_closed() -> None:
    """Leaving it the first time closes it for good; leaving again is no error."""

    async def main() -> None:
        async with pair(answer()) as (_, client):
            async with client:
                async with client:
                    await client.send_event("signup", user_id="u1")
                with pytest.raises(ClientClosedError):
                    await client.send_event("signup", user_id="u1")
            async with client:
                with pytest.raises(ClientClosedError):
                    await client.send_event("signup", user_id="u1")

    asyncio.run(main())


def test_closing_again_does_nothing() -> None:
    """Also in a loop the client never saw."""

    async def main() -> None:
        async with pair(answer()) as (server, client):
            await client.send_event("signup", user_id="u1")
            for _ in range(3):
                await client.aclose()
            await until(lambda: not server.open)
            await asyncio.to_thread(asyncio.run, client.aclose())
            assert not tasks_left()

    asyncio.run(main())


def test_a_client_may_be_closed_by_many_at_once() -> None:
    """Each returns when it is closed, with idle and with busy connections."""

    async def main() -> None:
        for busy in (0, 5):
            async with pair(answer(delay=lambda: 0.1)) as (server, client):
                await asyncio.gather(*start(client, 5))
                sends = start(client, busy)
                await until(lambda: server.under_way == busy)  # noqa: B023
                await asyncio.gather(*[client.aclose() for _ in range(5)])
                await until(lambda: not server.open)
                ended = await outcomes(sends)
                assert [type(outcome) for outcome in ended] == [Receipt] * busy

    asyncio.run(main())


def test_closing_may_be_cancelled_and_done_again() -> None:
    """What is under way is not harmed, and the second time ends it."""

    async def main() -> None:
        async with pair(hang) as (server, client):
            (send,) = start(client)
            await until(lambda: server.under_way)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.aclose()
            assert not send.done()
            await client.aclose(grace=0)
            assert type(await failure(send)) is ConnectionLostError
            await until(lambda: not server.open)

    asyncio.run(main())


def test_what_is_under_way_ends_normally_within_the_grace() -> None:
    """Closing waits for it, no longer than needed, and gives it its receipt."""

    async def main() -> None:
        async with pair(answer(delay=lambda: 0.2)) as (server, client):
            sends = start(client, 10)
            await until(lambda: server.under_way == 10)
            async with asyncio.timeout(20):
                await client.aclose(grace=30)
            assert all(send.done() for send in sends)
            ended = await outcomes(sends)
            assert [type(outcome) for outcome in ended] == [Receipt] * 10
            await until(lambda: not server.open)

    asyncio.run(main())


def test_what_takes_longer_than_the_grace_ends_as_a_lost_connection() -> None:
    """It may have been accepted, and nobody sees a cancellation."""

    async def main() -> None:
        async with pair(hang) as (server, client):
            sends = start(client, 10)
            await until(lambda: server.under_way == 10)
            await client.aclose(grace=0.1)
            assert all(send.done() for send in sends)
            for send in sends:
                error = await failure(send)
                assert type(error) is ConnectionLostError
                assert error.maybe_accepted
                assert error.attempts == 1
                assert send.cancelling() == 0
            await until(lambda: not server.open)

    asyncio.run(main())


def test_what_was_still_connecting_was_certainly_not_accepted() -> None:
    """After the grace its connection is lost too, but nothing had been sent."""

    async def main() -> None:
        with closing(bound()) as sock:
            sock.listen()  # the kernel accepts, nobody shakes hands
            client = client_of(url_of(sock, "https"))
            sends = start(client, 5)
            await asyncio.sleep(0.1)
            await client.aclose(grace=0.05)
            for send in sends:
                error = await failure(send)
                assert type(error) is ConnectionLostError
                assert not error.maybe_accepted

    asyncio.run(main())


async def _blocked_by_a_permit(server: Server) -> AsyncLoopsClient:
    client = client_of(server.url, rate_limit=RateLimiter(1, 600), deadline=None)
    start(client)
    await until(lambda: server.under_way)
    return client


async def _blocked_by_a_slot(server: Server) -> AsyncLoopsClient:
    client = client_of(server.url, max_connections=1)
    start(client)
    await until(lambda: server.under_way)
    return client


async def _blocked_by_the_gate(server: Server) -> AsyncLoopsClient:
    server.treat = answer(503)
    client = client_of(server.url)
    start(client, 5)
    await until(lambda: len(server.arrivals) >= 5)
    await until(lambda: not server.under_way)
    server.treat = hang
    return client


@pytest.mark.parametrize(
    "block", [_blocked_by_a_permit, _blocked_by_a_slot, _blocked_by_the_gate]
)
def test_what_waits_is_turned_away_at_once(block: Any) -> None:
    """It gets ClientClosedError before the grace begins, and never goes out."""

    async def main() -> None:
        async with serving(hang) as server:
            client = await block(server)
            others = [task for task in tasks_left() if task.get_name() == "send"]
            waiting = start(client, 20)
            await asyncio.sleep(0.02)
            requests = len(server.arrivals)
            closing_it = asyncio.create_task(client.aclose(grace=0.5))
            for send in waiting:
                error = await failure(send)
                assert type(error) is ClientClosedError
                assert error.attempts == 0
                assert not error.maybe_accepted
            if server.under_way:
                assert not closing_it.done()
            await closing_it
            assert len(server.arrivals) == requests
            assert not any(task.cancelled() for task in others)
            await outcomes(others)
            assert not tasks_left()

    asyncio.run(main())


def test_what_waits_between_two_attempts_is_turned_away_too() -> None:
    """Its error says that an earlier attempt may have been accepted."""

    async def main() -> None:
        for status, maybe in ((503, True), (429, False)):
            async with pair(answer(status, "Retry-After: 50")) as (server, client):
                sends = start(client, 3)
                await until(lambda: len(server.arrivals) == 3)
                await asyncio.sleep(0.05)
                async with asyncio.timeout(5):
                    await client.aclose()
                for send in sends:
                    error = await failure(send)
                    assert type(error) is ClientClosedError
                    assert error.attempts == 1
                    assert error.maybe_accepted is maybe

    asyncio.run(main())


def test_sends_started_during_the_closing_are_refused() -> None:
    """However long the grace, closing has begun for everybody."""

    async def main() -> None:
        async with pair(hang) as (server, client):
            (send,) = start(client)
            await until(lambda: server.under_way)
            closing_it = asyncio.create_task(client.aclose(grace=0.2))
            await asyncio.sleep(0.05)
            error = await failure(client.send_event("signup", user_id="late"))
            assert type(error) is ClientClosedError
            assert not closing_it.done()
            await closing_it
            assert type(await failure(send)) is ConnectionLostError
            assert len(server.arrivals) == 1

    asyncio.run(main())


def test_a_permit_that_comes_with_the_closing_is_not_used() -> None:
    """Granted in the very turn in which the client closes: nothing was sent."""

    async def main() -> None:
        limiter = RateLimiter(1, 0.2)
        async with pair(answer(), rate_limit=limiter) as (server, client):
            await client.send_event("signup", user_id="u1")
            (send,) = start(client)

            async def close() -> None:
                await asyncio.sleep(0.1)
                await client.aclose()

            closing_it = asyncio.create_task(close())
            await asyncio.sleep(0.02)
            # Both timers fall due while the loop is blocked: first the
            # closing, then the permit, in one turn.
            time.sleep(0.4)  # noqa: ASYNC251
            await closing_it
            error = await failure(send)
            assert type(error) is ClientClosedError
            assert not error.maybe_accepted
            assert error.attempts == 0
            assert len(server.arrivals) == 1

    asyncio.run(main())


def test_a_send_that_asks_for_its_key_during_the_closing_is_turned_away() -> None:
    """It has sent nothing yet, and the closing does not wait for it."""

    async def main() -> None:
        async def key() -> str:
            await asyncio.sleep(0.2)
            return KEY

        async with pair(answer(), api_key=key) as (server, client):
            (send,) = start(client)
            await asyncio.sleep(0.05)
            async with asyncio.timeout(5):
                await client.aclose(grace=0.05)
                error = await failure(send)
            assert type(error) is ClientClosedError
            assert error.attempts == 0
            assert not error.maybe_accepted
            assert not server.arrivals

    asyncio.run(main())


async def _close_amid(seed: int) -> set[str]:
    """Close while 50 sends are at all stages; return the kinds of outcome met."""
    rng = random.Random(seed)

    async def treat(writer: asyncio.StreamWriter) -> None:
        chance = rng.random()
        if chance < 0.2:
            await hang(writer)
        elif chance < 0.3:
            await answer(503)(writer)
        elif chance < 0.4:
            writer.close()
        else:
            await answer(
                delay=lambda: rng.random() * 0.03,
                body_delay=lambda: rng.choice([0, 0.01]),
            )(writer)

    kind = seed % 3
    settings: dict[str, Any] = {"max_connections": 8}
    if kind == 1:
        settings["rate_limit"] = RateLimiter(10, 0.02)
    if kind == 2:
        settings = {}
    async with pair(treat, **settings) as (server, client):
        sends: list[asyncio.Task[Receipt]] = []

        async def begin() -> None:
            for n in range(50):
                await asyncio.sleep(rng.random() * 0.002)
                sends.extend(start(client, idempotency_key=f"k{n}"))

        beginning = asyncio.create_task(begin())
        await asyncio.sleep(rng.random() * 0.12)
        await client.aclose(grace=rng.choice([0, 0.01, 0.05]))
        await beginning
        async with asyncio.timeout(10):
            ended: list[Outcome] = await outcomes(sends)
        await until(lambda: not server.open)
        seen = {key for _, key in server.arrivals}
        for send, outcome in zip(sends, ended, strict=True):
            assert send.cancelling() == 0
            if isinstance(outcome, Receipt):
                continue
            assert isinstance(outcome, LoopsError)
            assert type(outcome) in (ClientClosedError, ConnectionLostError), outcome
            if outcome.idempotency_key in seen:
                assert outcome.attempts >= 1
            elif outcome.maybe_accepted:
                # Sent, but cut off before the server has read it.
                assert type(outcome) is ConnectionLostError
        assert not tasks_left()
        return {type(outcome).__name__ for outcome in ended}


def test_closing_amid_50_sends_at_all_stages_cancels_nobody() -> None:
    """A receipt, ClientClosedError or ConnectionLostError, and nothing else."""
    met = set()
    for seed in range(30):
        met |= asyncio.run(_close_amid(seed))
    assert met == {"Receipt", "ClientClosedError", "ConnectionLostError"}


@pytest.mark.soak
def test_closing_amid_sends_cancels_nobody_300_times() -> None:
    """The same, at 300 other moments."""
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


def test_debug_mode_has_nothing_to_say() -> None:
    """With time-outs, cancellations and faults, and all warnings errors."""
    faults = {"503": 0.1, "close-before": 0.1, "garbage-after": 0.1, "hang-after": 0.1}
    with sandbox_beside(faults=faults, seed=1, latency=(0.0, 0.02)) as sandbox:
        code, out, err = run_script(_DEBUG, sandbox, *_STRICT)
    said = [line for line in err.splitlines() if "attempts in a row" not in line]
    assert [line for line in said if "sending resumes" not in line] == []
    assert (code, out.strip()) == (0, "done")


def test_no_task_is_left_by_sending_and_closing() -> None:
    """Neither between sends nor afterwards: the client runs none of its own."""

    async def main() -> None:
        async with pair(answer()) as (_, client):
            for _ in range(3):
                await asyncio.gather(*start(client, 20))
                assert not tasks_left()
            await client.aclose()
            assert not tasks_left()

    asyncio.run(main())


def test_descriptors_are_flat_over_50_rounds() -> None:
    """Whether closed at once, with sends under way, or by the loop's end."""
    kept = []

    async def round_of(n: int) -> None:
        async with pair(answer()) as (server, client):
            kept.append(client)
            await asyncio.gather(*start(client, 10))
            if n % 3 == 1:
                server.treat = hang
                sends = start(client, 10)
                await until(lambda: server.under_way == 10)
                await client.aclose(grace=0)
                await outcomes(sends)
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
