"""The asyncio-native Python SDK for the Loops.so Events API."""

from ._client import AsyncLoopsClient, Receipt
from ._codec import event_from_record, event_to_record
from ._events import Event
from ._limiter import RateLimiter
from ._retry import Attempt, RetryPolicy
from ._version import __version__
from ._wire import RateLimit
from .errors import *  # noqa: F403
from .errors import __all__ as _errors

__all__ = [
    "AsyncLoopsClient",
    "Attempt",
    "Event",
    "RateLimit",
    "RateLimiter",
    "Receipt",
    "RetryPolicy",
    "__version__",
    "event_from_record",
    "event_to_record",
    *_errors,
]
