"""The reactor: one epoll that owns every socket of a worker while no application code runs on it.

    listeners ─ accept ─▶ Connection ◀─ readable, writable, deadline ─ one turn of the loop
    channel, signals ─ add_reader ─▶ callbacks

A turn: wait once; let every ready thing go one step (one request a connection, so that nobody starves); let the
deadlines that have passed happen; write the access log; look at the drain.  Nothing else waits anywhere, but for an
executor that runs the application in place: while that takes long, its relief thread makes the turns (server/lead.py).
Whoever makes a turn holds the lead, so nothing here needs a lock.

Leaves to others: who comes in and when (doors.py), and the end (drainage.py).
"""

from __future__ import annotations

import os
import select
import socket
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol

from forkserve import clock, log
from forkserve.http.errors import RefusedRequest
from forkserve.http.forwarded import Forwarding
from forkserve.http.proxy_protocol import ProxyProtocol
from forkserve.http.request import HeadLimits, HeadParser
from forkserve.http.response import HeadWriter
from forkserve.networks import Networks
from forkserve.posix import unpatched
from forkserve.posix.handover import Giver, HandOver
from forkserve.posix.scoreboard import (
    CALLS,
    CALLS_MAX,
    CELLS,
    CONNECTIONS,
    GENERATION,
    HEARTBEAT,
    IS_SERVING,
    REFUSED,
    REQUESTS,
    WAITING,
    WORKER_ID,
    Row,
)
from forkserve.server.acceptor import Newcomer
from forkserve.server.body import EMPTY_INPUT
from forkserve.server.connection import READABLE, Connection, Overdue, Phase
from forkserve.server.deadlines import Deadlines
from forkserve.server.doors import Doors
from forkserve.server.drainage import Drainage, Stage
from forkserve.server.exchange import Exchange, FileWrapper
from forkserve.server.tls import TlsServer
from forkserve.settings import Settings

if TYPE_CHECKING:
    from forkserve.server.executor import Executor

