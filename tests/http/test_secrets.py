"""The API key appears in no output, and the values of an event in no log line.

Crash reporters print the local variables of every frame. The tests therefore search
the frames of this library, too, along all causes and contexts of an error.
"""

import asyncio
import copy
import json
import logging
import math
import pickle
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import pytest
from support.clients import TWICE
from support.http_server import (
    OK,
    Connection,
    Script,
    Server,
    answers,
    closes,
    free_port,
    hangs,
    reply,
)
from support.sends import transport_of
from support.waiting import run, until

import loops_async
from loops_async import AsyncLoopsClient, Attempt, LoopsError, RetryPolicy, errors
from loops_async.sandbox import FAULTS, Sandbox

KEY = "sk-never-to-be-seen-0123456789abcdef"
BEARER = f"Bearer {KEY}"
PACKAGE = str(Path(loops_async.__file__).parent)

EMAIL = "ada.lovelace@private.example"
USER_ID = "usr_private_1815"
VALUES = ["private value one", "private-two", 18151210, 1852.1127, "prívate-thrée"]
EVENT: dict[str, Any] = {
    "email": EMAIL,
    "user_id": USER_ID,
    "event_properties": {"one": VALUES[0], "two": VALUES[1], "count": VALUES[2]},
    "contact_properties": {"ratio": VALUES[3], "three": VALUES[4], "none": None},
}
PRIVATE = [EMAIL, USER_ID, *map(str, VALUES)]


def loops_at(url: str, **settings: Any) -> AsyncLoopsClient:
    fast = {"rate_limit": math.inf, "retry": TWICE, "timeout": 10.0, "deadline": 30.0}
    return AsyncLoopsClient(KEY, base_url=url, **{**fast, **settings})


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of this library in the error's traceback."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield frame


def safe_repr(value: object) -> str:
    """Return the repr of the value, which may be an incomplete object."""
    try:
        return repr(value)
    except AttributeError as error:
        return repr(error)


def chained(error: BaseException) -> Iterator[BaseException]:
    """Yield the error with all its causes and contexts."""
    pending: list[BaseException | None] = [error]
    visited: set[int] = set()
    while pending:
        link = pending.pop()
        if link is None or id(link) in visited:
            continue
        visited.add(id(link))
        yield link
        pending += [link.__cause__, link.__context__]


def printable_texts(error: BaseException) -> Iterator[str]:
    """Yield all texts that a crash reporter could print about the error."""
    for link in chained(error):
        for frame in frames_of(link):
            for name, value in frame.f_locals.items():
                yield f"{frame.f_code.co_name}: {name} = {safe_repr(value)}"
                if isinstance(value, LoopsError):
                    yield f"{name}: {vars(value)!r}"
        if isinstance(link, LoopsError):
            yield from (str(link), repr(link), repr(link.args), repr(vars(link)))
            yield pickle.dumps(link).decode("latin-1")
            yield repr(vars(copy.copy(link)))


