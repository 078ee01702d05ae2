"""The events of a backfill's files: CSV or JSON Lines, one row at a time."""

import difflib
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs

from . import _csv, _values
from ._codec import event_from_record
from ._csv import Lines, open_lines
from ._events import Event
from ._json import loads
from ._values import Refused, item_path, without_spelling
from .errors import ConfigurationError, InvalidEventError

_SPELLED: Final = {
    "event_name": "eventName",
    "email": "email",
    "user_id": "userId",
    "idempotency_key": "idempotencyKey",
    "event_properties": "eventProperties",
    "contact_properties": "contactProperties",
    "mailing_lists": "mailingLists",
}
_FIELDS: Final = {twin: name for name in _SPELLED for twin in (name, _SPELLED[name])}
_PROPERTIES: Final = ("event_properties", "contact_properties")
_MAPPINGS: Final = (*_PROPERTIES, "mailing_lists")
_KNOWN: Final = (
    "known are event_name, email, user_id, idempotency_key, event_properties.NAME, "
    "contact_properties.NAME and mailing_lists.ID"
)

# Making a key is slow, and the reader's caller has better ones.
_NO_KEY: Final = "unkeyed"

_SHOWN: Final = 60  # characters of a value in a problem
_LISTED: Final = 20  # headings in an error
_KEPT: Final = 1000  # characters of a record too long to keep

_Target: TypeAlias = tuple[str, str]
"""A field, and the name in it if it is a mapping, else an empty one."""

_Read: TypeAlias = Callable[[str], object]
"""Reads a text as a type, or raises Refused."""


@attrs.frozen
class Reading:
    """How input is to be read.

    Attributes:
        event_name: For rows without one of their own.
        mapping: Field to the heading of its column (or the key in a JSON
            record): ``{"email": "E-Mail", "amount": "Total"}``. A name that
            is no field is an event property.
        types: Property to ``string``, ``number``, ``boolean`` or ``date``;
            a name without ``event_properties.`` or ``contact_properties.``
            before it means both. CSV cells are strings unless told.
        format: ``csv`` or ``jsonl``; None is by the file's name.

    Raises:
        ConfigurationError: if that cannot be.
    """

    event_name: str | None = None
    mapping: Mapping[str, str] = attrs.field(factory=dict, converter=dict)
    types: Mapping[str, str] = attrs.field(factory=dict, converter=dict)
    format: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.event_name is not None:
            _configured("event_name", _values.event_name, self.event_name)
        if self.format not in (None, "csv", "jsonl"):
            msg = f"format must be csv or jsonl, not {self.format!r}"
            raise ConfigurationError(msg)
        for name, kind in self.types.items():
            if kind not in _READERS:
                expected = ", ".join(_READERS)
                msg = f"types: {name} must be one of {expected}, not {kind!r}"
                raise ConfigurationError(msg)
            if _type_target(name) is None:
                msg = f"types: {name!r} is no property"
                raise ConfigurationError(msg)
        _targets(self.mapping)


@attrs.frozen(slots=False)
class Item:
    """One row of the input.

    Attributes:
        file: The path, as given.
        line: Where the row begins, from 1.
        event: What it says, or None if there are problems. Its key means
            nothing if `key` is None.
        key: The row's own idempotency key, or None.
        problems: All of them, each with its path.
        record: What can be mended and read again: a JSON object, or the text
            if it is none.
    """

    file: str
    line: int
    event: Event | None
    key: str | None
    problems: tuple[str, ...]
    record: object


def read(path: str | os.PathLike[str], reading: Reading) -> Iterator[Item]:
    """Read a file of events, row by row, in bounded memory.

    UTF-8, or UTF-16 with a byte order mark; gzipped or not. A row that is
    wrong is an item with problems.

    Raises:
        ConfigurationError: for what concerns the whole file, when it comes
            up: it is not there, its heading is wrong, its gzip is damaged.
    """
    file = os.fspath(path)
    items = _csv_items if _format_of(file, reading) == "csv" else _json_items
    with open_lines(file) as lines:
        yield from items(file, lines, reading)


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the file as it is, in hexadecimal digits.

    Raises:
        ConfigurationError: if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        why = f"{os.fspath(path)}: cannot be read: {error.strerror}"
        raise ConfigurationError(why) from None


