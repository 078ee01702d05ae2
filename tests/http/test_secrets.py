"""The API key appears nowhere, and an event's values in nothing that is logged.

Crash reporters print the locals of every frame, so these are looked at too: of
our frames, along every cause and context.
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
from support.http_server import (
    OK,
    TWICE,
    Connection,
    Script,
    Server,
    answers,
    closes,
    free_port,
    hangs,
    reply,
    run,
)

import loops_async
from loops_async import AsyncLoopsClient, Attempt, LoopsError, RetryPolicy, errors
from loops_async.sandbox import FAULTS, Sandbox

KEY = "sk-never-to-be-seen-0123456789abcdef"
BEARER = f"Bearer {KEY}"
OURS = str(Path(loops_async.__file__).parent)

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
    """Yield our frames of its traceback."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.startswith(OURS):
            yield frame


def safe_repr(value: object) -> str:
    """Return its repr, or the error of what was not made to its end."""
    try:
        return repr(value)
    except AttributeError as error:
        return repr(error)


def chained(error: BaseException) -> Iterator[BaseException]:
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]


def shown(error: BaseException) -> Iterator[str]:
    """Yield all a crash reporter could print of an error of ours."""
    for one in chained(error):
        for frame in frames_of(one):
            for name, value in frame.f_locals.items():
                yield f"{frame.f_code.co_name}: {name} = {safe_repr(value)}"
                if isinstance(value, LoopsError):
                    yield f"{name}: {vars(value)!r}"
        if isinstance(one, LoopsError):
            yield from (str(one), repr(one), repr(one.args), repr(vars(one)))
            yield pickle.dumps(one).decode("latin-1")
            yield repr(vars(copy.copy(one)))


def check_hidden(error: BaseException, key: str = KEY) -> None:
    for text in shown(error):
        assert key not in text, text.replace(key, "<THE KEY>")


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Collect every record of every logger, as text."""
    lines: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            made = logging.Formatter("%(name)s %(levelname)s %(message)s")
            lines.append(f"{made.format(record)} {record.args!r} {vars(record)!r}")

    root = logging.getLogger()
    collecting, level = Collecting(logging.NOTSET), root.level
    root.addHandler(collecting)
    root.setLevel(logging.DEBUG)
    yield lines
    root.setLevel(level)
    root.removeHandler(collecting)


async def error_of(loops: AsyncLoopsClient, **given: Any) -> LoopsError:
    with pytest.raises(LoopsError) as raised:
        await loops.send_event("e", **{**EVENT, **given})
    return raised.value


# Over a run of faults.


def test_over_a_run_of_all_faults_the_key_is_nowhere_and_the_log_is_private(
    log: list[str],
) -> None:
    """With every logger at DEBUG, and asyncio's own debug mode."""
    told: list[Attempt] = []
    found: list[BaseException] = []

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
                on_attempt=told.append,
            )

            async def send(number: int) -> None:
                try:
                    await loops.send_event(
                        "e", **{**EVENT, "email": f"{number}{EMAIL}"}
                    )
                except LoopsError as error:
                    found.append(error)

            async with loops:
                await asyncio.gather(*map(send, range(200)))
                delivery = loops._latest
                assert delivery is not None
                transport = delivery.transport
                parts = [loops, delivery, transport, transport._session]
                reprs = [repr(part) for part in parts]
                reprs += [repr(vars(part)) for part in parts[:-1]]
                reprs.append(repr(transport._session.headers))
            return reprs

    reprs = run(main())
    assert len({type(error) for error in found}) >= 2
    assert len(found) > 20
    for error in found:
        check_hidden(error)
    for text in [*reprs, *map(repr, told)]:
        assert KEY not in text, text.replace(KEY, "<THE KEY>")
    ours = [line for line in log if line.startswith("loops_async ")]
    assert len(ours) > 200
    for line in log:
        assert KEY not in line
        for private in PRIVATE:
            assert private not in line


def test_the_settings_hide_the_key() -> None:
    async def main() -> None:
        loops = loops_at("http://127.0.0.1:1/api")
        for text in (repr(loops), str(loops), repr(vars(loops))):
            assert KEY not in text

    run(main())


# A server that says back what it was sent.


def echoing(status: int, kind: str = "json") -> Script:
    """Answer with the Authorization header and the whole event, everywhere."""

    async def script(connection: Connection) -> None:
        while (request := await connection.request()) is not None:
            auth = request.headers["authorization"]
            sent = json.loads(request.body) if request.body else {}
            said = f"bad key {auth} for " + ", ".join(map(str, values_of(sent)))
            headers = {"X-Echo": auth, "Location": f"/x?key={KEY}"}
            headers["X-RateLimit-Limit"] = auth
            if kind == "json":
                body = json.dumps({"success": False, "message": said, "auth": auth})
            elif kind == "error object":
                body = json.dumps({"success": False, "error": {"message": said}})
            else:
                body = said
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
def test_what_a_server_says_back_is_masked(
    status: int, kind: str, log: list[str]
) -> None:
    """The key in all of the error; the event's values in its text and message.

    The raw body stays as it was but for the key: it is for a debugger.
    """
    told: list[Attempt] = []
    error = run(echoed(echoing(status, kind), on_attempt=told.append))
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
    assert not any(KEY in repr(one) for one in told)
    assert KEY.encode() not in pickle.dumps(error)


