"""The events of a CSV file."""

import difflib
from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import attrs

from loops_async._events.event import Event
from loops_async._events.rules import Refused, without_spelling
from loops_async.errors import ConfigurationError, InvalidEventError

from . import text_lines
from .options import (
    KNOWN,
    LISTED,
    MAPPINGS,
    NO_KEY,
    PROPERTIES,
    READERS,
    SPELLED,
    InputOptions,
    Read,
    Target,
    check_name,
    path_of,
    read_boolean,
    read_date,
    read_target,
    read_targets,
    read_type_target,
    read_types,
)
from .row import Item, converted, key_of, unread
from .text_lines import Lines


@attrs.frozen
class _Columns:
    """The columns, by what they are read for.

    Attributes:
        fields: Index and field.
        mappings: Field, and the index, name and reader of what is in it: by
            name, as the order of columns must not change an event's bytes.
        dated: Those fields that have dates, which JSON has not.
        width: How many there are.
    """

    fields: tuple[tuple[int, str], ...]
    mappings: tuple[tuple[str, tuple[tuple[int, str, Read | None], ...]], ...]
    dated: tuple[str, ...]
    width: int


def csv_items(file: str, lines: Lines, reading: InputOptions) -> Iterator[Item]:
    told = {*read_targets(reading.mapping).values(), *reading.ignore}
    rows = text_lines.rows(
        lines,
        lambda names: sum(n in told or read_target(n) is not None for n in names),
    )
    line, _, heading = next(rows, (0, b"", "there is nothing in it"))
    if isinstance(heading, str):
        raise ConfigurationError(f"{file}: no heading: {heading}")
    try:
        columns = _columns([name.strip() for name in heading], reading)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}, line {line}: {error}") from None
    width, dated = columns.width, columns.dated
    for line, raw, cells in rows:
        if isinstance(cells, str):
            yield unread(file, line, raw, cells)
            continue
        if len(cells) != width:
            many = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            why = f"{many}, but the heading has {width}"
            yield unread(file, line, raw, why)
            continue
        try:
            given = _given(cells, columns, reading.event_name)
            key = given.get("idempotency_key")
            if key is None:
                event = Event(**given, idempotency_key=NO_KEY)
            else:
                event = Event(**given)
        except (Refused, InvalidEventError):
            yield _refused(file, line, cells, columns, reading.event_name)
            continue
        for field in dated:
            if field in given:
                given[field] = getattr(event, field)
        yield Item(file, line, event, key, (), given)


def _columns(heading: list[str], reading: InputOptions) -> _Columns:
    """Return what the columns are for, or raise what is wrong with the heading."""
    targets = read_targets(reading.mapping)
    types = read_types(reading.types)
    mapped = set(targets.values())
    for setting, names in (("mapping", mapped), ("ignore", reading.ignore)):
        absent = sorted(set(names).difference(heading))
        if absent:
            msg = f"{setting}: no column has the heading {_list(absent)}"
            raise ConfigurationError(msg)
    found: list[tuple[Target, int]] = []
    unknown = []
    for index, name in enumerate(heading):
        if name in reading.ignore:
            continue
        target = read_target(name)
        if name in mapped:
            found.extend((to, index) for to in targets if targets[to] == name)
        elif target is None:
            unknown.append(name)
        else:
            found.append((target, index))
    if unknown:
        raise ConfigurationError(_unknown(unknown))
    times = Counter(target for target, _ in found)
    twice = [path_of(target) for target in times if times[target] > 1]
    if twice:
        raise ConfigurationError(f"more than one column for {_list(twice)}")
    for target in times:
        check_name(path_of(target), target)
    if ("event_name", "") not in times and reading.event_name is None:
        msg = "no column for event_name, and no name given for all events"
        raise ConfigurationError(msg)
    if ("email", "") not in times and ("user_id", "") not in times:
        raise ConfigurationError("no column for email or user_id")
    for text in reading.types:
        field, name = read_type_target(text) or ("", "")
        fields = (field,) if field else PROPERTIES
        if not any((field, name) in times for field in fields):
            raise ConfigurationError(f"types: no column for the property {text}")
    readers: dict[str, list[tuple[int, str, Read | None]]] = {}
    for (field, name), index in found:
        if field in MAPPINGS:
            kind = types.get((field, name), "string")
            reader = None if kind == "string" else READERS[kind]
            if field == "mailing_lists":
                reader = read_boolean
            readers.setdefault(field, []).append((index, name, reader))
    return _Columns(
        tuple((index, field) for (field, _), index in found if field not in MAPPINGS),
        tuple(
            (field, tuple(sorted(readers[field], key=itemgetter(1))))
            for field in MAPPINGS
            if field in readers
        ),
        tuple(f for f in readers if any(r is read_date for _, _, r in readers[f])),
        len(heading),
    )


def _unknown(headings: list[str]) -> str:
    """Say what is wrong with headings that have no meaning, and what would help."""
    shown = []
    for heading in headings:
        meant = _meant(heading)
        hint = f" (did you mean {meant}?)" if meant else ""
        shown.append(f"{heading!r}{hint}" if heading else "an empty one")
    if len(shown) > LISTED:
        shown[LISTED:] = [f"{len(shown) - LISTED} more"]
    hint = f'leave them out, such as --ignore "{headings[0]}"'
    example = next(filter(None, headings), None)
    if example is not None:
        target = _meant(example) or f"event_properties.{example}"
        hint = f'give others a meaning, such as --map "{target}={example}", or {hint}'
    return f"unknown headings: {', '.join(shown)}; {KNOWN}; {hint}"


def _meant(heading: str) -> str | None:
    """Return the known heading that an unknown one looks like."""
    twins = {without_spelling(field): field for field in SPELLED}
    spelling, _, name = heading.partition(".")
    close = difflib.get_close_matches(without_spelling(spelling), twins, 1, 0.75)
    field = twins[close[0]] if close else None
    if field in MAPPINGS:
        return f"{field}.{name}" if name else None
    return None if name else field


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _given(
    cells: list[str], columns: _Columns, event_name: str | None
) -> dict[str, Any]:
    """Return what the cells give for an Event; the first wrong one raises Refused."""
    given: dict[str, Any] = {"event_name": event_name}
    for index, field in columns.fields:
        if cell := cells[index]:
            given[field] = cell
    for field, inner in columns.mappings:
        values: dict[str, object] = {}
        for index, name, reader in inner:
            if cell := cells[index]:
                values[name] = cell if reader is None else reader(cell)
        if values:
            given[field] = values
    return given


def _refused(
    file: str, line: int, cells: list[str], columns: _Columns, event_name: str | None
) -> Item:
    """Return the item of a row that has problems, with all of them."""
    record = _given(cells, attrs.evolve(columns, mappings=()), event_name)
    given = dict(record)
    problems: list[str] = []
    for field, inner in columns.mappings:
        texts = {name: cells[index] for index, name, _ in inner if cells[index]}
        readers = {name: reader for _, name, reader in inner if reader}
        values, kept = converted(field, texts, readers, problems)
        if kept:
            given[field], record[field] = values, kept
    given.setdefault("idempotency_key", NO_KEY)
    try:
        Event(**given)
    except InvalidEventError as invalid:
        problems.extend(invalid.problems)
    if event_name is None and "event_name" in record and record["event_name"] is None:
        del record["event_name"]
    return Item(file, line, None, key_of(record), tuple(problems), record)