HEARTBEAT_S: Final = 1.0
"""The longest wait of a turn: an idle worker is seen alive at least so often."""
BEATS_A_TIMEOUT: Final = 4
"""And so often within ``timeout``, where that is short: one that is late is not taken for hung."""
EVENTS_MAX: Final = 256
"""Events taken by one turn."""
LAST_WORD_S: Final = 0.05
"""An answer that has begun when ``request_timeout`` is over may come to its end for so long: most come whole."""
SIBLINGS_LOOK_S: Final = 0.05
"""The longest wait of a turn while no further call can run here: so often siblings are looked at."""


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
        tls: speak it on all connections.
        on_request_limit: called once when ``requests_max`` requests are done.
        requests_max: 0 is no limit.
        handover: what the workers of this generation share to pass connections on; None where there are no others.
        on_interrupted: called once when a call has been overdue: this process should be replaced.
        idle_siblings: told the monotonic nanoseconds, how many others could take a connection now.
        has_siblings: likewise, are there others at all that take connections?
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
        tls: TlsServer | None = None,
        observer: Observer | None = None,
        requests_max: int = 0,
        on_request_limit: Callable[[], None] | None = None,
        handover: HandOver | None = None,
        idle_siblings: Callable[[int], int] | None = None,
        has_siblings: Callable[[int], bool] | None = None,
        on_interrupted: Callable[[], None] | None = None,
    ) -> None:
        self.application = application
        self.settings = settings
        self.executor = executor
        self.row = row
        self.words = row.words
        self.pid = os.getpid()
        self.is_forked_off = False  # True in a child that the application has forked
        self.observer = observer
        self.tls = tls
        self.now_ns = clock.monotonic_ns()
        self.keeps_alive = settings.keepalive > 0
        self.trusted_proxies = Networks(settings.forwarded_allow_ips)
        self.parser = _head_parser(settings, self.trusted_proxies)
        self.proxy_protocol = _proxy_protocol(settings)
        self.writer = HeadWriter(keepalive_s=int(settings.keepalive))
        self.header_timeout_ns = _ns(settings.header_timeout)
        self.body_timeout_ns = _ns(settings.body_timeout)
        self.write_timeout_ns = _ns(settings.write_timeout)
        self.request_timeout_ns = _ns(settings.request_timeout)
        self.keepalive_ns = _ns(settings.keepalive + 1)  # a second more than is promised: no race with who obeys
        self._beat_ns = _ns(min(HEARTBEAT_S, settings.timeout / BEATS_A_TIMEOUT or HEARTBEAT_S))
        self.ready: deque[Connection] = deque()
        self._errors = errors
        self._epoll = unpatched.Epoll()
        self._poll = executor.poll_of(self._epoll)
        self._handlers: dict[int, Handler] = {}
        self.connections: dict[int, Connection] = {}
        self._deadlines = Deadlines()
        self._limit_at = row.words[REQUESTS] + requests_max if requests_max else 0
        self._on_request_limit = on_request_limit
        self._on_interrupted = on_interrupted
        self.turns = self.calls = 0
        self._numbers = count(1)
        self.accepts_per_turn = executor.accepts_per_turn
        self.calls_max = executor.calls_max
        self._cells = [row.cell(number) for number in reversed(range(min(CELLS, executor.calls_max)))]
        self._waiting: deque[Exchange] = deque()
        self._finished: deque[Exchange] = deque()
        self._is_polling = False
        self.is_relieved = False
        self._idle_siblings = idle_siblings
        self._handover = handover
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.add_reader(self._wake_fd, self._on_wake)
        self.drainage = Drainage(self, handover, has_siblings)
        self.doors = Doors(self, listeners, handover)

    # ── for the worker ────────────────────────────────────────────────────────────────────────────────────────────

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` on each turn on which ``fd`` is readable."""
        self._handlers[fd] = Reader(callback)
        self._epoll.register(fd, READABLE)

    def add_door(self, fd: int, door: Handler) -> None:
        """Tell ``door`` of newcomers, while nobody else of those who wait for them is told (epoll_ctl(2))."""
        self._handlers[fd] = door
        self._epoll.register(fd, READABLE | select.EPOLLEXCLUSIVE)

    def remove_reader(self, fd: int) -> None:
        """No more; the descriptor is still open."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def run(self) -> None:
        """Serve until drained or stopped."""
        self.words[CALLS_MAX] = self.calls_max
        self.words[IS_SERVING] = self.drainage.stage is Stage.SERVING
        self.doors.review()
        self.executor.serve(self)
        self.words[IS_SERVING] = 0
        for connection in list(self.connections.values()):
            connection.close()
        self.doors.close()
        self._epoll.close()
        unpatched.close(self._wake_fd)

    def turn_for_ever(self) -> None:
        """Make turns until the reactor has stopped; the caller has the lead."""
        while self.turn():
            continue

    def drain(self, *, stopping: bool, is_orphan: bool = False, heir: Giver | None = None) -> None:
        """Finish what is here and stop; only the first call counts.

        Args:
            stopping: new connections are refused already: take all that still come out of the accept queue first.
                Otherwise the listeners are closed at once: siblings take what comes.
            heir: where idle connections go, and those that run a request when that is answered.
            is_orphan: there is no master, so there may be no siblings: take what is in the accept queue at this moment.
        """
        if self.drainage.stage is Stage.SERVING:
            self.words[IS_SERVING] = 0
            self.keeps_alive = False
            self.drainage.begin(clock.monotonic_ns(), stopping=stopping, is_orphan=is_orphan, heir=heir)

    def stop(self) -> None:
        """Leave the loop after this turn, whatever runs."""
        self.drainage.stage = Stage.STOPPED

    def has_heir(self) -> bool:
        """Does somebody take the connections of this worker, which is leaving?"""
        return self.drainage.has_heir()

    @property
    def is_busy(self) -> bool:
        """Can no further call run now?"""
        return self.calls >= self.calls_max

    @property
    def stage(self) -> Stage:
        """How far the end has come."""
        return self.drainage.stage

    @property
    def takes_newcomers(self) -> bool:
        """May connections still come?"""
        return self.drainage.stage < Stage.DRAINING

    @property
    def connection_count(self) -> int:
        """Connections open now."""
        return len(self.connections)

    def beat(self) -> None:
        """Say from inside a call, where that stops the reactor, that this worker is alive; and look at the clock."""
        self.now_ns = now_ns = clock.monotonic_ns()
        if not self.executor.is_reactor_free:
            self.words[HEARTBEAT] = now_ns

    # ── for connections and acceptors ─────────────────────────────────────────────────────────────────────────────

    def base_environ(self, host: str, port: str) -> dict[str, Any]:
        """The environ's constants of one listener."""
        return {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http" if self.tls is None else "https",
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
    def silence_ns(self) -> int:
        """How long a connection may be silent that has just become able to send its first request."""
        if self.drainage.stage is Stage.SERVING:
            return self.header_timeout_ns
        return min(self.header_timeout_ns, self.keepalive_ns)

    def refusal(self, connection: Connection, refused: RefusedRequest, head: bytes) -> bytes:
        """The answer to a request that the application does not get; it is counted and noted."""
        answer = self.writer.refusal(refused, int(clock.wall_s()), is_head=head.startswith(b"HEAD "))
        self.words[REFUSED] += 1
        if self.observer is not None:
            self.observer.refused(connection, refused, head, len(answer))
        return answer

    def adopt(self, newcomer: Newcomer) -> None:
        """A new connection; its first bytes are often here already, so look before asking the epoll."""
        connection = Connection(self, newcomer)
        self.connections[connection.fd] = connection
        self._handlers[connection.fd] = connection
        self.words[CONNECTIONS] = len(self.connections)
        try:
            if newcomer.data:
                connection.on_ready()
            else:
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
        connection.mask = mask

    def unwatch(self, connection: Connection) -> None:
        """Ask the epoll for nothing of a connection, not even its end, which it would report again and again."""
        if connection.mask:
            self._epoll.unregister(connection.fd)
            connection.mask = 0

    def schedule(self, connection: Connection) -> None:
        """See that the connection is looked at when its deadline comes, at the latest."""
        if connection.entry_ns == 0 or connection.deadline_ns < connection.entry_ns:
            self._deadlines.schedule(connection, len(self.connections))

    def forget(self, connection: Connection) -> None:
        """The connection is about to close its socket."""
        self.unwatch(connection)
        del self._handlers[connection.fd]
        del self.connections[connection.fd]
        self.words[CONNECTIONS] = len(self.connections)
        if not self.doors.are_open:
            self.doors.look_again()

    # ── calls of the application ──────────────────────────────────────────────────────────────────────────────────

    def dispatch(self, exchange: Exchange) -> None:
        """Run a complete request, now or when a running one has ended; before that, a sibling may take it."""
        if self.calls < self.calls_max and not self._waiting:
            self._begin(exchange)
        else:
            self._waiting.append(exchange)
            self.words[WAITING] = len(self._waiting)

    def finish(self, exchange: Exchange) -> None:
        """``exchange.run()`` has returned; the caller has the lead."""
        if not exchange.is_followed:
            if exchange.cell is not None:
                self._cells.append(exchange.cell)
            self.words[CALLS] = self.calls = self.calls - 1
        self.words[REQUESTS] += 1
        exchange.connection.on_exchange_done(exchange)

    @property
    def is_turn_due(self) -> bool:
        """Has a finished call left something to do, that no event will report?"""
        return bool(self.ready or self._waiting or self._finished or self.drainage.stage)

    def finish_later(self, exchange: Exchange) -> None:
        """``exchange.run()`` has returned; for who does not have the lead.  May be called by any thread."""
        self._finished.append(exchange)
        if self._is_polling:
            self._is_polling = False  # once is enough, however many finish before the turn goes on
            self.wake()

    def follow(self, exchange: Exchange) -> Exchange | None:
        """The request that has waited longest, for the caller to run in the place of the one that has just ended.

        For who does not have the lead, before :meth:`finish_later`.  None where nothing waits; and where there is a
        ``request_timeout``, since who has the lead keeps the deadlines and has to begin the call.
        """
        if self.request_timeout_ns or self.drainage.stage is Stage.STOPPED:
            return None
        following = self._next_waiting()
        if following is not None:
            following.cell = exchange.cell
            following.number = next(self._numbers)
            exchange.is_followed = True
        return following

    def _next_waiting(self) -> Exchange | None:
        """May be called by any thread."""
        try:
            exchange = self._waiting.popleft()
        except IndexError:
            return None
        self.words[WAITING] = len(self._waiting)
        return exchange

    def _begin(self, exchange: Exchange) -> None:
        self.words[CALLS] = self.calls = self.calls + 1
        exchange.cell = self._cells.pop() if self._cells else None
        exchange.number = next(self._numbers)
        if self.request_timeout_ns:
            exchange.limit_time(self.now_ns)
            exchange.connection.deadline_ns = self.now_ns + self.request_timeout_ns
            self.schedule(exchange.connection)
        self.executor.run(exchange)

    def _look_at_call(self, connection: Connection) -> None:
        """The deadline of a connection has come while its call runs, or waits to be run."""
        exchange = connection.exchange
        may_be_overdue = self.request_timeout_ns and not connection.is_taken
        connection.deadline_ns = self.now_ns + _ns(HEARTBEAT_S)
        if may_be_overdue and exchange is not None and exchange.is_running and not exchange.is_overdue:
            has_no_answer = exchange.claim_answer()
            if has_no_answer or exchange.is_late:
                self._end_overdue(exchange, has_no_answer=has_no_answer)
            else:
                exchange.is_late = True
                connection.deadline_ns = self.now_ns + _ns(LAST_WORD_S)

    def _end_overdue(self, exchange: Exchange, *, has_no_answer: bool) -> None:
        """A call has taken longer than it may."""
        connection, environ = exchange.connection, exchange.environ
        exchange.is_overdue = True
        outcome = connection.end_overdue(exchange, has_no_answer=has_no_answer)
        if outcome is not Overdue.CUT and exchange.cell is not None:
            exchange.cell.end()  # nothing is lost with it any more
        stack = self.executor.interrupt(exchange)
        log.event(
            log.ERROR,
            "request.timeout",
            f"a request has taken longer than request_timeout: {outcome.value}",
            id=exchange.id,
            method=environ.get("REQUEST_METHOD"),
            target=environ.get("RAW_URI"),
            client=connection.address,
            after_s=round((self.now_ns - exchange.started_ns) / 1e9, 3),
            traceback=stack or None,
        )
        if self._on_interrupted is not None:
            self._on_interrupted()
            self._on_interrupted = None

    def _finish_all(self) -> None:
        """What other threads have finished."""
        while self._finished:
            exchange = self._finished.popleft()
            try:
                self.finish(exchange)
            except Exception as error:
                self._on_broken(exchange.connection.fd, error)

    def _begin_waiting(self) -> None:
        """What waits, as far as there is room."""
        while self.calls < self.calls_max and (exchange := self._next_waiting()) is not None:
            try:
                self._begin(exchange)
            except Exception as error:
                self._on_broken(exchange.connection.fd, error)

    # ── relief: the serving thread is in a long call (server/lead.py) ─────────────────────────────────────────────

    def begin_relief(self) -> None:
        """Another thread than the serving one makes the turns from now on."""
        self.is_relieved = True

    def end_relief(self) -> None:
        """The serving thread makes the turns again."""
        self.is_relieved = False

    def wake(self) -> None:
        """End the wait of the turn that another thread is in."""
        os.eventfd_write(self._wake_fd, 1)

    def _on_wake(self) -> None:
        with suppress(BlockingIOError):  # an event that is past
            os.eventfd_read(self._wake_fd)

    def _look_at_siblings(self) -> None:
        """All calls that may run are running: leave newcomers to idle siblings, and pass on to them what waits."""
        idle = self._idle_siblings(self.now_ns) if self._idle_siblings is not None else 0
        if self.drainage.stage is Stage.SERVING:
            self.doors.leave_to_siblings(idle > 0)
        for _ in range(min(idle, len(self._waiting))):
            exchange = self._next_waiting()
            if exchange is None:
                break
            if self._handover is None or not exchange.connection.give_to(self._handover):
                self._waiting.append(exchange)
        self.words[WAITING] = len(self._waiting)

    # ── one turn ──────────────────────────────────────────────────────────────────────────────────────────────────

    def turn(self) -> bool:
        """Wait once, do what is to be done; False when the reactor has stopped.  The caller has the lead."""
        self.turns += 1
        ready = self.ready
        self._is_polling = True
        events = self._poll(0 if ready or self._finished else self._wait_s(), EVENTS_MAX)
        self._is_polling = False
        # With many events a turn may be long, and no sibling idle, or it would have taken the newcomers.
        self.accepts_per_turn = max(len(events), self.executor.accepts_per_turn)
        self.now_ns = now_ns = clock.monotonic_ns()
        if not self.is_relieved or self.executor.is_reactor_free:
            self.words[HEARTBEAT] = now_ns
        if self._finished:  # before the events: the client's next request may be here already
            self._finish_all()
            self._begin_waiting()
        handlers = self._handlers
        # A call in this loop may be long, and another thread make turns meanwhile.  What is left of our list is served
        # all the same, or the first ones of it would be first again; an event that is past does no harm.
        for fd, mask in events:
            try:
                handlers[fd].on_event(mask)
            except Exception as error:
                self._on_broken(fd, error)
        for _ in range(len(ready)):
            if not ready:
                break
            connection = ready.popleft()
            try:
                connection.on_ready()
            except Exception as error:
                self._on_broken(connection.fd, error)
        if self._deadlines.next_ns <= now_ns:
            self._expire(now_ns)
        if self.observer is not None:
            self.observer.flush()
        if self._limit_at and self.words[REQUESTS] >= self._limit_at:
            self._limit_at = 0
            if self._on_request_limit is not None:
                self._on_request_limit()
        if 0 < self.doors.again_ns <= now_ns:
            self.doors.look_again()
        if self._finished:
            self._finish_all()
        if self._waiting:
            self._begin_waiting()
        if self.is_busy:
            self._look_at_siblings()
        elif self.doors.are_left:
            self.doors.leave_to_siblings(False)
        drainage = self.drainage
        if drainage.stage is not Stage.SERVING:
            drainage.advance(len(events) == EVENTS_MAX)
        return drainage.stage is not Stage.STOPPED

    def _wait_s(self) -> float:
        """Until the next thing that time brings."""
        until_ns = self.now_ns + self._beat_ns
        if self._deadlines.next_ns:
            until_ns = min(until_ns, self._deadlines.next_ns)
        if self.doors.again_ns:
            until_ns = min(until_ns, self.doors.again_ns)
        if self.drainage.stage is not Stage.SERVING:
            until_ns = min(until_ns, self.drainage.next_ns())
        if self.is_busy and self._idle_siblings is not None:
            until_ns = min(until_ns, self.now_ns + _ns(SIBLINGS_LOOK_S))
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
        for connection in self._deadlines.due(now_ns):
            if connection.deadline_ns <= now_ns:
                try:
                    if connection.phase is Phase.RUNNING:
                        self._look_at_call(connection)
                    else:
                        connection.on_deadline()
                except Exception as error:
                    self._on_broken(connection.fd, error)
            if not connection.is_closed:
                self.schedule(connection)


def _limits(settings: Settings) -> HeadLimits:
    return HeadLimits(
        line_bytes=settings.limit_request_line,
        fields=settings.limit_request_fields,
        field_bytes=settings.limit_request_field_size,
        body_bytes=settings.limit_request_body,
    )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _head_parser(settings: Settings, trusted_proxies: Networks) -> HeadParser:
    forwarding = Forwarding(
        scheme_headers=settings.secure_scheme_headers,
        forwarder_headers=settings.forwarder_headers,
        forwarded_for=settings.forwarded_for,
        proxies=trusted_proxies,
    )
    return HeadParser(_limits(settings), forwarding)


def _proxy_protocol(settings: Settings) -> ProxyProtocol | None:
    if settings.proxy_protocol == "off":
        return None
    return ProxyProtocol(settings.proxy_protocol, Networks(settings.proxy_allow_ips))
