"""Health and metrics, and the page of a study whose images are purged."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from ich_node import __version__
from ich_node.database import chores
from ich_node.destination_settings import PacsSettings
from ich_node.errors import TransientError
from ich_node.findings import Priority, StudyState
from ich_node.purge_job import Terms, purge_studies
from ich_node.receive import free_space
from ich_node.receive.free_space import FreeSpace
from ich_node.web import create_app
from ich_node.web.metrics import NodeMetrics, _quantile
from tests.purge_cases import SLICES, STUDY, PurgeCase, ago, purge_case
from tests.small_objects import PATIENT_ID, PATIENT_NAME
from tests.unit.test_web import Browser, Text

Samples = dict[str, float]


@pytest.fixture
def case(tmp_path: Path) -> Iterator[PurgeCase]:
    with purge_case(tmp_path) as case:
        yield case


def app(case: PurgeCase, *, min_free_bytes: int = 1) -> FastAPI:
    pacs = [
        {"name": name, "ae_title": "PACS", "host": "127.0.0.1", "port": 104} for name in ("PACS", "second")
    ]
    settings = case.node.settings.model_copy(update={"pacs": tuple(map(PacsSettings.model_validate, pacs))})
    return create_app(settings, case.database, free_space=FreeSpace(case.spool.root, min_free_bytes))


def scrape(case: PurgeCase, *, min_free_bytes: int = 1) -> Samples:
    answer = Browser(app(case, min_free_bytes=min_free_bytes)).get("/metrics", accept="text/plain")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


def samples(text: str) -> Samples:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_a_new_node_shows_everything_as_zero(case: PurgeCase) -> None:
    found = scrape(case)
    assert found[f"ich_node_build_info{{version={__version__}}}"] == 1
    assert found["ich_node_database_up"] == 1
    assert found["ich_node_disk_low"] == 0
    assert found["ich_node_disk_free_bytes"] > found["ich_node_disk_min_free_bytes"] == 1
    states = {f"ich_node_studies{{priority={p},state={s}}}" for s in StudyState for p in Priority}
    assert {name: found[name] for name in states} == dict.fromkeys(states, 0)
    for name in ("objects_received_total", "spool_objects", "spool_bytes", "conflicting_objects"):
        assert found[f"ich_node_{name}"] == 0
    for name in ("PACS", "second"):
        assert found[f"ich_node_outbox_objects{{destination={name},state=dead}}"] == 0
        assert found[f"ich_node_outbox_oldest_pending_seconds{{destination={name}}}"] == 0
    assert not [name for name in found if "receipt_to" in name]


def test_figures_of_a_node_at_work(case: PurgeCase) -> None:
    case.deliver(days=31, destinations=("PACS",))
    case.receive("1.2.840.2", days=0.5)
    case.receive("1.2.840.3", days=0.1)
    case.studies.read("1.2.840.3", at=ago(0.05), suspicion=0.9)
    found = scrape(case)
    assert found["ich_node_studies{priority=STAT,state=READ}"] == 2
    assert found["ich_node_studies{priority=MEDIUM,state=RECEIVING}"] == 1
    assert found["ich_node_unread_objects"] == SLICES
    assert found["ich_node_objects_received_total"] == 3 * SLICES
    assert found["ich_node_spool_objects"] == 3 * SLICES
    size = sum(path.stat().st_size for path in case.spool.scan())
    assert found["ich_node_spool_bytes"] == size
    assert found["ich_node_outbox_objects{destination=PACS,state=pending}"] == 3
    oldest = found["ich_node_outbox_oldest_pending_seconds{destination=PACS}"]
    assert oldest == pytest.approx(0.05 * 86400, abs=60)
    for quantile in ("0.5", "0.95"):
        assert found[f"ich_node_receipt_to_flag_seconds{{quantile={quantile}}}"] >= 0
    purge_studies(case.node, [STUDY], Terms(before=None, actor="node"))
    found = scrape(case)
    assert found["ich_node_objects_received_total"] == 3 * SLICES
    assert found["ich_node_spool_objects"] == 2 * SLICES
    assert found["ich_node_removals_pending"] == 0


def test_when_the_schedule_last_purged(case: PurgeCase) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert "ich_node_purge_last_end_timestamp_seconds" not in scrape(case)
    with case.database.writing() as session:
        chores.take_turn(session, "purge", owner="a", every=timedelta(1), lease=timedelta(1), now=now)
        chores.end_turn(session, "purge", owner="a", now=now, note="")
    assert scrape(case)["ich_node_purge_last_end_timestamp_seconds"] == now.timestamp()


def test_nothing_in_the_metrics_is_about_a_person(case: PurgeCase) -> None:
    case.deliver()
    text = Browser(app(case)).get("/metrics").text
    assert STUDY not in text
    assert PATIENT_ID not in text
    assert PATIENT_NAME.split("^")[0] not in text


def test_a_database_that_is_away_leaves_the_disk_visible(
    case: PurgeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise TransientError("the database did not answer")

    monkeypatch.setattr(case.database, "reading", away)
    found = scrape(case, min_free_bytes=2**60)
    assert found["ich_node_database_up"] == 0
    assert found["ich_node_disk_low"] == 1
    assert "ich_node_spool_objects" not in found


def test_a_file_system_that_is_away_is_low(case: PurgeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_space, "_LOOK_SECONDS", 0.0)
    space = FreeSpace(case.spool.root, 1)

    def away() -> int:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(space, "free_bytes", away)
    found = samples(NodeMetrics(case.database, space).render("")[0].decode())
    assert found["ich_node_disk_low"] == 1
    assert "ich_node_disk_free_bytes" not in found


def test_a_scraper_that_speaks_openmetrics_gets_it(case: PurgeCase) -> None:
    answer = Browser(app(case)).get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("values", "median", "most"), [([3.0], 3, 3), ([1.0, 2.0], 1, 2), (range(1, 101), 50, 95)]
)
def test_quantiles_are_values_that_were_measured(values: list[float], median: float, most: float) -> None:
    assert (_quantile(values, 0.5), _quantile(values, 0.95)) == (median, most)


@pytest.mark.parametrize(("min_free_bytes", "disk"), [(1, "ok"), (2**60, "low")])
def test_low_disk_is_said_and_the_page_stays_ready(case: PurgeCase, min_free_bytes: int, disk: str) -> None:
    browser = Browser(app(case, min_free_bytes=min_free_bytes))
    answer = browser.get("/health/ready")
    assert (answer.status_code, answer.json()["status"], answer.json()["disk"]) == (200, "ready", disk)
    assert browser.get("/").status_code == 200


def test_the_page_of_a_purged_study_says_so_and_shows_no_broken_pictures(case: PurgeCase) -> None:
    case.deliver()
    browser = Browser(app(case))
    before = Text(browser.get(f"/studies/{STUDY}").text)
    assert "purged" not in before.text
    assert pictures(before)
    version = browser.get(f"/studies/{STUDY}/version").json()["version"]
    purge_studies(case.node, [STUDY], Terms(before=None, actor="node"))
    page = Text(browser.get(f"/studies/{STUDY}").text)
    assert "Its images and result objects were purged on " in page.text
    assert "the PACS has the results; to have the study read again, send it again" in page.text
    assert f"0 ({SLICES} were purged)" in page.text
    assert not pictures(page)
    assert "Suspected hemorrhage" in page.text
    assert browser.get(f"/studies/{STUDY}/version").json()["version"] != version


def pictures(page: Text) -> list[str]:
    """Whatever the page shows or links of the result objects."""
    targets = [str(attrs.get(name)) for _, attrs in page.tags for name in ("src", "href")]
    return [target for target in targets if target.startswith("/results/")]


def test_a_study_that_came_again_after_its_purge_has_its_images_but_not_its_pictures(case: PurgeCase) -> None:
    case.deliver()
    purge_studies(case.node, [STUDY], Terms(before=None, actor="node"))
    case.receive()
    text = Text(Browser(app(case)).get(f"/studies/{STUDY}").text).text
    assert "Its result objects were purged on " in text
    assert "were purged)" not in text


def test_no_query_reads_a_whole_table_of_images(case: PurgeCase) -> None:
    """A scrape every few seconds must cost little where 100,000 images are here."""
    statements: list[tuple[str, Any]] = []
    event.listen(
        case.database.engine,
        "before_cursor_execute",
        lambda _c, _k, statement, parameters, *_: statements.append((statement, parameters)),
    )
    scrape(case)
    plan = []
    with case.database.reading() as session:
        for statement, parameters in [one for one in statements if one[0].startswith("SELECT")]:
            rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plan += [row[3] for row in rows]
    scans = {step for step in plan if step.startswith("SCAN") and "COVERING INDEX" not in step}
    # one row for each series; the others have the few rows of a partial index, or end at their limit
    assert scans <= {
        "SCAN series",
        "SCAN removal",
        "SCAN instance USING INDEX instance_in_conflict",
        "SCAN study USING INDEX study_by_read_at",
        "SCAN study USING INDEX study_by_flagged_at",
        # SQLite calls no index covering that has a generated column in it, though all it reads is there
        "SCAN study USING INDEX study_by_state",
    }, plan
