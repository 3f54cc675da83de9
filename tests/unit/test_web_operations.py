"""The operations page, and who may see it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from ich_node.database.audit import record_change
from ich_node.database.drift import ModelDrift, Period, Stability
from ich_node.database.engine import Database
from ich_node.database.tables import StudyRow
from ich_node.receive.free_space import FreeSpace
from ich_node.web.caller import Caller, Role
from ich_node.web.drift_watch import DriftWatch
from ich_node.web.operations_page import disk_state, drift_lines
from ich_node.web.operations_routes import OperationsRoutes
from ich_node.web.site import Site
from tests.stored_studies import StoredStudies


class As:
    """Middleware: whoever calls has one role."""

    def __init__(self, app: ASGIApp, role: Role) -> None:
        self.app, self.role = app, role

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["caller"] = Caller(name="a", role=self.role, source="127.0.0.1")
        await self.app(scope, receive, send)


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[StoredStudies]:
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    database.upgrade()
    yield StoredStudies(database=database, results_dir=tmp_path / "results")
    database.dispose()


def get(studies: StoredStudies, path: str, role: Role) -> httpx.Response:
    routes = OperationsRoutes(Site(studies.settings, studies.database))
    app = FastAPI()
    app.include_router(routes.router())
    app.add_middleware(As, role=role)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    answer = asyncio.run(ask())
    routes.drift.join()
    return answer


@pytest.mark.parametrize("path", ["/operations", "/deliveries"])
def test_only_administrators_see_how_the_node_does(studies: StoredStudies, path: str) -> None:
    for role in Role:
        answer = get(studies, path, role)
        assert answer.status_code == (200 if role is Role.ADMIN else 403)
        links = [f'href="{address}"' in answer.text for address in ("/operations", "/deliveries")]
        assert all(links) == (role is Role.ADMIN)


def test_a_node_that_has_seen_nothing(studies: StoredStudies) -> None:
    text = get(studies, "/operations", Role.ADMIN).text
    for words in (
        "0 studies received and 0 read",
        "Nothing waits",
        "Everything that came was read",
        "No worker has worked on a study",
        "No model has read anything yet",
    ):
        assert words in text
    # It may have been looked at before the page was written.
    assert "Drift: being looked at" in text or "No drift of inputs or suspicion found" in text


def test_what_a_worker_did_is_said_in_words(studies: StoredStudies) -> None:
    now = datetime.now(UTC)
    studies.receive("1.2.3", at=now)
    with studies.database.writing() as session:
        study = session.get_one(StudyRow, "1.2.3")
        record_change(session, study, at=now, actor="ct-node/1/abcdef", action="not_read")
    text = get(studies, "/operations", Role.ADMIN).text
    assert "<td>not read</td>" in text
    assert "not_read" not in text


def test_drift_is_looked_at_beside_the_requests(studies: StoredStudies) -> None:
    watch = DriftWatch(studies.database)
    assert not watch.latest()
    watch.join()
    assert watch.latest() == ()
    now = datetime.now(UTC)
    studies.receive("1.2.3", at=now - timedelta(hours=1))
    studies.read("1.2.3", at=now - timedelta(minutes=59), suspicion=0.5)
    assert watch.latest() == ()  # what moves over weeks is kept for some minutes
    again = DriftWatch(studies.database)
    again.latest()
    again.join()
    assert [one.model_name for one in again.latest() or ()] == ["vicar-attention-v1"]


def test_drift_is_put_into_words() -> None:
    period = Period(
        readings=100, flagged=10, compared=100, unlike={"slice_spacing_mm": 30}, unlike_readings=30
    )
    moved = {
        "suspicion": Stability(psi=0.1, chance=0.2),
        "slice_spacing_mm": Stability(psi=0.9, chance=0.2),
    }
    one = ModelDrift(
        model_name="a", weights_sha256="ab" * 32, recent=period, reference=period, stability=moved
    )
    assert drift_lines([one]) == (
        "a (abababab): the last 7 days differ from the 28 before in slice spacing mm (PSI 0.90).",
        "a (abababab): 30 % of the last 7 days' inputs are unlike its training data.",
    )
    calm = ModelDrift(
        model_name="a",
        weights_sha256="ab" * 32,
        recent=Period(readings=100, flagged=10, compared=100, unlike={}, unlike_readings=0),
        reference=period,
        stability={},
    )
    assert drift_lines([calm]) == ()


def test_a_low_disk_is_said_with_its_mark(tmp_path: Path) -> None:
    low = disk_state(FreeSpace(tmp_path, 2**60))
    assert low.is_low
    assert "refused below 1073741824.0 GiB" in low.words
    assert not disk_state(FreeSpace(tmp_path, 1)).is_low
