"""The rows of a CSV file."""

import difflib
from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, Final, TypeAlias

import attrs

from loops_async._events.event import Event
from loops_async._events.rules import InvalidValue, fold_spelling
from loops_async.errors import ConfigurationError, InvalidEventError

from .csv_records import csv_records
from .options import (
    CAMEL_CASE,
    KNOWN_FIELDS,
    MAPPINGS,
    NO_KEY,
    PARSERS,
    PROPERTIES,
    InputOptions,
    Parser,
    Target,
    check_name,
    parse_boolean,
    parse_date,
    parse_mapping,
    parse_target,
    parse_type_target,
    parse_types,
    path_of,
)
from .row import InputRow, convert_items, key_of, unparsed
from .text_lines import Lines

_MAX_HEADINGS: Final = 20  # listed in an error

_Column: TypeAlias = tuple[Target, int]
"""The field that a column holds, and its index."""


@attrs.frozen
class _Columns:
    """The columns, by the fields that they hold.

    Attributes:
        fields: The index and field of each column that holds a whole field.
        mappings: Each mapping field, with the index, name and parser of each of its
            columns, sorted by name: the order of the columns must not change the
            event's bytes.
        dated: The fields with dates, which JSON cannot hold.
        width: The number of columns.
    """

    fields: tuple[tuple[int, str], ...]
    mappings: tuple[tuple[str, tuple[tuple[int, str, Parser | None], ...]], ...]
    dated: tuple[str, ...]
    width: int


def csv_rows(file: str, lines: Lines, options: InputOptions) -> Iterator[InputRow]:
    """Yield the rows of a CSV file.

    Raises:
        ConfigurationError: If the heading cannot be used.
    """
    named = {*parse_mapping(options.mapping).values(), *options.ignore}
    records = csv_records(
        lines,
        lambda names: sum(n in named or parse_target(n) is not None for n in names),
    )
    heading = next(records, None)
    if heading is None:
        raise ConfigurationError(f"{file}: the file is empty")
    if heading.problem:
        raise ConfigurationError(f"{file}: no heading: {heading.problem}")
    try:
        columns = _columns([name.strip() for name in heading.cells], options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}, line {heading.line}: {error}") from None
    width, dated = columns.width, columns.dated
    for line, raw, cells, problem, cut in records:
        if problem:
            yield unparsed(file, line, raw, problem, cut=cut)
            continue
        if len(cells) != width:
            count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            yield unparsed(file, line, raw, f"{count}, but the heading has {width}")
            continue
        try:
            record = _record(cells, columns, options.event_name)
            key = record.get("idempotency_key")
            if key is None:
                event = Event(**record, idempotency_key=NO_KEY)
            else:
                event = Event(**record)
        except (InvalidValue, InvalidEventError):
            yield _invalid_row(file, line, cells, columns, options.event_name)
            continue
        for field in dated:
            if field in record:
                record[field] = getattr(event, field)
        yield InputRow(file, line, event, key, (), record)


def _columns(heading: list[str], options: InputOptions) -> _Columns:
    """Return the columns, or raise a ConfigurationError."""
    for setting, names in (
        ("mapping", parse_mapping(options.mapping).values()),
        ("ignore", options.ignore),
    ):
        absent = sorted(set(names).difference(heading))
        if absent:
            msg = f"{setting}: no column has the heading {_list(absent)}"
            raise ConfigurationError(msg)
    columns = _targets(heading, options)
    _check_targets(Counter(target for target, _ in columns), options)
    types = parse_types(options.types)
    items: dict[str, list[tuple[int, str, Parser | None]]] = {}
    for (field, name), index in columns:
        if field in MAPPINGS:
            type_name = types.get((field, name), "string")
            parser = None if type_name == "string" else PARSERS[type_name]
            if field == "mailing_lists":
                parser = parse_boolean
            items.setdefault(field, []).append((index, name, parser))
    return _Columns(
        tuple((index, field) for (field, _), index in columns if field not in MAPPINGS),
        tuple(
            (field, tuple(sorted(items[field], key=itemgetter(1))))
            for field in MAPPINGS
            if field in items
        ),
        tuple(f for f in items if any(p is parse_date for _, _, p in items[f])),
        len(heading),
    )


