"""The translation of exceptions from aiohttp into errors of this library."""

import asyncio
import contextlib
import inspect
import pickle
import ssl
from typing import Any

import aiohttp
import pytest
from aiohttp import client_exceptions, http_exceptions
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from support.clients import KEY
from support.sends import make_request
from support.waiting import run
from yarl import URL

from loops_async import errors
from loops_async._http.api_key import Secret
from loops_async._http.transport import AiohttpTransport

BEARER = f"Bearer {KEY}"


def families(*roots: type[BaseException]) -> list[type[BaseException]]:
    """Return all subclasses of these classes that aiohttp defines."""
    found: list[type[BaseException]] = []
    pending = list(roots)
    while pending:
        kind = pending.pop()
        if kind not in found:
            found.append(kind)
            pending += kind.__subclasses__()
    return sorted(
        (kind for kind in found if kind.__module__.startswith("aiohttp")),
        key=lambda kind: f"{kind.__module__}.{kind.__qualname__}",
    )


def defined_in(module: Any) -> set[type[BaseException]]:
    return {
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, BaseException)
        and value.__module__ == module.__name__
    }


AIOHTTP = families(aiohttp.ClientError, http_exceptions.HttpProcessingError)
OTHERS: list[BaseException] = [
    OSError(5, "Input/output error"),
    ConnectionResetError(104, "Connection reset by peer"),
    BrokenPipeError(),
    TimeoutError(),
    TimeoutError("timed out"),
    asyncio.IncompleteReadError(b"", 1),
    ssl.SSLError(1, "bad record mac"),
    ssl.SSLCertVerificationError(1, "self-signed"),
    RuntimeError("raised by a trace hook of the session, after the response"),
    RecursionError(),
    ValueError("odd"),
    AssertionError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    KeyError("x"),
]

# The request did not reach the server.
CERTAIN = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.ServerFingerprintMismatch,
)
# Another attempt would fail in the same way.
HOPELESS = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.ServerFingerprintMismatch,
)


def made(kind: type[BaseException]) -> BaseException:
    """Make an exception with the arguments that aiohttp would pass."""
    url = URL("https://app.loops.so/api/v1/events/send")
    headers = CIMultiDictProxy(CIMultiDict({"Authorization": BEARER}))
    unknown = dict.fromkeys(ConnectionKey._fields)
    known = {"host": "app.loops.so", "port": 443, "is_ssl": True, "ssl": True}
    where = ConnectionKey(**{**unknown, **known})  # type: ignore[arg-type]
    request = RequestInfo(url, "POST", headers, url)
    argument_lists: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((where, OSError(111, "Connect call failed")), {}),
        (("/tmp/socket", where, OSError(111, "Connect call failed")), {}),
        ((request, ()), {"status": 400, "message": "Bad\nRequest", "headers": headers}),
        ((b"expected", b"got", "app.loops.so", 443), {}),
        (("some\ntext",), {}),
        ((), {"message": "some\ntext"}),
    ]
    for positional, named in argument_lists:
        with contextlib.suppress(TypeError, AttributeError):
            error = kind(*positional, **named)
            str(error)
            return error
    raise AssertionError(f"no arguments are known for {kind}")


class Raising:
    """A session whose requests all raise the given exception."""

    closed = False
    connector = None

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self._loop = asyncio.get_running_loop()

    async def request(self, *_: object, **options: Any) -> None:
        secret_local = options["headers"]
        assert secret_local
        try:
            raise KeyError(BEARER)  # a cause that holds the API key
        except KeyError as cause:
            raise self.error from cause


async def translated(error: BaseException) -> Any:
    session: Any = Raising(error)
    transport = AiohttpTransport(session, max_connections=1)
    await transport.open()
    return await transport.exchange(make_request(), Secret(KEY), None)


def test_the_list_of_exceptions_is_complete() -> None:
    """A new exception in a later aiohttp makes this test fail."""
    defined = defined_in(client_exceptions) | defined_in(http_exceptions)
    assert defined - set(AIOHTTP) == {aiohttp.WSMessageTypeError}  # for websockets
    assert len(AIOHTTP) > 30


@pytest.mark.parametrize(
    "error",
    [
        *map(made, AIOHTTP),
        *OTHERS,
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_every_exception_becomes_a_transport_error_without_a_cause(
    error: BaseException,
) -> None:
    """The original exception and its causes hold the Authorization header."""
    result = run(translated(error))
    assert isinstance(result, errors.TransportError)
    assert result.__cause__ is None
    assert result.__context__ is None
    assert result.__traceback__ is None
    assert not hasattr(result, "__notes__")
    text = str(result)
    assert type(error).__name__ in text
    assert "\n" not in text
    assert len(text) < 400
    assert KEY not in repr(vars(result)) + text + repr(result)
    assert not any(isinstance(value, BaseException) for value in vars(result).values())
    unpickled = pickle.loads(pickle.dumps(result))
    assert vars(unpickled) == vars(result)
    certain = isinstance(error, CERTAIN)
    assert result.maybe_accepted is not certain
    assert result.retryable is not isinstance(error, HOPELESS)
    expected = errors.ConnectFailedError if certain else errors.ConnectionLostError
    assert type(result) is expected


def test_a_request_that_finds_its_session_closed_was_not_sent() -> None:
    result = run(translated(RuntimeError("Session is closed")))
    assert type(result) is errors.ConnectFailedError
    assert result.retryable
    assert not result.maybe_accepted
    assert result.__cause__ is None
    assert result.__context__ is None


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt])
def test_a_cancellation_or_interrupt_is_not_translated(
    kind: type[BaseException],
) -> None:
    with pytest.raises(kind):
        asyncio.run(translated(kind()))


def test_the_text_of_a_long_exception_is_cut() -> None:
    result = run(translated(OSError("x" * 10_000)))
    assert len(str(result)) < 400
