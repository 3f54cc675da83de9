"""What a header says: one stored object becomes an `Instance` and the `StudyHeader` it carries.

Scanners write odd headers, so each attribute stands alone: one that cannot be parsed is absent, and only a
missing identity (SOP, Series or Study Instance UID) rejects the object. What multi-frame objects say of each
frame is left to `ich_node.receive.frames`, so that a header costs the same for one frame and for thousands.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.receive.header_values import Elements, HeaderValues, tag_of
from ich_node.study import Instance, StudyHeader

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP Class of a DICOMDIR; vendors also export it as DIRFILE beside the images."""
MAX_INFLATED_BYTES = 256 * 2**20
"""A Deflated dataset (PS3.5 A.5) that grows beyond this is refused before it is inflated whole."""

FIRST_TAG = 0x00080000
"""A data set holds nothing before it (PS3.5 section 7.1): that would be read as part of the file's own header."""
_MOST_READS = 300_000
"""pydicom reads one to three times for an element or item. So many take some seconds and 100 MiB."""
_MOST_BYTES = 2**26
"""Of values that are no longer than that, of items, and of element headers."""
_PIXEL_DATA_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_DATA_TAGS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_FIRST_PIXEL_GROUP_TAG = 0x7FE00000
_FUNCTIONAL_GROUPS_TAGS = frozenset((0x52009229, 0x52009230))
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
_TAG_LIST: list[Any] = [tag_of(keyword) for keyword in _KEYWORDS]
HEADER_TAGS = frozenset(_TAG_LIST)
"""What `header_from_dataset` looks at."""
LAST_TAG = max(HEADER_TAGS)
StopWhen: TypeAlias = Callable[[BaseTag, str | None, int], bool]
"""Whether pydicom reads no further, by an element's tag, VR and length."""
_LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def read_header(path: Path) -> tuple[Instance, StudyHeader]:
    """Read the header of a Part 10 file, up to its functional groups or pixel data and no further.

    Parameters
    ----------
    path
        A DICOM Part 10 file (PS3.10), any transfer syntax.

    Returns
    -------
    tuple of Instance and StudyHeader
        The second holds identifying values: never log it. An object with functional groups counts as one with
        pixel data, which would stand behind thousands of items: `read_frames_header` looks.

    Raises
    ------
    StudyRejected
        ``NOT_AN_IMAGE`` where the file is no DICOM file, is damaged before its pixel data, or is a DICOMDIR;
        ``MISSING_ATTRIBUTE`` where the identity is missing; ``TOO_LARGE`` where a Deflated dataset grows too
        far.
    """
    with path.open("rb") as file:
        refuse_inflation(file.read(1024), path)
        try:
            file.seek(0)
            dataset, has_pixel_data = read_bounded(file, _read)
        except Exception as error:
            # pydicom raises whatever the damage leads to: struct.error, EOFError, zlib.error, ...
            raise StudyRejected(
                RejectionReason.NOT_AN_IMAGE,
                f"The file is not a readable DICOM file ({type(error).__name__}).",
            ) from error
    instance, study = header_from_dataset(dataset, path)
    return dataclasses.replace(instance, has_pixel_data=has_pixel_data), study


def ends_header(tag: int) -> bool:
    """Whether an element is the pixel data, or what multi-frame objects say of each frame, which comes before it."""
    return tag >= _FIRST_PIXEL_GROUP_TAG or tag in _FUNCTIONAL_GROUPS_TAGS


def promises_pixel_data(tag: int, length: int) -> bool:
    """Whether the element that ended a header says that there are pixels; an undefined length is 0xFFFFFFFF."""
    return (tag in _PIXEL_DATA_TAGS and length > 0) or tag in _FUNCTIONAL_GROUPS_TAGS


class _TooLong(Exception):
    """A header is built of more pieces than is allowed."""


