"""Cached slices: what the system will see, lesions where they are, and a cache that is never of something else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from ich_node.findings import IchSubtype
from ich_node.model.burduja import BurdujaPreprocessing
from ich_node.model.he_fusion import HeFusionPreprocessing
from ich_node.model.lite_mil import LiteMilPreprocessing, slice_hu
from ich_node.model.preprocess import PreprocessConfig
from ich_node.model.radnet import RadNetPreprocessing
from ich_node.model.system import Head
from ich_node.testing.phantom import HeadPhantom, head_phantom
from training.cuts import KINDS, MARGIN, Cuts, Taught, load_cuts, margin, plain_name
from training.grids import cut
from training.scan import CLASSES, PRESENT, UNKNOWN, Scan, Volume, labels_of, scan_labels_of

LITE = LiteMilPreprocessing(size=64, pitch_mm=3.0)
VICAR = PreprocessConfig(size=64, pitch_mm=3.0)
HALF = MARGIN // 2


def _phantom() -> HeadPhantom:
    return head_phantom(
        bleeds=[IchSubtype.INTRAPARENCHYMAL, IchSubtype.SUBDURAL],
        seed=731,
        rows=128,
        columns=128,
        slices=12,
        slice_spacing_mm=13.0,
    )


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return _phantom()


def scan_of(phantom: HeadPhantom, *, outlined: bool = True, **changes: Any) -> Scan:
    """A phantom as a patient's scan."""
    labels = np.stack([labels_of(subtypes) for subtypes in phantom.subtypes_by_slice()])
    lesion = np.zeros((len(phantom.hu), len(CLASSES), *phantom.hu.shape[1:]), np.bool_)
    for subtype, mask in phantom.masks.items():
        lesion[:, CLASSES.index(subtype)] = mask
    volume = Volume(hu=phantom.hu, spacing_mm=phantom.spacing_mm, lesion=lesion if outlined else None)
    values: dict[str, Any] = {
        "source": "tests",
        "scan_id": "one",
        "patient_id": "one",
        "slice_ids": tuple(f"one/{i}" for i in range(len(labels))),
        "labels": labels,
        "scan_labels": scan_labels_of(labels),
        "read": lambda: volume,
        "outlined": outlined,
    }
    return Scan(**values | changes)


def unread(scan: Scan) -> Scan:
    """The same, whose images must not be read."""

    def read() -> NoReturn:
        raise AssertionError("read again")

    return replace(scan, read=read)


class Marks:
    """A teacher that is sure of a disc of 9 mm around one place on every slice labelled positive."""

    name = "marks"

    def __init__(self, row_mm: float, column_mm: float, certainty: float = 1.0, every: bool = False) -> None:
        self.at, self.certainty, self.every = (row_mm, column_mm), certainty, every

    def __call__(self, scan: Scan) -> Taught | None:
        slices = np.arange(len(scan.labels)) if self.every else np.flatnonzero(scan.labels[:, 0] == PRESENT)
        y, x = np.mgrid[:240, :260]
        disc = np.hypot(y - self.at[0], x - self.at[1]) < 9
        likelihood = np.zeros((len(slices), len(KINDS), 240, 260), np.uint8)
        likelihood[:, 2, disc] = round(255 * self.certainty)
        return Taught(slices=slices, likelihood=likelihood, pitch_mm=1.0)


# --- what is seen


@pytest.mark.parametrize(
    "preprocessing",
    [
        LITE,
        VICAR,
        HeFusionPreprocessing(size=64, pitch_mm=3.6),
        HeFusionPreprocessing(size=64, pitch_mm=0),
        RadNetPreprocessing(size=64, pitch_mm=3.75),
        BurdujaPreprocessing(size=64, pitch_mm=3.6),
    ],
    ids=lambda p: f"{type(p).__name__}-{p.pitch_mm:g}",
)
def test_a_cached_slice_without_its_margin_is_what_the_system_sees(
    phantom: HeadPhantom, tmp_path: Path, preprocessing: Any
):
    scan, head = scan_of(phantom), Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm)
    cuts = load_cuts([scan], preprocessing, tmp_path)
    assert cuts.index.tolist() == list(head.inside)
    assert np.array_equal(cuts.labels, scan.labels[cuts.index])
    rows = [0, len(cuts.row) // 2, len(cuts.row) - 1]
    hu, mask, _ = cuts.read(rows)
    edge = margin(preprocessing) // 2
    inner = np.s_[..., edge : edge + 64, edge : edge + 64]
    assert hu.shape[2:] == (64 + 2 * edge, 64 + 2 * edge)
    for number, row in enumerate(rows):
        want = cut(preprocessing, head, int(cuts.index[row]))
        # half a unit is lost by whole numbers
        assert np.abs(hu[number][inner] - want.hu).max() <= 0.501
        assert np.array_equal(mask[number][inner] > 0, want.mask)
        assert cuts.area[row] == mask[number].sum()


def test_system_of_the_package_sees_what_training_sees(phantom: HeadPhantom):
    head = Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm)
    hu, mask, frame = slice_hu(head, 5, LITE)
    found = cut(LITE, head, 5)
    assert np.array_equal(found.hu, hu)
    assert np.array_equal(found.mask, mask)
    assert found.frame == frame
    with pytest.raises(TypeError, match="nothing here cuts slices by str"):
        cut("whatever", head, 5)


