"""The structured report says what was found, in codes, numbers, coordinates and words."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any, Literal

import highdicom as hd
import pydicom
import pytest
from highdicom.sr import Comprehensive3DSR, GraphicTypeValues
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.uid import Comprehensive3DSRStorage

from ich_node import codes
from ich_node.findings import IchSubtype, Localization
from ich_node.report import Predecessor, ReadingReport, build_structured_report
from ich_node.report.image_library import code
from ich_node.report.segmentation import build_segmentation
from ich_node.report.sr_class import SrClass
from ich_node.report.uids import result_uid
from ich_node.report.wording import DISCLAIMER, SUBTYPE_NAME, conclusion, slice_lines
from tests.highdicom_report import highdicom_content
from tests.report_builders import make_report

EARLIER = Predecessor(model_name="test-model", model_version="1.2.3", run_number=1)


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def parsed(report: ReadingReport, **options: Any) -> Comprehensive3DSR:
    """The report as highdicom's parser reads it from the file."""
    return hd.sr.srread(io.BytesIO(encoded(build_structured_report(report, **options))))


def outline(item: Dataset) -> list[Any]:
    """Everything below a content item, numbers as numbers."""
    return [
        [
            [outline_of(element) for element in child if element.keyword != "ContentSequence"],
            outline(child),
        ]
        for child in item.get("ContentSequence", [])
    ]


def outline_of(element: DataElement) -> Any:
    if element.VR == "SQ":
        return [element.tag, [[outline_of(inner) for inner in item] for item in element.value]]
    return [element.tag, element.VR, float(element.value) if element.VR == "DS" else element.value]


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


def test_document_holds_what_highdicom_would_write() -> None:
    """The node encodes content items itself; highdicom's own items of the same content are the judge."""
    report = make_report(0.9, caveats=("Slices are uneven.", "Größe 12 µm"))
    ours = dcmread(io.BytesIO(encoded(build_structured_report(report))))
    theirs = highdicom_content(report)
    for keyword in ("ConceptNameCodeSequence", "ContentTemplateSequence", "ValueType", "ContinuityOfContent"):
        assert ours[keyword] == theirs[keyword]
    assert outline(ours) == outline(theirs)


def test_images_of_several_series_keep_theirs_in_the_evidence() -> None:
    report = make_report(0.9)
    report.source_images[3].SeriesInstanceUID = "1.2.3"
    (study,) = build_structured_report(report).CurrentRequestedProcedureEvidenceSequence
    found = {s.SeriesInstanceUID: len(s.ReferencedSOPSequence) for s in study.ReferencedSeriesSequence}
    assert found == {report.series_instance_uid: 11, "1.2.3": 1}


def test_saving_does_not_decode_what_was_encoded() -> None:
    document = build_structured_report(make_report(0.9))
    encoded(document)
    assert isinstance(document.get_item("ContentSequence"), RawDataElement)


def test_a_document_that_was_looked_at_is_saved_the_same() -> None:
    report = make_report(0.9, header={"PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100"})
    looked_at = build_structured_report(report)
    assert all_text(looked_at)
    assert encoded(looked_at) == encoded(build_structured_report(report))


@pytest.mark.parametrize("sr_class", SrClass)
def test_each_class_has_its_sop_class_and_uids_and_names_its_own_predecessor(sr_class: SrClass) -> None:
    first = build_structured_report(make_report(0.9), sr_class=sr_class)
    assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == sr_class.sop_class_uid
    second = build_structured_report(make_report(0.2, predecessor=EARLIER, run_number=2), sr_class=sr_class)
    (study,) = second.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (reference,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == first.StudyInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID != second.SeriesInstanceUID
    assert reference.ReferencedSOPInstanceUID == first.SOPInstanceUID != second.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == first.SOPClassUID


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ({"", "SEG"}, "sr/segmentation"),
        ({""}, "sr"),
        ({"comprehensive"}, "sr"),
        (set(), "sr"),
    ],
)
def test_the_predecessor_is_a_report_that_was_made(sent: set[str], named: str) -> None:
    """Of the earlier reading there need not be one with a segmentation, nor one of the class that is wanted now."""
    first = make_report(0.1)
    second = make_report(0.9, predecessor=replace(EARLIER, sr_forms=frozenset(sent)), run_number=2)
    made = build_structured_report(second, segmentation=build_segmentation(second))
    reference = made.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == result_uid(first, named)
    assert reference.ReferencedSOPClassUID == Comprehensive3DSRStorage


def test_a_report_without_segmentation_follows_one_that_had_it() -> None:
    earlier = replace(EARLIER, sr_forms=frozenset({"comprehensive+SEG"}))
    second = make_report(0.1, predecessor=earlier, run_number=2)
    made = build_structured_report(second, sr_class=SrClass.COMPREHENSIVE)
    reference = made.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    role = "sr/comprehensive/segmentation"
    assert reference.ReferencedSOPInstanceUID == result_uid(make_report(0.9), role)