@pytest.mark.parametrize("status", [200, 301, 400, 401, 500])
def test_what_a_server_says_back_is_in_no_local_of_ours(status: int) -> None:
    check_hidden(run(echoed(echoing(status))))


@pytest.mark.parametrize("kind", ["json", "text"])
@pytest.mark.parametrize("before", range(164, 190, 7))
def test_no_part_of_the_key_is_left_where_a_message_was_cut(
    before: int, kind: str
) -> None:
    said = "x" * before + f" {KEY} and more that is cut off for its length"
    body = json.dumps({"message": said}) if kind == "json" else said
    script = answers(reply(400, body, kind="text/plain"))
    error = run(echoed(script))
    assert isinstance(error, errors.APIError)
    assert KEY[:8] not in error.message
    assert KEY[:8] not in str(error)


# The words of aiohttp, which quote what a server sent.


def garbled(*words: str) -> Script:
    async def script(connection: Connection) -> None:
        request = await connection.request()
        assert request is not None
        await connection.send(f"HTTP/1.1 {' '.join(words)}\r\n\r\n".encode())

    return script


def test_garbage_that_holds_the_key_is_masked(log: list[str]) -> None:
    error = run(echoed(garbled("abc", BEARER)))
    assert isinstance(error, errors.ConnectionLostError)
    assert "***" in str(error)
    check_hidden(error)
    assert not any(KEY in line for line in log)


def test_garbage_that_holds_the_event_is_masked(log: list[str]) -> None:
    error = run(echoed(garbled("abc", EMAIL, USER_ID)))
    assert isinstance(error, errors.ConnectionLostError)
    for text in (str(error), *log):
        assert EMAIL not in text
        assert USER_ID not in text


def test_the_query_of_a_request_is_masked_in_what_aiohttp_says(log: list[str]) -> None:
    """It quotes the URL."""

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


def test_the_json_and_query_of_a_request_are_masked_in_what_a_server_says(
    log: list[str],
) -> None:
    said = f"{EMAIL} and {EMAIL.replace('@', '%40')} and {USER_ID}"
    script = answers(reply(400, json.dumps({"message": said})))

    async def main() -> list[LoopsError]:
        found: list[LoopsError] = []
        async with Server(script) as server, loops_at(server.url) as loops:
            for given in (
                {"params": {"email": EMAIL, "userId": USER_ID}},
                {"json": {"a": [{"b": EMAIL}, USER_ID]}},
            ):
                with pytest.raises(errors.BadRequestError) as raised:
                    await loops.request("PUT", "/v1/contacts/update", **given)
                found.append(raised.value)
        return found

    for error in run(main()):
        check_hidden(error)
        assert isinstance(error, errors.APIError)
        assert error.message == "*** and *** and ***"
        for text in (str(error), *log):
            assert EMAIL not in text
            assert USER_ID not in text


def test_masking_leaves_the_rest_of_a_message_readable() -> None:
    said = {"success": False, "message": f"Contact {EMAIL} not found. True 1 a"}
    error = run(echoed(answers(reply(400, json.dumps(said)))))
    assert "Contact *** not found. True 1 a" in str(error)


# AiohttpTransport errors, and those of our own.


@pytest.mark.parametrize("script", [closes, hangs], ids=["closes", "hangs"])
def test_a_transport_error_hides_the_key(script: Script, log: list[str]) -> None:
    error = run(echoed(script, timeout=0.3))
    assert isinstance(error, errors.TransportError)
    check_hidden(error)
    assert not any(KEY in line for line in log)


def test_a_refused_connection_and_a_bad_certificate_hide_the_key() -> None:
    async def main() -> None:
        refusing = f"http://127.0.0.1:{free_port()}/api"
        async with loops_at(refusing) as loops:
            check_hidden(await error_of(loops))

        async def plain(connection: Connection) -> None:
            await connection.reader.read(1)
            await connection.send(reply(400))

        async with Server(plain) as server:
            url = server.url.replace("http:", "https:")
            async with loops_at(url, ssl_context=ssl.create_default_context()) as loops:
                check_hidden(await error_of(loops))

    run(main())


def test_over_a_borrowed_session_the_key_is_hidden_too() -> None:
    """There the header goes with each request, in a dict of ours."""

    async def main() -> None:
        for script in (closes, hangs, garbled("abc", BEARER)):
            async with Server(script) as server, aiohttp.ClientSession() as session:
                loops = loops_at(server.url, session=session, timeout=0.3)
                check_hidden(await error_of(loops))
                assert loops._latest is not None
                assert KEY not in repr(vars(loops._latest.transport))
                assert KEY not in repr(session.headers)

    run(main())


