"""What a server and all processes that it has started use: processor time and resident memory, from /proc."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.2
_IDLE_WINDOW_SECONDS = 0.4
_IDLE_CPU_SECONDS = 0.03
_FORGET_PEAK = "5"
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Resident memory of several processes. The sum counts a page that processes share once for each."""

    sum_mib: float
    largest_mib: float
    processes: int


@dataclass(frozen=True, kw_only=True)
class _Process:
    pid: int
    parent: int
    session: int
    cpu_seconds: float
    """In user and system mode, with that of the children that it has waited for."""


class ProcessTree:
    """A process that leads a session of its own, and everything that it has started.

    Parameters
    ----------
    root
        Process id; started with ``start_new_session``.
    """

    def __init__(self, root: int) -> None:
        self._root = root

    def cpu_seconds(self) -> float:
        """User and system time so far, of ended children too once they were waited for."""
        return sum(process.cpu_seconds for process in self._processes())

    def resident(self) -> Memory:
        """Resident set sizes (VmRSS) now."""
        return _memory(self._status("VmRSS"))

    def forget_peaks(self) -> None:
        """Let peaks count from now on."""
        for process in self._processes():
            with suppress(*_GONE):
                (_PROC / str(process.pid) / "clear_refs").write_text(_FORGET_PEAK)

    @contextmanager
    def peaks(self) -> Iterator[list[Memory]]:
        """Give a list that holds, at the end of the block, the peaks of each process that ran during it.

        A peak is the largest resident set (VmHWM) since the start of the process or `forget_peaks`. It is
        looked at five times a second: that of a process that ends in between is as old as the last look.
        """
        result: list[Memory] = []
        seen: dict[int, float] = {}
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_SAMPLE_SECONDS):
                seen.update(self._status("VmHWM"))

        watcher = threading.Thread(target=watch, name="peaks")
        watcher.start()
        try:
            yield result
        finally:
            done.set()
            watcher.join()
        seen.update(self._status("VmHWM"))
        result.append(_memory(seen))

    def wait_until_idle(self, timeout_s: float = 20.0) -> None:
        """Wait until next to no processor time passes: what starts in several processes is then complete."""
        deadline = time.monotonic() + timeout_s
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(_IDLE_WINDOW_SECONDS)
            now = self.cpu_seconds()
            if now - before < _IDLE_CPU_SECONDS:
                return
            before = now
        raise TimeoutError(f"the server is still busy {timeout_s:.0f} s after it has answered first")

    def _processes(self) -> list[_Process]:
        everything = [p for entry in _PROC.iterdir() if entry.name.isdigit() and (p := _process(entry))]
        members = {p.pid for p in everything if self._root in (p.pid, p.session)}
        # A part may have made a session of its own: its parent is then still one of ours.
        while children := {p.pid for p in everything if p.parent in members} - members:
            members |= children
        return [p for p in everything if p.pid in members]

    def _status(self, field: str) -> dict[int, float]:
        """One memory field of each process, MiB; processes that have just ended have none."""
        found: dict[int, float] = {}
        for process in self._processes():
            with suppress(*_GONE):
                for line in (_PROC / str(process.pid) / "status").read_text().splitlines():
                    if line.startswith(f"{field}:"):
                        found[process.pid] = int(line.split()[1]) / 1024
        return found


def _memory(mib_by_pid: dict[int, float]) -> Memory:
    mib = mib_by_pid.values()
    return Memory(sum_mib=sum(mib), largest_mib=max(mib, default=0.0), processes=len(mib_by_pid))


def _process(entry: Path) -> _Process | None:
    try:
        text = (entry / "stat").read_text()
    except _GONE:
        return None
    # proc(5): the name, in parentheses, may hold anything; the state, field 3, follows it.
    fields = text[text.rindex(")") + 2 :].split()
    return _Process(
        pid=int(entry.name),
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_seconds=sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_SECOND,
    )
