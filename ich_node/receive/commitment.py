"""Storage commitment push model, provider (PS3.4 annex J): requests in, and what is reported of each.

A request is answered with success when it is safe on disk. What is reported is looked up when it is reported:
an object is committed where the spool holds a file with its SOP Instance UID and SOP Class UID that survives
a power cut. Every object that was acknowledged with status 0x0000 is therefore committed, until retention has
purged it. Where several different objects came under one UID, all were kept, and the UID is committed when
one of them has the class that is asked for: whichever of them the peer means, it is here.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum
from io import BytesIO
from pathlib import Path
from typing import cast

from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

from ich_node.receive.commitment_folder import (
    CommitmentFolder,
    CommitmentLimits,
    FolderFull,
    PendingCommitment,
    Reference,
)
from ich_node.receive.commitment_request import (
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    CommitmentRefused,
    CommitmentStatus,
    read_request,
)
from ich_node.receive.received import log_without_values
from ich_node.receive.spool import Spool

_LOG = logging.getLogger(__name__)

ALL_COMMITTED, FAILURES_EXIST = 1, 2
"""Event Type ID, PS3.4 table J.3-2."""
_WARNINGS = frozenset({0x0001, 0x0107, 0x0116})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class FailureReason(IntEnum):
    """Failure Reason (0008,1197) of an object that is not committed (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    """The spool could not be read now."""
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    """What is here under this UID is of another SOP class."""
    DUPLICATE_TRANSACTION_UID = 0x0131
    """The Transaction UID was in use for other objects."""


class CommitmentDesk:
    """Takes requests and knows what to report of each. Safe to use from several threads.

    Parameters
    ----------
    folder
        Where requests are kept until they are reported. Several processes may use one.
    spool
        What is committed.
    limits
        Bounds on what is kept.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        spool: Spool,
        *,
        limits: CommitmentLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = CommitmentFolder(folder, limits)
        self.clock = clock
        self.on_waiting: Callable[[], None] = lambda: None
        """Called when a request waits for its peer to be called; set by the reporter."""
        self._spool = spool

    def accept(
        self,
        information: Dataset | None,
        *,
        action_type: int | None,
        requested_sop_instance_uid: str,
        calling_ae_title: str,
        host: str,
        requested_sop_class_uid: str = SOP_CLASS_UID,
    ) -> PendingCommitment:
        """Check a request and write it durably; when this returns, success may be answered.

        Parameters
        ----------
        information
            Action Information.
        action_type
            Action Type ID (0000,1008).
        requested_sop_instance_uid, requested_sop_class_uid
            (0000,1001) and (0000,0003).
        calling_ae_title, host
            Who is to be told.

        Returns
        -------
        PendingCommitment
            Where it is ``claimed``, the caller reports it and calls `reported` or `postpone`.

        Raises
        ------
        CommitmentRefused
            With the status that the standard gives.
        """
        transaction_uid, references = read_request(
            information,
            action_type=action_type,
            requested_sop_class_uid=requested_sop_class_uid,
            requested_sop_instance_uid=requested_sop_instance_uid,
            max_references=self.folder.limits.max_references,
        )
        try:
            return self.folder.add(
                transaction_uid=transaction_uid,
                calling_ae_title=calling_ae_title,
                host=host,
                references=references,
                accepted_at=datetime.fromtimestamp(self.clock(), UTC),
            )
        except FolderFull as error:
            raise CommitmentRefused(CommitmentStatus.RESOURCE_LIMITATION, str(error)) from None
        except OSError as error:
            _LOG.error("a storage commitment request could not be written: %s", error.strerror)
            full = error.errno in _NO_ROOM
            status = CommitmentStatus.RESOURCE_LIMITATION if full else CommitmentStatus.PROCESSING_FAILURE
            raise CommitmentRefused(status, f"cannot write: {error.strerror}") from None

    def reported(self, pending: PendingCommitment) -> None:
        """Forget a request: its peer has confirmed the report."""
        self.folder.remove(pending.file_name)
        _LOG.info("storage commitment: %s is reported to %r", pending.file_name, pending.calling_ae_title)

    def postpone(self, pending: PendingCommitment) -> None:
        """Leave a request to whoever calls its peer."""
        self.folder.release(pending.file_name)
        self.on_waiting()

    def report(self, pending: PendingCommitment) -> tuple[int, Dataset]:
        """Look up what is to be reported now.

        Returns
        -------
        tuple of int and Dataset
            Event Type ID, and Event Information (PS3.4 table J.3-2). Retrieve AE Title is left out: nothing
            can be retrieved from this node by C-MOVE.
        """
        failures = self._failures(pending)
        information = Dataset()
        information.TransactionUID = pending.transaction_uid
        committed = [_item(one) for one in pending.references if one not in failures]
        if committed:
            information.ReferencedSOPSequence = committed
        if not failures:
            return ALL_COMMITTED, information
        information.FailedSOPSequence = [_item(one, reason) for one, reason in failures.items()]
        return FAILURES_EXIST, information

    def event_report(self, pending: PendingCommitment, message_id: int, syntax: UID) -> N_EVENT_REPORT:
        """Make the N-EVENT-REPORT request for what is to be reported now."""
        event_type, information = self.report(pending)
        request = N_EVENT_REPORT()
        request.MessageID = message_id
        request.AffectedSOPClassUID = SOP_CLASS_UID
        request.AffectedSOPInstanceUID = SOP_INSTANCE_UID
        request.EventTypeID = event_type
        encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        request.EventInformation = BytesIO(cast(bytes, encoded))
        return request

    def _failures(self, pending: PendingCommitment) -> dict[Reference, FailureReason]:
        if pending.duplicate_transaction:
            return dict.fromkeys(pending.references, FailureReason.DUPLICATE_TRANSACTION_UID)
        failures: dict[Reference, FailureReason] = {}
        folders: dict[Path, list[Reference]] = {}
        for reference in pending.references:
            try:
                folders.setdefault(self._folder_with(reference), []).append(reference)
            except _NotCommitted as failure:
                failures[reference] = failure.reason
        for folder, references in folders.items():
            try:
                # A file has its name before its folder is synchronized, and before it is acknowledged.
                _synchronize(folder)
            except OSError as error:
                _LOG.error("a folder of the spool is not durable: %s", error.strerror)
                failures |= dict.fromkeys(references, FailureReason.PROCESSING_FAILURE)
        return failures

    def _folder_with(self, reference: Reference) -> Path:
        """Return the folder in which the object has a file, which is whole: it has its name."""
        try:
            paths = self._spool.files_of(reference.sop_instance_uid)
            classes = {_sop_class_of(path): path for path in paths}
        except FileNotFoundError:  # purged in this moment, or no spool at all
            raise _NotCommitted(FailureReason.PROCESSING_FAILURE) from None
        except Exception as error:
            log_without_values(_LOG, "an object in the spool cannot be read", error)
            raise _NotCommitted(FailureReason.PROCESSING_FAILURE) from None
        if not classes:
            raise _NotCommitted(FailureReason.NO_SUCH_OBJECT_INSTANCE)
        if reference.sop_class_uid not in classes:
            raise _NotCommitted(FailureReason.CLASS_INSTANCE_CONFLICT)
        return classes[reference.sop_class_uid].parent


class _NotCommitted(Exception):
    def __init__(self, reason: FailureReason) -> None:
        super().__init__(reason)
        self.reason = reason


def is_confirmed(status: int | None) -> bool:
    """Whether a status (0000,0900) of an N-EVENT-REPORT response says that the report was taken."""
    return status is not None and (status == 0x0000 or status in _WARNINGS or status >> 12 == 0xB)


def _item(reference: Reference, reason: FailureReason | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = int(reason)
    return item


def _sop_class_of(path: Path) -> str:
    return str(read_file_meta_info(path).MediaStorageSOPClassUID)


def _synchronize(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