def assert_key_is_hidden(error: BaseException, key: str = KEY) -> None:
    for text in printable_texts(error):
        assert key not in text, text.replace(key, "<THE KEY>")


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Collect the records of all loggers as text."""
    lines: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")
            lines.append(f"{formatter.format(record)} {record.args!r} {vars(record)!r}")

    root = logging.getLogger()
    collecting, level = Collecting(logging.NOTSET), root.level
    root.addHandler(collecting)
    root.setLevel(logging.DEBUG)
    yield lines
    root.setLevel(level)
    root.removeHandler(collecting)


async def error_of(loops: AsyncLoopsClient, **options: Any) -> LoopsError:
    with pytest.raises(LoopsError) as raised:
        await loops.send_event("e", **{**EVENT, **options})
    return raised.value


# Many sends with faults.


def test_sends_with_all_faults_show_neither_the_api_key_nor_private_values(
    log: list[str],
) -> None:
    """All loggers have the level DEBUG, and asyncio runs in its debug mode."""
    attempts: list[Attempt] = []
    failures: list[BaseException] = []

    async def main() -> list[str]:
        asyncio.get_running_loop().set_debug(True)
        chances = dict.fromkeys(FAULTS, 0.03)
        sandbox = Sandbox(api_key=KEY, rate_limit=None, faults=chances, seed=1)
        async with sandbox:
            loops = loops_at(
                sandbox.url,
                timeout=1.0,
                max_connections=10,
                deadline=None,
                retry=RetryPolicy(attempts=2, base=0.01),
                on_attempt=attempts.append,
            )

            async def send(number: int) -> None:
                try:
                    await loops.send_event(
                        "e", **{**EVENT, "email": f"{number}{EMAIL}"}
                    )
                except LoopsError as error:
                    failures.append(error)

            async with loops:
                await asyncio.gather(*map(send, range(200)))
                transport = transport_of(loops)
                engine, delivery = loops.sender, loops.sender._latest
                parts = [loops, engine, delivery, transport, transport._session]
                reprs = [repr(part) for part in parts]
                reprs += [repr(vars(part)) for part in parts[:-1]]
                reprs.append(repr(transport._session.headers))
            return reprs

    reprs = run(main())
    assert len({type(error) for error in failures}) >= 2
    assert len(failures) > 20
    for error in failures:
        assert_key_is_hidden(error)
    for text in [*reprs, *map(repr, attempts)]:
        assert KEY not in text, text.replace(KEY, "<THE KEY>")
    own_lines = [line for line in log if line.startswith("loops_async ")]
    assert len(own_lines) > 200
    for line in log:
        assert KEY not in line
        for private in PRIVATE:
            assert private not in line


def test_the_repr_of_a_client_hides_the_api_key() -> None:
    async def main() -> None:
        loops = loops_at("http://127.0.0.1:1/api")
        for text in (repr(loops), str(loops), repr(vars(loops))):
            assert KEY not in text

    run(main())


# A server that quotes the request in its response.


def echoing(status: int, kind: str = "json") -> Script:
    """Respond with the Authorization header and the whole event."""

    async def script(connection: Connection) -> None:
        while (request := await connection.request()) is not None:
            auth = request.headers["authorization"]
            sent = json.loads(request.body) if request.body else {}
            text = f"bad key {auth} for " + ", ".join(map(str, values_of(sent)))
            headers = {"X-Echo": auth, "Location": f"/x?key={KEY}"}
            headers["X-RateLimit-Limit"] = auth
            if kind == "json":
                body = json.dumps({"success": False, "message": text, "auth": auth})
            elif kind == "error object":
                body = json.dumps({"success": False, "error": {"message": text}})
            else:
                body = text
            type_ = "text/plain" if kind == "text" else "application/json"
            await connection.send(reply(status, body, headers, kind=type_))

    return script


def values_of(sent: Any) -> Iterator[Any]:
    if isinstance(sent, dict):
        for value in sent.values():
            yield from values_of(value)
    elif sent is not None:
        yield sent


async def echoed(script: Script, **settings: Any) -> LoopsError:
    async with Server(script) as server, loops_at(server.url, **settings) as loops:
        return await error_of(loops)


@pytest.mark.parametrize("kind", ["json", "error object", "text"])
@pytest.mark.parametrize(
    "status", [200, 301, 400, 401, 403, 404, 405, 408, 413, 418, 429, 500, 503]
)
def test_quotes_of_the_request_in_a_response_are_masked(
    status: int, kind: str, log: list[str]
) -> None:
    """The error hides the API key, and its text and message the values of the event.

    The raw body, which is for debugging, keeps the values of the event.
    """
    attempts: list[Attempt] = []
    error = run(echoed(echoing(status, kind), on_attempt=attempts.append))
    assert isinstance(error, errors.APIError)
    assert error.status == status
    for text in (*error.args, str(error), error.message, str(error.headers)):
        assert KEY not in text
    assert KEY.encode() not in error.body
    if not (status == 200 and kind != "json"):
        assert b"***" in error.body
        assert "***" in str(error.headers)
    for text in (str(error), error.message, error.args[0]):
        for private in PRIVATE:
            assert private not in text
    for private in PRIVATE:
        assert not any(private in line for line in log)
    assert not any(KEY in line for line in log)
    assert not any(KEY in repr(attempt) for attempt in attempts)
    assert KEY.encode() not in pickle.dumps(error)


@pytest.mark.parametrize("status", [200, 301, 400, 401, 500])
def test_quotes_of_the_api_key_are_in_no_local_variable(status: int) -> None:
    assert_key_is_hidden(run(echoed(echoing(status))))


@pytest.mark.parametrize("kind", ["json", "text"])
@pytest.mark.parametrize("before", range(164, 190, 7))
def test_a_message_that_is_cut_within_the_api_key_shows_no_part_of_it(
    before: int, kind: str
) -> None:
    text = "x" * before + f" {KEY} and more that is cut off for its length"
    body = json.dumps({"message": text}) if kind == "json" else text
    script = answers(reply(400, body, kind="text/plain"))
    error = run(echoed(script))
    assert isinstance(error, errors.APIError)
    assert KEY[:8] not in error.message
    assert KEY[:8] not in str(error)


# Exceptions of aiohttp that quote the response or the URL.


def garbled(*words: str) -> Script:
    async def script(connection: Connection) -> None:
        request = await connection.request()
        assert request is not None
        await connection.send(f"HTTP/1.1 {' '.join(words)}\r\n\r\n".encode())

    return script


def test_an_api_key_in_a_malformed_response_is_masked(log: list[str]) -> None:
    error = run(echoed(garbled("abc", BEARER)))
    assert isinstance(error, errors.ConnectionLostError)
    assert "***" in str(error)
    assert_key_is_hidden(error)
    assert not any(KEY in line for line in log)


def test_values_of_the_event_in_a_malformed_response_are_masked(log: list[str]) -> None:
    error = run(echoed(garbled("abc", EMAIL, USER_ID)))
    assert isinstance(error, errors.ConnectionLostError)
    for text in (str(error), *log):
        assert EMAIL not in text
        assert USER_ID not in text


def test_the_query_of_a_request_is_masked_in_a_url_that_aiohttp_quotes(
    log: list[str],
) -> None:
    async def main() -> LoopsError:
        async with Server(garbled("abc")) as server, loops_at(server.url) as loops:
            with pytest.raises(LoopsError) as raised:
                await loops.request(
                    "GET", "/v1/contacts/find", params={"email": EMAIL, "userId": "u 1"}
                )
            return raised.value

    error = run(main())
    assert isinstance(error, errors.ConnectionLostError)
    for text in (str(error), *log):
        assert EMAIL not in text
        assert EMAIL.replace("@", "%40") not in text


def test_the_json_and_query_of_a_request_are_masked_in_the_message(
    log: list[str],
) -> None:
    text = f"{EMAIL} and {EMAIL.replace('@', '%40')} and {USER_ID}"
    script = answers(reply(400, json.dumps({"message": text})))

    async def main() -> list[LoopsError]:
        failures: list[LoopsError] = []
        async with Server(script) as server, loops_at(server.url) as loops:
            for options in (
                {"params": {"email": EMAIL, "userId": USER_ID}},
                {"json": {"a": [{"b": EMAIL}, USER_ID]}},
            ):
                with pytest.raises(errors.BadRequestError) as raised:
                    await loops.request("PUT", "/v1/contacts/update", **options)
                failures.append(raised.value)
        return failures

    for error in run(main()):
        assert_key_is_hidden(error)
        assert isinstance(error, errors.APIError)
        assert error.message == "*** and *** and ***"
        for text in (str(error), *log):
            assert EMAIL not in text
            assert USER_ID not in text


def test_masking_leaves_the_rest_of_a_message_readable() -> None:
    content = {"success": False, "message": f"Contact {EMAIL} not found. True 1 a"}
    error = run(echoed(answers(reply(400, json.dumps(content)))))
    assert "Contact *** not found. True 1 a" in str(error)


# Errors without a response.


@pytest.mark.parametrize("script", [closes, hangs], ids=["closes", "hangs"])
def test_a_transport_error_hides_the_api_key(script: Script, log: list[str]) -> None:
    error = run(echoed(script, timeout=0.3))
    assert isinstance(error, errors.TransportError)
    assert_key_is_hidden(error)
    assert not any(KEY in line for line in log)


def test_a_refused_connection_and_a_failed_handshake_hide_the_api_key() -> None:
    async def main() -> None:
        refusing = f"http://127.0.0.1:{free_port()}/api"
        async with loops_at(refusing) as loops:
            assert_key_is_hidden(await error_of(loops))

        async def plain(connection: Connection) -> None:
            await connection.reader.read(1)
            await connection.send(reply(400))

        async with Server(plain) as server:
            url = server.url.replace("http:", "https:")
            async with loops_at(url, ssl_context=ssl.create_default_context()) as loops:
                assert_key_is_hidden(await error_of(loops))

    run(main())


def test_an_error_over_a_borrowed_session_hides_the_api_key() -> None:
    """There the client passes the Authorization header with each request."""

    async def main() -> None:
        for script in (closes, hangs, garbled("abc", BEARER)):
            async with (
                Server(script) as server,
                aiohttp.ClientSession() as session,
                loops_at(server.url, session=session, timeout=0.3) as loops,
            ):
                assert_key_is_hidden(await error_of(loops))
                assert KEY not in repr(vars(transport_of(loops)))
                assert KEY not in repr(session.headers)

    run(main())


def test_a_deadline_and_a_closed_client_hide_the_api_key() -> None:
    async def main() -> None:
        async with Server(answers(reply(500))) as server:
            retry = RetryPolicy(attempts=9, base=20)
            loops = loops_at(server.url, retry=retry)
            error = await error_of(loops, deadline=0.2)
            assert isinstance(error, errors.DeadlineExceededError)
            assert_key_is_hidden(error)
            await loops.aclose()
            error = await error_of(loops)
            assert isinstance(error, errors.ClientClosedError)
            assert_key_is_hidden(error)

    run(main())


def test_an_invalid_event_and_a_forbidden_recipient_hide_the_api_key() -> None:
    async def main() -> None:
        loops = loops_at("http://127.0.0.1:1/api", allowed_recipients=())
        assert_key_is_hidden(await error_of(loops))
        error = await error_of(loops, email="no email")
        assert isinstance(error, errors.InvalidEventError)
        assert_key_is_hidden(error)

    run(main())


@pytest.mark.parametrize("script", [hangs, answers(reply(503))], ids=["hang", "wait"])
def test_a_cancelled_send_shows_the_api_key_in_no_frame_of_this_library(
    script: Script,
) -> None:
    """The send is cancelled in flight, or while it waits for its next attempt."""

    async def main() -> asyncio.CancelledError:
        attempts: list[Attempt] = []
        retry = RetryPolicy(attempts=3, base=1000, cap=1000)
        settings: dict[str, Any] = {"retry": retry, "on_attempt": attempts.append}
        async with Server(script) as server, loops_at(server.url, **settings) as loops:
            task = asyncio.create_task(loops.send_event("e", **EVENT, deadline=None))
            await server.arrived()
            if script is not hangs:
                await until(lambda: attempts)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError as cancelled:
                return cancelled
        raise AssertionError("not cancelled")

    cancelled = run(main())
    assert list(frames_of(cancelled))
    assert_key_is_hidden(cancelled)


# Construction.

BAD_SETTINGS: dict[str, Any] = {
    "base_url": "bad",
    "rate_limit": -1,
    "timeout": 0,
    "deadline": "soon",
    "retry": None,
    "max_connections": 0,
    "ssl_context": "none",
    "proxy": "ftp://127.0.0.1",
    "dry_run": 1,
    "allowed_recipients": "ada@example.com",
    "on_attempt": 1,
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_failed_construction_hides_the_api_key(name: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        AsyncLoopsClient(KEY, **{name: BAD_SETTINGS[name]})
    assert list(frames_of(caught.value))
    assert_key_is_hidden(caught.value)


@pytest.mark.parametrize(
    "key",
    [f"{KEY} x", f"{KEY}\n{KEY}", f"{KEY}é", f"\0{KEY}"],
    ids=["space", "line", "accent", "control"],
)
@pytest.mark.parametrize("source", ["argument", "environment"])
def test_an_invalid_api_key_is_not_shown(
    key: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "environment":
        if "\0" in key:
            pytest.skip("an environment variable cannot contain NUL")
        monkeypatch.setenv("LOOPS_API_KEY", key)
    with pytest.raises(errors.ConfigurationError) as caught:
        AsyncLoopsClient(key if source == "argument" else None)
    assert_key_is_hidden(caught.value)


@pytest.mark.parametrize(
    "key", [KEY.encode(), [KEY], {"key": KEY}], ids=["bytes", "list", "dict"]
)
def test_an_api_key_of_a_wrong_type_is_not_shown(key: Any) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        AsyncLoopsClient(key)
    assert_key_is_hidden(caught.value)


# Callable API keys.


def raising() -> str:
    secret = KEY
    raise RuntimeError(f"cannot fetch {secret}")


async def raising_later() -> str:
    await asyncio.sleep(0)
    return raising()


async def junk_later() -> str:
    await asyncio.sleep(0)
    return f"{KEY} junk"


JUNK: dict[str, Any] = {
    "raises": raising,
    "raises later": raising_later,
    "returns junk": lambda: f"{KEY} junk",
    "returns junk later": junk_later,
    "returns bytes": KEY.encode,
    "returns a list": lambda: [KEY],
}


@pytest.mark.parametrize("name", JUNK)
def test_a_callable_api_key_that_fails_is_not_shown(name: str) -> None:
    """Its exception, which may hold the key, is neither chained nor quoted."""

    async def main() -> LoopsError:
        loops = AsyncLoopsClient(JUNK[name], base_url="http://127.0.0.1:1/api")
        return await error_of(loops)

    error = run(main())
    assert isinstance(error, errors.ConfigurationError)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert_key_is_hidden(error)


@pytest.mark.parametrize("later", [False, True], ids=["plain", "async"])
def test_an_error_hides_the_api_key_that_a_callable_returned(
    later: bool, log: list[str]
) -> None:
    async def fetch() -> str:
        return f" {KEY}\n"

    source: Callable[[], Any] = fetch if later else lambda: f" {KEY}\n"

    async def main() -> None:
        for script in (closes, garbled("abc", BEARER)):
            async with Server(script) as server:
                async with AsyncLoopsClient(
                    source, base_url=server.url, rate_limit=math.inf, retry=TWICE
                ) as loops:
                    assert_key_is_hidden(await error_of(loops))
                    assert KEY not in repr(vars(transport_of(loops)))
                assert server.requests[0].headers["authorization"] == BEARER

    run(main())
    assert not any(KEY in line for line in log)


def test_a_hook_that_raises_is_logged_with_the_class_of_its_exception_only(
    log: list[str],
) -> None:
    def hook(_: Attempt) -> None:
        raise ValueError(f"{KEY} of {EMAIL}")

    async def main() -> None:
        async with (
            Server(answers(OK)) as server,
            loops_at(server.url, on_attempt=hook) as loops,
        ):
            await loops.send_event("e", **EVENT)

    run(main())
    assert any("on_attempt raised ValueError" in line for line in log)
    assert not any(KEY in line or EMAIL in line for line in log)


def test_the_warning_about_an_unclosed_client_hides_the_api_key() -> None:
    async def main() -> None:
        async with Server(answers(OK)) as server:
            loops = loops_at(server.url)
            await loops.send_event("e", **EVENT)
            transport = transport_of(loops)
            references = [loops]
            del loops
            with pytest.warns(ResourceWarning) as warned:
                references.clear()
            await transport.close(0.0)
            text = " ".join(str(warning.message) for warning in warned)
            assert "unclosed AsyncLoopsClient" in text
            assert KEY not in text

    run(main())
