"""Storage commitment requests on disk, from before they are acknowledged until they are reported.

One JSON file per request, written durably, under a name made here::

    <accepted, microseconds>-<peer>-<transaction>-<content>.json        to be reported
    <the same>.json.dead                                                given up, kept for a person to see
    *.part                                                              being written; never read

All fields are hexadecimal; the last three are hashes. The time of the last attempt to report is the file's
modification time. Several processes may use one folder: who reports a request holds a lock (``flock``) on its
file, which the kernel takes back when the process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ich_node.receive.limits import plain_address

_LOG = logging.getLogger(__name__)

_NAME = re.compile(
    r"(?P<accepted>[0-9a-f]{16})-(?P<peer>[0-9a-f]{16})-(?P<transaction>[0-9a-f]{16})-[0-9a-f]{32}\.json"
)
_DEAD = ".dead"
_PART = ".part"
_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """One item of Referenced SOP Sequence (0008,1199)."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class PendingCommitment:
    """A request that is safe on disk and not reported yet."""

    file_name: str
    """In the commitment folder."""
    transaction_uid: str
    calling_ae_title: str
    host: str
    """Address that the request came from."""
    references: tuple[Reference, ...]
    """In the order of the request, each once."""
    accepted_at: datetime
    """UTC, with its time zone."""
    duplicate_transaction: bool = False
    """The same peer's same Transaction UID was pending for other objects: all of these fail."""
    claimed: bool = True
    """Nobody else reports it until it is removed or released here; ``False``: somebody else does."""


@dataclass(frozen=True, kw_only=True)
class WaitingReport:
    """One file of the folder, known by its name and time alone."""

    file_name: str
    peer: str
    """`peer_key` of who asked."""
    accepted_s: float
    """Since the epoch."""
    attempted_s: float | None
    """Last call of the peer, since the epoch; ``None``: none yet."""


@dataclass(frozen=True, kw_only=True)
class CommitmentLimits:
    """Bounds on what peers can make this node keep."""

    max_references: int = 10_000
    """Objects of one request."""
    max_waiting_per_peer: int = 2_000
    """Requests of one peer that are not reported yet."""
    max_waiting: int = 10_000
    """Requests that are not reported yet."""
    max_bytes: int = 256 * 2**20
    """Of all files of requests that are not reported yet."""
    max_dead: int = 1_000
    """Requests that were given up; the oldest go first."""


@dataclass(frozen=True, kw_only=True)
class CommitmentCounts:
    """What lies in the folder."""

    waiting: int
    """Accepted and not reported yet."""
    dead: int
    """Given up: the peer was never told."""
    oldest_accepted_at: datetime | None
    """Of those that wait; UTC, with its time zone."""


class FolderFull(Exception):
    """A limit on pending requests is reached; the message says which, without identifying values."""


def peer_key(ae_title: str, host: str) -> str:
    """Name a peer in file names."""
    return digest(ae_title.strip(), plain_address(host))[:16]


