"""The reactor: one epoll that owns every socket of a worker while no application code runs on it.

    listeners ─ accept ─▶ Connection ◀─ readable, writable, deadline ─ one turn of the loop
    channel, signals ─ add_reader ─▶ callbacks

A turn: wait once; let every ready thing go one step (one request a connection, so that nobody starves); let the
deadlines that have passed happen; write the access log; look at the drain.  Nothing else waits anywhere, but for an
executor that runs the application in place.

Deadlines: a connection has one valid entry in the heap.  A later deadline only changes the connection; when the old
entry comes up it is pushed again.  So keeping a connection alive costs no heap operation and no system call.

Life: SERVING ──▶ QUIETING (server stops: take what is in the accept queue) ──▶ DRAINING ──▶ STOPPED.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Any, Final, Protocol

from forkserve import clock, log
from forkserve.http.errors import RefusedRequest
from forkserve.http.request import HeadLimits, HeadParser
from forkserve.http.response import HeadWriter
from forkserve.posix.scoreboard import CONNECTIONS, GENERATION, HEARTBEAT, REQUESTS, WORKER_ID, Row
from forkserve.server.body import EMPTY_INPUT
from forkserve.server.connection import READABLE, Connection, Phase
from forkserve.server.exchange import Exchange, FileWrapper
from forkserve.settings import Settings

HEARTBEAT_S: Final = 1.0
"""The longest wait of a turn: an idle worker is seen alive at least so often."""
EVENTS_MAX: Final = 256
"""Events taken by one turn."""
ACCEPT_QUIET_S: Final = 0.1
"""At stop: no new connection for so long means that the accept queue is empty and stays so (over a round trip)."""
QUIETING_SHARE: Final = 0.7
"""Of ``graceful_timeout``: where new connections cannot be refused (fd://) it may never be quiet; the rest of the time
is for those that were taken."""
IDLE_LINGER_S: Final = 2.0
"""While draining, an idle connection may send one more request for so long; then it is closed."""
IDLE_LINGER_STOPPING_S: Final = 1.0
STALE_ENTRIES_MAX: Final = 1024
"""Entries of the heap whose connections are closed, beyond as many as are open; then they are swept out."""
ACCEPT_PAUSE_S: Final = 0.5
"""After running out of descriptors: try again then, if nothing was closed before."""
COMPLAINT_PAUSE_S: Final = 10.0
"""While it lasts, it is said so often."""

_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Stage(IntEnum):
    """How far the end has come; only grows."""

    SERVING = 0
    QUIETING = 1
    DRAINING = 2
    STOPPED = 3


class Executor(Protocol):
    """How a worker type runs the application."""

    is_multithread: bool
    """``wsgi.multithread``."""
    accepts_per_turn: int
    """Connections taken from a listener by one turn."""

    def run(self, exchange: Exchange) -> None:
        """See that ``exchange.run()`` is called, then, on the reactor's thread, ``connection.on_exchange_done``."""

    def wait_writable(self, fd: int, timeout_s: float) -> bool:
        """Block the running exchange until ``fd`` takes bytes; False when time is up."""


class Observer(Protocol):
    """Who wants to know of requests (access log, hooks); None where nobody does."""

    def begin(self, exchange: Exchange) -> None:
        """The application is about to be called; may raise, which fails the request."""

    def end(self, exchange: Exchange, now_ns: int) -> None:
        """The exchange is over."""

    def refused(self, connection: Connection, refused: RefusedRequest, head: bytes, answer_bytes: int) -> None:
        """A request was answered without the application."""

    def flush(self) -> None:
        """End of a turn."""


class ListenerLike(Protocol):
    """A listening socket and its name (posix/listeners.py)."""

    @property
    def socket(self) -> socket.socket: ...


class Handler(Protocol):
    """Anything in the epoll."""

    def on_event(self, mask: int) -> None: ...


class Reader:
    """A descriptor that is not a connection: a channel, the signals."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def on_event(self, _mask: int) -> None:
        """It is readable."""
        self._callback()


Newcomer = tuple[socket.socket, dict[str, Any], str, str]
"""What a connection is made of: socket, constants of its listener, address and port of the client."""


class Acceptor:
    """One listener in one reactor."""

    __slots__ = ("_base", "_has_ports", "_reactor", "_socket")

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        self._reactor = reactor
        self._socket = sock
        self._has_ports = sock.family in (socket.AF_INET, socket.AF_INET6)
        if self._has_ports:
            host, port = sock.getsockname()[:2]
            _set_no_delay(sock)
        else:
            host, port = "localhost", 80
        self._base = reactor.base_environ(host, str(port))

    def close(self) -> None:
        """Close this process's copy of the listening socket."""
        self._socket.close()

    def on_event(self, _mask: int) -> None:
        """Take connections while there are some and the worker has room."""
        reactor = self._reactor
        for _ in range(reactor.executor.accepts_per_turn):
            newcomer = self.accept()
            if newcomer is None:
                return
            reactor.adopt(*newcomer)
            if reactor.is_full:
                reactor.pause_accept(None)
                return

    def accept(self) -> Newcomer | None:
        """The next connection; None when there is none, or no descriptor for it."""
        sock = self._socket
        try:
            fd, peer = sock._accept()  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                self._reactor.pause_accept(error)
            return None  # else: none is there, or the client left before it was accepted (accept(2))
        client = _Socket(sock.family, sock.type, sock.proto, fileno=fd)
        client.setblocking(False)
        if self._has_ports:
            return client, self._base, peer[0], str(peer[1])
        return client, self._base, "", ""


_Socket = socket.socket  # bound before anybody patches it


class Reactor:
    """One worker's loop.

    Args:
        application: the WSGI application.
        settings: limits and times.
        listeners: listening, non-blocking sockets.
        executor: how the application is run.
        row: this worker's row of the scoreboard.
        observer: who wants to know of requests.
        errors: ``wsgi.errors``.
        on_request_limit: called once when ``requests_max`` requests are done.
        requests_max: 0 is no limit.
    """

    def __init__(
        self,
        *,
        application: Callable[..., Any],
        settings: Settings,
        listeners: Sequence[ListenerLike],
        executor: Executor,
        row: Row,
        errors: Any,
        observer: Observer | None = None,
        requests_max: int = 0,
        on_request_limit: Callable[[], None] | None = None,
    ) -> None:
        self.application = application
        self.settings = settings
        self.executor = executor
        self.row = row
        self.words = row.words
        self.pid = os.getpid()
        self.observer = observer
        self.now_ns = clock.monotonic_ns()
        self.keeps_alive = settings.keepalive > 0
        self.parser = HeadParser(
            HeadLimits(
                line_bytes=settings.limit_request_line,
                fields=settings.limit_request_fields,
                field_bytes=settings.limit_request_field_size,
                body_bytes=settings.limit_request_body,
            )
        )
        self.writer = HeadWriter(keepalive_s=int(settings.keepalive))
        self.header_timeout_ns = _ns(settings.header_timeout)
        self.body_timeout_ns = _ns(settings.body_timeout)
        self.write_timeout_ns = _ns(settings.write_timeout)
        self.keepalive_ns = _ns(settings.keepalive + 1)  # a second more than is promised: no race with who obeys
        self.ready: deque[Connection] = deque()
        self._errors = errors
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._connections: dict[int, Connection] = {}
        self._heap: list[tuple[int, int, Connection]] = []
        self._entries = 0
        self._stage = Stage.SERVING
        self._listening: dict[int, Acceptor] = {}
        self._is_accepting = False
        self._accept_again_ns = self._complain_again_ns = 0
        self._quiet_since_ns = self._quiet_by_ns = 0
        self._idle_until_ns = 0
        self._leave_by_ns = 0
        self._limit_at = row.words[REQUESTS] + requests_max if requests_max else 0
        self._on_request_limit = on_request_limit
        for listener in listeners:
            self._listening[listener.socket.fileno()] = Acceptor(self, listener.socket)

    # ── for the worker ────────────────────────────────────────────────────────────────────────────────────────────

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` on each turn on which ``fd`` is readable."""
        self._handlers[fd] = Reader(callback)
        self._epoll.register(fd, READABLE)

    def remove_reader(self, fd: int) -> None:
        """No more; the descriptor is still open."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def run(self) -> None:
        """Serve until drained or stopped."""
        self._resume_accept()
        while self._stage is not Stage.STOPPED:
            self._turn()
        for connection in list(self._connections.values()):
            connection.close()
        self._pause()
        self._epoll.close()

    def drain(self, *, stopping: bool, is_orphan: bool = False) -> None:
        """Finish what is here and stop; only the first call counts.

        Args:
            stopping: new connections are refused already: take all that still come out of the accept queue first.
                Otherwise the listeners are closed at once: siblings take what comes.
            is_orphan: there is no master, so there may be no siblings: take what is in the accept queue at this moment.
        """
        if self._stage is not Stage.SERVING:
            return
        now_ns = clock.monotonic_ns()
        self.keeps_alive = False
        self.keepalive_ns = _ns(IDLE_LINGER_STOPPING_S if stopping else IDLE_LINGER_S)
        self._leave_by_ns = now_ns + _ns(self.settings.graceful_timeout)
        self._quiet_by_ns = now_ns + _ns(self.settings.graceful_timeout * QUIETING_SHARE)
        if stopping:
            self._stage = Stage.QUIETING
            self._quiet_since_ns = now_ns
            if not self._is_accepting:
                self._idle_until_ns = now_ns + self.keepalive_ns  # then they give way to those in the accept queue
            return
        queued = self._sweep() if is_orphan else []
        self._start_draining(now_ns)
        for newcomer in queued:
            self.adopt(*newcomer)

    def stop(self) -> None:
        """Leave the loop after this turn, whatever runs."""
        self._stage = Stage.STOPPED

    @property
    def stage(self) -> Stage:
        """How far the end has come."""
        return self._stage

    @property
    def connection_count(self) -> int:
        """Connections open now."""
        return len(self._connections)

    def beat(self) -> None:
        """Say that this worker is alive."""
        self.now_ns = now_ns = clock.monotonic_ns()
        self.words[HEARTBEAT] = now_ns

    # ── for connections and acceptors ─────────────────────────────────────────────────────────────────────────────

    def base_environ(self, host: str, port: str) -> dict[str, Any]:
        """The environ's constants of one listener."""
        return {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": EMPTY_INPUT,
            "wsgi.input_terminated": True,
            "wsgi.errors": self._errors,
            "wsgi.multithread": self.executor.is_multithread,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "SERVER_SOFTWARE": "forkserve",
            "forkserve.generation": int(self.words[GENERATION]),
            "forkserve.worker": int(self.words[WORKER_ID]),
            "SERVER_NAME": host,
            "SERVER_PORT": port,
            "SCRIPT_NAME": "",
        }

    @property
    def is_full(self) -> bool:
        """Has it as many connections as it may have?"""
        return len(self._connections) >= self.settings.worker_connections

    def wall_s(self) -> int:
        """Seconds since 1970."""
        return int(clock.wall_s())

    def adopt(self, sock: socket.socket, base: dict[str, Any], address: str, port: str) -> None:
        """A new connection; its first bytes are often here already, so look before asking the epoll."""
        connection = Connection(self, sock, base, address, port)
        self._connections[connection.fd] = connection
        self._handlers[connection.fd] = connection
        self.words[CONNECTIONS] = len(self._connections)
        self._quiet_since_ns = self.now_ns
        try:
            connection.on_event(READABLE)
            if connection.phase is not Phase.CLOSED:
                if connection.mask == 0:
                    self.watch(connection, READABLE)
                self.schedule(connection)
        except Exception as error:
            self._on_broken(connection.fd, error)

    def watch(self, connection: Connection, mask: int) -> None:
        """Ask the epoll for these events of a connection."""
        if connection.mask:
            self._epoll.modify(connection.fd, mask)
        else:
            self._epoll.register(connection.fd, mask)
        connection.mask = mask or select.EPOLLERR

    def schedule(self, connection: Connection) -> None:
        """See that the connection's deadline has an entry that is not later."""
        if connection.entry_ns == 0 or connection.deadline_ns < connection.entry_ns:
            connection.entry_ns = connection.deadline_ns
            self._entries += 1
            heappush(self._heap, (connection.deadline_ns, self._entries, connection))
            if len(self._heap) > 2 * len(self._connections) + STALE_ENTRIES_MAX:
                self._heap = [entry for entry in self._heap if entry[2].entry_ns == entry[0] and not entry[2].is_closed]
                heapify(self._heap)

    def forget(self, connection: Connection) -> None:
        """The connection is about to close its socket."""
        if connection.mask:
            self._epoll.unregister(connection.fd)
        del self._handlers[connection.fd]
        del self._connections[connection.fd]
        self.words[CONNECTIONS] = len(self._connections)
        if not self._is_accepting:
            self._resume_accept()

    def pause_accept(self, error: OSError | None) -> None:
        """No room for more connections: leave the listeners alone until one closes."""
        if error is not None:
            if self.now_ns >= self._complain_again_ns:
                self._complain_again_ns = self.now_ns + _ns(COMPLAINT_PAUSE_S)
                log.event(
                    log.WARNING,
                    "accept.exhausted",
                    f"cannot accept a connection ({error.strerror}); waiting until one closes: raise the limit "
                    "(ulimit -n)",
                    connections=len(self._connections),
                )
            self._accept_again_ns = self.now_ns + _ns(ACCEPT_PAUSE_S)
        self._pause()
        if self._stage is Stage.QUIETING and not self._idle_until_ns:
            self._idle_until_ns = self.now_ns + self.keepalive_ns

    # ── one turn ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        ready = self.ready
        events = self._epoll.poll(0 if ready else self._wait_s(), EVENTS_MAX)
        self.now_ns = now_ns = clock.monotonic_ns()
        self.words[HEARTBEAT] = now_ns
        handlers = self._handlers
        for fd, mask in events:
            try:
                handlers[fd].on_event(mask)
            except Exception as error:
                self._on_broken(fd, error)
        for _ in range(len(ready)):
            connection = ready.popleft()
            try:
                connection.on_ready()
            except Exception as error:
                self._on_broken(connection.fd, error)
        if self._heap and self._heap[0][0] <= now_ns:
            self._expire(now_ns)
        if self.observer is not None:
            self.observer.flush()
        if self._limit_at and self.words[REQUESTS] >= self._limit_at:
            self._limit_at = 0
            if self._on_request_limit is not None:
                self._on_request_limit()
        if self._accept_again_ns and now_ns >= self._accept_again_ns:
            self._resume_accept()
        if self._stage is not Stage.SERVING:
            self._advance_drain(len(events) == EVENTS_MAX)

    def _wait_s(self) -> float:
        """Until the next thing that time brings."""
        until_ns = self.now_ns + _ns(HEARTBEAT_S)
        if self._heap:
            until_ns = min(until_ns, self._heap[0][0])
        if self._accept_again_ns:
            until_ns = min(until_ns, self._accept_again_ns)
        if self._stage is not Stage.SERVING:
            until_ns = min(until_ns, self._next_drain_ns())
        return max(0.0, (until_ns - clock.monotonic_ns()) / 1e9)

    def _on_broken(self, fd: int, error: Exception) -> None:
        """A defect of ours costs one connection, not the worker."""
        handler = self._handlers.get(fd)
        if handler is None:
            return  # closed by an earlier event of this turn
        log.event(
            log.CRITICAL,
            "worker.defect",
            f"defect in the server, closing one connection: {type(error).__name__}: {error}",
            traceback="".join(traceback.format_exception(error)),
        )
        if isinstance(handler, Connection):
            handler.close()

    def _expire(self, now_ns: int) -> None:
        while self._heap and self._heap[0][0] <= now_ns:
            when_ns, _, connection = heappop(self._heap)
            if connection.entry_ns != when_ns or connection.phase is Phase.CLOSED:
                continue
            connection.entry_ns = 0
            if connection.phase is Phase.RUNNING:
                connection.deadline_ns = now_ns + _ns(HEARTBEAT_S)
            elif connection.deadline_ns <= now_ns:
                try:
                    connection.on_deadline()
                except Exception as error:
                    self._on_broken(connection.fd, error)
            if not connection.is_closed:
                self.schedule(connection)

    # ── accepting and draining ────────────────────────────────────────────────────────────────────────────────────

    def _resume_accept(self) -> None:
        self._accept_again_ns = 0
        if self._is_accepting or self._stage >= Stage.DRAINING or self.is_full:
            return
        self._is_accepting = True
        self._quiet_since_ns = self.now_ns
        for fd, acceptor in self._listening.items():
            self._handlers[fd] = acceptor
            self._epoll.register(fd, READABLE | select.EPOLLEXCLUSIVE)

    def _sweep(self) -> list[Newcomer]:
        """All that waits to be accepted now, as far as there is room."""
        taken: list[Newcomer] = []
        room = self.settings.worker_connections - len(self._connections)
        for acceptor in self._listening.values():
            while len(taken) < room and (newcomer := acceptor.accept()) is not None:
                taken.append(newcomer)
        return taken

    def _pause(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            for fd in self._listening:
                self.remove_reader(fd)

    def _start_draining(self, now_ns: int) -> None:
        self._pause()
        self._stage = Stage.DRAINING
        self._accept_again_ns = 0
        self._idle_until_ns = now_ns + self.keepalive_ns
        for acceptor in self._listening.values():
            acceptor.close()
        self._listening.clear()

    def _next_drain_ns(self) -> int:
        times = [self._leave_by_ns]
        if self._stage is Stage.QUIETING:
            times.append(self._quiet_by_ns)
            if self._is_accepting:
                times.append(self._quiet_since_ns + _ns(ACCEPT_QUIET_S))
        if self._idle_until_ns:
            times.append(self._idle_until_ns)
        return min(times)

    def _advance_drain(self, has_more_events: bool) -> None:
        now_ns = self.now_ns
        if self._stage is Stage.QUIETING:
            is_quiet = now_ns - self._quiet_since_ns >= _ns(ACCEPT_QUIET_S)
            if (is_quiet and self._is_accepting and not has_more_events) or now_ns >= self._quiet_by_ns:
                self._start_draining(now_ns)
        if self._idle_until_ns and now_ns >= self._idle_until_ns:
            self._idle_until_ns = 0
            self._close_idle(list(self._connections.values()))
        if self._stage is Stage.DRAINING and not self._connections:
            self._stage = Stage.STOPPED
        if now_ns >= self._leave_by_ns:
            self._stage = Stage.STOPPED

    def _close_idle(self, connections: Iterable[Connection]) -> None:
        """Close those that have not begun a request; one that has begun keeps its own deadline."""
        for connection in connections:
            if connection.phase is Phase.IDLE:
                connection.deadline_ns = 0
                connection.on_deadline()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _set_no_delay(sock: socket.socket) -> None:
    """Accepted sockets inherit it: an answer in several sends must not wait for acknowledgements (tcp(7))."""
    with suppress(OSError):  # refused by a sandbox: slower, not wrong
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
