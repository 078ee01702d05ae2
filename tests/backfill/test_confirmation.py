"""The preview and its confirmation: of the first run, and of a changed input."""

import asyncio
import time
from pathlib import Path

import pytest
from support.backfills import (
    NUMBERS,
    Confirm,
    counts_of,
    edit,
    journal_of,
    json_lines,
    read_all,
    rejects_of,
    row,
    send,
    with_sandbox,
    write,
)
from support.clients import client_of
from support.outboxes import numbers, rows

from loops_async import (
    ConfigurationError,
    InputOptions,
    NotTriedError,
    Preview,
    backfill,
)
from loops_async._backfill.backfill import Backfill
from loops_async._backfill.preview import Changes
from loops_async._backfill.summary import InputSummary
from loops_async._events.codec import encode, make_converter
from loops_async._events.event import Event
from loops_async.sandbox import Sandbox


def test_a_preview_describes_the_rows_to_be_sent(tmp_path: Path) -> None:
    lines = [row(n, email=f"U{n % 3}@b.co" if n % 2 else "") for n in range(9)]
    lines = [text.replace(",,", f",id{n},", 1) for n, text in enumerate(lines)]
    lines += [row(9, email="u1@b.co", event_name="bought"), row(10, email="nobody")]
    path = write(tmp_path / "events.csv", lines)
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox, rate_limit=10) as client:
            await backfill(path, client, confirm=confirm)

    with_sandbox(use)
    (preview,) = confirm.previews
    assert (preview.rows, preview.invalid, preview.to_send) == (11, 1, 10)
    assert preview.events == {"signup": 9, "bought": 1}
    assert preview.contacts == 3 + 5
    assert preview.sample is not None
    assert preview.sample["userId"] == "id0"
    assert preview.changes is None
    assert preview.seconds == pytest.approx(10 / (10 * 0.95))
    (problem,) = preview.problems
    assert problem.startswith("events.csv:12: email: ")


def prepare(event: Event) -> bytes:
    return encode(event, make_converter())


def test_a_summary_counts_all_rows_but_keeps_only_some_details(tmp_path: Path) -> None:
    valid = [row(n, event_name=f"e{n}") for n in range(6)]
    path = write(tmp_path / "a.csv", valid + [row(1, email="nobody")] * 30)
    summary = InputSummary([path], prepare, max_contacts=4, max_names=3)
    summary.validate(read_all(path))
    fields = summary.fields()
    assert (fields["rows"], fields["invalid"], fields["contacts"]) == (36, 30, 4)
    assert len(fields["problems"]) == 20
    assert fields["events"] == {"e0": 1, "e1": 1, "e2": 1, "(others)": 3}


def test_a_summary_shows_the_whole_path_if_two_files_have_one_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "b").mkdir()
    paths = [tmp_path / "a.csv", tmp_path / "b" / "a.csv"]
    summary = InputSummary(paths, prepare)
    for path in paths:
        summary.validate(read_all(write(path, [row(1, email="nobody")])))
    places = [problem.partition(": ")[0] for problem in summary.fields()["problems"]]
    assert places == [f"{path}:2" for path in paths]


@pytest.mark.parametrize("coroutine", [False, True])
def test_a_run_that_is_not_confirmed_sends_nothing_and_asks_the_next_time(
    tmp_path: Path, coroutine: bool
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2, email="nobody")])
    confirm = Confirm(result=False)

    async def confirm_later(preview: Preview) -> bool:
        await asyncio.sleep(0)
        return confirm(preview)

    argument = confirm_later if coroutine else confirm

    async def use(sandbox: Sandbox) -> None:
        for _ in range(2):
            report = await send(path, sandbox, confirm=argument)
            assert counts_of(report) == {"rows": 2, "invalid": 1, "pending": 1}
            assert isinstance(report.stopped_by, NotTriedError)
        assert not sandbox.requests
        confirm.result = True
        report = await send(path, sandbox, confirm=argument)
        assert counts_of(report) == {"rows": 2, "accepted": 1, "invalid": 1}
        assert report.stopped_by is None

    with_sandbox(use)
    assert len(confirm.previews) == 3


