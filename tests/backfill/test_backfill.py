"""backfill(): which rows are sent, which files and clients can be used."""

import asyncio
import json
import os
import pickle
import stat
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.backfills import (
    NUMBERS,
    Confirm,
    counts_of,
    journal_of,
    json_lines,
    rejects_of,
    row,
    send,
    with_sandbox,
    write,
)
from support.clients import client_of
from support.outboxes import numbers, states

from loops_async import (
    BackfillReport,
    ConfigurationError,
    InputOptions,
    JournalError,
    NotTriedError,
    Preview,
    Progress,
    backfill,
)
from loops_async._backfill.backfill import Backfill
from loops_async.sandbox import Sandbox

UNUSED_URL = "http://127.0.0.1:1/api"


def test_each_row_is_sent_once_and_so_is_each_of_equal_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [*map(row, range(5)), row(2), row(2)])

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox)
        assert counts_of(report) == {"rows": 7, "accepted": 7}
        assert report.stopped_by is None
        assert (report.journal, report.rejects) == (journal_of(path), None)
        assert sorted(numbers(sandbox)) == [0, 1, 2, 2, 2, 3, 4]
        assert len({event.idempotency_key for event in sandbox.events}) == 7
        assert not rejects_of(path).exists()

        requests = sandbox.counts.requests
        second = await send(path, sandbox)
        assert sandbox.counts.requests == requests
        assert attrs.evolve(second, elapsed=0) == attrs.evolve(report, elapsed=0)

    with_sandbox(use)


def test_a_report_prints_one_line_without_the_states_that_no_row_is_in() -> None:
    some = {"accepted": 1000, "duplicates": 1, "invalid": 2}
    others = {"rejected": 3, "unknown": 4, "pending": 5, "rows": 1015}
    none = dict.fromkeys(some | others, 0)
    rest: dict[str, Any] = {"journal": Path("j"), "rejects": None, "elapsed": 1.0}
    report = BackfillReport(**none, **rest, stopped_by=None)
    assert str(report) == "0 rows in 1.0 s: 0 accepted"
    stopped_by = NotTriedError("too many")
    report = BackfillReport(**some, **others, **rest, stopped_by=stopped_by)
    assert str(report) == (
        "1,015 rows in 1.0 s: 1,000 accepted, 1 accepted before, 2 invalid, "
        "3 rejected, 4 unknown, 5 pending; stopped by: too many"
    )
    assert str(pickle.loads(pickle.dumps(report))) == str(report)


@pytest.mark.parametrize("cls", [BackfillReport, InputOptions, Preview, Progress])
def test_a_public_class_is_pickled_under_its_public_name(cls: type) -> None:
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert cls.__module__ == "loops_async"


def test_the_progress_after_each_event_adds_up(tmp_path: Path) -> None:
    not_accepted = [row(7, email="nobody"), row(8, email="", user_id="ghost")]
    path = write(tmp_path / "events.csv", [*map(row, range(6)), *not_accepted])
    reported: list[Progress] = []

    async def use(sandbox: Sandbox) -> BackfillReport:
        sandbox.script("close-after")
        return await send(path, sandbox, on_progress=reported.append)

    report = with_sandbox(use)
    assert len(reported) == 1 + 7
    for progress in reported:
        assert progress.rows == 8
        assert sum(attrs.astuple(progress)[1:]) == 8
    assert counts_of(reported[0]) == {"rows": 8, "invalid": 1, "pending": 7}
    last = {"rows": 8, "accepted": 5, "duplicates": 1, "invalid": 1, "rejected": 1}
    assert counts_of(reported[-1]) == counts_of(report) == last


def test_several_files_form_one_run(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", [row(1), row(2, email="nobody")])
    second = tmp_path / "b.jsonl"
    record = {"email": "u3@b.co", "event_name": "x", "event_properties": {"number": 3}}
    second.write_text(f"{json.dumps(record)}\n{{}}\n", encoding="utf-8")

    async def use(sandbox: Sandbox) -> None:
        report = await send([first, second], sandbox)
        assert counts_of(report) == {"rows": 4, "accepted": 2, "invalid": 2}
        assert numbers(sandbox) == [1, 3]
        assert report.journal == journal_of(first)

    with_sandbox(use)
    one, two = json_lines(rejects_of(first))
    assert (one["file"], one["line"]) == (str(first), 3)
    assert (two["file"], two["line"]) == (str(second), 2)


def test_a_path_can_be_a_string(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])

    async def use(sandbox: Sandbox) -> None:
        report = await send(str(path), sandbox)  # type: ignore[arg-type]
        assert counts_of(report) == {"rows": 1, "accepted": 1}

    with_sandbox(use)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"rejects": "events.csv"}, "events.csv is used more than once among input,"),
        ({"journal": "events.csv"}, "events.csv is used more than once among input,"),
        ({"journal": "x", "rejects": "x"}, "x is used more than once among input,"),
        ({"paths": ["events.csv", "./events.csv"]}, "events.csv is used more than on"),
        ({"paths": []}, "a backfill needs at least one file"),
    ],
)
def test_a_file_that_is_used_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("events.csv"), [row(1)])

    async def main() -> None:
        async with client_of(UNUSED_URL) as client:
            arguments = {"paths": "events.csv", **options}
            with pytest.raises(ConfigurationError, match=error):
                await backfill(client=client, **arguments)

    asyncio.run(main())
    assert os.listdir() == ["events.csv"]  # noqa: PTH208 - of the working directory


