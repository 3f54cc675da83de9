"""Buttons of the study page and the agreement page: who may, what happens, what is said."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.types import ASGIApp, Receive, Scope, Send

from ich_node.database.reviews import reviews_of
from ich_node.database.tables import AuditRow, StudyRow
from ich_node.database.web_tables import AccessRow
from ich_node.errors import RejectionReason
from ich_node.viewer_settings import ViewerSettings
from ich_node.web.caller import Caller, Role
from ich_node.web.recent_views import RecentViews
from ich_node.web.review_routes import ReviewRoutes
from ich_node.web.site import Site
from ich_node.web.study_routes import StudyRoutes
from tests.database_cases import sqlite_database
from tests.stored_studies import StoredStudies

STUDY, SCRIPT = "1.2.3", "<script>alert(1)</script>"
VIEWER_TEMPLATE = "https://viewer.example/{study_instance_uid}?patient={patient_id}"


def ago(minutes: float) -> datetime:
    return datetime.now(UTC) - timedelta(minutes=minutes)


class _As:
    """Lets everybody in as one caller; who he really is, is another part's work."""

    def __init__(self, app: ASGIApp, role: Role) -> None:
        self.app = app
        self.role = role

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = Caller(name="Dr. Novak", role=self.role, source="10.0.0.5", csrf_token="secret-token")
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)


@dataclass
class Person:
    """Somebody in front of the study page."""

    studies: StoredStudies
    role: Role = Role.RADIOLOGIST

    def ask(self, method: str, path: str, **fields: str) -> httpx.Response:
        site = Site(self.studies.settings, self.studies.database)
        app = FastAPI()
        app.include_router(
            StudyRoutes(site, RecentViews(), ViewerSettings(url_template=VIEWER_TEMPLATE)).router()
        )
        app.include_router(ReviewRoutes(site).router())
        app.add_middleware(_As, role=self.role)

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, data=fields or None)

        return asyncio.run(ask())

    def page(self, study: str = STUDY) -> str:
        return self.ask("GET", f"/studies/{study}").text

    def review(self, verdict: str, study: str = STUDY, **fields: str) -> httpx.Response:
        return self.ask("POST", f"/studies/{study}/review", verdict=verdict, **fields)

    def verdicts(self) -> list[str]:
        with self.studies.database.reading() as session:
            return [str(each.verdict) for each in reviews_of(session, STUDY)]


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[StoredStudies]:
    with sqlite_database(tmp_path) as database:
        yield StoredStudies(database=database, results_dir=tmp_path / "results")


@pytest.fixture
def novak(studies: StoredStudies) -> Person:
    """With one study that was read."""
    studies.receive(STUDY, at=ago(20), patient_name="Meyer^K", patient_id="P 1/&")
    studies.read(STUDY, at=ago(19), suspicion=0.97)
    return Person(studies)


def row(person: Person) -> StudyRow:
    with person.studies.database.reading() as session:
        return session.get_one(StudyRow, STUDY)


def reading(person: Person) -> str:
    return str(row(person).reading_id)


def test_seen_leads_back_to_a_page_that_says_so(novak: Person) -> None:
    answer = novak.review("SEEN", reading=reading(novak))
    assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{STUDY}")
    assert row(novak).reviewed_by == "Dr. Novak"
    page = novak.page()
    assert "Seen by Dr. Novak" in page
    assert "Take back" in page
    assert novak.review("UNSEEN").status_code == 303
    assert "Nobody has said that it was seen" in novak.page()
    assert novak.verdicts() == ["UNSEEN", "SEEN"]


def test_disagreement_with_reason_and_comment(novak: Person) -> None:
    answer = novak.review("DISAGREE", reason="FALSE_ALARM", comment=f"falx\n{SCRIPT}", reading=reading(novak))
    assert answer.status_code == 303
    page = novak.page()
    assert "Disagrees: false alarm" in page
    assert "&lt;script&gt;" in page
    assert SCRIPT not in page
    assert novak.review("DISAGREE", reason="FALSE_ALARM", comment=f"falx\n{SCRIPT}").status_code == 303
    assert novak.verdicts() == ["DISAGREE"]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"verdict": "PERHAPS"}, 422, "Say SEEN"),
        ({"verdict": ""}, 422, "Say SEEN"),
        ({"verdict": "DISAGREE"}, 422, "Choose why"),
        ({"verdict": "DISAGREE", "reason": "BECAUSE"}, 422, "Choose why"),
        ({"verdict": "AGREE", "reading": "4711"}, 409, "was read again meanwhile"),
        ({"verdict": "SEEN", "reading": ""}, 409, "was read again meanwhile"),
        ({"verdict": "SEEN", "reading": "none"}, 409, "was read again meanwhile"),
        ({"verdict": "DISAGREE", "reason": "OTHER", "comment": "x" * 2001}, 409, "2000 characters"),
    ],
)
def test_what_cannot_be_taken_is_said(novak: Person, fields: dict[str, str], status: int, words: str) -> None:
    answer = novak.ask("POST", f"/studies/{STUDY}/review", **fields)
    assert (answer.status_code, words in answer.text) == (status, True)
    assert novak.verdicts() == []


