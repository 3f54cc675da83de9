"""Several published systems read one study: each says who it is, and the most urgent of them counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pydicom

from ich_node.findings import IchSubtype, Priority
from ich_node.model.bundle import DEFAULT_NAME, read_description
from ich_node.testing.phantom import head_phantom
from ich_node.testing.scu import send_images
from ich_node.testing.series import phantom_series
from tests.system_bundles import fill, write_system_bundle

from .conftest import COMPREHENSIVE_3D_SR, Orthanc, RunningNode, run_node, wait_until

Store = Callable[..., int]
NEVER = {"high_confidence": 1.0, "sensitive": 1.0}
ALWAYS = {"high_confidence": 1e-9, "sensitive": 1e-9}
ALGORITHM_NAME, PARAMETERS, VERSION = "111001", "111002", "111003"
"""Concepts of TID 4019 (DCM)."""


def images_of(name: str, *bleeds: IchSubtype) -> list[pydicom.FileDataset]:
    head = head_phantom(bleeds=bleeds, seed=61, rows=128, columns=128, slices=24, slice_spacing_mm=6.0)
    return phantom_series(head, name=name)


def shown(node: RunningNode, uid: str) -> dict[str, Any]:
    """``ich-node study show UID --json``."""
    result = node.cli("study", "show", uid, "--json")
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def has_readings(node: RunningNode, uid: str, number: int) -> bool:
    return node.readings(uid) == number  # asked often, so not by a process of the command line


def algorithms(report: pydicom.Dataset) -> set[tuple[str, str, str]]:
    """(name, version, weights' SHA-256) of each algorithm that the groups of a report are by."""
    said: dict[str, set[str]] = {ALGORITHM_NAME: set(), PARAMETERS: set(), VERSION: set()}
    for item in report.iterall():
        if item.keyword == "ConceptNameCodeSequence" or item.VR != "SQ":
            continue
        for content in item.value:
            for name in content.get("ConceptNameCodeSequence", []):
                if name.CodingSchemeDesignator == "DCM" and name.CodeValue in said:
                    said[name.CodeValue].add(str(content.TextValue))
    hashes = {p.removeprefix("weights sha256 ") for p in said[PARAMETERS] if p.startswith("weights sha256 ")}
    return {(n, v, h) for n in said[ALGORITHM_NAME] for v in said[VERSION] for h in hashes}


def test_four_systems_read_one_study_when_asked(
    node: RunningNode, orthanc: Orthanc, store: Store, tmp_path: Path
) -> None:
    made = {
        "four-vicar": write_system_bundle(tmp_path / "four-vicar", "vicar-mil", version="1.1", points=NEVER),
        "four-he": write_system_bundle(tmp_path / "four-he", "he-fusion", version="2.2", points=NEVER),
        "four-radnet": write_system_bundle(tmp_path / "four-radnet", "radnet", version="3.3", points=ALWAYS),
        "four-burduja": write_system_bundle(
            tmp_path / "four-burduja", "burduja", version="4.4", points=NEVER
        ),
    }
    for folder in made.values():
        installed = node.cli("models", "install", str(folder))
        assert installed.returncode == 0, installed.stderr
    images = images_of("models-four")
    uid = str(images[0].StudyInstanceUID)
    assert store(images) == 0
    node.row_when(uid, "READ")
    assert shown(node, uid)["priority"] != Priority.STAT
    for number, name in enumerate(made, 2):
        asked = node.cli("reprocess", uid, "--model", name)
        assert asked.returncode == 0, asked.stderr
        wait_until(partial(has_readings, node, uid, number), f"the reading by {name}")

    study = shown(node, uid)
    assert study["state"] == "READ"
    by_name = {reading["model_name"]: reading for reading in study["readings"]}
    assert set(by_name) == {DEFAULT_NAME, *made}
    assert not any(reading["superseded"] for reading in by_name.values())
    expected = set()
    for name, folder in made.items():
        description, reading = read_description(folder), by_name[name]
        who = (name, description["version"], description["weights_sha256"])
        assert (reading["model_name"], reading["model_version"], reading["weights_sha256"]) == who
        six = description["architecture"] in ("he-fusion", "burduja")
        assert len(reading["subtypes"]) == (5 if six else 0)
        assert len(reading["slices"]) == len(images)
        expected.add(who)
    # the least urgent were read after the most urgent as well as before it
    assert {n: by_name[n]["priority"] for n in made} == {
        "four-vicar": Priority.ROUTINE,
        "four-he": Priority.ROUTINE,
        "four-radnet": Priority.STAT,
        "four-burduja": Priority.ROUTINE,
    }
    assert node.worklist()[uid]["priority"] == study["priority"] == Priority.STAT

    def reports() -> list[pydicom.Dataset]:
        return [d for d in orthanc.objects(uid) if d.SOPClassUID == COMPREHENSIVE_3D_SR]

    wait_until(lambda: len(reports()) == 5, "a report of every reading in the PACS", 60)
    named = [algorithms(report) for report in reports()]
    assert all(len(who) == 1 for who in named)  # no report speaks of two
    assert expected < set.union(*named)
    assert len({str(report.SeriesInstanceUID) for report in reports()}) == 5


def small_node_settings(orthanc: Orthanc, *bundles: str) -> str:
    return f"""
[model]
bundles = {json.dumps(bundles)}
[[pacs]]
name = "orthanc"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {orthanc.dicom_port}
"""


def send(node: RunningNode, images: list[pydicom.FileDataset]) -> str:
    statuses = send_images(images, host="127.0.0.1", port=node.port, called_ae_title="ICH_NODE")
    assert set(statuses) == {0}
    return str(images[0].StudyInstanceUID)


def test_two_systems_read_every_study_where_the_settings_name_them(orthanc: Orthanc, tmp_path: Path) -> None:
    models = tmp_path / "data" / "models"
    write_system_bundle(models / "two-radnet", "radnet", points=NEVER)
    write_system_bundle(models / "two-burduja", "burduja", points=ALWAYS)
    with run_node(tmp_path, small_node_settings(orthanc, "two-radnet", "two-burduja")) as node:
        uid = send(node, images_of("models-two", IchSubtype.SUBDURAL))
        row = node.row_when(uid, "READ", "FAILED", "NOT_READ")
        study = shown(node, uid)
    assert row["state"] == "READ"
    found = {reading["model_name"]: reading["priority"] for reading in study["readings"]}
    assert found == {"two-radnet": Priority.ROUTINE, "two-burduja": Priority.STAT}
    assert row["priority"] == Priority.STAT


def test_a_system_without_a_finding_fails_the_study_and_leaves_the_others(
    orthanc: Orthanc, tmp_path: Path
) -> None:
    """Its weights are numbers, so the file is in order; what they give is none."""
    models = tmp_path / "data" / "models"
    write_system_bundle(models / "sound-he", "he-fusion", points=ALWAYS)
    write_system_bundle(
        models / "unfit-radnet", "radnet", points=ALWAYS, spoil=fill("stem.weight", value=3e38)
    )
    with run_node(tmp_path, small_node_settings(orthanc, "unfit-radnet", "sound-he")) as node:
        uid = send(node, images_of("models-unfit", IchSubtype.SUBDURAL))
        row = node.row_when(uid, "READ", "FAILED", "NOT_READ")
        study = shown(node, uid)
    assert (row["state"], row["reason"]) == ("FAILED", "INVALID_MODEL_OUTPUT")
    assert study["reason_detail"].startswith("unfit-radnet: ")
    assert [reading["model_name"] for reading in study["readings"]] == ["sound-he"]
    assert not study["readings"][0]["superseded"]
    assert row["priority"] == Priority.STAT


def test_a_bundle_with_a_weight_that_is_no_number_is_named_and_nothing_looks_negative(
    orthanc: Orthanc, tmp_path: Path
) -> None:
    models = tmp_path / "data" / "models"
    write_system_bundle(models / "sound-he", "he-fusion", points=NEVER)
    write_system_bundle(models / "nan-radnet", "radnet", spoil=fill("classifier.bias", value=float("nan")))
    with run_node(tmp_path, small_node_settings(orthanc, "nan-radnet", "sound-he")) as node:
        uid = send(node, images_of("models-nan"))
        row = node.row_when(uid, "READ", "FAILED", "NOT_READ")
        study = shown(node, uid)
    assert row["state"] == "FAILED"
    assert "nan-radnet" in study["reason_detail"]
    assert "NaN" in study["reason_detail"]
    assert row["priority"] == Priority.MEDIUM
