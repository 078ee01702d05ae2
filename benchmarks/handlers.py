"""The cost of `await outbox.put(...)` in a handler, with a limit of 10 per second.

The FastAPI app (under uvicorn), the load generator and the sandbox run in a process
each. The load generator keeps 500 requests in flight. The handler with the put and
the handler without it alternate, and the median of the rounds counts. At the end the
app is stopped under load and restarted with a sandbox whose clock runs faster, so
that all pending events are sent and can be counted.
"""

import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import aiohttp
from fastapi import FastAPI

from loops_async import Event
from loops_async.fastapi import LoopsOutbox, loops_lifespan
from loops_async.sandbox import Sandbox

from .backfill import on_disk
from .processes import Load, child_process
from .stub_server import pin
from .table import Row, promise, show

LIMIT, IN_FLIGHT = 10, 500
ROUNDS, REQUESTS = 9, 2500
MAX_P99_RATIO = 3.0
PUT, PLAIN = "with put", "without put"
PATHS = {PLAIN: "/without", PUT: "/with"}
_UNTIL_STOPPED = 1.5  # seconds of load before the app is stopped
_SPEED = 1000  # of the sandbox's clock, to send the pending events
_GRACE = 1.0  # seconds

LoadResult: TypeAlias = tuple[list[float], list[int], float]
"""The seconds of each request, the numbers of the requests with a response, and the
share of a core that the load generator used."""


# The app


def make_app() -> FastAPI:
    """Return the app; the environment variable OUTBOX is the path of its outbox."""
    pin(0)
    lifespan = partial(loops_lifespan, outbox=os.environ["OUTBOX"], grace=_GRACE)
    app = FastAPI(lifespan=lifespan)

    @app.post(PATHS[PUT])
    async def with_put(number: int, outbox: LoopsOutbox) -> dict[str, str]:
        event = event_of(number)
        await outbox.put(event)
        return {"key": event.idempotency_key}

    @app.post(PATHS[PLAIN])
    async def without(number: int, outbox: LoopsOutbox) -> dict[str, str]:  # noqa: ARG001 - the same dependencies
        event = event_of(number)
        return {"key": event.idempotency_key}

    @app.get("/state")
    async def state(outbox: LoopsOutbox) -> dict[str, float]:
        return {"pending": outbox.stats().pending, "cpu": time.process_time()}

    return app


def event_of(number: int) -> Event:
    return Event(
        "planUpgraded",
        email=f"ada{number}@example.com",
        event_properties={"number": number, "plan": "Pro", "amount": 42},
        contact_properties={"firstName": "Ada"},
    )


@contextlib.contextmanager
def running(folder: Path, loops: tuple[str, str], limit: float) -> Iterator["App"]:
    """Run the app; the context begins when the app is listening."""
    url, key = loops
    settings = {
        "LOOPS_API_KEY": key,
        "LOOPS_BASE_URL": url,
        "LOOPS_RATE_LIMIT": str(limit),
        "OUTBOX": str(folder / "events.db"),
    }
    target = f"{__package__}.handlers:make_app"
    options = ("--factory", "--port", "0", "--no-access-log")
    log_path = folder / "uvicorn.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", target, *options],
            env={**os.environ, **settings},
            cwd=Path(__file__).parents[1],
            stderr=log,
        )
    try:
        while not (found := _LISTENS.search(log_path.read_text())):
            assert process.poll() is None, log_path.read_text()
            time.sleep(0.05)
        yield App(found[1], process)
    finally:
        process.kill()
        process.wait()


_LISTENS = re.compile(r"running on (http://\S+)")


