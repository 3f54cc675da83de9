"""`ich-node purge`, and what the other commands say of a purged study and of the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ich_node.cli import checks, main
from ich_node.cli.check_run import Outcome, run_examinations
from ich_node.database import chores
from ich_node.errors import RejectionReason
from ich_node.receive.free_space import FreeSpace
from tests.purge_cases import PACS, SLICES, STUDY, PurgeCase, ago, purge_case

Run = Callable[..., int]


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PurgeCase]:
    with purge_case(tmp_path) as case:
        monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path))
        monkeypatch.setenv("ICH_NODE_PACS", json.dumps([PACS]))
        monkeypatch.setenv("ICH_NODE_DISK__RETENTION_DAYS", "30")
        monkeypatch.setenv("ICH_NODE_DISK__MIN_FREE_GIB", "0")
        yield case


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run(*arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_what_is_older_than_the_retention_goes(case: PurgeCase, capsys: pytest.CaptureFixture[str]) -> None:
    case.deliver(days=31)
    case.deliver("1.2.840.2", days=29)
    assert run("purge", "--dry-run") == 0
    out = capsys.readouterr().out
    assert f"would purge  {STUDY}" in out
    assert f"would purge 1 studies, {SLICES} objects" in out
    assert len(case.spooled()) == 2 * SLICES
    assert run("purge") == 0
    assert f"purged 1 studies, {SLICES} objects" in capsys.readouterr().out
    assert len(case.spooled()) == SLICES
    found = run_json(capsys, "purge", "--older-than", "28")
    assert (found["older_than_days"], found["dry_run"], found["note"]) == (28, False, None)
    (study,) = found["studies"]
    assert (study["study_instance_uid"], study["purged"], study["objects"]) == ("1.2.840.2", True, SLICES)
    assert (found["objects"], found["size_bytes"]) == (SLICES, study["size_bytes"])
    assert case.spooled() == []


def test_a_named_study_that_may_not_go_is_kept_with_its_reasons(
    case: PurgeCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.receive()
    case.studies.reject(STUDY, at=ago(30), reason=RejectionReason.NOT_HEAD, detail="a knee")
    case.deliver("1.2.840.2", days=3)
    assert run("purge", STUDY, "1.9", "1.2.840.2") == 1
    out = capsys.readouterr().out
    assert "it was not read (--force)" in out
    assert "no such study is here" in out
    assert f"purged 1 studies, {SLICES} objects" in out
    found = run_json(capsys, "purge", STUDY, "--force")
    assert (found["studies"][0]["purged"], found["studies"][0]["obstacles"]) == (True, ["NOT_READ"])
    assert run_json(capsys, "purge", STUDY, "--force", code=1)["studies"][0]["obstacles"] == ["PURGED"]


def test_a_named_study_with_an_age_must_have_it(case: PurgeCase, capsys: pytest.CaptureFixture[str]) -> None:
    case.deliver(days=3)
    found = run_json(capsys, "purge", STUDY, "--older-than", "4", code=1)
    assert found["studies"][0]["obstacles"] == ["TOO_NEW"]


@pytest.mark.parametrize("arguments", [("--force",), ("--older-than", "-1"), ("--older-than", "soon")])
def test_wrong_usage(case: PurgeCase, arguments: tuple[str, ...]) -> None:
    assert run("purge", *arguments) == 2


def test_without_retention_an_age_must_be_said(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ICH_NODE_DISK__RETENTION_DAYS", "0")
    assert run("purge") == 2
    assert "disk.retention_days is 0 (never): say --older-than DAYS" in capsys.readouterr().err
    assert run("purge", "--older-than", "0") == 0


def test_without_a_destination_it_says_that_nothing_goes(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case.deliver()
    monkeypatch.setenv("ICH_NODE_PACS", "[]")
    assert run("purge", "--dry-run") == 0
    captured = capsys.readouterr()
    assert "no [[pacs]] is set, so nothing is ever delivered" in captured.err
    assert "would purge 0 studies" in captured.out
    assert len(case.spooled()) == SLICES


def test_other_commands_say_that_images_are_purged(
    case: PurgeCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.deliver()
    run("purge")
    capsys.readouterr()
    assert run("study", "show", STUDY) == 0
    out = capsys.readouterr().out
    assert "Images purged " in out
    assert "send it again from the PACS" in out
    assert f"0 ({SLICES} were purged)" in out
    shown = run_json(capsys, "study", "show", STUDY)
    assert shown["purged_at"]
    assert shown["series"][0]["purged_instances"] == SLICES
    assert run("reprocess", STUDY) == 1
    captured = capsys.readouterr()
    assert f"send it again from the PACS: {STUDY}" in captured.err
    assert "nothing was queued" in captured.err
    assert case.report()["state"] == "READ"


def test_reprocess_of_many_passes_over_the_purged_ones(
    case: PurgeCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.deliver()
    case.deliver("1.2.840.2", days=3)
    run("purge")
    capsys.readouterr()
    assert run("reprocess", "--since", "2020-01-01") == 0
    captured = capsys.readouterr()
    assert captured.out == "queued 1.2.840.2\n"
    assert f"images purged on {datetime.now().astimezone():%Y-%m-%d}" in captured.err


# doctor


def found_by(case: PurgeCase, name: str, **changes: Any) -> tuple[bool, str]:
    disk = case.node.settings.disk.model_copy(update=changes.pop("disk", {}))
    settings = case.node.settings.model_copy(update={"disk": disk, **changes})
    examinations = [*checks._machine(settings), *checks._services(settings)]
    (check,) = run_examinations([replace(each, needs="") for each in examinations if each.name == name])
    return check.outcome is Outcome.OK, check.found


def gib_free(case: PurgeCase) -> float:
    return FreeSpace(case.spool.root, 0).free_bytes() / 2**30


def test_doctor_says_when_images_are_refused(case: PurgeCase) -> None:
    free = gib_free(case)
    ok, found = found_by(case, "disk", disk={"min_free_gib": 2 * free})
    assert not ok
    assert "new images are refused with 0xA700 until " in found
    ok, found = found_by(case, "disk", disk={"min_free_gib": free * 0.7})
    assert not ok  # and no fault
    assert "nearly low" in found
    ok, found = found_by(case, "disk", disk={"min_free_gib": free * 0.1})
    assert ok
    assert found.endswith(str(case.spool.root))


def test_doctor_says_what_retention_is_set_to_and_when_it_last_looked(case: PurgeCase) -> None:
    assert found_by(case, "retention") == (
        True,
        "images are purged 30 days after delivery, looked for every 6 h; not looked for yet",
    )
    ok, found = found_by(case, "retention", disk={"retention_days": 0.0})
    assert (ok, found.split(";")[0]) == (True, "images are never purged (disk.retention_days = 0)")
    ok, found = found_by(case, "retention", pacs=())
    assert not ok
    assert "nothing is ever delivered" in found


@pytest.mark.parametrize(("hours", "ok"), [(1, True), (13, False)])
def test_doctor_finds_a_schedule_that_stands_still(case: PurgeCase, hours: float, ok: bool) -> None:
    then = datetime.now(UTC) - timedelta(hours=hours)
    with case.database.writing() as session:
        chores.take_turn(session, "purge", owner="a", every=timedelta(1), lease=timedelta(1), now=then)
        chores.end_turn(session, "purge", owner="a", now=then, note="2 studies")
    fine, found = found_by(case, "retention")
    assert fine == ok
    assert f"; last at {then.astimezone():%Y-%m-%d %H:%M}: 2 studies" in found
    assert found_by(case, "retention", disk={"retention_days": 0.0})[0]


def test_doctor_counts_what_waits(case: PurgeCase) -> None:
    assert found_by(case, "waiting") == (True, "0 images of 0 studies to be read")
    case.receive(days=0)
    case.receive("1.2.840.2")
    case.studies.read("1.2.840.2", at=datetime.now(UTC) - timedelta(minutes=3), suspicion=0.9)
    ok, found = found_by(case, "waiting")
    assert ok
    assert found == (
        f"{SLICES} images of 1 studies to be read, the oldest for 0 min; "
        "3 results for PACS, the oldest for 3 min"
    )
