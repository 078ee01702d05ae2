"""A client without a network beside one with, and a sandbox served in a thread."""

import asyncio
import contextlib
import json
import math
import threading
import urllib.error
import urllib.request
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import attrs
import pytest
from integrations.test_public import python
from support import virtual_time as virtual
from support.http_server import free_port

from loops_async import (
    AsyncLoopsClient,
    Attempt,
    Event,
    InputOptions,
    Outbox,
    Outcome,
    RateLimiter,
    Receipt,
    RetryPolicy,
    SendReport,
    backfill,
    errors,
)
from loops_async.sandbox import FAULTS, Behaviour, Sandbox
from loops_async.testing import InMemoryClient, close_everywhere, serving

ONCE = RetryPolicy(attempts=1)
SOON = RetryPolicy(attempts=4, base=0.001)
ADA = "ada@example.com"
LISTS = [f"list-{number:03}" for number in range(50)]

Scene = Callable[[AsyncLoopsClient, Sandbox], Coroutine[Any, Any, object]]


@attrs.frozen
class Case:
    scene: Scene
    sandbox: dict[str, Any]
    client: dict[str, Any]


CASES: dict[str, Case] = {}


def case(
    name: str = "", sandbox: dict[str, Any] | None = None, **client: Any
) -> Callable[[Scene], Scene]:
    """Enter a scene to be played in front of both clients."""

    def enter(scene: Scene) -> Scene:
        key = name or scene.__name__.replace("_", " ")
        assert key not in CASES
        CASES[key] = Case(scene, sandbox or {}, client)
        return scene

    return enter


async def outcome(doing: Awaitable[Any]) -> Any:
    try:
        return told(await doing)
    except (errors.LoopsError, ExceptionGroup) as error:
        return told(error)


def told(what: Any) -> Any:
    """All that a user sees of it, but for the time it took."""
    if isinstance(what, Receipt):
        return attrs.asdict(attrs.evolve(what, elapsed=0.0))
    if isinstance(what, errors.LoopsError):
        # How a connection broke is told in the words of whoever noticed.
        broke = isinstance(what, errors.ConnectionLostError) and not what.args[
            0
        ].startswith("the client was closed")
        seen = {} if broke else {"text": str(what)}
        for name in ("limit", "remaining", "retry_after", "status", "message", "body"):
            seen[name] = getattr(what, name, None)
        return type(what), {
            **seen,
            "attempts": what.attempts,
            "key": what.idempotency_key,
            "maybe_accepted": what.maybe_accepted,
            "retryable": what.retryable,
        }
    if isinstance(what, Outcome):
        return what.index, what.event, told(what.receipt), told(what.error)
    if isinstance(what, SendReport):
        return [told(one) for one in what], told(what.stopped_by)
    if isinstance(what, Attempt):
        return what.number, what.status, type(what.error), what.retry_in is None
    return what


def seen_by(sandbox: Sandbox) -> dict[str, Any]:
    """All that it saw, but for the time; contacts are sent to side by side."""
    requests = defaultdict(list)
    for one in sandbox.requests:
        kept = ("Authorization", "Content-Type", "Idempotency-Key")
        headers = [one.headers.get(name) for name in kept]
        line = (one.method, one.path, one.body, one.status, one.fault, headers)
        who = json.loads(one.body).get("email") if one.body else None
        requests[who].append(line)
    events = defaultdict(list)
    for event in sandbox.events:
        values = attrs.asdict(event)
        events[event.email].append({**values, "at": None, "contact_id": None})
    contacts = [attrs.asdict(attrs.evolve(one, id="")) for one in sandbox.contacts]
    return {
        "requests": requests,
        "events": events,
        "contacts": sorted(contacts, key=lambda one: one["email"]),
        "counts": sandbox.counts,
    }


async def until(condition: Callable[[], object]) -> None:
    """Give way until it holds; the test's time limit is the way out."""
    while not condition():  # noqa: ASYNC110 - of either kind
        await asyncio.sleep(0.001)


async def played(
    scene: Scene, loops: AsyncLoopsClient, sandbox: Sandbox, attempts: list[Attempt]
) -> dict[str, Any]:
    async with loops:
        result = await scene(loops, sandbox)
        stats = attrs.evolve(loops.stats, held=0.0, effective_limit=None)
    return {
        "result": result,
        "stats": stats,
        "attempts": sorted(map(repr, map(told, attempts))),
        **seen_by(sandbox),
    }


