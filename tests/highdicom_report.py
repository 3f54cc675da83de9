"""The report and the pictures built plainly with highdicom: what this project's own encoding is held to, and what
its speed is measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    CoordinatesForMeasurement,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
    ImageContentItem,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
    UIDRefContentItem,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.uid import UID

from ich_node import codes
from ich_node.findings import IchSubtype, Localization, Priority
from ich_node.report import ReadingReport
from ich_node.report.attributes import numbers, text
from ich_node.report.image_library import code
from ich_node.report.measurements import MAX_SOURCE_IMAGES, PRESENCE_OF, presence
from ich_node.report.reading_report import DEVICE_NAME, MANUFACTURER
from ich_node.report.uids import device_uid, result_uid, tracking_uid
from ich_node.report.viewport import head_bounds
from ich_node.report.wording import (
    DISCLAIMER,
    HEADLINE,
    SUBTYPE_NAME,
    algorithm_line,
    conclusion,
    percent,
    slice_lines,
    slice_name,
    subtype_lines,
)

Group = MeasurementsAndQualitativeEvaluations | PlanarROIMeasurementsAndQualitativeEvaluations
Descriptor = tuple[codes.CodedConcept, codes.CodedConcept, float]
"""Concept, unit, value."""
_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT
_CONTAINS = RelationshipTypeValues.CONTAINS


def highdicom_content(report: ReadingReport) -> Dataset:
    """The root CONTAINER with the same content as the node's report, of highdicom's content items."""
    tree = _measurement_report(report, None)
    root: Dataset = tree[0]
    # The order of TID 1500: the library before the measurements.
    root.ContentSequence.insert(len(root.ContentSequence) - 2, image_library(report))
    return root


def plain_structured_report(report: ReadingReport) -> Dataset:
    """The same report as anyone would build it: highdicom's own image library and document."""
    return Comprehensive3DSR(
        evidence=list(report.source_images),
        content=_measurement_report(report, report.source_images)[0],
        series_instance_uid=result_uid(report, "plain-series"),
        series_number=1,
        sop_instance_uid=result_uid(report, "plain"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
    )


def plain_secondary_capture(report: ReadingReport, pixels: npt.NDArray[np.uint8], number: int) -> Dataset:
    """One drawn page, (rows, columns, 3) uint8, as highdicom's secondary capture of the first image's study."""
    return SCImage.from_ref_dataset(
        report.source_images[0],
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=result_uid(report, "plain-sc-series"),
        series_number=2,
        sop_instance_uid=result_uid(report, f"plain-sc/{number}"),
        instance_number=number,
        manufacturer=MANUFACTURER,
    )


def _measurement_report(report: ReadingReport, images: Sequence[Dataset] | None) -> MeasurementReport:
    tree = MeasurementReport(
        observation_context=_observation_context(report),
        procedure_reported=code(codes.CT_OF_HEAD),
        imaging_measurements=measurement_groups(report),
        referenced_images=images,
    )
    tree[0].ContentSequence.append(_evaluations(report))
    return tree


def image_library(report: ReadingReport) -> ContainerContentItem:
    """Return the library of the slices of one reading, in their order; each frame is an entry of its own."""
    images = report.source_images
    shared, varying = _split_descriptors(images)
    group = ContainerContentItem(name=code(codes.IMAGE_LIBRARY_GROUP), relationship_type=_CONTAINS)
    group.ContentSequence = ContentSequence([*_common(images), *shared])
    for index, (image, descriptors) in enumerate(zip(images, varying, strict=True)):
        entry = ImageContentItem(
            name=code(codes.SOURCE),
            referenced_sop_class_uid=str(image.SOPClassUID),
            referenced_sop_instance_uid=str(image.SOPInstanceUID),
            referenced_frame_numbers=report.referenced_frames(index),
            relationship_type=_CONTAINS,
        )
        if descriptors:
            entry.ContentSequence = ContentSequence(descriptors)
        group.ContentSequence.append(entry)
    library = ContainerContentItem(name=code(codes.IMAGE_LIBRARY), relationship_type=_CONTAINS)
    library.ContentSequence = ContentSequence([group])
    return library


def _common(images: Sequence[Dataset]) -> list[ContentItem]:
    """TID 1602: modality, target region and frame of reference."""
    items: list[ContentItem] = [
        CodeContentItem(
            name=code(codes.MODALITY), value=code(codes.COMPUTED_TOMOGRAPHY), relationship_type=_CONTEXT
        ),
        CodeContentItem(name=code(codes.TARGET_REGION), value=code(codes.HEAD), relationship_type=_CONTEXT),
    ]
    frames = {text(image, "FrameOfReferenceUID") for image in images}
    frame = frames.pop()
    if not frames and frame and UID(frame).is_valid:
        items.append(
            UIDRefContentItem(
                name=code(codes.FRAME_OF_REFERENCE_UID), value=frame, relationship_type=_CONTEXT
            )
        )
    return items


def _split_descriptors(images: Sequence[Dataset]) -> tuple[list[ContentItem], list[list[ContentItem]]]:
    """Split TID 1602 and TID 1604 numbers into those that all images share and those of each image."""
    each = [_descriptors(image) for image in images]
    shared = [d for d in each[0] if all(d in others for others in each)]
    varying: list[list[ContentItem]] = [
        [_number(d) for d in descriptors if d not in shared] for descriptors in each
    ]
    return [_number(d) for d in shared], varying


def _descriptors(image: Dataset) -> list[Descriptor]:
    layout = (
        ("Rows", (codes.PIXEL_DATA_ROWS,), codes.PIXELS),
        ("Columns", (codes.PIXEL_DATA_COLUMNS,), codes.PIXELS),
        ("PixelSpacing", (codes.VERTICAL_PIXEL_SPACING, codes.HORIZONTAL_PIXEL_SPACING), codes.MILLIMETER),
        ("SliceThickness", (codes.SLICE_THICKNESS,), codes.MILLIMETER),
        ("ImagePositionPatient", codes.IMAGE_POSITION, codes.MILLIMETER),
        ("ImageOrientationPatient", codes.IMAGE_ORIENTATION, codes.COSINE),
    )
    found: list[Descriptor] = []
    for keyword, concepts, unit in layout:
        values = numbers(image, keyword, len(concepts))
        if values is not None:
            found.extend((concept, unit, value) for concept, value in zip(concepts, values, strict=True))
    return found


def _number(descriptor: Descriptor) -> NumContentItem:
    concept, unit, value = descriptor
    whole = int(value) if value.is_integer() else value
    return NumContentItem(name=code(concept), value=whole, unit=code(unit), relationship_type=_CONTEXT)


def measurement_groups(report: ReadingReport) -> list[Group]:
    """Every group of the report: study, subtypes as the model orders them, then places from the lowest slice
    up.
    """
    order = sorted(range(len(report.finding.slices)), key=_suspicion_of(report, IchSubtype.ANY))
    groups: list[Group] = [_study_group(report, order.pop(0))]
    for subtype in report.finding.subtypes:
        order.sort(key=_suspicion_of(report, subtype))
        groups.append(_subtype_group(report, subtype, order.pop(0)))
    for index, finding in enumerate(report.finding.slices):
        groups.extend(_place_group(report, index, n, place) for n, place in enumerate(finding.localizations))
    return groups


def _suspicion_of(report: ReadingReport, subtype: IchSubtype) -> Callable[[int], tuple[float, int]]:
    return lambda index: (-report.finding.slices[index].probabilities[subtype], index)


def _with_comments(group: Group, *lines: str) -> Group:
    """Behind the number; highdicom has no place for them."""
    items = group[0].ContentSequence
    number = next(n for n, item in enumerate(items) if item.ValueType == "NUM")
    for offset, line in enumerate(lines, start=1):
        items.insert(number + offset, _text(codes.COMMENT, line))
    return group


def _study_group(report: ReadingReport, shown: int) -> Group:
    finding = report.finding
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=tracking_uid(report, "study"), identifier="Intracranial hemorrhage in the study"
        ),
        finding_type=code(codes.INTRACRANIAL_HEMORRHAGE),
        finding_category=code(codes.ACR_CATEGORY_1) if finding.priority is not Priority.ROUTINE else None,
        algorithm_id=_algorithm(report),
        finding_sites=[FindingSite(anatomic_location=code(codes.INTRACRANIAL))],
        measurements=[_certainty(finding.suspicion, _head(report, shown))],
        qualitative_evaluations=[_presence(PRESENCE_OF[finding.priority])],
        source_images=[
            SourceImageForMeasurementGroup(
                referenced_sop_class_uid=str(report.source_images[index].SOPClassUID),
                referenced_sop_instance_uid=str(report.source_images[index].SOPInstanceUID),
                referenced_frame_numbers=report.referenced_frames(index),
            )
            for index in finding.suspicious_slices[:MAX_SOURCE_IMAGES]
        ]
        or None,
    )
    return _with_comments(group, HEADLINE[finding.priority], DISCLAIMER)