def test_a_confirmed_run_continues_without_confirmation(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", map(row, range(20)))
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        # At this rate, all rows take 5 s.
        async with client_of(sandbox, rate_limit=4) as client:
            job = Backfill(path, client, input_options=NUMBERS, confirm=confirm)
            job.on_progress = lambda progress: progress.accepted == 3 and job.stop()
            report = await job.run()
        assert 3 <= report.accepted < 20
        assert report.pending == 20 - report.accepted
        assert report.stopped_by is None
        report = await send(path, sandbox, confirm=confirm)
        assert counts_of(report) == {"rows": 20, "accepted": 20}
        assert sorted(numbers(sandbox)) == list(range(20))

    with_sandbox(use)
    assert len(confirm.previews) == 1


def test_a_run_with_nothing_to_send_needs_no_confirmation(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1, email="nobody")])
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        for _ in range(2):
            report = await send(path, sandbox, confirm=confirm)
            assert counts_of(report) == {"rows": 1, "invalid": 1}
            assert report.rejects == rejects_of(path)

    with_sandbox(use)
    assert confirm.previews == []


def test_a_check_counts_what_is_left_to_send_if_the_input_is_unchanged(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2), row(3, email="x")])

    async def use(sandbox: Sandbox) -> None:
        async with client_of(sandbox) as client:
            check = Backfill(path, client, input_options=NUMBERS).check
            assert (await check()).to_send == 2
            assert not journal_of(path).exists()
            await send(path, sandbox)
            assert (await check()).to_send == 0
            write(path, [row(1), row(2), row(3)])
            assert (await check()).to_send == 3

    with_sandbox(use)


# A changed input

STATES = ("pending", "accepted", "rejected", "ambiguous")


async def run_to_all_states(path: Path, sandbox: Sandbox) -> None:
    """Run a backfill, and put three rows into each state."""
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


def change_input(path: Path) -> dict[int, int]:
    """Of each three rows keep the first, change the second and drop the third.

    Returns:
        The new numbers, with their lines.
    """
    lines = []
    new = {}
    for first in range(0, 12, 3):
        lines += [row(first), row(first + 101)]
        new[first + 101] = len(lines) + 1
    write(path, [*lines, row(200)])
    return new | {200: len(lines) + 2}


@pytest.mark.parametrize("interruption", ["none", "stop", "cancel"])
def test_the_new_rows_of_a_changed_input_are_sent(
    tmp_path: Path, interruption: str
) -> None:
    path = tmp_path / "events.csv"
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        await run_to_all_states(path, sandbox)
        new = change_input(path)
        if interruption == "stop":
            async with client_of(sandbox) as client:
                job = Backfill(path, client, input_options=NUMBERS, confirm=confirm)
                job.on_read = lambda _: job.stop()
                assert (await job.run()).pending
        elif interruption == "cancel":

            def cancel(_: int) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()

            async def run_and_cancel() -> None:
                with pytest.raises(asyncio.CancelledError):
                    await send(path, sandbox, on_read=cancel, confirm=confirm)

            await asyncio.create_task(run_and_cancel())
        assert not sandbox.requests
        assert confirm.previews == []
        report = await send(path, sandbox, confirm=confirm)
        assert sorted(numbers(sandbox)) == sorted([0, 9, *new])
        assert counts_of(report) == {"rows": 9, "accepted": 8, "rejected": 1}
        (preview,) = confirm.previews
        assert preview.to_send == 7
        first_new = tuple(f"{path}:{line}" for line in new.values())
        assert preview.changes == Changes(5, first_new, dropped=4, sent_before=4)

        confirm.previews.clear()
        second = await send(path, sandbox, confirm=confirm)
        assert counts_of(second) == counts_of(report)
        assert confirm.previews == []

    with_sandbox(use)


