"""The fixtures, found by pytest where this package is installed.

Every run of pytest there imports this module, so it imports nothing of ours
before a fixture is used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ._client import AsyncLoopsClient
    from .sandbox import Sandbox

_MARKER = "loops_sandbox"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(**settings): settings of loops_async.sandbox.Sandbox for the "
        f"fixture {_MARKER}, such as rate_limit=10",
    )


def _made(marker: pytest.Mark) -> "Sandbox":
    from .sandbox import Sandbox  # noqa: PLC0415

    why = "settings go by name"
    if not marker.args:
        try:
            return Sandbox(**{"rate_limit": None, **marker.kwargs})
        except (TypeError, ValueError) as error:
            why = str(error)
    settings = [f"{name}={value!r}" for name, value in marker.kwargs.items()]
    given = ", ".join([*map(repr, marker.args), *settings])
    pytest.fail(f"@pytest.mark.{_MARKER}({given}): {why}", pytrace=False)


@pytest.fixture
def loops_sandbox(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[Sandbox]":
    """A Loops of the test's own, on a real port; without a rate limit unless told.

    LOOPS_API_KEY, LOOPS_BASE_URL and LOOPS_RATE_LIMIT lead to it, so that what
    the test calls sends there, too. It runs in a thread, for tests of any kind.
    """
    from .testing import rate_of, serving  # noqa: PLC0415

    marker = request.node.get_closest_marker(_MARKER)
    sandbox = _made(marker or pytest.mark.loops_sandbox.mark)
    with serving(sandbox):
        monkeypatch.setenv("LOOPS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("LOOPS_BASE_URL", sandbox.url)
        monkeypatch.setenv("LOOPS_RATE_LIMIT", str(rate_of(sandbox)))
        yield sandbox


@pytest.fixture
def loops_client(loops_sandbox: "Sandbox") -> "Iterator[AsyncLoopsClient]":
    """A client of `loops_sandbox` that tries again quickly; closed after the test.

    For asyncio.run in a plain test as well as for any plugin with an event loop.
    """
    from ._client import AsyncLoopsClient  # noqa: PLC0415
    from .testing import QUICKLY, close_everywhere, limiter_of  # noqa: PLC0415

    client = AsyncLoopsClient(
        loops_sandbox.api_key,
        base_url=loops_sandbox.url,
        rate_limit=limiter_of(loops_sandbox),
        retry=QUICKLY,
    )
    yield client
    close_everywhere(client)
