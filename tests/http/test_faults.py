"""Faults of servers and connections, and the result of a send, as one table.

A send makes at most two attempts, so that retries are visible. For every fault the
send ends before its deadline, with a receipt or with an error of this library.
"""

import asyncio
import gzip
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from support.certificates import make_certificate, server_context, trusting_context
from support.clients import client_with_two_attempts
from support.http_server import (
    NO_HEADERS,
    OK,
    Connection,
    Script,
    Server,
    answers,
    closes,
    free_port,
    hangs,
    reply,
    resets,
)
from support.sends import error_of_send_in_frozen_time
from support.virtual_time import run_frozen
from support.waiting import advance_until, run

from loops_async import AsyncLoopsClient, Attempt, LoopsError, Receipt, errors

DEADLINE = 20.0

UNEXPECTED: Final = errors.UnexpectedResponseError
LOST: Final = errors.ConnectionLostError


@attrs.frozen(kw_only=True)
class Fault:
    """The behaviour of a server and the expected result of a send.

    Attributes:
        text: Part of the error's text.
        fields: Expected attributes of the error.
        settings: Settings of the client.
        frozen: Whether the send ends by a timeout, so that time is frozen.
    """

    script: Script
    error: type[LoopsError] | None = None
    status: int | None = None
    retryable: bool = False
    maybe_accepted: bool = False
    attempts: int = 1
    duplicate: bool = False
    text: str = ""
    fields: Mapping[str, object] = attrs.field(factory=dict)
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    frozen: bool = False


def accepted(*replies: bytes, **rest: Any) -> Fault:
    return Fault(script=answers(*replies), **rest)


def final(
    status: int,
    error: type[LoopsError],
    body: bytes | str = b"",
    headers: Mapping[str, str] = NO_HEADERS,
    **rest: Any,
) -> Fault:
    """Expect one attempt and an event that is certainly not accepted."""
    response = reply(status, body, headers, kind=rest.pop("kind", "application/json"))
    return Fault(script=answers(response), error=error, status=status, **rest)


def retried(
    status: int,
    error: type[LoopsError],
    body: bytes | str = b"",
    headers: Mapping[str, str] = NO_HEADERS,
    **rest: Any,
) -> Fault:
    """Expect two attempts and an event that is certainly not accepted."""
    twice: dict[str, Any] = {"retryable": True, "attempts": 2}
    return final(status, error, body, headers, **twice, **rest)


def ambiguous(*response: Any, **rest: Any) -> Fault:
    """Expect two attempts and an event that may have been accepted."""
    return retried(*response, maybe_accepted=True, **rest)


def not_json(body: bytes | str, text: str, **rest: Any) -> Fault:
    return ambiguous(200, UNEXPECTED, body, text=text, **rest)


def lost(script: Script, text: str = "", **rest: Any) -> Fault:
    """Expect two attempts, each of which loses its connection without a response."""
    return Fault(
        script=script,
        error=LOST,
        retryable=True,
        maybe_accepted=True,
        attempts=2,
        text=text,
        **rest,
    )


def timed_out(script: Script) -> Fault:
    return Fault(
        script=script,
        error=errors.RequestTimeoutError,
        retryable=True,
        maybe_accepted=True,
        attempts=2,
        text="no response in time",
        settings={"timeout": 5.0},
        frozen=True,
    )


