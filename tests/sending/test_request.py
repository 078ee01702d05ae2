"""`request` and `test_api_key`: what they send, return and raise."""

import json
import math
import urllib.parse
from datetime import UTC, datetime
from typing import Any

import pytest
from support.clients import KEY, TWICE, client_of
from support.http_server import (
    OK,
    Server,
    closes,
    free_port,
    outcome_of,
    outcome_without_connection,
    reply,
)
from support.waiting import run

from loops_async import LoopsError, errors
from loops_async.sandbox import Sandbox

# What a request sends.


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_request_sends_its_method_path_query_and_json(method: str) -> None:
    params: Any = {
        "email": "a+b c@x.y",
        "n": 1,
        "yes": True,
        "no": False,
        "é": "ü&=#/?",
    }
    response, server = outcome_of(
        lambda loops: loops.request(
            method.lower(), "/v1/things/a%20b", json={"a": [1, None]}, params=params
        ),
        reply(body='{"id":1}'),
    )
    assert response == {"id": 1}
    (sent,) = server.requests
    assert sent.method == method
    path, _, query = sent.target.partition("?")
    assert path == "/api/v1/things/a%20b"
    assert urllib.parse.parse_qs(query) == {
        "email": ["a+b c@x.y"],
        "n": ["1"],
        "yes": ["true"],
        "no": ["false"],
        "é": ["ü&=#/?"],
    }
    assert sent.json() == {"a": [1, None]}
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert "idempotency-key" not in sent.headers


def test_a_request_without_json_has_no_body() -> None:
    _, server = outcome_of(lambda loops: loops.request("GET", "/v1/lists", params={}))
    (sent,) = server.requests
    assert sent.body == b""
    assert sent.target == "/api/v1/lists"


@pytest.mark.parametrize("value", [{}, [], 0, False, "", 1.5])
def test_falsy_json_is_sent(value: Any) -> None:
    _, server = outcome_of(lambda loops: loops.request("POST", "/v1/x", json=value))
    (sent,) = server.requests
    assert sent.json() == value
    assert sent.body


@pytest.mark.parametrize(
    ("body", "expected"),
    [("[]", []), ('[{"id":"1"}]', [{"id": "1"}]), ("", None), ("1", 1), ("null", None)],
)
def test_a_request_returns_the_json_of_the_response(body: str, expected: Any) -> None:
    response, _ = outcome_of(
        lambda loops: loops.request("GET", "/v1/x"), reply(body=body)
    )
    assert response == expected


def test_a_request_with_the_response_204_returns_none() -> None:
    no_content = b"HTTP/1.1 204 No Content\r\n\r\n"
    response, _ = outcome_of(
        lambda loops: loops.request("DELETE", "/v1/x/1"), no_content
    )
    assert response is None


# Retries and errors.


def request(method: str, *replies: bytes, **given: Any) -> tuple[Any, int]:
    """Return what the request returned or raised, and the number of attempts."""
    outcome, server = outcome_of(
        lambda loops: loops.request(method, "/v1/x", **given), *replies
    )
    return outcome, len(server.requests)


HTML = reply(200, "<html></html>", kind="text/html")


@pytest.mark.parametrize(
    "ambiguous", [reply(500), reply(408), HTML], ids=["500", "408", "html"]
)
@pytest.mark.parametrize(
    ("method", "given", "repeated"),
    [
        ("GET", {}, True),
        ("PUT", {}, True),
        ("DELETE", {}, True),
        ("POST", {}, False),
        ("PATCH", {}, False),
        ("POST", {"idempotency_key": "k"}, True),
        ("PATCH", {"idempotency_key": "k"}, True),
    ],
)
def test_an_ambiguous_response_is_retried_only_if_a_repetition_is_harmless(
    method: str, given: dict[str, Any], repeated: bool, ambiguous: bytes
) -> None:
    outcome, count = request(method, ambiguous, OK, **given)
    if repeated:
        assert outcome == {"success": True}
        assert count == 2
    else:
        assert isinstance(outcome, errors.APIError)
        assert outcome.maybe_accepted
        assert outcome.attempts == count == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST", "PATCH"])
@pytest.mark.parametrize("status", [429, 425])
def test_a_request_that_was_certainly_not_accepted_is_always_retried(
    method: str, status: int
) -> None:
    assert request(method, reply(status), OK) == ({"success": True}, 2)


