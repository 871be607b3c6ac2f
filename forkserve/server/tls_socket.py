"""A socket that speaks TLS, with the face of a plain non-blocking one.

    plain socket ─ wrap ─▶ handshake … ─▶ recv, send ─▶ shutdown (close_notify, then FIN) ─▶ recv throws away ─▶ close

Four rules of OpenSSL are kept here:

* Decrypted bytes that wait inside it are not seen by an epoll.  It reads one record at a time (no read-ahead), so a
  ``recv`` has room for a whole record, whatever was asked for, and leaves none.
* A write that would block has begun a record, and wants the same bytes again, at least as many (SSL_write(3)).  No
  write is longer than a record, and connections offer what was not taken again before anything else.
* Two threads must not be in it at once (an answer to an overdue call comes from another one than the call's).  A lock
  sees to that; nobody waits with it.
* A read that has to write first (a key update to a peer that takes nothing) would make the epoll spin.  The connection
  is ended: no client needs that.

Importing this imports ssl; only those who speak TLS do.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from contextlib import suppress
from typing import Any, Final

from forkserve.posix import unpatched
from forkserve.server.tls_environ import variables
from forkserve.server.transport import PlainSocket

RECORD_BYTES_MAX: Final = 16 * 1024
"""The most that one record carries (RFC 8446 section 5.1)."""


class TlsSocket:
    """One server-side TLS connection.  Owns its socket.

    Args:
        sock: a connected, non-blocking socket, which is taken over, also when this fails.
        context: certificate and rules.
        suppress_ragged_eofs: an end without close_notify is an end like others.

    Raises:
        OSError: the peer has gone; the socket is closed.
    """

    __slots__ = ("_has_spoken_last", "_lock", "_ssl")

    def __init__(self, sock: PlainSocket, context: ssl.SSLContext, *, suppress_ragged_eofs: bool) -> None:
        self._has_spoken_last = False
        self._lock = unpatched.allocate_lock()
        self._ssl = context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=suppress_ragged_eofs
        )

    def handshake(self) -> int:
        """Go on with the handshake; returns 0 when it is done, else what to wait for (EPOLLIN, EPOLLOUT).

        Raises:
            OSError: it has failed; the peer was told why.
        """
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return select.EPOLLIN
        except ssl.SSLWantWriteError:
            return select.EPOLLOUT
        return 0

    def hand_out(self) -> ssl.SSLSocket:
        """The socket, for an application that uses it itself, from whatever threads; here nothing is said any more."""
        self._has_spoken_last = True
        return self._ssl

    def variables(self) -> dict[str, Any]:
        """What the environ says of it (tls_environ.py); after the handshake."""
        return variables(self._ssl)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._ssl.fileno()

    def recv(self, size: int) -> bytes:
        """Bytes of one record; empty when the peer has ended its side.  After :meth:`shutdown`: whatever came, raw.

        Args:
            size: how much at most; but a record is read whole, else bytes would stay where no epoll sees them.
        """
        try:
            with self._lock:
                return self._ssl.recv(max(size, RECORD_BYTES_MAX))
        except ssl.SSLWantReadError:
            raise _would_block() from None

    def has_unread_bytes(self) -> bool:
        """Has something come that was not read, encrypted or not?"""
        poll = unpatched.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def send(self, data: bytes | memoryview) -> int:
        """Send as much as the socket takes; returns how much."""
        if not data:
            return 0  # SSL_write(3): undefined
        view = memoryview(data)
        sent, taken = 0, 1
        try:
            with self._lock:
                if self._has_spoken_last:
                    raise BrokenPipeError(errno.EPIPE, "this side has ended")  # an SSLSocket would go on in clear
                while taken and sent < len(view):  # none taken and no error: gevent's socket
                    taken = self._ssl.send(view[sent : sent + RECORD_BYTES_MAX])
                    sent += taken
        except ssl.SSLWantWriteError:
            pass  # the rest has to wait
        if sent == 0:
            raise _would_block()
        return sent

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """As of the socket."""
        self._ssl.setsockopt(level, option, value)

    def shutdown(self, how: int) -> None:
        """End our side: close_notify as far as the socket takes it, then as of the socket."""
        self._say_farewell()
        self._ssl.shutdown(how)

    def say_nothing_more(self) -> None:
        """Leave the farewell out: what was sent is not whole, and the peer shall know."""
        self._has_spoken_last = True

    def cut(self) -> None:
        """End both directions without a farewell, and without a touch of what others may be using at this moment."""
        self._has_spoken_last = True
        with PlainSocket(fileno=os.dup(self.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say farewell if nobody has, and close the socket; may be repeated."""
        self._say_farewell()
        self._ssl.close()

    def _say_farewell(self) -> None:
        """close_notify (RFC 8446 section 6.1), without waiting for the peer's."""
        with self._lock:
            if not self._has_spoken_last:
                self._has_spoken_last = True
                with suppress(OSError, ValueError):  # it is gone, in mid-handshake, or has not said farewell itself
                    self._ssl.unwrap()


def _would_block() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, "would block")
