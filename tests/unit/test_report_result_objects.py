"""What is made of a reading: for each destination what it wants, each object once, and always what the node shows."""

from __future__ import annotations

import pytest
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    SecondaryCaptureImageStorage,
)

from ich_node.report import result_objects
from ich_node.report.compression import Compression
from ich_node.report.result_objects import ResultKind, ResultObject, Wish, build_result_objects
from ich_node.report.sr_class import SrClass
from tests.report_builders import make_report

ALL = Wish(kinds=frozenset(ResultKind))


def kinds(objects: list[ResultObject], name: str) -> list[str]:
    return [each.kind for each in objects if name in each.destinations]


def test_without_a_destination_there_is_what_the_node_shows() -> None:
    objects = build_result_objects(make_report(), {})
    assert objects[0].kind is ResultKind.SR
    assert {each.kind for each in objects[1:]} == {ResultKind.SC}
    assert all(each.destinations == () for each in objects)
    assert {str(each.dataset.file_meta.TransferSyntaxUID) for each in objects} == {ExplicitVRLittleEndian}


def test_two_destinations_that_want_the_same_share_the_objects() -> None:
    objects = build_result_objects(make_report(), {"a": Wish(), "b": Wish()})
    assert {each.destinations for each in objects} == {("a", "b")}
    assert len(objects) == len(build_result_objects(make_report(), {}))


def test_each_destination_gets_what_it_wants() -> None:
    old = Wish(sr_class=SrClass.COMPREHENSIVE, sc_compression=Compression.JPEG_2000_LOSSLESS)
    only_report = Wish(kinds=frozenset({ResultKind.SR}))
    objects = build_result_objects(make_report(), {"all": ALL, "old": old, "few": only_report})
    uids = [str(each.dataset.SOPInstanceUID) for each in objects]
    assert len(set(uids)) == len(uids)
    captures = kinds(objects, "old").count("SC")
    assert kinds(objects, "few") == ["SR"]
    assert kinds(objects, "all") == ["SR", *["SC"] * captures, "SEG", "GSPS", "KOS", "PM"]
    of_old = [each.dataset for each in objects if each.destinations == ("old",)]
    assert of_old[0].SOPClassUID == ComprehensiveSRStorage
    assert {str(one.file_meta.TransferSyntaxUID) for one in of_old[1:]} == {JPEG2000Lossless}
    assert {one.SOPClassUID for one in of_old[1:]} == {SecondaryCaptureImageStorage}


def test_a_report_refers_to_the_segmentation_only_where_both_go() -> None:
    objects = build_result_objects(make_report(), {"both": ALL, "one": Wish()})
    (segmentation,) = (each.dataset for each in objects if each.kind is ResultKind.SEG)
    reports = {each.destinations: each.dataset for each in objects if each.kind is ResultKind.SR}

    def evidence(names: tuple[str, ...]) -> set[str]:
        study = reports[names].CurrentRequestedProcedureEvidenceSequence
        return {
            str(item.ReferencedSOPInstanceUID)
            for series in study[0].ReferencedSeriesSequence
            for item in series.ReferencedSOPSequence
        }

    assert str(segmentation.SOPInstanceUID) in evidence(("both",))
    assert str(segmentation.SOPInstanceUID) not in evidence(("one",))


def test_a_reading_without_finding_has_no_key_objects_and_no_maps() -> None:
    objects = build_result_objects(make_report(0.01), {"all": ALL})
    assert kinds(objects, "all") == ["SR", "SC"]


def test_what_cannot_be_made_does_not_keep_the_report_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("an encoder's fault")

    compressed = Wish(sc_compression=Compression.JPEG_LOSSLESS)
    for name in ("build_segmentation", "build_presentation_state", "compress_capture"):
        monkeypatch.setattr(result_objects, name, breaks)
    objects = build_result_objects(make_report(), {"all": ALL, "small": compressed})
    captures = kinds(objects, "small").count("SC")
    assert captures > 1
    assert kinds(objects, "small") == ["SR", *["SC"] * captures]
    assert kinds(objects, "all") == ["SR", *["SC"] * captures, "KOS", "PM"]
    assert {each.form for each in objects} == {""}
