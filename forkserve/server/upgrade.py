"""A connection whose protocol the application changes: ``environ["gunicorn.socket"]``.

    GET /chat, Upgrade: websocket ─▶ application ── uses the socket ──▶ it is the application's until the call ends

Libraries for WebSocket on WSGI (simple-websocket, and with it Flask-Sock and Flask-SocketIO) look for this key, answer
101 on the socket themselves and stay in the call while the connection lives.  So it costs a slot as long, and a drain
waits for it as for any request.  The reactor does not touch the socket meanwhile.

    call ends ─▶ shutdown(2): the client and every thread that still waits for the socket see its end
    neither the connection nor the application has the ClientSocket any more ─▶ close(2)

Were it closed at once, a thread of the library that waits for it with an epoll of its own would never be woken.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from forkserve.server.transport import PlainSocket

if TYPE_CHECKING:
    from forkserve.server.connection import Connection


class ClientSocket:
    """The client's socket, taken from the server at its first use.

    It has the methods of :class:`socket.socket` and blocks.  An application that does not touch it answers as usual.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._socket: socket.socket | None = None
        self._data = b""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Bytes of the client: those behind the request's head first."""
        sock = self._taken()
        if self._data and not flags:
            data, self._data = self._data[:size], self._data[size:]
            return data
        return sock.recv(size, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        """As :meth:`recv`, into a buffer."""
        data = self.recv(nbytes or len(buffer), flags)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """End the conversation.  The descriptor stays open as long as the server may look at it."""
        fd = self._taken().fileno()
        with suppress(OSError), PlainSocket(fileno=os.dup(fd)) as sock:  # the client was first
            sock.shutdown(socket.SHUT_RDWR)  # by a copy: that of TLS would drop its keys under who still uses it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._taken(), name)

    def __del__(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _taken(self) -> socket.socket:
        if self._socket is None:
            self._socket, self._data = self._connection.take_over(self)
        return self._socket
