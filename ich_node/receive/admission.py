"""Whether one C-STORE request may be stored, and the DIMSE status where it may not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from ich_node.errors import StudyRejected
from ich_node.receive.header import header_from_dataset
from ich_node.receive.limits import is_valid_uid
from ich_node.study import Instance, StudyHeader

_PIXEL_DATA_GROUP = 0x7FE0
_PIXEL_DATA_ELEMENTS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_UID_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID")


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
        What the sender gets.
    comment
        Error Comment (0000,0902): at most 64 characters, no identifying values.
    """

    def __init__(self, status: StorageStatus, comment: str) -> None:
        super().__init__(f"0x{status:04X} {comment}")
        self.status = status
        self.comment = comment[:64]


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """One C-STORE request as it arrived; nothing in it is trusted."""

    data_set: BytesIO
    """Encoded, without File Meta Information."""
    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax_uid: str
    """Of the presentation context that it came over."""
    transfer_syntax_uid: str


def examine(request: StoreRequest, path: Path) -> tuple[Instance, StudyHeader]:
    """Check a request and read its header up to the pixel data.

    Parameters
    ----------
    request
        As it arrived.
    path
        Goes into the instance; nothing is read or written there.

    Returns
    -------
    tuple of Instance and StudyHeader
        What the data set says of itself.

    Raises
    ------
    Refusal
        With the status that the standard gives for what is wrong.
    """
    if not is_valid_uid(request.sop_instance_uid):
        raise Refusal(StorageStatus.INVALID_SOP_INSTANCE_UID, "SOP Instance UID violates PS3.5 section 9.1")
    if request.sop_class_uid != request.abstract_syntax_uid:
        raise Refusal(StorageStatus.DOES_NOT_MATCH_SOP_CLASS, "SOP class differs from presentation context")
    try:
        dataset, has_pixel_data = _parse(request.data_set, UID(request.transfer_syntax_uid))
        own_class, own_instance = _uid(dataset, "SOPClassUID"), _uid(dataset, "SOPInstanceUID")
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
    for keyword in _UID_KEYWORDS:
        if not is_valid_uid(_uid(dataset, keyword)):
            raise Refusal(StorageStatus.DOES_NOT_MATCH_SOP_CLASS, f"{keyword} is absent or not valid")
    try:
        instance, study = header_from_dataset(dataset, path)
    except StudyRejected as rejection:
        raise Refusal(StorageStatus.CANNOT_UNDERSTAND, rejection.detail) from None
    return dataclasses.replace(instance, has_pixel_data=has_pixel_data), study


def _parse(data_set: BytesIO, transfer_syntax: UID) -> tuple[Dataset, bool]:
    stopped_at: list[tuple[int, int]] = []

    def at_pixel_data(tag: int, _vr: str | None, length: int) -> bool:
        if tag >> 16 < _PIXEL_DATA_GROUP:
            return False
        stopped_at.append((tag, length))
        return True

    data_set.seek(0)
    dataset = read_dataset(
        data_set, transfer_syntax.is_implicit_VR, transfer_syntax.is_little_endian, stop_when=at_pixel_data
    )
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    # An element of undefined length (encapsulated) has length 0xFFFFFFFF here.
    return dataset, any(tag in _PIXEL_DATA_ELEMENTS and length > 0 for tag, length in stopped_at)


def _uid(dataset: Dataset, keyword: str) -> str:
    if keyword not in dataset:
        return ""
    # The stored bytes: pydicom's conversion warns of a value that breaks the rules, and quotes it.
    value = dataset.get_item(keyword).value
    return value.decode("latin-1").rstrip("\0 ") if isinstance(value, bytes) else str(value)
