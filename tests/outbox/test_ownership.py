"""One owner for a file: other outboxes, other processes, forks, and a full disk."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from support.clients import client_of
from support.outboxes import NOWHERE, events, offline, rows, states, verdict
from support.sandbox_process import STRICT, run_script, sandbox_in_thread
from support.waiting import run

from loops_async import JournalError, Outbox
from loops_async._outbox.session import OutboxTiming

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system does not fork"
)


def test_a_file_that_is_open_cannot_be_opened_by_another_outbox(path: Path) -> None:
    async def main() -> None:
        async with offline(path) as outbox, client_of(NOWHERE) as client:
            await outbox.put_many(events(1))
            other = Outbox(path, client, _timing=OutboxTiming(lock_timeout=0.01))
            with pytest.raises(JournalError, match="is in use") as caught:
                await other.__aenter__()
            assert str(path) in str(caught.value)
            assert caught.value.retryable
            assert caught.value.in_use
            await outbox.put_many(events(1))
        assert states(path) == ["pending"] * 2

    run(main())


_OPEN = """
import asyncio
from loops_async import AsyncLoopsClient, JournalError, Outbox
from loops_async._outbox.session import OutboxTiming

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    async with AsyncLoopsClient() as client:
        timing = OutboxTiming(lock_timeout=0.01)
        try:
            await Outbox({path!r}, client, _timing=timing).__aenter__()
        except JournalError as error:
            print(error)

asyncio.run(main())
"""


def test_a_file_that_is_open_cannot_be_opened_by_another_process(path: Path) -> None:
    with sandbox_in_thread() as sandbox:

        async def main() -> tuple[int, str, str]:
            async with offline(path):
                text = _OPEN.format(path=str(path))
                return await asyncio.to_thread(run_script, text, sandbox, *STRICT)

        code, out, err = run(main())
    assert (code, err) == (0, "")
    assert out.startswith(f"{path} is in use by another process")


# Forks.

_FORKS = """
import asyncio, gc, math, os, selectors, sys
from loops_async import AsyncLoopsClient, Event, JournalError, Outbox

def event(n):
    return Event("e", email=f"u{{n}}@b.co", event_properties={{"number": n}})

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    client = AsyncLoopsClient(rate_limit=math.inf)
    async with Outbox({path!r}, client) as outbox:
        await outbox.put_many([event(n) for n in range(20)])
        await outbox.flush()
        for fork in range(2):
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                {child}
            while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
                await asyncio.sleep(0.002)
            assert os.waitstatus_to_exitcode(ended[1]) == 3, ended
            await outbox.put_many([event(n) for n in range(20)])
            assert await outbox.flush(60) == 0
        assert outbox.stats().accepted == 60
    await client.aclose()

# Not epoll: the child shares its set of descriptors, and asyncio removes its own
# wake-up from the set when the child closes the event loop. After that no thread
# can wake the parent.
def make_loop():
    return asyncio.SelectorEventLoop(selectors.SelectSelector())

with asyncio.Runner(loop_factory=make_loop) as runner:
    runner.run(main())
print("parent done")
"""
_PUT_THEN_EXIT = """
                try:
                    await outbox.put(event(0))
                except JournalError as error:
                    assert "was forked" in str(error), error
                    sys.exit(3)
"""
_CLOSE_THEN_EXIT = """
                await outbox.aclose()
                del outbox
                gc.collect()
                sys.exit(3)
"""
_DROP_THEN_EXIT = """
                del outbox
                gc.collect()
                sys.exit(3)
"""
_EXIT = """
                sys.exit(3)
