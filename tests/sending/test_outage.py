"""Loops is down: a thousand sends wait behind one probe at a time."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from itertools import pairwise
from typing import Any

import attrs
import pytest
from support.answering import (
    KEY,
    Server,
    answer,
    bound,
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
    Attempt,
    DeadlineExceededError,
    RateLimitError,
    RetryPolicy,
    ServerError,
)
from loops_async._client import Receipt
from loops_async.sandbox import Sandbox

PAUSE = 0.5  # the shortest between two probes
CONNECTIONS = 20
THRESHOLD = 5
TICK = 0.002  # what clocks and timers may round


def client_of(url: str, **settings: Any) -> AsyncLoopsClient:
    usual = {
        "api_key": KEY,
        "base_url": url,
        "rate_limit": math.inf,
        "max_connections": CONNECTIONS,
        "retry": RetryPolicy(attempts=50, base=0.1),
    }
    return AsyncLoopsClient(**{**usual, **settings})


@asynccontextmanager
async def client_at(url: str, **settings: Any) -> AsyncIterator[AsyncLoopsClient]:
    client = client_of(url, **settings)
    try:
        yield client
    finally:
        await client.aclose(grace=0)


class Tries:
    """When each attempt of a client began, in that order, and when it was judged."""

    def __init__(self) -> None:
        self._began: list[float] = []
        self._judged: list[float] = []

    def __len__(self) -> int:
        return len(self._began)

    def __call__(self, attempt: Attempt) -> None:
        now = asyncio.get_running_loop().time()
        self._began.append(now - attempt.elapsed)
        self._judged.append(now)

    def probes(self) -> tuple[int, list[float]]:
        """Split off what went out before the gate was closed by the fifth failure.

        Returns:
            How many those were, and when each probe after them began.
        """
        closed = self._judged[THRESHOLD - 1]
        probes = sorted(at for at in self._began if at > closed)
        burst = len(self._began) - len(probes)
        # Those under way at that moment, and the ones that had failed.
        assert THRESHOLD <= burst < THRESHOLD + CONNECTIONS
        assert_paused([closed, *probes])
        return burst, probes


def assert_paused(times: list[float]) -> None:
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= PAUSE - TICK for gap in gaps), gaps


@attrs.frozen
class Outage:
    """A Loops that is down.

    Attributes:
        url: Of it.
        arrivals: When requests arrived during the outage, if anything noted it.
        end: Ends the outage.
        accepted: The keys of the events accepted, one for each acceptance.
    """

    url: str
    arrivals: Callable[[], list[float]]
    end: Callable[[], Any]
    accepted: Callable[[], list[str]]


@asynccontextmanager
async def _down(*, drop: bool) -> AsyncIterator[Outage]:
    async with Sandbox(api_key=KEY, rate_limit=None) as sandbox:
        sandbox.down(drop=drop)

        async def end() -> None:
            sandbox.down(False)

        yield Outage(
            sandbox.url,
            lambda: [r.at for r in sandbox.requests if r.fault == "down"],
            end,
            lambda: [str(event.idempotency_key) for event in sandbox.events],
        )


def answering_503() -> AbstractAsyncContextManager[Outage]:
    return _down(drop=False)


def dropping() -> AbstractAsyncContextManager[Outage]:
    return _down(drop=True)


@asynccontextmanager
async def refusing() -> AsyncIterator[Outage]:
    with closing(bound()) as sock:
        servers: list[Server] = []
        contexts: list[Any] = []

        async def end() -> None:
            contexts.append(serving(answer(), sock))
            servers.append(await contexts[0].__aenter__())

        try:
            yield Outage(
                url_of(sock),
                list,
                end,
                lambda: [key for _, key in servers[0].arrivals],
            )
        finally:
            for context in contexts:
                await context.__aexit__(None, None, None)


@pytest.mark.parametrize("outage", [answering_503, dropping, refusing])
def test_a_thousand_sends_survive_an_outage_each_accepted_once(
    outage: Callable[[], AbstractAsyncContextManager[Outage]],
) -> None:
    """The gate closes after five failures; then a probe a pause, then all go."""

    async def main() -> None:
        tries = Tries()
        async with (
            outage() as down,
            client_at(down.url, on_attempt=tries) as client,
        ):
            sends = start(client, 1000)
            await until(lambda: len(tries) >= THRESHOLD)
            await asyncio.sleep(1.0)
            burst, probes = tries.probes()
            arrived = sorted(down.arrivals())
            await down.end()
            async with asyncio.timeout(30):
                ended = await outcomes(sends)
            assert probes
            if arrived:  # a port that refuses counts nothing
                assert len(arrived) >= burst + len(probes)
                assert_paused(arrived[burst:])
            receipts = [one for one in ended if isinstance(one, Receipt)]
            assert len(receipts) == 1000
            assert not any(receipt.duplicate for receipt in receipts)
            assert sorted(down.accepted()) == sorted(
                receipt.idempotency_key for receipt in receipts
            )

    asyncio.run(main())


def test_those_out_of_time_fail_and_the_others_are_accepted() -> None:
    """A deadline holds during an outage too; what was never sent says so."""

    async def main() -> None:
        async with (
            answering_503() as down,
            client_at(down.url, deadline=60.0) as client,
        ):
            patient = start(client, 500)
            hasty = start(client, 500, deadline=0.8)
            errors = [await failure(send) for send in hasty]
            assert {type(error) for error in errors} == {DeadlineExceededError}
            assert not any(send.done() for send in patient)
            for error in errors:
                # A 503 leaves it open whether the event was accepted.
                assert error.maybe_accepted is (error.attempts > 0)
            assert sum(error.attempts == 0 for error in errors) > 400
            await down.end()
            async with asyncio.timeout(30):
                ended = await outcomes(patient)
            assert {type(outcome) for outcome in ended} == {Receipt}
            assert len(down.accepted()) == len(set(down.accepted())) == 500

    asyncio.run(main())


@pytest.mark.soak
def test_a_long_outage_costs_a_probe_every_five_seconds_at_most() -> None:
    """Half a minute of it: the pauses grow to 5 s, and nobody is lost."""

    async def main() -> None:
        tries = Tries()
        async with (
            answering_503() as down,
            client_at(down.url, on_attempt=tries) as client,
        ):
            sends = start(client, 1000)
            await asyncio.sleep(30)
            burst, probes = tries.probes()
            # At 0.5, 1.5, 3.5, 7.5, 12.5, 17.5, 22.5 and 27.5 s.
            assert 6 <= len(probes) <= 8
            assert_paused(sorted(down.arrivals())[burst:])
            await down.end()
            ended = await outcomes(sends)
            assert {type(outcome) for outcome in ended} == {Receipt}
            assert len(down.accepted()) == len(set(down.accepted())) == 1000

    asyncio.run(main())


def test_a_single_send_outlives_an_outage() -> None:
    """Alone it closes the gate, probes, and is accepted once Loops is back."""

    async def main() -> None:
        async with (
            answering_503() as down,
            client_at(down.url, retry=RetryPolicy(attempts=50, base=0.001)) as client,
        ):
            (send,) = start(client)
            await until(lambda: len(down.arrivals()) == THRESHOLD + 1)
            *_, fifth, probe = down.arrivals()
            assert probe - fifth >= PAUSE - TICK
            await down.end()
            async with asyncio.timeout(30):
                receipt = await send
            assert receipt.attempts == THRESHOLD + 2
            assert not receipt.duplicate
            assert down.accepted() == [receipt.idempotency_key]

    asyncio.run(main())


def test_a_single_send_may_give_up_while_loops_is_down() -> None:
    """Out of attempts, it gets the last answer's error, not one of the gate."""

    async def main() -> None:
        policy = RetryPolicy(attempts=6, base=0.001)
        async with (
            answering_503() as down,
            client_at(down.url, retry=policy) as client,
        ):
            error = await failure(client.send_event("signup", user_id="u1"))
            assert type(error) is ServerError
            assert error.attempts == 6
            assert error.maybe_accepted

    asyncio.run(main())


