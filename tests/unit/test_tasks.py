"""The reconciler goes on whatever happens to broker and database, and the workers refuse what they cannot work with."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from ich_node import delivery_job, purge_job, tasks
from ich_node.cli import checks
from ich_node.database.engine import Database
from ich_node.delivery_job import Deliverer
from ich_node.errors import ConfigurationError, TransientError
from ich_node.node import Node
from ich_node.settings import BrokerSettings, ModelSettings, PeerSettings, Settings
from ich_node.tasks import READ_TASK, Queue, Reconciler, count_workers, create_app, run_worker
from tests.stored_studies import StoredStudies

SOON_S = 20.0


@dataclass
class Messages:
    """Takes the place of the Celery application: notes what is sent, or raises what the broker would."""

    faults: list[Exception] = field(default_factory=list)
    sent: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def connection_for_write(self) -> Messages:
        return self

    @property
    def connection_errors(self) -> tuple[type[Exception], ...]:
        return (ConnectionError,)

    def send_task(self, task: str, arguments: tuple[str, ...], **_: Any) -> None:
        with self.changed:
            if self.faults:
                raise self.faults.pop(0)
            self.sent.append((task, arguments))
            self.changed.notify_all()

    def wait_for(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.sent) >= count, SOON_S)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.database_url)
    database.upgrade()
    studies = StoredStudies(database=database, results_dir=settings.results_dir)
    studies.receive("1.2.3", at=datetime.now(UTC) - timedelta(seconds=5))
    database.dispose()
    return settings


@pytest.fixture
def reconcile(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(tasks, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(tasks, "_PAUSE_SECONDS", 0.02)
    started: list[Reconciler] = []

    def start(messages: Messages) -> Reconciler:
        reconciler = Reconciler(messages, settings)  # type: ignore[arg-type]
        started.append(reconciler)
        reconciler.start()
        return reconciler

    yield start
    for reconciler in started:
        reconciler.stop()
        reconciler._thread.join(SOON_S)


@pytest.mark.parametrize(
    "fault",
    [OperationalError("broker is away"), ConnectionError("broker is away"), ZeroDivisionError("a bug")],
    ids=lambda fault: type(fault).__name__,
)
def test_a_study_whose_message_could_not_be_sent_is_sent_soon(
    reconcile: Callable[..., Any], fault: Exception
) -> None:
    messages = Messages(faults=[fault])
    reconcile(messages)
    assert messages.wait_for(1)
    assert messages.sent == [(READ_TASK, ("1.2.3",))]


def test_what_waits_is_sent_again_after_the_broker_was_away(reconcile: Callable[..., Any]) -> None:
    messages = Messages()
    reconciler = reconcile(messages)
    assert messages.wait_for(1)
    reconciler.broker_may_be_empty()
    assert messages.wait_for(2)
    assert messages.sent == [(READ_TASK, ("1.2.3",))] * 2


def test_purges_by_schedule_go_on_beside_the_reconciling(
    reconcile: Callable[..., Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Event(), threading.Event()

    def purge(node: Node, *, stop: threading.Event) -> None:
        assert node.settings is settings
        begun.set()
        release.wait(SOON_S)

    monkeypatch.setattr(purge_job, "purge_when_due", purge)
    messages = Messages()
    reconciler = reconcile(messages)
    assert begun.wait(SOON_S)
    for count in (1, 2):
        assert messages.wait_for(count)
        reconciler.broker_may_be_empty()
    release.set()


def test_a_slow_start_of_a_pool_process_is_waited_for(tmp_path: Path) -> None:
    assert create_app(Settings(data_dir=tmp_path)).conf.worker_proc_alive_timeout >= 60


def test_a_worker_without_its_bundle_refuses_to_start(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, model=ModelSettings(bundles=("absent",)))
    with pytest.raises(ConfigurationError, match=r"model\.bundles: there is no bundle 'absent'"):
        run_worker(settings, Queue.READ, on_ready=lambda: None)


def test_a_broker_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path, broker=BrokerSettings(url="redis+socket:///nowhere/socket"))
    app = create_app(settings)

    def refuse(**_: Any) -> None:
        raise OperationalError("no such file")

    monkeypatch.setattr(app.control, "ping", refuse)
    monkeypatch.setattr(tasks, "create_app", lambda _settings: app)
    with pytest.raises(TransientError, match="the broker does not answer: no such file"):
        count_workers(settings)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ([], "read, deliver"),
        (["ich-node-read@a", "ich-node-read@b"], "deliver"),
        (["ich-node-deliver@a", "ich-node-read@b"], None),
    ],
)
@pytest.mark.parametrize("processes", [0, 1])
def test_doctor_wants_a_worker_for_each_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], missing: str | None, processes: int
) -> None:
    monkeypatch.setattr(checks, "count_workers", lambda _settings: names)
    settings = Settings.model_validate({"data_dir": tmp_path, "worker": {"processes": processes}})
    ok, found = checks._workers(settings)
    assert ok == (missing is None)
    assert missing is None or found.endswith(f": {missing}")


@pytest.mark.parametrize(
    ("reason", "ok"), [("Calling AE title not recognised", True), ("Called AE title not recognised", False)]
)
def test_doctor_tells_a_receiver_that_admits_its_peers_only_from_another_program(
    monkeypatch: pytest.MonkeyPatch, reason: str, ok: bool
) -> None:
    found = f"ICH_NODE rejected the association: Rejected Permanent, {reason}"
    monkeypatch.setattr(checks, "_echo", lambda *_: (False, found))
    settings = Settings(peers=(PeerSettings(name="ct", ae_title="CT01", host="192.0.2.1"),))
    assert checks._receiver(checks.Destination(name="s", ae_title="S", host="h", port=1), settings)[0] is ok


def test_a_slow_pacs_leaves_threads_to_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, at_work = threading.Event(), threading.Semaphore(0)
    begun: list[str] = []

    def deliver(_node: Node, destination: str) -> None:
        begun.append(destination)
        at_work.release()
        if destination == "slow":
            release.wait(SOON_S)

    monkeypatch.setattr(delivery_job, "deliver_due", deliver)
    deliverer = Deliverer(Node(settings=settings, database=Database(settings.database_url)))
    slow = [threading.Thread(target=deliverer.deliver_due, args=("slow",)) for _ in range(2)]
    for thread in slow:
        thread.start()
        assert at_work.acquire(timeout=SOON_S)
    deliverer.deliver_due("slow")
    deliverer.deliver_due("other")
    assert begun == ["slow", "slow", "other"]
    release.set()
    for thread in slow:
        thread.join(SOON_S)
    deliverer.deliver_due("slow")
    assert begun[-1] == "slow"


@pytest.mark.parametrize(("processes", "threads"), [(1, None), (2, "4"), (16, "1")])
def test_reading_processes_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, processes: int, threads: str | None
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    tasks._share_cores(processes)
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
