"""Many idle keep-alive connections: what they cost in memory, and whether they slow the busy ones down.

    load alone ─ memory ─ open N connections, one request on each ─ memory ─ load beside them ─ how many are still open?
"""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from tests.bench.errors import BenchError

SPARE_FILES: Final = 500
"""Descriptors that servers, wrk and this program need beside those of idle connections."""
ANSWER_S_MAX: Final = 30.0
MAKING_S_MAX: Final = 60.0
"""A server that has not let all of them in by then is not given more: gunicorn's sync worker takes one a second, since
it waits for each client to close."""
ADDRESSES_OF: Final = 20_000
"""Connections from one source address: Linux gives out some 28,000 ports an address (ip_local_port_range)."""

REQUEST: Final = b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True, slots=True)
class IdleCost:
    """What idle connections cost one server.

    Attributes:
        kept: connections that were open when memory was looked at, and in the end.
        bytes_each: memory of the server's processes; the kernel's for sockets is the same for all servers.
        alone_us, beside_us: processor time a request of the busy connections, without and with idle ones.
    """

    asked: int
    kept: tuple[int, int]
    bytes_each: float
    alone_us: float
    beside_us: float
    alone_p99_ms: float
    beside_p99_ms: float

    @property
    def slowdown(self) -> float:
        """Processor time a request beside idle connections, as a multiple."""
        return self.beside_us / self.alone_us


def allow_files(connections: int) -> None:
    """Raise the limit of descriptors, for this program and the servers that it starts.

    Raises:
        BenchError: it may not be raised so far.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(f"{connections} connections need {needed} descriptors, not {hard}: raise ulimit -Hn")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have had one answer each and now wait; as many as could be made in MAKING_S_MAX.

    Raises:
        BenchError: they cannot be made.
    """
    with ExitStack() as stack:
        opened: list[socket.socket] = []
        until_s = time.monotonic() + MAKING_S_MAX
        for number in range(count):
            if time.monotonic() > until_s:
                break
            try:
                opened.append(stack.enter_context(_asked_once(port, f"127.0.0.{1 + number // ADDRESSES_OF}")))
            except OSError as error:
                raise BenchError(f"idle connection {number + 1} of {count} cannot be made: {error}") from error
        yield opened


def still_open(connections: list[socket.socket]) -> int:
    """How many the server has not closed."""
    with select.epoll() as epoll:
        for each in connections:
            epoll.register(each.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        return len(connections) - len(epoll.poll(0, len(connections) + 1))


def _asked_once(port: int, source: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX, source_address=(source, 0))
    try:
        sock.sendall(REQUEST)
        answer = b""
        while not answer.endswith(b"Hello, world!"):
            block = sock.recv(4096)
            if not block:
                raise ConnectionError(f"the server closed it after {answer!r}")
            answer += block
    except OSError:
        sock.close()
        raise
    return sock
