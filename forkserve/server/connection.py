"""The connection machine: one client's socket from accept to close.

    PREAMBLE (where proxy_protocol is on) ──▶ HANDSHAKE (where TLS is spoken) ──▶ IDLE

    IDLE ── bytes ──▶ HEAD ── head ──▶ BODY ── all ──▶ RUNNING ── answer taken ──▶ IDLE        (kept)
      ▲                 │ 4xx, 408       │ 4xx, 408       ├── reader is slow ──▶ WRITING ──▶ IDLE
      └─ pipelined      ▼                ▼                ├── body not read ──▶ SKIPPING ──▶ IDLE
                     LINGERING ◀─────────┴────────────────┴─────────────────────────┘ (closing, more may come)
                        └──▶ CLOSED

A request that comes whole (head and body in one read) passes straight from IDLE to RUNNING.  In LINGERING our side is
shut down and what the client still sends is thrown away, so that it reads our answer rather than a reset
(RFC 9112 section 9.6).

Everything here is done by whoever has the lead, but for what the owner of the running exchange calls meanwhile:
:meth:`Connection.send`, :meth:`~Connection.send_file`, :meth:`~Connection.receive_body`, :meth:`~Connection.take_over`.
While a connection is RUNNING its socket and output are the owner's, and the reactor leaves them alone.
"""

from __future__ import annotations

import io
import re
import select
import socket
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from forkserve import log
from forkserve.http.errors import RefusedRequest
from forkserve.http.request import HEAD_END
from forkserve.http.response import CONTINUE, UNTIL_CLOSE
from forkserve.posix.handover import DATA_BYTES_MAX, Giver, Passed
from forkserve.server.body import READ_BYTES_MAX, BodyFraming, BodyReader, BodyRefused, BodyStream
from forkserve.server.exchange import ClientGone, Exchange
from forkserve.server.output import FilePart, Output
from forkserve.server.transport import (
    PlainSocket,
    Transport,
    cut,
    has_unread_bytes,
    is_encrypted,
    reset_on_close,
    socket_of,
)
from forkserve.server.upgrade import ClientSocket

if TYPE_CHECKING:
    from forkserve.server.acceptor import Newcomer
    from forkserve.server.reactor import Reactor

RECV_BYTES: Final = 16 * 1024
"""One read of a head; small enough that the allocator keeps it."""
HEAD_SHOWN_BYTES: Final = 1024
"""Of a head that is refused before its end: what the access log takes of a request line."""
LINGER_S: Final = 2.0
"""How long we listen after our last word to a client that is silent; nginx's lingering_timeout is 5 s, Apache's 2 s."""
LINGER_MAX_S: Final = 30.0
"""And to one that goes on sending: it may look for our answer only afterwards (nginx's lingering_time: 30 s)."""
UNREAD_BYTES_MAX: Final = 256 * 1024
"""What an application leaves unread of a body is read and thrown away up to this size, to keep the connection
(Go's net/http: 256 KiB)."""
FIRST_BYTES: Final = 1024
"""How much of a connection is looked at to tell TLS from HTTP in clear: for the log, its request line."""
TLS_HANDSHAKE: Final = b"\x16"
"""The first byte of a client that speaks TLS: the content type of its first record (RFC 8446 section 5.1)."""

_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*")
"""RFC 9112 section 2.2 asks for one before a request to be skipped.  All are, as by nginx and llhttp: so it does not
matter how they are cut into reads, and how long they may come is limited by the deadline, which they do not move."""
_CR: Final = 13

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT


class Phase(Enum):
    """Where a connection stands."""

    PREAMBLE = "preamble"
    HANDSHAKE = "handshake"
    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    RUNNING = "running"
    WRITING = "writing"
    SKIPPING = "skipping"
    LINGERING = "lingering"
    CLOSED = "closed"


