"""Events per second and CPU time per event, compared with other clients.

All contenders alternate in one process and one event loop, so that a drift of the
machine's speed affects all equally. The median of the rounds counts. The server is a
process on the other core. Each combination of orjson (the extra `speed`) or the
standard library with asyncio or uvloop runs in a new process.

The limiter is active but does not limit: it has a million permits per second. The
benchmark `cpu` measures with all options, this one without.
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
from .cpu import CONTACT, LISTS, PROPERTIES
from .floor import Floor
from .stub_server import pin, stub_server
from .table import Row, promise, show

IN_FLIGHT = (1, 10, 50)
BY_HAND, SEND, STREAM = "hand-written loop", "send_event", "stream_events"
MIN_OF_BY_HAND, MAX_CPU_STREAMED = 0.95, 1.0
MIN_OF_HTTPX = {10: 5.0, 50: 15.0}
ROUNDS, EVENTS = 9, 2000  # enough to make the start and the end negligible
SLOW, FEWER = {"httpx", "pyloops"}, 500
_PROGRAM = """
import sys
if sys.argv[1] == "json":
    sys.modules["orjson"] = None
from benchmarks import throughput
throughput.measure_here(*sys.argv[2:])
"""

Turn: TypeAlias = Callable[[int], Awaitable[object]]
"""A function that sends a number of events."""


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

    async def tuned_aiohttp() -> None:
        await tuned.send(tuned_session, yarl, dumps(body), uuid.uuid4().hex)

    async def with_httpx() -> None:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        response = await http.post(url, json=body, headers=key)
        response.raise_for_status()
        response.json()

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
        tuned_session = await stack.enter_async_context(tuned.open_session("key"))
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
            "tuned aiohttp": fan(tuned_aiohttp, in_flight),
            BY_HAND: fan(by_hand, in_flight),
            SEND: fan(send_event, in_flight),
            STREAM: stream_events,
            "httpx": fan(with_httpx, in_flight),
        }
        if importlib.util.find_spec("pyloops"):
            turns["pyloops"] = fan(_pyloops(base_url, body), in_flight)
        yield turns


def events(count: int) -> Iterator[Event]:
    """Yield events of different contacts, so that no event waits for another."""
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
    """Return a turn that calls `send` repeatedly, `in_flight` times concurrently."""

    async def send_some(count: int) -> None:
        for _ in range(count // in_flight):
            await send()

    async def turn(count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(send_some(count))

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
    """Return the microseconds of CPU time and of time per event of each contender."""
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
    """Print the results of this process as JSON."""
    pin(0)

    async def measured() -> list[Row]:
        rows = []
        for in_flight in IN_FLIGHT:
            rows += await take_turns(base_url, in_flight)
        return rows

    factory = None
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415  - not available on Windows

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(measured())))


def measure() -> list[Row]:
    rows = []
    with stub_server() as base_url:
        for codec in ("orjson", "json"):
            for loop in ("asyncio", "uvloop"):
                if not all(map(importlib.util.find_spec, (codec, loop))):
                    continue
                program = [sys.executable, "-c", _PROGRAM, codec, loop, base_url]
                found = loads(subprocess.check_output(program))
                rows += [{"codec": codec, "loop": loop, **row} for row in found]
    return rows


def ratio(rows: list[Row], value: str, of: Row, to: str) -> float:
    """Return the ratio of a value between a result and another contender's."""
    same = ("codec", "loop", "in flight")
    (other,) = [
        row
        for row in rows
        if row["contender"] == to and all(row[key] == of[key] for key in same)
    ]
    return float(of[value] / other[value])


def report(rows: list[Row]) -> bool:
    """Print the results; return whether they keep the promises."""
    for codec, loop in dict.fromkeys((row["codec"], row["loop"]) for row in rows):
        some = [row for row in rows if (row["codec"], row["loop"]) == (codec, loop)]
        heads = [f"{head}, {n}" for head in ("events/s", "CPU") for n in IN_FLIGHT]
        lines: list[list[object]] = []
        for contender in dict.fromkeys(row["contender"] for row in some):
            mine = [row for row in some if row["contender"] == contender]
            faster = [1 / ratio(rows, "time", row, BY_HAND) for row in mine]
            dearer = [ratio(rows, "cpu", row, BY_HAND) for row in mine]
            lines.append([contender, *faster, *dearer])
        version = sys.version.split()[0]
        title = (
            "Relative to the hand-written loop, by requests in flight; "
            f"{codec}, {loop}, Python {version}"
        )
        show(title, [("", *heads), *lines])
    print()
    good = True
    for row in rows:
        good &= _promised(rows, row)
    return good


def _promised(rows: list[Row], row: Row) -> bool:
    """Check the promises, which are for the extra `speed` and the asyncio loop."""
    if (row["codec"], row["loop"]) != ("orjson", "asyncio"):
        return True
    good = True
    where = f"{row['in flight']} in flight"
    if row["contender"] == SEND:
        faster = 1 / ratio(rows, "time", row, BY_HAND)
        what = f"events/s of {SEND} / {BY_HAND}, {where}"
        good &= promise(what, faster, least=MIN_OF_BY_HAND)
        names = {row["contender"] for row in rows}
        leader = "pyloops" if "pyloops" in names else "httpx"
        if row["in flight"] in MIN_OF_HTTPX:
            faster = 1 / ratio(rows, "time", row, leader)
            least = MIN_OF_HTTPX[row["in flight"]]
            what = f"events/s of {SEND} / {leader}, {where}"
            good &= promise(what, faster, least=least)
    if row["contender"] == STREAM:
        dearer = ratio(rows, "cpu", row, BY_HAND)
        most = MAX_CPU_STREAMED
        good &= promise(f"CPU of {STREAM} / {BY_HAND}, {where}", dearer, most=most)
    return good


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
