from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydicom.dataset import Dataset
from sqlalchemy import delete, select

from ich_node.database.engine import Database
from ich_node.database.web_tables import AccessRow, SubscriptionRow, WorkitemEventRow, WorkitemRow
from ich_node.database.workitem_events import KEPT, prune_events, workitem_uid
from ich_node.database.workitem_subscriptions import FILTERED_UID, GLOBAL_UID, recent_events
from ich_node.findings import IchSubtype
from ich_node.web import create_app
from ich_node.web.caller import Caller, Role
from tests.database_cases import sqlite_database
from tests.stored_studies import StoredStudies
from tests.unit.test_ups_states import DONE

NOW = datetime.now(UTC)
JSON = "application/dicom+json"
BASE = "/dicom-web/workitems"
STAT, ROUTINE, WAITING = "1.2.3.1", "1.2.3.2", "1.2.3.3"
UID = workitem_uid(STAT)
MINE, OTHERS = "1.2.3.4.1", "1.2.3.4.2"
SCRIPT = "<script>alert('x')</script>"


class As:
    """In the place of the middleware: the caller has this role."""

    def __init__(self, app: Any, role: Role) -> None:
        self.app, self.role = app, role

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["caller"] = Caller(name="ros", role=self.role, source="127.0.0.1")
        await self.app(scope, receive, send)


def asked(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **request)

    return asyncio.run(ask())


@contextmanager
def stored_studies(folder: Path) -> Iterator[StoredStudies]:
    with sqlite_database(folder) as database:
        studies = StoredStudies(database=database, results_dir=folder / "results")
        for number, (uid, name) in enumerate(
            ((STAT, f"DOE^{SCRIPT}"), (ROUTINE, "ROE^ANN"), (WAITING, "POE"))
        ):
            studies.receive(
                uid,
                at=NOW - timedelta(minutes=30 - number),
                patient_name=name,
                patient_id=f"P{number}",
                accession_number=f"A{number}",
                study_description="CT head",
            )
        studies.read(STAT, at=NOW, suspicion=0.93, subtypes={IchSubtype.SUBDURAL: 0.5})
        studies.read(ROUTINE, at=NOW, suspicion=0.02)
        yield studies


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[StoredStudies]:
    with stored_studies(tmp_path) as studies:
        yield studies


@pytest.fixture
def app(studies: StoredStudies) -> FastAPI:
    return create_app(studies.settings, studies.database)


@pytest.fixture(scope="module")
def unchanged() -> Iterator[FastAPI]:
    """For tests that change nothing."""
    with TemporaryDirectory() as folder, stored_studies(Path(folder)) as studies:
        yield create_app(studies.settings, studies.database)


def as_role(app: FastAPI, role: Role) -> As:
    """The routes behind the middleware, as somebody else."""
    stack: Any = app.build_middleware_stack()
    while stack.__class__.__name__ != "ExceptionMiddleware":
        stack = stack.app
    return As(stack, role)


def state_body(state: str, transaction: str | None = MINE) -> dict[str, Any]:
    body: dict[str, Any] = {"00741000": {"vr": "CS", "Value": [state]}}
    return body if transaction is None else {**body, "00081195": {"vr": "UI", "Value": [transaction]}}


def change(app: Any, state: str, transaction: str | None = MINE, uid: str = UID) -> httpx.Response:
    return asked(app, "PUT", f"{BASE}/{uid}/state", json=state_body(state, transaction))


def warning(answer: httpx.Response) -> str:
    return answer.headers.get("warning", "").partition("http://127.0.0.1/dicom-web: ")[2]


INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."


