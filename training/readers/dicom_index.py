"""Headers of all DICOM files below a folder, read once and kept.

An index of hundreds of thousands of files takes a while to build: processes share the work, and a file in the cache
folder keeps what was read, by name and size, so that a later call reads only what is new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from ich_node.decoding import DecodeLimits, MissingAttributes, StoredImage, open_image
from ich_node.decoding.stored_image import named, number, quietly
from ich_node.errors import StudyRejected, TransientError
from ich_node.study import Instance
from training.readers.faults import FaultKind, ReadOptions
from training.whole_file import written_whole

_FORMAT = 1
_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
_CHUNK = 256
_FEW_FILES = 2000
"""Fewer are read before a second process has started."""
_UIDS = {
    "series_instance_uid": "SeriesInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "sop_instance_uid": "SOPInstanceUID",
    "sop_class_uid": "SOPClassUID",
}
_TEXTS = {
    "modality": "Modality",
    "contrast_bolus_agent": "ContrastBolusAgent",
    "body_part_examined": "BodyPartExamined",
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "protocol_name": "ProtocolName",
}
_INTEGERS = {
    "instance_number": "InstanceNumber",
    "acquisition_number": "AcquisitionNumber",
    "series_number": "SeriesNumber",
    "samples_per_pixel": "SamplesPerPixel",
}
_IDENTITY = ("sop_instance_uid", "series_instance_uid")
_KEYWORDS = (
    *_UIDS.values(),
    *_TEXTS.values(),
    *_INTEGERS.values(),
    "SpecificCharacterSet",
    "PatientID",
    "ImageType",
    "ConvolutionKernel",
    "SliceThickness",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
)
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Instance) if f.default is not dataclasses.MISSING}


@dataclass(frozen=True, kw_only=True)
class IndexedFile:
    """One image file that can be decoded as far as its header and length tell."""

    instance: Instance
    patient_id: str
    """Patient ID (0010,0020); empty where absent."""


def index_folder(root: Path, options: ReadOptions) -> list[IndexedFile]:
    """Read the headers of all DICOM files below a folder, at any depth.

    Parameters
    ----------
    root
        Files count by their suffix (``.dcm``, ``.ima``, ``.dicom``, a number or none).
    options
        Cache folder and processes. Files that are no image or were cut short are reported and left out.

    Returns
    -------
    list of IndexedFile
        By path.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder of DICOM files")
    sizes = dict(sorted(_files(root)))
    kept = _load(root, options.cache)
    entries = {name: kept[name] for name, size in sizes.items() if kept.get(name, {}).get("size") == size}
    new = [name for name in sizes if name not in entries]
    try:
        for name, entry in zip(new, _entries(root, new, options.processes), strict=True):
            entries[name] = {"size": sizes[name], **entry}
    finally:
        # when it is interrupted, too: a later call goes on
        if options.cache is not None and (new or len(kept) != len(sizes)):
            _save(root, options.cache, entries)
    found = []
    for name in sizes:
        entry = entries[name]
        if "fault" in entry:
            options.report(FaultKind.DAMAGED, root / name, f"{entry['fault']} It is left out.")
        else:
            found.append(
                IndexedFile(instance=_instance(root / name, entry["header"]), patient_id=entry["patient"])
            )
    return found


