"""What a sandbox remembers, as frozen values."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs


@attrs.frozen(kw_only=True)
class SandboxEvent:
    """One event the sandbox has accepted, as the request spelled it.

    Attributes:
        name: The ``eventName``.
        email: The e-mail sent, or None.
        user_id: The ``userId`` sent, or None.
        event_properties: The ``eventProperties``, names trimmed of blanks.
        contact_properties: The other keys at the root of the body.
        mailing_lists: The ``mailingLists``: list id to true or false.
        idempotency_key: The ``Idempotency-Key`` header, or None.
        at: Sandbox time of the acceptance, in seconds.
        contact_id: The contact it created or updated.
    """

    name: str
    email: str | None
    user_id: str | None
    event_properties: Mapping[str, Any]
    contact_properties: Mapping[str, Any]
    mailing_lists: Mapping[str, bool]
    idempotency_key: str | None
    at: float
    contact_id: str


@attrs.frozen(kw_only=True)
class SandboxContact:
    """A contact as it stood when it was asked for.

    Attributes:
        id: Made up by the sandbox.
        email: None only if the contact was created from a ``userId`` alone.
        user_id: None if never given.
        properties: ``firstName``, ``lastName``, ``source``, ``subscribed``,
            ``userGroup`` and the custom ones. None is a property reset by null.
        mailing_lists: The lists it is on, each with True.
    """

    id: str
    email: str | None
    user_id: str | None
    properties: Mapping[str, Any]
    mailing_lists: Mapping[str, Literal[True]]


@attrs.frozen(kw_only=True)
class SandboxRequest:
    """One request below ``/api`` and what became of it.

    Attributes:
        method: In capitals, as received.
        path: With the query, as received.
        headers: As received; look-up ignores case.
        body: The bytes received.
        status: The status sent, None if there was no answer to speak of.
        fault: The fault injected (a name of ``FAULTS``, or "down"), or None.
        at: Sandbox time at which its fate was settled, in seconds.
    """

    method: str
    path: str
    headers: Mapping[str, str] = attrs.field(repr=False, eq=False)
    body: bytes
    status: int | None
    fault: str | None
    at: float


@attrs.frozen(kw_only=True)
class Counts:
    """Totals since the start or the last reset.

    Attributes:
        requests: Requests below ``/api``.
        by_status: How often each status was sent.
        unanswered: Requests that got no answer.
        limited: 429s, injected ones included.
        faults: How often each fault was injected.
        accepted: Events accepted.
        duplicates: Events refused because their idempotency key was in use.
    """

    requests: int
    by_status: Mapping[int, int]
    unanswered: int
    limited: int
    faults: Mapping[str, int]
    accepted: int
    duplicates: int
