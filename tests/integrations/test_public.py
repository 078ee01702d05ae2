"""The public names of the package, and the cost of importing it."""

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
    """Run the code in a new interpreter with warnings as errors; return its output."""
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def documented() -> Iterator[tuple[str, object]]:
    """Yield the name and value of everything that has a public docstring."""
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


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(loops_async.__all__) == PUBLIC
    assert len(set(loops_async.__all__)) == len(loops_async.__all__)


def test_a_star_import_defines_every_public_name() -> None:
    names = python(
        "from loops_async import *\n"
        "print(sorted(name for name in dir() if name[:2] != '__' or 'version' in name))"
    )
    assert names == str(PUBLIC)


@pytest.mark.parametrize("name", dict(documented()))
def test_every_public_object_has_a_docstring_with_a_summary(name: str) -> None:
    text = inspect.getdoc(dict(documented())[name])
    assert text
    assert text.splitlines()[0].endswith((".", "?"))


def test_the_version_starts_with_two_numbers() -> None:
    assert all(part.isdigit() for part in loops_async.__version__.split(".")[:2])


def test_importing_the_package_imports_neither_aiohttp_nor_sqlite3() -> None:
    """Importing aiohttp takes 0.2 s, and only a client that sends needs it."""
    loaded = python(
        "import sys, loops_async\n"
        "slow = 'aiohttp', 'yarl', 'sqlite3', 'click', 'rich', 'uvloop', 'hypothesis'\n"
        "print([name for name in slow if name in sys.modules])"
    )
    assert loaded == "[]"


def test_a_dry_run_does_not_import_aiohttp() -> None:
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
    """Without orjson, the standard library encodes the same bytes."""
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


def test_importing_the_package_configures_no_logging() -> None:
    """The dependency backoff sets the level of its own logger only."""
    output = python(
        "import logging, loops_async\n"
        "logger = logging.getLogger('loops_async')\n"
        "print(logger.level, logger.handlers, logging.getLogger().handlers)"
    )
    assert output == "0 [] []"


def test_names_that_are_imported_lazily_are_attributes_of_the_package() -> None:
    assert sys.modules["loops_async"].__getattr__("errors") is errors
    assert {"AsyncLoopsClient", "errors", "__name__"} < set(dir(loops_async))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loops_async.nothing
