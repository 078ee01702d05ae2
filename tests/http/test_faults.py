"""What each thing a server can do does to a send: one table.

Two attempts at most, so a retry shows. Whatever happens, the send ends inside
its deadline, and in nothing but a receipt or one of our errors.
"""

import asyncio
import gzip
import logging
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Any, Final

import attrs
import pytest
from support.http_server import (
    NO_HEADERS,
    OK,
    Connection,
    Script,
    Server,
    answers,
    client,
    closes,
    free_port,
    hangs,
    reply,
    resets,
    run,
)

from loops_async import AsyncLoopsClient, Attempt, LoopsError, Receipt, errors

DEADLINE = 20.0
SHORT = 0.4  # a time-out, for what never answers

UNEXPECTED: Final = errors.UnexpectedResponseError
LOST: Final = errors.ConnectionLostError


@attrs.frozen(kw_only=True)
class Fault:
    """What a server does, and what becomes of the send."""

    script: Script
    error: type[LoopsError] | None = None
    status: int | None = None
    retryable: bool = False
    maybe_accepted: bool = False
    attempts: int = 1
    duplicate: bool = False
    says: str = ""
    has: Mapping[str, object] = attrs.field(factory=dict)
    settings: Mapping[str, Any] = attrs.field(factory=dict)


def accepted(*replies: bytes, **rest: Any) -> Fault:
    return Fault(script=answers(*replies), **rest)


def final(
    status: int,
    error: type[LoopsError],
    body: bytes | str = b"",
    headers: Mapping[str, str] = NO_HEADERS,
    **rest: Any,
) -> Fault:
    """Refused for good: one attempt, certainly not accepted."""
    answer = reply(status, body, headers, kind=rest.pop("kind", "application/json"))
    return Fault(script=answers(answer), error=error, status=status, **rest)


def retried(
    status: int,
    error: type[LoopsError],
    body: bytes | str = b"",
    headers: Mapping[str, str] = NO_HEADERS,
    **rest: Any,
) -> Fault:
    """Tries again, and then raised."""
    again: dict[str, Any] = {"retryable": True, "attempts": 2}
    return final(status, error, body, headers, **again, **rest)


def ambiguous(*given: Any, **rest: Any) -> Fault:
    """Tries again, and may have been accepted all the same."""
    return retried(*given, maybe_accepted=True, **rest)


def not_json(body: bytes | str, says: str, **rest: Any) -> Fault:
    return ambiguous(200, UNEXPECTED, body, says=says, **rest)


def lost(script: Script, says: str = "", **rest: Any) -> Fault:
    """The connection ends without a usable answer, after the request left."""
    return Fault(
        script=script,
        error=LOST,
        retryable=True,
        maybe_accepted=True,
        attempts=2,
        says=says,
        **rest,
    )


def timed_out(script: Script) -> Fault:
    return Fault(
        script=script,
        error=errors.RequestTimeoutError,
        retryable=True,
        maybe_accepted=True,
        attempts=2,
        says="no answer in time",
        settings={"timeout": SHORT},
    )


def raw(data: bytes) -> Script:
    """Answer with bytes of any kind and hang up."""

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


async def answers_before_reading(connection: Connection) -> None:
    await connection.send(OK)
    await connection.request()


def throttled(headers: Mapping[str, str], **rest: Any) -> Fault:
    return retried(429, errors.RateLimitError, headers=headers, **rest)


def waits_too_long(status: int, error: type[LoopsError], asked: str) -> Fault:
    """Asks for more than anybody waits: raised at once, and still retryable."""
    headers = {"Retry-After": asked}
    return final(status, error, headers=headers, retryable=True)


HTML = "<!DOCTYPE html><html><body>Just a moment...</body></html>"
COUNTS = {"limit": None, "remaining": None}
DIFFERENT = '{"message":"Idempotency key already used with a different request body."}'
PROCESSED = (
    '{"success":false,"message":"Request with idempotency key k has already '
    'been processed."}'
)
SAID_NO = '{"success":false,"message":"Contact not found."}'

