"""The key object selection names the slices that a person is to look at, and says why."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.uid import KeyObjectSelectionDocumentStorage
from pydicom.valuerep import PersonName

from ich_node.report import ReadingReport, build_structured_report
from ich_node.report.key_object_selection import build_key_object_selection, flagged_slices
from ich_node.report.secondary_capture import MAX_OVERLAYS
from ich_node.report.wording import DISCLAIMER, conclusion
from tests.enhanced_builders import enhanced_report
from tests.report_builders import make_report

JAPANESE_NAME = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    "PatientName": PersonName("Yamada^Tarou=山田^太郎", convert_encodings(["", "ISO 2022 IR 87"])),
}


def encoded(dataset: Dataset | None) -> bytes:
    assert dataset is not None
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def parsed(report: ReadingReport) -> hd.ko.KeyObjectSelectionDocument:
    """The document as highdicom's parser reads it from the file."""
    dataset = pydicom.dcmread(io.BytesIO(encoded(build_key_object_selection(report))))
    return hd.ko.KeyObjectSelectionDocument.from_dataset(dataset)


def evenly_suspicious(slices: int) -> ReadingReport:
    """A report that holds every slice suspicious, the upper ones more."""
    report = make_report(0.9, shape=(slices, 32, 32))
    top = report.finding.slices[slices // 2]
    found = tuple(
        replace(
            top, probabilities=dict.fromkeys(top.probabilities, 0.5 + 0.4 * k / slices), likelihood_maps={}
        )
        for k in range(slices)
    )
    return replace(report, finding=replace(report.finding, slices=found))


def named(document: hd.ko.KeyObjectSelectionDocument) -> list[tuple[str, int | None]]:
    """UID and frame of every reference in the content, in its order."""
    references = [item.ReferencedSOPSequence[0] for item in document.content.get_references()]
    return [(str(r.ReferencedSOPInstanceUID), r.get("ReferencedFrameNumber")) for r in references]


def text_of(document: Dataset) -> str:
    (description,) = [
        item
        for item in document.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Key Object Description"
    ]
    return str(description.TextValue)


def test_a_study_that_is_not_flagged_has_none() -> None:
    assert build_key_object_selection(make_report(0.1)) is None
    assert flagged_slices(make_report(0.1)) == []


def test_every_suspicious_slice_is_named_the_most_suspicious_first() -> None:
    report = evenly_suspicious(2 * MAX_OVERLAYS)
    expected = [(str(image.SOPInstanceUID), None) for image in reversed(report.source_images)]
    document = parsed(report)
    assert named(document) == expected
    for uid, _ in expected:
        resolved = (report.study_instance_uid, report.series_instance_uid, uid)
        assert document.resolve_reference(uid) == resolved


def test_evidence_is_what_is_named() -> None:
    report = make_report(0.9)
    document = parsed(report)
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    evidence = [str(item.ReferencedSOPInstanceUID) for item in series.ReferencedSOPSequence]
    assert sorted(evidence) == sorted(uid for uid, _ in named(document))
    assert 1 < len(evidence) < len(report.source_images)


def test_a_flagged_study_without_a_suspicious_slice_has_the_most_suspicious_one() -> None:
    report = make_report(0.3)
    report = replace(report, finding=replace(report.finding, suspicion=0.5))
    middle = len(report.source_images) // 2
    assert named(parsed(report)) == [(str(report.source_images[middle].SOPInstanceUID), None)]


@pytest.mark.parametrize("options", [{}, {"objects": 2}, {"objects": 3, "concatenated": True}])
def test_frames_are_named_by_number_and_their_objects_once_as_evidence(
    options: dict[str, int], tmp_path: Path
) -> None:
    report = enhanced_report(tmp_path, **options)
    document = parsed(report)
    expected = [
        (str(report.source_images[i].SOPInstanceUID), report.frame_number(i)) for i in flagged_slices(report)
    ]
    assert named(document) == expected
    assert None not in [number for _, number in expected]
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    evidence = [
        item.ReferencedSOPInstanceUID for item in study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    ]
    assert len(evidence) == len(set(evidence))
    assert set(evidence) == {uid for uid, _ in expected}


def test_title_and_description_say_what_the_images_are() -> None:
    report = make_report(0.9, caveats=("Slices are uneven.",))
    document = parsed(report)
    (title,) = document.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113000", "DCM")
    assert title.CodeMeaning == "Of Interest"
    text = text_of(document)
    assert text.startswith(DISCLAIMER)
    algorithm = report.finding.algorithm
    for expected in (conclusion(report), "Slices are uneven.", algorithm.name, algorithm.version):
        assert expected in text


def test_the_observer_is_that_of_the_structured_report() -> None:
    report = make_report(0.9)
    document, structured = parsed(report), build_structured_report(report)
    (observer,) = document.content.get_observer_contexts()
    (other,) = hd.sr.srread(io.BytesIO(encoded(structured))).content.get_observer_contexts()
    ours, theirs = observer.observer_identifying_attributes, other.observer_identifying_attributes
    assert (ours.uid, ours.name, ours.model_name) == (theirs.uid, theirs.name, theirs.model_name)
    assert ours.serial_number == report.finding.algorithm.version
    assert document.DeviceUID == structured.DeviceUID


def test_identity_is_that_of_the_images() -> None:
    report = make_report(0.9, header={**JAPANESE_NAME, "AccessionNumber": "A1"})
    before = [Dataset(image) for image in report.source_images]
    document = parsed(report)
    assert document.SOPClassUID == KeyObjectSelectionDocumentStorage
    assert str(document.PatientName) == str(JAPANESE_NAME["PatientName"])
    assert document.SpecificCharacterSet == JAPANESE_NAME["SpecificCharacterSet"]
    assert document.ReferencedRequestSequence[0].AccessionNumber == "A1"
    assert (document.Modality, document.SeriesNumber) == ("KO", 9906)
    assert list(report.source_images) == before


def test_poor_headers_give_a_document_all_the_same() -> None:
    missing = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"]
    missing += ["SpecificCharacterSet", "InstanceNumber", "SeriesNumber", "Rows", "Columns", "Modality"]
    document = parsed(make_report(0.9, header=dict.fromkeys(missing)))
    assert len(document.content.get_references(value_type=hd.sr.ValueTypeValues.IMAGE)) == 3
    assert "ReferencedRequestSequence" not in document


def test_the_same_report_gives_the_same_bytes_and_another_run_another_object() -> None:
    first, again = (encoded(build_key_object_selection(make_report(0.9))) for _ in range(2))
    assert first == again
    other = parsed(make_report(0.9, run_number=2))
    assert other.SOPInstanceUID != pydicom.dcmread(io.BytesIO(first)).SOPInstanceUID
