"""``make bench``: every benchmark, alone and in order; each prints its own table."""

from __future__ import annotations

from tests.benchmarks import read_study

for benchmark in (read_study,):
    print(benchmark.__doc__)
    benchmark.run()
