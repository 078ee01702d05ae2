"""What worker processes run, and the test that enqueues for them.

    taskiq worker worker_app:worker

The settings are in the environment, as `Workers` writes them.
"""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from redis.asyncio import Redis
from taskiq import TaskiqDepends, TaskiqMessage, TaskiqMiddleware
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from loops_async import AsyncLoopsClient, Event, RetryPolicy
from loops_async.taskiq import SendEvent, add_loops, get_client

SETTINGS = "WORKER_APP"
DELIVERIES = "deliveries"


def make(
    redis: str, url: str, key: str, *, deadline: float = 20.0, **queue: Any
) -> tuple[RedisStreamBroker, SendEvent]:
    """Make the broker, and the task that sends.

    Args:
        redis: Its URL.
        url: Of the sandbox, like the key.
        key: Of the API.
        deadline: As in add_loops.
        queue: As in RedisStreamBroker.
    """
    quick = {"xread_block": 50, "xread_count": 10, "unacknowledged_lock_timeout": 1.0}
    broker = RedisStreamBroker(redis, **{**quick, **queue})
    broker.with_result_backend(RedisAsyncResultBackend(redis))

    def client() -> AsyncLoopsClient:
        if not broker.is_worker_process:
            raise AssertionError("who only enqueues needs no client")
        return AsyncLoopsClient(
            key,
            base_url=url,
            rate_limit=math.inf,
            timeout=2.0,
            retry=RetryPolicy(base=0.05, cap=1.0),
        )

    send_event = add_loops(broker, client=client, deadline=deadline)
    broker.add_middlewares(_Counting(broker))

    @broker.task("tick")
    async def tick() -> None:
        """Be a new message, which has the broker look for old ones."""

    @broker.task("welcome")
    async def welcome(
        event: Event, loops: AsyncLoopsClient = TaskiqDepends(get_client)
    ) -> str:
        return (await loops.send_event(event)).idempotency_key

    return broker, send_event


def worker() -> RedisStreamBroker:
    broker, _ = make(**json.loads(os.environ[SETTINGS]))
    return broker


class _Counting(TaskiqMiddleware):
    """Counts how often each task is delivered."""

    def __init__(self, broker: RedisStreamBroker) -> None:
        super().__init__()
        self._broker = broker

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        if message.task_name != "tick":
            async with Redis(connection_pool=self._broker.connection_pool) as redis:
                await redis.hincrby(DELIVERIES, message.task_id, 1)
        return message


class Workers:
    """A group of worker processes, killed at the end of the block.

    Args:
        settings: Of `make`.
        options: Of ``taskiq worker``.
    """

    def __init__(self, settings: dict[str, Any], *options: str) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-m", "taskiq", "worker"),
                *("worker_app:worker", "--app-dir", str(Path(__file__).parent)),
                *("--log-level", "WARNING", *options),
            ],
            env={**os.environ, SETTINGS: json.dumps(settings)},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()

    async def stop(self) -> str:
        """Ask them to end, and return what they complained about."""
        self._process.send_signal(signal.SIGTERM)
        _, complaints = await asyncio.to_thread(self._process.communicate)
        assert self._process.returncode == 0, complaints
        return str(complaints, "utf-8")
