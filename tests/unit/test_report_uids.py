"""The same result has the same UID, another result another one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from ich_node.report.uids import derived_uid, device_uid, result_uid, tracking_uid
from tests.report_builders import make_report

PARTS = st.lists(st.text(max_size=5), max_size=4).map(tuple)


@given(PARTS, PARTS)
def test_uids_are_equal_exactly_when_their_parts_are(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert (derived_uid(*first) == derived_uid(*second)) is (first == second)


@given(PARTS)
def test_uid_is_valid(parts: tuple[str, ...]) -> None:
    assert UID(derived_uid(*parts)).is_valid


def test_result_uid_is_pinned() -> None:
    """A changed derivation would send every retried result to the PACS a second time."""
    assert (
        derived_uid("result", "1.2.3", "model", "1", "1", "sr")
        == "2.25.152318240260730583376167334327659559991"
    )


def test_result_uid_depends_on_run_model_and_role_but_not_on_the_time() -> None:
    report = make_report()
    finding = replace(report.finding, algorithm=replace(report.finding.algorithm, version="2"))
    uids = {
        result_uid(report, "sr"),
        result_uid(report, "sc"),
        result_uid(replace(report, run_number=2), "sr"),
        result_uid(replace(report, finding=finding), "sr"),
    }
    assert len(uids) == 4
    later = replace(report, read_at=report.read_at.replace(year=2030))
    assert result_uid(later, "sr") == result_uid(report, "sr")


def test_a_finding_is_tracked_across_runs_and_the_device_follows_the_weights() -> None:
    report = make_report()
    again = replace(report, run_number=2)
    assert tracking_uid(again, "study") == tracking_uid(report, "study")
    retrained = replace(
        report,
        finding=replace(report.finding, algorithm=replace(report.finding.algorithm, weights_sha256="f" * 64)),
    )
    assert device_uid(again) == device_uid(report) != device_uid(retrained)