"""


@needs_fork
@pytest.mark.parametrize(
    "child",
    [
        pytest.param(_PUT_THEN_EXIT, id="puts"),
        pytest.param(_CLOSE_THEN_EXIT, id="closes"),
        pytest.param(_DROP_THEN_EXIT, id="drops"),
        pytest.param(_EXIT, id="exits"),
    ],
)
def test_a_forked_child_does_not_change_the_file_of_its_parent(
    path: Path, child: str
) -> None:
    script = _FORKS.format(path=str(path), child=child)
    options = STRICT
    if sys.version_info >= (3, 12):
        # Python warns of every fork of a process with threads.
        options = (*STRICT, "-W", "ignore:This process:DeprecationWarning")
    with sandbox_in_thread() as sandbox:
        code, out, err = run_script(script, sandbox, *options)
    assert err == ""
    assert (code, out.strip()) == (0, "parent done")
    assert sandbox.counts.accepted == 60
    assert sandbox.counts.duplicates == 0
    assert verdict(path) == "ok"


def test_an_outbox_of_another_process_cannot_be_used_and_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with offline(path) as outbox:
            session = outbox._session
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(os, "getpid", lambda: -1)
                with pytest.raises(JournalError, match="was forked") as caught:
                    await outbox.put_many(events(1))
                assert str(path) in str(caught.value)
                with pytest.raises(JournalError, match="was forked"):
                    await outbox.__aenter__()
                await outbox.aclose()  # has no effect
                outbox._session = session
                outbox.__del__()  # does not warn
            await outbox.put_many(events(1))
        assert states(path) == ["pending"]

    run(main())


_UNCLOSED = """
import asyncio
from loops_async import AsyncLoopsClient, Event, Outbox

holder = []

async def main():
    client = AsyncLoopsClient()
    holder.extend([client, Outbox({path!r}, client)])
    await holder[1].__aenter__()
    await holder[1].put(Event("e", email="ada@b.co"))

asyncio.run(main())
print("done")
"""


def test_the_interpreter_exits_although_an_outbox_was_not_closed(path: Path) -> None:
    with sandbox_in_thread(latency=60) as sandbox:
        code, out, err = run_script(_UNCLOSED.format(path=str(path)), sandbox)
    assert (code, out.strip(), err) == (0, "done", "")
    assert states(path) == ["pending"]
    assert verdict(path) == "ok"


# A full disk.

_FULL = """
import asyncio, os, resource
from loops_async import Event, JournalError, Outbox
from support.clients import client_of
from support.http_server import respond_after, serving
from support.outboxes import FAST
from support.waiting import until

path = {path!r}

def event(n, contact):
    return Event("e", email=f"u{{contact}}@b.co", event_properties={{"number": n}})

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    # Until the disk is full no request has a response, so that one event of each
    # contact is in flight.
    full = asyncio.Event()
    async with (
        serving(respond_after(full)) as server,
        client_of(server, timeout=None) as client,
        Outbox(path, client, _timing=FAST) as outbox,
    ):
        await outbox.put_many([event(n, n % 10) for n in range(30)])
        await server.arrived(10)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # From here on neither the journal nor any other file can grow.
        size = os.stat(path + "-wal").st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        failed = 0
        for n in range(5):
            try:
                await outbox.put(event(100 + n, n))
            except JournalError as error:
                failed += 1
                assert error.retryable
                text = str(error)
        assert failed == 5
        full.set()
        await until(lambda: outbox.stats().paused)
        assert path in outbox.stats().paused
        await asyncio.sleep(0.3)  # many attempts to go on
        assert len(server.requests) == 10, server
        assert outbox.stats().pending == 30
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await outbox.put(event(200, 0))
        assert await outbox.flush(60) == 0
        stats = outbox.stats()
        assert (stats.accepted, stats.duplicates, stats.paused) == (31, 0, None), stats
        assert len(set(server.keys)) == len(server.keys) == 31
        numbers = [one.json()["eventProperties"]["number"] for one in server.requests]
        assert sorted(numbers) == [*range(30), 200]
        for contact in range(10):
            own = [n for n in numbers if n % 10 == contact]
            assert own == sorted(own)
    print(text)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
def test_a_full_disk_loses_no_event_and_sends_none_twice(path: Path) -> None:
    with sandbox_in_thread() as unused:
        code, out, err = run_script(_FULL.format(path=str(path)), unused, *STRICT)
    unexpected = [line for line in err.splitlines() if "outbox:" not in line]
    assert [line for line in unexpected if "sending stopped" not in line] == []
    assert code == 0
    assert out.startswith(f"{path} cannot ")
    assert verdict(path) == "ok"
    assert rows(path) == []
