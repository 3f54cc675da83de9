"""Splits by patient: stratified, repeatable, and refused where they would leak."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.findings import IchSubtype
from tests.labelled_data import made_scan
from training.scan import PRESENT, Scan
from training.split import Split, SplitError, make_split

SUBDURAL, EPIDURAL = IchSubtype.SUBDURAL, IchSubtype.EPIDURAL


def cohort() -> list[Scan]:
    """40 patients of two scans: 3 with a subdural bleed, 12 with an epidural one of 1 to 12 slices, the rest normal."""
    scans = []
    for number in range(40):
        kinds = [SUBDURAL] if number < 3 else [EPIDURAL] if number < 15 else []
        bleeding = range(number - 2) if 3 <= number < 15 else range(2)
        present = dict.fromkeys(bleeding, kinds) if kinds else {}
        scans.append(made_scan(f"{number:02d}a", patient_id=f"{number:02d}", present=present, slices=14))
        scans.append(made_scan(f"{number:02d}b", patient_id=f"{number:02d}", slices=14))
    return scans


def test_rare_and_large_bleeds_are_spread_and_folds_are_even():
    scans = cohort()
    split = make_split(scans, name="five", seed=1, folds=5)
    assert sorted(Counter(split.folds.values()).values()) == [8] * 5
    for kind, most in (("subdural", 1), ("epidural", 3)):
        column = list(IchSubtype).index(IchSubtype(kind))
        per_fold = Counter(split.folds[s.patient_id] for s in scans if s.scan_labels[column] == PRESENT)
        assert max(per_fold.values()) == most
    slices = [
        sum(int((s.labels[:, 0] == PRESENT).sum()) for s in split.measuring(scans, fold)) for fold in range(5)
    ]
    assert max(slices) - min(slices) <= 8  # of 84, where chance often gives one fold 30


def test_the_order_of_scans_changes_nothing_and_the_seed_does():
    scans = cohort()
    split = make_split(scans, name="n", seed=1)
    shuffled = [scans[i] for i in np.random.default_rng(0).permutation(len(scans))]
    assert make_split(shuffled, name="n", seed=1) == split
    assert make_split(scans, name="n", seed=2).folds != split.folds


def test_held_out_sets_are_in_no_fold_and_get_their_share():
    scans = cohort()
    split = make_split(scans, name="n", seed=1, folds=4, test=0.2, validation=0.1)
    assert Counter(split.held_out.values()) == {"test": 8, "validation": 4}
    assert not split.folds.keys() & split.held_out.keys()
    for fold in range(4):
        shown, held = split.training(scans, fold), split.measuring(scans, fold)
        tested = split.measuring(scans, "test") + split.measuring(scans, "validation")
        assert len(shown) + len(held) + len(tested) == len(scans)
        patients = [{s.patient_id for s in group} for group in (shown, held, tested)]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]


@settings(deadline=None, max_examples=25)  # the machine may be busy
@given(
    st.lists(st.sets(st.sampled_from([SUBDURAL, EPIDURAL]), max_size=2), min_size=8, max_size=24),
    st.integers(2, 5),
    st.integers(0, 9),
)
def test_every_patient_gets_one_part_and_no_fold_is_empty(
    kinds: list[set[IchSubtype]], folds: int, seed: int
):
    scans = [made_scan(f"p{i}", present={0: sorted(k)} if k else {}) for i, k in enumerate(kinds)]
    split = make_split(scans, name="n", seed=seed, folds=folds)
    assert split.folds.keys() == {s.patient_id for s in scans}
    sizes = Counter(split.folds.values())
    assert len(sizes) == folds
    assert max(sizes.values()) - min(sizes.values()) <= 2
    for kind in (SUBDURAL, EPIDURAL):
        of_kind = Counter(split.folds[f"p{i}"] for i, k in enumerate(kinds) if kind in k)
        spread = [of_kind[f] for f in range(folds)]
        assert max(spread) - min(spread) <= 2


def test_phantoms_train_in_every_fold_and_measure_in_none():
    phantom = made_scan("phantom", synthetic=True)
    scans = [*cohort(), phantom]
    split = make_split(scans, name="n", seed=1, folds=3)
    assert "phantom" not in split.folds
    assert split.data == "made"
    for fold in range(3):
        assert phantom in split.training(scans, fold)
        assert phantom not in split.measuring(scans, fold)
    with pytest.raises(SplitError, match="phantom"):
        split.part_of(phantom)


def test_a_split_is_kept_beside_a_run(tmp_path: Path):
    split = make_split(cohort(), name="n", seed=1, test=0.1)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    assert list(tmp_path.iterdir()) == [tmp_path / "split.json"]


def test_a_scan_without_a_fold_is_refused_by_name():
    scans = cohort()
    split = make_split(scans, name="n", seed=1, folds=2)
    stranger = made_scan("stranger")
    for use in (lambda: split.training([*scans, stranger], 0), lambda: split.measuring([stranger], 0)):
        with pytest.raises(SplitError, match="patient stranger"):
            use()
    with pytest.raises(SplitError, match="folds 0 to 1, and no fold 2"):
        split.training(scans, 2)


def test_a_patient_in_two_parts_is_refused(tmp_path: Path):
    with pytest.raises(SplitError, match="patient 7 both in a fold and held out"):
        Split(name="n", seed=1, data="d", folds={"7": 0, "8": 1}, held_out={"7": "test"})
    file = tmp_path / "split.json"
    value = {"name": "n", "seed": 1, "data": "d", "parts": {"0": ["a", "b"], "1": ["b"]}}
    file.write_text(json.dumps(value))
    with pytest.raises(SplitError, match="patient b in more than one part"):
        Split.load(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no JSON", "is no split"),
        ('{"name": "n"}', "is no split"),
        (
            '{"name": "n", "seed": 1, "data": "d", "parts": {"0": ["a"], "practice": ["b"]}}',
            "'practice' is neither",
        ),
        (
            '{"name": "n", "seed": 1, "data": "d", "parts": {"0": ["a"], "2": ["b"]}}',
            "do not count up from 0",
        ),
    ],
)
def test_a_file_that_is_no_split_is_named(tmp_path: Path, content: str, said: str):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(SplitError, match=said):
        Split.load(tmp_path / "split.json")


def test_too_few_patients_are_refused():
    with pytest.raises(SplitError, match="2 patients cannot be dealt to 5 folds"):
        make_split([made_scan("a"), made_scan("b")], name="n", seed=1, folds=5)
