"""Enhanced CT for tests: the little head as frames, and what the worker makes of stored objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as Items

from ich_node.database.queue import ClaimedSeries, StudyClaim
from ich_node.receive.frames import ENHANCED_CT_CLASSES, read_frames_header
from ich_node.receive.header import read_header
from ich_node.report import ReadingReport
from ich_node.study import Series
from ich_node.testing.enhanced import enhanced_ct
from ich_node.testing.functional_groups import EnhancedFrame
from ich_node.volume import load_volume, source_headers
from tests.report_builders import READ_AT, series_finding
from tests.unit.little_head import little_series, stored


def little_frames(**options: Any) -> list[EnhancedFrame]:
    """The slices of `little_head`, from below, as frames to be."""
    return [EnhancedFrame(image=image) for image in little_series(**options)]


def changed(frames: Iterable[EnhancedFrame], **attributes: Any) -> list[EnhancedFrame]:
    """The frames with other attributes in their images."""
    frames = list(frames)
    for frame in frames:
        for keyword, value in attributes.items():
            setattr(frame.image, keyword, value)
    return frames


def told_apart(frames: Iterable[EnhancedFrame], **fields: Any) -> list[EnhancedFrame]:
    """The frames with other fields of `EnhancedFrame`."""
    return [replace(frame, **fields) for frame in frames]


def as_opened(paths: Sequence[Path]) -> Series:
    """Open stored objects of one series as the worker does, multi-frame ones as their frames."""
    images = []
    for path in paths:
        whole, _ = read_header(path)
        images.extend(read_frames_header(path) if whole.sop_class_uid in ENHANCED_CT_CLASSES else (whole,))
    return Series(
        series_instance_uid=images[0].series_instance_uid,
        study_instance_uid=images[0].study_instance_uid,
        instances=tuple(images),
    )


def opened(datasets: Iterable[FileDataset], folder: Path) -> Series:
    """Save objects and open them."""
    return as_opened(stored(datasets, folder))


def little_enhanced(folder: Path, **options: Any) -> Series:
    """The little head as one Enhanced CT object, stored and opened."""
    return opened(enhanced_ct(little_frames(), **options), folder)


def claim_of(paths: Sequence[Path]) -> StudyClaim:
    """The right to read a study of stored objects, as the database would give it."""
    series: dict[str, list[Path]] = {}
    study = ""
    for path in paths:
        instance, _ = read_header(path)
        study = instance.study_instance_uid
        series.setdefault(instance.series_instance_uid, []).append(path)
    return StudyClaim(
        study_instance_uid=study,
        owner="test",
        claim_number=1,
        series=tuple(
            ClaimedSeries(
                series_instance_uid=uid,
                revision=len(members),
                file_names=tuple(path.name for path in members),
                content_hashes=tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in members),
            )
            for uid, members in series.items()
        ),
        still_receiving=False,
        reprocess=None,
    )


def enhanced_report(folder: Path, suspicion: float = 0.9, **options: Any) -> ReadingReport:
    """A hand-made finding on the frames of the little head."""
    volume = load_volume(little_enhanced(folder, **options))
    return ReadingReport(
        finding=series_finding((volume.hu.shape[0], *volume.hu.shape[1:]), suspicion),
        source_images=source_headers(volume),
        frame_numbers=tuple(i.frame_number for i in volume.instances),
        hu=volume.hu,
        spacing_mm=volume.spacing_mm,
        run_number=1,
        read_at=datetime.fromtimestamp(READ_AT.timestamp(), UTC),
    )


def groups_of(dataset: Dataset) -> list[Dataset]:
    """Per-frame functional groups of an object."""
    return list(dataset.PerFrameFunctionalGroupsSequence)


def shared_of(dataset: Dataset) -> Dataset:
    """Shared functional groups of an object."""
    shared: Dataset = dataset.SharedFunctionalGroupsSequence[0]
    return shared


def items(*datasets: Dataset) -> Items:
    """A sequence."""
    return Items(datasets)


def item(**values: Any) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset
