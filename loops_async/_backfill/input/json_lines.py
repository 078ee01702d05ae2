"""The events of a file of JSON Lines."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final

import attrs

from loops_async._events import rules
from loops_async._events.codec import event_from_record
from loops_async._events.rules import item_path
from loops_async._json import loads
from loops_async.errors import ConfigurationError, InvalidEventError

from . import text_lines
from .options import (
    DEEP,
    FIELDS,
    NO_KEY,
    InputOptions,
    Target,
    loses_digits,
    path_of,
    read_targets,
    read_typed,
    read_types,
)
from .row import Item, converted, key_of, unread
from .text_lines import Lines


def json_items(file: str, lines: Lines, reading: InputOptions) -> Iterator[Item]:
    shape = _Shape.of(reading)
    pieces = iter(lines)
    empty = True
    for raw in pieces:
        line = lines.number
        if text_lines.is_blank(raw):
            continue
        if empty and raw.strip() in (b"[", b"{"):
            msg = f"{file}: not JSON Lines: each record must be on a line of its own"
            raise ConfigurationError(msg)
        empty = False
        if len(raw) > text_lines.MAX_RECORD:
            text_lines.skip_line(raw, pieces)
            yield unread(file, line, raw, text_lines.TOO_LONG)
            continue
        try:
            value = loads(raw)
        except ValueError as error:
            yield unread(file, line, raw, _not_json(raw, error, lines))
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
        ignore: Keys of the top level that are left out.
        readers: By field and name.
    """

    event_name: str | None
    targets: tuple[tuple[str, Target], ...]
    ignore: tuple[str, ...]
    readers: Mapping[str, Mapping[str, Callable[[Any], object]]]

    @classmethod
    def of(cls, reading: InputOptions) -> "_Shape":
        targets = read_targets(reading.mapping)
        readers: dict[str, dict[str, Callable[[Any], object]]] = {}
        for (field, name), kind in read_types(reading.types).items():
            readers.setdefault(field, {})[name] = partial(read_typed, kind)
        pairs = tuple((column, target) for target, column in targets.items())
        return cls(reading.event_name, pairs, tuple(reading.ignore), readers)


def _not_json(raw: bytes, error: ValueError, lines: Lines) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as undecodable:
        return text_lines.undecodable(lines, lines.number, undecodable)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (character {error.pos + 1})"
    return f"not JSON: {error}"


def _json_item(file: str, line: int, raw: bytes, value: Any, shape: _Shape) -> Item:
    problems: list[str] = []
    if _is_deep(raw, value):
        return unread(file, line, raw, f"nested more than {DEEP} deep")
    reject = type(value) is dict and _REJECT <= value.keys() <= {*_REJECT, "file"}
    if reject:
        # Its names are ours already.
        shape = attrs.evolve(shape, targets=(), ignore=())
    if not _is_clear(raw, value):
        value = _CLOSELY.decode(raw.decode())
        problems.extend(_given_twice(value, ignore=shape.ignore))
    lossy = bool(problems)
    if reject:
        value = value["record"]
    if not isinstance(value, dict):
        problems.append(f"record: must be an object, not {rules.kind_of(value)}")
        return Item(file, line, None, None, tuple(problems), value)
    record = _spelled(value, shape, problems)
    given = dict(record)
    for field, readers in shape.readers.items():
        if isinstance(record.get(field), dict):
            given[field], record[field] = converted(
                field, record[field], readers, problems
            )
    key = key_of(record)
    if given.get("idempotency_key") is None:
        given["idempotency_key"] = NO_KEY
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
    for column in shape.ignore:
        record.pop(column, None)
    for spelling, field in FIELDS.items():
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
            problems.append(f"{path_of(target)}: given twice, also as {column}")
            record[column] = value[column]
    if record.get("event_name") is None and shape.event_name is not None:
        record["event_name"] = shape.event_name
    return record


def _is_deep(raw: bytes, value: Any) -> bool:
    """Tell whether functions that call themselves must leave the value alone."""
    if raw.count(b"{") + raw.count(b"[") <= DEEP:
        return False
    level = [value]
    for _ in range(DEEP):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _is_clear(raw: bytes, value: Any) -> bool:
    """Tell whether the value surely is all that the text says.

    It is not if a key is in an object twice or if a number so large that it
    may lose digits was made a float. Each key has a colon; others are in strings.
    """
    if type(value) is not dict:
        return True
    keys = len(value)
    for inner in value.values():
        if type(inner) is dict:
            keys += len(inner)
            for item in inner.values():
                if type(item) is float and abs(item) >= rules.MAX_INT:
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


def _float(text: str) -> int | float:
    """Read a float; of a large one that loses digits, the integer is refused."""
    number = float(text)
    if abs(number) >= rules.MAX_INT and loses_digits(text, number):
        return int(Decimal(text))
    return number


_CLOSELY: Final = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float)


def _given_twice(
    value: object, path: str = "", ignore: tuple[str, ...] = ()
) -> Iterator[str]:
    if isinstance(value, _Twice):
        for name in value.keys_again:
            if name not in ignore:
                yield f"{(path + item_path(name)).removeprefix('.')}: given twice"
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ignore:
                yield from _given_twice(inner, path + item_path(name))
