"""The asyncio-native Python SDK for the Loops.so Events API."""

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

__all__ = [
    "APIError",
    "AsyncLoopsClient",
    "Attempt",
    "AuthenticationError",
    "BadRequestError",
    "ClientClosedError",
    "ClientStats",
    "ConfigurationError",
    "ConnectFailedError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "Event",
    "ForbiddenError",
    "IdempotencyConflictError",
    "InvalidEventError",
    "JournalError",
    "LoopsError",
    "NotFoundError",
    "NotTriedError",
    "Outcome",
    "PayloadTooLargeError",
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
    "event_from_record",
    "event_to_record",
]
