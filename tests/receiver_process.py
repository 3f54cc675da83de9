"""``ich-node receiver`` in processes of its own, as an administrator starts it, watched from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ich_node.settings import SQLITE_FILE
from tests.bare_peer import BarePeer

HOST = "127.0.0.1"
AE_TITLE = "ICH_NODE"
START_S = 60.0
_PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError)


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Poll until ``holds`` gives something true; fail with ``what`` where it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not (result := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)
    return result


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Use:
    """What the receiver's processes hold."""

    resident_mib: float
    descriptors: int
    """Without those of files being written, and of the database, whose number depends on the moment."""
    threads: int


@dataclass
class ReceiverProcess:
    """A receiver that can be started, killed and started again on the same folder and port."""

    folder: Path
    port: int
    settings: str = ""
    """More of the configuration file, in TOML: keys of ``[receiver]`` first, then tables."""
    descriptor_limit: int | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def spool(self) -> Path:
        return self.data_dir / "spool"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self, *, wait: bool = True) -> Self:
        config = self.folder / "ich-node.toml"
        config.write_text(
            f"data_dir = {json.dumps(str(self.data_dir))}\n[receiver]\nport = {self.port}\n{self.settings}\n"
        )
        command = [sys.executable, "-m", "ich_node", "--config", str(config), "receiver"]
        if self.descriptor_limit is not None:
            command = ["prlimit", f"--nofile={self.descriptor_limit}", *command]
        ready = self.folder / "ready"
        ready.mkdir(exist_ok=True)
        (ready / "receiver").unlink(missing_ok=True)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("ICH_NODE_")}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**environ, "ICH_NODE_READY_FOLDER": str(ready), "OMP_NUM_THREADS": "1"},
            )
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        wait_until(
            lambda: (self.folder / "ready" / "receiver").exists() or self.pid_now() == 0,
            "the receiver is ready",
            START_S,
        )
        assert self.pid_now(), self.log[-3000:]

    def pid_now(self) -> int:
        """Process id of the one that listens, 0 where it has ended."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    def children(self) -> list[int]:
        """Process ids of those that receive."""
        found: list[int] = []
        with contextlib.suppress(*_GONE):
            for task in (_PROC / str(self.pid_now() or "absent") / "task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return found

    def processes(self) -> list[int]:
        return [pid for pid in (self.pid_now(), *self.children()) if pid]

    def kill(self, *pids: int) -> None:
        """Kill these, or all, and wait until they are gone."""
        victims = pids or tuple(self.processes())
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None and self.process.pid in victims:
            self.process.wait(START_S)
        wait_until(lambda: not any(map(is_running, victims)), "the killed have ended")

    def stop(self) -> int:
        """End it as a supervisor does; gives its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(START_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the receiver did not end:\n{self.log[-3000:]}") from None

    def objects(self) -> list[Path]:
        """The files of the spool that are whole."""
        return [path for path in self.spool.rglob("*.dcm") if path.parent.name != "incoming"]

    def unfinished(self) -> list[Path]:
        """The files of the spool that are being written."""
        return list((self.spool / "incoming").iterdir())

    def rows(self) -> list[dict[str, Any]]:
        """The rows of received objects."""
        with closing(
            sqlite3.connect(f"file:{self.data_dir / SQLITE_FILE}?mode=ro", uri=True, timeout=30)
        ) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute("SELECT * FROM instance")]

    def wait_for_rows(self, count: int, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Wait until that many objects have rows."""
        wait_until(lambda: len(self.rows()) >= count, f"{count} objects have rows", timeout_s)
        return self.rows()

    def peer(self, request: bytes = b"") -> BarePeer:
        """A bare peer whose association was accepted."""
        return BarePeer.associated(self.port, request)

    def use(self) -> Use:
        """What its processes hold now."""
        resident, descriptors, threads = 0, 0, 0
        for pid in self.processes():
            status = _status(pid)
            resident += int(status["VmRSS"].split()[0])
            threads += int(status["Threads"])
            descriptors += _descriptors(pid)
        return Use(resident_mib=resident / 1024, descriptors=descriptors, threads=threads)

    def forget_peaks(self) -> None:
        """Let `peak_mib` count from now on."""
        for pid in self.processes():
            (_PROC / str(pid) / "clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """The largest resident memory of each process, summed."""
        return sum(int(_status(pid)["VmHWM"].split()[0]) for pid in self.processes()) / 1024


@contextmanager
def running_receiver(folder: Path, settings: str = "", **options: Any) -> Iterator[ReceiverProcess]:
    """A receiver with these settings; free space is not asked for unless they say so."""
    if "[disk]" not in settings:
        settings += "\n[disk]\nmin_free_gib = 0\n"
    folder.mkdir(parents=True, exist_ok=True)
    receiver = ReceiverProcess(folder=folder, port=free_port(), settings=settings, **options)
    try:
        yield receiver.start()
    finally:
        if receiver.process is not None:
            receiver.stop()


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return _status(pid)["State"][0] not in "ZX"
    except _GONE:
        return False


def _status(pid: int) -> dict[str, str]:
    lines = (_PROC / str(pid) / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _descriptors(pid: int) -> int:
    count = 0
    for entry in (_PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(*_GONE):
            target = os.readlink(entry)  # noqa: PTH115 - of a link to no path
            count += not target.endswith((".part", ".sqlite", "-wal", "-shm", "-journal"))
    return count