@pytest.mark.parametrize(("method", "count"), [("GET", 2), ("POST", 1)])
def test_a_lost_connection_makes_a_request_ambiguous(method: str, count: int) -> None:
    """aiohttp does not repeat a GET by itself, because each attempt needs a permit."""

    async def main() -> tuple[LoopsError, int]:
        async with Server(closes) as server, client_of(server, retry=TWICE) as loops:
            with pytest.raises(errors.ConnectionLostError) as raised:
                await loops.request(method, "/v1/x")
            return raised.value, len(server.requests)

    error, requests = run(main())
    assert error.attempts == requests == count
    assert error.maybe_accepted


def test_a_refused_connection_is_retried_even_for_a_post() -> None:
    async def main() -> LoopsError:
        url = f"http://127.0.0.1:{free_port()}/api"
        async with client_of(url, retry=TWICE) as loops:
            with pytest.raises(errors.ConnectFailedError) as raised:
                await loops.request("POST", "/v1/x")
            return raised.value

    assert run(main()).attempts == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
def test_a_refused_request_is_not_retried(status: int) -> None:
    error, count = request("GET", reply(status, '{"message":"No."}'))
    assert isinstance(error, errors.APIError)
    assert error.status == status
    assert error.message == "No."
    assert error.idempotency_key is None
    assert count == 1


def test_a_response_with_success_false_is_an_error_and_not_retried() -> None:
    error, count = request("GET", reply(body='{"success":false,"message":"No."}'))
    assert type(error) is errors.UnexpectedResponseError
    assert count == 1


@pytest.mark.parametrize("body", ['{"message":"done before"}', "", "{}"])
def test_a_409_for_a_request_with_a_key_returns_the_body(body: str) -> None:
    response, count = request("POST", reply(409, body), idempotency_key="k", json={})
    assert response == (json.loads(body) if body else None)
    assert count == 1


@pytest.mark.parametrize("body", ["Conflict", "<html></html>", "x" * 70_000])
def test_a_409_without_json_for_a_request_with_a_key_returns_none(body: str) -> None:
    response, count = request("POST", reply(409, body), idempotency_key="k", json={})
    assert response is None
    assert count == 1


def test_a_409_for_a_key_used_with_another_body_is_a_conflict() -> None:
    body = '{"message":"Idempotency key already used with a different request body."}'
    error, _ = request("POST", reply(409, body), idempotency_key="k")
    assert type(error) is errors.IdempotencyConflictError
    assert error.idempotency_key == "k"


def test_a_409_for_a_request_without_a_key_is_a_conflict() -> None:
    error, count = request("POST", reply(409, '{"message":"Already on list."}'))
    assert type(error) is errors.IdempotencyConflictError
    assert error.message == "Already on list."
    assert not error.maybe_accepted
    assert count == 1


def test_the_key_of_a_request_is_sent_unchanged() -> None:
    _, server = outcome_of(
        lambda loops: loops.request("POST", "/v1/x", idempotency_key="a key!")
    )
    assert server.requests[0].headers["idempotency-key"] == "a key!"


# Invalid requests.

BAD_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("an unknown method", {"method": "BREW"}),
    ("no method", {"method": ""}),
    ("two methods", {"method": "GET POST"}),
    ("HEAD", {"method": "HEAD"}),
    ("no path", {"path": ""}),
    ("the root", {"path": "/"}),
    ("a relative path", {"path": "v1/lists"}),
    ("an absolute URL", {"path": "https://evil.example/v1/lists"}),
    ("another host", {"path": "//evil.example/v1"}),
    ("another host further on", {"path": "/v1//evil.example"}),
    ("credentials", {"path": "@evil.example/v1"}),
    ("a port", {"path": ":80/v1"}),
    ("a back slash", {"path": "/\\evil.example"}),
    ("a parent", {"path": "/../v1/lists"}),
    ("a parent at the end", {"path": "/v1/.."}),
    ("a parent in the middle", {"path": "/v1/../../x"}),
    ("a parent with a slash", {"path": "/v1/../"}),
    ("a query", {"path": "/v1/lists?limit=1"}),
    ("a fragment", {"path": "/v1/lists#x"}),
    ("a space", {"path": "/v1/a b"}),
    ("a line break", {"path": "/v1/lists\r\nX: y"}),
    ("a line break at the end", {"path": "/v1/lists\n"}),
    ("an accent", {"path": "/v1/é"}),
    ("a NUL", {"path": "/v1/\0"}),
    ("an empty key", {"idempotency_key": ""}),
    ("a key too long", {"idempotency_key": "x" * 101}),
    ("a key beyond ASCII", {"idempotency_key": "é"}),
    ("a key of two lines", {"idempotency_key": "a\r\nX: y"}),
    ("a key that is an int", {"idempotency_key": 5}),
    ("NaN", {"json": {"a": math.nan}}),
    ("infinity", {"json": math.inf}),
    ("a set", {"json": {1, 2}}),
    ("bytes", {"json": b"{}"}),
    ("a datetime", {"json": datetime(2026, 1, 1, tzinfo=UTC)}),
    ("half a surrogate pair", {"json": "\ud800"}),
]


