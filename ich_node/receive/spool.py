"""Received objects on disk: whole or not there, under names made here, with the bytes that arrived.

Layout below the root::

    incoming/*.part                 being written, locked by the writer; removed when a receiver starts
    3f/3fa0...-77c1....dcm          one Part 10 file per object

A name is ``<32 hex of SHA-256 of the SOP Instance UID>-<64 hex of the content hash>.dcm``. The same object
therefore has the same name wherever it comes from, other bytes under the same UID get another name beside
it, and no name contains anything that a sender chose.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import logging
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from blake3 import blake3

from ich_node.codes import IMPLEMENTATION_CLASS_UID

_LOG = logging.getLogger(__name__)

IMPLEMENTATION_VERSION_NAME = "ICH_NODE_0_1"
"""(0002,0013)"""

Encoded: TypeAlias = bytes | bytearray | memoryview

_NAME = re.compile(r"(?P<folder>[0-9a-f]{2})/(?P<uid>(?P=folder)[0-9a-f]{30})-(?P<content>[0-9a-f]{64})\.dcm")
_FOLDERS = 256
_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = ctypes.CDLL(None).sync_file_range
"""Linux: begins to write a range of a file to the disk, and does not wait for it."""
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint)
_WRITEBACK_BYTES = 2**16
"""The disk begins with no less; the rest is written at the end."""
_TEMPORARY_SUFFIX = ".part"


@dataclass(frozen=True, kw_only=True)
class SpooledObject:
    """One object that is safe on disk."""

    file_name: str
    """Below the spool folder, with ``/``."""
    path: Path
    size_bytes: int
    """Of the whole file."""
    content_hash: str
    """BLAKE3, as hex digest, over Transfer Syntax UID, one NUL byte, and the data set as received."""
    duplicate: bool = False
    """The same object was here before."""


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
        self._token = f"{os.getpid()}-{os.urandom(8).hex()}"
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
        writer = self.writer()
        try:
            writer.begin(
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                transfer_syntax_uid=transfer_syntax_uid,
                source_ae_title=source_ae_title,
            )
            writer.write(encoded)
            return writer.commit()
        finally:
            writer.discard()

    def writer(self) -> SpoolWriter:
        """Open a file for an object that arrives in pieces, before anything of it is known.

        Raises
        ------
        OSError
            The file system refuses.
        """
        return SpoolWriter(
            str(self.root), f"{self._incoming}/{self._token}-{next(self._serial)}{_TEMPORARY_SUFFIX}"
        )

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
        _, _, content_hash = path.stem.partition("-")
        return SpooledObject(
            file_name=file_name, path=path, size_bytes=path.stat().st_size, content_hash=content_hash
        )

    def scan(self) -> Iterator[Path]:
        """Every stored object, in the order of its name."""
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and folder != self._incoming:
                yield from (p for p in sorted(folder.iterdir()) if _NAME.fullmatch(f"{folder.name}/{p.name}"))

    def remove_leftovers(self) -> int:
        """Remove what was being written when its process died; what is being written now is left alone.

        Returns
        -------
        int
            How many unfinished objects there were. Their senders have had no success status. A file that
            was opened in advance and never written to is removed and not counted.
        """
        leftovers = [path for path in self._incoming.glob(f"*{_TEMPORARY_SUFFIX}") if _remove_if_left(path)]
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


class SpoolWriter:
    """One object on its way into the spool: its bytes go straight to a temporary file.

    Made by `Spool.writer`. After `commit` or `discard` it is closed; a further `discard` does nothing.
    """

    def __init__(self, root: str, temporary: str) -> None:
        self._root = root
        self._temporary = temporary
        self._header = b""
        self._has_header = False
        self.size_bytes = 0
        """Of the data set so far."""
        self._begun = 0
        self._descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Tells a file that is being written from one whose process died; the kernel drops it with the
            # process.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.discard()
            raise

    def begin(
        self, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae_title: str
    ) -> None:
        """Say what the object is, before its first piece. The parameters are those of `Spool.store`."""
        self._header = part10_header(
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            source_ae_title=source_ae_title,
        )
        self._uid = _uid_hash(sop_instance_uid)
        # The same bytes under another transfer syntax are another image.
        self._content = blake3(transfer_syntax_uid.encode() + b"\0")

    def write(self, *pieces: Encoded) -> None:
        """Append pieces of the data set as received, at most 1000.

        Raises
        ------
        OSError
            The file system refuses.
        """
        if self._has_header:
            _write_whole(self._descriptor, *pieces)
        else:
            _write_whole(self._descriptor, self._header, *pieces)
            self._has_header = True
        for piece in pieces:
            self._content.update(piece)
            self.size_bytes += len(piece)

    def data_set(self) -> BinaryIO:
        """Open what was written so far for reading, at the beginning of the data set."""
        file = Path(self._temporary).open("rb")  # noqa: SIM115 - the caller closes it
        file.seek(len(self._header))
        return file

    def start_writeback(self) -> None:
        """Let the disk begin with what was written since, if it is worth it, and do not wait for it."""
        if self.size_bytes - self._begun >= _WRITEBACK_BYTES:
            _sync_file_range(self._descriptor, self._begun, 0, _SYNC_FILE_RANGE_WRITE)
            self._begun = self.size_bytes

    def commit(self) -> SpooledObject:
        """Make the object durable under its name; when this returns, it survives a power cut.

        Raises
        ------
        OSError
            The file system refuses. The object is not there.
        """
        content_hash = self._content.hexdigest()
        file_name = f"{self._uid[:2]}/{self._uid}-{content_hash}.dcm"
        path = f"{self._root}/{file_name}"
        os.fsync(self._descriptor)
        duplicate = _is_file_of_at_least(path, self.size_bytes)
        # The same name is the same content. Renamed also then: a file that was damaged since is mended by it.
        os.rename(self._temporary, path)  # noqa: PTH104 - of strings: Path costs more than the call
        # The thread that renamed the same object a moment ago may not have synchronized the folder yet, so
        # each does.
        _synchronize_folder(f"{self._root}/{self._uid[:2]}")
        self._close()
        return SpooledObject(
            file_name=file_name,
            path=Path(path),
            size_bytes=len(self._header) + self.size_bytes,
            content_hash=content_hash,
            duplicate=duplicate,
        )

    def discard(self) -> None:
        """Leave nothing behind of an object that is not wanted."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # what cannot be removed now is a leftover at the next start
                os.unlink(self._temporary)  # noqa: PTH108 - as above
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


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


def _uid_hash(sop_instance_uid: str) -> str:
    return hashlib.sha256(sop_instance_uid.encode()).hexdigest()[:32]


def _remove_if_left(path: Path) -> bool:
    """Remove a file that no process is writing; says whether anything had been written to it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return os.fstat(descriptor).st_size > 0
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _is_file_of_at_least(path: str, size_bytes: int) -> bool:
    try:
        return os.stat(path).st_size >= size_bytes  # noqa: PTH116 - as above
    except FileNotFoundError:
        return False


def _write_whole(descriptor: int, *parts: Encoded) -> None:
    written = os.writev(descriptor, parts)
    if written < sum(map(len, parts)):  # nearly full, for example; the next write says so
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _synchronize_folder(folder: Path | str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
