"""Received objects on disk: whole or not there, under names made here, with the bytes that arrived.

Layout below the root::

    incoming/*.part                 being written; never read, removed when a receiver starts
    3f/3fa0...-77c1....dcm          one Part 10 file per object

A name is ``<32 hex of SHA-256 of the SOP Instance UID>-<64 hex of the content hash>.dcm``. The same object
therefore has the same name wherever it comes from, other bytes under the same UID get another name beside
it, and no name contains anything that a sender chose.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ich_node.codes import IMPLEMENTATION_CLASS_UID

_LOG = logging.getLogger(__name__)

IMPLEMENTATION_VERSION_NAME = "ICH_NODE_0_1"
"""(0002,0013)"""

Encoded: TypeAlias = bytes | bytearray | memoryview

_NAME = re.compile(r"(?P<folder>[0-9a-f]{2})/(?P<uid>(?P=folder)[0-9a-f]{30})-(?P<content>[0-9a-f]{64})\.dcm")
_FOLDERS = 256
_TEMPORARY_SUFFIX = ".part"


@dataclass(frozen=True, kw_only=True)
class SpooledObject:
    """One object that is safe on disk."""

    file_name: str
    """Below the spool folder, with ``/``."""
    path: Path
    size_bytes: int
    """Of the whole file."""
    sha256: str
    """Hex digest over Transfer Syntax UID, one NUL byte, and the data set as received."""
    duplicate: bool = False
    """The same object was here before; nothing was written."""
    conflict: bool = False
    """Another object with the same SOP Instance UID is here too."""


class Spool:
    """A folder of received objects. Several threads and processes may use one folder.

    Parameters
    ----------
    root
        Made with its folders where absent, readable by the owner only. It must lie in one file system.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"
        self._serial = itertools.count()
        self._make_folders()

    def store(
        self,
        encoded: Encoded,
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        source_ae_title: str,
    ) -> SpooledObject:
        """Write one object; when this returns, it survives a power cut.

        Parameters
        ----------
        encoded
            The data set as received, without File Meta Information. These bytes are kept as they are.
        sop_class_uid, sop_instance_uid, transfer_syntax_uid
            Become (0002,0002), (0002,0003) and (0002,0010). Validated by the caller.
        source_ae_title
            Becomes Source Application Entity Title (0002,0016).

        Returns
        -------
        SpooledObject
            Where it is, and whether it or another object with this UID was here before.

        Raises
        ------
        OSError
            The file system refuses, for example because it is full. Nothing is left behind.
        """
        sha256 = _content_hash(encoded, transfer_syntax_uid)
        file_name = _file_name(sop_instance_uid, sha256)
        path = self.root / file_name
        duplicate = _is_file_of_at_least(path, len(encoded))
        if not duplicate:
            header = part10_header(
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                transfer_syntax_uid=transfer_syntax_uid,
                source_ae_title=source_ae_title,
            )
            self._write(path, header, encoded)
        # Also for a duplicate: the thread that renamed it a moment ago may not have synchronized its folder
        # yet.
        _synchronize_folder(path.parent)
        # Looked up after the rename, so that of two conflicting objects that arrive at once one sees the
        # other.
        return self._describe(file_name, duplicate=duplicate)

    def path(self, file_name: str) -> Path:
        """Return the file of a name that `store` gave.

        Raises
        ------
        ValueError
            The text is no such name.
        """
        if _NAME.fullmatch(file_name) is None:
            raise ValueError("not the name of a spooled object")
        return self.root / file_name

    def files_of(self, sop_instance_uid: str) -> tuple[Path, ...]:
        """Return the stored objects with this SOP Instance UID: none, one, or several that conflict."""
        uid = _uid_hash(sop_instance_uid)
        with os.scandir(self.root / uid[:2]) as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith(f"{uid}-"))
        return tuple(self.root / uid[:2] / name for name in names if _NAME.fullmatch(f"{uid[:2]}/{name}"))

    def describe(self, path: Path) -> SpooledObject:
        """Say again what `store` said of a file that `scan` found.

        Raises
        ------
        ValueError
            The path is no object of this spool.
        FileNotFoundError
            It is not there any more.
        """
        file_name = path.relative_to(self.root).as_posix()
        self.path(file_name)
        return self._describe(file_name, duplicate=False)

    def scan(self) -> Iterator[Path]:
        """Every stored object, in the order of its name."""
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and folder != self._incoming:
                yield from (p for p in sorted(folder.iterdir()) if _NAME.fullmatch(f"{folder.name}/{p.name}"))

    def remove_leftovers(self) -> int:
        """Remove what was being written when a receiver died; only while no other receiver uses the folder.

        Returns
        -------
        int
            How many unfinished files there were. Their senders have had no success status.
        """
        leftovers = list(self._incoming.glob(f"*{_TEMPORARY_SUFFIX}"))
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        if leftovers:
            _LOG.warning("removed %d objects that were not completely received", len(leftovers))
        return len(leftovers)

    def _make_folders(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        present = {entry.name for entry in self.root.iterdir()}
        wanted = {self._incoming.name, *(f"{number:02x}" for number in range(_FOLDERS))}
        for name in sorted(wanted - present):
            (self.root / name).mkdir(exist_ok=True, mode=0o700)
        # Always: an earlier start may have died between making a folder and synchronizing it.
        _synchronize_folder(self.root)

    def _write(self, path: Path, header: bytes, encoded: Encoded) -> None:
        temporary = (
            self._incoming / f"{os.getpid()}-{next(self._serial)}-{os.urandom(8).hex()}{_TEMPORARY_SUFFIX}"
        )
        try:
            _write_durably(temporary, header, encoded)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _describe(self, file_name: str, *, duplicate: bool) -> SpooledObject:
        path = self.root / file_name
        uid, _, content = path.stem.partition("-")
        with os.scandir(path.parent) as entries:
            same_uid = sum(entry.name.startswith(f"{uid}-") for entry in entries)
        return SpooledObject(
            file_name=file_name,
            path=path,
            size_bytes=path.stat().st_size,
            sha256=content,
            duplicate=duplicate,
            conflict=same_uid > 1,
        )


def part10_header(
    *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae_title: str
) -> bytes:
    """Encode preamble, prefix and File Meta Information (PS3.10 section 7.1).

    Returns
    -------
    bytes
        Everything that precedes the data set in a DICOM file.
    """
    elements = b"".join(
        [
            struct.pack("<HH2sHIH", 0x0002, 0x0001, b"OB", 0, 2, 0x0100),
            _element(0x0002, b"UI", sop_class_uid),
            _element(0x0003, b"UI", sop_instance_uid),
            _element(0x0010, b"UI", transfer_syntax_uid),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _element(0x0016, b"AE", source_ae_title),
        ]
    )
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(elements)) + elements


def _element(number: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", errors="replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, number, vr, len(value)) + value


def _content_hash(encoded: Encoded, transfer_syntax_uid: str) -> str:
    # The same bytes under another transfer syntax are another image.
    content = hashlib.sha256(transfer_syntax_uid.encode() + b"\0")
    content.update(encoded)
    return content.hexdigest()


def _file_name(sop_instance_uid: str, sha256: str) -> str:
    uid = _uid_hash(sop_instance_uid)
    return f"{uid[:2]}/{uid}-{sha256}.dcm"


def _uid_hash(sop_instance_uid: str) -> str:
    return hashlib.sha256(sop_instance_uid.encode()).hexdigest()[:32]


def _is_file_of_at_least(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size >= size_bytes
    except FileNotFoundError:
        return False


def _write_durably(path: Path, *parts: Encoded) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synchronize_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
