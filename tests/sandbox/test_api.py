"""Routes, API key, rate limit and idempotency keys, with the time as an argument."""

from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from support.clients import KEY

from loops_async.sandbox._api import AdmittedRequest
from loops_async.sandbox._wire import SUCCESS

from .support import SEND, event, make_api, make_request, outcome, send

UNAUTHORIZED = {
    "success": False,
    "message": "Invalid API key",
    "error": "Invalid API key",
}


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY]
)
def test_a_known_route_without_the_api_key_returns_401(
    authorization: str | None,
) -> None:
    """The body was recorded from the live API, with no key and with a wrong key."""
    request = make_request("GET", "/v1/api-key", authorization=authorization)
    response = make_api(limit=5).handle(request, 0.0)
    assert (response.status, response.json()) == (401, UNAUTHORIZED)
    assert not response.headers


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_bearer_scheme_is_case_insensitive(scheme: str) -> None:
    request = make_request("GET", "/v1/api-key", authorization=f"{scheme} {KEY}")
    response = make_api().handle(request, 0.0)
    assert response.json() == {"success": True, "teamName": "Sandbox"}


@pytest.mark.parametrize("path", ["/v1/nope", "", "/v1", "/v1/transactional", "//v1"])
def test_an_unknown_route_returns_404_with_any_bearer_token_and_401_without(
    path: str,
) -> None:
    api = make_api(limit=1)
    for bearer in (KEY, "wrong"):
        request = make_request("GET", path, authorization=f"Bearer {bearer}")
        response = api.handle(request, 0.0)
        assert (response.status, response.json()) == (404, {"message": "Not found"})
        assert not response.headers
    assert api.handle(make_request("GET", path, authorization=None), 0.0).status == 401


def test_an_unknown_route_checks_the_api_key_if_switched_on() -> None:
    api = make_api(unknown_route_checks_key=True)
    wrong = make_request("GET", "/v1/nope", authorization="Bearer wrong")
    assert api.handle(wrong, 0.0).status == 401
    assert api.handle(make_request("GET", "/v1/nope"), 0.0).status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "BREW"])
def test_a_wrong_method_returns_405_with_the_allowed_methods(method: str) -> None:
    response = make_api(limit=3).handle(make_request(method, SEND), 0.0)
    assert response.status == 405
    assert response.headers["Allow"] == "POST"
    assert response.headers["x-ratelimit-remaining"] == "2"


@pytest.mark.parametrize(
    ("policy", "status"), [("not-found", 404), ("accept", 200), ("redirect", 308)]
)
def test_a_trailing_slash_is_handled_according_to_its_switch(
    policy: str, status: int
) -> None:
    api = make_api(trailing_slash=policy)
    response = api.handle(make_request("GET", "/v1/api-key/"), 0.0)
    assert response.status == status


def test_a_redirect_keeps_the_query() -> None:
    api = make_api(trailing_slash="redirect")
    request = make_request("GET", "/v1/contacts/find/", query={"email": "a+b@c.d"})
    location = api.handle(request, 0.0).headers["Location"]
    assert location == "/api/v1/contacts/find?email=a%2Bb%40c.d"
    request = make_request("GET", "/v1/lists/")
    assert api.handle(request, 0.0).headers["Location"] == "/api/v1/lists"


def test_rate_headers_count_down_until_a_429() -> None:
    api = make_api(limit=2)
    responses = [send(api, event(), now=0.1 * n) for n in range(3)]
    assert [response.status for response in responses] == [200, 200, 429]
    limits = [response.headers["x-ratelimit-limit"] for response in responses]
    assert limits == ["2", "2", "2"]
    remaining = [response.headers["x-ratelimit-remaining"] for response in responses]
    assert remaining == ["1", "0", "0"]
    assert "Retry-After" not in responses[2].headers
    assert responses[2].json()["message"].startswith("[sandbox]")


def test_responses_without_a_rate_limit_have_no_rate_headers() -> None:
    api = make_api()
    responses = [send(api, event()) for _ in range(50)]
    assert all(response == SUCCESS for response in responses)


@pytest.mark.parametrize(("uncounted", "status"), [((401,), 429), ((401, 429), 200)])
def test_a_429_uses_up_the_limit_unless_switched_off(
    uncounted: tuple[int, ...], status: int
) -> None:
    api = make_api(limit=1, uncounted=uncounted)
    statuses = [send(api, event(), now=now).status for now in (0.0, 0.9, 1.1)]
    assert statuses == [200, 429, status]


@pytest.mark.parametrize(("uncounted", "remaining"), [((401,), "1"), ((), "0")])
def test_a_401_uses_up_the_limit_only_if_switched_on(
    uncounted: tuple[int, ...], remaining: str
) -> None:
    api = make_api(limit=2, uncounted=uncounted)
    assert send(api, event(), authorization="Bearer wrong").status == 401
    assert send(api, event()).headers["x-ratelimit-remaining"] == remaining


def test_a_counted_401_without_a_rate_limit_returns_401() -> None:
    api = make_api(uncounted=())
    assert send(api, event(), authorization=None).status == 401


