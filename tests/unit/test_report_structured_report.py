"""The structured report says what was found, in codes, numbers, coordinates and words."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Literal

import highdicom as hd
import pydicom
import pytest
from highdicom.sr import Comprehensive3DSR, GraphicTypeValues
from pydicom import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from ich_node import codes
from ich_node.findings import IchSubtype, Localization
from ich_node.report import Predecessor, ReadingReport, build_structured_report
from ich_node.report.image_library import code
from ich_node.report.wording import DISCLAIMER, SUBTYPE_NAME, slice_lines
from tests.report_builders import make_report


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def parsed(report: ReadingReport) -> Comprehensive3DSR:
    """The report as highdicom's parser reads it from the file."""
    return hd.sr.srread(io.BytesIO(encoded(build_structured_report(report))))


def all_text(dataset: Dataset) -> list[str]:
    return [str(e.value) for e in dataset.iterall() if e.keyword == "TextValue"]


def presence_of(group: hd.sr.MeasurementsAndQualitativeEvaluations) -> str:
    (evaluation,) = group.get_qualitative_evaluations(name=code(codes.PRESENCE))
    return str(evaluation.value.value)


@pytest.mark.parametrize(
    ("suspicion", "presence", "actionable"),
    [(0.9, codes.PRESENT, True), (0.5, codes.INDETERMINATE, True), (0.1, codes.ABSENT, False)],
)
def test_study_group_says_presence_certainty_and_category(
    suspicion: float, presence: codes.CodedConcept, actionable: bool
) -> None:
    document = parsed(make_report(suspicion))
    group = document.content.get_image_measurement_groups(finding_type=code(codes.INTRACRANIAL_HEMORRHAGE))[0]
    assert presence_of(group) == presence.value
    (certainty,) = group.get_measurements(name=code(codes.CERTAINTY_OF_FINDING))
    assert certainty.value == pytest.approx(100 * suspicion)
    assert certainty.unit == code(codes.PERCENT)
    category = None if group.finding_category is None else group.finding_category.value
    assert category == (codes.ACR_CATEGORY_1.value if actionable else None)


def test_each_subtype_has_a_group_with_finding_and_site() -> None:
    report = make_report(0.9)
    groups = parsed(report).content.get_image_measurement_groups()[1:]
    assert len(groups) == len(report.finding.subtypes)
    for group, (subtype, score) in zip(groups, report.finding.subtypes.items(), strict=True):
        assert group.finding_type == code(codes.FINDING_OF[subtype])
        assert group.finding_sites[0].value == code(codes.SITE_OF[subtype])
        assert group.get_measurements()[0].value == pytest.approx(100 * score)
    present = {g.finding_type.value for g in groups if presence_of(g) == codes.PRESENT.value}
    assert present == {codes.CEREBRAL_HEMORRHAGE.value}


def test_no_subtype_is_more_present_than_hemorrhage_is() -> None:
    report = make_report(0.1)
    finding = replace(report.finding, subtypes={IchSubtype.SUBDURAL: 0.99})
    groups = parsed(replace(report, finding=finding)).content.get_image_measurement_groups()
    assert [presence_of(group) for group in groups] == [codes.ABSENT.value] * 2


def test_a_model_without_subtypes_has_the_study_group_alone() -> None:
    content = parsed(make_report(0.9, with_subtypes=False)).content
    assert len(content.get_image_measurement_groups()) == 1


def test_places_point_at_the_source_image_in_its_pixels() -> None:
    report = make_report(0.9)
    content = parsed(report).content
    for graphic_type, kind in ((GraphicTypeValues.POINT, "point"), (GraphicTypeValues.POLYLINE, "box")):
        groups = content.get_planar_roi_measurement_groups(graphic_type=graphic_type)
        expected = [
            (image.SOPInstanceUID, place)
            for image, found in zip(report.source_images, report.finding.slices, strict=True)
            for place in found.localizations
            if place.kind == kind
        ]
        assert len(groups) == len(expected) > 0
        for group, (uid, place) in zip(groups, expected, strict=True):
            assert group.roi.ContentSequence[0].referenced_sop_instance_uid == uid
            outline = group.roi.value
            assert outline[0].tolist() == pytest.approx(place.coordinates[:2])
            if kind == "box":
                assert outline[2].tolist() == pytest.approx(place.coordinates[2:])
                assert outline[0].tolist() == outline[-1].tolist()
            assert group.finding_type == code(codes.FINDING_OF[place.subtype])


