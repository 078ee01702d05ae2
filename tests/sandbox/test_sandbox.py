"""The Sandbox class: settings, records, time and assertions."""

import ast
import asyncio
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.clients import KEY

import loops_async.sandbox
from loops_async.sandbox import FAULTS, Behaviour, Sandbox

from .support import AUTH, Connection, event, fetch, send, send_to


def test_the_public_names_are_pinned() -> None:
    assert loops_async.sandbox.__all__ == [
        "FAULTS",
        "Behaviour",
        "Counts",
        "Sandbox",
        "SandboxContact",
        "SandboxEvent",
        "SandboxRequest",
        "SandboxResponse",
    ]


def test_the_sandbox_imports_nothing_from_the_sdk() -> None:
    """A sandbox that shared code with the client would share its errors."""
    for path in Path(loops_async.sandbox.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any("loops_async" in name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2
                assert "loops_async" not in (node.module or "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key": ""}, "api_key must be printable ASCII .* not ''"),
        ({"api_key": " a"}, "api_key"),
        ({"api_key": "schlüssel"}, "api_key"),
        ({"api_key": None}, "api_key"),
        ({"host": ""}, "host must be a name or address, not ''"),
        ({"port": 65536}, "port must be 0 to 65535, not 65536"),
        ({"port": "80"}, "port"),
        ({"rate_limit": 0}, "rate_limit must be a whole number .* not 0"),
        ({"rate_limit": 1.5}, "rate_limit"),
        ({"rate_limit": True}, "rate_limit"),
        ({"period": 0}, "period must be above zero, not 0"),
        ({"period": math.inf}, "period"),
        ({"window": "leaky"}, "window.*leaky"),
        ({"latency": -1}, r"latency must be seconds or .* not \(-1, -1\)"),
        ({"latency": (2, 1)}, r"latency .* not \(2, 1\)"),
        ({"latency_before": (1, 2, 3)}, "latency_before"),
        ({"latency_after": math.nan}, "latency_after"),
        ({"processing": "slow"}, "processing"),
        ({"setup_latency": None}, "setup_latency"),
        ({"faults": {"nope": 0.1}}, "faults: no fault is named 'nope'"),
        (
            {"faults": {"502": -0.1}},
            "faults: the probability of 502 must be a number .*, not -0.1",
        ),
        ({"faults": {"502": 0.6, "503": 0.5}}, "faults must add up to at most 1"),
        ({"properties": {"a": "array"}}, "properties: a must be one of .* 'array'"),
        ({"max_requests": 0}, "max_requests"),
        ({"max_events": -1}, "max_events"),
        ({"faults": 3}, "faults must be a mapping, not 3"),
        ({"properties": ["plan"]}, "properties must be a mapping"),
    ],
)
def test_an_invalid_setting_is_named_with_its_value(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Sandbox(**settings)


@pytest.mark.parametrize(
    "switches",
    [
        {"retry_after": "always"},
        {"burned_by": [99]},
        {"uncounted": ["401"]},
        {"fold_email": None},
    ],
)
def test_an_invalid_switch_is_named(switches: dict[str, Any]) -> None:
    (name,) = switches
    with pytest.raises(ValueError, match=name):
        Behaviour(**switches)


def test_ten_faults_with_probability_a_tenth_are_valid() -> None:
    Sandbox(faults=dict.fromkeys(list(FAULTS)[:10], 0.1))


def test_settings_cannot_be_changed_except_for_a_valid_api_key() -> None:
    sandbox = Sandbox()
    with pytest.raises(AttributeError):
        sandbox.rate_limit = 20
    with pytest.raises(ValueError, match="api_key"):
        sandbox.api_key = ""


def test_a_new_api_key_revokes_the_first() -> None:
    async def use() -> None:
        async with Sandbox(api_key=KEY) as sandbox:
            assert (await fetch(sandbox, "GET", "/api/v1/api-key")).status == 200
            sandbox.api_key = "another"
            assert (await fetch(sandbox, "GET", "/api/v1/api-key")).status == 401

    asyncio.run(use())


def test_a_sandbox_has_a_url_once_started_and_can_restart_after_a_close() -> None:
    async def use() -> None:
        sandbox = Sandbox(api_key=KEY)
        assert "not started, 10 per 1 s sliding" in repr(sandbox)
        with pytest.raises(RuntimeError, match="before it is started"):
            _ = sandbox.url
        await sandbox.aclose()
        await sandbox.start()
        with pytest.raises(RuntimeError, match="already started"):
            await sandbox.start()
        assert sandbox.url.startswith("http://127.0.0.1:")
        assert sandbox.url.endswith("/api")
        assert sandbox.url in repr(sandbox)
        await send_to(sandbox, event())
        await sandbox.aclose()
        async with sandbox:
            await send_to(sandbox, event())
        assert "2 requests, 2 events accepted" in repr(sandbox)

    asyncio.run(use())


def test_an_ipv6_host_is_bracketed_in_the_url() -> None:
    async def use() -> None:
        async with Sandbox(api_key=KEY, host="::1", rate_limit=None) as sandbox:
            assert sandbox.url.startswith("http://[::1]:")
            assert "no limit" in repr(sandbox)
            assert (await send_to(sandbox, event())).status == 200

    try:
        asyncio.run(use())
    except OSError:
        pytest.skip("this machine has no IPv6")


def test_a_recorded_request_has_the_values_received() -> None:
    async def use() -> Sandbox:
        async with Sandbox(api_key=KEY, clock=lambda: 5.0) as sandbox:
            path = "/api/v1/contacts/find?email=a%40b.c"
            await fetch(sandbox, "GET", path, headers={**AUTH, "X-Odd": "1"})
            await send_to(sandbox, event())
        return sandbox

    first, second = asyncio.run(use()).requests
    assert (first.method, first.path) == ("GET", "/api/v1/contacts/find?email=a%40b.c")
    assert (first.status, first.fault, first.at) == (200, None, 5.0)
    assert "X-Odd" in list(first.headers)
    assert first.headers["x-odd"] == "1"
    assert second.body.startswith(b'{"eventName": "signup"')
    assert KEY not in repr(first)


def test_the_records_are_bounded_and_the_counts_are_not() -> None:
    async def use() -> Sandbox:
        async with Sandbox(api_key=KEY, max_requests=2, max_events=1) as sandbox:
            for n in range(4):
                await send_to(sandbox, event(f"e{n}"))
        return sandbox

    sandbox = asyncio.run(use())
    assert len(sandbox.requests) == 2
    assert [event.name for event in sandbox.events] == ["e3"]
    assert (sandbox.counts.requests, sandbox.counts.accepted) == (4, 4)


def test_sandbox_time_follows_the_clock_and_advance() -> None:
    times = [1.0]
    sandbox = Sandbox(clock=lambda: times[0])
    sandbox.advance(10)
    times[0] = 2.0
    assert sandbox.now == 12.0
    for seconds in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="seconds must be zero or more"):
            sandbox.advance(seconds)
    assert 0 <= Sandbox().now < 60


