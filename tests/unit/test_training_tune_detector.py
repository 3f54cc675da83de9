"""The detector's parameters: found where they are known, the same after an interruption, honest on noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ich_node.errors import ConfigurationError
from ich_node.findings import IchSubtype
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.predict import load_predictor
from ich_node.model.system import Head
from tests.tiny_training import tiny
from training.cuts import Taught
from training.draft_bundle import write_bundle
from training.evaluation.detection import point_in_box
from training.likelihood_maps import Maps, ScanMaps, Truth, coarsened, likelihood_maps, truth_boxes
from training.predictions import Predictions
from training.readers.phantom import read_phantom
from training.reading import read_scans
from training.release import Wanted
from training.run import PREDICTIONS_FILE, RUN_FILE, SPLIT_FILE
from training.scan import ABSENT, CLASSES, PRESENT, UNKNOWN, Scan, TruthBox, Volume
from training.split import make_split
from training.tune_detector import RESULT_FILE, SPACE, counted, cross_tuned, dice_of, tune, tune_run

SIZE = 60


def unread() -> Volume:
    raise OSError("these images are not to be read")


def a_scan(name: str, labels: list[int], **values: Any) -> Scan:
    of_slices = np.full((len(labels), len(CLASSES)), UNKNOWN, np.int8)
    of_slices[:, 0] = labels
    return Scan(
        source="made",
        scan_id=name,
        patient_id=name,
        slice_ids=tuple(map(str, range(len(labels)))),
        labels=of_slices,
        scan_labels=of_slices.max(axis=0),
        **{"read": unread, **values},
    )


def bump(row: float, column: float, height: float, width: float = 4.0) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    return height * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))


def mapped(scan: Scan, planes: list[np.ndarray], fold: int = 0) -> ScanMaps:
    """Maps of all slices of a scan, with pixels of 1 mm."""
    return ScanMaps(
        scan=scan,
        fold=fold,
        index=np.arange(len(planes)),
        likelihood=np.stack(planes).astype(np.float16),
        corner=np.zeros(2, np.int64),
        step=1,
        image_mm=np.ones(2),
    )


def box(index: int, row: float, column: float, half: float = 5) -> TruthBox:
    return TruthBox(
        slice_index=index,
        subtype=IchSubtype.SUBDURAL,
        left=column - half,
        top=row - half,
        right=column + half,
        bottom=row + half,
    )


def bleeds_and_noise(scans: int = 4) -> list[ScanMaps]:
    """Each scan: a bleed of .8 beside noise of .5, and noise of .5 alone."""
    rng, found = np.random.default_rng(0), []
    for number in range(scans):
        (row, column), noise = rng.uniform(10, 24, 2), rng.uniform(36, 50, (2, 2))
        scan = a_scan(f"s{number}", [PRESENT, ABSENT], boxes=(box(0, row, column),))
        planes = [np.maximum(bump(row, column, 0.8), bump(*noise[0], 0.5)), bump(*noise[1], 0.5)]
        found.append(mapped(scan, planes, fold=number % 2))
    return found


def noise_alone(scans: int = 8) -> list[ScanMaps]:
    """Boxes and maps that have nothing to do with each other."""
    rng, found = np.random.default_rng(5), []
    for number in range(scans):
        drawn = tuple(box(index, *rng.uniform(8, 52, 2), half=7) for index in range(2))
        scan = a_scan(f"n{number}", [PRESENT, PRESENT, ABSENT], boxes=drawn)
        bumps = [
            [bump(*rng.uniform(4, 56, 2), rng.uniform(0.1, 0.9), rng.uniform(2, 5)) for _ in range(4)]
            for _ in range(3)
        ]
        found.append(mapped(scan, [np.max(each, axis=0) for each in bumps], fold=number % 4))
    return found


def test_threshold_comes_to_lie_between_bleeds_and_noise():
    maps = bleeds_and_noise()
    truth = truth_boxes(maps)
    found = tune(maps, truth, trials=25)
    assert found.trials[0] == (DetectorConfig(), pytest.approx(2 * 4 / (2 * 4 + 8)))
    assert 0.5 < found.config.threshold < 0.8
    assert found.dice == max(dice for _, dice in found.trials) == 1
    np.testing.assert_array_equal(found.counts, [[1, 0, 0]] * 4)


def test_distance_comes_to_pass_over_what_lies_beside_a_bleed():
    """Beside each bleed is something as bright, 14 mm away: no threshold tells them apart, a distance does."""
    maps = []
    for number in range(3):
        scan = a_scan(f"s{number}", [PRESENT], boxes=(box(0, 20, 20), box(0, 50, 20)))
        planes = [np.max([bump(20, 20, 0.8), bump(20, 34, 0.7), bump(50, 20, 0.6)], axis=0)]
        maps.append(mapped(scan, planes))
    found = tune(maps, truth_boxes(maps), trials=30, start=DetectorConfig(distance_mm=5, most=3))
    assert found.trials[0][1] < found.dice == 1
    assert 14 < found.config.distance_mm <= 30
    assert found.config.most == 3


def test_same_seed_gives_the_same_trials_and_another_gives_others():
    maps = bleeds_and_noise(2)
    truth = truth_boxes(maps)
    one, same, other = (tune(maps, truth, trials=14, seed=seed) for seed in (20, 20, 21))
    assert one.trials == same.trials != other.trials
    assert len(set(one.trials)) == 14
    for config, _ in one.trials:
        assert all(d.low <= getattr(config, name) <= d.high for name, d in SPACE.items())


def test_what_was_interrupted_ends_as_the_uninterrupted(tmp_path: Path):
    maps = noise_alone(4)
    truth, journal = truth_boxes(maps), tmp_path / "trials.journal"
    whole = tune(maps, truth, trials=16)
    tune(maps, truth, trials=12, journal=journal)
    # a trial that was killed half way stays behind as one that runs
    storage = JournalStorage(JournalFileBackend(str(journal)))
    (summary,) = optuna.get_all_study_summaries(storage)
    optuna.load_study(study_name=summary.study_name, storage=storage).ask(dict(SPACE))
    resumed = tune(maps, truth, trials=16, journal=journal)
    assert (resumed.trials, resumed.config) == (whole.trials, whole.config)
    assert tune(maps, truth, trials=16, journal=journal).trials == whole.trials
    (summary,) = optuna.get_all_study_summaries(JournalStorage(JournalFileBackend(str(journal))))
    assert summary.n_trials == 16 + 1  # none was run again
    assert tune(maps, truth, trials=5, journal=journal).trials == whole.trials[:5]


def test_a_journal_of_other_maps_is_not_gone_on_with(tmp_path: Path):
    maps, journal = noise_alone(4), tmp_path / "trials.journal"
    tune(maps, truth_boxes(maps), trials=3, journal=journal)
    fewer = maps[:3]
    assert (
        tune(fewer, truth_boxes(fewer), trials=3, journal=journal).trials
        == tune(fewer, truth_boxes(fewer), trials=3).trials
    )


def test_honest_dice_is_below_the_optimistic_on_noise():
    maps = noise_alone()
    found = cross_tuned(maps, truth_boxes(maps), trials=25)
    assert 0 < found.dice < found.whole.dice
    for fold, tuned in found.folds.items():
        others = [each for each in maps if each.fold != fold]
        assert tuned.trials == tune(others, truth_boxes(others), trials=25).trials
        rows = [number for number, each in enumerate(maps) if each.fold == fold]
        held = [maps[number] for number in rows]
        np.testing.assert_array_equal(found.counts[rows], counted(held, truth_boxes(held), tuned.config))


def test_a_patient_in_two_folds_is_refused():
    maps = noise_alone(4)
    twice = [replace(each, scan=replace(each.scan, patient_id="same")) for each in maps]
    with pytest.raises(ValueError, match="a patient is in two"):
        cross_tuned(twice, truth_boxes(twice), trials=1)


def test_without_boxes_there_is_nothing_to_tune_for():
    maps = [mapped(a_scan("s", [PRESENT, ABSENT]), [bump(30, 30, 0.9)] * 2)]
    truth = truth_boxes(maps)
    assert truth.origin == {"none": 1}
    with pytest.raises(ValueError, match="no slice has a box"):
        tune(maps, truth)


def test_slices_that_count():
    """Found, false on a negative slice, left out without a box or a label, missed where there is no map."""
    scan = a_scan("s", [PRESENT, ABSENT, PRESENT, UNKNOWN, PRESENT], boxes=(box(0, 20, 20), box(4, 20, 20)))
    maps = [mapped(scan, [bump(20, 20, 0.9)] * 4)]
    truth = truth_boxes(maps)
    np.testing.assert_array_equal(counted(maps, truth, DetectorConfig()), [[1, 1, 1]])
    assert dice_of(np.array([[1.0, 1, 1], [1, 0, 0]])) == pytest.approx(4 / 6)


def test_boxes_around_outlines():
    """Two parts that touch at a corner are one; less than 5 mm2 is none; edges are the pixels' outer edges."""
    lesion = np.zeros((2, len(CLASSES), 40, 40), bool)
    lesion[0, 0, 10:14, 5:8] = lesion[0, 0, 14:16, 8:10] = lesion[0, 0, 30:32, 30:32] = True
    lesion[1, 0, 3, 3] = True
    volume = Volume(hu=np.zeros((2, 40, 40), np.float32), spacing_mm=(5.0, 1.0, 0.5), lesion=lesion)
    scan = a_scan("s", [PRESENT, PRESENT], read=lambda: volume, outlined=True)
    maps = [replace(mapped(scan, [bump(12, 6, 0.9)]), image_mm=np.array([1.0, 0.5]))]
    truth = truth_boxes(maps)
    assert truth.origin == {"outlines": 1}
    (found,) = truth.boxes
    assert list(found) == [0]
    np.testing.assert_allclose(found[0], [[5, 10, 10, 16]])


