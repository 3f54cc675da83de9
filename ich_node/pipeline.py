"""One study from images to result objects: the stages in order."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ich_node.database.queue import ClaimedSeries, StudyClaim
from ich_node.database.readings import EarlierReading, NewReading
from ich_node.errors import RejectionReason, StudyRejected, TransientError
from ich_node.findings import AlgorithmIdentification, SeriesFinding
from ich_node.pixels import DecodeLimits
from ich_node.receive.frames import ENHANCED_CT_CLASSES, read_frames_header
from ich_node.receive.header import read_header
from ich_node.report import Predecessor, ReadingReport
from ich_node.report.result_objects import ResultKind
from ich_node.result_files import ResultFiles
from ich_node.selection import SeriesExclusion, select_series
from ich_node.study import Instance, Series, Study
from ich_node.volume import HeadVolume, load_volume, source_headers

logger = logging.getLogger(__name__)


FAULTS_OF_THE_NODE = (RejectionReason.INVALID_MODEL_OUTPUT, RejectionReason.INTERNAL_ERROR)
"""Reasons that lie with the models, not with the images."""


class Predictor(Protocol):
    """What reads: `ich_node.model.predict.Predictor`, named here so that nothing else loads torch."""

    @property
    def algorithm(self) -> AlgorithmIdentification:
        """Who reads."""
        ...

    def predict(
        self,
        hu: npt.NDArray[np.float32],
        spacing_mm: tuple[float, float, float],
        *,
        slice_thickness_mm: float | None = None,
        widest_gap_mm: float | None = None,
    ) -> SeriesFinding:
        """Read (slices, rows, columns) HU with (slice, row, column) spacing in mm."""
        ...


@dataclass(frozen=True, kw_only=True)
class History:
    """What was read of a series before, by the name of the model."""

    last_run_numbers: Mapping[str, int]
    earlier: Mapping[str, EarlierReading]
    """The last readings."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """A series of the study was read."""

    readings: tuple[NewReading, ...]
    """One of each model that read."""
    exclusions: tuple[SeriesExclusion, ...]
    fault: StudyRejected | None = None
    """Why another model gave no reading."""


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The best series has been read already, with the same images, models and weights."""

    exclusions: tuple[SeriesExclusion, ...]


@dataclass(frozen=True, kw_only=True)
class NotRead:
    """No series of the study can be read."""

    reason: RejectionReason
    detail: str
    exclusions: tuple[SeriesExclusion, ...]


StudyOutcome = Read | Unchanged | NotRead


def read_study(
    claim: StudyClaim,
    *,
    spool_dir: Path,
    results: ResultFiles,
    predictors: Sequence[Predictor],
    history: Callable[[str], History],
    limits: DecodeLimits | None = None,
) -> StudyOutcome:
    """Read the best series of a study that can be read, with every model.

    Series are tried from the best to the worst; one that turns out to be unreadable is excluded with its reason, so
    that a broken thin series does not hide a sound thick one. A model whose earlier reading still holds is passed
    over.
    """
    outliving = {s.series_instance_uid for s in claim.series if _outlives_its_images(s, history)}
    study, unreadable = _open_study(claim, spool_dir, without=outliving)
    selection = select_series(study)
    exclusions = [*unreadable, *selection.exclusions]
    wanted = claim.reprocess.series_instance_uid if claim.reprocess else None
    candidates = [s for s in selection.candidates if wanted in (None, s.series_instance_uid)]
    for series in candidates:
        content = _content_sha256(claim, series)
        past = history(series.series_instance_uid)
        others = _not_chosen(selection.candidates, series, exclusions)
        due = [p for p in predictors if claim.reprocess or not _still_holds(past, content, p.algorithm)]
        if not due:
            return Unchanged(exclusions=others)
        try:
            readings, fault = read_series(
                series,
                predictors=due,
                history=past,
                content_sha256=content,
                results=results,
                limits=limits,
            )
        except StudyRejected as rejected:
            exclusions.append(_exclusion(series.series_instance_uid, rejected))
            if rejected.reason in FAULTS_OF_THE_NODE:  # a worse series does not make up for it
                return Read(readings=(), exclusions=tuple(exclusions), fault=rejected)
            continue
        return Read(readings=readings, exclusions=others, fault=fault)
    if outliving and not claim.reprocess:
        return Unchanged(exclusions=tuple(exclusions))
    return _not_read(exclusions, wanted)


