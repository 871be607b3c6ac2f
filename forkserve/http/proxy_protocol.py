"""The PROXY protocol: who the client of a balancer is, told before the first byte of the client's own.

    PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 CRLF            version 1: a line
    signature, version and command, family, length, addresses   version 2: binary, with type-length-value vectors behind

    bytes so far ── ProxyProtocol.read ──▶ None (more has to come)
                                      ├──▶ Preamble: addresses, and how many bytes it was
                                      └──▶ RefusedRequest: not of this protocol, malformed, too long, not allowed

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, whose sections are named below ("PROXY 2.1").  A preamble
that has no address to tell (a balancer's health check, a protocol that it does not know) leaves the connection with
its own.  Nothing is guessed: where the protocol is expected, a connection without it is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, NamedTuple

from forkserve.http.errors import RefusedRequest
from forkserve.networks import Networks, parse_address

Version = Literal["v1", "v2", "auto"]

V1_BYTES_MAX: Final = 107
"""PROXY 2.1: the longest line, with its CRLF."""

V2_BYTES_MAX: Final = 16 * 1024
"""The protocol's length field would allow 64 KiB.  nginx takes 4 KiB, HAProxy what fits into its buffer, 16 KiB; what
makes it long is a client's certificate."""

V1_START: Final = b"PROXY "
V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"

_V1_LINE: Final = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.S)
"""PROXY 2.1: what follows UNKNOWN is ignored."""

_V2_HEADER: Final = struct.Struct("!12sBBH")
_V2_INET: Final = struct.Struct("!4s4sHH")
_V2_INET6: Final = struct.Struct("!16s16sHH")
_V2_UNIX_BYTES: Final = 216

_TLV_HEADER: Final = struct.Struct("!BH")
_TLV_CRC32C: Final = 0x03
_CRC32C_POLYNOMIAL: Final = 0x82F63B78
"""Castagnoli's, bits reversed (RFC 4960 appendix B)."""

Endpoint = tuple[str, str]
"""Address and port."""


class Preamble(NamedTuple):
    """What a balancer has told.

    Attributes:
        protocol: TCP4, TCP6, UDP4, UDP6 or UNIX of the client's connection; UNKNOWN, UNSPEC and LOCAL where the
            balancer tells no client.
        source: the client's end; of a unix socket both parts are empty; None: this connection's own.
        destination: the end that the client has connected to.
        size: bytes of the preamble.
    """

    protocol: str
    source: Endpoint | None
    destination: Endpoint | None
    size: int

    @property
    def variables(self) -> dict[str, str]:
        """The environ's variables by which gunicorn tells it."""
        found = {"PROXY_PROTOCOL": self.protocol}
        if self.source is not None:
            found["REMOTE_ADDR"], found["REMOTE_PORT"] = self.source
        if self.destination is not None:
            found["PROXY_ADDR"], found["PROXY_PORT"] = self.destination
        return found


class ProxyProtocol:
    """What is expected of new connections, and from whom.

    Args:
        version: the one that they have to begin with.
        balancers: who may connect.
    """

    __slots__ = ("_balancers", "_version")

    def __init__(self, version: Version, balancers: Networks) -> None:
        self._version = version
        self._balancers = balancers

    def read(self, data: bytes, peer: str) -> Preamble | None:
        """The preamble of a connection; None while it is not whole.

        Args:
            data: all that has come so far, at least one byte.
            peer: the address at the other end; "" for a unix socket.

        Raises:
            RefusedRequest: it cannot become one, or the peer may not connect (PROXY 2: only trusted proxies may use
                the protocol, and others may not come without it).
        """
        if peer not in self._balancers:
            raise RefusedRequest(403, "only the proxies of proxy_allow_ips may connect")
        return read_preamble(data, self._version)


def read_preamble(data: bytes, version: Version) -> Preamble | None:
    """The preamble at the beginning of a connection; None while it is not whole.

    Args:
        data: all that has come so far, at least one byte.
        version: which one is expected.

    Raises:
        RefusedRequest: it cannot become a preamble.
    """
    if version != "v1" and V2_SIGNATURE.startswith(data[: len(V2_SIGNATURE)]):
        return _read_v2(data) if len(data) >= _V2_HEADER.size else None
    if version != "v2" and V1_START.startswith(data[: len(V1_START)]):
        return _read_v1(data)
    raise RefusedRequest(400, "no header of the PROXY protocol in the version of proxy_protocol")


