"""What a header says: one stored object becomes an `Instance` and the `StudyHeader` it carries.

Scanners write odd headers, so each attribute stands alone: one that cannot be parsed is absent, and only a
missing identity (SOP, Series or Study Instance UID) rejects the object. The values are decoded here from the
stored bytes and not by pydicom's element conversion, which warns or raises on values that a node must live
with, and costs half as much again.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.study import Instance, StudyHeader

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP Class of a DICOMDIR; vendors also export it as DIRFILE beside the images."""
MAX_INFLATED_BYTES = 256 * 2**20
"""A Deflated dataset (PS3.5 A.5) that grows beyond this is refused before it is inflated whole."""
MAX_TEXT_CHARACTERS = 324
"""Longest text kept: five PN components in three groups; longer ones are cut, never refused."""

_PIXEL_DATA_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_DATA_TAGS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_FIRST_PIXEL_GROUP_TAG = 0x7FE00000
_KEYWORDS = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "Modality",
    "StudyDescription",
    "SeriesDescription",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "ContrastBolusAgent",
    "BodyPartExamined",
    "SliceThickness",
    "KVP",
    "ProtocolName",
    "GantryDetectorTilt",
    "ConvolutionKernel",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
)


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


_TAGS = {keyword: _tag(keyword) for keyword in _KEYWORDS}
_US_KEYWORDS = frozenset(("Rows", "Columns", "SamplesPerPixel"))
_TAG_LIST: list[Any] = list(_TAGS.values())
_LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT")
_UID = re.compile(r"[0-9.]{1,64}")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


def read_header(path: Path) -> tuple[Instance, StudyHeader]:
    """Read the header of a Part 10 file, up to its pixel data and no further.

    Parameters
    ----------
    path
        A DICOM Part 10 file (PS3.10), any transfer syntax.

    Returns
    -------
    tuple of Instance and StudyHeader
        The second holds identifying values: never log it.

    Raises
    ------
    StudyRejected
        ``NOT_AN_IMAGE`` where the file is no DICOM file, is damaged before its pixel data, or is a DICOMDIR;
        ``MISSING_ATTRIBUTE`` where the identity is missing; ``TOO_LARGE`` where a Deflated dataset grows too
        far.
    """
    stopped_at: list[tuple[int, int]] = []

    def at_pixel_data(tag: int, _vr: str | None, length: int) -> bool:
        if tag < _FIRST_PIXEL_GROUP_TAG:
            return False
        stopped_at.append((tag, length))
        return True

    with path.open("rb") as file:
        _refuse_inflation(file.read(1024), path)
        try:
            dataset = _read(file, at_pixel_data)
        except Exception as error:
            # pydicom raises whatever the damage leads to: struct.error, EOFError, zlib.error, ...
            raise StudyRejected(
                RejectionReason.NOT_AN_IMAGE,
                f"The file is not a readable DICOM file ({type(error).__name__}).",
            ) from error
    instance, study = header_from_dataset(dataset, path)
    # An element of undefined length (encapsulated) has length 0xFFFFFFFF here.
    has_pixel_data = any(tag in _PIXEL_DATA_TAGS and length > 0 for tag, length in stopped_at)
    return dataclasses.replace(instance, has_pixel_data=has_pixel_data), study