def _targets(heading: list[str], options: InputOptions) -> list[_Column]:
    """Return the columns that are not ignored, or raise if a heading is unknown."""
    mapping = parse_mapping(options.mapping)
    mapped = set(mapping.values())
    columns: list[_Column] = []
    unknown = []
    for index, name in enumerate(heading):
        if name in options.ignore:
            continue
        target = parse_target(name)
        if name in mapped:
            columns.extend((to, index) for to in mapping if mapping[to] == name)
        elif target is None:
            unknown.append(name)
        else:
            columns.append((target, index))
    if unknown:
        raise ConfigurationError(_unknown_headings(unknown))
    return columns


def _check_targets(counts: Counter[Target], options: InputOptions) -> None:
    """Raise a ConfigurationError if events cannot be made of these columns."""
    repeated = [path_of(target) for target in counts if counts[target] > 1]
    if repeated:
        raise ConfigurationError(f"more than one column for {_list(repeated)}")
    for target in counts:
        check_name(path_of(target), target)
    if ("event_name", "") not in counts and options.event_name is None:
        msg = "no column for event_name, and no event name given for all rows"
        raise ConfigurationError(msg)
    if ("email", "") not in counts and ("user_id", "") not in counts:
        raise ConfigurationError("no column for email or user_id")
    for text in options.types:
        field, name = parse_type_target(text) or ("", "")
        fields = (field,) if field else PROPERTIES
        if not any((field, name) in counts for field in fields):
            raise ConfigurationError(f"types: no column for the property {text}")


def _unknown_headings(headings: list[str]) -> str:
    """Return a message that names unknown headings and suggests remedies."""
    shown = []
    for heading in headings:
        suggestion = _suggestion(heading)
        hint = f" (did you mean {suggestion}?)" if suggestion else ""
        shown.append(f"{heading!r}{hint}" if heading else "an empty heading")
    if len(shown) > _MAX_HEADINGS:
        shown[_MAX_HEADINGS:] = [f"{len(shown) - _MAX_HEADINGS} more"]
    remedy = f'leave columns out, such as --ignore "{headings[0]}"'
    example = next(filter(None, headings), None)
    if example is not None:
        target = _suggestion(example) or f"event_properties.{example}"
        remedy = f'map columns, such as --map "{target}={example}", or {remedy}'
    return f"unknown headings: {', '.join(shown)}; {KNOWN_FIELDS}; {remedy}"


def _suggestion(heading: str) -> str | None:
    """Return the known heading that an unknown one resembles, or None."""
    fields = {fold_spelling(field): field for field in CAMEL_CASE}
    spelling, _, name = heading.partition(".")
    close = difflib.get_close_matches(fold_spelling(spelling), fields, 1, 0.75)
    field = fields[close[0]] if close else None
    if field in MAPPINGS:
        return f"{field}.{name}" if name else None
    return None if name else field


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _record(
    cells: list[str], columns: _Columns, event_name: str | None
) -> dict[str, Any]:
    """Return the arguments of Event; raise InvalidValue at the first invalid cell."""
    record: dict[str, Any] = {"event_name": event_name}
    for index, field in columns.fields:
        if cell := cells[index]:
            record[field] = cell
    for field, items in columns.mappings:
        values: dict[str, object] = {}
        for index, name, parser in items:
            if cell := cells[index]:
                values[name] = cell if parser is None else parser(cell)
        if values:
            record[field] = values
    return record


def _invalid_row(
    file: str, line: int, cells: list[str], columns: _Columns, event_name: str | None
) -> InputRow:
    """Return a row with all its problems."""
    record = _record(cells, attrs.evolve(columns, mappings=()), event_name)
    arguments = dict(record)
    problems: list[str] = []
    for field, items in columns.mappings:
        texts = {name: cells[index] for index, name, _ in items if cells[index]}
        parsers = {name: parser for _, name, parser in items if parser}
        values, as_json = convert_items(field, texts, parsers, problems)
        if as_json:
            arguments[field], record[field] = values, as_json
    arguments.setdefault("idempotency_key", NO_KEY)
    try:
        Event(**arguments)
    except InvalidEventError as invalid:
        problems.extend(invalid.problems)
    if event_name is None and "event_name" in record and record["event_name"] is None:
        del record["event_name"]
    return InputRow(file, line, None, key_of(record), tuple(problems), record)
