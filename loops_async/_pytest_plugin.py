"""The pytest plugin with the fixtures ``loops_sandbox`` and ``loops_client``.

Every pytest run in an environment with this package imports this module. The module
therefore imports the rest of the package only when a fixture is used.
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


def _sandbox_from(marker: pytest.Mark) -> "Sandbox":
    from .sandbox import Sandbox  # noqa: PLC0415

    problem = "pass the settings by keyword"
    if not marker.args:
        try:
            return Sandbox(**{"rate_limit": None, **marker.kwargs})
        except (TypeError, ValueError) as error:
            problem = str(error)
    keywords = [f"{name}={value!r}" for name, value in marker.kwargs.items()]
    arguments = ", ".join([*map(repr, marker.args), *keywords])
    pytest.fail(f"@pytest.mark.{_MARKER}({arguments}): {problem}", pytrace=False)


@pytest.fixture
def loops_sandbox(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[Sandbox]":
    """Serve a sandbox of the Loops API on a real port; by default it has no rate limit.

    LOOPS_API_KEY, LOOPS_BASE_URL and LOOPS_RATE_LIMIT point to the sandbox, so that the
    tested code sends to it. A thread serves the sandbox, so a test needs no event loop.
    """
    from .testing import rate_of, serving  # noqa: PLC0415

    marker = request.node.get_closest_marker(_MARKER)
    sandbox = _sandbox_from(marker or pytest.mark.loops_sandbox.mark)
    with serving(sandbox):
        monkeypatch.setenv("LOOPS_API_KEY", sandbox.api_key)
        monkeypatch.setenv("LOOPS_BASE_URL", sandbox.url)
        monkeypatch.setenv("LOOPS_RATE_LIMIT", str(rate_of(sandbox)))
        yield sandbox


@pytest.fixture
def loops_client(loops_sandbox: "Sandbox") -> "Iterator[AsyncLoopsClient]":
    """Provide a client of `loops_sandbox` with fast retries, and close it afterwards.

    The client works with asyncio.run in a plain test and with any asyncio plugin.
    """
    from ._client import AsyncLoopsClient  # noqa: PLC0415
    from .testing import FAST_RETRIES, close_everywhere, limiter_of  # noqa: PLC0415

    client = AsyncLoopsClient(
        loops_sandbox.api_key,
        base_url=loops_sandbox.url,
        rate_limit=limiter_of(loops_sandbox),
        retry=FAST_RETRIES,
    )
    yield client
    close_everywhere(client)
