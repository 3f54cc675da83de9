"""Bundles brought into an installation: from a folder or an archive, whole or not at all.

An archive is not trusted. Only the few plain files that a bundle has are taken from it, under names made here, and
what they unpack to is counted while it is written.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from ich_node.errors import ConfigurationError
from ich_node.model.bundle import (
    CARD_FILE,
    DESCRIPTION_FILE,
    FAILURES_FILE,
    SHIPPED,
    WEIGHTS_FILE,
    prove_bundle,
    read_description,
    verify_bundle,
)

FILES = (DESCRIPTION_FILE, WEIGHTS_FILE, CARD_FILE, FAILURES_FILE, "LICENSE", "LICENSE.txt")
"""What a bundle's folder may hold; the first two have to be there."""
MOST_BYTES = 4 * 2**30
"""Of all files of a bundle."""
MOST_ENTRIES = 64
"""In an archive, folders included."""
_CHUNK = 2**20
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, kw_only=True)
class InstalledBundle:
    """What an installation came to."""

    name: str
    version: str
    folder: Path
    replaced: str | None = None
    """Version that was there before under the same name."""
    unchanged: bool = False
    """It was there already, file for file, and nothing was done."""


def install_bundle(source: Path, into: Path, *, replace: bool = False) -> InstalledBundle:
    """Copy a bundle into a folder of bundles, verified before and after, and loaded once as reading would.

    Parameters
    ----------
    source
        A bundle's folder, or an archive (``.zip``, ``.tar``, ``.tar.gz``, ``.tgz``) that holds one: its files at the
        top or in one folder.
    into
        Folder that bundles are installed in; made where it is not there.
    replace
        Whether a bundle of the same name that is there, or comes with the package, may be another one.

    Raises
    ------
    ConfigurationError
        The source is no bundle, cannot be read, holds what no bundle has, or nothing can read with it; or there is
        another bundle of its name. What was installed before is as it was.
    """
    with folder_beside(into) as made:
        _take(source, made)
        try:
            prove_bundle(made)
        except ConfigurationError as error:
            # the folder of the message is removed with it, so that the source is named as well
            raise ConfigurationError(f"{source}: cannot be installed: {error}") from error
        return place_bundle(made, into, replace=replace)


def place_bundle(made: Path, into: Path, *, replace: bool = False) -> InstalledBundle:
    """Move a complete bundle to its name in a folder of bundles on the same file system.

    Raises
    ------
    ConfigurationError
        There is another bundle of its name and ``replace`` is not set, or the folder cannot be written.
    """
    description = read_description(made)
    name, version = description["name"], description["version"]
    target, shipped = into / name, SHIPPED / name
    if target.is_symlink() or (target.exists() and not (target / DESCRIPTION_FILE).is_file()):
        raise ConfigurationError(f"{target}: is there and is no bundle's folder: move it away")
    if not target.exists() and shipped.is_dir() and not replace:
        raise ConfigurationError(
            f"{name}: a bundle of this name comes with the package; give this one another name, or --replace "
            "to have it read in place of that one"
        )
    if not target.exists():
        _move(made, target)
        return InstalledBundle(name=name, version=_verified(target, version), folder=target)
    if _same(made, target):
        return InstalledBundle(name=name, version=version, folder=target, unchanged=True)
    before = _version(target)
    if not replace:
        raise ConfigurationError(
            f"{target}: {name} {before} is installed and is not the same as this {name} {version}; --replace puts "
            "this one in its place"
        )
    _exchange(made, target)
    return InstalledBundle(name=name, version=version, folder=target, replaced=before)