def test_slices_are_read_as_they_are_asked_for(phantom: HeadPhantom, tmp_path: Path):
    two = [scan_of(phantom), scan_of(phantom, scan_id="two", synthetic=True)]
    cuts = load_cuts(two, VICAR, tmp_path)
    count = len(cuts.row) // 2
    assert cuts.scan.tolist() == [0] * count + [1] * count
    assert cuts.synthetic.tolist() == [False] * count + [True] * count
    hu, mask, lesion = cuts.read([count + 2, 1, 1, 2])
    alone = [cuts.read([row]) for row in (2, 1, 1, 2)]
    for part, of_one in zip((hu, mask, lesion), zip(*alone, strict=True), strict=True):
        assert np.array_equal(part, np.concatenate(of_one))


# --- lesions


def test_outlines_lie_where_the_blood_is(phantom: HeadPhantom, tmp_path: Path):
    cuts = load_cuts([scan_of(phantom)], LITE, tmp_path)
    head = Head(hu=phantom.hu, spacing_mm=phantom.spacing_mm)
    wide = replace(LITE, size=LITE.size + MARGIN)
    assert cuts.located.all()
    checked = 0
    for row, index in enumerate(cuts.index):
        _, _, lesion = cuts.read([row])
        assert cuts.blood[row] == pytest.approx(lesion[0].max(axis=0).sum() / 255)
        frame = cut(wide, head, int(index)).frame
        for kind, subtype in ((0, IchSubtype.INTRAPARENCHYMAL), (1, IchSubtype.SUBDURAL)):
            outline = phantom.masks[subtype][index]
            if outline.sum() < 20:
                continue
            checked += 1
            plane = lesion[0, kind].astype(float)
            grid = np.indices(plane.shape).reshape(2, -1)
            centre = (grid * plane.ravel()).sum(1) / plane.sum()
            want = np.argwhere(outline).mean(axis=0)
            assert frame.to_source(*centre) == pytest.approx(tuple(want), abs=0.6)
            # as much of it: pixels of 3 mm instead of the phantom's
            area = plane.sum() / 255 * LITE.pitch_mm**2
            assert area == pytest.approx(outline.sum() * phantom.spacing_mm[1] ** 2, rel=0.1)
        assert not lesion[0, 2].any()
    assert checked >= 3


def test_blood_is_dense(phantom: HeadPhantom, tmp_path: Path):
    cuts = load_cuts([scan_of(phantom)], VICAR, tmp_path)
    hu, mask, lesion = cuts.read(np.flatnonzero(cuts.labels[:, 0] == PRESENT))
    blood = lesion.max(axis=1) > 200
    assert np.median(hu[:, 0][blood]) > 45
    elsewhere = hu[:, 0][(lesion.max(axis=1) == 0) & (mask > 0)]
    assert ((elsewhere > 50) & (elsewhere < 90)).mean() < 0.2


