"""What the pytest plugin costs whoever has it installed and does not use it.

Each run is a new process. What the import takes is also asked within one, for
the noise of a whole run is larger than that.
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
MOST_ADDED = 0.005
IMPORT = """
import time
import pytest  # which is there when plugins are
began = time.perf_counter()
import loops_async._pytest_plugin
print(time.perf_counter() - began)
"""


def collection_seconds() -> tuple[float, float]:
    """Return the best wall-clock seconds of `pytest --co` without it and with it.

    No other plugin is loaded, for its imports could hide something.
    """
    # Byte code is kept, whatever this process does.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "pytest", "--co", "-q"]
    for plugin in entry_points(group="pytest11"):
        if plugin.name != "loops":
            command += ["-p", f"no:{plugin.name}"]
    best = [math.inf, math.inf]
    with tempfile.TemporaryDirectory() as project:
        Path(project, "pytest.ini").write_text("[pytest]\n")
        Path(project, "test_it.py").write_text("def test_it():\n    pass\n")
        for _ in range(ROUNDS + 1):  # the first one also writes the byte code
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
    """Return the best seconds that the import takes a process with pytest."""
    command = [sys.executable, "-c", IMPORT]
    return min(float(subprocess.check_output(command)) for _ in range(ROUNDS))


def main() -> bool:
    """Print it all; return whether it is within what we promise."""
    without, having = collection_seconds()
    importing = import_seconds()
    added = having - without
    print(f"pytest --co of a project with one test: {without * 1000:.0f} ms")
    print(f"  the plugin adds {added * 1000:.1f} ms")
    print(f"  of which its import takes {importing * 1000:.1f} ms")
    return max(added, importing) < MOST_ADDED


if __name__ == "__main__":
    sys.exit(not main())
