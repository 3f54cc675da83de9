"""Tiny DICOM objects for tests that care about transport and storage, not about what is in the picture."""

from __future__ import annotations

import itertools
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

PATIENT_NAME = "Zyxwv^Identifying"
PATIENT_ID = "ID-7753191"
ROOT = "1.2.826.0.1.3680043.8.498.1"
_serial = itertools.count(1)


def small_object(
    *, sop_class_uid: str = CTImageStorage, transfer_syntax_uid: str = ExplicitVRLittleEndian, **changes: Any
) -> FileDataset:
    """Make an object of 8 x 8 pixels with a UID of its own; ``changes`` are keywords, None deletes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    dataset = FileDataset(
        "", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=meta.TransferSyntaxUID.is_implicit_VR
    )
    values: dict[str, Any] = {
        "SOPClassUID": sop_class_uid,
        "SOPInstanceUID": f"{ROOT}.3.{next(_serial)}",
        "SeriesInstanceUID": f"{ROOT}.2",
        "StudyInstanceUID": f"{ROOT}.1",
        "Modality": "CT",
        "PatientName": PATIENT_NAME,
        "PatientID": PATIENT_ID,
        "InstanceNumber": 1,
        "Rows": 8,
        "Columns": 8,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PixelData": bytes(range(128)),
    }
    for keyword, value in {**values, **changes}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "SOPInstanceUID" in dataset:
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def encoded(dataset: FileDataset) -> bytes:
    """The data set as it travels, in its transfer syntax."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = dataset.file_meta.TransferSyntaxUID.is_implicit_VR
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def saved(dataset: FileDataset, folder: Path) -> Path:
    """Write a Part 10 file."""
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def data_set_of(path: Path) -> bytes:
    """The bytes of a Part 10 file behind its File Meta Information."""
    content = path.read_bytes()
    assert content[128:132] == b"DICM"
    assert content[132:138] == b"\x02\x00\x00\x00UL"
    return content[144 + int.from_bytes(content[140:144], "little") :]


def stream(dataset: FileDataset) -> BytesIO:
    """`encoded` as a stream."""
    return BytesIO(encoded(dataset))
