"""loops-async outbox, on real files of outboxes that nobody has open."""

import asyncio
import json
import math
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import attrs
import pytest
from support import http_server as servers
from support.backfills import row, write
from support.outboxes import client_of, events, rows, states

from loops_async import AsyncLoopsClient, Event, Outbox, OutboxStats
from loops_async._journal.sender import JournalSender
from loops_async.cli import _progress
from loops_async.sandbox import Sandbox

from .support import (
    API_KEY,
    finish,
    flat,
    interrupted_when,
    run,
    running,
    start,
)

COMMANDS = ("status", "failures", "retry", "forget", "drain")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def put(path: Path, given: list[Event]) -> None:
    """Put events into an outbox, and leave them there."""

    async def main() -> None:
        async with client_of("http://127.0.0.1:1/api") as client:
            outbox = await Outbox(path, client).__aenter__()
            await outbox.put_many(given)
            await outbox.aclose(0)

    servers.run(main())


def fill(path: Path, *in_states: str) -> None:
    """Make an outbox of events k0, k1, ... in these states."""
    keys = [f"k{number}" for number in range(len(in_states))]
    made = [Event("signup", email=f"{k}@b.co", idempotency_key=k) for k in keys]
    put(path, made)
    at = time.time() - 200
    with closing(sqlite3.connect(path)) as db:
        for key, state in zip(keys, in_states, strict=True):
            error = "BadRequestError: no" if state == "rejected" else "E: who knows"
            db.execute(
                "UPDATE events SET state = ?, error = ?, attempts = 2, at = ?, "
                "ambiguous_since = NULL WHERE key = ?",
                (state, error, at, key),
            )
        db.commit()


def test_the_status_is_how_many_there_are_of_each(path: Path) -> None:
    fill(path, "pending", "pending", "rejected", "unknown", "accepted")
    result = run("outbox", "status", str(path))
    assert result.exit_code == 0
    found = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert found == [
        ["2", "pending", "the first for 3 min 20 s"],
        ["1", "rejected"],
        ["1", "unknown"],
        ["1", "accepted"],
    ]
    told = json.loads(run("outbox", "status", str(path), "--json").stdout)
    assert 200 <= told.pop("oldest_seconds") < 260
    assert told == {"pending": 2, "rejected": 1, "unknown": 1, "accepted": 1}


def test_an_outbox_without_events_has_a_status_too(path: Path) -> None:
    fill(path)
    told = json.loads(run("outbox", "status", str(path), "--json").stdout)
    none = {"pending": 0, "rejected": 0, "unknown": 0, "oldest_seconds": None}
    assert told == none
    assert "the first" not in run("outbox", "status", str(path)).stdout
    assert run("outbox", "failures", str(path)).output == ""


def test_failures_are_listed_with_their_keys(path: Path) -> None:
    fill(path, "pending", "rejected", "unknown")
    result = run("outbox", "failures", str(path))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "rejected  signup for k1@b.co",
        "  BadRequestError: no",
        "  key k1",
        "unknown  signup for k2@b.co",
        "  E: who knows",
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


def test_all_of_many_failures_are_listed(path: Path) -> None:
    fill(path, *["rejected"] * 450)
    lines = run("outbox", "failures", str(path), "--json").stdout.splitlines()
    assert [json.loads(line)["idempotency_key"] for line in lines] == [
        f"k{number}" for number in range(450)
    ]


def test_what_is_retried_is_pending_again(path: Path) -> None:
    fill(path, "rejected", "unknown", "rejected", "unknown")
    result = run("outbox", "retry", str(path), "k0", "k1", "k9")
    assert result.exit_code == 1
    assert result.stdout == "2 events pending again\n"
    assert result.stderr == "1 not found among the failures\n"
    after = {one["key"]: one["state"] for one in rows(path)}
    assert after.pop("k1") == "pending"  # by its key Loops may know it
    assert after.pop("k2") == "rejected"
    assert after.pop("k3") == "unknown"
    ((key, state),) = after.items()
    assert state == "pending"
    assert key != "k0"
    result = run("outbox", "retry", str(path), "--all")
    assert (result.exit_code, result.stdout) == (0, "1 event pending again\n")
    assert sorted(states(path)) == ["pending", "pending", "pending", "unknown"]


