"""A channel: messages and descriptors between two processes of one server.

One SOCK_SEQPACKET pair of unix sockets (unix(7)): message boundaries are kept, order is kept, descriptors travel
along (SCM_RIGHTS), and the end of one process is an end of file at the other.  Both ends are non-blocking: the sender
is told when the other side does not read, and nobody ever waits inside a channel.

Left to others: what messages mean (messages.py), and who waits (the supervisor's waiter, the worker's reactor).
"""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from enum import Enum
from typing import Final

import msgspec

from forkserve import messages
from forkserve.posix import unpatched

DATAGRAM_BYTES_MAX: Final = 192 * 1024
"""The longest message.  The kernel's default socket buffer (net.core.wmem_default, 208 KiB) must hold one whole."""

DESCRIPTORS_MAX: Final = 64
"""The most descriptors of one message; the kernel's own limit is 253 (SCM_MAX_FD, unix(7))."""


class Closed(Enum):
    """The one value that says: the other side is gone."""

    CLOSED = "closed"


CLOSED: Final = Closed.CLOSED


class Channel:
    """One end.  Owns its socket."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """The channel behind an inherited or received descriptor, which it owns from now on."""
        return cls(unpatched.Socket(fileno=fd))

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once closed."""
        return self._socket.fileno()

    def send(self, message: messages.Message, fds: Sequence[int] = ()) -> bool:
        """Send one message with copies of ``fds``.

        Returns:
            False when the other side is gone or its queue is full: the message was not sent.

        Raises:
            ValueError: the message is longer than :data:`DATAGRAM_BYTES_MAX`.
        """
        datagram = messages.encode(message)
        if len(datagram) > DATAGRAM_BYTES_MAX:
            raise ValueError(f"a {type(message).__name__} of {len(datagram)} bytes is over {DATAGRAM_BYTES_MAX}")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([datagram], ancillary, socket.MSG_NOSIGNAL)
        except (BlockingIOError, ConnectionError):
            return False
        except OSError:
            if self._socket.fileno() == -1:
                return False
            raise
        return True

    def receive(self) -> tuple[messages.AnyMessage, list[int]] | Closed | None:
        """The next message with its descriptors, which the caller owns; None when there is none now.

        Raises:
            msgspec.DecodeError: the other side sent something that is no message; its descriptors are closed.
        """
        try:
            datagram, ancillary, _flags, _address = self._socket.recvmsg(
                DATAGRAM_BYTES_MAX, socket.CMSG_SPACE(DESCRIPTORS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionError:
            return CLOSED
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                fds.extend(numbers)
        if not datagram:
            return CLOSED
        try:
            return messages.decode(datagram), fds
        except msgspec.DecodeError:
            for fd in fds:
                unpatched.close(fd)
            raise

    def finish_sending(self) -> None:
        """Say that nothing more comes from this end: the other side reads an end of file, and may still send."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side is gone: there is nobody to tell

    def close(self) -> None:
        """Close this end; the other side sees an end of file.  May be repeated."""
        self._socket.close()


def channel_pair() -> tuple[Channel, Channel]:
    """Two ends that belong together, both close-on-exec."""
    ours, theirs = unpatched.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)
