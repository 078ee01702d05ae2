"""A million rows of CSV: checked, and entered into a backfill's journal.

Each in a process of its own, whose memory at its highest is read at the end.
Beside them Python's own `csv` reads the same file, and does nothing with it.
"""

import asyncio
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loops_async import AsyncLoopsClient

from .table import Row, promise, show

if TYPE_CHECKING:
    from loops_async import Preview

ROWS = 1_000_000
CSV, CHECKED, JOURNALLED = "csv", "check", "journal"
LEAST = {CHECKED: 30_000, JOURNALLED: 15_000}  # rows a second
MOST_MEGABYTES = 200
_HEADS = (
    "email,user_id,event_name,event_properties.plan,event_properties.amount,"
    "contact_properties.firstName\n"
)


@contextmanager
def on_disk() -> Iterator[Path]:
    """Make a folder for a while, where a flush has something to do."""
    places = [Path(tempfile.gettempdir()), Path(__file__).parents[1]]
    real = [place for place in places if not file_system(place).startswith("in memory")]
    with tempfile.TemporaryDirectory(dir=(real or places)[0]) as folder:
        print(f"files on {file_system(Path(folder))}", flush=True)
        yield Path(folder)


def file_system(place: Path) -> str:
    """Return what a folder is on."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "an unknown file system"
    known = (line.split()[1:3] for line in mounts.read_text().splitlines())
    at = {Path(mounted): kind for mounted, kind in known}
    whole = place.resolve()
    kind = next(at[path] for path in (whole, *whole.parents) if path in at)
    return f"in memory, {kind}" if kind in ("tmpfs", "ramfs") else kind


def generate(path: Path, rows: int) -> None:
    """Write events as an export would have them, two for each contact."""
    with path.open("w", encoding="utf-8") as file:
        file.write(_HEADS)
        for number in range(rows):
            who = number // 2
            file.write(
                f"person{who}@example.com,usr_{who:07},planUpgraded,"
                f"{'Pro' if number % 3 else 'Team'},{number % 500}.5,Ada\n"
            )


def read_only(path: Path) -> Row:
    """Read it with the module csv."""
    began = time.perf_counter()
    with path.open(encoding="utf-8", newline="") as file:
        rows = sum(1 for _ in csv.reader(file)) - 1
    return {"rows": rows, "seconds": time.perf_counter() - began}


def checked(path: Path) -> Row:
    return asyncio.run(_backfilled(path, journal=False))


def journalled(path: Path) -> Row:
    """Do all that comes before the question, which is answered with no."""
    return asyncio.run(_backfilled(path, journal=True))


async def _backfilled(path: Path, *, journal: bool) -> Row:
    # Here, as the process that only reads should not have it in memory.
    from loops_async._backfill.backfill import Backfill  # noqa: PLC0415
    from loops_async._backfill.input import InputOptions  # noqa: PLC0415

    asked: list[tuple[float, Preview]] = []

    def confirm(preview: "Preview") -> bool:
        asked.append((time.perf_counter(), preview))
        return False

    async with AsyncLoopsClient("key") as loops:
        reading = InputOptions(types={"amount": "number"})
        run = Backfill(path, loops, input_options=reading, confirm=confirm)
        began = time.perf_counter()
        if journal:
            await run.run()
        else:
            confirm(await run.check())
    ((ended, preview),) = asked
    assert not preview.invalid, preview.problems
    return {"rows": preview.to_send, "seconds": ended - began}


WAYS: dict[str, Callable[[Path], Row]] = {
    CSV: read_only,
    CHECKED: checked,
    JOURNALLED: journalled,
}


def measure_here(what: str, path: Path) -> None:
    """Print the row of one way as JSON."""
    before = _most_megabytes()
    row = WAYS[what](path)
    memory = {"before": before, "megabytes": _most_megabytes()}
    print(json.dumps({"what": what, **row, **memory}))


def _most_megabytes() -> float | None:
    """Return the most that was resident; only Linux tells that of just this.

    What `resource` tells began with that of the process which started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 / 1e6


def measure(rows: int = ROWS) -> list[Row]:
    with on_disk() as folder:
        path = folder / "events.csv"
        generate(path, rows)
        programs = [
            [sys.executable, "-m", "benchmarks.backfill", what, os.fspath(path)]
            for what in WAYS
        ]
        found: list[Row] = [
            json.loads(subprocess.check_output(program)) for program in programs
        ]
    assert all(row["rows"] == rows for row in found)
    return found


def report(rows: list[Row]) -> bool:
    """Print it; return whether it is as promised."""
    (alone,) = [row for row in rows if row["what"] == CSV]
    lines = [
        (
            row["what"],
            round(row["rows"] / row["seconds"]),
            row["seconds"] / alone["seconds"],
            row["megabytes"],
            row["before"],
        )
        for row in rows
    ]
    heads = ("", "rows/s", "time over csv", "MB at most", "MB before")
    show(f"A CSV file of {alone['rows']:,} rows", [heads, *lines])
    print()
    good = True
    for row in rows:
        if row["what"] in LEAST:
            what, least = row["what"], LEAST[row["what"]]
            good &= promise(
                f"rows a second, {what}", row["rows"] / row["seconds"], least=least
            )
            if row["megabytes"] is not None:
                good &= promise(
                    f"MB at most, {what}", row["megabytes"], most=MOST_MEGABYTES
                )
    if alone["megabytes"] is None:
        print("  Memory is only read on Linux.")
    return good


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    if sys.argv[1:]:
        measure_here(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(not main())
