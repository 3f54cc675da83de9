"""Labelled scans read as the node reads them, and the predictions of several folds as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from ich_node.findings import IchSubtype
from ich_node.model.predict import load_predictor
from ich_node.model.system import Head
from ich_node.testing.phantom import head_phantom
from tests.ct_ich_pictures import write_pictures
from tests.system_bundles import small_bleed, small_phantom, write_system_bundle
from training.ct_ich import estimated_spacing_mm
from training.predictions import Predictions
from training.readers import read
from training.reading import joined, read_scans
from training.scan import CLASSES, Scan, TruthBox, Volume, labels_of, scan_labels_of

ANY = 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {name: write_system_bundle(root / name, name) for name in ("lite-mil", "vicar-mil", "he-fusion")}


def scan_of(name: str, volume: Volume, **changes: Any) -> Scan:
    labels = np.stack([labels_of(frozenset())] * len(volume.hu))
    labels[3] = labels_of(frozenset({IchSubtype.SUBDURAL}))
    values: dict[str, Any] = {
        "source": "tests",
        "scan_id": name,
        "patient_id": f"patient {name}",
        "slice_ids": tuple(f"{name}/{i}" for i in range(len(labels))),
        "labels": labels,
        "scan_labels": scan_labels_of(labels),
        "read": lambda: volume,
    }
    return Scan(**values | changes)


def heads() -> list[Scan]:
    bleed, sound = small_bleed(), small_phantom(seed=6)
    air = Volume(hu=np.full((5, 64, 64), -1000, np.float32), spacing_mm=(5.0, 1.0, 0.9))
    box = TruthBox(slice_index=3, subtype=IchSubtype.SUBDURAL, left=10, top=20, right=30, bottom=40)
    return [
        scan_of("a", Volume(hu=bleed.hu, spacing_mm=bleed.spacing_mm)),
        scan_of("air", air),
        scan_of("b", Volume(hu=sound.hu, spacing_mm=sound.spacing_mm), boxes=(box,)),
    ]


@pytest.mark.parametrize("architecture", ["lite-mil", "vicar-mil", "he-fusion"])
def test_predictions_are_what_the_node_says(bundles: dict[str, Path], architecture: str, tmp_path: Path):
    scans = heads()
    found = read_scans(bundles[architecture], scans, system="mine", split="none", fold=3)
    reader = load_predictor(bundles[architecture], "cpu")
    known = [CLASSES.index(subtype) for subtype in reader.system.classes]
    first = np.cumsum([0, *(len(scan.slice_ids) for scan in scans)])
    assert found.fold.tolist() == [3, 3, 3]
    assert np.isnan(np.delete(found.logits, known, axis=1)).all()
    for number, scan in enumerate(scans):
        rows = slice(first[number], first[number + 1])
        assert (found.scan[rows] == number).all()
        volume = scan.read()
        assert (found.pixel_mm[rows] == volume.spacing_mm[1:]).all()
        if scan.scan_id == "air":
            assert np.isneginf(found.logits[rows][:, known]).all()
            continue
        head = Head(hu=volume.hu, spacing_mm=volume.spacing_mm)
        scores = reader.system.score(head)
        assert np.array_equal(found.logits[rows][:, known], scores.logits)
        for index in (head.inside[0], head.inside[4]):
            places = reader.system.places(reader.maps(head, index, scores), head.spacing_mm)
            rows_of = found.places[found.places[:, 0] == first[number] + index]
            assert len(rows_of) == len(places)
            for row, place in zip(rows_of, places, strict=True):
                assert CLASSES[int(row[1])] is place.subtype
                assert row[2] == place.score
                if place.kind == "point":
                    assert tuple(row[3:5]) == tuple(row[5:7]) == place.coordinates
                else:
                    assert tuple(row[3:]) == place.coordinates
    assert len(found.places)
    assert found.boxes.tolist() == [[first[2] + 3, CLASSES.index(IchSubtype.SUBDURAL), 10, 20, 30, 40]]
    found.save(tmp_path / "found.npz")
    again = Predictions.load(tmp_path / "found.npz")
    assert np.array_equal(again.logits, found.logits, equal_nan=True)
    assert (again.system, again.data, again.split) == ("mine", "tests", "none")
    without = read_scans(bundles[architecture], scans[1:], system="mine", split="none", places=False)
    assert not len(without.places)


def test_images_that_cannot_be_read_are_named(bundles: dict[str, Path]):
    def unreadable() -> NoReturn:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "7.jpg is no text")

    scans = [replace(heads()[0], read=unreadable)]
    with pytest.raises(ValueError, match=r"scan a: .*7\.jpg is no text"):
        read_scans(bundles["vicar-mil"], scans, system="mine", split="none")


# --- folds


def part(fold: int, scans: int, data: str = "tests", **changes: Any) -> Predictions:
    """Predictions of scans with two slices each; every number is one of its own."""
    number = 100.0 * fold + np.arange(2 * scans)
    names = np.array([f"{fold}-{i}" for i in range(scans)], np.str_)
    values: dict[str, Any] = {
        "system": "mine",
        "data": data,
        "split": "folds",
        "scan_ids": names,
        "patient_ids": names,
        "fold": np.full(scans, fold),
        "scan": np.repeat(np.arange(scans), 2),
        "labels": np.zeros((2 * scans, 6), np.int8),
        "scan_labels": np.zeros((scans, 6), np.int8),
        "logits": np.repeat(number[:, None], 6, axis=1),
        "places": np.array([[1, 0, 0.5, *[number[1]] * 4]]),
        "boxes": np.array([[0, 2, *[number[0]] * 4]]),
        "pixel_mm": np.ones((2 * scans, 2)),
    }
    return Predictions(**values | changes)


def test_folds_are_joined_slice_by_slice():
    whole = joined([part(0, 2), part(1, 3), part(2, 1)])
    assert whole.scan.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert whole.fold.tolist() == [0, 0, 1, 1, 1, 2]
    assert whole.logits[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103, 104, 105, 200, 201]
    # a place and a box stay with their slice
    assert whole.places[:, 0].tolist() == [1, 5, 11]
    assert whole.logits[whole.places[:, 0].astype(int), 0].tolist() == whole.places[:, 3].tolist()
    assert whole.logits[whole.boxes[:, 0].astype(int), 0].tolist() == whole.boxes[:, 2].tolist()


def test_folds_of_several_data_sets_need_not_hold_all_of_them():
    assert joined([part(0, 1, "a"), part(1, 1, "a, b"), part(2, 1, "b")]).data == "a, b"


def test_parts_that_are_not_of_one_run_are_refused():
    with pytest.raises(ValueError, match="different systems or splits"):
        joined([part(0, 1), part(1, 1, system="other")])
    with pytest.raises(ValueError, match="a patient in common"):
        joined([part(0, 1), part(1, 1, patient_ids=np.array(["0-0"]))])
    # two scans of one patient lie in one fold
    assert len(joined([part(0, 2, patient_ids=np.array(["p", "p"])), part(1, 1)]).scan_ids) == 3


# --- pictures


def test_pictures_give_the_hounsfield_units_back(tmp_path: Path):
    write_pictures(tmp_path)
    first, second = read("ct-ich", tmp_path)[:2]
    size: dict[str, Any] = {"rows": 144, "columns": 144, "slices": 14, "slice_spacing_mm": 10}
    want = head_phantom(bleeds=[IchSubtype.EPIDURAL], seed=701, **size).hu
    hu = first.read().hu
    tissue = (want > 5) & (want < 80)
    assert np.median(np.abs(hu - want)[tissue]) < 3
    assert (hu[want > 400] > 160).mean() > 0.95
    assert (hu[want < -500] < -100).mean() > 0.95
    assert (first.labels[:, ANY] == 1).any()
    assert not second.labels.any()


def test_listed_picture_that_is_absent_is_named(tmp_path: Path):
    (tmp_path / "hemorrhage_diagnosis.csv").write_text(
        "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural\n"
        "4,1,0,0,0,0,0\n4,99,0,0,0,0,0\n"
    )
    folder = tmp_path / "Patients_CT" / "004" / "brain"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "1.jpg")
    with pytest.raises(FileNotFoundError, match=r"004/brain/99\.jpg is listed in the table but absent"):
        read("ct-ich", tmp_path)


def test_estimated_spacing_brings_heads_to_one_size():
    """One head in two fields of view gets two spacings, in their proportion."""
    wide, narrow = (
        head_phantom(seed=710, rows=160, columns=160, slices=12, slice_spacing_mm=10, field_of_view_mm=f).hu
        for f in (260.0, 215.0)
    )
    enlarged = [np.repeat(np.repeat(v, 4, axis=1), 4, axis=2) for v in (wide, narrow)]
    a, b = (estimated_spacing_mm(v)[1] for v in enlarged)
    assert a / b == pytest.approx(260 / 215, rel=0.06)
