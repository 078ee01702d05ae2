"""CPU time per event with all options, relative to a hand-written loop.

Both run in one process and alternate every few milliseconds, so that a drift of the
machine's speed affects both equally. The best round counts.
"""

import asyncio
import gc
import math
import sys
import time
from collections.abc import Awaitable, Callable

from loops_async import AsyncLoopsClient, RateLimiter
from loops_async._events.rules import PropertyValue
from loops_async._json import dumps, strict_dumps

from . import baseline
from .stub_server import pin, stub_server

MAX_WITH_SPEED, MAX_WITHOUT = 0.95, 1.05
ROUNDS = 7
TURNS = 8
EVENTS = 500
IN_FLIGHT = 10
PROPERTIES: dict[str, PropertyValue] = {
    "amount": 42,
    "plan": "Pro",
    "trial": False,
    "at": "2026-11-23T10:00:00Z",
}
CONTACT: dict[str, PropertyValue | None] = {
    "firstName": "Ada",
    "planName": "Pro",
    "company": None,
}
LISTS = {"cm06f5v0e45nf0ml5754o9cix": True}


async def measure(base_url: str) -> tuple[float, float]:
    """Return the CPU microseconds per event: hand-written loop, send_event."""
    body = {
        "email": "ada@example.com",
        "userId": "usr_1",
        "eventName": "planUpgraded",
        "eventProperties": PROPERTIES,
        "mailingLists": LISTS,
        **CONTACT,
    }
    allowed = ("ada@example.com", "user:usr_1")
    session = baseline.open_session("key")
    loops = AsyncLoopsClient(
        "key",
        base_url=base_url,
        rate_limit=RateLimiter(100, 0.0001),
        allowed_recipients=allowed,
        on_attempt=lambda _: None,
    )

    async def by_hand() -> None:
        await baseline.send_event(session, base_url, body)

    async def ours() -> None:
        await loops.send_event(
            "planUpgraded",
            email="ada@example.com",
            user_id="usr_1",
            event_properties=PROPERTIES,
            contact_properties=CONTACT,
            mailing_lists=LISTS,
        )

    await _turn(by_hand)
    await _turn(ours)
    best = [math.inf, math.inf]
    async with session, loops:
        for _ in range(ROUNDS):
            spent = [0.0, 0.0]
            for _ in range(TURNS):
                spent[0] += await _turn(by_hand)
                spent[1] += await _turn(ours)
            gc.collect()
            best = [min(old, new) for old, new in zip(best, spent, strict=True)]
    by_hand_us, ours_us = (seconds / TURNS / EVENTS * 1e6 for seconds in best)
    return by_hand_us, ours_us


async def _turn(send: Callable[[], Awaitable[None]]) -> float:
    """Return the CPU seconds of one turn."""

    async def send_some() -> None:
        for _ in range(EVENTS // IN_FLIGHT):
            await send()

    began = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(send_some())
    return time.process_time() - began


def main() -> bool:
    """Print the result; return whether it keeps the promise."""
    pin(0)
    with stub_server() as base_url:
        by_hand, ours = asyncio.run(measure(base_url))
    fast = dumps is not strict_dumps
    json = "orjson" if fast else "standard library json"
    most = MAX_WITH_SPEED if fast else MAX_WITHOUT
    print(f"CPU time per event, {json}, Python {sys.version.split()[0]}:")
    print(f"  hand-written loop {by_hand:.1f} us, send_event {ours:.1f} us")
    print(f"  ratio {ours / by_hand:.3f}")
    return ours / by_hand <= most


if __name__ == "__main__":
    sys.exit(not main())
