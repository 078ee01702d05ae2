"""Requests and responses as plain values, and every message of the sandbox.

A message that no source documents for the real API begins with ``[sandbox]``, so that
no client comes to depend on it.
"""

import json
from collections.abc import Mapping
from typing import Any

import attrs

API = "/api"
JSON_TYPE = "application/json"
NO_ITEMS: Mapping[str, str] = {}

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
BAD_PROPERTY = "[sandbox] A property needs an unused name and a type."
BAD_LIST_FILTER = "[sandbox] list must be all or custom."


@attrs.frozen(kw_only=True)
class Request:
    """One HTTP request, as received and parsed.

    Attributes:
        method: The method in upper case.
        target: The path and the query as received.
        path: The decoded path.
        query: The decoded query; the first value of each name counts.
        headers: The headers as received; look-up ignores case.
        body: The bytes of the body.
    """

    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def api_path(self) -> str:
        """The path below ``/api``, empty for a path outside it."""
        inside = self.path.startswith(f"{API}/")
        return self.path.removeprefix(API) if inside else ""


@attrs.frozen(kw_only=True)
class Response:
    """One response, not yet sent.

    Attributes:
        status: The HTTP status.
        body: The bytes of the body.
        content_type: The media type of the body.
        headers: The headers other than ``Content-Type``.
    """

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = NO_ITEMS

    def json(self) -> Any:
        """Return the parsed body."""
        return json.loads(self.body)


class RefusedError(Exception):
    """A request breaks a rule; ``response`` is the response to send."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.response = error_response(status, message)


def json_response(payload: object, status: int = 200) -> Response:
    """Return a response with the payload as compact JSON."""
    return Response(status=status, body=encode(payload))


def error_response(status: int, message: str) -> Response:
    """Return the envelope in use since 2025-09-11: ``success`` and ``message``."""
    return json_response({"success": False, "message": message}, status)


def encode(payload: object) -> bytes:
    """Return compact JSON; lone surrogates, which JSON allows, stay escaped."""
    return json.dumps(payload, separators=(",", ":")).encode("ascii")


SUCCESS = json_response({"success": True})
UNAUTHORIZED = json_response(
    {"success": False, "message": INVALID_API_KEY, "error": INVALID_API_KEY}, 401
)
UNKNOWN_ROUTE = json_response({"message": NOT_FOUND}, 404)