def test_a_workitem_is_a_unified_procedure_step(unchanged: FastAPI) -> None:
    answer = asked(unchanged, "GET", f"{BASE}/{UID}", headers={"Accept": "application/dicom+json"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    (found,) = answer.json()
    item = Dataset.from_json(found)
    assert (item.SOPClassUID, item.SOPInstanceUID) == ("1.2.840.10008.5.1.4.34.6.1", UID)
    assert item.ScheduledProcedureStepPriority == "HIGH"
    assert item.ProcedureStepState == "SCHEDULED"
    assert item.InputReadinessState == "READY"
    assert item.ScheduledWorkitemCodeSequence[0].CodeValue == "110005"
    assert item.PatientName == f"DOE^{SCRIPT}"
    assert item.ReferencedRequestSequence[0].AccessionNumber == "A0"
    assert item.ReferencedRequestSequence[0].StudyInstanceUID == STAT
    assert "suspicion 93%; subdural 50%" in item.CommentsOnTheScheduledProcedureStep
    assert "not for primary diagnosis" in item.CommentsOnTheScheduledProcedureStep
    images, report = item.InputInformationSequence
    assert len(images.ReferencedSOPSequence) == 6
    assert images.WADORSRetrievalSequence[0].RetrieveURL.endswith(
        f"/dicom-web/studies/{STAT}/series/{STAT}.1"
    )
    assert report.ReferencedSOPSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert "TransactionUID" not in item
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("accepted", "status", "given"),
    [
        ("application/json", 200, "application/json"),
        ("application/json;q=0.5, application/dicom+json", 200, "application/dicom+json"),
        ("application/dicom+json;q=0, application/json", 200, "application/json"),
        ("application/dicom+xml", 406, ""),
    ],
)
def test_the_media_type_that_is_accepted_is_given(
    unchanged: FastAPI, accepted: str, status: int, given: str
) -> None:
    for path in (BASE, f"{BASE}/{UID}"):
        answer = asked(unchanged, "GET", path, headers={"Accept": accepted})
        assert answer.status_code == status
        assert not given or answer.headers["content-type"] == given


def test_a_search_gives_the_most_urgent_first_and_can_be_paged(unchanged: FastAPI) -> None:
    def page(query: str) -> tuple[list[str], str]:
        answer = asked(unchanged, "GET", f"{BASE}?{query}")
        assert answer.status_code == 200
        return [one["0040A370"]["Value"][0]["0020000D"]["Value"][0] for one in answer.json()], warning(answer)

    assert page("") == ([STAT, WAITING, ROUTINE], "")
    uids, said = page("limit=2")
    assert uids == [STAT, WAITING]
    assert "Additional results can be requested" in said
    assert page("limit=2&offset=2") == ([ROUTINE], "")
    assert page("ScheduledProcedureStepPriority=LOW")[0] == [ROUTINE]
    assert page("ScheduledProcedureStepPriority=H*,LOW")[0] == [STAT, ROUTINE]
    nobody = asked(unchanged, "GET", f"{BASE}?PatientID=nobody")
    assert (nobody.status_code, nobody.content) == (204, b"")
    assert "fuzzymatching parameter is not supported" in page("fuzzymatching=true")[1]
    found = asked(unchanged, "GET", f"{BASE}?PatientID=P0").json()[0]
    assert "00404021" not in found
    assert "00404021" in asked(unchanged, "GET", f"{BASE}?PatientID=P0&includefield=all").json()[0]


def test_workitems_of_studies_that_came_before_there_were_any(app: FastAPI, studies: StoredStudies) -> None:
    with studies.database.writing() as session:
        session.execute(delete(WorkitemRow))
    assert asked(app, "GET", f"{BASE}/{UID}").status_code == 404
    assert len(asked(app, "GET", BASE).json()) == 3
    assert asked(app, "GET", f"{BASE}/{UID}").status_code == 200


def test_the_way_of_a_workitem(app: FastAPI, studies: StoredStudies) -> None:
    early = change(app, "COMPLETED")
    assert (early.status_code, warning(early)) == (409, INCONSISTENT)
    claimed = change(app, "IN PROGRESS")
    assert (claimed.status_code, warning(claimed)) == (200, "")
    assert claimed.headers["content-location"].endswith(f"/workitems/{UID}")
    late = change(app, "IN PROGRESS", OTHERS)
    assert (late.status_code, warning(late)) == (409, INCONSISTENT)
    for transaction, words in (
        (OTHERS, "The Transaction UID is incorrect."),
        (None, "The Transaction UID is missing."),
    ):
        refused = change(app, "COMPLETED", transaction)
        assert (refused.status_code, warning(refused)) == (400, words)
    unfinished = change(app, "COMPLETED")
    assert (unfinished.status_code, warning(unfinished)) == (409, INCONSISTENT)
    assert "UnifiedProcedureStepPerformedProcedureSequence is not set" in unfinished.text
    assert asked(app, "POST", f"{BASE}/{UID}?{MINE}", json=[DONE]).status_code == 200
    assert change(app, "COMPLETED").status_code == 200
    again = change(app, "COMPLETED")
    assert (again.status_code, warning(again)) == (
        200,
        "The UPS is already in the requested state of COMPLETED.",
    )
    assert change(app, "CANCELED").status_code == 409
    item = Dataset.from_json(asked(app, "GET", f"{BASE}/{UID}").json()[0])
    assert item.ProcedureStepState == "COMPLETED"
    performed = item.UnifiedProcedureStepPerformedProcedureSequence[0]
    assert performed.PerformedStationNameCodeSequence[0].CodeValue == "WS1"
    row = asked(app, "GET", "/api/worklist?priority=STAT").json()["studies"][0]
    assert row["reviewed_by"] == "local"


def test_a_review_on_the_page_completes_the_workitem(app: FastAPI) -> None:
    assert asked(app, "POST", f"/api/studies/{STAT}/review", json={"verdict": "AGREE"}).status_code == 200
    item = Dataset.from_json(asked(app, "GET", f"{BASE}/{UID}").json()[0])
    assert item.ProcedureStepState == "COMPLETED"
    performed = item.UnifiedProcedureStepPerformedProcedureSequence[0]
    assert performed.ActualHumanPerformersSequence[0].HumanPerformerName == "local"
    assert change(app, "IN PROGRESS").status_code == 409
    assert [
        one["00080018"]["Value"][0]
        for one in asked(app, "GET", f"{BASE}?ProcedureStepState=COMPLETED").json()
    ] == [UID]


def test_updates(app: FastAPI) -> None:
    def update(data: Any, query: str = "") -> tuple[int, str]:
        answer = asked(app, "POST", f"{BASE}/{UID}{query}", json=data)
        return answer.status_code, warning(answer)

    progress = {"00741002": {"vr": "SQ", "Value": [{"00741004": {"vr": "DS", "Value": ["40"]}}]}}
    assert update(progress) == (200, "")
    assert update(progress, f"?transaction-uid={MINE}") == (409, INCONSISTENT)
    change(app, "IN PROGRESS")
    assert update(progress) == (400, "The Transaction UID is missing.")
    assert update(progress, f"?transaction-uid={OTHERS}") == (400, "The Transaction UID is incorrect.")
    assert update({**progress, "00081195": {"vr": "UI", "Value": [MINE]}}) == (200, "")
    assert update(progress, f"?{MINE}") == (200, "")
    (found,) = asked(app, "GET", f"{BASE}/{UID}").json()
    assert found["00741002"]["Value"] == progress["00741002"]["Value"]
    assert "00081195" not in found
    for keyword in ("00741000", "00741200", "00100020", "00080018"):
        assert update({keyword: {"vr": "CS" if keyword[:4] == "0074" else "LO"}}, f"?{MINE}")[0] == 400
    change(app, "CANCELED")
    assert update(progress, f"?{MINE}") == (400, INCONSISTENT)


def test_a_cancel_request(app: FastAPI, studies: StoredStudies) -> None:
    reason = {
        "00741238": {"vr": "LT", "Value": ["wrong patient"]},
        "0074100C": {"vr": "LO", "Value": ["Dr X"]},
    }
    path = f"{BASE}/{UID}/cancelrequest"
    assert change(app, "IN PROGRESS").status_code == 200
    assert asked(app, "POST", path, json=reason).status_code == 202
    with studies.database.reading() as session:
        event = session.scalars(select(WorkitemEventRow).order_by(WorkitemEventRow.id.desc())).first()
    assert event is not None
    told = Dataset.from_json(
        {tag: element for tag, element in event.content.items() if not tag.startswith("0000")}
    )
    assert (told.ReasonForCancellation, told.ContactDisplayName, told.RequestingAE) == (
        "wrong patient",
        "Dr X",
        "local",
    )
    assert event.content["00001002"]["Value"] == [2]
    assert asked(app, "GET", f"{BASE}/{UID}").json()[0]["00741000"]["Value"] == ["IN PROGRESS"]
    other = workitem_uid(ROUTINE)
    assert asked(app, "POST", f"{BASE}/{other}/cancelrequest").status_code == 202
    item = Dataset.from_json(asked(app, "GET", f"{BASE}/{other}").json()[0])
    assert item.ProcedureStepState == "CANCELED"
    assert item.ProcedureStepProgressInformationSequence[0].ProcedureStepCancellationDateTime
    again = asked(app, "POST", f"{BASE}/{other}/cancelrequest")
    assert (again.status_code, warning(again)) == (
        202,
        "The UPS is already in the requested state of CANCELED.",
    )
    asked(app, "POST", f"/api/studies/{WAITING}/review", json={"verdict": "SEEN"})
    done = asked(app, "POST", f"{BASE}/{workitem_uid(WAITING)}/cancelrequest")
    assert (done.status_code, warning(done)) == (409, "The UPS is already COMPLETED.")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{BASE}/1.2.99", 404),
        ("GET", f"{BASE}/nonsense", 404),
        ("PUT", f"{BASE}/1.2.99/state", 404),
        ("POST", f"{BASE}/1.2.99/cancelrequest", 404),
        ("POST", f"{BASE}/1.2.99/subscribers/X", 404),
        ("DELETE", f"{BASE}/1.2.99/subscribers/X", 404),
        ("DELETE", f"{BASE}/{GLOBAL_UID}/subscribers/X", 404),
        ("POST", f"{BASE}/{GLOBAL_UID}/subscribers/X/suspend", 404),
        ("POST", f"{BASE}/{UID}/subscribers/X/suspend", 400),
        ("POST", f"{BASE}/{FILTERED_UID}/subscribers/X", 400),
        ("POST", f"{BASE}/{GLOBAL_UID}/subscribers/X?PatientID=1", 400),
        ("POST", f"{BASE}/{GLOBAL_UID}/subscribers/X?deletionlock=perhaps", 400),
        ("POST", f"{BASE}/{GLOBAL_UID}/subscribers/{'X' * 17}", 400),
        ("POST", f"{BASE}/{GLOBAL_UID}/subscribers/%5C", 400),
        ("POST", f"{BASE}/{GLOBAL_UID}/subscribers/%20", 400),
        ("POST", BASE, 405),
        ("GET", f"{BASE}?nonsense=1", 400),
        ("GET", f"{BASE}?" + "&".join(f"PatientID={n}" for n in range(200)), 400),
    ],
)
def test_what_is_not_there_or_not_right(unchanged: FastAPI, method: str, path: str, status: int) -> None:
    request = {"json": state_body("IN PROGRESS")} if method == "PUT" else {}
    answer = asked(unchanged, method, path, **request)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/plain")
    assert len(answer.text.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"", JSON, 400),
        (b"nonsense", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"[]", JSON, 400),
        (b"[{},{}]", "application/json", 400),
        (b"{}", "application/dicom+xml", 415),
        (b"x" * 300_000, JSON, 413),
        (b'{"00741000":{"vr":"LO","Value":["IN PROGRESS"]}}', JSON, 400),
        (b'{"00741000":{"vr":"CS","Value":["SOMETHING"]}}', JSON, 400),
        (b'{"00741000":{"vr":"CS","Value":["SCHEDULED"]}}', JSON, 400),
        (b'{"00741000":{"vr":"CS","Value":"IN PROGRESS"}}', JSON, 400),
        (b'{"00741000":{"vr":"CS","Value":[["IN PROGRESS"]]}}', JSON, 400),
        (b'{"00741000":{"vr":"CS","BulkDataURI":"file:///etc/passwd"}}', JSON, 400),
        (
            b'{"00741000":{"vr":"CS","Value":["IN PROGRESS"]},"00081195":{"vr":"UI","Value":["1.2.x"]}}',
            "application/json",
            400,
        ),
        (b'{"00081195":{"vr":"UI","Value":["1.2"]},"zz":1}', JSON, 400),
    ],
)
def test_bodies_that_are_refused(unchanged: FastAPI, content: bytes, content_type: str, status: int) -> None:
    answer = asked(
        unchanged, "PUT", f"{BASE}/{UID}/state", content=content, headers={"Content-Type": content_type}
    )
    assert answer.status_code == status
    assert "IN PROGRESS" not in answer.text or "is IN PROGRESS" in answer.text
    assert asked(unchanged, "GET", f"{BASE}/{UID}").json()[0]["00741000"]["Value"] == ["SCHEDULED"]


