"""What the receiving benchmark reports is counted over all processes of a receiver, and compared round by round."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.benchmarks.process_tree import Memory, ProcessTree
from tests.benchmarks.receive_table import Case, Measurement, markdown, median_ratio, speed_rows

HELD_MIB = 48
SPENT_SECONDS = 0.3
# A child that works and ends, and one in a session of its own that holds memory until its input ends.
SERVER = f"""
import subprocess, sys
work = "import time\\nwhile time.process_time() < {SPENT_SECONDS}: pass"
hold = "import sys; held = b'x' * ({HELD_MIB} * 2**20); print('held', flush=True); sys.stdin.read()"
subprocess.run([sys.executable, "-c", work], check=True)
subprocess.run([sys.executable, "-c", hold], start_new_session=True, check=True)
"""


@pytest.fixture
def server() -> Iterator[ProcessTree]:
    """A process whose children have worked and hold memory."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            yield ProcessTree(process.pid)
        finally:
            process.stdin.close()


def test_processor_time_includes_children_that_have_ended(server: ProcessTree) -> None:
    assert SPENT_SECONDS <= server.cpu_seconds() < SPENT_SECONDS + 2


def test_memory_is_that_of_all_processes_also_in_a_session_of_their_own(server: ProcessTree) -> None:
    with server.peaks() as peaks:
        resident = server.resident()
    for memory in (resident, peaks[0]):
        assert memory.processes == 2
        assert memory.largest_mib > HELD_MIB
        assert memory.sum_mib > memory.largest_mib


def measurement(images_per_second: float, peak_mib: float = 1.0) -> Measurement:
    return Measurement(
        images=100,
        seconds=100 / images_per_second,
        cpu_seconds=0.5,
        peak=Memory(sum_mib=peak_mib, largest_mib=peak_mib, processes=1),
        rows_after_seconds=None,
    )


def test_the_ratio_is_the_median_of_the_rounds_and_not_of_the_speeds() -> None:
    ours = [measurement(speed) for speed in (100, 200, 300)]
    theirs = [measurement(speed) for speed in (10, 100, 300)]
    assert median_ratio(ours, theirs) == pytest.approx(2.0)  # of 10, 2 and 1


def test_a_row_has_the_median_speed_and_the_highest_peak() -> None:
    rounds = [measurement(speed, peak) for speed, peak in ((100, 7.0), (400, 9.0), (200, 8.0))]
    case = Case(nagle=False, senders=4, images=100)
    theirs, ours = speed_rows({case: {"other": rounds, "ours": rounds[::-1]}}, "ours")
    assert theirs == ("4", "other", "200", "100 to 400", "1.00", "5.00", "9", "9", "")
    assert ours[4] == ""


def test_markdown_is_a_table() -> None:
    assert markdown(("a", "b"), [("1", "2")]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