def waiting(folder: Path) -> CommitmentCounts:
    """Count the requests in a commitment folder, which need not exist."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    accepted = sorted(match["accepted"] for match in map(_NAME.fullmatch, names) if match)
    return CommitmentCounts(
        waiting=len(accepted),
        dead=sum(_is_dead(name) for name in names),
        oldest_accepted_at=_time(accepted[0]) if accepted else None,
    )


class CommitmentFolder:
    """Requests that wait to be reported.

    Parameters
    ----------
    root
        Made where absent, readable by the owner only.
    limits
        Bounds on what is kept.
    """

    def __init__(self, root: Path, limits: CommitmentLimits | None = None) -> None:
        self.root = root
        self.limits = limits or CommitmentLimits()
        self._claims: dict[str, int] = {}
        self._claims_lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.root):
            for leftover in root.glob(f"*{_PART}"):
                leftover.unlink(missing_ok=True)

    def add(
        self,
        *,
        transaction_uid: str,
        calling_ae_title: str,
        host: str,
        references: Sequence[Reference],
        accepted_at: datetime,
    ) -> PendingCommitment:
        """Write a request; when this returns, it survives a power cut.

        The same request again, from the same peer and for the same objects, is the one that is here.

        Returns
        -------
        PendingCommitment
            Claimed for the caller, except where somebody else reports the same request already.

        Raises
        ------
        FolderFull
            A limit is reached.
        OSError
            The file system refuses. Nothing is left behind.
        """
        once = tuple(dict.fromkeys(references))
        peer, transaction = peer_key(calling_ae_title, host), digest(transaction_uid)[:16]
        content = digest(*sorted(f"{one.sop_class_uid} {one.sop_instance_uid}" for one in once))[:32]
        key = f"{peer}-{transaction}-"
        with locked(self.root):
            sizes = self._sizes()
            same_transaction = [name for name in sizes if name[17:].startswith(key)]
            same_request = [name for name in same_transaction if name.endswith(f"-{content}.json")]
            for name in same_request:
                if (known := self._again(name)) is not None:
                    return known
            self._check_room(peer, sizes)
            pending = PendingCommitment(
                file_name=f"{_microseconds(accepted_at):016x}-{key}{content}.json",
                transaction_uid=transaction_uid,
                calling_ae_title=calling_ae_title.strip(),
                host=host,
                references=once,
                accepted_at=accepted_at,
                duplicate_transaction=len(same_transaction) > len(same_request),
            )
            self._write(pending)
        return pending

    def reports(self) -> list[WaitingReport]:
        """Return everything that waits, the oldest first."""
        found = []
        for name in sorted(self._names()):
            try:
                modified_us = (self.root / name).stat().st_mtime_ns // 1000
            except FileNotFoundError:
                continue
            accepted_us = int(name[:16], 16)
            found.append(
                WaitingReport(
                    file_name=name,
                    peer=name[17:33],
                    accepted_s=accepted_us / 1e6,
                    attempted_s=modified_us / 1e6 if modified_us > accepted_us else None,
                )
            )
        return found

    def claim(self, file_name: str) -> PendingCommitment | None:
        """Take a request to report it; ``None`` where it is gone, somebody else has it, or it is damaged."""
        path = self.root / file_name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not _lock_at_once(descriptor) or not _is_still(path, descriptor):
            os.close(descriptor)
            return None
        with self._claims_lock:
            self._claims[file_name] = descriptor
        try:
            return _decode(file_name, path.read_bytes(), claimed=True)
        except (ValueError, KeyError, TypeError):
            _LOG.error("storage commitment: %s is damaged and set aside", file_name)
            self.give_up(file_name)
            return None

    def holds(self, file_name: str) -> bool:
        """Whether it is claimed through this object."""
        return file_name in self._claims

    def touch(self, file_name: str, attempted_s: float) -> None:
        """Note when its peer was called last."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.root / file_name, ns=(int(attempted_s * 1e9),) * 2)

    def release(self, file_name: str) -> None:
        """Let others report it."""
        with self._claims_lock:
            descriptor = self._claims.pop(file_name, None)
        if descriptor is not None:
            # Not by closing alone: a forked process may hold the same open file.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def remove(self, file_name: str) -> None:
        """It is reported; to be called by who has claimed it."""
        (self.root / file_name).unlink(missing_ok=True)
        synchronize(self.root)
        self.release(file_name)

    def give_up(self, file_name: str) -> None:
        """Set it aside for a person to see; to be called by who has claimed it."""
        path = self.root / file_name
        path.rename(path.with_name(file_name + _DEAD))
        self.release(file_name)
        dead = sorted(path for path in self.root.iterdir() if _is_dead(path.name))
        for surplus in dead[: max(0, len(dead) - self.limits.max_dead)]:
            surplus.unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return [path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name)]

    def _again(self, file_name: str) -> PendingCommitment | None:
        if (pending := self.claim(file_name)) is not None:
            return pending
        try:
            return _decode(file_name, (self.root / file_name).read_bytes(), claimed=False)
        except FileNotFoundError:  # reported a moment ago, or damaged
            return None

    def _sizes(self) -> dict[str, int]:
        sizes = {}
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):  # reported meanwhile
                sizes[name] = (self.root / name).stat().st_size
        return sizes

    def _check_room(self, peer: str, sizes: dict[str, int]) -> None:
        if sum(name[17:33] == peer for name in sizes) >= self.limits.max_waiting_per_peer:
            raise FolderFull("too many requests of this peer wait")
        if len(sizes) >= self.limits.max_waiting or sum(sizes.values()) >= self.limits.max_bytes:
            raise FolderFull("too many requests wait")

    def _write(self, pending: PendingCommitment) -> None:
        path = self.root / pending.file_name
        temporary = path.with_name(f"{os.getpid()}-{os.urandom(8).hex()}{_PART}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(_encode(pending))
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.utime(descriptor, ns=(_microseconds(pending.accepted_at) * 1000,) * 2)
            os.fsync(descriptor)
            # Before it has its name, so that no other process reports it first.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.rename(path)
            synchronize(self.root)
        except BaseException:
            temporary.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        with self._claims_lock:
            self._claims[pending.file_name] = descriptor


def _encode(pending: PendingCommitment) -> bytes:
    content = {
        "transaction_uid": pending.transaction_uid,
        "calling_ae_title": pending.calling_ae_title,
        "host": pending.host,
        "duplicate_transaction": pending.duplicate_transaction,
        "references": [[one.sop_class_uid, one.sop_instance_uid] for one in pending.references],
    }
    return json.dumps(content).encode()


def _decode(file_name: str, encoded: bytes, *, claimed: bool) -> PendingCommitment:
    content: dict[str, Any] = json.loads(encoded)
    return PendingCommitment(
        file_name=file_name,
        transaction_uid=str(content["transaction_uid"]),
        calling_ae_title=str(content["calling_ae_title"]),
        host=str(content["host"]),
        references=tuple(
            Reference(sop_class_uid=sop_class, sop_instance_uid=sop_instance)
            for sop_class, sop_instance in content["references"]
        ),
        accepted_at=_time(file_name[:16]),
        duplicate_transaction=bool(content["duplicate_transaction"]),
        claimed=claimed,
    )


def digest(*parts: str) -> str:
    """Name something in file names: hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _microseconds(time: datetime) -> int:
    return round(time.timestamp() * 1e6)


def _time(microseconds: str) -> datetime:
    return datetime.fromtimestamp(int(microseconds, 16) / 1e6, UTC)


def _is_dead(name: str) -> bool:
    return name.endswith(_DEAD) and _NAME.fullmatch(name.removesuffix(_DEAD)) is not None


def _lock_at_once(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is what has the name now: it may have been reported between opening and locking."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other thread and process out that asks for the same folder."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def synchronize(folder: Path) -> None:
    """Make the names of a folder's files durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
