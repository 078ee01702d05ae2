"""A fork inside a running event loop: parent and child both continue to send.

The scripts run in new interpreters, so that no test process forks.
"""

import os

import pytest
from support.sandbox_process import STRICT, run_script, sandbox_in_thread

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system does not fork"
)

_SCRIPT = """
import asyncio, gc, math, os, sys, traceback
from loops_async import AsyncLoopsClient, RateLimiter

holder = [AsyncLoopsClient({client})]
codes = []

def in_child():
{child}

def child():
    try:
        in_child()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

async def send(n):
    return await holder[0].send_event("signup", email=f"u{{n}}@b.co", timeout=10)

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    await asyncio.gather(*[send(n) for n in range(5)])  # fill the connection pool
    for n in range({forks}):
        flying = [asyncio.create_task(send(n)) for _ in range({flying})]
        while holder[0].stats.in_flight < {flying}:
            await asyncio.sleep(0)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            child()
        async with asyncio.timeout(60):
            while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
                await asyncio.sleep(0.002)
            codes.append(os.waitstatus_to_exitcode(ended[1]))
            await asyncio.gather(*flying)
        for n in range(20):
            receipt = await send(n)
            assert receipt.attempts == 1, receipt  # a hung connection needs a second
    await holder[0].aclose()

parent = os.getpid()
asyncio.run(main())
assert os.getpid() == parent
assert codes == [{code}] * {forks}, codes
print("parent done")
"""

_SENDS = """
    async def sends():
        asyncio.get_running_loop().slow_callback_duration = 60.0
        for n in range(3):
            receipt = await send(n)
            assert receipt.attempts == 1, receipt
    asyncio.run(sends())
    gc.collect()
"""
_SENDS_AND_CLOSES = """
    async def sends():
        asyncio.get_running_loop().slow_callback_duration = 60.0
        async with holder[0]:
            assert (await send(1)).attempts == 1
    asyncio.run(sends())
    gc.collect()
"""
_DROPS = """
    holder.clear()
    gc.collect()
"""
_OS_EXIT = """
    os._exit(0)
"""
_SYS_EXIT = """
    sys.exit(3)
"""
_SENDS_THEN_SYS_EXIT = f"""{_SENDS}
    sys.exit(3)
"""
CHILDREN = {
    "sends": (_SENDS, 0),
    "sends and closes": (_SENDS_AND_CLOSES, 0),
    "drops the client": (_DROPS, 0),
    "exits by os._exit": (_OS_EXIT, 0),
    "exits by sys.exit": (_SYS_EXIT, 3),
    "sends, then exits by sys.exit": (_SENDS_THEN_SYS_EXIT, 3),
}


def fork_many(name: str, forks: int, flying: int) -> None:
    child, code = CHILDREN[name]
    script = _SCRIPT.format(
        client="rate_limit=math.inf", child=child, code=code, forks=forks, flying=flying
    )
    with sandbox_in_thread(latency=0.03 if flying else 0.0) as sandbox:
        exit_code, out, err = run_script(script, sandbox, *STRICT)
    assert err == ""
    assert out.strip() == "parent done"
    assert exit_code == 0
    per_child = 3 if "sends" in name else 0
    per_child = 1 if "closes" in name else per_child
    assert sandbox.counts.accepted == 5 + forks * (20 + flying + per_child)
    assert sandbox.counts.duplicates == 0


@pytest.mark.parametrize(
    "name",
    CHILDREN,
)
def test_parent_and_child_continue_after_a_fork(name: str) -> None:
    """Neither process hangs, whatever the child does with its idle connections."""
    fork_many(name, 3, 0)


@pytest.mark.soak
@pytest.mark.parametrize(
    "name",
    CHILDREN,
)
def test_parent_and_child_continue_after_100_forks(name: str) -> None:
    fork_many(name, 100, 0)


@pytest.mark.parametrize("name", ["sends", "drops the client", "exits by os._exit"])
def test_a_send_in_flight_at_a_fork_ends_in_the_parent_only(name: str) -> None:
    """Each of these events is accepted once, and the parent gets its receipt."""
    fork_many(name, 3, 5)


_LIMITED = """
import asyncio, os, sys, traceback
from loops_async import AsyncLoopsClient

client = AsyncLoopsClient()  # 10 per second, by the limiter that all clients share

async def send(n, client=client):
    return await client.send_event("signup", email=f"u{{n}}@b.co", deadline=30)

async def send_in_child():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    assert (await send(1)).attempts == 1
    async with AsyncLoopsClient() as other:  # still with the same limiter
        assert repr(other).partition("<RateLimiter")[2] == (
            repr(client).partition("<RateLimiter")[2]
        )
        assert (await send(2, other)).attempts == 1

def child():
    try:
        asyncio.run(send_in_child())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    await asyncio.gather(*[send(n) for n in range({before})])
    flying = [asyncio.create_task(send(n)) for n in range({flying})]
    while client.stats.in_flight + client.stats.waiting < {flying}:
        await asyncio.sleep(0)
    pid = os.fork()
    if pid == 0:
        child()
    await asyncio.gather(*flying)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        await asyncio.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert (await send(3)).attempts == 1
    await client.aclose()

asyncio.run(main())
print("parent done")
"""


@pytest.mark.parametrize(
    ("before", "flying", "latency"),
    [
        pytest.param(5, 0, 0.0, id="some permits free"),
        pytest.param(10, 0, 0.0, id="all permits used"),
        pytest.param(
            0,
            10,
            0.3,
            id="all permits in flight",
        ),
        pytest.param(
            10,
            12,
            0.0,
            id="sends waiting",
        ),
    ],
)
def test_the_shared_limiter_works_on_both_sides_of_a_fork(
    before: int, flying: int, latency: float
) -> None:
    """Permits of the parent's sends are free in the child."""
    script = _LIMITED.format(before=before, flying=flying)
    with sandbox_in_thread(latency=latency) as sandbox:
        code, out, err = run_script(script, sandbox, *STRICT)
    assert err == ""
    assert (code, out.strip()) == (0, "parent done")
    assert sandbox.counts.accepted == before + flying + 3


_LOCKED = """
import asyncio, os, signal, threading, time
from loops_async import AsyncLoopsClient, RateLimiter

held, over = threading.Event(), threading.Event()

def clock():  # the thread holds the lock of the limiter when it calls this
    if threading.current_thread() is thread and not held.is_set():
        held.set()
        over.wait()
    return time.monotonic()

limiter = RateLimiter(5, 0.1, clock=clock)
client = AsyncLoopsClient(rate_limit=limiter)
thread = threading.Thread(target=limiter.try_acquire)
thread.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(30)  # ends a child that waits for the lock
    async def send():
        async with client:
            await client.send_event("signup", email="ada@b.co")
    asyncio.run(send())
    os._exit(0)
over.set()
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("parent done")
"""


def test_a_limiter_locked_by_a_thread_at_the_fork_is_usable_in_the_child() -> None:
    """The child has no thread that could release the lock."""
    with sandbox_in_thread() as sandbox:
        # Newer Pythons warn about every fork of a process with threads.
        code, out, err = run_script(_LOCKED, sandbox, "-W", "ignore")
    assert err == ""
    assert (code, out.strip()) == (0, "parent done")
