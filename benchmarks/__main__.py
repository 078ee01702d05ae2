"""All benchmarks: python -m benchmarks."""

from . import cpu, imports

for benchmark in (cpu, imports):
    benchmark.main()
    print()
