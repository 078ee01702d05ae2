"""Requests as values; `tests/sending/test_request.py` sends them."""

import math
import re
from typing import Any

import pytest

from loops_async._http.request import (
    API_KEY_PATH,
    MAX_BODY,
    Request,
    build_request,
    checked_json,
)


def built(method: str = "GET", path: str = "/v1/lists", **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "json": None,
        "params": {},
        "idempotency_key": None,
        "timeout": None,
        "deadline": None,
        "max_body": MAX_BODY,
    }
    return build_request("https://l/api", method, path, **{**fields, **changes})


def test_the_method_is_in_upper_case() -> None:
    assert built("get").method == "GET"


def test_the_query_is_encoded_and_a_boolean_is_in_lower_case() -> None:
    request = built(params={"email": "a+b@c.d", "n": 1, "all": True})
    assert request.url == "https://l/api/v1/lists?email=a%2Bb%40c.d&n=1&all=true"
    assert built().url == "https://l/api/v1/lists"


@pytest.mark.parametrize(("json", "body"), [(None, None), (0, b"0"), ({}, b"{}")])
def test_only_none_has_no_body(json: Any, body: bytes | None) -> None:
    assert built(json=json).body == body


@pytest.mark.parametrize(
    ("method", "key", "is_repeatable"),
    [
        ("GET", None, True),
        ("PUT", None, True),
        ("DELETE", None, True),
        ("POST", None, False),
        ("PATCH", None, False),
        ("POST", "k", True),
    ],
)
def test_a_request_is_repeatable_if_a_repetition_changes_nothing(
    method: str, key: str | None, is_repeatable: bool
) -> None:
    request = built(method, idempotency_key=key)
    assert request.repeatable is is_repeatable
    assert request.key == key


def test_only_the_endpoint_of_the_api_key_promises_an_object() -> None:
    assert built(path=API_KEY_PATH).promised_object
    assert not built().promised_object


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "BREW"}, "method must be one of GET, POST, PUT, PATCH, DELETE"),
        ({"path": "v1/lists"}, "path must be like /v1/lists"),
        ({"path": "/v1/../x"}, "path must be like /v1/lists"),
        ({"path": "/v1/%2e%2e/x"}, "path must be like /v1/lists"),
        ({"path": "/v1/lists?a=1"}, "with the query in params"),
        ({"idempotency_key": ""}, "idempotency_key: "),
        ({"json": math.nan}, "json: "),
        ({"json": {1}}, "json: "),
    ],
)
def test_a_message_names_the_part_that_cannot_be_sent(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        built(**changes)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_message_about_json_names_the_argument() -> None:
    assert checked_json("params", {"a": 1}) == b'{"a":1}'
    with pytest.raises(ValueError, match=r"^params: "):
        checked_json("params", math.inf)
