"""An asyncio client that sends events to Loops (https://loops.so).

```python
from loops_async import Event

receipt = await loops.send_event("signup", email="ada@example.com")
report = await loops.send_events([Event("signup", email="bo@example.com")])
print(receipt.attempts, report)
```

On this page and in the other guides, ``loops`` is an open client: make one with
``async with AsyncLoopsClient() as loops`` and share it across the application. The API
key is read from LOOPS_API_KEY.

Where to read next
------------------

- `AsyncLoopsClient`: settings, the rate limit, retries, deadlines.
- `Event`: the fields of an event, and its idempotency key.
- `Outbox`: events that are on disk before they are sent.
- `backfill`: events from a CSV or JSON Lines file.
- `loops_async.errors`: the tree of errors.
- `loops_async.fastapi`, `loops_async.taskiq`: web applications and workers.
- `loops_async.testing`, `loops_async.sandbox`: tests without Loops.

Which call to use
-----------------

- ``send_event`` returns when Loops has the event. Use it if the caller needs the
  receipt. If the process dies before it returns, the outcome is unknown: send
  the event again under the same key.
- ``Outbox.put`` returns when the event is on disk. Use it in handlers, so that
  an event is not lost in an outage or a crash.
- ``send_events`` and ``stream_events`` send many events at the full rate; a handler's
  ``send_event`` overtakes them.

The rate limit
--------------

A limiter permits ``rate_limit`` requests in any second, as the server counts them.
Clients of one process with the same key and base URL that do not set ``rate_limit``
share one limiter. After a 429 the limiter holds all requests.

A permit returns to the limiter one second after the response, less half of the fastest
round trip. Slow responses therefore reduce the rate: of 10 requests a second, 9.9
remain at a round trip of 20 ms, 9.5 at 100 ms and 8.7 at 300 ms. The limit holds while
requests and responses each take at least a quarter of the fastest round trip. If the
whole delay of a network moves from one direction to the other, the server could count
more than 10 requests in a second.

Processes that share a key find their shares by means of 429s: they receive some in the
first half minute, and few afterwards. To avoid 429s altogether, give each process a
fixed share with ``rate_limit=``. If more processes share a key than the limit permits
requests per second, most processes wait. To give several clients one limit of their
own, pass the same `RateLimiter` to each:

```python
from loops_async import AsyncLoopsClient, RateLimiter

shared = RateLimiter(limit=100, period=1.0)
first = AsyncLoopsClient("<your-api-key>", rate_limit=shared)
second = AsyncLoopsClient("<your-api-key>", rate_limit=shared, deadline=5.0)
```

Retries, deadlines and outages
------------------------------

``send_event`` makes up to 10 attempts, each with the same idempotency key and the same
bytes. The pauses are random and never shorter than the server's Retry-After; a
Retry-After of more than 60 s ends the call with the error of that response. An attempt
has 30 s (``timeout=``), and a call has 60 s, waits included (``deadline=``). After five
failed attempts in a row the client holds all requests, and sends one of them every 0.5
to 5 s as a probe until a response shows that Loops is up.

A 409 means that Loops accepted the event before, so it counts as a success. If an
earlier attempt got a 429, and no earlier attempt may have been accepted, the outcome is
unknown, because Loops does not document whether a 429 uses up a key. After a timeout
the 409 counts as a success, although Loops does not document whether it can mean "still
being processed", and whether Loops can then drop the event. A 409 for a key that was
used with another body is an error.

Privacy
-------

The API key does not appear in any log line, repr, error or traceback of this package.
Email addresses and property values are not logged. The client does not follow
redirects. By default it verifies every TLS certificate and reads the proxy from the
environment (``ssl_context=``, ``proxy=``).

Other requests
--------------

`request` calls the rest of the Loops API with the same rate limit, retries and
errors:

```python
lists = await loops.request("GET", "/v1/lists")
print([one["name"] for one in lists])
```

With a borrowed session (``session=``), aiohttp itself repeats a GET whose connection
was lost; the repetition has no permit of its own.

Any job queue
-------------

A job that runs again must send its event under the same key. Derive the key from
the ID of the job:

```python
# jobs.py
from loops_async import AsyncLoopsClient


async def send_receipt(loops: AsyncLoopsClient, job_id: str, email: str) -> None:
    key = f"job-{job_id}.receipt"
    await loops.send_event("orderPaid", email=email, idempotency_key=key)
```

Loops remembers a key for 24 hours. If a queue delivers a job again after that, Loops
may accept its event twice.

A worker on an asyncio.Queue
----------------------------

```python
# worker.py
import asyncio
import logging
from collections.abc import AsyncIterator

from loops_async import AsyncLoopsClient, Event


async def work(queue: asyncio.Queue[Event | None]) -> None:
    async def events() -> AsyncIterator[Event]:
        while (event := await queue.get()) is not None:
            yield event

    async with AsyncLoopsClient() as loops:
        async for outcome in loops.stream_events(events()):
            if outcome.error is not None:
                logging.error("%s: %s", outcome.event.event_name, outcome.error)
```

The events of one contact are sent in the order of the queue. ``None`` ends the worker.
Events that are not sent when the process dies are lost; an `Outbox` keeps them.

Old events from a database
--------------------------

```python
# old_signups.py
from collections.abc import AsyncIterable

from loops_async import AsyncLoopsClient, Event, SendReport


async def send_old(
    loops: AsyncLoopsClient, users: AsyncIterable[tuple[int, str]]
) -> SendReport:
    events = (
        Event("signup", email=email, idempotency_key=f"old-signup-{number}")
        async for number, email in users
    )
    return await loops.send_events(events)
```

The keys make a second run within 24 hours safe. For a run that takes longer,
or that must survive a crash, write a file and use `backfill`.

A serverless function
---------------------

A serverless platform freezes the process as soon as the function returns, so the
function must wait until its events are sent:

```python
# function.py
import asyncio

from loops_async import AsyncLoopsClient, Event

loops = AsyncLoopsClient()  # made once; each invocation has its own event loop


def handler(order: dict[str, str], context: object) -> None:
    asyncio.run(send_order_events(order))


async def send_order_events(order: dict[str, str]) -> None:
    email, key = order["email"], f"order-{order['id']}"
    events = [
        Event("orderPaid", email=email, idempotency_key=f"{key}.paid"),
        Event("reviewDue", email=email, idempotency_key=f"{key}.review"),
    ]
    report = await loops.send_events(events, patience=20.0)
    report.raise_for_failures()
```

If an event fails, the function raises, and the platform runs it again. The second
invocation sends the events under the same keys.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from . import errors as errors
    from ._backfill.backfill import backfill
    from ._backfill.input import InputOptions
    from ._backfill.preview import Preview
    from ._backfill.report import BackfillReport, Progress
    from ._client import AsyncLoopsClient
    from ._events.codec import event_from_record, event_to_record
    from ._events.event import Event
    from ._events.rules import PropertyValue
    from ._http.protocol import RateLimit
    from ._journal.records import Failure
    from ._outbox.outbox import Outbox
    from ._outbox.stats import OutboxStats
    from ._pacing.rate_limiter import RateLimiter
    from ._pacing.retry_policy import RetryPolicy
    from ._sending.outcomes import Attempt, Outcome, Receipt, SendReport
    from ._sending.stats import ClientStats
    from .errors import (
        APIError,
        AuthenticationError,
        BadRequestError,
        ClientClosedError,
        ConfigurationError,
        ConnectFailedError,
        ConnectionLostError,
        DeadlineExceededError,
        ForbiddenError,
        IdempotencyConflictError,
        InvalidEventError,
        JournalError,
        LoopsError,
        NotFoundError,
        NotTriedError,
        PayloadTooLargeError,
        RateLimitError,
        RecipientNotAllowedError,
        RequestTimeoutError,
        ServerError,
        TransportError,
        UnexpectedResponseError,
    )

__all__ = [
    "APIError",
    "AsyncLoopsClient",
    "Attempt",
    "AuthenticationError",
    "BackfillReport",
    "BadRequestError",
    "ClientClosedError",
    "ClientStats",
    "ConfigurationError",
    "ConnectFailedError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "Event",
    "Failure",
    "ForbiddenError",
    "IdempotencyConflictError",
    "InputOptions",
    "InvalidEventError",
    "JournalError",
    "LoopsError",
    "NotFoundError",
    "NotTriedError",
    "Outbox",
    "OutboxStats",
    "Outcome",
    "PayloadTooLargeError",
    "Preview",
    "Progress",
    "PropertyValue",
    "RateLimit",
    "RateLimitError",
    "RateLimiter",
    "Receipt",
    "RecipientNotAllowedError",
    "RequestTimeoutError",
    "RetryPolicy",
    "SendReport",
    "ServerError",
    "TransportError",
    "UnexpectedResponseError",
    "__version__",
    "backfill",
    "event_from_record",
    "event_to_record",
]

# Names are imported on first access, because a pytest run that does not use the
# package, and an application without an outbox, should not import unused modules.
_HOMES = {
    "AsyncLoopsClient": "_client",
    "Attempt": "_sending.outcomes",
    "BackfillReport": "_backfill.report",
    "ClientStats": "_sending.stats",
    "Event": "_events.event",
    "Failure": "_journal.records",
    "Outbox": "_outbox.outbox",
    "OutboxStats": "_outbox.stats",
    "Outcome": "_sending.outcomes",
    "Preview": "_backfill.preview",
    "Progress": "_backfill.report",
    "PropertyValue": "_events.rules",
    "RateLimit": "_http.protocol",
    "RateLimiter": "_pacing.rate_limiter",
    "InputOptions": "_backfill.input",
    "Receipt": "_sending.outcomes",
    "RetryPolicy": "_pacing.retry_policy",
    "SendReport": "_sending.outcomes",
    "backfill": "_backfill.backfill",
    "event_from_record": "_events.codec",
    "event_to_record": "_events.codec",
}


if not TYPE_CHECKING:  # pragma: no branch - type checkers would accept any name

    def __getattr__(name: str) -> object:
        if name == "errors":
            return import_module(".errors", __name__)
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        home = import_module(f".{_HOMES.get(name, 'errors')}", __name__)
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return list({*globals(), "errors", *__all__})
