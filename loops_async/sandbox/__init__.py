"""A local, stateful imitation of the Loops API for tests and experiments.

A `Sandbox` keeps contacts, mailing lists, contact properties, rate windows and
idempotency keys; its status codes, messages and headers are those of the API. It sends
no email and needs no account. It shares no code with the client of this SDK, so that
neither can hide an error of the other, and it serves clients in any language. Do not
expose a sandbox to the internet.

In pytest
---------
The fixtures ``loops_sandbox`` and ``loops_client`` come with loops-async: see
`loops_async.testing`, which also serves a sandbox from a thread.

In an event loop
----------------
```python
from loops_async import AsyncLoopsClient
from loops_async.sandbox import Sandbox

async with Sandbox() as sandbox:
    async with AsyncLoopsClient(sandbox.api_key, base_url=sandbox.url) as loops:
        await loops.send_event("signup", email="ada@example.com")

event = sandbox.assert_event("signup", email="ada@example.com")
assert event.idempotency_key is not None
sandbox.assert_no_event("login")
```

A failed assertion lists the events that the sandbox accepted. The records stay
readable after the sandbox is closed:

```python
assert [event.name for event in sandbox.events] == ["signup"]
assert sandbox.contact(email="ada@example.com") == sandbox.contacts[0]
(request,) = sandbox.requests
assert (request.status, request.fault) == (200, None)
assert sandbox.counts.by_status == {200: 1}
```

Faults and outages
------------------
``script`` assigns faults to the next requests, in order; `FAULTS` describes each.
``faults=`` draws faults at random; with ``seed=`` they are the same in each run.
``down`` begins an outage, in which the sandbox responds to each request with a 503 or,
with ``drop=True``, closes the connection.

```python
from loops_async import AsyncLoopsClient, RetryPolicy
from loops_async.sandbox import Sandbox

fast = RetryPolicy(base=0.01, cap=0.1)
async with Sandbox(rate_limit=None, faults={"502": 0.2}, seed=7) as sandbox:
    async with AsyncLoopsClient(
        sandbox.api_key, base_url=sandbox.url, retry=fast
    ) as loops:
        sandbox.script("503", None, "close-after")  # None: the request has no fault
        first = await loops.send_event("signup", email="ada@example.com")
        second = await loops.send_event("login", email="ada@example.com")
        assert (first.attempts, first.duplicate) == (2, False)
        assert second.duplicate  # accepted although the connection was closed
        sandbox.down()
        sandbox.down(False)
```

Time and rate limit
-------------------
``advance`` moves the sandbox time forward without waiting: past a rate window, or past
the 24 hours for which an idempotency key counts as used. ``latency=`` and the similar
settings delay responses in real time.

```python
from loops_async import AsyncLoopsClient, RateLimitError, RetryPolicy
from loops_async.sandbox import Sandbox

once = RetryPolicy(attempts=1)
async with Sandbox(rate_limit=1, period=3600, window="fixed") as sandbox:
    async with AsyncLoopsClient(
        sandbox.api_key, base_url=sandbox.url, rate_limit=100, retry=once
    ) as loops:
        await loops.send_event("signup", email="ada@example.com")
        try:
            await loops.send_event("login", email="ada@example.com")
        except RateLimitError:
            sandbox.advance(3600)
        await loops.send_event("login", email="ada@example.com")
```

Undocumented behaviour
----------------------
Where the documentation of the API leaves a question open, `Behaviour` has a switch
whose default is the likeliest answer. A message that no source documents begins with
``[sandbox]``.

```python
from loops_async.sandbox import Behaviour, Sandbox

sandbox = Sandbox(behaviour=Behaviour(retry_after="seconds", unknown_lists="ignore"))
```

Without a network
-----------------
`Sandbox.respond` takes a request and returns the response, in any event loop. An
in-memory client, `loops_async.testing.InMemoryClient`, is built on it.

```python
from loops_async.sandbox import Sandbox

sandbox = Sandbox()
response = await sandbox.respond(
    "GET", "/api/v1/api-key", headers={"Authorization": f"Bearer {sandbox.api_key}"}
)
assert response.status == 200
assert response.body == b'{"success":true,"teamName":"Sandbox"}'
```

From other processes and languages
----------------------------------
``loops-async sandbox`` (extra ``cli``) serves a sandbox from a shell and prints its
address and API key. Point any Loops client at ``http://127.0.0.1:4010/api``. Control
the sandbox and read its records below ``/_sandbox``, outside the API:

```sh
url=http://127.0.0.1:4010/_sandbox
curl -X POST $url/script -d '{"faults": ["503", null, "close-after"]}'
curl -X POST $url/down -d '{"drop": true}'
curl -X POST $url/down -d '{"down": false}'
curl -X POST $url/advance -d '{"seconds": 86400}'
curl -X POST $url/reset
curl $url/state   # now, events, contacts, counts
curl $url/counts
```
"""

from ._behaviour import Behaviour
from ._faults import FAULTS
from ._records import (
    Counts,
    SandboxContact,
    SandboxEvent,
    SandboxRequest,
    SandboxResponse,
)
from ._sandbox import Sandbox

__all__ = [
    "FAULTS",
    "Behaviour",
    "Counts",
    "Sandbox",
    "SandboxContact",
    "SandboxEvent",
    "SandboxRequest",
    "SandboxResponse",
]
