"""Runs the node's parts as child processes: starts them, restarts one that dies, stops them all."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ich_node.errors import ConfigurationError, TransientError

logger = logging.getLogger(__name__)

_RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0)
_HEALTHY_SECONDS = 60.0
_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


_WRONG_SETTINGS = 2
"""Exit status."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One child process."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[], bool] = field(default=lambda: True)
    """Whether the part answers; parts start in order, each when the one before it is ready."""


@dataclass(kw_only=True)
class _Child:
    part: Part
    process: subprocess.Popen[bytes]
    started: float
    deaths: int = 0
    restart_at: float | None = None


class Supervisor:
    """Keeps parts running until it is told to stop.

    Parameters
    ----------
    parts
        In start order; they are stopped in reverse order.
    environ
        Environment of the children.
    """

    def __init__(self, parts: Sequence[Part], environ: Mapping[str, str]) -> None:
        self._parts = parts
        self._environ = dict(environ)
        self._children: list[_Child] = []
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Have `run` stop all parts and return; safe in a signal handler."""
        self._stop.set()

    def run(self, on_ready: Callable[[], None] = lambda: None, *, ready_timeout_s: float = 60.0) -> None:
        """Start all parts, call ``on_ready``, keep them running until `request_stop`, stop them.

        Raises
        ------
        ConfigurationError
            A part refuses its settings.
        TransientError
            A part does not start, or is not ready in time.
        """
        try:
            for part in self._parts:
                if not self._stop.is_set():
                    self._start(part, ready_timeout_s)
            if not self._stop.is_set():
                on_ready()
            while not self._stop.wait(0.2):
                for child in self._children:
                    self._watch(child)
        finally:
            self._stop_all()

    def _start(self, part: Part, ready_timeout_s: float) -> None:
        child = _Child(part=part, process=self._spawn(part), started=time.monotonic())
        self._children.append(child)
        deadline = time.monotonic() + ready_timeout_s
        while not self._stop.is_set() and not part.ready():
            code = child.process.poll()
            if code is not None:
                # Only settings are nothing that another try could mend (see the service's RestartPreventExitStatus).
                refused = ConfigurationError if code == _WRONG_SETTINGS else TransientError
                raise refused(f"the {part.name} did not start (exit status {code}); its message is above")
            if time.monotonic() > deadline:
                raise TransientError(f"the {part.name} did not answer within {ready_timeout_s:.0f} s")
            self._stop.wait(0.05)

    def _spawn(self, part: Part) -> subprocess.Popen[bytes]:
        logger.info("starting the %s", part.name)
        # A process group of its own keeps the terminal's Ctrl-C from reaching parts out of order.
        return subprocess.Popen(
            part.command,
            env=self._environ,
            process_group=0,
            preexec_fn=_die_with_parent,
            stdin=subprocess.DEVNULL,
        )

    def _watch(self, child: _Child) -> None:
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                child.process, child.started, child.restart_at = self._spawn(child.part), now, None
            return
        code = child.process.poll()
        if code is None:
            return
        child.deaths = 1 if now - child.started > _HEALTHY_SECONDS else child.deaths + 1
        wait = _RESTART_SECONDS[min(child.deaths, len(_RESTART_SECONDS)) - 1]
        child.restart_at = now + wait
        logger.error("the %s ended with status %s; it starts again in %.1f s", child.part.name, code, wait)

    def _stop_all(self) -> None:
        for child in reversed(self._children):
            _stop(child.process)


def python_command(*arguments: str) -> tuple[str, ...]:
    """A command that runs this package's command line in this interpreter."""
    # -P: nothing that lies in the current folder is taken for a module.
    return (sys.executable, "-P", "-m", "ich_node", *arguments)


def stop_on_signals(request_stop: Callable[[], None]) -> None:
    """End cleanly on Ctrl-C and on SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: request_stop())


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        logger.warning("process %d does not end; killing it", process.pid)
        _kill_group(process)
        process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def _die_with_parent() -> None:
    # A supervisor that was killed must not leave parts behind that hold its ports.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
