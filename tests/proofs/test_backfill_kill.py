"""The backfill's promise: killed at any moment and run again, it sends each row once.

The same command line is started and killed repeatedly, while it validates the rows
and adds them to the journal or while it sends them to a sandbox in another process,
where one request in ten meets a fault. The input contains invalid rows, equal rows,
and rows that the sandbox rejects.
"""

import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import outboxes
from support.backfills import json_lines, row, write
from support.sandbox_process import SandboxProcess

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="there is no signal to kill with"
)

# No hanging requests, which take up to 30 s, and no 429s, which slow the limiter down.
FAULTS = {
    "500-before": 0.02,
    "502": 0.01,
    "close-before": 0.02,
    "500-after": 0.02,
    "html-after": 0.01,
    "empty-after": 0.01,
    "close-after": 0.01,
    "truncate-after": 0.01,
}
LOG_WITH_ROWS = 60_000  # bytes; a write-ahead log without rows is smaller


@attrs.define
class Input:
    """An input, and what is in it.

    Attributes:
        path: Path of the file.
        valid: How often each number is in a valid row.
        invalid: Lines of the invalid rows.
        rejected: Lines of the rows that the sandbox rejects.
    """

    path: Path
    valid: Counter[int] = attrs.field(factory=Counter)
    invalid: set[int] = attrs.field(factory=set)
    rejected: set[int] = attrs.field(factory=set)


def make_input(path: Path, count: int, dice: random.Random) -> Input:
    made = Input(path)
    rows: list[str] = []
    for line in range(2, count + 2):
        number = line
        kind = dice.random()
        if kind < 0.02:
            made.invalid.add(line)
            cells = [{"email": "nobody"}, {"number": "many"}, {"number": "1,2"}]
            rows.append(row(number, **dice.choice(cells)))
        elif kind < 0.03:
            made.rejected.add(line)  # the sandbox has no such contact
            rows.append(row(number, email="", user_id=f"ghost-{number}"))
        else:
            if kind < 0.08 and made.valid:
                number = dice.choice([*made.valid][-50:])
            made.valid[number] += 1
            rows.append(row(number))
    write(path, rows)
    return made