def test_two_names_of_one_file_are_the_same_file(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    other = tmp_path / "other.csv"
    other.hardlink_to(path)
    with pytest.raises(ConfigurationError, match=r"events.csv is used more than once"):
        Backfill([path, other], client_of(UNUSED_URL))


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux only")
def test_a_file_whose_name_is_not_utf_8_can_be_sent(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    path = write(tmp_path / name, [row(1), row(2, email="x")])

    async def use(sandbox: Sandbox) -> None:
        confirm = Confirm()
        for _ in range(2):
            report = await send(path, sandbox, confirm=confirm)
            assert counts_of(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert report.rejects == rejects_of(path)
        assert confirm.previews[0].problems[0].startswith("caf\\xe9.csv:3: email: ")

    with_sandbox(use)


def test_a_run_that_cannot_read_its_input_leaves_no_file(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)], head="what,is,this,now")

    async def use(sandbox: Sandbox) -> None:
        for unusable in (path, tmp_path / "none.csv"):
            with pytest.raises(ConfigurationError, match=unusable.name):
                await send(unusable, sandbox)

    with_sandbox(use)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_an_input_that_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")

    async def use(sandbox: Sandbox) -> None:
        with pytest.raises(ConfigurationError, match=r"pipe\.csv is not a regular fil"):
            await send(tmp_path / "pipe.csv", sandbox)

    with_sandbox(use)


def test_a_file_that_is_not_a_journal_is_refused_and_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    journal_of(path).write_text("my diary " * 1000, encoding="utf-8")

    async def use(sandbox: Sandbox) -> None:
        with pytest.raises(JournalError):
            await send(path, sandbox)
        assert not sandbox.requests

    with_sandbox(use)
    assert journal_of(path).read_text(encoding="utf-8").startswith("my diary")


def test_a_journal_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    with_sandbox(lambda sandbox: send(path, sandbox))
    assert states(journal_of(path)) == ["accepted"]
    if sys.platform != "win32":
        assert stat.S_IMODE(journal_of(path).stat().st_mode) == 0o600


def test_two_runs_at_a_time_cannot_use_one_journal(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])

    async def use(sandbox: Sandbox) -> None:
        errors = []

        async def confirm(_: Preview) -> bool:
            with pytest.raises(JournalError) as caught:
                await send(path, sandbox)
            errors.append(caught.value)
            return True

        report = await send(path, sandbox, confirm=confirm)
        assert counts_of(report) == {"rows": 1, "accepted": 1}
        assert [error.in_use for error in errors] == [True]

    with_sandbox(use)


def test_a_dry_run_client_can_check_a_backfill_but_not_run_it(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])

    async def main() -> Preview:
        async with client_of(UNUSED_URL, dry_run=True) as client:
            job = Backfill(path, client)
            with pytest.raises(ConfigurationError, match="dry_run"):
                await job.run()
            return await job.check()

    preview = asyncio.run(main())
    assert (preview.rows, preview.invalid, preview.to_send) == (2, 1, 1)
    assert (preview.seconds, preview.changes) == (None, None)
    assert [*tmp_path.iterdir()] == [path]


def test_a_row_for_a_recipient_that_is_not_allowed_is_invalid(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2)])

    async def use(sandbox: Sandbox) -> None:
        settings = {"allowed_recipients": ["u1@b.co"]}
        async with client_of(sandbox, **settings) as client:
            report = await backfill(path, client, input_options=NUMBERS)
        assert counts_of(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert numbers(sandbox) == [1]

    with_sandbox(use)
    (reject,) = json_lines(rejects_of(path))
    assert reject["line"] == 3
    assert "allowed_recipients" in reject["error"]
    assert reject["record"]["email"] == "u2@b.co"


def test_other_tasks_run_between_two_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(50)))
    batches: list[tuple[int, int]] = []
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def use(sandbox: Sandbox) -> None:
        counting = asyncio.create_task(count_turns())
        confirm = Confirm(result=False)

        def on_read(rows: int) -> None:
            batches.append((rows, turns))

        async with client_of(sandbox) as client:
            job = Backfill(
                path,
                client,
                input_options=NUMBERS,
                on_read=on_read,
                confirm=confirm,
                batch_size=5,
            )
            await job.run()
            before = turns
            preview = await job.check()
        assert preview == confirm.previews[0]
        assert turns >= before + 10
        counting.cancel()

    with_sandbox(use)
    assert [rows for rows, _ in batches] == list(range(5, 51, 5))
    turns_at_batches = [turn for _, turn in batches]
    assert turns_at_batches == sorted(set(turns_at_batches))
