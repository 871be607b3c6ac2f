"""Handing open connections over: each generation has one pair of sockets, shared by its workers.

    busy or leaving worker ─ give(connection, bytes read) ─▶ [ SOCK_SEQPACKET pair ] ─ receive ─▶ whoever has room

The descriptor travels as SCM_RIGHTS (unix(7)), the bytes that were read and what is known of the client as the message
beside it.  The master makes the pair and holds it; so does every worker of the generation.  A message is not lost while
one of them lives: it waits until a worker takes it, be it the one that gave it.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Final

import msgspec

from forkserve.posix import unpatched

DATA_BYTES_MAX: Final = 64 * 1024
"""Bytes read of a connection that may travel with it; one that has more in hand stays where it is."""

_RECEIVE_BYTES: Final = DATA_BYTES_MAX + 4096


class Passed(msgspec.Struct, array_like=True, frozen=True):
    """What goes along with a descriptor.

    Attributes:
        origin: the number of the listener that it came from.
        address: the peer's, as ``REMOTE_ADDR``.
        port: the peer's, as ``REMOTE_PORT``.
        extras: variables of its environs beyond those of the listener and the peer.
        data: bytes that were read and not used.
        is_kept: it is between two requests, rather than before its first.
    """

    origin: int
    address: str
    port: str
    extras: dict[str, str]
    data: bytes
    is_kept: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Passed)


def make_pair() -> tuple[int, int]:
    """A new pair: the descriptors of the end to give and of the end to take."""
    give, take = unpatched.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    return give.detach(), take.detach()


class Giver:
    """The end to give.

    Args:
        fd: owned.
    """

    def __init__(self, fd: int) -> None:
        self._give = unpatched.Socket(fileno=fd)

    def give(self, fd: int, passed: Passed) -> bool:
        """Offer a connection to the siblings; False where there is no room, and it stays the caller's.

        The caller closes its own descriptor afterwards.
        """
        datagram = _encoder.encode(passed)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            return self._give.sendmsg([datagram], rights) == len(datagram)
        except OSError:
            return False  # full, or too many descriptors are on their way (ETOOMANYREFS): the caller keeps it

    def close(self) -> None:
        """Close this process's copy."""
        self._give.close()


class HandOver(Giver):
    """Both ends.

    Args:
        give: descriptor of the end to give, owned.
        take: of the end to take.
    """

    def __init__(self, give: int, take: int) -> None:
        super().__init__(give)
        self._take = unpatched.Socket(fileno=take)

    def fileno(self) -> int:
        """The descriptor that is readable while a connection waits to be taken."""
        return self._take.fileno()

    def receive(self) -> tuple[Passed, int] | None:
        """The next connection, with its descriptor, which is the caller's; None when none waits.

        Raises:
            OSError: there is no descriptor for it; it goes on waiting.
        """
        unpatched.close(os.dup(self._take.fileno()))  # else it would be lost on its way (MSG_CTRUNC)
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        try:
            data, ancillary, _flags, _address = self._take.recvmsg(_RECEIVE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return _decoder.decode(data), array.array("i", payload)[0]
        return None

    def close(self) -> None:
        """Close this process's copies."""
        super().close()
        self._take.close()
