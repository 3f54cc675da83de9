"""The storage servers that are compared, each as a process of its own, and the senders that they are measured with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from ich_node.settings import SQLITE_FILE
from tests.benchmarks.process_tree import ProcessTree

AE_TITLE = "ICH_NODE"
_LARGEST_PDU = 131072
"""The most that DCMTK sends and takes; it and Orthanc ask for 16384 unless told otherwise, and are slower so."""
_HOST = "127.0.0.1"
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_ROWS_SECONDS = 300.0
_POLL_SECONDS = 0.02
_SENDER_SECONDS = 3600.0


class MeasurementFailed(Exception):
    """A sender failed, an object is missing, or a server did not start or end: there is no number to report."""


class Receiver(ABC):
    """A storage server from ``with`` to its end, answering and idle when the block begins.

    Parameters
    ----------
    folder
        Empty or absent; all that it stores goes below.
    nagle
        Whether DCMTK, and what is made from it, leaves Nagle's algorithm on.
    """

    label: ClassVar[str]
    """In the tables."""
    program: ClassVar[str]
    """Name or path; where it is not installed there is nothing to measure."""

    def __init__(self, folder: Path, *, nagle: bool = False) -> None:
        self.folder = folder
        self.port = _free_port()
        self._nagle = nagle
        self._log = folder / "log"
        self.environ: dict[str, str] = {}
        """What its environment has beyond ours."""
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it can be started."""
        return is_installed(cls.program)

    @abstractmethod
    def command(self) -> list[str]:
        """Write what it needs below its folder and give the command that starts it."""

    @abstractmethod
    def stored_objects(self) -> int:
        """Count the objects that are there."""

    def wait_for_rows(self, count: int) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait until so many objects are in its database, where that may come after the sender's success."""

    @property
    def processes(self) -> ProcessTree:
        """It and all that it has started."""
        assert self._process is not None
        return ProcessTree(self._process.pid)

    def __enter__(self) -> Self:
        """Start it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self.command()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=_environ(nagle=self._nagle) | self.environ,
                start_new_session=True,
            )
        try:
            _wait_until(self._answers, f"{self.label} answers", _START_SECONDS)
            self.processes.wait_until_idle()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._stop()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise MeasurementFailed(
                f"{self.label} has ended:\n{self._log.read_text(errors='replace')[-2000:]}"
            )
        command = ["echoscu", "-q", "-to", "5", "-aec", AE_TITLE, _HOST, str(self.port)]
        silent = subprocess.DEVNULL
        echo = subprocess.run(command, env=_environ(nagle=False), stdout=silent, stderr=silent, check=False)
        return echo.returncode == 0

    def _stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise MeasurementFailed(f"{self.label} did not end {_STOP_SECONDS:.0f} s after SIGTERM") from None
        with suppress(ProcessLookupError):  # nothing of it may live on into the next measurement
            os.killpg(self._process.pid, signal.SIGKILL)


class Ours(Receiver):
    """``ich-node receiver`` with default settings, but for its place and a disk that may be full."""

    label = "ich_node"
    program = sys.executable

    @property
    def data_dir(self) -> Path:
        """All state of the node."""
        return self.folder / "data"

    def command(self) -> list[str]:
        """Write the settings; the command makes its database."""
        settings = self.folder / "ich-node.toml"
        settings.write_text(
            f"data_dir = {json.dumps(str(self.data_dir))}\n"
            f'[receiver]\nport = {self.port}\nae_title = "{AE_TITLE}"\n[disk]\nmin_free_gib = 0\n'
        )
        return [sys.executable, "-m", "ich_node", "--config", str(settings), "receiver"]

    def stored_objects(self) -> int:
        """Count the files of the spool."""
        return _count_files(self.data_dir / "spool", "*.dcm")

    def wait_for_rows(self, count: int) -> None:
        """Wait for the rows of the received objects."""
        url = f"file:{self.data_dir / SQLITE_FILE}?mode=ro"
        with closing(sqlite3.connect(url, uri=True, timeout=30)) as database:
            _wait_until(
                lambda: database.execute("SELECT count(*) FROM instance").fetchone()[0] >= count,
                f"{count} objects have rows",
                _ROWS_SECONDS,
            )


class Storescp(Receiver):
    """DCMTK's ``storescp``, bit-preserving: one process that takes one association after the other."""

    label = "storescp"
    program = "storescp"
    options: ClassVar[tuple[str, ...]] = ()

    def command(self) -> list[str]:
        """Make the folder of its files."""
        objects = self.folder / "objects"
        objects.mkdir()
        return ["storescp", "+B", *self.options, "-od", str(objects), str(self.port)]

    def stored_objects(self) -> int:
        """Count its files."""
        return _count_files(self.folder / "objects", "*")


class ForkingStorescp(Storescp):
    """The same with a process for each association."""

    label = "storescp --fork"
    options = ("--fork",)


class LargePduStorescp(Storescp):
    """One process again, which asks for PDUs as large as this node does."""

    label = f"storescp --max-pdu {_LARGEST_PDU}"
    options = ("--max-pdu", str(_LARGEST_PDU))


