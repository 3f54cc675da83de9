"""A purge that is killed at any moment leaves each study purged or whole, and the next run finishes it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

from ich_node.intake import Intake
from ich_node.purge_job import finish_removals
from tests.purge_cases import PACS, SLICES, STUDY, PurgeCase, ago, purge_case

ROOT = Path(__file__).parents[2]
ROUNDS, STUDIES = 10, 8

PURGE = """
import sys
from datetime import UTC, datetime
from ich_node.database.engine import Database
from ich_node.node import Node
from ich_node.purge_job import Terms, purge_delivered
from ich_node.settings import Settings
settings = Settings.model_validate({"data_dir": sys.argv[1], "pacs": [eval(sys.argv[2])]})
node = Node(settings=settings, database=Database(settings.database_url))
print("ready", flush=True)
sys.stdin.readline()
purge_delivered(node, Terms(before=datetime.now(UTC), actor="node"))
"""


def start(case: PurgeCase) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PURGE, str(case.node.settings.data_dir), repr(PACS)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Let it purge for so long, then kill it; whether that came before its end."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    code = process.wait(30)
    process.stdin.close()
    process.stdout.close()
    return code != 0


def standing(case: PurgeCase, study: str) -> tuple[int, bool]:
    """Images by the rows, and whether the study counts as purged."""
    report = case.report(study)
    return report["series"][0]["instances"], report["purged_at"] is not None


def test_a_killed_purge_leaves_every_study_purged_or_whole(tmp_path: Path) -> None:
    chance = random.Random(7)
    killed = 0
    for round_number in range(ROUNDS):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        with purge_case(folder) as case:
            studies = [f"1.2.840.{n}" for n in range(1, STUDIES + 1)]
            for study in studies:
                case.deliver(study)
            killed += kill_after(start(case), chance.uniform(0.0, 0.25))
            Intake(case.node.settings, case.database, case.spool).rebuild()  # the receiver starts as well
            standings = {study: standing(case, study) for study in studies}
            assert set(standings.values()) <= {(SLICES, False), (0, True)}
            assert finish_removals(case.node) == 0
            kept = [study for study, (images, _) in standings.items() if images]
            assert len(case.spooled()) == SLICES * len(kept)
            assert len(case.results()) == 3 * len(kept)
            assert not list((case.spool.root / "removing").glob("*"))
            assert {study: standing(case, study) for study in studies} == standings
    assert killed  # else this has tested nothing


def test_objects_that_are_sent_again_while_purges_are_killed_are_all_there(tmp_path: Path) -> None:
    """Whatever was stored with success is there in the end, on disk and in the rows."""
    chance = random.Random(8)
    with purge_case(tmp_path) as case:
        case.deliver()
        for _ in range(4):
            process = start(case)
            sender = threading.Thread(target=lambda: [case.store(n) for n in range(1, SLICES + 1)])
            sender.start()
            kill_after(process, chance.uniform(0.0, 0.2))
            sender.join(60)
            finish_removals(case.node)
            assert len(case.spooled()) == case.report()["series"][0]["instances"] == SLICES
            finish(case)


def finish(case: PurgeCase) -> None:
    """Read what came again and let time pass, so that it may be purged again."""
    if case.report()["state"] != "READ":
        case.studies.read(STUDY, at=ago(0), suspicion=0.9)
        case.studies.deliver(at=ago(0))
    for path in case.spool.scan():
        os.utime(path, (ago(1).timestamp(), ago(1).timestamp()))