def test_advancing_the_clock_by_a_day_expires_a_key() -> None:
    async def use() -> None:
        async with Sandbox(api_key=KEY) as sandbox:
            statuses = []
            for seconds in (0, 86_000, 401):
                sandbox.advance(seconds)
                statuses.append((await send_to(sandbox, event(), "k1")).status)
            assert statuses == [200, 409, 200]

    asyncio.run(use())


def test_a_reset_keeps_only_settings_url_and_time() -> None:
    async def use() -> None:
        async with Sandbox(api_key=KEY, seed=1, faults={"502": 0.5}) as sandbox:
            url = sandbox.url
            before: list[int] = []
            for trial in range(2):
                statuses = [
                    (await send_to(sandbox, event(plan="pro"), f"k{n}")).status
                    for n in range(8)
                ]
                assert {200, 502} == set(statuses)
                if trial:
                    assert statuses == before
                before = statuses
                sandbox.script("503")
                sandbox.down()
                sandbox.advance(100)
                sandbox.reset()
                assert sandbox.events == []
                assert sandbox.contacts == []
                assert sandbox.requests == []
                assert sandbox.counts.requests == 0
            assert sandbox.url == url
            assert sandbox.now >= 200

    asyncio.run(use())


def test_latencies_are_drawn_from_their_ranges_and_repeat_with_the_seed() -> None:
    def draw() -> list[tuple[float, ...]]:
        sandbox = Sandbox(
            seed="s",
            latency=(0.2, 0.4),
            latency_before=[0, 1],  # type: ignore[arg-type]
            latency_after=0.5,
            processing=(1, 2),
            setup_latency=7,
        )
        delays = [sandbox._simulator.draw_delays(first=n == 0) for n in range(50)]
        return [attrs.astuple(drawn) for drawn in delays]

    drawn = draw()
    assert drawn == draw()
    assert [setup for setup, *_ in drawn] == [7.0] + [0.0] * 49
    for _, before, processing, after in drawn:
        assert 0.1 <= before <= 1.2
        assert 1 <= processing <= 2
        assert 0.6 <= after <= 0.7


