"""A crowd of slow clients, and good clients beside it; each from one thread.

    Crowd     connect ─▶ a piece of a head ─ pause ─ a piece ─ pause ─ …              until it is told off; then again
              connect ─▶ a head, a piece of a body ─ pause ─ a piece ─ pause ─ …      until it is answered; then again
              connect ─▶ a request; a piece of a large answer is read ─ pause ─ …
    ask_well  connect ─▶ GET /hello ─▶ answer, timed ─ pause ─ connect …

The slow are as slow as a server bears: above forkserve's minimum rates, so that it cannot just throw them out.
:func:`application` is what they all ask.
"""

from __future__ import annotations

import heapq
import random
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

LARGE_BYTES: Final = 2_000_000
"""More than sockets hold of an answer: the server has to keep the rest."""
BODY_BYTES: Final = 60_000
HEAD: Final = b"GET /hello HTTP/1.1\r\nHost: a\r\n" + b"X-Slow: so slow\r\n" * 20
POST: Final = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES
ANSWER_DEADLINE_S: Final = 10.0
"""A good client that has no answer by then gives up, and asks again."""
CONNECTING_MAX: Final = 100
"""Of the crowd; more would only fill the listen queue."""
SPARE_DESCRIPTORS: Final = 200

Address = tuple[str, int]


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """/large is large; everything else reads the body and says hello."""
    while environ["wsgi.input"].read(65536):
        continue
    body = bytes(LARGE_BYTES) if environ["PATH_INFO"] == "/large" else b"Hello, world!"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def allow_descriptors(count: int) -> bool:
    """Raise this process's limit of open descriptors, which its children inherit; False where it may not be so high."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return False
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


# ---------------------------------------------------------------------------------------------- the slow


class Slowness(Enum):
    """What a slow client is slow at, and the bytes of one piece."""

    HEAD = 3
    BODY = 500
    READER = 1500


class _Slow:
    def __init__(self, slowness: Slowness) -> None:
        self.slowness = slowness
        self.sock = socket.socket()
        self.is_at_it = False
        self._unsent = b""

    def connect(self, address: Address) -> None:
        self.sock.close()
        self.sock = socket.socket()
        if self.slowness is Slowness.READER:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.sock.connect_ex(address)
        if self.slowness is Slowness.HEAD:
            self._unsent = HEAD
        elif self.slowness is Slowness.BODY:
            self._unsent = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (
                BODY_BYTES,
                bytes(BODY_BYTES),
            )
        else:
            self._unsent = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"

    def step(self) -> bool:
        """One piece more; False when the connection is over, in whatever way."""
        try:
            if self._unsent:
                sent = self.sock.send(self._unsent[: self.slowness.value])
                self._unsent = self._unsent[sent:]
                self.is_at_it |= self.slowness is not Slowness.READER
                return self.slowness is not Slowness.HEAD or not self._is_answered()
            if self.slowness is Slowness.READER:
                self.is_at_it = bool(self.sock.recv(self.slowness.value))
                return self.is_at_it
            return not self._is_answered()
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _is_answered(self) -> bool:
        try:
            self.sock.recv(4096)
        except BlockingIOError:
            return False
        return True


class Crowd:
    """Slow clients, a third of each kind.

    Args:
        address: of the server.
        size: how many.
        pause_s: between two pieces of one client.
    """

    def __init__(self, address: Address, size: int, pause_s: float) -> None:
        self._address = address
        self._pause_s = pause_s
        self._clients = [_Slow(list(Slowness)[number % len(Slowness)]) for number in range(size)]
        self._epoll = select.epoll()
        self._connecting: dict[int, int] = {}
        self._due: list[tuple[float, int]] = []
        self._chance = random.Random(0)
        self.pieces: Counter[Slowness] = Counter()
        self.ended: Counter[Slowness] = Counter()

    def run(self, is_over: Callable[[], bool], on_gathered: Callable[[], None] = lambda: None) -> None:
        """Until ``is_over``; ``on_gathered`` is called once, when all are at it: sending, or reading their answers."""
        to_come = list(range(len(self._clients)))
        is_gathered = False
        try:
            while not is_over():
                while to_come and len(self._connecting) < CONNECTING_MAX:
                    self._connect(to_come.pop())
                self._turn()
                if not is_gathered and all(client.is_at_it for client in self._clients):
                    is_gathered = True
                    on_gathered()
        finally:
            for client in self._clients:
                client.sock.close()
            self._epoll.close()

    def _turn(self) -> None:
        for fd, _mask in self._epoll.poll(0.005):
            self._epoll.unregister(fd)
            when = time.monotonic() + self._chance.random() * self._pause_s
            heapq.heappush(self._due, (when, self._connecting.pop(fd)))
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            number = heapq.heappop(self._due)[1]
            client = self._clients[number]
            if client.step():
                self.pieces[client.slowness] += 1
                heapq.heappush(self._due, (now + self._pause_s, number))
            else:
                self.ended[client.slowness] += 1
                self._connect(number)

    def _connect(self, number: int) -> None:
        client = self._clients[number]
        client.connect(self._address)
        self._connecting[client.sock.fileno()] = number
        self._epoll.register(client.sock, select.EPOLLOUT)


# ---------------------------------------------------------------------------------------------- the good


@dataclass
class Asked:
    """What good clients have seen.

    Attributes:
        seconds: of each request that was answered, from the connect to the end of the answer; sorted.
        failed: requests that were not answered rightly, by what was wrong.
    """

    seconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """All requests."""
        return len(self.seconds) + self.failed.total()

    def quantile_s(self, share: float) -> float:
        """The time within which this share of all requests was answered; infinite where it was not."""
        index = int(share * self.count)
        return self.seconds[index] if index < len(self.seconds) else float("inf")


class _Good:
    def __init__(self) -> None:
        self.sock = socket.socket()
        self.began = 0.0
        self.data = b""

    def connect(self, address: Address, now: float) -> None:
        self.sock.close()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(address)
        self.began, self.data = now, b""

    def step(self, mask: int) -> bool:
        """Go on; True when the connection is over."""
        try:
            if mask & select.EPOLLOUT:
                self.sock.send(b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                return False
            data = self.sock.recv(4096)
        except OSError as error:
            self.data = repr(error).encode()
            return True
        self.data += data
        return not data

    @property
    def is_answered(self) -> bool:
        return self.data.startswith(b"HTTP/1.1 200 ") and self.data.endswith(b"\r\n\r\nHello, world!")


def ask_well(address: Address, clients: int, seconds: float, pause_s: float) -> Asked:
    """Ask for a time; each client makes a connection for each request, and begins one each ``pause_s``, if it can."""
    asked = Asked()
    until = time.monotonic() + seconds
    due = [(time.monotonic() + pause_s * number / clients, number) for number in range(clients)]
    crew = [_Good() for _ in due]
    by_fd: dict[int, int] = {}
    epoll = select.epoll()

    def end(fd: int, now: float, without: str = "closed without an answer") -> None:
        number = by_fd.pop(fd)
        epoll.unregister(fd)
        one = crew[number]
        one.sock.close()
        if one.is_answered:
            asked.seconds.append(now - one.began)
        else:
            asked.failed[str(one.data[:100], "latin-1") or without] += 1
        heapq.heappush(due, (one.began + pause_s, number))

    while (now := time.monotonic()) < until or by_fd:
        while due and due[0][0] <= now < until:
            number = heapq.heappop(due)[1]
            crew[number].connect(address, now)
            by_fd[crew[number].sock.fileno()] = number
            epoll.register(crew[number].sock, select.EPOLLOUT)
        wait_s = min(due[0][0], until) - now if due else 1.0
        for fd, mask in epoll.poll(max(0.0, min(wait_s, 0.1))):
            if crew[by_fd[fd]].step(mask):
                end(fd, time.monotonic())
            elif mask & select.EPOLLOUT:
                epoll.modify(fd, select.EPOLLIN)
        for fd in [fd for fd, number in by_fd.items() if now - crew[number].began > ANSWER_DEADLINE_S]:
            end(fd, now, f"no answer within {ANSWER_DEADLINE_S:g} s")
    for one in crew:
        one.sock.close()
    epoll.close()
    asked.seconds.sort()
    return asked