@pytest.mark.parametrize("window", ["sliding", "fixed", "bucket"])
def test_an_uncounted_status_gives_its_permit_back(window: Any) -> None:
    api = make_api(limit=2, window=window, uncounted=(400, 401))
    for _ in range(5):
        response = send(api, {})
        assert response.status == 400
        assert response.headers["x-ratelimit-remaining"] == "2"
    assert send(api, event()).headers["x-ratelimit-remaining"] == "1"


def test_retry_after_has_the_form_that_its_switch_selects() -> None:
    for form in ("seconds", "date"):
        api = make_api(limit=1, retry_after=form)
        send(api, event(), now=0.0)
        value = send(api, event(), now=0.5).headers["Retry-After"]
        if form == "seconds":
            # The refused request counts as well, so the wait is a whole period.
            assert value == "1"
        else:
            assert parsedate_to_datetime(value).tzinfo is not None


@pytest.mark.parametrize(
    ("form", "body"),
    [("text", b"[sandbox] Rate limit exceeded."), ("empty", b"")],
)
def test_a_429_has_the_body_that_its_switch_selects(form: str, body: bytes) -> None:
    api = make_api(limit=1, limited_body=form)
    send(api, event())
    response = send(api, event())
    assert (response.status, response.body) == (429, body)
    assert response.content_type == "text/plain"


def test_a_used_key_returns_409_for_24_hours_with_any_body() -> None:
    api = make_api()
    day = 24 * 60 * 60.0
    assert send(api, event(), idempotency_key="k1").status == 200
    expected = "Request with idempotency key k1 has already been processed."
    for body in (event(), event("other"), b"not json"):
        response = send(api, body, idempotency_key="k1", now=day - 1)
        assert outcome(response) == (409, expected)
    assert send(api, event(), idempotency_key="k1", now=day).status == 200
    assert (api.accepted, api.duplicates) == (2, 3)


def test_a_409_has_the_older_wording_if_switched_on() -> None:
    api = make_api(conflict_text="different-body")
    send(api, event(), idempotency_key="k1")
    expected = "Idempotency key already used with a different request body."
    assert outcome(send(api, event(), idempotency_key="k1")) == (409, expected)


def test_a_refused_event_leaves_its_key_unused() -> None:
    api = make_api(limit=1)
    assert send(api, {}, idempotency_key="k1", now=0.0).status == 400
    assert send(api, event(), idempotency_key="k1", now=0.5).status == 429
    assert send(api, event(), idempotency_key="k1", now=2.0).status == 200


def test_a_status_in_burned_by_uses_the_key() -> None:
    api = make_api(limit=1, burned_by=(200, 400, 429))
    assert send(api, {}, idempotency_key="bad", now=0.0).status == 400
    assert send(api, event(), idempotency_key="late", now=0.5).status == 429
    assert send(api, event(), idempotency_key="bad", now=2.0).status == 409
    assert send(api, event(), idempotency_key="late", now=4.0).status == 409


@pytest.mark.parametrize(("policy", "accepted"), [("conflict", 1), ("accept", 2)])
def test_a_key_in_flight_is_handled_according_to_its_switch(
    policy: str, accepted: int
) -> None:
    api = make_api(concurrent_duplicates=policy)
    request = make_request("POST", SEND, event(), idempotency_key="k1")
    first = api.begin(request, 0.0)
    assert isinstance(first, AdmittedRequest)
    second = api.begin(request, 0.1)
    assert isinstance(second, AdmittedRequest) == (policy == "accept")
    assert api.finish(first, 0.2).status == 200
    if isinstance(second, AdmittedRequest):
        assert api.finish(second, 0.3).status == 200
    assert api.accepted == accepted


def test_an_abandoned_request_leaves_its_key_unused() -> None:
    api = make_api()
    admitted = api.begin(make_request("POST", SEND, event(), idempotency_key="k1"), 0.0)
    assert isinstance(admitted, AdmittedRequest)
    api.abandon(admitted)
    assert send(api, event(), idempotency_key="k1").status == 200


def test_an_event_is_accepted_when_its_processing_ends() -> None:
    api = make_api(limit=5)
    admitted = api.begin(make_request("POST", SEND, event()), 1.0)
    assert isinstance(admitted, AdmittedRequest)
    assert not api.team.events
    assert api.finish(admitted, 1.5).headers["x-ratelimit-remaining"] == "4"
    assert api.team.events[0].at == 1.5


@pytest.mark.parametrize(("policy", "status"), [("refuse", 400), ("accept", 200)])
def test_a_key_over_100_characters_is_handled_according_to_its_switch(
    policy: str, status: int
) -> None:
    api = make_api(long_keys=policy)
    assert send(api, event(), idempotency_key="k" * 100).status == 200
    assert send(api, event(), idempotency_key="k" * 101).status == status


def test_an_empty_key_counts_as_absent() -> None:
    api = make_api()
    assert [send(api, event(), idempotency_key="").status for _ in "ab"] == [200, 200]


def test_a_key_is_ignored_on_other_routes() -> None:
    api = make_api()
    request = make_request("GET", "/v1/lists", idempotency_key="k1")
    assert [api.handle(request, 0.0).status for _ in "ab"] == [200, 200]
