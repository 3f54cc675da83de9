"""``make bench``: every benchmark, alone and in order; each prints its own table."""

from __future__ import annotations

from tests.benchmarks import read_study, receive, report_objects, worklist

for benchmark in (read_study, report_objects, receive, worklist):
    print(benchmark.__doc__)
    benchmark.run()
