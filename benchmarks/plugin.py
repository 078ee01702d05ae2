"""The cost of the pytest plugin for a project that does not use it.

Each run is a new process. The import is also timed within a process, because the
duration of the import is smaller than the noise of a whole run.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path

ROUNDS = 25
MAX_ADDED = 0.005  # seconds
IMPORT = """
import time
import pytest  # loaded before every plugin
began = time.perf_counter()
import loops_async._pytest_plugin
print(time.perf_counter() - began)
"""


def collection_seconds() -> tuple[float, float]:
    """Return the best seconds of `pytest --co` without and with the plugin.

    No other plugin is loaded, because it could import the same modules.
    """
    # The byte code is cached, even if this process has the cache switched off.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "pytest", "--co", "-q"]
    for plugin in entry_points(group="pytest11"):
        if plugin.name != "loops":
            command += ["-p", f"no:{plugin.name}"]
    best = [math.inf, math.inf]
    with tempfile.TemporaryDirectory() as project:
        Path(project, "pytest.ini").write_text("[pytest]\n")
        Path(project, "test_it.py").write_text("def test_it():\n    pass\n")
        for _ in range(ROUNDS + 1):  # the first round also writes the byte code
            for number, options in enumerate((["-p", "no:loops"], [])):
                began = time.perf_counter()
                subprocess.run(
                    [*command, *options],
                    cwd=project,
                    env=env,
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                best[number] = min(best[number], time.perf_counter() - began)
    return best[0], best[1]


def import_seconds() -> float:
    """Return the best seconds of the import in a process that has pytest loaded."""
    command = [sys.executable, "-c", IMPORT]
    return min(float(subprocess.check_output(command)) for _ in range(ROUNDS))


def main() -> bool:
    """Print the results; return whether they keep the promise."""
    without, with_plugin = collection_seconds()
    importing = import_seconds()
    added = with_plugin - without
    print(f"pytest --co of a project with one test: {without * 1000:.0f} ms")
    print(f"  the plugin adds {added * 1000:.1f} ms")
    print(f"  its import takes {importing * 1000:.1f} ms")
    return max(added, importing) < MAX_ADDED


if __name__ == "__main__":
    sys.exit(not main())
