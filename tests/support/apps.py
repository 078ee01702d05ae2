"""An app with an outbox under uvicorn, in processes of its own, and load for it."""

import asyncio
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from fastapi import FastAPI

from loops_async import (
    AsyncLoopsClient,
    Event,
    LoopsError,
)
from loops_async._outbox import per_worker as _worker_outbox
from loops_async.fastapi import (
    LoopsClient,
    LoopsOutbox,
    loops_error_handler,
    loops_lifespan,
)
from support.outboxes import HURRIED


def app_of(lifespan: Any) -> FastAPI:
    """An app that sends, puts, and says who answered."""
    app = FastAPI(lifespan=lifespan)
    app.add_exception_handler(LoopsError, loops_error_handler)

    @app.post("/send")
    async def send(email: str, loops: LoopsClient) -> str:
        return (await loops.send_event("signup", email=email)).idempotency_key

    @app.post("/put")
    async def put(number: int, outbox: LoopsOutbox) -> dict[str, Any]:
        await outbox.put(
            Event(
                "signup",
                email=f"u{number}@b.co",
                event_properties={"number": number},
            )
        )
        return {"pid": os.getpid(), "file": outbox._path.name}

    @app.get("/state")
    async def state(outbox: LoopsOutbox) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "file": outbox._path.name,
            "pending": outbox.stats().pending,
        }

    return app


def made() -> FastAPI:
    """Make the app that the environment describes."""
    _worker_outbox.LOOK_EVERY = float(os.environ["LOOK_EVERY"])
    return app_of(
        partial(
            loops_lifespan,
            client=partial(AsyncLoopsClient, timeout=1.0, retry=HURRIED),
            outbox="events.db",
            grace=float(os.environ["GRACE"]),
        )
    )


class Uvicorn:
    """A running uvicorn whose app has its files in the folder."""

    def __init__(
        self,
        folder: Path,
        url: str,
        key: str,
        *options: str,
        rate: float = math.inf,
        look_every: float = 60.0,
        grace: float = 0.1,
    ) -> None:
        self._log = folder / f"{next(_numbers)}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-W", "error", "-m", "uvicorn"),
                    *("--app-dir", str(Path(__file__).parent), "--factory"),
                    *("apps:made", "--port", "0", "--no-access-log", *options),
                ],
                cwd=folder,
                env={
                    **os.environ,
                    "LOOPS_API_KEY": key,
                    "LOOPS_BASE_URL": url,
                    "LOOPS_RATE_LIMIT": str(rate),
                    "LOOK_EVERY": str(look_every),
                    "GRACE": str(grace),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            sys.stderr.write(self.log())
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # with its workers
            self._process.wait()

    def log(self) -> str:
        """Return what it said so far."""
        return self._log.read_text()

    def url(self) -> str:
        """Wait until it listens, and return where."""
        eventually(
            lambda: _LISTENS.search(self.log()) or self._process.poll() is not None
        )
        found = _LISTENS.search(self.log())
        assert found is not None, self.log()
        return found[1]

    def hang_up(self) -> None:
        """Ask it for new workers."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        self._process.terminate()
        assert self.ended() in (0, -signal.SIGTERM), self.log()
        for bad in ("Traceback", "unclosed outbox", "unclosed AsyncLoopsClient"):
            assert bad not in self.log()

    def ended(self) -> int:
        """Wait until it ends by itself, and return its exit code."""
        return self._process.wait(60)


_LISTENS = re.compile(r"running on (http://\S+)")
_numbers = count()


def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds; the test's time limit is the way out."""
    while not condition():
        time.sleep(0.005)


class Load:
    """Clients that put events through an app, one after the other each.

    Attributes:
        acknowledged: Process and file that took each event, by its number.
    """

    def __init__(self) -> None:
        self.acknowledged: dict[int, tuple[int, str]] = {}
        self._numbers = count()
        self._stopped = False

    def workers(self) -> set[int]:
        return {pid for pid, _ in self.acknowledged.values()}

    def files(self) -> set[str]:
        return {file for _, file in self.acknowledged.values()}

    async def more(self, number: int) -> None:
        """Wait until so many more are acknowledged."""
        enough = len(self.acknowledged) + number
        await until(lambda: len(self.acknowledged) >= enough)

    async def run(self, url: str, clients: int) -> None:
        """Put until told to stop, whatever becomes of the app."""
        self._stopped = False
        # Many connections in a row, so that all workers have some.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(url, connector=connector) as session:
            pause = 1 / clients  # it needs time for its workers, too
            await asyncio.gather(
                *[self._client(session, pause) for _ in range(clients)]
            )

    def stop(self) -> None:
        self._stopped = True

    async def _client(self, session: aiohttp.ClientSession, pause: float) -> None:
        while not self._stopped:
            number = next(self._numbers)
            try:
                async with session.post("/put", params={"number": number}) as answer:
                    assert answer.status == 200, await answer.text()
                    said = await answer.json()
            except aiohttp.ClientError:
                pass  # the worker is gone, or not there yet
            else:
                self.acknowledged[number] = said["pid"], said["file"]
            await asyncio.sleep(pause)


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds; the test's time limit is the way out."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
