"""Sends of one event and single requests, for tests of the HTTP layer."""

import asyncio
from typing import Any

from loops_async import AsyncLoopsClient, LoopsError
from loops_async._http.request import Request
from support.waiting import advance_until


async def error_of_send(loops: AsyncLoopsClient, **options: Any) -> LoopsError | None:
    """Send one event and return its error, or None if the send succeeds."""
    try:
        await loops.send_event("e", email="ada@example.com", **options)
    except LoopsError as error:
        return error
    return None


async def error_of_send_in_frozen_time(
    loops: AsyncLoopsClient, **options: Any
) -> LoopsError | None:
    """Do the same in a `FrozenLoop`, and advance the time until the send ends."""
    send = asyncio.create_task(error_of_send(loops, **options))
    await advance_until(send.done)
    return send.result()


def transport_of(loops: AsyncLoopsClient) -> Any:
    """Return the transport that a client used last."""
    latest = loops.sender._latest
    assert latest is not None
    return latest.transport


def make_request(**changes: Any) -> Request:
    """Return a request for the transport alone."""
    fields: dict[str, Any] = {
        "method": "POST",
        "url": "http://loops.test/api/v1/events/send",
        "body": b"{}",
        "key": "k",
        "content": None,
        "timeout": None,
        "deadline": None,
    }
    return Request(**{**fields, **changes})