def phase_of(journal: Path) -> str:
    """Return what a killed process was doing, by a copy of its journal."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / journal.name
        for file in (journal, journal.with_name(f"{journal.name}-wal")):
            if file.exists():
                shutil.copy(file, copy.with_name(file.name))
        try:
            with closing(sqlite3.connect(copy)) as db:
                metadata = dict(db.execute("SELECT name, value FROM facts"))
                ((events,),) = db.execute("SELECT count(*) FROM events")
        except sqlite3.OperationalError:
            return "opening"
    if json.loads(metadata.get("mark", "null")) is not None:
        return "sending"
    return "entering" if events else "opening"


def kill_and_check(path: Path, count: int, kills: int, seed: int) -> str:
    """Kill that many processes, let the last ones finish, and check the result."""
    assert kills >= 4
    dice = random.Random(seed)
    made = make_input(path / "events.csv", count, dice)
    journal, log = path / "events.csv.journal.db", path / "events.csv.journal.db-wal"
    arguments = ("backfill", str(made.path), "--yes", "--rate", "5000", "--json")
    arguments += ("--type", "number=number")
    early = kills * 2 // 5
    # The other kills come after these shares of the rows were accepted.
    shares = sorted(dice.uniform(0.02, 0.9) for _ in range(kills - early))
    phases: Counter[str] = Counter()
    began = time.monotonic()
    with SandboxProcess(rate_limit=None, seed=seed, faults=FAULTS) as sandbox:
        for index, share in enumerate([None] * early + shares):
            process = sandbox.start(*arguments)
            if share is None:
                # Kill between the first rows on the disk and, the last time, about
                # the time at which all rows are there: later processes only send.
                while size_of(log) < LOG_WITH_ROWS:
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.0005)
                longest = count / (15_000 if index == early - 1 else 60_000)
                time.sleep(dice.uniform(0.0, longest) if index else 0.0)
            else:
                while sandbox.get("counts")["accepted"] < share * count:
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.005)
                time.sleep(dice.uniform(0.0, 0.02))
            process.kill()
            process.communicate()
            assert process.returncode == -9
            phases[phase_of(journal)] += 1
        code, report = finish(sandbox.start(*arguments))
        # A row that was rejected after an attempt without a response is unknown
        # until it is sent again.
        resends = 0
        while report["unknown"]:
            assert code == 4
            code, report = finish(sandbox.start(*arguments, "--resend-unknown"))
            resends += 1
        took = time.monotonic() - began
        requests = sandbox.get("counts")["requests"]
        last = finish(sandbox.start(*arguments))
        counts = sandbox.get("counts")
        accepted = sandbox.get("state")["events"]

    # Each valid row was accepted once, each of equal rows too, and nothing else was.
    numbers = Counter(event["event_properties"]["number"] for event in accepted)
    assert numbers == made.valid
    assert {event["email"] for event in accepted} == {f"u{n}@b.co" for n in made.valid}
    assert len({event["idempotency_key"] for event in accepted}) == made.valid.total()

    # The report agrees.
    assert code == 1
    assert report["accepted"] + report["duplicates"] == made.valid.total()
    assert (report["rows"], report["invalid"]) == (count, len(made.invalid))
    assert (report["rejected"], report["pending"]) == (len(made.rejected), 0)
    assert report["stopped_by"] is None

    # Each invalid and each rejected row is one reject.
    rejects = json_lines(Path(report["rejects"]))
    assert Counter(reject["line"] for reject in rejects) == Counter(
        made.invalid | made.rejected
    )
    for reject in rejects:
        is_rejected = reject["line"] in made.rejected
        assert ("Contact not found" in reject["error"]) == is_rejected

    # A run that is complete sends nothing more and reports the same.
    assert requests == counts["requests"]
    for result in (report, last[1]):
        del result["elapsed"]
    assert last == (code, report)

    assert outboxes.verdict(journal) == "ok"
    states = Counter(outboxes.states(journal))
    assert states["accepted"] + states["duplicate"] == made.valid.total()
    assert states["rejected"] == len(made.rejected)
    assert states.total() == count - len(made.invalid)
    assert sorted(file.name for file in path.iterdir()) == [
        "events.csv",
        "events.csv.journal.db",
        "events.csv.rejects.jsonl",
    ]

    assert phases["sending"] >= kills - early
    # A few thousand rows are entered within milliseconds, which kills can miss.
    assert phases["entering"] > 0 or count < 20_000
    faults = sum(counts["faults"].values())
    assert 0.08 < faults / counts["requests"] < 0.14
    return (
        f"{count:,} rows, {kills} kills in {took:.0f} s ({phases['opening']} before "
        f"the first row was entered, {phases['entering']} while rows were entered, "
        f"{phases['sending']} while they were sent): {len(accepted):,} of "
        f"{made.valid.total():,} valid rows accepted once, {len(made.invalid)} invalid "
        f"and {len(made.rejected)} rejected rows reported once, {resends} resends; "
        f"{counts['requests']:,} requests, {faults:,} with a fault, "
        f"{counts['duplicates']:,} recognised by their key"
    )


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def finish(process: Any) -> tuple[int, Any]:
    """Wait for a process; return its exit code and its report."""
    out, err = process.communicate(timeout=280)
    assert process.returncode in (1, 4), err
    assert "Traceback" not in err
    return process.returncode, json.loads(out)


def test_each_of_1000_rows_is_accepted_once_despite_4_kills(
    tmp_path: Path, record_figures: Callable[[str], None]
) -> None:
    record_figures(kill_and_check(tmp_path, 1000, 4, seed=1))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_each_of_20000_rows_is_accepted_once_despite_25_kills(
    tmp_path: Path, record_figures: Callable[[str], None]
) -> None:
    record_figures(kill_and_check(tmp_path, 20_000, 25, seed=2))
