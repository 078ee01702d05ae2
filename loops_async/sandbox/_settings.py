"""Checks and conversions of the sandbox's settings; all raise ValueError."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ._faults import check_fault
from ._team import PROPERTY_KINDS

if TYPE_CHECKING:
    Attribute = attrs.Attribute[Any]
Leg = tuple[float, float]
_V = TypeVar("_V")


def leg(value: Any) -> Any:
    """A number of seconds, or a (low, high) pair of them, as a pair."""
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def check_leg(_: object, attribute: "Attribute", value: Any) -> None:
    """Low and high are seconds, in this order."""
    good = len(value) == 2 and all(_is_seconds(bound) for bound in value)
    if not good or value[0] > value[1]:
        raise ValueError(
            f"{attribute.name} must be seconds or a (low, high) pair, not {value!r}"
        )


def check_period(_: object, attribute: "Attribute", value: Any) -> None:
    """A finite number above zero."""
    if not _is_seconds(value) or value == 0:
        raise ValueError(f"{attribute.name} must be above zero, not {value!r}")


def check_count(_: object, attribute: "Attribute", value: Any) -> None:
    """None, or an int of at least 1."""
    if value is not None and (
        not isinstance(value, int) or isinstance(value, bool) or value < 1
    ):
        raise ValueError(
            f"{attribute.name} must be a whole number above zero or None, not {value!r}"
        )


def check_key(_: object, attribute: "Attribute", value: Any) -> None:
    """Something that survives the trip in an Authorization header."""
    good = isinstance(value, str) and value and value.isascii() and value.isprintable()
    if not good or value != value.strip():
        raise ValueError(
            f"{attribute.name} must be printable ASCII without blanks around it, "
            f"not {value!r}"
        )


def check_host(_: object, attribute: "Attribute", value: Any) -> None:
    """A name or address; empty would be every interface."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{attribute.name} must be a name or address, not {value!r}")


def check_port(_: object, attribute: "Attribute", value: Any) -> None:
    """0 to 65535."""
    if not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"{attribute.name} must be 0 to 65535, not {value!r}")


def check_probabilities(_: object, attribute: "Attribute", value: Any) -> None:
    """Fault name to probability; together at most 1."""
    for name, probability in value.items():
        check_fault(attribute.name, name)
        if not _is_seconds(probability):
            raise ValueError(
                f"{attribute.name}: {name} needs a probability, not {probability!r}"
            )
    # The sum of ten times 0.1 must pass.
    if sum(value.values()) > 1 + 1e-9:
        raise ValueError(f"{attribute.name} must add up to at most 1, not {value!r}")


def probabilities(value: Mapping[str, float]) -> dict[str, float]:
    """A copy, so that later changes of the argument have no effect."""
    return _copied("faults", value)


def kinds(value: Mapping[str, str]) -> dict[str, str]:
    """A copy, so that later changes of the argument have no effect."""
    return _copied("properties", value)


def _copied(setting: str, value: Mapping[str, _V]) -> dict[str, _V]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{setting} must be a mapping, not {value!r}")
    return dict(value)


def named_lists(value: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Mailing list id to name; ids alone are their own names."""
    return dict(value) if isinstance(value, Mapping) else {item: item for item in value}


def check_kinds(_: object, attribute: "Attribute", value: Any) -> None:
    """Property name to one of the four types."""
    for name, kind in value.items():
        if kind not in PROPERTY_KINDS:
            raise ValueError(
                f"{attribute.name}: {name} must be one of {PROPERTY_KINDS}, "
                f"not {kind!r}"
            )


def _is_seconds(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
