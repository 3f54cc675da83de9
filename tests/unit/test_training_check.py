"""The check of labelled data: each fault that it knows is made here, and found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ich_node.findings import IchSubtype
from tests.labelled_data import made_scan, made_volume, write_rsna, write_rsna_series
from training.check import Report, check
from training.readers import Fault, FaultKind, ReadOptions
from training.readers.rsna import read_rsna
from training.scan import CLASSES, UNKNOWN, Scan, Volume
from training.split import Split

EPIDURAL = CLASSES.index(IchSubtype.EPIDURAL)


def kinds(report: Report) -> list[FaultKind]:
    return [fault.kind for fault in report.faults]


def split_of(scans: Sequence[Scan]) -> Split:
    """Each patient a fold of its own."""
    return Split(
        name="s",
        seed=1,
        data="made",
        folds={p: i for i, p in enumerate(sorted({s.patient_id for s in scans}))},
    )


def test_sound_data_is_counted_and_has_no_faults():
    scans = [
        made_scan("a", patient_id="1", present={0: [IchSubtype.EPIDURAL], 1: []}),
        made_scan("b", patient_id="1"),
        made_scan(
            "c",
            patient_id="2",
            labels=np.full((4, 6), UNKNOWN, np.int8),
            scan_labels=np.full(6, UNKNOWN, np.int8),
        ),
        made_scan("phantom", synthetic=True, present={0: [IchSubtype.SUBDURAL]}),
    ]
    report = check(scans, split_of(scans[:3]), read_images=True)
    assert report.faults == ()
    assert report.is_sound
    assert (report.scans, report.patients, report.slices, report.synthetic_scans) == (4, 2, 12, 1)
    counts = {(c.unit, c.subtype): (c.present, c.absent, c.unknown) for c in report.counts}
    assert counts["slices", "any"] == (2, 6, 4)
    assert counts["slices", "epidural"] == (1, 7, 4)
    assert counts["scans", "any"] == (1, 1, 1)
    assert counts["patients", "any"] == (1, 0, 1)
    assert counts["patients", "subdural"] == (0, 1, 1)
    ranges = {r.measure: (r.lowest, r.median, r.highest) for r in report.ranges}
    assert ranges["slice distance, mm"] == (5, 5, 5)
    assert ranges["field of view, mm"] == (8, 8, 8)


def test_ids_that_are_there_twice_are_found():
    twin = made_scan("b", slice_ids=("b/0", "a/1", "b/2", "b/3"))
    report = check([made_scan("a"), twin, made_scan("c"), made_scan("c")])
    assert sorted((f.kind, f.where) for f in report.faults) == [
        (FaultKind.DOUBLED, "made a/1"),
        (FaultKind.DOUBLED, "made c"),
        (FaultKind.LEAKING, "made a/1"),
    ]
    assert not report.is_sound
    # other data sets may use the same names
    assert check([made_scan("a"), made_scan("a", patient_id="other", source="elsewhere")]).faults == ()


def test_labels_that_contradict_are_found():
    labels = np.zeros((4, 6), np.int8)
    labels[2, EPIDURAL] = 1
    denied = np.zeros(6, np.int8)
    affirmed = denied.copy()
    affirmed[EPIDURAL] = 1
    odd = made_scan("odd", labels=labels, scan_labels=denied)
    none = made_scan("none", scan_labels=affirmed)
    report = check([odd, none])
    assert [f.what for f in report.faults] == [
        "1 slices show a subtype and no hemorrhage",
        "epidural is in a slice and not in the scan",
        "epidural is in the scan and in none of its slices",
    ]
    assert set(kinds(report)) == {FaultKind.CONFLICTING}


def test_identical_images_across_patients_leak_and_within_one_are_doubled():
    scans = [
        made_scan("a", patient_id="1"),
        made_scan("b", patient_id="1", read=lambda: made_volume("a")),
        made_scan("c", patient_id="2"),
        made_scan("d", patient_id="3", read=lambda: made_volume("c")),
    ]
    report = check(scans, split_of(scans), read_images=True)
    leak, double = report.faults
    assert (leak.kind, leak.where) == (FaultKind.LEAKING, "made c, made d")
    assert leak.what == "4 identical images under patients 2, 3, in parts 1, 2 of the split"
    assert (double.kind, double.where, double.what) == (
        FaultKind.DOUBLED,
        "made a, made b",
        "4 images are there more than once",
    )
    assert check(scans, split_of(scans)).faults == ()
    same_fold = Split(name="s", seed=1, data="made", folds={"1": 0, "2": 1, "3": 1})
    (leak, _) = check(scans, same_fold, read_images=True).faults
    assert leak.what == "4 identical images under patients 2, 3"


def test_blank_slices_are_no_doubles_and_a_slice_twice_in_a_scan_is():
    def volume(content: str) -> Volume:
        made = made_volume(content)
        made.hu[0] = -1024
        return made

    scans = [made_scan(name, read=lambda name=name: volume(name)) for name in ("a", "b")]
    assert check(scans, read_images=True).faults == ()

    def repeated() -> Volume:
        made = made_volume("a")
        made.hu[2] = made.hu[1]
        return made

    assert kinds(check([made_scan("a", read=repeated)], read_images=True)) == [FaultKind.DOUBLED]


def test_damaged_scans_are_named_and_the_others_are_checked():
    def broken() -> Volume:
        raise ValueError("x.dcm: cut short")

    def absent() -> Volume:
        raise FileNotFoundError("y.nii")

    scans = [
        made_scan("a", read=broken),
        made_scan("b", read=absent),
        made_scan("c", read=lambda: made_volume("c", slices=3)),
        made_scan("d"),
    ]
    report = check(scans, read_images=True)
    assert [(f.kind, f.where, f.what) for f in report.faults] == [
        (FaultKind.DAMAGED, "made a", "cannot be read: x.dcm: cut short"),
        (FaultKind.DAMAGED, "made b", "cannot be read: y.nii"),
        (FaultKind.DAMAGED, "made c", "has 3 images and 4 labelled slices"),
    ]
    assert {r.measure for r in report.ranges} >= {"slices a scan", "pixel distance, mm"}


def test_outlines_that_contradict_labels_are_found():
    lesion = np.zeros((4, 6, 16, 16), bool)
    lesion[1, 0, 3, 3] = True
    scan = made_scan(
        "a",
        present={0: []},
        outlined=True,
        read=lambda: made_volume("a", lesion=lesion, spacing_is_estimated=True),
    )
    report = check([scan], read_images=True)
    assert [f.what for f in report.faults] == [
        "1 slices are outlined and labelled absent",
        "1 slices are labelled present and not outlined",
    ]
    assert "slice distance, mm, estimated" in {r.measure for r in report.ranges}


def test_a_split_that_does_not_fit_is_found():
    scans = [made_scan("049"), made_scan("49"), made_scan("x"), made_scan("new")]
    split = Split(name="s", seed=1, data="made", folds={"049": 0, "49": 1, "x": 0, "gone": 1})
    report = check(scans, split)
    assert [(f.kind, f.where) for f in report.faults] == [
        (FaultKind.LEAKING, "patients 049, 49"),
        (FaultKind.LABEL_WITHOUT_IMAGE, "patient gone"),
        (FaultKind.LEFT_OUT, "patient new"),
    ]


def test_what_readers_found_is_shown_with_the_rest(tmp_path: Path):
    images = write_rsna_series(tmp_path, "a", "ID_1")
    others = write_rsna_series(tmp_path, "b", "ID_2")
    write_rsna(tmp_path, {n: {"epidural": int(n == images[3])} for n in [*images, *others[1:], "ID_gone"]})
    options = ReadOptions()
    scans = read_rsna(tmp_path, options)
    report = check(scans, split_of(scans), faults=options.faults, read_images=True, processes=2)
    assert sorted(set(kinds(report))) == sorted(
        {FaultKind.LEAKING, FaultKind.LABEL_WITHOUT_IMAGE, FaultKind.IMAGE_WITHOUT_LABEL}
    )
    text = report.text()
    assert "rsna-2019: 2 patients, 24 slices" in text
    assert "leaking: 1\n  rsna-2019 ID_seriesa, rsna-2019 ID_seriesb: 12 identical images" in text
    assert "label without image: 1\n  ID_gone: no image can be read for this label" in text
    row = next(line for line in text.splitlines() if line.startswith("slices") and "epidural" in line)
    assert row.split() == ["slices", "epidural", "1", "22", "1"]
    again = json.loads(json.dumps(report.as_dict()))
    assert again["is_sound"] is False
    assert again["faults"][0]["kind"] == "leaking"
    assert len(again["counts"]) == 18


def test_long_lists_are_cut_and_tables_aligned():
    faults = [Fault(kind=FaultKind.DOUBLED, where=f"f{i}", what="twice") for i in range(25)]
    text = check([made_scan("a"), made_scan("b", slices=100)], faults=faults).text()
    assert "doubled: 25" in text
    assert "  f19: twice\n  and 5 more\n" in text
    assert "Images were not read" in text
    lines = [line for line in text.splitlines() if line.split()[1:2] in [[c] for c in CLASSES]]
    assert len(lines) == 18
    assert len({len(line) for line in lines}) == 1
    assert all(line == line.rstrip() for line in text.splitlines())


def test_nothing_to_check_is_said():
    report = check([])
    assert report.is_sound
    assert "nothing: 0 patients" in report.text()
    assert "Nothing is wrong." in report.text()


@pytest.mark.parametrize(
    "kind", [FaultKind.LEFT_OUT, FaultKind.LABEL_WITHOUT_IMAGE, FaultKind.IMAGE_WITHOUT_LABEL]
)
def test_incomplete_data_is_sound_as_far_as_it_goes(kind: FaultKind):
    assert check([made_scan("a")], faults=[Fault(kind=kind, where="x", what="y")]).is_sound
