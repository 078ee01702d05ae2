"""The rejects file: what is in it, when it is written, what becomes of it."""

import json
import stat
import sys
from pathlib import Path

import attrs
import pytest
from support.backfills import (
    NUMBERS,
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
from support.outboxes import numbers

from loops_async import ConfigurationError, InputOptions, Progress
from loops_async._backfill.backfill import Backfill
from loops_async.sandbox import Sandbox

LIST = "cm06f5v0e45nf0ml5754o9cix"


def test_rejects_that_are_corrected_can_be_sent_as_a_run_of_their_own(
    tmp_path: Path,
) -> None:
    head = "email,userId,eventName,eventProperties.number,contactProperties.firstName"
    head += f",mailingLists.{LIST},eventProperties.at"
    day = "2026-01-31T12:00:00+01:00"
    lines = [
        f"u1@b.co,,signup,1,Ada,true,{day}",
        f"nobody,,signup,2,Bea,true,{day}",
        f",ghost,signup,3,Cyd,,{day}",
        f"u4@b.co,,signup,many,Dot,maybe,{day}",
        "u5@b.co",
    ]
    path = write(tmp_path / "events.csv", lines, head)
    options = InputOptions(types={"number": "number", "at": "date"})

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, input_options=options)
        counts = {"rows": 5, "accepted": 1, "invalid": 3, "rejected": 1}
        assert counts_of(report) == counts
        assert report.rejects == rejects_of(path)
        if sys.platform != "win32":
            assert stat.S_IMODE(rejects_of(path).stat().st_mode) == 0o600
        rejects = json_lines(rejects_of(path))
        assert [list(reject) for reject in rejects] == [["line", "error", "record"]] * 4
        assert [reject["line"] for reject in rejects] == [3, 5, 6, 4]
        email, two_problems, short, rejected = rejects
        assert email["error"].startswith("email: must be ")
        assert two_problems["error"] == (
            'event_properties.number: "many" is not a number; '
            f'mailing_lists.{LIST}: "maybe" is not true or false'
        )
        assert short["error"] == "1 cell, but the heading has 7"
        assert short["record"] == "u5@b.co"
        assert rejected["error"].startswith("BadRequestError: ")
        assert "Contact not found" in rejected["error"]
        # A rejected row is recorded as it was sent, with the names of Event.
        assert rejected["record"] == {
            "event_name": "signup",
            "user_id": "ghost",
            "event_properties": {"number": 3, "at": "2026-01-31T11:00:00.000Z"},
            "contact_properties": {"firstName": "Cyd"},
        }

        email["record"]["email"] = "u2@b.co"
        two_problems["record"]["event_properties"]["number"] = 4
        two_problems["record"]["mailing_lists"] = {}
        rejected["record"]["email"] = "u3@b.co"
        corrected = tmp_path / "corrected.jsonl"
        text = "\n".join(map(json.dumps, (email, two_problems, rejected)))
        corrected.write_text(text, encoding="utf-8")
        report = await send(corrected, sandbox, input_options=options)
        assert counts_of(report) == {"rows": 3, "accepted": 3}

        assert sorted(numbers(sandbox)) == [1, 2, 3, 4]
        for event in sandbox.events:
            assert event.event_properties["at"] == "2026-01-31T11:00:00.000Z"
            assert event.contact_properties["firstName"] in ("Ada", "Bea", "Cyd", "Dot")

    with_sandbox(use)


def test_a_rejects_file_is_replaced_only_when_the_rejects_change(
    tmp_path: Path,
) -> None:
    """A correction is not lost, and a row corrected in the input is not kept."""
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox)
        assert report.rejects == rejects_of(path)
        rejects_of(path).write_text("corrected")
        second = await send(path, sandbox)
        assert attrs.evolve(second, elapsed=0) == attrs.evolve(report, elapsed=0)
        assert rejects_of(path).read_text() == "corrected"
        write(path, [row(1), row(2, email="nobody"), row(3, email="nobody")])
        await send(path, sandbox)
        assert [reject["line"] for reject in json_lines(rejects_of(path))] == [3, 4]
        write(path, [row(1), row(2), row(3)])
        report = await send(path, sandbox)
        assert report.rejects is None
        assert not rejects_of(path).exists()
        assert numbers(sandbox) == [1, 2, 3]

    with_sandbox(use)


def test_a_pass_that_is_not_complete_does_not_touch_the_rejects(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="x")])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        rejects_of(path).write_text("corrected")
        write(path, map(row, range(12)))
        async with client_of(sandbox) as client:
            job = Backfill(path, client, input_options=NUMBERS, batch_size=5)
            job.on_read = lambda _: job.stop()
            await job.run()
        assert rejects_of(path).read_text() == "corrected"

    with_sandbox(use)


def test_rejects_that_cannot_be_written_in_the_end_are_reported(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="x")])

    def obstruct(_: Progress) -> None:
        rejects_of(path).mkdir(exist_ok=True)

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, on_progress=obstruct)
        assert counts_of(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert isinstance(report.stopped_by, ConfigurationError)
        assert f"{rejects_of(path)} cannot be written" in str(report.stopped_by)
        assert report.rejects is None
        rejects_of(path).rmdir()
        assert (await send(path, sandbox)).rejects == rejects_of(path)

    with_sandbox(use)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {path.name, journal_of(path).name, rejects_of(path).name}


def test_a_path_for_rejects_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])
    (tmp_path / "folder").mkdir()
    errors = {
        "none/rejects": "cannot be written: its directory does not exist or is not",
        "folder": "cannot be written: it is a directory",
    }

    async def use(sandbox: Sandbox) -> None:
        for name, error in errors.items():
            with pytest.raises(ConfigurationError, match=f"{name} {error}"):
                await send(path, sandbox, rejects=tmp_path / name)
        report = await send(path, sandbox, rejects=tmp_path / "rejects")
        assert counts_of(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert numbers(sandbox) == [1]

    with_sandbox(use)
    names = {"events.csv", "events.csv.journal.db", "rejects", "folder"}
    assert {file.name for file in tmp_path.iterdir()} == names
