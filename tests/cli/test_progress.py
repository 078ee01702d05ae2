"""How far a long run is, in words and as a bar."""

import asyncio
import io
import math
import time
from collections.abc import Callable

import attrs
import pytest
from rich.console import Console
from support import http_server as servers

from loops_async import ClientStats
from loops_async.cli import _progress
from loops_async.cli._progress import Bar, duration, how_it_stands

STATS = ClientStats(
    **{field.name: 0 for field in attrs.fields(ClientStats)},  # type: ignore[arg-type]
)


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


def make_bar(limit: float = 8.0) -> Bar:
    return Bar(Console(file=io.StringIO()), limit)


@pytest.mark.parametrize(
    ("seconds", "said"),
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
def test_durations_are_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_keeps_a_client_from_sending_is_told() -> None:
    assert how_it_stands(STATS) == ""
    assert how_it_stands(attrs.evolve(STATS, held=0.9)) == ""
    held = attrs.evolve(STATS, held=30.0)
    assert how_it_stands(held) == "Loops asks to wait 30 s"
    told = how_it_stands(attrs.evolve(held, outage=True))
    assert told == "Loops does not answer: waiting"


def test_as_long_as_nobody_knows_of_how_many_there_is_no_rate() -> None:
    bar = make_bar()
    assert bar.line() == "0 rows checked"
    bar.tell(1500, 0)
    assert bar.line() == "1,500 rows checked"
    bar.tell(1, 0)
    assert bar.line() == "1 row checked"


def test_the_first_seconds_permits_are_no_faster_than_the_limit(clock: Clock) -> None:
    bar = make_bar()
    bar.tell(0, 100)
    bar.tell(8, 100)  # a limit lets them go at once
    assert bar.line() == "8 of 100, 8.0/s, 100% of the limit, 12 s left"
    clock.now += 1
    bar.tell(16, 100)
    assert bar.line() == "16 of 100, 8.0/s, 100% of the limit, 10 s left"


def test_the_rate_is_of_this_run_and_of_the_last_seconds(clock: Clock) -> None:
    bar = make_bar()
    bar.tell(500, 10_000)  # by a run before
    assert bar.line() == "500 of 10,000, 0.0/s, 0% of the limit"
    for second in range(100):
        clock.now += 1
        bar.tell(500 + 8 * second, 10_000)
        bar.line()
    for _ in range(30):
        clock.now += 1
        bar.line()
    assert bar.line() == "1,292 of 10,000, 0.0/s, 0% of the limit"
    clock.now += 10
    bar.tell(1332, 10_000, 7)
    assert bar.line() == (
        "1,332 of 10,000, 2.0/s, 25% of the limit, 7 failed, 1 h 12 min left"
    )


def test_a_note_is_told_instead_of_when_it_is_done(clock: Clock) -> None:
    bar = make_bar()
    bar.tell(0, 100)
    bar.tell(8, 100, 2)
    notes = iter(["wait", ""])
    bar.note = lambda: next(notes)
    assert bar.line() == "8 of 100, 8.0/s, 100% of the limit, 2 failed, wait"
    assert bar.line().endswith(", 2 failed, 12 s left")


def test_without_a_limit_there_is_a_rate_all_the_same(clock: Clock) -> None:
    bar = make_bar(math.inf)
    bar.tell(0, 10)
    bar.tell(10, 10)
    assert bar.line() == "10 of 10, 10.0/s, 0% of the limit, 0 s left"


async def shown(file: io.StringIO, bar: Bar, enough: Callable[[], bool]) -> str:
    async with bar:
        bar.tell(10, 100, 1)
        while not enough():  # noqa: ASYNC110 - it is painted by the clock
            await asyncio.sleep(0.001)
    at_the_end = file.getvalue()
    await asyncio.sleep(0.01)
    assert file.getvalue() == at_the_end  # nothing is painted any more
    return at_the_end


def test_elsewhere_than_on_a_terminal_a_line_is_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_progress, "_EVERY", 0.002)
    file = io.StringIO()
    bar = Bar(Console(file=file, width=20), 8.0)
    said = servers.run(shown(file, bar, lambda: file.getvalue().count("\n") > 1))
    assert "\x1b" not in said
    for line in said.splitlines():
        assert line == "10 of 100, 0.0/s, 0% of the limit, 1 failed"


def test_on_a_terminal_a_bar_is_painted_and_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_progress, "_LOOK", 0.002)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    bar = Bar(console, 8.0)
    said = servers.run(shown(file, bar, lambda: file.getvalue().count("10 of") > 2))
    picture, _, words = said.partition("10 of 100, ")
    assert "━━" in picture
    assert words.startswith("0.0/s, 0% of the limit, 1 failed")
    assert said.endswith("\x1b[2K")  # erased

    # The picture can be taken away for a question, and comes again.
    async def interrupted() -> None:
        async with bar:
            before = file.getvalue().count("10 of")
            bar.clear()
            while file.getvalue().count("10 of") == before:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.001)

    servers.run(interrupted())


def test_it_tells_the_time_of_the_machine() -> None:
    assert _progress.time is time