def raw(data: bytes) -> Script:
    """Read one request, send these bytes and hang up."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(data)

    return script


async def closes_unread(connection: Connection) -> None:
    connection.close()


async def resets_unread(connection: Connection) -> None:
    connection.reset()


async def drips_the_head(connection: Connection) -> None:
    await connection.request()
    for byte in reply(200, headers={"X-Long": "x" * 1000}):
        await connection.send(bytes([byte]))
        await asyncio.sleep(0.05)


async def drips_the_body(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        await connection.send(b" ")
        await asyncio.sleep(0.05)


async def never_ends_the_head(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        await connection.send(b"x" * 65536)


async def never_ends_the_body(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await connection.send(b"10000\r\n" + b" " * 65536 + b"\r\n")


async def responds_before_reading(connection: Connection) -> None:
    await connection.send(OK)
    await connection.request()


def rate_limited(headers: Mapping[str, str], **rest: Any) -> Fault:
    return retried(429, errors.RateLimitError, headers=headers, **rest)


def waits_too_long(status: int, error: type[LoopsError], retry_after: str) -> Fault:
    """Expect one attempt and an error that is retryable later."""
    headers = {"Retry-After": retry_after}
    return final(status, error, headers=headers, retryable=True)


HTML = "<!DOCTYPE html><html><body>Just a moment...</body></html>"
COUNTS = {"limit": None, "remaining": None}
DIFFERENT = '{"message":"Idempotency key already used with a different request body."}'
PROCESSED = (
    '{"success":false,"message":"Request with idempotency key k has already '
    'been processed."}'
)
NOT_ACCEPTED = '{"success":false,"message":"Contact not found."}'

TABLE: dict[str, Fault] = {
    # 2xx
    "200": accepted(OK),
    "200 with more fields": accepted(reply(body='{"success":true,"id":1,"x":[]}')),
    "200 without success": accepted(reply(body='{"id":1}')),
    "200 of another type": accepted(reply(kind="text/plain")),
    "200 with malformed rate headers": accepted(
        reply(headers={"x-ratelimit-limit": "ten", "x-ratelimit-remaining": "-1"})
    ),
    "200 without length, ended by the close": Fault(
        script=raw(b'HTTP/1.0 200 OK\r\n\r\n{"success":true}')
    ),
    "200 in chunks": Fault(
        script=answers(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'4\r\n{"su\r\nc\r\nccess":true}\r\n0\r\n\r\n'
        )
    ),
    "200 twice": accepted(OK + OK),
    "200 before the request is read": Fault(script=responds_before_reading),
    "201": accepted(reply(201)),
    "100 first": accepted(b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    "103 first": accepted(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK),
    "200 success false": final(
        200, UNEXPECTED, NOT_ACCEPTED, text="whose success is false"
    ),
    "200 empty": not_json("", "not a JSON object"),
    "200 list": not_json("[]", "not a JSON object"),
    "200 null": not_json("null", "not a JSON object"),
    "200 HTML": not_json(HTML, "cannot be read as JSON", kind="text/html"),
    "200 garbage": not_json(b"\xff\xfe{", "cannot be read as JSON"),
    "200 half of JSON": not_json('{"success":', "cannot be read as JSON"),
    "200 NaN": not_json('{"success":NaN}', "cannot be read as JSON"),
    "200 nested 60,000 deep": not_json("[" * 60_000, "cannot be read as JSON"),
    "200 over 64 KiB": not_json(b'{"a":"' + b"x" * 65_536 + b'"}', "longer than 65536"),
    "200 gzip": Fault(
        script=answers(
            reply(
                body=gzip.compress(b'{"success":true}'),
                headers={"Content-Encoding": "gzip"},
            )
        ),
        error=UNEXPECTED,
        status=200,
        retryable=True,
        maybe_accepted=True,
        attempts=2,
    ),
    "204": ambiguous(204, UNEXPECTED, text="not a JSON object"),
    # 4xx
    "400 with a message": final(
        400,
        errors.BadRequestError,
        NOT_ACCEPTED,
        fields={"message": "Contact not found.", "body": NOT_ACCEPTED.encode()},
        text="Loops responded with 400: Contact not found.",
    ),
    "400 with an error object": final(
        400,
        errors.BadRequestError,
        '{"success":false,"error":{"path":"x","message":"Bad x."}}',
        fields={"message": "Bad x."},
    ),
    "400 with a reason": final(
        400,
        errors.BadRequestError,
        '{"error":{"path":"x","reason":"No x."}}',
        fields={"message": "No x."},
    ),
    "400 empty": final(400, errors.BadRequestError, fields={"message": "Bad Request"}),
    "401": final(
        401,
        errors.AuthenticationError,
        '{"success":false,"message":"Invalid API key","error":"Invalid API key"}',
        text="Invalid API key",
    ),
    "402": final(402, UNEXPECTED),
    "403 HTML": final(
        403, errors.ForbiddenError, HTML, kind="text/html", text="text/html"
    ),
    "404": final(404, errors.NotFoundError, '{"message":"Not found"}'),
    "405": final(405, UNEXPECTED),
    "407": final(407, UNEXPECTED),
    "408": ambiguous(408, UNEXPECTED),
    "409 processed": accepted(reply(409, PROCESSED), duplicate=True),
    "409 empty": accepted(reply(409, ""), duplicate=True),
    "409 different body": final(409, errors.IdempotencyConflictError, DIFFERENT),
    "409 after a 500": accepted(
        reply(500), reply(409, PROCESSED), duplicate=True, attempts=2
    ),
    "409 after 429s only": Fault(
        script=answers(reply(429), reply(409, PROCESSED)),
        error=errors.IdempotencyConflictError,
        status=409,
        maybe_accepted=True,
        attempts=2,
        text="409 after nothing but 429",
    ),
    "410": final(410, UNEXPECTED),
    "413": final(413, errors.PayloadTooLargeError),
    "415": final(415, UNEXPECTED),
    "418": final(418, UNEXPECTED),
    "422": final(422, UNEXPECTED),
    "425": retried(425, UNEXPECTED),
    "451": final(451, UNEXPECTED),
    "499": final(499, UNEXPECTED),
    # 429
    "429": rate_limited({}, fields={**COUNTS, "retry_after": None}),
    "429 with counts": rate_limited(
        {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "0"},
        fields={"limit": 10, "remaining": 0},
    ),
    "429 with odd counts": rate_limited(
        {"x-ratelimit-limit": "ten", "x-ratelimit-remaining": "1.5"}, fields=COUNTS
    ),
    "429 with huge counts": rate_limited(
        {"x-ratelimit-limit": "9" * 400, "x-ratelimit-remaining": "0"}, fields=COUNTS
    ),
    "429 with negative counts": rate_limited(
        {"x-ratelimit-limit": "-10", "x-ratelimit-remaining": "-1"}, fields=COUNTS
    ),
    "429 with one count": rate_limited({"x-ratelimit-limit": "10"}, fields=COUNTS),
    "429 then 200": accepted(reply(429), OK, attempts=2),
    "429 with Retry-After 0.05": rate_limited(
        {"Retry-After": "0.05"}, fields={"retry_after": 0.05}
    ),
    "429 with Retry-After a day": waits_too_long(429, errors.RateLimitError, "86400"),
    "429 with Retry-After of 400 digits": rate_limited({"Retry-After": "9" * 400}),
    "429 with Retry-After nan": rate_limited(
        {"Retry-After": "nan"}, fields={"retry_after": None}
    ),
    "429 with Retry-After inf": rate_limited(
        {"Retry-After": "inf"}, fields={"retry_after": None}
    ),
    "429 with Retry-After -5": rate_limited(
        {"Retry-After": "-5"}, fields={"retry_after": None}
    ),
    "429 with Retry-After a past date": rate_limited(
        {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, fields={"retry_after": 0.0}
    ),
    "429 with Retry-After a far date": waits_too_long(
        429, errors.RateLimitError, "Fri, 31 Dec 2999 23:59:59 GMT"
    ),
    "429 with Retry-After garbage": rate_limited(
        {"Retry-After": "soon, please"}, fields={"retry_after": None}
    ),
    # 5xx
    "500": ambiguous(500, errors.ServerError, '{"message":"Oops"}', text="Oops"),
    "500 empty": ambiguous(500, errors.ServerError),
    "500 then 200": accepted(reply(500), OK, attempts=2),
    "501": ambiguous(501, errors.ServerError),
    "502 HTML": ambiguous(502, errors.ServerError, HTML, kind="text/html"),
    "503 text": ambiguous(
        503,
        errors.ServerError,
        "Service Unavailable",
        kind="text/plain",
        text="Loops responded with 503: Service Unavailable",
    ),
    "503 with Retry-After 0.05": ambiguous(
        503, errors.ServerError, headers={"Retry-After": "0.05"}
    ),
    "503 with Retry-After a day": attrs.evolve(
        waits_too_long(503, errors.ServerError, "86400"), maybe_accepted=True
    ),
    "504": ambiguous(504, errors.ServerError),
    "520": ambiguous(520, errors.ServerError),
    "524": ambiguous(524, errors.ServerError),
    "599": ambiguous(599, errors.ServerError),
    "500 with a body that breaks off": lost(
        raw(b"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\nOops")
    ),
    # invalid status codes
    "600": final(600, UNEXPECTED),
    "999": final(999, UNEXPECTED),
    "101": Fault(
        script=raw(
            b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
        ),
        error=UNEXPECTED,
        status=101,
    ),
    "99": lost(raw(reply("HTTP/1.1 99 Low"))),
    "1000": lost(raw(reply("HTTP/1.1 1000 High"))),
    # not HTTP
    "garbage": lost(raw(b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n")),
    "a line of garbage": lost(raw(b"220 mail.example.com ESMTP ready\r\n")),
    "a status line of garbage": lost(raw(reply("HTTP/1.1 abc OK"))),
    "200 and then garbage": lost(raw(OK + b"\x00more")),
    "HTTP/2": lost(raw(reply("HTTP/2 200"))),
    "a length that is not a number": lost(
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n{}")
    ),
    "a negative length": lost(raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}")),
    "two lengths": lost(
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}")
    ),
    "length and chunks": lost(
        raw(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        )
    ),
    "a header too large": lost(raw(reply(headers={"X-Long": "x" * 100_000}))),
    "a header without end": lost(never_ends_the_head),
    "a NUL in a header": lost(raw(reply(headers={"X": "a\0b"}))),
    "half a response": lost(raw(OK[:20])),
    "a body that breaks off": lost(
        raw(b'HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n{"succ')
    ),
    "a chunk that breaks off": lost(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{")
    ),
    "a chunk of garbage": lost(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")
    ),
    "a body without end": Fault(
        script=never_ends_the_body,
        error=UNEXPECTED,
        status=200,
        retryable=True,
        maybe_accepted=True,
        attempts=2,
        text="longer than 65536 bytes",
    ),
    # the connection
    "closes unread": lost(closes_unread),
    "closes after reading": lost(closes, "ServerDisconnectedError"),
    "resets unread": lost(resets_unread),
    "resets after reading": lost(resets, "reset"),
    "never responds": timed_out(hangs),
    "drips the head": timed_out(drips_the_head),
    "drips the body": timed_out(drips_the_body),
}


class CheckedSend:
    """A send of one event whose result is compared with the table."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.attempts: list[Attempt] = []
        self.result: Receipt | LoopsError

    async def send(self, url: str, **settings: Any) -> None:
        settings = {"deadline": DEADLINE, **self.fault.settings, **settings}
        async with client_with_two_attempts(
            url, on_attempt=self.attempts.append, **settings
        ) as loops:
            self.result = await result_of_send(loops)
        self.check()

    def check(self) -> None:
        fault, result = self.fault, self.result
        assert result.idempotency_key == "k"
        assert result.attempts == len(self.attempts) == fault.attempts
        assert [attempt.number for attempt in self.attempts] == list(
            range(1, result.attempts + 1)
        )
        last = self.attempts[-1]
        assert last.retry_in is None
        if isinstance(result, Receipt):
            assert fault.error is None
            assert result.duplicate is fault.duplicate
            assert last.error is None
            return
        assert type(result) is fault.error, repr(result)
        assert last.error is result
        status = result.status if isinstance(result, errors.APIError) else None
        assert last.status == status == fault.status
        assert result.retryable is fault.retryable
        assert result.maybe_accepted is fault.maybe_accepted
        assert fault.text in str(result)
        assert "\n" not in str(result)
        for name, value in fault.fields.items():
            assert getattr(result, name) == value
        assert result.__cause__ is None
        assert result.__context__ is None


