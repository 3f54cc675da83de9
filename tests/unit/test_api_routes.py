from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import select

from ich_node.database import queue
from ich_node.database.study_report import study_report
from ich_node.database.tables import AuditRow, InstanceRow, SeriesRow, StudyRow
from ich_node.database.web_tables import AccessRow
from ich_node.database.worklist import COLUMNS
from ich_node.web import create_app
from ich_node.web.caller import Role
from ich_node.web.openapi import openapi_document
from tests.stored_studies import StoredStudies
from tests.unit.test_ups_routes import ROUTINE, STAT, WAITING, as_role, asked, stored_studies


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[StoredStudies]:
    with stored_studies(tmp_path) as studies:
        yield studies


@pytest.fixture
def app(studies: StoredStudies) -> FastAPI:
    return create_app(studies.settings, studies.database)


def uids(app: Any, query: str = "") -> list[str]:
    answer = asked(app, "GET", f"/api/worklist{query}")
    assert answer.status_code == 200
    return [row["study_instance_uid"] for row in answer.json()["studies"]]


def test_the_worklist_with_the_filters_of_its_page(app: FastAPI, studies: StoredStudies) -> None:
    assert uids(app) == [STAT, WAITING, ROUTINE]
    assert uids(app, "?priority=STAT&priority=ROUTINE") == [STAT, ROUTINE]
    assert uids(app, "?state=READ") == [STAT, ROUTINE]
    assert uids(app, "?q=roe") == [ROUTINE]
    assert uids(app, "?station=ELSEWHERE") == []
    assert uids(app, "?within=1h&unreviewed=1") == [STAT, WAITING, ROUTINE]
    row = asked(app, "GET", "/api/worklist").json()["studies"][0]
    assert list(row) == list(COLUMNS)
    for query, status in (("?priority=NOW", 400), ("?within=2y", 400), ("?limit=0", 422), ("?limit=x", 422)):
        assert asked(app, "GET", f"/api/worklist{query}").status_code == status
    with studies.database.reading() as session:
        assert session.scalars(select(AccessRow.action)).first() == "QUERY"


def test_pages_hold_every_study_once(app: FastAPI) -> None:
    found, query = [], "?limit=1"
    for _ in range(10):
        page = asked(app, "GET", f"/api/worklist{query}").json()
        found += [row["study_instance_uid"] for row in page["studies"]]
        if page["next"] is None:
            break
        query = f"?limit=1&before={page['next']}"
    assert found == [STAT, WAITING, ROUTINE]


def test_a_study_is_what_the_command_line_prints(app: FastAPI, studies: StoredStudies) -> None:
    answer = asked(app, "GET", f"/api/studies/{STAT}")
    with studies.database.reading() as session:
        assert answer.json() == json.loads(json.dumps(study_report(session, STAT)))
    for uid, status in (("1.2.99", 404), ("nonsense", 404), ("1" * 65, 404)):
        assert asked(app, "GET", f"/api/studies/{uid}").status_code == status


def reprocess(app: Any, study: str = STAT, **body: Any) -> int:
    answer = asked(app, "POST", f"/api/studies/{study}/reprocess", **({"json": body} if body else {}))
    return answer.status_code


def test_another_run(app: FastAPI, studies: StoredStudies) -> None:
    assert reprocess(app, "1.2.99") == 404
    assert reprocess(app, WAITING) == 409  # it will be read anyhow
    assert reprocess(app) == 202
    with studies.database.reading() as session:
        study = session.get_one(StudyRow, STAT)
        assert study.state == "QUEUED"
        actors = select(AuditRow.actor).where(AuditRow.action == "reprocess")
        assert session.scalars(actors).all() == ["local"]
    assert reprocess(app) == 409
    now = datetime.now(UTC)
    studies.claim(STAT, at=now)
    assert reprocess(app) == 409  # nor is one read twice that is being read
    assert reprocess(app, model="vicar-attention-v1") == 202  # another model is another wish