def test_boxes_of_a_teacher_where_the_label_says_hemorrhage():
    likelihood = np.zeros((2, 3, 20, 20), np.uint8)
    likelihood[:, 1, 4:8, 10:13] = 128
    likelihood[:, 2, 15:, 15:] = 127
    taught = Taught(slices=np.array([0, 1]), likelihood=likelihood, pitch_mm=1.0)
    maps = [
        replace(mapped(a_scan("s", [PRESENT, ABSENT]), [bump(12, 6, 0.9)]), image_mm=np.array([0.5, 0.25]))
    ]
    truth = truth_boxes(maps, lambda scan: taught)
    assert truth.origin == {"teacher without a name, likelihood from 0.5 up": 1}
    # the first centres agree at (0.5, 0.5); a teacher's pixel is 2 rows high and 4 columns wide
    assert list(truth.boxes[0]) == [0]
    np.testing.assert_allclose(
        truth.boxes[0][0], [[9.5 * 4 + 0.5, 3.5 * 2 + 0.5, 12.5 * 4 + 0.5, 7.5 * 2 + 0.5]]
    )


def test_readers_boxes_come_before_outlines():
    scan = a_scan("s", [PRESENT], boxes=(box(0, 20, 20), box(0, 40, 40)), outlined=True)
    truth = truth_boxes([mapped(scan, [bump(12, 6, 0.9)])])
    assert truth.origin == {"boxes": 1}
    np.testing.assert_allclose(truth.boxes[0][0], [[15, 15, 25, 25], [35, 35, 45, 45]])


