"""Reader of CQ500: 491 scans, each read by three radiologists, with the boxes of BHX where they are there.

Chilamkurthy et al., "Deep learning algorithms for detection of critical findings in head CT scans: a retrospective
study", Lancet 2018, 392(10162):2388. CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from ich_node.findings import IchSubtype
from training.readers.bhx import TABLES, Boxes, find_tables, read_boxes
from training.readers.dicom_index import IndexedFile, index_folder
from training.readers.dicom_stack import Stack, chosen_series, stacked
from training.readers.faults import FaultKind, ReadOptions
from training.readers.label_table import Row, completed, flag, rows, slices_of_scan_label
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN, Labels, Scan, TruthBox

SOURCE = "cq500"
_READERS = ("R1", "R2", "R3")
_COLUMNS = {
    IchSubtype.ANY: "ICH",
    IchSubtype.EPIDURAL: "EDH",
    IchSubtype.INTRAPARENCHYMAL: "IPH",
    IchSubtype.INTRAVENTRICULAR: "IVH",
    IchSubtype.SUBARACHNOID: "SAH",
    IchSubtype.SUBDURAL: "SDH",
}
_NUMBER = re.compile(r"CQ500-?CT-?(\d+)", re.IGNORECASE)
_ANY = CLASSES.index(IchSubtype.ANY)


def read_cq500(
    root: Path,
    options: ReadOptions | None = None,
    *,
    bhx: Path | None = None,
    boxes_are_complete: bool = False,
) -> list[Scan]:
    """One scan a patient, by number.

    The series is that which the node would read, among those that BHX names where it names some. A class that the
    majority denies is absent from all slices. Of a class that it affirms a slice is known only where BHX has a box.

    Parameters
    ----------
    root
        With ``reads.csv`` and, at any depth, folders ``CQ500CT<n> CQ500CT<n>`` of DICOM files.
    options
        Cache folder, processes and faults.
    bhx
        Folder of the tables of BHX; by default looked for in ``root``.
    boxes_are_complete
        Take a slice without a box as one without hemorrhage, in series that BHX names. Its authors drew boxes on some
        thick slices and extrapolated them, so this is a convention of the papers and not known.

    Raises
    ------
    FileNotFoundError
        ``reads.csv`` is not there.
    ValueError
        A table lacks a column.
    """
    options = options or ReadOptions()
    reads = _reads(root, options)
    tables = find_tables(bhx or root)
    if bhx is not None and not tables:
        raise FileNotFoundError(f"{bhx}: there are no tables of BHX, such as {TABLES[-1]}")
    boxes = read_boxes(tables, options)
    files: dict[int, list[IndexedFile]] = defaultdict(list)
    for file in index_folder(root, options):
        files[_number(file, root)].append(file)
    for number in sorted(files.keys() - reads.keys()):
        where = f"CQ500-CT-{number}" if number >= 0 else "files in no folder CQ500CT<n>"
        options.report(FaultKind.IMAGE_WITHOUT_LABEL, where, "reads.csv does not have it; it is left out")
    scans = []
    for number, label in sorted(reads.items()):
        name = f"CQ500-CT-{number}"
        stack = _stack(files.get(number, []), boxes, name, options)
        if stack is None:
            options.report(FaultKind.LABEL_WITHOUT_IMAGE, name, "no series of it can be used")
        else:
            scans.append(_scan(name, stack, label, boxes, boxes_are_complete, options))
    return scans


def _reads(root: Path, options: ReadOptions) -> dict[int, Labels]:
    """Majority of the readers by the scan's number."""
    file = root / "reads.csv"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there")
    found: dict[int, Labels] = {}
    columns = [f"{reader}:{column}" for reader in _READERS for column in _COLUMNS.values()]
    for line, row in rows(file, ["name", *columns]):
        match = _NUMBER.search(row["name"])
        where = f"{file}, line {line}"
        if match is None:
            options.report(
                FaultKind.CONFLICTING, where, f"name {row['name'][:40]!r} is no CQ500-CT-<number>; ignored"
            )
        else:
            found[int(match[1])] = completed(_majority(row, where, options), where, options)
    return found


