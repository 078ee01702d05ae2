"""One client in several event loops and threads."""

import asyncio
import gc
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from support.clients import (
    client_of,
)
from support.sandbox_process import STRICT, run_script, sandbox_in_thread
from support.waiting import wait_until

from loops_async import (
    AsyncLoopsClient,
    ClientClosedError,
    RateLimiter,
    Receipt,
)

from .support import descriptors

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
def test_one_client_serves_a_hundred_event_loops_one_after_another(loop: str) -> None:
    """No warning is issued, although the client is never closed."""
    factory = "factory = None"
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
        factory = "import uvloop; factory = uvloop.new_event_loop"
    with sandbox_in_thread() as sandbox:
        code, out, err = run_script(
            _MANY_RUNS.format(factory=factory), sandbox, *STRICT
        )
    assert err == ""
    assert (code, out.strip()) == (0, "done")
    assert sandbox.counts.accepted == 300


def test_an_event_loop_closed_without_shutdown_leaks_no_descriptor() -> None:
    """The client continues to work in the next event loop."""
    # An event loop without a shutdown leaves transports that warn when collected.
    with sandbox_in_thread() as sandbox, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        client = client_of(sandbox)
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
        # The sandbox closes its side of the connections in its own thread.
        wait_until(lambda: descriptors() == before)
        asyncio.run(client.aclose())


def test_two_event_loops_in_alternation_share_a_client() -> None:
    """Each event loop keeps its own connections."""
    with sandbox_in_thread() as sandbox:
        client = client_of(sandbox)
        with asyncio.Runner() as one, asyncio.Runner() as two:
            for n in range(6):
                runner = (one, two)[n % 2]
                receipt = runner.run(client.send_event("signup", email=f"u{n}@b.co"))
                assert receipt.attempts == 1
            one.run(client.aclose())
            with pytest.raises(ClientClosedError):
                two.run(client.send_event("signup", email="u9@b.co"))
            two.run(client.aclose())


def send_in_two_threads(client: AsyncLoopsClient, count: int) -> list[Any]:
    """Send that many events in each of two threads that begin at once.

    Returns:
        The receipts and the exceptions.
    """
    barrier = threading.Barrier(2)
    results: list[Any] = []

    def send_in_thread(name: str) -> None:
        async def main() -> None:
            await asyncio.to_thread(barrier.wait)
            sends = [
                client.send_event("signup", email=f"{name}{n}@b.co")
                for n in range(count)
            ]
            results.extend(await asyncio.gather(*sends, return_exceptions=True))

        asyncio.run(main())

    run_threads(send_in_thread, "ab")
    return results


def run_threads(target: Callable[[Any], None], arguments: Iterable[Any]) -> None:
    """Call the target with each argument, in a thread of its own, and wait."""
    threads = [threading.Thread(target=target, args=(one,)) for one in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_two_threads_that_use_one_client_share_its_rate_limit() -> None:
    """The sandbox refuses no request of theirs.

    Its period is half as long, so that the limiter's credit for the round trip, which
    varies on a busy machine, costs no 429.
    """
    limiter = RateLimiter(20, 0.1)
    with sandbox_in_thread(rate_limit=20, period=0.05) as sandbox:
        client = client_of(sandbox, rate_limit=limiter)
        results = send_in_two_threads(client, 100)
        assert [type(result) for result in results] == [Receipt] * 200
        assert {receipt.attempts for receipt in results} == {1}
        assert sandbox.counts.limited == 0
        asyncio.run(client.aclose())


def test_event_loops_that_come_and_go_in_threads_disturb_no_other_thread() -> None:
    failures: list[BaseException] = []

    def send_in_thread(client: AsyncLoopsClient, number: int) -> None:
        try:
            for n in range(15):
                asyncio.run(client.send_event("signup", email=f"u{n}.{number}@b.co"))
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with sandbox_in_thread() as sandbox:
            client = client_of(sandbox)
            run_threads(partial(send_in_thread, client), range(8))
            assert not failures
            assert sandbox.counts.accepted == 8 * 15
    finally:
        sys.setswitchinterval(interval)


class _SlowIsClosed(asyncio.SelectorEventLoop):
    """An event loop that lets other threads run in `is_closed` once it is closed."""

    def is_closed(self) -> bool:
        closed = super().is_closed()
        if closed:
            time.sleep(0.1)
        return closed


def test_two_threads_that_discard_the_same_closed_event_loop_both_send() -> None:
    with sandbox_in_thread() as sandbox:
        client = client_of(sandbox)
        with asyncio.Runner(loop_factory=_SlowIsClosed) as runner:
            runner.run(client.test_api_key())
        results = send_in_two_threads(client, 1)
        assert [type(result) for result in results] == [Receipt] * 2
