"""The connection machine: one client's socket from accept to close.

    IDLE ── bytes ──▶ HEAD ── head ──▶ BODY ── all ──▶ RUNNING ── answer taken ──▶ IDLE        (kept)
      ▲                 │ 4xx, 408       │ 4xx, 408       └── reader is slow ──▶ WRITING ──▶ IDLE
      └─ pipelined      ▼                ▼                                          │
                     LINGERING ◀─────────┴──────────────────────────────────────────┘ (closing, more may come)
                        └──▶ CLOSED

A request that comes whole (head and body in one read) passes straight from IDLE to RUNNING.  In LINGERING our side is
shut down and what the client still sends is thrown away, so that it reads our answer rather than a reset
(RFC 9112 section 9.6).

Runs on the reactor's thread, but for :meth:`Connection.send`, which the owner of the running exchange calls.
"""

from __future__ import annotations

import select
import socket
import struct
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from forkserve import log
from forkserve.http.errors import RefusedRequest
from forkserve.http.request import EMPTY_LINES_MAX, HEAD_END
from forkserve.http.response import CONTINUE, UNTIL_CLOSE
from forkserve.server.body import BodyReader
from forkserve.server.exchange import ClientGone, Exchange
from forkserve.server.output import Output

if TYPE_CHECKING:
    from forkserve.server.reactor import Reactor

RECV_BYTES: Final = 16 * 1024
"""One read of a head; small enough that the allocator keeps it."""
BODY_RECV_BYTES: Final = 128 * 1024
LINGER_S: Final = 2.0
"""How long we listen after our last word; nginx's lingering_timeout is 5 s, Apache's 2 s."""
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends a reset (socket(7))."""

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT


class Phase(Enum):
    """Where a connection stands."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    RUNNING = "running"
    WRITING = "writing"
    LINGERING = "lingering"
    CLOSED = "closed"


_IDLE, _HEAD, _BODY, _RUNNING = Phase.IDLE, Phase.HEAD, Phase.BODY, Phase.RUNNING
_WRITING, _LINGERING, _CLOSED = Phase.WRITING, Phase.LINGERING, Phase.CLOSED