def test_what_is_forgotten_is_gone(path: Path) -> None:
    fill(path, "rejected", "unknown", "rejected", "pending")
    result = run("outbox", "forget", str(path), "k1", "k3")
    assert result.exit_code == 1
    assert result.stdout == "1 event removed\n"
    assert "1 not found" in result.stderr
    result = run("outbox", "forget", str(path), "--all")
    assert (result.exit_code, result.stdout) == (0, "2 events removed\n")
    assert states(path) == ["pending"]
    result = run("outbox", "forget", str(path), "--all")
    assert (result.exit_code, result.stdout) == (0, "0 events removed\n")


@pytest.mark.parametrize("command", ["retry", "forget"])
@pytest.mark.parametrize("choice", [(), ("k0", "--all")])
def test_either_keys_or_all_is_wanted(
    path: Path, command: str, choice: tuple[str, ...]
) -> None:
    fill(path, "rejected")
    result = run("outbox", command, str(path), *choice)
    assert result.exit_code == 2
    assert "give the keys, or --all" in result.stderr
    assert states(path) == ["rejected"]


def test_what_is_pending_is_drained_in_order(path: Path) -> None:
    put(path, events(20))
    with running(rate_limit=None) as sandbox:
        result = run("outbox", "drain", str(path), "--rate", "1000", sandbox=sandbox)
        assert result.exit_code == 0
        assert result.stdout == "20 sent, 0 rejected, 0 unknown, 0 left\n"
        assert len(sandbox.events) == 20
        result = run("outbox", "drain", str(path), sandbox=sandbox)
        assert result.exit_code == 0
        assert result.stdout.startswith("0 sent, ")
        assert sandbox.counts.requests == 20
    assert states(path) == []


def test_a_drain_without_a_limit_is_one_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, events(3))
    monkeypatch.setattr(_progress, "_EVERY", 0.01)
    with running(rate_limit=None, latency=0.5) as sandbox:
        env = {"LOOPS_RATE_LIMIT": str(math.inf)}
        result = run("outbox", "drain", str(path), sandbox=sandbox, env=env)
    assert result.exit_code == 0
    assert "0 of 3" in result.stderr


def test_what_is_rejected_while_it_drains_is_1(path: Path) -> None:
    put(path, [Event("signup", user_id="ghost")])
    with running(rate_limit=None) as sandbox:
        result = run("outbox", "drain", str(path), sandbox=sandbox)
    assert result.exit_code == 1
    assert result.stdout == "0 sent, 1 rejected, 0 unknown, 0 left\n"
    assert states(path) == ["rejected"]


def test_what_is_unknown_when_it_is_drained_is_4(path: Path) -> None:
    fill(path, "pending", "rejected", "unknown")
    with running(rate_limit=None) as sandbox:
        result = run("outbox", "drain", str(path), sandbox=sandbox)
    assert result.exit_code == 4
    assert result.stdout == "1 sent, 1 rejected, 1 unknown, 0 left\n"


def test_a_refused_key_ends_a_drain_with_3(path: Path) -> None:
    put(path, events(3))
    with running(rate_limit=None, api_key="another") as sandbox:
        wrong = {"LOOPS_API_KEY": API_KEY}
        began = sandbox.now
        result = run("outbox", "drain", str(path), sandbox=sandbox, env=wrong)
        waited = sandbox.now - began
    assert result.exit_code == 3
    assert result.stdout == "0 sent, 0 rejected, 0 unknown, 3 left\n"
    assert "stopped: " in result.stderr
    assert "401" in result.stderr
    assert states(path) == ["pending"] * 3
    # It did not look again, as an application's outbox does, before it left.
    assert sandbox.counts.by_status[401] <= 3, waited


