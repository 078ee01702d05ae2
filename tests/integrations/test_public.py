"""The root: what is public, and what importing it costs."""

import inspect
import subprocess
import sys
from collections.abc import Iterator

import pytest

import loops_async
from loops_async import errors

PUBLIC = [
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


def python(code: str) -> str:
    """Run the code in a fresh interpreter, warnings being errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def documented() -> Iterator[tuple[str, object]]:
    yield "loops_async", loops_async
    yield "loops_async.errors", errors
    for name in PUBLIC:
        value = getattr(loops_async, name)
        if name in ("PropertyValue", "__version__"):
            continue
        yield name, value
        if isinstance(value, type) and value.__module__.startswith("loops_async"):
            for member, function in vars(value).items():
                public = not member.startswith("_")
                if public and callable(function):
                    yield f"{name}.{member}", function


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(loops_async.__all__) == PUBLIC
    assert len(set(loops_async.__all__)) == len(loops_async.__all__)


def test_every_name_is_there_for_a_star_import() -> None:
    found = python(
        "from loops_async import *\n"
        "print(sorted(name for name in dir() if name[:2] != '__' or 'version' in name))"
    )
    assert found == str(PUBLIC)


@pytest.mark.parametrize("name", dict(documented()))
def test_every_public_thing_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(dict(documented())[name])
    assert text
    assert text.splitlines()[0].endswith((".", "?"))


def test_the_version_is_a_version() -> None:
    assert all(part.isdigit() for part in loops_async.__version__.split(".")[:2])


def test_importing_the_package_imports_neither_transport_nor_store() -> None:
    """aiohttp alone takes 0.2 s; only a client that sends needs it."""
    loaded = python(
        "import sys, loops_async\n"
        "slow = 'aiohttp', 'yarl', 'sqlite3', 'click', 'rich', 'uvloop', 'hypothesis'\n"
        "print([name for name in slow if name in sys.modules])"
    )
    assert loaded == "[]"


def test_a_dry_run_imports_no_transport_either() -> None:
    loaded = python(
        "import asyncio, sys\n"
        "from loops_async import AsyncLoopsClient\n"
        "async def main():\n"
        "    async with AsyncLoopsClient(dry_run=True) as loops:\n"
        "        await loops.send_event('e', email='ada@example.com')\n"
        "asyncio.run(main())\n"
        "print('aiohttp' in sys.modules)"
    )
    assert loaded == "False"


def test_the_package_works_without_the_speed_extra() -> None:
    """The same bytes, by the standard library."""
    code = (
        "import sys\n"
        "{block}\n"
        "from loops_async import Event\n"
        "from loops_async._events.codec import encode, make_converter\n"
        "event = Event('é', email='ada@example.com', contact_properties={{'n': 1.5}})\n"
        "print(ascii(encode(event, make_converter())))\n"
    )
    without = python(code.format(block="sys.modules['orjson'] = None"))
    assert without == python(code.format(block=""))


def test_importing_configures_no_logging() -> None:
    """backoff sets the level of its own logger; ours is left alone."""
    seen = python(
        "import logging, loops_async\n"
        "ours = logging.getLogger('loops_async')\n"
        "print(ours.level, ours.handlers, logging.getLogger().handlers)"
    )
    assert seen == "0 [] []"


def test_what_is_imported_late_is_there_all_the_same() -> None:
    assert sys.modules["loops_async"].__getattr__("errors") is errors
    assert {"AsyncLoopsClient", "errors", "__name__"} < set(dir(loops_async))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loops_async.nothing