# The scenes, which must not look at what they are played for.


def send(loops: AsyncLoopsClient, key: str = "key", **fields: Any) -> Awaitable[Any]:
    fields = {"email": ADA, "idempotency_key": key, **fields}
    return outcome(loops.send_event("signup", **fields))


@case()
async def an_event_with_everything(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return await send(
        loops,
        user_id="7 é",
        event_properties={"n": 1.5, "on": True, "text": "ü\n"},
        contact_properties={"plan": "Pro", "firstName": None},
        mailing_lists={"cm06f5v0e45nf0ml5754o9cix": True},
    )


@case()
async def the_same_event_again(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [await send(loops), await send(loops), await send(loops, "another")]


@case(sandbox={"behaviour": Behaviour(conflict_text="different-body")})
async def another_event_under_the_key(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [await send(loops), await send(loops, event_properties={"n": 2})]


def faults(retry: RetryPolicy, tail: str) -> None:
    for fault in (*FAULTS, "down", "drop"):

        @case(f"{fault}{tail}", retry=retry)
        async def _(loops: AsyncLoopsClient, box: Sandbox, fault: str = fault) -> Any:
            # On a connection that was used before, as most are.
            results = [await send(loops, "before")]
            if fault in FAULTS:
                box.script(fault)
            else:
                box.down(drop=fault == "drop")
            limits = {"timeout": 0.5} if fault.startswith("hang") else {}
            results.append(await send(loops, **limits))
            box.down(False)
            return [*results, await send(loops, "after")]


faults(ONCE, ", tried once")
faults(SOON, ", tried again")


@case(retry=ONCE, sandbox={"behaviour": Behaviour(retry_after="seconds")})
async def a_429_that_says_when(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    box.script("429")
    return await send(loops)


@case(sandbox={"behaviour": Behaviour(limited_body="text")}, retry=ONCE)
async def a_429_of_plain_text(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    box.script("429")
    return await send(loops)


@case(sandbox={"rate_limit": 2, "period": 3600.0}, retry=ONCE, rate_limit=math.inf)
async def the_rate_window(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    results = [await send(loops, f"key {number}") for number in range(3)]
    box.advance(2 * 3600)
    return [*results, await send(loops, "key 2")]


@case(sandbox={"rate_limit": 50})
async def the_rate_headers(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    await send(loops, "first")
    first, second = loops.stats, await send(loops)
    assert (first.limit, first.period) == (50, 1.0)
    # How much time lies between the two is nobody's promise.
    assert second["rate_limit"]["remaining"] in (48, 49)
    return second["rate_limit"]["limit"]


@case(retry=SOON)
async def a_key_that_is_revoked(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    results = [await send(loops, "before")]
    box.api_key = "another"
    results += [await send(loops), await outcome(loops.test_api_key())]
    results.append(await outcome(loops.send_events([EVENTS[0], EVENTS[1]])))
    return results


@case()
async def refusals(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [
        await send(loops, mailing_lists={"unknown": True}),
        await send(loops, email=None, user_id="nobody"),
        await outcome(loops.request("POST", "/v1/contacts/create", json={})),
        await outcome(loops.request("POST", "/v1/contacts/create")),
        await outcome(loops.request("DELETE", "/v1/lists")),
        await outcome(loops.request("GET", "/v1/nothing")),
        await outcome(loops.request("GET", "/v1/lists/")),
    ]


@case()
async def what_is_refused_unsent(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [
        await send(loops, email="ada"),
        await send(loops, event_properties={"n": math.nan}),
    ]


@case(sandbox={"behaviour": Behaviour(trailing_slash="redirect")})
async def a_redirect(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    asked = loops.request("GET", "/v1/contacts/find/", params={"email": ADA})
    return await outcome(asked)


@case(sandbox={"behaviour": Behaviour(require_content_type=True)})
async def requests(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    ada = {"email": ADA, "userId": "7", "plan": "Pro"}
    create, find = "/v1/contacts/create", "/v1/contacts/find"
    properties = "/v1/contacts/properties"
    asked = [
        ("GET", "/v1/api-key", {}),
        ("GET", "/v1/lists", {}),
        ("POST", create, {"json": ada}),
        ("POST", create, {"json": ada}),
        ("PUT", "/v1/contacts/update", {"json": {"email": ADA, "firstName": "Ä"}}),
        ("GET", find, {"params": {"email": ADA}}),
        ("GET", find, {"params": {"userId": "7"}}),
        ("GET", find, {"params": {"userId": "a+b @é/?&=%41;#"}}),
        ("GET", find, {"params": {"email": ADA, "userId": ""}}),
        ("GET", find, {"params": {"userId": 7, "email": True}}),
        ("GET", find, {}),
        ("POST", properties, {"json": {"name": "age", "type": "number"}}),
        ("GET", properties, {"params": {"list": "custom"}}),
        ("POST", "/v1/contacts/delete", {"json": {"email": ADA}}),
        ("POST", "/v1/contacts/delete", {"json": {"email": ADA}}),
        ("GET", "/v1/l%69sts", {}),
        ("GET", "/v1%2Flists", {}),
        ("GET", "/v1/~%7Elists", {}),
    ]
    results = []
    for method, path, arguments in asked:
        answer = await outcome(loops.request(method, path, **arguments))
        if isinstance(answer, dict):
            answer.pop("id", None)
        results.append(answer)
    return results


@case(retry=SOON)
async def what_may_not_be_repeated(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    box.script("close-after")
    body = {"email": ADA}
    results = [await outcome(loops.request("POST", "/v1/contacts/create", json=body))]
    box.script("close-before", "500-before")
    asked = loops.request(
        "POST", "/v1/events/send", json={**body, "eventName": "e"}, idempotency_key="k"
    )
    return [*results, await outcome(asked), await outcome(loops.test_api_key())]


@case(sandbox={"lists": LISTS})
async def an_answer_that_is_too_long(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    whole = await loops.request("GET", "/v1/lists")
    size = len(json.dumps(whole, separators=(",", ":")))
    asked = [
        await outcome(loops.request("GET", "/v1/lists", max_body=most))
        for most in (1, 100, size - 1, size)
    ]
    assert len(whole) == 50
    return asked


@case(retry=ONCE)
async def a_body_that_is_too_large(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    results = []
    for size in (2**20 - 6, 2**20 - 5):  # a megabyte, and a byte more
        body = {"a" * size: 0}
        put = loops.request("PUT", "/v1/contacts/update", json=body)
        with warnings.catch_warnings(action="ignore"):  # aiohttp's, of its size
            results.append(await outcome(put))
    return results


@case(allowed_recipients=["@example.com", "user:7"])
async def who_may_be_sent_to(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    body = {"email": "eve@example.org"}
    stranger = EVENTS[1].replace(user_id="8", idempotency_key="5")
    return [
        await send(loops),
        await send(loops, "2", user_id="7"),
        await send(loops, "3", user_id="8"),
        await send(loops, "4", email="eve@example.org"),
        await outcome(loops.request("PUT", "/v1/contacts/update", json=body)),
        await outcome(loops.send_events([EVENTS[0], stranger])),
    ]


EVENTS = [
    Event(
        "step",
        email=f"{number % 10}@example.com",
        event_properties={"n": number},
        idempotency_key=f"key {number}",
    )
    for number in range(200)
]


@case()
async def two_hundred_events(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    report = await loops.send_events(EVENTS)
    for number in range(10):
        mine = [one for one in box.events if one.email == f"{number}@example.com"]
        order = [one.event_properties["n"] for one in mine]
        assert order == list(range(number, 200, 10))
    return told(report)


@case(retry=RetryPolicy(base=0.001, cap=0.01))
async def two_hundred_with_faults(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    # Of one contact, so that each fault strikes the same event.
    mine = [
        event.replace(email=ADA, idempotency_key=f"ada {number}")
        for number, event in enumerate(EVENTS)
    ]
    box.script(*[None, "close-after", "502", None, "429", None, "garbage-after"] * 4)
    report = await loops.send_events(mine)
    assert [one.event_properties["n"] for one in box.events] == list(range(200))
    return told(report)


@case()
async def a_stream(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    again = EVENTS[5].replace(idempotency_key="another")
    stream = loops.stream_events([*EVENTS[:20], EVENTS[3], again])
    return sorted([told(one) async for one in stream], key=lambda one: one[0])


@case(sandbox={"processing": 0.05})
async def closing_with_grace(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    under_way = asyncio.create_task(send(loops))
    await until(lambda: loops.stats.in_flight)
    await loops.aclose()
    return await under_way, await send(loops, "late")


@case(sandbox={"processing": 0.4})
async def closing_without(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    await loops.test_api_key()  # so that the request leaves at once
    under_way = asyncio.create_task(send(loops))
    await until(lambda: loops.stats.in_flight)
    await asyncio.sleep(0.01)
    await loops.aclose(0.01)
    result = await under_way
    await until(lambda: box.counts.requests == 2)
    return result


@case(
    sandbox={"processing": 0.05},
    rate_limit=lambda: RateLimiter(1, 3600.0),
    deadline=None,
)
async def closing_on_who_waits(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    first, second = (asyncio.create_task(send(loops, key)) for key in "12")
    await until(lambda: loops.stats.in_flight and loops.stats.waiting)
    await asyncio.gather(loops.aclose(), loops.aclose(9))
    return await first, await second


@case(sandbox={"processing": 0.4})
async def who_is_cancelled(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    await loops.test_api_key()
    under_way = asyncio.create_task(send(loops))
    await until(lambda: loops.stats.in_flight)
    await asyncio.sleep(0.01)
    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way
    await until(lambda: box.counts.requests == 2)
    return await send(loops)  # which Loops has all the same


@case(sandbox={"processing": 0.4}, retry=ONCE)
async def a_time_out(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    await loops.test_api_key()
    result = await send(loops, timeout=0.3)
    await until(lambda: box.counts.requests == 2)
    return result


@case(sandbox={"latency_before": 0.4}, retry=ONCE)
async def a_time_out_on_the_way(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    await loops.test_api_key()
    result = await send(loops, timeout=0.3)
    await until(lambda: box.counts.requests == 2)
    return result


@case(sandbox={"processing": 30.0}, timeout=0.7, retry=SOON)
async def a_time_out_with_its_key_in_flight(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return await send(loops)


@case(sandbox={"processing": 30.0}, deadline=0.7, retry=SOON)
async def a_deadline(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return await send(loops)


@case(sandbox={"latency": (0.0, 0.02), "latency_after": 0.001, "seed": 7})
async def latency(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [await send(loops, f"key {number}") for number in range(5)]


@case(
    sandbox={"seed": 3, "faults": {"502": 0.15, "close-after": 0.15, "429": 0.1}},
    retry=RetryPolicy(attempts=30, base=0.001, cap=0.001),
)
async def seeded_faults(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [await send(loops, f"key {number}") for number in range(30)]


@case(
    sandbox={"properties": {"age": "number"}},
    timeout=None,
    deadline=None,
    retry=ONCE,
)
async def without_any_limit(loops: AsyncLoopsClient, box: Sandbox) -> Any:
    box.script("truncate-after", None)
    return [await send(loops), await send(loops, contact_properties={"age": 3})]


@pytest.mark.parametrize("name", CASES)
def test_it_is_as_with_a_network(name: str) -> None:
    chosen = CASES[name]
    settings = {"rate_limit": None, **chosen.sandbox}

    async def main() -> None:
        attempts: tuple[list[Attempt], list[Attempt]] = ([], [])
        common = {"retry": SOON, **chosen.client}
        if callable(make := common.get("rate_limit")):
            common["rate_limit"] = make()
        async with Sandbox(**settings) as served:
            rate = math.inf if served.rate_limit is None else served.rate_limit
            real = AsyncLoopsClient(
                served.api_key,
                base_url=served.url,
                on_attempt=attempts[0].append,
                **{"rate_limit": rate, **common},
            )
            expected = await played(chosen.scene, real, served, attempts[0])
        if callable(make):
            common["rate_limit"] = make()
        memory = InMemoryClient(
            Sandbox(**settings), on_attempt=attempts[1].append, **common
        )
        found = await played(chosen.scene, memory, memory.sandbox, attempts[1])
        assert found == expected

    asyncio.run(main())


def test_it_opens_no_socket_and_imports_no_aiohttp() -> None:
    seen = python(
        "import asyncio, socket, sys\n"
        "from loops_async.testing import InMemoryClient\n"
        "async def main():\n"
        "    def never(*_):\n"
        "        raise AssertionError\n"
        "    socket.socket.connect = socket.socket.bind = never\n"
        "    async with InMemoryClient() as loops:\n"
        "        loops.sandbox.script('close-after')\n"
        "        await loops.send_event('e', email='ada@example.com')\n"
        "        loops.sandbox.assert_event('e')\n"
        "asyncio.run(main())\n"
        "print('aiohttp' in sys.modules)"
    )
    assert seen == "False"


@pytest.mark.parametrize("fault", ["hang-before", "hang-after"])
def test_what_hangs_is_timed_out_at_once(fault: str) -> None:
    """As a time-out; only the pauses between the attempts pass."""

    async def main() -> None:
        async with InMemoryClient() as loops:
            loops.sandbox.script(fault, fault)
            receipt = await loops.send_event("e", email=ADA)
            assert receipt.duplicate is (fault == "hang-after")
            assert receipt.attempts == 3
        loop = asyncio.get_running_loop()
        assert loop.time() < 0.1  # of 30 s each, were they waited for
        async with InMemoryClient(retry=ONCE) as loops:
            loops.sandbox.script(fault)
            with pytest.raises(errors.RequestTimeoutError) as caught:
                await loops.send_event("e", email=ADA)
            assert caught.value.maybe_accepted

    virtual.run(main())


def test_a_loops_that_takes_its_time_takes_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sandbox = Sandbox(
            rate_limit=None, latency=4.0, processing=2.0, latency_after=1.0
        )
        async with InMemoryClient(sandbox) as loops:
            await loops.send_event("e", email=ADA)
            assert loop.time() == pytest.approx(7.0)
            assert len(sandbox.requests) == 1

    virtual.run(main())


def test_a_request_may_run_out_of_time_as_the_grace_does() -> None:
    async def main() -> None:
        loops = InMemoryClient(Sandbox(rate_limit=None, latency=60.0), timeout=1.0)
        sending = asyncio.create_task(loops.send_event("e", email=ADA))
        await virtual.settle()
        await loops.aclose(1.0 - 1e-10)  # less than the clock can tell apart
        with pytest.raises(errors.LoopsError):
            await sending

    virtual.run(main())


def test_one_client_serves_event_loops_in_succession() -> None:
    loops = InMemoryClient()
    for number in range(3):
        event = Event("e", email=ADA, event_properties={"n": number})
        assert not asyncio.run(loops.send_event(event)).duplicate
        assert asyncio.run(loops.send_event(event)).duplicate
    assert [one.event_properties["n"] for one in loops.sandbox.events] == [0, 1, 2]
    assert loops.stats.accepted == loops.stats.duplicates == 3


def test_one_client_serves_event_loops_side_by_side() -> None:
    loops = InMemoryClient(Sandbox(rate_limit=None, processing=0.01))
    barrier = threading.Barrier(3)

    async def main(name: str) -> None:
        await loops.test_api_key()
        await asyncio.to_thread(barrier.wait)
        transports = []
        for number in range(10):
            await loops.send_event(f"{name}{number}", email=f"{name}@example.com")
            transports.append(loops._deliveries[asyncio.get_running_loop()].transport)
        assert {one.loop for one in transports} == {asyncio.get_running_loop()}

    threads = [
        threading.Thread(target=asyncio.run, args=(main(name),)) for name in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "abc":
        mine = [one.name for one in loops.sandbox.events if one.name[0] == name]
        assert mine == [f"{name}{number}" for number in range(10)]


def test_its_rate_is_that_of_the_sandbox() -> None:
    stats = InMemoryClient(Sandbox(rate_limit=5, period=60.0)).stats
    assert (stats.limit, stats.period) == (5, 60.0)
    assert InMemoryClient().stats.limit is None
    stats = InMemoryClient(Sandbox(rate_limit=5), rate_limit=3).stats
    assert (stats.limit, stats.period) == (3, 1.0)


def test_an_outbox_and_a_backfill_send_in_memory(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("email\nbo@example.com\ncy@example.com\n")

    async def main() -> None:
        async with InMemoryClient() as loops:
            async with Outbox(tmp_path / "events.db", loops) as outbox:
                loops.sandbox.script("close-after")
                await outbox.put(Event("signup", email=ADA))
                assert await outbox.flush(10) == 0
            reading = InputOptions(event_name="signup")
            report = await backfill(tmp_path / "old.csv", loops, input_options=reading)
            assert report.accepted == 2
            for name in ("ada", "bo", "cy"):
                loops.sandbox.assert_event("signup", email=f"{name}@example.com")

    asyncio.run(main())


def post(sandbox: Sandbox, number: int) -> int:
    """Send an event with the standard library, from a thread."""
    body = {"eventName": "e", "email": f"{number}@example.com", "n": number}
    request = urllib.request.Request(
        f"{sandbox.url}/v1/events/send",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {sandbox.api_key}"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def test_a_sandbox_is_served_to_plain_threads() -> None:
    with serving(Sandbox(rate_limit=None)) as sandbox:
        threads = [
            threading.Thread(target=post, args=(sandbox, number)) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sandbox.events) == len(sandbox.contacts) == 8
    assert len(sandbox.events) == 8  # and can be read afterwards
    with pytest.raises(OSError, match="refused"):
        post(sandbox, 9)


def test_a_sandbox_is_served_beside_a_running_loop() -> None:
    async def main() -> None:
        with serving(Sandbox()) as sandbox:
            async with AsyncLoopsClient(sandbox.api_key, base_url=sandbox.url) as loops:
                await loops.send_event("e", email=ADA)
            sandbox.assert_event("e")

    asyncio.run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_serving_leaves_no_thread(host: str) -> None:
    before = threading.enumerate()
    with pytest.raises(ZeroDivisionError), serving(Sandbox(host=host)):
        raise ZeroDivisionError
    assert threading.enumerate() == before


def test_what_cannot_be_served_leaves_no_thread() -> None:
    port = free_port()
    with serving(Sandbox(port=port)) as sandbox:
        before = threading.enumerate()
        with pytest.raises(OSError, match="in use"), serving(Sandbox(port=port)):
            pass
        with pytest.raises(RuntimeError, match="started"), serving(sandbox):
            pass
        assert threading.enumerate() == before
        assert post(sandbox, 1) == 200  # the first is untouched


def test_a_sandbox_is_read_and_steered_while_it_is_hammered() -> None:
    with serving(Sandbox(rate_limit=1000, max_requests=50)) as sandbox:
        done = threading.Event()

        async def hammer() -> None:
            async with AsyncLoopsClient(
                sandbox.api_key, base_url=sandbox.url, rate_limit=math.inf, retry=ONCE
            ) as loops:
                number = 0
                while not done.is_set():
                    number += 20
                    contacts = {f"p{number % 70}": number}
                    sends = (
                        loops.send_event(
                            "e",
                            email=f"{n % 300}@example.com",
                            contact_properties=contacts,
                        )
                        for n in range(number, number + 20)
                    )
                    await asyncio.gather(*sends, return_exceptions=True)

        thread = threading.Thread(target=asyncio.run, args=(hammer(),))
        thread.start()
        try:
            for turn in range(300):
                for event in sandbox.events:
                    assert event.name == "e"
                assert all(one.email for one in sandbox.contacts)
                assert len(sandbox.requests) <= 50
                counts = sandbox.counts
                assert counts.requests >= counts.limited
                assert repr(sandbox)
                sandbox.contact(email="7@example.com")
                sandbox.script("502", None, "close-after")
                sandbox.advance(0.1)
                with contextlib.suppress(AssertionError):
                    sandbox.assert_event("e", email="7@example.com", times=None)
                if turn % 10 == 0:
                    sandbox.down(turn % 20 == 0, drop=turn % 40 == 0)
                if turn % 50 == 0:
                    sandbox.reset()
        finally:
            done.set()
            thread.join()
        sandbox.reset()
        assert post(sandbox, 1) == 200


def closing(loop: asyncio.AbstractEventLoop, client: AsyncLoopsClient) -> Any:
    loop.run_until_complete(client.send_event("e", email=ADA))
    return client._deliveries[loop].transport


def test_a_client_is_closed_in_every_loop_it_was_used_in() -> None:
    """In one that stands still, one that runs elsewhere, and one that is closed."""
    with serving(Sandbox(rate_limit=None)) as sandbox:
        client = AsyncLoopsClient(
            sandbox.api_key, base_url=sandbox.url, rate_limit=math.inf
        )
        still, elsewhere, closed = (asyncio.new_event_loop() for _ in range(3))
        transports = [closing(loop, client) for loop in (still, elsewhere, closed)]
        closed.run_until_complete(closed.shutdown_asyncgens())
        closed.close()
        thread = threading.Thread(target=elsewhere.run_forever)
        thread.start()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), elsewhere).result()
        close_everywhere(client)
        assert all(transport._session.closed for transport in transports)
        elsewhere.call_soon_threadsafe(elsewhere.stop)
        thread.join()
        for loop in (still, elsewhere):
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def test_a_client_whose_loops_are_gone_is_closed_too() -> None:
    client = InMemoryClient()
    asyncio.run(client.send_event("e", email=ADA))
    close_everywhere(client)
    with pytest.raises(errors.ClientClosedError):
        asyncio.run(client.send_event("e", email=ADA))