class _Bounded:
    """A data set of which only so many pieces, and so many bytes, can be read.

    An empty item takes 8 bytes of a data set and some 600 of memory: a header of many is built to hurt. So is
    one with a huge value in an item, which pydicom loads.
    """

    def __init__(self, data_set: BinaryIO) -> None:
        self._data_set = data_set
        self._reads = self._bytes = 0
        self.is_exhausted = False
        self.seek, self.tell = data_set.seek, data_set.tell
        at = data_set.tell()
        self._end = data_set.seek(0, io.SEEK_END)
        data_set.seek(at)

    def read(self, size: int = -1, /) -> bytes:
        rest = max(0, self._end - self._data_set.tell())  # a length that is damaged claims more
        wanted = rest if size < 0 else min(size, rest)
        self._reads += 1
        self._bytes += wanted
        if self._reads > _MOST_READS or self._bytes > _MOST_BYTES:
            self.is_exhausted = True  # for pydicom makes other errors of ours in places
            raise _TooLong
        return self._data_set.read(wanted)


def read_bounded(data_set: BinaryIO, read: Callable[[BinaryIO, StopWhen], Dataset]) -> tuple[Dataset, bool]:
    """Read a header in bounded memory.

    What stands between the header and the pixel data is only passed over. Where that is too long to be (the
    contours of a radiotherapy structure set have a hundred thousand items), pixel data is assumed, so that an
    image is never taken for something else.

    Parameters
    ----------
    data_set
        At its beginning.
    read
        Reads it with pydicom.

    Returns
    -------
    tuple of Dataset and bool
        With whether there is pixel data.
    """
    began = data_set.tell()
    stopped_at: list[tuple[int, int]] = []

    def until(is_end: Callable[[int], bool]) -> StopWhen:
        def stop_when(tag: int, _vr: str | None, length: int) -> bool:
            if is_end(tag):
                stopped_at.append((tag, length))
                return True
            return False

        return stop_when

    bounded = _Bounded(data_set)
    try:
        dataset = read(cast(BinaryIO, bounded), until(ends_header))
    except Exception:
        if not bounded.is_exhausted:
            raise
        data_set.seek(began)
        return read(cast(BinaryIO, _Bounded(data_set)), until(lambda tag: tag > LAST_TAG)), True
    # An element of undefined length (encapsulated) has length 0xFFFFFFFF here.
    return dataset, bool(stopped_at) and promises_pixel_data(*stopped_at[-1])


def header_from_dataset(dataset: Elements, path: Path) -> tuple[Instance, StudyHeader]:
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
    values = HeaderValues(dataset)
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


def _read(file: BinaryIO, stop_when: StopWhen) -> Dataset:
    file.seek(0)
    try:
        return read_partial(file, stop_when=stop_when, specific_tags=_TAG_LIST)
    except Warning:
        # Only where warnings are errors. Not the usual way, because catch_warnings is not safe among threads.
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_partial(file, stop_when=stop_when, specific_tags=_TAG_LIST)


def refuse_inflation(start: bytes, path: Path) -> None:
    """Inflate a Deflated dataset in bounded memory once, so that pydicom may do it unbounded afterwards.

    Parameters
    ----------
    start
        The first KiB of the file.

    Raises
    ------
    StudyRejected
        ``TOO_LARGE``.
    """
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


def inflated(path: Path) -> BytesIO:
    """Inflate the dataset of a Deflated file that `refuse_inflation` let pass."""
    content = path.read_bytes()
    return BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[_end_of_meta(content[:1024]) :]))


def _end_of_meta(start: bytes) -> int:
    """Where the File Meta Information (PS3.10 7.1) ends; its group length may be absent or wrong."""
    at = len(b"DICM") + 128
    while start[at : at + 2] == b"\x02\x00" and at + 12 <= len(start):
        is_long = start[at + 4 : at + 6] in _LONG_VRS
        (length,) = struct.unpack_from("<L" if is_long else "<H", start, at + (8 if is_long else 6))
        at += (12 if is_long else 8) + length
    return at