def _majority(row: Row, where: str, options: ReadOptions) -> Labels:
    said = np.array(
        [[flag(row, f"{r}:{_COLUMNS[c]}", where, options) for c in CLASSES] for r in _READERS], np.int8
    )
    present, absent = (said == PRESENT).sum(axis=0), (said == ABSENT).sum(axis=0)
    return np.where(present > absent, PRESENT, np.where(absent > present, ABSENT, UNKNOWN)).astype(np.int8)


def _number(file: IndexedFile, root: Path) -> int:
    """Of the scan, by folder or else by Patient ID; -1 where neither has one."""
    match = _NUMBER.search(str(file.instance.path.relative_to(root).parent)) or _NUMBER.search(
        file.patient_id
    )
    return int(match[1]) if match else -1


def _stack(files: list[IndexedFile], boxes: Boxes, name: str, options: ReadOptions) -> Stack | None:
    by_series: dict[str, list[IndexedFile]] = defaultdict(list)
    for file in files:
        by_series[file.instance.series_instance_uid].append(_described(file))
    boxed = {uid: files for uid, files in by_series.items() if uid in boxes.by_series}
    chosen = chosen_series(name, boxed or by_series, options)
    if chosen is None and boxed:
        # the node would read none of them; the boxes are worth more than its choice
        chosen = max(sorted(boxed), key=lambda uid: len(boxes.by_series[uid]))
        options.report(FaultKind.LEFT_OUT, name, f"series {chosen} is used since BHX has most boxes in it")
    return None if chosen is None else stacked(by_series[chosen], f"{name}, series {chosen}", options)


def _described(file: IndexedFile) -> IndexedFile:
    """With the folder's name for a series description where the header has none."""
    if file.instance.series_description:
        return file
    folder = file.instance.path.parent.name.removeprefix("CT ")
    return replace(file, instance=replace(file.instance, series_description=folder))


def _scan(
    name: str, stack: Stack, label: Labels, boxes: Boxes, boxes_are_complete: bool, options: ReadOptions
) -> Scan:
    uids = [instance.sop_instance_uid for instance in stack.instances]
    truth = tuple(
        stack.turn.box(TruthBox(slice_index=i, **vars(box)), stack.instances[i])
        for i, uid in enumerate(uids)
        for box in boxes.by_image.get(uid, ())
    )
    series = stack.instances[0].series_instance_uid
    is_complete = (boxes_are_complete and series in boxes.by_series) or (
        not truth and bool((label == ABSENT).all())
    )
    slices = slices_of_scan_label(label, len(uids))
    if is_complete:
        slices[:] = ABSENT
    scan_label = _add_boxes(slices, label, truth, name, options)
    return Scan(
        source=SOURCE,
        scan_id=series,
        patient_id=name,
        slice_ids=tuple(uids),
        labels=slices,
        scan_labels=scan_label,
        read=stack.read,
        boxes=truth,
        boxes_are_complete=is_complete,
    )


def _add_boxes(
    slices: Labels, label: Labels, truth: tuple[TruthBox, ...], name: str, options: ReadOptions
) -> Labels:
    """Write what the boxes show into the slices' labels; return the scan's, unknown where the readers deny a box."""
    scan_label = label.copy()
    for c in sorted({CLASSES.index(box.subtype) for box in truth} | ({_ANY} if truth else set())):
        boxed = sorted({box.slice_index for box in truth if c in (_ANY, CLASSES.index(box.subtype))})
        if label[c] == ABSENT:
            what = f"the readers deny {CLASSES[c]} hemorrhage and BHX has boxes of it; the scan's label is unknown"
            options.report(FaultKind.CONFLICTING, name, what)
            scan_label[c] = UNKNOWN
            slices[:, c] = UNKNOWN
        slices[boxed, c] = PRESENT
    return scan_label