class Connection:
    """One client.

    Args:
        reactor: who owns it.
        sock: its non-blocking socket, which it owns.
        base: constants of its listener for the environ.
        address: the client's, as ``REMOTE_ADDR``.
        port: the client's, as ``REMOTE_PORT``; empty where there is none.
    """

    __slots__ = (
        "_base",
        "_body",
        "_buffer",
        "_is_client_done",
        "_is_half_closed",
        "_is_kept",
        "_output",
        "_port",
        "_request",
        "_seen",
        "address",
        "deadline_ns",
        "entry_ns",
        "fd",
        "mask",
        "phase",
        "reactor",
        "sock",
    )

    def __init__(self, reactor: Reactor, sock: socket.socket, base: dict[str, Any], address: str, port: str) -> None:
        self.reactor = reactor
        self.sock = sock
        self.fd = sock.fileno()
        self.address = address
        self.phase = _IDLE
        self.mask = 0
        self.deadline_ns = reactor.now_ns + reactor.header_timeout_ns
        self.entry_ns = 0
        self._base = base
        self._port = port
        self._buffer: bytes | bytearray = b""
        self._seen = 0
        self._body: BodyReader | None = None
        self._request: tuple[dict[str, Any], bytes, bool] | None = None
        self._output: Output | None = None
        self._is_kept = False
        self._is_client_done = False
        self._is_half_closed = False

    @property
    def is_closed(self) -> bool:
        """Is the socket gone?"""
        return self.phase is _CLOSED

    # ── what happens ──────────────────────────────────────────────────────────────────────────────────────────────

    def on_event(self, _mask: int) -> None:
        """The socket is ready for what was asked of it, or broken."""
        phase = self.phase
        if phase is _IDLE or phase is _HEAD:
            self._read_head()
        elif phase is _BODY:
            self._read_body()
        elif phase is _WRITING:
            self._flush()
        elif phase is _LINGERING:
            self._discard()
        elif phase is _RUNNING:
            self.reactor.watch(self, 0)

    def on_ready(self) -> None:
        """The reactor's next turn for a connection that has bytes of a further request in hand."""
        if self.phase is _IDLE and self._buffer:
            self._find_head()

    def on_deadline(self) -> None:
        """The deadline has passed; what has come unseen meanwhile (the reactor may have stood still) counts."""
        phase = self.phase
        if phase is _IDLE or phase is _HEAD or phase is _BODY:
            self.on_event(READABLE)
            if self.phase is _CLOSED or self.deadline_ns > self.reactor.now_ns:
                return
        if self.phase is _HEAD or self.phase is _BODY:
            self._refuse(RefusedRequest(408, "the request did not arrive in time"), b"")
        elif self.phase is _WRITING:
            log.event(log.DEBUG, "response.stalled", "the client did not read its answer in time", client=self.address)
            self._abort()
        else:
            self.close()

    def on_exchange_done(self, exchange: Exchange) -> None:
        """The exchange has ended and given its slot back; on the reactor's thread."""
        body = self._body
        if body is not None:
            body.close()
            self._body = None
        if self.phase is _CLOSED:
            return
        reactor = self.reactor
        if exchange.is_cut:
            self._cut(exchange)
        elif self._output is not None:
            self._start_writing(exchange.keep_alive)
        elif not exchange.keep_alive:
            self._finish()
        else:
            self.phase = _IDLE
            self.deadline_ns = deadline_ns = reactor.now_ns + reactor.keepalive_ns
            if deadline_ns < self.entry_ns:
                reactor.schedule(self)
            if self._buffer:
                reactor.ready.append(self)
            elif self._is_half_closed:
                self.close()
            elif self.mask != READABLE:
                reactor.watch(self, READABLE)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _read_head(self) -> None:
        try:
            data = self.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return self.close()
        if not data:
            return self._on_end_of_stream()
        if not self._buffer:
            end = data.find(HEAD_END)
            if end > 0:
                return self._take_head(data, end)
        self._buffer += data
        return self._find_head()

    def _find_head(self) -> None:
        buffer = self._buffer
        if buffer[0] in b"\r\n":
            buffer = self._buffer = _without_empty_lines(buffer)
            self._seen = 0
            if not buffer:
                return self._wait_for_request()
        end = buffer.find(HEAD_END, max(0, self._seen - 3))
        if end > 0:
            self._buffer, self._seen = b"", 0
            return self._take_head(bytes(buffer), end)
        reactor = self.reactor
        try:
            if buffer[:1] in (b"\r", b"\n") and buffer != b"\r":
                raise RefusedRequest(400, "no request line")
            reactor.parser.check_partial(buffer, self._seen)
        except RefusedRequest as refused:
            return self._refuse(refused, bytes(buffer[:1024]))
        if self._is_half_closed:
            return self._refuse(RefusedRequest(400, "the request head is cut"), bytes(buffer[:1024]))
        self._seen = len(buffer)
        if self.phase is _IDLE:
            self._buffer = bytearray(buffer)
            self.phase = _HEAD
            self._set_deadline(reactor.header_timeout_ns)
        if self.mask != READABLE:
            reactor.watch(self, READABLE)
        return None

    def _wait_for_request(self) -> None:
        """Nothing but empty lines has come: no request has begun, and no deadline moves."""
        self.phase = _IDLE
        if self._is_half_closed:
            self.close()
        elif self.mask != READABLE:
            self.reactor.watch(self, READABLE)

    def _take_head(self, data: bytes, end: int) -> None:
        head = data[:end]
        reactor = self.reactor
        try:
            environ, length, keep_alive, expects_continue = reactor.parser.parse(head, self._base)
        except RefusedRequest as refused:
            return self._refuse(refused, head)
        end += 4
        if length == 0:
            if len(data) > end:
                self._buffer = data[end:]
            return self._dispatch(environ, head, keep_alive)
        self._body = BodyReader(length, reactor.settings)
        self._request = environ, head, keep_alive
        rest = data[end:]
        if expects_continue and not rest:
            try:
                self.send(CONTINUE)
            except ClientGone:
                return None
        self.phase = _BODY
        return self._take_body(rest)

    def _read_body(self) -> None:
        try:
            data = self.sock.recv(BODY_RECV_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return self.close()
        if not data:
            return self._on_end_of_stream()
        return self._take_body(data)

    def _take_body(self, data: bytes) -> None:
        assert self._body is not None
        assert self._request is not None
        body = self._body
        environ, head, keep_alive = self._request
        reactor = self.reactor
        try:
            rest = body.feed(data)
            if rest is None:
                if self._is_half_closed:
                    raise RefusedRequest(400, "the request body is cut")
                self._set_deadline(reactor.body_timeout_ns)
                if self.mask != READABLE:
                    reactor.watch(self, READABLE)
                return None
            environ["wsgi.input"] = body.open()
        except RefusedRequest as refused:
            return self._refuse(refused, head)
        self._buffer = rest
        self._request = None
        if "HTTP_TRANSFER_ENCODING" in environ:  # decoded: RFC 9112 section 7.1.3
            del environ["HTTP_TRANSFER_ENCODING"]
            environ["CONTENT_LENGTH"] = str(body.size)
        return self._dispatch(environ, head, keep_alive)

    def _dispatch(self, environ: dict[str, Any], head: bytes, keep_alive: bool) -> None:
        environ["REMOTE_ADDR"] = self.address
        environ["REMOTE_PORT"] = self._port
        self.phase = _RUNNING
        if not keep_alive:
            self._is_client_done = not self._buffer
        reactor = self.reactor
        if keep_alive and not reactor.keeps_alive:  # draining: what is here already is answered before we say close
            keep_alive = reactor.settings.keepalive > 0 and HEAD_END in self._buffer
        reactor.executor.run(Exchange(self, environ, head, keep_alive))

    def _on_end_of_stream(self) -> None:
        self._is_half_closed = True
        if self.phase is _IDLE:
            if self._buffer:
                return self._find_head()
            return self.close()
        what = "head" if self.phase is _HEAD else "body"
        return self._refuse(RefusedRequest(400, f"the request {what} is cut"), b"")

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        """Send bytes, or keep what the socket does not take; called by the owner of the running exchange.

        Raises:
            ClientGone: the client has left, or did not read within ``write_timeout`` with all buffers full.
        """
        if self._output is None:
            if self.phase is _CLOSED:
                raise ClientGone("the client is gone")
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.close()
                raise ClientGone(str(error)) from None
            if sent != len(data):
                self._keep(memoryview(data)[sent:])
        else:
            self._keep(memoryview(data))

    def _keep(self, data: memoryview) -> None:
        reactor = self.reactor
        settings = reactor.settings
        if self._output is None:
            self._output = Output(settings.write_buffer_memory, settings.tmp_upload_dir)
        output = self._output
        try:
            output.append(data)
        except OSError as error:
            log.event(
                log.ERROR,
                "response.unstored",
                f"an answer cannot be buffered in a temporary file ({error.strerror}), it is cut: make room or set "
                "tmp_upload_dir",
                tmp_upload_dir=settings.tmp_upload_dir,
                client=self.address,
            )
            self._abort()
            raise ClientGone("the answer cannot be buffered") from None
        try:
            output.flush(self.sock)
            while output.size > settings.write_buffer_limit:
                if not reactor.executor.wait_writable(self.fd, settings.write_timeout):
                    raise ClientGone("the client did not read its answer in time")
                reactor.beat()
                output.flush(self.sock)
        except OSError as error:
            self._abort()
            raise ClientGone(str(error)) from None
        if output.size == 0:
            output.close()
            self._output = None

    def _start_writing(self, keep_alive: bool) -> None:
        self._is_kept = keep_alive
        self.phase = _WRITING
        self._set_deadline(self.reactor.write_timeout_ns)
        self.reactor.watch(self, WRITABLE)

    def _flush(self) -> None:
        assert self._output is not None
        try:
            taken = self._output.flush(self.sock)
        except OSError:
            return self.close()
        if self._output.size:
            if taken:
                self.deadline_ns = self.reactor.now_ns + self.reactor.write_timeout_ns
            return None
        self._output.close()
        self._output = None
        if not self._is_kept:
            return self._finish()
        self.phase = _IDLE
        self._set_deadline(self.reactor.keepalive_ns)
        self.reactor.watch(self, READABLE)
        if self._buffer:
            self.reactor.ready.append(self)
        return None

    # ── ending ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse(self, refused: RefusedRequest, head: bytes) -> None:
        """Answer without the application, then end the connection."""
        reactor = self.reactor
        self._drop_body()
        answer = reactor.writer.refusal(refused, reactor.wall_s(), is_head=head.startswith(b"HEAD "))
        if reactor.observer is not None:
            reactor.observer.refused(self, refused, head, len(answer))
        self._buffer = b""
        try:
            self.send(answer)
        except ClientGone:
            return
        if self._output is not None:
            self._start_writing(False)
        else:
            self._linger()

    def _finish(self) -> None:
        """The last answer is out: close, unless the client may still be sending."""
        if self._is_half_closed or self._is_client_done:
            self.close()
        else:
            self._linger()

    def _linger(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return self.close()
        self.phase = _LINGERING
        self._buffer = b""
        self._set_deadline(int(LINGER_S * 1e9))
        if self.mask:
            self.reactor.watch(self, READABLE)
        return self._discard()

    def _discard(self) -> None:
        try:
            while self.sock.recv(BODY_RECV_BYTES):
                if self.reactor.now_ns > self.deadline_ns:
                    break
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # a reset: it is over in any case
        self.close()

    def _cut(self, exchange: Exchange) -> None:
        """End an answer that is not whole so that the client can tell."""
        if exchange.mode == UNTIL_CLOSE:
            self._abort()  # only a reset differs from an ordinary end
        else:
            self._finish() if self._output is None else self._start_writing(False)

    def _abort(self) -> None:
        if self.phase is not _CLOSED:
            with suppress(OSError):  # the peer is gone: there is nobody to reset
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.close()

    def close(self) -> None:
        """Close the socket and free everything; may be repeated."""
        if self.phase is _CLOSED:
            return
        self.reactor.forget(self)
        self.phase = _CLOSED
        self.sock.close()
        if self._output is not None:
            self._output.close()
            self._output = None
        if self._request is not None:
            self._drop_body()
        self._buffer = b""

    def _drop_body(self) -> None:
        """Of a request that will not run."""
        if self._body is not None:
            self._body.close()
        self._body = self._request = None

    def _set_deadline(self, timeout_ns: int) -> None:
        self.deadline_ns = self.reactor.now_ns + timeout_ns
        self.reactor.schedule(self)


def _without_empty_lines(buffer: bytes | bytearray) -> bytes | bytearray:
    start = 0
    while start < 2 * EMPTY_LINES_MAX and buffer.startswith(b"\r\n", start):
        start += 2
    return buffer[start:]
