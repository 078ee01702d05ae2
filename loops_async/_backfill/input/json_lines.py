"""The rows of a file of JSON Lines."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final, Never

import attrs

from loops_async._events import rules
from loops_async._events.codec import event_from_record
from loops_async._events.rules import item_path
from loops_async._json import strict_dumps
from loops_async.errors import ConfigurationError, InvalidEventError

from .options import (
    FIELDS,
    NO_KEY,
    InputOptions,
    Target,
    convert_json,
    loses_digits,
    parse_mapping,
    parse_types,
    path_of,
)
from .row import InputRow, convert_items, key_of, unparsed
from .text_lines import Lines, is_blank

_MAX_DEPTH: Final = 50  # levels; an event has two
_REJECT: Final = frozenset(("line", "error", "record"))


def json_rows(file: str, lines: Lines, options: InputOptions) -> Iterator[InputRow]:
    """Yield the rows of a file of JSON Lines.

    Raises:
        ConfigurationError: If the file is empty or is one JSON document.
    """
    conversion = _Conversion.of(options)
    pieces = iter(lines)
    empty = True
    for raw in pieces:
        line = lines.number
        if is_blank(raw):
            continue
        if empty and raw.strip() in (b"[", b"{"):
            msg = f"{file}: not JSON Lines: each record must be on a line of its own"
            raise ConfigurationError(msg)
        empty = False
        if len(raw) > lines.max_record:
            piece = raw
            while lines.is_partial(piece):
                piece = next(pieces, b"")
            yield unparsed(file, line, raw, lines.too_long(), cut=True)
            continue
        try:
            value = _loads(raw)
        except UnicodeDecodeError as error:
            yield unparsed(file, line, raw, lines.undecodable(line, error))
        except json.JSONDecodeError as error:
            problem = f"not JSON: {error.msg} (character {error.pos + 1})"
            yield unparsed(file, line, raw, problem)
        except ValueError as error:
            yield unparsed(file, line, raw, f"not JSON: {error}")
        else:
            if _is_deep(raw, value):
                problem = f"nested more than {_MAX_DEPTH} deep"
                yield unparsed(file, line, raw, problem)
            else:
                yield _json_row(file, line, raw, value, conversion)
    if empty:
        raise ConfigurationError(f"{file}: the file is empty")


class _RepeatedKeys(dict[str, Any]):
    """A JSON object that contains a key more than once."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    value = _RepeatedKeys(plain)
    counts = Counter(name for name, _ in pairs)
    value.repeated = tuple(name for name in counts if counts[name] > 1)
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # thousands of digits
        raise _out_of_range(text) from None


def _float(text: str) -> int | float:
    """Return a float, or an integer beyond 2**53, which Event refuses.

    The integer stands for a number that loses digits as a float.
    """
    number = float(text)
    if math.isinf(number):
        raise _out_of_range(text)
    if abs(number) >= rules.MAX_INT and loses_digits(text, number):
        return int(Decimal(text))
    return number


def _out_of_range(text: str) -> ValueError:
    return ValueError(f"{text[:20]} is out of range")


def _refuse_constant(name: str) -> Never:
    msg = f"{name} is not allowed"
    raise ValueError(msg)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_float,
    parse_int=_integer,
    parse_constant=_refuse_constant,
)


def _loads(raw: bytes) -> Any:
    """Parse a line; raise a ValueError if it is not JSON."""
    try:
        value = _DECODER.decode(raw.decode())
        if b"\\u" in raw:
            strict_dumps(value)
    except RecursionError:
        msg = "nested too deeply"
        raise ValueError(msg) from None
    except UnicodeEncodeError:
        msg = "an escaped surrogate (\\ud800 to \\udfff) without its pair"
        raise ValueError(msg) from None
    return value


def _is_deep(raw: bytes, value: Any) -> bool:
    """Return whether the value is nested too deeply for recursive functions."""
    if raw.count(b"{") + raw.count(b"[") <= _MAX_DEPTH:
        return False
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


@attrs.frozen
class _Conversion:
    """The conversion of a JSON record to the record of an event.

    Attributes:
        event_name: The event name of the records that have none.
        targets: The top-level keys of the mapping, each with its target.
        ignore: The top-level keys to leave out.
        parsers: The parsers by field and name.
    """

    event_name: str | None
    targets: tuple[tuple[str, Target], ...]
    ignore: tuple[str, ...]
    parsers: Mapping[str, Mapping[str, Callable[[Any], object]]]

    @classmethod
    def of(cls, options: InputOptions) -> "_Conversion":
        mapping = parse_mapping(options.mapping)
        parsers: dict[str, dict[str, Callable[[Any], object]]] = {}
        for (field, name), type_name in parse_types(options.types).items():
            parsers.setdefault(field, {})[name] = partial(convert_json, type_name)
        targets = tuple((key, target) for target, key in mapping.items())
        return cls(options.event_name, targets, tuple(options.ignore), parsers)


def _json_row(
    file: str, line: int, raw: bytes, value: Any, conversion: _Conversion
) -> InputRow:
    is_reject = isinstance(value, dict) and _REJECT <= value.keys() <= {
        *_REJECT,
        "file",
    }
    if is_reject:
        # The record of a reject has been mapped already.
        conversion = attrs.evolve(conversion, targets=(), ignore=())
    problems = list(_repeated_keys(value, ignore=conversion.ignore))
    has_lost_items = bool(problems)
    if is_reject:
        value = value["record"]
    if not isinstance(value, dict):
        problems.append(f"record: must be an object, not {rules.kind_of(value)}")
        return InputRow(file, line, None, None, tuple(problems), value)
    record = _mapped(value, conversion, problems)
    arguments = dict(record)
    for field, parsers in conversion.parsers.items():
        if isinstance(record.get(field), dict):
            arguments[field], record[field] = convert_items(
                field, record[field], parsers, problems
            )
    key = key_of(record)
    if arguments.get("idempotency_key") is None:
        arguments["idempotency_key"] = NO_KEY
    event = None
    try:
        event = event_from_record(arguments)
    except InvalidEventError as invalid:
        problems.extend(invalid.problems)
    if problems:
        event = None
    kept: object = raw.decode().strip() if has_lost_items else record
    return InputRow(file, line, event, key, tuple(problems), kept)


def _repeated_keys(
    value: object, path: str = "", ignore: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield a problem for each key that an object contains more than once."""
    if isinstance(value, _RepeatedKeys):
        for name in value.repeated:
            if name not in ignore:
                yield f"{(path + item_path(name)).removeprefix('.')}: given twice"
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, dict) and name not in ignore:
                yield from _repeated_keys(inner, path + item_path(name))


def _mapped(
    value: Mapping[str, Any], conversion: _Conversion, problems: list[str]
) -> dict[str, Any]:
    """Return the record with the fields of an event, in snake_case."""
    record = dict(value)
    for key, _ in conversion.targets:
        record.pop(key, None)
    for key in conversion.ignore:
        record.pop(key, None)
    for spelling, field in FIELDS.items():
        if spelling != field and spelling in record and field not in record:
            record[field] = record.pop(spelling)
    for key, target in conversion.targets:
        if key not in value:
            continue
        field, name = target
        items = record.get(field)
        if not name and items is None:
            record[field] = value[key]
        elif name and items is None:
            record[field] = {name: value[key]}
        elif name and isinstance(items, dict) and name not in items:
            record[field] = {**items, name: value[key]}
        else:
            problems.append(f"{path_of(target)}: given twice, also as {key}")
            record[key] = value[key]
    if record.get("event_name") is None and conversion.event_name is not None:
        record["event_name"] = conversion.event_name
    return record