def test_a_drain_without_a_key_is_3(path: Path) -> None:
    put(path, events(1))
    result = run("outbox", "drain", str(path))
    assert result.exit_code == 3
    assert "LOOPS_API_KEY" in flat(result.stderr)


def test_an_outage_is_told_while_it_drains(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, events(8))
    monkeypatch.setattr(_progress, "_EVERY", 0.02)
    with running(rate_limit=None) as sandbox:
        sandbox.down()

        def waits() -> bool:  # and has said so a few times
            if sandbox.counts.requests < 5:
                return False
            time.sleep(0.2)
            return True

        with interrupted_when(waits, signal.SIGINT):
            result = run("outbox", "drain", str(path), sandbox=sandbox)
    assert result.exit_code == 130
    assert "Loops does not answer: waiting" in result.stderr
    assert states(path) == ["pending"] * 8


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_no_file_is_wrong_usage(tmp_path: Path, command: str) -> None:
    for path in (tmp_path / "none.db", tmp_path):
        result = run("outbox", command, str(path))
        assert result.exit_code == 2
        assert "PATH" in result.stderr
    assert [*tmp_path.iterdir()] == []


def every_command(path: Path, sandbox: Sandbox) -> list[str]:
    """Run each; they must all end with 3, and say why."""
    said = []
    for command in COMMANDS:
        choice = ("--all",) if command in ("retry", "forget") else ()
        result = run("outbox", command, str(path), *choice, sandbox=sandbox)
        assert result.exit_code == 3
        assert result.stdout == ""
        assert "It cannot be done" in result.stderr
        assert "JournalError, exit 3" in result.stderr
        assert "attempts" not in result.stderr
        said.append(flat(result.stderr))
    assert not sandbox.requests
    return said


def test_a_file_that_is_no_outbox_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("my diary " * 1000, encoding="utf-8")
    empty = tmp_path / "empty"
    empty.touch()
    with running() as sandbox:
        assert all("no journal" in said for said in every_command(text, sandbox))
        assert all("is empty" in said for said in every_command(empty, sandbox))
    assert text.read_text(encoding="utf-8") == "my diary " * 1000
    assert empty.stat().st_size == 0


def test_the_journal_of_a_backfill_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    journal = tmp_path / "events.csv.journal.db"
    with running(rate_limit=None) as sandbox:
        run("backfill", str(path), "--yes", sandbox=sandbox)
    before = rows(journal)
    with running() as sandbox:
        for said in every_command(journal, sandbox):
            assert "is not an outbox of loops-async" in said
    assert rows(journal) == before


def test_a_file_that_is_in_use_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loops_async._journal.database._LOCKED_FOR", 0.01)
    put(path, events(1))

    async def main() -> None:
        async with client_of("http://127.0.0.1:1/api") as client:
            outbox = await Outbox(path, client).__aenter__()
            with running() as sandbox:
                for said in await asyncio.to_thread(every_command, path, sandbox):
                    assert "is in use by another process" in said
                    assert "next Stop the program that has it open." in said
            await outbox.aclose(0)

    servers.run(main())
    assert states(path) == ["pending"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_ends_what_is_under_way(
    path: Path, number: signal.Signals
) -> None:
    put(path, events(40))
    with running(rate_limit=None, processing=0.3) as sandbox:
        process = start("outbox", "drain", str(path), "--rate", "10", sandbox=sandbox)
        wait_until(lambda: sandbox.counts.accepted >= 3)
        code, out, err = finish(process, number)
        took = sandbox.counts.accepted
        assert code == 130
        assert out == f"{took} sent, 0 rejected, 0 unknown, {40 - took} left\n"
        assert "Traceback" not in err
        assert "the client is closed" not in err
        assert sandbox.counts.requests == took < 40  # nothing was cut off
    assert states(path) == ["pending"] * (40 - took)


def test_a_second_signal_ends_it_at_once(path: Path) -> None:
    put(path, events(3))
    with running(rate_limit=None) as sandbox:
        sandbox.script(*["hang-after"] * 3)
        process = start("outbox", "drain", str(path), sandbox=sandbox)
        wait_until(lambda: sandbox.counts.accepted == 3)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        code, out, err = finish(process, signal.SIGINT)
        assert (code, out) == (130, "")
        assert err.endswith("stopped; run the same command to go on\n")
        assert "Traceback" not in err
        result = run("outbox", "drain", str(path), sandbox=sandbox)
        assert (result.exit_code, sandbox.counts.duplicates) == (0, 3)
        assert len(sandbox.events) == 3


def test_in_this_process_signals_do_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "_EVERY", 0.01)
    put(path, events(3))
    told: list[object] = []
    stop = JournalSender.stop

    def noted(drain: JournalSender) -> None:
        stop(drain)
        told.append(drain)

    monkeypatch.setattr(JournalSender, "stop", noted)
    with running(rate_limit=None) as sandbox:
        sandbox.script(*["hang-after"] * 3)
        with (
            interrupted_when(lambda: sandbox.counts.accepted == 3, signal.SIGINT),
            interrupted_when(lambda: told and not time.sleep(0.1), signal.SIGTERM),
        ):
            result = run("outbox", "drain", str(path), "--json", sandbox=sandbox)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "0 of 3, 0.0/s" in result.stderr
    assert "finishing what is under way" in result.stderr
    assert "stopped; run the same command to go on" in result.stderr
    assert states(path) == ["pending"] * 3