TABLE: dict[str, Fault] = {
    # 2xx
    "200": accepted(OK),
    "200 with more fields": accepted(reply(body='{"success":true,"id":1,"x":[]}')),
    "200 without success": accepted(reply(body='{"id":1}')),
    "200 of another type": accepted(reply(kind="text/plain")),
    "200 with rate headers nobody can read": accepted(
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
    "200 before the request was read": Fault(script=answers_before_reading),
    "201": accepted(reply(201)),
    "100 first": accepted(b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    "103 first": accepted(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK),
    "200 success false": final(200, UNEXPECTED, SAID_NO, says="without success"),
    "200 empty": not_json("", "not a JSON object"),
    "200 list": not_json("[]", "not a JSON object"),
    "200 null": not_json("null", "not a JSON object"),
    "200 HTML": not_json(HTML, "not JSON", kind="text/html"),
    "200 garbage": not_json(b"\xff\xfe{", "not JSON"),
    "200 half of JSON": not_json('{"success":', "not JSON"),
    "200 NaN": not_json('{"success":NaN}', "not JSON"),
    "200 nested beyond reason": not_json("[" * 60_000, "not JSON"),
    "200 over 64 KiB": not_json(b'{"a":"' + b"x" * 65_536 + b'"}', "longer than 65536"),
    "200 gzip all the same": Fault(
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
    "204": ambiguous(204, UNEXPECTED, says="not a JSON object"),
    # 4xx
    "400 with a message": final(
        400,
        errors.BadRequestError,
        SAID_NO,
        has={"message": "Contact not found.", "body": SAID_NO.encode()},
        says="Loops answered 400: Contact not found.",
    ),
    "400 with an error object": final(
        400,
        errors.BadRequestError,
        '{"success":false,"error":{"path":"x","message":"Bad x."}}',
        has={"message": "Bad x."},
    ),
    "400 with a reason": final(
        400,
        errors.BadRequestError,
        '{"error":{"path":"x","reason":"No x."}}',
        has={"message": "No x."},
    ),
    "400 empty": final(400, errors.BadRequestError, has={"message": "Bad Request"}),
    "401": final(
        401,
        errors.AuthenticationError,
        '{"success":false,"message":"Invalid API key","error":"Invalid API key"}',
        says="Invalid API key",
    ),
    "402": final(402, UNEXPECTED),
    "403 HTML": final(
        403, errors.ForbiddenError, HTML, kind="text/html", says="text/html"
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
    "409 after nothing but 429": Fault(
        script=answers(reply(429), reply(409, PROCESSED)),
        error=errors.IdempotencyConflictError,
        status=409,
        maybe_accepted=True,
        attempts=2,
        says="409 after nothing but 429",
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
    "429": throttled({}, has={**COUNTS, "retry_after": None}),
    "429 with counts": throttled(
        {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "0"},
        has={"limit": 10, "remaining": 0},
    ),
    "429 with odd counts": throttled(
        {"x-ratelimit-limit": "ten", "x-ratelimit-remaining": "1.5"}, has=COUNTS
    ),
    "429 with huge counts": throttled(
        {"x-ratelimit-limit": "9" * 400, "x-ratelimit-remaining": "0"}, has=COUNTS
    ),
    "429 with negative counts": throttled(
        {"x-ratelimit-limit": "-10", "x-ratelimit-remaining": "-1"}, has=COUNTS
    ),
    "429 with one count": throttled({"x-ratelimit-limit": "10"}, has=COUNTS),
    "429 then 200": accepted(reply(429), OK, attempts=2),
    "429 asking for 0.05": throttled(
        {"Retry-After": "0.05"}, has={"retry_after": 0.05}
    ),
    "429 asking for a day": waits_too_long(429, errors.RateLimitError, "86400"),
    "429 asking for too many digits": throttled({"Retry-After": "9" * 400}),
    "429 asking for nan": throttled({"Retry-After": "nan"}, has={"retry_after": None}),
    "429 asking for inf": throttled({"Retry-After": "inf"}, has={"retry_after": None}),
    "429 asking for -5": throttled({"Retry-After": "-5"}, has={"retry_after": None}),
    "429 asking for a past date": throttled(
        {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, has={"retry_after": 0.0}
    ),
    "429 asking for a far date": waits_too_long(
        429, errors.RateLimitError, "Fri, 31 Dec 2999 23:59:59 GMT"
    ),
    "429 asking for garbage": throttled(
        {"Retry-After": "soon, please"}, has={"retry_after": None}
    ),
    # 5xx
    "500": ambiguous(500, errors.ServerError, '{"message":"Oops"}', says="Oops"),
    "500 empty": ambiguous(500, errors.ServerError),
    "500 then 200": accepted(reply(500), OK, attempts=2),
    "501": ambiguous(501, errors.ServerError),
    "502 HTML": ambiguous(502, errors.ServerError, HTML, kind="text/html"),
    "503 text": ambiguous(
        503,
        errors.ServerError,
        "Service Unavailable",
        kind="text/plain",
        says="Loops answered 503: Service Unavailable",
    ),
    "503 asking for 0.05": ambiguous(
        503, errors.ServerError, headers={"Retry-After": "0.05"}
    ),
    "503 asking for a day": attrs.evolve(
        waits_too_long(503, errors.ServerError, "86400"), maybe_accepted=True
    ),
    "504": ambiguous(504, errors.ServerError),
    "520": ambiguous(520, errors.ServerError),
    "524": ambiguous(524, errors.ServerError),
    "599": ambiguous(599, errors.ServerError),
    "500 with a body that breaks off": lost(
        raw(b"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\nOops")
    ),
    # no status of HTTP
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
    "a length that is none": lost(
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
    "half an answer": lost(raw(OK[:20])),
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
        says="longer than 65536 bytes",
    ),
    # the connection
    "closes unread": lost(closes_unread),
    "closes after reading": lost(closes, "ServerDisconnectedError"),
    "resets unread": lost(resets_unread),
    "resets after reading": lost(resets, "reset"),
    "never answers": timed_out(hangs),
    "drips the head": timed_out(drips_the_head),
    "drips the body": timed_out(drips_the_body),
}


class Tries:
    """Sends one event and checks what became of it against the table."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.attempts: list[Attempt] = []
        self.outcome: Receipt | LoopsError

    async def send(self, url: str, **settings: Any) -> None:
        loop = asyncio.get_running_loop()
        settings = {"deadline": DEADLINE, **self.fault.settings, **settings}
        began = loop.time()
        async with client(url, on_attempt=self.attempts.append, **settings) as loops:
            self.outcome = await outcome(loops)
            took = loop.time() - began
        assert took < DEADLINE
        self.check()

    def check(self) -> None:
        fault, found = self.fault, self.outcome
        assert found.idempotency_key == "k"
        assert found.attempts == len(self.attempts) == fault.attempts
        assert [one.number for one in self.attempts] == list(
            range(1, found.attempts + 1)
        )
        last = self.attempts[-1]
        assert last.retry_in is None
        if isinstance(found, Receipt):
            assert fault.error is None
            assert found.duplicate is fault.duplicate
            assert last.error is None
            return
        assert type(found) is fault.error, repr(found)
        assert last.error is found
        status = found.status if isinstance(found, errors.APIError) else None
        assert last.status == status == fault.status
        assert found.retryable is fault.retryable
        assert found.maybe_accepted is fault.maybe_accepted
        assert fault.says in str(found)
        assert "\n" not in str(found)
        for name, value in fault.has.items():
            assert getattr(found, name) == value
        assert found.__cause__ is None
        assert found.__context__ is None


async def outcome(loops: AsyncLoopsClient) -> Receipt | LoopsError:
    """Return what a send gives or raises; nothing but ours may come out."""
    try:
        return await loops.send_event("e", email="ada@example.com", idempotency_key="k")
    except LoopsError as error:
        return error


@pytest.mark.parametrize("name", TABLE)
def test_whatever_a_server_does_a_send_ends_as_the_table_says(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing is logged by asyncio or aiohttp about what is left open."""
    caplog.set_level(logging.WARNING)
    fault = TABLE[name]

    async def main() -> list[tuple[str, str]]:
        async with Server(fault.script) as server:
            tried = Tries(fault)
            await tried.send(server.url)
            return [
                (request.headers["idempotency-key"], request.body.decode())
                for request in server.requests
            ]

    seen = run(main())
    assert len(set(seen)) <= 1, "not the same bytes on every attempt"
    assert [record for record in caplog.records if record.name != "loops_async"] == []


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 33


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
def test_no_redirect_is_followed(status: int) -> None:
    """Not a byte of the event, nor the key, reaches the second server."""

    async def main() -> int:
        async with Server(answers(OK)) as second:
            headers = {"Location": f"{second.url}/v1/events/send"}
            fault = final(status, UNEXPECTED, headers=headers)
            async with Server(fault.script) as first:
                await Tries(fault).send(first.url)
                assert len(first.requests) == 1
            return second.connections

    assert run(main()) == 0


@pytest.mark.parametrize("asked", ["0.2", "0.3"])
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_never_undercut(status: int, asked: str) -> None:
    script = answers(reply(status, headers={"Retry-After": asked}), OK)

    async def main() -> float:
        async with Server(script) as server:
            await Tries(Fault(script=script, attempts=2)).send(server.url)
            first, second = server.requests
            return second.at - first.at

    assert run(main()) >= float(asked)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_body_of_a_gigabyte_is_neither_read_nor_kept() -> None:
    """The connection closes instead, and memory stays flat."""
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
            warm = Tries(fault)
            await warm.send(server.url)
            before = memory()
            resident.clear()
            tried = Tries(fault)
            await tried.send(server.url)
            found = tried.outcome
            assert isinstance(found, errors.APIError)
            assert len(found.body) == 65_536
            assert server.connections == 4
            return before

    before = run(main())
    assert max([*resident, memory()]) - before < 20 * 1024**2
    assert len(sent) == 4
    assert max(sent) < 64 * 1024**2  # what the buffers of the kernel took


def memory() -> int:
    """Return the bytes this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


NOT_REACHED = Fault(
    script=hangs, error=errors.ConnectFailedError, retryable=True, attempts=2
)


def test_a_refused_connection_is_certainly_not_accepted() -> None:
    fault = attrs.evolve(NOT_REACHED, says="Cannot connect")
    run(Tries(fault).send(f"http://127.0.0.1:{free_port()}/api"))


def test_a_name_that_does_not_resolve_is_certainly_not_accepted() -> None:
    fault = attrs.evolve(NOT_REACHED, says="ClientConnectorDNSError")
    run(Tries(fault).send("http://loops.invalid/api", proxy=""))


def test_https_to_a_server_of_plain_http_is_certainly_not_accepted() -> None:
    """What it says to a client hello is no TLS."""

    async def plain(connection: Connection) -> None:
        await connection.reader.read(1)
        await connection.send(reply(400))

    async def main() -> None:
        async with Server(plain) as server:
            fault = attrs.evolve(NOT_REACHED, says="SSL")
            await Tries(fault).send(server.url.replace("http:", "https:"))

    run(main())


def test_http_to_a_server_of_https_is_a_lost_connection(
    certificate: tuple[Path, Path],
) -> None:
    async def main() -> None:
        async with Server(hangs, tls=server_context(certificate)) as server:
            await Tries(lost(hangs)).send(server.url.replace("https:", "http:"))

    run(main(), limit=60)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed, and its key."""
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    where = tmp_path_factory.mktemp("tls")
    certificate, key = where / "certificate.pem", where / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate)),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_a_certificate_nobody_signed_is_refused_at_once(
    certificate: tuple[Path, Path],
) -> None:
    """Trying again would not help, and no request was sent."""
    fault = Fault(
        script=answers(OK),
        error=errors.ConnectFailedError,
        says="ClientConnectorCertificateError",
    )

    async def main() -> None:
        async with Server(fault.script, tls=server_context(certificate)) as server:
            await Tries(fault).send(server.url)
            assert server.requests == []

    run(main())


def test_a_certificate_of_another_host_is_refused_at_once(
    certificate: tuple[Path, Path],
) -> None:
    fault = Fault(
        script=answers(OK), error=errors.ConnectFailedError, says="CertificateError"
    )
    trusting = ssl.create_default_context(cafile=str(certificate[0]))

    async def main() -> None:
        async with Server(fault.script, tls=server_context(certificate)) as server:
            url = server.url.replace("127.0.0.1", "localhost")
            await Tries(fault).send(url, ssl_context=trusting)
            assert server.requests == []

    run(main())


def test_an_ssl_context_says_whom_to_trust(certificate: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate[0]))

    async def main() -> None:
        async with Server(answers(OK), tls=server_context(certificate)) as server:
            await Tries(accepted(OK)).send(server.url, ssl_context=trusting)
            assert len(server.requests) == 1

    run(main())


def test_a_deadline_shorter_than_the_time_out_bounds_a_server_that_hangs() -> None:
    """Unknown, not failed: the attempt was under way."""

    async def main() -> tuple[LoopsError | Receipt, float]:
        async with Server(hangs) as server, client(server.url, timeout=60.0) as loops:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(errors.DeadlineExceededError) as raised:
                await loops.send_event("e", user_id="u", deadline=0.5)
            return raised.value, loop.time() - began

    error, took = run(main())
    assert error.maybe_accepted  # type: ignore[union-attr]
    assert error.attempts == 1
    assert 0.4 < took < DEADLINE
