"""backfill() from Python: what is sent, what is not, and what the books say of it."""

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import http_server as servers
from support.backfills import HEAD, json_lines, row, write
from support.outboxes import client_of, numbers, rows, states, until

from loops_async import (
    AuthenticationError,
    BackfillReport,
    ConfigurationError,
    InputOptions,
    JournalError,
    NotTriedError,
    Preview,
    Progress,
    backfill,
)
from loops_async._backfill import preview as _preview
from loops_async._backfill.backfill import Backfill
from loops_async._backfill.journal import Changes
from loops_async.sandbox import Sandbox

NUMBERS = InputOptions(types={"number": "number"})
Use = Callable[[Sandbox], Coroutine[Any, Any, Any]]


def with_sandbox(use: Use, **settings: Any) -> Any:
    """Run it with a sandbox without a limit."""

    async def main() -> Any:
        async with Sandbox(**{"rate_limit": None, **settings}) as sandbox:
            return await use(sandbox)

    return servers.run(main())


async def send(
    path: Path | list[Path], sandbox: Sandbox, *, key: str | None = None, **options: Any
) -> BackfillReport:
    """Backfill without a rate limit; numbers are numbers."""
    settings = {} if key is None else {"api_key": key}
    async with client_of(sandbox, **settings) as client:
        return await backfill(path, client, **{"input_options": NUMBERS, **options})


def parts(report: Progress) -> dict[str, int]:
    """Return the parts that are not 0."""
    fields = [field.name for field in attrs.fields(Progress)]
    return {name: getattr(report, name) for name in fields if getattr(report, name)}


def journal_of(path: Path) -> Path:
    return Path(f"{path}.journal.db")


def rejects_of(path: Path) -> Path:
    return Path(f"{path}.rejects.jsonl")


def edit(path: Path, statement: str, *values: Iterable[object]) -> None:
    """Change what is in the journal."""
    with closing(sqlite3.connect(journal_of(path))) as db:
        db.executemany(statement, values or [()])
        db.commit()


