"""How much each peer has brought in the last 24 hours."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from ich_node.receive.ledger import PeerLedger

HOUR_S = 3600.0


class Clock:
    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def test_who_brings_more_than_its_share_has_spent_it() -> None:
    ledger = PeerLedger(1000, Clock())
    assert ledger.spent() == frozenset()
    ledger.add("CT1", 600)
    ledger.add("CT2", 1000)
    assert ledger.spent() == frozenset()  # all of it, and not more
    ledger.add("CT1", 401)
    assert ledger.spent() == {"CT1"}
    ledger.add("CT2", 1)
    assert ledger.spent() == {"CT1", "CT2"}


def test_after_a_day_it_may_bring_again() -> None:
    clock = Clock()
    ledger = PeerLedger(1000, clock)
    ledger.add("CT1", 800)
    clock.now_s += 12 * HOUR_S
    ledger.add("CT1", 800)
    assert ledger.spent() == {"CT1"}
    clock.now_s += 11 * HOUR_S
    assert ledger.spent() == {"CT1"}
    clock.now_s += HOUR_S
    assert ledger.spent() == frozenset()
    ledger.add("CT1", 201)
    assert ledger.spent() == {"CT1"}


def test_nothing_is_kept_of_a_peer_that_has_been_silent_for_a_day() -> None:
    clock = Clock()
    ledger = PeerLedger(1000, clock)
    for number in range(50):
        ledger.add(f"CT{number}", 1)
    clock.now_s += 25 * HOUR_S
    ledger.spent()
    assert ledger._hours == {}


@given(st.lists(st.tuples(st.floats(0, 5 * HOUR_S), st.sampled_from("AB"), st.integers(0, 500)), max_size=40))
def test_it_never_forgets_a_day_early_nor_keeps_two_days(brought: list[tuple[float, str, int]]) -> None:
    clock = Clock(0.0)
    ledger = PeerLedger(1000, clock)
    notes: list[tuple[float, str, int]] = []
    for pause_s, ae_title, size_bytes in brought:
        clock.now_s += pause_s
        ledger.add(ae_title, size_bytes)
        notes.append((clock.now_s, ae_title, size_bytes))
        spent = ledger.spent()
        for peer in "AB":
            surely = sum(s for at, who, s in notes if who == peer and at > clock.now_s - 23 * HOUR_S)
            at_most = sum(s for at, who, s in notes if who == peer and at > clock.now_s - 24 * HOUR_S)
            assert (surely <= 1000) or peer in spent
            assert peer not in spent or at_most > 1000


def test_threads_may_use_it_at_once() -> None:
    ledger = PeerLedger(7999, Clock())

    def bring() -> None:
        for _ in range(1000):
            ledger.add("CT1", 1)
            ledger.spent()

    threads = [threading.Thread(target=bring) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.spent() == {"CT1"}