def test_a_send_that_cannot_outlast_the_pause_fails_at_once() -> None:
    """The gate knows when the next probe is due, so nobody waits in vain."""

    async def main() -> None:
        async with (
            serving(answer(503)) as server,
            client_at(server.url, deadline=60) as client,
        ):
            (send,) = start(client)
            # The first probe has failed too: nothing goes out for a second.
            await until(lambda: len(server.arrivals) == THRESHOLD + 1)
            await asyncio.sleep(0.1)
            loop = asyncio.get_running_loop()
            began = loop.time()
            error = await failure(
                client.send_event("signup", user_id="u1", deadline=0.5)
            )
            assert loop.time() - began < 0.4
            assert type(error) is DeadlineExceededError
            assert error.attempts == 0
            assert not error.maybe_accepted
            send.cancel()
            await asyncio.wait([send])

    asyncio.run(main())


def test_a_cancelled_probe_hands_over_to_the_next() -> None:
    """The gate does not wait for a probe that nobody waits for any more."""

    async def main() -> None:
        async with serving(answer(503)) as server, client_at(server.url) as client:
            sends = {key: start(client, idempotency_key=key)[0] for key in "abcdefg"}
            await until(lambda: len(server.arrivals) >= THRESHOLD)
            await until(lambda: not server.under_way)
            burst = len(server.arrivals)
            server.treat = hang
            await until(lambda: len(server.arrivals) > burst)
            probing = server.arrivals[-1][1]
            server.treat = answer()
            last = next(key for key in sends if key != probing)
            for key, send in sends.items():
                if key != last:
                    assert send.cancel()
            async with asyncio.timeout(20):
                receipt = await sends[last]
            assert server.arrivals[-1][1] == receipt.idempotency_key == last
            assert all(send.done() for send in sends.values())

    asyncio.run(main())


