"""What a connection reads from and writes to: a plain socket, or one of TLS (tls_socket.py) with the same face.

``recv`` and ``send`` raise BlockingIOError where they would wait, and another OSError when the peer is gone.  What the
two do differently stands here, so that nobody else asks which of them it is.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from forkserve.posix import unpatched

if TYPE_CHECKING:
    from forkserve.server.tls_socket import TlsSocket

PlainSocket = unpatched.Socket

Transport: TypeAlias = "PlainSocket | TlsSocket"

FILE_READ_BYTES: Final = 64 * 1024
"""How much of a file is read at once to be encrypted: some records, of which most are taken."""

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends a reset (socket(7))."""


def is_encrypted(transport: Transport) -> bool:
    """Is there more to it than its descriptor?  Then no file can be sent to that, and nobody else can take it over."""
    return not isinstance(transport, PlainSocket)


def socket_of(transport: Transport) -> socket.socket:
    """A socket for an application that takes the connection over."""
    return transport if isinstance(transport, PlainSocket) else transport.hand_out()


def send_from_file(transport: Transport, fd: int, offset: int, count: int) -> int:
    """Offer ``count`` bytes of a file; returns how many were taken, 0 at the file's end.

    Raises:
        BlockingIOError: none were taken.
        OSError: the peer is gone, or the file cannot be read.
    """
    if isinstance(transport, PlainSocket):
        return os.sendfile(transport.fileno(), fd, offset, count)
    return transport.send(os.pread(fd, min(count, FILE_READ_BYTES), offset))


def has_unread_bytes(transport: Transport) -> bool:
    """Has the peer sent something that nobody has read?

    Raises:
        OSError: nothing is there, or nobody.
    """
    if isinstance(transport, PlainSocket):
        return bool(transport.recv(1, socket.MSG_PEEK))
    return transport.has_unread_bytes()


def reset_on_close(transport: Transport) -> None:
    """See that the peer can tell the coming close from an ordinary end.

    Raises:
        OSError: the peer is gone: there is nobody to tell.
    """
    transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    if not isinstance(transport, PlainSocket):
        transport.say_nothing_more()


def cut(transport: Transport) -> None:
    """End both directions at once; whoever waits for bytes, in whatever thread, sees an end.

    Raises:
        OSError: the peer was first.
    """
    if isinstance(transport, PlainSocket):
        transport.shutdown(socket.SHUT_RDWR)
    else:
        transport.cut()
