"""Matching of accepted events, and the messages of failed assertions."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from ._records import SandboxEvent


class Anything(enum.Enum):
    """The type of a wildcard; None, in contrast, matches an absent value only."""

    ANYTHING = enum.auto()


ANYTHING: Final = Anything.ANYTHING
_MAPS = ("event_properties", "contact_properties", "mailing_lists")
_SHOWN = 20


def matching(
    events: Sequence[SandboxEvent], wanted: Mapping[str, Any]
) -> list[SandboxEvent]:
    """Return the events with these attributes; mappings match as subsets."""
    return [event for event in events if _matches(event, wanted)]


def describe(
    events: Sequence[SandboxEvent], wanted: Mapping[str, Any], expected: str
) -> str:
    """Return a message with the expectation and the accepted events."""
    conditions = ", ".join(
        f"{name}={value!r}" for name, value in wanted.items() if value is not ANYTHING
    )
    found = len(matching(events, wanted))
    lines = [f"expected {expected} with {conditions}; found {found}"]
    if not events:
        hint = "is an await missing, or is an outbox still sending?"
        lines.append(f"the sandbox accepted no event at all: {hint}")
    else:
        noun = "event" if len(events) == 1 else "events"
        lines.append(f"the sandbox accepted {len(events)} {noun}:")
    lines.extend(f"  {_line(event)}" for event in events[-_SHOWN:])
    if len(events) > _SHOWN:
        lines.insert(2, f"  ... {len(events) - _SHOWN} earlier events")
    return "\n".join(lines)


def _matches(event: SandboxEvent, wanted: Mapping[str, Any]) -> bool:
    for name, value in wanted.items():
        if value is ANYTHING:
            continue
        actual = getattr(event, name)
        if name in _MAPS and value is not None:
            if not all(
                key in actual and _same(actual[key], value[key]) for key in value
            ):
                return False
        elif actual != value:
            return False
    return True


def _same(actual: object, wanted: object) -> bool:
    # In JSON, unlike in Python, true does not equal 1.
    return actual == wanted and isinstance(actual, bool) == isinstance(wanted, bool)


def _line(event: SandboxEvent) -> str:
    shown = attrs.asdict(event, recurse=False)
    parts = [
        f"{name}={value!r}"
        for name, value in shown.items()
        if name not in ("name", "at", "contact_id") and value not in (None, {})
    ]
    return f"{event.name!r} {' '.join(parts)}"
