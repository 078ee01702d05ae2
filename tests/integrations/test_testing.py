"""The in-memory client compared with a real one, and a sandbox served from a thread."""

import ast
import asyncio
import contextlib
import inspect
import json
import math
import re
import threading
import time
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
from support.waiting import until

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
    testing,
)
from loops_async.sandbox import FAULTS, Behaviour, Sandbox
from loops_async.testing import (
    InMemoryClient,
    MemoryTransport,
    close_everywhere,
    rate_of,
    serving,
)

ONCE = RetryPolicy(attempts=1)
SOON = RetryPolicy(attempts=4, base=0.001)
ADA = "ada@example.com"
LISTS = [f"list-{number:03}" for number in range(50)]

Use = Callable[[AsyncLoopsClient, Sandbox], Coroutine[Any, Any, object]]


@attrs.frozen
class Case:
    use: Use
    sandbox: dict[str, Any]
    client: dict[str, Any]


CASES: dict[str, Case] = {}


def case(
    name: str = "", sandbox: dict[str, Any] | None = None, **client: Any
) -> Callable[[Use], Use]:
    """Register a function that uses either client."""

    def register(use: Use) -> Use:
        key = name or use.__name__.replace("_", " ")
        assert key not in CASES
        CASES[key] = Case(use, sandbox or {}, client)
        return use

    return register


async def outcome(operation: Awaitable[Any]) -> Any:
    try:
        return comparable(await operation)
    except (errors.LoopsError, ExceptionGroup) as error:
        return comparable(error)


def comparable(result: Any) -> Any:
    """Return the public values of a result, without its durations."""
    if isinstance(result, Receipt):
        return attrs.asdict(attrs.evolve(result, elapsed=0.0))
    if isinstance(result, errors.LoopsError):
        # The text about a broken connection differs, because it comes from aiohttp.
        lost = isinstance(result, errors.ConnectionLostError)
        broken = lost and not str(result).startswith("the client was closed")
        values = {} if broken else {"text": str(result)}
        for name in ("limit", "remaining", "retry_after", "status", "message", "body"):
            values[name] = getattr(result, name, None)
        return type(result), {
            **values,
            "attempts": result.attempts,
            "key": result.idempotency_key,
            "maybe_accepted": result.maybe_accepted,
            "retryable": result.retryable,
        }
    if isinstance(result, Outcome):
        return (
            result.index,
            result.event,
            comparable(result.receipt),
            comparable(result.error),
        )
    if isinstance(result, SendReport):
        outcomes = [comparable(outcome) for outcome in result]
        return outcomes, comparable(result.stopped_by)
    if isinstance(result, Attempt):
        return result.number, result.status, type(result.error), result.retry_in is None
    return result


def records_of(sandbox: Sandbox) -> dict[str, Any]:
    """Return the records of a sandbox per contact, without times.

    Contacts are sent to concurrently, so the order across contacts varies.
    """
    requests = defaultdict(list)
    for request in sandbox.requests:
        names = ("Authorization", "Content-Type", "Idempotency-Key")
        headers = [request.headers.get(name) for name in names]
        email = json.loads(request.body).get("email") if request.body else None
        requests[email].append(
            (
                request.method,
                request.path,
                request.body,
                request.status,
                request.fault,
                headers,
            )
        )
    events = defaultdict(list)
    for event in sandbox.events:
        values = attrs.asdict(event)
        events[event.email].append({**values, "at": None, "contact_id": None})
    contacts = [
        attrs.asdict(attrs.evolve(contact, id="")) for contact in sandbox.contacts
    ]
    return {
        "requests": requests,
        "events": events,
        "contacts": sorted(contacts, key=lambda contact: contact["email"]),
        "counts": sandbox.counts,
    }


async def run_case(
    use: Use, loops: AsyncLoopsClient, sandbox: Sandbox, attempts: list[Attempt]
) -> dict[str, Any]:
    async with loops:
        result = await use(loops, sandbox)
        stats = attrs.evolve(loops.stats, held=0.0, effective_limit=None)
    return {
        "result": result,
        "stats": stats,
        "attempts": sorted(map(repr, map(comparable, attempts))),
        **records_of(sandbox),
    }


