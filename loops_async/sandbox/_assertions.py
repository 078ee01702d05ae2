"""Assertions about what arrived, with messages that show it."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from ._records import SandboxEvent


class Anything(enum.Enum):
    """Stands for "not asked about", where None asks for an absent value."""

    ANYTHING = enum.auto()


ANYTHING: Final = Anything.ANYTHING
_MAPS = ("event_properties", "contact_properties", "mailing_lists")
_SHOWN = 20


def matching(
    events: Sequence[SandboxEvent], wanted: Mapping[str, Any]
) -> list[SandboxEvent]:
    """The events with these attributes; maps need only hold what is wanted."""
    return [event for event in events if _matches(event, wanted)]


def describe(
    events: Sequence[SandboxEvent], wanted: Mapping[str, Any], expected: str
) -> str:
    """What was expected, how many matched, and everything that did arrive."""
    asked = ", ".join(
        f"{name}={value!r}" for name, value in wanted.items() if value is not ANYTHING
    )
    found = len(matching(events, wanted))
    lines = [f"expected {expected} with {asked}; {found} arrived"]
    if not events:
        hint = "is an await missing, or an outbox still sending?"
        lines.append(f"no event arrived at all: {hint}")
    else:
        lines.append(f"{len(events)} arrived in all:")
    lines.extend(f"  {_line(event)}" for event in events[-_SHOWN:])
    if len(events) > _SHOWN:
        lines.insert(2, f"  ... {len(events) - _SHOWN} earlier ones")
    return "\n".join(lines)


def _matches(event: SandboxEvent, wanted: Mapping[str, Any]) -> bool:
    for name, value in wanted.items():
        if value is ANYTHING:
            continue
        got = getattr(event, name)
        if name in _MAPS and value is not None:
            if not all(key in got and _same(got[key], value[key]) for key in value):
                return False
        elif got != value:
            return False
    return True


def _same(got: object, wanted: object) -> bool:
    # On the wire true is not 1.
    return got == wanted and isinstance(got, bool) == isinstance(wanted, bool)


def _line(event: SandboxEvent) -> str:
    shown = attrs.asdict(event, recurse=False)
    parts = [
        f"{name}={value!r}"
        for name, value in shown.items()
        if name not in ("name", "at", "contact_id") and value not in (None, {})
    ]
    return f"{event.name!r} {' '.join(parts)}"