def test_values_deep_in_a_body_are_checked(unchanged: FastAPI) -> None:
    deep: dict[str, Any] = {"00741006": {"vr": "ST", "Value": ["x"]}}
    for _ in range(30):
        deep = {"00741002": {"vr": "SQ", "Value": [deep]}}
    bad = [
        deep,
        {"00741002": {"vr": "SQ", "Value": [{"00404052": {"vr": "DT", "Value": ["yesterday"]}}]}},
        {"00741002": {"vr": "SQ", "Value": [{"00741006": {"vr": "ST", "Value": ["a\u0000b"]}}]}},
        {
            "00741216": {
                "vr": "SQ",
                "Value": [{"00404035": {"vr": "SQ", "Value": [{"00404037": {"vr": "PN", "Value": ["x"]}}]}}],
            }
        },
    ]
    for data in bad:
        assert asked(unchanged, "POST", f"{BASE}/{UID}", json=data).status_code == 400, data
    assert asked(unchanged, "GET", f"{BASE}/{UID}").json()[0]["00741002"] == {"vr": "SQ"}


def test_media_types(unchanged: FastAPI) -> None:
    for accept, status in (
        ("application/json", 200),
        ("*/*", 200),
        ("text/html", 406),
        ("application/dicom+xml", 406),
    ):
        assert asked(unchanged, "GET", BASE, headers={"Accept": accept}).status_code == status
    assert (
        asked(
            unchanged, "GET", f"{BASE}?accept=application/dicom%2Bjson", headers={"Accept": "x/y"}
        ).status_code
        == 200
    )


