"""Receipts, outcomes and reports of runs."""

import pickle
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import (
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    Event,
    LoopsError,
    NotTriedError,
    Outcome,
    Receipt,
    SendReport,
    ServerError,
)

EVENT = Event("signup", email="ada@b.co", idempotency_key="k")
PARTS = ("accepted", "duplicates", "failures", "unknown", "not_tried")


def accepted(index: int = 0) -> Outcome:
    return Outcome(index, EVENT, Receipt("k", 1, False, 0.1, None), None)


def duplicate(index: int = 0) -> Outcome:
    return Outcome(index, EVENT, Receipt("k", 2, True, 0.1, None), None)


def failed(index: int = 0, error: LoopsError | None = None) -> Outcome:
    return Outcome(index, EVENT, None, error or BadRequestError("no", status=400))


def unknown(index: int = 0) -> Outcome:
    return Outcome(index, EVENT, None, ServerError("down", maybe_accepted=True))


def not_tried(index: int = 0) -> Outcome:
    return Outcome(index, EVENT, None, NotTriedError("not tried", retryable=True))


MAKERS = {
    "accepted": accepted,
    "duplicates": duplicate,
    "failures": failed,
    "unknown": unknown,
    "not_tried": not_tried,
}


def sizes(report: SendReport) -> dict[str, int]:
    return {part: len(getattr(report, part)) for part in PARTS}


# Outcomes.


@pytest.mark.parametrize(
    ("make", "ok"),
    [
        (accepted, True),
        (duplicate, True),
        (failed, False),
        (unknown, False),
        (not_tried, False),
    ],
)
def test_an_outcome_is_ok_if_loops_has_the_event(make: Any, ok: bool) -> None:
    assert make().ok is ok


def test_receipts_and_outcomes_are_frozen_values() -> None:
    assert Receipt("k", 1, False, 0.5, None) == Receipt("k", 1, False, 0.5, None)
    assert Receipt("k", 1, False, 0.5, None).dry_run is False
    assert accepted() == accepted()
    assert accepted() != accepted(1)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        accepted().index = 3  # type: ignore[misc]


# Reports.


def test_a_report_is_a_sequence_of_its_outcomes() -> None:
    outcomes = [accepted(0), failed(1), accepted(2)]
    report = SendReport(iter(outcomes))
    assert isinstance(report, Sequence)
    assert len(report) == 3
    assert list(report) == outcomes
    assert report[1] is outcomes[1]
    assert report[-1] is outcomes[2]
    assert report[:2] == tuple(outcomes[:2])
    assert list(reversed(report)) == outcomes[::-1]
    assert outcomes[1] in report
    assert report.index(outcomes[2]) == 2
    with pytest.raises(IndexError):
        report[3]


def test_a_report_without_outcomes_is_empty() -> None:
    report = SendReport([])
    assert not report
    assert sizes(report) == dict.fromkeys(PARTS, 0)
    assert report.stopped_by is None
    assert report.elapsed == 0
    report.raise_for_failures()


@given(st.lists(st.sampled_from(PARTS)))
def test_each_outcome_is_in_exactly_one_part_of_the_report(kinds: list[str]) -> None:
    outcomes = [MAKERS[kind](index) for index, kind in enumerate(kinds)]
    report = SendReport(outcomes)
    assert sizes(report) == {part: kinds.count(part) for part in PARTS}
    together = [outcome for part in PARTS for outcome in getattr(report, part)]
    assert sorted(o.index for o in together) == list(range(len(kinds)))
    for part in PARTS:
        assert [o.index for o in getattr(report, part)] == [
            index for index, kind in enumerate(kinds) if kind == part
        ]


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        ([], "0 events in 2.3 s: 0 accepted"),
        ([accepted()], "1 event in 2.3 s: 1 accepted"),
        ([accepted()] * 1234, "1,234 events in 2.3 s: 1,234 accepted"),
        ([duplicate()], "1 event in 2.3 s: 0 accepted, 1 accepted before"),
        ([failed()], "1 event in 2.3 s: 0 accepted, 1 failed"),
        ([unknown()], "1 event in 2.3 s: 0 accepted, 1 unknown"),
        ([not_tried()], "1 event in 2.3 s: 0 accepted, 1 not tried"),
        (
            [accepted(), duplicate(), failed(), unknown(), not_tried()],
            (
                "5 events in 2.3 s: 1 accepted, 1 accepted before, 1 failed, "
                "1 unknown, 1 not tried"
            ),
        ),
    ],
)
def test_a_report_prints_as_one_line(outcomes: list[Outcome], text: str) -> None:
    report = SendReport(outcomes, elapsed=2.345)
    assert str(report) == text
    assert repr(report) == f"<SendReport {text}>"


def test_a_report_shows_what_stopped_the_run() -> None:
    report = SendReport(
        [failed(), not_tried()], stopped_by=AuthenticationError("bad key", status=401)
    )
    assert str(report) == (
        "2 events in 0.0 s: 0 accepted, 1 failed, 1 not tried; stopped by: bad key"
    )


def test_a_report_without_failures_raises_nothing() -> None:
    SendReport([accepted(), duplicate()]).raise_for_failures()


def test_failures_and_unknown_outcomes_are_raised_as_a_group() -> None:
    outcomes = [unknown(0), accepted(1), failed(2), not_tried(3)]
    report = SendReport(outcomes)
    with pytest.raises(ExceptionGroup) as raised:
        report.raise_for_failures()
    assert raised.value.message == str(report)
    assert raised.value.exceptions == (outcomes[2].error, outcomes[0].error)


def test_an_error_that_stopped_the_run_is_raised_although_no_event_failed() -> None:
    closed = ClientClosedError("the client is closed")
    report = SendReport([accepted(), not_tried()], stopped_by=closed)
    with pytest.raises(ExceptionGroup) as raised:
        report.raise_for_failures()
    assert raised.value.exceptions == (closed,)


def test_an_error_of_an_event_that_stopped_the_run_is_raised_once() -> None:
    refused = AuthenticationError("bad key", status=401)
    report = SendReport([failed(0, refused), not_tried(1)], stopped_by=refused)
    with pytest.raises(ExceptionGroup) as raised:
        report.raise_for_failures()
    assert raised.value.exceptions == (refused,)


def test_a_report_survives_pickling() -> None:
    refused = AuthenticationError("bad key", status=401)
    report = SendReport(
        [accepted(0), duplicate(1), failed(2, refused), unknown(3), not_tried(4)],
        stopped_by=refused,
        elapsed=1.5,
    )
    copy = pickle.loads(pickle.dumps(report))
    assert str(copy) == str(report)
    assert sizes(copy) == dict.fromkeys(PARTS, 1)
    assert [o.event for o in copy] == [EVENT] * 5
    assert copy.accepted == report.accepted
    assert copy.stopped_by is copy[2].error
    assert copy.elapsed == 1.5
