"""Removing stored files for good, while the same object may be arriving again.

A sender may bring an object anew at the very moment at which its file is removed. The spool then puts a new file
in the old one's place, and that one must stay: its sender has had success. So whoever decides on a removal notes
when the file was last modified, and only that very file is removed, in steps that may end anywhere:

1. the file is moved aside, into the folder ``removing`` of the same root, where no reader looks;
2. aside, where nobody can replace it any more, it is looked at again: the file that was meant is unlinked,
   another one goes back to its place.

Whatever a killed process leaves, the same call finishes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

_ASIDE = "removing"


def modified_ns(root: Path, file_name: str) -> int | None:
    """When a stored file was last modified, which tells it from a later one of its name; None: it is not there."""
    return _modified_ns(_inside(root, file_name))


def unchanged(root: Path, files: Mapping[str, int]) -> set[str]:
    """Names of those files that are still as they were when their removal was decided on."""
    return {name for name, then_ns in files.items() if modified_ns(root, name) == then_ns}


def remove_files(root: Path, files: Mapping[str, int]) -> dict[str, OSError]:
    """Remove files; when this returns, they stay removed after a power cut.

    Parameters
    ----------
    root
        The folder that the names are below.
    files
        Name to the modification time, in ns, that was seen when the removal was decided on. A file that has been
        replaced since is left alone.

    Returns
    -------
    dict
        What the file system refused to remove, by name.
    """
    refused: dict[str, OSError] = {}
    folders = set()
    for file_name, then_ns in files.items():
        path = _inside(root, file_name)
        try:
            _remove(path, root / _ASIDE / path.name, then_ns)
            folders.add(path.parent)
        except OSError as error:
            refused[file_name] = error
    _synchronize({folder for folder in (*folders, root / _ASIDE) if folder.is_dir()})
    return refused


def _remove(path: Path, aside: Path, then_ns: int) -> None:
    _settle(path, aside, then_ns)  # what a killed process had moved
    if _modified_ns(path) != then_ns:
        return
    aside.parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):  # another process is removing it too
        path.rename(aside)
    _settle(path, aside, then_ns)


def _settle(path: Path, aside: Path, then_ns: int) -> None:
    found_ns = _modified_ns(aside)
    if found_ns is None:
        return
    if found_ns != then_ns:
        # Unless a still newer one is there, or another process has put it back.
        with suppress(FileExistsError, FileNotFoundError):
            os.link(aside, path)
        _synchronize([path.parent])
    aside.unlink(missing_ok=True)


def _modified_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _inside(root: Path, file_name: str) -> Path:
    parts = PurePosixPath(file_name)
    if parts.is_absolute() or ".." in parts.parts or not parts.name:
        raise ValueError("not the name of a stored file")
    return root / parts


def _synchronize(folders: Iterable[Path]) -> None:
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
