"""Settings for all tests."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine may take any time for an example.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# Workers and the processes of tests would compile every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Processes that a test starts import `support`, too.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

# A shell lets the processes that it starts in the background ignore Ctrl+C, and these
# pass that on to the processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, Any, Any]:
    """Collect no garbage while pytest renders a failure.

    For that, pytest parses the source of the test. Python 3.11 raises a SystemError
    ("AST constructor recursion depth mismatch") if a finalizer reports an error during
    the parsing, as the finalizer of a client does that the failed test left open.
    """
    if call.excinfo is None:
        return (yield)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture
def record_figures(
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], None]:
    """Return a function that reports what a proof counted; a long proof prints it."""

    def record(figures: str) -> None:
        record_property("figures", figures)
        if request.node.get_closest_marker("soak"):
            with capsys.disabled():
                sys.stdout.write(f"\n{figures}\n")

    return record