@pytest.mark.parametrize("aspect", [1.0, 1.3])
def test_what_a_teacher_marks_lies_on_the_same_pixel(phantom: HeadPhantom, tmp_path: Path, aspect: float):
    """Rows and columns of different spacing cannot be taken for each other."""
    spacing = (phantom.spacing_mm[0], phantom.spacing_mm[1], phantom.spacing_mm[2] * aspect)
    scan = scan_of(phantom, read=lambda: Volume(hu=phantom.hu, spacing_mm=spacing))
    source = (50.0, 75.0)
    teacher = Marks(source[0] * spacing[1], source[1] * spacing[2])
    cuts = load_cuts([scan], LITE, tmp_path, teacher)
    head = Head(hu=phantom.hu, spacing_mm=spacing)
    wide = replace(LITE, size=LITE.size + MARGIN)
    positive = np.flatnonzero(cuts.labels[:, 0] == PRESENT)
    assert cuts.located.all()
    assert len(positive) >= 3
    for row in positive:
        plane = cuts.read([row])[2][0, 2].astype(float)
        centre = (np.indices(plane.shape).reshape(2, -1) * plane.ravel()).sum(1) / plane.sum()
        assert cut(wide, head, int(cuts.index[row])).frame.to_source(*centre) == pytest.approx(
            source, abs=0.3
        )
        assert plane.max() > 250
    others = np.setdiff1d(np.arange(len(cuts.row)), positive)
    assert not cuts.read(others)[2].any()


@pytest.mark.parametrize(("certainty", "highest"), [(1.0, 255), (0.4, 178), (0.3, 0)])
def test_a_teacher_s_guess_is_not_used_and_its_highest_becomes_certain(
    phantom: HeadPhantom, tmp_path: Path, certainty: float, highest: int
):
    teacher = Marks(100, 110, certainty)
    cuts = load_cuts([scan_of(phantom, outlined=False)], replace(LITE, pitch_mm=1.0), tmp_path, teacher)
    positive = cuts.labels[:, 0] == PRESENT
    assert (cuts.located == (~positive | (highest > 0))).all()
    assert cuts.read(np.flatnonzero(positive))[2].max() == pytest.approx(highest, abs=3)


def test_radiologists_labels_go_before_the_teacher(phantom: HeadPhantom, tmp_path: Path):
    """Asked or not: a slice without hemorrhage has none, and of one that nobody labelled nothing is known."""
    scan = scan_of(phantom, outlined=False)
    labels = scan.labels.copy()
    unknown, sound = 5, int(np.flatnonzero(labels[:, 0] == 0)[3])
    labels[unknown] = UNKNOWN
    cuts = load_cuts([replace(scan, labels=labels)], LITE, tmp_path, Marks(100, 110, every=True))
    at = {int(index): row for row, index in enumerate(cuts.index)}
    assert not cuts.located[at[unknown]]
    assert cuts.located[at[sound]]
    assert not cuts.read([at[unknown], at[sound]])[2].any()
    assert (cuts.blood[cuts.labels[:, 0] == PRESENT] > 0).all()


def test_without_a_teacher_bleeds_are_not_located(phantom: HeadPhantom, tmp_path: Path):
    cuts = load_cuts([scan_of(phantom, outlined=False)], LITE, tmp_path)
    assert np.array_equal(cuts.located, cuts.labels[:, 0] == 0)
    assert not cuts.blood.any()


def test_a_positive_slice_that_nobody_outlined_is_not_located(phantom: HeadPhantom, tmp_path: Path):
    scan = scan_of(phantom)
    index = int(np.flatnonzero(scan.labels[:, 0] == PRESENT)[1])
    lesion = scan.read().lesion
    assert lesion is not None
    lesion = lesion.copy()
    lesion[index] = False
    volume = Volume(hu=phantom.hu, spacing_mm=phantom.spacing_mm, lesion=lesion)
    cuts = load_cuts([replace(scan, read=lambda: volume)], LITE, tmp_path)
    assert cuts.index[~cuts.located].tolist() == [index]


def test_an_outline_without_a_subtype_is_intraparenchymal(phantom: HeadPhantom, tmp_path: Path):
    lesion = np.zeros((len(phantom.hu), len(CLASSES), 128, 128), np.bool_)
    lesion[:, 0] = phantom.masks[IchSubtype.ANY]
    volume = Volume(hu=phantom.hu, spacing_mm=phantom.spacing_mm, lesion=lesion)
    cuts = load_cuts([scan_of(phantom, read=lambda: volume)], LITE, tmp_path)
    shown = cuts.read(np.flatnonzero(cuts.blood > 30))[2]
    assert shown[:, 0].any()
    assert not shown[:, 1:].any()


# --- the cache


def everything(cuts: Cuts) -> list[np.ndarray]:
    return [*cuts.read(range(len(cuts.row))), cuts.index, cuts.located, cuts.area, cuts.blood]


