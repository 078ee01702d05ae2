"""Inputs of backfills, the rows read from them, and runs against a sandbox."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from loops_async import (
    BackfillReport,
    ConfigurationError,
    InputOptions,
    Preview,
    Progress,
    backfill,
    event_to_record,
)
from loops_async._backfill.input import InputRow, read
from loops_async.sandbox import Sandbox
from support.clients import client_of

Save = Callable[..., Path]
Use = Callable[[Sandbox], Coroutine[Any, Any, Any]]

HEAD = "email,user_id,event_name,event_properties.number"
NUMBERS = InputOptions(types={"number": "number"})


def row(number: int, /, **cells: str) -> str:
    """Return a line of CSV below HEAD."""
    usual = {"email": f"u{number}@b.co", "user_id": "", "event_name": "signup"}
    return ",".join({**usual, "number": str(number), **cells}.values())


def write(path: Path, rows: Iterable[str], head: str = HEAD) -> Path:
    """Write a CSV file."""
    path.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    return path


def json_lines(path: Path) -> list[Any]:
    """Return the records of a JSON Lines file."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read_all(path: Path, **options: Any) -> list[InputRow]:
    """Return all rows of a file."""
    return list(read(path, InputOptions(**options)))


def read_one(path: Path, **options: Any) -> InputRow:
    """Return the only row of a file."""
    (found,) = read_all(path, **options)
    return found


def record_of(found: InputRow) -> dict[str, Any]:
    """Return the event of a valid row as a record, without its key."""
    assert found.event is not None, found.problems
    record = event_to_record(found.event)
    key = record.pop("idempotency_key")
    assert found.key == (None if key == "unkeyed" else key)
    return record


def problems_of(found: InputRow) -> str:
    """Return the problems of an invalid row."""
    assert found.event is None
    return "; ".join(found.problems)


def file_error(path: Path, **options: Any) -> str:
    """Return why a file cannot be used."""
    with pytest.raises(ConfigurationError) as caught:
        read_all(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def with_sandbox(use: Use, **settings: Any) -> Any:
    """Run a coroutine function with a sandbox that has no rate limit."""

    async def main() -> Any:
        async with Sandbox(**{"rate_limit": None, **settings}) as sandbox:
            return await use(sandbox)

    return asyncio.run(main())


async def send(
    paths: Path | list[Path],
    sandbox: Sandbox,
    *,
    settings: Mapping[str, Any] = {},
    **options: Any,
) -> BackfillReport:
    """Run a backfill; numbers are sent as numbers.

    Args:
        paths: The input.
        sandbox: The sandbox to send to.
        settings: Settings of the client, which has no rate limit otherwise.
        **options: Options of the backfill.
    """
    async with client_of(sandbox, **settings) as client:
        return await backfill(paths, client, **{"input_options": NUMBERS, **options})


def counts_of(progress: Progress) -> dict[str, int]:
    """Return the counts that are not 0."""
    fields = [field.name for field in attrs.fields(Progress)]
    counts = {name: getattr(progress, name) for name in fields}
    return {name: count for name, count in counts.items() if count}


def journal_of(path: Path) -> Path:
    return Path(f"{path}.journal.db")


def rejects_of(path: Path) -> Path:
    return Path(f"{path}.rejects.jsonl")


def edit(path: Path, statement: str, *values: Iterable[object]) -> None:
    """Execute a statement in the journal of an input."""
    with closing(sqlite3.connect(journal_of(path))) as db:
        db.executemany(statement, values or [()])
        db.commit()


class Confirm:
    """A function that confirms a run, or does not, and keeps the previews."""

    def __init__(self, *, result: bool = True) -> None:
        self.result = result
        self.previews: list[Preview] = []

    def __call__(self, preview: Preview) -> bool:
        self.previews.append(preview)
        return self.result