def test_a_probe_without_an_answer_goes_out_alone() -> None:
    """While it is under way no other does, however many come to wait."""

    async def main() -> None:
        async with serving(answer(503)) as server, client_at(server.url) as client:
            sends = start(client, 10)
            await until(lambda: len(server.arrivals) >= THRESHOLD)
            await until(lambda: not server.under_way)
            burst = len(server.arrivals)
            server.treat = hang
            await until(lambda: len(server.arrivals) > burst)
            sends += start(client, 10)
            await asyncio.sleep(2 * PAUSE)
            assert len(server.arrivals) == burst + 1
            for send in sends:
                send.cancel()
            await asyncio.wait(sends)

    asyncio.run(main())


def test_a_probe_that_runs_out_of_time_hands_over() -> None:
    """A Loops that hangs keeps the gate closed, but no send for ever."""

    async def main() -> None:
        tries = Tries()
        async with (
            serving(hang) as server,
            client_at(
                server.url, timeout=0.4, deadline=2.0, on_attempt=tries
            ) as client,
        ):
            sends = start(client, 50)
            errors = [await failure(send) for send in sends]
            assert {type(error) for error in errors} == {DeadlineExceededError}
            # At 0.9 s; the next would be at 2.3 s.
            burst, probes = tries.probes()
            assert len(probes) == 1
            assert len(server.arrivals) <= burst + 1

    asyncio.run(main())


def test_the_outage_of_one_client_holds_no_other() -> None:
    """Each client has a gate of its own: they may talk to different hosts."""

    async def main() -> None:
        async with (
            serving(answer(503)) as down,
            serving(answer()) as up,
            client_at(down.url) as client,
            client_at(up.url) as other,
        ):
            sends = start(client, 10)
            await until(lambda: len(down.arrivals) >= THRESHOLD)
            async with asyncio.timeout(10):
                receipts = await asyncio.gather(*start(other, 20))
            assert {receipt.attempts for receipt in receipts} == {1}
            for send in sends:
                send.cancel()
            await asyncio.wait(sends)

    asyncio.run(main())


@pytest.mark.parametrize("status", [429, 404])
def test_refusals_never_close_the_gate(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Who answers 429 is up: hundreds of them hold nobody behind a probe."""

    async def main() -> None:
        policy = RetryPolicy(attempts=3, base=0.01)
        async with (
            serving(answer(status)) as server,
            client_at(server.url, retry=policy) as client,
        ):
            sends = start(client, 200)
            async with asyncio.timeout(30):
                ended = await outcomes(sends)
            assert {getattr(error, "status", None) for error in ended} == {status}
            if status == 429:
                assert {type(error) for error in ended} == {RateLimitError}
                assert len(server.arrivals) == 600
            server.treat = answer()
            async with asyncio.timeout(10):
                assert (await client.send_event("signup", user_id="u1")).attempts == 1

    with caplog.at_level(logging.WARNING, "loops_async"):
        asyncio.run(main())
    assert not caplog.records


def test_five_failures_with_successes_between_close_no_gate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It takes five in a row: one answer in between begins the count anew."""

    async def main() -> None:
        policy = RetryPolicy(attempts=2, base=0)
        async with (
            Sandbox(api_key=KEY, rate_limit=None) as sandbox,
            client_at(sandbox.url, retry=policy) as client,
        ):
            sandbox.script(*["503", None] * 20)
            for n in range(20):
                receipt = await client.send_event("signup", email=f"u{n}@b.co")
                assert receipt.attempts == 2

    with caplog.at_level(logging.WARNING, "loops_async"):
        asyncio.run(main())
    assert not caplog.records


def test_an_outage_is_told_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two lines in the log, not a thousand."""

    async def main() -> None:
        async with answering_503() as down, client_at(down.url) as client:
            sends = start(client, 200)
            await until(lambda: len(down.arrivals()) >= THRESHOLD)
            await down.end()
            async with asyncio.timeout(30):
                await outcomes(sends)

    with caplog.at_level(logging.WARNING, "loops_async"):
        asyncio.run(main())
    first, last = [record.getMessage() for record in caplog.records]
    assert "holding all sends" in first
    assert "sending resumes" in last
