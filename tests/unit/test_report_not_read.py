"""A study that was not read gets a report that cannot be taken for a negative one."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from ich_node import codes
from ich_node.errors import REASON_WORDS, RejectionReason, StudyRejected
from ich_node.report.not_read_report import NotReadReport, build_not_read_report
from ich_node.report.sr_class import SrClass
from ich_node.report.wording import DISCLAIMER, NOT_READ
from tests.report_builders import READ_AT, make_report

DETAIL = "Slices 4 to 6 of 32 are missing: send the series again."


def not_read(header: dict[str, Any] | None = None, **changes: Any) -> NotReadReport:
    images = make_report(0.1, shape=(2, 8, 8), header=header).source_images
    report = NotReadReport(
        source_images=images,
        reason=RejectionReason.MISSING_SLICES,
        detail=DETAIL,
        decided_at=READ_AT,
        attempt="1",
    )
    return replace(report, **changes)


def encoded(document: Dataset) -> bytes:
    file = io.BytesIO()
    document.save_as(file, enforce_file_format=True)
    return file.getvalue()


def written(report: NotReadReport, sr_class: SrClass) -> Dataset:
    return dcmread(io.BytesIO(encoded(build_not_read_report(report, sr_class=sr_class))))


def values(document: Dataset, keyword: str) -> list[str]:
    return [str(element.value) for element in document.iterall() if element.keyword == keyword]


@pytest.mark.parametrize("sr_class", SrClass)
def test_it_says_why_and_nothing_of_hemorrhage(sr_class: SrClass) -> None:
    document = written(not_read(), sr_class)
    text = values(document, "TextValue")
    assert f"{NOT_READ}." in text
    assert "Why: slices are missing (MISSING_SLICES)." in text
    assert DETAIL in text
    assert DISCLAIMER in text
    said = set(values(document, "CodeValue"))
    assert codes.NOT_ATTEMPTED.value in said
    findings = [codes.PRESENCE, codes.ABSENT, codes.FINDING, codes.CERTAINTY_OF_FINDING]
    assert not said & {concept.value for concept in (*findings, *codes.FINDING_OF.values())}
    assert "NOT READ" in document.SeriesDescription
    assert document.SOPClassUID == sr_class.sop_class_uid
    assert document.VerificationFlag == "UNVERIFIED"


@pytest.mark.parametrize("reason", RejectionReason)
def test_every_reason_has_words_and_a_fault_of_the_node_is_a_failure(reason: RejectionReason) -> None:
    document = written(not_read(reason=reason), SrClass.COMPREHENSIVE_3D)
    assert any(REASON_WORDS[reason] in text and reason in text for text in values(document, "TextValue"))
    is_fault = reason in ("INVALID_MODEL_OUTPUT", "WORKER_LOST", "INTERNAL_ERROR")
    outcome = codes.FAILED if is_fault else codes.NOT_ATTEMPTED
    assert outcome.value in values(document, "CodeValue")


def test_one_poor_header_is_enough() -> None:
    poor = Dataset()
    poor.StudyInstanceUID = "1.2.3"
    poor.PatientName = "Doe^Jane"
    document = written(not_read(source_images=[poor]), SrClass.COMPREHENSIVE_3D)
    assert document.StudyInstanceUID == "1.2.3"
    assert document.PatientName == "Doe^Jane"
    assert document["PatientID"].is_empty
    assert "CurrentRequestedProcedureEvidenceSequence" not in document


def test_evidence_names_the_images_and_the_order_is_copied() -> None:
    report = not_read({"AccessionNumber": "A1"})
    document = written(report, SrClass.COMPREHENSIVE_3D)
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    found = [str(r.ReferencedSOPInstanceUID) for r in study.ReferencedSeriesSequence[0].ReferencedSOPSequence]
    assert found == [str(image.SOPInstanceUID) for image in report.source_images]
    assert document.ReferencedRequestSequence[0].AccessionNumber == "A1"


def test_same_decision_gives_the_same_bytes_and_another_another_object() -> None:
    for sr_class in SrClass:
        first, again = (encoded(build_not_read_report(not_read(), sr_class=sr_class)) for _ in range(2))
        assert first == again
    other_study = not_read({"StudyInstanceUID": "1.2.3"})
    others = [not_read(attempt="2"), not_read(detail="other"), other_study]
    others.append(not_read(reason=RejectionReason.NOT_HEAD))
    uids = {build_not_read_report(one).SOPInstanceUID for one in (not_read(), *others)}
    uids |= {build_not_read_report(not_read(), sr_class=one).SOPInstanceUID for one in SrClass}
    assert len(uids) == 5 + len(SrClass) - 1


def test_without_image_study_or_time_zone_there_is_no_report() -> None:
    with pytest.raises(StudyRejected) as rejected:
        not_read(source_images=[])
    assert rejected.value.reason is RejectionReason.NO_IMAGES
    with pytest.raises(StudyRejected) as rejected:
        not_read(source_images=[Dataset()])
    assert rejected.value.reason is RejectionReason.MISSING_ATTRIBUTE
    with pytest.raises(ValueError, match="time zone"):
        not_read(decided_at=READ_AT.replace(tzinfo=None))
