"""What a PACS has reported of this node's own storage commitment requests, on disk until it is dealt with.

One JSON file per report, written durably before the report is answered, under a name made here::

    <received, microseconds>-<peer>-<transaction>-<content>.json        to be dealt with
    <the same>.json.dead                                                damaged, kept for a person to see
    *.part                                                              being written; never read

Several processes may use one folder: those that receive write, and who delivers reads. A result is read first
and removed when what follows from it is safe, so a crash in between brings it again; dealing with it twice
must do no harm.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ich_node.receive.commitment_folder import (
    FolderFull,
    Reference,
    digest,
    locked,
    peer_key,
    synchronize,
)

_LOG = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-f]{16}-(?P<key>(?P<peer>[0-9a-f]{16})-[0-9a-f]{16})-[0-9a-f]{32}\.json")
_DEAD, _PART = ".dead", ".part"
_REASONS = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "class/instance conflict",
    0x0122: "referenced SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}
"""PS3.3 C.14.1.1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedReference:
    """One item of Failed SOP Sequence (0008,1198)."""

    reference: Reference
    failure_reason: int | None
    """Failure Reason (0008,1197); ``None``: it has none that is a number."""

    @property
    def words(self) -> str:
        """Why, for a person."""
        if self.failure_reason is None:
            return "no reason given"
        return f"0x{self.failure_reason:04X} {_REASONS.get(self.failure_reason, 'unknown reason')}"


