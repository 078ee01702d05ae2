"""The promise that each event is accepted exactly once, whatever happens on the way.

The sandbox runs in a process of its own, records every request, and shares no
code with the client. Three requests in ten meet a fault, of ten kinds; half of
the kinds strike after the event was accepted.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from support.clients import client_of
from support.sandbox_process import SandboxProcess
from support.waiting import run

from loops_async import Event, LoopsError, Receipt, RetryPolicy

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
PERSISTENT = RetryPolicy(attempts=30, base=0.02, cap=0.5)

RequestRecord = tuple[str | None, str, str | None]  # key, body and fault


async def send_all(
    sandbox: SandboxProcess, events: list[Event]
) -> list[Receipt | LoopsError]:
    """Send all events at once, without a rate limit or a deadline."""
    async with client_of(
        sandbox, timeout=2.0, deadline=None, retry=PERSISTENT
    ) as client:

        async def outcome(event: Event) -> Receipt | LoopsError:
            try:
                return await client.send_event(event)
            except LoopsError as error:
                return error

        return await asyncio.gather(*map(outcome, events))


def assert_exactly_once(count: int) -> str:
    """Send that many events, check the records of both sides, and summarize them."""
    events = [
        Event(
            "planUpgraded",
            email=f"ada+{number}@example.com",
            event_properties={"number": number},
            contact_properties={"plan": "pro", "nickname": None},
        )
        for number in range(count)
    ]
    faults = dict.fromkeys(FAULTS, CHANCE)
    with SandboxProcess(rate_limit=None, seed=7, faults=faults) as sandbox:
        outcomes = run(send_all(sandbox, events), limit=580)
        state = sandbox.get("state")
        requests = sandbox.requests()

    receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    assert [one for one in outcomes if not isinstance(one, Receipt)] == []
    keys = [event.idempotency_key for event in events]
    assert [receipt.idempotency_key for receipt in receipts] == keys
    assert_accepted_once(state, events)
    attempts = assert_same_bytes(requests, keys)
    for receipt in receipts:
        # A request that timed out may never have reached the sandbox.
        assert attempts[receipt.idempotency_key] <= receipt.attempts

    faulted = Counter(fault for *_, fault in requests)
    assert set(faulted) == {None, *FAULTS}
    share = 1 - faulted[None] / len(requests)
    assert 0.2 < share < 0.4
    duplicates = sum(receipt.duplicate for receipt in receipts)
    assert duplicates > 0
    most_attempts = max(receipt.attempts for receipt in receipts)
    return (
        f"{count} events: {len(requests) / count:.2f} requests per event, "
        f"{share:.1%} of them faulted, {duplicates} events confirmed by a 409, "
        f"at most {most_attempts} attempts"
    )


def assert_accepted_once(state: Any, events: list[Event]) -> None:
    """Check that the sandbox accepted these events, each once and unchanged."""
    accepted = state["events"]
    keys = [event.idempotency_key for event in events]
    assert Counter(one["idempotency_key"] for one in accepted) == Counter(keys)
    assert {one["idempotency_key"]: one["event_properties"] for one in accepted} == {
        event.idempotency_key: {"number": number} for number, event in enumerate(events)
    }
    assert {one["email"] for one in accepted} == {event.email for event in events}
    assert len(state["contacts"]) == len(events)


def assert_same_bytes(
    requests: list[RequestRecord], keys: list[str]
) -> Counter[str | None]:
    """Check that all attempts of an event have the same key and the same body.

    Returns:
        The number of requests for each key.
    """
    bodies = defaultdict(set)
    for key, body, _ in requests:
        bodies[key].add(body)
    assert set(bodies) == set(keys)
    assert all(len(of_key) == 1 for of_key in bodies.values())
    assert len({body for (body,) in bodies.values()}) == len(keys)
    return Counter(key for key, *_ in requests)


def test_500_events_through_ten_faults_are_each_accepted_once(
    record_figures: Callable[[str], None],
) -> None:
    record_figures(assert_exactly_once(500))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_10_000_events_through_ten_faults_are_each_accepted_once(
    record_figures: Callable[[str], None],
) -> None:
    record_figures(assert_exactly_once(10_000))