def test_an_unknown_study(novak: Person) -> None:
    assert novak.review("SEEN", "9.9").status_code == 404
    assert novak.ask("POST", "/studies/9.9/reprocess", x="").status_code == 404
    assert novak.review("SEEN", "x'; DROP TABLE study").status_code == 404


def test_a_viewer_may_look_and_no_more(novak: Person) -> None:
    novak.review("AGREE")
    viewer = Person(novak.studies, Role.VIEWER)
    page = viewer.page()
    assert "Agrees with the reading" in page
    assert "<form" not in page.partition('id="review"')[2].partition("</section>")[0]
    for path in ("review", "reprocess"):
        refused = viewer.ask("POST", f"/studies/{STUDY}/{path}", verdict="SEEN")
        assert refused.status_code == 403
        assert "role radiologist" in refused.text
    assert viewer.ask("GET", "/agreement").status_code == 403
    assert novak.verdicts() == ["AGREE"]


def test_every_form_carries_the_token_and_leads_here(novak: Person) -> None:
    page = novak.page()
    forms = page.split("<form ")[1:]
    own = [form for form in forms if "/review" in form or "/reprocess" in form]
    assert len(own) == 4
    for form in own:
        assert 'method="post"' in form
        assert form.partition('action="')[2].startswith(f"/studies/{STUDY}/")
        assert 'name="csrf_token" value="secret-token"' in form


def test_reprocessing_is_asked_for_once(novak: Person) -> None:
    assert novak.ask("POST", f"/studies/{STUDY}/reprocess", csrf_token="x").status_code == 303
    assert row(novak).state == "QUEUED"
    again = novak.ask("POST", f"/studies/{STUDY}/reprocess", csrf_token="x")
    assert again.status_code == 409
    assert "wait for the result" in novak.page()
    with novak.studies.database.reading() as session:
        audit = session.scalars(select(AuditRow).where(AuditRow.actor == "Dr. Novak")).all()
        accesses = session.scalars(select(AccessRow).where(AccessRow.action == "CHANGE")).all()
    assert [each.action for each in audit] == ["reprocess"]
    assert [(each.study_instance_uid, each.detail) for each in accesses] == [(STUDY, "reprocess")]


def test_a_study_that_was_not_read_can_be_seen_but_not_judged(studies: StoredStudies) -> None:
    studies.receive(STUDY, at=ago(20))
    studies.reject(STUDY, at=ago(19), reason=RejectionReason.LOCALIZER, detail="localizers")
    person = Person(studies)
    assert "Disagree" not in person.page()
    assert person.review("AGREE").status_code == 409
    assert person.review("SEEN").status_code == 303


def test_the_page_of_an_unread_study_marks_no_reading_as_seen(studies: StoredStudies) -> None:
    studies.receive(STUDY, at=ago(20))
    person = Person(studies)
    assert '<input type="hidden" name="reading" value="">' in person.page()
    studies.read(STUDY, at=ago(19), suspicion=0.97)
    assert person.review("SEEN", reading="").status_code == 409
    assert row(person).reviewed_at is None


def test_a_verdict_on_an_earlier_reading_is_shown_as_such(novak: Person) -> None:
    novak.review("AGREE", reading=reading(novak))
    novak.studies.receive(STUDY, at=ago(10), series=2)
    novak.studies.read(STUDY, at=ago(9), suspicion=0.99, series=2)
    assert "of an earlier reading (vicar-attention-v1 1.0.0)" in novak.page()


def test_the_link_into_the_sites_viewer(novak: Person) -> None:
    assert f'href="https://viewer.example/{STUDY}?patient=P%201%2F%26"' in novak.page()


def test_a_body_that_is_no_form(novak: Person) -> None:
    site = Site(novak.studies.settings, novak.studies.database)
    app = FastAPI()
    app.include_router(ReviewRoutes(site).router())
    app.add_middleware(_As, role=Role.ADMIN)

    async def send(**what: object) -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.post(f"/studies/{STUDY}/review", **what)).status_code  # type: ignore[arg-type]

    assert asyncio.run(send(json={"verdict": "SEEN"})) == 415
    assert asyncio.run(send(data={"verdict": "SEEN", "comment": "x" * 100_000})) == 415


def test_agreement_says_what_was_not_judged_and_who_judged(novak: Person) -> None:
    novak.studies.receive("1.2.4", at=ago(20))
    novak.studies.read("1.2.4", at=ago(19), suspicion=0.96)
    empty = novak.ask("GET", "/agreement").text
    assert "None of 2 readings was judged." in empty
    novak.review("AGREE")
    page = novak.ask("GET", "/agreement?days=7").text
    assert "1 of 2 readings were judged, by one reviewer." in page
    assert "Dr. Novak 1" in page
    assert "few: nothing follows from it" in page
    assert "Nobody chose at random" in page
    assert novak.ask("GET", "/agreement?days=8").status_code == 404
