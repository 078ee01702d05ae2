"""The promise: whatever happens on the way, each event is accepted exactly once.

The sandbox runs in a process of its own and keeps the books; it shares no code
with the client. Three requests in ten meet a fault, of ten kinds, half of them
after the event was accepted.
"""

import asyncio
import json
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from support import http_server as servers

from loops_async import AsyncLoopsClient, Event, LoopsError, Receipt, RetryPolicy

FAULTS = [
    "429",
    "500-before",
    "502",
    "close-before",
    "hang-before",
    "500-after",
    "html-after",
    "close-after",
    "truncate-after",
    "hang-after",
]
CHANCE = 0.03
PATIENT = RetryPolicy(attempts=30, base=0.02, cap=0.5)


@attrs.define
class Books:
    """What the sandbox's process tells.

    Attributes:
        state: Its ``/_sandbox/state``.
        requests: Key, body and fault of each request, in order.
    """

    url: str
    key: str
    state: Any = None
    requests: list[tuple[str, str, str | None]] = attrs.field(factory=list)


@asynccontextmanager
async def elsewhere(**settings: Any) -> AsyncIterator[Books]:
    """Run a sandbox in another process; the books are complete afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(servers.__file__)), json.dumps(settings)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 30,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = json.loads(await process.stdout.readline())
        books = Books(told["url"], told["api_key"])
        yield books
        state = books.url.removesuffix("/api") + "/_sandbox/state"
        async with aiohttp.ClientSession() as session, session.get(state) as answer:
            books.state = await answer.json()
        process.stdin.close()
        books.requests = json.loads(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()


async def send_all(books: Books, events: list[Event]) -> list[Receipt | LoopsError]:
    """Send everything at once, without a limiter or a deadline."""
    async with AsyncLoopsClient(
        books.key,
        base_url=books.url,
        rate_limit=float("inf"),
        timeout=1.0,
        deadline=None,
        retry=PATIENT,
    ) as loops:

        async def outcome(event: Event) -> Receipt | LoopsError:
            try:
                return await loops.send_event(event)
            except LoopsError as error:
                return error

        return await asyncio.gather(*map(outcome, events))


async def exactly_once(count: int) -> str:
    """Send so many events, check the books, and sum up."""
    events = [
        Event(
            "planUpgraded",
            email=f"ada+{number}@example.com",
            event_properties={"number": number},
            contact_properties={"plan": "pro", "nickname": None},
        )
        for number in range(count)
    ]
    settings = {"rate_limit": None, "seed": 7, "faults": dict.fromkeys(FAULTS, CHANCE)}
    began = asyncio.get_running_loop().time()
    async with elsewhere(**settings) as books:
        found = await send_all(books, events)
        took = asyncio.get_running_loop().time() - began

    # Told well of every event.
    failed = [outcome for outcome in found if not isinstance(outcome, Receipt)]
    assert failed == []
    receipts = [outcome for outcome in found if isinstance(outcome, Receipt)]
    keys = [event.idempotency_key for event in events]
    assert [receipt.idempotency_key for receipt in receipts] == keys

    # Each is in once, as it was given, and nothing else is.
    accepted = books.state["events"]
    assert Counter(one["idempotency_key"] for one in accepted) == Counter(keys)
    assert {one["idempotency_key"]: one["event_properties"] for one in accepted} == {
        event.idempotency_key: {"number": number} for number, event in enumerate(events)
    }
    assert {one["email"] for one in accepted} == {event.email for event in events}
    assert len(books.state["contacts"]) == count

    # The same bytes under the same key on every attempt, each of them counted.
    bodies = defaultdict(set)
    made: Counter[str] = Counter()
    struck: Counter[str | None] = Counter()
    for key, body, fault in books.requests:
        bodies[key].add(body)
        made[key] += 1
        struck[fault] += 1
    assert set(bodies) == set(keys)
    assert all(len(found) == 1 for found in bodies.values())
    assert len({body for (body,) in bodies.values()}) == count
    for receipt in receipts:
        # A request that timed out may have died before it arrived.
        assert made[receipt.idempotency_key] <= receipt.attempts
    assert set(struck) == {None, *FAULTS}
    share = 1 - struck[None] / len(books.requests)
    assert 0.2 < share < 0.4

    duplicates = sum(receipt.duplicate for receipt in receipts)
    assert duplicates > 0
    most = max(receipt.attempts for receipt in receipts)
    return (
        f"{count} events in {took:.1f} s: {len(books.requests) / count:.2f} requests "
        f"per event, {share:.1%} of them faulted, {duplicates} confirmed by 409, "
        f"at most {most} attempts"
    )


def test_500_events_through_ten_faults_are_each_accepted_once(
    record_property: Any,
) -> None:
    record_property("figures", servers.run(exactly_once(500), limit=110))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_10_000_events_through_ten_faults_are_each_accepted_once(
    record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = servers.run(exactly_once(10_000), limit=580)
    record_property("figures", figures)
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")
