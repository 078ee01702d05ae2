"""The picture of a burst of events."""

import asyncio
import io

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loops_async import (
    AsyncLoopsClient,
    AuthenticationError,
    Event,
    RateLimiter,
    SendReport,
)
from loops_async.cli._burst import BurstSummary, burst
from loops_async.sandbox import Sandbox

from .test_rendering import REQUEST


def _summary(*times: float, status: int = 200) -> BurstSummary:
    requests = [attrs.evolve(REQUEST, at=at, status=status) for at in times]
    return BurstSummary.of(requests, period=1.0, allowed=3)


@given(st.lists(st.floats(min_value=0, max_value=5)))
def test_the_peak_is_the_maximum_over_all_periods_wherever_they_begin(
    times: list[float],
) -> None:
    summary = _summary(*times)
    by_hand = [
        sum(last - summary.period < at <= last for at in summary.arrivals)
        for last in summary.arrivals
    ]
    assert summary.peak == max(by_hand, default=0)


def test_each_period_has_a_row_with_a_block_for_each_request() -> None:
    rows = [row.plain for row in _summary(10.0, 10.1, 12.5, 12.1, 12.9).rows()]
    assert rows == [
        "    0.0 s  ██░   2 sent, 3 allowed",
        "    1.0 s  ░░░   0 sent, 3 allowed",
        "    2.0 s  ███   3 sent, 3 allowed",
    ]
    assert _summary().rows() == []


def test_requests_over_the_limit_and_429s_are_displayed_in_red() -> None:
    summary = _summary(1.0, 1.1, 1.2, 1.3, status=429)
    (row,) = summary.rows()
    assert row.plain == "    0.0 s  ████   4 sent, 3 allowed"
    assert any(span.style == "red" for span in row.spans)
    totals = summary.totals(9)
    assert totals.plain == "   sent 4 of 9, at most 4 in any 1 s, allowed 3, 429s: 4"
    assert any(span.style == "bold red" for span in totals.spans)


def _burst(console: Console, number: int = 25) -> tuple[Sandbox, SendReport]:
    async def main() -> tuple[Sandbox, SendReport]:
        async with (
            Sandbox(period=0.2) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key,
                base_url=sandbox.url,
                rate_limit=RateLimiter(10, 0.2),
            ) as client,
        ):
            events = [Event("e", email=f"{n}@example.com") for n in range(number)]
            return sandbox, await burst(client, sandbox, events, console, allowed=10)

    return asyncio.run(main())


@pytest.mark.parametrize("dumb", [True, False])
def test_an_output_that_cannot_be_redrawn_gets_each_line_once(
    dumb: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm")
    file = io.StringIO()
    console = Console(file=file, force_terminal=dumb, width=80, no_color=True)
    sandbox, report = _burst(console)
    assert len(report.accepted) == len(sandbox.events) == 25
    *rows, blank, totals = file.getvalue().splitlines()
    assert blank == ""
    assert totals.startswith("   sent 25 of 25")
    assert totals.endswith(f"429s: {sandbox.counts.limited}")
    starts = [row.split()[0] for row in rows]
    assert len(starts) >= 3
    assert len(starts) == len(set(starts))


def test_a_terminal_shows_a_picture_that_is_redrawn_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    _burst(Console(file=file, force_terminal=True, width=80))
    drawn = file.getvalue()
    assert drawn.count("0.0 s") > 1
    assert "\x1b[1A" in drawn  # the cursor moves up one line
    assert "sent 25 of 25" in drawn


def test_a_refused_api_key_ends_the_burst_and_is_in_its_report() -> None:
    async def main() -> SendReport:
        async with (
            Sandbox(api_key="another") as sandbox,
            AsyncLoopsClient("wrong", base_url=sandbox.url) as client,
        ):
            events = [Event("e", email="ada@example.com") for _ in range(3)]
            console = Console(quiet=True)
            return await burst(client, sandbox, events, console, allowed=10)

    report = asyncio.run(main())
    assert isinstance(report.stopped_by, AuthenticationError)
    assert len(report.not_tried) == 2
