"""Enhanced CT from the spool to rows, the web page and the terminal: every slice says its object and its frame."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import RLELossless
from sqlalchemy import text

from ich_node.cli import main
from ich_node.database.engine import Database
from ich_node.database.worklist import result_files, study_report, worklist_row
from ich_node.node import Node
from ich_node.settings import PacsSettings, Settings
from ich_node.testing.enhanced import enhanced_ct, enhanced_phantom
from ich_node.testing.functional_groups import EnhancedFrame
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import phantom_series
from ich_node.web.pictures import picture_source
from ich_node.web.study_page import StudyPage, study_page
from tests.unit.test_reading_job import ScriptedPredictor, arrive, read, show


@pytest.fixture(scope="module")
def phantom() -> HeadPhantom:
    return head_phantom(seed=5, slices=24, rows=128, columns=128)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    pacs = PacsSettings(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=104)
    settings = Settings(data_dir=tmp_path, pacs=(pacs,))
    database = Database(settings.database_url)
    database.upgrade()
    yield Node(settings=settings, database=database)
    database.dispose()


def slices_of(node: Node, uid: str) -> list[dict[str, Any]]:
    slices: list[dict[str, Any]] = show(node, uid)["readings"][0]["slices"]
    return slices


def page_of(node: Node, uid: str) -> StudyPage:
    with node.database.reading() as session:
        row, report = worklist_row(session, uid), study_report(session, uid)
        files = result_files(session, uid)
    assert row is not None
    assert report is not None
    sources = {
        uid: picture_source(node.settings.results_dir / name) for kind, uid, name in files if kind == "SC"
    }
    return study_page(row, report, sources, now=datetime.now(UTC))


def test_every_slice_says_its_object_and_frame(node: Node, phantom: HeadPhantom) -> None:
    datasets = enhanced_phantom(phantom, objects=2, transfer_syntax_uid=RLELossless)
    uid = arrive(node, datasets)
    row = read(node, uid, ScriptedPredictor(0.9))
    assert (row["state"], row["priority"]) == ("READ", "STAT")
    assert [(s["sop_instance_uid"], s["frame_number"]) for s in slices_of(node, uid)] == [
        (str(d.SOPInstanceUID), n) for d in datasets for n in range(1, 13)
    ]
    assert show(node, uid)["series"][0]["instances"] == 2


def test_a_single_frame_has_no_number(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))
    read(node, uid, ScriptedPredictor(0.9))
    assert [s["frame_number"] for s in slices_of(node, uid)] == [None] * 24


def test_readings_of_before_frames_were_read_have_none_either(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))
    read(node, uid, ScriptedPredictor(0.9))
    with node.database.writing() as session:
        session.execute(text("UPDATE reading SET slices = replace(slices, '\"frame_number\": null, ', '')"))
        (stored,) = session.execute(text("SELECT slices FROM reading")).one()
    assert "frame_number" not in stored
    assert [s["frame_number"] for s in slices_of(node, uid)] == [None] * 24
    assert page_of(node, uid).pictures[1].short_caption.startswith("Slice ")


def test_a_picture_of_a_frame_is_named_by_its_slice(node: Node, phantom: HeadPhantom) -> None:
    """Frames are stored from the vertex down, so that frame and slice count differently."""
    frames = [EnhancedFrame(image=image) for image in phantom_series(phantom)][::-1]
    uid = arrive(node, enhanced_ct(frames))
    read(node, uid, ScriptedPredictor(0.9))
    summary, *overlays = page_of(node, uid).pictures
    assert summary.short_caption == "Summary"
    # All slices are equally suspicious: the lowest come first.
    assert [o.caption for o in overlays[:2]] == [
        "Slice 1 of 24 from below, 90 %",
        "Slice 2 of 24 from below, 90 %",
    ]


def test_the_terminal_names_frames(
    node: Node, phantom: HeadPhantom, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = arrive(node, enhanced_phantom(phantom, objects=2))
    read(node, uid, ScriptedPredictor(0.9))
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(node.settings.data_dir))
    monkeypatch.chdir(node.settings.data_dir)
    with pytest.raises(SystemExit) as ended:
        main(["study", "show", uid])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "slice   1 (frame 1)" in shown
    assert "slice   5 (frame 5)" in shown


def test_a_study_is_not_read_again_by_itself(node: Node, phantom: HeadPhantom) -> None:
    predictor = ScriptedPredictor(0.9)
    uid = arrive(node, enhanced_phantom(phantom))
    read(node, uid, predictor)
    read(node, uid, predictor)
    assert predictor.calls == 1


def test_the_settings_bound_what_is_decoded(node: Node, phantom: HeadPhantom) -> None:
    """24 frames of 512 x 512 take 12 MiB; the little ones of this test do not take 1 MiB."""
    worker = node.settings.worker.model_copy(update={"max_image_mib": 1})
    small = Node(settings=node.settings.model_copy(update={"worker": worker}), database=node.database)
    large = head_phantom(slices=24, rows=256, columns=256)
    row = read(small, arrive(small, enhanced_phantom(large, name="large")), ScriptedPredictor(0.9))
    assert (row["state"], row["reason"], row["priority"]) == ("NOT_READ", "TOO_LARGE", "MEDIUM")
    row = read(small, arrive(small, enhanced_phantom(phantom, name="small")), ScriptedPredictor(0.9))
    assert row["state"] == "READ"


def test_half_a_concatenation_waits_for_the_other_half(node: Node, phantom: HeadPhantom) -> None:
    first, second = enhanced_phantom(phantom, objects=2, concatenated=True)
    uid = arrive(node, [first])
    row = read(node, uid, ScriptedPredictor(0.9))
    assert (row["state"], row["reason"], row["priority"]) == ("NOT_READ", "MISSING_SLICES", "MEDIUM")
    arrive(node, [first, second])
    row = read(node, uid, ScriptedPredictor(0.9))
    assert (row["state"], row["priority"]) == ("READ", "STAT")


def test_nothing_identifying_is_logged(
    node: Node, phantom: HeadPhantom, caplog: pytest.LogCaptureFixture
) -> None:
    (dataset,) = enhanced_phantom(phantom, patient_name="Zyxwv^Identifying", patient_id="ID-7753191")
    del dataset.PerFrameFunctionalGroupsSequence
    read(node, arrive(node, [dataset]), ScriptedPredictor(0.9))
    assert caplog.records
    assert "Zyxwv" not in caplog.text
    assert "7753191" not in caplog.text