class App:
    """The running app."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        self.url = url
        self._process = process

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def state(self, name: str) -> float:
        """Return the number of ``pending`` events, or the ``cpu`` time in seconds."""
        with urllib.request.urlopen(f"{self.url}/state") as response:
            return float(json.load(response)[name])


# The other processes


def _run_sandbox(pipe: Connection) -> None:
    """Run a sandbox whose clock speeds up on the message "faster"."""
    pin(1)
    began = switched = time.monotonic()
    speed = 1

    def clock() -> float:
        return switched - began + speed * (time.monotonic() - switched)

    async def serve() -> None:
        nonlocal speed, switched
        async with Sandbox(rate_limit=LIMIT, clock=clock) as sandbox:
            pipe.send((sandbox.url, sandbox.api_key))
            while await asyncio.to_thread(pipe.recv) == "faster":
                switched, speed = time.monotonic(), _SPEED
            pipe.send([int(one.event_properties["number"]) for one in sandbox.events])
            await asyncio.to_thread(pipe.recv)

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        asyncio.run(serve())


def _generate_load(pipe: Connection, url: str) -> None:
    """Run each load that the pipe delivers, and send back its result."""
    pin(1)

    async def run_loads() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as session:
            while True:
                path, first, total = await asyncio.to_thread(pipe.recv)
                pipe.send(await run_load(session, path, first, total))

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        asyncio.run(run_loads())


async def run_load(
    session: aiohttp.ClientSession, path: str, first: int, total: int | None
) -> LoadResult:
    """Send the requests from `first` on, IN_FLIGHT at a time.

    Args:
        session: The session, with the URL of the app.
        path: The path of the handler.
        first: The number of the first request.
        total: The number of requests; None sends until the app is gone.
    """
    durations: list[float] = []
    answered: list[int] = []
    numbers = iter(count(first) if total is None else range(first, first + total))

    async def send_requests() -> None:
        for number in numbers:
            began = time.perf_counter()
            try:
                async with session.post(path, params={"number": number}) as response:
                    assert response.status == 200, await response.text()
                    await response.read()
            except aiohttp.ClientError:
                if total is not None:
                    raise
                return
            durations.append(time.perf_counter() - began)
            answered.append(number)

    load = Load()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(send_requests())
    return durations, answered, load.share()


# The measurement


def measure() -> list[Row]:
    rounds: dict[str, list[list[float]]] = {name: [] for name in PATHS}
    spent: dict[str, list[float]] = {name: [] for name in PATHS}
    shares: list[float] = []
    acknowledged: list[int] = []
    numbers = count(step=REQUESTS)
    with on_disk() as folder, child_process(_run_sandbox) as sandbox:
        target = sandbox.recv()
        with (
            running(folder, target, LIMIT) as app,
            child_process(_generate_load, app.url) as load,
        ):
            for _ in range(1 + ROUNDS):  # the first round warms up
                for name, path in PATHS.items():
                    before = app.state("cpu")
                    load.send((path, next(numbers), REQUESTS))
                    durations, answered, share = load.recv()
                    rounds[name].append(durations)
                    spent[name].append((app.state("cpu") - before) / REQUESTS)
                    shares.append(share)
                    if name == PUT:
                        acknowledged += answered
            load.send((PATHS[PUT], next(numbers), None))
            time.sleep(_UNTIL_STOPPED)
            app.stop()
            _, last, _ = load.recv()
        assert last, "the app stopped before it received a request"
        acknowledged += last
        sandbox.send("faster")
        with running(folder, target, float("inf")) as app:
            left = round(app.state("pending"))
            while app.state("pending"):
                time.sleep(0.2)
            app.stop()
        sandbox.send("count")
        accepted = sandbox.recv()
    busy = statistics.median(shares)
    print(f"the load generator used {busy:.0%} of its core; all times include this")
    return [
        *(timed(name, rounds[name][1:], spent[name][1:]) for name in PATHS),
        {
            "handler": "totals",
            "acknowledged": len(acknowledged),
            "acknowledged while stopping": len(last),
            "left": left,
            "lost": len({*acknowledged} - {*accepted}),
            "twice": len(accepted) - len({*accepted}),
        },
    ]


def timed(name: str, rounds: list[list[float]], spent: list[float]) -> Row:
    """Return the medians of the rounds."""
    cuts = [statistics.quantiles(times, n=100, method="inclusive") for times in rounds]
    return {
        "handler": name,
        "requests": sum(map(len, rounds)),
        "p50": statistics.median(cut[49] for cut in cuts),
        "p99": statistics.median(cut[98] for cut in cuts),
        "cpu": statistics.median(spent),
    }


def report(rows: list[Row]) -> bool:
    """Print the results; return whether they keep the promises."""
    plain, put, totals = rows
    measured = ("p50", "p99", "cpu")
    ratios = {name: put[name] / plain[name] for name in measured}
    show(
        f"A handler, {IN_FLIGHT} requests in flight, Loops at {LIMIT}/s",
        [
            ("", "requests", "p50 ms", "p99 ms", "CPU ms"),
            *(
                (
                    row["handler"],
                    row["requests"],
                    *(row[name] * 1e3 for name in measured),
                )
                for row in (plain, put)
            ),
            ("ratio", None, *ratios.values()),
        ],
    )
    print(
        f"\n  stopped under load: {totals['acknowledged']} puts acknowledged, "
        f"{totals['left']} pending after the restart"
    )
    good = promise(f"p99 {PUT} / {PLAIN}", ratios["p99"], most=MAX_P99_RATIO)
    good &= promise("acknowledged events lost", totals["lost"], most=0)
    return good & promise("events accepted twice", totals["twice"], most=0)


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