def test_an_input_that_only_lost_rows_needs_no_confirmation(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        await run_to_all_states(path, sandbox)
        write(path, map(row, range(1, 12)))
        report = await send(path, sandbox, confirm=confirm)
        assert sorted(numbers(sandbox)) == [1, 2, 9, 10, 11]
        assert counts_of(report) == {"rows": 11, "accepted": 8, "rejected": 3}

    with_sandbox(use)
    assert confirm.previews == []


def test_a_row_that_returns_to_the_input_has_its_former_state(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"

    async def use(sandbox: Sandbox) -> None:
        await run_to_all_states(path, sandbox)
        write(path, [row(12)])
        report = await send(path, sandbox, confirm=Confirm())
        assert counts_of(report) == {"rows": 1, "accepted": 1}
        sandbox.reset()
        write(path, map(row, range(13)))
        report = await send(path, sandbox)
        # The journal kept the accepted and the ambiguous rows, not the others.
        assert sorted(numbers(sandbox)) == [0, 1, 2, 6, 7, 8]
        assert counts_of(report) == {"rows": 13, "accepted": 10, "unknown": 3}

    with_sandbox(use)
    errors = [event["error"] for event in rows(journal_of(path)) if event["error"]]
    assert errors == ["no longer in the input"] * 3


def test_changes_that_were_not_confirmed_are_shown_the_next_time(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, confirm=confirm)
        write(path, [row(1), row(2)])
        confirm.result = False
        for _ in range(2):
            report = await send(path, sandbox, confirm=confirm)
            assert counts_of(report) == {"rows": 2, "accepted": 1, "pending": 1}
        assert numbers(sandbox) == [1]
        assert journal_of(path).exists()
        confirm.result = True
        await send(path, sandbox, confirm=confirm)
        assert numbers(sandbox) == [1, 2]

    with_sandbox(use)
    changes = Changes(1, (f"{path}:3",), dropped=0, sent_before=0)
    expected = [None, changes, changes, changes]
    assert [preview.changes for preview in confirm.previews] == expected


def test_rows_that_are_read_with_another_type_are_new_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2)])
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, input_options=InputOptions(), confirm=confirm)
        await send(path, sandbox, input_options=NUMBERS, confirm=confirm)
        await send(path, sandbox, input_options=NUMBERS, confirm=confirm)
        assert numbers(sandbox) == ["1", "2", 1, 2]
        unusable = InputOptions(mapping={"email": "E-Mail"})
        with pytest.raises(ConfigurationError):
            await send(path, sandbox, input_options=unusable, confirm=confirm)
        report = await send(path, sandbox, input_options=NUMBERS, confirm=confirm)
        assert counts_of(report) == {"rows": 2, "accepted": 2}
        assert sandbox.counts.requests == 4
        confirm.result = False
        renamed = InputOptions(
            types=NUMBERS.types, mapping={"name": "event_name"}, event_name="x"
        )
        report = await send(path, sandbox, input_options=renamed, confirm=confirm)
        assert counts_of(report) == {"rows": 2, "pending": 2}
        report = await send(path, sandbox, input_options=NUMBERS, confirm=confirm)
        assert counts_of(report) == {"rows": 2, "accepted": 2}

    with_sandbox(use)
    places = (f"{path}:2", f"{path}:3")
    assert [preview.changes for preview in confirm.previews] == [
        None,
        Changes(2, places, dropped=0, sent_before=2),
        Changes(2, places, dropped=0, sent_before=4),
    ]


def test_rows_that_could_be_sent_twice_are_refused_without_confirm(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "events.csv", [row(1), row(2)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, input_options=InputOptions())
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="would be sent twice"):
                await send(path, sandbox, input_options=NUMBERS)
        with path.open("a") as file:
            file.write("\n")  # another fingerprint, the same rows
        with pytest.raises(ConfigurationError, match="would be sent twice"):
            await send(path, sandbox, input_options=NUMBERS)
        report = await send(path, sandbox, input_options=InputOptions())
        assert counts_of(report) == {"rows": 2, "accepted": 2}
        assert sandbox.counts.requests == 2

    with_sandbox(use)


def test_the_rows_of_a_contact_are_sent_in_the_order_of_the_changed_input(
    tmp_path: Path,
) -> None:
    def row_of_x(number: int, email: str = "x@b.co") -> str:
        return row(number, email=email)

    path = write(tmp_path / "events.csv", [row_of_x(1), row_of_x(2, "x"), row_of_x(3)])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, confirm=Confirm(result=False))
        write(path, map(row_of_x, range(4)))
        report = await send(path, sandbox)
        assert counts_of(report) == {"rows": 4, "accepted": 4}
        assert numbers(sandbox) == [0, 1, 2, 3]

    with_sandbox(use)


def test_an_invalid_row_that_was_corrected_is_sent_and_is_no_longer_a_reject(
    tmp_path: Path,
) -> None:
    invalid = row(2, email="nobody")
    path = write(tmp_path / "events.csv", [row(1), invalid, row(3, email="x")])

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox)
        write(path, [row(1), row(2), row(3, email="x")])
        report = await send(path, sandbox)
        assert counts_of(report) == {"rows": 3, "accepted": 2, "invalid": 1}
        assert numbers(sandbox) == [1, 2]

    with_sandbox(use)
    assert [reject["line"] for reject in json_lines(rejects_of(path))] == [4]


def test_an_input_that_was_moved_continues_its_run(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", [row(1)])
    confirm = Confirm()

    async def use(sandbox: Sandbox) -> None:
        await send(path, sandbox, confirm=confirm)
        moved = path.rename(tmp_path / "old.csv")
        report = await send(moved, sandbox, journal=journal_of(path), confirm=confirm)
        assert counts_of(report) == {"rows": 1, "accepted": 1}
        assert sandbox.counts.requests == 1

    with_sandbox(use)
    assert len(confirm.previews) == 1
