"""Celery shells around the reading and the delivery job, and the reconciler that turns due rows into messages.

Messages carry ids only. A message that is lost, doubled or late does no harm: the database decides what is due
and who may work on it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from celery import Celery, bootsteps, signals
from kombu.exceptions import OperationalError

from ich_node.broker import resolve_broker
from ich_node.confirmation_job import has_answers, take_answers
from ich_node.database import outbox, queue
from ich_node.database.engine import Database
from ich_node.delivery_job import Deliverer
from ich_node.errors import ConfigurationError, TransientError
from ich_node.model.bundle import find_bundle, verify_bundle
from ich_node.node import Node
from ich_node.purge_job import PurgeSchedule
from ich_node.settings import Settings

if TYPE_CHECKING:
    from ich_node.pipeline import Predictor

logger = logging.getLogger(__name__)

READ_TASK = "ich_node.read"
DELIVER_TASK = "ich_node.deliver"
_DELIVERY_THREADS = 8
_TICK_SECONDS = 0.5
_PAUSE_SECONDS = 5.0
_DELIVER_AGAIN_SECONDS = 10.0
_START_SECONDS = 300.0
"""A pool process may take so long to load torch and the weights; Celery would kill it after 4 s, again and again."""


class Queue(StrEnum):
    """The Celery queues; each has worker processes of its own, so that a slow PACS never delays a reading."""

    READ = "read"
    DELIVER = "deliver"


def create_app(settings: Settings) -> Celery:
    """The Celery application of an installation."""
    broker = resolve_broker(settings)
    app = Celery("ich_node", broker=broker.url)
    app.conf.update(
        broker_transport_options=broker.transport_options,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_routes={READ_TASK: {"queue": Queue.READ}, DELIVER_TASK: {"queue": Queue.DELIVER}},
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_proc_alive_timeout=_START_SECONDS,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        timezone="UTC",
    )
    return app


class _PoolProcess:
    """What a pool process keeps between tasks; made there, since connections do not survive a fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._predictors: dict[str, Predictor] = {}

    @cached_property
    def node(self) -> Node:
        return Node(settings=self._settings, database=Database(self._settings.database_url))

    @cached_property
    def deliverer(self) -> Deliverer:
        return Deliverer(self.node)

    def warm_up(self) -> None:
        """Load what the first reading would wait for."""
        from ich_node.decoding.process import shared_decoder  # only the reading worker decodes

        shared_decoder(self._settings.worker.decoder_memory_mib * 2**20).start()
        self.predictors()

    def predictors(self, bundle: str | None = None) -> list[Predictor | ConfigurationError]:
        """The one of a bundle, or those that the settings name; in place of one that cannot be loaded, why."""
        loaded: list[Predictor | ConfigurationError] = []
        for name in [bundle] if bundle else self._settings.model.bundles:
            try:
                loaded.append(self._predictor(name))
            except ConfigurationError as error:
                logger.error("bundle %s cannot read: %s", name, error)
                loaded.append(error)
        return loaded

    def _predictor(self, name: str) -> Predictor:
        from ich_node.model.predict import load_predictor  # only the reading worker loads torch

        if name not in self._predictors:
            folder = find_bundle(name, self._settings.bundles_dir)
            model = self._settings.model
            self._predictors[name] = load_predictor(folder, model.device, model.precision)
        return self._predictors[name]


def _register_tasks(app: Celery, process: _PoolProcess) -> None:
    @app.task(name=READ_TASK)
    def read(study_instance_uid: str) -> None:
        from ich_node.reading_job import read_due_study  # with all that a reading needs

        if read_due_study(process.node, study_instance_uid, process.predictors):
            for destination in process.node.destination_names:
                app.send_task(DELIVER_TASK, (destination,))

    @app.task(name=DELIVER_TASK)
    def deliver(destination: str) -> None:
        process.deliverer.deliver_due(destination)


def worker_name(role: Queue) -> str:
    """What a worker of this role calls itself, before the ``@`` and its host."""
    return f"ich-node-{role}"


def count_workers(settings: Settings) -> list[str]:
    """Names of the workers that answer over the broker.

    Raises
    ------
    TransientError
        The broker does not answer.
    """
    app = create_app(settings)
    try:
        answers = app.control.ping(timeout=2.0) or []
    except _broker_errors(app) as error:
        raise TransientError(f"the broker does not answer: {error}") from None
    return sorted(name for answer in answers for name in answer)


