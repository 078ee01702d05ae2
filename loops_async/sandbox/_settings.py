"""Validation and conversion of the settings; each check raises ValueError."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ._faults import check_fault
from ._team import PROPERTY_TYPES

if TYPE_CHECKING:
    Attribute = attrs.Attribute[Any]
Range = tuple[float, float]
_V = TypeVar("_V")


def as_range(value: Any) -> Any:
    """Return a number of seconds, or a (low, high) pair of seconds, as a pair."""
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def check_range(_: object, attribute: "Attribute", value: Any) -> None:
    """Require two numbers of seconds, low and high."""
    valid = len(value) == 2 and all(_is_seconds(bound) for bound in value)
    if not valid or value[0] > value[1]:
        raise ValueError(
            f"{attribute.name} must be seconds or a (low, high) pair, not {value!r}"
        )


def check_period(_: object, attribute: "Attribute", value: Any) -> None:
    """Require a finite number above zero."""
    if not _is_seconds(value) or value == 0:
        raise ValueError(f"{attribute.name} must be above zero, not {value!r}")


def check_count(_: object, attribute: "Attribute", value: Any) -> None:
    """Require None, or an int of at least 1."""
    if value is not None and (
        not isinstance(value, int) or isinstance(value, bool) or value < 1
    ):
        raise ValueError(
            f"{attribute.name} must be a whole number above zero or None, not {value!r}"
        )


def check_api_key(_: object, attribute: "Attribute", value: Any) -> None:
    """Require a string that an Authorization header can carry unchanged."""
    valid = isinstance(value, str) and value and value.isascii() and value.isprintable()
    if not valid or value != value.strip():
        raise ValueError(
            f"{attribute.name} must be printable ASCII without surrounding spaces, "
            f"not {value!r}"
        )


def check_host(_: object, attribute: "Attribute", value: Any) -> None:
    """Require a host name or address; an empty string would mean every interface."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{attribute.name} must be a name or address, not {value!r}")


def check_port(_: object, attribute: "Attribute", value: Any) -> None:
    """Require an int from 0 to 65535."""
    if not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"{attribute.name} must be 0 to 65535, not {value!r}")


def check_probabilities(_: object, attribute: "Attribute", value: Any) -> None:
    """Require fault names with probabilities that add up to at most 1."""
    for name, probability in value.items():
        check_fault(attribute.name, name)
        if not _is_seconds(probability):
            raise ValueError(
                f"{attribute.name}: the probability of {name} must be a number from "
                f"0 to 1, not {probability!r}"
            )
    # The tolerance admits ten times 0.1, whose sum as floats may exceed 1.
    if sum(value.values()) > 1 + 1e-9:
        raise ValueError(f"{attribute.name} must add up to at most 1, not {value!r}")


def probabilities(value: Mapping[str, float]) -> dict[str, float]:
    """Return a copy, so that later changes of the argument have no effect."""
    return _copied("faults", value)


def property_types(value: Mapping[str, str]) -> dict[str, str]:
    """Return a copy, so that later changes of the argument have no effect."""
    return _copied("properties", value)


def _copied(setting: str, value: Mapping[str, _V]) -> dict[str, _V]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{setting} must be a mapping, not {value!r}")
    return dict(value)


def named_lists(value: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Return mailing list ID to name; an ID without a name is its own name."""
    return dict(value) if isinstance(value, Mapping) else {item: item for item in value}


def check_property_types(_: object, attribute: "Attribute", value: Any) -> None:
    """Require one of the four types for each property."""
    for name, property_type in value.items():
        if property_type not in PROPERTY_TYPES:
            raise ValueError(
                f"{attribute.name}: {name} must be one of {PROPERTY_TYPES}, "
                f"not {property_type!r}"
            )


def _is_seconds(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