def test_a_deadline_and_a_closed_client_hide_the_key() -> None:
    async def main() -> None:
        async with Server(answers(reply(500))) as server:
            retry = RetryPolicy(attempts=9, base=20)
            loops = loops_at(server.url, retry=retry)
            error = await error_of(loops, deadline=0.2)
            assert isinstance(error, errors.DeadlineExceededError)
            check_hidden(error)
            await loops.aclose()
            error = await error_of(loops)
            assert isinstance(error, errors.ClientClosedError)
            check_hidden(error)

    run(main())


def test_an_invalid_event_and_a_forbidden_recipient_hide_the_key() -> None:
    async def main() -> None:
        loops = loops_at("http://127.0.0.1:1/api", allowed_recipients=())
        check_hidden(await error_of(loops))
        error = await error_of(loops, email="no email")
        assert isinstance(error, errors.InvalidEventError)
        check_hidden(error)

    run(main())


@pytest.mark.parametrize("script", [hangs, answers(reply(503))], ids=["hang", "wait"])
def test_a_cancelled_send_shows_the_key_in_no_frame_of_ours(script: Script) -> None:
    """In flight and between attempts; aiohttp's own frames are its own."""

    async def main() -> asyncio.CancelledError:
        retry = RetryPolicy(attempts=3, base=1000, cap=1000)
        async with Server(script) as server, loops_at(server.url, retry=retry) as loops:
            task = asyncio.create_task(loops.send_event("e", **EVENT, deadline=None))
            await server.arrived()
            await asyncio.sleep(0.05)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError as cancelled:
                return cancelled
        raise AssertionError("not cancelled")

    cancelled = run(main())
    assert list(frames_of(cancelled))
    check_hidden(cancelled)


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
def test_a_construction_that_fails_shows_no_key(name: str) -> None:
    with pytest.raises(errors.ConfigurationError) as refused:
        AsyncLoopsClient(KEY, **{name: BAD_SETTINGS[name]})
    assert list(frames_of(refused.value))
    check_hidden(refused.value)


@pytest.mark.parametrize(
    "key",
    [f"{KEY} x", f"{KEY}\n{KEY}", f"{KEY}é", f"\0{KEY}"],
    ids=["space", "line", "accent", "control"],
)
@pytest.mark.parametrize("told", ["argument", "environment"])
def test_a_key_that_cannot_be_is_not_shown(
    key: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told == "environment":
        if "\0" in key:
            pytest.skip("the environment cannot hold it")
        monkeypatch.setenv("LOOPS_API_KEY", key)
    with pytest.raises(errors.ConfigurationError) as refused:
        AsyncLoopsClient(key if told == "argument" else None)
    check_hidden(refused.value)


@pytest.mark.parametrize(
    "key", [KEY.encode(), [KEY], {"key": KEY}], ids=["bytes", "list", "dict"]
)
def test_a_key_of_a_wrong_type_is_not_shown(key: Any) -> None:
    with pytest.raises(errors.ConfigurationError) as refused:
        AsyncLoopsClient(key)
    check_hidden(refused.value)


# Callable keys.


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
def test_a_callable_key_that_fails_shows_no_key(name: str) -> None:
    """Its own exception held it, so that is neither chained nor quoted."""

    async def main() -> LoopsError:
        loops = AsyncLoopsClient(JUNK[name], base_url="http://127.0.0.1:1/api")
        return await error_of(loops)

    error = run(main())
    assert isinstance(error, errors.ConfigurationError)
    assert error.__cause__ is None
    assert error.__context__ is None
    check_hidden(error)


@pytest.mark.parametrize("later", [False, True], ids=["plain", "async"])
def test_the_key_of_a_callable_is_hidden_like_any_other(
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
                    check_hidden(await error_of(loops))
                    assert loops._latest is not None
                    assert KEY not in repr(vars(loops._latest.transport))
                assert server.requests[0].headers["authorization"] == BEARER

    run(main())
    assert not any(KEY in line for line in log)


def test_a_hook_that_raises_the_key_is_logged_without_it(log: list[str]) -> None:
    """By the name of its exception's class alone."""

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


def test_an_unclosed_client_is_told_of_without_the_key() -> None:
    async def main() -> None:
        async with Server(answers(OK)) as server:
            loops = loops_at(server.url)
            await loops.send_event("e", **EVENT)
            delivery = loops._latest
            assert delivery is not None
            holding = [loops]
            del loops
            with pytest.warns(ResourceWarning) as told:
                holding.clear()
            await delivery.transport.close(0.0)
            text = " ".join(str(one.message) for one in told)
            assert "unclosed AsyncLoopsClient" in text
            assert KEY not in text

    run(main())
