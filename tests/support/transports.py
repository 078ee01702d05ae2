"""The common parts of imitated transports, and a sender that uses one."""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from loops_async import RetryPolicy
from loops_async._http.api_key import hide_api_key
from loops_async._sending.sender import Sender


@attrs.define(eq=False, kw_only=True)
class FakeTransport:
    """The state of a transport; a subclass says what `exchange` returns."""

    max_connections: int = 100
    loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop)
    thread: int = attrs.field(factory=threading.get_ident)
    closed: bool = False
    borrowed: None = None
    in_flight: int = 0

    async def close(self, grace: float) -> None:
        self.closed = True


def make_sender(connect: Callable[[], Awaitable[Any]], **settings: Any) -> Sender:
    """Make a sender, without a rate limit, of the transports that `connect` makes."""
    defaults: dict[str, Any] = {
        "api_key": "key",
        "base_url": "https://loops.invalid/api",
        "timeout": 30.0,
        "deadline": 60.0,
        "allowed_recipients": None,
        "dry_run": False,
        "rate_limit": math.inf,
        "retry": RetryPolicy(attempts=3, base=0.1),
        "on_attempt": None,
    }
    settings = {**defaults, **settings}
    return Sender(
        hide_api_key(settings.pop("api_key")), **settings, connect=lambda *_: connect
    )
