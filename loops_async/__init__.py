"""The asyncio-native Python SDK for the Loops.so Events API."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from . import errors as errors
    from ._backfill.backfill import BackfillReport, Progress, backfill
    from ._backfill.input import InputOptions
    from ._backfill.preview import Preview
    from ._client import AsyncLoopsClient
    from ._events.codec import event_from_record, event_to_record
    from ._events.event import Event
    from ._events.rules import PropertyValue
    from ._http.protocol import RateLimit
    from ._journal.journal import Failure
    from ._outbox.outbox import Outbox
    from ._outbox.session import OutboxStats
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

# Imported when it is asked for: a pytest run that has the package installed and
# does not use it, or an application without an outbox, should not pay for it.
_HOMES = {
    "AsyncLoopsClient": "_client",
    "Attempt": "_sending.outcomes",
    "BackfillReport": "_backfill.backfill",
    "ClientStats": "_sending.stats",
    "Event": "_events.event",
    "Failure": "_journal.journal",
    "Outbox": "_outbox.outbox",
    "OutboxStats": "_outbox.session",
    "Outcome": "_sending.outcomes",
    "Preview": "_backfill.preview",
    "Progress": "_backfill.backfill",
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