def test_who_may_do_what(app: FastAPI) -> None:
    viewer, machine = as_role(app, Role.VIEWER), as_role(app, Role.MACHINE)
    assert asked(viewer, "GET", BASE).status_code == 200
    assert asked(viewer, "POST", f"{BASE}/{GLOBAL_UID}/subscribers/X").status_code == 201
    assert change(viewer, "IN PROGRESS").status_code == 403
    assert asked(viewer, "POST", f"{BASE}/{UID}", json=DONE).status_code == 403
    assert asked(viewer, "POST", f"{BASE}/{UID}/cancelrequest").status_code == 403
    for method, path in (
        ("GET", BASE),
        ("GET", f"{BASE}/{UID}"),
        ("POST", f"{BASE}/{GLOBAL_UID}/subscribers/X"),
    ):
        assert asked(machine, method, path).status_code == 403
    assert change(as_role(app, Role.RADIOLOGIST), "IN PROGRESS").status_code == 200


def test_accesses_are_written_down(app: FastAPI, studies: StoredStudies) -> None:
    asked(app, "GET", BASE)
    asked(app, "GET", f"{BASE}/{UID}")
    change(app, "IN PROGRESS")
    with studies.database.reading() as session:
        rows = [
            (row.action, row.study_instance_uid, row.detail) for row in session.scalars(select(AccessRow))
        ]
    assert rows == [
        ("QUERY", None, "workitems: 3 found"),
        ("RETRIEVE", STAT, "workitem"),
        ("CHANGE", STAT, "workitem IN PROGRESS"),
    ]


