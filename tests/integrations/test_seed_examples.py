"""Every example of the API documentation, as an independent server receives it.

Source: https://loops.so/docs/api-reference/examples/events
"""

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from support.clients import KEY, client_of
from support.http_server import Recorder, Request
from support.waiting import run

import loops_async
from loops_async import (
    AsyncLoopsClient,
    Event,
    Receipt,
)

LITERAL_KEY = "550e8400-e29b-41d4-a716-446655440000"
LIST = "cm06f5v0e45nf0ml5754o9cix"
ADA: dict[str, Any] = {"email": "test@example.com"}

PLAIN = {"email": "test@example.com", "eventName": "testEvent"}

# For each example, the arguments of this library and the expected body (that of the
# JavaScript sample and of the API reference). The examples with "also" are not theirs.
EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "send an event": ({**ADA}, PLAIN),
    "with event properties": (
        {**ADA, "event_properties": {"testProperty": "testValue"}},
        {**PLAIN, "eventProperties": {"testProperty": "testValue"}},
    ),
    # The raw Python sample nests these properties under contactProperties, which is
    # a mistake: all other samples have them at the root.
    "and update the contact": (
        {**ADA, "contact_properties": {"planName": "Pro"}},
        {**PLAIN, "planName": "Pro"},
    ),
    "with an idempotency key": ({**ADA, "idempotency_key": LITERAL_KEY}, PLAIN),
    "also: mailing lists": (
        {**ADA, "mailing_lists": {LIST: True, "other": False}},
        {**PLAIN, "mailingLists": {LIST: True, "other": False}},
    ),
    "also: by user id": (
        {"user_id": "usr_1"},
        {"userId": "usr_1", "eventName": "testEvent"},
    ),
    "also: both ids": ({**ADA, "user_id": "usr_1"}, {**PLAIN, "userId": "usr_1"}),
    "also: None resets a contact property": (
        {**ADA, "contact_properties": {"company": None, "firstName": "Ada"}},
        {**PLAIN, "company": None, "firstName": "Ada"},
    ),
    "also: falsy is not absent": (
        {
            **ADA,
            "event_properties": {"text": "", "count": 0, "ratio": 0.0, "flag": False},
            "contact_properties": {"text": "", "count": 0, "flag": False},
            "mailing_lists": {LIST: False},
        },
        {
            **PLAIN,
            "eventProperties": {"text": "", "count": 0, "ratio": 0.0, "flag": False},
            "text": "",
            "count": 0,
            "flag": False,
            "mailingLists": {LIST: False},
        },
    ),
    "also: empty and None are absent": (
        {
            **ADA,
            "user_id": None,
            "event_properties": {},
            "contact_properties": {},
            "mailing_lists": {},
            "idempotency_key": None,
        },
        PLAIN,
    ),
    "also: beyond ASCII": (
        {**ADA, "event_properties": {"städt": "Zürich 🏔"}},
        {**PLAIN, "eventProperties": {"städt": "Zürich 🏔"}},
    ),
}

Send = Callable[[AsyncLoopsClient, dict[str, Any]], Any]
SPELLINGS: dict[str, Send] = {
    "positional": lambda loops, options: loops.send_event("testEvent", **options),
    "named": lambda loops, options: loops.send_event(event_name="testEvent", **options),
    "event": lambda loops, options: loops.send_event(Event("testEvent", **options)),
}


def send_to_recorder(send: Send, options: dict[str, Any]) -> tuple[Request, Receipt]:
    with Recorder() as recorder:

        async def main() -> Receipt:
            async with client_of(recorder) as loops:
                receipt: Receipt = await send(loops, options)
                return receipt

        receipt = run(main())
        return recorder.request, receipt


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_documentation_is_sent_as_documented(
    example: str, spelling: str
) -> None:
    """Method, path and body are as expected, and there are no other headers."""
    options, body = EXAMPLES[example]
    request, receipt = send_to_recorder(SPELLINGS[spelling], options)
    assert (request.method, request.target) == ("POST", "/api/v1/events/send")
    assert request.json() == body
    assert type_tree(request.json()) == type_tree(body)  # 0 == False in Python
    key = options.get("idempotency_key") or receipt.idempotency_key
    host = request.headers["host"]
    assert host.startswith("127.0.0.1:")
    assert request.headers == {
        "host": host,
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"loops-async/{loops_async.__version__} "
        f"aiohttp/{aiohttp.__version__}",
        "content-length": str(len(request.body)),
        "idempotency-key": key,
    }
    assert receipt.idempotency_key == key
    if "idempotency_key" not in options:
        assert uuid.UUID(key).version == 4


def type_tree(value: Any) -> Any:
    if isinstance(value, list):
        return [type_tree(inner) for inner in value]
    if isinstance(value, dict):
        return {name: type_tree(inner) for name, inner in value.items()}
    return type(value)


def test_the_body_is_compact_json_in_utf_8() -> None:
    request, _ = send_to_recorder(
        SPELLINGS["event"], {**ADA, "contact_properties": {"a": "é"}}
    )
    assert request.body == (
        '{"eventName":"testEvent","email":"test@example.com","a":"é"}'.encode()
    )


def test_an_event_with_the_mistake_of_the_raw_python_sample_is_rejected() -> None:
    """The sample has an object as a contact property named contactProperties."""
    nested: Any = {"contactProperties": {"planName": "Pro"}}
    with pytest.raises(loops_async.InvalidEventError) as caught:
        Event("testEvent", **ADA, contact_properties=nested)
    assert "contact_properties.contactProperties" in str(caught.value)


def test_an_idempotency_key_is_sent_unchanged_and_is_in_the_receipt() -> None:
    options = {**ADA, "idempotency_key": LITERAL_KEY}
    request, receipt = send_to_recorder(SPELLINGS["positional"], options)
    assert request.headers["idempotency-key"] == LITERAL_KEY
    assert receipt == Receipt(
        LITERAL_KEY,
        attempts=1,
        duplicate=False,
        elapsed=receipt.elapsed,
        rate_limit=None,
    )


def test_all_examples_are_sent_without_orjson() -> None:
    """A separate process sends all examples with one client."""
    code = (
        "import sys; sys.modules['orjson'] = None\n"
        "import asyncio, json\n"
        "from loops_async import AsyncLoopsClient\n"
        "url, examples = sys.argv[1], json.loads(sys.argv[2])\n"
        "async def main():\n"
        "    async with AsyncLoopsClient('k', base_url=url, rate_limit=1e9) as l:\n"
        "        for options in examples:\n"
        "            await l.send_event('testEvent', **options)\n"
        "asyncio.run(main())\n"
    )

    options = json.dumps([options for options, _ in EXAMPLES.values()])
    with Recorder() as recorder:
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code, recorder.url, options],
            check=True,
            timeout=60,
        )
        bodies = [request.json() for request in recorder.requests]
    expected = [body for _, body in EXAMPLES.values()]
    assert bodies == expected
    assert type_tree(bodies) == type_tree(expected)
