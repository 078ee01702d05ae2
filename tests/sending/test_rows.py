"""Runs of the rows of a journal, and the record of their attempts, in virtual time."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest
from support import virtual_time as virtual

from loops_async import (
    BadRequestError,
    ClientClosedError,
    Event,
    LoopsError,
    NotTriedError,
    RateLimiter,
    Receipt,
    RecipientNotAllowedError,
    RetryPolicy,
)
from loops_async._sending.sender import Sender
from loops_async._sending.tries import Tries

from .support import ScriptedTransport, make_sender, now


@attrs.frozen
class StoredEvent:
    """A row of an imitated journal."""

    idempotency_key: str
    body: bytes = b"{}"
    email: str | None = None
    user_id: str | None = "u"


@attrs.frozen
class RowEnd:
    """What became of a row."""

    index: int
    row: StoredEvent
    receipt: Receipt | None
    error: LoopsError | None


class TooOld(LoopsError):
    """The error of a record that refuses an attempt."""


@attrs.define(eq=False)
class AttemptRecord:
    """A record in memory, whose writes take a second.

    Attributes:
        policy: The policy of the rows.
        refuse: Returns the error that refuses an attempt, or None.
        calls: The time and the name of each call.
    """

    policy: RetryPolicy = RetryPolicy(attempts=5, base=0.1)  # noqa: RUF009 - frozen
    refuse: Callable[[Tries], LoopsError | None] = lambda tries: None
    calls: list[tuple[float, str]] = attrs.field(factory=list)

    async def before_attempt(self, key: str | None, tries: Tries) -> None:
        await asyncio.sleep(1.0)
        self.calls.append((now(), f"before {key}"))
        error = self.refuse(tries)
        if error is not None:
            raise error

    def after_failure(self, key: str | None, error: LoopsError) -> None:
        self.calls.append((now(), f"after {key}: {type(error).__name__}"))


@attrs.define(eq=False)
class RowTransport(ScriptedTransport):
    """A transport for requests whose content is the body of a row."""

    results: list[Any] = attrs.field(factory=list)

    async def exchange(self, request: Any, api_key: Any, timeout: Any) -> Any:
        stored = attrs.evolve(request, content=Event("e", user_id="u"))
        return await super().exchange(stored, api_key, timeout)


def connection_to(*results: Any) -> RowTransport:
    """Make a transport with these results, then 200."""
    script = iter(results)
    return RowTransport(lambda at, event: next(script, 200))


def sender_of(transport: RowTransport, **settings: Any) -> Sender:
    async def connect() -> RowTransport:
        return transport

    return make_sender(connect, **settings)


async def ends_of(
    sender: Sender, record: AttemptRecord, *rows: StoredEvent
) -> list[RowEnd]:
    async def source() -> AsyncIterator[StoredEvent]:
        for row in rows:
            yield row

    run = sender.send_rows(source(), StoredEvent, RowEnd, record, 100)
    return [end async for end in run.outcomes()]


def test_each_attempt_is_recorded_before_its_request_is_sent() -> None:
    """So is each failure that another attempt follows."""

    async def main() -> None:
        transport, record = connection_to(500, 429), AttemptRecord()
        (end,) = await ends_of(sender_of(transport), record, StoredEvent("k"))
        assert end.receipt is not None
        assert end.receipt.attempts == 3
        assert [name for _, name in record.calls] == [
            "before k",
            "after k: ServerError",
            "before k",
            "after k: RateLimitError",
            "before k",
        ]
        recorded = [at for at, name in record.calls if name == "before k"]
        assert [one.at for one in transport.requests] == recorded

    virtual.run(main())


def test_the_time_of_recording_does_not_shorten_the_timeout() -> None:
    async def main() -> None:
        transport, record = connection_to(), AttemptRecord()
        transport.takes = 0.9
        sender = sender_of(transport, timeout=1.0, deadline=0.5)
        (end,) = await ends_of(sender, record, StoredEvent("k"))
        assert end.receipt is not None

    virtual.run(main())


def test_the_policy_of_the_record_wins_over_that_of_the_sender() -> None:
    async def main() -> None:
        transport = connection_to(*[400, 500, 500, 500])
        record = AttemptRecord(RetryPolicy(attempts=3, base=0))
        sender = sender_of(transport, retry=RetryPolicy(attempts=1))
        rows = StoredEvent("k1"), StoredEvent("k2")
        refused, unknown = await ends_of(sender, record, *rows)
        assert type(refused.error) is BadRequestError
        assert unknown.error is not None
        assert unknown.error.attempts == 3

    virtual.run(main())


def test_an_attempt_that_the_record_refuses_is_not_sent_and_frees_its_permit() -> None:
    """The run continues with the next row."""

    async def main() -> None:
        def refuse(tries: Tries) -> LoopsError | None:
            return TooOld("too old") if tries.request.key == "k1" else None

        transport = connection_to()
        limiter = RateLimiter(1, clock=now)
        record = AttemptRecord(refuse=refuse)
        rows = StoredEvent("k1"), StoredEvent("k2")
        sender = sender_of(transport, rate_limit=limiter)
        refused, accepted = await ends_of(sender, record, *rows)
        assert type(refused.error) is TooOld
        assert accepted.receipt is not None
        assert len(transport.requests) == 1
        assert transport.requests[0].at == pytest.approx(2.0)
        assert "0 in flight" in repr(limiter)

    virtual.run(main())


def test_a_later_attempt_that_the_record_refuses_leaves_the_run_able_to_send() -> None:
    """The error counts the attempts that were made before."""

    async def main() -> None:
        def refuse(tries: Tries) -> LoopsError | None:
            return TooOld("too old") if tries.attempts else None

        async def rows() -> AsyncIterator[StoredEvent]:
            yield StoredEvent("k1")
            await asyncio.sleep(100)  # all workers end meanwhile
            yield StoredEvent("k2")

        record = AttemptRecord(refuse=refuse)
        run = sender_of(connection_to(429)).send_rows(
            rows(), StoredEvent, RowEnd, record, 100
        )
        refused, accepted = [end async for end in run.outcomes()]
        assert type(refused.error) is TooOld
        assert refused.error.attempts == 1
        assert accepted.receipt is not None

    virtual.run(main())


@pytest.mark.parametrize("ambiguous", [False, True])
def test_a_row_that_another_process_tried_keeps_what_its_attempts_showed(
    ambiguous: bool,
) -> None:
    """After nothing but 429s, a 409 does not show that Loops accepted the event."""

    async def main() -> None:
        def resume(tries: Tries) -> LoopsError | None:
            tries.resumed(ambiguous=ambiguous)
            assert tries.only_rate_limited is not ambiguous
            return None

        record = AttemptRecord(refuse=resume)
        (end,) = await ends_of(sender_of(connection_to(409)), record, StoredEvent("k"))
        if ambiguous:
            assert end.receipt is not None
            assert end.receipt.duplicate
        else:
            assert end.error is not None

    virtual.run(main())


def test_an_error_after_a_resumed_ambiguous_attempt_is_ambiguous() -> None:
    async def main() -> None:
        def resume(tries: Tries) -> LoopsError | None:
            tries.resumed(ambiguous=True)
            return None

        record = AttemptRecord(refuse=resume)
        (end,) = await ends_of(sender_of(connection_to(400)), record, StoredEvent("k"))
        assert type(end.error) is BadRequestError
        assert end.error.maybe_accepted

    virtual.run(main())


def test_a_run_of_rows_waits_for_the_end_of_any_outage() -> None:
    """Its patience is unlimited."""

    async def main() -> None:
        transport = RowTransport(lambda at, event: 503 if at < 7200 else 200)
        record = AttemptRecord(RetryPolicy(attempts=10, base=0.1))
        (end,) = await ends_of(sender_of(transport), record, StoredEvent("k"))
        assert end.receipt is not None
        assert now() > 7200

    virtual.run(main())


def test_a_run_of_rows_that_is_stopped_leaves_the_other_rows_untried() -> None:
    """A request in flight finishes, and its row has its own end."""

    async def main() -> None:
        transport, record = connection_to(), AttemptRecord()

        async def rows() -> AsyncIterator[StoredEvent]:
            for number in range(2):
                yield StoredEvent(f"k{number}")

        transport.takes = 10.0
        run = sender_of(transport).send_rows(rows(), StoredEvent, RowEnd, record, 100)
        asyncio.get_running_loop().call_at(
            5.0, run.stop, ClientClosedError("sending was stopped")
        )
        ends = {end.row.idempotency_key: end async for end in run.outcomes()}
        assert ends["k0"].receipt is not None
        assert type(ends["k1"].error) is NotTriedError
        assert str(ends["k1"].error) == "not tried: sending was stopped"
        assert now() == 11.0

    virtual.run(main())


@pytest.mark.parametrize(
    "row",
    [
        StoredEvent("k", user_id="other"),
        StoredEvent("k", b'{"userId":"other"}'),
        StoredEvent("k", b'{"userId":"u","email":"eve@example.com"}'),
    ],
)
def test_the_allow_list_checks_a_row_and_its_body(row: StoredEvent) -> None:
    async def main() -> None:
        transport, record = connection_to(), AttemptRecord()
        sender = sender_of(transport, allowed_recipients=["user:u"])
        allowed = StoredEvent("allowed", b'{"eventName":"e","userId":"u"}')
        ends = await ends_of(sender, record, row, allowed)
        refused, accepted = sorted(ends, key=lambda end: end.index)
        assert type(refused.error) is RecipientNotAllowedError
        assert refused.error.idempotency_key == "k"
        assert accepted.receipt is not None
        assert len(transport.requests) == 1

    virtual.run(main())


def test_a_dry_run_of_rows_records_and_sends_nothing() -> None:
    async def main() -> None:
        transport, record = connection_to(), AttemptRecord()
        sender = sender_of(transport, dry_run=True, rate_limit=math.inf)
        (end,) = await ends_of(sender, record, StoredEvent("k"))
        assert end.receipt is not None
        assert end.receipt.dry_run
        assert record.calls == []
        assert transport.requests == []

    virtual.run(main())