@pytest.mark.parametrize("spacing_mm", [0.43, 0.5, 0.7, 1.1])
def test_points_do_not_depend_on_the_grid(spacing_mm: float):
    step, shape = max(1, round(1 / spacing_mm)), (round(100 / spacing_mm) + 1, round(90 / spacing_mm))
    y, x = (np.arange(n)[:, None] for n in shape)
    centres = [(20.0, 30.0, 0.9), (50.0, 60.0, 0.6), (80.0, 20.0, 0.4), (20.0, 43.0, 0.5)]
    fine = np.max(
        [h * np.exp(-((y * spacing_mm - r) ** 2 + (x.T * spacing_mm - c) ** 2) / 50) for r, c, h in centres],
        axis=0,
    ).astype(np.float32)
    coarse = coarsened(fine, step)
    each = ScanMaps(
        scan=a_scan("s", [PRESENT]),
        fold=0,
        index=np.array([0]),
        likelihood=coarse[None, 3:, 4:],
        corner=np.array([3, 4]),
        step=step,
        image_mm=np.full(2, spacing_mm),
    )
    for config in (DetectorConfig(), DetectorConfig(distance_mm=8, height=0.1, threshold=0.1)):
        wanted = np.array([p.coordinates for p in detect(fine, (spacing_mm, spacing_mm), config)])
        found = each.points(0, config)
        assert found.shape == wanted.shape
        assert len(found) == (3 if config.distance_mm == 15 else 4)
        assert np.abs(found - wanted).max() * spacing_mm <= 1


