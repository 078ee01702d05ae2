"""The journal: the state of its rows after each operation."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from support.outboxes import new, rows
from support.waiting import run

from loops_async import InvalidEventError
from loops_async._journal.journal import Journal
from loops_async._journal.records import (
    ACCEPTED,
    DUPLICATE,
    REJECTED,
    UNKNOWN,
    NewEvent,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


async def add(journal: Journal, events: list[NewEvent]) -> Any:
    """Return the numbers of new and of requeued events."""
    counts: list[Any] = []
    await journal.add(events, counts.append)
    (added,) = counts
    return added


async def add_failures(journal: Journal, count: int) -> None:
    """Add rejected events with even numbers, and unknown ones with odd numbers."""
    await add(journal, new(count))
    for number, row in enumerate(await journal.pending(0, count)):
        row.attempts, row.ambiguous_since = 3, 5.0
        await journal.mark_retrying(row, "a reason")
        await journal.mark_final(row, UNKNOWN if number % 2 else REJECTED, "the end")


def test_added_events_are_pending_in_their_order(path: Path) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            assert await journal.oldest() is None
            assert await add(journal, new(5)) == (5, 0)
            assert await add(journal, new(7)) == (2, 0)
            first = await journal.pending(0, 4)
            rest = await journal.pending(first[-1].id, 4)
            assert [r.idempotency_key for r in first + rest] == [
                f"k{n}" for n in range(7)
            ]
            row = first[1]
            assert (row.body, row.email, row.user_id) == (b'{"n":1}', "u1@b.co", None)
            assert (row.attempts, row.ambiguous_since) == (0, None)
            assert await journal.counts() == {"pending": 7}
            assert isinstance(await journal.oldest(), float)

    run(main())


def test_a_group_with_a_key_conflict_is_not_added_and_other_groups_are(
    path: Path,
) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            await add(journal, new(1))
            group = [*new(2, first=10), NewEvent("k0", b"{}", None, "u")]
            counts: list[Any] = []
            valid = journal.add(new(3, first=20), counts.append)
            conflicting = journal.add(group, counts.append)
            with pytest.raises(InvalidEventError) as caught:
                await conflicting
            assert caught.value.idempotency_key == "k0"
            assert str(path) in str(caught.value)
            await valid
            assert counts == [(3, 0), None]
        assert [row["key"] for row in rows(path)] == ["k0", "k20", "k21", "k22"]

    run(main())


def test_each_mark_is_in_the_rows_that_are_read_next(path: Path) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            await add(journal, new(4))
            one, two, three, four = await journal.pending(0, 9)
            one.ambiguous_since = 5.0
            await journal.mark_in_flight(one)
            two.attempts, two.ambiguous_since = 2, 6.0
            await journal.mark_retrying(two, "why")
            await journal.delete(three)
            four.attempts = 1
            await journal.mark_final(four, DUPLICATE)
            one, two = await journal.pending(0, 9)
            assert (one.attempts, one.ambiguous_since) == (0, 5.0)
            assert (two.attempts, two.ambiguous_since) == (2, 6.0)
            await journal.mark_final(one, ACCEPTED)
            assert await journal.counts() == {ACCEPTED: 1, DUPLICATE: 1, "pending": 1}
            await journal.purge(1e12)
            assert await journal.counts() == {"pending": 1}
        assert [row["error"] for row in rows(path)] == ["why"]

    run(main())


def test_failures_are_read_in_order_page_by_page(path: Path) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            await add_failures(journal, 5)
            await add(journal, new(2, first=10))
            first = await journal.failures(0, 3)
            rest = await journal.failures(first[-1].id, 3)
            failures = [(f.idempotency_key, f.state) for f in first + rest]
            assert failures == [
                ("k0", REJECTED),
                ("k1", UNKNOWN),
                ("k2", REJECTED),
                ("k3", UNKNOWN),
                ("k4", REJECTED),
            ]
            assert first[2].body == {"n": 2}
            assert first[0].error == "the end"
            assert first[0].attempts == 3
            assert first[0].at > 1.7e9

    run(main())


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param(None, ["new0", "new1"], id="all rejected events"),
        pytest.param([], [], id="none"),
        pytest.param(["k1"], ["k1"], id="an unknown event"),
        pytest.param(["k2", "k1", "k2"], ["k1", "new0"], id="both, and one twice"),
        pytest.param(["k9", "missing"], [], id="not failures"),
    ],
)
def test_requeued_failures_are_pending_after_all_other_events(
    path: Path, keys: Any, expected: list[str]
) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            await add_failures(journal, 4)
            await add(journal, new(1, first=9))
            number = itertools.count()
            count = await journal.requeue(keys, lambda: f"new{next(number)}")
            assert count == len(expected)
            pending = await journal.pending(0, 9)
            assert [row.idempotency_key for row in pending] == ["k9", *expected]
            for row in pending:
                assert (row.attempts, row.ambiguous_since) == (0, None)
            # An event that is added later still comes last.
            await add(journal, new(1, first=10))
            assert (await journal.pending(0, 9))[-1].idempotency_key == "k10"
            assert await journal.counts() == {
                key: count
                for key, count in {
                    "pending": 2 + len(expected),
                    REJECTED: 2 - sum("new" in key for key in expected),
                    UNKNOWN: 2 - expected.count("k1"),
                }.items()
                if count
            }

    run(main())


def test_a_rejected_event_that_is_added_again_is_requeued(path: Path) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            await add_failures(journal, 4)
            assert await add(journal, [*new(5), *new(1)]) == (1, 2)
            pending = await journal.pending(0, 9)
            assert [r.idempotency_key for r in pending] == ["k0", "k2", "k4"]
            assert await journal.counts() == {"pending": 3, UNKNOWN: 2}

    run(main())


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        (None, {"k1", "k3", "k9"}),
        (["k0", "k0", "k1", "k9"], {"k2", "k3", "k9"}),
        ([], {"k0", "k1", "k2", "k3", "k9"}),
    ],
)
def test_forget_removes_failures_and_no_other_events(
    path: Path, keys: Any, left: set[str]
) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            await add_failures(journal, 4)
            await add(journal, new(1, first=9))
            assert await journal.forget(keys) == 5 - len(left)
        assert {row["key"] for row in rows(path)} == left

    run(main())


def test_the_id_of_a_deleted_row_is_not_used_again(path: Path) -> None:
    """A reader that is past the id would miss the new row."""

    async def main() -> None:
        async with Journal(path) as journal:
            await add(journal, new(3))
            last = (await journal.pending(0, 9))[-1]
            await journal.delete(last)
            await add(journal, new(1, first=5))
            (row,) = await journal.pending(last.id, 9)
            assert row.idempotency_key == "k5"

    run(main())


def test_on_end_is_called_although_the_future_was_cancelled(path: Path) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            await add(journal, new(1))
            counts: list[Any] = []
            for events in ([NewEvent("k0", b"{}", None, "u")], new(3)):
                journal.add(events, counts.append).cancel()
            await add(journal, [])
            assert counts == [None, (2, 0)]
        assert len(rows(path)) == 3

    run(main())
