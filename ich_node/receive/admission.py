"""Whether one C-STORE request may be stored, and the DIMSE status where it may not."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import UID, ImplicitVRLittleEndian

from ich_node.receive.header import FIRST_TAG, StopWhen, header_from_dataset, read_bounded
from ich_node.receive.header_scan import HeaderCache, ScannedHeader, scan
from ich_node.receive.header_values import LONGEST_VALUE_BYTES, Elements
from ich_node.receive.limits import is_valid_uid
from ich_node.study import Instance, StudyHeader

_UID_TAGS = {
    keyword: Tag(keyword)
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
}
_PARSING = threading.Lock()
"""One such header at a time in a process."""


_HEADERS = HeaderCache()


class StorageStatus(IntEnum):
    """Status codes that the receiver answers C-STORE with (PS3.4 table B.2-1, PS3.7 annex C)."""

    SUCCESS = 0x0000
    INVALID_SOP_INSTANCE_UID = 0x0117
    """The UID violates its construction rules (PS3.7 C.5.15)."""
    OUT_OF_RESOURCES = 0xA700
    """The disk is full; the sender should try again later."""
    NOT_STORED = 0xA701
    """Something else kept the object from being stored here."""
    DOES_NOT_MATCH_SOP_CLASS = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class Refusal(Exception):
    """A request that is answered with a failure status.

    Parameters
    ----------
    status
        What the peer gets.
    comment
        Error Comment (0000,0902): at most 64 characters, no identifying values.
    """

    def __init__(self, status: IntEnum, comment: str) -> None:
        super().__init__(f"0x{status:04X} {comment}")
        self.status = status
        self.comment = comment[:64]


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """One C-STORE request as it arrived; nothing in it is trusted."""

    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax_uid: str
    """Of the presentation context that it came over."""
    transfer_syntax_uid: str


def check_request(request: StoreRequest) -> None:
    """Check what can be judged before any of the data set is here.

    Raises
    ------
    Refusal
        With the status that the standard gives for what is wrong.
    """
    if not is_valid_uid(request.sop_instance_uid):
        raise Refusal(StorageStatus.INVALID_SOP_INSTANCE_UID, "SOP Instance UID violates PS3.5 section 9.1")
    if request.sop_class_uid != request.abstract_syntax_uid:
        raise Refusal(StorageStatus.DOES_NOT_MATCH_SOP_CLASS, "SOP class differs from presentation context")


@dataclass(frozen=True, slots=True)
class Examined:
    """A data set that is what its request says, read up to its pixel data."""

    dataset: Elements
    has_pixel_data: bool
    study_instance_uid: str

    def header(self, path: Path) -> tuple[Instance, StudyHeader]:
        """What the data set says of itself; ``path`` goes into the instance.

        Raises
        ------
        StudyRejected
            As `ich_node.receive.header.header_from_dataset`; not for an object that was examined.
        """
        if isinstance(self.dataset, ScannedHeader):
            return _HEADERS.header(self.dataset, path, has_pixel_data=self.has_pixel_data)
        instance, study = header_from_dataset(self.dataset, path)
        return dataclasses.replace(instance, has_pixel_data=self.has_pixel_data), study


def examine_beginning(request: StoreRequest, beginning: bytes) -> Examined | None:
    """Check a data set by its first bytes.

    Returns
    -------
    Examined or None
        None where these bytes do not tell: `examine` is due.

    Raises
    ------
    Refusal
        As `examine`.
    """
    scanned = scan(
        beginning,
        implicit_vr=request.transfer_syntax_uid == ImplicitVRLittleEndian,
        transfer_syntax_uid=request.transfer_syntax_uid,
    )
    return None if scanned is None else _judge(request, *scanned)


def examine(request: StoreRequest, data_set: BinaryIO) -> Examined:
    """Check a data set and read it up to the pixel data.

    Parameters
    ----------
    request
        As it arrived, and passed by `check_request`.
    data_set
        Encoded, without File Meta Information, at its beginning. Large values are passed over, not loaded.

    Raises
    ------
    Refusal
        With the status that the standard gives for what is wrong.
    """
    try:
        with _PARSING:
            dataset, has_pixel_data = _parse(data_set, UID(request.transfer_syntax_uid))
    except Exception:  # pydicom raises whatever the damage leads to
        raise Refusal(StorageStatus.CANNOT_UNDERSTAND, "data set cannot be parsed") from None
    return _judge(request, dataset, has_pixel_data)


def _judge(request: StoreRequest, dataset: Elements, has_pixel_data: bool) -> Examined:
    try:
        own_class, own_instance = _uid(dataset, "SOPClassUID"), _uid(dataset, "SOPInstanceUID")
        study_instance_uid, series_instance_uid = (
            _uid(dataset, "StudyInstanceUID"),
            _uid(dataset, "SeriesInstanceUID"),
        )
    except Exception:  # pydicom raises whatever the damage leads to
        raise Refusal(StorageStatus.CANNOT_UNDERSTAND, "data set cannot be parsed") from None
    if not own_class and not own_instance:
        raise Refusal(StorageStatus.CANNOT_UNDERSTAND, "data set holds no SOP Class and Instance UID")
    if own_class != request.sop_class_uid:
        raise Refusal(StorageStatus.DOES_NOT_MATCH_SOP_CLASS, "SOP Class UID of data set and request differ")
    if own_instance != request.sop_instance_uid:
        raise Refusal(
            StorageStatus.DOES_NOT_MATCH_SOP_CLASS, "SOP Instance UID of data set and request differ"
        )
    for keyword, uid in (
        ("StudyInstanceUID", study_instance_uid),
        ("SeriesInstanceUID", series_instance_uid),
    ):
        if not is_valid_uid(uid):
            raise Refusal(StorageStatus.DOES_NOT_MATCH_SOP_CLASS, f"{keyword} is absent or not valid")
    return Examined(dataset, has_pixel_data, study_instance_uid)


def _parse(data_set: BinaryIO, transfer_syntax: UID) -> tuple[Dataset, bool]:
    """Read the header; whether there is pixel data."""

    def read(bounded: BinaryIO, stop_when: StopWhen) -> Dataset:
        return read_dataset(
            bounded,
            transfer_syntax.is_implicit_VR,
            transfer_syntax.is_little_endian,
            stop_when=stop_when,
            defer_size=LONGEST_VALUE_BYTES,
        )

    dataset, has_pixel_data = read_bounded(data_set, read)
    if any(tag < FIRST_TAG for tag in dataset.keys()):  # noqa: SIM118 - not its elements, which are converted
        raise ValueError("elements of a command set or of File Meta Information")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    return dataset, has_pixel_data


def _uid(dataset: Elements, keyword: str) -> str:
    tag = _UID_TAGS[keyword]
    # The stored bytes: pydicom's conversion warns of a value that breaks the rules, and quotes it.
    element = dataset.get_item(tag) if tag in dataset else None
    value = b"" if element is None else element.value
    return value.decode("latin-1").rstrip("\0 ") if isinstance(value, bytes) else str(value)
