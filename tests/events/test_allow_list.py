"""The allow-list: exact but for the case of emails, and safe when in doubt."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import ConfigurationError, RecipientNotAllowedError
from loops_async._events.allow_list import recipients

ALLOWED = ("ada@example.com", "@test.example", "user:usr_1", "User@MiXed.Example")


def allows(
    email: str | None = None, user_id: str | None = None, *, allowed: Any = ALLOWED
) -> bool:
    made = recipients(allowed)
    assert made is not None
    try:
        made.check(email, user_id)
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
def test_who_is_listed_may_be_written_to(
    email: str | None, user_id: str | None
) -> None:
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
def test_every_identifier_that_is_there_must_be_listed(
    email: str | None, user_id: str | None
) -> None:
    assert not allows(email, user_id)


def test_a_refusal_names_the_kind_of_identifier_and_not_its_value() -> None:
    made = recipients(ALLOWED)
    assert made is not None
    for email, user_id, said in (
        ("eve@example.com", None, "email is not in allowed_recipients"),
        ("ada@example.com", "usr_2", "user_id is not in allowed_recipients"),
        (None, None, "allowed_recipients: no email or user ID to check"),
    ):
        with pytest.raises(RecipientNotAllowedError) as caught:
            made.check(email, user_id)
        assert str(caught.value) == said


def test_folding_never_makes_equal_what_mail_servers_do_not() -> None:
    """The Kelvin sign lower-cases to k; it is another mailbox, or domain."""
    assert not allows("\u212ate@x.example", allowed=["kate@x.example"])
    assert not allows("a@\u212a.example", allowed=["@k.example"])
    assert not allows("stra\u00dfe@x.example", allowed=["strasse@x.example"])
    assert allows("jos\u00e9@x.example", allowed=["jos\u00e9@x.example"])


def test_ascii_case_is_folded_beside_other_characters() -> None:
    """Exact but for the case of emails; it errs on the safe side."""
    assert allows("jos\u00e9@Example.com", allowed=["@example.com"])


def test_empty_allows_nobody_and_none_everybody() -> None:
    assert recipients(None) is None
    assert not allows("ada@example.com", allowed=())
    assert not allows(None, "usr_1", allowed=[])


def test_any_iterable_will_do_and_is_read_once() -> None:
    def entries() -> Iterator[str]:
        yield "ada@example.com"

    made = recipients(entries())
    assert made is not None
    made.check("ada@example.com", None)
    made.check("ada@example.com", None)


def test_a_user_id_may_look_like_an_email() -> None:
    assert allows(None, "a@b", allowed=["user:a@b"])
    assert not allows("a@b", None, allowed=["user:a@b"])
    assert not allows("user:a@b", None, allowed=["user:a@b"])


@pytest.mark.parametrize(
    "entry",
    ["", "ada", "@", "ada@", "a@b@c", "user:", "USER:usr_1", "*", "example.com"],
)
def test_an_entry_that_could_never_match_is_refused(entry: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        recipients(["ada@example.com", entry])
    assert "allowed_recipients" in str(caught.value)
    assert repr(entry) in str(caught.value)


@pytest.mark.parametrize(
    ("given_value", "said"),
    [
        ("ada@example.com", "not one string"),
        ([5], "int is not a string"),
        ([None], "NoneType is not a string"),
        (b"ada@example.com", "int is not a string"),
    ],
)
def test_what_is_no_list_of_strings_is_refused(given_value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        recipients(given_value)


def test_what_is_no_list_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="allowed_recipients"):
        recipients(5)  # type: ignore[arg-type]


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
def test_an_id_of_any_json_type_is_checked(email: object, user_id: object) -> None:
    """`request` sends what the caller put in its JSON."""
    made = recipients(ALLOWED)
    assert made is not None
    body = json.dumps({"email": email, "userId": user_id}).encode()
    with pytest.raises(RecipientNotAllowedError, match="may name a recipient"):
        made.check_body(body, "key")


@given(st.text(max_size=20), st.text(max_size=20))
def test_nothing_that_is_not_listed_gets_through(email: str, user_id: str) -> None:
    """Holds for any text, were it to look like an entry."""
    listed = email.lower() == "a@x" or email.rpartition("@")[2].lower() == "x"
    assert listed or not allows(email, None, allowed=["a@x", "@x"])
    assert user_id == "u" or not allows(None, user_id, allowed=["user:u"])
