"""loops-async outbox, on the file of an outbox that no program has open."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import attrs
import pytest
from support.backfills import row, write
from support.clients import client_of
from support.outboxes import events, rows, states
from support.waiting import run as run_async
from support.waiting import wait_until

from loops_async import Event, Outbox, OutboxStats
from loops_async.cli._outbox import Drain
from loops_async.sandbox import Sandbox

from .support import (
    API_KEY,
    FREQUENT,
    displayed,
    finish,
    flat,
    interrupted_when,
    run,
    run_json,
    running,
    start,
    when,
)

COMMANDS = ("status", "failures", "retry", "forget", "drain")
NO_EVENTS = {"pending": 0, "rejected": 0, "unknown": 0, "oldest_seconds": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def put(path: Path, new: list[Event]) -> None:
    """Put events into an outbox and leave them pending."""

    async def main() -> None:
        async with client_of("http://127.0.0.1:1/api") as client:
            outbox = await Outbox(path, client).__aenter__()
            await outbox.put_many(new)
            await outbox.aclose(0)

    run_async(main())


def fill(path: Path, *in_states: str) -> None:
    """Put events k0, k1, ... into an outbox, in these states."""
    keys = [f"k{number}" for number in range(len(in_states))]
    new = [Event("signup", email=f"{k}@b.co", idempotency_key=k) for k in keys]
    put(path, new)
    at = time.time() - 200
    with closing(sqlite3.connect(path)) as db:
        for key, state in zip(keys, in_states, strict=True):
            error = "BadRequestError: no" if state == "rejected" else "E: unknown"
            db.execute(
                "UPDATE events SET state = ?, error = ?, attempts = 2, at = ?, "
                "ambiguous_since = NULL WHERE key = ?",
                (state, error, at, key),
            )
        db.commit()


def drain(path: Path, *arguments: str) -> tuple[str, ...]:
    return ("outbox", "drain", str(path), *arguments)


# status


def test_status_counts_the_events_by_state(path: Path) -> None:
    fill(path, "pending", "pending", "rejected", "unknown", "accepted")
    result = run("outbox", "status", str(path))
    assert result.exit_code == 0
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    (*pending, age), *others = lines
    assert pending == ["2", "pending"]
    assert age.startswith("oldest added 3 min ")
    assert others == [["1", "rejected"], ["1", "unknown"], ["1", "accepted"]]
    _, record = run_json("outbox", "status", str(path))
    assert 200 <= record.pop("oldest_seconds") < 320
    assert record == {"pending": 2, "rejected": 1, "unknown": 1, "accepted": 1}


def test_status_of_an_empty_outbox_is_zero(path: Path) -> None:
    fill(path)
    _, record = run_json("outbox", "status", str(path))
    assert record == NO_EVENTS
    assert "oldest" not in run("outbox", "status", str(path)).stdout
    assert run("outbox", "failures", str(path)).output == ""


# failures, retry, forget


def test_failures_are_listed_with_their_keys(path: Path) -> None:
    fill(path, "pending", "rejected", "unknown")
    result = run("outbox", "failures", str(path))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "rejected  signup for k1@b.co",
        "  BadRequestError: no",
        "  key k1",
        "unknown  signup for k2@b.co",
        "  E: unknown",
        "  key k2",
    ]
    lines = run("outbox", "failures", str(path), "--json").stdout.splitlines()
    first, second = map(json.loads, lines)
    assert set(first) == {
        "id",
        "idempotency_key",
        "body",
        "state",
        "error",
        "attempts",
        "at",
    }
    assert first["body"] == {"eventName": "signup", "email": "k1@b.co"}
    assert (first["state"], second["state"]) == ("rejected", "unknown")
    assert (second["idempotency_key"], second["attempts"]) == ("k2", 2)


def test_failures_lists_more_events_than_one_page_holds(path: Path) -> None:
    fill(path, *["rejected"] * 450)
    lines = run("outbox", "failures", str(path), "--json").stdout.splitlines()
    assert [json.loads(line)["idempotency_key"] for line in lines] == [
        f"k{number}" for number in range(450)
    ]


def test_retry_makes_failures_pending_again(path: Path) -> None:
    fill(path, "rejected", "unknown", "rejected", "unknown")
    result = run("outbox", "retry", str(path), "k0", "k1", "k9")
    assert result.exit_code == 1
    assert result.stdout == "2 events pending again\n"
    assert result.stderr == "1 key not found among the failures\n"
    after = {one["key"]: one["state"] for one in rows(path)}
    assert after.pop("k1") == "pending"  # Loops may recognize the event by its key
    assert after.pop("k2") == "rejected"
    assert after.pop("k3") == "unknown"
    ((key, state),) = after.items()
    assert state == "pending"
    assert key != "k0"
    result = run("outbox", "retry", str(path), "--all")
    assert (result.exit_code, result.stdout) == (0, "1 event pending again\n")
    assert sorted(states(path)) == ["pending", "pending", "pending", "unknown"]


def test_forget_deletes_failures(path: Path) -> None:
    fill(path, "rejected", "unknown", "rejected", "pending")
    result = run("outbox", "forget", str(path), "k1", "k3")
    assert result.exit_code == 1
    assert result.stdout == "1 event deleted\n"
    assert "1 key not found" in result.stderr
    result = run("outbox", "forget", str(path), "--all")
    assert (result.exit_code, result.stdout) == (0, "2 events deleted\n")
    assert states(path) == ["pending"]
    result = run("outbox", "forget", str(path), "--all")
    assert (result.exit_code, result.stdout) == (0, "0 events deleted\n")


@pytest.mark.parametrize("command", ["retry", "forget"])
@pytest.mark.parametrize("selection", [(), ("k0", "--all")])
def test_retry_and_forget_need_either_keys_or_all(
    path: Path, command: str, selection: tuple[str, ...]
) -> None:
    fill(path, "rejected")
    result = run("outbox", command, str(path), *selection)
    assert result.exit_code == 2
    assert "pass either the keys of failures or --all" in result.stderr
    assert states(path) == ["rejected"]


# drain


def test_drain_sends_the_pending_events_and_a_second_one_sends_nothing(
    path: Path,
) -> None:
    put(path, events(20))
    with running(rate_limit=None) as sandbox:
        result = run(*drain(path, "--rate", "1000"), sandbox=sandbox)
        assert result.exit_code == 0
        assert result.stdout == "20 sent, 0 rejected, 0 unknown, 0 pending\n"
        assert len(sandbox.events) == 20
        result = run(*drain(path), sandbox=sandbox)
        assert result.exit_code == 0
        assert result.stdout.startswith("0 sent, ")
        assert sandbox.counts.requests == 20
    assert states(path) == []


def test_an_event_that_is_rejected_in_a_drain_is_exit_code_1(path: Path) -> None:
    put(path, [Event("signup", user_id="ghost")])
    with running(rate_limit=None) as sandbox:
        result = run(*drain(path), sandbox=sandbox)
    assert result.exit_code == 1
    assert result.stdout == "0 sent, 1 rejected, 0 unknown, 0 pending\n"
    assert result.stderr == ""  # the log of the library stays silent
    assert states(path) == ["rejected"]


def test_an_unknown_event_in_the_file_is_exit_code_4(path: Path) -> None:
    fill(path, "pending", "rejected", "unknown")
    with running(rate_limit=None) as sandbox:
        result = run(*drain(path), sandbox=sandbox)
    assert result.exit_code == 4
    assert result.stdout == "1 sent, 1 rejected, 1 unknown, 0 pending\n"


def test_a_refused_api_key_ends_a_drain_with_exit_code_3(path: Path) -> None:
    """An outbox pauses and tries the key again later; a drain does not wait for it."""
    put(path, events(3))
    with running(rate_limit=None, api_key="another") as sandbox:
        wrong = {"LOOPS_API_KEY": API_KEY}
        result = run(*drain(path), sandbox=sandbox, env=wrong)
    assert result.exit_code == 3
    assert result.stdout == "0 sent, 0 rejected, 0 unknown, 3 pending\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("stopped by: ")
    assert "401" in line
    assert states(path) == ["pending"] * 3


def test_an_api_key_that_is_revoked_ends_a_drain_with_exit_code_3(path: Path) -> None:
    put(path, events(40))
    with running(rate_limit=None) as sandbox:

        def revoke() -> None:
            sandbox.api_key = "another"

        key = {"LOOPS_API_KEY": API_KEY}
        with when(lambda: sandbox.counts.accepted >= 3, revoke):
            result = run(*drain(path, "--rate", "10"), sandbox=sandbox, env=key)
        accepted = sandbox.counts.accepted
    assert result.exit_code == 3
    assert result.stdout.startswith(f"{accepted} sent, 0 rejected, 0 unknown, ")
    assert "401" in result.stderr
    assert states(path) == ["pending"] * (40 - accepted)


def test_a_drain_without_an_api_key_is_exit_code_3(path: Path) -> None:
    put(path, events(1))
    result = run(*drain(path))
    assert result.exit_code == 3
    assert "LOOPS_API_KEY" in flat(result.stderr)


def test_the_progress_of_a_drain_shows_an_outage(path: Path) -> None:
    put(path, events(8))
    outage = "Loops is not responding, waiting"
    with running(rate_limit=None) as sandbox:
        sandbox.down()
        with interrupted_when(displayed(outage), signal.SIGINT):
            result = run(*drain(path), sandbox=sandbox, intervals=FREQUENT)
    assert result.exit_code == 130
    assert states(path) == ["pending"] * 8


@pytest.mark.parametrize(
    ("limit", "shown"), [("inf", "0 of 3, 0.0/s"), ("5", "0 of 3, 0.0/s, 0% of the")]
)
def test_the_progress_of_a_drain_shows_the_use_of_a_rate_limit(
    path: Path, limit: str, shown: str
) -> None:
    put(path, events(3))
    with running(rate_limit=None) as sandbox:
        sandbox.down()
        with interrupted_when(displayed(shown), signal.SIGINT):
            env = {"LOOPS_RATE_LIMIT": limit}
            result = run(*drain(path), sandbox=sandbox, env=env, intervals=FREQUENT)
    assert result.exit_code == 130
    assert ("of the limit" in result.stderr) == (limit == "5")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_requests_in_flight_finish(
    path: Path, number: signal.Signals
) -> None:
    put(path, events(40))
    with running(rate_limit=None, processing=0.3) as sandbox:
        process = start(*drain(path, "--rate", "5"), sandbox=sandbox)
        wait_until(lambda: sandbox.counts.accepted >= 3)
        code, out, err = finish(process, number)
        accepted = sandbox.counts.accepted
        assert code == 130
        rest = 40 - accepted
        assert out == f"{accepted} sent, 0 rejected, 0 unknown, {rest} pending\n"
        assert err == ""
        assert sandbox.counts.requests == accepted < 40  # none was cut off
    assert states(path) == ["pending"] * rest


def test_a_drain_that_is_interrupted_when_all_is_in_flight_is_complete(
    path: Path,
) -> None:
    put(path, events(3))
    with (
        running(rate_limit=None, latency_after=0.3) as sandbox,
        interrupted_when(lambda: sandbox.counts.accepted == 3, signal.SIGINT),
    ):
        result = run(*drain(path), sandbox=sandbox)
    assert result.exit_code == 0
    assert result.stdout == "3 sent, 0 rejected, 0 unknown, 0 pending\n"
    assert states(path) == []


def test_the_second_signal_cuts_off_requests_in_flight(path: Path) -> None:
    put(path, events(3))
    with running(rate_limit=None) as sandbox:
        sandbox.script(*["hang-after"] * 3)
        process = start(*drain(path), sandbox=sandbox)
        wait_until(lambda: sandbox.counts.accepted == 3)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        code, out, err = finish(process, signal.SIGINT)
        assert (code, out) == (130, "")
        assert err == "stopped; run the same command again to continue\n"
        result = run(*drain(path), sandbox=sandbox)
        assert (result.exit_code, sandbox.counts.duplicates) == (0, 3)
        assert len(sandbox.events) == 3


def test_the_progress_of_a_drain_shows_that_it_is_stopping(path: Path) -> None:
    put(path, events(3))
    stopping = "0 of 3, 0.0/s, 0% of the limit, finishing requests in flight"
    with running(rate_limit=None) as sandbox:
        sandbox.script(*["hang-after"] * 3)
        with (
            interrupted_when(lambda: sandbox.counts.accepted == 3, signal.SIGINT),
            interrupted_when(displayed(stopping), signal.SIGTERM),
        ):
            arguments = drain(path, "--json")
            result = run(*arguments, sandbox=sandbox, intervals=FREQUENT)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "stopped; run the same command again to continue" in result.stderr
    assert states(path) == ["pending"] * 3


def test_a_drain_stops_at_its_timeout_without_cutting_requests_off(path: Path) -> None:
    put(path, events(40))
    arguments = drain(path, "--rate", "5", "--timeout", "1")
    with running(rate_limit=None, processing=0.1) as sandbox:
        code, record = run_json(*arguments, sandbox=sandbox)
        accepted = sandbox.counts.accepted
        assert sandbox.counts.requests == accepted < 40
    assert code == 4
    assert set(record) == {field.name for field in attrs.fields(OutboxStats)}
    assert (record["accepted"], record["pending"]) == (accepted, 40 - accepted)
    assert record["paused"] is None
    assert states(path) == ["pending"] * (40 - accepted)


def test_a_signal_after_the_timeout_is_an_interruption(path: Path) -> None:
    put(path, events(3))

    async def main() -> tuple[Drain, OutboxStats]:
        async with Sandbox(rate_limit=None) as sandbox:
            sandbox.script(*["hang-before"] * 3)
            job = Drain(path, client_of(sandbox), intervals=FREQUENT)
            draining = asyncio.create_task(job.run(timeout=0.1))
            while not job.stopping:  # noqa: ASYNC110 - a timer causes it
                await asyncio.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            while not job.interrupted:  # noqa: ASYNC110 - a signal causes it
                await asyncio.sleep(0.001)
            await sandbox.aclose()  # ends the requests in flight
            return job, await draining

    job, stats = run_async(main())
    assert job.interrupted
    assert (stats.accepted, stats.pending, stats.paused) == (0, 3, None)
    assert states(path) == ["pending"] * 3


def test_a_drain_that_ends_before_its_timeout_is_complete(path: Path) -> None:
    put(path, events(3))
    arguments = drain(path, "--timeout", "60")
    with running(rate_limit=None) as sandbox:
        code, record = run_json(*arguments, sandbox=sandbox)
    assert code == 0
    assert (record["accepted"], record["pending"], record["rejected"]) == (3, 0, 0)


@pytest.mark.parametrize("option", ["--rate", "--timeout"])
@pytest.mark.parametrize("number", ["nan", "inf", "0", "soon"])
def test_a_rate_or_timeout_that_is_not_a_finite_number_is_wrong_usage(
    path: Path, option: str, number: str
) -> None:
    put(path, events(1))
    result = run(*drain(path), option, number)
    assert result.exit_code == 2
    assert option in result.stderr


# Files that cannot be used


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_not_a_file_is_wrong_usage(tmp_path: Path, command: str) -> None:
    for path in (tmp_path / "none.db", tmp_path):
        result = run("outbox", command, str(path))
        assert result.exit_code == 2
        assert "PATH" in result.stderr
    assert [*tmp_path.iterdir()] == []


def refusal(command: str, path: Path) -> str:
    """Run a command on a file that it cannot use; return the text of its panel."""
    selection = ("--all",) if command in ("retry", "forget") else ()
    with running() as sandbox:
        result = run("outbox", command, str(path), *selection, sandbox=sandbox)
        assert not sandbox.requests
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "Cannot use this file or setting" in result.stderr
    assert "JournalError, exit code 3" in result.stderr
    assert "attempts" not in result.stderr
    return flat(result.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_an_outbox_is_refused_and_not_changed(
    tmp_path: Path, command: str
) -> None:
    text = tmp_path / "text"
    text.write_text("my diary " * 1000, encoding="utf-8")
    assert str(text)[:20] in refusal(command, text)
    assert text.read_text(encoding="utf-8") == "my diary " * 1000


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_file_is_an_outbox_without_events(
    tmp_path: Path, command: str
) -> None:
    """A process that is killed while it creates an outbox leaves an empty file."""
    empty = tmp_path / "empty"
    empty.touch()
    selection = ("--all",) if command in ("retry", "forget") else ()
    with running() as sandbox:
        result = run("outbox", command, str(empty), *selection, sandbox=sandbox)
        assert result.exit_code == 0
        assert not sandbox.requests
        status = run_json("outbox", "status", str(empty))
    assert status == (0, NO_EVENTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_journal_of_a_backfill_is_refused_and_not_changed(
    tmp_path: Path, command: str
) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    journal = tmp_path / "events.csv.journal.db"
    with running(rate_limit=None) as sandbox:
        run("backfill", str(path), "--yes", sandbox=sandbox)
    before = rows(journal)
    assert "outbox of loops-async" in refusal(command, journal)
    assert rows(journal) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_use_is_refused_with_the_next_step(path: Path, command: str) -> None:
    put(path, events(1))

    async def main() -> str:
        async with client_of("http://127.0.0.1:1/api") as client:
            outbox = await Outbox(path, client).__aenter__()
            try:
                return await asyncio.to_thread(refusal, command, path)
            finally:
                await outbox.aclose(0)

    text = run_async(main())
    assert "next Stop the program that has the file open." in text
    assert states(path) == ["pending"]


def test_a_refusal_with_json_is_one_object(path: Path) -> None:
    path.write_text("my diary", encoding="utf-8")
    with running() as sandbox:
        code, record = run_json(*drain(path), sandbox=sandbox)
    assert code == 3
    assert record["error"] == "JournalError"
    assert str(path) in record["message"]