@pytest.mark.parametrize("kind", ["point", "box"])
def test_a_place_of_each_subtype_has_the_finding_the_site_and_the_words_of_that_subtype(
    kind: Literal["point", "box"],
) -> None:
    report = make_report(0.9, shape=(1, 64, 64))
    places = tuple(
        Localization(
            kind=kind,
            subtype=subtype,
            coordinates=(5.5 + 8 * n, 30.5) if kind == "point" else (5.5 + 8 * n, 30.5, 9.5 + 8 * n, 40.5),
            score=0.3 + 0.1 * n,
        )
        for n, subtype in enumerate(IchSubtype)
    )
    slices = (replace(report.finding.slices[0], localizations=places),)
    report = replace(report, finding=replace(report.finding, slices=slices))
    groups = parsed(report).content.get_planar_roi_measurement_groups()
    assert [group.finding_type for group in groups] == [code(codes.FINDING_OF[p.subtype]) for p in places]
    assert [group.finding_sites[0].value for group in groups] == [
        code(codes.SITE_OF[p.subtype]) for p in places
    ]
    assert [group.get_measurements()[0].value for group in groups] == pytest.approx(
        [100 * p.score for p in places]
    )
    assert [group.tracking_identifier.split(",")[0] for group in groups] == [
        SUBTYPE_NAME[p.subtype] for p in places
    ]
    (line,) = slice_lines(report)
    assert line.split("; ")[1:3] == [
        f"{kind} at column 6, row 31",
        f"epidural {kind} at column 14, row 31",
    ]


def test_a_place_beyond_the_edge_is_drawn_at_the_edge() -> None:
    report = make_report(0.9)
    place = Localization(kind="point", subtype=IchSubtype.ANY, coordinates=(-3.0, 70.0), score=0.9)
    changed = replace(report.finding.slices[0], localizations=(place,))
    finding = replace(report.finding, slices=(changed, *report.finding.slices[1:]))
    groups = parsed(replace(report, finding=finding)).content.get_planar_roi_measurement_groups(
        referenced_sop_instance_uid=report.source_images[0].SOPInstanceUID
    )
    assert groups[0].roi.value.tolist() == [[0.0, 64.0]]


