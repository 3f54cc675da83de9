"""Which images the Orthanc plugin forwards, what it remembers, and how it calls the node."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "deploy" / "orthanc"
CT, ENHANCED_CT, SR = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.88.34",
)


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def rules() -> Any:
    return importlib.import_module("ich_node_rules")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Any]:
    opened = importlib.import_module("ich_node_queue").Queue(str(tmp_path / "queue.sqlite"))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("changes", "goes"),
    [
        ({}, True),
        ({"sop_class_uid": ENHANCED_CT}, True),
        ({"sop_class_uid": SR, "modality": "SR"}, False),
        ({"modality": "MR"}, False),
        ({"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"}, False),
        ({"image_type": "ORIGINAL\\PRIMARY\\localizer\\X"}, False),
        ({"image_type": "DERIVED\\SECONDARY\\AXIAL"}, True),
        ({"image_type": ""}, True),
        ({"body_part": "CHEST"}, False),
        ({"body_part": "CHEST", "descriptions": ("Polytrauma", "HEAD 5mm", "")}, True),
        ({"body_part": "head "}, True),
        ({"body_part": "BRAIN"}, True),
        ({"body_part": ""}, True),
        ({"body_part": "", "descriptions": ("CCT Schädel", "", "")}, True),
        ({"body_part": "NECK", "descriptions": ("SCHÄDEL", "", "")}, True),
    ],
)
def test_what_is_forwarded(rules: Any, changes: dict[str, Any], goes: bool) -> None:
    image = rules.Image(CT, "CT01", "CT", "ORIGINAL\\PRIMARY\\AXIAL", "HEAD", ("", "", ""))
    assert rules.is_head_ct(replace(image, **changes), rules.Configuration()) is goes


def test_what_says_nothing_stays_where_that_is_wanted(rules: Any) -> None:
    image = rules.Image(CT, "CT01", "CT", "", "", ("", "", ""))
    assert not rules.is_head_ct(image, rules.Configuration(ForwardUnknown=False))
    assert rules.is_head_ct(
        replace(image, descriptions=("Brain", "", "")), rules.Configuration(ForwardUnknown=False)
    )


def test_results_are_known_by_who_brought_them(rules: Any) -> None:
    image = rules.Image(CT, "ICH_NODE", "CT", "", "", ())
    assert rules.is_result(image, "ICH_NODE")
    assert not rules.is_result(image, "")
    assert not rules.is_result(replace(image, remote_ae_title="CT01"), "ICH_NODE")


def test_the_example_is_valid_and_faults_are_named(rules: Any) -> None:
    rules.Configuration.of(json.loads((SCRIPTS / "orthanc.json").read_text())["IchNode"])
    for section, key in (
        ({"Modaltiy": "x"}, "Modaltiy"),
        ({"Forward": "yes"}, "Forward"),
        ({"Words": "head"}, "Words"),
        ({"Words": [1]}, "Words"),
        ({"Url": "ftp://x"}, "Url"),
        ({"LabelPrefix": "a b"}, "LabelPrefix"),
    ):
        with pytest.raises(rules.WrongConfiguration, match=rf"^IchNode\.{key}: "):
            rules.Configuration.of(section)


def test_a_quiet_series_is_due_and_one_that_comes_all_the_time_too(queue: Any) -> None:
    queue.take([("i1", "s1", "t"), ("i2", "s1", "t")], 7, 100.0)
    assert queue.last_change() == 7
    assert queue.due(100.5, set()) == []
    assert [batch.instances for batch in queue.due(100.8, set())] == [("i1", "i2")]
    assert queue.due(100.8, {"s1"}) == []
    queue.take([("i3", "s1", "t")], 8, 102.9)
    assert [batch.instances for batch in queue.due(103.1, set())] == [("i1", "i2", "i3")]


def test_what_is_not_sent_is_there_after_a_restart(tmp_path: Path) -> None:
    module = importlib.import_module("ich_node_queue")
    first = module.Queue(str(tmp_path / "q"))
    first.take([("i1", "s1", "t"), ("i2", "s1", "t")], 5, 100.0)
    first.close()
    second = module.Queue(str(tmp_path / "q"))
    assert (second.last_change(), second.waiting()) == (5, (2, 100.0))
    (batch,) = second.due(200.0, set())
    second.sent(batch)
    assert second.waiting() == (0, None)
    assert not second.waits_for("t")
    second.close()


def test_an_image_that_is_refused_holds_up_no_other_and_is_given_up(queue: Any) -> None:
    queue.take([("bad", "s1", "t"), ("good", "s1", "t")], 1, 0.0)
    (both,) = queue.due(10.0, set())
    assert queue.refused(both, 10.0) == 0
    (one,) = queue.due(10.0, set())
    assert one.instances == ("bad",)  # alone from now on
    queue.refused(one, 10.0)
    (other,) = queue.due(11.0, set())
    assert other.instances == ("good",)
    queue.sent(other)
    now, given_up = 11.0, 0
    while queue.waiting()[0]:
        now += 1000.0
        (batch,) = queue.due(now, set())
        given_up += queue.refused(batch, now)
    assert given_up == 1
    assert now < 80_000.0


def test_questions_and_requests(queue: Any) -> None:
    for put, ask, table in (
        (queue.ask, queue.questions, "question"),
        (queue.request, queue.requests, "request"),
    ):
        put("study", 10.0)
        assert ask(9.0) == []
        assert ask(10.0) == [("study", 10.0)]
        queue.later(table, "study", 20.0)
        assert ask(19.0) == []
        queue.done(table, "study")
        assert ask(30.0) == []


class _Recorded(BaseHTTPRequestHandler):
    seen: tuple[str, str, str | None] = ("", "", None)
    status = 200

    def do_GET(self) -> None:
        type(self).seen = (self.command, self.path, self.headers["Authorization"])
        self.send_response_only(self.status)
        if self.status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b'{"state": "READ"}' if self.status == 200 else b"no JSON")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Recorded) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


def test_the_node_is_called_with_its_token_and_nobody_else(
    tmp_path: Path, service: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = importlib.import_module("ich_node_client")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    (tmp_path / "token").write_text("secret\n")
    node = client.Node(f"http://127.0.0.1:{service}/", str(tmp_path / "token"))
    monkeypatch.setattr(_Recorded, "status", 200)
    assert node.study("1.2") == (200, {"state": "READ"})
    assert _Recorded.seen == ("GET", "/api/studies/1.2", "Bearer secret")
    for status in (302, 409):
        monkeypatch.setattr(_Recorded, "status", status)
        assert node.reprocess("1.2") == (status, {})
        assert _Recorded.seen == ("POST", "/api/studies/1.2/reprocess", "Bearer secret")
    (tmp_path / "token").write_text("ä")
    with pytest.raises(client.NodeAway, match="does not hold a token"):
        node.study("1.2")
    with pytest.raises(client.NodeAway, match="did not answer"):
        client.Node("http://127.0.0.1:1").study("1.2")


def test_a_study_in_words() -> None:
    in_words = importlib.import_module("ich_node_client").in_words
    assert (
        in_words({"state": "NOT_READ", "reason": "NOT_HEAD", "reason_detail": "no skull"})
        == "NOT_READ: no skull"
    )
    assert in_words({"state": "QUEUED", "reason": None}) == "QUEUED"
    readings = [
        {"superseded": False, "suspicion": 0.914, "model_name": "a"},
        {"superseded": True, "suspicion": 0.99, "model_name": "old"},
    ]
    said = in_words({"state": "READ", "readings": readings})
    assert said == "READ, suspicion 91% (a); AI result, unverified, not for primary diagnosis"
