from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_node.receive.received import AssociationSummary, ReceivedInstance
from ich_node.receive.spool import SpooledObject
from ich_node.receive.waiting import HandedOn, Patience, WaitingLine
from ich_node.study import Instance, StudyHeader

NEVER_S = 1000.0

END = AssociationSummary(
    calling_ae_title="CT01",
    peer_host="127.0.0.1",
    released=True,
    series_instance_uids=(),
    stored=0,
    refused=0,
    unrecorded=0,
    ended_at=datetime.now(UTC),
)
OBJECT = ReceivedInstance(
    spooled=SpooledObject(file_name="", path=Path(), size_bytes=1, content_hash=""),
    instance=Instance(
        path=Path(),
        sop_instance_uid="1.1",
        sop_class_uid="1.2",
        transfer_syntax_uid="1.3",
        series_instance_uid="1.4",
        study_instance_uid="1.5",
    ),
    study=StudyHeader(study_instance_uid="1.5"),
    source_ae_title="CT01",
    received_at=datetime.now(UTC),
)


def one(sender: int, number: int) -> ReceivedInstance:
    return replace(OBJECT, association_id=f"{sender} {number}")


def drain(line: WaitingLine) -> list[list[HandedOn]]:
    batches = []
    while batch := line.take():
        batches.append(batch)
        line.done()
    return batches


def test_whoever_comes_to_a_full_line_waits() -> None:
    line = WaitingLine(length=3, batch_size=10, linger_s=0.0)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(lambda: [line.join(one(0, n)) for n in range(50)] and line.close())
        batches = drain(line)
        joining.result(30)
    assert max(map(len, batches)) <= 3
    assert [waiting for batch in batches for waiting in batch] == [one(0, n) for n in range(50)]


def test_a_full_line_lets_no_fourth_in() -> None:
    line = WaitingLine(length=3, linger_s=0.0)
    for n in range(3):
        line.join(one(0, n))
    with ThreadPoolExecutor(1) as pool:
        fourth = pool.submit(line.join, one(0, 3))
        assert not fourth.done()
        assert line.take() == [one(0, n) for n in range(3)]
        fourth.result(30)
    assert line.take() == [one(0, 3)]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4))
def test_the_order_of_each_sender_is_kept(length: int, batch_size: int, senders: int) -> None:
    line = WaitingLine(length=length, batch_size=batch_size, linger_s=0.0)
    with ThreadPoolExecutor(senders + 1) as pool:
        taken = pool.submit(drain, line)
        joined = [
            pool.submit(lambda who=who: [line.join(one(who, n)) for n in range(30)]) for who in range(senders)
        ]
        for sender in joined:
            sender.result(30)
        line.close()
        batches = taken.result(30)
    everything = [waiting for batch in batches for waiting in batch]
    for who in range(senders):
        mine = [w for w in everything if isinstance(w, ReceivedInstance) and w.association_id[0] == str(who)]
        assert mine == [one(who, n) for n in range(30)]
    assert len(everything) == 30 * senders
    assert max(map(len, batches)) <= batch_size


def test_nobody_lingers_when_an_association_has_ended() -> None:
    line = WaitingLine(linger_s=NEVER_S)
    line.join(one(0, 1))
    line.join(END)
    assert line.take() == [one(0, 1), END]


def test_nobody_lingers_with_a_whole_batch() -> None:
    line = WaitingLine(batch_size=2, linger_s=NEVER_S)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(line.take)
        for n in range(2):
            line.join(one(0, n))
        assert taken.result(30) == [one(0, 0), one(0, 1)]


def test_flushing_ends_when_what_was_taken_is_dealt_with() -> None:
    line = WaitingLine(linger_s=NEVER_S)
    line.join(one(0, 1))
    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(line.flush)
        assert line.take() == [one(0, 1)]
        assert not flushed.done()
        line.done()
        flushed.result(30)
    line.flush()  # of nothing


def test_closing_lets_nobody_in_and_gives_out_what_waits() -> None:
    line = WaitingLine(length=1, linger_s=NEVER_S)
    line.join(one(0, 1))
    started = threading.Event()

    def join() -> None:
        started.set()
        line.join(one(0, 2))

    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(join)
        assert started.wait(30)
        line.close()
        with pytest.raises(RuntimeError, match="no objects are taken"):
            blocked.result(30)
    assert drain(line) == [[one(0, 1)]]


def test_pauses_grow_and_end() -> None:
    patience = Patience(shortest_s=100.0, longest_s=300.0)
    assert not patience.has_failed
    assert not patience.is_pausing
    patience.begin()
    assert patience.has_failed
    assert patience.is_pausing
    patience.begin()
    patience.lengthen()
    assert patience._pause_s == 200.0
    patience.lengthen()
    assert patience._pause_s == 300.0
    patience.end()
    assert not patience.has_failed
    assert not patience.is_pausing
    patience = Patience(shortest_s=1e-9)
    patience.begin()
    while patience.is_pausing:
        pass
    assert patience.has_failed
