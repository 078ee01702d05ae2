"""Events, reports and event loops for tests of `send_events`."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from support import waiting

from loops_async import (
    Event,
    SendReport,
)

LOOPS = ["asyncio", "uvloop"]
_CLASSES = ("AsyncLoops", "Bulk", "Delivery", "Intake", "Sender")
PARTS = ("accepted", "duplicates", "failures", "unknown", "not_tried")


def run(
    main: Coroutine[Any, Any, None],
    loop: str = "asyncio",
    *,
    limit: float = waiting.LIMIT,
) -> None:
    """Run like asyncio.run, in an event loop of this kind."""
    factory = None
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    waiting.run(main, limit, loop_factory=factory)


def events_for(count: int, contacts: int | None = None) -> list[Event]:
    return [
        Event("e", email=f"u{n % (contacts or count)}@b.co", event_properties={"n": n})
        for n in range(count)
    ]


def sizes(report: SendReport) -> dict[str, int]:
    """Return the number of outcomes in each part of the report that has any."""
    every = {part: len(getattr(report, part)) for part in PARTS}
    assert sum(every.values()) == len(report)
    return {part: size for part, size in every.items() if size}


def senders_left() -> list[str]:
    """Return the names of the tasks that belong to the client."""
    names = [repr(task.get_coro()) for task in asyncio.all_tasks()]
    return [name for name in names if any(one in name for one in _CLASSES)]
