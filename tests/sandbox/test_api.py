"""Routes, keys, rate limit and idempotency, by plain calls in virtual time."""

from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from loops_async.sandbox._api import Ticket
from loops_async.sandbox._wire import SUCCESS

from .support import KEY, SEND, event, make_call, make_loops, outcome, send

UNAUTHORIZED = {
    "success": False,
    "message": "Invalid API key",
    "error": "Invalid API key",
}


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY]
)
def test_known_routes_answer_401_without_the_key(authorization: str | None) -> None:
    """The body is the one recorded live, alike for no key and a wrong one."""
    call = make_call("GET", "/v1/api-key", authorization=authorization)
    answer = make_loops(limit=5).handle(call, 0.0)
    assert (answer.status, answer.json()) == (401, UNAUTHORIZED)
    assert not answer.headers


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_key_is_let_in_under_any_spelling_of_bearer(scheme: str) -> None:
    call = make_call("GET", "/v1/api-key", authorization=f"{scheme} {KEY}")
    answer = make_loops().handle(call, 0.0)
    assert answer.json() == {"success": True, "teamName": "Sandbox"}


@pytest.mark.parametrize("path", ["/v1/nope", "", "/v1", "/v1/transactional", "//v1"])
def test_unknown_routes_answer_404_to_any_bearer_and_401_to_none(path: str) -> None:
    loops = make_loops(limit=1)
    for bearer in (KEY, "wrong"):
        call = make_call("GET", path, authorization=f"Bearer {bearer}")
        answer = loops.handle(call, 0.0)
        assert (answer.status, answer.json()) == (404, {"message": "Not found"})
        assert not answer.headers
    assert loops.handle(make_call("GET", path, authorization=None), 0.0).status == 401


def test_unknown_routes_can_check_the_key_first() -> None:
    loops = make_loops(unknown_route_checks_key=True)
    wrong = make_call("GET", "/v1/nope", authorization="Bearer wrong")
    assert loops.handle(wrong, 0.0).status == 401
    assert loops.handle(make_call("GET", "/v1/nope"), 0.0).status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "BREW"])
def test_a_wrong_method_answers_405_and_names_the_right_ones(method: str) -> None:
    answer = make_loops(limit=3).handle(make_call(method, SEND), 0.0)
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"
    assert answer.headers["x-ratelimit-remaining"] == "2"


@pytest.mark.parametrize(
    ("stance", "status"), [("not-found", 404), ("accept", 200), ("redirect", 308)]
)
def test_a_trailing_slash_follows_its_switch(stance: str, status: int) -> None:
    loops = make_loops(trailing_slash=stance)
    answer = loops.handle(make_call("GET", "/v1/api-key/"), 0.0)
    assert answer.status == status


def test_a_redirect_keeps_the_query() -> None:
    loops = make_loops(trailing_slash="redirect")
    call = make_call("GET", "/v1/contacts/find/", query={"email": "a+b@c.d"})
    location = loops.handle(call, 0.0).headers["Location"]
    assert location == "/api/v1/contacts/find?email=a%2Bb%40c.d"
    call = make_call("GET", "/v1/lists/")
    assert loops.handle(call, 0.0).headers["Location"] == "/api/v1/lists"