def reports(database: Database, *titles: str, fitting: set[str] | None = None) -> list[tuple[str, str, int]]:
    with database.reading() as session:
        recent = recent_events(
            session,
            titles,
            since=datetime.now(UTC) - timedelta(minutes=1),
            told=(),
            matches=lambda keys, uids: fitting or set(),
        )
    return [
        (one.ae_title, one.content["00001000"]["Value"][0], one.content["00001002"]["Value"][0])
        for one in recent.reports
    ]


def subscribe(app: Any, uid: str, title: str, query: str = "") -> httpx.Response:
    return asked(app, "POST", f"{BASE}/{uid}/subscribers/{title}{query}")


def test_who_is_told_of_what(app: FastAPI, studies: StoredStudies) -> None:
    database, other = studies.database, workitem_uid(ROUTINE)
    answer = subscribe(app, GLOBAL_UID, "ALL", "?deletionlock=true")
    assert (answer.status_code, warning(answer)) == (201, "Deletion Lock not granted.")
    assert answer.headers["content-location"] == "ws://127.0.0.1/ws/subscribers/ALL"
    odd = subscribe(app, GLOBAL_UID, "A%20B%3F%23")
    assert odd.headers["content-location"] == "ws://127.0.0.1/ws/subscribers/A%20B%3F%23"
    assert asked(app, "DELETE", f"{BASE}/{GLOBAL_UID}/subscribers/A%20B%3F%23").status_code == 200
    assert warning(subscribe(app, UID, "ONE", "?deletionlock=true")) == ""
    assert subscribe(app, FILTERED_UID, "SOME", "?filter=00100020%3DP1").status_code == 201
    first = ("ONE", UID, 1)  # how it stands now
    assert reports(database, "ALL", "ONE", "SOME") == [first]
    change(app, "IN PROGRESS")
    assert reports(database, "ALL", "ONE", "SOME", fitting={other}) == [
        first,
        ("ALL", UID, 1),
        ("ONE", UID, 1),
    ]
    change(app, "IN PROGRESS", uid=other)
    assert reports(database, "SOME", fitting={other}) == [("SOME", other, 1)]
    assert asked(app, "DELETE", f"{BASE}/{UID}/subscribers/ONE").status_code == 200
    assert asked(app, "DELETE", f"{BASE}/{UID}/subscribers/ONE").status_code == 404
    assert (
        asked(app, "DELETE", f"{BASE}/{UID}/subscribers/ALL").status_code == 200
    )  # this one no more, all others
    assert {uid for _, uid, _ in reports(database, "ALL")} == {other}
    studies.receive("1.2.3.9", at=datetime.now(UTC))
    assert workitem_uid("1.2.3.9") in {uid for _, uid, _ in reports(database, "ALL")}
    assert asked(app, "POST", f"{BASE}/{GLOBAL_UID}/subscribers/ALL/suspend").status_code == 200
    studies.receive("1.2.3.10", at=datetime.now(UTC))
    told = {uid for _, uid, _ in reports(database, "ALL")}
    assert workitem_uid("1.2.3.9") in told
    assert workitem_uid("1.2.3.10") not in told
    assert asked(app, "DELETE", f"{BASE}/{GLOBAL_UID}/subscribers/ALL").status_code == 200
    assert reports(database, "ALL") == []
    with database.reading() as session:
        assert [row.ae_title for row in session.scalars(select(SubscriptionRow))] == ["SOME"]


def test_a_filter_is_held_against_how_a_workitem_stands(app: FastAPI, studies: StoredStudies) -> None:
    from ich_node.database.workitems import matching_workitems
    from ich_node.web.ups_query import read_keys

    uids = [workitem_uid(uid) for uid in (STAT, ROUTINE, WAITING)]
    with studies.database.reading() as session:
        assert matching_workitems(session, read_keys({"ScheduledProcedureStepPriority": "HIGH"}), uids) == {
            UID
        }
        assert matching_workitems(session, read_keys({"AdmissionID": "7"}), uids) == set()


def test_old_events_go(studies: StoredStudies) -> None:
    with studies.database.writing() as session:
        count = len(session.scalars(select(WorkitemEventRow)).all())
        assert prune_events(session, datetime.now(UTC)) == 0
        assert prune_events(session, datetime.now(UTC) + KEPT + timedelta(minutes=1)) == count > 0
        assert session.scalars(select(WorkitemEventRow)).all() == []


def test_what_is_sent_is_plain_json(unchanged: FastAPI) -> None:
    answer = asked(unchanged, "GET", f"{BASE}/{UID}")
    assert json.loads(answer.content.decode("utf-8"))
    assert answer.headers["x-content-type-options"] == "nosniff"
