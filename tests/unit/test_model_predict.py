"""The shipped bundle reads phantoms; any bundle keeps its promises on bad input."""

from __future__ import annotations

import itertools
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.findings import IchSubtype, Priority, SeriesFinding
from ich_node.model import bundle as bundles
from ich_node.model.predict import Predictor, load_predictor
from ich_node.testing.phantom import HeadPhantom, head_phantom


@lru_cache
def shipped() -> Predictor:
    return load_predictor(device="cpu")


@lru_cache
def read(seed: int, *bleeds: IchSubtype) -> SeriesFinding:
    head = phantom(seed, *bleeds)
    return shipped().predict(head.hu, head.spacing_mm)


@lru_cache
def phantom(seed: int, *bleeds: IchSubtype) -> HeadPhantom:
    """The middle 90 mm of a head: what lies beyond costs time and shows nothing more."""
    return head_phantom(bleeds=bleeds, seed=seed, rows=256, columns=256, slices=18)


KINDS = [s for s in IchSubtype if s is not IchSubtype.ANY]


@pytest.mark.parametrize("kind", KINDS)
def test_phantom_bleed_is_flagged_and_shown(kind: IchSubtype):
    head, finding = phantom(500 + KINDS.index(kind), kind), read(500 + KINDS.index(kind), kind)
    assert finding.priority in (Priority.STAT, Priority.HIGH)
    worst = finding.suspicious_slices[0]
    assert head.masks[IchSubtype.ANY][worst].any()
    x, y = finding.slices[worst].localizations[0].coordinates
    rows, columns = np.nonzero(head.masks[IchSubtype.ANY][worst])
    nearest = np.hypot(rows + 0.5 - y, columns + 0.5 - x).min() * head.spacing_mm[1]
    assert nearest < 12


@pytest.mark.parametrize("seed", [600, 601])
def test_normal_phantom_is_never_stat_and_far_below_a_bleed(seed: int):
    """Some normal phantoms are HIGH: see "What these numbers cannot show" in the model card."""
    finding = read(seed)
    assert finding.priority in (Priority.ROUTINE, Priority.HIGH)
    assert finding.suspicion < read(500, KINDS[0]).suspicion - 0.3


def test_finding_is_complete_and_deterministic():
    head = phantom(500, KINDS[0])
    first, second = read(500, KINDS[0]), shipped().predict(head.hu, head.spacing_mm)
    assert len(first.slices) == len(head.hu)
    assert first == second
    for a, b in zip(first.slices, second.slices, strict=True):
        assert set(a.probabilities) == {IchSubtype.ANY}
        assert set(a.likelihood_maps) == set(b.likelihood_maps)
        for subtype, likelihood in a.likelihood_maps.items():
            assert np.array_equal(likelihood, b.likelihood_maps[subtype])
            assert likelihood.shape == head.hu.shape[1:]
            assert likelihood.dtype == np.float32
            assert 0 <= likelihood.min() <= likelihood.max() <= 1
    cut = first.algorithm.operating_points.sensitive
    assert [bool(s.likelihood_maps) for s in first.slices] == [
        s.probabilities[IchSubtype.ANY] >= cut for s in first.slices
    ]


def test_maps_stay_inside_the_skull():
    head, finding = phantom(501, KINDS[1]), read(501, KINDS[1])
    shown = finding.suspicious_slices
    assert shown
    for index in shown:
        likelihood = finding.slices[index].likelihood_maps[IchSubtype.ANY]
        # the mask's margin may touch the wall of a sinus, where evidence is nil
        assert likelihood[head.hu[index] < -300].max() < 0.1
        assert not likelihood[:20].any()


def test_padding_value_changes_nothing():
    head = phantom(500, KINDS[0])
    y, x = np.mgrid[:256, :256] - 127.5
    padded = head.hu[7:13].copy()
    padded[:, np.hypot(y, x) > 124] = -3024
    plain = head.hu[7:13].copy()
    plain[:, np.hypot(y, x) > 124] = -1024
    assert shipped().predict(padded, head.spacing_mm) == shipped().predict(plain, head.spacing_mm)


