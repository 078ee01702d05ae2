"""The undocumented behaviour of the API, as switches."""

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
                f"{attribute.name} must contain only HTTP statuses (100 to 599), "
                f"not {status!r}"
            )


@attrs.frozen(kw_only=True)
class Behaviour:
    """Switches for the undocumented behaviour of the API.

    No official page settles any of these questions, so a robust client works under
    each value. Each default is the likeliest answer. An invalid value raises
    ValueError.

    Attributes:
        uncounted: The statuses whose requests use up no rate limit. By default a
            request with a wrong API key is free and a 429 counts, so a client that
            retries without a pause stays locked out of a sliding window. A request
            for an unknown route is never counted, because the API responds to it
            before it checks the API key.
        retry_after: The form of ``Retry-After`` in a 429, or "omit". The documentation
            mentions no such header.
        limited_body: The body of a 429: the usual JSON, plain text, or none.
        conflict_text: The wording of the 409 for a used idempotency key: that of API
            version 1.22.6 ("already been processed") or of version 1.21.6 ("a
            different request body"). Both occur with any body.
        burned_by: The response statuses after which an idempotency key counts as
            used.
        concurrent_duplicates: The treatment of a request whose idempotency key is in
            flight: a 409, or a second acceptance.
        long_keys: The treatment of an idempotency key of more than 100 characters.
        unknown_properties: The treatment of a contact property that the team has not
            created. "store" keeps the value, so that a test can read it, and adds the
            property to the team. The API itself most likely ignores the property
            ("ignore") and refused it at one time ("refuse").
        update_creates_by_user_id: Whether ``contacts/update`` with only an unknown
            ``userId`` creates a contact without an email. An event never does.
        fold_email: Whether ``Ada@example.com`` and ``ada@example.com`` are the same
            contact. User IDs always match exactly.
        two_contacts: The treatment of an ``email`` and a ``userId`` that belong to
            different contacts: a 400, or an update of the named contact that leaves
            the IDs of both contacts unchanged.
        length: The unit in which the 500-character rule counts a string: characters
            of its JSON form with escapes, code points, or UTF-16 units. The quotes
            count in each.
        nested_values: The treatment of an array or object in place of a documented
            scalar.
        unknown_lists: The treatment of an unknown mailing list ID.
        unsubscribed_lists: The treatment of a request that adds an unsubscribed
            contact to a mailing list.
        unknown_route_checks_key: Whether an unknown route with a wrong API key is a
            401 (as observed in March 2026) rather than a 404 (September 2026).
        trailing_slash: The treatment of a path such as ``/v1/events/send/``: an
            unknown route, the same route, or a 308 redirect to it.
        require_content_type: Whether a body that is not declared as JSON is a 400.
        emptied_properties: The value of a custom property after a reset by null: null,
            or absent.
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
