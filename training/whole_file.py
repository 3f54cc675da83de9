"""Files that are there whole or not at all, also where several processes write the same one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path of this process beside a file, of the same suffix, to be written; it becomes the file at the end.

    What a process left that was killed meanwhile begins with a dot and is read by nobody.
    """
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp{file.suffix}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
