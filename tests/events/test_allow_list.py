"""The allow-list: exact except for ASCII case in emails, and strict when in doubt."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import ConfigurationError, RecipientNotAllowedError
from loops_async._events.allow_list import AllowList, parse_allow_list

ALLOWED = ("ada@example.com", "@test.example", "user:usr_1", "User@MiXed.Example")


def parsed(entries: Any = ALLOWED) -> AllowList:
    allow_list = parse_allow_list(entries)
    assert allow_list is not None
    return allow_list


def allows(
    email: str | None = None, user_id: str | None = None, *, allowed: Any = ALLOWED
) -> bool:
    try:
        parsed(allowed).check(email, user_id)
    except RecipientNotAllowedError:
        return False
    return True


@pytest.mark.parametrize(
    ("email", "user_id"),
    [
        ("ada@example.com", None),
        ("ADA@Example.COM", None),
        ("anyone@test.example", None),
        ("Anyone@TEST.example", None),
        ("user@mixed.example", None),
        (None, "usr_1"),
        ("ada@example.com", "usr_1"),
        ("x@test.example", "usr_1"),
    ],
)
def test_a_listed_contact_is_allowed(email: str | None, user_id: str | None) -> None:
    assert allows(email, user_id)


@pytest.mark.parametrize(
    ("email", "user_id"),
    [
        ("eve@example.com", None),
        ("ada@example.com.evil", None),
        ("xada@example.com", None),
        ("a@sub.test.example", None),
        ("a@eviltest.example", None),
        ("a@b@test.example", None),
        ("@test.example@evil", None),
        ("test.example", None),
        ("", None),
        (None, "usr_2"),
        (None, "USR_1"),
        (None, "user:usr_1"),
        (None, ""),
        ("ada@example.com", "usr_2"),
        ("eve@example.com", "usr_1"),
        (None, None),
        ("\u212a@test.example@", None),
    ],
)
def test_a_contact_with_an_identifier_that_is_not_listed_is_refused(
    email: str | None, user_id: str | None
) -> None:
    assert not allows(email, user_id)


@pytest.mark.parametrize(
    ("email", "user_id", "message"),
    [
        ("eve@example.com", None, "email is not in allowed_recipients"),
        ("ada@example.com", "usr_2", "user_id is not in allowed_recipients"),
        (None, None, "allowed_recipients: no email or user ID to check"),
    ],
)
def test_the_error_names_the_kind_of_identifier_and_not_its_value(
    email: str | None, user_id: str | None, message: str
) -> None:
    with pytest.raises(RecipientNotAllowedError) as caught:
        parsed().check(email, user_id, "key")
    assert str(caught.value) == message
    assert caught.value.idempotency_key == "key"


def test_letters_that_are_not_ascii_are_compared_exactly() -> None:
    """The Kelvin sign in lower case is k, but it is another mailbox or domain."""
    assert not allows("\u212ate@x.example", allowed=["kate@x.example"])
    assert not allows("a@\u212a.example", allowed=["@k.example"])
    assert not allows("stra\u00dfe@x.example", allowed=["strasse@x.example"])
    assert allows("jos\u00e9@x.example", allowed=["jos\u00e9@x.example"])


def test_ascii_case_is_ignored_in_an_email_with_other_characters() -> None:
    assert allows("jos\u00e9@Example.com", allowed=["@example.com"])


def test_an_empty_list_allows_no_contact_and_none_allows_every_contact() -> None:
    assert parse_allow_list(None) is None
    assert not allows("ada@example.com", allowed=())
    assert not allows(None, "usr_1", allowed=[])


def test_any_iterable_is_accepted_and_read_once() -> None:
    def entries() -> Iterator[str]:
        yield "ada@example.com"

    allow_list = parsed(entries())
    allow_list.check("ada@example.com", None)
    allow_list.check("ada@example.com", None)


def test_a_user_id_that_looks_like_an_email_is_compared_with_user_ids_only() -> None:
    assert allows(None, "a@b", allowed=["user:a@b"])
    assert not allows("a@b", None, allowed=["user:a@b"])
    assert not allows("user:a@b", None, allowed=["user:a@b"])


@pytest.mark.parametrize(
    "entry",
    ["", "ada", "@", "ada@", "a@b@c", "user:", "USER:usr_1", "*", "example.com"],
)
def test_an_entry_that_can_never_match_is_refused(entry: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_allow_list(["ada@example.com", entry])
    assert "allowed_recipients" in str(caught.value)
    assert repr(entry) in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("ada@example.com", "must be a sequence of strings, not one string"),
        (5, "must be a sequence of strings, not one int"),
        ([5], "each entry must be a string, not int"),
        ([None], "each entry must be a string, not NoneType"),
        (b"ada@example.com", "each entry must be a string, not int"),
    ],
)
def test_a_value_that_is_not_a_list_of_strings_is_refused(
    entries: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^allowed_recipients:? {message}$"):
        parse_allow_list(entries)


@pytest.mark.parametrize(
    ("email", "user_id"),
    [
        (None, ["usr_1"]),
        (["ada@example.com"], None),
        ({"ada@example.com": 1}, None),
        (5, None),
        (None, 1),
        (True, "usr_1"),
    ],
)
def test_a_body_with_an_identifier_that_is_not_a_string_is_refused(
    email: object, user_id: object
) -> None:
    """`AsyncLoopsClient.request` sends any JSON of the caller."""
    body = json.dumps({"email": email, "userId": user_id}).encode()
    with pytest.raises(RecipientNotAllowedError, match="may name a recipient"):
        parsed().check_body(body, "key")


@pytest.mark.parametrize(
    ("body", "query"),
    [
        (b'{"email":"ada@example.com","userId":"usr_1"}', b"{}"),
        (b'{"email":"ada@example.com","userId":null,"eventName":"e"}', b"{}"),
        (b'{"email":"ada@example.com","deep":{"email":"eve@example.com"}}', b"{}"),
        (b"{}", b'{"userId":"usr_1"}'),
    ],
)
def test_a_body_whose_contacts_are_all_listed_is_allowed(
    body: bytes, query: bytes
) -> None:
    parsed().check_body(body, "key", query)


@pytest.mark.parametrize(
    ("body", "query"),
    [
        (b'{"email":"eve@example.com"}', b"{}"),
        (b'{"email":"eve@example.com","email":"ada@example.com"}', b"{}"),
        (b'{"email":"ada@example.com","e_mail":"eve@example.com"}', b"{}"),
        (b'{"email":"ada@example.com"}', b'{"userId":"usr_2"}'),
        (b'{"eventName":"e"}', b"{}"),
        (b'["ada@example.com"]', b"{}"),
    ],
)
def test_a_body_with_a_contact_that_is_not_listed_or_without_a_contact_is_refused(
    body: bytes, query: bytes
) -> None:
    with pytest.raises(RecipientNotAllowedError) as caught:
        parsed().check_body(body, "key", query)
    assert caught.value.idempotency_key == "key"


@given(st.text(max_size=20), st.text(max_size=20))
def test_an_identifier_that_is_not_listed_is_never_allowed(
    email: str, user_id: str
) -> None:
    listed = email.lower() == "a@x" or email.rpartition("@")[2].lower() == "x"
    assert listed or not allows(email, None, allowed=["a@x", "@x"])
    assert user_id == "u" or not allows(None, user_id, allowed=["user:u"])
