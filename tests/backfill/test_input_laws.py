"""Laws of the input: for all events, and for all contents of a file."""

import csv
import io
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backfills import read_all

from loops_async import Event, InputOptions, event_from_record, event_to_record
from loops_async._backfill.input import read
from loops_async._backfill.input.csv_records import CsvRecord, csv_records
from loops_async._backfill.input.text_lines import Lines

HEAD = "email,event_name\n"

_texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30
)
_names = st.sampled_from(["a", "b.c", "ä", 'q"', "x,y", "x;y", "two words"])
_ids = st.text("abc_-.", min_size=1, max_size=10)
_moments = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001 - hypothesis takes naive bounds
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.just(UTC),
)
_events = st.builds(
    lambda name, ids, key, properties, contact, lists: Event(
        name,
        email=ids[0],
        user_id=ids[1],
        idempotency_key=key,
        event_properties=properties,
        contact_properties=contact,
        mailing_lists=lists,
    ),
    _ids,
    st.tuples(st.none() | _ids.map("{}@b.c".format), st.none() | _ids).filter(any),
    st.text("abc", min_size=1, max_size=10),
    st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(-(2**53), 2**53)
            | st.floats(allow_nan=False, allow_infinity=False),
            "d": st.dates() | _moments,
        },
    ),
    st.dictionaries(_names, _texts, max_size=3),
    st.dictionaries(_names, st.booleans(), max_size=3),
)
_few = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_TYPES = {"event_properties.n": "number", "eventProperties.d": "date"}


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for field, value in record.items():
        if isinstance(value, dict):
            flat.update({f"{field}.{name}": inner for name, inner in value.items()})
        else:
            flat[field] = value
    return flat


@_few
@given(
    events=st.lists(_events, min_size=1, max_size=5), delimiter=st.sampled_from(",;\t")
)
def test_events_written_as_csv_are_read_back(
    tmp_path: Path, events: list[Event], delimiter: str
) -> None:
    rows = [_flat(event_to_record(event)) for event in events]
    heading = ["email", "event_properties.n", "event_properties.d"]
    heading += sorted({name for row in rows for name in row}.difference(heading))
    file = io.StringIO()
    writer = csv.DictWriter(file, heading, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path / "a.csv"
    path.write_bytes(file.getvalue().encode())
    found = read_all(path, types=_TYPES)
    for event, row in zip(events, found, strict=True):
        assert row.event is not None, row.problems
        assert row.key == event.idempotency_key
        kept = {n: v for n, v in event.contact_properties.items() if v != ""}
        assert row.event == event.replace(
            contact_properties=kept, idempotency_key=event.idempotency_key
        )


@_few
@given(events=st.lists(_events, min_size=1, max_size=5))
def test_events_written_as_json_lines_are_read_back(
    tmp_path: Path, events: list[Event]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(event_to_record(e)) for e in events))
    found = read_all(path, types=_TYPES)
    assert [row.event for row in found] == events
    assert [event_from_record(row.record) for row in found] == events  # type: ignore[arg-type]


def records_of(text: str) -> list[CsvRecord]:
    """Return the records of a text whose cells are separated by commas."""
    lines = Lines(io.BytesIO(text.encode()), "UTF-8", max_record=1000)
    return list(csv_records(lines, len))


@settings(_few, max_examples=500)
@given(text=st.text('a",\n', max_size=40))
def test_records_begin_where_a_lenient_reader_finds_them(text: str) -> None:
    """Text within an open quote is never a record, whatever is broken before it."""
    text = f"h,h\n{text}"
    lenient = csv.reader(io.StringIO(text, newline=""))
    line = 1
    expected = {}
    for cells in lenient:
        if cells:
            expected[line] = cells
        line = lenient.line_num + 1
    records = records_of(text)
    assert [record.line for record in records] == list(expected)
    for record in records:
        assert record.problem or record.cells == expected[record.line]
    with suppress(csv.Error):
        strict = csv.reader(io.StringIO(text, newline=""), strict=True)
        assert [record.cells for record in records] == list(filter(None, strict))


@settings(_few, max_examples=200)
@given(
    content=st.text('a",;\t\r\n\0é', max_size=40).map(str.encode)
    | st.binary(max_size=20),
    name=st.sampled_from(["a.csv", "a.jsonl"]),
    max_record=st.sampled_from([20, 1000]),
)
def test_no_content_raises_an_error_or_loses_a_line(
    tmp_path: Path, content: bytes, name: str, max_record: int
) -> None:
    path = tmp_path / name
    path.write_bytes(HEAD.encode() + content)
    rows = read(path, InputOptions(), max_record=max_record)
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))
    if b'"' not in content:
        physical = (HEAD.encode() + content).split(b"\n")
        expected = [n for n, line in enumerate(physical, 1) if line.strip(b" \r\n")]
        assert lines == (expected[1:] if name == "a.csv" else expected)