def test_a_whole_number_too_long_for_a_decimal_string() -> None:
    document = parsed(make_report(header={"SliceThickness": "1e17"}))
    assert 1e17 in [float(e.value) for e in document.iterall() if e.keyword == "NumericValue"]


def test_kinds_of_report_are_objects_of_their_own() -> None:
    report = make_report(0.9)
    segmentation = build_segmentation(report)
    made = [
        build_structured_report(report, sr_class=sr_class, segmentation=one)
        for sr_class in SrClass
        for one in (None, segmentation)
    ]
    assert len({document.SOPInstanceUID for document in made}) == len(made)
    assert len({document.SeriesInstanceUID for document in made}) == len(made)
    assert made[0].SOPInstanceUID == result_uid(report, "sr")


def test_the_tid_1500_classes_have_the_same_content() -> None:
    report = make_report(0.9)
    plain, *others = [
        build_structured_report(report, sr_class=sr_class)
        for sr_class in SrClass
        if sr_class is not SrClass.BASIC_TEXT
    ]
    for other in others:
        assert other.ContentSequence == plain.ContentSequence


@pytest.mark.parametrize(
    ("suspicion", "presence"), [(0.9, codes.PRESENT), (0.5, codes.INDETERMINATE), (0.1, codes.ABSENT)]
)
def test_basic_text_says_the_same_in_words_codes_and_images(
    suspicion: float, presence: codes.CodedConcept
) -> None:
    report = make_report(suspicion, caveats=("Slices are uneven.",))
    document = build_structured_report(report, sr_class=SrClass.BASIC_TEXT)
    text = all_text(document)
    expected = [DISCLAIMER, "Caveat: Slices are uneven.", conclusion(report), *slice_lines(report)]
    expected += [f"Algorithm: weights sha256 {report.finding.algorithm.weights_sha256}"]
    expected += ["Algorithm: high-confidence operating point 0.8", "Algorithm: sensitive operating point 0.4"]
    assert set(expected) <= set(text)
    assert f"Any hemorrhage: {presence.meaning.lower()}, certainty {suspicion:.0%}".replace("%", " %") in text
    findings = document.ContentSequence[-2].ContentSequence
    first = {
        item.ConceptNameCodeSequence[0].CodeValue: item.ConceptCodeSequence[0].CodeValue
        for item in findings[0].ContentSequence
    }
    assert first[codes.PRESENCE.value] == presence.value
    assert first[codes.FINDING.value] == codes.INTRACRANIAL_HEMORRHAGE.value
    assert (codes.FINDING_CATEGORY.value in first) is (presence is not codes.ABSENT)
    images = [
        str(item.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in findings[1 + len(report.finding.subtypes) :]
    ]
    suspicious = report.finding.suspicious_slices
    assert images == [str(report.source_images[index].SOPInstanceUID) for index in suspicious]


@pytest.mark.parametrize("sr_class", SrClass)
def test_segments_are_referred_to_by_class(sr_class: SrClass) -> None:
    report = make_report(0.9)
    segmentation = build_segmentation(report)
    assert segmentation is not None
    document = build_structured_report(report, sr_class=sr_class, segmentation=segmentation)
    references = [
        item
        for element in document.iterall()
        if element.keyword == "ReferencedSOPSequence"
        for item in element.value
        if "ReferencedSegmentNumber" in item
    ]
    assert [item.ReferencedSegmentNumber for item in references] == list(range(1, 7))
    assert {item.ReferencedSOPInstanceUID for item in references} == {segmentation.SOPInstanceUID}
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    evidence = {s.SeriesInstanceUID: s.ReferencedSOPSequence for s in study.ReferencedSeriesSequence}
    (reference,) = evidence[segmentation.SeriesInstanceUID]
    assert reference.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID


def test_a_segment_has_the_finding_the_site_and_the_tracking_of_its_class() -> None:
    report = make_report(0.9)
    document = parsed(report, segmentation=build_segmentation(report))
    groups = document.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(IchSubtype)
    others = {g.tracking_uid: g for g in document.content.get_image_measurement_groups()}
    for group, subtype in zip(groups, IchSubtype, strict=True):
        assert group.finding_type == code(codes.FINDING_OF[subtype])
        assert group.finding_sites[0].value == code(codes.SITE_OF[subtype])
        same = others[group.tracking_uid]
        assert same.finding_type == group.finding_type
        assert same.get_measurements()[0].value == group.get_measurements()[0].value
        assert group.referenced_segment.referenced_segment_numbers == [list(IchSubtype).index(subtype) + 1]
        assert group.referenced_segment.source_series_for_segmentation.value == report.series_instance_uid


def test_the_segmentation_of_another_reading_is_refused() -> None:
    report = make_report(0.9)
    segmentation = build_segmentation(report)
    assert segmentation is not None
    segmentation.SegmentSequence[2].TrackingUID = "1.2.3"
    with pytest.raises(ValueError, match="segment 3 tracks no finding of this reading"):
        build_structured_report(report, segmentation=segmentation)


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