def test_images_are_read_once(phantom: HeadPhantom, tmp_path: Path):
    first = load_cuts([scan_of(phantom)], VICAR, tmp_path)
    again = load_cuts([unread(scan_of(phantom))], VICAR, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(everything(first), everything(again), strict=True))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("preprocessing", "teacher", "changes"),
    [
        (replace(VICAR, pitch_mm=3.1), None, {}),
        (replace(VICAR, hu_range=(-200.0, 300.0)), None, {}),
        (RadNetPreprocessing(size=64, pitch_mm=3.0), None, {}),
        (VICAR, Marks(100, 110), {}),
        (VICAR, None, {"source": "other"}),
        (VICAR, None, {"scan_id": "other"}),
        (VICAR, None, {"labels": np.zeros((12, 6), np.int8)}),
        (VICAR, None, {"slice_ids": tuple(f"another/{i}" for i in range(12))}),
    ],
    ids=["pitch", "range", "system", "teacher", "source", "scan", "labels", "slices"],
)
def test_what_changes_a_slice_makes_it_anew(
    phantom: HeadPhantom, tmp_path: Path, preprocessing: Any, teacher: Marks | None, changes: dict[str, Any]
):
    load_cuts([scan_of(phantom)], VICAR, tmp_path)
    with pytest.raises(AssertionError, match="read again"):
        load_cuts([unread(scan_of(phantom, **changes))], preprocessing, tmp_path, teacher)


@pytest.mark.parametrize("kept", [0, 5, 200, 100_000])
def test_a_file_cut_short_is_made_anew(
    phantom: HeadPhantom, tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
):
    first = everything(load_cuts([scan_of(phantom)], VICAR, tmp_path))
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    assert len(whole) > kept
    file.write_bytes(whole[:kept])
    again = everything(load_cuts([scan_of(phantom)], VICAR, tmp_path))
    assert file.read_bytes() == whole
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert "damaged" in caplog.text


def test_a_file_that_was_being_written_is_passed_over(phantom: HeadPhantom, tmp_path: Path):
    load_cuts([scan_of(phantom)], VICAR, tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    shutil.copy(file, file.with_name(f".{file.name}.1.tmp"))
    file.unlink()
    load_cuts([scan_of(phantom)], VICAR, tmp_path)
    assert file.is_file()


ODD = (
    "../../etc/passwd",
    "a/b",
    "a_b",
    "A_b",
    "",
    ".",
    "..",
    "Müller 医",
    "x" * 300,
    "x" * 301,
    "n\0l",
    "a\nb",
    "con",
)


def test_any_identifier_is_a_file_name_of_its_own(tmp_path: Path):
    names = [plain_name(odd) for odd in ODD]
    assert len({name.lower() for name in names}) == len(ODD)
    for name in names:
        assert len(name) < 80
        assert not name.startswith(".")
        (tmp_path / name).write_text("")
    assert len(list(tmp_path.iterdir())) == len(ODD)


def test_scans_of_odd_identifiers_keep_to_the_cache(phantom: HeadPhantom, tmp_path: Path):
    cache = tmp_path / "below" / "cache"
    odd = [
        scan_of(phantom, source=source, scan_id=name)
        for source, name in (("../up", ODD[0]), ("b", "x" * 300))
    ]
    cuts = load_cuts(odd, VICAR, cache)
    assert len(set(cuts.files)) == 2
    written = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert written == {*cuts.files, cuts.files[0].parent / "of.json"}
    assert {file.parent.parent for file in cuts.files} == {cache}


# --- bad input


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("brain/7.jpg is absent"), OSError),
        (ValueError("no such image"), ValueError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "brain/7.jpg is no text"), ValueError),
    ],
)
def test_images_that_cannot_be_read_are_named(
    phantom: HeadPhantom, tmp_path: Path, error: Exception, kind: type[Exception]
):
    def read() -> NoReturn:
        raise error

    with pytest.raises(kind, match="scan one: ") as told:
        load_cuts([scan_of(phantom), scan_of(phantom, scan_id="one", source="b", read=read)], VICAR, tmp_path)
    assert str(error) in str(told.value)
    load_cuts([unread(scan_of(phantom))], VICAR, tmp_path)  # the sound one is kept


def test_a_scan_without_intracranial_space_has_no_slices(phantom: HeadPhantom, tmp_path: Path):
    air = Volume(hu=np.full_like(phantom.hu, -1000), spacing_mm=phantom.spacing_mm)
    empty = scan_of(phantom, scan_id="air", read=lambda: air)
    cuts = load_cuts([scan_of(phantom), empty, scan_of(phantom, scan_id="two")], VICAR, tmp_path)
    assert set(cuts.scan.tolist()) == {0, 2}
    assert len(cuts.read([len(cuts.row) - 1])[0]) == 1
