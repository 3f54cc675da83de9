"""``make bench``: every benchmark, alone and in order; each prints its own table."""

from __future__ import annotations

from tests.benchmarks import read_study, receive

for benchmark in (read_study, receive):
    print(benchmark.__doc__)
    benchmark.run()