@pytest.mark.parametrize(
    "given",
    [given for _, given in BAD_REQUESTS],
    ids=[name for name, _ in BAD_REQUESTS],
)
def test_an_invalid_request_raises_a_value_error_and_is_not_sent(
    given: dict[str, Any],
) -> None:
    fields = {"method": "POST", "path": "/v1/x", **given}
    method, path = fields.pop("method"), fields.pop("path")
    error = outcome_without_connection(
        lambda loops: loops.request(method, path, **fields)
    )
    assert isinstance(error, ValueError), repr(error)
    assert error.__cause__ is None


def test_json_that_is_circular_or_too_deep_raises_a_value_error() -> None:
    circular: list[Any] = []
    circular.append(circular)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (circular, deep):
        error = outcome_without_connection(
            lambda loops, v=value: loops.request("POST", "/v1/x", json=v)  # type: ignore[misc]
        )
        assert isinstance(error, ValueError), repr(error)


@pytest.mark.parametrize("path", ["/v1/%2e%2e/%2e%2e/x", "/v1/.%2e/x", "/v1/a/%2E%2E"])
def test_encoded_dots_do_not_leave_the_path(path: str) -> None:
    """They are refused or sent unchanged."""
    outcome, server = outcome_of(lambda loops: loops.request("GET", path))
    if isinstance(outcome, ValueError):
        return
    assert server.requests[0].target == f"/api{path}"


# The limit of the body.


@pytest.mark.parametrize("max_body", [20, 200_000])
def test_a_response_longer_than_max_body_is_an_error_and_not_retried(
    max_body: int,
) -> None:
    body = json.dumps(["x" * (max_body - 4)])
    assert len(body) == max_body
    response, _ = request("GET", reply(body=body), max_body=max_body)
    assert response == ["x" * (max_body - 4)]
    error, count = request("GET", reply(body=body), max_body=max_body - 1)
    assert type(error) is errors.UnexpectedResponseError
    assert f"longer than {max_body - 1} bytes" in str(error)
    assert len(error.body) == max_body - 1
    assert count == 1


def test_by_default_a_response_may_have_64_kib() -> None:
    body = json.dumps("x" * 65_534)
    assert request("GET", reply(body=body)) == ("x" * 65_534, 1)
    error, _ = request("GET", reply(body=body + " "))
    assert type(error) is errors.UnexpectedResponseError


@pytest.mark.parametrize("max_body", [-1, 0, "1", 1.5, None, True])
def test_an_invalid_max_body_raises_an_error(max_body: Any) -> None:
    error = outcome_without_connection(
        lambda loops: loops.request("GET", "/v1/x", max_body=max_body)
    )
    assert isinstance(error, ValueError | errors.ConfigurationError)


# test_api_key().


def test_a_valid_api_key_returns_its_team() -> None:
    async def main() -> dict[str, Any]:
        async with Sandbox() as sandbox:
            async with client_of(sandbox) as loops:
                response = await loops.test_api_key()
            (sent,) = sandbox.requests
            assert (sent.method, sent.path) == ("GET", "/api/v1/api-key")
            return response

    response = run(main())
    assert response["success"] is True
    assert isinstance(response["teamName"], str)


def test_an_invalid_api_key_raises_an_authentication_error() -> None:
    async def main() -> None:
        async with Sandbox() as sandbox:
            async with client_of(sandbox, api_key="another") as loops:
                with pytest.raises(errors.AuthenticationError, match="Invalid API key"):
                    await loops.test_api_key()
            assert sandbox.counts.requests == 1

    run(main())


@pytest.mark.parametrize("body", ["<html></html>", "[]", "", "null", '"ok"'])
def test_a_response_that_is_not_an_object_does_not_confirm_an_api_key(
    body: str,
) -> None:
    error, server = outcome_of(lambda loops: loops.test_api_key(), reply(200, body))
    assert type(error) is errors.UnexpectedResponseError
    assert len(server.requests) == 2
