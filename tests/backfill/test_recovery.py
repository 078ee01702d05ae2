"""Runs that are stopped, cancelled or interrupted, and the keys of their rows."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest
from support.backfills import (
    HEAD,
    NUMBERS,
    Confirm,
    counts_of,
    edit,
    journal_of,
    json_lines,
    rejects_of,
    row,
    send,
    with_sandbox,
    write,
)
from support.clients import client_of
from support.outboxes import numbers
from support.waiting import until

from loops_async import (
    AuthenticationError,
    BackfillReport,
    ConfigurationError,
    NotTriedError,
    Preview,
    backfill,
)
from loops_async._backfill.backfill import Backfill
from loops_async.sandbox import Sandbox

# Keys


def test_a_run_without_its_journal_derives_the_same_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2), row(2)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        first = [event.idempotency_key for event in sandbox.events]
        journal_of(path).unlink()
        report = await send(path, sandbox)
        assert counts_of(report) == {"rows": 3, "duplicates": 3}
        report = await send(path, sandbox, journal=tmp_path / "other.db")
        assert counts_of(report) == {"rows": 3, "accepted": 3}
        keys = [event.idempotency_key for event in sandbox.events]
        assert len({*first, *keys}) == 6

        # A journal that was moved keeps the name of its run.
        shutil.move(journal_of(path), tmp_path / "moved.db")
        report = await send(path, sandbox, journal=tmp_path / "moved.db")
        assert counts_of(report) == {"rows": 3, "duplicates": 3}
        assert sandbox.counts.accepted == 6

    with_sandbox(use)


HEAD_WITH_KEY = f"{HEAD},idempotency_key"


def row_with_key(number: int, key: str) -> str:
    return f"{row(number)},{key}"


def test_a_key_given_in_a_row_is_used_and_no_other_row_can_have_it(
    tmp_path: Path,
) -> None:
    pairs = [(1, "k1"), (2, "k1"), (1, "k1"), (1, "")]
    lines = [row_with_key(number, key) for number, key in pairs]
    path = write(tmp_path / "events.csv", lines, HEAD_WITH_KEY)
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, confirm=confirm)
        assert counts_of(report) == {"rows": 4, "accepted": 2, "invalid": 2}
        first, second = sandbox.events
        assert "k1" in (first.idempotency_key, second.idempotency_key)
        assert numbers(sandbox) == [1, 1]

    with_sandbox(use)
    rejects = json_lines(rejects_of(path))
    assert [reject["line"] for reject in rejects] == [3, 4]
    assert {reject["error"].partition(":")[0] for reject in rejects} == {
        "idempotency_key"
    }
    # Without its key, a corrected reject could be accepted a second time.
    assert [reject["record"]["idempotency_key"] for reject in rejects] == ["k1", "k1"]
    (preview,) = confirm.previews
    assert preview.invalid == 2
    assert [problem.partition(": ")[0] for problem in preview.problems] == [
        "events.csv:3",
        "events.csv:4",
    ]


def test_a_row_with_a_key_can_be_changed_until_it_was_attempted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.csv"

    async def use(sandbox: Sandbox) -> None:
        lines = [row_with_key(n, f"k{n}") for n in range(12)]
        write(path, lines, HEAD_WITH_KEY)
        await send(path, sandbox)
        sandbox.reset()
        attempted = f"state = 'pending', ambiguous_since = {time.time()}"
        never_attempted = "state = 'pending', ambiguous_since = NULL"
        edit(path, f"UPDATE events SET {never_attempted} WHERE key = 'k0'")
        edit(path, "UPDATE events SET state = 'rejected' WHERE key = 'k1'")
        edit(path, f"UPDATE events SET {attempted} WHERE key = 'k2'")
        changed = [row_with_key(n + 100, f"k{n}") for n in range(4)]
        write(path, changed, HEAD_WITH_KEY)
        report = await send(path, sandbox, confirm=Confirm())
        assert counts_of(report) == {"rows": 4, "accepted": 1, "invalid": 3}
        assert numbers(sandbox) == [100]

    with_sandbox(use)
    assert [reject["line"] for reject in json_lines(rejects_of(path))] == [3, 4, 5]


# Unknown rows


@pytest.mark.parametrize("age", [24 * 3600, -3600])
def test_unknown_rows_are_sent_again_only_with_resend_unknown(
    tmp_path: Path, age: int
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2), row(3)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        pending = "UPDATE events SET state = 'pending', ambiguous_since = ?"
        edit(path, f"{pending} WHERE id < 3", (time.time() - age,))
        for _ in range(2):
            report = await send(path, sandbox)
            assert counts_of(report) == {"rows": 3, "accepted": 1, "unknown": 2}
            assert (report.stopped_by, report.rejects) == (None, None)
        assert sandbox.counts.requests == 3
        report = await send(path, sandbox, resend_unknown=True)
        assert counts_of(report) == {"rows": 3, "accepted": 1, "duplicates": 2}
        assert sandbox.counts.requests == 5
        await send(path, sandbox, resend_unknown=True)
        assert sandbox.counts.requests == 5

    with_sandbox(use)


def test_an_unknown_row_that_waits_to_be_resent_still_counts_as_sent_before(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        edit(path, "UPDATE events SET state = 'unknown'")
        async with client_of(sandbox) as client:
            job = Backfill(path, client, input_options=NUMBERS, resend_unknown=True)
            assert (await job.check()).to_send == 1
            job.on_progress = lambda _: job.stop()
            assert (await job.run()).pending == 1
        write(path, [row(1, number="1.5")])
        with pytest.raises(ConfigurationError, match="would be sent twice"):
            await send(path, sandbox)
        assert numbers(sandbox) == [1]

    with_sandbox(use)


# Runs that end early


def test_a_run_with_a_wrong_api_key_stops_and_continues_with_the_right_one(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", map(row, range(30)))

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, settings={"api_key": "wrong"})
        assert isinstance(report.stopped_by, AuthenticationError)
        assert counts_of(report) == {"rows": 30, "pending": 30}
        report = await send(path, sandbox)
        assert counts_of(report) == {"rows": 30, "accepted": 30}
        assert sorted(numbers(sandbox)) == list(range(30))

    with_sandbox(use)


def test_a_run_waits_for_the_end_of_an_outage(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(20)))

    async def use(sandbox: Sandbox) -> BackfillReport:
        sandbox.down()
        async with client_of(sandbox) as client:
            running = asyncio.create_task(backfill(path, client, input_options=NUMBERS))
            await until(lambda: client.stats.outage)
            sandbox.down(False)
            return await running

    report = with_sandbox(use)
    assert counts_of(report) == {"rows": 20, "accepted": 20}


def test_too_many_invalid_rows_stop_a_run_before_it_sends_anything(
    tmp_path: Path,
) -> None:
    invalid = [row(1, email="nobody"), row(2, email="nobody")]
    path = write(tmp_path / "events.csv", [row(0), *invalid])
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, max_errors=1, confirm=confirm)
        assert counts_of(report) == {"rows": 3, "invalid": 2, "pending": 1}
        assert isinstance(report.stopped_by, NotTriedError)
        assert str(report.stopped_by) == "invalid or rejected rows: 2, more than 1"
        assert not sandbox.requests
        assert confirm.previews == []
        rejects_of(path).write_text("corrected")
        await send(path, sandbox, max_errors=1, confirm=confirm)
        assert rejects_of(path).read_text() == "corrected"
        report = await send(path, sandbox, max_errors=2, confirm=confirm)
        assert counts_of(report) == {"rows": 3, "accepted": 1, "invalid": 2}

    with_sandbox(use)


def test_too_many_rejected_rows_stop_a_run_and_the_next_one_at_its_start(
    tmp_path: Path,
) -> None:
    ghosts = [row(n, email="", user_id=f"ghost{n}") for n in range(3)]
    path = write(tmp_path / "events.csv", [*ghosts, *map(row, range(3, 300))])

    async def use(sandbox: Sandbox) -> None:
        slow = {"rate_limit": 20}  # the other rows take 15 s
        report = await send(path, sandbox, settings=slow, max_errors=1)
        assert isinstance(report.stopped_by, NotTriedError)
        assert 2 <= report.rejected <= 3
        assert report.pending > 0
        requests = sandbox.counts.requests
        report = await send(path, sandbox, max_errors=1)
        assert isinstance(report.stopped_by, NotTriedError)
        assert sandbox.counts.requests == requests
        report = await send(path, sandbox, max_errors=3)
        assert counts_of(report) == {"rows": 300, "accepted": 297, "rejected": 3}

    with_sandbox(use)


def test_a_run_that_is_stopped_before_it_starts_reads_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox) as client:
            job = Backfill(path, client, input_options=NUMBERS)
            job.stop()
            assert counts_of(await job.run()) == {}
        assert not journal_of(path).exists()

    with_sandbox(use)


@pytest.mark.parametrize("callback", ["on_read", "confirm", "on_progress"])
def test_a_run_that_is_stopped_in_a_callback_sends_nothing(
    tmp_path: Path, callback: str
) -> None:
    path = write(tmp_path / "events.csv", map(row, range(12)))

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox) as client:
            job = Backfill(path, client, input_options=NUMBERS, batch_size=5)

            def confirm(_: Preview) -> bool:
                job.stop()
                return True

            if callback == "confirm":
                job.confirm = confirm
            elif callback == "on_read":
                job.on_read = lambda _: job.stop()
            else:
                job.on_progress = lambda _: job.stop()
            report = await job.run()
        is_reading = callback == "on_read"
        assert report.pending == report.rows == (5 if is_reading else 12)
        assert isinstance(report.stopped_by, NotTriedError) == is_reading
        assert not sandbox.requests
        await send(path, sandbox)
        assert sorted(numbers(sandbox)) == list(range(12))

    with_sandbox(use)


def test_a_run_that_is_cancelled_can_be_continued(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(10)))

    async def use(sandbox: Sandbox) -> None:
        sandbox.script("hang-after", "hang-before")
        task = asyncio.create_task(send(path, sandbox))
        await until(lambda: sandbox.counts.accepted == 9)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The requests that hung are sent again, with their keys.
        report = await send(path, sandbox)
        assert report.accepted + report.duplicates == report.rows == 10
        assert sorted(numbers(sandbox)) == list(range(10))

    with_sandbox(use)
