"""Reader of any folder of DICOM files with a table of labels, by slice or by scan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.readers.dicom_index import IndexedFile, index_folder
from training.readers.dicom_stack import Stack, chosen_series, stacked
from training.readers.faults import FaultKind, ReadOptions
from training.readers.label_table import Row, labels_of_row, merged, rows, slices_of_scan_label
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN, Labels, Scan, scan_labels_of

IDENTIFIERS = ("file", "sop_instance_uid", "series_instance_uid", "study_instance_uid")
"""Columns that say what a row labels, the finest first: the first that is not empty counts."""
LABEL_TABLE = "labels.csv"


@dataclass(frozen=True, kw_only=True)
class _Said:
    """Rows of the table about one thing."""

    labels: Labels
    patient_id: str


def read_dicom_folder(
    root: Path, options: ReadOptions | None = None, *, labels: Path | None = None
) -> list[Scan]:
    """One scan a labelled series; of a labelled study the series that the node would read.

    Parameters
    ----------
    root
        DICOM files at any depth.
    options
        Cache folder, processes and faults.
    labels
        CSV with one of the columns ``file`` (path below ``root``), ``sop_instance_uid``, ``series_instance_uid`` and
        ``study_instance_uid``; any of ``any``, ``epidural``, ``intraparenchymal``, ``intraventricular``,
        ``subarachnoid`` and ``subdural`` with 1, 0 or nothing where it is not known; and ``patient_id`` where Patient
        ID (0010,0020) is not to be used. By default ``labels.csv`` in ``root``.

    Raises
    ------
    FileNotFoundError
        Folder or table are not there.
    ValueError
        The table has no column that identifies, or none of a class.
    """
    options = options or ReadOptions()
    table = labels or root / LABEL_TABLE
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} is not there: a CSV with the columns {', '.join(IDENTIFIERS)} or some of them"
        )
    said = _table(table, options)
    files = index_folder(root, options)
    series: dict[str, list[IndexedFile]] = defaultdict(list)
    for file in files:
        series[file.instance.series_instance_uid].append(file)
    _report_absent(said, files, root, table, options)
    chosen = _labelled(series, said, root, options)
    for uid in sorted(series.keys() - chosen):
        options.report(
            FaultKind.IMAGE_WITHOUT_LABEL, f"series {uid}", f"{table} does not label it; it is left out"
        )
    found = (_scan(series[uid], root, said, options) for uid in sorted(chosen))
    return [scan for scan in found if scan is not None]


def _table(table: Path, options: ReadOptions) -> dict[tuple[str, str], _Said]:
    """What is said, by identifying column and value."""
    collected: dict[tuple[str, str], list[tuple[Labels, str]]] = defaultdict(list)
    classes = [c.value for c in CLASSES]
    for line, row in rows(table, one_of=IDENTIFIERS):
        if not any(name in row for name in classes):
            raise ValueError(f"{table}: there is no column of a class: {', '.join(classes)}")
        where = f"{table}, line {line}"
        key = _key(row)
        if key is None:
            options.report(
                FaultKind.CONFLICTING, where, f"nothing in {', '.join(IDENTIFIERS)}; the row is ignored"
            )
        else:
            collected[key].append((labels_of_row(row, where, options), row.get("patient_id", "")))
    said = {}
    for key, rows_of_it in collected.items():
        where = f"{table}, {key[0]} {key[1]}"
        patients = sorted({patient for _, patient in rows_of_it if patient})
        if len(patients) > 1:
            options.report(
                FaultKind.CONFLICTING, where, f"belongs to {', '.join(patients)}; taken as {patients[0]}"
            )
        found = [label for label, _ in rows_of_it]
        labels = merged(found, where, options) if len(found) > 1 else found[0]
        said[key] = _Said(labels=labels, patient_id=patients[0] if patients else "")
    return said


def _key(row: Row) -> tuple[str, str] | None:
    for column in IDENTIFIERS:
        if row.get(column):
            value = row[column]
            return column, Path(value).as_posix() if column == "file" else value
    return None


def _names(file: IndexedFile, root: Path) -> dict[str, str]:
    """What each identifying column would hold for a file."""
    instance = file.instance
    return {
        "file": instance.path.relative_to(root).as_posix(),
        "sop_instance_uid": instance.sop_instance_uid,
        "series_instance_uid": instance.series_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
    }


def _report_absent(
    said: Iterable[tuple[str, str]], files: list[IndexedFile], root: Path, table: Path, options: ReadOptions
) -> None:
    here = {item for file in files for item in _names(file, root).items()}
    for column, value in sorted(set(said) - here):
        options.report(FaultKind.LABEL_WITHOUT_IMAGE, f"{table}, {column} {value}", "there is no image of it")


def _labelled(
    series: Mapping[str, list[IndexedFile]],
    said: Mapping[tuple[str, str], _Said],
    root: Path,
    options: ReadOptions,
) -> set[str]:
    """Series to use: all with a label of their own or of a slice, and one of each other study that has one."""
    own = {
        uid
        for uid, files in series.items()
        if any((c, v) in said for f in files for c, v in _names(f, root).items() if c != "study_instance_uid")
    }
    studies: dict[str, list[str]] = defaultdict(list)
    for uid, files in sorted(series.items()):
        studies[files[0].instance.study_instance_uid].append(uid)
    for study, uids in sorted(studies.items()):
        if ("study_instance_uid", study) in said and not own.intersection(uids):
            chosen = chosen_series(f"study {study}", {uid: series[uid] for uid in uids}, options)
            if chosen is None:
                options.report(FaultKind.LABEL_WITHOUT_IMAGE, f"study {study}", "no series of it can be used")
            else:
                own.add(chosen)
    return own


def _scan(
    files: list[IndexedFile], root: Path, said: Mapping[tuple[str, str], _Said], options: ReadOptions
) -> Scan | None:
    first = files[0].instance
    where = f"series {first.series_instance_uid}"
    stack = stacked(files, where, options)
    if stack is None:
        return None
    keys = [
        ("series_instance_uid", first.series_instance_uid),
        ("study_instance_uid", first.study_instance_uid),
    ]
    of_scan = [said[key] for key in keys if key in said]
    scan_label = of_scan[0].labels if of_scan else np.full(len(CLASSES), UNKNOWN, np.int8)
    of_slice = _by_slice(stack, files, root, said, options)
    slices = slices_of_scan_label(scan_label, len(stack.instances))
    for index, labels in of_slice.items():
        slices[index] = np.where(labels == UNKNOWN, slices[index], labels)
    patients = _patients(files, root, said)
    if len(patients) > 1:
        options.report(FaultKind.CONFLICTING, where, f"belongs to {', '.join(patients)}; it is left out")
        return None
    return Scan(
        source=root.resolve().name,
        scan_id=first.series_instance_uid,
        patient_id=patients[0] if patients else first.study_instance_uid,
        slice_ids=tuple(i.sop_instance_uid for i in stack.instances),
        labels=slices,
        scan_labels=_scan_label(scan_label, slices, where, options),
        read=stack.read,
    )


def _patients(files: list[IndexedFile], root: Path, said: Mapping[tuple[str, str], _Said]) -> list[str]:
    """Whom the table names for a series, else whom the headers name."""
    named = {said[key].patient_id for f in files for key in _names(f, root).items() if key in said}
    return sorted(named - {""}) or sorted({f.patient_id for f in files} - {""})


def _by_slice(
    stack: Stack,
    files: list[IndexedFile],
    root: Path,
    said: Mapping[tuple[str, str], _Said],
    options: ReadOptions,
) -> dict[int, Labels]:
    """Labels of slices that have some of their own, those of images dropped at their place included."""
    index = {instance.sop_instance_uid: i for i, instance in enumerate(stack.instances)}
    found: dict[int, list[Labels]] = defaultdict(list)
    for file in files:
        uid = file.instance.sop_instance_uid
        names = _names(file, root)
        for column in ("file", "sop_instance_uid"):
            if (column, names[column]) in said and stack.replaced.get(uid, uid) in index:
                found[index[stack.replaced.get(uid, uid)]].append(said[column, names[column]].labels)
    return {
        i: merged(labels, f"slice {stack.instances[i].sop_instance_uid}", options)
        for i, labels in found.items()
    }


def _scan_label(scan_label: Labels, slices: Labels, where: str, options: ReadOptions) -> Labels:
    """The scan's label, filled in from its slices where it is not given; unknown where the two contradict."""
    of_slices = scan_labels_of(slices)
    odd = (scan_label == ABSENT) & (of_slices == PRESENT)
    for c in np.flatnonzero(odd):
        what = f"{CLASSES[c]} is absent from the scan and present in a slice; the scan's label is unknown"
        options.report(FaultKind.CONFLICTING, where, what)
    given = np.where(scan_label == UNKNOWN, of_slices, scan_label)
    return np.where(odd, UNKNOWN, given).astype(np.int8)