class Asked:
    """Answers the question, and remembers it."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.previews: list[Preview] = []

    def __call__(self, preview: Preview) -> bool:
        self.previews.append(preview)
        return self.answer


# What is sent


def test_every_row_is_sent_once_and_each_of_equal_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [*map(row, range(5)), row(2), row(2)])

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox)
        assert parts(report) == {"rows": 7, "accepted": 7}
        assert report.stopped_by is None
        assert (report.journal, report.rejects) == (journal_of(path), None)
        assert sorted(numbers(sandbox)) == [0, 1, 2, 2, 2, 3, 4]
        assert len({one.idempotency_key for one in sandbox.events}) == 7
        assert not rejects_of(path).exists()

        requests = sandbox.counts.requests
        again = await send(path, sandbox)
        assert sandbox.counts.requests == requests
        assert attrs.evolve(again, elapsed=0) == attrs.evolve(report, elapsed=0)

    with_sandbox(use)


def test_the_report_is_one_line_that_leaves_out_what_there_is_none_of() -> None:
    some = {"accepted": 1000, "duplicates": 1, "invalid": 2}
    more = {"rejected": 3, "unknown": 4, "pending": 5, "rows": 1015}
    none = dict.fromkeys(some | more, 0)
    told = {"stopped_by": None, "journal": Path("j"), "rejects": None, "elapsed": 1.0}
    assert str(BackfillReport(**none, **told)) == "0 rows in 1.0 s: 0 accepted"
    told["stopped_by"] = NotTriedError("enough")
    assert str(BackfillReport(**some, **more, **told)) == (
        "1,015 rows in 1.0 s: 1,000 accepted, 1 accepted before, 2 invalid, "
        "3 rejected, 4 unknown, 5 pending; stopped by: enough"
    )


def test_the_books_sum_up_after_every_event(tmp_path: Path) -> None:
    bad = [row(7, email="nobody"), row(8, email="", user_id="ghost")]
    path = write(tmp_path / "events.csv", [*map(row, range(6)), *bad])
    told: list[Progress] = []

    async def use(sandbox: Sandbox) -> BackfillReport:
        sandbox.script("close-after")
        return await send(path, sandbox, on_progress=told.append)

    report = with_sandbox(use)
    assert len(told) == 1 + 7
    for progress in told:
        assert progress.rows == 8
        assert sum(attrs.astuple(progress)[1:]) == 8
    assert parts(told[0]) == {"rows": 8, "invalid": 1, "pending": 7}
    end = {"rows": 8, "accepted": 5, "duplicates": 1, "invalid": 1, "rejected": 1}
    assert parts(told[-1]) == parts(report) == end


def test_several_files_are_one_run(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", [row(1), row(2, email="nobody")])
    second = tmp_path / "b.jsonl"
    record = {"email": "u3@b.co", "event_name": "x", "event_properties": {"number": 3}}
    second.write_text(f"{json.dumps(record)}\n{{}}\n", encoding="utf-8")

    async def use(sandbox: Sandbox) -> None:
        report = await send([first, second], sandbox)
        assert parts(report) == {"rows": 4, "accepted": 2, "invalid": 2}
        assert numbers(sandbox) == [1, 3]
        assert report.journal == journal_of(first)

    with_sandbox(use)
    one, two = json_lines(rejects_of(first))
    assert (one["file"], one["line"]) == (str(first), 3)
    assert (two["file"], two["line"]) == (str(second), 2)


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])

    async def use(sandbox: Sandbox) -> None:
        report = await send(str(path), sandbox)  # type: ignore[arg-type]
        assert parts(report) == {"rows": 1, "accepted": 1}

    with_sandbox(use)


@pytest.mark.parametrize(
    "options",
    [
        {"rejects": "events.csv"},
        {"journal": "events.csv"},
        {"journal": "x", "rejects": "x"},
        {"paths": ["events.csv", "./events.csv"]},
        {"paths": []},
    ],
)
def test_one_file_cannot_be_two_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("events.csv"), [row(1)])

    async def main() -> None:
        async with client_of("http://127.0.0.1:1/api") as client:
            given = {"paths": "events.csv", **options}
            with pytest.raises(ConfigurationError):
                await backfill(client=client, **given)

    servers.run(main())
    assert os.listdir() == ["events.csv"]  # noqa: PTH208 - of the working directory


def test_one_file_by_two_names_is_given_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    other = tmp_path / "other.csv"
    other.hardlink_to(path)
    client = client_of("http://127.0.0.1:1/api")
    with pytest.raises(ConfigurationError, match=r"events.csv is given twice"):
        Backfill([path, other], client)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux only")
def test_a_name_that_is_no_utf_8_can_be_sent_and_told(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    path = write(tmp_path / name, [row(1), row(2, email="x")])

    async def use(sandbox: Sandbox) -> None:
        asked = Asked()
        for _ in range(2):
            report = await send(path, sandbox, confirm=asked)
            assert parts(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert report.rejects == rejects_of(path)
        assert asked.previews[0].problems[0].startswith("caf\\xe9.csv:3: email: ")

    with_sandbox(use)


def test_told_to_stop_before_it_began_it_reads_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox) as client:
            job = Backfill(path, client, input_options=NUMBERS)
            job.stop()
            assert parts(await job.run()) == {}
        assert not journal_of(path).exists()

    with_sandbox(use)


def test_a_file_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    heading = write(tmp_path / "events.csv", [row(1)], head="what,is,this,now")

    async def use(sandbox: Sandbox) -> None:
        for path in (heading, tmp_path / "none.csv"):
            with pytest.raises(ConfigurationError, match=path.name):
                await send(path, sandbox)

    with_sandbox(use)
    assert [*tmp_path.iterdir()] == [heading]


def test_a_journal_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    journal_of(path).write_text("my diary " * 1000, encoding="utf-8")

    async def use(sandbox: Sandbox) -> None:
        with pytest.raises(JournalError, match="no journal"):
            await send(path, sandbox)
        assert not sandbox.requests

    with_sandbox(use)
    assert journal_of(path).read_text(encoding="utf-8").startswith("my diary")


def test_a_client_in_a_dry_run_may_check_but_not_run(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])

    async def main() -> Preview:
        async with client_of("http://127.0.0.1:1/api", dry_run=True) as client:
            job = Backfill(path, client)
            with pytest.raises(ConfigurationError, match="dry_run"):
                await job.run()  # else its rows would count as accepted
            return await job.check()

    preview = servers.run(main())
    assert (preview.rows, preview.invalid, preview.to_send) == (2, 1, 1)
    assert (preview.seconds, preview.changes) == (None, None)
    assert [*tmp_path.iterdir()] == [path]


def test_who_is_not_allowed_is_an_invalid_row(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2)])

    async def use(sandbox: Sandbox) -> None:
        settings = {"allowed_recipients": ["u1@b.co"]}
        async with client_of(sandbox, **settings) as client:
            report = await backfill(path, client, input_options=NUMBERS)
        assert parts(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert numbers(sandbox) == [1]

    with_sandbox(use)
    (one,) = json_lines(rejects_of(path))
    assert one["line"] == 3
    assert "allowed_recipients" in one["error"]
    assert one["record"]["email"] == "u2@b.co"


# The question


def test_the_question_tells_what_would_be_sent(tmp_path: Path) -> None:
    given = [row(n, email=f"U{n % 3}@b.co" if n % 2 else "") for n in range(9)]
    given = [text.replace(",,", f",id{n},", 1) for n, text in enumerate(given)]
    given += [row(9, email="u1@b.co", event_name="bought"), row(10, email="nobody")]
    path = write(tmp_path / "events.csv", given)
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox, rate_limit=10) as client:
            await backfill(path, client, confirm=asked)

    with_sandbox(use)
    (preview,) = asked.previews
    assert (preview.rows, preview.invalid, preview.to_send) == (11, 1, 10)
    assert preview.events == {"signup": 9, "bought": 1}
    assert preview.contacts == 3 + 5
    assert preview.changes is None
    assert preview.seconds == pytest.approx(10 / (10 * 0.95))
    (problem,) = preview.problems
    assert problem.startswith("events.csv:12: email: ")


def test_many_problems_and_names_are_counted_and_only_some_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_preview, "_MOST_NAMES", 3)
    monkeypatch.setattr(_preview, "_MOST_CONTACTS", 4)
    good = [row(n, event_name=f"e{n}") for n in range(6)]
    path = write(tmp_path / "a.csv", good + [row(1, email="nobody")] * 30)
    other = tmp_path / "b"
    other.mkdir()
    twin = write(other / "a.csv", [row(1, email="nobody")])
    asked = Asked(answer=False)

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, confirm=asked)
        await send([twin, path], sandbox, confirm=asked)

    with_sandbox(use)
    first, both = asked.previews
    assert (first.invalid, len(first.problems), first.contacts) == (30, 20, 4)
    assert first.events == {"e0": 1, "e1": 1, "e2": 1, "(others)": 3}
    assert both.problems[0].startswith(f"{twin}:2: ")  # two have the name


@pytest.mark.parametrize("coroutine", [False, True])
def test_what_is_not_confirmed_is_not_sent_and_asked_again(
    tmp_path: Path, coroutine: bool
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])
    asked = Asked(answer=False)

    async def later(preview: Preview) -> bool:
        await asyncio.sleep(0)
        return asked(preview)

    confirm = later if coroutine else asked

    async def use(sandbox: Sandbox) -> None:
        for _ in range(2):
            report = await send(path, sandbox, confirm=confirm)
            assert parts(report) == {"rows": 2, "invalid": 1, "pending": 1}
            assert isinstance(report.stopped_by, NotTriedError)
        assert not sandbox.requests
        asked.answer = True
        report = await send(path, sandbox, confirm=confirm)
        assert parts(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert report.stopped_by is None

    with_sandbox(use)
    assert len(asked.previews) == 3


def test_what_was_confirmed_is_not_asked_again(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(20)))
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox, max_connections=1) as client:
            job = Backfill(path, client, input_options=NUMBERS, confirm=asked)
            job.on_progress = lambda told: told.accepted == 3 and job.stop()
            report = await job.run()
        assert 3 <= report.accepted < 20
        assert report.pending == 20 - report.accepted
        assert report.stopped_by is None  # it was told to
        report = await send(path, sandbox, confirm=asked)
        assert parts(report) == {"rows": 20, "accepted": 20}
        assert sorted(numbers(sandbox)) == list(range(20))

    with_sandbox(use)
    assert len(asked.previews) == 1


def test_nothing_to_send_is_nothing_to_ask(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1, email="nobody")])
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        for _ in range(2):
            report = await send(path, sandbox, confirm=asked)
            assert parts(report) == {"rows": 1, "invalid": 1}
            assert report.rejects == rejects_of(path)

    with_sandbox(use)
    assert asked.previews == []


# A changed input

STATES = ("pending", "accepted", "rejected", "ambiguous")


def changed_input(path: Path) -> dict[int, int]:
    """Rewrite the file: of three rows keep the first, mend the second.

    Returns:
        Numbers that are new, with their lines.
    """
    kept = []
    new = {}
    for first in range(0, 12, 3):
        kept += [row(first), row(first + 101)]
        new[first + 101] = len(kept) + 1
    write(path, [*kept, row(200)])
    return new | {200: len(kept) + 2}


async def one_of_each(path: Path, sandbox: Sandbox) -> None:
    """Run it, and let its rows be in all states, three of each."""
    write(path, map(row, range(12)))
    await send(path, sandbox)
    sandbox.reset()
    changes = {
        "pending": "state = 'pending', ambiguous_since = NULL",
        "accepted": "state = 'accepted'",
        "rejected": "state = 'rejected', error = 'BadRequestError: 400: no'",
        "ambiguous": f"state = 'pending', ambiguous_since = {time.time()}",
    }
    for first, state in enumerate(STATES):
        lines = tuple(first * 3 + n + 2 for n in range(3))
        edit(path, f"UPDATE events SET {changes[state]} WHERE line IN {lines}")
    assert len(rows(journal_of(path))) == 12


@pytest.mark.parametrize("interrupted", ["not", "stopped", "cancelled"])
def test_of_a_changed_input_what_is_new_is_sent(
    tmp_path: Path, interrupted: str
) -> None:
    path = tmp_path / "events.csv"
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        await one_of_each(path, sandbox)
        new = changed_input(path)
        if interrupted == "stopped":
            async with client_of(sandbox) as client:
                job = Backfill(path, client, input_options=NUMBERS, confirm=asked)
                job.on_read = lambda _: job.stop()
                assert (await job.run()).pending
        elif interrupted == "cancelled":

            def cancel(_: int) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()

            async def cut_off() -> None:
                with pytest.raises(asyncio.CancelledError):
                    await send(path, sandbox, on_read=cancel, confirm=asked)

            await asyncio.create_task(cut_off())
        assert not sandbox.requests
        assert asked.previews == []
        report = await send(path, sandbox, confirm=asked)
        assert sorted(numbers(sandbox)) == sorted([0, 9, *new])
        assert parts(report) == {"rows": 9, "accepted": 8, "rejected": 1}
        (preview,) = asked.previews
        assert preview.to_send == 7
        first_new = tuple(f"{path}:{line}" for line in new.values())
        assert preview.changes == Changes(5, first_new, dropped=4, sent_before=4)

        asked.previews.clear()
        again = await send(path, sandbox, confirm=asked)
        assert parts(again) == parts(report)
        assert asked.previews == []

    with_sandbox(use)


def test_nobody_is_asked_about_rows_that_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        await one_of_each(path, sandbox)
        write(path, map(row, range(1, 12)))
        report = await send(path, sandbox, confirm=asked)
        assert sorted(numbers(sandbox)) == [1, 2, 9, 10, 11]
        assert parts(report) == {"rows": 11, "accepted": 8, "rejected": 3}

    with_sandbox(use)
    assert asked.previews == []


def test_a_row_that_comes_back_is_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"

    async def use(sandbox: Sandbox) -> None:
        await one_of_each(path, sandbox)
        write(path, [row(12)])
        report = await send(path, sandbox, confirm=Asked())
        assert parts(report) == {"rows": 1, "accepted": 1}
        sandbox.reset()
        write(path, map(row, range(13)))
        report = await send(path, sandbox)
        # Loops has 3 and may have the last 3; it does not have the others.
        assert sorted(numbers(sandbox)) == [0, 1, 2, 6, 7, 8]
        assert parts(report) == {"rows": 13, "accepted": 10, "unknown": 3}

    with_sandbox(use)
    errors = [one["error"] for one in rows(journal_of(path)) if one["error"]]
    assert errors == ["no longer in the input"] * 3


def test_what_is_declined_of_a_changed_input_is_told_again(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, confirm=asked)
        write(path, [row(1), row(2)])
        asked.answer = False
        for _ in range(2):
            report = await send(path, sandbox, confirm=asked)
            assert parts(report) == {"rows": 2, "accepted": 1, "pending": 1}
        assert numbers(sandbox) == [1]
        assert journal_of(path).exists()
        asked.answer = True
        await send(path, sandbox, confirm=asked)
        assert numbers(sandbox) == [1, 2]

    with_sandbox(use)
    changes = Changes(1, (f"{path}:3",), dropped=0, sent_before=0)
    assert [one.changes for one in asked.previews] == [None, changes, changes, changes]


def test_another_type_makes_other_events(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2)])
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, input_options=InputOptions(), confirm=asked)
        await send(path, sandbox, input_options=NUMBERS, confirm=asked)
        await send(path, sandbox, input_options=NUMBERS, confirm=asked)
        assert numbers(sandbox) == ["1", "2", 1, 2]
        wrong = InputOptions(mapping={"email": "E-Mail"})
        with pytest.raises(ConfigurationError):
            await send(path, sandbox, input_options=wrong, confirm=asked)
        report = await send(path, sandbox, input_options=NUMBERS, confirm=asked)
        assert parts(report) == {"rows": 2, "accepted": 2}
        assert sandbox.counts.requests == 4
        asked.answer = False
        name = InputOptions(
            types=NUMBERS.types, mapping={"name": "event_name"}, event_name="x"
        )
        report = await send(path, sandbox, input_options=name, confirm=asked)
        assert parts(report) == {"rows": 2, "pending": 2}
        report = await send(path, sandbox, input_options=NUMBERS, confirm=asked)
        assert parts(report) == {"rows": 2, "accepted": 2}

    with_sandbox(use)
    where = (f"{path}:2", f"{path}:3")
    assert [one.changes for one in asked.previews] == [
        None,
        Changes(2, where, dropped=0, sent_before=2),
        Changes(2, where, dropped=0, sent_before=4),
    ]


def test_what_was_sent_is_not_sent_again_for_being_read_in_another_way(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, input_options=InputOptions())
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="would be sent twice"):
                await send(path, sandbox, input_options=NUMBERS)
        with path.open("a") as file:
            file.write("\n")  # an edit that changes nothing
        with pytest.raises(ConfigurationError, match="would be sent twice"):
            await send(path, sandbox, input_options=NUMBERS)
        report = await send(path, sandbox, input_options=InputOptions())
        assert parts(report) == {"rows": 2, "accepted": 2}
        assert sandbox.counts.requests == 2

    with_sandbox(use)


def test_a_contacts_order_is_that_of_the_input_as_it_is_now(tmp_path: Path) -> None:
    def of_x(number: int, email: str = "x@b.co") -> str:
        return row(number, email=email)

    path = write(tmp_path / "events.csv", [of_x(1), of_x(2, "x"), of_x(3)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, confirm=Asked(answer=False))
        write(path, [of_x(0), of_x(1), of_x(2), of_x(3)])
        report = await send(path, sandbox)
        assert parts(report) == {"rows": 4, "accepted": 4}
        assert numbers(sandbox) == [0, 1, 2, 3]

    with_sandbox(use)


def test_a_check_knows_what_was_sent_if_nothing_has_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2), row(3, email="x")])

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox) as client:
            checked = Backfill(path, client, input_options=NUMBERS).check
            assert (await checked()).to_send == 2
            assert not journal_of(path).exists()
            await send(path, sandbox)
            assert (await checked()).to_send == 0
            write(path, [row(1), row(2), row(3)])
            assert (await checked()).to_send == 3

    with_sandbox(use)


def test_an_invalid_row_that_was_mended_is_sent_and_not_named_again(
    tmp_path: Path,
) -> None:
    bad = row(2, email="nobody")
    path = write(tmp_path / "events.csv", [row(1), bad, row(3, email="x")])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        write(path, [row(1), row(2), row(3, email="x")])
        report = await send(path, sandbox)
        assert parts(report) == {"rows": 3, "accepted": 2, "invalid": 1}
        assert numbers(sandbox) == [1, 2]

    with_sandbox(use)
    assert [one["line"] for one in json_lines(rejects_of(path))] == [4]


def test_a_moved_input_is_the_same_run(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, confirm=asked)
        moved = path.rename(tmp_path / "old.csv")
        report = await send(moved, sandbox, journal=journal_of(path), confirm=asked)
        assert parts(report) == {"rows": 1, "accepted": 1}
        assert sandbox.counts.requests == 1

    with_sandbox(use)
    assert len(asked.previews) == 1


# Rejects


def test_the_rejects_can_be_mended_and_sent_as_a_run_of_their_own(
    tmp_path: Path,
) -> None:
    head = "email,userId,eventName,eventProperties.number,contactProperties.firstName"
    head += ",mailingLists.cm06f5v0e45nf0ml5754o9cix,eventProperties.at"
    day = "2026-01-31T12:00:00+01:00"
    given = [
        f"u1@b.co,,signup,1,Ada,true,{day}",
        f"nobody,,signup,2,Bea,true,{day}",
        f",ghost,signup,3,Cyd,,{day}",
        f"u4@b.co,,signup,many,Dot,maybe,{day}",
        "u5@b.co",
    ]
    path = write(tmp_path / "events.csv", given, head)
    types = InputOptions(types={"number": "number", "at": "date"})

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, input_options=types)
        counts = {"rows": 5, "accepted": 1, "invalid": 3, "rejected": 1}
        assert parts(report) == counts
        assert report.rejects == rejects_of(path)
        if sys.platform != "win32":
            assert stat.S_IMODE(rejects_of(path).stat().st_mode) == 0o600
        found = json_lines(rejects_of(path))
        assert [list(one) for one in found] == [["line", "error", "record"]] * 4
        assert [one["line"] for one in found] == [3, 5, 6, 4]
        assert found[0]["error"].startswith("email: must be ")
        assert found[1]["error"] == (
            'event_properties.number: "many" is not a number; '
            'mailing_lists.cm06f5v0e45nf0ml5754o9cix: "maybe" is not true or false'
        )
        assert found[2]["error"] == "1 cell, but the heading has 7"
        assert found[2]["record"] == "u5@b.co"
        assert found[3]["error"].startswith(
            "BadRequestError: Loops answered 400: Contact"
        )
        # What Loops refused is as it was sent, in our spelling.
        assert found[3]["record"] == {
            "event_name": "signup",
            "user_id": "ghost",
            "event_properties": {"number": 3, "at": "2026-01-31T11:00:00.000Z"},
            "contact_properties": {"firstName": "Cyd"},
        }

        mended = tmp_path / "mended.jsonl"
        found[0]["record"]["email"] = "u2@b.co"
        found[1]["record"]["event_properties"]["number"] = 4
        found[1]["record"]["mailing_lists"] = {}
        del found[2]
        found[2]["record"]["email"] = "u3@b.co"
        mended.write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
        report = await send(mended, sandbox, input_options=types)
        assert parts(report) == {"rows": 3, "accepted": 3}

        assert sorted(numbers(sandbox)) == [1, 2, 3, 4]
        for one in sandbox.events:
            assert one.event_properties["at"] == "2026-01-31T11:00:00.000Z"
            assert one.contact_properties["firstName"] in ("Ada", "Bea", "Cyd", "Dot")

    with_sandbox(use)


def test_rejects_are_left_alone_until_there_are_others(tmp_path: Path) -> None:
    """Whoever mends them must not lose his work; nor find what was mended since."""
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox)
        assert report.rejects == rejects_of(path)
        rejects_of(path).write_text("mended")
        again = await send(path, sandbox)
        assert attrs.evolve(again, elapsed=0) == attrs.evolve(report, elapsed=0)
        assert rejects_of(path).read_text() == "mended"
        write(path, [row(1), row(2, email="nobody"), row(3, email="nobody")])
        await send(path, sandbox)
        assert [one["line"] for one in json_lines(rejects_of(path))] == [3, 4]
        write(path, [row(1), row(2), row(3)])
        report = await send(path, sandbox)
        assert report.rejects is None
        assert not rejects_of(path).exists()
        assert numbers(sandbox) == [1, 2, 3]

    with_sandbox(use)


def test_a_pass_that_was_not_finished_leaves_the_rejects_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="x")])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        rejects_of(path).write_text("mended")
        write(path, map(row, range(1200)))
        async with client_of(sandbox) as client:
            job = Backfill(path, client, input_options=NUMBERS)
            job.on_read = lambda _: job.stop()
            await job.run()
        assert rejects_of(path).read_text() == "mended"

    with_sandbox(use)


def test_rejects_that_cannot_be_written_in_the_end_do_not_hide_the_books(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="x")])

    def gets_in_the_way(_: Progress) -> None:
        rejects_of(path).mkdir(exist_ok=True)

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, on_progress=gets_in_the_way)
        assert parts(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert isinstance(report.stopped_by, ConfigurationError)
        assert f"{rejects_of(path)} cannot be written" in str(report.stopped_by)
        assert report.rejects is None
        rejects_of(path).rmdir()
        assert (await send(path, sandbox)).rejects == rejects_of(path)

    with_sandbox(use)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {path.name, journal_of(path).name, rejects_of(path).name}


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_what_can_be_read_once_only_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")

    async def use(sandbox: Sandbox) -> None:
        with pytest.raises(ConfigurationError, match=r"pipe\.csv is no file"):
            await send(tmp_path / "pipe.csv", sandbox)

    with_sandbox(use)


def test_rejects_that_cannot_be_written_are_a_matter_of_configuration(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])
    (tmp_path / "taken").mkdir()

    async def use(sandbox: Sandbox) -> None:
        for where in ("none/rejects", "taken"):
            with pytest.raises(ConfigurationError, match=f"{where} cannot be written"):
                await send(path, sandbox, rejects=tmp_path / where)
        report = await send(path, sandbox, rejects=tmp_path / "found")
        assert parts(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert numbers(sandbox) == [1]

    with_sandbox(use)
    found = {"events.csv", "events.csv.journal.db", "found", "taken"}
    assert {file.name for file in tmp_path.iterdir()} == found


# Keys


def test_without_its_journal_a_run_has_the_keys_it_had(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2), row(2)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        first = [one.idempotency_key for one in sandbox.events]
        journal_of(path).unlink()
        report = await send(path, sandbox)
        assert parts(report) == {"rows": 3, "duplicates": 3}
        report = await send(path, sandbox, journal=tmp_path / "other.db")
        assert parts(report) == {"rows": 3, "accepted": 3}
        keys = [one.idempotency_key for one in sandbox.events]
        assert len({*first, *keys}) == 6

        # A journal that was moved is the same run all the same.
        shutil.move(journal_of(path), tmp_path / "moved.db")
        report = await send(path, sandbox, journal=tmp_path / "moved.db")
        assert parts(report) == {"rows": 3, "duplicates": 3}
        assert sandbox.counts.accepted == 6

    with_sandbox(use)


def own_key(number: int, key: str, **given: str) -> str:
    return f"{row(number, **given)},{key}"


OWN = f"{HEAD},idempotency_key"


def test_a_rows_own_key_is_kept_and_another_row_cannot_have_it(tmp_path: Path) -> None:
    given = [own_key(1, "k1"), own_key(2, "k1"), own_key(1, "k1"), own_key(1, "")]
    path = write(tmp_path / "events.csv", given, OWN)
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, confirm=asked)
        assert parts(report) == {"rows": 4, "accepted": 2, "invalid": 2}
        first, second = sandbox.events
        assert "k1" in (first.idempotency_key, second.idempotency_key)
        assert numbers(sandbox) == [1, 1]

    with_sandbox(use)
    found = json_lines(rejects_of(path))
    assert [one["line"] for one in found] == [3, 4]
    assert {one["error"].partition(":")[0] for one in found} == {"idempotency_key"}
    # With the key, or to send it again would be to send it twice.
    assert [one["record"]["idempotency_key"] for one in found] == ["k1", "k1"]
    (preview,) = asked.previews
    assert preview.invalid == 2
    assert [one.partition(": ")[0] for one in preview.problems] == [
        "events.csv:3",
        "events.csv:4",
    ]


def test_a_row_with_a_key_can_be_mended_until_it_was_tried(tmp_path: Path) -> None:
    keys = [own_key(n, f"k{n}") for n in range(12)]
    path = tmp_path / "events.csv"

    async def use(sandbox: Sandbox) -> None:
        write(path, keys, OWN)
        await send(path, sandbox)
        sandbox.reset()
        tried = f"state = 'pending', ambiguous_since = {time.time()}"
        never = "state = 'pending', ambiguous_since = NULL"
        edit(path, f"UPDATE events SET {never} WHERE key = 'k0'")
        edit(path, "UPDATE events SET state = 'rejected' WHERE key = 'k1'")
        edit(path, f"UPDATE events SET {tried} WHERE key = 'k2'")
        write(path, [own_key(n + 100, f"k{n}") for n in range(4)], OWN)
        report = await send(path, sandbox, confirm=Asked())
        assert parts(report) == {"rows": 4, "accepted": 1, "invalid": 3}
        assert numbers(sandbox) == [100]

    with_sandbox(use)
    assert [one["line"] for one in json_lines(rejects_of(path))] == [3, 4, 5]


# When it does not go well


@pytest.mark.parametrize("age", [24 * 3600, -3600])
def test_what_is_unknown_is_sent_again_only_when_told(tmp_path: Path, age: int) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2), row(3)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        when = time.time() - age
        pending = "UPDATE events SET state = 'pending', ambiguous_since = ?"
        edit(path, f"{pending} WHERE id < 3", (when,))
        for _ in range(2):
            report = await send(path, sandbox)
            assert parts(report) == {"rows": 3, "accepted": 1, "unknown": 2}
            assert (report.stopped_by, report.rejects) == (None, None)
        assert sandbox.counts.requests == 3
        report = await send(path, sandbox, resend_unknown=True)
        assert parts(report) == {"rows": 3, "accepted": 1, "duplicates": 2}
        assert sandbox.counts.requests == 5
        await send(path, sandbox, resend_unknown=True)
        assert sandbox.counts.requests == 5

    with_sandbox(use)


def test_what_was_to_be_sent_again_may_be_with_loops_all_the_same(
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


def test_a_refused_key_stops_it_and_with_the_right_one_it_goes_on(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", map(row, range(30)))

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, key="wrong")
        assert isinstance(report.stopped_by, AuthenticationError)
        assert parts(report) == {"rows": 30, "pending": 30}
        report = await send(path, sandbox)
        assert parts(report) == {"rows": 30, "accepted": 30}
        assert sorted(numbers(sandbox)) == list(range(30))

    with_sandbox(use)


def test_an_outage_is_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(20)))

    async def use(sandbox: Sandbox) -> BackfillReport:
        sandbox.down()
        async with client_of(sandbox) as client:
            running = asyncio.create_task(backfill(path, client, input_options=NUMBERS))
            await until(lambda: client.stats.outage)
            sandbox.down(False)
            return await running

    report = with_sandbox(use)
    assert parts(report) == {"rows": 20, "accepted": 20}


def test_too_many_invalid_rows_stop_it_before_anything_is_sent(tmp_path: Path) -> None:
    bad = [row(1, email="nobody"), row(2, email="nobody")]
    path = write(tmp_path / "events.csv", [row(0), *bad])
    asked = Asked()

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, max_errors=1, confirm=asked)
        assert parts(report) == {"rows": 3, "invalid": 2, "pending": 1}
        assert isinstance(report.stopped_by, NotTriedError)
        assert not sandbox.requests
        assert asked.previews == []
        rejects_of(path).write_text("mended")
        await send(path, sandbox, max_errors=1, confirm=asked)
        assert rejects_of(path).read_text() == "mended"
        report = await send(path, sandbox, max_errors=2, confirm=asked)
        assert parts(report) == {"rows": 3, "accepted": 1, "invalid": 2}

    with_sandbox(use)


def test_too_many_refused_rows_stop_it_and_again_before_it_begins(
    tmp_path: Path,
) -> None:
    ghosts = [row(n, email="", user_id=f"ghost{n}") for n in range(3)]
    path = write(tmp_path / "events.csv", [*ghosts, *map(row, range(3, 300))])

    async def use(sandbox: Sandbox) -> None:
        report = await send(path, sandbox, max_errors=1)
        assert isinstance(report.stopped_by, NotTriedError)
        assert 2 <= report.rejected <= 3
        assert report.pending > 0
        requests = sandbox.counts.requests
        report = await send(path, sandbox, max_errors=1)
        assert isinstance(report.stopped_by, NotTriedError)
        assert sandbox.counts.requests == requests
        report = await send(path, sandbox, max_errors=3)
        assert parts(report) == {"rows": 300, "accepted": 297, "rejected": 3}

    with_sandbox(use)


@pytest.mark.parametrize("when", ["read", "asked", "told"])
def test_stopped_before_it_sends_it_sends_nothing(tmp_path: Path, when: str) -> None:
    path = write(tmp_path / "events.csv", map(row, range(3)))

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox) as client:
            job = Backfill(path, client, input_options=NUMBERS)

            def confirm(_: Preview) -> bool:
                job.stop()
                return True

            if when == "asked":
                job.confirm = confirm
            elif when == "read":
                write(path, map(row, range(1200)))
                job.on_read = lambda _: job.stop()
            else:
                job.on_progress = lambda _: job.stop()
            report = await job.run()
        assert report.pending == report.rows == (500 if when == "read" else 3)
        assert isinstance(report.stopped_by, NotTriedError) == (when == "read")
        assert not sandbox.requests
        write(path, map(row, range(3)))
        await send(path, sandbox)
        assert sorted(numbers(sandbox)) == [0, 1, 2]

    with_sandbox(use)


def test_a_run_that_is_cancelled_goes_on_later(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(10)))

    async def use(sandbox: Sandbox) -> None:
        sandbox.script("hang-after", "hang-before")
        task = asyncio.create_task(send(path, sandbox))
        await until(lambda: sandbox.counts.accepted == 9)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # What nobody knows is sent again under its key.
        report = await send(path, sandbox)
        assert report.accepted + report.duplicates == report.rows == 10
        assert sorted(numbers(sandbox)) == list(range(10))

    with_sandbox(use)


def test_two_at_a_time_cannot_have_one_journal(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])

    async def use(sandbox: Sandbox) -> None:
        other = []

        async def confirm(_: Preview) -> bool:
            with pytest.raises(JournalError, match="in use") as caught:
                await send(path, sandbox)
            other.append(caught.value)
            return True

        report = await send(path, sandbox, confirm=confirm)
        assert parts(report) == {"rows": 1, "accepted": 1}
        assert other

    with_sandbox(use)


def test_others_have_the_event_loop_between_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(5000)))
    read: list[tuple[int, int]] = []
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def use(sandbox: Sandbox) -> None:
        ticking = asyncio.create_task(tick())
        asked = Asked(answer=False)
        told = lambda count: read.append((count, turns))  # noqa: E731
        await send(path, sandbox, on_read=told, confirm=asked)
        before = turns
        async with client_of(sandbox) as client:
            preview = await Backfill(path, client, input_options=NUMBERS).check()
        assert preview == asked.previews[0]
        assert turns >= before + 10
        ticking.cancel()

    with_sandbox(use)
    assert [count for count, _ in read] == list(range(500, 5001, 500))
    passed = [turn for _, turn in read]
    assert passed == sorted(set(passed))


def test_the_journal_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    with_sandbox(lambda sandbox: send(path, sandbox))
    assert states(journal_of(path)) == ["accepted"]
    if sys.platform != "win32":
        assert stat.S_IMODE(journal_of(path).stat().st_mode) == 0o600