def _files(root: Path) -> Iterator[tuple[str, int]]:
    folders = [str(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.path)
                elif _may_be_dicom(entry.name):
                    yield os.path.relpath(entry.path, root), entry.stat().st_size


def _may_be_dicom(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return name != "DICOMDIR" and (suffix in _SUFFIXES or suffix[1:].isdigit())


def _entries(root: Path, names: Sequence[str], processes: int) -> Iterable[dict[str, Any]]:
    read: Callable[[str], dict[str, Any]] = partial(_entry, root)
    if processes < 2 or len(names) < _FEW_FILES:
        yield from map(read, names)
        return
    # spawned, since whoever calls may have threads
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(read, names, chunksize=_CHUNK)


def _entry(root: Path, name: str) -> dict[str, Any]:
    """What the index keeps of a file: its header, or what is wrong with it."""
    try:
        with open_image(root / name, DecodeLimits(), _KEYWORDS) as image:
            header: dict[str, Any] = quietly(partial(_header, image))
            patient: str = quietly(partial(_text, image.dataset, "PatientID"))
    except StudyRejected as rejected:
        return {"fault": rejected.detail}
    except MissingAttributes as missing:
        return {"fault": f"{', '.join(missing.names)} is missing."}
    except TransientError as error:
        raise OSError(f"{root / name}: {error}") from error
    absent = [named(_UIDS[field]) for field in _IDENTITY if not header[field]]
    if absent:
        return {"fault": f"{', '.join(absent)} is missing."}
    return {
        "header": {f: v for f, v in header.items() if f not in _DEFAULTS or v != _DEFAULTS[f]},
        "patient": patient,
    }


def _header(image: StoredImage) -> dict[str, Any]:
    dataset = image.dataset
    meta = getattr(dataset, "file_meta", Dataset())
    header: dict[str, Any] = {field: _uid(dataset, keyword) for field, keyword in _UIDS.items()}
    header |= {field: _text(dataset, keyword) for field, keyword in _TEXTS.items()}
    for field, keyword in _INTEGERS.items():
        value = number(dataset, keyword)
        header[field] = None if value is None else int(value)
    # anonymised sets keep these in the file meta information only
    header["sop_class_uid"] = header["sop_class_uid"] or _uid(meta, "MediaStorageSOPClassUID")
    header["sop_instance_uid"] = header["sop_instance_uid"] or _uid(meta, "MediaStorageSOPInstanceUID")
    header["study_instance_uid"] = header["study_instance_uid"] or header["series_instance_uid"]
    return header | {
        "transfer_syntax_uid": image.format.transfer_syntax_uid,
        "rows": image.format.rows,
        "columns": image.format.columns,
        "number_of_frames": image.number_of_frames,
        "image_type": tuple(value.upper() for value in _texts(dataset, "ImageType")),
        "convolution_kernel": _texts(dataset, "ConvolutionKernel"),
        "slice_thickness_mm": number(dataset, "SliceThickness"),
        "image_position_patient_mm": _numbers(dataset, "ImagePositionPatient", 3),
        "image_orientation_patient": _numbers(dataset, "ImageOrientationPatient", 6),
        "pixel_spacing_mm": _positive(_numbers(dataset, "PixelSpacing", 2)),
    }


def _uid(dataset: Dataset, keyword: str) -> str:
    """A UID as stored: anonymised sets have words for UIDs, of each of which pydicom would warn."""
    try:
        value = dataset.get_item(keyword).value
    except Exception:  # absent, or whatever damage leads to
        return ""
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")).strip(" \0")


def _texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    try:
        value = dataset[keyword].value
    except Exception:  # absent, or whatever damage leads to
        return ()
    parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return tuple(text for text in (str(part).strip() for part in parts if part is not None) if text)


def _text(dataset: Dataset, keyword: str) -> str:
    return " ".join(_texts(dataset, keyword))


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(text) for text in _texts(dataset, keyword))
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _positive(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return values if values is not None and min(values) > 0 else None


def _instance(path: Path, header: dict[str, Any]) -> Instance:
    # JSON has no tuples
    values: dict[str, Any] = {f: tuple(v) if isinstance(v, list) else v for f, v in header.items()}
    return Instance(path=path, **values)


# --- the file that keeps it


def _cache_file(root: Path, cache: Path) -> Path:
    return cache / f"dicom-headers-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]}.jsonl"


def _load(root: Path, cache: Path | None) -> dict[str, dict[str, Any]]:
    """Entries by relative path; none where there is no file, or one of another format or cut short."""
    if cache is None or not _cache_file(root, cache).is_file():
        return {}
    try:
        with _cache_file(root, cache).open(encoding="utf-8") as lines:
            if json.loads(next(lines)) != {"format": _FORMAT}:
                return {}
            return dict(json.loads(line) for line in lines)
    except (ValueError, StopIteration):
        return {}


def _save(root: Path, cache: Path, entries: dict[str, dict[str, Any]]) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    file = _cache_file(root, cache)
    with written_whole(file) as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.write(json.dumps({"format": _FORMAT}) + "\n")
        lines.writelines(json.dumps([name, entry]) + "\n" for name, entry in entries.items())
