"""The pictures of the results: python -m benchmarks --pictures.

The results are saved next to the pictures, so that every number in a picture can be
traced. `python -m benchmarks.pictures` redraws all pictures without measuring.
"""

import datetime as dt
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from . import contenders, interactive, limits, memory, outbox, throughput
from .table import Row

FOLDER = Path(__file__).parent / "pictures"
RESULTS = FOLDER / "results.json"
OURS, DARK, OTHERS, LIGHT, BAD = "#1f6feb", "#0b3d91", "#9aa4b2", "#c9d6ea", "#d1242f"
STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8b949e",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": "#57606a",
    "ytick.color": "#24292f",
    "legend.frameon": False,
}


def save(name: str, rows: list[Row], command: str) -> None:
    """Save the results of one benchmark with the date, the machine and the command."""
    results = _saved()
    results[name] = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": (
            f"{os.cpu_count()} cores, Python {platform.python_version()}, "
            f"aiohttp {version('aiohttp')}"
        ),
        "command": command,
        "rows": _rounded(rows),
    }
    FOLDER.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def draw(name: str) -> None:
    """Draw the picture of one benchmark from its saved results."""
    saved = _saved()[name]
    with mpl.rc_context(STYLE):
        figure = _DRAWERS[name](saved["rows"])
        caption = f"{saved['date']}, {saved['machine']}.  {saved['command']}"
        figure.text(0.012, 0.012, caption, size=8, color="#57606a")
        figure.savefig(FOLDER / f"{_FILES.get(name, name)}.png", dpi=200)
        plt.close(figure)


def _saved() -> dict[str, Any]:
    results: dict[str, Any] = {}
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text())
    return results


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _panels(
    title: str, height: float, bottom: float = 0.06, **layout: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of 8 inches with a title and its panels.

    Args:
        title: The title.
        height: The height in inches.
        bottom: The share of the height that is reserved below the panels.
        layout: Arguments of `plt.subplots`.
    """
    figure, axes = plt.subplots(figsize=(8, height), squeeze=False, **layout)
    figure.suptitle(title, x=0.012, ha="left", weight="bold", size=11.5)
    figure.set_layout_engine("constrained", rect=(0, bottom, 1, 1 - bottom), w_pad=0.08)
    return figure, list(axes.flat)


def _limits(rows: list[Row]) -> Figure:
    shown = [
        row for row in rows if (row["limit"], row["profile"]) == (10, limits.USUAL)
    ]
    mine = [row for row in shown if row["contender"] == contenders.OURS]
    least = min(row["share"] for row in mine)
    most = max(row["limited overall"] for row in mine)
    title = (
        f"{contenders.OURS} uses {least:.1%} of the limit or more, "
        f"{most:.1%} of its responses are 429s"
    )
    figure, panels = _panels(title, 4.0, bottom=0.12, ncols=3, sharey=True)
    for axes, window in zip(panels, limits.WINDOWS, strict=True):
        lines = [row for row in shown if row["window"] == window]
        for place, row in enumerate(lines):
            ours = row["contender"] == contenders.OURS
            color = OURS if ours else OTHERS
            _bar(axes, place - 0.19, row["share"], color, f"{row['share']:.0%}")
            limited = row["limited overall"]
            _bar(axes, place + 0.19, limited, BAD, f"{limited:.1%}")
        axes.set_title("token bucket" if window == "bucket" else f"{window} window")
        axes.set_yticks(range(len(lines)), [row["contender"] for row in lines])
        axes.set_xlim(0, 1.25)
        axes.set_xticks([0, 0.5, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.tick_params(axis="y", length=0)
    panels[0].invert_yaxis()
    panels[0].get_yticklabels()[0].set_fontweight("bold")
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in (OTHERS, BAD)]
    names = [
        "share of the limit that is used (10/s, round trips 20-70 ms)",
        "share of 429s",
    ]
    figure.legend(handles, names, loc=(0.004, 0.055), ncols=2)
    return figure


def _bar(axes: Axes, place: float, value: float, color: str, text: str) -> None:
    axes.barh(place, value, height=0.36, color=color)
    axes.text(value + 0.02, place, text, va="center", size=8.5)


def _throughput(rows: list[Row]) -> Figure:
    shown = [
        row for row in rows if (row["codec"], row["loop"]) == ("orjson", "asyncio")
    ]
    names = list(dict.fromkeys(row["contender"] for row in shown))
    leader = "pyloops" if "pyloops" in names else "httpx"

    def faster(row: Row, than: str) -> float:
        return 1 / throughput.ratio(rows, "time", row, than)

    sent = {
        row["in flight"]: row for row in shown if row["contender"] == throughput.SEND
    }
    title = (
        f"send_event, 50 in flight: {faster(sent[50], throughput.BY_HAND):.2f} times "
        f"as fast as a hand-written loop, {faster(sent[50], leader):.0f} times {leader}"
    )
    figure, panels = _panels(title, 3.4, ncols=3, sharey=True)
    for axes, in_flight in zip(panels, throughput.IN_FLIGHT, strict=True):
        lines = [row for row in shown if row["in flight"] == in_flight]
        for place, row in enumerate(lines):
            ours = row["contender"] in (throughput.SEND, throughput.STREAM)
            value = faster(row, throughput.BY_HAND)
            axes.barh(place, value, height=0.7, color=OURS if ours else OTHERS)
            axes.text(value * 1.06, place, f"{value:.2f}", va="center", size=8.5)
        axes.set_title(f"{in_flight} in flight")
        axes.set_xscale("log")
        axes.set_xlim(0.02, 25)
        axes.set_xticks([0.1, 1], ["0.1", "1"])
        axes.xaxis.minorticks_off()
        axes.axvline(1, color="#57606a", lw=0.8, ls=":")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        for label in axes.get_yticklabels():
            if label.get_text() in (throughput.SEND, throughput.STREAM):
                label.set_fontweight("bold")
    panels[0].invert_yaxis()
    panels[0].set_xlabel(
        "events per second, hand-written loop = 1 (log scale; orjson, asyncio)",
        loc="left",
    )
    return figure


def _fleet(rows: list[Row]) -> Figure:
    shown = [row for row in rows if row["window"] == "sliding"]
    settled = [row for row in shown if row["when"] == "settled"]
    least = min(row["share"] for row in settled)
    most = max(row["limited"] for row in settled)
    sizes = [row["processes"] for row in settled]
    title = (
        f"Up to {max(sizes)} processes with one key: {least:.1%} of the limit or more, "
        f"{most:.1%} 429s or fewer"
    )
    figure, panels = _panels(title, 3.2, ncols=2)
    for axes, what, name, dark, light in (
        (panels[0], "share", "share of the limit that is used", OURS, LIGHT),
        (panels[1], "limited", "share of 429s", BAD, "#f3c0c4"),
    ):
        for shift, when, color in ((-0.2, "cold", light), (0.2, "settled", dark)):
            values = [row[what] for row in shown if row["when"] == when]
            label = "first 30 s" if when == "cold" else "afterwards"
            places = [place + shift for place in range(len(sizes))]
            bars = axes.bar(places, values, width=0.38, color=color, label=label)
            fmt = "{:.0%}" if what == "share" else "{:.1%}"
            axes.bar_label(bars, fmt=fmt, size=8.5, padding=1)
        axes.set_title(name)
        axes.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
        axes.set_xlabel("processes")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.margins(y=0.3)
        axes.legend(loc="upper left", ncols=2)
    panels[0].set_yticks([0, 0.25, 0.5, 0.75, 1])
    return figure


def _interactive(rows: list[Row]) -> Figure:
    summed = interactive.summary(rows)
    worst = max(row["p99"] for row in summed)
    bulk = min(row["bulk"] for row in summed)
    title = (
        f"99% of the sends wait {worst:.2f} s or less; the bulk run uses "
        f"{bulk:.0%} of the rest"
    )
    figure, (axes,) = _panels(title, 3.2)
    for row, color in zip(summed, (OURS, DARK), strict=True):
        waits = sorted(
            w for one in rows if one["rate"] == row["rate"] for w in one["waits"]
        )
        shares = [(place + 1) / len(waits) for place in range(len(waits))]
        label = f"one every {1 / row['rate']:g} s: median wait {row['p50']:.2f} s"
        axes.step(waits, shares, where="post", color=color, label=label, lw=1.8)
    axes.axvline(
        interactive.MAX_WAIT, color=BAD, lw=1, ls="--", label="promise for 99%"
    )
    axes.axhline(0.99, color="#8b949e", lw=0.8, ls=":")
    axes.set_xlabel("wait in seconds, without the round trip")
    axes.set_ylabel("sends with at most this wait")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlim(0)
    axes.set_ylim(0, 1.02)
    axes.legend(loc=(0.5, 0.1))
    return figure


def _memory(rows: list[Row]) -> Figure:
    events = [row["events"] / 1e6 for row in rows]
    cost = rows[-1]["ratio"] / rows[0]["ratio"] - 1
    title = (
        f"{rows[-1]['events']:,} events: memory grows by {memory.growth(rows):.1f} MB "
        f"per {memory.SPAN:,} at most, cost {cost:+.0%}"
    )
    figure, panels = _panels(title, 3.2, ncols=2)
    for axes, what, name, color in (
        (panels[0], "megabytes", "MB resident", OURS),
        (panels[1], "ratio", "CPU time per event, hand-written loop = 1", DARK),
    ):
        values = [row[what] for row in rows]
        axes.plot(events, values, color=color, marker="o", ms=3.5, lw=1.8)
        axes.set_ylim(0, max(values) * 1.25)
        axes.set_title(name)
        axes.set_xlabel("events in millions")
    panels[1].axhline(1, color="#57606a", lw=0.8, ls=":")
    return figure


def _outbox(rows: list[Row]) -> Figure:
    shown = [row for row in rows if row["what"] == "puts"]
    most = max(row["rate"] for row in shown)
    faster = outbox.ratio(
        rows, "rate", outbox.PROMISED, outbox.OURS, outbox.COMMIT_EACH
    )
    title = (
        f"Durable puts, {outbox.PROMISED} producers: {faster:.1f} times as many as "
        f"with {outbox.COMMIT_EACH}"
    )
    figure, panels = _panels(title, 3.2, ncols=3, sharey=True)
    for axes, producers in zip(panels, outbox.PRODUCERS, strict=True):
        lines = [row for row in shown if row["producers"] == producers]
        for place, row in enumerate(lines):
            color = OURS if row["contender"] == outbox.OURS else OTHERS
            axes.barh(place, row["rate"], height=0.7, color=color)
            text = f" {row['rate']:,.0f}"
            axes.text(row["rate"], place, text, va="center", size=8.5)
        axes.set_title(f"{producers} producer{'s' * (producers > 1)}")
        axes.set_xlim(0, most * 1.3)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_yticks(range(len(lines)), [row["contender"] for row in lines])
        axes.tick_params(axis="y", length=0)
    panels[0].invert_yaxis()
    panels[0].get_yticklabels()[0].set_fontweight("bold")
    panels[0].set_xlabel(
        f"events per second, each flushed to the disk ({shown[0]['disk']})", loc="left"
    )
    return figure


_FILES = {"limits": "limit"}
_DRAWERS: dict[str, Callable[[list[Row]], Figure]] = {
    "limits": _limits,
    "throughput": _throughput,
    "fleet": _fleet,
    "interactive": _interactive,
    "memory": _memory,
    "outbox": _outbox,
}


if __name__ == "__main__":
    mpl.use("agg")
    for benchmark in _saved():
        draw(benchmark)
