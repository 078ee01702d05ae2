"""Dry runs and the allow-list, end to end."""

from enum import Enum
from typing import Any

import pytest
from support.http_server import (
    outcome_of,
    outcome_without_connection,
)
from support.waiting import run

from loops_async import (
    AsyncLoopsClient,
    Receipt,
    errors,
)

ADA: dict[str, Any] = {"email": "ada@example.com"}
NOWHERE = "http://127.0.0.1:1/api"  # no test connects to it


# Dry runs.


def test_a_dry_run_checks_everything_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It needs no API key, no network and no permit."""
    monkeypatch.delenv("LOOPS_API_KEY", raising=False)

    async def main() -> Receipt:
        async with AsyncLoopsClient(dry_run=True, base_url=NOWHERE) as loops:
            assert "dry run" in repr(loops)
            receipts = [
                await loops.send_event("e", **ADA, idempotency_key="k")
                for _ in range(100)
            ]
            with pytest.raises(errors.InvalidEventError):
                await loops.send_event("a:b", user_id="u")
            with pytest.raises(errors.ConfigurationError, match="dry_run"):
                await loops.request("GET", "/v1/lists")
            with pytest.raises(errors.ConfigurationError, match="dry_run"):
                await loops.test_api_key()
            assert loops.sender.event_loops == []
            return receipts[-1]

    assert run(main()) == Receipt(
        "k", attempts=0, duplicate=False, elapsed=0.0, rate_limit=None, dry_run=True
    )


def test_a_dry_run_refuses_a_recipient_that_is_not_on_the_allow_list() -> None:
    async def main() -> None:
        loops = AsyncLoopsClient(dry_run=True, allowed_recipients=("@example.com",))
        await loops.send_event("e", email="ada@example.com")
        with pytest.raises(errors.RecipientNotAllowedError):
            await loops.send_event("e", email="ada@example.org")

    run(main())


# The allow-list, end to end.

ALLOWED = ("Ada@Example.com", "@staging.example", "user:usr_1")


@pytest.mark.parametrize(
    "given",
    [
        {"email": "ada@example.com"},
        {"email": "ADA@EXAMPLE.COM"},
        {"email": "anybody@staging.example"},
        {"email": "Anybody@STAGING.example"},
        {"user_id": "usr_1"},
        {"email": "ada@example.com", "user_id": "usr_1"},
        {"user_id": Enum("Id", {"ONE": "usr_1"}).ONE},  # type: ignore[attr-defined]
    ],
    ids=str,
)
def test_an_event_for_an_allowed_recipient_is_sent(given: dict[str, Any]) -> None:
    receipt, server = outcome_of(
        lambda loops: loops.send_event("e", **given), allowed_recipients=ALLOWED
    )
    assert isinstance(receipt, Receipt)
    assert len(server.requests) == 1


REFUSED: list[dict[str, Any]] = [
    {"email": "bob@example.com"},
    {"email": "ada@example.com."},
    {"email": "ada@example.com.evil.example"},
    {"email": "ada@sub.staging.example"},
    {"email": "ada@xstaging.example"},
    {"email": "ada@staging.example."},
    {"email": "adа@example.com"},  # noqa: RUF001 - a Cyrillic a
    {"email": "x@staging.exampl\u0435"},  # a Cyrillic e
    {"email": "x@\u017ftaging.example"},  # a long s, which upper() folds
    {"email": "x@staging\u3002example"},  # a full stop that IDNA folds
    {"user_id": "usr_2"},
    {"user_id": "USR_1"},
    {"user_id": "usr_1."},
    {"user_id": "ada@example.com"},
    {"user_id": "user:usr_1"},
    {"email": "ada@example.com", "user_id": "usr_2"},
    {"email": "bob@example.com", "user_id": "usr_1"},
]


@pytest.mark.parametrize("given", REFUSED, ids=str)
def test_nothing_is_sent_for_a_recipient_that_is_not_allowed(
    given: dict[str, Any],
) -> None:
    """Neither an event nor another request that names a contact is sent."""
    error = outcome_without_connection(
        lambda loops: loops.send_event("e", **given, idempotency_key="k"),
        allowed_recipients=ALLOWED,
    )
    assert isinstance(error, errors.RecipientNotAllowedError)
    assert error.idempotency_key == "k"
    assert error.attempts == 0
    assert not error.retryable
    assert not error.maybe_accepted
    for value in given.values():
        assert value not in str(error)

    wire = {{"email": "email", "user_id": "userId"}[k]: v for k, v in given.items()}
    for method, path, named in (
        ("POST", "/v1/events/send", {"json": {"eventName": "e", **wire}}),
        ("POST", "/v1/events/send/", {"json": wire}),
        ("PUT", "/v1/contacts/update", {"json": wire}),
        ("PATCH", "/v1/contacts/update", {"json": wire}),
        ("post", "/v1/contacts/create", {"json": wire}),
        ("DELETE", "/v1/contacts/suppression", {"params": wire}),
        ("POST", "/v1/contacts/update", {"params": wire, "json": {}}),
    ):
        error = outcome_without_connection(
            lambda loops, m=method, p=path, n=named: loops.request(m, p, **n),  # type: ignore[misc]
            allowed_recipients=ALLOWED,
        )
        assert isinstance(error, errors.RecipientNotAllowedError), (method, path)


def test_an_empty_allow_list_refuses_every_recipient() -> None:
    for use in (
        lambda loops: loops.send_event("e", **ADA),
        lambda loops: loops.request("POST", "/v1/events/send", json=ADA),
        lambda loops: loops.request("DELETE", "/v1/campaigns/1"),
        lambda loops: loops.request("POST", "/v1/x", json=[ADA]),
    ):
        error = outcome_without_connection(use, allowed_recipients=())
        assert isinstance(error, errors.RecipientNotAllowedError)


def test_a_request_that_reads_or_names_an_allowed_recipient_is_sent() -> None:
    for use in (
        lambda loops: loops.request(
            "POST", "/v1/events/send", json={"email": "ADA@example.com"}
        ),
        lambda loops: loops.request(
            "PUT", "/v1/contacts/update", json={"userId": "usr_1", "email": None}
        ),
        lambda loops: loops.request("GET", "/v1/contacts/find", params={"email": "x"}),
    ):
        response, _ = outcome_of(use, allowed_recipients=ALLOWED)
        assert response == {"success": True}


def test_an_allowed_recipient_in_the_body_does_not_hide_another_in_the_query() -> None:
    error = outcome_without_connection(
        lambda loops: loops.request(
            "POST",
            "/v1/contacts/delete",
            params={"email": "bob@example.com"},
            json={"email": "ada@example.com"},
        ),
        allowed_recipients=ALLOWED,
    )
    assert isinstance(error, errors.RecipientNotAllowedError)
