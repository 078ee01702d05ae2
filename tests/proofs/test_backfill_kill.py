"""The backfill's promise: kill -9 at any moment, run it again, each row is in once.

The same command line is started again and again and killed, while it checks and
enters the rows or while it sends them to a sandbox in a process of its own, where
one request in ten meets a fault. The input has rows that are not valid, rows that
are equal to others, and rows that the sandbox refuses.
"""

import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import outboxes
from support.backfills import json_lines, row, write
from support.sandbox_process import Elsewhere

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="there are no signals to kill with"
)

# Without those that take time: an attempt may take 30 s. And no 429, after which
# the limiter would slow down.
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


FIRST_ROWS = 60_000  # bytes of a log that has more than tables


@attrs.define
class Input:
    """What is in the file.

    Attributes:
        path: Of the file.
        good: How often each number is in it.
        invalid: The lines that are not valid.
        refused: The lines that the sandbox refuses.
    """

    path: Path
    good: Counter[int] = attrs.field(factory=Counter)
    invalid: set[int] = attrs.field(factory=set)
    refused: set[int] = attrs.field(factory=set)


def make_input(path: Path, count: int, dice: random.Random) -> Input:
    made = Input(path)
    rows: list[str] = []
    for line in range(2, count + 2):
        number = line
        kind = dice.random()
        if kind < 0.02:
            made.invalid.add(line)
            wrong = [{"email": "nobody"}, {"number": "many"}, {"number": "1,2"}]
            rows.append(row(number, **dice.choice(wrong)))
        elif kind < 0.03:
            made.refused.add(line)  # Loops knows no such contact
            rows.append(row(number, email="", user_id=f"ghost-{number}"))
        else:
            if kind < 0.08 and made.good:
                number = dice.choice([*made.good][-50:])
            made.good[number] += 1
            rows.append(row(number))
    write(path, rows)
    return made


def phase(journal: Path) -> str:
    """Return what a killed process was doing; its journal is left alone."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / journal.name
        for file in (journal, journal.with_name(f"{journal.name}-wal")):
            if file.exists():
                shutil.copy(file, copy.with_name(file.name))
        try:
            with closing(sqlite3.connect(copy)) as db:
                facts = dict(db.execute("SELECT name, value FROM facts"))
                ((entered,),) = db.execute("SELECT count(*) FROM events")
        except sqlite3.OperationalError:
            return "opening"
    if json.loads(facts.get("mark", "null")) is not None:
        return "sending"
    return "entering" if entered else "opening"


def kill_and_check(path: Path, count: int, kills: int, seed: int) -> str:
    """Kill so many times, let the last one end, and check the books."""
    assert kills >= 4
    dice = random.Random(seed)
    given = make_input(path / "events.csv", count, dice)
    journal, log = path / "events.csv.journal.db", path / "events.csv.journal.db-wal"
    arguments = ("backfill", str(given.path), "--yes", "--rate", "5000", "--json")
    arguments += ("--type", "number=number")
    early = kills * 2 // 5
    # A share of the rows, after which to kill.
    late = sorted(dice.uniform(0.02, 0.95) for _ in range(kills - early))
    phases: Counter[str] = Counter()
    began = time.monotonic()
    with Elsewhere(rate_limit=None, seed=seed, faults=FAULTS) as sandbox:
        for index, share in enumerate([None] * early + late):
            process = sandbox.start(*arguments)
            if share is None:
                # Between the first rows on the disk and, the last time, a little
                # after all of them: then no kill finds it at it any more.
                while size_of(log) < FIRST_ROWS:
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.0005)
                most = count / (15_000 if index == early - 1 else 60_000)
                time.sleep(dice.uniform(0.0, most) if index else 0.0)
            else:
                while sandbox.look("counts")["accepted"] < share * count:
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.005)
                time.sleep(dice.uniform(0.0, 0.02))
            process.kill()
            process.communicate()
            assert process.returncode == -9
            phases[phase(journal)] += 1
        code, told = finish(sandbox.start(*arguments))
        # What was refused after an attempt without an answer is unknown, not
        # refused: known only when asked again.
        resends = 0
        while told["unknown"]:
            assert code == 4
            code, told = finish(sandbox.start(*arguments, "--resend-unknown"))
            resends += 1
        took = time.monotonic() - began
        requests = sandbox.look("counts")["requests"]
        again = finish(sandbox.start(*arguments))
        counts = sandbox.look("counts")
        accepted = sandbox.look("state")["events"]

    # Each good row is in once, each of the equal ones too, and nothing else is.
    numbers = Counter(one["event_properties"]["number"] for one in accepted)
    assert numbers == given.good
    assert {one["email"] for one in accepted} == {f"u{n}@b.co" for n in given.good}
    assert len({one["idempotency_key"] for one in accepted}) == given.good.total()

    # The books balance.
    assert code == 1
    assert told["accepted"] + told["duplicates"] == given.good.total()
    assert (told["rows"], told["invalid"]) == (count, len(given.invalid))
    assert (told["rejected"], told["pending"]) == (len(given.refused), 0)
    assert told["stopped_by"] is None

    # Each bad row is named once.
    rejects = json_lines(Path(told["rejects"]))
    assert Counter(one["line"] for one in rejects) == Counter(
        given.invalid | given.refused
    )
    for one in rejects:
        assert ("Contact not found" in one["error"]) == (one["line"] in given.refused)

    # What is finished sends nothing more, and ends as it did.
    assert requests == counts["requests"]
    for one in (told, again[1]):
        del one["elapsed"]
    assert again == (code, told)

    assert outboxes.verdict(journal) == "ok"
    states = Counter(outboxes.states(journal))
    assert states["accepted"] + states["duplicate"] == given.good.total()
    assert states["rejected"] == len(given.refused)
    assert states.total() == count - len(given.invalid)
    assert sorted(file.name for file in path.iterdir()) == [
        "events.csv",
        "events.csv.journal.db",
        "events.csv.rejects.jsonl",
    ]

    assert phases["sending"] >= kills - early
    # So few rows are entered within milliseconds: not every kill finds them.
    assert phases["entering"] > 0 or count < 20_000
    faults = sum(counts["faults"].values())
    assert 0.08 < faults / counts["requests"] < 0.14
    return (
        f"{count:,} rows, {kills} kills in {took:.0f} s ({phases['opening']} before "
        f"the first row was entered, {phases['entering']} while rows were entered, "
        f"{phases['sending']} while they were sent): {len(accepted):,} of "
        f"{given.good.total():,} good rows accepted once, {len(given.invalid)} invalid "
        f"and {len(given.refused)} refused named once, {resends} resends; "
        f"{counts['requests']:,} requests, {faults:,} faulted, "
        f"{counts['duplicates']:,} recognised by their key"
    )


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def finish(process: Any) -> tuple[int, Any]:
    out, err = process.communicate(timeout=280)
    assert process.returncode in (1, 4), err
    assert "Traceback" not in err
    return process.returncode, json.loads(out)


def test_four_kills_and_each_of_1000_rows_is_in_once(
    tmp_path: Path, record_property: Any
) -> None:
    record_property("figures", kill_and_check(tmp_path, 1000, 4, seed=1))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_25_kills_and_each_of_20000_rows_is_in_once(
    tmp_path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = kill_and_check(tmp_path, 20_000, 25, seed=2)
    record_property("figures", figures)
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")
