"""The journal of a backfill: which rows are the same, and what became of them."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import http_server as servers
from support import outboxes

from loops_async import InvalidEventError
from loops_async._backfill.journal import BackfillJournal, Changes, InvalidRow, ValidRow
from loops_async._journal.database import Connection

Use = Callable[[BackfillJournal], Awaitable[Any]]


def with_book(path: Path, use: Use) -> Any:
    async def main() -> Any:
        async with BackfillJournal(path) as book:
            return await use(book)

    return servers.run(main())


def good(number: int, line: int = 0, key: str | None = None) -> ValidRow:
    """A row, known by its number."""
    email = f"u{number}@b.co"
    body = {"eventName": "e", "email": email, "eventProperties": {"n": number}}
    return ValidRow(
        "f.csv", line or number, key, json.dumps(body).encode(), email, None
    )


def bad(line: int, **record: object) -> InvalidRow:
    return InvalidRow("f.csv", line, "email: no", record)


async def enter(
    book: BackfillJournal, number: int, *rows: ValidRow, bads: int = 0
) -> list[InvalidRow]:
    """Read a whole input: begin, enter each row by itself, end."""
    taken = []
    await book.begin()
    for row in rows:
        taken += await book.enter("run", number, [row], [])
    await book.enter("run", number, [], [bad(line) for line in range(bads)])
    await book.end(number, None)
    return taken


def keys(path: Path) -> list[str]:
    return [row["key"] for row in outboxes.rows(path)]


def change(state: str, where: str, more: str = "") -> Callable[[Connection], None]:
    def work(db: Connection) -> None:
        db.execute(f"UPDATE events SET state = '{state}' {more} WHERE {where}")

    return work


def test_equal_rows_are_different_rows_whatever_the_batches(tmp_path: Path) -> None:
    rows = [good(1, 2), good(1, 3), good(2, 4), good(1, 5), good(1, 6), good(2, 7)]

    async def at_once(book: BackfillJournal) -> None:
        await book.enter("run", 1, rows, [])

    async def in_two(book: BackfillJournal) -> None:
        await book.enter("run", 1, rows[:3], [])
        await book.enter("run", 1, rows[3:], [])

    async def another_run(book: BackfillJournal) -> None:
        await book.enter("another", 1, rows, [])

    with_book(tmp_path / "1", at_once)
    with_book(tmp_path / "2", in_two)
    with_book(tmp_path / "3", lambda book: enter(book, 1, *rows))
    with_book(tmp_path / "4", another_run)
    made = keys(tmp_path / "1")
    assert len(set(made)) == 6
    assert all(len(key) == 32 for key in made)
    assert made == keys(tmp_path / "2") == keys(tmp_path / "3")
    assert not set(made) & set(keys(tmp_path / "4"))


def test_what_is_entered_again_because_others_failed_has_its_keys(
    tmp_path: Path,
) -> None:
    rows = [good(1), good(1), good(1)]

    def refuse(_: Connection) -> None:
        raise InvalidEventError(problems=["no"])

    async def together(book: BackfillJournal) -> None:
        await book.enter("run", 1, [good(1)], [])
        entered = book.enter("run", 1, rows[1:], [bad(9)])
        failed = book.do(refuse)
        assert await entered == []
        with pytest.raises(InvalidEventError):
            await failed
        assert await book.tally(1) == {"invalid": 1, "pending": 3}

    with_book(tmp_path / "1", together)
    with_book(tmp_path / "2", lambda book: enter(book, 1, *rows))
    assert keys(tmp_path / "1") == keys(tmp_path / "2")


@pytest.mark.parametrize("state", ["accepted", "duplicate", "rejected", "unknown"])
def test_a_row_that_is_read_again_is_where_it_was(tmp_path: Path, state: str) -> None:
    async def use(book: BackfillJournal) -> None:
        await enter(book, 1, good(1), good(2), bads=2)
        await book.do(change(state, "line = 2"))
        await enter(book, 2, good(2, 7), good(1, 8), bads=1)
        assert await book.tally(2) == {"invalid": 1, "pending": 1, state: 1}

    with_book(tmp_path / "j", use)
    found = [(row["line"], row["state"]) for row in outboxes.rows(tmp_path / "j")]
    assert found == [(7, state), (8, "pending")]


def test_a_pass_that_was_cut_short_counts_for_nothing(tmp_path: Path) -> None:
    async def use(book: BackfillJournal) -> Changes | None:
        await enter(book, 1, good(1), good(2), good(3))
        await book.do(change("accepted", "line = 3"))
        await book.begin()
        await book.enter("run", 2, [good(4), good(1)], [bad(1)])
        # And now the whole of yet another input.
        await book.begin()
        await book.enter("run", 3, [good(1), good(5), good(5)], [])
        changes = await book.end(3, 1)
        assert await book.tally(3) == {"invalid": 0, "pending": 3}
        assert await book.tally(1) == {"invalid": 0, "accepted": 1}
        return changes

    changes = with_book(tmp_path / "j", use)
    # Of 2 and 4 nothing is left; nobody was told of 4.
    assert changes == Changes(2, ("f.csv:5", "f.csv:5"), dropped=2, sent_before=1)


def test_what_was_never_sent_is_sent_in_the_order_it_was_read_last(
    tmp_path: Path,
) -> None:
    async def use(book: BackfillJournal) -> None:
        await enter(book, 1, good(1), good(2), good(3), good(4))
        await book.do(change("pending", "line = 3", ", ambiguous_since = 1.0"))
        await book.do(change("accepted", "line = 4"))
        await enter(book, 2, good(5), good(4), good(2), good(3), good(1))

    with_book(tmp_path / "j", use)
    found = [row["body"] for row in outboxes.rows(tmp_path / "j")]
    assert found == [good(n).body for n in (3, 4, 5, 2, 1)]


def test_a_second_pass_may_be_as_empty_as_the_first(tmp_path: Path) -> None:
    async def use(book: BackfillJournal) -> None:
        await enter(book, 1, bads=1)
        await enter(book, 2, bads=1)
        await enter(book, 3, good(1))
        await enter(book, 4)
        await enter(book, 5, good(2))
        assert await book.tally(5) == {"invalid": 0, "pending": 1}

    with_book(tmp_path / "j", use)


def test_the_first_input_has_no_changes(tmp_path: Path) -> None:
    async def use(book: BackfillJournal) -> None:
        await book.enter("run", 1, [good(1)], [])
        assert await book.end(1, None) is None
        assert await book.end(1, 1) == Changes(0, (), dropped=0, sent_before=0)

    with_book(tmp_path / "j", use)


def test_a_key_is_one_rows_alone(tmp_path: Path) -> None:
    async def use(book: BackfillJournal) -> None:
        first, other, equal = good(1, 2, "k"), good(2, 3, "k"), good(1, 4, "k")
        assert [row.line for row in await enter(book, 1, first, other, equal)] == [3, 4]
        assert await book.tally(1) == {"invalid": 2, "pending": 1}
        ((taken, _),) = [[row async for row in book.rejects()]]
        assert taken.error.startswith("idempotency_key: ")
        assert taken.record == {
            "event_name": "e",
            "email": "u2@b.co",
            "event_properties": {"n": 2},
            "idempotency_key": "k",
        }
        # It can be another's as long as Loops cannot know it.
        assert await enter(book, 2, other) == []
        assert await book.tally(2) == {"invalid": 0, "pending": 1}
        await book.do(change("rejected", "key = 'k'"))
        assert len(await enter(book, 3, first)) == 1

    with_book(tmp_path / "j", use)


def test_all_rejects_are_there_the_invalid_ones_first(tmp_path: Path) -> None:
    async def use(book: BackfillJournal) -> list[InvalidRow]:
        rows = [good(line) for line in range(1, 1301)]
        bads = [bad(line, email=f"é{line}") for line in range(2001, 3201)]
        await book.enter("run", 1, rows, bads)
        await book.do(change("rejected", "line > 100"))
        await book.do(change("unknown", "line > 1200"))
        await book.do(
            lambda db: db.execute("UPDATE events SET error = 'E: no'").close()
        )
        return [row async for row in book.rejects()]

    found = with_book(tmp_path / "j", use)
    lines = [row.line for row in found]
    assert lines == [*range(2001, 3201), *range(101, 1201)]
    assert found[0] == bad(2001, email="é2001")
    record = {"event_name": "e", "email": "u101@b.co", "event_properties": {"n": 101}}
    assert found[1200] == InvalidRow("f.csv", 101, "E: no", record)


def test_a_refused_rows_record_is_nested(tmp_path: Path) -> None:
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

    async def use(book: BackfillJournal) -> InvalidRow:
        await book.enter("run", 1, [row], [])
        await book.do(change("rejected", "line = 2"))
        (found,) = [row async for row in book.rejects()]
        return found

    assert with_book(tmp_path / "j", use).record == {
        "email": "a@b.co",
        "user_id": "u",
        "event_name": "e",
        "event_properties": {"a": 1},
        "mailing_lists": {"l": True},
        "contact_properties": {"firstName": None, "plan": "pro"},
    }


def test_only_the_unknown_of_this_input_are_sent_again(tmp_path: Path) -> None:
    async def use(book: BackfillJournal) -> None:
        await enter(book, 1, good(1), good(2), good(3))
        await book.do(change("unknown", "line < 3"))
        await book.do(lambda db: db.execute("UPDATE events SET attempts = 5").close())
        await enter(book, 2, good(2), good(3))
        await book.send_unknown(2)
        assert await book.tally(2) == {"invalid": 0, "pending": 2}

    with_book(tmp_path / "j", use)
    gone, again, never = outboxes.rows(tmp_path / "j")
    assert gone["state"] == "unknown"
    # As if it had never been tried: then a 409 says that Loops has it.
    assert (again["attempts"], again["ambiguous_since"]) == (0, None)
    assert never["attempts"] == 5


def test_facts_are_kept_until_they_change(tmp_path: Path) -> None:
    async def first(book: BackfillJournal) -> None:
        assert await book.facts() == {}
        await asyncio.gather(book.note(mark={"a": [1]}, passes=1), book.note(passes=2))

    with_book(tmp_path / "j", first)
    facts = with_book(tmp_path / "j", lambda book: book.facts())
    assert facts == {"mark": {"a": [1]}, "passes": 2}
