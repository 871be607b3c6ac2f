"""IP addresses as text, and sets of them: who is trusted.

    ("10.0.0.0/8", "::1") ── Networks ──▶ "10.2.3.4" in networks      remembered; else two integers and an AND

An address is one thing however it is written: a client of IPv4 that came through a socket of IPv6 (``::ffff:10.2.3.4``)
is in 10.0.0.0/8, and the zone of a link-local address (``fe80::1%eth0``) belongs to this machine, not to the address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

EVERYBODY: Final = "*"

REMEMBERED_MAX: Final = 1024
"""Addresses whose answer is remembered by one set; forgotten together when it is full.  Proxies are few."""

IPV4_MAPPED_BITS: Final = 96
"""Before the IPv4 address in ``::ffff:0:0/96`` (RFC 4291 section 2.5.5.2)."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> IPAddress:
    """The address that a text is, an IPv4 address in IPv6 clothes as itself.

    Raises:
        ValueError: it is none, or it has a zone.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def plain_address(name: str) -> str:
    """The peer of a socket, as getpeername(2) names it, as the address alone: RFC 3875 section 4.1.8 has no zone."""
    if ":" not in name:
        return name
    return str(parse_address(name.partition("%")[0]))


class Networks:
    """A set of IP addresses.

    Args:
        texts: addresses, networks such as ``10.0.0.0/8``, or ``*`` for all.

    Attributes:
        has_all: is ``*`` among them?

    Raises:
        ValueError: a text is none of these; its own text says why.
    """

    __slots__ = ("_ranges", "_remembered", "has_all")

    def __init__(self, texts: Iterable[str]) -> None:
        self.has_all = False
        self._remembered: dict[str, bool] = {}
        self._ranges: list[tuple[int, int, int]] = []  # version, mask, network
        for text in texts:
            if text == EVERYBODY:
                self.has_all = True
            else:
                network = _parse_network(text)
                self._ranges.append((network.version, int(network.netmask), int(network.network_address)))

    def __contains__(self, peer: str) -> bool:
        """Is a peer, as :func:`plain_address` gives it, one of them?  The peer of a unix socket ("") always is."""
        found = self._remembered.get(peer)
        if found is None:
            found = not peer or self.covers(parse_address(peer))
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[peer] = found
        return found

    def covers(self, address: IPAddress) -> bool:
        """Is an address one of them?  Remembers nothing: for addresses that clients can make up."""
        if self.has_all:
            return True
        version, number = address.version, int(address)
        return any(version == each and number & mask == network for each, mask, network in self._ranges)


def _parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= IPV4_MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - IPV4_MAPPED_BITS))
    return network
