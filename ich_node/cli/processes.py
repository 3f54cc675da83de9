"""``up`` and the parts that it runs, each as a process of its own."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ich_node.broker import prepare_broker, resolve_broker
from ich_node.cli.settings import Loader, console, settings_of
from ich_node.cli.supervisor import Part, Supervisor, python_command, stop_on_signals
from ich_node.database.engine import Database
from ich_node.errors import ConfigurationError
from ich_node.settings import Settings

logger = logging.getLogger(__name__)

_READY_FOLDER = "ICH_NODE_READY_FOLDER"
_REQUEST_GRACE_SECONDS = 5


@click.command()
@click.pass_obj
def up(load: Loader) -> None:
    """Run everything on this machine until Ctrl-C: broker, receiver, workers, worklist page."""
    settings = settings_of(load)
    _make_data_dir(settings)
    with _only_one(settings):
        _prepare_database(settings)
        supervisor = Supervisor(_parts(settings), _environ(settings, load))
        stop_on_signals(supervisor.request_stop)
        supervisor.run(lambda: _say_ready(settings))
    click.echo("ich-node is down.", err=True)


@click.command()
@click.pass_obj
def receiver(load: Loader) -> None:
    """Run the DICOM receiver alone."""
    from ich_node.reception import open_receiver  # pynetdicom is for this process only

    settings = settings_of(load)
    database = _current_database(settings)
    stop = threading.Event()
    stop_on_signals(stop.set)
    with open_receiver(settings, database):
        _announce("receiver")
        while not stop.wait(1.0):
            pass


@click.command()
@click.option("--queue", type=click.Choice(["read", "deliver"]), help="One queue only; without it both.")
@click.pass_obj
def worker(load: Loader, queue: str | None) -> None:
    """Run the workers alone: one reads studies, one delivers results and reconciles."""
    settings = settings_of(load)
    if settings.worker.processes == 0 and queue != "deliver":
        raise ConfigurationError("worker.processes is 0: no worker that reads is wanted on this host")
    _current_database(settings).dispose()
    if queue is None:
        supervisor = Supervisor(_worker_parts(settings), _environ(settings, load))
        stop_on_signals(supervisor.request_stop)
        supervisor.run()
        return
    from ich_node.tasks import Queue, run_worker

    prepare_broker(resolve_broker(settings), settings)
    run_worker(settings, Queue(queue), on_ready=lambda: _announce(f"worker-{queue}"))


@click.command()
@click.pass_obj
def web(load: Loader) -> None:
    """Run the worklist page alone."""
    import uvicorn

    from ich_node.purge_job import spool_space
    from ich_node.store_desk import open_store_desk
    from ich_node.web import create_app
    from ich_node.web.audit_export import exporting_accesses
    from ich_node.web.events import PageServer

    settings = settings_of(load)
    secured = _https(settings)
    database = _current_database(settings)
    free_space = spool_space(settings)
    with (
        open_store_desk(settings, database, free_space) as desk,
        exporting_accesses(database, settings.web.audit),
    ):
        config = uvicorn.Config(
            create_app(settings, database, desk, free_space=free_space),
            host=settings.web.host,
            port=settings.web.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            # What a header says of who calls counts from a proxy that the settings name, and from nobody else.
            proxy_headers=bool(settings.web.proxy.addresses),
            forwarded_allow_ips=list(settings.web.proxy.addresses),
            ssl_context_factory=secured,
            timeout_graceful_shutdown=_REQUEST_GRACE_SECONDS,
        )
        server = PageServer(config)
        threading.Thread(target=_announce_when, args=("web", lambda: server.started), daemon=True).start()
        stop_on_signals(lambda: None)  # uvicorn raises a signal that ended it once more
        server.run()


def _https(settings: Settings) -> Callable[..., ssl.SSLContext] | None:
    if not settings.web.tls.certificate:
        return None
    from ich_node.web.certificate import WebCertificate

    certificate = WebCertificate(settings.web.tls)
    return lambda *_: certificate.context()


def _parts(settings: Settings) -> list[Part]:
    broker = resolve_broker(settings)
    prepare_broker(broker, settings)
    if broker.notice:
        click.echo(f"note: {broker.notice}", err=True)
    parts = []
    if broker.command is not None and broker.socket is not None:
        path = str(broker.socket)
        parts.append(Part(name="broker", command=broker.command, ready=lambda: _answers(path)))
    return [
        *parts,
        _part("receiver", settings, "receiver"),
        _part("web", settings, "web"),
        *_worker_parts(settings),
    ]


def _worker_parts(settings: Settings) -> list[Part]:
    if settings.worker.processes == 0:
        return []
    return [
        _part("worker-deliver", settings, "worker", "--queue", "deliver"),
        _part("worker-read", settings, "worker", "--queue", "read"),
    ]


def _part(name: str, settings: Settings, *arguments: str) -> Part:
    marker = _ready_folder(settings) / name
    marker.unlink(missing_ok=True)
    return Part(name=name, command=python_command(*arguments), ready=marker.exists)


def _environ(settings: Settings, load: Loader) -> dict[str, str]:
    folder = _ready_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, _READY_FOLDER: str(folder), "ICH_NODE_DATA_DIR": str(settings.data_dir)}
    if load.config_file is not None:
        environ["ICH_NODE_CONFIG"] = str(load.config_file.resolve())
    return environ


def _ready_folder(settings: Settings) -> Path:
    return settings.data_dir / "run"


def _announce(part: str) -> None:
    """Tell a supervisor that this part answers now."""
    if folder := os.environ.get(_READY_FOLDER):
        (Path(folder) / part).write_text(str(os.getpid()))


def _announce_when(part: str, ready: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not ready():
        pause.wait(0.05)
    _announce(part)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def _prepare_database(settings: Settings) -> None:
    database = Database(settings.database_url)
    if settings.database.url:  # another host may be using it: upgrading is a person's decision
        database.require_current()
    else:
        database.upgrade()
    database.dispose()


def _make_data_dir(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"data_dir: cannot make {settings.data_dir}: {error.strerror}") from None
    if not os.access(settings.data_dir, os.W_OK | os.X_OK):
        raise ConfigurationError(f"data_dir: {settings.data_dir} cannot be written by this user")


def _current_database(settings: Settings) -> Database:
    _make_data_dir(settings)
    database = Database(settings.database_url)
    if not settings.database.url and database.revision()[0] is None:
        database.upgrade()
    database.require_current()
    return database


def _say_ready(settings: Settings) -> None:
    receiver, web = settings.receiver, settings.web
    to = ", ".join(f"{p.name} ({p.ae_title} at {p.host}:{p.port})" for p in settings.pacs)
    console.print("[bold]ich-node is up.[/bold] Ctrl-C ends it.")
    console.print(f"  images in    {receiver.ae_title} at {receiver.host}:{receiver.port}")
    console.print(f"  worklist     {web.url}", markup=False)
    console.print(f"  results to   {to or 'nowhere: no [[pacs]] is set'}", markup=False)
    console.print(f"  state in     {settings.data_dir}", markup=False)
    if settings.worker.processes == 0:
        console.print(
            "  no worker    worker.processes is 0: another host must read and deliver", markup=False
        )


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    with (settings.data_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(f"another 'ich-node up' runs on {settings.data_dir}") from None
        yield
