"""A study from rows to rows: what is claimed is read, and whatever happens is committed."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from sqlalchemy import update

from ich_node import reading_job
from ich_node.database import outbox, queue, readings
from ich_node.database.engine import Database
from ich_node.database.receipt import record_instances
from ich_node.database.tables import StudyRow
from ich_node.database.worklist import result_file, study_report, worklist_row
from ich_node.destination_settings import HL7Settings
from ich_node.errors import ConfigurationError, RejectionReason, StudyRejected, TransientError
from ich_node.findings import (
    AlgorithmIdentification,
    IchSubtype,
    OperatingPoints,
    SeriesFinding,
    SliceFinding,
)
from ich_node.node import Node
from ich_node.reading_job import read_due_study
from ich_node.receive.received import rebuild
from ich_node.receive.spool import Spool
from ich_node.settings import PacsSettings, Settings
from ich_node.testing.phantom import HeadPhantom, head_phantom
from ich_node.testing.series import localizer_series, phantom_series


class ScriptedPredictor:
    """Gives every slice the same probability, or does what it is told to do instead."""

    def __init__(
        self, suspicion: float = 0.1, *, instead: Callable[[], None] = lambda: None, name: str = "scripted"
    ) -> None:
        self.suspicion = suspicion
        self.instead = instead
        self.calls = 0
        self.algorithm = AlgorithmIdentification(
            name=name,
            version="1",
            weights_sha256="0" * 64,
            operating_points=OperatingPoints(high_confidence=0.8, sensitive=0.5),
        )

    def predict(
        self,
        hu: npt.NDArray[np.float32],
        spacing_mm: tuple[float, float, float],
        *,
        slice_thickness_mm: float | None = None,
        widest_gap_mm: float | None = None,
    ) -> SeriesFinding:
        self.calls += 1
        self.instead()
        slices = tuple(SliceFinding(probabilities={IchSubtype.ANY: self.suspicion}) for _ in hu)
        return SeriesFinding(slices=slices, suspicion=self.suspicion, subtypes={}, algorithm=self.algorithm)


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


def arrive(node: Node, images: Sequence[pydicom.Dataset]) -> str:
    """Put images into spool and database as the receiver does; they are due at once."""
    spool = Spool(node.settings.spool_dir)
    for image in images:
        buffer = pydicom.filebase.DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = (
            True,
            image.file_meta.TransferSyntaxUID.is_implicit_VR,
        )
        pydicom.filewriter.write_dataset(buffer, image)
        spool.store(
            buffer.getvalue(),
            sop_class_uid=image.SOPClassUID,
            sop_instance_uid=image.SOPInstanceUID,
            transfer_syntax_uid=image.file_meta.TransferSyntaxUID,
            source_ae_title="CT01",
        )
    now = datetime.now(UTC)

    def record(received: Any) -> None:
        with node.database.writing() as session:
            record_instances(session, [received], due_at=now)

    assert rebuild(spool, record).failed == ()
    return str(images[0].StudyInstanceUID)


def read(node: Node, uid: str, predictor: ScriptedPredictor) -> dict[str, Any]:
    read_due_study(node, uid, lambda _name: [predictor])
    with node.database.reading() as session:
        row = worklist_row(session, uid)
    assert row is not None
    return row


def show(node: Node, uid: str) -> dict[str, Any]:
    with node.database.reading() as session:
        report = study_report(session, uid)
    assert report is not None
    return report


def result_path(node: Node, sop_instance_uid: str) -> Path:
    """Where the file of a result object is."""
    with node.database.reading() as session:
        found = result_file(session, sop_instance_uid)
    assert found is not None
    return node.settings.results_dir / found.file_name


@pytest.mark.parametrize(("suspicion", "priority"), [(0.9, "STAT"), (0.6, "HIGH"), (0.1, "ROUTINE")])
def test_a_reading_is_committed_with_its_objects_and_deliveries(
    node: Node, phantom: HeadPhantom, suspicion: float, priority: str
) -> None:
    uid = arrive(node, phantom_series(phantom))
    row = read(node, uid, ScriptedPredictor(suspicion))
    assert (row["state"], row["priority"], row["suspicion"]) == ("READ", priority, suspicion)
    objects = show(node, uid)["readings"][0]["objects"]
    files = {path.name for path in node.settings.results_dir.iterdir()}
    assert files == {result_path(node, o["sop_instance_uid"]).name for o in objects}
    assert [o["kind"] for o in objects][:2] == ["SR", "SC"]
    with node.database.reading() as session:
        pending = outbox.deliveries(session)
    assert {d.sop_instance_uid for d in pending} == {o["sop_instance_uid"] for o in objects}
    assert {d.destination for d in pending} == {"archive"}


def test_a_study_is_read_once(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))
    predictor = ScriptedPredictor()
    read(node, uid, predictor)
    read(node, uid, predictor)
    assert predictor.calls == 1


def test_better_series_is_read_and_the_others_say_why_not(node: Node, phantom: HeadPhantom) -> None:
    axial = phantom_series(phantom, series_number=2)
    bone = phantom_series(phantom, series_number=3, convolution_kernel="H60s", series_description="Head bone")
    arrive(node, [*localizer_series(phantom), *bone, *axial])
    uid = str(axial[0].StudyInstanceUID)
    read(node, uid, ScriptedPredictor())
    report = show(node, uid)
    reasons = {s["series_number"]: s["exclusion_reason"] for s in report["series"]}
    assert reasons == {1: "LOCALIZER", 2: None, 3: "BONE_KERNEL"}
    assert [r["series_instance_uid"] for r in report["readings"]] == [axial[0].SeriesInstanceUID]


def test_a_broken_series_does_not_hide_a_sound_one(node: Node, phantom: HeadPhantom) -> None:
    sound = phantom_series(phantom, series_number=2, convolution_kernel="H31s")
    broken = phantom_series(phantom, series_number=3, convolution_kernel="H31s")
    for image in broken:
        image.PixelData = image.PixelData[:-64]
    uid = arrive(node, [*broken, *sound])
    row = read(node, uid, ScriptedPredictor())
    assert row["state"] == "READ"
    report = show(node, uid)
    assert report["readings"][0]["series_instance_uid"] == sound[0].SeriesInstanceUID


def test_series_with_a_slice_that_is_damaged_in_the_spool_is_not_read_without_it(
    node: Node, phantom: HeadPhantom
) -> None:
    uid = arrive(node, phantom_series(phantom))
    last = max(
        node.settings.spool_dir.glob("??/*.dcm"), key=lambda path: pydicom.dcmread(path).InstanceNumber
    )
    last.write_bytes(b"")
    predictor = ScriptedPredictor()
    row = read(node, uid, predictor)
    assert (row["state"], row["priority"]) == ("NOT_READ", "MEDIUM")
    assert predictor.calls == 0


def test_reading_that_the_database_never_takes_is_a_failed_study(
    node: Node, phantom: HeadPhantom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TypeError("not JSON")

    monkeypatch.setattr(readings, "finish_read", refuse)
    uid = arrive(node, phantom_series(phantom))
    row = read(node, uid, ScriptedPredictor())
    assert (row["state"], row["priority"], row["reason"]) == ("FAILED", "MEDIUM", "INTERNAL_ERROR")
    assert "cannot be committed" in caplog.text


def test_model_that_cannot_be_loaded_is_named(node: Node, phantom: HeadPhantom) -> None:
    def load(_name: str | None) -> list[ScriptedPredictor]:
        raise ConfigurationError("model.device: cuda:0 is not there")

    uid = arrive(node, phantom_series(phantom))
    read_due_study(node, uid, load)
    report = show(node, uid)
    assert (report["state"], report["reason_detail"]) == ("FAILED", "model.device: cuda:0 is not there")


def test_bug_while_reading_is_a_failed_study_with_a_reason(
    node: Node, phantom: HeadPhantom, caplog: pytest.LogCaptureFixture
) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    uid = arrive(node, phantom_series(phantom))
    row = read(node, uid, ScriptedPredictor(instead=bug))
    assert (row["state"], row["priority"], row["reason"]) == ("FAILED", "MEDIUM", "INTERNAL_ERROR")
    assert "ZeroDivisionError" in caplog.text


def test_output_that_is_no_finding_is_failed_and_never_negative(node: Node, phantom: HeadPhantom) -> None:
    def not_a_number() -> None:
        raise StudyRejected(RejectionReason.INVALID_MODEL_OUTPUT, "NaN in slice 3")

    uid = arrive(node, phantom_series(phantom))
    row = read(node, uid, ScriptedPredictor(instead=not_a_number))
    assert (row["state"], row["priority"], row["reason"]) == ("FAILED", "MEDIUM", "INVALID_MODEL_OUTPUT")


def test_full_disk_is_tried_again_later(node: Node, phantom: HeadPhantom) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    uid = arrive(node, phantom_series(phantom))
    row = read(node, uid, ScriptedPredictor(instead=full))
    assert (row["state"], row["priority"]) == ("QUEUED", "MEDIUM")
    soon, later = datetime.now(UTC), datetime.now(UTC) + timedelta(seconds=30)
    with node.database.writing() as session:
        assert queue.take_due_studies(session, soon) == []
        assert queue.take_due_studies(session, later) == [uid]


def test_a_worker_that_stood_still_does_not_write_over_what_another_committed(
    node: Node, phantom: HeadPhantom
) -> None:
    uid = arrive(node, phantom_series(phantom))
    committed: dict[Path, bytes] = {}

    def stand_still() -> None:
        with node.database.writing() as session:
            session.execute(update(StudyRow).values(lease_until=datetime.now(UTC) - timedelta(seconds=1)))
            assert queue.take_due_studies(session, datetime.now(UTC)) == [uid]
        read(node, uid, ScriptedPredictor(0.9))
        committed.update({path: path.read_bytes() for path in node.settings.results_dir.iterdir()})

    assert read(node, uid, ScriptedPredictor(0.1, instead=stand_still))["priority"] == "STAT"
    objects = show(node, uid)["readings"][0]["objects"]
    assert {result_path(node, o["sop_instance_uid"]) for o in objects} == set(committed)
    assert {path: path.read_bytes() for path in committed} == committed


def test_what_a_dead_worker_left_behind_goes(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_job, "_commit_when_possible", die)
        with pytest.raises(KeyboardInterrupt):
            read_due_study(node, uid, lambda _name: [ScriptedPredictor(0.9)])
    left = set(node.settings.results_dir.iterdir())
    assert left
    with node.database.writing() as session:
        session.execute(update(StudyRow).values(lease_until=datetime.now(UTC) - timedelta(seconds=1)))
        assert queue.take_due_studies(session, datetime.now(UTC)) == [uid]
    read(node, uid, ScriptedPredictor(0.9))
    there = set(node.settings.results_dir.iterdir())
    objects = show(node, uid)["readings"][0]["objects"]
    assert there == {result_path(node, o["sop_instance_uid"]) for o in objects}
    assert not there & left


def test_work_that_was_taken_over_is_dropped(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))
    other = ScriptedPredictor(0.9)

    def be_taken_over() -> None:
        much_later = datetime.now(UTC) + timedelta(hours=1)
        with node.database.writing() as session:
            claim = queue.claim_study(
                session, uid, owner="other", now=much_later, lease=timedelta(seconds=15), max_attempts=3
            )
        assert claim is not None

    assert read_due_study(node, uid, lambda _name: [ScriptedPredictor(instead=be_taken_over)]) is False
    assert show(node, uid)["readings"] == []
    assert other.calls == 0


def ask_for(node: Node, uid: str, model: str | None = None) -> None:
    with node.database.writing() as session:
        queue.request_reprocess(
            session, uid, series_instance_uid=None, model=model, actor="test", now=datetime.now(UTC)
        )


def predecessor_of(node: Node, reading: dict[str, Any]) -> str:
    sr = next(o["sop_instance_uid"] for o in reading["objects"] if o["kind"] == "SR")
    report = pydicom.dcmread(result_path(node, sr))
    if "PredecessorDocumentsSequence" not in report:
        return ""
    series = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    return str(series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)


def test_reprocessing_makes_another_run_that_names_its_predecessor(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))
    first = read(node, uid, ScriptedPredictor(0.9))
    ask_for(node, uid)
    read(node, uid, ScriptedPredictor(0.1))
    new, old = show(node, uid)["readings"]
    assert (new["run_number"], new["superseded"], old["superseded"]) == (2, False, True)
    assert predecessor_of(node, new) == first["sr_sop_instance_uid"]
    assert show(node, uid)["priority"] == "ROUTINE"


def test_the_predecessor_is_one_that_was_sent_whatever_was_wanted_then(
    node: Node, phantom: HeadPhantom
) -> None:
    uid = arrive(node, phantom_series(phantom))
    first = read(node, uid, ScriptedPredictor(0.9))
    (pacs,) = node.settings.pacs
    others = (pacs.model_copy(update={"sr_class": "comprehensive"}),)
    changed = Node(settings=node.settings.model_copy(update={"pacs": others}), database=node.database)
    ask_for(node, uid)
    read(changed, uid, ScriptedPredictor(0.1))
    objects = show(node, uid)["readings"][0]["objects"]
    sr = next(o["sop_instance_uid"] for o in objects if o["kind"] == "SR/comprehensive")
    series = (
        pydicom.dcmread(result_path(node, sr)).PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    )
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first["sr_sop_instance_uid"]


def test_another_model_reads_beside_and_takes_no_flag_down(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))
    read(node, uid, ScriptedPredictor(0.9))
    ask_for(node, uid, model="other")
    names: list[str | None] = []

    def load(name: str | None) -> list[ScriptedPredictor]:
        names.append(name)
        return [ScriptedPredictor(0.1, name="other")]

    read_due_study(node, uid, load)
    assert names == ["other"]
    new, old = show(node, uid)["readings"]
    assert (new["model_name"], new["run_number"]) == ("other", 1)
    assert (new["superseded"], old["superseded"]) == (False, False)
    assert predecessor_of(node, new) == ""
    assert show(node, uid)["priority"] == "STAT"


def test_the_models_that_read_replace_one_that_reads_no_longer(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))
    read(node, uid, ScriptedPredictor(0.9, name="of last year"))
    ask_for(node, uid)
    read(node, uid, ScriptedPredictor(0.1, name=node.settings.model.bundles[0]))
    new, old = show(node, uid)["readings"]
    assert (new["superseded"], old["superseded"]) == (False, True)
    assert show(node, uid)["priority"] == "ROUTINE"


def several(node: Node, *names: str) -> Node:
    settings = node.settings.model_copy(
        update={"model": node.settings.model.model_copy(update={"bundles": names})}
    )
    return Node(settings=settings, database=node.database)


@pytest.mark.parametrize("suspicions", [(0.1, 0.9), (0.9, 0.1)])
def test_of_several_models_the_most_urgent_counts(
    node: Node, phantom: HeadPhantom, suspicions: tuple[float, float]
) -> None:
    node = several(node, "one", "two")
    uid = arrive(node, phantom_series(phantom))
    predictors = [ScriptedPredictor(s, name=n) for s, n in zip(suspicions, ("one", "two"), strict=True)]
    assert read_due_study(node, uid, lambda _name: predictors)
    report = show(node, uid)
    assert (report["state"], report["priority"]) == ("READ", "STAT")
    assert {(r["model_name"], r["suspicion"], r["superseded"]) for r in report["readings"]} == {
        ("one", suspicions[0], False),
        ("two", suspicions[1], False),
    }
    srs = {o["sop_instance_uid"] for r in report["readings"] for o in r["objects"] if o["kind"] == "SR"}
    assert len(srs) == 2


def test_what_one_model_found_is_not_lost_for_another_whose_output_is_no_number(
    node: Node, phantom: HeadPhantom
) -> None:
    def give_nan() -> None:
        raise StudyRejected(RejectionReason.INVALID_MODEL_OUTPUT, "The model's output is not a number.")

    node = several(node, "one", "two")
    uid = arrive(node, phantom_series(phantom))
    predictors = [ScriptedPredictor(instead=give_nan, name="one"), ScriptedPredictor(0.9, name="two")]
    assert read_due_study(node, uid, lambda _name: predictors)
    report = show(node, uid)
    assert (report["state"], report["reason"], report["priority"]) == (
        "FAILED",
        "INVALID_MODEL_OUTPUT",
        "STAT",
    )
    assert report["reason_detail"].startswith("one: ")
    assert [r["model_name"] for r in report["readings"]] == ["two"]
    ask_for(node, uid)
    predictors[1] = ScriptedPredictor(0.1, name="two")
    assert read_due_study(node, uid, lambda _name: predictors)
    assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("FAILED", "MEDIUM")
    ask_for(node, uid)
    predictors[0] = ScriptedPredictor(0.1, name="one")
    assert read_due_study(node, uid, lambda _name: predictors)
    assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("READ", "ROUTINE")


def test_what_one_model_found_is_not_lost_for_a_bundle_that_cannot_be_loaded(
    node: Node, phantom: HeadPhantom
) -> None:
    node = several(node, "one", "two")
    uid = arrive(node, phantom_series(phantom))
    broken = ConfigurationError("one/model.safetensors: tensor 'a' holds NaN")
    assert read_due_study(node, uid, lambda _name: [broken, ScriptedPredictor(0.9, name="two")])
    report = show(node, uid)
    assert (report["state"], report["reason"], report["priority"]) == ("FAILED", "INTERNAL_ERROR", "STAT")
    assert report["reason_detail"] == str(broken)
    ask_for(node, uid)
    assert read_due_study(node, uid, lambda _name: [broken, ScriptedPredictor(0.1, name="two")])
    assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("FAILED", "MEDIUM")


def test_a_reading_that_still_holds_does_not_hide_a_bundle_that_cannot_be_loaded(
    node: Node, phantom: HeadPhantom
) -> None:
    node = several(node, "one", "two")
    uid = arrive(node, phantom_series(phantom))
    two = ScriptedPredictor(0.1, name="two")
    assert read_due_study(node, uid, lambda _name: [two])
    arrive(node, localizer_series(phantom))  # makes the study due again; the reading of the series holds
    read_due_study(node, uid, lambda _name: [ConfigurationError("one is damaged"), two])
    report = show(node, uid)
    assert two.calls == 1
    assert (report["state"], report["reason_detail"], report["priority"]) == (
        "FAILED",
        "one is damaged",
        "MEDIUM",
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_crash_in_one_model_loses_nothing_of_another(node: Node, phantom: HeadPhantom, order: int) -> None:
    def crash() -> None:
        raise RuntimeError("out of something")

    node = several(node, "one", "two")
    uid = arrive(node, phantom_series(phantom))
    predictors = [ScriptedPredictor(instead=crash, name="one"), ScriptedPredictor(0.9, name="two")][::order]
    assert read_due_study(node, uid, lambda _name: predictors)
    report = show(node, uid)
    assert (report["state"], report["reason"], report["priority"]) == ("FAILED", "INTERNAL_ERROR", "STAT")
    assert "one: RuntimeError" in report["reason_detail"]
    assert "out of something" not in report["reason_detail"]


def test_a_run_of_another_model_neither_makes_a_study_read_nor_undoes_it(
    node: Node, phantom: HeadPhantom
) -> None:
    def give_nan() -> None:
        raise StudyRejected(RejectionReason.INVALID_MODEL_OUTPUT, "not a number")

    node = several(node, "one")
    uid = arrive(node, phantom_series(phantom))
    read_due_study(node, uid, lambda _name: [ScriptedPredictor(instead=give_nan, name="one")])
    assert (show(node, uid)["state"], show(node, uid)["reason"]) == ("FAILED", "INVALID_MODEL_OUTPUT")
    ask_for(node, uid, model="trial")
    read_due_study(node, uid, lambda _name: [ScriptedPredictor(0.1, name="trial")])
    report = show(node, uid)
    assert (report["state"], report["reason"], report["priority"]) == (
        "FAILED",
        "INVALID_MODEL_OUTPUT",
        "MEDIUM",
    )
    assert [r["model_name"] for r in report["readings"]] == ["trial"]
    ask_for(node, uid)
    read_due_study(node, uid, lambda _name: [ScriptedPredictor(0.1, name="one")])
    assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("READ", "ROUTINE")
    for instead in (give_nan, lambda: 1 / 0):
        ask_for(node, uid, model="trial")
        read_due_study(node, uid, lambda _name, what=instead: [ScriptedPredictor(instead=what, name="trial")])
        assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("READ", "ROUTINE")


def test_one_of_two_models_read_again_does_not_hide_that_the_other_failed(
    node: Node, phantom: HeadPhantom
) -> None:
    def give_nan() -> None:
        raise StudyRejected(RejectionReason.INVALID_MODEL_OUTPUT, "not a number")

    node = several(node, "one", "two")
    uid = arrive(node, phantom_series(phantom))
    one, two = ScriptedPredictor(0.1, name="one"), ScriptedPredictor(instead=give_nan, name="two")
    read_due_study(node, uid, lambda _name: [one, two])
    ask_for(node, uid, model="one")
    read_due_study(node, uid, lambda _name: [one])
    assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("FAILED", "MEDIUM")
    ask_for(node, uid, model="two")
    read_due_study(node, uid, lambda _name: [ScriptedPredictor(0.1, name="two")])
    assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("READ", "ROUTINE")


def test_images_that_come_before_a_trial_run_are_read_by_all_models(node: Node, phantom: HeadPhantom) -> None:
    node = several(node, "one")
    images = phantom_series(phantom)
    uid = arrive(node, images[:-4])
    one = ScriptedPredictor(0.1, name="one")
    read_due_study(node, uid, lambda _name: [one])
    ask_for(node, uid, model="trial")
    arrive(node, images)
    read_due_study(node, uid, lambda name: [ScriptedPredictor(0.1, name="trial") if name else one])
    assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("RECEIVING", "MEDIUM")
    one.suspicion = 0.9
    read_due_study(node, uid, lambda name: [ScriptedPredictor(0.1, name="trial") if name else one])
    assert one.calls == 2
    assert (show(node, uid)["state"], show(node, uid)["priority"]) == ("READ", "STAT")


def test_requests_that_wait_are_joined(node: Node, phantom: HeadPhantom) -> None:
    node = several(node, "one")
    uid = arrive(node, phantom_series(phantom))
    names: list[str | None] = []

    def load(name: str | None) -> list[ScriptedPredictor]:
        names.append(name)
        if len(names) == 2:  # while it runs, another request
            ask_for(node, uid, model="d")
        return [ScriptedPredictor(0.1, name=name or "one")]

    read_due_study(node, uid, load)
    names.clear()
    for model in ("a", "b", None, "a"):
        ask_for(node, uid, model=model)
    read_due_study(node, uid, load)
    assert names == ["a", "b", None]
    read_due_study(node, uid, load)
    assert names[3:] == ["d"]
    assert read_due_study(node, uid, load) is False
    assert sorted(r["model_name"] for r in show(node, uid)["readings"]) == ["a", "b", "d", "one", "one"]


def test_a_change_of_the_operating_points_makes_another_reading(node: Node, phantom: HeadPhantom) -> None:
    uid = arrive(node, phantom_series(phantom))
    predictor = ScriptedPredictor(0.6)
    assert read(node, uid, predictor)["priority"] == "HIGH"
    arrive(node, localizer_series(phantom))
    predictor.algorithm = dataclasses.replace(
        predictor.algorithm, operating_points=OperatingPoints(high_confidence=0.55, sensitive=0.5)
    )
    assert read(node, uid, predictor)["priority"] == "STAT"


def test_reprocessing_a_series_that_cannot_be_read_says_why(node: Node, phantom: HeadPhantom) -> None:
    scout = localizer_series(phantom)
    uid = arrive(node, [*scout, *phantom_series(phantom)])
    read(node, uid, ScriptedPredictor(0.9))
    with node.database.writing() as session:
        queue.request_reprocess(
            session,
            uid,
            series_instance_uid=str(scout[0].SeriesInstanceUID),
            model=None,
            actor="test",
            now=datetime.now(UTC),
        )
    row = read(node, uid, ScriptedPredictor())
    assert (row["state"], row["reason"]) == ("NOT_READ", "LOCALIZER")
    assert row["priority"] == "STAT", "the flag of the reading that counts stays up"


def test_a_database_that_answers_again_keeps_the_reading(
    node: Node, phantom: HeadPhantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = arrive(node, phantom_series(phantom))
    predictor = ScriptedPredictor(0.9)
    answers = iter([TransientError("locked"), None])
    commit = reading_job._commit

    def slow_database(*arguments: Any) -> None:
        if error := next(answers):
            raise error
        commit(*arguments)

    monkeypatch.setattr(reading_job, "_commit", slow_database)
    row = read(node, uid, predictor)
    assert (row["state"], row["priority"], predictor.calls) == ("READ", "STAT", 1)


def test_a_destination_that_wants_it_gets_a_report_that_nothing_was_read(
    node: Node, phantom: HeadPhantom
) -> None:
    wanting = node.settings.pacs[0].model_copy(update={"not_read_report": True})
    listening = HL7Settings(name="RIS", host="127.0.0.1", port=2575, priorities=("MEDIUM",))
    changed = node.settings.model_copy(update={"pacs": (wanting,), "hl7": (listening,)})
    uid = arrive(node, localizer_series(phantom))
    row = read(dataclasses.replace(node, settings=changed), uid, ScriptedPredictor())
    assert (row["state"], row["reason"]) == ("NOT_READ", "LOCALIZER")
    with node.database.reading() as session:
        on_the_way = {(d.kind, d.destination): d for d in outbox.deliveries(session)}
    assert on_the_way.keys() == {("SR", "archive"), ("NOTICE", "RIS")}
    report = on_the_way["SR", "archive"]
    assert report.study_instance_uid == uid
    dataset = pydicom.dcmread(node.settings.results_dir / f"{report.sop_instance_uid}.dcm")
    assert dataset.StudyInstanceUID == uid
    assert "NOT read" in str(dataset) or "NOT READ" in str(dataset)


def test_a_destination_that_wants_it_hears_of_a_study_that_took_its_workers_down(
    node: Node, phantom: HeadPhantom
) -> None:
    wanting = node.settings.pacs[0].model_copy(update={"not_read_report": True})
    changed = node.settings.model_copy(update={"pacs": (wanting,)})
    uid = arrive(node, phantom_series(phantom))
    for _ in range(node.settings.worker.max_attempts):
        with node.database.writing() as session:
            died = queue.claim_study(
                session,
                uid,
                owner="died",
                now=datetime.now(UTC),
                lease=-timedelta(seconds=1),
                max_attempts=node.settings.worker.max_attempts,
            )
        assert isinstance(died, queue.StudyClaim)
    unread = ScriptedPredictor(0.9)
    assert read_due_study(dataclasses.replace(node, settings=changed), uid, lambda _name: [unread])
    assert unread.calls == 0
    assert show(node, uid)["state"] == "FAILED"
    with node.database.reading() as session:
        (report,) = outbox.deliveries(session)
    assert (report.kind, report.destination, report.study_instance_uid) == ("SR", "archive", uid)
    dataset = pydicom.dcmread(node.settings.results_dir / f"{report.sop_instance_uid}.dcm")
    texts = [str(element.value) for element in dataset.iterall() if element.keyword == "TextValue"]
    assert any("the reading process died repeatedly" in text for text in texts), texts