def _subtype_group(report: ReadingReport, subtype: IchSubtype, shown: int) -> Group:
    score = report.finding.subtypes[subtype]
    found = presence(report, score)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=tracking_uid(report, subtype), identifier=f"{SUBTYPE_NAME[subtype]} hemorrhage in the study"
        ),
        finding_type=code(codes.FINDING_OF[subtype]),
        finding_category=code(codes.ACR_CATEGORY_1) if found is not codes.ABSENT else None,
        algorithm_id=_algorithm(report),
        finding_sites=[FindingSite(anatomic_location=code(codes.SITE_OF[subtype]))],
        measurements=[_certainty(score, _head(report, shown))],
        qualitative_evaluations=[_presence(found)],
    )
    return _with_comments(group, f"{SUBTYPE_NAME[subtype]} hemorrhage")


def _place_group(
    report: ReadingReport, index: int, number: int, place: Localization
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    role = f"place/{report.slice_key(index)}/{number}"
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=result_uid(report, role),
            identifier=f"{SUBTYPE_NAME[place.subtype]}, {slice_name(report, index)}, {place.kind} {number + 1}",
        ),
        referenced_region=_region(report, index, place),
        finding_type=code(codes.FINDING_OF[place.subtype]),
        algorithm_id=_algorithm(report),
        finding_sites=[FindingSite(anatomic_location=code(codes.SITE_OF[place.subtype]))],
        measurements=[_certainty(place.score)],
    )


