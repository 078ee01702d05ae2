"""What only the sender does: one delivery for each event loop, closing, dry runs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
from support import virtual_time as virtual

from loops_async import (
    ClientClosedError,
    ConfigurationError,
    Event,
    Outcome,
    Receipt,
    RecipientNotAllowedError,
)
from loops_async._sending.sender import Sender

from .support import ScriptedTransport, make_sender, now


@attrs.define(eq=False)
class Connections:
    """Makes the transport of each event loop, and remembers it."""

    transports: list[ScriptedTransport] = attrs.field(factory=list)

    async def __call__(self) -> ScriptedTransport:
        transport = ScriptedTransport(lambda at, event: 200)
        self.transports.append(transport)
        return transport


def new_event() -> Event:
    return Event("e", user_id="u")


async def send(sender: Sender, **times: Any) -> Receipt:
    return await sender.send_event(
        new_event(), times.get("timeout", ...), times.get("deadline", ...)
    )


async def read(sender: Sender) -> Any:
    return await sender.request(
        "GET",
        "/v1/lists",
        json=None,
        params=None,
        idempotency_key=None,
        timeout=...,
        deadline=...,
        max_body=1000,
    )


async def outcomes_of(sender: Sender, events: Any) -> list[Outcome]:
    run = sender.bulk(
        events, timeout=..., deadline=..., patience=None, on_outcome=None, keys=None
    )
    return [outcome async for outcome in run.outcomes()]


@contextmanager
def event_loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=virtual.VirtualLoop) as runner:
        yield runner


# Event loops.


def test_a_sender_connects_once_in_each_event_loop() -> None:
    connections = Connections()
    sender = make_sender(connections)
    assert sender.event_loops == []
    with event_loop() as first, event_loop() as second:
        for runner in (first, second, first, second):
            assert runner.run(send(sender)).attempts == 1
        loops = [first.get_loop(), second.get_loop()]
        assert sender.event_loops == loops
        assert [one.loop for one in connections.transports] == loops
        assert [len(one.requests) for one in connections.transports] == [2, 2]
        assert sender.stats().accepted == 4


def test_the_counts_of_a_closed_event_loop_stay_in_the_stats() -> None:
    """The event loop itself is forgotten with the next connection."""
    sender = make_sender(Connections())
    for number in range(1, 4):
        with event_loop() as runner:
            runner.run(send(sender))
            assert sender.event_loops == [runner.get_loop()]
        assert sender.stats().accepted == sender.stats().requests == number
    assert len(sender.event_loops) == 1


def test_a_transport_that_was_closed_is_replaced() -> None:
    """The counts of its requests stay."""

    async def main() -> None:
        connections = Connections()
        sender = make_sender(connections)
        await send(sender)
        connections.transports[0].closed = True
        assert not sender.is_connected
        await send(sender)
        assert sender.is_connected
        assert [len(one.requests) for one in connections.transports] == [1, 1]
        assert sender.stats().accepted == 2
        assert len(sender.event_loops) == 1
        await sender.aclose(0.0)

    virtual.run(main())


def test_a_run_connects_if_no_event_was_sent_in_its_event_loop() -> None:
    """It also finds the connections of its event loop after another was used."""
    connections = Connections()
    sender = make_sender(connections)
    with event_loop() as first, event_loop() as second:
        for runner in (first, second, first):
            (outcome,) = runner.run(outcomes_of(sender, [new_event()]))
            assert outcome.ok
    assert len(connections.transports) == 2


def test_a_sender_is_connected_only_in_an_event_loop_with_open_connections() -> None:
    sender = make_sender(Connections())

    async def is_connected() -> bool:
        return sender.is_connected

    with event_loop() as used, event_loop() as other:
        assert not used.run(is_connected())
        used.run(send(sender))
        assert used.run(is_connected())
        assert not other.run(is_connected())
        assert not sender.is_connected
        used.run(sender.aclose(1.0))
        assert not used.run(is_connected())


def test_the_transport_is_made_for_the_base_url_and_the_timeout() -> None:
    arguments: list[tuple[str, float | None]] = []
    defaults = make_sender(Connections())

    def connect(base_url: str, timeout: float | None) -> Connections:
        arguments.append((base_url, timeout))
        return Connections()

    sender = Sender(
        "key",
        base_url="https://loops.invalid/api/",
        timeout=7.0,
        deadline=None,
        allowed_recipients=None,
        dry_run=False,
        rate_limit=None,
        retry=defaults.retry,
        on_attempt=None,
        connect=connect,
    )
    assert arguments == [("https://loops.invalid/api", 7.0)]
    assert sender.base_url == "https://loops.invalid/api"


# Closing.


def test_a_closed_sender_refuses_every_call() -> None:
    """The error of an event carries its key."""

    async def main() -> None:
        connections = Connections()
        sender = make_sender(connections)
        await sender.aclose(1.0)
        assert sender.closed
        event = new_event()
        with pytest.raises(ClientClosedError) as raised:
            await sender.send_event(event, ..., ...)
        assert raised.value.idempotency_key == event.idempotency_key
        with pytest.raises(ClientClosedError):
            await read(sender)
        with pytest.raises(ClientClosedError):
            await outcomes_of(sender, [event])
        assert connections.transports == []

    virtual.run(main())


def test_closing_closes_the_transport_of_the_running_event_loop_only() -> None:
    connections = Connections()
    sender = make_sender(connections)
    with event_loop() as first, event_loop() as second:
        first.run(send(sender))
        second.run(send(sender))
        second.run(sender.aclose(1.0))
        assert [one.closed for one in connections.transports] == [False, True]


def test_closing_stops_the_runs_of_the_running_event_loop_only() -> None:
    """A run of another event loop sends no further event."""
    connections = Connections()
    sender = make_sender(connections)

    async def take(stream: Any) -> Outcome:
        outcome: Outcome = await anext(stream)
        return outcome

    run = sender.bulk(
        (Event("e", user_id="u") for _ in range(3)),
        timeout=...,
        deadline=...,
        patience=None,
        on_outcome=None,
        keys=None,
    )
    with event_loop() as first, event_loop() as second:
        stream = run.outcomes()
        assert first.run(take(stream)).ok
        second.run(sender.aclose(1.0))
        assert run.stopped_by is None

        async def rest() -> list[Outcome]:
            return [outcome async for outcome in stream]

        outcomes = first.run(rest())
        assert len(outcomes) == 2
        assert isinstance(run.stopped_by, ClientClosedError)
        assert not outcomes[-1].ok


# Dry runs.


def test_a_dry_run_never_connects_and_needs_no_api_key() -> None:
    async def main() -> None:
        connections = Connections()
        sender = make_sender(connections, api_key=None, dry_run=True, rate_limit=None)
        assert sender.limiter is None
        receipt = await send(sender)
        assert receipt.dry_run
        assert receipt.attempts == 0
        outcomes = await outcomes_of(sender, [new_event(), new_event()])
        assert all(o.receipt is not None and o.receipt.dry_run for o in outcomes)
        with pytest.raises(ConfigurationError, match="dry_run"):
            await read(sender)
        assert not sender.is_connected
        assert sender.event_loops == []
        assert connections.transports == []
        assert now() == 0.0
        assert sender.stats().requests == 0

    virtual.run(main())


def test_a_dry_run_checks_the_recipient_and_the_times() -> None:
    async def main() -> None:
        sender = make_sender(Connections(), dry_run=True, allowed_recipients=())
        with pytest.raises(RecipientNotAllowedError):
            await send(sender)
        sender = make_sender(Connections(), dry_run=True)
        with pytest.raises(ConfigurationError, match="timeout"):
            await send(sender, timeout=-1)
        with pytest.raises(ConfigurationError, match="deadline"):
            await send(sender, deadline=0)

    virtual.run(main())


# What a sender reports.


def test_the_repr_of_a_sender_shows_its_address_and_state() -> None:
    async def main() -> None:
        sender = make_sender(Connections())
        assert repr(sender) == "https://loops.invalid/api, open, None"
        await sender.aclose(0.0)
        assert repr(sender) == "https://loops.invalid/api, closed, None"
        dry = make_sender(Connections(), dry_run=True)
        assert repr(dry) == "https://loops.invalid/api, dry run, None"

    virtual.run(main())


def test_the_stats_count_requests_in_flight_and_calls_that_wait() -> None:
    async def main() -> None:
        async def connect() -> ScriptedTransport:
            return ScriptedTransport(lambda at, event: 200, max_connections=2)

        sender = make_sender(connect)
        sends = [asyncio.create_task(send(sender)) for _ in range(5)]
        await asyncio.sleep(0.05)
        stats = sender.stats()
        assert (stats.in_flight, stats.waiting) == (2, 3)
        assert (stats.limit, stats.period, stats.effective_limit) == (None, None, None)
        assert stats.held == 0.0
        await asyncio.gather(*sends)
        stats = sender.stats()
        assert (stats.in_flight, stats.waiting, stats.accepted) == (0, 0, 5)
        await sender.aclose(0.0)

    virtual.run(main())
