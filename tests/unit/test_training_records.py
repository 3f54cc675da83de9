"""Records of runs: the same predictions come back with the data at hand, and nothing of the data is kept."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_training_comparison import SLICES, write_run
from training.comparison import Row, record_runs, write_page
from training.predictions import Predictions
from training.records import Said, file_of, keep, of_run, recall
from training.scan import CLASSES, Scan, TruthBox, Volume

RECIPE = "vicar-attention-small"


def read() -> Volume:
    raise AssertionError("no images are needed")


@pytest.fixture
def said(tmp_path: Path) -> Said:
    """A run of a system that knows no intraventricular hemorrhage and saw no brain in its third slice."""
    write_run(tmp_path / RECIPE, RECIPE, 2.0)
    found = of_run(tmp_path / RECIPE)
    assert found is not None
    places = np.array([[1, 0, 0.5, 10, 20, 10, 20], [5, 2, 0.25, 1, 2, 3, 4.5]], np.float64)
    logits = found[0].logits.copy()
    logits[2], logits[:, 3] = -np.inf, np.nan
    pixel_mm = np.linspace(0.4, 0.6, logits.shape[0] * 2).reshape(-1, 2)
    first = _boxes(len(found[0].scan_ids))
    return replace(found[0], places=places, logits=logits, pixel_mm=pixel_mm, boxes=first), found[1]


def _boxes(scans: int) -> np.ndarray:
    """One a scan, in its second slice."""
    return np.array([[SLICES * n + 1, 5, 1, 2, 3, n + 4] for n in range(scans)], np.float64)


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
    scans, file = scans_of(predictions), file_of(tmp_path / "records", RECIPE)
    keep(said, scans, file)
    again, described = recall(file, scans)
    assert described == run
    for name in (field.name for field in fields(Predictions)):
        got, wanted = getattr(again, name), getattr(predictions, name)
        if name in ("logits", "pixel_mm", "places"):
            np.testing.assert_allclose(got, wanted, rtol=1e-7)
            assert got.dtype == np.float64
        else:
            assert np.array_equal(got, wanted), name


def test_a_page_from_records_is_that_from_the_runs(tmp_path: Path):
    rows = [Row(recipe=name, system="A", label=name) for name in (RECIPE, "vicar-max-small")]
    for number, row in enumerate(rows):
        write_run(tmp_path / "runs" / row.recipe, row.recipe, 1.0 + number, seed=number)
    first = of_run(tmp_path / "runs" / RECIPE)
    assert first is not None
    scans = [replace(scan, boxes=()) for scan in scans_of(first[0])]
    absent = Row(recipe="he-fusion-small", system="B", label="He")
    kept = record_runs(tmp_path / "runs", scans, tmp_path / "records", [*rows, absent])
    assert kept == {RECIPE: True, "vicar-max-small": True, "he-fusion-small": False}
    write_page(lambda name: of_run(tmp_path / "runs" / name), tmp_path / "runs.md", "command", rows)
    write_page(
        lambda n: recall(file_of(tmp_path / "records", n), scans), tmp_path / "rec.md", "command", rows
    )
    assert (tmp_path / "rec.md").read_text() == (tmp_path / "runs.md").read_text()


def test_neither_images_nor_labels_are_kept(said: Said, tmp_path: Path):
    file = tmp_path / "record.npz"
    keep(said, scans_of(said[0]), file)
    with np.load(file, allow_pickle=False) as kept:
        assert not {"labels", "scan_labels", "boxes"} & set(kept.files)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["record.npz"]


def test_a_run_with_open_folds_says_nothing(said: Said, tmp_path: Path):
    (tmp_path / RECIPE / "fold1" / "predictions.npz").unlink()
    assert of_run(tmp_path / RECIPE) is None
    assert of_run(tmp_path / "absent") is None


def test_a_damaged_run_is_told(said: Said, tmp_path: Path):
    file = tmp_path / RECIPE / "fold1" / "predictions.npz"
    for content in (b"", file.read_bytes()[:2000]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"fold1/predictions\.npz is damaged"):
            of_run(tmp_path / RECIPE)


def test_other_data_are_told(said: Said, tmp_path: Path):
    file, scans = tmp_path / "record.npz", scans_of(said[0])
    keep(said, scans, file)
    name = scans[0].scan_id
    where = f"scan {name} of patient {name}"
    with pytest.raises(ValueError, match=rf"{where} is 0 times in the data given \(tests\)"):
        recall(file, scans[1:])
    with pytest.raises(ValueError, match=f"{where} is 2 times"):
        recall(file, [scans[0], *scans])
    with pytest.raises(ValueError, match=r"is 0 times in the data given \(none\)"):
        recall(file, [])
    with pytest.raises(ValueError, match="scan p00 of patient p00 is 0 times"):
        recall(file, [replace(scan, patient_id="somebody") for scan in scans])
    short = replace(scans[0], slice_ids=scans[0].slice_ids[1:], labels=scans[0].labels[1:])
    with pytest.raises(ValueError, match=f"scan {name} has 4 slices, but 3 in the data"):
        recall(file, [short, *scans[1:]])
    turned = [replace(scan, labels=scan.labels[[0, 2, 3, 1]]) for scan in scans]
    for others in (turned, [replace(scan, boxes=()) for scan in scans]):
        with pytest.raises(ValueError, match=r"record\.npz: the data that were given have other labels"):
            recall(file, others)
        with pytest.raises(ValueError, match="other labels than those of the run"):
            keep(said, others, tmp_path / "new.npz")
    assert not (tmp_path / "new.npz").exists()


def test_a_record_on_other_patients_or_folds_is_not_replaced(said: Said, tmp_path: Path):
    file, scans = tmp_path / "record.npz", scans_of(said[0])
    keep(said, scans, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"record\.npz is a record on other patients or folds"):
        keep((replace(said[0], fold=1 - said[0].fold), said[1]), scans, file)
    assert file.read_bytes() == before
    keep((replace(said[0], logits=said[0].logits + 1), said[1]), scans, file)
    assert recall(file, scans)[0].logits[0, 0] == pytest.approx(said[0].logits[0, 0] + 1)


def test_what_is_no_record_is_told(said: Said, tmp_path: Path):
    scans = scans_of(said[0])
    with pytest.raises(FileNotFoundError):
        recall(tmp_path / "absent.npz", scans)
    said[0].save(tmp_path / "predictions.npz")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").touch()
    file = tmp_path / "cut.npz"
    keep(said, scans, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:2000])
    for name in ("predictions", "text", "empty", "cut"):
        with pytest.raises(ValueError, match=rf"{name}\.npz is damaged, or another kind of file"):
            recall(tmp_path / f"{name}.npz", scans)
    for at in range(60, len(whole), len(whole) // 40):  # told as damage, or in a part that is not read
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with contextlib.suppress(ValueError):
            recall(file, scans)
