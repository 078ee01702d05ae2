"""Events a second, and what each costs, beside everything else one could use.

All in one process and one event loop, taking turns, so that a machine whose
speed drifts slows all alike; the median of the rounds counts. The server is a
process on the other core. With and without orjson (the extra `speed`), under
asyncio and uvloop: a new process for each.

The limiter is on and out of the way: a million permits a second, each coming
back a second later. What `cpu` measures has every option on; here are none.
"""

import asyncio
import gc
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import httpx
from yarl import URL

from loops_async import AsyncLoopsClient, Event, RateLimiter
from loops_async._json import dumps, loads

from . import baseline, tuned
from .answering import answering, pin
from .cpu import CONTACT, LISTS, PROPERTIES
from .floor import Floor
from .table import Row, promise, show

IN_FLIGHT = (1, 10, 50)
BY_HAND, SEND, STREAM = "by hand", "send_event", "stream_events"
LEAST_OF_BY_HAND, MOST_CPU_STREAMED = 0.95, 1.0
LEAST_OF_HTTPX = {10: 5.0, 50: 15.0}
ROUNDS, EVENTS = 9, 2000  # so many that starting and ending are lost in them
SLOW, FEWER = {"httpx", "pyloops"}, 500
_PROGRAM = """
import sys
if sys.argv[1] == "json":
    sys.modules["orjson"] = None
from benchmarks import throughput
throughput.measure_here(*sys.argv[2:])
"""

Turn: TypeAlias = Callable[[int], Awaitable[object]]
"""Sends that many events."""


@asynccontextmanager
async def contenders(base_url: str, in_flight: int) -> AsyncIterator[dict[str, Turn]]:
    body: dict[str, Any] = {
        "email": "ada@example.com",
        "userId": "usr_1",
        "eventName": "planUpgraded",
        "eventProperties": PROPERTIES,
        "mailingLists": LISTS,
        **CONTACT,
    }
    url = f"{base_url}/v1/events/send"
    yarl = URL(url)
    floor = Floor("key", base_url)

    async def by_hand() -> None:
        await baseline.send_event(session, base_url, body)

    async def aiohttp_at_its_best() -> None:
        await tuned.send(best, yarl, dumps(body), uuid.uuid4().hex)

    async def with_httpx() -> None:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        answer = await http.post(url, json=body, headers=key)
        answer.raise_for_status()
        answer.json()

    async def send_event() -> None:
        await loops.send_event(
            "planUpgraded",
            email="ada@example.com",
            user_id="usr_1",
            event_properties=PROPERTIES,
            contact_properties=CONTACT,
            mailing_lists=LISTS,
        )

    async def stream_events(count: int) -> None:
        async for outcome in loops.stream_events(events(count)):
            assert outcome.ok

    async with AsyncExitStack() as stack:
        stack.callback(floor.close)
        session = await stack.enter_async_context(baseline.open_session("key"))
        best = await stack.enter_async_context(tuned.open_session("key"))
        http = await stack.enter_async_context(
            httpx.AsyncClient(headers={"Authorization": "Bearer key"})
        )
        loops = await stack.enter_async_context(
            AsyncLoopsClient(
                "key",
                base_url=base_url,
                rate_limit=RateLimiter(1_000_000),
                max_connections=in_flight,
            )
        )
        turns = {
            "bare asyncio": fan(lambda: floor.send(body), in_flight),
            "tuned aiohttp": fan(aiohttp_at_its_best, in_flight),
            BY_HAND: fan(by_hand, in_flight),
            SEND: fan(send_event, in_flight),
            STREAM: stream_events,
            "httpx": fan(with_httpx, in_flight),
        }
        if importlib.util.find_spec("pyloops"):
            turns["pyloops"] = fan(_pyloops(base_url, body), in_flight)
        yield turns


def events(count: int) -> Iterator[Event]:
    """Yield events of as many contacts, so that none waits for another."""
    for number in range(count):
        yield Event(
            "planUpgraded",
            email=f"ada{number}@example.com",
            user_id=f"usr_{number}",
            event_properties=PROPERTIES,
            contact_properties=CONTACT,
            mailing_lists=LISTS,
        )


