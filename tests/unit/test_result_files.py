"""Result objects become whole files or none."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ich_node.result_files import ResultFiles
from tests.report_builders import make_report


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Have the system refuse longer files, as a full disk does: with the first part of one written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    """Its number tells a worker that the disk is at fault, and not the study."""
    with files_no_larger_than(200_000), pytest.raises(OSError, match="File too large") as refused:
        ResultFiles(folder=tmp_path, claim_number=1).write(make_report())
    assert refused.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
