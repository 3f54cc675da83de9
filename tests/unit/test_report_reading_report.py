"""A report refuses what would be written as something it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.findings import IchSubtype, Localization, SliceFinding
from tests.report_builders import READ_AT, make_report


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.1])
def test_a_score_that_is_none_never_becomes_a_negative_report(score: float) -> None:
    report = make_report()
    bad_slice = SliceFinding(probabilities={IchSubtype.ANY: score})
    for finding in (
        replace(report.finding, suspicion=score),
        replace(report.finding, subtypes={IchSubtype.SUBDURAL: score}),
        replace(report.finding, slices=(bad_slice, *report.finding.slices[1:])),
    ):
        with pytest.raises(StudyRejected) as rejected:
            replace(report, finding=finding)
        assert rejected.value.reason is RejectionReason.INVALID_MODEL_OUTPUT


@pytest.mark.parametrize("coordinate", [float("nan"), float("inf")])
def test_a_place_that_is_nowhere_is_refused(coordinate: float) -> None:
    report = make_report()
    place = Localization(kind="point", subtype=IchSubtype.ANY, coordinates=(coordinate, 1.0), score=0.1)
    slices = (replace(report.finding.slices[0], localizations=(place,)), *report.finding.slices[1:])
    with pytest.raises(StudyRejected) as rejected:
        replace(report, finding=replace(report.finding, slices=slices))
    assert rejected.value.reason is RejectionReason.INVALID_MODEL_OUTPUT


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
)
def test_an_image_without_a_uid_is_refused(keyword: str) -> None:
    with pytest.raises(StudyRejected) as rejected:
        make_report(header={keyword: None})
    assert rejected.value.reason is RejectionReason.MISSING_ATTRIBUTE
    assert keyword in rejected.value.detail


def test_parts_that_do_not_match_are_refused() -> None:
    report = make_report()
    with pytest.raises(ValueError, match="slices do not match"):
        replace(report, source_images=report.source_images[1:])
    with pytest.raises(ValueError, match="slices do not match"):
        replace(report, hu=report.hu[1:])
    wide = np.zeros((64, 65), np.float32)
    maps = {IchSubtype.ANY: np.zeros((64, 64), np.float32), IchSubtype.SUBDURAL: wide}
    changed = replace(report.finding.slices[0], likelihood_maps=maps)
    finding = replace(report.finding, slices=(changed, *report.finding.slices[1:]))
    with pytest.raises(ValueError, match=r"of subdural \(64, 65\) is not on the pixel grid"):
        replace(report, finding=finding)


def test_a_time_without_zone_and_a_run_before_the_first_are_refused() -> None:
    report = make_report()
    with pytest.raises(ValueError, match="time zone"):
        replace(report, read_at=READ_AT.replace(tzinfo=None))
    with pytest.raises(ValueError, match="run_number"):
        replace(report, run_number=0)
