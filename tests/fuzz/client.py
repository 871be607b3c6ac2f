"""The fuzzer's client: sends a case as it says, and gives back what came.

Over a unix socket a cut is a cut: the kernel says how many bytes the server has not taken yet (unix(7), SIOCOUTQ), and
the next part goes out when it has taken all.  Over TCP the kernel takes them, and parts may be joined on the way.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import time
from dataclasses import dataclass, field
from typing import Final

from tests.fuzz.cases import Case, Ending

END_DEADLINE_S: Final = 15.0
"""The server has to have ended a connection by then; above all its deadlines together."""
TAKE_DEADLINE_S: Final = 0.05
"""A server that has not taken a part by then is busy with an answer: the next part follows all the same."""

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends a reset (socket(7))."""


@dataclass
class Received:
    """What came back.

    Attributes:
        has_ended: the server ended the connection, by an ordinary end or a reset.
        was_reset: the server took no more, or the connection did not end in the ordinary way.
        seconds: from the connect to the end.
    """

    data: bytearray = field(default_factory=bytearray)
    has_ended: bool = False
    was_reset: bool = False
    seconds: float = 0.0


def deliver(case: Case, address: tuple[str, int], unix_path: str) -> Received:
    """Send a case on a connection of its own; returns when the connection is over."""
    began = time.monotonic()
    family, target = (socket.AF_UNIX, unix_path) if case.is_unix else (socket.AF_INET, address)
    with socket.socket(family) as sock:
        sock.settimeout(END_DEADLINE_S)
        sock.connect(target)
        if not case.is_unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        client = _Client(sock, case)
        client.send_all()
        if case.ending is Ending.FINISH:
            client.finish()
        if case.ending in (Ending.FINISH, Ending.WAIT):
            client.read_to_the_end()
        elif case.ending is Ending.RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.received.seconds = time.monotonic() - began
    return client.received


class _Client:
    def __init__(self, sock: socket.socket, case: Case) -> None:
        self.received = Received()
        self._sock = sock
        self._case = case
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send_all(self) -> None:
        for part in self._case.parts:
            try:
                self._send(part)
            except (BrokenPipeError, ConnectionResetError):
                self.received.was_reset = True  # what the server said before is still to be read
                return
            if self._case.is_unix and not self._case.reads_late:
                self._wait_until_taken()

    def finish(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the server was first

    def read_to_the_end(self) -> None:
        deadline = time.monotonic() + END_DEADLINE_S
        while not self.received.has_ended and time.monotonic() < deadline:
            if self._poll.poll(1000):
                self._read()

    def _send(self, part: bytes) -> None:
        view = memoryview(part)
        deadline = time.monotonic() + END_DEADLINE_S
        while view and time.monotonic() < deadline:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                if self._poll.poll(1):  # it may take no more before we have read what it says
                    self._read()

    def _wait_until_taken(self) -> None:
        deadline = time.monotonic() + TAKE_DEADLINE_S
        while _untaken_bytes(self._sock) and time.monotonic() < deadline:
            if self._poll.poll(0):
                self._read()
                if self.received.has_ended:
                    return
            os.sched_yield()

    def _read(self) -> None:
        received = self.received
        try:
            data = self._sock.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            received.has_ended = received.was_reset = True
            return
        received.data += data
        received.has_ended = not data


def _untaken_bytes(sock: socket.socket) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return count
