"""Tables of labels, the folder of DICOM with a table, CT-ICH in both forms, phantoms, and readers by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ich_node.findings import IchSubtype
from tests.ct_ich_pictures import write_pictures
from tests.labelled_data import SLICES, small_head, write_nifti, write_series, write_table
from training.readers import READERS, FaultKind, ReadOptions, read
from training.readers.ct_ich_nifti import read_ct_ich_nifti
from training.readers.dicom_folder import read_dicom_folder
from training.readers.label_table import labels_of_row
from training.readers.phantom import FIRST_SEED, read_phantom
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN, scan_labels_of

ANY, EPIDURAL, SUBDURAL = (
    CLASSES.index(c) for c in (IchSubtype.ANY, IchSubtype.EPIDURAL, IchSubtype.SUBDURAL)
)
HEAD_SPACING = (10.0, 3.6, 3.5)


@pytest.mark.parametrize(
    ("row", "labels", "faults"),
    [
        ({"any": "1", "subdural": "0"}, [1, -1, -1, -1, -1, 0], 0),
        ({"any": "0"}, [0, 0, 0, 0, 0, 0], 0),
        ({"epidural": "1.0"}, [1, 1, -1, -1, -1, -1], 0),
        ({c: "no" for c in CLASSES if c != "any"}, [0, 0, 0, 0, 0, 0], 0),
        ({c: "0" for c in CLASSES if c not in ("any", "subdural")}, [-1, 0, 0, 0, 0, -1], 0),
        ({"any": "0", "epidural": "1"}, [-1, -1, -1, -1, -1, -1], 1),
        ({"any": "perhaps", "epidural": ""}, [-1, -1, -1, -1, -1, -1], 1),
    ],
)
def test_a_row_says_what_it_says_and_the_rest_is_unknown(row: dict[str, str], labels: list[int], faults: int):
    options = ReadOptions()
    assert labels_of_row(row, "line 2", options).tolist() == labels
    assert [f.kind for f in options.faults] == [FaultKind.CONFLICTING] * faults


# --- a folder of DICOM


def test_labels_by_series_and_by_slice_meet(tmp_path: Path):
    images = write_series(tmp_path / "images", name="one")
    uid = images[0].SeriesInstanceUID
    write_table(
        tmp_path / "labels.csv",
        (
            "Epidural",
            "series_instance_uid",
            "sop_instance_uid",
            "file",
            "any",
            "subdural",
            "patient_id",
            "remark",
        ),
        [
            ("", uid, "", "", 1, 0, "p1", "whole scan"),
            (1, "", images[2].SOPInstanceUID, "", "", "", "", ""),
            ("", "", "", "images/CT000005.dcm", 0, "", "", ""),
        ],
    )
    options = ReadOptions()
    (scan,) = read("dicom", tmp_path, options)
    assert options.faults == []
    assert scan.patient_id == "p1"
    assert scan.scan_labels.tolist() == [1, 1, UNKNOWN, UNKNOWN, UNKNOWN, 0]
    assert scan.labels[2].tolist() == [1, 1, -1, -1, -1, 0]
    assert scan.labels[5].tolist() == [0] * 6
    assert scan.labels[0].tolist() == [-1, -1, -1, -1, -1, 0]
    assert scan.read().hu.shape[0] == SLICES


def test_a_study_gives_the_series_that_the_node_would_read(tmp_path: Path):
    write_series(
        tmp_path / "a", name="one", series_number=4, series_description="BONE", convolution_kernel="BONE"
    )
    soft = write_series(tmp_path / "b", name="one")
    other = write_series(tmp_path / "c", name="two", patient_id="")
    table = write_table(
        tmp_path / "elsewhere.csv",
        ("study_instance_uid", "any"),
        [(soft[0].StudyInstanceUID, 1), (other[0].StudyInstanceUID, 0), ("1.2.3", 0), ("", 1)],
    )
    options = ReadOptions()
    found = {s.scan_id: s for s in read_dicom_folder(tmp_path, options, labels=table)}
    assert set(found) == {soft[0].SeriesInstanceUID, other[0].SeriesInstanceUID}
    assert found[soft[0].SeriesInstanceUID].patient_id == "PHANTOM"
    assert found[other[0].SeriesInstanceUID].patient_id == other[0].StudyInstanceUID
    assert (found[other[0].SeriesInstanceUID].labels == ABSENT).all()
    assert sorted((f.kind, f.where.removeprefix(f"{tmp_path}/")[:22]) for f in options.faults) == [
        (FaultKind.CONFLICTING, "elsewhere.csv, line 5"),
        (FaultKind.IMAGE_WITHOUT_LABEL, options.faults[-1].where[:22]),
        (FaultKind.LABEL_WITHOUT_IMAGE, "elsewhere.csv, study_i"),
    ]


def test_contradictions_and_two_patients_are_told(tmp_path: Path):
    one, two = write_series(tmp_path / "a", name="one"), write_series(tmp_path / "b", name="two")
    write_table(
        tmp_path / "labels.csv",
        ("series_instance_uid", "sop_instance_uid", "any", "patient_id"),
        [
            (one[0].SeriesInstanceUID, "", 0, ""),
            ("", one[1].SOPInstanceUID, 1, ""),
            ("", two[0].SOPInstanceUID, 1, "x"),
            ("", two[1].SOPInstanceUID, 1, "y"),
        ],
    )
    options = ReadOptions()
    (scan,) = read_dicom_folder(tmp_path, options)
    assert scan.scan_id == one[0].SeriesInstanceUID
    assert scan.scan_labels[ANY] == UNKNOWN
    assert (scan.labels[1, ANY], scan.labels[0, ANY]) == (PRESENT, ABSENT)
    assert {f.kind for f in options.faults} == {FaultKind.CONFLICTING}
    assert any("belongs to x, y; it is left out" in f.what for f in options.faults)


def test_a_table_without_what_it_needs_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"labels\.csv is not there"):
        read_dicom_folder(tmp_path)
    write_table(tmp_path / "labels.csv", ("uid", "any"), [])
    with pytest.raises(
        ValueError, match=r"any of file, sop_instance_uid.* is missing; the header has uid, any"
    ):
        read_dicom_folder(tmp_path)
    write_table(tmp_path / "labels.csv", ("file", "bleed"), [("a", 1)])
    with pytest.raises(ValueError, match="no column of a class"):
        read_dicom_folder(tmp_path)


# --- CT-ICH


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RPI", "PLS"])
def test_nifti_comes_upright_however_it_is_stored(tmp_path: Path, axes: str):
    write_nifti(tmp_path, 49, {3: ["Epidural"], 4: ["Epidural", "Subdural"]}, axes=axes)
    options = ReadOptions()
    (scan,) = read("ct-ich-nifti", tmp_path, options)
    assert options.faults == []
    assert (scan.patient_id, scan.outlined) == ("049", True)
    at = {int(name.split("/")[1]): i for i, name in enumerate(scan.slice_ids)}
    assert at[1] == (SLICES - 1 if axes.endswith("I") else 0)
    assert scan.labels[at[3]].tolist() == [1, 1, 0, 0, 0, 0]
    assert scan.scan_labels.tolist() == [1, 1, 0, 0, 0, 1]
    volume = pickle.loads(pickle.dumps(scan)).read()
    assert np.array_equal(volume.hu, np.trunc(small_head().hu))
    assert volume.spacing_mm == pytest.approx(HEAD_SPACING)
    blood = small_head().masks[IchSubtype.ANY]
    assert blood.any()
    assert np.array_equal(volume.lesion[:, ANY], blood)
    # of the outline a subtype is known where the slice has no other
    assert np.array_equal(volume.lesion[at[3], EPIDURAL], blood[at[3]])
    assert not np.delete(volume.lesion[:, EPIDURAL], at[3], axis=0).any()
    assert not volume.lesion[:, SUBDURAL].any()


def test_nifti_that_does_not_fit_its_table_is_told_and_the_others_stay(tmp_path: Path):
    for patient in (49, 50, 51, 52):
        write_nifti(tmp_path, patient, {})
    table = tmp_path / "hemorrhage_diagnosis_raw_ct.csv"
    lines = [line for line in table.read_text().splitlines() if not line.startswith(("50,", "52,12,"))]
    table.write_text("\n".join([*lines, "77,1,0,0,0,0,0,1,0", "49,2,0,0,0,1,0,1,0"]))
    cut = tmp_path / "ct_scans" / "051.nii"
    cut.write_bytes(cut.read_bytes()[:200])
    (tmp_path / "masks" / "049.nii").unlink()
    options = ReadOptions()
    first, second = read_ct_ich_nifti(tmp_path, options)
    assert (first.patient_id, first.outlined, second.patient_id) == ("049", False, "052")
    assert (first.labels[1] == UNKNOWN).all()
    assert first.scan_labels.tolist() == [UNKNOWN] * 6
    assert (second.labels[-1] == UNKNOWN).all()
    assert (second.labels[:-1] == ABSENT).all()
    assert sorted(f.kind for f in options.faults) == sorted(
        [
            FaultKind.CONFLICTING,  # both No_Hemorrhage and a subtype
            FaultKind.DOUBLED,  # the slice's second row
            FaultKind.IMAGE_WITHOUT_LABEL,  # 50
            FaultKind.LABEL_WITHOUT_IMAGE,  # 77
            FaultKind.LABEL_WITHOUT_IMAGE,  # the outline of 49
            FaultKind.DAMAGED,  # 51
            FaultKind.CONFLICTING,  # 52 has a slice more than its table
        ]
    )


def test_nifti_damaged_after_its_header_fails_when_it_is_read(tmp_path: Path):
    write_nifti(tmp_path, 49, {})
    file = tmp_path / "ct_scans" / "049.nii"
    file.write_bytes(file.read_bytes()[:5000])
    (scan,) = read_ct_ich_nifti(tmp_path)
    with pytest.raises(ValueError, match=r"049\.nii is damaged or cut short"):
        scan.read()
    write_nifti(tmp_path, 50, {})
    (tmp_path / "hemorrhage_diagnosis_raw_ct.csv").write_text("PatientNumber,SliceNumber,Epidural\n")
    with pytest.raises(
        ValueError, match="Intraparenchymal, Intraventricular, Subarachnoid, Subdural is missing"
    ):
        read_ct_ich_nifti(tmp_path)


def test_slices_that_are_not_axial_are_left_out(tmp_path: Path):
    write_nifti(tmp_path, 49, {}, axes="LSP")
    options = ReadOptions()
    assert read_ct_ich_nifti(tmp_path, options) == []
    assert [(f.kind, "not axial" in f.what) for f in options.faults] == [(FaultKind.DAMAGED, True)]


def test_a_gzipped_image_is_found(tmp_path: Path):
    write_nifti(tmp_path, 49, {})
    for folder in ("ct_scans", "masks"):
        plain = tmp_path / folder / "049.nii"
        nibabel.save(nibabel.load(plain), plain.with_suffix(".nii.gz"))
        plain.unlink()
    (scan,) = read_ct_ich_nifti(tmp_path)
    assert scan.outlined
    assert scan.read().hu.shape[0] == SLICES


def test_pictures_of_ct_ich_are_scans_with_an_estimated_spacing(tmp_path: Path):
    write_pictures(tmp_path)
    scans = read("ct-ich", tmp_path)
    assert [s.patient_id for s in scans] == ["001", "002", "003", "004"]
    assert [int(s.scan_labels[EPIDURAL]) for s in scans] == [1, 0, 1, 0]
    assert scans[0].slice_ids[0] == "001/1"
    assert not (scans[0].labels == UNKNOWN).any()
    volume = pickle.loads(pickle.dumps(scans[0])).read()
    assert volume.hu.shape == (14, 144, 144)
    assert volume.spacing_is_estimated
    assert volume.is_of_pictures
    assert volume.lesion is None


# --- phantoms and names


def test_phantoms_know_their_bleeds(tmp_path: Path):
    options = ReadOptions(cache=tmp_path)
    scans = read_phantom(options=options, count=3, pixels=64, slices=12)
    assert [s.scan_id for s in scans] == [f"phantom {FIRST_SEED + i}" for i in range(3)]
    assert all(s.synthetic and s.outlined for s in scans)
    normal = [s for s in scans if (s.scan_labels == ABSENT).all()]
    assert [s.scan_id for s in normal] == ["phantom 1000002"]
    for scan in scans:
        lesion = scan.read().lesion
        seen = lesion.any(axis=(2, 3))
        assert seen[scan.labels == PRESENT].all()
        assert not seen[scan.labels == ABSENT].any()
        assert np.array_equal(scan.scan_labels, scan_labels_of(scan.labels))
    (kept,) = tmp_path.glob("phantom-labels-*.npy")
    again = read_phantom(options=options, count=3, pixels=64, slices=12)
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(scans, again, strict=True))
    np.save(kept, np.full_like(np.load(kept), UNKNOWN))
    assert (read_phantom(options=options, count=3, pixels=64, slices=12)[0].labels == UNKNOWN).all()


def test_every_name_has_its_reader(tmp_path: Path):
    for name in set(READERS) - {"phantom"}:
        with pytest.raises(FileNotFoundError):
            read(name, tmp_path)
    with pytest.raises(ValueError, match="rsna-2019, cq500"):
        read("rsna", tmp_path)