@pytest.mark.parametrize("suspicion", [0.9, 0.1])
def test_evidence_and_library_name_every_slice_once(suspicion: float) -> None:
    report = make_report(suspicion)
    document = parsed(report)
    expected = {str(image.SOPInstanceUID) for image in report.source_images}
    evidence = [str(uid) for _, _, uid, _ in document.get_evidence()]
    assert len(evidence) == len(expected)
    assert set(evidence) == expected
    library = document.ContentSequence[-3]
    assert library.ConceptNameCodeSequence[0].CodeValue == codes.IMAGE_LIBRARY.value
    entries = [item for item in library.ContentSequence[0].ContentSequence if item.ValueType == "IMAGE"]
    assert {str(e.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for e in entries} == expected


def test_library_places_each_slice_in_the_patient() -> None:
    report = make_report(0.1)
    group = build_structured_report(report).ContentSequence[-3].ContentSequence[0]
    entries = [item for item in group.ContentSequence if item.ValueType == "IMAGE"]
    for entry, image in zip(entries, report.source_images, strict=True):
        found = {
            item.ConceptNameCodeSequence[0].CodeValue: float(item.MeasuredValueSequence[0].NumericValue)
            for item in [*group.ContentSequence, *entry.ContentSequence]
            if item.ValueType == "NUM"
        }
        position = [found[concept.value] for concept in codes.IMAGE_POSITION]
        assert position == pytest.approx([float(v) for v in image.ImagePositionPatient])


def test_flags_and_identity() -> None:
    report = make_report(0.9)
    document = build_structured_report(report)
    assert document.SOPClassUID == Comprehensive3DSRStorage
    assert document.CompletionFlag == "COMPLETE"
    assert document.PreliminaryFlag == "PRELIMINARY"
    assert document.VerificationFlag == "UNVERIFIED"
    assert document.StudyInstanceUID == report.study_instance_uid
    assert document.SeriesInstanceUID != report.series_instance_uid
    assert "PredecessorDocumentsSequence" not in document


def test_predecessor_is_named() -> None:
    earlier = Predecessor(
        study_instance_uid="1.2.3", series_instance_uid="1.2.3.4", sop_instance_uid="1.2.3.4.5"
    )
    document = build_structured_report(make_report(0.9, predecessor=earlier, run_number=2))
    (study,) = document.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == "1.2.3"
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
    reference = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == "1.2.3.4.5"
    assert reference.ReferencedSOPClassUID == Comprehensive3DSRStorage


def test_text_has_the_disclaimer_the_caveats_and_the_algorithm() -> None:
    report = make_report(0.9, caveats=("Slices are uneven.",))
    text = "\n".join(all_text(build_structured_report(report)))
    algorithm = report.finding.algorithm
    for expected in (DISCLAIMER, "Slices are uneven.", algorithm.name, algorithm.version):
        assert expected in text
    assert algorithm.weights_sha256 in text
    assert "Suspected hemorrhage: high confidence" in text
    assert "No hemorrhage flagged" in "\n".join(all_text(build_structured_report(make_report(0.1))))


def test_device_observer_is_the_algorithm() -> None:
    report = make_report(0.9)
    (context,) = parsed(report).content.get_observer_contexts()
    attributes = context.observer_identifying_attributes
    assert attributes.model_name == report.finding.algorithm.name
    assert attributes.uid == build_structured_report(report).DeviceUID


@pytest.mark.parametrize("suspicion", [0.9, 0.1])
def test_same_report_gives_the_same_bytes(suspicion: float) -> None:
    first, again = (encoded(build_structured_report(make_report(suspicion))) for _ in range(2))
    assert first == again
    other_run = encoded(build_structured_report(make_report(suspicion, run_number=2)))
    assert other_run != first


def test_poor_headers_give_a_report_all_the_same() -> None:
    missing = ["FrameOfReferenceUID", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"]
    missing += ["SliceThickness", "InstanceNumber", "SeriesNumber", "Rows", "Columns", "Modality"]
    document = parsed(make_report(0.9, header=dict.fromkeys(missing)))
    assert len(document.get_evidence()) == 12


def test_images_keep_their_headers() -> None:
    report = make_report(0.9)
    before = [pydicom.Dataset(image) for image in report.source_images]
    build_structured_report(report)
    assert list(report.source_images) == before


def test_places_are_named_by_the_number_that_a_viewer_shows_and_by_the_pixel_they_lie_in() -> None:
    report = make_report()
    for number, image in enumerate(reversed(report.source_images), start=101):
        image.InstanceNumber = number  # numbered from above, as most scanners do
    index = report.finding.suspicious_slices[0]
    slices = list(report.finding.slices)
    place = Localization(kind="point", subtype=IchSubtype.ANY, coordinates=(20.5, 21.5), score=0.9)
    slices[index] = replace(slices[index], localizations=(place,))
    report = replace(report, finding=replace(report.finding, slices=tuple(slices)))
    name = f"Image {report.source_images[index].InstanceNumber}"
    assert f"Any hemorrhage, {name}, point 1".encode() in encoded(build_structured_report(report))
    assert slice_lines(report)[0].startswith(f"{name}: ")
    assert slice_lines(report)[0].endswith("point at column 21, row 22")