def test_mailing_lists_are_ids_or_names_and_default_to_the_documented_one() -> None:
    async def mailing_lists(**settings: Any) -> Any:
        async with Sandbox(api_key=KEY, **settings) as sandbox:
            return (await fetch(sandbox, "GET", "/api/v1/lists")).json()

    async def use() -> None:
        (documented,) = await mailing_lists()
        assert documented["id"] == "cm06f5v0e45nf0ml5754o9cix"
        (bare,) = await mailing_lists(lists=["a"])
        assert (bare["id"], bare["name"]) == ("a", "a")
        (named,) = await mailing_lists(lists={"a": "News"})
        assert (named["id"], named["name"]) == ("a", "News")

    asyncio.run(use())


def test_custom_properties_come_from_the_settings() -> None:
    async def use() -> None:
        kinds = {"plan": "string", "seats": "number"}
        async with Sandbox(api_key=KEY, properties=kinds) as sandbox:
            path = "/api/v1/contacts/properties?list=custom"
            listed = (await fetch(sandbox, "GET", path)).json()
        assert {one["key"]: one["type"] for one in listed} == kinds

    asyncio.run(use())


def test_changes_to_the_returned_records_do_not_change_the_sandbox() -> None:
    sandbox = Sandbox()
    send(sandbox._simulator.api, event(), authorization=f"Bearer {sandbox.api_key}")
    sandbox.events.clear()
    sandbox.contacts[0].properties["source"] = "x"  # type: ignore[index]
    assert len(sandbox.events) == 1
    contact = sandbox.contact(email="ADA@example.com")
    assert contact == sandbox.contacts[0]
    assert contact.properties["source"] == "API"
    assert sandbox.contact(user_id="nobody") is None


@pytest.fixture
def filled() -> Sandbox:
    sandbox = Sandbox(rate_limit=None)
    bodies = [
        event(userId="u1", eventProperties={"a": 1, "b": True}, plan="pro"),
        event(mailingLists={"cm06f5v0e45nf0ml5754o9cix": True}),
        event("login"),
    ]
    for n, body in enumerate(bodies):
        bearer = f"Bearer {sandbox.api_key}"
        api = sandbox._simulator.api
        response = send(api, body, authorization=bearer, idempotency_key=f"k{n}")
        assert response.status == 200
    return sandbox


