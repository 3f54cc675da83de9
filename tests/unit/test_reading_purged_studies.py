"""What comes for a study whose images are purged: nothing of it ever makes the study look negative."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pydicom
import pytest

from ich_node.database import outbox, queue
from ich_node.node import Node
from ich_node.purge_job import Terms, purge_studies
from ich_node.testing.phantom import HeadPhantom
from ich_node.testing.series import localizer_series, phantom_series
from tests.unit.test_reading_job import ScriptedPredictor, arrive, node, phantom, read, show

__all__ = ["node", "phantom"]


def deliver(node: Node) -> None:
    now = datetime.now(UTC)
    with node.database.writing() as session:
        for delivery in outbox.claim_deliveries(
            session, "archive", owner="d", now=now, lease=timedelta(seconds=60), limit=1000
        ):
            outbox.record_taken(session, delivery, now=now, note=None, confirm=False)


def purge(node: Node, uid: str) -> None:
    for path in node.settings.spool_dir.glob("*/*.dcm"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    (study,) = purge_studies(node, [uid], Terms(before=None, actor="node")).studies
    assert study.purged, study.obstacles


def read_and_purged(node: Node, images: Sequence[pydicom.Dataset], suspicion: float) -> str:
    uid = arrive(node, images)
    assert read(node, uid, ScriptedPredictor(suspicion))["state"] == "READ"
    deliver(node)
    purge(node, uid)
    return uid


def outcomes(node: Node, uid: str) -> dict[str, Any]:
    return {s["series_description"]: s["exclusion_reason"] for s in show(node, uid)["series"]}


@pytest.mark.parametrize(("suspicion", "priority"), [(0.9, "STAT"), (0.1, "MEDIUM")])
def test_a_late_slice_is_not_read_for_the_whole(
    node: Node, phantom: HeadPhantom, suspicion: float, priority: str
) -> None:
    images = phantom_series(phantom)
    uid = read_and_purged(node, images[:-1], suspicion)
    arrive(node, images[-1:])
    row = read(node, uid, never_asked())
    assert (row["state"], row["reason"], row["priority"]) == ("NOT_READ", "IMAGES_PURGED", priority)
    assert "its 23 images were purged" in show(node, uid)["reason_detail"]
    assert len(show(node, uid)["readings"]) == 1


def test_a_gapless_part_is_not_read_for_the_whole_either(node: Node, phantom: HeadPhantom) -> None:
    images = phantom_series(phantom)
    uid = read_and_purged(node, images[:-1], 0.9)
    arrive(node, images[12:])  # a stack of its own, and one slice of it is new
    row = read(node, uid, never_asked())
    assert (row["state"], row["reason"], row["priority"]) == ("NOT_READ", "IMAGES_PURGED", "STAT")


def test_the_whole_with_a_late_slice_is_read(node: Node, phantom: HeadPhantom) -> None:
    images = phantom_series(phantom)
    uid = read_and_purged(node, images[:-1], 0.1)
    arrive(node, images)
    row = read(node, uid, ScriptedPredictor(0.9))
    assert (row["state"], row["priority"]) == ("READ", "STAT")
    assert [r["run_number"] for r in show(node, uid)["readings"]] == [2, 1]


@pytest.mark.parametrize("count", [5, 24])
def test_images_that_were_read_and_come_again_change_nothing(
    node: Node, phantom: HeadPhantom, count: int
) -> None:
    images = phantom_series(phantom)
    uid = read_and_purged(node, images, 0.1)
    arrive(node, images[:count])
    row = read(node, uid, never_asked())
    assert (row["state"], row["reason"], row["priority"]) == ("READ", None, "ROUTINE")
    assert len(show(node, uid)["readings"]) == 1
    assert list(outcomes(node, uid).values()) == [None]


def test_a_reprocess_after_all_came_again_reads_them(node: Node, phantom: HeadPhantom) -> None:
    images = phantom_series(phantom)
    uid = read_and_purged(node, images, 0.1)
    arrive(node, images)
    read(node, uid, never_asked())
    with node.database.writing() as session:
        queue.request_reprocess(
            session, uid, series_instance_uid=None, model=None, actor="cli:me", now=datetime.now(UTC)
        )
    assert read(node, uid, ScriptedPredictor(0.9))["priority"] == "STAT"


def test_a_late_series_that_cannot_be_read_leaves_the_reading_and_what_was_said_of_the_others(
    node: Node, phantom: HeadPhantom
) -> None:
    images = phantom_series(phantom, series_description="thin")
    scout = localizer_series(phantom)
    uid = read_and_purged(node, [*images, *scout], 0.9)
    before = outcomes(node, uid)
    assert sorted(map(str, before.values())) == ["LOCALIZER", "None"]
    late = localizer_series(phantom)
    for image in late:
        image.SeriesInstanceUID, image.SeriesDescription = f"{image.SeriesInstanceUID}.9", "late scout"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID}.9"
    arrive(node, late)
    row = read(node, uid, never_asked())
    assert (row["state"], row["priority"]) == ("READ", "STAT")
    assert outcomes(node, uid) == {**before, "late scout": "LOCALIZER"}


def test_a_late_series_that_can_be_read_is_read_beside_the_earlier_reading(
    node: Node, phantom: HeadPhantom
) -> None:
    uid = read_and_purged(node, phantom_series(phantom, series_description="first"), 0.9)
    arrive(node, phantom_series(phantom, series_number=9, series_description="second"))
    row = read(node, uid, ScriptedPredictor(0.1))
    assert (row["state"], row["priority"]) == ("READ", "STAT")
    assert [r["superseded"] for r in show(node, uid)["readings"]] == [False, False]
    assert outcomes(node, uid) == {"first": None, "second": None}


def never_asked() -> ScriptedPredictor:
    def fail() -> None:
        raise AssertionError("there was nothing to be read")

    return ScriptedPredictor(instead=fail)
