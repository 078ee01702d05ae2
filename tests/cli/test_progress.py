"""The progress of a long run, in words and as a bar."""

import asyncio
import io
from collections.abc import Callable

import attrs
import click
import pytest
from rich.console import Console
from support.waiting import run as run_async

from loops_async import ClientStats
from loops_async.cli._progress import (
    Intervals,
    ProgressDisplay,
    delay_reason,
    duration,
)

STATS = ClientStats(
    **{field.name: 0 for field in attrs.fields(ClientStats)},  # type: ignore[arg-type]
)


class Clock:
    """A clock that stands still until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_display(
    rate_limit: float | None = 8.0,
    *,
    clock: Callable[[], float] = Clock(),  # noqa: B008 - it stands still
    status: Callable[[], str] = str,
) -> ProgressDisplay:
    console = Console(file=io.StringIO())
    return ProgressDisplay(console, rate_limit, clock=clock, status=status)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7384, "2 h 3 min"),
        (86_399, "23 h 59 min"),
        (90_061, "1 d 1 h"),
        (1e6, "11 d 13 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_outage_or_a_rate_limit_is_the_reason_of_a_delay() -> None:
    assert delay_reason(STATS) == ""
    assert delay_reason(attrs.evolve(STATS, held=0.9)) == ""
    held = attrs.evolve(STATS, held=30.0)
    assert delay_reason(held) == "rate limited, waiting 30 s"
    outage = attrs.evolve(held, outage=True)
    assert delay_reason(outage) == "Loops is not responding, waiting"


def test_while_the_total_is_unknown_no_rate_is_shown() -> None:
    display = make_display()
    assert display.line() == "0 rows checked"
    display.update(1500, 0)
    assert display.line() == "1,500 rows checked"
    display.update(1, 0)
    assert display.line() == "1 row checked"


def test_permits_granted_at_once_count_for_the_first_second(clock: Clock) -> None:
    display = make_display(clock=clock)
    display.update(0, 100)
    display.update(8, 100)
    assert display.line() == "8 of 100, 8.0/s, 100% of the limit, 12 s left"
    clock.now += 1
    display.update(16, 100)
    assert display.line() == "16 of 100, 8.0/s, 100% of the limit, 10 s left"


def test_the_rate_covers_the_last_seconds_of_this_run_only(clock: Clock) -> None:
    display = make_display(clock=clock)
    display.update(500, 10_000)  # an earlier run has sent 500
    assert display.line() == "500 of 10,000, 0.0/s, 0% of the limit"
    for second in range(100):
        clock.now += 1
        display.update(500 + 8 * second, 10_000)
        display.line()
    for _ in range(30):
        clock.now += 1
        display.line()
    assert display.line() == "1,292 of 10,000, 0.0/s, 0% of the limit"
    clock.now += 10
    display.update(1332, 10_000, 7)
    assert display.line() == (
        "1,332 of 10,000, 2.0/s, 25% of the limit, 7 failed, 1 h 12 min left"
    )


def test_a_status_replaces_the_remaining_time() -> None:
    statuses = iter(["waiting", ""])
    display = make_display(status=lambda: next(statuses))
    display.update(0, 100)
    display.update(8, 100, 2)
    line = "8 of 100, 8.0/s, 100% of the limit, 2 failed, waiting"
    assert display.line() == line
    assert display.line().endswith(", 2 failed, 12 s left")


def test_without_a_rate_limit_the_rate_has_no_percentage() -> None:
    display = make_display(None)
    display.update(0, 10)
    display.update(10, 10)
    assert display.line() == "10 of 10, 10.0/s, 0 s left"


def test_the_intervals_of_a_command_are_those_it_was_called_with() -> None:
    with click.Context(click.Command("x")):
        assert Intervals.current() == Intervals(line=5.0, bar=0.2)
    intervals = Intervals(line=1.0)
    with click.Context(click.Command("x"), obj=intervals):
        assert Intervals.current() is intervals


async def displayed(
    file: io.StringIO, display: ProgressDisplay, enough: Callable[[], bool]
) -> str:
    """Return the output until there is enough, which ends the display."""
    async with display:
        display.update(10, 100, 1)
        while not enough():  # noqa: ASYNC110 - only the clock causes a display
            await asyncio.sleep(0.001)
    at_the_end = file.getvalue()
    await asyncio.sleep(0.01)
    assert file.getvalue() == at_the_end
    return at_the_end


def test_an_output_that_is_not_a_terminal_gets_a_line_at_each_interval() -> None:
    file = io.StringIO()
    console = Console(file=file, width=20)
    display = ProgressDisplay(
        console, 8.0, intervals=Intervals(line=0.002), clock=Clock()
    )
    text = run_async(displayed(file, display, lambda: file.getvalue().count("\n") > 1))
    assert "\x1b" not in text
    for line in text.splitlines():
        assert line == "10 of 100, 0.0/s, 0% of the limit, 1 failed"


def test_a_terminal_shows_a_bar_that_is_erased_in_the_end() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    display = ProgressDisplay(
        console, 8.0, intervals=Intervals(bar=0.002), clock=Clock()
    )
    text = run_async(
        displayed(file, display, lambda: file.getvalue().count("10 of") > 2)
    )
    bar, _, words = text.partition("10 of 100, ")
    assert "━━" in bar
    assert words.startswith("0.0/s, 0% of the limit, 1 failed")
    assert text.endswith("\x1b[2K")  # the code that erases a line


def test_a_bar_that_is_cleared_comes_back_with_the_next_picture() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)

    async def main() -> None:
        display = ProgressDisplay(console, 8.0, intervals=Intervals(bar=0.002))
        async with display:
            display.update(10, 100)
            for _ in range(2):
                before = file.getvalue().count("10 of")
                while file.getvalue().count("10 of") == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                display.clear()
                assert file.getvalue().endswith("\x1b[2K")

    run_async(main())
