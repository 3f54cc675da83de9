"""Records of runs: the same predictions come back with the data at hand, and nothing of the data is kept."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_training_comparison import PATIENTS, SLICES, write_run
from training.predictions import Predictions
from training.records import Said, file_of, keep, of_run, recall
from training.scan import CLASSES, Scan, TruthBox, Volume

RECIPE = "vicar-attention-small"


def read() -> Volume:
    raise AssertionError("no images are needed")


@pytest.fixture
def said(tmp_path: Path) -> Said:
    write_run(tmp_path / RECIPE, RECIPE, 2.0)
    found = of_run(tmp_path / RECIPE)
    assert found is not None
    places = np.array([[1, 0, 0.5, 10, 20, 10, 20], [5, 2, 0.25, 1, 2, 3, 4.5]], np.float64)
    return replace(found[0], places=places), found[1]


def scans_of(predictions: Predictions) -> list[Scan]:
    """Labelled scans as a reader would give them, in an order of their own."""
    scans = []
    for number, scan_id in enumerate(predictions.scan_ids.tolist()):
        own = predictions.scan == number
        box = TruthBox(slice_index=1, subtype=CLASSES[5], left=1, top=2, right=3, bottom=number + 4)
        scans.append(
            Scan(
                source="tests",
                scan_id=scan_id,
                patient_id=scan_id,
                slice_ids=tuple(f"{scan_id}-{i}" for i in range(int(own.sum()))),
                labels=predictions.labels[own],
                scan_labels=predictions.scan_labels[number],
                read=read,
                boxes=(box,),
            )
        )
    return scans[::-1]


def test_what_a_run_said_comes_back_with_the_labels_of_the_data(said: Said, tmp_path: Path):
    predictions, run = said
    file = file_of(tmp_path / "records", RECIPE)
    keep(said, file)
    again, described = recall(file, scans_of(predictions))
    assert described == run
    for name in (field.name for field in fields(Predictions) if field.name != "boxes"):
        got, wanted = getattr(again, name), getattr(predictions, name)
        if name in ("logits", "places"):
            assert np.array_equal(got, wanted.astype(np.float32).astype(np.float64))
        else:
            assert np.array_equal(got, wanted), name
    assert again.boxes[:, 0].tolist() == [SLICES * number + 1 for number in range(PATIENTS)]
    assert again.boxes[:, -1].tolist() == [number + 4 for number in range(PATIENTS)]


def test_nothing_of_the_data_is_kept(said: Said, tmp_path: Path):
    file = tmp_path / "record.npz"
    keep(said, file)
    with np.load(file, allow_pickle=False) as kept:
        assert not {"labels", "scan_labels", "boxes"} & set(kept.files)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["record.npz"]


def test_a_run_with_open_folds_says_nothing(said: Said, tmp_path: Path):
    (tmp_path / RECIPE / "fold1" / "predictions.npz").unlink()
    assert of_run(tmp_path / RECIPE) is None
    assert of_run(tmp_path / "absent") is None


def test_other_data_are_told(said: Said, tmp_path: Path):
    file = tmp_path / "record.npz"
    keep(said, file)
    scans = scans_of(said[0])
    name = scans[0].scan_id
    with pytest.raises(ValueError, match=f"scan {name} of tests is 0 times in the data"):
        recall(file, scans[1:])
    with pytest.raises(ValueError, match=f"scan {name} of tests is 2 times in the data"):
        recall(file, [scans[0], *scans])
    with pytest.raises(ValueError, match="0 times"):
        recall(file, [replace(scan, source="others") for scan in scans])
    short = replace(scans[0], slice_ids=scans[0].slice_ids[1:], labels=scans[0].labels[1:])
    with pytest.raises(ValueError, match=f"scan {name} has 4 slices, but 3 in the data"):
        recall(file, [short, *scans[1:]])


def test_what_is_no_record_is_told(said: Said, tmp_path: Path):
    scans = scans_of(said[0])
    with pytest.raises(FileNotFoundError):
        recall(tmp_path / "absent.npz", scans)
    said[0].save(tmp_path / "predictions.npz")
    (tmp_path / "text.npz").write_text("no archive")
    file = tmp_path / "cut.npz"
    keep(said, file)
    file.write_bytes(file.read_bytes()[:2000])
    for name in ("predictions", "text", "cut"):
        with pytest.raises(ValueError, match=f"{name}.npz is no record of a run"):
            recall(tmp_path / f"{name}.npz", scans)
