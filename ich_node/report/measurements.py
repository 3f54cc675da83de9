"""Measurement groups of TID 1500: one for the study and one per subtype (TID 1501), one per place (TID
1410).
"""

from __future__ import annotations

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    FindingSite,
    GraphicTypeValues,
    ImageRegion,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TrackingIdentifier,
)

from ich_node import codes
from ich_node.findings import IchSubtype, Localization, Priority
from ich_node.report.image_library import code
from ich_node.report.reading_report import MANUFACTURER, ReadingReport
from ich_node.report.uids import result_uid, tracking_uid
from ich_node.report.wording import SUBTYPE_NAME, percent, slice_name

Group = MeasurementsAndQualitativeEvaluations | PlanarROIMeasurementsAndQualitativeEvaluations

MAX_SOURCE_IMAGES = 8
"""Most suspicious slices that the study's group names as its source."""
_PRESENCE = {
    Priority.STAT: codes.PRESENT,
    Priority.HIGH: codes.INDETERMINATE,
    Priority.ROUTINE: codes.ABSENT,
}


def measurement_groups(report: ReadingReport) -> list[Group]:
    """Every group of the report: study, subtypes as the model orders them, then places from the lowest slice
    up.
    """
    groups: list[Group] = [_study_group(report)]
    groups.extend(_subtype_group(report, subtype) for subtype in report.finding.subtypes)
    for index, finding in enumerate(report.finding.slices):
        groups.extend(_place_group(report, index, n, place) for n, place in enumerate(finding.localizations))
    return groups


def presence(report: ReadingReport, score: float) -> codes.CodedConcept:
    """Return Present from the high-confidence operating point on, Indeterminate from the sensitive one on,
    else Absent.

    No subtype is more present than hemorrhage is: where the study is below an operating point, so are its
    subtypes.
    """
    points = report.finding.algorithm.operating_points
    score = min(score, report.finding.suspicion)
    if score >= points.high_confidence:
        return codes.PRESENT
    return codes.INDETERMINATE if score >= points.sensitive else codes.ABSENT


def _study_group(report: ReadingReport) -> MeasurementsAndQualitativeEvaluations:
    finding = report.finding
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=tracking_uid(report, "study"), identifier="Intracranial hemorrhage in the study"
        ),
        finding_type=code(codes.INTRACRANIAL_HEMORRHAGE),
        finding_category=code(codes.ACR_CATEGORY_1) if finding.priority is not Priority.ROUTINE else None,
        algorithm_id=_algorithm(report),
        finding_sites=[FindingSite(anatomic_location=code(codes.INTRACRANIAL))],
        measurements=[_certainty(finding.suspicion)],
        qualitative_evaluations=[_presence(_PRESENCE[finding.priority])],
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


def _subtype_group(report: ReadingReport, subtype: IchSubtype) -> MeasurementsAndQualitativeEvaluations:
    score = report.finding.subtypes[subtype]
    found = presence(report, score)
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=tracking_uid(report, subtype), identifier=f"{SUBTYPE_NAME[subtype]} hemorrhage in the study"
        ),
        finding_type=code(codes.FINDING_OF[subtype]),
        finding_category=code(codes.ACR_CATEGORY_1) if found is not codes.ABSENT else None,
        algorithm_id=_algorithm(report),
        finding_sites=[FindingSite(anatomic_location=code(codes.SITE_OF[subtype]))],
        measurements=[_certainty(score)],
        qualitative_evaluations=[_presence(found)],
    )


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


def _certainty(score: float) -> Measurement:
    return Measurement(name=code(codes.CERTAINTY_OF_FINDING), value=percent(score), unit=code(codes.PERCENT))


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
