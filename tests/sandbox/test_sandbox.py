"""The Sandbox object: settings, records, time and assertions."""

import ast
import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

import loops_async.sandbox
from loops_async.sandbox import FAULTS, Behaviour, Sandbox

from .support import AUTH, KEY, Connection, ask, ask_send, event, send


def test_the_public_names_are_these() -> None:
    assert loops_async.sandbox.__all__ == [
        "FAULTS",
        "Behaviour",
        "Counts",
        "Sandbox",
        "SandboxContact",
        "SandboxEvent",
        "SandboxRequest",
    ]


def test_it_imports_nothing_of_the_sdk() -> None:
    """An oracle that shared code with the client would share its mistakes."""
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
        ({"faults": {"502": -0.1}}, "faults: 502 needs a probability, not -0.1"),
        ({"faults": {"502": 0.6, "503": 0.5}}, "faults must add up to at most 1"),
        ({"properties": {"a": "array"}}, "properties: a must be one of .* 'array'"),
        ({"max_requests": 0}, "max_requests"),
        ({"max_events": -1}, "max_events"),
        ({"faults": 3}, "faults must be a mapping, not 3"),
        ({"properties": ["plan"]}, "properties must be a mapping"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(
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
def test_a_bad_switch_is_named(switches: dict[str, Any]) -> None:
    (name,) = switches
    with pytest.raises(ValueError, match=name):
        Behaviour(**switches)


def test_ten_faults_of_a_tenth_each_are_not_too_many() -> None:
    Sandbox(faults=dict.fromkeys(list(FAULTS)[:10], 0.1))


def test_settings_stay_as_they_were_made() -> None:
    sandbox = Sandbox()
    with pytest.raises(AttributeError):
        sandbox.rate_limit = 20
    with pytest.raises(ValueError, match="api_key"):
        sandbox.api_key = ""


def test_another_api_key_revokes_the_first() -> None:
    async def scene() -> None:
        async with Sandbox(api_key=KEY) as sandbox:
            assert (await ask(sandbox, "GET", "/api/v1/api-key")).status == 200
            sandbox.api_key = "another"
            assert (await ask(sandbox, "GET", "/api/v1/api-key")).status == 401

    asyncio.run(scene())


def test_it_has_an_address_only_once_started_and_starts_once_at_a_time() -> None:
    async def scene() -> None:
        sandbox = Sandbox(api_key=KEY)
        assert "not started, 10 per 1 s sliding" in repr(sandbox)
        with pytest.raises(RuntimeError, match="before it is started"):
            _ = sandbox.url
        await sandbox.aclose()
        await sandbox.start()
        with pytest.raises(RuntimeError, match="started already"):
            await sandbox.start()
        assert sandbox.url.startswith("http://127.0.0.1:")
        assert sandbox.url.endswith("/api")
        assert sandbox.url in repr(sandbox)
        await ask_send(sandbox, event())
        await sandbox.aclose()
        async with sandbox:
            await ask_send(sandbox, event())
        assert "2 requests, 2 events accepted" in repr(sandbox)

    asyncio.run(scene())


def test_an_ipv6_address_is_bracketed() -> None:
    async def scene() -> None:
        async with Sandbox(api_key=KEY, host="::1", rate_limit=None) as sandbox:
            assert sandbox.url.startswith("http://[::1]:")
            assert "no limit" in repr(sandbox)
            assert (await ask_send(sandbox, event())).status == 200

    try:
        asyncio.run(scene())
    except OSError:
        pytest.skip("no IPv6 here")


def test_the_record_of_a_request_holds_what_was_received() -> None:
    async def scene() -> Sandbox:
        async with Sandbox(api_key=KEY, clock=lambda: 5.0) as sandbox:
            path = "/api/v1/contacts/find?email=a%40b.c"
            await ask(sandbox, "GET", path, headers={**AUTH, "X-Odd": "1"})
            await ask_send(sandbox, event())
        return sandbox

    first, second = asyncio.run(scene()).requests
    assert (first.method, first.path) == ("GET", "/api/v1/contacts/find?email=a%40b.c")
    assert (first.status, first.fault, first.at) == (200, None, 5.0)
    assert "X-Odd" in list(first.headers)
    assert first.headers["x-odd"] == "1"
    assert second.body.startswith(b'{"eventName": "signup"')
    assert KEY not in repr(first)


def test_the_lists_are_bounded_and_the_counts_are_not() -> None:
    async def scene() -> Sandbox:
        async with Sandbox(api_key=KEY, max_requests=2, max_events=1) as sandbox:
            for n in range(4):
                await ask_send(sandbox, event(f"e{n}"))
        return sandbox

    sandbox = asyncio.run(scene())
    assert len(sandbox.requests) == 2
    assert [one.name for one in sandbox.events] == ["e3"]
    assert (sandbox.counts.requests, sandbox.counts.accepted) == (4, 4)


def test_time_moves_by_its_clock_and_by_hand() -> None:
    times = [1.0]
    sandbox = Sandbox(clock=lambda: times[0])
    sandbox.advance(10)
    times[0] = 2.0
    assert sandbox.now == 12.0
    for seconds in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="seconds must be zero or more"):
            sandbox.advance(seconds)
    assert 0 <= Sandbox().now < 60


def test_a_day_can_pass_at_once() -> None:
    async def scene() -> None:
        async with Sandbox(api_key=KEY) as sandbox:
            statuses = []
            for seconds in (0, 86_000, 401):
                sandbox.advance(seconds)
                statuses.append((await ask_send(sandbox, event(), "k1")).status)
            assert statuses == [200, 409, 200]

    asyncio.run(scene())


def test_a_reset_forgets_everything_but_settings_address_and_time() -> None:
    async def scene() -> None:
        async with Sandbox(api_key=KEY, seed=1, faults={"502": 0.5}) as sandbox:
            url = sandbox.url
            before: list[int] = []
            for trial in range(2):
                statuses = [
                    (await ask_send(sandbox, event(plan="pro"), f"k{n}")).status
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

    asyncio.run(scene())


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
        delays = [sandbox._world.draw_delays(first=n == 0) for n in range(50)]
        return [(one.setup, one.before, one.processing, one.after) for one in delays]

    drawn = draw()
    assert drawn == draw()
    assert [setup for setup, *_ in drawn] == [7.0] + [0.0] * 49
    for _, before, processing, after in drawn:
        assert 0.1 <= before <= 1.2
        assert 1 <= processing <= 2
        assert 0.6 <= after <= 0.7


def test_lists_are_ids_or_named_and_the_documented_one_is_known() -> None:
    async def known(**settings: Any) -> Any:
        async with Sandbox(api_key=KEY, **settings) as sandbox:
            return (await ask(sandbox, "GET", "/api/v1/lists")).json()

    async def scene() -> None:
        (documented,) = await known()
        assert documented["id"] == "cm06f5v0e45nf0ml5754o9cix"
        (bare,) = await known(lists=["a"])
        assert (bare["id"], bare["name"]) == ("a", "a")
        (named,) = await known(lists={"a": "News"})
        assert (named["id"], named["name"]) == ("a", "News")

    asyncio.run(scene())


def test_the_properties_of_the_team_are_a_setting() -> None:
    async def scene() -> None:
        kinds = {"plan": "string", "seats": "number"}
        async with Sandbox(api_key=KEY, properties=kinds) as sandbox:
            path = "/api/v1/contacts/properties?list=custom"
            listed = (await ask(sandbox, "GET", path)).json()
        assert {one["key"]: one["type"] for one in listed} == kinds

    asyncio.run(scene())


def test_what_a_client_changes_in_the_views_changes_nothing_inside() -> None:
    sandbox = Sandbox()
    send(sandbox._world.loops, event(), authorization=f"Bearer {sandbox.api_key}")
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
        loops = sandbox._world.loops
        answer = send(loops, body, authorization=bearer, idempotency_key=f"k{n}")
        assert answer.status == 200
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
def test_an_assertion_holds_for_what_arrived(
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
def test_an_assertion_fails_for_what_did_not(
    filled: Sandbox, wanted: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError):
        filled.assert_event(**wanted)


def test_a_failed_assertion_shows_what_did_arrive(filled: Sandbox) -> None:
    with pytest.raises(AssertionError) as caught:
        filled.assert_event("signup", email="eve@example.com", times=2)
    listed = "cm06f5v0e45nf0ml5754o9cix"
    expected = f"""\
expected 2 events with name='signup', email='eve@example.com'; 0 arrived
3 arrived in all:
  'signup' email='ada@example.com' user_id='u1' event_properties={{'a': 1, 'b': True}} \
contact_properties={{'plan': 'pro'}} idempotency_key='k0'
  'signup' email='ada@example.com' mailing_lists={{'{listed}': True}} \
idempotency_key='k1'
  'login' email='ada@example.com' idempotency_key='k2'"""
    assert str(caught.value) == expected


def test_a_failed_assertion_shows_the_latest_of_many() -> None:
    sandbox = Sandbox(rate_limit=None)
    with pytest.raises(AssertionError, match="no event arrived at all"):
        sandbox.assert_event("login", times=None)
    for n in range(25):
        body = event(f"e{n:02}")
        send(sandbox._world.loops, body, authorization=f"Bearer {sandbox.api_key}")
    with pytest.raises(AssertionError) as caught:
        sandbox.assert_event("login")
    lines = str(caught.value).splitlines()
    assert lines[2] == "  ... 5 earlier ones"
    assert "'e05'" in lines[3]
    assert len(lines) == 23


def test_no_event_can_be_asserted(filled: Sandbox) -> None:
    filled.assert_no_event("logout")
    filled.assert_no_event("login", user_id="u1")
    Sandbox().assert_no_event()
    for wanted in ({}, {"name": "login"}, {"email": "ada@example.com"}):
        with pytest.raises(AssertionError, match="expected no event"):
            filled.assert_no_event(**wanted)


def test_to_expect_an_event_no_times_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="times must be at least 1 or None, not 0"):
        Sandbox().assert_event("x", times=0)


def test_a_connection_may_carry_many_requests() -> None:
    async def scene() -> None:
        async with Sandbox(api_key=KEY, rate_limit=None) as sandbox:
            connection = await Connection.open(sandbox)
            for n in range(20):
                await connection.write("POST", "/api/v1/events/send", event(f"e{n}"))
                assert (await connection.read()).status == 200
            await connection.close()
            assert [one.name for one in sandbox.events] == [f"e{n}" for n in range(20)]

    asyncio.run(scene())
