"""The time and the memory to check and to journal a million CSV rows.

Each variant runs in its own process, whose peak memory is read at the end. For
comparison, the module `csv` reads the same file and discards the rows.
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
LEAST = {CHECKED: 30_000, JOURNALLED: 15_000}  # rows per second
MAX_MEGABYTES = 200
_HEADS = (
    "email,user_id,event_name,event_properties.plan,event_properties.amount,"
    "contact_properties.firstName\n"
)


@contextmanager
def on_disk() -> Iterator[Path]:
    """Create a temporary folder, on a disk rather than in memory if possible."""
    parents = [Path(tempfile.gettempdir()), Path(__file__).parents[1]]
    on_a_disk = [
        path for path in parents if not file_system(path).startswith("in memory")
    ]
    with tempfile.TemporaryDirectory(dir=(on_a_disk or parents)[0]) as folder:
        print(f"files on {file_system(Path(folder))}", flush=True)
        yield Path(folder)


def file_system(folder: Path) -> str:
    """Return the name of a folder's file system."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "an unknown file system"
    known = (line.split()[1:3] for line in mounts.read_text().splitlines())
    at = {Path(mounted): kind for mounted, kind in known}
    absolute = folder.resolve()
    kind = next(at[path] for path in (absolute, *absolute.parents) if path in at)
    return f"in memory, {kind}" if kind in ("tmpfs", "ramfs") else kind


def generate(path: Path, rows: int) -> None:
    """Write a CSV file like an export, with two events of each contact."""
    with path.open("w", encoding="utf-8") as file:
        file.write(_HEADS)
        for number in range(rows):
            contact = number // 2
            file.write(
                f"person{contact}@example.com,usr_{contact:07},planUpgraded,"
                f"{'Pro' if number % 3 else 'Team'},{number % 500}.5,Ada\n"
            )


def read_only(path: Path) -> Row:
    """Read the file with the module csv."""
    began = time.perf_counter()
    with path.open(encoding="utf-8", newline="") as file:
        rows = sum(1 for _ in csv.reader(file)) - 1
    return {"rows": rows, "seconds": time.perf_counter() - began}


def check(path: Path) -> Row:
    return asyncio.run(_backfill(path, journal=False))


def enter_into_journal(path: Path) -> Row:
    """Run a backfill up to its confirmation, which is declined."""
    return asyncio.run(_backfill(path, journal=True))


async def _backfill(path: Path, *, journal: bool) -> Row:
    # Imported here, so that the process of read_only does not hold the package.
    from loops_async._backfill.backfill import Backfill  # noqa: PLC0415
    from loops_async._backfill.input import InputOptions  # noqa: PLC0415

    previews: list[tuple[float, Preview]] = []

    def confirm(preview: "Preview") -> bool:
        previews.append((time.perf_counter(), preview))
        return False

    async with AsyncLoopsClient("key") as loops:
        options = InputOptions(types={"amount": "number"})
        run = Backfill(path, loops, input_options=options, confirm=confirm)
        began = time.perf_counter()
        if journal:
            await run.run()
        else:
            confirm(await run.check())
    ((ended, preview),) = previews
    assert not preview.invalid, preview.problems
    return {"rows": preview.to_send, "seconds": ended - began}


VARIANTS: dict[str, Callable[[Path], Row]] = {
    CSV: read_only,
    CHECKED: check,
    JOURNALLED: enter_into_journal,
}


def measure_here(variant: str, path: Path) -> None:
    """Print the result of one variant as JSON."""
    before = _peak_megabytes()
    row = VARIANTS[variant](path)
    memory = {"before": before, "megabytes": _peak_megabytes()}
    print(json.dumps({"variant": variant, **row, **memory}))


def _peak_megabytes() -> float | None:
    """Return the peak resident memory of this process, or None if unknown.

    The peak of the module `resource` includes that of the parent process, so only
    Linux's own is used.
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
            [sys.executable, "-m", "benchmarks.backfill", variant, os.fspath(path)]
            for variant in VARIANTS
        ]
        found: list[Row] = [
            json.loads(subprocess.check_output(program)) for program in programs
        ]
    assert all(row["rows"] == rows for row in found)
    return found


def report(rows: list[Row]) -> bool:
    """Print the results; return whether they keep the promises."""
    (csv_only,) = [row for row in rows if row["variant"] == CSV]
    lines = [
        (
            row["variant"],
            round(row["rows"] / row["seconds"]),
            row["seconds"] / csv_only["seconds"],
            row["megabytes"],
            row["before"],
        )
        for row in rows
    ]
    heads = ("", "rows/s", "time / csv", "peak MB", "MB before")
    show(f"A CSV file of {csv_only['rows']:,} rows", [heads, *lines])
    print()
    good = True
    for row in rows:
        variant = row["variant"]
        if variant in LEAST:
            rate = row["rows"] / row["seconds"]
            good &= promise(f"rows per second, {variant}", rate, least=LEAST[variant])
            if row["megabytes"] is not None:
                what = f"peak MB, {variant}"
                good &= promise(what, row["megabytes"], most=MAX_MEGABYTES)
    if csv_only["megabytes"] is None:
        print("  Memory is measured on Linux only.")
    return good


def main() -> bool:
    return report(measure())


if __name__ == "__main__":
    if sys.argv[1:]:
        measure_here(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(not main())