def test_batch_size_changes_nothing_beyond_rounding():
    head = phantom(500, KINDS[0])
    many = shipped().predict(head.hu[7:15], head.spacing_mm)
    reader = load_predictor(device="cpu")
    reader.system.execution.batch = 3
    few = reader.predict(head.hu[7:15], head.spacing_mm)
    assert many.suspicion == pytest.approx(few.suspicion, abs=1e-5)
    for a, b in itertools.zip_longest(many.slices, few.slices):
        assert a.probabilities[IchSubtype.ANY] == pytest.approx(b.probabilities[IchSubtype.ANY], abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_no_number_is_no_finding(value: float):
    broken = load_predictor(device="cpu")
    with torch.no_grad():
        broken.system.networks[0].get_parameter("vicar.classifier.bias").fill_(value)
    head = phantom(600)
    with pytest.raises(StudyRejected) as rejected:
        broken.predict(head.hu[3:9], head.spacing_mm)
    assert rejected.value.reason is RejectionReason.INVALID_MODEL_OUTPUT


@pytest.mark.parametrize(
    ("hu", "spacing", "reason"),
    [
        (np.full((8, 64, 64), -1000, np.float32), (5.0, 1.0, 1.0), RejectionReason.NOT_HEAD),
        (np.full((8, 64, 64), np.nan, np.float32), (5.0, 1.0, 1.0), RejectionReason.IMPLAUSIBLE_VALUES),
        (np.zeros((0, 64, 64), np.float32), (5.0, 1.0, 1.0), RejectionReason.IMPLAUSIBLE_VALUES),
        (np.zeros((8, 64, 64), np.float32), (5.0, 0.0, 1.0), RejectionReason.IMPLAUSIBLE_VALUES),
    ],
)
def test_what_cannot_be_read_is_refused_never_negative(
    hu: np.ndarray, spacing: tuple[float, float, float], reason: RejectionReason
):
    with pytest.raises(StudyRejected) as rejected:
        shipped().predict(hu, spacing)
    assert rejected.value.reason is reason


def test_real_patient_goes_through_the_same_path(shared_data: Path):
    """Runs and is well-formed; what the model finds in its own training patients shows nothing."""
    from training.ct_ich import estimated_spacing_mm, read_scans

    scan = next(s for s in read_scans(shared_data / "ct_ich") if s.patient == "074")
    hu = scan.hu()
    finding = shipped().predict(hu, estimated_spacing_mm(hu))
    assert len(finding.slices) == len(scan.labels)
    assert 0 <= finding.suspicion <= 1


def test_shipped_card_says_what_it_must():
    folder = bundles.SHIPPED / bundles.DEFAULT_NAME
    description = json.loads((folder / "bundle.json").read_text())
    card = (folder / "MODEL_CARD.md").read_text()
    for text in ("CC BY 4.0", "10.13026/w8q8-ky94", "not for clinical use"):
        assert text.lower() in card.lower()
    metrics = description["metrics"]["cross_validation"]
    for key in ("slice_auc", "scan_auc"):
        assert f"{metrics[key]['value']:.3f}" in card
    assert (folder / "model.safetensors").stat().st_size < 30_000_000


def test_a_slice_that_the_mask_lost_breaks_no_run(monkeypatch: pytest.MonkeyPatch):
    """Three consecutive slices of those that show the inside of the skull, as RADnet's rule means it."""
    from ich_node.model.decision import DecisionConfig
    from ich_node.model.system import Head, Scores

    reader = load_predictor(device="cpu")
    head = phantom(500, KINDS[0])
    lost = 9
    inside = tuple(i for i in range(3, 17) if i != lost)
    logits = np.full((len(head.hu), 1), -np.inf)
    logits[list(inside)] = -9.0
    logits[[7, 8, 10, 11]] = 5.0
    monkeypatch.setattr(Head, "inside", inside)
    monkeypatch.setattr(reader.system, "score", lambda _head: Scores(logits=logits))
    monkeypatch.setattr(
        reader.system, "maps", lambda *_: {IchSubtype.ANY: np.zeros(head.hu.shape[1:], np.float32)}
    )
    monkeypatch.setattr(reader, "_decision", DecisionConfig(rule="consecutive3"))
    assert reader.predict(head.hu, head.spacing_mm).suspicion > 0.99
    assert reader.predict(head.hu, head.spacing_mm).slices[lost].probabilities[IchSubtype.ANY] == 0
