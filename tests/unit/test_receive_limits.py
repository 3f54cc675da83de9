from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from ich_node.receive.limits import AllowedPeer, is_allowed, is_valid_uid


@given(st.lists(st.integers(0, 10**30), min_size=2, max_size=20).map(lambda n: ".".join(map(str, n))))
def test_dotted_numbers_up_to_64_characters_are_valid(uid: str) -> None:
    assert is_valid_uid(uid) == (len(uid) <= 64)


def test_generated_uids_are_valid() -> None:
    assert is_valid_uid(generate_uid())
    assert is_valid_uid(generate_uid(prefix=None))


@pytest.mark.parametrize(
    "uid",
    [
        "",
        "1",
        "1.",
        ".1",
        "1..2",
        "1.02",
        "00.1",
        "1.2 ",
        "1.2\n",
        "1.2\0",
        "1.a",
        "../../../../tmp/evil",
        "1.²",
        "１.2",
    ],
)
def test_what_breaks_the_rules_is_not_valid(uid: str) -> None:
    assert not is_valid_uid(uid)


@given(st.text(max_size=70))
def test_a_valid_uid_is_digits_and_dots(text: str) -> None:
    assert not is_valid_uid(text) or set(text) <= set("0123456789.")


def test_a_peer_needs_both_ae_title_and_host() -> None:
    peers = [AllowedPeer(ae_title="CT1", host="10.0.0.1"), AllowedPeer(ae_title="CT2", host="10.0.0.2")]
    assert is_allowed(peers, "CT1", "10.0.0.1")
    assert is_allowed(peers, " CT2 ", "10.0.0.2")
    assert not is_allowed(peers, "CT1", "10.0.0.2")
    assert not is_allowed(peers, "CT3", "10.0.0.1")
    assert not is_allowed(peers, "ct1", "10.0.0.1")
    assert is_allowed([], "ANY", "10.9.9.9")
