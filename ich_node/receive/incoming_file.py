"""A DICOM file on its way into the spool: its File Meta Information is read and dropped, its data set kept."""

from __future__ import annotations

import contextlib
import logging
import struct
from dataclasses import dataclass

from ich_node.receive.accepted import STORAGE_SOP_CLASS_UIDS, TRANSFER_SYNTAXES
from ich_node.receive.admission import Refusal, StorageStatus, StoreRequest
from ich_node.receive.arrival import Arrival, Gate
from ich_node.receive.limits import is_valid_uid
from ich_node.receive.received import ReceivedInstance, log_without_values
from ich_node.receive.spool import Encoded, Spool
from ich_node.receive.store_response import FailureReason

_LOG = logging.getLogger(__name__)

_HEAD_BYTES = 65536
"""File Meta Information must end within so many bytes; the header of an image usually does too."""
_PREFIX_AT, _META_AT = 128, 132
_LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_SOP_CLASSES = frozenset(STORAGE_SOP_CLASS_UIDS)
_SYNTAXES = frozenset(str(uid) for uid in TRANSFER_SYNTAXES)


class NotPart10(Exception):
    """Bytes that do not begin as a DICOM file does. The text quotes nothing of them."""


@dataclass(frozen=True, kw_only=True)
class FileMeta:
    """What is needed of File Meta Information (PS3.10 section 7.1); nothing in it is trusted."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_at: int
    """Where the data set begins, in bytes from the beginning of the file."""


def read_file_meta(head: bytes) -> FileMeta:
    """Read the beginning of a DICOM file.

    The data set begins with the first element that is not of group 0002, whatever the group length says:
    there are writers that get it wrong.

    Raises
    ------
    NotPart10
        No preamble and prefix, or elements that are not in Explicit VR Little Endian or are cut off.
    """
    if head[_PREFIX_AT:_META_AT] != b"DICM":
        raise NotPart10("no preamble and prefix of a DICOM file")
    found: dict[int, str] = {}
    at = _META_AT
    while head[at : at + 2] == b"\x02\x00":
        vr = head[at + 4 : at + 6]
        if not (vr.isalpha() and vr.isupper()):
            raise NotPart10("File Meta Information is not in Explicit VR Little Endian")
        is_long = vr in _LONG_VRS
        start = at + (12 if is_long else 8)
        if len(head) < start:
            raise NotPart10("File Meta Information is cut off")
        number = struct.unpack_from("<H", head, at + 2)[0]
        at = start + struct.unpack_from("<I" if is_long else "<H", head, start - (4 if is_long else 2))[0]
        if len(head) < at:
            raise NotPart10("File Meta Information is cut off, or longer than 64 KiB")
        if vr == b"UI":
            found[number] = head[start:at].rstrip(b"\0 ").decode("ascii", "replace")
    return FileMeta(
        sop_class_uid=found.get(0x0002, ""),
        sop_instance_uid=found.get(0x0003, ""),
        transfer_syntax_uid=found.get(0x0010, ""),
        data_set_at=at,
    )


class IncomingFile:
    """One DICOM file, from its first byte until its data set is durable or refused.

    Parameters
    ----------
    spool, gate, source_ae_title, association_id
        As for `Arrival`.
    max_bytes
        A longer file is refused.
    """

    def __init__(
        self, spool: Spool, gate: Gate, *, source_ae_title: str, association_id: str, max_bytes: int
    ) -> None:
        self._spool = spool
        self._gate = gate
        self._source_ae_title = source_ae_title
        self._association_id = association_id
        self._max_bytes = max_bytes
        self._head = bytearray()
        self._arrival: Arrival | None = None
        self._is_decided = False
        self._size_bytes = 0
        self.failure_reason = 0
        """Once it has failed: a `StorageStatus` or `FailureReason`."""
        self.identity: tuple[str, str] | None = None
        """SOP Class UID and SOP Instance UID, once they are known and may be repeated."""

    def write(self, fragment: Encoded) -> None:
        """Take the next bytes."""
        self._size_bytes += len(fragment)
        if self._is_decided:
            return
        if self._size_bytes > self._max_bytes:
            self.fail(StorageStatus.NOT_STORED, "object is larger than this node accepts")
        elif self._arrival is not None:
            self._pass_on(self._arrival, fragment)
        else:
            self._head += fragment
            if len(self._head) >= _HEAD_BYTES:
                self._begin()

    def finish(self) -> ReceivedInstance | None:
        """Make the data set durable; None where it failed."""
        if self._arrival is None and not self._is_decided:
            self._begin()
        if self._is_decided or self._arrival is None:
            return None
        try:
            return self._arrival.finish()
        except Refusal as refusal:
            self.fail(refusal.status, refusal.comment)
        except Exception as error:
            log_without_values(_LOG, "an object was not stored", error)
            self.fail(FailureReason.PROCESSING_FAILURE, "internal error")
        return None

    def fail(self, reason: int, comment: str) -> None:
        """Take no more of it."""
        _LOG.warning("refused an object from %r: 0x%04X %s", self._source_ae_title, reason, comment)
        self.failure_reason = reason
        self._is_decided = True
        self._discard()

    def break_off(self) -> None:
        """No more comes: find out what it was to be, and leave nothing of it behind."""
        if self._arrival is None and not self._is_decided:
            with contextlib.suppress(NotPart10):
                self._identify()
        self._is_decided = True
        self._discard()

    def _discard(self) -> None:
        self._head.clear()
        if self._arrival is not None:
            self._arrival.discard()

    def _identify(self) -> FileMeta:
        meta = read_file_meta(bytes(self._head))
        # A UID that breaks the rules is not repeated in an answer.
        if is_valid_uid(meta.sop_class_uid) and is_valid_uid(meta.sop_instance_uid):
            self.identity = (meta.sop_class_uid, meta.sop_instance_uid)
        return meta

    def _begin(self) -> None:
        try:
            meta = self._identify()
        except NotPart10 as error:
            self.fail(StorageStatus.CANNOT_UNDERSTAND, str(error))
            return
        if not is_valid_uid(meta.sop_class_uid):
            self.fail(StorageStatus.CANNOT_UNDERSTAND, "File Meta Information names no SOP class")
        elif meta.sop_class_uid not in _SOP_CLASSES:
            self.fail(FailureReason.SOP_CLASS_NOT_SUPPORTED, "SOP class is not supported")
        elif meta.transfer_syntax_uid not in _SYNTAXES:
            self.fail(FailureReason.TRANSFER_SYNTAX_NOT_SUPPORTED, "transfer syntax is not supported")
        else:
            self._arrival = self._arrive(meta)
            data_set = self._head[meta.data_set_at :]
            self._head.clear()
            if data_set:
                self._pass_on(self._arrival, data_set)

    def _arrive(self, meta: FileMeta) -> Arrival:
        request = StoreRequest(
            sop_class_uid=meta.sop_class_uid,
            sop_instance_uid=meta.sop_instance_uid,
            abstract_syntax_uid=meta.sop_class_uid,
            transfer_syntax_uid=meta.transfer_syntax_uid,
        )
        return Arrival(
            self._spool,
            self._gate,
            request,
            source_ae_title=self._source_ae_title,
            association_id=self._association_id,
        )

    def _pass_on(self, arrival: Arrival, fragment: Encoded) -> None:
        try:
            arrival.write(fragment)
        except Exception as error:
            log_without_values(_LOG, "an object was not stored", error)
            self.fail(FailureReason.PROCESSING_FAILURE, "internal error")
