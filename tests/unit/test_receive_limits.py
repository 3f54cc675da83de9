from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from ich_node.receive.limits import AllowedPeer, find_peer, is_valid_uid, plain_address


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
    assert find_peer(peers, "CT1", "10.0.0.1") is peers[0]
    assert find_peer(peers, " CT2 ", "10.0.0.2") is peers[1]
    assert find_peer(peers, "CT1", "10.0.0.2") is None
    assert find_peer(peers, "CT3", "10.0.0.1") is None
    assert find_peer(peers, "ct1", "10.0.0.1") is None
    assert find_peer([], "CT1", "10.0.0.1") is None


@pytest.mark.parametrize(
    ("listed", "calls_from"),
    [
        ("192.0.2.7", "::ffff:192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:0db8:0000:0000:0000:0000:0000:0001"),
        ("2001:DB8::A", "2001:db8::a"),
    ],
)
def test_one_address_may_be_written_in_several_ways(listed: str, calls_from: str) -> None:
    peer = AllowedPeer(ae_title="CT1", host=listed)
    assert find_peer([peer], "CT1", calls_from) is peer


@pytest.mark.parametrize("calls_from", ["192.0.2.8", "::ffff:192.0.2.8", "::192.0.2.7", "", "ct1.example"])
def test_another_address_is_another_peer(calls_from: str) -> None:
    assert find_peer([AllowedPeer(ae_title="CT1", host="192.0.2.7")], "CT1", calls_from) is None


@given(st.ip_addresses())
def test_an_address_stays_what_it_is(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    plain = ipaddress.ip_address(plain_address(str(address)))
    assert plain == (getattr(address, "ipv4_mapped", None) or address)