def fan(send: Callable[[], Coroutine[Any, Any, object]], in_flight: int) -> Turn:
    """Return a turn that calls it over and over, so many times at once."""

    async def some(count: int) -> None:
        for _ in range(count // in_flight):
            await send()

    async def turn(count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(some(count))

    return turn


def _pyloops(
    base_url: str, body: dict[str, Any]
) -> Callable[[], Coroutine[Any, Any, object]]:
    pyloops = importlib.import_module("pyloops")  # needs Python 3.12
    client = pyloops.LoopsClient(api_key="key", base_url=base_url)

    async def send() -> object:
        return await client.send_event(
            "planUpgraded",
            email=body["email"],
            user_id=body["userId"],
            event_properties=body["eventProperties"],
            mailing_lists=body["mailingLists"],
            **CONTACT,
        )

    return send


async def take_turns(base_url: str, in_flight: int) -> list[Row]:
    """Return the microseconds of CPU and of time each takes for an event."""
    async with contenders(base_url, in_flight) as turns:
        counts = {name: FEWER if name in SLOW else EVENTS for name in turns}
        for name, turn in turns.items():
            await turn(counts[name])
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
        for _ in range(ROUNDS):
            for name, turn in turns.items():
                cpu, began = time.process_time(), time.perf_counter()
                await turn(counts[name])
                spent[name].append(
                    (time.process_time() - cpu, time.perf_counter() - began)
                )
            gc.collect()
    return [
        {
            "contender": name,
            "in flight": in_flight,
            "cpu": statistics.median(cpu for cpu, _ in rounds) / counts[name] * 1e6,
            "time": statistics.median(took for _, took in rounds) / counts[name] * 1e6,
        }
        for name, rounds in spent.items()
    ]


def measure_here(loop: str, base_url: str) -> None:
    """Print the rows for this process as JSON."""
    pin(0)

    async def measured() -> list[Row]:
        rows = []
        for in_flight in IN_FLIGHT:
            rows += await take_turns(base_url, in_flight)
        return rows

    factory = None
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415  - not for Windows

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(measured())))


def measure() -> list[Row]:
    rows = []
    with answering() as base_url:
        for codec in ("orjson", "json"):
            for loop in ("asyncio", "uvloop"):
                if not all(map(importlib.util.find_spec, (codec, loop))):
                    continue
                program = [sys.executable, "-c", _PROGRAM, codec, loop, base_url]
                found = loads(subprocess.check_output(program))
                rows += [{"codec": codec, "loop": loop, **row} for row in found]
    return rows


def ratio(rows: list[Row], what: str, of: Row, to: str) -> float:
    """Return how much more of it one takes than another in the same process."""
    same = ("codec", "loop", "in flight")
    (other,) = [
        row
        for row in rows
        if row["contender"] == to and all(row[key] == of[key] for key in same)
    ]
    return float(of[what] / other[what])


def report(rows: list[Row]) -> bool:
    """Print it; return whether ours is as promised."""
    for codec, loop in dict.fromkeys((row["codec"], row["loop"]) for row in rows):
        some = [row for row in rows if (row["codec"], row["loop"]) == (codec, loop)]
        heads = [f"{what} at {n}" for what in ("ev/s", "CPU") for n in IN_FLIGHT]
        lines: list[list[object]] = []
        for contender in dict.fromkeys(row["contender"] for row in some):
            mine = [row for row in some if row["contender"] == contender]
            faster = [1 / ratio(rows, "time", row, BY_HAND) for row in mine]
            dearer = [ratio(rows, "cpu", row, BY_HAND) for row in mine]
            lines.append([contender, *faster, *dearer])
        version = sys.version.split()[0]
        title = f"Over by hand, so many in flight; {codec}, {loop}, Python {version}"
        show(title, [("", *heads), *lines])
    print()
    good = True
    for row in rows:
        good &= _promised(rows, row)
    return good


def _promised(rows: list[Row], row: Row) -> bool:
    """Hold it to what is promised: with the extra `speed`, on the usual loop."""
    if (row["codec"], row["loop"]) != ("orjson", "asyncio"):
        return True
    good = True
    where = f"{row['in flight']} in flight"
    if row["contender"] == SEND:
        faster = 1 / ratio(rows, "time", row, BY_HAND)
        good &= promise(f"{SEND} over by hand, {where}", faster, least=LEAST_OF_BY_HAND)
        names = {row["contender"] for row in rows}
        leader = "pyloops" if "pyloops" in names else "httpx"
        if row["in flight"] in LEAST_OF_HTTPX:
            faster = 1 / ratio(rows, "time", row, leader)
            least = LEAST_OF_HTTPX[row["in flight"]]
            good &= promise(f"{SEND} over {leader}, {where}", faster, least=least)
    if row["contender"] == STREAM:
        dearer = ratio(rows, "cpu", row, BY_HAND)
        most = MOST_CPU_STREAMED
        good &= promise(f"CPU of {STREAM} to by hand, {where}", dearer, most=most)
    return good


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
