"""The journal of a backfill: which rows are the same, and which state they have."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import outboxes

from loops_async import InvalidEventError
from loops_async._backfill.journal import BackfillJournal, InvalidRow, ValidRow
from loops_async._backfill.preview import Changes
from loops_async._journal.database import Connection

Use = Callable[[BackfillJournal], Awaitable[Any]]


def with_journal(path: Path, use: Use) -> Any:
    async def main() -> Any:
        async with BackfillJournal(path) as journal:
            return await use(journal)

    return asyncio.run(main())


def valid(number: int, line: int = 0, key: str | None = None) -> ValidRow:
    """Return a row that its number identifies."""
    email = f"u{number}@b.co"
    body = {"eventName": "e", "email": email, "eventProperties": {"n": number}}
    return ValidRow(
        "f.csv", line or number, key, json.dumps(body).encode(), email, None
    )


def invalid(line: int, **record: object) -> InvalidRow:
    return InvalidRow("f.csv", line, "email: no", record)


async def read_pass(
    journal: BackfillJournal, number: int, *rows: ValidRow, invalid_rows: int = 0
) -> list[InvalidRow]:
    """Add all rows of a pass, each in a batch of its own; return the conflicts."""
    conflicts = []
    await journal.begin_pass()
    for row in rows:
        conflicts += await journal.add_rows("run", number, [row], [])
    await journal.add_rows("run", number, [], [invalid(n) for n in range(invalid_rows)])
    await journal.end_pass(number, None)
    return conflicts


def keys(path: Path) -> list[str]:
    return [event["key"] for event in outboxes.rows(path)]


def change(state: str, where: str, more: str = "") -> Callable[[Connection], None]:
    def work(db: Connection) -> None:
        db.execute(f"UPDATE events SET state = '{state}' {more} WHERE {where}")

    return work


def test_equal_rows_have_different_keys_that_do_not_depend_on_the_batches(
    tmp_path: Path,
) -> None:
    pairs = [(1, 2), (1, 3), (2, 4), (1, 5), (1, 6), (2, 7)]
    rows = [valid(number, line) for number, line in pairs]

    async def one_batch(journal: BackfillJournal) -> None:
        await journal.add_rows("run", 1, rows, [])

    async def two_batches(journal: BackfillJournal) -> None:
        await journal.add_rows("run", 1, rows[:3], [])
        await journal.add_rows("run", 1, rows[3:], [])

    async def another_run(journal: BackfillJournal) -> None:
        await journal.add_rows("another", 1, rows, [])

    with_journal(tmp_path / "1", one_batch)
    with_journal(tmp_path / "2", two_batches)
    with_journal(tmp_path / "3", lambda journal: read_pass(journal, 1, *rows))
    with_journal(tmp_path / "4", another_run)
    first = keys(tmp_path / "1")
    assert len(set(first)) == 6
    assert all(len(key) == 32 for key in first)
    assert first == keys(tmp_path / "2") == keys(tmp_path / "3")
    assert not set(first) & set(keys(tmp_path / "4"))


def test_a_batch_that_is_added_again_after_a_rollback_has_the_same_keys(
    tmp_path: Path,
) -> None:
    rows = [valid(1), valid(1), valid(1)]

    def fail(_: Connection) -> None:
        raise InvalidEventError(problems=["no"])

    async def use(journal: BackfillJournal) -> None:
        await journal.add_rows("run", 1, [valid(1)], [])
        adding = journal.add_rows("run", 1, rows[1:], [invalid(9)])
        failing = journal.submit(fail)  # in the same transaction
        assert await adding == []
        with pytest.raises(InvalidEventError):
            await failing
        assert await journal.counts_of_pass(1) == {"invalid": 1, "pending": 3}

    with_journal(tmp_path / "1", use)
    with_journal(tmp_path / "2", lambda journal: read_pass(journal, 1, *rows))
    assert keys(tmp_path / "1") == keys(tmp_path / "2")


@pytest.mark.parametrize("state", ["accepted", "duplicate", "rejected", "unknown"])
def test_a_row_that_is_read_again_keeps_its_state(tmp_path: Path, state: str) -> None:
    async def use(journal: BackfillJournal) -> None:
        await read_pass(journal, 1, valid(1), valid(2), invalid_rows=2)
        await journal.submit(change(state, "line = 2"))
        await read_pass(journal, 2, valid(2, 7), valid(1, 8), invalid_rows=1)
        expected = {"invalid": 1, "pending": 1, state: 1}
        assert await journal.counts_of_pass(2) == expected

    with_journal(tmp_path / "j", use)
    events = outboxes.rows(tmp_path / "j")
    found = [(event["line"], event["state"]) for event in events]
    assert found == [(7, state), (8, "pending")]


def test_a_pass_that_was_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    async def use(journal: BackfillJournal) -> Changes | None:
        await read_pass(journal, 1, valid(1), valid(2), valid(3))
        await journal.submit(change("accepted", "line = 3"))
        await journal.begin_pass()
        await journal.add_rows("run", 2, [valid(4), valid(1)], [invalid(1)])
        # The next pass reads a third input to its end.
        await journal.begin_pass()
        await journal.add_rows("run", 3, [valid(1), valid(5), valid(5)], [])
        changes = await journal.end_pass(3, 1)
        assert await journal.counts_of_pass(3) == {"invalid": 0, "pending": 3}
        assert await journal.counts_of_pass(1) == {"invalid": 0, "accepted": 1}
        return changes

    changes = with_journal(tmp_path / "j", use)
    # Rows 2 and 4 are gone; row 4 was never confirmed.
    assert changes == Changes(2, ("f.csv:5", "f.csv:5"), dropped=2, sent_before=1)


def test_rows_that_were_never_sent_follow_the_order_of_the_last_pass(
    tmp_path: Path,
) -> None:
    async def use(journal: BackfillJournal) -> None:
        await read_pass(journal, 1, *map(valid, (1, 2, 3, 4)))
        await journal.submit(change("pending", "line = 3", ", ambiguous_since = 1.0"))
        await journal.submit(change("accepted", "line = 4"))
        await read_pass(journal, 2, *map(valid, (5, 4, 2, 3, 1)))

    with_journal(tmp_path / "j", use)
    bodies = [event["body"] for event in outboxes.rows(tmp_path / "j")]
    assert bodies == [valid(n).body for n in (3, 4, 5, 2, 1)]


def test_a_pass_can_be_without_valid_rows(tmp_path: Path) -> None:
    async def use(journal: BackfillJournal) -> None:
        await read_pass(journal, 1, invalid_rows=1)
        await read_pass(journal, 2, invalid_rows=1)
        await read_pass(journal, 3, valid(1))
        await read_pass(journal, 4)
        await read_pass(journal, 5, valid(2))
        assert await journal.counts_of_pass(5) == {"invalid": 0, "pending": 1}

    with_journal(tmp_path / "j", use)


def test_a_pass_before_the_first_confirmation_has_no_changes(tmp_path: Path) -> None:
    async def use(journal: BackfillJournal) -> None:
        await journal.add_rows("run", 1, [valid(1)], [])
        assert await journal.end_pass(1, None) is None
        assert await journal.end_pass(1, 1) == Changes(0, (), dropped=0, sent_before=0)

    with_journal(tmp_path / "j", use)


def test_a_key_belongs_to_one_row(tmp_path: Path) -> None:
    async def use(journal: BackfillJournal) -> None:
        first, other, equal = valid(1, 2, "k"), valid(2, 3, "k"), valid(1, 4, "k")
        conflicts = await read_pass(journal, 1, first, other, equal)
        assert [row.line for row in conflicts] == [3, 4]
        assert await journal.counts_of_pass(1) == {"invalid": 2, "pending": 1}
        reject, _ = [row async for row in journal.rejects()]
        assert reject.error.startswith("idempotency_key: another row has this key")
        assert reject.record == {
            "event_name": "e",
            "email": "u2@b.co",
            "event_properties": {"n": 2},
            "idempotency_key": "k",
        }
        # Until the key is sent, a later pass can give it to another row.
        assert await read_pass(journal, 2, other) == []
        assert await journal.counts_of_pass(2) == {"invalid": 0, "pending": 1}
        await journal.submit(change("rejected", "key = 'k'"))
        assert len(await read_pass(journal, 3, first)) == 1

    with_journal(tmp_path / "j", use)


def test_rejects_are_the_invalid_rows_and_then_the_rejected_ones(
    tmp_path: Path,
) -> None:
    async def use(journal: BackfillJournal) -> list[InvalidRow]:
        rows = [valid(line) for line in range(1, 1301)]
        invalid_rows = [invalid(n, email=f"é{n}") for n in range(2001, 3201)]
        await journal.add_rows("run", 1, rows, invalid_rows)
        await journal.submit(change("rejected", "line > 100"))
        await journal.submit(change("unknown", "line > 1200"))
        await journal.submit(
            lambda db: db.execute("UPDATE events SET error = 'E: no'").close()
        )
        return [row async for row in journal.rejects()]

    rejects = with_journal(tmp_path / "j", use)
    lines = [row.line for row in rejects]
    assert lines == [*range(2001, 3201), *range(101, 1201)]
    assert rejects[0] == invalid(2001, email="é2001")
    record = {"event_name": "e", "email": "u101@b.co", "event_properties": {"n": 101}}
    assert rejects[1200] == InvalidRow("f.csv", 101, "E: no", record)


def test_the_record_of_a_rejected_row_is_nested(tmp_path: Path) -> None:
    body = {
        "email": "a@b.co",
        "userId": "u",
        "eventName": "e",
        "eventProperties": {"a": 1},
        "mailingLists": {"l": True},
        "firstName": None,
        "plan": "pro",
    }
    row = ValidRow("f", 2, None, json.dumps(body).encode(), "a@b.co", "u")

    async def use(journal: BackfillJournal) -> InvalidRow:
        await journal.add_rows("run", 1, [row], [])
        await journal.submit(change("rejected", "line = 2"))
        (reject,) = [row async for row in journal.rejects()]
        return reject

    assert with_journal(tmp_path / "j", use).record == {
        "email": "a@b.co",
        "user_id": "u",
        "event_name": "e",
        "event_properties": {"a": 1},
        "mailing_lists": {"l": True},
        "contact_properties": {"firstName": None, "plan": "pro"},
    }


def test_only_the_unknown_rows_of_the_last_pass_are_requeued(tmp_path: Path) -> None:
    async def use(journal: BackfillJournal) -> None:
        await read_pass(journal, 1, valid(1), valid(2), valid(3))
        await journal.submit(change("unknown", "line < 3"))
        await journal.submit(
            lambda db: db.execute("UPDATE events SET attempts = 5").close()
        )
        await read_pass(journal, 2, valid(2), valid(3))
        await journal.requeue_unknown(2)
        assert await journal.counts_of_pass(2) == {"invalid": 0, "pending": 2}

    with_journal(tmp_path / "j", use)
    dropped, requeued, pending = outboxes.rows(tmp_path / "j")
    assert dropped["state"] == "unknown"
    # Without attempts, a 409 means that Loops has accepted the event.
    assert (requeued["attempts"], requeued["ambiguous_since"]) == (0, None)
    assert pending["attempts"] == 5


def test_metadata_are_kept_until_they_are_set_again(tmp_path: Path) -> None:
    async def use(journal: BackfillJournal) -> None:
        assert await journal.metadata() == {}
        await asyncio.gather(
            journal.set_metadata(mark={"a": [1]}, passes=1),
            journal.set_metadata(passes=2),
        )

    with_journal(tmp_path / "j", use)
    metadata = with_journal(tmp_path / "j", lambda journal: journal.metadata())
    assert metadata == {"mark": {"a": [1]}, "passes": 2}
