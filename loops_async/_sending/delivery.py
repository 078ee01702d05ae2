"""The delivery of a request: the loop over its attempts."""

import asyncio
import logging
from collections.abc import Callable
from inspect import isawaitable

from loops_async._http.api_key import (
    KeySource,
    Secret,
    checked_api_key,
    hide_api_key,
)
from loops_async._http.protocol import Response, Transport, judge
from loops_async._http.redaction import Redactor
from loops_async.errors import (
    APIError,
    ConfigurationError,
    LoopsError,
    NotTriedError,
    RateLimitError,
)

from .admission import Admission, Limiter
from .outcomes import Attempt, Receipt
from .stats import Counts
from .tries import Tries

_logger = logging.getLogger("loops_async")


class Delivery:
    """The delivery of all requests of one client in one event loop.

    Args:
        transport: The connections, also available as an attribute.
        api_key: The API key, or a callable that returns it.
        limiter: The rate limiter; None means no limit.
        on_attempt: A hook that gets each attempt, or None.

    Attributes:
        admission: The admission that every attempt passes.
        counts: The counters of the requests and calls so far.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        api_key: KeySource,
        limiter: Limiter | None,
        on_attempt: Callable[[Attempt], object] | None,
    ) -> None:
        self.transport = transport
        self.admission = Admission(limiter, transport.max_connections)
        self.counts = Counts()
        self._loop = transport.loop
        self._key_source = api_key
        self._api_key = api_key if isinstance(api_key, Secret) else None
        self._on_attempt = on_attempt

    async def close(self, grace: float) -> None:
        """Refuse waiting calls, let requests in flight finish, and close.

        Args:
            grace: Seconds to wait for requests in flight.
        """
        self.admission.close()
        await self.transport.close(grace)

    async def deliver(self, tries: Tries) -> Receipt:
        """Send the request until Loops accepts it, or `Tries` allows no more attempts.

        The call waits for admission, for responses, and between attempts.

        Args:
            tries: The request with its attempts.

        Returns:
            The receipt; `Tries.response` is the response.

        Raises:
            LoopsError: If Loops did not accept the request. The key, the attempts and
                ``maybe_accepted`` of the error describe the whole call.
        """
        request = tries.request
        tries.sent = tries.began
        while True:
            permit = tries.try_start(self.admission)
            if permit is None:
                try:
                    permit = await tries.may_start(self.admission)
                except LoopsError as error:
                    self._count_error(error)
                    raise
            try:
                api_key = self._api_key
                if api_key is None:
                    api_key = await self._ask_for_api_key(tries)
                if tries.record is not None:
                    await tries.record.before_attempt(request.key, tries)
                    tries.sent = self._loop.time()
                timeout = tries.begin()
            except LoopsError as error:
                permit.unused()
                error.attempts = tries.attempts  # a run reads them
                raise
            except BaseException:
                permit.unused()
                raise
            self.counts.requests += 1
            try:
                result = await self.transport.exchange(request, api_key, timeout)
            except BaseException:
                permit.unanswered()
                raise
            now = self._loop.time()
            if isinstance(result, Response):
                permit.answered(result)
                only_rate_limited = tries.only_rate_limited
                failure: LoopsError | None = judge(
                    result, request, api_key, only_rate_limited=only_rate_limited
                )
                if failure is None:
                    tries.response = result
                    if self._on_attempt is not None or _logger.isEnabledFor(
                        logging.DEBUG
                    ):
                        self._report(tries, now, result.status)
                    if result.duplicate:
                        self.counts.duplicates += 1
                    else:
                        self.counts.accepted += 1
                    # Without a key the receipt is not used: every event has a key.
                    key, elapsed = request.key or "", now - tries.began
                    limit = result.rate_limit
                    return Receipt(
                        key, tries.attempts, result.duplicate, elapsed, limit
                    )
            else:
                permit.unanswered(result, cut_by_deadline=tries.cut_by_deadline)
                redact = Redactor(api_key, request.content)
                result.args = (redact(str(result.args[0])),)
                failure = result
            del result  # the traceback of an error must not hold unredacted text
            if isinstance(failure, RateLimitError):
                self.counts.limited += 1
            rotated = api_key if self._api_key is None else None
            final = tries.failed(failure, now, self.admission, rotated)
            status = failure.status if isinstance(failure, APIError) else None
            self._report(tries, now, status, failure, final)
            if final is not None:
                self._count_error(final)
                raise final
            tries.sent = now

    async def _ask_for_api_key(self, tries: Tries) -> Secret:
        """Wait for the callable, and return the API key that it returns.

        Raises:
            LoopsError: If the callable fails, takes longer than the deadline, or
                returns the key that Loops has just refused. Also if the client is
                closed or the run is stopped meanwhile.
        """
        api_key: object = None
        failure = ""
        scope: asyncio.Timeout | None = None
        try:
            async with tries.waits(self.admission, tries.end) as scope:
                api_key = await _value_of(self._key_source)
        except Exception as error:  # noqa: BLE001 - its frames may hold the API key
            failure = f"api_key: the callable raised {type(error).__name__}"
        try:
            tries.refuse_to_start(self.admission)
            if scope is not None and scope.expired():
                raise tries.deadline_passed()
            if failure:
                raise ConfigurationError(failure)
            checked = checked_api_key(api_key)
            if tries.refused is not None and tries.refused[0] == checked:
                raise tries.refused[1]
        except LoopsError as error:
            self._count_error(tries.complete(error))
            raise
        tries.sent = self._loop.time()
        return checked

    def _count_error(self, error: LoopsError) -> None:
        if error.maybe_accepted:
            self.counts.unknown += 1
        elif not isinstance(error, NotTriedError):
            self.counts.failures += 1

    def _report(
        self,
        tries: Tries,
        now: float,
        status: int | None,
        error: LoopsError | None = None,
        final: LoopsError | None = None,
    ) -> None:
        """Log an attempt, and pass it to the hook."""
        elapsed = now - tries.sent
        retry_in = tries.wait if error is not None and final is None else None
        if _logger.isEnabledFor(logging.DEBUG):
            _logger.debug(
                "attempt %d: %s in %.0f ms%s",
                tries.attempts,
                status if error is None else error.args[0],
                elapsed * 1000,
                "" if retry_in is None else f", next attempt in {retry_in:.1f} s",
            )
        if self._on_attempt is None:
            return
        key = tries.request.key
        attempt = Attempt(key, tries.attempts, status, error, elapsed, retry_in)
        try:
            self._on_attempt(attempt)
        except Exception as raised:  # noqa: BLE001 - a hook must not change it
            _logger.error("on_attempt raised %s", type(raised).__name__)


async def _value_of(source: KeySource) -> object:
    """Return the result of the callable, plain or async, hidden from tracebacks."""
    value = source() if callable(source) else source
    return hide_api_key(await value if isawaitable(value) else value)
