"""CPU per event: ours with everything on, over a hand-written loop.

Both in one process, taking turns every few milliseconds, so that a machine
whose speed drifts slows both alike; the best of the rounds counts.
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
from .answering import answering, pin

MOST_WITH_SPEED, MOST_WITHOUT = 0.95, 1.05
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
    """Return the CPU microseconds per event, by hand and ours."""
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
    """Return the CPU seconds for some events."""

    async def some() -> None:
        for _ in range(EVENTS // IN_FLIGHT):
            await send()

    began = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(some())
    return time.process_time() - began


def main() -> bool:
    """Print it; return whether it is within what we promise."""
    pin(0)
    with answering() as base_url:
        by_hand, ours = asyncio.run(measure(base_url))
    fast = dumps is not strict_dumps
    json = "orjson" if fast else "standard library json"
    most = MOST_WITH_SPEED if fast else MOST_WITHOUT
    print(f"CPU per event, {json}, Python {sys.version.split()[0]}:")
    print(f"  by hand {by_hand:.1f} us, ours {ours:.1f} us, ratio {ours / by_hand:.3f}")
    return ours / by_hand <= most


if __name__ == "__main__":
    sys.exit(not main())
