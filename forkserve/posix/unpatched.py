"""What has to be real: parts of the standard library, bound before an application can patch them (gevent.monkey).

The reactor, the channels and the relief thread wait in ways of their own.  Were their sockets, locks or epolls replaced
by cooperative ones, they would wait for a loop that waits for them.  This module is imported before any patch.
"""

from __future__ import annotations

import _socket
import _thread
import os
import queue
import select
import signal
import socket as _socket_module
from typing import Final

Socket = _socket_module.socket
SimpleQueue = queue.SimpleQueue
Epoll = select.epoll
poll: Final = select.poll
close: Final = os.close
set_wakeup_fd: Final = signal.set_wakeup_fd
allocate_lock: Final = _thread.allocate_lock
start_new_thread: Final = _thread.start_new_thread
get_ident: Final = _thread.get_ident


def socketpair(family: int, kind: int) -> tuple[Socket, Socket]:
    """As :func:`socket.socketpair`, of real sockets (socketpair(2))."""
    ours, theirs = _socket.socketpair(family, kind)
    return Socket(fileno=ours.detach()), Socket(fileno=theirs.detach())
