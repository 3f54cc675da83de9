"""One life of the decoder process: from its start to its end, whatever ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ich_node.decoding.messages import receive_message, send_message

COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "ich_node.decoding.server")
START_SECONDS = 60.0

_END_SECONDS = 2.0
_ENVIRONMENT = {
    # Thread pools would count as memory of the codecs, and nothing there uses them.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
    # Memory of one frame is kept for the next: taking it anew from the kernel costs a millisecond a slice (glibc).
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
_INHERITED = frozenset(
    ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "VIRTUAL_ENV")
)
"""Of the worker's environment, beside Python's own variables; the rest may hold passwords."""


def _environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith("PYTHON")}
    return inherited | _ENVIRONMENT


class Died(Exception):
    """The process ended, or stopped answering; the text says how."""


class Life:
    """A started process and the connection to it."""

    _process: subprocess.Popen[bytes]

    def __init__(self, memory_bytes: int) -> None:
        self._connection, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                (*COMMAND, str(lifeline), str(memory_bytes)),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                pass_fds=(lifeline,),
                env=_environment(),
                start_new_session=True,  # Ctrl-C ends the study's reading in good order, and that needs the decoder
            )
        except BaseException:
            self._connection.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        self._is_ready = False
        self.has_block = False
        """Whether the current shared block has been sent."""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait for its imports.

        Raises
        ------
        Died
            It did not come up.
        """
        if not self._is_ready:
            self.receive(START_SECONDS)
            self._is_ready = True

    def send(self, message: dict[str, Any], descriptors: Sequence[int], seconds: float) -> None:
        """Send a request.

        Raises
        ------
        Died
        """
        self._connection.settimeout(seconds)
        try:
            send_message(self._connection, message, descriptors)
        except OSError as error:
            raise Died(self._how(error, seconds)) from error

    def receive(self, seconds: float) -> dict[str, Any]:
        """Receive an answer.

        Raises
        ------
        Died
        """
        self._connection.settimeout(seconds)
        try:
            return receive_message(self._connection)[0]
        except (OSError, EOFError, ValueError) as error:
            raise Died(self._how(error, seconds)) from error

    def end(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._close()
        self._process.wait()

    def forget(self) -> None:
        """Let go of it in a forked process: it is the parent's."""
        self._close()
        self._process.returncode = 0  # it is no child of this process, and shall not be missed here

    def _close(self) -> None:
        self._connection.close()
        os.close(self._lifeline)

    def _how(self, error: Exception, seconds: float) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer for {seconds:g} s"
        if isinstance(error, ValueError):
            return "it does not answer as it should"
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.returncode
        if code is None:
            return "it does not answer as it should"
        if code >= 0:
            return f"exit status {code}"
        return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