def header_from_dataset(dataset: Dataset, path: Path) -> tuple[Instance, StudyHeader]:
    """Take the header out of a dataset that is in memory.

    Parameters
    ----------
    dataset
        With its ``file_meta`` where it has one: it names the transfer syntax.
    path
        Where the object's bytes lie, or will lie.

    Returns
    -------
    tuple of Instance and StudyHeader
        The second holds identifying values: never log it.

    Raises
    ------
    StudyRejected
        ``NOT_AN_IMAGE`` for a DICOMDIR, ``MISSING_ATTRIBUTE`` where the identity is missing.
    """
    values = _Values(dataset)
    sop_class_uid = values.uid("SOPClassUID") or values.meta_uid("MediaStorageSOPClassUID")
    if sop_class_uid == MEDIA_STORAGE_DIRECTORY:
        raise StudyRejected(
            RejectionReason.NOT_AN_IMAGE, "The file is a directory of other files (DICOMDIR), not an image."
        )
    study_instance_uid = values.identity("StudyInstanceUID")
    rows, columns = values.integer("Rows"), values.integer("Columns")
    instance = Instance(
        path=path,
        sop_instance_uid=values.identity("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
        sop_class_uid=sop_class_uid,
        transfer_syntax_uid=values.meta_uid("TransferSyntaxUID"),
        series_instance_uid=values.identity("SeriesInstanceUID"),
        study_instance_uid=study_instance_uid,
        modality=values.text("Modality").upper(),
        image_type=tuple(value.upper() for value in values.strings("ImageType")),
        instance_number=values.integer("InstanceNumber"),
        acquisition_number=values.integer("AcquisitionNumber"),
        rows=rows if rows else None,
        columns=columns if columns else None,
        number_of_frames=values.integer("NumberOfFrames") or 1,
        samples_per_pixel=values.integer("SamplesPerPixel"),
        image_position_patient_mm=values.triple("ImagePositionPatient"),
        image_orientation_patient=values.sextuple("ImageOrientationPatient"),
        pixel_spacing_mm=values.positive_pair("PixelSpacing"),
        slice_thickness_mm=values.number("SliceThickness"),
        gantry_detector_tilt_deg=values.number("GantryDetectorTilt"),
        kvp=values.number("KVP"),
        convolution_kernel=tuple(value for value in values.strings("ConvolutionKernel") if value),
        contrast_bolus_agent=values.text("ContrastBolusAgent"),
        body_part_examined=values.text("BodyPartExamined"),
        study_description=values.text("StudyDescription"),
        series_description=values.text("SeriesDescription"),
        protocol_name=values.text("ProtocolName"),
        series_number=values.integer("SeriesNumber"),
        has_pixel_data=any(keyword in dataset for keyword in _PIXEL_DATA_KEYWORDS),
    )
    study = StudyHeader(
        study_instance_uid=study_instance_uid,
        patient_id=values.text("PatientID"),
        patient_name=values.text("PatientName"),
        patient_birth_date=values.text("PatientBirthDate"),
        patient_sex=values.text("PatientSex"),
        accession_number=values.text("AccessionNumber"),
        study_date=values.text("StudyDate"),
        study_time=values.text("StudyTime"),
        study_description=values.text("StudyDescription"),
    )
    return instance, study


def _read(file: BinaryIO, stop_when: Callable[[BaseTag, str | None, int], bool]) -> Dataset:
    file.seek(0)
    try:
        return read_partial(file, stop_when=stop_when, specific_tags=_TAG_LIST)
    except Warning:
        # Only where warnings are errors. Not the usual way, because catch_warnings is not safe among threads.
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_partial(file, stop_when=stop_when, specific_tags=_TAG_LIST)


def _refuse_inflation(start: bytes, path: Path) -> None:
    """Inflate a Deflated dataset in bounded memory once, so that pydicom may do it unbounded afterwards."""
    if DeflatedExplicitVRLittleEndian.encode() not in start:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        file.seek(_end_of_meta(start))
        inflated = 0
        while chunk := inflater.unconsumed_tail or file.read(2**16):
            try:
                inflated += len(inflater.decompress(chunk, 2**20))
            except zlib.error:
                return  # pydicom says what is wrong with it
            if inflated > MAX_INFLATED_BYTES:
                raise StudyRejected(
                    RejectionReason.TOO_LARGE,
                    f"The compressed dataset inflates to more than {MAX_INFLATED_BYTES // 2**20} MiB.",
                )


def _end_of_meta(start: bytes) -> int:
    """Where the File Meta Information (PS3.10 7.1) ends; its group length may be absent or wrong."""
    at = len(b"DICM") + 128
    while start[at : at + 2] == b"\x02\x00" and at + 12 <= len(start):
        is_long = start[at + 4 : at + 6] in _LONG_VRS
        (length,) = struct.unpack_from("<L" if is_long else "<H", start, at + (8 if is_long else 6))
        at += (12 if is_long else 8) + length
    return at


class _Values:
    """Tolerant access to one dataset: whatever cannot be parsed is absent."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._meta: Any = getattr(dataset, "file_meta", None)
        self._encodings = self._character_sets()

    def _character_sets(self) -> list[str]:
        names = self._strings("SpecificCharacterSet", ["iso8859"])
        try:
            return list(convert_encodings(names or [""]))
        except Exception:  # pydicom warns or raises on an unknown set; Latin-1 at least loses no byte
            return ["latin_1"]

    def _element(self, keyword: str) -> Any:
        try:
            return self._dataset.get_item(_TAGS[keyword])
        except Exception:
            return None

    def _strings(self, keyword: str, encodings: list[str]) -> list[str]:
        element = self._element(keyword)
        value = getattr(element, "value", None)
        if value is None:
            return []
        if isinstance(value, bytes):
            parts = _decode(value, encodings).split("\\")
        elif isinstance(value, str) or not hasattr(value, "__iter__"):
            parts = [str(value)]
        else:
            parts = [str(part) for part in value]
        return [_CONTROL_CHARACTERS.sub(" ", part).strip()[:MAX_TEXT_CHARACTERS] for part in parts]

    def strings(self, keyword: str) -> list[str]:
        parts = self._strings(keyword, self._encodings)
        return [] if parts == [""] else parts

    def text(self, keyword: str) -> str:
        element = self._element(keyword)
        value = getattr(element, "value", None)
        # PersonName iterates over its characters' groups, not over values.
        if value is not None and getattr(element, "VR", "") == "PN" and not isinstance(value, bytes):
            return _CONTROL_CHARACTERS.sub(" ", str(value)).strip()[:MAX_TEXT_CHARACTERS]
        return " ".join(self.strings(keyword)).strip()[:MAX_TEXT_CHARACTERS]

    def numbers(self, keyword: str) -> tuple[float, ...]:
        element = self._element(keyword)
        value = getattr(element, "value", None)
        # Implicit VR says nothing about a value, and the two bytes of "12" are as good a US as any: go by the
        # keyword.
        binary_vrs = (None, "US", "SS", "UN") if keyword in _US_KEYWORDS else ("US", "SS")
        if isinstance(element, RawDataElement) and isinstance(value, bytes) and element.VR in binary_vrs:
            binary = _unsigned(value, "<" if element.is_little_endian else ">")
            if binary is not None:
                return (float(binary),)
        try:
            parsed = tuple(float(part) for part in self.strings(keyword))
        except ValueError:
            return ()
        return parsed if all(math.isfinite(number) for number in parsed) else ()

    def number(self, keyword: str) -> float | None:
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def integer(self, keyword: str) -> int | None:
        number = self.number(keyword)
        if number is None or not number.is_integer() or abs(number) >= 2**31:
            return None
        return int(number)

    def triple(self, keyword: str) -> tuple[float, float, float] | None:
        numbers = self.numbers(keyword)
        return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None

    def sextuple(self, keyword: str) -> tuple[float, float, float, float, float, float] | None:
        n = self.numbers(keyword)
        return (n[0], n[1], n[2], n[3], n[4], n[5]) if len(n) == 6 else None

    def positive_pair(self, keyword: str) -> tuple[float, float] | None:
        numbers = self.numbers(keyword)
        return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None

    def uid(self, keyword: str) -> str:
        value = self.text(keyword)
        return value if _UID.fullmatch(value) else ""

    def meta_uid(self, keyword: str) -> str:
        try:
            value = str(getattr(self._meta, keyword, "")).strip(" \0")
        except Exception:
            return ""
        return value if _UID.fullmatch(value) else ""

    def identity(self, keyword: str, meta_keyword: str = "") -> str:
        value = self.uid(keyword) or (self.meta_uid(meta_keyword) if meta_keyword else "")
        if not value:
            tag = _TAGS[keyword]
            raise StudyRejected(
                RejectionReason.MISSING_ATTRIBUTE,
                f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is absent or no valid UID.",
            )
        return value


def _decode(value: bytes, encodings: list[str]) -> str:
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    try:
        return decode_bytes(value, encodings, {ord(c) for c in "\\^="})
    except Exception:  # a wrong Specific Character Set: show what can be shown
        return value.decode("latin_1")


def _unsigned(value: bytes, endian: str) -> int | None:
    """US as it is stored; None where the bytes are digits of a string VR."""
    if len(value) != 2:
        return None
    return int(struct.unpack(endian + "H", value)[0])
