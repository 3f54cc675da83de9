"""An input unlike the training data is read, and the row, the report and the page say so."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest

from ich_node.database.engine import Database
from ich_node.database.worklist import study_report
from ich_node.model.predict import load_predictor
from ich_node.node import Node
from ich_node.reading_job import read_due_study
from ich_node.settings import Settings
from ich_node.testing.phantom import head_phantom
from ich_node.testing.series import phantom_series
from ich_node.web import create_app
from tests.system_bundles import write_system_bundle
from tests.unit.test_reading_job import arrive
from tests.unit.test_web import Browser, Text

SENTENCE = "Slices are 5 mm thick; the model learnt from 0.5 to 1.5 mm."


@pytest.mark.parametrize("training", [None, {"slice_thickness_mm": [0.5, 1.5], "noise_hu": [0, 1000]}])
def test_a_reading_says_what_its_model_was_not_trained_on(
    tmp_path: Path, training: dict[str, list[float]] | None
) -> None:
    bundle = write_system_bundle(tmp_path / "small", "vicar-mil")
    if training is not None:
        about = json.loads((bundle / "bundle.json").read_text())
        (bundle / "bundle.json").write_text(json.dumps(about | {"training_inputs": training}))
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.database_url)
    database.upgrade()
    phantom = head_phantom(seed=5, slices=24, rows=96, columns=96)
    uid = arrive(Node(settings=settings, database=database), phantom_series(phantom))
    read_due_study(
        Node(settings=settings, database=database), uid, lambda _name: [load_predictor(bundle, "cpu")]
    )
    with database.reading() as session:
        report = study_report(session, uid)
    assert report is not None
    (reading,) = report["readings"]
    assert reading["input_features"]["slice_thickness_mm"] == 5
    assert reading["input_features"]["cavity_volume_ml"] > 900
    page = Text(Browser(create_app(settings, database)).get(f"/studies/{uid}").text).text
    sr = next(o for o in reading["objects"] if o["kind"] == "SR")["sop_instance_uid"]
    (path,) = settings.results_dir.glob(f"{sr}*.dcm")
    content = pydicom.dcmread(path).to_json()
    said = training is not None
    assert reading["unlike_training"] == (["slice_thickness_mm"] if said else None)
    assert (SENTENCE in reading["caveats"]) is said
    assert (SENTENCE in page) is said
    assert (f"Caveat: {SENTENCE}" in content) is said
    database.dispose()


@pytest.mark.parametrize("thick_from", [None, 40])
def test_a_head_of_which_a_part_was_cut_thin_is_read_slice_by_slice(
    tmp_path: Path, thick_from: int | None
) -> None:
    bundle = write_system_bundle(tmp_path / "small", "vicar-mil")
    about = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(about | {"slab_mm": 5.0}))
    node = Node(settings=(settings := Settings(data_dir=tmp_path)), database=Database(settings.database_url))
    node.database.upgrade()
    phantom = head_phantom(seed=5, slices=64, slice_spacing_mm=2.5, rows=96, columns=96)
    images = phantom_series(phantom)
    images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    if thick_from is not None:
        thick = images[thick_from::2]
        for image in thick:
            image.SliceThickness = 5
        images = images[:thick_from] + thick
    uid = arrive(node, images)
    read_due_study(node, uid, lambda _name: [load_predictor(bundle, "cpu")])
    with node.database.reading() as session:
        report = study_report(session, uid)
    assert report is not None
    (reading,) = report["readings"]
    as_slabs = thick_from is None
    assert ("Thin slices were read as slabs of 5.0 mm." in reading["caveats"]) is as_slabs
    assert reading["input_features"]["slice_spacing_mm"] == (5 if as_slabs else 2.5)
    shown = [each["shown_on"] for each in reading["slices"]]
    assert shown == ([i // 2 * 2 for i in range(64)] if as_slabs else [None] * 52)
    node.database.dispose()