@contextlib.contextmanager
def folder_beside(into: Path) -> Iterator[Path]:
    """Make a folder to build a bundle in, beside those that are installed; what is left of it is removed.

    Raises
    ------
    ConfigurationError
        The folder of bundles cannot be written.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        # a dot in front: no name of a bundle, so that nothing ever reads from it
        parent = Path(tempfile.mkdtemp(prefix=".new-", dir=into))
    except OSError as error:
        raise ConfigurationError(f"{into}: cannot be written ({error})") from error
    made = parent / "bundle"
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _take(source: Path, made: Path) -> None:
    if source.is_dir():
        _take_folder(source, made)
    elif not source.is_file():
        raise ConfigurationError(f"{source}: is not there, or is neither a folder nor a file")
    elif source.name.lower().endswith(".zip"):
        _take_zip(source, made)
    elif source.name.lower().endswith(_TAR_SUFFIXES):
        _take_tar(source, made)
    else:
        raise ConfigurationError(f"{source}: has to be a folder, .zip, {', '.join(_TAR_SUFFIXES)}")


def _take_folder(source: Path, made: Path) -> None:
    """Only the files that a bundle has; what else lies beside them stays there."""
    verify_bundle(source)
    left = MOST_BYTES
    for name in FILES:
        if (source / name).is_file():
            try:
                with (source / name).open("rb") as file:
                    left -= _copy(file, made / name, left, source)
            except OSError as error:
                raise ConfigurationError(f"{source / name}: cannot be copied ({error})") from error


def _take_zip(source: Path, made: Path) -> None:
    left, taken = MOST_BYTES, _Taken(source)
    try:
        with zipfile.ZipFile(source) as archive:
            for entry in archive.infolist():
                mode = entry.external_attr >> 16
                plain = stat.S_IFMT(mode) in (0, stat.S_IFREG) and not entry.flag_bits & 1
                name = taken.name(entry.filename, is_folder=entry.filename.endswith("/"), is_plain=plain)
                if name is not None:
                    with archive.open(entry) as file:
                        left -= _copy(file, made / name, left, source)
    except ConfigurationError:
        raise
    except Exception as error:  # of every kind: zipfile and its decompressors raise their own
        raise ConfigurationError(f"{source}: cannot be read as a zip archive ({error})") from error


def _take_tar(source: Path, made: Path) -> None:
    left, taken = MOST_BYTES, _Taken(source)
    kind = "r:" if source.name.lower().endswith(".tar") else "r:gz"
    try:
        with tarfile.open(source, cast(Any, kind), tarinfo=_PlainTarInfo) as archive:
            for entry in archive:
                plain = entry.isreg() and not entry.issparse()
                name = taken.name(entry.name, is_folder=entry.isdir(), is_plain=plain)
                if name is not None:
                    file = archive.extractfile(entry)
                    assert file is not None  # it is a regular file
                    left -= _copy(file, made / name, left, source)
    except ConfigurationError:
        raise
    except Exception as error:  # of every kind; chained headers even end in a RecursionError
        raise ConfigurationError(f"{source}: cannot be read as a tar archive ({error})") from error


class _PlainTarInfo(tarfile.TarInfo):
    """An entry whose extended headers are small: they are read into memory, and could unpack to gigabytes."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        named_long = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in (*extended, *named_long) and self.size > _CHUNK:
            raise tarfile.TarError("an extended header is too large")
        proceed = super()._proc_member  # type: ignore[misc]
        return cast(tarfile.TarInfo, proceed(archive))


class _Taken:
    """Which entries of an archive are taken, and under which names."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._count = 0
        self._folder: str | None = None
        self._names: set[str] = set()

    def name(self, path: str, *, is_folder: bool, is_plain: bool) -> str | None:
        """Name of a file in the bundle's folder; None for a folder.

        Raises
        ------
        ConfigurationError
            The entry is nothing that a bundle has.
        """
        self._count += 1
        if self._count > MOST_ENTRIES:
            raise ConfigurationError(f"{self._source}: holds more than {MOST_ENTRIES} files")
        if is_folder:
            return None  # it is never made
        parts = path.removeprefix("./").split("/")
        if len(parts) > 2 or any(p in ("", ".", "..") or "\\" in p or ":" in p for p in parts):
            raise ConfigurationError(f"{self._source}: {path!r} is outside of the bundle's folder")
        if not is_plain:
            raise ConfigurationError(
                f"{self._source}: {path!r} is a link, a device, encrypted or no plain file"
            )
        folder, name = "/".join(parts[:-1]), parts[-1]
        if name not in FILES:
            raise ConfigurationError(
                f"{self._source}: {path!r} is nothing that a bundle has, which is {', '.join(FILES)}"
            )
        self._folder = folder if self._folder is None else self._folder
        if name in self._names or folder != self._folder:
            raise ConfigurationError(f"{self._source}: {path!r}: holds more than one bundle")
        self._names.add(name)
        return name


def _copy(file: IO[bytes], target: Path, left: int, source: Path) -> int:
    """Copy at most ``left`` bytes and say how many there were."""
    count = 0
    with target.open("xb") as written:
        while chunk := file.read(_CHUNK):
            count += len(chunk)
            if count > left:
                raise ConfigurationError(f"{source}: unpacks to more than {MOST_BYTES} bytes")
            written.write(chunk)
    return count


def _same(one: Path, other: Path) -> bool:
    def held(folder: Path) -> list[str]:
        return [name for name in FILES if (folder / name).is_file()]

    def equal(name: str) -> bool:
        with (one / name).open("rb") as a, (other / name).open("rb") as b:
            while chunk := a.read(_CHUNK):
                if chunk != b.read(_CHUNK):
                    return False
            return not b.read(1)

    return held(one) == held(other) and all(equal(name) for name in held(one))


def _version(bundle: Path) -> str:
    """Version of what is installed; also of what is damaged, since that is what is to be replaced."""
    try:
        return str(read_description(bundle)["version"])
    except ConfigurationError:
        return "(damaged)"


def _verified(target: Path, version: str) -> str:
    try:
        verify_bundle(target)
    except ConfigurationError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return version


def _exchange(made: Path, target: Path) -> None:
    """Put one folder in the place of another, which is back in its place where that fails."""
    aside = made.parent / "before"
    _move(target, aside)
    try:
        _move(made, target)
        _verified(target, "")
    except BaseException:
        _move(aside, target)
        raise


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        raise ConfigurationError(f"{target}: cannot be written ({error})") from error