def test_the_rate_headers_count_down_and_the_limit_answers_429() -> None:
    loops = make_loops(limit=2)
    answers = [send(loops, event(), now=0.1 * n) for n in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-limit"] for answer in answers] == ["2"] * 3
    remaining = [answer.headers["x-ratelimit-remaining"] for answer in answers]
    assert remaining == ["1", "0", "0"]
    assert "Retry-After" not in answers[2].headers
    assert answers[2].json()["message"].startswith("[sandbox]")


def test_without_a_limit_there_are_no_rate_headers() -> None:
    loops = make_loops()
    answers = [send(loops, event()) for _ in range(50)]
    assert all(answer == SUCCESS for answer in answers)


@pytest.mark.parametrize(("uncounted", "status"), [((401,), 429), ((401, 429), 200)])
def test_whether_a_429_uses_up_the_limit_is_a_switch(
    uncounted: tuple[int, ...], status: int
) -> None:
    loops = make_loops(limit=1, uncounted=uncounted)
    statuses = [send(loops, event(), now=now).status for now in (0.0, 0.9, 1.1)]
    assert statuses == [200, 429, status]


@pytest.mark.parametrize(("uncounted", "left"), [((401,), "1"), ((), "0")])
def test_whether_a_401_uses_up_the_limit_is_a_switch(
    uncounted: tuple[int, ...], left: str
) -> None:
    loops = make_loops(limit=2, uncounted=uncounted)
    assert send(loops, event(), authorization="Bearer wrong").status == 401
    assert send(loops, event()).headers["x-ratelimit-remaining"] == left


def test_a_401_without_a_limit_counts_nowhere() -> None:
    loops = make_loops(uncounted=())
    assert send(loops, event(), authorization=None).status == 401


@pytest.mark.parametrize("window", ["sliding", "fixed", "bucket"])
def test_an_uncounted_status_gives_its_permit_back(window: Any) -> None:
    loops = make_loops(limit=2, window=window, uncounted=(400, 401))
    for _ in range(5):
        answer = send(loops, {})
        assert answer.status == 400
        assert answer.headers["x-ratelimit-remaining"] == "2"
    assert send(loops, event()).headers["x-ratelimit-remaining"] == "1"


def test_retry_after_comes_in_the_form_asked_for() -> None:
    for form in ("seconds", "date"):
        loops = make_loops(limit=1, retry_after=form)
        send(loops, event(), now=0.0)
        value = send(loops, event(), now=0.5).headers["Retry-After"]
        if form == "seconds":
            # The refusal counts as well: a whole period from now.
            assert value == "1"
        else:
            assert parsedate_to_datetime(value).tzinfo is not None


@pytest.mark.parametrize(
    ("form", "body"),
    [("text", b"[sandbox] Rate limit exceeded."), ("empty", b"")],
)
def test_a_429_can_come_without_json(form: str, body: bytes) -> None:
    loops = make_loops(limit=1, limited_body=form)
    send(loops, event())
    answer = send(loops, event())
    assert (answer.status, answer.body) == (429, body)
    assert answer.content_type == "text/plain"


def test_a_used_key_answers_409_for_24_hours_whatever_the_body() -> None:
    loops = make_loops()
    day = 24 * 60 * 60.0
    assert send(loops, event(), idempotency_key="k1").status == 200
    expected = "Request with idempotency key k1 has already been processed."
    for body in (event(), event("other"), b"not json"):
        answer = send(loops, body, idempotency_key="k1", now=day - 1)
        assert outcome(answer) == (409, expected)
    assert send(loops, event(), idempotency_key="k1", now=day).status == 200
    assert (loops.accepted, loops.duplicates) == (2, 3)


def test_the_409_can_have_its_older_wording() -> None:
    loops = make_loops(conflict_text="different-body")
    send(loops, event(), idempotency_key="k1")
    expected = "Idempotency key already used with a different request body."
    assert outcome(send(loops, event(), idempotency_key="k1")) == (409, expected)


def test_only_an_accepted_event_uses_its_key_up() -> None:
    loops = make_loops(limit=1)
    assert send(loops, {}, idempotency_key="k1", now=0.0).status == 400
    assert send(loops, event(), idempotency_key="k1", now=0.5).status == 429
    assert send(loops, event(), idempotency_key="k1", now=2.0).status == 200


def test_other_answers_can_use_a_key_up() -> None:
    loops = make_loops(limit=1, burned_by=(200, 400, 429))
    assert send(loops, {}, idempotency_key="bad", now=0.0).status == 400
    assert send(loops, event(), idempotency_key="late", now=0.5).status == 429
    assert send(loops, event(), idempotency_key="bad", now=2.0).status == 409
    assert send(loops, event(), idempotency_key="late", now=4.0).status == 409


@pytest.mark.parametrize(("stance", "accepted"), [("conflict", 1), ("accept", 2)])
def test_a_key_in_flight_follows_its_switch(stance: str, accepted: int) -> None:
    loops = make_loops(concurrent_duplicates=stance)
    call = make_call("POST", SEND, event(), idempotency_key="k1")
    first = loops.begin(call, 0.0)
    assert isinstance(first, Ticket)
    second = loops.begin(call, 0.1)
    assert isinstance(second, Ticket) == (stance == "accept")
    assert loops.finish(first, 0.2).status == 200
    if isinstance(second, Ticket):
        assert loops.finish(second, 0.3).status == 200
    assert loops.accepted == accepted


def test_an_abandoned_request_leaves_its_key_unused() -> None:
    loops = make_loops()
    ticket = loops.begin(make_call("POST", SEND, event(), idempotency_key="k1"), 0.0)
    assert isinstance(ticket, Ticket)
    loops.abandon(ticket)
    assert send(loops, event(), idempotency_key="k1").status == 200


def test_an_event_is_accepted_when_its_processing_ends() -> None:
    loops = make_loops(limit=5)
    ticket = loops.begin(make_call("POST", SEND, event()), 1.0)
    assert isinstance(ticket, Ticket)
    assert not loops.team.events
    assert loops.finish(ticket, 1.5).headers["x-ratelimit-remaining"] == "4"
    assert loops.team.events[0].at == 1.5


@pytest.mark.parametrize(("stance", "status"), [("refuse", 400), ("accept", 200)])
def test_a_key_over_100_characters_follows_its_switch(stance: str, status: int) -> None:
    loops = make_loops(long_keys=stance)
    assert send(loops, event(), idempotency_key="k" * 100).status == 200
    assert send(loops, event(), idempotency_key="k" * 101).status == status


def test_an_empty_key_is_no_key() -> None:
    loops = make_loops()
    assert [send(loops, event(), idempotency_key="").status for _ in "ab"] == [200, 200]


def test_keys_mean_nothing_on_other_routes() -> None:
    loops = make_loops()
    call = make_call("GET", "/v1/lists", idempotency_key="k1")
    assert [loops.handle(call, 0.0).status for _ in "ab"] == [200, 200]
