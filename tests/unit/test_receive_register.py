"""The table of open associations: its bounds, its sharing, and what becomes of the dead."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ich_node.receive.limits import Limits
from ich_node.receive.register import AssociationRegister

DEADLINE_S = 30.0


def register(everybody: int = 4, per_peer: int = 4) -> AssociationRegister:
    return AssociationRegister(Limits(max_associations=everybody, max_associations_per_peer=per_peer))


def test_so_many_may_be_open_and_no_more() -> None:
    table = register(3)
    places = [table.enter(f"CT{number}", "192.0.2.1") for number in range(3)]
    assert sorted(place for place in places if place is not None) == [0, 1, 2]
    assert table.enter("CT9", "192.0.2.9") is None
    assert table.count() == 3
    assert places[1] is not None
    table.leave(places[1])
    assert table.count() == 2
    assert table.enter("CT9", "192.0.2.9") == places[1]
    assert table.enter("CT9", "192.0.2.9") is None


def test_one_peer_may_have_so_many_of_them() -> None:
    table = register(10, per_peer=2)
    first = table.enter("CT1", "192.0.2.1")
    assert table.enter("CT1", "192.0.2.1") is not None
    assert table.enter("CT1", "192.0.2.1") is None
    assert table.enter("CT1", "192.0.2.2") is not None  # another device with the same AE title
    assert table.enter("CT2", "192.0.2.1") is not None  # another application on the same host
    assert first is not None
    table.leave(first)
    assert table.enter("CT1", "192.0.2.1") is not None
    assert table.enter("CT1", "192.0.2.1") is None
    assert table.count() == 4


def test_title_and_host_do_not_run_into_each_other() -> None:
    table = register(4, per_peer=1)
    assert table.enter("CT1", "1.2.3.4") is not None
    assert table.enter("CT", "11.2.3.4") is not None


def test_threads_that_enter_at_once_get_different_places() -> None:
    table = register(40, per_peer=40)
    places: list[int | None] = []
    start = threading.Barrier(8)

    def enter() -> None:
        start.wait()
        for _ in range(6):
            places.append(table.enter("CT1", "192.0.2.1"))

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [place for place in places if place is not None]
    assert sorted(taken) == list(range(40))
    assert len(places) - len(taken) == 8


_OTHER_PROCESS = """
import sys
from ich_node.receive.limits import Limits
from ich_node.receive.register import AssociationRegister
table = AssociationRegister(Limits(max_associations={everybody}, max_associations_per_peer={per_peer}),
                            {descriptor})
for line in sys.stdin:
    print(eval(line), flush=True)
"""


@contextmanager
def other_process(
    table: AssociationRegister, everybody: int, per_peer: int
) -> Iterator[Callable[[str], str]]:
    """A process that shares the table; what is called evaluates an expression in it."""
    code = _OTHER_PROCESS.format(everybody=everybody, per_peer=per_peer, descriptor=table.descriptor)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=(table.descriptor,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def ask(expression: str) -> str:
            if expression == "die":
                process.kill()
                process.wait(DEADLINE_S)
                return str(process.pid)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(expression + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield ask


def test_processes_share_it_and_the_places_of_a_dead_one_can_be_freed() -> None:
    table = register(4, per_peer=3)
    with other_process(table, 4, 3) as ask:
        assert table.enter("CT1", "192.0.2.1") == 0
        assert ask("table.enter('CT1', '192.0.2.1')") == "1"
        assert ask("table.enter('CT1', '192.0.2.1')") == "2"
        assert table.enter("CT1", "192.0.2.1") is None
        assert table.enter("CT2", "192.0.2.1") == 3
        assert ask("table.enter('CT3', '192.0.2.1')") == "None"
        other = int(ask("__import__('os').getpid()"))
        assert table.count_by_process() == {os.getpid(): 2, other: 2}
        assert ask("table.leave(2)") == "None"
        assert table.count() == 3
        assert int(ask("die")) == other
    assert table.count() == 3  # nobody has noticed yet
    table.release_all(other)
    assert table.count_by_process() == {os.getpid(): 2}
    assert table.enter("CT3", "192.0.2.1") == 1


def test_a_process_that_dies_with_the_lock_locks_nobody_out() -> None:
    table = register()
    with other_process(table, 4, 4) as ask:
        locked = "__import__('fcntl').lockf(table.descriptor, __import__('fcntl').LOCK_EX)"
        assert ask(locked) == "None"
        waiting = threading.Thread(target=table.enter, args=("CT1", "192.0.2.1"), daemon=True)
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        ask("die")
        waiting.join(DEADLINE_S)
    assert not waiting.is_alive()
    assert table.count() == 1


@pytest.mark.parametrize("number", [1, 500])
def test_the_table_is_as_long_as_the_limit(number: int) -> None:
    table = register(number, per_peer=number)
    assert all(table.enter("CT1", "192.0.2.1") is not None for _ in range(number))
    assert table.enter("CT1", "192.0.2.1") is None