def _format_of(file: str, reading: Reading) -> str:
    if reading.format is not None:
        return reading.format
    suffix = Path(file.lower().removesuffix(".gz")).suffix
    if suffix == ".csv":
        return "csv"
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    msg = f"{file}: is it csv or jsonl? The name does not tell, give the format"
    raise ConfigurationError(msg)


# What the settings mean


def _configured(where: str, read_name: Callable[[Any], object], given: object) -> None:
    try:
        read_name(given)
    except Refused as refused:
        raise ConfigurationError(f"{where}: {'; '.join(refused.args)}") from None


def _target(text: str) -> _Target | None:
    """Return what a heading means, or None."""
    spelling, _, name = text.partition(".")
    field = _FIELDS.get(spelling)
    if field is None or (field in _MAPPINGS) != bool(name) or (text.endswith(".")):
        return None
    return field, name


def _type_target(text: str) -> _Target | None:
    """Return which property a type is for; no field means both kinds."""
    spelling, dot, _ = text.partition(".")
    if dot and spelling in _FIELDS:
        target = _target(text)
        return target if target and target[0] in _PROPERTIES else None
    return ("", text) if text else None


def _targets(mapping: Mapping[str, str]) -> dict[_Target, str]:
    """Return the mapping by what its targets mean."""
    targets: dict[_Target, str] = {}
    for text, column in mapping.items():
        target = _target(text)
        if target is None and text and "." not in text and text not in _FIELDS:
            target = "event_properties", text
        if target is None:
            raise ConfigurationError(f"mapping: {text!r} is no field; {_KNOWN}")
        if not isinstance(column, str) or not column.strip():
            raise ConfigurationError(f"mapping: {text} needs the heading of a column")
        if target in targets:
            raise ConfigurationError(f"mapping: {_path(target)} is given twice")
        _check_name("mapping: " + text, target)
        targets[target] = column.strip()
    return targets


def _types(types: Mapping[str, str]) -> dict[_Target, str]:
    """Return the types by property; those for both kinds are for each."""
    both: dict[_Target, str] = {}
    one: dict[_Target, str] = {}
    for text, kind in types.items():
        target = _type_target(text)
        assert target is not None  # as Reading has seen
        if target[0]:
            one[target] = kind
        else:
            both.update({(field, target[1]): kind for field in _PROPERTIES})
    return both | one


def _check_name(where: str, target: _Target) -> None:
    field, name = target
    if field == "contact_properties":
        _configured(where, _values.contact_property_name, name)
    elif field in _MAPPINGS:
        _configured(where, _values.name, name)


def _path(target: _Target) -> str:
    field, name = target
    return f"{field}{item_path(name)}" if name else field


# Types


def _number(text: str) -> int | float:
    if _whole(text):
        return int(text)
    if not _decimal(text):
        raise Refused(f"{_shown(text)} is not a number")
    number = float(text)
    if math.isinf(number):
        raise Refused(f"{_shown(text)} is out of range")
    return number


# As long as Event may see that it is too long; longer ones are infinite floats.
_whole = re.compile(r"[+-]?[0-9]{1,400}").fullmatch
_decimal = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
).fullmatch


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in ("true", "false"):
        raise Refused(f"{_shown(text)} is not true or false")
    return word == "true"


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        why = f"{_shown(text)} is not a date (ISO 8601: 2026-01-31T12:00:00Z)"
        raise Refused(why) from None
    if moment.utcoffset() is None:
        raise Refused(f"{_shown(text)} has no time zone")
    return moment


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


_READERS: Final[dict[str, _Read]] = {
    "string": str,
    "number": _number,
    "boolean": _boolean,
    "date": _date,
}
_IN_JSON: Final = {"number": (int, float), "boolean": (bool,)}