@dataclass(frozen=True, kw_only=True)
class CommitmentReport:
    """What an N-EVENT-REPORT says (PS3.4 table J.3-2)."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    """The PACS has taken responsibility for these; none of them is in ``failed``."""
    failed: tuple[FailedReference, ...]


@dataclass(frozen=True, kw_only=True)
class CommitmentResult:
    """A report that is safe on disk, and who made it."""

    file_name: str
    """In the folder of results."""
    report: CommitmentReport
    calling_ae_title: str
    """Of the PACS."""
    host: str
    """Its address, or the name that it was called by."""
    received_at: datetime
    """UTC, with its time zone."""


@dataclass(frozen=True, kw_only=True)
class ResultLimits:
    """Bounds on what peers can make this node keep."""

    max_references: int = 10_000
    """Objects of one report."""
    max_waiting_per_peer: int = 2_000
    """Results of one peer that are not dealt with yet."""
    max_waiting: int = 10_000
    """Results that are not dealt with yet."""
    max_bytes: int = 256 * 2**20
    """Of all of them."""
    max_dead: int = 100
    """Damaged ones; the oldest go first."""


class CommitmentResults:
    """Results that wait for whoever delivers. Safe to use from several threads and processes.

    Parameters
    ----------
    root
        Made where absent, readable by the owner only.
    limits
        Bounds on what is kept.
    """

    def __init__(self, root: Path, limits: ResultLimits | None = None) -> None:
        self.root = root
        self.limits = limits or ResultLimits()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(root):
            for leftover in root.glob(f"*{_PART}"):
                leftover.unlink(missing_ok=True)

    def add(
        self, report: CommitmentReport, *, calling_ae_title: str, host: str, received_at: datetime
    ) -> CommitmentResult:
        """Write a report; when this returns, it survives a power cut.

        What the same peer has said last of the same transaction, said again, is the result that is here.

        Raises
        ------
        FolderFull
            A limit is reached.
        OSError
            The file system refuses. Nothing is left behind.
        """
        result = CommitmentResult(
            file_name="",
            report=report,
            calling_ae_title=calling_ae_title.strip(),
            host=host,
            received_at=received_at,
        )
        encoded = _encode(result)
        peer, transaction = peer_key(calling_ae_title, host), digest(report.transaction_uid)[:16]
        content = f"{digest(encoded.decode())[:32]}.json"
        with locked(self.root):
            names = self._names()
            before = [name for name in names if name[17:50] == f"{peer}-{transaction}"]
            name = before[-1] if before else ""
            if not name.endswith(f"-{content}"):
                self._check_room(peer, names)
                name = f"{self._serial(received_at, names)}-{peer}-{transaction}-{content}"
                self._write(self.root / name, encoded)
        return _decode(name, encoded)

    def read(self, most: int = 1_000) -> tuple[CommitmentResult, ...]:
        """Read what waits, the oldest first; nothing is removed.

        What is damaged is set aside and said in the log.
        """
        found = []
        for name in self._names()[:most]:
            try:
                found.append(_decode(name, (self.root / name).read_bytes()))
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:  # of one file: the others are read, and this one another time
                _LOG.error("storage commitment: the result %s cannot be read: %s", name, error.strerror)
            except (ValueError, KeyError, TypeError, OverflowError):
                self._set_aside(name)
        return tuple(found)

    def remove(self, results: Sequence[CommitmentResult]) -> None:
        """Forget results: what follows from them is safe. One that is gone already is passed over."""
        for result in results:
            (self.root / result.file_name).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name))

    def _serial(self, received_at: datetime, names: Sequence[str]) -> str:
        """Begin a file name, after all others: the order is theirs even if the clock is set back."""
        last = int(names[-1][:16], 16) if names else 0
        return f"{max(round(received_at.timestamp() * 1e6), last + 1):016x}"

    def _check_room(self, peer: str, names: Sequence[str]) -> None:
        if sum(name[17:33] == peer for name in names) >= self.limits.max_waiting_per_peer:
            raise FolderFull("too many reports of this peer wait")
        size_bytes = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                size_bytes += (self.root / name).stat().st_size
        if len(names) >= self.limits.max_waiting or size_bytes >= self.limits.max_bytes:
            raise FolderFull("too many reports wait")

    def _write(self, path: Path, encoded: bytes) -> None:
        temporary = path.with_name(f"{os.getpid()}-{os.urandom(8).hex()}{_PART}")
        try:
            with temporary.open("xb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            synchronize(self.root)
        except BaseException:
            temporary.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise

    def _set_aside(self, name: str) -> None:
        _LOG.error("storage commitment: the result %s is damaged and set aside", name)
        with contextlib.suppress(FileNotFoundError):  # by another process
            (self.root / name).rename(self.root / f"{name}{_DEAD}")
        dead = sorted(self.root.glob(f"*{_DEAD}"))
        for surplus in dead[: max(0, len(dead) - self.limits.max_dead)]:
            surplus.unlink(missing_ok=True)


def results_folder(commitment_dir: Path) -> Path:
    """Where results lie: beside the requests of others."""
    return commitment_dir.with_name(f"{commitment_dir.name}-results")


def _encode(result: CommitmentResult) -> bytes:
    report = result.report
    content = {
        "transaction_uid": report.transaction_uid,
        "calling_ae_title": result.calling_ae_title,
        "host": result.host,
        "committed": [[one.sop_class_uid, one.sop_instance_uid] for one in report.committed],
        "failed": [
            [one.reference.sop_class_uid, one.reference.sop_instance_uid, one.failure_reason]
            for one in report.failed
        ],
    }
    return json.dumps(content).encode()


def _decode(file_name: str, encoded: bytes) -> CommitmentResult:
    content: dict[str, Any] = json.loads(encoded)
    report = CommitmentReport(
        transaction_uid=str(content["transaction_uid"]),
        committed=tuple(
            Reference(sop_class_uid=str(sop_class), sop_instance_uid=str(sop_instance))
            for sop_class, sop_instance in content["committed"]
        ),
        failed=tuple(
            FailedReference(
                reference=Reference(sop_class_uid=str(sop_class), sop_instance_uid=str(sop_instance)),
                failure_reason=None if reason is None else int(reason),
            )
            for sop_class, sop_instance, reason in content["failed"]
        ),
    )
    return CommitmentResult(
        file_name=file_name,
        report=report,
        calling_ae_title=str(content["calling_ae_title"]),
        host=str(content["host"]),
        received_at=datetime.fromtimestamp(int(file_name[:16], 16) / 1e6, UTC),
    )
