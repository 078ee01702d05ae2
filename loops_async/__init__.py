"""The asyncio-native Python SDK for the Loops.so Events API."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from . import errors as errors
    from ._backfill import BackfillReport, Progress, backfill
    from ._client import AsyncLoopsClient
    from ._codec import event_from_record, event_to_record
    from ._events import Event
    from ._input import Reading
    from ._journal import Failure
    from ._limiter import RateLimiter
    from ._open_outbox import OutboxStats
    from ._outbox import Outbox
    from ._outcomes import Outcome, Receipt, SendReport
    from ._preview import Preview
    from ._retry import Attempt, RetryPolicy
    from ._stats import ClientStats
    from ._values import PropertyValue
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
    "PropertyValue",
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

# Imported when it is asked for: a pytest run that has the package installed and
# does not use it, or an application without an outbox, should not pay for it.
_HOMES = {
    "AsyncLoopsClient": "_client",
    "Attempt": "_retry",
    "BackfillReport": "_backfill",
    "ClientStats": "_stats",
    "Event": "_events",
    "Failure": "_journal",
    "Outbox": "_outbox",
    "OutboxStats": "_open_outbox",
    "Outcome": "_outcomes",
    "Preview": "_preview",
    "Progress": "_backfill",
    "PropertyValue": "_values",
    "RateLimit": "_wire",
    "RateLimiter": "_limiter",
    "Reading": "_input",
    "Receipt": "_outcomes",
    "RetryPolicy": "_retry",
    "SendReport": "_outcomes",
    "backfill": "_backfill",
    "event_from_record": "_codec",
    "event_to_record": "_codec",
}


if not TYPE_CHECKING:  # pragma: no branch - or any misspelt name is an object

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
