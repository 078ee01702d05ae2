"""A burst as the server saw it."""

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
from loops_async.cli._burst import Seen, burst
from loops_async.sandbox import Sandbox

from .test_show import REQUEST


def _seen(*times: float, status: int = 200) -> Seen:
    requests = [attrs.evolve(REQUEST, at=at, status=status) for at in times]
    return Seen.of(requests, period=1.0, allowed=3)


@given(st.lists(st.floats(min_value=0, max_value=5)))
def test_the_most_in_any_period_is_found_wherever_it_begins(
    times: list[float],
) -> None:
    seen = _seen(*times)
    by_hand = [
        sum(last - seen.period < at <= last for at in seen.arrivals)
        for last in seen.arrivals
    ]
    assert seen.most == max(by_hand, default=0)


def test_each_period_has_a_row_with_a_block_for_each_request() -> None:
    rows = [row.plain for row in _seen(10.0, 10.1, 12.5, 12.1, 12.9).rows()]
    assert rows == [
        "    0.0 s  ██░   2 sent, 3 allowed",
        "    1.0 s  ░░░   0 sent, 3 allowed",
        "    2.0 s  ███   3 sent, 3 allowed",
    ]
    assert _seen().rows() == []


def test_more_than_allowed_and_429s_are_shown_as_they_are() -> None:
    seen = _seen(1.0, 1.1, 1.2, 1.3, status=429)
    (row,) = seen.rows()
    assert row.plain == "    0.0 s  ████   4 sent, 3 allowed"
    assert any(span.style == "red" for span in row.spans)
    summary = seen.summary(9)
    assert summary.plain == "   sent 4 of 9, at most 4 in any 1 s, allowed 3, 429s: 4"
    assert any(span.style == "bold red" for span in summary.spans)


def _burst(console: Console, number: int = 25) -> tuple[Sandbox, SendReport]:
    async def scene() -> tuple[Sandbox, SendReport]:
        async with (
            Sandbox(period=0.2) as sandbox,
            AsyncLoopsClient(
                sandbox.api_key,
                base_url=sandbox.url,
                rate_limit=RateLimiter(10, 0.2),
            ) as loops,
        ):
            events = [Event("e", email=f"{n}@example.com") for n in range(number)]
            return sandbox, await burst(loops, sandbox, events, console, allowed=10)

    return asyncio.run(scene())


@pytest.mark.parametrize("dumb", [True, False])
def test_elsewhere_than_in_a_terminal_each_line_is_printed_once(
    dumb: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm")
    file = io.StringIO()
    console = Console(file=file, force_terminal=dumb, width=80, no_color=True)
    sandbox, report = _burst(console)
    assert len(report.accepted) == len(sandbox.events) == 25
    *rows, blank, summary = file.getvalue().splitlines()
    assert blank == ""
    assert summary.endswith("429s: 0")
    assert summary.startswith("   sent 25 of 25")
    starts = [row.split()[0] for row in rows]
    assert len(starts) >= 3
    assert len(starts) == len(set(starts))


def test_in_a_terminal_the_picture_is_drawn_again_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    _burst(Console(file=file, force_terminal=True, width=80))
    drawn = file.getvalue()
    assert drawn.count("0.0 s") > 1
    assert "\x1b[1A" in drawn  # up a line
    assert "sent 25 of 25" in drawn


def test_a_refused_key_ends_the_burst_and_is_in_its_report() -> None:
    async def scene() -> SendReport:
        async with (
            Sandbox(api_key="another") as sandbox,
            AsyncLoopsClient("wrong", base_url=sandbox.url) as loops,
        ):
            events = [Event("e", email="ada@example.com") for _ in range(3)]
            return await burst(loops, sandbox, events, Console(quiet=True), allowed=10)

    report = asyncio.run(scene())
    assert isinstance(report.stopped_by, AuthenticationError)
    assert len(report.not_tried) == 2
