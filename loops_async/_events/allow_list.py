"""The allow-list that keeps a staging system from mailing customers."""

import json
import string
from collections.abc import Iterable
from typing import Final

import attrs

from loops_async.errors import ConfigurationError, RecipientNotAllowedError

from .rules import IDENTITY, without_spelling


@attrs.frozen
class Recipients:
    """Whom a client may send to; made by `recipients`."""

    emails: frozenset[str]
    domains: frozenset[str]
    user_ids: frozenset[str]

    def check(
        self, email: str | None, user_id: str | None, idempotency_key: str | None = None
    ) -> None:
        """Refuse unless each identifier that is there is allowed.

        Raises:
            RecipientNotAllowedError: naming the identifier's kind, not its
                value.
        """
        if email in self.emails and user_id in self.user_ids:
            return
        if email is None and user_id is None:
            why = "allowed_recipients: no email or user ID to check"
        elif email is not None and not self._allows_email(email):
            why = "email is not in allowed_recipients"
        elif user_id is not None and user_id not in self.user_ids:
            why = "user_id is not in allowed_recipients"
        else:
            return
        raise _refusal(why, idempotency_key)

    def check_body(
        self, body: bytes, idempotency_key: str | None, query: bytes = b"{}"
    ) -> None:
        """Refuse unless each contact at the root of both JSONs is allowed.

        Looks at the bytes that will be sent, so that no name given twice, or
        in another spelling, hides a recipient.

        Raises:
            RecipientNotAllowedError: also if nobody is named.
        """
        named: list[tuple[str | None, str | None]] = []
        for name, value in [*_root(query), *_root(body)]:
            if without_spelling(name) not in IDENTITY or value is None:
                continue
            if name not in ("email", "userId") or not isinstance(value, str):
                raise _refusal(f"{name} may name a recipient", idempotency_key)
            named.append((value, None) if name == "email" else (None, value))
        for email, user_id in named or [(None, None)]:
            self.check(email, user_id, idempotency_key)

    def _allows_email(self, email: str) -> bool:
        if email in self.emails:  # as most are, and translating takes a while
            return True
        folded = email.translate(_FOLDED)
        name, _, domain = folded.rpartition("@")
        return folded in self.emails or (
            bool(name) and "@" not in name and domain in self.domains
        )


def _refusal(why: str, idempotency_key: str | None) -> RecipientNotAllowedError:
    refused = RecipientNotAllowedError(why)
    refused.idempotency_key = idempotency_key
    return refused


def _root(body: bytes) -> list[tuple[str, object]]:
    """Return the items of a JSON object, names that are given twice included."""
    root = json.loads(body, object_pairs_hook=_Pairs)
    return root if isinstance(root, _Pairs) else []


class _Pairs(list[tuple[str, object]]):
    """An object of the JSON; its arrays are plain lists."""


# ASCII only: other folding makes equal what mail servers do not.
_FOLDED: Final = {ord(letter): letter.lower() for letter in string.ascii_uppercase}


def recipients(given: Iterable[str] | None) -> Recipients | None:
    """Read ``allowed_recipients``; None allows everybody, empty nobody.

    Raises:
        ConfigurationError: if an entry is none of ``name@domain``,
            ``@domain`` and ``user:ID``.
    """
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        kind = "string" if isinstance(given, str) else type(given).__name__
        msg = f"allowed_recipients must be a sequence of strings, not one {kind}"
        raise ConfigurationError(msg)
    emails, domains, user_ids = set(), set(), set()
    for entry in given:
        if not isinstance(entry, str):
            msg = f"allowed_recipients: {type(entry).__name__} is not a string"
            raise ConfigurationError(msg)
        name, at, domain = entry.translate(_FOLDED).rpartition("@")
        if entry.startswith("user:") and len(entry) > len("user:"):
            user_ids.add(entry.removeprefix("user:"))
        elif at and domain and "@" not in name:
            emails.add(f"{name}@{domain}") if name else domains.add(domain)
        else:
            msg = (
                f"allowed_recipients: {entry!r} is none of name@domain, @domain "
                "and user:ID"
            )
            raise ConfigurationError(msg)
    return Recipients(frozenset(emails), frozenset(domains), frozenset(user_ids))