def test_the_time_of_a_drain_may_be_up(path: Path) -> None:
    put(path, events(40))
    arguments = ("outbox", "drain", str(path), "--rate", "10", "--timeout", "0.5")
    with running(rate_limit=None, processing=0.1) as sandbox:
        result = run(*arguments, "--json", sandbox=sandbox)
        took = sandbox.counts.accepted
        assert sandbox.counts.requests == took
    assert result.exit_code == 4
    told = json.loads(result.stdout)
    assert set(told) == {field.name for field in attrs.fields(OutboxStats)}
    assert (told["accepted"], told["pending"]) == (took, 40 - took)
    assert told["paused"] is None
    assert 0 < took < 40


def test_the_books_wait_for_what_is_under_way(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, events(3))
    stop = AsyncLoopsClient.aclose
    ending: list[asyncio.Task[None]] = []

    async def later(client: AsyncLoopsClient, grace: float = 10.0) -> None:
        if ending:
            await stop(client, grace)
        ending.append(asyncio.create_task(stop(client, grace)))

    monkeypatch.setattr(AsyncLoopsClient, "aclose", later)
    with running(rate_limit=None, processing=0.3) as sandbox:
        arguments = ("outbox", "drain", str(path), "--timeout", "0.2")
        result = run(*arguments, sandbox=sandbox)
    assert result.exit_code == 0
    assert result.stdout == "3 sent, 0 rejected, 0 unknown, 0 left\n"


def test_a_drain_in_time_is_told_as_json(path: Path) -> None:
    put(path, events(3))
    arguments = ("outbox", "drain", str(path), "--timeout", "30", "--json")
    with running(rate_limit=None) as sandbox:
        result = run(*arguments, sandbox=sandbox)
        path.write_text("my diary", encoding="utf-8")
        refused = run(*arguments, sandbox=sandbox)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["accepted"], told["pending"], told["rejected"]) == (3, 0, 0)
    assert refused.exit_code == 3
    assert json.loads(refused.stdout)["error"] == "JournalError"


@pytest.mark.parametrize("option", ["--rate", "--timeout"])
@pytest.mark.parametrize("number", ["nan", "inf", "0", "soon"])
def test_a_number_that_is_none_is_wrong_usage(
    path: Path, option: str, number: str
) -> None:
    put(path, events(1))
    result = run("outbox", "drain", str(path), option, number)
    assert result.exit_code == 2
    assert option in result.stderr


def wait_until(condition: Callable[[], object]) -> None:
    """Wait; the test's time limit is the way out."""
    while not condition():
        time.sleep(0.002)