def _region(report: ReadingReport, index: int, place: Localization) -> ImageRegion:
    """SCOORD (PS3.3 C.18.6): a point, or the closed outline of a box."""
    image = report.source_images[index]
    rows, columns = report.hu.shape[1:]
    limit = np.array([columns, rows], dtype=np.float64)
    if place.kind == "point":
        graphic_type = GraphicTypeValues.POINT
        outline: list[tuple[float, ...]] = [place.coordinates]
    else:
        left, top, right, bottom = place.coordinates
        graphic_type = GraphicTypeValues.POLYLINE
        outline = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return ImageRegion(
        graphic_type=graphic_type,
        graphic_data=np.clip(np.asarray(outline, dtype=np.float64), 0, limit),
        source_image=SourceImageForRegion(
            referenced_sop_class_uid=str(image.SOPClassUID),
            referenced_sop_instance_uid=str(image.SOPInstanceUID),
            referenced_frame_numbers=report.referenced_frames(index),
        ),
    )


def _head(report: ReadingReport, index: int) -> CoordinatesForMeasurement:
    """The head on a slice."""
    left, top, right, bottom = head_bounds(report, [index])
    outline = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    image = report.source_images[index]
    return CoordinatesForMeasurement(
        graphic_type=GraphicTypeValues.POLYLINE,
        graphic_data=np.asarray(outline, dtype=np.float64),
        source_image=SourceImageForRegion(
            referenced_sop_class_uid=str(image.SOPClassUID),
            referenced_sop_instance_uid=str(image.SOPInstanceUID),
            referenced_frame_numbers=report.referenced_frames(index),
        ),
        purpose=code(codes.IMAGE_REGION),
    )


def _certainty(score: float, inferred_from: CoordinatesForMeasurement | None = None) -> Measurement:
    return Measurement(
        name=code(codes.CERTAINTY_OF_FINDING),
        value=percent(score),
        unit=code(codes.PERCENT),
        referenced_coordinates=None if inferred_from is None else [inferred_from],
    )


def _presence(found: codes.CodedConcept) -> QualitativeEvaluation:
    return QualitativeEvaluation(name=code(codes.PRESENCE), value=code(found))


def _algorithm(report: ReadingReport) -> AlgorithmIdentification:
    """TID 4019, with the weights' hash and the operating points as parameters."""
    algorithm = report.finding.algorithm
    return AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        manufacturer=MANUFACTURER,
        parameters=[
            f"weights sha256 {algorithm.weights_sha256}",
            f"high-confidence operating point {algorithm.operating_points.high_confidence:.6g}",
            f"sensitive operating point {algorithm.operating_points.sensitive:.6g}",
        ],
    )


def _observation_context(report: ReadingReport) -> ObservationContext:
    algorithm = report.finding.algorithm
    device = DeviceObserverIdentifyingAttributes(
        uid=device_uid(report),
        name=DEVICE_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.name,
        serial_number=algorithm.version,
    )
    observer = ObserverContext(observer_type=dicom_codes.DCM.Device, observer_identifying_attributes=device)
    return ObservationContext(observer_device_context=observer)


def _evaluations(report: ReadingReport) -> ContainerContentItem:
    """Return the facts once more as coded values and as text, for viewers that show no measurement groups."""
    container = ContainerContentItem(name=code(codes.QUALITATIVE_EVALUATIONS), relationship_type=_CONTAINS)
    lines = [
        DISCLAIMER,
        *subtype_lines(report),
        *slice_lines(report),
        *(f"Caveat: {caveat}" for caveat in report.caveats),
        f"Algorithm: {algorithm_line(report)}. Reading {report.run_number} of this series.",
    ]
    items: list[ContentItem] = [_text(codes.CONCLUSION, conclusion(report))]
    items.extend(_text(codes.COMMENT, line) for line in lines)
    container.ContentSequence = ContentSequence(items)
    return container


def _text(name: codes.CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name=code(name), value=value, relationship_type=_CONTAINS)
