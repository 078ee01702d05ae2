"""A broker for worker processes, and for the test that enqueues tasks for them.

The command is ``taskiq worker worker_app:worker``. `Workers` runs it and writes
the settings into the environment.
"""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from taskiq import TaskiqDepends, TaskiqMessage, TaskiqMiddleware
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from loops_async import AsyncLoopsClient, Event, RetryPolicy
from loops_async.taskiq import SendEvent, add_loops, get_client
from support.processes import Process

SETTINGS = "WORKER_APP"
DELIVERIES = "deliveries"


def make(
    redis: str, url: str, key: str, *, deadline: float = 20.0, **queue: Any
) -> tuple[RedisStreamBroker, SendEvent]:
    """Make the broker and the task that sends.

    Args:
        redis: The URL of the Redis server.
        url: The base URL of the sandbox.
        key: The API key of the sandbox.
        deadline: The deadline of `add_loops`.
        queue: Arguments of RedisStreamBroker.
    """
    defaults = {
        "xread_block": 50,
        "xread_count": 10,
        "unacknowledged_lock_timeout": 1.0,
    }
    broker = RedisStreamBroker(redis, **{**defaults, **queue})
    broker.with_result_backend(RedisAsyncResultBackend(redis))

    def client() -> AsyncLoopsClient:
        if not broker.is_worker_process:
            raise AssertionError("a process that only enqueues needs no client")
        return AsyncLoopsClient(
            key,
            base_url=url,
            rate_limit=math.inf,
            timeout=2.0,
            retry=RetryPolicy(base=0.05, cap=1.0),
        )

    send_event = add_loops(broker, client=client, deadline=deadline)
    broker.add_middlewares(_DeliveryCounter(broker))

    @broker.task("tick")
    async def tick() -> None:
        """Do nothing: a new message makes the broker look for old ones."""

    @broker.task("welcome")
    async def welcome(
        event: Event, loops: AsyncLoopsClient = TaskiqDepends(get_client)
    ) -> str:
        return (await loops.send_event(event)).idempotency_key

    return broker, send_event


def worker() -> RedisStreamBroker:
    broker, _ = make(**json.loads(os.environ[SETTINGS]))
    return broker


class _DeliveryCounter(TaskiqMiddleware):
    """A middleware that counts the deliveries of each task in Redis."""

    def __init__(self, broker: RedisStreamBroker) -> None:
        super().__init__()
        self._broker = broker

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        if message.task_name != "tick":
            async with Redis(connection_pool=self._broker.connection_pool) as redis:
                await redis.hincrby(DELIVERIES, message.task_id, 1)
        return message


class Workers(Process):
    """A group of worker processes, which are killed when the block is left.

    Args:
        settings: Arguments of `make`.
        options: Options of ``taskiq worker``.
    """

    def __init__(self, settings: dict[str, Any], *options: str) -> None:
        super().__init__(
            *(sys.executable, "-W", "error", "-m", "taskiq", "worker"),
            *("worker_app:worker", "--app-dir", str(Path(__file__).parent)),
            *("--log-level", "WARNING", *options),
            env={**os.environ, SETTINGS: json.dumps(settings)},
            stderr=subprocess.PIPE,
        )

    async def stop(self) -> str:
        """Stop the workers, and return their standard error."""
        self._process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(self._process.communicate)
        assert self._process.returncode == 0, errors
        return str(errors, "utf-8")