def test_another_run_of_a_part(app: FastAPI, studies: StoredStudies) -> None:
    assert reprocess(app, model="no-such-model") == 404
    assert reprocess(app, series="1.2.99") == 404
    assert reprocess(app, unknown="x") == 422
    assert reprocess(app, series=7) == 422
    assert reprocess(app, series=f"{STAT}.1", model="vicar-attention-v1") == 202
    with studies.database.reading() as session:
        study = session.get_one(StudyRow, STAT)
        assert (study.reprocess_series_instance_uid, study.reprocess_model) == (
            f"{STAT}.1",
            "vicar-attention-v1",
        )


def test_images_that_are_purged_cannot_be_read_again(app: FastAPI, studies: StoredStudies) -> None:
    with studies.database.writing() as session:
        session.get_one(StudyRow, ROUTINE).purged_at = datetime.now(UTC)
        series = session.get_one(SeriesRow, f"{ROUTINE}.1")
        series.purged_instances = studies.slices
        for row in session.scalars(
            select(InstanceRow).where(InstanceRow.series_instance_uid == f"{ROUTINE}.1")
        ):
            session.delete(row)
    answer = asked(app, "POST", f"/api/studies/{ROUTINE}/reprocess")
    assert answer.status_code == 410
    assert "send it again from the PACS" in answer.text


def test_reviews(app: FastAPI) -> None:
    def review(study: str = STAT, **said: Any) -> tuple[int, Any]:
        answer = asked(app, "POST", f"/api/studies/{study}/review", json=said)
        return answer.status_code, answer.json().get("is_new") if answer.status_code == 200 else None

    assert review(verdict="AGREE") == (200, True)
    assert review(verdict="AGREE") == (200, False)
    assert review(verdict="DISAGREE", reason="MISSED", comment="left subdural") == (200, True)
    assert review(verdict="DISAGREE")[0] == 409
    assert review(WAITING, verdict="AGREE")[0] == 409
    assert review("1.2.99", verdict="SEEN")[0] == 404
    assert review(verdict="PERHAPS")[0] == 422
    assert review(verdict="SEEN", comment="x" * 3000)[0] == 422
    assert asked(app, "POST", f"/api/studies/{STAT}/review").status_code == 422


def test_who_may_do_what(app: FastAPI) -> None:
    viewer, machine = as_role(app, Role.VIEWER), as_role(app, Role.MACHINE)
    assert asked(viewer, "GET", "/api/worklist").status_code == 200
    assert reprocess(viewer) == 403
    assert asked(viewer, "POST", f"/api/studies/{STAT}/review", json={"verdict": "SEEN"}).status_code == 403
    for path in ("/api/worklist", f"/api/studies/{STAT}", "/api/openapi.json"):
        assert asked(machine, "GET", path).status_code == 403
    assert reprocess(as_role(app, Role.RADIOLOGIST)) == 202


def test_the_description_names_its_routes_and_no_page(app: FastAPI) -> None:
    document = openapi_document(app)
    assert document["openapi"].startswith("3.1")
    assert asked(app, "GET", "/api/openapi.json").json() == json.loads(json.dumps(document))
    assert {path.split("/")[1] for path in document["paths"]} == {"api", "dicom-web"}


def test_a_request_for_a_study_that_is_read_now_waits_behind_that_run(studies: StoredStudies) -> None:
    """What `request_reprocess` does by itself: one claim at a time, and the wish outlives the run under way."""
    now = datetime.now(UTC)
    studies.claim(WAITING, at=now)
    with studies.database.writing() as session:
        queue.request_reprocess(
            session, WAITING, series_instance_uid=None, model=None, actor="somebody", now=now
        )
        again = queue.claim_study(
            session, WAITING, owner="other", now=now, lease=queue.ENQUEUE_AGAIN, max_attempts=3
        )
    assert again is None
    with studies.database.reading() as session:
        study = session.get_one(StudyRow, WAITING)
        assert (study.state, study.reprocess_requested_at) == ("READING", now)
