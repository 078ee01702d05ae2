"""``name=value`` and ``name:=json`` on the command line."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Never, TypeAlias, TypeVar

import click

_V = TypeVar("_V")

Scalar: TypeAlias = str | int | float | bool | None


def scalars(
    _: click.Context, option: click.Parameter, texts: Sequence[str]
) -> dict[str, Scalar]:
    """Read values: ``plan=Pro`` is a text, ``amount:=42`` is JSON.

    Raises:
        click.BadParameter: naming the option and the text.
    """
    return _mapping(texts, option, "name=value or name:=JSON", _scalar)


def memberships(
    _: click.Context, option: click.Parameter, texts: Sequence[str]
) -> dict[str, bool]:
    """Read mailing lists: ``ID=true`` subscribes, ``ID=false`` unsubscribes.

    Raises:
        click.BadParameter: naming the option and the text.
    """
    return _mapping(texts, option, "ID=true or ID=false", _membership)


def probabilities(
    _: click.Context, option: click.Parameter, texts: Sequence[str]
) -> dict[str, float]:
    """Read faults: ``close-after=0.1``.

    Raises:
        click.BadParameter: naming the option and the text.
    """
    return _mapping(texts, option, "FAULT=PROBABILITY", _probability)


def _mapping(
    texts: Sequence[str],
    option: click.Parameter,
    form: str,
    read: Callable[[str, bool], _V],
) -> dict[str, _V]:
    values: dict[str, _V] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        as_json = name.endswith(":")
        name = name.removesuffix(":")
        if not equals or not name:
            raise click.BadParameter(f"{_brief(text)} is not {form}", param=option)
        if name in values:
            raise click.BadParameter(f"{_brief(name)} is given twice", param=option)
        try:
            values[name] = read(value, as_json)
        except ValueError as wrong:
            raise click.BadParameter(f"{_brief(text)}: {wrong}", param=option) from None
    return values


def _scalar(text: str, as_json: bool) -> Scalar:
    if not as_json:
        return text
    try:
        value: Any = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        msg = f"{_brief(text)} is not JSON; a text is written with = alone"
        raise ValueError(msg) from None
    if isinstance(value, dict | list):
        msg = "only a string, a number, true, false or null can be sent"
        raise ValueError(msg)
    return value  # type: ignore[no-any-return]


def _refuse(constant: str) -> Never:
    raise ValueError(constant)


def _membership(text: str, _: bool) -> bool:
    if text not in _MEMBERSHIPS:
        msg = f"a list is true (subscribe) or false, not {_brief(text)}"
        raise ValueError(msg)
    return _MEMBERSHIPS[text]


_MEMBERSHIPS: Final = {"true": True, "false": False}


def _probability(text: str, _: bool) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"{_brief(text)} is not a number"
        raise ValueError(msg) from None


def _brief(text: str) -> str:
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


_LONGEST: Final = 60