class Overdue(Enum):
    """What became of a request whose call takes longer than it may, as the log says it."""

    ANSWERED = "504"
    CUT = "its answer is cut"
    WHOLE = "it goes on after its answer"


_IDLE, _HEAD, _BODY, _RUNNING = Phase.IDLE, Phase.HEAD, Phase.BODY, Phase.RUNNING
_WRITING, _SKIPPING, _LINGERING, _CLOSED = Phase.WRITING, Phase.SKIPPING, Phase.LINGERING, Phase.CLOSED
_PREAMBLE, _HANDSHAKE = Phase.PREAMBLE, Phase.HANDSHAKE

_READING: Final = frozenset({_PREAMBLE, _HANDSHAKE, _IDLE, _HEAD, _BODY, _SKIPPING})


class Connection:
    """One client.

    Args:
        reactor: who owns it.
        newcomer: its socket, which it owns, and what is known of the client.

    Attributes:
        address: the client's: the peer's, or what the PROXY protocol says.
    """

    __slots__ = (
        "_base",
        "_body",
        "_buffer",
        "_extras",
        "_has_answered",
        "_is_client_done",
        "_is_half_closed",
        "_is_kept",
        "_is_lost",
        "_is_trusted",
        "_lent",
        "_moved",
        "_origin",
        "_output",
        "_peer",
        "_request",
        "_seen",
        "_skipped",
        "_stream",
        "_wants_continue",
        "address",
        "deadline_ns",
        "entry_ns",
        "exchange",
        "fd",
        "mask",
        "phase",
        "reactor",
        "since_ns",
        "sock",
    )

    def __init__(self, reactor: Reactor, newcomer: Newcomer) -> None:
        self.reactor = reactor
        self.sock: Transport = newcomer.sock
        self.fd = newcomer.sock.fileno()
        self._peer = newcomer.address, newcomer.port
        self._extras = newcomer.extras
        self._base = base = newcomer.base.copy()
        base["REMOTE_ADDR"], base["REMOTE_PORT"] = self._peer
        if newcomer.extras:
            base.update(newcomer.extras)
        self.address = base["REMOTE_ADDR"]
        self._is_trusted = newcomer.address in reactor.trusted_proxies
        self.phase = _IDLE
        self.mask = 0
        self.since_ns = reactor.now_ns
        self.deadline_ns = reactor.now_ns + (reactor.keepalive_ns if newcomer.is_kept else reactor.header_timeout_ns)
        if reactor.proxy_protocol is not None and newcomer.extras is None:
            self.phase = _PREAMBLE
        elif reactor.tls is not None:
            self.phase = _HANDSHAKE
            self.deadline_ns = reactor.now_ns + reactor.tls.handshake_timeout_ns
        self.entry_ns = 0
        self._origin = newcomer.origin
        self._buffer: bytes | bytearray = newcomer.data
        self._seen = 0
        self._moved = 0
        self._body: BodyReader | None = None
        self._stream: BodyStream | None = None
        self._request: tuple[dict[str, Any], bytes, bool] | None = None
        self._output: Output | None = None
        self._is_kept = False
        self._has_answered = newcomer.is_kept
        self._is_client_done = False
        self._is_half_closed = False
        self._wants_continue = False
        self._is_lost = False
        self._lent: ClientSocket | None = None
        self.exchange: Exchange | None = None

    @property
    def is_closed(self) -> bool:
        """Is the socket gone?"""
        return self.phase is _CLOSED

    @property
    def is_idle(self) -> bool:
        """Has nothing begun that would be lost with it?"""
        if self.phase is _HANDSHAKE:
            return not is_encrypted(self.sock)
        if self.phase is _IDLE:
            return not self._has_turn
        return self.phase is _PREAMBLE and not self._buffer

    @property
    def is_pausing(self) -> bool:
        """Is it between two requests, with nothing in hand of the next?"""
        return self.phase is _IDLE and self._buffer in (b"", b"\r")

    @property
    def has_answered(self) -> bool:
        """Has a request on it been answered?  Then its client knows that it may end, and asks again on another one."""
        return self._has_answered

    @property
    def is_lost(self) -> bool:
        """Is there nobody to send to any more?"""
        return self._is_lost or self.phase is _CLOSED

    @property
    def is_taken(self) -> bool:
        """Does the application use the socket itself?"""
        return self._lent is not None

    @property
    def _has_turn(self) -> bool:
        """Are bytes of a further request in hand, which :meth:`on_ready` will look at?

        No more is read before: a client that pipelines faster than it is answered would fill the memory.
        """
        return self.phase is _IDLE and len(self._buffer) > 1  # one alone may be half of an empty line

    # ── what happens ──────────────────────────────────────────────────────────────────────────────────────────────

    def on_event(self, _mask: int) -> None:
        """The socket is ready for what was asked of it, or broken."""
        phase = self.phase
        if phase is _IDLE or phase is _HEAD:
            if not (self._buffer and self._has_turn):
                self._read_head()
        elif phase is _BODY:
            self._read_body()
        elif phase is _WRITING:
            self._flush()
        elif phase is _SKIPPING:
            self._skip()
        elif phase is _LINGERING:
            self._discard()
        elif phase is _RUNNING:
            self.reactor.unwatch(self)
        elif phase is _HANDSHAKE:
            self._shake_hands()
        elif phase is _PREAMBLE:
            self._read_preamble()

    def on_ready(self) -> None:
        """The reactor's next turn for a connection that has bytes of a further request in hand."""
        if self.phase is _IDLE and self._buffer:
            self._find_head()

    def on_deadline(self) -> None:
        """The deadline has passed; what has come unseen meanwhile (the reactor may have stood still) counts.

        That the deadline has moved tells it, not the clock: other threads note the time, too, and may be late with it.
        """
        deadline_ns = self.deadline_ns
        self.on_ready()
        if self.phase in _READING:
            self.on_event(READABLE)
        if self.phase is _CLOSED or self.phase is _RUNNING or self.deadline_ns > deadline_ns:
            return
        if self.phase is _HEAD or self.phase is _BODY or (self.phase is _PREAMBLE and self._buffer):
            self._refuse(RefusedRequest(408, "the request did not arrive in time"), self._head_so_far())
        elif self.phase is _WRITING:
            log.event(log.DEBUG, "response.stalled", "the client did not read its answer in time", client=self.address)
            self._abort()
        else:
            self.close()

    def on_exchange_done(self, exchange: Exchange) -> None:
        """The exchange has ended and given its slot back; the caller has the lead."""
        self.exchange = None
        if self._body is not None:
            self._body.close()
            self._body = None
        stream = self._stream
        if stream is not None:
            if stream.is_broken:
                exchange.keep_alive = False  # whatever its head said: where the next request begins is not known
            stream.end()
        if self.phase is _CLOSED:
            return
        if self._lent is not None:
            self.close()
        elif self._is_lost and exchange.is_overdue and exchange.mode != UNTIL_CLOSE:
            self._finish()
        elif self._is_lost:
            self._abort()
        elif exchange.is_cut:
            self._cut(exchange)
        elif self._output is not None:
            self._start_writing(exchange.keep_alive)
        elif not exchange.keep_alive:
            self._finish()
        elif stream is not None:
            self._start_skipping(stream)
        else:
            self._become_idle()

    def _become_idle(self) -> None:
        """Wait for the next request; it may be here already."""
        reactor = self.reactor
        self.phase = _IDLE
        self._has_answered = True
        self.since_ns = now_ns = reactor.now_ns
        self.deadline_ns = deadline_ns = now_ns + reactor.keepalive_ns
        if deadline_ns < self.entry_ns or not self.entry_ns:
            reactor.schedule(self)
        if self._buffer:
            reactor.ready.append(self)
        elif self._is_half_closed:
            self.close()
        elif self.mask != READABLE:
            reactor.watch(self, READABLE)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _read_preamble(self) -> None:
        """Take the preamble of the PROXY protocol from the socket, and nothing of what follows it."""
        reactor = self.reactor
        assert reactor.proxy_protocol is not None
        assert isinstance(self.sock, PlainSocket)
        before = bytes(self._buffer)
        try:
            data = self.sock.recv(RECV_BYTES, socket.MSG_PEEK)
            if not data:
                return self._on_end_of_stream()
            preamble = reactor.proxy_protocol.read(before + data, self.address)
            self.sock.recv(len(data) if preamble is None else preamble.size - len(before))
        except BlockingIOError:
            return None
        except OSError:
            return self.close()
        except RefusedRequest as refused:
            return self._refuse(refused, b"")
        if preamble is None:
            self._buffer = before + data
            return None
        self._buffer = b""
        self._extras = preamble.variables
        self._base.update(self._extras)
        self.address = self._base["REMOTE_ADDR"]
        if reactor.tls is not None:
            self.phase = _HANDSHAKE
            self._set_deadline(reactor.tls.handshake_timeout_ns)
            return self._shake_hands()
        self.phase = _IDLE
        return self._read_head()

    def _shake_hands(self) -> None:
        """One step of TLS's handshake; nothing is made for a client before its first byte has come."""
        reactor = self.reactor
        assert reactor.tls is not None
        try:
            if isinstance(self.sock, PlainSocket):
                first = self.sock.recv(FIRST_BYTES, socket.MSG_PEEK)
                if first[:1] != TLS_HANDSHAKE:
                    return self._meet_without_tls(first)
                self.sock = reactor.tls.wrap(self.sock)
            awaited = self.sock.handshake()
            if awaited:
                if self.mask != awaited:
                    reactor.watch(self, awaited)
                return None
            self._base.update(self.sock.variables())
        except BlockingIOError:
            return None
        except OSError as error:
            return self._fail_handshake(error)
        self.phase = _IDLE
        self.since_ns = reactor.now_ns
        self._set_deadline(reactor.silence_ns)
        if self.mask not in (0, READABLE):
            reactor.watch(self, READABLE)
        return self._read_head()

    def _meet_without_tls(self, first: bytes) -> None:
        """What came is no TLS: HTTP in clear is answered in clear."""
        if first[:1].isalpha():
            self._refuse(RefusedRequest(400, "HTTP in clear was sent to a port that speaks TLS: use https://"), first)
        else:
            self.close()

    def _fail_handshake(self, error: OSError) -> None:
        log.event(log.DEBUG, "tls.failed", f"the TLS handshake failed: {error}", client=self.address)
        if self.sock.fileno() == -1:
            self.mask = 0  # the peer went while its socket was wrapped, which closed it and so took it out of the epoll
            self.close()
        else:
            self._linger()  # what the client sends behind its handshake must not keep it from reading why that failed

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
            if end > 0 and data[0] != _CR:
                return self._take_head(data, end)
        self._buffer += data
        return self._find_head()

    def _find_head(self) -> None:
        buffer = self._buffer
        if buffer[0] in b"\r\n":
            buffer = self._buffer = _without_empty_lines(buffer)
            self._seen = 0
            if not buffer or buffer == b"\r":
                return self._wait_for_request()
        end = buffer.find(HEAD_END, max(0, self._seen - 3))
        if end > 0:
            self._buffer, self._seen = b"", 0
            return self._take_head(bytes(buffer), end)
        reactor = self.reactor
        try:
            if buffer[0] in b"\r\n":
                raise RefusedRequest(400, "no request line")
            reactor.parser.check_partial(buffer, self._seen)
        except RefusedRequest as refused:
            return self._refuse(refused, self._head_so_far())
        if self._is_half_closed:
            return self._refuse(RefusedRequest(400, "the request head is cut"), self._head_so_far())
        self._seen = len(buffer)
        if self.phase is _IDLE:
            self._buffer = bytearray(buffer)
            self.phase = _HEAD
            self.since_ns = reactor.now_ns
            self._set_deadline(reactor.header_timeout_ns)
        if self.mask != READABLE:
            reactor.watch(self, READABLE)
        return None

    def _wait_for_request(self) -> None:
        """Nothing but empty lines has come, the last perhaps in part: no request has begun, and no deadline moves."""
        self.phase = _IDLE
        if self._is_half_closed:
            self.close()
        elif self.mask != READABLE:
            self.reactor.watch(self, READABLE)

    def _take_head(self, data: bytes, end: int) -> None:
        head = data[:end]
        reactor = self.reactor
        try:
            environ, length, keep_alive, expects_continue = reactor.parser.parse(head, self._base, self._is_trusted)
        except RefusedRequest as refused:
            return self._refuse(refused, head)
        end += 4
        if length == 0:
            if len(data) > end:
                self._buffer = data[end:]
            return self._dispatch(environ, head, keep_alive)
        framing = BodyFraming(length, reactor.settings)
        rest = data[end:]
        self._wants_continue = expects_continue and not rest
        self.since_ns = reactor.now_ns
        self._moved = 0
        if not reactor.settings.request_buffering:
            self._stream = BodyStream(framing, rest, self.receive_body)
            environ["wsgi.input"] = io.BufferedReader(self._stream, READ_BYTES_MAX)
            return self._dispatch(environ, head, keep_alive)
        self._body = BodyReader(framing, reactor.settings)
        self._request = environ, head, keep_alive
        try:
            self._answer_continue()
        except ClientGone:
            return self.close()
        self.phase = _BODY
        return self._take_body(rest)

    def _answer_continue(self) -> None:
        """Say 100 Continue where the client waits for it (RFC 9110 section 10.1.1)."""
        if self._wants_continue:
            self._wants_continue = False
            self.send(CONTINUE)

    def _read_body(self) -> None:
        assert self._body is not None
        try:
            data = self.sock.recv(self._body.framing.read_bytes)
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
                self._moved += len(data)
                self.deadline_ns = self._body_deadline_ns()
                reactor.schedule(self)
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
        self.phase = _RUNNING
        if not keep_alive:
            self._is_client_done = not self._buffer
        if "HTTP_UPGRADE" in environ:
            environ["gunicorn.socket"] = ClientSocket(self)
        reactor = self.reactor
        if keep_alive and not reactor.keeps_alive:
            # Leaving: it moves to another worker afterwards, or what is here already is answered before we say close.
            has_more = HEAD_END in self._buffer or (self.is_movable and reactor.has_heir())
            keep_alive = reactor.settings.keepalive > 0 and has_more
        self.exchange = Exchange(self, environ, head, keep_alive)
        reactor.dispatch(self.exchange)

    def _body_deadline_ns(self) -> int:
        reactor = self.reactor
        return paced_deadline_ns(
            reactor.now_ns, self.since_ns, reactor.body_timeout_ns, self._moved, reactor.settings.body_min_rate
        )

    def _on_end_of_stream(self) -> None:
        self._is_half_closed = True
        if self.phase is _IDLE and self._buffer:
            return self._find_head()
        if self.is_idle:
            return self.close()
        what = "body" if self.phase is _BODY else "head"
        return self._refuse(RefusedRequest(400, f"the request {what} is cut"), self._head_so_far())

    def _head_so_far(self) -> bytes:
        """Of the request that is on its way: says how it is refused (HEAD: without a body), and is logged."""
        if self.phase is _PREAMBLE:
            return b""
        return bytes(self._buffer[:HEAD_SHOWN_BYTES]) if self._request is None else self._request[1]

    def end_overdue(self, exchange: Exchange, *, has_no_answer: bool) -> Overdue:
        """The call takes longer than it may: answer in its place, or cut what it has begun.

        The connection stays the call's until that has ended, but it can send nothing more.

        Args:
            has_no_answer: the claim to answer is the caller's.
        """
        if exchange.is_ended:
            return Overdue.WHOLE
        is_answered = has_no_answer and self._output is None and self._lent is None
        if is_answered:
            refused = RefusedRequest(504, "the application took too long")
            answer = self.reactor.refusal(self, refused, exchange.head)
            with suppress(OSError):  # the client is gone, or does not even take so much
                self.sock.send(answer)
        self._is_lost = True
        if self._lent is not None:  # at this very moment
            self._lent.close()
            return Overdue.CUT
        with suppress(OSError):  # the client was first
            if is_answered and self._stream is None:
                self.sock.shutdown(socket.SHUT_WR)
            elif exchange.mode == UNTIL_CLOSE:
                reset_on_close(self.sock)  # when the call has ended, or its process: an end now would look like the end
            else:
                cut(self.sock)  # a thread that waits for the body or to send sees that
        return Overdue.ANSWERED if is_answered else Overdue.CUT

    # ── for the owner of the running exchange ─────────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        """Send bytes, or keep what the socket does not take.

        Raises:
            ClientGone: the client has left, or did not read in time with all buffers full.
        """
        if self._output is None:
            if self._is_lost or self.phase is _CLOSED:
                raise ClientGone("the client is gone")
            if self._lent is not None:
                raise ClientGone("the application has taken the socket")
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._is_lost = True
                raise ClientGone(str(error)) from None
            if sent != len(data):
                self._keep(memoryview(data)[sent:])
        else:
            self._keep(memoryview(data))

    def send_file(self, part: FilePart) -> None:
        """Send a part of a file, whose descriptor is this connection's from now on; what is left, the reactor sends.

        Raises:
            ClientGone: the client has left.
        """
        output = self._output = self._output or self._new_output()
        output.append_file(part)
        self._flush_or_lose(output)

    def receive_body(self) -> bytes:
        """Wait for the next bytes of a body that is read as it comes.

        Raises:
            BodyRefused: it is cut, or too slow.
            ClientGone: the client has left.
        """
        reactor = self.reactor
        self._answer_continue()
        reactor.beat()
        deadline_ns = self._body_deadline_ns()
        while True:
            try:
                data = self.sock.recv(READ_BYTES_MAX)
            except BlockingIOError:
                reactor.beat()
                left_ns = deadline_ns - reactor.now_ns
                if left_ns <= 0 or not reactor.executor.wait(self.fd, READABLE, left_ns / 1e9):
                    raise BodyRefused(408, "the request did not arrive in time") from None
                continue
            except OSError as error:
                self._is_lost = True
                raise ClientGone(str(error)) from None
            if not data:
                self._is_half_closed = True
                raise BodyRefused(400, "the request body is cut")
            self._moved += len(data)
            return data

    def may_keep(self) -> bool:
        """Can the rest of a body that is read as it comes be skipped, should the application not want it?"""
        stream = self._stream
        if stream is None or stream.rest is not None:
            return True
        return not (stream.is_broken or self._wants_continue or stream.framing.left > UNREAD_BYTES_MAX)

    def take_over(self, by: ClientSocket) -> tuple[socket.socket, bytes]:
        """The application speaks on the socket itself from now on: the socket, blocking, and what was read of it.

        The socket is the caller's; :meth:`close` ends the conversation by ``by.close()``.

        Raises:
            ClientGone: the client has got its 504 already.
        """
        if self.exchange is not None:
            self.exchange.begin_answer()
        self._lent = by
        data, self._buffer = bytes(self._buffer), b""
        return self.reactor.executor.lend(socket_of(self.sock)), data

    def _new_output(self) -> Output:
        settings = self.reactor.settings
        return Output(settings.write_buffer_memory, settings.tmp_upload_dir)

    def _keep(self, data: memoryview) -> None:
        reactor = self.reactor
        settings = reactor.settings
        output = self._output = self._output or self._new_output()
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
            self._is_lost = True
            raise ClientGone("the answer cannot be buffered") from None
        self._flush_or_lose(output)
        since_ns, before = reactor.now_ns, output.taken
        while output.size > settings.write_buffer_limit:
            deadline_ns = self._write_deadline_ns(since_ns, output.taken - before)
            if not reactor.executor.wait(self.fd, WRITABLE, max(0, deadline_ns - reactor.now_ns) / 1e9):
                self._is_lost = True
                raise ClientGone("the client did not read its answer in time")
            reactor.beat()
            self._flush_or_lose(output)

    def _flush_or_lose(self, output: Output) -> None:
        try:
            output.flush(self.sock)
        except OSError as error:
            self._is_lost = True
            raise ClientGone(str(error)) from None
        if output.is_empty:
            output.close()
            self._output = None

    def _write_deadline_ns(self, since_ns: int, taken: int) -> int:
        reactor = self.reactor
        timeout_ns, rate = reactor.write_timeout_ns, reactor.settings.write_min_rate
        return paced_deadline_ns(reactor.now_ns, since_ns, timeout_ns, taken, rate)

    # ── passing on ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_movable(self) -> bool:
        """May another process take it over?  The keys of an encrypted one are in this one."""
        return not is_encrypted(self.sock) and not self._is_half_closed

    def passed(self) -> Passed | None:
        """What another worker needs to go on with this connection; None where it cannot move now.

        It moves between requests, with the part of a head that has come, and while a complete request waits to be run.
        """
        if not self.is_movable or self._stream is not None:
            return None
        data = bytes(self._buffer)
        if self.phase is _RUNNING and self.exchange is not None and not self.exchange.number:
            body = b"" if self._body is None else self._body.as_sent
            if body is None:
                return None
            data = b"".join((self.exchange.head, HEAD_END, body, data))
        elif self.phase not in (_HANDSHAKE, _IDLE, _HEAD):
            return None
        if len(data) > DATA_BYTES_MAX:
            return None
        return Passed(self._origin, *self._peer, self._extras or {}, data, self._has_answered)

    def give_to(self, giver: Giver) -> bool:
        """Let others have this connection, if it can move now and there is room on the way."""
        passed = self.passed()
        if passed is None or not giver.give(self.fd, passed):
            return False
        self.close()
        return True

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_writing(self, keep_alive: bool) -> None:
        assert self._output is not None
        self._is_kept = keep_alive
        self.phase = _WRITING
        self.since_ns = self.reactor.now_ns
        self._moved = self._output.taken
        self._set_deadline(self.reactor.write_timeout_ns)
        self.reactor.watch(self, WRITABLE)

    def _flush(self) -> None:
        output = self._output
        assert output is not None
        try:
            output.flush(self.sock)
        except OSError:
            return self.close()
        if not output.is_empty:
            self.deadline_ns = self._write_deadline_ns(self.since_ns, output.taken - self._moved)
            return None
        output.close()
        self._output = None
        if not self._is_kept:
            return self._finish()
        if self._stream is not None:
            return self._start_skipping(self._stream)
        return self._become_idle()

    def _start_skipping(self, stream: BodyStream) -> None:
        """The application has answered; read past what it has not read of the body."""
        self._stream = None
        if stream.rest is not None:
            self._buffer = stream.rest
            return self._become_idle()
        self._skipped = stream.framing
        self.phase = _SKIPPING
        self.since_ns = self.reactor.now_ns
        self._moved = 0
        self._set_deadline(self.reactor.body_timeout_ns)
        self.reactor.watch(self, READABLE)
        return None

    def _skip(self) -> None:
        try:
            data = self.sock.recv(self._skipped.read_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return self.close()
        self._moved += len(data)
        try:
            _block, rest = self._skipped.feed(data)
        except RefusedRequest:
            return self._linger()  # the answer is out; nothing more can be said
        if rest is not None:
            self._buffer = rest
            return self._become_idle()
        if not data or self._moved > UNREAD_BYTES_MAX:
            return self._linger()
        self.deadline_ns = self._body_deadline_ns()
        return None

    # ── ending ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse(self, refused: RefusedRequest, head: bytes) -> None:
        """Answer without the application, then end the connection."""
        reactor = self.reactor
        self._drop_body()
        answer = reactor.refusal(self, refused, head)
        self._buffer = b""
        try:
            self.send(answer)
        except ClientGone:
            return self.close()
        if self._output is not None:
            return self._start_writing(False)
        return self._linger()

    def _finish(self) -> None:
        """The last answer is out: close, unless the client may still be sending."""
        is_body_over = self._stream is None or self._stream.rest == b""
        if self._is_half_closed or (self._is_client_done and is_body_over and not self._has_unread_bytes()):
            self.close()
        else:
            self._linger()

    def _has_unread_bytes(self) -> bool:
        """Has a client that said that it would send no more sent more, an empty line say?  To close over that resets
        the connection, and the rest of its answer could be lost (RFC 9112 section 9.6)."""
        try:
            return has_unread_bytes(self.sock)
        except OSError:
            return False  # nothing is there, or nobody

    def _linger(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return self.close()
        self.phase = _LINGERING
        self._buffer = b""
        self.since_ns = self.reactor.now_ns
        self._set_deadline(int(LINGER_S * 1e9))
        return self._discard()

    def _discard(self) -> None:
        """Throw away what comes, until the client ends, is silent, or goes on for too long."""
        reactor = self.reactor
        is_over = False
        try:
            if self.sock.recv(READ_BYTES_MAX):
                self.deadline_ns = min(reactor.now_ns + int(LINGER_S * 1e9), self.since_ns + int(LINGER_MAX_S * 1e9))
            else:
                is_over = True
        except BlockingIOError:
            pass  # it is silent
        except OSError:
            is_over = True  # a reset
        if is_over:
            self.close()
        elif self.mask != READABLE:
            reactor.watch(self, READABLE)

    def _cut(self, exchange: Exchange) -> None:
        """End an answer that is not whole so that the client can tell."""
        if exchange.mode == UNTIL_CLOSE:
            self._abort()  # only a reset differs from an ordinary end
        else:
            self._finish() if self._output is None else self._start_writing(False)

    def _abort(self) -> None:
        if self.phase is not _CLOSED:
            with suppress(OSError):  # the peer is gone: there is nobody to reset
                reset_on_close(self.sock)
            self.close()

    def close(self) -> None:
        """Close the socket and free everything; may be repeated."""
        if self.phase is _CLOSED:
            return
        self.reactor.forget(self)
        self.phase = _CLOSED
        if self._lent is None:
            self.sock.close()
        else:
            self._lent.close()
            self._lent = None
        if self._output is not None:
            self._output.close()
            self._output = None
        if self._request is not None:
            self._drop_body()
        self._stream = None
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
    match = _EMPTY_LINES.match(buffer)
    assert match is not None
    return buffer[match.end() :]


def paced_deadline_ns(now_ns: int, since_ns: int, timeout_ns: int, moved_bytes: int, rate: int) -> int:
    """Until when a transfer may go on: ``timeout_ns`` of silence; and of slowness, ahead of the minimum rate.

    Args:
        now_ns: when bytes moved last.
        since_ns: when the transfer began.
        timeout_ns: how long it may be silent, or behind the rate.
        moved_bytes: since it began.
        rate: bytes a second; 0 is none.
    """
    if not rate:
        return now_ns + timeout_ns
    return min(now_ns, since_ns + moved_bytes * 1_000_000_000 // rate) + timeout_ns