@pytest.mark.parametrize(
    "wanted",
    [
        {"name": "login"},
        {"name": "signup", "times": 2},
        {"name": "signup", "times": None},
        {"name": "signup", "user_id": "u1"},
        {"name": "signup", "user_id": None},
        {"name": "login", "email": "ada@example.com"},
        {"name": "signup", "event_properties": {"a": 1}},
        {"name": "signup", "event_properties": {"a": 1, "b": True}},
        {"name": "signup", "event_properties": {}, "times": 2},
        {"name": "signup", "contact_properties": {"plan": "pro"}},
        {"name": "signup", "mailing_lists": {"cm06f5v0e45nf0ml5754o9cix": True}},
        {"name": "signup", "idempotency_key": "k1"},
    ],
)
def test_an_assertion_holds_for_a_matching_event(
    filled: Sandbox, wanted: dict[str, Any]
) -> None:
    assert filled.assert_event(**wanted).name == wanted["name"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"name": "logout"},
        {"name": "signup"},
        {"name": "signup", "times": 3},
        {"name": "logout", "times": None},
        {"name": "login", "user_id": "u1"},
        {"name": "login", "email": None},
        {"name": "signup", "event_properties": {"a": True}},
        {"name": "signup", "event_properties": {"b": 1}},
        {"name": "signup", "event_properties": {"c": None}},
        {"name": "signup", "event_properties": None},
    ],
)
def test_an_assertion_fails_without_a_matching_event(
    filled: Sandbox, wanted: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError):
        filled.assert_event(**wanted)


def test_a_failed_assertion_lists_the_accepted_events(filled: Sandbox) -> None:
    with pytest.raises(AssertionError) as caught:
        filled.assert_event("signup", email="eve@example.com", times=2)
    listed = "cm06f5v0e45nf0ml5754o9cix"
    expected = f"""\
expected 2 events with name='signup', email='eve@example.com'; found 0
the sandbox accepted 3 events:
  'signup' email='ada@example.com' user_id='u1' event_properties={{'a': 1, 'b': True}} \
contact_properties={{'plan': 'pro'}} idempotency_key='k0'
  'signup' email='ada@example.com' mailing_lists={{'{listed}': True}} \
idempotency_key='k1'
  'login' email='ada@example.com' idempotency_key='k2'"""
    assert str(caught.value) == expected


def test_a_failed_assertion_lists_only_the_latest_of_many_events() -> None:
    sandbox = Sandbox(rate_limit=None)
    with pytest.raises(AssertionError, match="accepted no event at all"):
        sandbox.assert_event("login", times=None)
    for n in range(25):
        body = event(f"e{n:02}")
        send(sandbox._simulator.api, body, authorization=f"Bearer {sandbox.api_key}")
    with pytest.raises(AssertionError) as caught:
        sandbox.assert_event("login")
    lines = str(caught.value).splitlines()
    assert lines[2] == "  ... 5 earlier events"
    assert "'e05'" in lines[3]
    assert len(lines) == 23


def test_assert_no_event_fails_only_for_a_matching_event(filled: Sandbox) -> None:
    filled.assert_no_event("logout")
    filled.assert_no_event("login", user_id="u1")
    Sandbox().assert_no_event()
    for wanted in ({}, {"name": "login"}, {"email": "ada@example.com"}):
        with pytest.raises(AssertionError, match="expected no event"):
            filled.assert_no_event(**wanted)


def test_an_assertion_with_times_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="times must be at least 1 or None, not 0"):
        Sandbox().assert_event("x", times=0)


def test_one_connection_carries_many_requests() -> None:
    async def use() -> None:
        async with Sandbox(api_key=KEY, rate_limit=None) as sandbox:
            connection = await Connection.open(sandbox)
            for n in range(20):
                await connection.write("POST", "/api/v1/events/send", event(f"e{n}"))
                assert (await connection.read()).status == 200
            await connection.close()
            assert [event.name for event in sandbox.events] == [
                f"e{n}" for n in range(20)
            ]

    asyncio.run(use())