def read_series(
    series: Series,
    *,
    predictors: Sequence[Predictor],
    history: History,
    content_sha256: str,
    results: ResultFiles,
    limits: DecodeLimits | None = None,
) -> tuple[tuple[NewReading, ...], StudyRejected | None]:
    """Read one series with every model and write the result objects.

    Returns
    -------
    tuple
        The readings, and why a model among several gave none: what the others found is not lost for it.

    Raises
    ------
    StudyRejected
        The series cannot be read, or no model's output is a finding.
    """
    timeline = {"started": _now()}
    volume = load_volume(series, limits)
    timeline["loaded"] = _now()
    readings: list[NewReading] = []
    faults: list[StudyRejected] = []
    for predictor in predictors:
        try:
            reading = _read_volume(
                volume, series, predictor, history, content_sha256, results, dict(timeline)
            )
        except Exception as error:
            if len(predictors) == 1 or isinstance(error, TransientError | OSError):
                raise
            faults.append(_fault_of(error, predictor))
            continue
        readings.append(reading)
    fault = None
    if faults:
        fault = StudyRejected(faults[0].reason, "; ".join(each.detail for each in faults))
        if not readings:
            raise fault
    results.sync()
    return tuple(readings), fault


def _fault_of(error: Exception, predictor: Predictor) -> StudyRejected:
    """Why one model among several gave no reading; what the others find is not lost for it."""
    name = predictor.algorithm.name
    if isinstance(error, StudyRejected):
        return StudyRejected(error.reason, f"{name}: {error.detail}")
    logger.error("%s failed", name, exc_info=error)
    detail = f"{name}: {type(error).__name__} while reading; the worker's log has the whole of it"
    return StudyRejected(RejectionReason.INTERNAL_ERROR, detail)


def _read_volume(
    volume: HeadVolume,
    series: Series,
    predictor: Predictor,
    history: History,
    content_sha256: str,
    results: ResultFiles,
    timeline: dict[str, str],
) -> NewReading:
    thicknesses = [mm for i in volume.instances if (mm := i.slice_thickness_mm or 0.0) > 0]
    thickness = median(thicknesses) if thicknesses else None
    finding = predictor.predict(
        volume.hu, volume.spacing_mm, slice_thickness_mm=thickness, widest_gap_mm=volume.widest_gap_mm
    )
    caveats = (*volume.caveats, *finding.caveats)
    timeline["predicted"] = _now()
    read_at = datetime.now(UTC)
    run_number = history.last_run_numbers.get(predictor.algorithm.name, 0) + 1
    report = ReadingReport(
        finding=finding,
        source_images=source_headers(volume),
        frame_numbers=tuple(i.frame_number for i in volume.instances),
        hu=volume.hu,
        spacing_mm=volume.spacing_mm,
        run_number=run_number,
        read_at=read_at,
        predecessor=_predecessor(history.earlier.get(predictor.algorithm.name)),
        caveats=caveats,
    )
    objects, structured_report = results.write(report)
    maps_file_name = results.write_maps(report, structured_report)
    timeline["reported"] = _now()
    return NewReading(
        series_instance_uid=series.series_instance_uid,
        run_number=run_number,
        finding=_without_maps(finding),
        sop_instance_uids=tuple(i.sop_instance_uid for i in volume.instances),
        frame_numbers=tuple(i.frame_number for i in volume.instances),
        content_sha256=content_sha256,
        caveats=caveats,
        timeline=timeline,
        read_at=read_at,
        sr_sop_instance_uid=str(structured_report.SOPInstanceUID),
        sr_series_instance_uid=str(structured_report.SeriesInstanceUID),
        objects=tuple(objects),
        maps_file_name=maps_file_name,
    )


def _without_maps(finding: SeriesFinding) -> SeriesFinding:
    """The report is drawn: the maps of one model need not wait for the others."""
    return replace(finding, slices=tuple(replace(one, likelihood_maps={}) for one in finding.slices))


def _outlives_its_images(claimed: ClaimedSeries, history: Callable[[str], History]) -> bool:
    """Whether the series was read, its images were purged, and no other has come since: that reading counts."""
    if not claimed.purged_instances:
        return False
    readings = [r for r in history(claimed.series_instance_uid).earlier.values() if r.counts]
    return any(earlier.sop_instance_uids.issuperset(claimed.sop_instance_uids) for earlier in readings)


