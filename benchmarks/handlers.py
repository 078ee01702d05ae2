"""What `await outbox.put(...)` costs a handler, while Loops takes 10 a second.

A FastAPI app under uvicorn, who asks it and the Loops behind it are a process
each. 500 requests are under way at any time; the handler that puts takes turns
with the same one that does not, and the median of the rounds counts. In the end
the app is stopped while it is asked, and started again with a Loops whose time
runs faster, so that all that is left gets through and can be counted.
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

from .answering import pin
from .backfill import on_disk
from .processes import Load, beside
from .table import Row, promise, show

LIMIT, IN_FLIGHT = 10, 500
ROUNDS, REQUESTS = 9, 2500
MOST_OF_PLAIN = 3.0
PUT, PLAIN = "with the put", "without it"
PATHS = {PLAIN: "/without", PUT: "/with"}
_UNTIL_STOPPED = 1.5  # seconds of load before the app is told to stop
_FASTER = 1000
_GRACE = 1.0

Asked: TypeAlias = tuple[list[float], list[int], float]
"""Seconds of each request, the numbers of those that were answered, and the
share of a core that asking took."""


# The app


def made() -> FastAPI:
    """Make the app; its outbox is where the environment says."""
    pin(0)
    opened = partial(loops_lifespan, outbox=os.environ["OUTBOX"], grace=_GRACE)
    app = FastAPI(lifespan=opened)

    @app.post(PATHS[PUT])
    async def with_put(number: int, outbox: LoopsOutbox) -> dict[str, str]:
        event = event_of(number)
        await outbox.put(event)
        return {"key": event.idempotency_key}

    @app.post(PATHS[PLAIN])
    async def without(number: int, outbox: LoopsOutbox) -> dict[str, str]:  # noqa: ARG001 - as above
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
    """Run the app; yields when it listens."""
    url, key = loops
    settings = {
        "LOOPS_API_KEY": key,
        "LOOPS_BASE_URL": url,
        "LOOPS_RATE_LIMIT": str(limit),
        "OUTBOX": str(folder / "events.db"),
    }
    place = f"{__package__}.handlers:made"
    options = ("--factory", "--port", "0", "--no-access-log")
    said = folder / "uvicorn.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", place, *options],
            env={**os.environ, **settings},
            cwd=Path(__file__).parents[1],
            stderr=log,
        )
    try:
        while not (found := _LISTENS.search(said.read_text())):
            assert process.poll() is None, said.read_text()
            time.sleep(0.05)
        yield App(found[1], process)
    finally:
        process.kill()
        process.wait()


_LISTENS = re.compile(r"running on (http://\S+)")


class App:
    """The app, and how to stop it."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        self.url = url
        self._process = process

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def state(self, what: str) -> float:
        """Return how many are ``pending``, or the seconds of ``cpu`` it used."""
        with urllib.request.urlopen(f"{self.url}/state") as answer:
            return float(json.load(answer)[what])


# Processes beside it


def _loops(pipe: Connection) -> None:
    """Be Loops: at first as fast as it is, and faster when told."""
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
                switched, speed = time.monotonic(), _FASTER
            pipe.send([int(one.event_properties["number"]) for one in sandbox.events])
            await asyncio.to_thread(pipe.recv)

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        asyncio.run(serve())


def _asking(pipe: Connection, url: str) -> None:
    """Ask for what one is told, with so many requests under way."""
    pin(1)

    async def ask_all() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as session:
            while True:
                path, first, most = await asyncio.to_thread(pipe.recv)
                pipe.send(await asked(session, path, first, most))

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        asyncio.run(ask_all())


async def asked(
    session: aiohttp.ClientSession, path: str, first: int, most: int | None
) -> Asked:
    """Ask so often, or until nobody answers any more."""
    took: list[float] = []
    answered: list[int] = []
    numbers = iter(count(first) if most is None else range(first, first + most))

    async def ask() -> None:
        for number in numbers:
            began = time.perf_counter()
            try:
                async with session.post(path, params={"number": number}) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
            except aiohttp.ClientError:
                if most is not None:
                    raise
                return
            took.append(time.perf_counter() - began)
            answered.append(number)

    load = Load()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(ask())
    return took, answered, load.share()


# What is measured


def measure() -> list[Row]:
    rounds: dict[str, list[list[float]]] = {name: [] for name in PATHS}
    spent: dict[str, list[float]] = {name: [] for name in PATHS}
    shares: list[float] = []
    acknowledged: list[int] = []
    numbers = count(step=REQUESTS)
    with on_disk() as folder, beside(_loops) as loops:
        where = loops.recv()
        with running(folder, where, LIMIT) as app, beside(_asking, app.url) as asking:
            for _ in range(1 + ROUNDS):  # the first is to warm up
                for name, path in PATHS.items():
                    before = app.state("cpu")
                    asking.send((path, next(numbers), REQUESTS))
                    took, answered, share = asking.recv()
                    rounds[name].append(took)
                    spent[name].append((app.state("cpu") - before) / REQUESTS)
                    shares.append(share)
                    if name == PUT:
                        acknowledged += answered
            asking.send((PATHS[PUT], next(numbers), None))
            time.sleep(_UNTIL_STOPPED)
            app.stop()
            _, last, _ = asking.recv()
        assert last, "it was stopped before it was asked"
        acknowledged += last
        loops.send("faster")
        with running(folder, where, float("inf")) as app:
            left = round(app.state("pending"))
            while app.state("pending"):
                time.sleep(0.2)
            app.stop()
        loops.send("count")
        accepted = loops.recv()
    busy = statistics.median(shares)
    print(f"the core of who asks was {busy:.0%} busy, which is in all times")
    return [
        *(timed(name, rounds[name][1:], spent[name][1:]) for name in PATHS),
        {
            "what": "books",
            "acknowledged": len(acknowledged),
            "under way when stopped": len(last),
            "left": left,
            "lost": len({*acknowledged} - {*accepted}),
            "twice": len(accepted) - len({*accepted}),
        },
    ]


def timed(name: str, rounds: list[list[float]], spent: list[float]) -> Row:
    """Return the medians of the rounds."""
    cuts = [statistics.quantiles(some, n=100, method="inclusive") for some in rounds]
    return {
        "what": name,
        "requests": sum(map(len, rounds)),
        "p50": statistics.median(cut[49] for cut in cuts),
        "p99": statistics.median(cut[98] for cut in cuts),
        "cpu": statistics.median(spent),
    }


def report(rows: list[Row]) -> bool:
    """Print it; return whether it is as promised."""
    plain, put, books = rows
    measured = ("p50", "p99", "cpu")
    ratios = {name: put[name] / plain[name] for name in measured}
    show(
        f"A handler, {IN_FLIGHT} requests under way, Loops at {LIMIT} a second",
        [
            ("", "requests", "p50 ms", "p99 ms", "its CPU ms"),
            *(
                (
                    row["what"],
                    row["requests"],
                    *(row[name] * 1e3 for name in measured),
                )
                for row in (plain, put)
            ),
            ("ratio", None, *ratios.values()),
        ],
    )
    print(
        f"\n  stopped under load: {books['acknowledged']} puts acknowledged, "
        f"{books['left']} left for the next start"
    )
    good = promise(f"p99 {PUT}, over {PLAIN}", ratios["p99"], most=MOST_OF_PLAIN)
    good &= promise("acknowledged and lost", books["lost"], most=0)
    return good & promise("accepted twice", books["twice"], most=0)


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    sys.exit(not main())
