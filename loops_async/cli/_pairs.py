"""``NAME=VALUE`` and ``NAME:=JSON`` on the command line.

A pair is split at its first ``=``. A colon directly before it announces JSON in the
options that take values of several types; in all others it belongs to the name.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Never, TypeAlias, TypeVar

import click

_V = TypeVar("_V")

Scalar: TypeAlias = str | int | float | bool | None


def scalars(
    _: click.Context, option: click.Parameter, pairs: Sequence[str]
) -> dict[str, Scalar]:
    """Read properties: ``plan=Pro`` is a string, ``amount:=42`` is JSON.

    Raises:
        click.BadParameter: If a pair is malformed.
    """
    form = "NAME=VALUE or NAME:=JSON"
    return _parse(pairs, option, form, str, parse_json=_json_scalar)


def memberships(
    _: click.Context, option: click.Parameter, pairs: Sequence[str]
) -> dict[str, bool]:
    """Read mailing lists: ``ID=true`` subscribes, ``ID=false`` unsubscribes.

    Raises:
        click.BadParameter: If a pair is malformed.
    """
    form = "ID=true or ID=false"
    return _parse(pairs, option, form, _membership, parse_json=_membership)


def probabilities(
    _: click.Context, option: click.Parameter, pairs: Sequence[str]
) -> dict[str, float]:
    """Read faults: ``close-after=0.1``.

    Raises:
        click.BadParameter: If a pair is malformed.
    """
    return _parse(pairs, option, "FAULT=PROBABILITY", _probability)


def texts(
    _: click.Context, option: click.Parameter, pairs: Sequence[str]
) -> dict[str, str]:
    """Read names, each with a text that is not empty: ``email=E-Mail: private``.

    Raises:
        click.BadParameter: If a pair is malformed.
    """
    return _parse(pairs, option, option.metavar or "NAME=VALUE", _text)


def _parse(
    pairs: Sequence[str],
    option: click.Parameter,
    form: str,
    parse: Callable[[str], _V],
    *,
    parse_json: Callable[[str], _V] | None = None,
) -> dict[str, _V]:
    values: dict[str, _V] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        parse_value = parse
        if parse_json is not None and name.endswith(":"):
            name, parse_value = name.removesuffix(":"), parse_json
        if not equals or not name:
            raise click.BadParameter(f"{_brief(pair)} is not {form}", param=option)
        if name in values:
            msg = f"{_brief(name)} is given more than once"
            raise click.BadParameter(msg, param=option)
        try:
            values[name] = parse_value(text)
        except ValueError as error:
            raise click.BadParameter(f"{_brief(pair)}: {error}", param=option) from None
    return values


def _json_scalar(text: str) -> Scalar:
    try:
        value: Any = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        msg = f"{_brief(text)} is not JSON; write a string with = instead of :="
        raise ValueError(msg) from None
    if isinstance(value, dict | list):
        msg = "a value must be a string, a number, true, false or null"
        raise ValueError(msg)
    return value  # type: ignore[no-any-return]


def _refuse(constant: str) -> Never:
    raise ValueError(constant)


def _membership(text: str) -> bool:
    if text not in _MEMBERSHIPS:
        msg = f"must be true (subscribe) or false (unsubscribe), not {_brief(text)}"
        raise ValueError(msg)
    return _MEMBERSHIPS[text]


_MEMBERSHIPS: Final = {"true": True, "false": False}


def _probability(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"{_brief(text)} is not a number"
        raise ValueError(msg) from None


def _text(text: str) -> str:
    if not text:
        raise ValueError("the value is empty")
    return text


def _brief(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


_MAX_SHOWN: Final = 60
