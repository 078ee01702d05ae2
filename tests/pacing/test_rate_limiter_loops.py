"""One rate limiter in several event loops, threads and forked processes."""

import asyncio
import gc
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support import virtual_time as virtual
from support.limiters import (
    IDLE,
    counts_of,
    make_limiter,
    most_in_a_sliding_window,
)

from loops_async import RateLimiter


def test_two_loops_in_two_threads_share_one_limit_and_both_make_progress() -> None:
    """The threads and the clock are real; no claim depends on their speed."""
    limiter = RateLimiter(4, 0.02)
    arrivals: dict[int, list[float]] = {0: [], 1: []}
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    failures: list[BaseException] = []
    both_ready = threading.Barrier(2)

    async def send(index: int) -> None:
        await limiter.acquire(bulk=len(arrivals[index]) % 3 == 0)
        arrivals[index].append(time.monotonic())
        await asyncio.sleep(0)
        limiter.release(answered=True)

    async def main(index: int) -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with asyncio.timeout(60):
            await asyncio.gather(*(send(index) for _ in range(40)))

    def run(index: int) -> None:
        try:
            both_ready.wait(60)
            asyncio.run(main(index))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in arrivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert [len(times) for times in arrivals.values()] == [40, 40]
    all_arrivals = arrivals[0] + arrivals[1]
    assert most_in_a_sliding_window(all_arrivals, limiter.period) <= 4
    assert_collected(loops)


def assert_collected(loops: list[weakref.ref[asyncio.AbstractEventLoop]]) -> None:
    """Fail if anything, such as a limiter, still refers to one of the loops."""
    gc.collect()
    assert [loop() for loop in loops] == [None] * len(loops)


def test_a_permit_released_in_one_thread_wakes_a_waiter_in_another() -> None:
    """The waiter is woken at once, long before the period of an hour is over."""
    limiter = RateLimiter(1, 3600.0)
    assert limiter.try_acquire()
    waiting = threading.Event()
    served = threading.Event()
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        task = asyncio.create_task(limiter.acquire())
        await virtual.settle()
        waiting.set()
        async with asyncio.timeout(60):
            await task
        served.set()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert waiting.wait(60)
    limiter.release_unused()
    thread.join(60)
    assert served.is_set()
    assert_collected(loops)


def test_successive_loops_leave_no_waiter_and_no_reference_in_the_limiter() -> None:
    limiter = RateLimiter(3, 0.004)

    async def send(*, bulk: bool) -> None:
        await limiter.acquire(bulk=bulk)
        limiter.release(answered=True)

    async def main() -> None:
        await asyncio.gather(*(send(bulk=n % 2 == 0) for n in range(5)))
        last = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        if last.done():
            limiter.release(answered=True)
        # Otherwise the end of the loop cancels the task while it waits.

    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    for _ in range(20):
        with asyncio.Runner() as runner:
            runner.run(main())
            loops.append(weakref.ref(runner.get_loop()))
    del runner
    assert_collected(loops)
    assert counts_of(limiter)["in flight"] == 0
    assert counts_of(limiter)["waiting"] == 0


@contextmanager
def unraisable() -> Iterator[list[Any]]:
    """Collect the exceptions that the interpreter can only report."""
    raised: list[Any] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda hook: raised.append(hook.exc_value)
    try:
        yield raised
    finally:
        sys.unraisablehook = before


def leave_waiters(
    loop: asyncio.AbstractEventLoop, limiter: RateLimiter, count: int = 3
) -> None:
    """Start waiters in the loop, stop the loop, and keep no other reference."""

    async def main() -> None:
        for bulk in [False, False, True][:count]:
            task = asyncio.ensure_future(limiter.acquire(bulk=bulk))
            tasks.append(task)
        await asyncio.sleep(0)

    tasks: list[asyncio.Future[None]] = []
    loop.run_until_complete(main())
    loop.set_exception_handler(lambda *_: None)  # hides "Task was destroyed"


async def acquire_in_time(limiter: RateLimiter) -> None:
    async with asyncio.timeout(60):
        await limiter.acquire()


def test_a_closed_loop_with_waiters_blocks_no_other_loop_and_can_be_collected() -> None:
    limiter = RateLimiter(1, 0.001)
    assert limiter.try_acquire()
    loop = asyncio.new_event_loop()
    leave_waiters(loop, limiter)
    loop.close()
    limiter.release_unused()
    asyncio.run(acquire_in_time(limiter))
    limiter.release(answered=True)
    asyncio.run(acquire_in_time(limiter))
    assert counts_of(limiter) == {**IDLE, "free": 0, "in flight": 1}
    closed = weakref.ref(loop)
    del loop
    with unraisable() as raised:
        assert_collected([closed])
    assert raised == []


def test_the_permit_of_a_loop_that_is_collected_unclosed_becomes_free() -> None:
    limiter = RateLimiter(1, 0.001)
    assert limiter.try_acquire()
    loop = asyncio.new_event_loop()
    leave_waiters(loop, limiter, 1)
    limiter.release_unused()  # the turn of a waiter that will never run
    unclosed = weakref.ref(loop)
    with warnings.catch_warnings(), unraisable() as raised:
        warnings.simplefilter("ignore", ResourceWarning)
        del loop
        assert_collected([unclosed])
    assert raised == []
    assert counts_of(limiter) == {**IDLE, "free": 1}


def test_a_stopped_loop_with_waiters_does_not_block_other_loops() -> None:
    """The stopped loop is not closed and has more waiters than there are permits."""
    with asyncio.Runner(loop_factory=virtual.VirtualLoop) as runner:
        loop = runner.get_loop()
        limiter = RateLimiter(1, 1.0, clock=loop.time)
        assert limiter.try_acquire()
        stopped = virtual.VirtualLoop()
        leave_waiters(stopped, limiter)
        limiter.release_unused()
        try:
            runner.run(acquire_in_time(limiter))
        finally:
            for task in asyncio.all_tasks(stopped):
                task.cancel()
            stopped.run_until_complete(virtual.settle())
            stopped.close()


def test_a_waiter_whose_loop_was_stopped_at_its_turn_queues_again() -> None:
    """The waiter loses its place in the queue, and the permit stays free."""
    stopped = virtual.VirtualLoop()
    limiter = RateLimiter(1, 1.0, clock=stopped.time)
    assert limiter.try_acquire()
    waiting = stopped.create_task(limiter.acquire())
    stopped.run_until_complete(virtual.settle())
    limiter.release_unused()  # the turn of the waiter
    assert counts_of(limiter) == {**IDLE, "free": 1}
    stopped.run_until_complete(waiting)
    stopped.close()
    assert counts_of(limiter) == {**IDLE, "free": 0, "in flight": 1}


def test_a_forked_child_starts_without_waiters_and_with_all_return_times() -> None:
    """A permit in flight returns a period after the fork, the others as before.

    Coverage does not follow a real fork; test_fork.py has tests with real forks.
    """

    async def main() -> None:
        limiter = make_limiter(3)
        for _ in range(3):
            await limiter.acquire()
        limiter.release(answered=True)
        waiting = asyncio.create_task(limiter.acquire())
        await virtual.settle()
        limiter.forked()
        assert counts_of(limiter) == {**IDLE, "free": 0, "returning": 3}
        await asyncio.sleep(1)
        assert counts_of(limiter) == {**IDLE, "free": 3}
        assert not waiting.done()
        waiting.cancel()
        await virtual.settle()
        assert counts_of(limiter) == {**IDLE, "free": 3}

    virtual.run(main())
