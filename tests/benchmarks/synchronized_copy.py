"""Copies files one after the other, each durable before the next: ``python synchronized_copy.py FROM TO``.

That is what a disk allows a receiver that answers when an object is safe, to a sender that waits for the answer,
with a network and a protocol that take no time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def copy(source: Path, target: Path) -> None:
    """Write each file of ``source``, synchronize and rename it, and synchronize the folder ``target``."""
    folder = os.open(target, os.O_RDONLY)
    for path in sorted(source.iterdir()):
        content = path.read_bytes()
        temporary = target / f"{path.name}.part"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        if os.write(descriptor, content) != len(content):
            raise OSError("a file was not written whole")
        os.fsync(descriptor)
        os.close(descriptor)
        temporary.rename(target / path.name)
        os.fsync(folder)
    os.close(folder)


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]))
