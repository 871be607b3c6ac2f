"""The ways in which a connection comes to a reactor: out of a listener's accept queue, or from a sibling.

    listener ─ accept(2) ────────────▶ Newcomer ─▶ reactor.adopt
    sibling ─ posix/handover.py ─────▶ Newcomer

Both are in the epoll only while the reactor takes newcomers.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from forkserve.networks import plain_address
from forkserve.posix.handover import HandOver
from forkserve.posix.scoreboard import ACCEPTED
from forkserve.server.transport import PlainSocket

if TYPE_CHECKING:
    from forkserve.server.reactor import Reactor

_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


TAKEN_MAX: Final = 64
"""Connections taken from siblings by one turn."""


class Newcomer(NamedTuple):
    """What a connection is made of.

    Attributes:
        sock: its socket, non-blocking.
        base: constants of its environs; not to be changed.
        address: the peer's, as ``REMOTE_ADDR``; empty for a unix socket.
        port: the peer's, as ``REMOTE_PORT``; empty where there is none.
        origin: the number of its listener.
        extras: variables of its environs that another worker has found out; None: it is new.
        data: what another worker has read of it already.
        is_kept: another worker has answered a request on it.
    """

    sock: PlainSocket
    base: dict[str, Any]
    address: str
    port: str
    origin: int
    extras: dict[str, str] | None = None
    data: bytes = b""
    is_kept: bool = False


class Acceptor:
    """One listener in one reactor.

    Args:
        reactor: whose newcomers come from here.
        sock: listening, non-blocking.
        number: of this listener among all, the same in every worker.
    """

    __slots__ = ("_has_ports", "_number", "_reactor", "_socket", "base")

    def __init__(self, reactor: Reactor, sock: socket.socket, number: int) -> None:
        self._reactor = reactor
        self._socket = sock
        self._number = number
        self._has_ports = sock.family in (socket.AF_INET, socket.AF_INET6)
        if self._has_ports:
            host, port = sock.getsockname()[:2]
            host = plain_address(host)
            host = f"[{host}]" if ":" in host else host  # RFC 3875 section 4.1.14
            _set_no_delay(sock)
        else:
            host, port = "localhost", 80 if reactor.tls is None else 443  # PEP 3333: never empty
        self.base = reactor.base_environ(host, str(port))

    def close(self) -> None:
        """Close this process's copy of the listening socket."""
        self._socket.close()

    def on_event(self, _mask: int) -> None:
        """Take connections while there are some and the worker has room."""
        reactor = self._reactor
        for _ in range(reactor.accepts_per_turn):
            if not reactor.doors.admit(self.accept):
                return

    def accept(self) -> Newcomer | None:
        """The next connection; None when there is none, or no descriptor for it."""
        sock = self._socket
        try:
            fd, peer = sock._accept()  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                self._reactor.doors.pause(error)
            return None  # else: none is there, or the client left before it was accepted (accept(2))
        self._reactor.words[ACCEPTED] += 1
        client = PlainSocket(sock.family, sock.type, sock.proto, fileno=fd)
        client.setblocking(False)
        if self._has_ports:
            return Newcomer(client, self.base, plain_address(peer[0]), str(peer[1]), self._number)
        return Newcomer(client, self.base, "", "", self._number)


class SiblingAcceptor:
    """Connections that busy siblings hand over.

    Args:
        reactor: whose newcomers come from here.
        handover: what the workers of one generation share.
        bases: the environs' constants by the listener's number.
    """

    __slots__ = ("_bases", "_handover", "_reactor")

    def __init__(self, reactor: Reactor, handover: HandOver, bases: dict[int, dict[str, Any]]) -> None:
        self._reactor = reactor
        self._handover = handover
        self._bases = bases

    def on_event(self, _mask: int) -> None:
        """Take idle ones, and one that has a request in hand: whoever is idle takes the next."""
        reactor = self._reactor
        for _ in range(TAKEN_MAX):
            if not reactor.doors.admit(self.accept) or reactor.is_busy:
                return

    def accept(self) -> Newcomer | None:
        """The next connection; None when there is none, or no descriptor for it."""
        try:
            received = self._handover.receive()
        except OSError as error:
            self._reactor.doors.pause(error)
            return None
        if received is None:
            return None
        passed, fd = received
        sock = PlainSocket(fileno=fd)
        sock.setblocking(False)
        base = self._bases[passed.origin]
        known = passed.extras, passed.data, passed.is_kept
        return Newcomer(sock, base, passed.address, passed.port, passed.origin, *known)


def _set_no_delay(sock: socket.socket) -> None:
    """Accepted sockets inherit it: an answer in several sends must not wait for acknowledgements (tcp(7))."""
    with suppress(OSError):  # refused by a sandbox: slower, not wrong
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