@pytest.fixture(scope="module")
def phantoms() -> list[Scan]:
    """Small heads that count as patients."""
    read = read_phantom(count=4, first_seed=4001, pixels=112, slices=12)
    return [replace(scan, synthetic=False) for scan in read]


def random_bundle(folder: Path, seed: int = 0, architecture: str = "vicar-mil") -> Path:
    """Weights that nobody trained, whose map is nevertheless no plain."""
    recipe = tiny(architecture)
    torch.manual_seed(seed)
    network = recipe.system.network(recipe.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    write_bundle(folder, recipe, [network.state_dict()], {}, "# random\n")
    return folder


@pytest.fixture(scope="module")
def run(phantoms: list[Scan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds, as training leaves it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run")
    recipe, split = tiny("vicar-mil"), make_split(phantoms, name="two", seed=1, folds=2)
    split.save(out / SPLIT_FILE)
    (out / RUN_FILE).write_text(json.dumps({"recipe": recipe.as_dict()}), encoding="utf-8")
    for fold in range(2):
        bundle = random_bundle(out / f"fold{fold}" / f"tiny-fold{fold}", fold)
        read_scans(bundle, split.measuring(phantoms, fold), system="tiny", split="two", fold=fold).save(
            out / f"fold{fold}" / PREDICTIONS_FILE
        )
    return out


def read_by_the_node(bundle: Path, maps: Maps, truth: Truth) -> Predictions:
    """Points of the whole maps on the image's own pixels, rounded to float16 as those that are kept are."""
    predictor = load_predictor(bundle)
    places, boxes = [], []
    read = read_scans(bundle, [each.scan for each in maps], system="tiny", split="none", places=False)
    for number, (each, truths) in enumerate(zip(maps, truth.boxes, strict=True)):
        first, volume = int(np.flatnonzero(read.scan == number)[0]), each.scan.read()
        head = Head(hu=volume.hu, spacing_mm=volume.spacing_mm)
        scores = predictor.system.score(head)
        for index in head.inside:
            whole = predictor.maps(head, index, scores)[IchSubtype.ANY].astype(np.float16)
            for point in detect(
                whole.astype(np.float32), volume.spacing_mm[1:], predictor.system.localization
            ):
                places.append((first + index, 0, point.score, *point.coordinates * 2))
        boxes += [(first + index, 0, *edges) for index, found in truths.items() for edges in found]
    return replace(read, places=np.array(places), boxes=np.array(boxes))


def test_counts_are_those_of_the_evaluation(run: Path, phantoms: list[Scan], tmp_path: Path):
    bundle = run / "fold0" / "tiny-fold0"
    maps = likelihood_maps(bundle, phantoms, cache=tmp_path)
    truth = truth_boxes(maps)
    assert truth.origin == {"outlines": sum(bool(scan.labels[:, 0].max() == PRESENT) for scan in phantoms)}
    wanted = point_in_box(read_by_the_node(bundle, maps, truth))
    counts = counted(maps, truth, tiny("vicar-mil").localization)
    found, false, missed = counts.sum(axis=0)
    assert dice_of(counts) == pytest.approx(wanted.dice.value)
    assert found / (found + false) == pytest.approx(wanted.ppv.value)
    assert found / (found + missed) == pytest.approx(wanted.sensitivity.value)
    assert min(found, false, missed) > 0


def test_maps_are_read_once(run: Path, phantoms: list[Scan], tmp_path: Path):
    bundle = run / "fold0" / "tiny-fold0"
    first = likelihood_maps(bundle, phantoms[:1], cache=tmp_path)
    again = likelihood_maps(bundle, [replace(phantoms[0], read=unread)], cache=tmp_path, fold=3)
    np.testing.assert_array_equal(first[0].likelihood, again[0].likelihood)
    np.testing.assert_array_equal(first[0].index, again[0].index)
    assert (first[0].fold, again[0].fold) == (0, 3)
    decision = replace(tiny("vicar-mil").decision, offset=2.0)
    with pytest.raises(OSError, match=f"scan {phantoms[0].scan_id}: these images"):
        likelihood_maps(bundle, [replace(phantoms[0], read=unread)], cache=tmp_path, decision=decision)
    brighter = likelihood_maps(bundle, phantoms[:1], cache=tmp_path, decision=decision)
    assert brighter[0].likelihood.max() > first[0].likelihood.max() + 0.1


def test_run_is_tuned_on_patients_that_each_network_never_saw(
    run: Path, phantoms: list[Scan], tmp_path: Path
):
    said = tune_run(run, phantoms, tmp_path / "out", trials=12)
    assert json.loads((tmp_path / "out" / RESULT_FILE).read_text()) == said
    chosen = Wanted(version="1", detector=DetectorConfig(**said["localization"])).detector
    assert chosen is not None
    assert said["optimistic"]["dice"] >= max(said["dice_before"], said["cross_validated"]["dice"])
    boxes = sum(said["optimistic"][name] for name in ("found", "missed"))
    assert boxes == sum(said["cross_validated"][name] for name in ("found", "missed")) > 0
    assert set(said["cross_validated"]["localization_by_fold"]) == {"0", "1"}
    bleeding = sum(bool((scan.labels[:, 0] == PRESENT).any()) for scan in phantoms)
    assert (said["truth"]["scans_by_origin"], said["scans"]) == ({"outlines": bleeding}, 4)
    # nothing is read or tried again, and nothing comes out otherwise
    again = tune_run(run, phantoms, tmp_path / "out", trials=12)
    assert again == said


def test_run_with_a_fold_missing_is_refused(run: Path, phantoms: list[Scan], tmp_path: Path):
    for file in (RUN_FILE, SPLIT_FILE):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    with pytest.raises(ValueError, match="not all folds are done"):
        tune_run(tmp_path, phantoms, tmp_path / "out")


def test_systems_with_a_detector_of_their_own_are_refused(tmp_path: Path, phantoms: list[Scan]):
    bundle = random_bundle(tmp_path / "boxes", architecture="he-fusion")
    with pytest.raises(ConfigurationError, match="he-fusion finds places by HeFusionLocalization"):
        likelihood_maps(bundle, phantoms, cache=tmp_path)
    recipe = {"recipe": tiny("he-fusion").as_dict()}
    (tmp_path / RUN_FILE).write_text(json.dumps(recipe), encoding="utf-8")
    make_split(phantoms, name="two", seed=1, folds=2).save(tmp_path / SPLIT_FILE)
    with pytest.raises(ConfigurationError, match=r"run\.json: he-fusion finds places by"):
        tune_run(tmp_path, phantoms, tmp_path / "out")
