"""CQ500 and BHX: majority of three readers, the node's choice of series, boxes and what they tell of slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ich_node.findings import IchSubtype
from tests.labelled_data import (
    PIXELS,
    SLICES,
    small_head,
    write_boxes,
    write_cq500,
    write_series,
    write_table,
)
from training.readers import FaultKind, ReadOptions, read
from training.readers.cq500 import read_cq500
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN

ANY, EPIDURAL, SUBDURAL = (
    CLASSES.index(c) for c in (IchSubtype.ANY, IchSubtype.EPIDURAL, IchSubtype.SUBDURAL)
)
NOBODY: list[dict[str, int]] = [{}, {}, {}]
EPIDURAL_READS = [{"ICH": 1, "EDH": 1}, {"ICH": 1, "EDH": 1, "SDH": 1}, {}]
SELECTED = "3_Extrapolation_to_Selected_Series.csv"


def test_the_majority_labels_the_scan_and_only_its_denial_the_slices(tmp_path: Path):
    plain = write_cq500(tmp_path, 7, EPIDURAL_READS)
    write_cq500(tmp_path, 12, NOBODY)
    options = ReadOptions()
    positive, negative = read("cq500", tmp_path, options)
    assert options.faults == []
    assert (positive.patient_id, negative.patient_id) == ("CQ500-CT-7", "CQ500-CT-12")
    assert positive.scan_labels.tolist() == [1, 1, 0, 0, 0, 0]
    for c in range(len(CLASSES)):
        assert set(positive.labels[:, c]) == {UNKNOWN if c in (ANY, EPIDURAL) else ABSENT}
    assert (negative.labels == ABSENT).all()
    assert (positive.boxes_are_complete, negative.boxes_are_complete) == (False, True)
    # the series that the node would read, not the one with the bone kernel
    assert positive.slice_ids == tuple(image.SOPInstanceUID for image in plain)
    assert np.array_equal(positive.read().hu, small_head().hu)


def test_boxes_of_bhx_label_slices_and_keep_their_place(tmp_path: Path):
    plain = write_cq500(tmp_path, 7, EPIDURAL_READS)
    write_boxes(
        tmp_path / "bhx" / SELECTED,
        [
            (plain[3], "Epidural", (10, 20, 5, 6)),
            (plain[4], "Chronic", (1.5, 2, 3, 4)),
            (plain[4], "Tumour", (1, 2, 3, 4)),
        ],
    )
    # the same box again, drawn by hand here
    write_boxes(tmp_path / "bhx" / "1_Initial_Manual_Labeling.csv", [(plain[3], "Epidural", (10, 20, 5, 6))])
    options = ReadOptions()
    (scan,) = read_cq500(tmp_path, options)
    first, second = scan.boxes
    assert (first.slice_index, first.subtype, first.drawn) == (3, IchSubtype.EPIDURAL, "manual")
    assert (first.left, first.top, first.right, first.bottom) == (10, 20, 15, 26)
    assert (second.slice_index, second.subtype, second.drawn) == (4, IchSubtype.ANY, "extrapolated")
    assert scan.labels[:, EPIDURAL].tolist() == [UNKNOWN] * 3 + [PRESENT] + [UNKNOWN] * (SLICES - 4)
    assert np.flatnonzero(scan.labels[:, ANY] == PRESENT).tolist() == [3, 4]
    assert (scan.labels[:, SUBDURAL] == ABSENT).all()
    assert [(f.kind, "line 4" in f.where, "Tumour" in f.what) for f in options.faults] == [
        (FaultKind.CONFLICTING, True, True)
    ]


def test_boxes_may_be_taken_as_complete(tmp_path: Path):
    plain = write_cq500(tmp_path, 7, EPIDURAL_READS)
    write_boxes(tmp_path / SELECTED, [(plain[3], "Epidural", (10, 20, 5, 6))])
    (scan,) = read_cq500(tmp_path, boxes_are_complete=True)
    assert scan.boxes_are_complete
    assert scan.labels[:, ANY].tolist() == [ABSENT] * 3 + [PRESENT] + [ABSENT] * (SLICES - 4)


def test_boxes_of_a_scan_that_the_readers_call_normal_leave_it_unknown(tmp_path: Path):
    plain = write_cq500(tmp_path, 7, NOBODY)
    write_boxes(tmp_path / SELECTED, [(plain[3], "Subdural", (10, 20, 5, 6))])
    options = ReadOptions()
    (scan,) = read_cq500(tmp_path, options)
    assert scan.scan_labels.tolist() == [UNKNOWN, ABSENT, ABSENT, ABSENT, ABSENT, UNKNOWN]
    assert scan.labels[3].tolist() == [1, 0, 0, 0, 0, 1]
    assert scan.labels[2].tolist() == [UNKNOWN, ABSENT, ABSENT, ABSENT, ABSENT, UNKNOWN]
    assert not scan.boxes_are_complete
    assert [f.kind for f in options.faults] == [FaultKind.CONFLICTING] * 2


def test_the_series_that_bhx_names_is_used(tmp_path: Path):
    write_cq500(tmp_path, 7, EPIDURAL_READS)
    folder = tmp_path / "CQ500CT7 CQ500CT7" / "Unknown Study" / "CT Thin"
    thin = write_series(
        folder, name="cq500 7", series_number=9, convolution_kernel="", slice_thickness_mm=1.0
    )
    write_boxes(tmp_path / SELECTED, [(thin[0], "Epidural", (1, 1, 2, 2))])
    (scan,) = read_cq500(tmp_path)
    assert scan.scan_id == thin[0].SeriesInstanceUID


def test_boxes_turn_with_their_image(tmp_path: Path):
    write_cq500(tmp_path, 7, EPIDURAL_READS)
    folder = tmp_path / "CQ500CT7 CQ500CT7" / "Unknown Study" / "CT Prone"
    # columns run to the front and rows to the patient's right: a quarter turn and a mirror
    prone = write_series(folder, name="cq500 7", series_number=9, image_orientation=(0, -1, 0, -1, 0, 0))
    write_boxes(tmp_path / SELECTED, [(prone[0], "Epidural", (1, 2, 10, 20))])
    (scan,) = read_cq500(tmp_path)
    (box,) = scan.boxes
    assert (box.left, box.top, box.right, box.bottom) == (PIXELS - 22, PIXELS - 11, PIXELS - 2, PIXELS - 1)
    # so the first image is the topmost, and what lies in the box is the same
    assert box.slice_index == SLICES - 1
    stored = small_head().hu[0][2:22, 1:11]
    upright = scan.read().hu[box.slice_index][int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
    assert np.array_equal(upright, stored.T[::-1, ::-1])


def test_what_cannot_be_used_is_told_and_loses_nothing_else(tmp_path: Path):
    write_cq500(tmp_path, 3, NOBODY)
    write_cq500(tmp_path, 4, NOBODY)
    for file in (tmp_path / "CQ500CT4 CQ500CT4").rglob("CT Plain/*.dcm"):
        file.unlink()
    with (tmp_path / "reads.csv").open("a") as table:
        table.write("CQ500-CT-99," + ",".join(["B1"] + ["0"] * 24) + "\nnobody," + "0," * 24 + "0\n")
    write_series(tmp_path / "CQ500CT5 CQ500CT5")
    options = ReadOptions()
    (scan,) = read_cq500(tmp_path, options)
    assert scan.patient_id == "CQ500-CT-3"
    told = {(f.kind, f.where.split(",")[0].removeprefix(f"{tmp_path}/")) for f in options.faults}
    assert told == {
        (FaultKind.CONFLICTING, "reads.csv"),
        (FaultKind.IMAGE_WITHOUT_LABEL, "CQ500-CT-5"),
        (FaultKind.LABEL_WITHOUT_IMAGE, "CQ500-CT-4"),
        (FaultKind.LABEL_WITHOUT_IMAGE, "CQ500-CT-99"),
        (FaultKind.LEFT_OUT, "CQ500-CT-4"),
    }
    assert any("bone" in f.what for f in options.faults)


def test_a_missing_column_or_table_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"reads\.csv"):
        read_cq500(tmp_path)
    write_cq500(tmp_path, 3, NOBODY)
    with pytest.raises(FileNotFoundError, match="Selected_Series"):
        read_cq500(tmp_path, bhx=tmp_path / "CQ500CT3 CQ500CT3")
    write_table(tmp_path / SELECTED, ("SOPInstanceUID", "labelName", "x", "y"), [])
    with pytest.raises(ValueError, match="SeriesInstanceUID is missing; the header has sopinstanceuid"):
        read_cq500(tmp_path)
