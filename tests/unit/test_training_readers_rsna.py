"""RSNA 2019: tables, series, order, doubles, damage and the cache of headers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pydicom import config, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset

from tests.labelled_data import (
    SLICES,
    small_head,
    write_rsna,
    write_rsna_series,
    write_series,
    write_table,
)
from training.readers import FaultKind, ReadOptions, dicom_index, read
from training.readers.rsna import read_rsna
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN


def kinds(options: ReadOptions) -> list[FaultKind]:
    return [fault.kind for fault in options.faults]


def test_series_become_scans_from_below_with_their_own_labels(tmp_path: Path):
    images = write_rsna_series(tmp_path, "a", "ID_p1")
    others = write_rsna_series(tmp_path, "b", "ID_p2", folder="stage_2_train/deeper")
    write_rsna(
        tmp_path, {name: {"epidural": int(i == 4)} for i, name in enumerate(images)} | {n: {} for n in others}
    )
    options = ReadOptions()
    first, second = read("rsna-2019", tmp_path, options)
    assert options.faults == []
    assert first.slice_ids == tuple(images)
    assert (first.patient_id, second.patient_id) == ("ID_p1", "ID_p2")
    assert first.labels[4].tolist() == [1, 1, 0, 0, 0, 0]
    assert np.flatnonzero((first.labels == PRESENT).any(axis=1)).tolist() == [4]
    assert first.scan_labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert second.scan_labels.tolist() == [ABSENT] * 6
    volume = pickle.loads(pickle.dumps(first)).read()
    assert np.array_equal(volume.hu, np.clip(small_head().hu, -1024, 3071))
    assert volume.spacing_mm == pytest.approx(small_head().spacing_mm, abs=1e-4)


def test_the_later_table_wins_and_doubled_rows_that_contradict_are_unknown(tmp_path: Path):
    images = write_rsna_series(tmp_path, "a", "ID_p")
    write_rsna(tmp_path, {n: {"subdural": 1} for n in images}, stage=1)
    table = write_rsna(tmp_path, {n: {} for n in images})
    with table.open("a") as text:
        text.write(
            f"{images[2]}_epidural,0\n{images[3]}_epidural,1\n{images[3]}_epidural,0\n{images[5]}_tumour,1\n"
        )
    options = ReadOptions()
    (scan,) = read_rsna(tmp_path, options)
    epidural = CLASSES.index("epidural")
    assert scan.labels[3, epidural] == UNKNOWN
    assert (np.delete(scan.labels.ravel(), 3 * len(CLASSES) + epidural) == ABSENT).all()
    assert scan.scan_labels[epidural] == UNKNOWN
    assert set(kinds(options)) == {FaultKind.CONFLICTING}
    said = [f"{f.where} {f.what}" for f in options.faults]
    assert sum("earlier stage" in text for text in said) == SLICES
    assert any("line 75" in text and "labelled both" in text for text in said)
    assert any("tumour" in text and "ignored" in text for text in said)


def test_a_file_cut_short_is_named_and_the_other_slices_stay(tmp_path: Path):
    images = write_rsna_series(tmp_path, "a", "ID_p")
    write_rsna(tmp_path, {n: {} for n in images})
    damaged = tmp_path / "stage_2_train" / f"{images[6]}.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    (tmp_path / "stage_2_train" / "ID_noise.dcm").write_bytes(b"no DICOM at all")
    options = ReadOptions()
    (scan,) = read_rsna(tmp_path, options)
    assert scan.slice_ids == (*images[:6], *images[7:])
    where = {f.where: f.what for f in options.faults if f.kind is FaultKind.DAMAGED}
    assert set(where) == {str(damaged), str(tmp_path / "stage_2_train" / "ID_noise.dcm")}
    assert "cut short" in where[str(damaged)]
    assert [f.where for f in options.faults if f.kind is FaultKind.LABEL_WITHOUT_IMAGE] == [images[6]]


def test_labels_without_image_and_images_without_label_are_told(tmp_path: Path):
    images = write_rsna_series(tmp_path, "a", "ID_p")
    write_rsna(tmp_path, {n: {} for n in [*images[1:], "ID_gone"]})
    options = ReadOptions()
    (scan,) = read_rsna(tmp_path, options)
    assert (scan.labels[0] == UNKNOWN).all()
    assert (scan.scan_labels == UNKNOWN).all()
    assert [(f.kind, f.where) for f in options.faults] == [
        (FaultKind.LABEL_WITHOUT_IMAGE, "ID_gone"),
        (FaultKind.IMAGE_WITHOUT_LABEL, images[0]),
    ]


def test_doubles_are_dropped_and_their_labels_kept(tmp_path: Path):
    images = write_rsna_series(tmp_path, "a", "ID_p")
    # the same images in the folder of the other stage, and one more image at the place of the fourth
    write_rsna_series(tmp_path, "a", "ID_p", folder="stage_1_train_images")

    twin = dcmread(tmp_path / "stage_2_train" / f"{images[3]}.dcm")
    twin[0x00080018] = DataElement(0x00080018, "UI", "ID_twin", validation_mode=config.IGNORE)
    twin.save_as(tmp_path / "stage_2_train" / "ID_twin.dcm")
    write_rsna(tmp_path, {n: {} for n in images} | {"ID_twin": {"subdural": 1}})
    options = ReadOptions()
    (scan,) = read_rsna(tmp_path, options)
    assert len(scan.slice_ids) == SLICES
    assert len(scan.read().hu) == SLICES
    assert scan.labels[3].tolist() == [UNKNOWN, ABSENT, ABSENT, ABSENT, ABSENT, UNKNOWN]
    assert sorted(kinds(options)) == sorted([FaultKind.DOUBLED, FaultKind.DOUBLED, FaultKind.CONFLICTING])


def test_twelve_bits_that_wrapped_are_mended_as_the_node_does(tmp_path: Path):
    def wrap(index: int, image: FileDataset) -> None:
        hu = np.clip(small_head().hu[index], -1000, 3000).astype(np.int32)
        image.BitsStored, image.HighBit, image.RescaleIntercept = 12, 11, "-1"
        image.PixelData = (hu % 4096).astype(np.uint16).tobytes()

    written = write_series(tmp_path / "stage_1_train_images", change=wrap)
    write_rsna(tmp_path, {f"CT{i:06d}": {} for i in range(SLICES)}, stage=1)
    (scan,) = read_rsna(tmp_path)
    assert len(written) == len(scan.slice_ids)
    assert np.array_equal(scan.read().hu, np.clip(small_head().hu, -1000, 3000))


def test_prone_images_come_upright(tmp_path: Path):
    write_series(tmp_path / "stage_2_train", image_orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    write_rsna(tmp_path, {f"CT{i:06d}": {} for i in range(SLICES)})
    (scan,) = read_rsna(tmp_path)
    assert np.array_equal(scan.read().hu, small_head().hu[:, ::-1, ::-1])


def test_the_index_of_headers_is_kept_and_only_new_files_are_read(tmp_path: Path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    images = write_rsna_series(data, "a", "ID_p")
    write_rsna(data, {n: {} for n in images})
    (before,) = read_rsna(data, ReadOptions(cache=cache))
    (file,) = cache.glob("dicom-headers-*.jsonl")
    # same name and size: the index is believed; other size: the file is read again
    kept = data / "stage_2_train" / f"{images[0]}.dcm"
    kept.write_bytes(bytes(kept.stat().st_size))
    cut = data / "stage_2_train" / f"{images[1]}.dcm"
    cut.write_bytes(cut.read_bytes()[:-2])
    options = ReadOptions(cache=cache)
    (after,) = read_rsna(data, options)
    assert after.slice_ids == (before.slice_ids[0], *before.slice_ids[2:])
    assert FaultKind.DAMAGED in kinds(options)
    assert len(file.read_text().splitlines()) == SLICES + 1
    with pytest.raises(ValueError, match=images[0]):
        after.read()
    file.write_text(json.dumps({"format": 1}) + "\nno JSON\n")
    (again,) = read_rsna(data, ReadOptions(cache=cache))
    assert again.slice_ids == before.slice_ids[2:]


def test_processes_give_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.readers.dicom_index._FEW_FILES", 1)
    images = write_rsna_series(tmp_path, "a", "ID_p")
    write_rsna(tmp_path, {n: {} for n in images})
    (alone,), (shared,) = (read_rsna(tmp_path, ReadOptions(processes=n)) for n in (1, 2))
    assert alone.slice_ids == shared.slice_ids
    assert alone.read.__self__ == shared.read.__self__  # type: ignore[attr-defined]


@pytest.mark.parametrize("missing", ["table", "images", "column"])
def test_what_is_not_there_is_named(tmp_path: Path, missing: str):
    if missing != "images":
        write_rsna_series(tmp_path, "a", "ID_p")
    if missing != "table":
        write_table(tmp_path / "stage_2_train.csv", ("ID", "Value" if missing == "column" else "Label"), [])
    wanted = {"table": "stage_2_train.csv", "images": "stage_2_train_images", "column": "ID, Value"}[missing]
    with pytest.raises((FileNotFoundError, ValueError), match=wanted):
        read_rsna(tmp_path)


def test_an_interrupted_index_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, cache = tmp_path / "data", tmp_path / "cache"
    images = write_rsna_series(data, "a", "ID_p")
    write_rsna(data, {n: {} for n in images})
    read_entry = dicom_index._entry

    def interrupted(root: Path, name: str) -> dict[str, object]:
        if name == "ID_a04.dcm":
            raise KeyboardInterrupt
        return read_entry(root, name)

    with monkeypatch.context() as patched:
        patched.setattr(dicom_index, "_entry", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_rsna(data, ReadOptions(cache=cache))
    (file,) = cache.iterdir()
    assert len(file.read_text().splitlines()) == 5
    (scan,) = read_rsna(data, ReadOptions(cache=cache))
    assert scan.slice_ids == tuple(images)
