"""The allow-list, which keeps a staging system from sending to customers."""

import json
import string
from collections.abc import Iterable
from typing import Final

import attrs

from loops_async.errors import ConfigurationError, RecipientNotAllowedError

from .rules import IDENTITY, fold_spelling


@attrs.frozen
class AllowList:
    """The contacts that a client may send to; made by `parse_allow_list`."""

    emails: frozenset[str]
    domains: frozenset[str]
    user_ids: frozenset[str]

    def check(
        self, email: str | None, user_id: str | None, idempotency_key: str | None = None
    ) -> None:
        """Raise unless each identifier that is not None is allowed.

        Raises:
            RecipientNotAllowedError: If an identifier is not allowed, or if both
                are None. The message names the identifier's kind, not its value.
        """
        if email in self.emails and user_id in self.user_ids:
            return
        if email is None and user_id is None:
            problem = "allowed_recipients: no email or user ID to check"
        elif email is not None and not self._allows_email(email):
            problem = "email is not in allowed_recipients"
        elif user_id is not None and user_id not in self.user_ids:
            problem = "user_id is not in allowed_recipients"
        else:
            return
        raise _not_allowed(problem, idempotency_key)

    def check_body(
        self, body: bytes, idempotency_key: str | None, query: bytes = b"{}"
    ) -> None:
        """Raise unless each contact at the top level of both JSON texts is allowed.

        The check reads the bytes of the request, so that a repeated name or
        another spelling of a name cannot hide a recipient.

        Raises:
            RecipientNotAllowedError: If a contact is not allowed, or if there is
                no contact.
        """
        contacts: list[tuple[str | None, str | None]] = []
        for name, value in [*_top_level(query), *_top_level(body)]:
            if fold_spelling(name) not in IDENTITY or value is None:
                continue
            if name not in ("email", "userId") or not isinstance(value, str):
                raise _not_allowed(f"{name} may name a recipient", idempotency_key)
            contacts.append((value, None) if name == "email" else (None, value))
        for email, user_id in contacts or [(None, None)]:
            self.check(email, user_id, idempotency_key)

    def _allows_email(self, email: str) -> bool:
        if email in self.emails:  # saves the translation for most emails
            return True
        lower = email.translate(_TO_LOWER)
        name, _, domain = lower.rpartition("@")
        return lower in self.emails or (
            bool(name) and "@" not in name and domain in self.domains
        )


def _not_allowed(text: str, idempotency_key: str | None) -> RecipientNotAllowedError:
    error = RecipientNotAllowedError(text)
    error.idempotency_key = idempotency_key
    return error


def _top_level(text: bytes) -> list[tuple[str, object]]:
    """Return the items of a JSON object, repeated names included."""
    value = json.loads(text, object_pairs_hook=_Items)
    return value if isinstance(value, _Items) else []


class _Items(list[tuple[str, object]]):
    """The items of a JSON object. A JSON array is a plain list."""


# ASCII only: str.lower() would equate addresses that mail servers distinguish.
_TO_LOWER: Final = {ord(letter): letter.lower() for letter in string.ascii_uppercase}


def parse_allow_list(entries: Iterable[str] | None) -> AllowList | None:
    """Parse ``allowed_recipients``.

    Args:
        entries: The contacts allowed, each as ``name@domain``, ``@domain`` or
            ``user:ID``. None allows every contact, an empty list no contact.

    Raises:
        ConfigurationError: If an entry has none of the three forms.
    """
    if entries is None:
        return None
    if isinstance(entries, str) or not isinstance(entries, Iterable):
        kind = "string" if isinstance(entries, str) else type(entries).__name__
        msg = f"allowed_recipients must be a sequence of strings, not one {kind}"
        raise ConfigurationError(msg)
    emails, domains, user_ids = set(), set(), set()
    for entry in entries:
        if not isinstance(entry, str):
            kind = type(entry).__name__
            msg = f"allowed_recipients: each entry must be a string, not {kind}"
            raise ConfigurationError(msg)
        name, at, domain = entry.translate(_TO_LOWER).rpartition("@")
        if entry.startswith("user:") and len(entry) > len("user:"):
            user_ids.add(entry.removeprefix("user:"))
        elif at and domain and "@" not in name:
            emails.add(f"{name}@{domain}") if name else domains.add(domain)
        else:
            msg = (
                f"allowed_recipients: {entry!r} must be of the form name@domain, "
                "@domain or user:ID"
            )
            raise ConfigurationError(msg)
    return AllowList(frozenset(emails), frozenset(domains), frozenset(user_ids))