async def until_processing(sandbox: Sandbox, key: str = "key") -> None:
    """Wait until the sandbox has received a request with the key."""
    await until(lambda: sandbox._simulator.api.keys.is_in_flight(key))


# The functions below must not depend on which of the two clients they get.


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
async def an_event_that_is_sent_again(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [await send(loops), await send(loops), await send(loops, "another")]


@case(sandbox={"behaviour": Behaviour(conflict_text="different-body")})
async def another_event_with_the_same_key(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [await send(loops), await send(loops, event_properties={"n": 2})]


def register_faults(retry: RetryPolicy, suffix: str) -> None:
    for fault in (*FAULTS, "down", "drop"):

        @case(f"{fault}{suffix}", retry=retry)
        async def _(
            loops: AsyncLoopsClient, sandbox: Sandbox, fault: str = fault
        ) -> Any:
            # The fault strikes on a connection that is already in use, as most are.
            results = [await send(loops, "before")]
            if fault in FAULTS:
                sandbox.script(fault)
            else:
                sandbox.down(drop=fault == "drop")
            timeouts = {"timeout": 2.0} if fault.startswith("hang") else {}
            results.append(await send(loops, **timeouts))
            sandbox.down(False)
            return [*results, await send(loops, "after")]


register_faults(ONCE, " without a retry")
register_faults(SOON, " with retries")


@case(retry=ONCE, sandbox={"behaviour": Behaviour(retry_after="seconds")})
async def a_429_with_retry_after(loops: AsyncLoopsClient, sandbox: Sandbox) -> Any:
    sandbox.script("429")
    return await send(loops)


@case(sandbox={"behaviour": Behaviour(limited_body="text")}, retry=ONCE)
async def a_429_with_a_plain_text(loops: AsyncLoopsClient, sandbox: Sandbox) -> Any:
    sandbox.script("429")
    return await send(loops)


@case(sandbox={"rate_limit": 2, "period": 3600.0}, retry=ONCE, rate_limit=math.inf)
async def the_rate_window(loops: AsyncLoopsClient, sandbox: Sandbox) -> Any:
    results = [await send(loops, f"key {number}") for number in range(3)]
    sandbox.advance(2 * 3600)
    return [*results, await send(loops, "key 2")]


@case(sandbox={"rate_limit": 50})
async def the_rate_headers(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    await send(loops, "first")
    first, second = loops.stats, await send(loops)
    assert (first.limit, first.period) == (50, 1.0)
    # The second is 49 if more than a second lies between the two requests.
    assert second["rate_limit"]["remaining"] in (48, 49)
    return second["rate_limit"]["limit"]


@case(retry=SOON)
async def a_revoked_api_key(loops: AsyncLoopsClient, sandbox: Sandbox) -> Any:
    results = [await send(loops, "before")]
    sandbox.api_key = "another"
    results += [await send(loops), await outcome(loops.test_api_key())]
    results.append(await outcome(loops.send_events([EVENTS[0], EVENTS[1]])))
    return results


@case()
async def requests_that_the_api_refuses(loops: AsyncLoopsClient, _: Sandbox) -> Any:
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
async def events_that_the_client_refuses(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [
        await send(loops, email="ada"),
        await send(loops, event_properties={"n": math.nan}),
    ]


@case(sandbox={"behaviour": Behaviour(trailing_slash="redirect")})
async def a_redirect(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    request = loops.request("GET", "/v1/contacts/find/", params={"email": ADA})
    return await outcome(request)


@case(sandbox={"behaviour": Behaviour(require_content_type=True)})
async def requests_to_other_routes(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    ada = {"email": ADA, "userId": "7", "plan": "Pro"}
    create, find = "/v1/contacts/create", "/v1/contacts/find"
    properties = "/v1/contacts/properties"
    request = [
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
    for method, path, arguments in request:
        result = await outcome(loops.request(method, path, **arguments))
        if isinstance(result, dict):
            result.pop("id", None)
        results.append(result)
    return results


@case(retry=SOON)
async def requests_without_an_idempotency_key(
    loops: AsyncLoopsClient, sandbox: Sandbox
) -> Any:
    sandbox.script("close-after")
    body = {"email": ADA}
    results = [await outcome(loops.request("POST", "/v1/contacts/create", json=body))]
    sandbox.script("close-before", "500-before")
    request = loops.request(
        "POST", "/v1/events/send", json={**body, "eventName": "e"}, idempotency_key="k"
    )
    return [*results, await outcome(request), await outcome(loops.test_api_key())]


@case(sandbox={"lists": LISTS})
async def a_response_that_is_too_long(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    whole = await loops.request("GET", "/v1/lists")
    size = len(json.dumps(whole, separators=(",", ":")))
    request = [
        await outcome(loops.request("GET", "/v1/lists", max_body=max_body))
        for max_body in (1, 100, size - 1, size)
    ]
    assert len(whole) == 50
    return request


@case(retry=ONCE)
async def a_body_that_is_too_large(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    results = []
    for size in (2**20 - 6, 2**20 - 5):  # a body of one megabyte, and one byte more
        body = {"a" * size: 0}
        put = loops.request("PUT", "/v1/contacts/update", json=body)
        with warnings.catch_warnings(action="ignore"):  # aiohttp warns of the size
            results.append(await outcome(put))
    return results


@case(allowed_recipients=["@example.com", "user:7"])
async def allowed_recipients(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    body = {"email": "eve@example.org"}
    not_allowed = EVENTS[1].replace(user_id="8", idempotency_key="5")
    return [
        await send(loops),
        await send(loops, "2", user_id="7"),
        await send(loops, "3", user_id="8"),
        await send(loops, "4", email="eve@example.org"),
        await outcome(loops.request("PUT", "/v1/contacts/update", json=body)),
        await outcome(loops.send_events([EVENTS[0], not_allowed])),
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
async def two_hundred_events(loops: AsyncLoopsClient, sandbox: Sandbox) -> Any:
    report = await loops.send_events(EVENTS)
    for number in range(10):
        email = f"{number}@example.com"
        events = [event for event in sandbox.events if event.email == email]
        order = [event.event_properties["n"] for event in events]
        assert order == list(range(number, 200, 10))
    return comparable(report)


@case(retry=RetryPolicy(base=0.001, cap=0.01))
async def two_hundred_with_faults(loops: AsyncLoopsClient, sandbox: Sandbox) -> Any:
    # All events have the same contact, so that each fault strikes the same event.
    events = [
        event.replace(email=ADA, idempotency_key=f"ada {number}")
        for number, event in enumerate(EVENTS)
    ]
    sandbox.script(
        *[None, "close-after", "502", None, "429", None, "garbage-after"] * 4
    )
    report = await loops.send_events(events)
    assert [event.event_properties["n"] for event in sandbox.events] == list(range(200))
    return comparable(report)


@case()
async def a_stream(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    repeated = EVENTS[5].replace(idempotency_key="another")
    stream = loops.stream_events([*EVENTS[:20], EVENTS[3], repeated])
    return sorted([comparable(item) async for item in stream], key=lambda item: item[0])


@case(sandbox={"processing": 0.05})
async def a_close_with_enough_grace(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    sending = asyncio.create_task(send(loops))
    await until(lambda: loops.stats.in_flight)
    await loops.aclose()
    return await sending, await send(loops, "late")


@case(sandbox={"processing": 0.4})
async def a_close_without_enough_grace(
    loops: AsyncLoopsClient, sandbox: Sandbox
) -> Any:
    sending = asyncio.create_task(send(loops))
    await until_processing(sandbox)
    await loops.aclose(0.01)
    result = await sending
    await until(lambda: sandbox.counts.requests == 1)
    return result


@case(
    sandbox={"processing": 0.05},
    rate_limit=lambda: RateLimiter(1, 3600.0),
    deadline=None,
)
async def a_close_while_an_event_waits_for_a_permit(
    loops: AsyncLoopsClient, _: Sandbox
) -> Any:
    first, second = (asyncio.create_task(send(loops, key)) for key in "12")
    await until(lambda: loops.stats.in_flight and loops.stats.waiting)
    await asyncio.gather(loops.aclose(), loops.aclose(9))
    return await first, await second


@case(sandbox={"processing": 0.4})
async def an_event_that_is_cancelled(loops: AsyncLoopsClient, sandbox: Sandbox) -> Any:
    sending = asyncio.create_task(send(loops))
    await until_processing(sandbox)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await until(lambda: sandbox.counts.requests == 1)
    return await send(loops)  # a duplicate, because the sandbox accepted the first


@case(sandbox={"processing": 0.4}, retry=ONCE)
async def a_timeout_during_the_processing(
    loops: AsyncLoopsClient, sandbox: Sandbox
) -> Any:
    await loops.test_api_key()
    result = await send(loops, timeout=0.3)
    await until(lambda: sandbox.counts.requests == 2)
    return result


@case(sandbox={"latency_before": 0.4}, retry=ONCE)
async def a_timeout_before_the_processing(
    loops: AsyncLoopsClient, sandbox: Sandbox
) -> Any:
    await loops.test_api_key()
    result = await send(loops, timeout=0.3)
    await until(lambda: sandbox.counts.requests == 2)
    return result


@case(sandbox={"processing": 30.0}, timeout=2.0, retry=SOON)
async def a_timeout_with_the_key_in_flight(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return await send(loops)


@case(sandbox={"processing": 30.0}, deadline=0.7, retry=SOON)
async def a_deadline_during_the_processing(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return await send(loops)


@case(sandbox={"latency": (0.0, 0.02), "latency_after": 0.001, "seed": 7})
async def random_latencies(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [await send(loops, f"key {number}") for number in range(5)]


@case(
    sandbox={"seed": 3, "faults": {"502": 0.15, "close-after": 0.15, "429": 0.1}},
    retry=RetryPolicy(attempts=30, base=0.001, cap=0.001),
)
async def random_faults(loops: AsyncLoopsClient, _: Sandbox) -> Any:
    return [await send(loops, f"key {number}") for number in range(30)]


@case(
    sandbox={"properties": {"age": "number"}},
    timeout=None,
    deadline=None,
    retry=ONCE,
)
async def a_client_without_timeouts(loops: AsyncLoopsClient, sandbox: Sandbox) -> Any:
    sandbox.script("truncate-after", None)
    return [await send(loops), await send(loops, contact_properties={"age": 3})]


@pytest.mark.parametrize("name", CASES)
def test_the_in_memory_client_behaves_like_one_with_a_network(name: str) -> None:
    selected = CASES[name]
    settings = {"rate_limit": None, **selected.sandbox}

    async def main() -> None:
        attempts: tuple[list[Attempt], list[Attempt]] = ([], [])
        common = {"retry": SOON, **selected.client}
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
            expected = await run_case(selected.use, real, served, attempts[0])
        if callable(make):
            common["rate_limit"] = make()
        memory = InMemoryClient(
            Sandbox(**settings), on_attempt=attempts[1].append, **common
        )
        actual = await run_case(selected.use, memory, memory.sandbox, attempts[1])
        assert actual == expected

    asyncio.run(main())


def test_the_in_memory_client_opens_no_socket_and_does_not_import_aiohttp() -> None:
    output = python(
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
    assert output == "False"


@pytest.mark.parametrize("fault", ["hang-before", "hang-after"])
def test_a_hanging_request_times_out_at_once(fault: str) -> None:
    """Only the pauses between the attempts take time."""

    async def main() -> None:
        async with InMemoryClient() as loops:
            loops.sandbox.script(fault, fault)
            receipt = await loops.send_event("e", email=ADA)
            assert receipt.duplicate is (fault == "hang-after")
            assert receipt.attempts == 3
        loop = asyncio.get_running_loop()
        assert loop.time() < 0.1  # the timeouts are 30 s
        async with InMemoryClient(retry=ONCE) as loops:
            loops.sandbox.script(fault)
            with pytest.raises(errors.RequestTimeoutError) as caught:
                await loops.send_event("e", email=ADA)
            assert caught.value.maybe_accepted

    virtual.run(main())


def test_latencies_of_the_sandbox_take_time() -> None:
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


def test_a_request_may_time_out_at_the_end_of_the_grace() -> None:
    async def main() -> None:
        loops = InMemoryClient(Sandbox(rate_limit=None, latency=60.0), timeout=1.0)
        sending = asyncio.create_task(loops.send_event("e", email=ADA))
        await virtual.settle()
        await loops.aclose(1.0 - 1e-10)  # less than the resolution of the clock
        with pytest.raises(errors.LoopsError):
            await sending

    virtual.run(main())


def test_one_client_works_in_successive_event_loops() -> None:
    loops = InMemoryClient()
    for number in range(3):
        event = Event("e", email=ADA, event_properties={"n": number})
        assert not asyncio.run(loops.send_event(event)).duplicate
        assert asyncio.run(loops.send_event(event)).duplicate
    assert [event.event_properties["n"] for event in loops.sandbox.events] == [0, 1, 2]
    assert loops.stats.accepted == loops.stats.duplicates == 3


def test_one_client_works_in_concurrent_event_loops() -> None:
    loops = InMemoryClient(Sandbox(rate_limit=None, processing=0.01))
    barrier = threading.Barrier(3)

    async def main(name: str) -> None:
        await loops.test_api_key()
        await asyncio.to_thread(barrier.wait)
        for number in range(10):
            await loops.send_event(f"{name}{number}", email=f"{name}@example.com")

    threads = [
        threading.Thread(target=asyncio.run, args=(main(name),)) for name in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "abc":
        events = [event.name for event in loops.sandbox.events]
        assert [event for event in events if event[0] == name] == [
            f"{name}{number}" for number in range(10)
        ]


def test_a_memory_transport_belongs_to_its_event_loop_and_thread() -> None:
    async def main() -> None:
        transport = MemoryTransport(Sandbox())
        assert transport.loop is asyncio.get_running_loop()
        assert transport.thread == threading.get_ident()
        assert not transport.closed
        await transport.close(0.0)
        assert transport.closed

    asyncio.run(main())


def test_an_in_memory_client_works_in_several_event_loops_and_threads() -> None:
    client = InMemoryClient()

    def send() -> None:
        asyncio.run(client.send_event("signup", email=ADA))

    async def main() -> None:
        await client.send_event("signup", email=ADA)
        await asyncio.to_thread(send)  # while this event loop runs
        await client.send_event("signup", email=ADA)
        await client.aclose()

    asyncio.run(main())
    client.sandbox.assert_event("signup", email=ADA, times=3)


def test_the_in_memory_client_takes_the_rate_limit_of_its_sandbox() -> None:
    stats = InMemoryClient(Sandbox(rate_limit=5, period=60.0)).stats
    assert (stats.limit, stats.period) == (5, 60.0)
    assert InMemoryClient().stats.limit is None
    stats = InMemoryClient(Sandbox(rate_limit=5), rate_limit=3).stats
    assert (stats.limit, stats.period) == (3, 1.0)


def test_the_rate_of_a_sandbox_is_in_requests_per_second() -> None:
    """The fixtures of pytest pass it on as LOOPS_RATE_LIMIT."""
    assert rate_of(Sandbox(rate_limit=30, period=60.0)) == 0.5
    assert rate_of(Sandbox(rate_limit=None)) == math.inf


def test_an_outbox_and_a_backfill_work_with_the_in_memory_client(
    tmp_path: Path,
) -> None:
    (tmp_path / "old.csv").write_text("email\nbo@example.com\ncy@example.com\n")

    async def main() -> None:
        async with InMemoryClient() as loops:
            async with Outbox(tmp_path / "events.db", loops) as outbox:
                loops.sandbox.script("close-after")
                await outbox.put(Event("signup", email=ADA))
                assert await outbox.flush(10) == 0
            options = InputOptions(event_name="signup")
            report = await backfill(tmp_path / "old.csv", loops, input_options=options)
            assert report.accepted == 2
            for name in ("ada", "bo", "cy"):
                loops.sandbox.assert_event("signup", email=f"{name}@example.com")

    asyncio.run(main())


def post(sandbox: Sandbox, number: int) -> int:
    """Send an event with the standard library."""
    body = {"eventName": "e", "email": f"{number}@example.com", "n": number}
    request = urllib.request.Request(
        f"{sandbox.url}/v1/events/send",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {sandbox.api_key}"},
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def test_a_served_sandbox_responds_to_plain_threads() -> None:
    with serving(Sandbox(rate_limit=None)) as sandbox:
        threads = [
            threading.Thread(target=post, args=(sandbox, number)) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sandbox.events) == len(sandbox.contacts) == 8
    assert len(sandbox.events) == 8  # records stay readable
    with pytest.raises(OSError, match="refused"):
        post(sandbox, 9)


def test_a_sandbox_is_served_beside_a_running_event_loop() -> None:
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


def test_a_sandbox_that_cannot_start_leaves_no_thread() -> None:
    port = free_port()
    with serving(Sandbox(port=port)) as sandbox:
        before = threading.enumerate()
        with pytest.raises(OSError, match="in use"), serving(Sandbox(port=port)):
            pass
        with pytest.raises(RuntimeError, match="started"), serving(sandbox):
            pass
        assert threading.enumerate() == before
        assert post(sandbox, 1) == 200  # the first still works


def test_a_sandbox_can_be_read_and_controlled_under_load() -> None:
    with serving(Sandbox(rate_limit=1000, max_requests=50)) as sandbox:
        done = threading.Event()

        async def send_all() -> None:
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

        thread = threading.Thread(target=asyncio.run, args=(send_all(),))
        thread.start()
        try:
            for turn in range(300):
                for event in sandbox.events:
                    assert event.name == "e"
                assert all(contact.email for contact in sandbox.contacts)
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


def until_disconnected(sandbox: Sandbox) -> None:
    """Wait until every connection of a served sandbox is closed."""
    assert sandbox._edge is not None
    while sandbox._edge._listener.connections:
        time.sleep(0.001)


def test_a_client_is_closed_in_each_of_its_event_loops() -> None:
    """In a stopped event loop, one that runs in another thread, and a closed one."""
    with serving(Sandbox(rate_limit=None)) as sandbox:
        client = AsyncLoopsClient(
            sandbox.api_key, base_url=sandbox.url, rate_limit=math.inf
        )
        stopped, running, closed = (asyncio.new_event_loop() for _ in range(3))
        for loop in (stopped, running, closed):
            loop.run_until_complete(client.send_event("e", email=ADA))
        closed.run_until_complete(closed.shutdown_asyncgens())
        closed.close()
        thread = threading.Thread(target=running.run_forever)
        thread.start()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), running).result()
        close_everywhere(client)
        until_disconnected(sandbox)
        running.call_soon_threadsafe(running.stop)
        thread.join()
        for loop in (stopped, running):
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def test_a_client_whose_event_loops_are_closed_is_closed() -> None:
    client = InMemoryClient()
    asyncio.run(client.send_event("e", email=ADA))
    close_everywhere(client)
    with pytest.raises(errors.ClientClosedError):
        asyncio.run(client.send_event("e", email=ADA))


def test_the_python_of_the_guide_runs() -> None:
    """The blocks that are test files are run in test_pytest_plugin.py."""
    guide = re.findall(
        r"^```python\n(?!# test_)(.*?)^```",
        testing.__doc__ or "",
        re.MULTILINE | re.DOTALL,
    )
    assert len(guide) == 2

    async def main() -> None:
        for block in guide:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            result = eval(compile(block, "guide", "exec", flags), {})
            if inspect.isawaitable(result):
                await result

    asyncio.run(main())
