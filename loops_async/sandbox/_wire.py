"""Requests and answers as plain values, and every message the sandbox can send.

A text that no source gives for the real Loops begins with ``[sandbox]``, so that
nobody takes it for one to rely on.
"""

import json
from collections.abc import Mapping
from typing import Any

import attrs

API = "/api"
JSON_TYPE = "application/json"
_EMPTY: Mapping[str, str] = {}

INVALID_API_KEY = "Invalid API key"
NOT_FOUND = "Not found"
TOO_LONG = "Some body key or value is longer than allowable"
CONTACT_NOT_FOUND = "Contact not found."
CONTACT_DELETED = "Contact deleted."
INVALID_EMAIL = "Invalid email address."
ALREADY_ON_LIST = "Email or userId is already on list."
PROPERTY_EXISTS = "Property already exists."
KEY_PROCESSED = "Request with idempotency key {} has already been processed."
KEY_OTHER_BODY = "Idempotency key already used with a different request body."

LIMITED = "[sandbox] Rate limit exceeded."
METHOD_NOT_ALLOWED = "[sandbox] Method not allowed."
BODY_TOO_LARGE = "[sandbox] The body is too large."
CONTENT_TYPE_REQUIRED = "[sandbox] Content-Type must be application/json."
NOT_JSON = "[sandbox] The body is not valid JSON."
NOT_AN_OBJECT = "[sandbox] The body is not a JSON object."
EVENT_NAME_REQUIRED = "[sandbox] eventName is required."
EVENT_NAME_COLON = "[sandbox] eventName must not contain a colon."
ID_REQUIRED = "[sandbox] An email or userId is required."
ONE_ID_REQUIRED = "[sandbox] Exactly one of email and userId is required."
USER_ID_NOT_STRING = "[sandbox] userId must be a string with at least one character."
TWO_CONTACTS = "[sandbox] email and userId belong to different contacts."
KEY_TOO_LONG = "[sandbox] The idempotency key is longer than 100 characters."
NOT_A_MAP = "[sandbox] {} must be an object."
NOT_A_SCALAR = "[sandbox] {} must be a string, a number or a boolean."
NOT_A_BOOLEAN = "[sandbox] mailingLists.{} must be true or false."
UNKNOWN_LIST = "[sandbox] Unknown mailing list {}."
UNSUBSCRIBED = "[sandbox] The contact is unsubscribed."
UNKNOWN_PROPERTY = "[sandbox] Unknown contact property {}."
BAD_PROPERTY = "[sandbox] A property needs a free name and a type."
BAD_LIST_FILTER = "[sandbox] list must be all or custom."


@attrs.frozen(kw_only=True)
class Call:
    """One request, freed of HTTP.

    Attributes:
        method: In capitals.
        path: Decoded, from ``/v1`` on.
        query: Decoded; the first value of each name.
        authorization: The header of that name, or None.
        content_type: The header of that name, or None.
        idempotency_key: The header of that name, or None.
        body: The bytes of the body.
    """

    method: str
    path: str
    query: Mapping[str, str] = _EMPTY
    authorization: str | None = None
    content_type: str | None = None
    idempotency_key: str | None = None
    body: bytes = b""


@attrs.frozen(kw_only=True)
class Answer:
    """One answer, not yet sent.

    Attributes:
        status: The HTTP status.
        body: The bytes of the body.
        content_type: What the body is.
        headers: Further headers.
    """

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = _EMPTY

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class RefusedError(Exception):
    """A request breaks a rule; carries the answer to give."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.answer = failure(status, message)


def answer(payload: object, status: int = 200) -> Answer:
    """The payload as compact JSON."""
    return Answer(status=status, body=encode(payload))


def failure(status: int, message: str) -> Answer:
    """The envelope in use since 2025-09-11: ``success`` false and ``message``."""
    return answer({"success": False, "message": message}, status)


def encode(payload: object) -> bytes:
    """Compact JSON; lone surrogates, which JSON allows, stay escaped."""
    return json.dumps(payload, separators=(",", ":")).encode("ascii")


SUCCESS = answer({"success": True})
UNAUTHORIZED = answer(
    {"success": False, "message": INVALID_API_KEY, "error": INVALID_API_KEY}, 401
)
UNKNOWN_ROUTE = answer({"message": NOT_FOUND}, 404)
