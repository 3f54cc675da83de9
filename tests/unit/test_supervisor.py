from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ich_node.cli.supervisor import Part, Supervisor
from ich_node.errors import ConfigurationError, TransientError

SLEEP = "import time; time.sleep(600)"


def part(name: str, code: str, **extra: Callable[[], bool]) -> Part:
    return Part(name=name, command=(sys.executable, "-c", code), **extra)


def writes_pid(path: Path) -> str:
    return f"import os, pathlib; pathlib.Path({str(path)!r}).open('a').write(f'{{os.getpid()}}\\n'); {SLEEP}"


def pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_parts_start_in_order_and_all_end(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    order: list[bool] = []

    def ready() -> bool:
        order.append(second.exists())
        return bool(pids(first))

    supervisor = Supervisor(
        [part("a", writes_pid(first), ready=ready), part("b", writes_pid(second))], os.environ
    )
    supervisor.run(lambda: (wait_until(lambda: pids(second)), supervisor.request_stop())[-1])
    assert not any(order), "the second part started before the first was ready"
    assert not any(is_running(pid) for pid in pids(first) + pids(second))


def test_killed_part_starts_again(tmp_path: Path) -> None:
    marker = tmp_path / "pids"
    supervisor = Supervisor([part("a", writes_pid(marker))], os.environ)

    def kill_then_stop() -> None:
        wait_until(lambda: pids(marker))
        os.kill(pids(marker)[0], 9)
        wait_until(lambda: len(pids(marker)) == 2)
        supervisor.request_stop()

    thread = threading.Thread(target=kill_then_stop)
    supervisor.run(thread.start)
    thread.join()
    assert len(set(pids(marker))) == 2


def test_part_that_refuses_to_start_ends_everything(tmp_path: Path) -> None:
    marker = tmp_path / "pids"
    parts = [
        part("a", writes_pid(marker), ready=lambda: bool(pids(marker))),
        part("b", "exit(2)", ready=lambda: False),
    ]
    with pytest.raises(ConfigurationError, match=r"the b did not start \(exit status 2\)"):
        Supervisor(parts, os.environ).run()
    assert not any(is_running(pid) for pid in pids(marker))


def test_part_that_never_answers_is_named() -> None:
    with pytest.raises(TransientError, match="the a did not answer within 0 s"):
        Supervisor([part("a", SLEEP, ready=lambda: False)], os.environ).run(ready_timeout_s=0.2)
