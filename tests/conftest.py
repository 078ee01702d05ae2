"""What holds for all tests."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# A process that a test starts can import `support`, too.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
