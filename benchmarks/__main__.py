"""All benchmarks: python -m benchmarks."""

from . import cpu, imports, limit

for benchmark in (cpu, imports, limit):
    benchmark.main()
    print()
