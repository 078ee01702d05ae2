"""What nobody outside Loops knows about its API, as switches."""

from typing import Any, Literal

import attrs


def _choice(*values: str | bool) -> Any:
    return attrs.field(default=values[0], validator=attrs.validators.in_(values))


def _statuses(*default: int) -> Any:
    return attrs.field(
        default=frozenset(default), converter=frozenset, validator=_check_statuses
    )


def _check_statuses(
    _: object, attribute: "attrs.Attribute[frozenset[int]]", value: frozenset[int]
) -> None:
    for status in value:
        if not isinstance(status, int) or not 100 <= status <= 599:
            raise ValueError(
                f"{attribute.name} must hold HTTP statuses, not {status!r}"
            )


@attrs.frozen(kw_only=True)
class Behaviour:
    """The undocumented sides of the API; every default is the likeliest guess.

    No official page settles any of these, so a client worth trusting works under
    each value. Bad values raise ValueError. The numbers are the sections of the notes
    on the API in which the evidence is weighed.

    Attributes:
        uncounted: (8.2) Statuses whose requests use up no rate limit. The default
            says that a refused key costs nothing and a 429 does cost, so a client
            which hammers a sliding window stays locked out. An unknown route is never
            counted: it is answered before the key is looked at.
        retry_after: (8.3) Whether a 429 carries ``Retry-After``, and in which of its
            two forms. Loops documents none.
        limited_body: (8.4) What a 429 carries: the usual JSON, plain text or nothing.
        conflict_text: (8.5) The wording of the 409 for a used idempotency key: that
            of API version 1.22.6 ("already been processed") or of 1.21.6 ("a
            different request body"). The status is 409 either way, for any body.
        burned_by: (8.6) Answers after which an idempotency key counts as used.
        concurrent_duplicates: (8.6) What a key meets whose first request is still
            being processed: a 409, or acceptance a second time.
        long_keys: (8.7) What an idempotency key of more than 100 characters meets.
        unknown_properties: (8.8) What becomes of a contact property the team has not
            created. ``store`` keeps it so that it can be seen, and adds it to the
            team's properties; Loops itself most likely ignores it (``ignore``), and
            once refused it (``refuse``).
        update_creates_by_user_id: (8.9) Whether ``contacts/update`` with an unknown
            ``userId`` alone creates a contact without an e-mail. Events never do.
        fold_email: (8.10) Whether ``Ada@example.com`` and ``ada@example.com`` are one
            contact. User ids are compared exactly.
        two_contacts: (8.10) What happens if ``email`` and ``userId`` belong to
            different contacts: a 400, or the one named here is updated and both keep
            their ids.
        length: (8.11) How the 500-character rule counts a string: its JSON form with
            escapes, its code points, or its UTF-16 units; quotes count in each.
        nested_values: (8.12) What an array or object meets where a scalar is
            documented.
        unknown_lists: (8.13) What a mailing list id of no known list meets.
        unsubscribed_lists: (8.13) What adding an unsubscribed contact to a list does.
        unknown_route_checks_key: (8.15) Whether an unknown route with a wrong key is
            a 401 (as seen in March 2026) rather than a 404 (September 2026).
        trailing_slash: (8.16) What ``/v1/events/send/`` is: unknown, the same route,
            or a 308 redirect to it.
        require_content_type: (8.16) Whether a body that is not declared as JSON is a
            400.
        emptied_properties: (8.18) How a custom property reset by null reads
            afterwards.
    """

    uncounted: frozenset[int] = _statuses(401)
    retry_after: Literal["omit", "seconds", "date"] = _choice("omit", "seconds", "date")
    limited_body: Literal["json", "text", "empty"] = _choice("json", "text", "empty")
    conflict_text: Literal["processed", "different-body"] = _choice(
        "processed", "different-body"
    )
    burned_by: frozenset[int] = _statuses(200)
    concurrent_duplicates: Literal["conflict", "accept"] = _choice("conflict", "accept")
    long_keys: Literal["refuse", "accept"] = _choice("refuse", "accept")
    unknown_properties: Literal["store", "ignore", "refuse"] = _choice(
        "store", "ignore", "refuse"
    )
    update_creates_by_user_id: bool = _choice(False, True)
    fold_email: bool = _choice(True, False)
    two_contacts: Literal["refuse", "email", "user-id"] = _choice(
        "refuse", "email", "user-id"
    )
    length: Literal["json", "code-points", "utf-16"] = _choice(
        "json", "code-points", "utf-16"
    )
    nested_values: Literal["refuse", "accept"] = _choice("refuse", "accept")
    unknown_lists: Literal["refuse", "ignore"] = _choice("refuse", "ignore")
    unsubscribed_lists: Literal["ignore", "accept", "refuse"] = _choice(
        "ignore", "accept", "refuse"
    )
    unknown_route_checks_key: bool = _choice(False, True)
    trailing_slash: Literal["not-found", "accept", "redirect"] = _choice(
        "not-found", "accept", "redirect"
    )
    require_content_type: bool = _choice(False, True)
    emptied_properties: Literal["null", "absent"] = _choice("null", "absent")