class SynchronizingStorescp(ForkingStorescp):
    """The fastest of them with the promise of this node: it answers when an object and its name are on disk."""

    label = "storescp --fork, made to synchronize"
    options = ("--fork", "--max-pdu", str(_LARGEST_PDU))
    compiler = shutil.which("cc")

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it is, with a compiler for what is loaded into it."""
        return cls.compiler is not None and super().is_installed()

    def command(self) -> list[str]:
        """Compile what synchronizes."""
        source, library = Path(__file__).with_name("synchronizing.c"), self.folder / "synchronizing.so"
        assert self.compiler is not None
        compile_ = [self.compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
        subprocess.run(compile_, check=True)
        self.environ = {"LD_PRELOAD": str(library), "SYNCHRONIZED_FOLDER": str(self.folder / "objects")}
        return super().command()


class Orthanc(Receiver):
    """Orthanc without plugins, with the index that it brings, synchronizing each file as it does by default."""

    label = "Orthanc"
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    options: ClassVar[dict[str, int]] = {}

    def command(self) -> list[str]:
        """Write the settings."""
        self._http_port = _free_port()
        storage, settings = str(self.folder / "storage"), self.folder / "orthanc.json"
        settings.write_text(
            json.dumps(
                {
                    "StorageDirectory": storage,
                    "IndexDirectory": storage,
                    "SyncStorageArea": True,
                    "StorageCompression": False,
                    "StableAge": 3600,
                    "Plugins": [],
                    "DicomPort": self.port,
                    "HttpPort": self._http_port,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    **self.options,
                }
            )
        )
        return [self.program, str(settings)]

    def stored_objects(self) -> int:
        """Ask for the number of instances."""
        url = f"http://{_HOST}:{self._http_port}/statistics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(json.load(answer)["CountInstances"])


class LargePduOrthanc(Orthanc):
    """The same, asking for PDUs as large as this node does."""

    label = f"Orthanc, MaximumPduLength {_LARGEST_PDU}"
    options: ClassVar[dict[str, int]] = {"MaximumPduLength": _LARGEST_PDU}


RECEIVERS: dict[str, type[Receiver]] = {
    "ours": Ours,
    "storescp": Storescp,
    "storescp-fork": ForkingStorescp,
    "storescp-large-pdu": LargePduStorescp,
    "storescp-synchronizing": SynchronizingStorescp,
    "orthanc": Orthanc,
    "orthanc-large-pdu": LargePduOrthanc,
}
SENDING_PROGRAMS = ("storescu", "echoscu")


def is_installed(program: str) -> bool:
    """Whether a program can be run."""
    return shutil.which(program) is not None


def version(program: str) -> str:
    """What a program of DCMTK, or Orthanc, says of its version."""
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    first = output.splitlines()[0]  # "$dcmtk: storescp v3.6.7 2022-04-22 $", "/usr/sbin/Orthanc 1.10.1"
    return first.strip("$ ").removeprefix("dcmtk: ").rpartition("/")[2]


def send(port: int, what: Sequence[Sequence[str]], *, nagle: bool = False) -> float:
    """Run one ``storescu`` for each entry of ``what``, all at once, one association each.

    Parameters
    ----------
    port
        Of a receiver on this machine.
    what
        For each sender its options beyond those that all have, and its files or folder.
    nagle
        Whether the senders leave Nagle's algorithm on, as DCMTK from Debian does by default.

    Returns
    -------
    float
        Seconds from the first sender's start to the last one's end.

    Raises
    ------
    MeasurementFailed
        A sender did not send everything with success.
    """
    with ExitStack() as stack:
        senders, logs = [], []
        begin = time.perf_counter()
        for arguments in what:
            logs.append(stack.enter_context(tempfile.TemporaryFile()))
            options = ("--max-send-pdu", str(_LARGEST_PDU), "-aec", AE_TITLE)
            command = ["storescu", *options, *arguments[:-1], _HOST, str(port), arguments[-1]]
            environ = _environ(nagle=nagle)
            senders.append(subprocess.Popen(command, stdout=logs[-1], stderr=logs[-1], env=environ))
            stack.callback(_kill, senders[-1])
        codes = [sender.wait(_SENDER_SECONDS) for sender in senders]
        seconds = time.perf_counter() - begin
        for code, log in zip(codes, logs, strict=True):
            if code:
                log.seek(0)
                raise MeasurementFailed(f"storescu exits with {code}: {log.read().decode()[-2000:]}")
    return seconds


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _environ(*, nagle: bool) -> dict[str, str]:
    """Return this environment without settings of a node, and with DCMTK's word on Nagle's algorithm."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("ICH_NODE_")}
    return mine | {"TCP_NODELAY": "0" if nagle else "1"}


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as server:
        return int(server.getsockname()[1])


def _count_files(folder: Path, pattern: str) -> int:
    return sum(path.is_file() for path in folder.rglob(pattern))


def _wait_until(holds: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(_POLL_SECONDS)
