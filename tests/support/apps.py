"""An app with an outbox under uvicorn in its own processes, and load on that app."""

import asyncio
import math
import os
import re
import signal
import subprocess
import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
from fastapi import FastAPI

from loops_async import (
    AsyncLoopsClient,
    Event,
    LoopsError,
)
from loops_async.fastapi import (
    LoopsClient,
    LoopsOutbox,
    loops_error_handler,
    loops_lifespan,
)
from support.clients import QUICK
from support.processes import Process
from support.waiting import until, wait_until


def app_of(lifespan: Any) -> FastAPI:
    """Make an app that sends, puts, and reports the worker that responded."""
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


def app_from_environment() -> FastAPI:
    """Make the app of a worker process, whose settings `Uvicorn` wrote."""
    return app_of(
        partial(
            loops_lifespan,
            client=partial(AsyncLoopsClient, timeout=1.0, retry=QUICK),
            outbox="events.db",
            grace=float(os.environ["GRACE"]),
            scan_interval=float(os.environ["SCAN_INTERVAL"]),
        )
    )


class Uvicorn(Process):
    """A running uvicorn, which is killed when the block is left.

    Args:
        folder: The folder of the app's files and of uvicorn's log.
        url: The base URL of the sandbox.
        key: The API key of the sandbox.
        options: Options of the command ``uvicorn``.
        rate: The rate limit of each worker's client.
        scan_interval: The seconds between two searches for files of dead workers.
        grace: The seconds for which the outbox sends after the shutdown.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        key: str,
        *options: str,
        rate: float = math.inf,
        scan_interval: float = 60.0,
        grace: float = 0.1,
    ) -> None:
        self._log = folder / f"{next(_numbers)}.log"
        with self._log.open("wb") as log:
            super().__init__(
                *(sys.executable, "-W", "error", "-m", "uvicorn"),
                *("--app-dir", str(Path(__file__).parent), "--factory"),
                *("apps:app_from_environment", "--port", "0"),
                *("--no-access-log", *options),
                cwd=folder,
                env={
                    **os.environ,
                    "LOOPS_API_KEY": key,
                    "LOOPS_BASE_URL": url,
                    "LOOPS_RATE_LIMIT": str(rate),
                    "SCAN_INTERVAL": str(scan_interval),
                    "GRACE": str(grace),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __exit__(self, kind: object, *details: object) -> None:
        if kind is not None:
            sys.stderr.write(self.log())
        super().__exit__(kind, *details)

    def log(self) -> str:
        """Return the output so far."""
        return self._log.read_text()

    def url(self) -> str:
        """Wait until uvicorn listens, and return its URL."""
        wait_until(
            lambda: _LISTENS.search(self.log()) or self._process.poll() is not None
        )
        found = _LISTENS.search(self.log())
        assert found is not None, self.log()
        return found[1]

    def replace_workers(self) -> None:
        """Send the signal that makes uvicorn replace its workers."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Stop uvicorn, wait for its end, and check that the shutdown was clean."""
        self._process.terminate()
        assert self.exit_code() in (0, -signal.SIGTERM), self.log()
        for complaint in ("Traceback", "unclosed outbox", "unclosed AsyncLoopsClient"):
            assert complaint not in self.log()

    def exit_code(self) -> int:
        """Wait until uvicorn ends, and return its exit code."""
        return self._process.wait(60)


_LISTENS = re.compile(r"running on (http://\S+)")
_numbers = count()


class Load:
    """HTTP clients, each of which puts one event after the other through an app.

    Attributes:
        acknowledged: The process and the file that took each event, by the
            number of the event.
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
        """Wait until that many more events are acknowledged."""
        enough = len(self.acknowledged) + number
        await until(lambda: len(self.acknowledged) >= enough)

    async def run(self, url: str, clients: int) -> None:
        """Put events until `stop`, also while the app is down."""
        self._stopped = False
        # Each request has its own connection, so that every worker gets some.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(url, connector=connector) as session:
            pause = 1 / clients  # leaves CPU time for the workers
            await asyncio.gather(
                *[self._client(session, pause) for _ in range(clients)]
            )

    def stop(self) -> None:
        self._stopped = True

    async def _client(self, session: aiohttp.ClientSession, pause: float) -> None:
        while not self._stopped:
            number = next(self._numbers)
            try:
                async with session.post("/put", params={"number": number}) as response:
                    assert response.status == 200, await response.text()
                    taken = await response.json()
            except aiohttp.ClientError:
                pass  # no worker listens at the moment
            else:
                self.acknowledged[number] = taken["pid"], taken["file"]
            await asyncio.sleep(pause)
