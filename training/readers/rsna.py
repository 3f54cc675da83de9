"""Reader of the RSNA 2019 Brain CT Hemorrhage Challenge, as Kaggle gives it out.

Flanders et al., "Construction of a Machine Learning Dataset through Collaboration: The RSNA 2019 Brain CT
Hemorrhage Challenge", Radiology: Artificial Intelligence 2020, 2(3):e190211.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.readers.dicom_index import IndexedFile, index_folder
from training.readers.dicom_stack import Stack, stacked
from training.readers.faults import FaultKind, ReadOptions
from training.readers.label_table import merged
from training.scan import CLASSES, UNKNOWN, Labels, Scan, scan_labels_of

SOURCE = "rsna-2019"
_TABLES = ("stage_1_train.csv", "stage_2_train.csv")
_FOLDERS = ("stage_1_train_images", "stage_1_train", "stage_2_train", "stage_2_train_images")
_COLUMN = {subtype.value: index for index, subtype in enumerate(CLASSES)}
_NOTHING = bytes([UNKNOWN & 0xFF] * len(CLASSES))


def read_rsna(root: Path, options: ReadOptions | None = None) -> list[Scan]:
    """All labelled scans, by SeriesInstanceUID.

    Parameters
    ----------
    root
        With ``stage_1_train.csv`` or ``stage_2_train.csv`` (where both are there, the second one wins) and the
        images in ``stage_1_train_images`` or ``stage_2_train``, each here or one folder below.
    options
        Give it a cache folder: the headers of 750,000 files take long to read.

    Raises
    ------
    FileNotFoundError
        Table or images are not there.
    ValueError
        A table has no columns ``ID`` and ``Label``.
    """
    options = options or ReadOptions()
    tables = [file for name in _TABLES for file in _here_or_below(root, name)]
    folders = [folder for name in _FOLDERS for folder in _here_or_below(root, name) if folder.is_dir()]
    if not tables or not folders:
        wanted = "tables " + " or ".join(_TABLES) if not tables else "images in " + " or ".join(_FOLDERS)
        raise FileNotFoundError(f"{root}: there are no {wanted}")
    labels: dict[str, bytearray] = {}
    for table in tables:
        _add_table(labels, table, options)
    files = [file for folder in folders for file in index_folder(folder, options)]
    _compare(labels, files, options)
    series: dict[str, list[IndexedFile]] = defaultdict(list)
    for file in files:
        series[file.instance.series_instance_uid].append(file)
    return [scan for uid in sorted(series) for scan in _scan(uid, series[uid], labels, options)]


def _here_or_below(root: Path, name: str) -> list[Path]:
    return [path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.exists()]


def _add_table(labels: dict[str, bytearray], file: Path, options: ReadOptions) -> None:
    """Put a table over what earlier ones said; bytes hold int8, so that a million images fit into memory."""
    own: dict[str, bytearray] = {}
    doubtful: set[tuple[str, int]] = set()
    for line, image, column, value in _label_rows(file, options):
        known = own.setdefault(image, bytearray(_NOTHING))
        if known[column] not in (_NOTHING[column], value):
            what = f"{image} is labelled both 0 and 1 for {CLASSES[column]}; taken as unknown"
            options.report(FaultKind.CONFLICTING, f"{file}, line {line}", what)
            doubtful.add((image, column))
        known[column] = value
    for image, column in doubtful:
        own[image][column] = _NOTHING[column]
    for image in own.keys() & labels.keys():
        if own[image] != labels[image]:
            what = "the table of the earlier stage labels it differently; this one counts"
            options.report(FaultKind.CONFLICTING, f"{file}, {image}", what)
    labels |= own


def _label_rows(file: Path, options: ReadOptions) -> Iterator[tuple[int, str, int, int]]:
    """Line, image, class and value of each row."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text)
        header = [name.strip() for name in next(rows, [])]
        if not {"ID", "Label"} <= set(header):
            raise ValueError(
                f"{file}: column ID or Label is missing; the header has {', '.join(header) or 'nothing'}"
            )
        name_at, label_at = header.index("ID"), header.index("Label")
        for row in rows:
            try:
                image, _, subtype = row[name_at].rpartition("_")
                column, value = _COLUMN[subtype], ("0", "1").index(row[label_at].strip())
            except (IndexError, KeyError, ValueError):
                what = f"{','.join(row)[:80]!r} is no label of an image; ignored"
                options.report(FaultKind.CONFLICTING, f"{file}, line {rows.line_num}", what)
            else:
                yield rows.line_num, image, column, value


def _compare(labels: dict[str, bytearray], files: list[IndexedFile], options: ReadOptions) -> None:
    images = {file.instance.path.stem for file in files}
    for name in sorted(labels.keys() - images):
        options.report(FaultKind.LABEL_WITHOUT_IMAGE, name, "no image can be read for this label")
    for name in sorted(images - labels.keys()):
        options.report(FaultKind.IMAGE_WITHOUT_LABEL, name, "its labels are unknown")


def _scan(
    uid: str, files: list[IndexedFile], labels: dict[str, bytearray], options: ReadOptions
) -> Iterator[Scan]:
    stack = stacked(files, uid, options)
    patients = {file.patient_id for file in files}
    if len(patients) > 1:
        options.report(FaultKind.CONFLICTING, uid, f"one series of {len(patients)} patients; it is left out")
    elif stack is not None:
        slices = _labels(stack, files, labels, options)
        yield Scan(
            source=SOURCE,
            scan_id=uid,
            patient_id=patients.pop() or uid,
            slice_ids=tuple(instance.sop_instance_uid for instance in stack.instances),
            labels=slices,
            scan_labels=scan_labels_of(slices),
            read=stack.read,
        )


def _labels(
    stack: Stack, files: list[IndexedFile], labels: dict[str, bytearray], options: ReadOptions
) -> Labels:
    """(slices, classes). An image dropped for another at its place gives its labels too: contradictions are unknown."""
    names: dict[str, list[str]] = defaultdict(list)
    for file in files:
        uid = file.instance.sop_instance_uid
        names[stack.replaced.get(uid, uid)].append(file.instance.path.stem)
    found = []
    for instance in stack.instances:
        said = [
            np.frombuffer(bytes(labels.get(n, _NOTHING)), np.int8) for n in names[instance.sop_instance_uid]
        ]
        found.append(merged(said, f"{instance.path.stem} and others at its place", options))
    return np.stack(found)