def _typed(kind: str, value: object) -> object:
    """Read a value of a JSON record as a type."""
    if isinstance(value, str):
        return _READERS[kind](value)
    if value is None or type(value) in _IN_JSON.get(kind, ()):
        return value
    raise Refused(f"{_shown(value)} is not a {kind}")


# CSV


@attrs.frozen
class _Columns:
    """The columns, by what they are read for.

    Attributes:
        fields: Index and field.
        mappings: Field, and the index, name and reader of what is in it.
        dated: Those fields that have dates, which JSON has not.
        width: How many there are.
    """

    fields: tuple[tuple[int, str], ...]
    mappings: tuple[tuple[str, tuple[tuple[int, str, _Read | None], ...]], ...]
    dated: tuple[str, ...]
    width: int


def _csv_items(file: str, lines: Lines, reading: Reading) -> Iterator[Item]:
    mapped = set(_targets(reading.mapping).values())
    rows = _csv.rows(
        lines, lambda names: sum(n in mapped or _target(n) is not None for n in names)
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
            yield _unread(file, line, raw, cells)
            continue
        if len(cells) != width:
            why = f"{len(cells)} cells, but the heading has {width}"
            yield _unread(file, line, raw, why)
            continue
        try:
            given = _given(cells, columns, reading.event_name)
            key = given.get("idempotency_key")
            if key is None:
                event = Event(**given, idempotency_key=_NO_KEY)
            else:
                event = Event(**given)
        except (Refused, InvalidEventError):
            yield _refused(file, line, cells, columns, reading.event_name)
            continue
        for field in dated:
            if field in given:
                given[field] = getattr(event, field)
        yield Item(file, line, event, key, (), given)


def _columns(heading: list[str], reading: Reading) -> _Columns:
    """Return what the columns are for, or raise what is wrong with the heading."""
    targets = _targets(reading.mapping)
    types = _types(reading.types)
    mapped = set(targets.values())
    absent = sorted(mapped.difference(heading))
    if absent:
        raise ConfigurationError(f"mapping: no column has the heading {_list(absent)}")
    found: list[tuple[_Target, int]] = []
    unknown = []
    for index, name in enumerate(heading):
        target = _target(name)
        if name in mapped:
            found.extend((to, index) for to in targets if targets[to] == name)
        elif target is None:
            unknown.append(name)
        else:
            found.append((target, index))
    if unknown:
        raise ConfigurationError(_unknown(unknown))
    times = Counter(target for target, _ in found)
    twice = [_path(target) for target in times if times[target] > 1]
    if twice:
        raise ConfigurationError(f"more than one column for {_list(twice)}")
    for target in times:
        _check_name(_path(target), target)
    if ("event_name", "") not in times and reading.event_name is None:
        msg = "no column for event_name, and no name given for all events"
        raise ConfigurationError(msg)
    if ("email", "") not in times and ("user_id", "") not in times:
        raise ConfigurationError("no column for email or user_id")
    for text in reading.types:
        field, name = _type_target(text) or ("", "")
        fields = (field,) if field else _PROPERTIES
        if not any((field, name) in times for field in fields):
            raise ConfigurationError(f"types: no column for the property {text}")
    readers: dict[str, list[tuple[int, str, _Read | None]]] = {}
    for (field, name), index in found:
        if field in _MAPPINGS:
            kind = types.get((field, name), "string")
            reader = None if kind == "string" else _READERS[kind]
            if field == "mailing_lists":
                reader = _boolean
            readers.setdefault(field, []).append((index, name, reader))
    return _Columns(
        tuple((index, field) for (field, _), index in found if field not in _MAPPINGS),
        tuple((field, tuple(readers[field])) for field in readers),
        tuple(f for f in readers if any(r is _date for _, _, r in readers[f])),
        len(heading),
    )


def _unknown(headings: list[str]) -> str:
    """Say what is wrong with headings that have no meaning, and what would help."""
    shown = []
    for heading in headings:
        meant = _meant(heading)
        hint = f" (did you mean {meant}?)" if meant else ""
        shown.append(f"{heading!r}{hint}" if heading else "an empty one")
    if len(shown) > _LISTED:
        shown[_LISTED:] = [f"{len(shown) - _LISTED} more"]
    example = next((heading for heading in headings if heading), "Heading")
    target = _meant(example) or f"event_properties.{example}"
    return (
        f"unknown headings: {', '.join(shown)}; {_KNOWN}; give others a meaning, "
        f'such as --map "{target}={example}"'
    )


def _meant(heading: str) -> str | None:
    """Return the known heading that an unknown one looks like."""
    twins = {without_spelling(field): field for field in _SPELLED}
    spelling, _, name = heading.partition(".")
    close = difflib.get_close_matches(without_spelling(spelling), twins, 1, 0.75)
    field = twins[close[0]] if close else None
    if field in _MAPPINGS:
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
        values, kept = _converted(field, texts, readers, problems)
        if kept:
            given[field], record[field] = values, kept
    given.setdefault("idempotency_key", _NO_KEY)
    try:
        Event(**given)
    except InvalidEventError as invalid:
        problems.extend(invalid.problems)
    if event_name is None and "event_name" in record and record["event_name"] is None:
        del record["event_name"]
    return Item(file, line, None, _key_of(record), tuple(problems), record)


def _converted(
    field: str,
    given: Mapping[str, Any],
    readers: Mapping[str, Callable[[Any], object]],
    problems: list[str],
) -> tuple[dict[str, object], dict[str, object]]:
    """Read a mapping's values as their types; note what cannot be.

    Returns:
        The values that could be read, and all of them as JSON has them:
        dates, and what could not be read, as they were given.
    """
    values, kept = dict(given), dict(given)
    for name in [name for name in readers if name in given]:
        try:
            values[name] = readers[name](given[name])
        except Refused as refused:
            del values[name]
            problems.extend(f"{field}{item_path(name)}: {why}" for why in refused.args)
        else:
            if not isinstance(values[name], date):
                kept[name] = values[name]
    return values, kept


def _unread(file: str, line: int, raw: bytes, problem: str) -> Item:
    text = raw.decode(errors="backslashreplace").rstrip("\r\n")
    if len(raw) > _csv.MAX_RECORD:
        text = text[:_KEPT] + "…"
    return Item(file, line, None, None, (problem,), text)


def _key_of(record: Mapping[str, Any]) -> str | None:
    key = record.get("idempotency_key")
    return key if isinstance(key, str) else None


# JSON Lines


def _json_items(file: str, lines: Lines, reading: Reading) -> Iterator[Item]:
    shape = _Shape.of(reading)
    pieces = iter(lines)
    empty = True
    for raw in pieces:
        line = lines.number
        if _csv.is_blank(raw):
            continue
        if empty and raw.strip() in (b"[", b"{"):
            msg = f"{file}: not JSON Lines: each record must be on a line of its own"
            raise ConfigurationError(msg)
        empty = False
        if len(raw) > _csv.MAX_RECORD:
            _csv.skip_line(raw, pieces)
            yield _unread(file, line, raw, _csv.TOO_LONG)
            continue
        try:
            value = loads(raw)
        except ValueError as error:
            yield _unread(file, line, raw, _not_json(raw, error, lines))
            continue
        yield _json_item(file, line, raw, value, shape)
    if empty:
        raise ConfigurationError(f"{file}: there is nothing in it")


@attrs.frozen
class _Shape:
    """What is done to a JSON record before it is an event's.

    Attributes:
        event_name: For records without.
        targets: What keys of the top level stand for.
        readers: By field and name.
    """

    event_name: str | None
    targets: tuple[tuple[str, _Target], ...]
    readers: Mapping[str, Mapping[str, Callable[[Any], object]]]

    @classmethod
    def of(cls, reading: Reading) -> "_Shape":
        targets = _targets(reading.mapping)
        readers: dict[str, dict[str, Callable[[Any], object]]] = {}
        for (field, name), kind in _types(reading.types).items():
            readers.setdefault(field, {})[name] = partial(_typed, kind)
        pairs = tuple((column, target) for target, column in targets.items())
        return cls(reading.event_name, pairs, readers)


def _not_json(raw: bytes, error: ValueError, lines: Lines) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as undecodable:
        return _csv.undecodable(lines, lines.number, undecodable)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (character {error.pos + 1})"
    return f"not JSON: {error}"


def _json_item(file: str, line: int, raw: bytes, value: Any, shape: _Shape) -> Item:
    problems: list[str] = []
    if not _is_clear(raw, value):
        try:
            value = _CLOSELY.decode(raw.decode())
        except (ValueError, RecursionError):
            return _unread(file, line, raw, "not JSON: a number or a nesting too large")
        problems.extend(_given_twice(value))
    lossy = bool(problems)
    if type(value) is dict and _REJECT <= value.keys() <= {*_REJECT, "file"}:
        value = value["record"]
        shape = attrs.evolve(shape, targets=())  # its names are ours already
    if not isinstance(value, dict):
        problems.append(f"record: must be an object, not {_values.kind_of(value)}")
        return Item(file, line, None, None, tuple(problems), value)
    record = _spelled(value, shape, problems)
    given = dict(record)
    for field, readers in shape.readers.items():
        if isinstance(record.get(field), dict):
            given[field], record[field] = _converted(
                field, record[field], readers, problems
            )
    key = _key_of(record)
    if given.get("idempotency_key") is None:
        given["idempotency_key"] = _NO_KEY
    event = None
    try:
        event = event_from_record(given)
    except InvalidEventError as invalid:
        problems.extend(invalid.problems)
    if problems:
        event = None
    kept: object = raw.decode().strip() if lossy else record
    return Item(file, line, event, key, tuple(problems), kept)


_REJECT: Final = frozenset(("line", "error", "record"))


def _spelled(
    value: Mapping[str, Any], shape: _Shape, problems: list[str]
) -> dict[str, Any]:
    """Return the record in our spelling, renamed, with the event's name."""
    record = dict(value)
    for column, _ in shape.targets:
        record.pop(column, None)
    for spelling, field in _FIELDS.items():
        if spelling != field and spelling in record and field not in record:
            record[field] = record.pop(spelling)
    for column, target in shape.targets:
        if column not in value:
            continue
        field, name = target
        inner = record.get(field)
        if not name and inner is None:
            record[field] = value[column]
        elif name and inner is None:
            record[field] = {name: value[column]}
        elif name and isinstance(inner, dict) and name not in inner:
            record[field] = {**inner, name: value[column]}
        else:
            problems.append(f"{_path(target)}: given twice, also as {column}")
            record[column] = value[column]
    if record.get("event_name") is None and shape.event_name is not None:
        record["event_name"] = shape.event_name
    return record


def _is_clear(raw: bytes, value: Any) -> bool:
    """Tell whether the value surely is all that the text says.

    It is not if a key is in an object twice or if orjson made a float of a
    large integer. Each key has a colon; others are in strings.
    """
    if type(value) is not dict:
        return True
    keys = len(value)
    for inner in value.values():
        if type(inner) is dict:
            keys += len(inner)
            for item in inner.values():
                if type(item) is float and abs(item) > _values.MAX_INT:
                    return False
    return raw.count(b":") == keys


class _Twice(dict[str, Any]):
    """A JSON object in which keys were given twice."""

    keys_again: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    again = _Twice(plain)
    times = Counter(name for name, _ in pairs)
    again.keys_again = tuple(name for name in times if times[name] > 1)
    return again


_CLOSELY: Final = json.JSONDecoder(object_pairs_hook=_object)


def _given_twice(value: object, path: str = "") -> Iterator[str]:
    if isinstance(value, _Twice):
        for name in value.keys_again:
            yield f"{(path + item_path(name)).removeprefix('.')}: given twice"
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _given_twice(inner, path + item_path(name))