def _read_v1(data: bytes) -> Preamble | None:
    end = data.find(b"\r\n", 0, V1_BYTES_MAX)
    if end < 0:
        if len(data) < V1_BYTES_MAX:
            return None
        raise RefusedRequest(400, f"PROXY line of more than {V1_BYTES_MAX} bytes")
    line = data[:end]
    if _V1_UNKNOWN.fullmatch(line):
        return Preamble("UNKNOWN", None, None, end + 2)
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise RefusedRequest(400, "malformed PROXY line")
    protocol, source, destination, source_port, destination_port = (str(part, "ascii") for part in match.groups())
    if int(source_port) > 65535 or int(destination_port) > 65535:
        raise RefusedRequest(400, "malformed PROXY line: a port above 65535")
    kind = IPv4Address if protocol == "TCP4" else IPv6Address
    try:
        source, destination = _text(kind(source)), _text(kind(destination))
    except ValueError:
        raise RefusedRequest(400, f"malformed PROXY line: an address that is not of {protocol}") from None
    return Preamble(protocol, (source, source_port), (destination, destination_port), end + 2)


def _text(address: IPv4Address | IPv6Address) -> str:
    """As ``REMOTE_ADDR`` has it, whatever way the client came."""
    return str(parse_address(str(address)))


def _read_v2(data: bytes) -> Preamble | None:
    _, version_and_command, family_and_transport, length = _V2_HEADER.unpack_from(data)
    size = _V2_HEADER.size + length
    if size > V2_BYTES_MAX:
        raise RefusedRequest(400, f"PROXY header of more than {V2_BYTES_MAX} bytes")
    if version_and_command not in (0x20, 0x21):
        raise RefusedRequest(400, "malformed PROXY header: unknown version or command")
    if len(data) < size:
        return None
    if version_and_command == 0x20:
        return Preamble("LOCAL", None, None, size)  # PROXY 2.2: the rest of the header is ignored
    family, transport = family_and_transport >> 4, family_and_transport & 0xF
    if family > 3 or transport > 2:
        raise RefusedRequest(400, "malformed PROXY header: unknown address family or transport")
    if family == 0 or transport == 0:
        return Preamble("UNSPEC", None, None, size)
    header = data[:size]
    if family == 3:
        _check_vectors(header, _V2_HEADER.size + _V2_UNIX_BYTES)
        return Preamble("UNIX", ("", ""), None, size)
    layout, kind = (_V2_INET, IPv4Address) if family == 1 else (_V2_INET6, IPv6Address)
    _check_vectors(header, _V2_HEADER.size + layout.size)
    source, destination, source_port, destination_port = layout.unpack_from(header, _V2_HEADER.size)
    return Preamble(
        ("TCP" if transport == 1 else "UDP") + ("4" if family == 1 else "6"),
        (_text(kind(source)), str(source_port)),
        (_text(kind(destination)), str(destination_port)),
        size,
    )


# ---------------------------------------------------------------------------------------------- vectors of version 2


def _check_vectors(header: bytes, start: int) -> None:
    """Skip the vectors behind the addresses, but for the checksum, which is compared (PROXY 2.2.3)."""
    if start > len(header):
        raise RefusedRequest(400, "malformed PROXY header: shorter than its addresses")
    checksums = [(first, end) for kind, first, end in _vectors(header, start) if kind == _TLV_CRC32C]
    if len(checksums) > 1:
        raise RefusedRequest(400, "malformed PROXY header: two checksums")
    for first, end in checksums:
        blanked = header[:first] + bytes(end - first) + header[end:]
        if header[first:end] != crc32c(blanked).to_bytes(4, "big"):
            raise RefusedRequest(400, "malformed PROXY header: wrong checksum")


def _vectors(header: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Type, start and end of each value."""
    while start < len(header):
        if start + _TLV_HEADER.size > len(header):
            raise RefusedRequest(400, "malformed PROXY header: a vector is cut")
        kind, length = _TLV_HEADER.unpack_from(header, start)
        first = start + _TLV_HEADER.size
        start = first + length
        if start > len(header):
            raise RefusedRequest(400, "malformed PROXY header: a vector is longer than the header")
        yield kind, first, start


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960 appendix B."""
    table = _crc32c_table()
    value = 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_CRC32C_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)
