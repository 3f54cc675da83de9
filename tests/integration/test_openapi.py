"""The published description against the service: nothing is answered that it does not say."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings

from ich_node.database.engine import Database
from ich_node.database.workitem_events import workitem_uid
from ich_node.database.workitem_subscriptions import GLOBAL_UID
from ich_node.web import create_app
from tests.stored_studies import StoredStudies

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STUDIES = ("1.2.3.1", "1.2.3.2", "1.2.3.3")
EXAMPLES = 8


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("openapi")
    database = Database(f"sqlite:///{folder / 'node.sqlite'}")
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=folder / "results")
    now = datetime.now(UTC)
    for number, study in enumerate(STUDIES):
        studies.receive(study, at=now - timedelta(minutes=number), patient_name=f"DOE^{number}")
    studies.read(STUDIES[0], at=now, suspicion=0.9)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(studies.settings, database), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
    database.dispose()


@pytest.fixture(scope="module")
def published(address: str) -> Any:
    schema = schemathesis.openapi.from_url(f"{address}/api/openapi.json")
    known = {"study_instance_uid": STUDIES, "workitem_uid": (*map(workitem_uid, STUDIES), GLOBAL_UID)}

    @schema.hook("map_path_parameters")  # type: ignore[untyped-decorator,unused-ignore]
    def name_what_is_here(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        """Half of the time; the other half asks for what is not here."""
        found = dict(path_parameters or {})
        for name, values in known.items():
            if name in found and len(str(found[name])) % 2:
                found[name] = values[len(str(found[name])) // 2 % len(values)]
        return found

    return schema


def test_every_route_of_the_api_and_of_dicomweb_is_described(address: str) -> None:
    paths = httpx.get(f"{address}/api/openapi.json").json()["paths"]
    assert all(path.startswith(("/api/", "/dicom-web/")) for path in paths)
    described = {(method, path) for path, operations in paths.items() for method in operations}
    assert {
        ("get", "/api/worklist"),
        ("get", "/api/studies/{study_instance_uid}"),
        ("post", "/api/studies/{study_instance_uid}/reprocess"),
        ("post", "/api/studies/{study_instance_uid}/review"),
        ("get", "/dicom-web/workitems"),
        ("get", "/dicom-web/workitems/{workitem_uid}"),
        ("post", "/dicom-web/workitems/{workitem_uid}"),
        ("put", "/dicom-web/workitems/{workitem_uid}/state"),
        ("post", "/dicom-web/workitems/{workitem_uid}/cancelrequest"),
        ("post", "/dicom-web/workitems/{workitem_uid}/subscribers/{ae_title}"),
        ("delete", "/dicom-web/workitems/{workitem_uid}/subscribers/{ae_title}"),
        ("post", "/dicom-web/workitems/{workitem_uid}/subscribers/{ae_title}/suspend"),
    } <= described
    for path, method in ((path, method) for method, path in described):
        assert {"401", "403", "503"} <= paths[path][method]["responses"].keys(), path


def answers(operation: Any, statuses: set[int]) -> None:
    """Send what the description allows; an answer that it does not say is an error."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    check()


def faults(schema: Any, *, only: str = "") -> tuple[list[str], dict[str, set[int]]]:
    """What is answered and not described, and which answers each operation gave."""
    wrong: list[str] = []
    seen: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if only and operation.label != only:
            continue
        try:
            answers(operation, seen.setdefault(operation.label, set()))
        except BaseExceptionGroup as group:  # each operation is looked at
            wrong.append(f"{operation.label}: {'; '.join(map(str, group.exceptions))}")
    return wrong, seen


def test_nothing_is_answered_that_is_not_described(published: Any) -> None:
    wrong, seen = faults(published)
    assert not wrong, "\n\n".join(wrong)
    own = {label: codes for label, codes in seen.items() if "/api/" in label or "/workitems" in label}
    assert all(min(codes) < 300 for label, codes in own.items() if label.startswith("GET")), own
    assert {404, 409} & set.union(*own.values()), own


def test_what_is_not_described_is_found(address: str) -> None:
    description = httpx.get(f"{address}/api/openapi.json").json()
    label = "GET /api/studies/{study_instance_uid}"
    del description["paths"][label.partition(" ")[2]]["get"]["responses"]["404"]
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=address)
    wrong, _ = faults(schema, only=label)
    assert len(wrong) == 1
    assert "404" in wrong[0]
