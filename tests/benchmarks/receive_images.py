"""The files that the receiving benchmark sends."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from ich_node.testing.series import SeriesOptions, ct_series, derived_uid

SLICES_PER_SERIES = 100
SLICE_SIZE = 512
SLICE_BYTES = SLICE_SIZE * SLICE_SIZE * 2
"""Of the pixels of one slice; the file is a little longer."""
SMALL_SIZE = 64
_SPACING_MM = (1.5, 0.45, 0.45)


def write_slices(folder: Path, count: int) -> list[Path]:
    """Write CT slices of 512 x 512 signed 16 bit random pixels, Explicit VR Little Endian.

    Every 100 are a gapless series in a study of its own, as when a scanner forwards heads.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(20)
    paths: list[Path] = []
    for study, first in enumerate(range(0, count, SLICES_PER_SERIES)):
        shape = (min(SLICES_PER_SERIES, count - first), SLICE_SIZE, SLICE_SIZE)
        hu = random.integers(-1024, 3072, shape, dtype=np.int16)
        for image in ct_series(hu, _SPACING_MM, _study(f"receive {study}")):
            paths.append(folder / f"{len(paths):05d}.dcm")
            image.save_as(paths[-1], enforce_file_format=True)
    return paths


def split(paths: Sequence[Path], senders: int, folder: Path) -> list[Path]:
    """Make a folder for each sender with an even, contiguous part of the files, as hard links."""
    parts = []
    for sender in range(senders):
        part = folder / str(sender)
        part.mkdir(parents=True)
        for path in paths[sender * len(paths) // senders : (sender + 1) * len(paths) // senders]:
            (part / path.name).hardlink_to(path)
        parts.append(part)
    return parts


def write_small_objects(folder: Path, count: int) -> list[Path]:
    """Write CT images of 64 x 64, each in a study of its own."""
    folder.mkdir(parents=True)
    hu = np.random.default_rng(21).integers(-1024, 3072, (count, 1, SMALL_SIZE, SMALL_SIZE), dtype=np.int16)
    paths = []
    for number in range(count):
        (image,) = ct_series(hu[number], _SPACING_MM, _study(f"receive small {number}"))
        paths.append(folder / f"{number}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_large_object(path: Path, pixel_bytes: int) -> Path:
    """Write a multi-frame Enhanced CT image (PS3.3 A.38) of zeros, whose pixels take no space on disk."""
    frames = pixel_bytes // SLICE_BYTES
    _enhanced_ct(frames).save_as(path, enforce_file_format=True)
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, frames * SLICE_BYTES))
        file.truncate(file.tell() + frames * SLICE_BYTES)
    return path


def _study(name: str) -> SeriesOptions:
    return SeriesOptions(name=name, signed=True, patient_id=name.upper(), accession_number=name.upper())


def _enhanced_ct(frames: int) -> FileDataset:
    (image,) = ct_series(np.zeros((1, SLICE_SIZE, SLICE_SIZE)), _SPACING_MM, _study("receive large"))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(derived_uid("receive large", "object"))
    large = FileDataset("", image, file_meta=meta, preamble=b"\0" * 128)
    assert image.SOPClassUID == CTImageStorage
    large.SOPClassUID, large.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    large.NumberOfFrames = frames
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(image, "PixelSpacing", "SliceThickness")]
    shared.PlaneOrientationSequence = [_item(image, "ImageOrientationPatient")]
    shared.PixelValueTransformationSequence = [_item(image, "RescaleIntercept", "RescaleSlope")]
    large.SharedFunctionalGroupsSequence = [shared]
    large.PerFrameFunctionalGroupsSequence = list(itertools.islice(_frame_groups(), frames))
    for keyword in (
        "PixelSpacing",
        "SliceThickness",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "RescaleIntercept",
        "RescaleSlope",
        "PixelData",
    ):
        delattr(large, keyword)
    return large


def _frame_groups() -> Iterator[Dataset]:
    for number in itertools.count(1):
        content, position, group = Dataset(), Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber = "1", number
        position.ImagePositionPatient = [-115.2, -115.2, number * _SPACING_MM[0]]
        group.FrameContentSequence, group.PlanePositionSequence = [content], [position]
        yield group


def _item(image: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        item[keyword] = image[keyword]
    return item
