"""Data sets to begin with, as lists of encoded elements, and elements that mean harm."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
)

ROOT = "1.2.826.0.1.3680043.8.498.7"
MARKERS = ("Zyxwv", "Identifying", "7753191")
"""Parts of identifying values; none of them may show in a log."""
_LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT")


@dataclass(frozen=True, kw_only=True)
class SeedDataSet:
    """One object, each of its elements encoded by itself."""

    name: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    elements: tuple[bytes, ...]

    @property
    def encoded(self) -> bytes:
        return b"".join(self.elements)

    @property
    def implicit_vr(self) -> bool:
        return self.transfer_syntax_uid == ImplicitVRLittleEndian


@cache
def seed_data_sets() -> tuple[SeedDataSet, ...]:
    """Small objects as scanners, archives and reporting stations send them."""
    return (
        _seed("ct explicit", _ct()),
        _seed("ct implicit", _with_sequences(_ct()), transfer_syntax_uid=ImplicitVRLittleEndian),
        _seed("ct with sequences", _with_sequences(_ct())),
        _seed("ct with private groups", _with_private_groups(_ct())),
        _seed("ct with odd characters", _with_odd_characters(_ct())),
        _seed("ct jpeg", _compressed(_ct()), transfer_syntax_uid=JPEGLosslessSV1),
        _seed("ct jpeg 2000", _compressed(_ct()), transfer_syntax_uid=JPEG2000Lossless),
        _seed("ct rle", _with_sequences(_compressed(_ct())), transfer_syntax_uid=RLELossless),
        _seed("enhanced ct", _enhanced(_ct()), sop_class_uid=EnhancedCTImageStorage),
        _seed(
            "enhanced ct implicit",
            _enhanced(_ct()),
            sop_class_uid=EnhancedCTImageStorage,
            transfer_syntax_uid=ImplicitVRLittleEndian,
        ),
        _seed("secondary capture", _color(_ct()), sop_class_uid=SecondaryCaptureImageStorage),
        _seed("report", _report(), sop_class_uid=BasicTextSRStorage),
    )


def element(tag: int, vr: bytes, value: bytes, *, implicit_vr: bool, length: int | None = None) -> bytes:
    """Encode one element in little endian; ``length`` may lie."""
    claimed = len(value) if length is None else length
    numbers = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit_vr:
        return numbers + struct.pack("<I", claimed & 0xFFFFFFFF) + value
    if vr in _LONG_VRS:
        return numbers + vr + b"\0\0" + struct.pack("<I", claimed & 0xFFFFFFFF) + value
    return numbers + vr + struct.pack("<H", claimed & 0xFFFF) + value


def part10(seed: SeedDataSet, encoded: bytes) -> bytes:
    """A DICOM file (PS3.10 section 7.1) around a data set."""

    def meta(number: int, vr: bytes, value: bytes) -> bytes:
        return element(0x00020000 | number, vr, value, implicit_vr=False)

    elements = (
        meta(0x0001, b"OB", b"\0\1")
        + meta(0x0002, b"UI", _padded(seed.sop_class_uid))
        + meta(0x0003, b"UI", _padded(seed.sop_instance_uid))
        + meta(0x0010, b"UI", _padded(seed.transfer_syntax_uid))
    )
    length = meta(0x0000, b"UL", len(elements).to_bytes(4, "little"))
    return bytes(128) + b"DICM" + length + elements + encoded


def _padded(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def nested_sequences(depth: int, *, implicit_vr: bool) -> bytes:
    """A sequence of undefined length in a sequence of undefined length, and so on."""
    opening = element(
        0x0040A730, b"SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", implicit_vr=implicit_vr, length=-1
    )
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return opening * depth + closing * depth


def empty_items(count: int, *, implicit_vr: bool) -> bytes:
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * count + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return element(0x00081115, b"SQ", items, implicit_vr=implicit_vr, length=-1)


def harmful_elements(implicit_vr: bool) -> tuple[bytes, ...]:
    """Elements that are valid by their form, or nearly, and costly or misleading to read."""

    def one(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
        return element(tag, vr, value, implicit_vr=implicit_vr, length=length)

    return (
        nested_sequences(5, implicit_vr=implicit_vr),
        nested_sequences(400, implicit_vr=implicit_vr),
        empty_items(300, implicit_vr=implicit_vr),
        one(0x00091001, b"OB", b"short", 0xFFFFFFFE),
        one(0x00091002, b"UN", b"\xfe\xff\x00\xe0\x04\0\0\0", 0xFFFFFFFF),
        one(0x00080005, b"CS", b"ISO 2022 IR 87\\ISO 2022 IR 999"),
        one(0x00080005, b"CS", b"\\" * 200),
        one(0x00100010, b"PN", b"\x1b$)C" * 30 + b"Zyxwv^Identifying=7753191"),
        one(0x0020000D, b"UI", b"1.2.3/../../etc/passwd"),
        one(0x00080018, b"UI", b"1.02.3"),
        one(0x00280010, b"US", b"\xff\xff\xff"),
        one(0x00280008, b"IS", b"99999999999999999999"),
        one(0x00200032, b"DS", b"1e999\\nan\\-inf"),
        one(0x00280030, b"DS", b"0\\0"),
        one(0xFFFEE00D, b"UN", b""),
        one(0xFFFEE000, b"UN", b"", 0xFFFFFFFF),
        one(0xFFFEE0DD, b"UN", b""),
        one(0x7FE00010, b"OW", b"", 0xFFFFFFFF),
        one(0x52009230, b"SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", 0xFFFFFFFF),
        one(0x00000000, b"UL", b"\0\0\0\0"),
        one(0x00020010, b"UI", b"1.2.840.10008.1.2.1.99"),
    )


def _seed(
    name: str,
    dataset: Dataset,
    *,
    sop_class_uid: str = CTImageStorage,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> SeedDataSet:
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = f"{ROOT}.3.{sum(name.encode())}"
    implicit_vr = UID(transfer_syntax_uid).is_implicit_VR
    return SeedDataSet(
        name=name,
        sop_class_uid=str(sop_class_uid),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        transfer_syntax_uid=str(transfer_syntax_uid),
        elements=tuple(_encoded(dataset, one.tag, implicit_vr) for one in dataset),
    )


def _encoded(dataset: Dataset, tag: Any, implicit_vr: bool) -> bytes:
    character_set = Dataset()
    if "SpecificCharacterSet" in dataset and tag > 0x00080005:
        character_set.SpecificCharacterSet = dataset.SpecificCharacterSet
    whole = Dataset({**{one.tag: one for one in character_set}, tag: dataset[tag]})
    return _written(whole, implicit_vr)[len(_written(character_set, implicit_vr)) :]


def _written(dataset: Dataset, implicit_vr: bool) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, implicit_vr
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def _ct() -> Dataset:
    dataset = Dataset()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate, dataset.StudyTime = "20240229", "235959.5"
    dataset.Modality = "CT"
    dataset.SeriesDescription = "Head 5.0"
    dataset.PatientName = "Zyxwv^Identifying"
    dataset.PatientID = "ID-7753191"
    dataset.AccessionNumber = "A7753191"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.2"
    dataset.SeriesNumber, dataset.InstanceNumber = 2, 17
    dataset.ImagePositionPatient = [-125, -125.5, 40]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = 8
    dataset.PixelSpacing = [0.5, 0.5]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = bytes(range(128))
    dataset["PixelData"].VR = "OW"
    return dataset


def _code(meaning: str, depth: int = 0, *, undefined: bool = False) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113014", "DCM", meaning
    if depth:
        code.ConceptNameCodeSequence = Sequence([_code(meaning, depth - 1, undefined=undefined)])
        code["ConceptNameCodeSequence"].is_undefined_length = undefined
    code.is_undefined_length_sequence_item = undefined
    return code


def _with_sequences(dataset: Dataset) -> Dataset:
    dataset.ProcedureCodeSequence = Sequence([_code("defined", 2)])
    dataset.RequestAttributesSequence = Sequence([_code("undefined", 3, undefined=True), Dataset()])
    dataset["RequestAttributesSequence"].is_undefined_length = True
    return dataset


def _with_private_groups(dataset: Dataset) -> Dataset:
    dataset.add_new(0x00091001, "UN", b"\x01\x02\x03\x04")
    dataset.private_block(0x0019, "VENDOR OF SCANNERS", create=True).add_new(0x02, "LO", "tube 7")
    dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"SV10" + bytes(60))
    return dataset


def _with_odd_characters(dataset: Dataset) -> Dataset:
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Zyxwv^Identifying=山田^太郎=やまだ^たろう"
    return dataset


def _compressed(dataset: Dataset) -> Dataset:
    dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(58) + b"\xff\xd9", b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def _enhanced(dataset: Dataset) -> Dataset:
    dataset.NumberOfFrames = 4
    dataset.PixelData = bytes(512)
    dataset["PixelData"].VR = "OW"
    frames = []
    for number in range(4):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 5 * number]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    return dataset


def _color(dataset: Dataset) -> Dataset:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = bytes(192)
    dataset["PixelData"].VR = "OB"
    return dataset


def _report() -> Dataset:
    dataset = Dataset()
    dataset.Modality = "SR"
    dataset.PatientName, dataset.PatientID = "Zyxwv^Identifying", "ID-7753191"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.4"
    dataset.ContentSequence = Sequence([_code("text", 4), _code("text", 4, undefined=True)])
    return dataset