async def result_of_send(loops: AsyncLoopsClient) -> Receipt | LoopsError:
    """Send one event; any exception that is not a LoopsError fails the test."""
    try:
        return await loops.send_event("e", email="ada@example.com", idempotency_key="k")
    except LoopsError as error:
        return error


@pytest.mark.parametrize("name", TABLE)
def test_a_send_to_a_faulty_server_ends_as_in_the_table(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All attempts send the same bytes, and asyncio and aiohttp log nothing."""
    caplog.set_level(logging.WARNING)
    fault = TABLE[name]

    async def main() -> list[tuple[str, str]]:
        async with Server(fault.script) as server:
            send = asyncio.create_task(CheckedSend(fault).send(server.url))
            if fault.frozen:
                await advance_until(send.done)
            await send
            return [
                (request.headers["idempotency-key"], request.body.decode())
                for request in server.requests
            ]

    requests = run_frozen(main()) if fault.frozen else run(main())
    assert len(set(requests)) <= 1
    assert [record for record in caplog.records if record.name != "loops_async"] == []


def test_the_table_has_at_least_33_faults() -> None:
    assert len(TABLE) >= 33


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    """Neither the event nor the API key reaches the second server."""

    async def main() -> int:
        async with Server(answers(OK)) as second:
            headers = {"Location": f"{second.url}/v1/events/send"}
            fault = final(status, UNEXPECTED, headers=headers)
            async with Server(fault.script) as first:
                await CheckedSend(fault).send(first.url)
                assert len(first.requests) == 1
            return second.connections

    assert run(main()) == 0


@pytest.mark.parametrize("seconds", ["0.2", "0.3"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_never_comes_before_retry_after(status: int, seconds: str) -> None:
    script = answers(reply(status, headers={"Retry-After": seconds}), OK)

    async def main() -> float:
        async with Server(script) as server:
            await CheckedSend(Fault(script=script, attempts=2)).send(server.url)
            first, second = server.requests
            return second.at - first.at

    assert run(main()) >= float(seconds)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_body_of_a_gigabyte_is_neither_read_nor_kept_in_memory() -> None:
    """The client closes the connection after the part that it keeps."""
    page = b"x" * 65_536
    sent: list[int] = []
    resident: list[int] = []

    async def gigabyte(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        sent.append(0)
        for _ in range(1024**3 // len(page)):
            resident.append(memory())
            await connection.send(page)
            sent[-1] += len(page)

    fault = attrs.evolve(TABLE["a body without end"], script=gigabyte)

    async def main() -> int:
        async with Server(gigabyte) as server:
            await CheckedSend(fault).send(server.url)  # allocates the buffers
            before = memory()
            resident.clear()
            send = CheckedSend(fault)
            await send.send(server.url)
            assert isinstance(send.result, errors.APIError)
            assert len(send.result.body) == 65_536
            assert server.connections == 4
            return before

    before = run(main())
    assert max([*resident, memory()]) - before < 20 * 1024**2
    assert len(sent) == 4
    assert max(sent) < 64 * 1024**2  # in the buffers of the kernel


def memory() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


NOT_REACHED = Fault(
    script=hangs, error=errors.ConnectFailedError, retryable=True, attempts=2
)


def test_a_refused_connection_is_certainly_not_accepted() -> None:
    fault = attrs.evolve(NOT_REACHED, text="Cannot connect")
    run(CheckedSend(fault).send(f"http://127.0.0.1:{free_port()}/api"))


def test_a_name_that_does_not_resolve_is_certainly_not_accepted() -> None:
    fault = attrs.evolve(NOT_REACHED, text="ClientConnectorDNSError")
    run(CheckedSend(fault).send("http://loops.invalid/api", proxy=""))


def test_https_to_a_server_of_plain_http_is_certainly_not_accepted() -> None:
    """The server responds to the TLS handshake in plain HTTP."""

    async def plain(connection: Connection) -> None:
        await connection.reader.read(1)
        await connection.send(reply(400))

    async def main() -> None:
        async with Server(plain) as server:
            fault = attrs.evolve(NOT_REACHED, text="SSL")
            await CheckedSend(fault).send(server.url.replace("http:", "https:"))

    run(main())


def test_http_to_a_server_of_https_is_a_lost_connection(
    certificate: tuple[Path, Path],
) -> None:
    async def main() -> None:
        async with Server(hangs, tls=server_context(certificate)) as server:
            await CheckedSend(lost(hangs)).send(server.url.replace("https:", "http:"))

    run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a self-signed certificate for 127.0.0.1 and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


def test_a_self_signed_certificate_is_rejected_after_one_attempt(
    certificate: tuple[Path, Path],
) -> None:
    """Another attempt would fail in the same way, and no request is sent."""
    fault = Fault(
        script=answers(OK),
        error=errors.ConnectFailedError,
        text="ClientConnectorCertificateError",
    )

    async def main() -> None:
        async with Server(fault.script, tls=server_context(certificate)) as server:
            await CheckedSend(fault).send(server.url)
            assert server.requests == []

    run(main())


def test_a_certificate_of_another_host_is_rejected_after_one_attempt(
    certificate: tuple[Path, Path],
) -> None:
    fault = Fault(
        script=answers(OK), error=errors.ConnectFailedError, text="CertificateError"
    )
    trusting = trusting_context(certificate)

    async def main() -> None:
        async with Server(fault.script, tls=server_context(certificate)) as server:
            url = server.url.replace("127.0.0.1", "localhost")
            await CheckedSend(fault).send(url, ssl_context=trusting)
            assert server.requests == []

    run(main())


def test_an_ssl_context_defines_the_trusted_certificates(
    certificate: tuple[Path, Path],
) -> None:
    trusting = trusting_context(certificate)

    async def main() -> None:
        async with Server(answers(OK), tls=server_context(certificate)) as server:
            await CheckedSend(accepted(OK)).send(server.url, ssl_context=trusting)
            assert len(server.requests) == 1

    run(main())


def test_a_deadline_that_ends_an_attempt_leaves_the_outcome_unknown() -> None:
    """The deadline is shorter than the timeout, and the request is in flight."""

    async def main() -> tuple[LoopsError | None, float]:
        async with (
            Server(hangs) as server,
            client_with_two_attempts(server.url, timeout=60.0) as loops,
        ):
            error = await error_of_send_in_frozen_time(loops, deadline=5.0)
            return error, asyncio.get_running_loop().time()

    error, seconds = run_frozen(main())
    assert type(error) is errors.DeadlineExceededError
    assert error.maybe_accepted
    assert error.attempts == 1
    assert seconds == pytest.approx(5, abs=0.1)
