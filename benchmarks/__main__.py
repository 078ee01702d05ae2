"""All benchmarks: python -m benchmarks. Fails if one misses what we promise."""

import sys

from . import cpu, imports, limit

missed = [
    benchmark.__name__ for benchmark in (cpu, imports, limit) if not benchmark.main()
]
if missed:
    sys.exit(f"not as promised: {', '.join(missed)}")
