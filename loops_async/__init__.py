"""The asyncio-native Python SDK for the Loops.so Events API."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._client import AsyncLoopsClient
from ._codec import event_from_record, event_to_record
from ._events import Event
from ._limiter import RateLimiter
from ._outcomes import Outcome, Receipt, SendReport
from ._retry import Attempt, RetryPolicy
from ._stats import ClientStats
from ._version import __version__
from ._wire import RateLimit
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

if TYPE_CHECKING:
    from ._backfill import BackfillReport, Progress, backfill
    from ._input import Reading
    from ._journal import Failure
    from ._open_outbox import OutboxStats
    from ._outbox import Outbox
    from ._preview import Preview

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
    "RateLimit",
    "RateLimitError",
    "RateLimiter",
    "Reading",
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

# What needs SQLite is imported when it is asked for.
_LATER = {
    "BackfillReport": "._backfill",
    "Failure": "._journal",
    "Outbox": "._outbox",
    "OutboxStats": "._open_outbox",
    "Preview": "._preview",
    "Progress": "._backfill",
    "Reading": "._input",
    "backfill": "._backfill",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_LATER[name], __name__), name)
