"""Every example of the seeds document, on the wire of a server that is not ours.

The document: https://loops.so/docs/api-reference/examples/events
"""

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from support.http_server import KEY, Recorder, Request, client, run

import loops_async
from loops_async import (
    AsyncLoopsClient,
    Event,
    Receipt,
)
from loops_async._events import codec as _codec
from loops_async._json import strict_dumps

LITERAL_KEY = "550e8400-e29b-41d4-a716-446655440000"
LIST = "cm06f5v0e45nf0ml5754o9cix"
ADA: dict[str, Any] = {"email": "test@example.com"}

PLAIN = {"email": "test@example.com", "eventName": "testEvent"}

# Our spelling of the example, and the body of its JavaScript sample, which is
# that of the API reference.
EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "send an event": ({**ADA}, PLAIN),
    "with event properties": (
        {**ADA, "event_properties": {"testProperty": "testValue"}},
        {**PLAIN, "eventProperties": {"testProperty": "testValue"}},
    ),
    # Also the raw Python sample, which nests them under contactProperties: a
    # slip of the document; all its other samples have them at the root.
    "and update the contact": (
        {**ADA, "contact_properties": {"planName": "Pro"}},
        {**PLAIN, "planName": "Pro"},
    ),
    "with an idempotency key": ({**ADA, "idempotency_key": LITERAL_KEY}, PLAIN),
    "ours: mailing lists": (
        {**ADA, "mailing_lists": {LIST: True, "other": False}},
        {**PLAIN, "mailingLists": {LIST: True, "other": False}},
    ),
    "ours: by user id": (
        {"user_id": "usr_1"},
        {"userId": "usr_1", "eventName": "testEvent"},
    ),
    "ours: both ids": ({**ADA, "user_id": "usr_1"}, {**PLAIN, "userId": "usr_1"}),
    "ours: None resets a contact property": (
        {**ADA, "contact_properties": {"company": None, "firstName": "Ada"}},
        {**PLAIN, "company": None, "firstName": "Ada"},
    ),
    "ours: falsy is not absent": (
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
    "ours: empty and None are absent": (
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
    "ours: beyond ASCII": (
        {**ADA, "event_properties": {"städt": "Zürich 🏔"}},
        {**PLAIN, "eventProperties": {"städt": "Zürich 🏔"}},
    ),
}

Send = Callable[[AsyncLoopsClient, dict[str, Any]], Any]
SPELLINGS: dict[str, Send] = {
    "positional": lambda loops, given: loops.send_event("testEvent", **given),
    "named": lambda loops, given: loops.send_event(event_name="testEvent", **given),
    "event": lambda loops, given: loops.send_event(Event("testEvent", **given)),
}


@pytest.fixture(params=["orjson", "standard library"])
def _json(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write bodies by orjson, and as where it is not installed."""
    if request.param == "orjson":
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(_codec, "dumps", strict_dumps)


def sent(send: Send, given: dict[str, Any]) -> tuple[Request, Receipt]:
    with Recorder() as recorder:

        async def main() -> Receipt:
            async with client(recorder.url) as loops:
                receipt: Receipt = await send(loops, given)
                return receipt

        receipt = run(main())
        return recorder.request, receipt


@pytest.mark.usefixtures("_json")
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_document_is_this_on_the_wire(
    example: str, spelling: str
) -> None:
    """Method, path, every header and the body: these and nothing more."""
    given, body = EXAMPLES[example]
    request, receipt = sent(SPELLINGS[spelling], given)
    assert (request.method, request.target) == ("POST", "/api/v1/events/send")
    assert request.json() == body
    assert type_tree(request.json()) == type_tree(body)  # 0 is not False here
    key = given.get("idempotency_key") or receipt.idempotency_key
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
    if "idempotency_key" not in given:
        assert uuid.UUID(key).version == 4


def type_tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: type_tree(inner) for name, inner in value.items()}
    return type(value)


@pytest.mark.usefixtures("_json")
def test_the_body_is_compact_utf_8() -> None:
    request, _ = sent(SPELLINGS["event"], {**ADA, "contact_properties": {"a": "é"}})
    assert request.body == (
        '{"eventName":"testEvent","email":"test@example.com","a":"é"}'.encode()
    )


def test_the_raw_python_sample_cannot_be_copied_by_mistake() -> None:
    """A contact property named contactProperties, an object, is refused."""
    nested: Any = {"contactProperties": {"planName": "Pro"}}
    with pytest.raises(loops_async.InvalidEventError) as refused:
        Event("testEvent", **ADA, contact_properties=nested)
    assert "contact_properties.contactProperties" in str(refused.value)


def test_the_key_of_the_document_is_sent_as_it_is_and_no_other_header_is_ours() -> None:
    given = {**ADA, "idempotency_key": LITERAL_KEY}
    request, receipt = sent(SPELLINGS["positional"], given)
    assert request.headers["idempotency-key"] == LITERAL_KEY
    assert receipt == Receipt(
        LITERAL_KEY,
        attempts=1,
        duplicate=False,
        elapsed=receipt.elapsed,
        rate_limit=None,
    )


def test_the_examples_work_where_orjson_cannot_be_imported() -> None:
    """In a process of its own, all of them over one connection pool."""
    code = (
        "import sys; sys.modules['orjson'] = None\n"
        "import asyncio, json\n"
        "from loops_async import AsyncLoopsClient\n"
        "url, examples = sys.argv[1], json.loads(sys.argv[2])\n"
        "async def main():\n"
        "    async with AsyncLoopsClient('k', base_url=url, rate_limit=1e9) as l:\n"
        "        for given in examples:\n"
        "            await l.send_event('testEvent', **given)\n"
        "asyncio.run(main())\n"
    )

    given = json.dumps([given for given, _ in EXAMPLES.values()])
    with Recorder() as recorder:
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code, recorder.url, given],
            check=True,
            timeout=60,
        )
        bodies = [request.json() for request in recorder.requests]
    assert bodies == [body for _, body in EXAMPLES.values()]