def run_worker(settings: Settings, role: Queue, *, on_ready: Callable[[], None]) -> None:
    """Work on one queue until the process is told to stop; the deliverer also reconciles.

    Raises
    ------
    ConfigurationError
        A bundle that is to read is not here, or not what it says.
    """
    if role is Queue.READ:
        for name in settings.model.bundles:
            verify_bundle(find_bundle(name, settings.bundles_dir))
    app, process = create_app(settings), _PoolProcess(settings)
    _register_tasks(app, process)
    signals.worker_ready.connect(lambda **_: on_ready(), weak=False)
    if role is Queue.READ:
        _share_cores(settings.worker.processes)
        signals.worker_process_init.connect(lambda **_: process.warm_up(), weak=False)
        pool = ["--pool", "prefork", "--concurrency", str(settings.worker.processes)]
    else:
        reconciler = Reconciler(app, settings)
        app.steps["consumer"].add(_on_connection(reconciler.broker_may_be_empty))
        signals.worker_ready.connect(lambda **_: reconciler.start(), weak=False)
        signals.worker_shutting_down.connect(lambda **_: reconciler.stop(), weak=False)
        pool = ["--pool", "threads", "--concurrency", str(_DELIVERY_THREADS)]
    name = f"{worker_name(role)}@%h"
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    app.worker_main(["worker", "--queues", role, "--hostname", name, *pool, *quiet])


def _broker_errors(app: Celery) -> tuple[type[BaseException], ...]:
    """What is raised where the broker is away: the transport's own errors, and kombu's for those."""
    return (OperationalError, *app.connection_for_write().connection_errors)


def _share_cores(processes: int) -> None:
    """Be a good neighbour on the cores; torch reads these variables when it is loaded, in the pool process.

    Threads that wait sleep instead of spinning: spinning beside another busy process makes a reading several times
    slower. Pool processes do not run one thread for each core each.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if processes > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))


def _on_connection(call: Callable[[], None]) -> type[bootsteps.StartStopStep]:
    """A step of Celery's consumer, which starts its steps anew for each connection to the broker."""

    class Connected(bootsteps.StartStopStep):
        requires = ("celery.worker.consumer.connection:Connection",)

        def start(self, consumer: object) -> None:
            call()

    return Connected


class Reconciler:
    """Sends a message for whatever the database says is due, again and again; purges by schedule beside that."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._delivered_at: dict[str, float] = {}
        self._purges = PurgeSchedule(settings)
        self._forget = threading.Event()
        self._forget.set()

    def start(self) -> None:
        """Begin; whatever was enqueued before is enqueued anew, in case its message is lost."""
        self._thread.start()

    def broker_may_be_empty(self) -> None:
        """Enqueue all that waits anew: the broker was away and may have lost its messages."""
        self._forget.set()

    def stop(self) -> None:
        """End after the current round."""
        self._stop.set()

    def _run(self) -> None:
        database = Database(self._settings.database_url)
        while not self._stop.wait(_TICK_SECONDS):
            self._purges.tick()
            try:
                self._reconcile(database)
            except TransientError as error:
                logger.warning("reconciling again in %.1f s: %s", _TICK_SECONDS, error)
            except _broker_errors(self._app) as error:
                logger.warning("the broker does not answer: %s", error)
            except Exception:  # this thread's boundary: were it to end, nothing would be read any more
                logger.exception("reconciling again in %.1f s", _PAUSE_SECONDS)
                self._stop.wait(_PAUSE_SECONDS)
        self._purges.stop()
        database.dispose()

    def _reconcile(self, database: Database) -> None:
        now = datetime.now(UTC)
        if has_answers(self._node(database)):
            take_answers(self._node(database))
        if self._forget.is_set():
            with database.writing() as session:
                queue.forget_enqueued(session)
            self._forget.clear()
        with database.reading() as session:
            waiting = queue.has_due_study(session, now)
            destinations = outbox.destinations_due(session, now)
        if waiting:
            with database.writing() as session:
                studies = queue.take_due_studies(session, now)
            self._send_studies(database, studies)
        for destination in destinations:
            if time.monotonic() - self._delivered_at.get(destination, -1e9) > _DELIVER_AGAIN_SECONDS:
                self._delivered_at[destination] = time.monotonic()
                self._send(DELIVER_TASK, destination)

    def _node(self, database: Database) -> Node:
        return Node(settings=self._settings, database=database)

    def _send_studies(self, database: Database, studies: Sequence[str]) -> None:
        for number, study_instance_uid in enumerate(studies):
            try:
                self._send(READ_TASK, study_instance_uid)
            except Exception:
                with database.writing() as session:
                    queue.forget_enqueued(session, studies[number:])
                raise

    def _send(self, task: str, argument: str) -> None:
        self._app.send_task(task, (argument,), retry=False)