def _open_study(
    claim: StudyClaim, spool_dir: Path, *, without: Collection[str]
) -> tuple[Study, list[SeriesExclusion]]:
    opened, unreadable = [], []
    for claimed in claim.series:
        if claimed.series_instance_uid in without or not claimed.file_names:
            continue  # what was found before its images were purged holds
        instances, rejected = _open_instances(claimed, spool_dir)
        if (
            rejected is not None
        ):  # without the slices that cannot be read the others would look like all of it
            unreadable.append(_exclusion(claimed.series_instance_uid, rejected))
        elif instances:
            opened.append(
                Series(
                    series_instance_uid=claimed.series_instance_uid,
                    study_instance_uid=claim.study_instance_uid,
                    instances=tuple(instances),
                )
            )
    return Study(study_instance_uid=claim.study_instance_uid, series=tuple(opened)), unreadable


def _open_instances(claimed: ClaimedSeries, spool_dir: Path) -> tuple[list[Instance], StudyRejected | None]:
    if claimed.purged_instances:
        return [], StudyRejected(
            RejectionReason.IMAGES_PURGED,
            f"its {claimed.purged_instances} images were purged, and a part is not read for the whole: "
            "send the whole series again",
        )
    instances: list[Instance] = []
    rejected = None
    for file_name in claimed.file_names:
        try:
            instances.extend(_open_object(spool_dir / file_name))
        except StudyRejected as error:
            rejected = error
            logger.warning("%s in the spool cannot be read: %s", file_name, error.reason)
    return instances, rejected


def _open_object(path: Path) -> tuple[Instance, ...]:
    """The image in a file, or its frames."""
    instance, _ = read_header(path)
    return read_frames_header(path) if instance.sop_class_uid in ENHANCED_CT_CLASSES else (instance,)


def _content_sha256(claim: StudyClaim, series: Series) -> str:
    claimed = next(c for c in claim.series if c.series_instance_uid == series.series_instance_uid)
    return hashlib.sha256("".join(sorted(claimed.content_hashes)).encode()).hexdigest()


def _still_holds(history: History, content: str, algorithm: AlgorithmIdentification) -> bool:
    earlier = history.earlier.get(algorithm.name)
    return (
        earlier is not None
        and earlier.counts
        and earlier.content_sha256 == content
        and earlier.model_version == algorithm.version
        and earlier.weights_sha256 == algorithm.weights_sha256
        and dict(earlier.operating_points) == asdict(algorithm.operating_points)
    )


def _not_chosen(
    candidates: Sequence[Series], chosen: Series, exclusions: Sequence[SeriesExclusion]
) -> tuple[SeriesExclusion, ...]:
    known = {e.series_instance_uid for e in exclusions} | {chosen.series_instance_uid}
    passed_over = [
        SeriesExclusion(
            series_instance_uid=series.series_instance_uid,
            reason=RejectionReason.BETTER_SERIES,
            detail="another series of the study suits the reading better",
        )
        for series in candidates
        if series.series_instance_uid not in known
    ]
    return (*exclusions, *passed_over)


def _not_read(exclusions: Sequence[SeriesExclusion], wanted: str | None) -> NotRead:
    if wanted is not None and all(e.series_instance_uid != wanted for e in exclusions):
        return NotRead(
            reason=RejectionReason.NO_IMAGES,
            detail="the series that was asked for is not here",
            exclusions=tuple(exclusions),
        )
    relevant = [e for e in exclusions if wanted in (None, e.series_instance_uid)]
    if not relevant:
        return NotRead(reason=RejectionReason.NO_IMAGES, detail="the study has no images", exclusions=())
    # The reason that comes last in the enum is the one that came closest to a reading.
    order = list(RejectionReason)
    leading = max(relevant, key=lambda e: order.index(e.reason))
    return NotRead(reason=leading.reason, detail=leading.detail, exclusions=tuple(exclusions))


def _exclusion(series_instance_uid: str, rejected: StudyRejected) -> SeriesExclusion:
    return SeriesExclusion(
        series_instance_uid=series_instance_uid, reason=rejected.reason, detail=rejected.detail
    )


def _predecessor(earlier: EarlierReading | None) -> Predecessor | None:
    if earlier is None:
        return None
    reports = (kind.partition("/") for kind in earlier.sent_kinds)
    return Predecessor(
        model_name=earlier.model_name,
        model_version=earlier.model_version,
        run_number=earlier.run_number,
        sr_forms=frozenset(form for kind, _, form in reports if kind == ResultKind.SR),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
