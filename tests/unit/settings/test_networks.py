"""Addresses and sets of them."""

from __future__ import annotations

import pytest

from forkserve.networks import REMEMBERED_MAX, Networks, parse_address, plain_address


@pytest.mark.parametrize(
    ("texts", "inside", "outside"),
    [
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1", ""], ["127.0.0.2", "::2", "10.0.0.1"]),
        (["10.0.0.0/8"], ["10.0.0.0", "10.255.255.255", ""], ["11.0.0.0", "9.255.255.255", "::a00:1"]),
        (["10.0.0.0/255.255.255.0"], ["10.0.0.9"], ["10.0.1.0"]),
        (["2001:db8::/32"], ["2001:db8::1", "2001:DB8:0:0::"], ["2001:db9::1", "32.1.13.184"]),
        (["0.0.0.0/0"], ["1.2.3.4"], ["::1"]),
        (["*"], ["1.2.3.4", "::1", ""], []),
        (["::ffff:10.0.0.0/104"], ["10.1.2.3"], ["11.1.2.3"]),
        ([], [""], ["127.0.0.1", "::1"]),
    ],
)
def test_addresses_are_inside_or_outside(texts: list[str], inside: list[str], outside: list[str]) -> None:
    networks = Networks(texts)
    for _ in range(2):  # asked again it is remembered
        assert [address for address in inside if address not in networks] == []
        assert [address for address in outside if address in networks] == []
    assert networks.has_all == ("*" in texts)


NO_NETWORKS = ["", "localhost", "10.0.0.1/8", "10.0.0", "1.2.3.4/33", "fe80::1%eth0", "010.0.0.1", "**"]


@pytest.mark.parametrize("text", NO_NETWORKS)
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Networks([text])


def test_what_is_remembered_is_bounded() -> None:
    networks = Networks(["10.0.0.0/8"])
    for number in range(REMEMBERED_MAX * 2 + 5):
        assert f"11.0.{number // 256}.{number % 256}" not in networks
    assert len(networks._remembered) <= REMEMBERED_MAX
    assert "10.0.0.1" in networks


def test_addresses_that_clients_make_up_are_not_remembered() -> None:
    networks = Networks(["10.0.0.0/8"])
    assert networks.covers(parse_address("::ffff:10.0.0.1"))
    assert not networks.covers(parse_address("11.0.0.1"))
    assert networks._remembered == {}


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("::1", "::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8:0:0:0:0:0:1", "2001:db8::1"),
    ],
)
def test_peer_is_named_by_its_address_alone(name: str, address: str) -> None:
    assert plain_address(name) == address


@pytest.mark.parametrize("text", ["", "fe80::1%eth0", "1.2.3", "01.2.3.4", "1.2.3.4 ", "\u0661.2.3.4", "a"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_address(text)
