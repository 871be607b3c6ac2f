"""One request and its answer: PEP 3333 on the server's side.

    run() ── application(environ, start_response) ──▶ iterable ──▶ head with the first block ──▶ … ──▶ close()

An exchange owns its slot (thread, greenlet, or the sync worker itself) from ``run`` until ``close()`` of the iterable
has returned.  It gets bytes out through its connection and knows nothing of sockets.

Promises: ``close()`` is called exactly once whatever happens; an application that breaks a rule, raises or exits
becomes a logged 500 where nothing was sent yet, else a connection that ends early so that the client sees that the
answer is cut; one block in hand goes out with its head in one send and with a Content-Length.
"""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from forkserve import log, tracebacks
from forkserve.clock import monotonic_ns, wall_s
from forkserve.errors import RequestTimeout
from forkserve.http.errors import BadResponse, RefusedRequest
from forkserve.http.response import CHUNKED, LAST_CHUNK, NO_BODY
from forkserve.posix import process
from forkserve.posix.scoreboard import WORKER_ID, Cell
from forkserve.server.output import FilePart

if TYPE_CHECKING:
    from forkserve.server.connection import Connection

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

NOT_SENT: Final = -4
"""Mode before the head is rendered; beside the modes of http/response.py."""

JOINED_BYTES_MAX: Final = 64 * 1024
"""A block up to this size is copied behind its head and sent with it; a longer one is sent by itself."""

ERROR_PAGE: Final = b"Internal Server Error\n"

_GONE: Final[dict[str, Any]] = {}
"""The environ of an exchange that is over."""


class ClientGone(ConnectionError):
    """The client has left, or reads too slowly: there is nobody to send to."""


class FileWrapper:
    """``wsgi.file_wrapper``: a file as an iterable of blocks (PEP 3333, optional platform-specific file handling).

    Given back as it is, a regular file is sent by the kernel (sendfile(2)) from its position on; else it is read.
    """

    def __init__(self, filelike: Any, block_size: int = 64 * 1024) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block: bytes = self.filelike.read(self.block_size)
        if not block:
            raise StopIteration
        return block

    def remaining(self) -> tuple[int, int, int] | None:
        """Descriptor, position and bytes from there to the end; None where it is no regular file."""
        try:
            fd = self.filelike.fileno()
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            position = self.filelike.tell()
        except (AttributeError, OSError, TypeError, ValueError):
            return None  # no file of the system's, or one that reads otherwise (io.UnsupportedOperation): it is read
        return fd, position, max(0, status.st_size - position)


class Exchange:
    """One call of the application.

    Args:
        connection: where the bytes go.
        environ: complete, with ``wsgi.input``.
        head: the request head as it came.
        keep_alive: does the client, and do we, want to keep the connection; afterwards: is it kept.

    Attributes:
        cell: of the scoreboard, where the call is noted; None where there are more calls than cells.
        number: of the call in this worker; 0 before it has begun.
        is_followed: has another call begun in its place, with its cell, before it was noted that it has ended?
        is_overdue: ``request_timeout`` has passed: the client has its 504, or its connection is cut.
        is_late: the time is over, but its answer has begun, and may still come to its end.
        is_interrupted: RequestTimeout has been sent to where it runs.
        may_answer: holds one item while nobody has begun to answer; None where there is no ``request_timeout``.
        may_interrupt: likewise, while the call has not ended and was not interrupted.
        place: where it runs (a thread, a greenlet), for who may interrupt it; None before it has begun.
    """

    __slots__ = (
        "body_bytes",
        "cell",
        "connection",
        "environ",
        "head",
        "headers",
        "is_cut",
        "is_ended",
        "is_followed",
        "is_head",
        "is_http11",
        "is_interrupted",
        "is_late",
        "is_long",
        "is_noted",
        "is_overdue",
        "keep_alive",
        "left",
        "may_answer",
        "may_interrupt",
        "mode",
        "number",
        "place",
        "started_ns",
        "status",
    )

    def __init__(self, connection: Connection, environ: dict[str, Any], head: bytes, keep_alive: bool) -> None:
        self.connection = connection
        self.environ = environ
        self.head = head
        self.keep_alive = keep_alive
        # Read now: the environ is the application's, which may change all of it.
        self.is_head = environ["REQUEST_METHOD"] == "HEAD"
        self.is_http11 = environ["SERVER_PROTOCOL"] == "HTTP/1.1"
        self.cell: Cell | None = None
        self.number = self.started_ns = 0
        self.place: Any = None
        self.may_answer: list[None] | None = None
        self.may_interrupt: list[None] | None = None
        self.status: str | None = None
        self.mode = NOT_SENT
        self.body_bytes = 0
        self.is_cut = self.is_ended = self.is_followed = self.is_long = self.is_noted = False
        self.is_interrupted = self.is_late = self.is_overdue = False

    def run(self) -> None:
        """Call the application, in a context of its own (contextvars), and send its answer.  Never raises."""
        copy_context().run(self._run)

    def _run(self) -> None:
        self.call()
        self.close_books()

    def call(self) -> None:
        """The first part of :meth:`run`, in a context that the caller has made; :meth:`close_books` is the second."""
        reactor = self.connection.reactor
        self.started_ns = reactor.now_ns
        cell = self.cell
        if cell is not None:
            cell.begin(reactor.now_ns, self.head)
        observer = reactor.observer
        if self.is_http11:
            self.environ["wsgi.early_hints"] = self.early_hints
        try:
            if observer is not None:
                observer.begin(self)
            result = reactor.application(self.environ, self.start_response)
            if reactor.is_forked_off:
                raise RuntimeError("a child that the application has forked came back from its call: end it (os._exit)")
            if type(result) is list or type(result) is tuple:
                self._send_whole(result)
            else:
                try:
                    if type(result) is not FileWrapper or not self._send_file(result):
                        self._send_iterable(result)
                finally:
                    close = getattr(result, "close", None)
                    if close is not None:
                        close()
        except BaseException as error:
            if os.getpid() != reactor.pid:
                self._leave_child(error)
            self._fail(error)

    def skip(self) -> None:
        """Instead of :meth:`call`: it was answered for before it began, and nobody else has heard of it."""
        self.is_ended = self.is_noted = True
        self.environ = _GONE

    def close_books(self) -> None:
        """The call has ended: note it."""
        if self.is_noted:
            return
        self.is_ended = True
        reactor = self.connection.reactor
        reactor.now_ns = now_ns = monotonic_ns()
        if self.cell is not None:
            self.cell.end()
        if reactor.observer is not None:
            reactor.observer.end(self, now_ns)
        self.is_noted = True
        self.environ = _GONE  # which holds methods of ours: no cycle is to be left to the garbage collector

    def limit_time(self, now_ns: int) -> None:
        """The call is about to begin, and may be answered for and interrupted by others."""
        self.started_ns = now_ns
        self.may_answer, self.may_interrupt = [None], [None]

    def claim_answer(self) -> bool:
        """Take the right to answer; False where it is taken.  Atomic."""
        return _claim(self.may_answer)

    def begin_answer(self) -> None:
        """The call is about to send the first bytes of its answer, if it has not yet.

        Raises:
            ClientGone: another one has answered in its place.
        """
        if self.may_answer is not None and self.mode == NOT_SENT and not self.claim_answer():
            raise ClientGone("the client has got its 504 already")

    def claim_interruption(self) -> bool:
        """Take the right to interrupt the call, or to end it uninterrupted; False where it is taken.  Atomic."""
        return _claim(self.may_interrupt)

    @property
    def is_running(self) -> bool:
        """Has the call begun, or been given to who runs it, and not ended?"""
        return self.number > 0 and not self.is_noted

    @property
    def has_answered(self) -> bool:
        """Has the application's answer begun?"""
        return self.mode != NOT_SENT

    @property
    def id(self) -> str:
        """Worker and number: this request among all of the server's."""
        return f"{self.connection.reactor.words[WORKER_ID]}.{self.number}"

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333: begin, or with ``exc_info`` replace, the answer.

        Raises:
            AssertionError: it was called before, and there is no ``exc_info``.
            BaseException: that of ``exc_info``, when the head has been sent.
        """
        if exc_info is not None:
            try:
                if self.mode != NOT_SENT:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # PEP 3333: no reference cycle through the traceback
        elif self.status is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        self.status = status
        self.headers = headers
        return self.write

    def early_hints(self, headers: Iterable[tuple[str, str]]) -> None:
        """``wsgi.early_hints``: send an interim answer 103 with these headers now (RFC 8297); Link above all.

        Does nothing once the head of the answer has been sent.

        Raises:
            BadResponse: a header cannot be sent.
            ClientGone: there is nobody to send to.
        """
        if self.mode == NOT_SENT and not self.is_ended:
            self.connection.send(self.connection.reactor.writer.early_hints(list(headers)))

    def write(self, data: bytes) -> None:
        """PEP 3333: send one block now, with the head before it if it is the first.

        Raises:
            ClientGone: there is nobody to send to.
            BadResponse: the status or headers cannot be sent, or the answer has ended already.
            TypeError: it is no bytes.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"the application gave a {type(data).__name__}, not bytes")
        if self.is_ended:
            raise BadResponse("write() was called after the end of the answer")
        if not data:
            return
        head = self._render(None) if self.mode == NOT_SENT else b""
        if self.mode >= 0:
            if len(data) > self.left:
                if not self.is_long:
                    self._log_excess(len(data) - self.left)
                self.is_long = True
                data = data[: self.left]
            self.left -= len(data)
        elif self.mode == NO_BODY:
            data = b""
        self.body_bytes += len(data)
        if self.mode == CHUNKED:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        send = self.connection.send
        if len(data) <= JOINED_BYTES_MAX:
            if head or data:
                send(head + data if head else data)
        else:
            if head:
                send(head)
            send(data)

    def _send_whole(self, blocks: list[bytes] | tuple[bytes, ...]) -> None:
        """All blocks are in hand: their length is known, and one send may do."""
        if self.mode != NOT_SENT:
            return self._send_iterable(blocks)
        data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        if not isinstance(data, bytes):
            raise TypeError(f"the application gave a {type(data).__name__}, not bytes")
        head = self._render(len(data))
        if self.mode != len(data) or len(data) > JOINED_BYTES_MAX:
            return self._send_odd(head, data)
        self.left = 0
        self.body_bytes = len(data)
        return self.connection.send(head + data)

    def _send_odd(self, head: bytes, data: bytes) -> None:
        """A head, then a block that is long, or has no place, or another length than the application said."""
        self.connection.send(head)
        self.write(data)
        self._end()

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Have the kernel send a file, as far as the Content-Length says; False where it has to be read."""
        if self.mode != NOT_SENT:
            return False
        found = wrapper.remaining()
        if found is None:
            return False
        fd, position, size = found
        head = self._render(size)
        if self.mode < 0:
            self.connection.send(head)
            self._end()
            return True
        count = min(self.mode, size)
        if count <= JOINED_BYTES_MAX:
            block = os.pread(fd, count, position)
            count = len(block)
            self.connection.send(head + block)
        else:
            self.connection.send(head)
            try:
                part = FilePart(os.dup(fd), position, position + count)
            except OSError:  # no descriptor is left: what was opened already is read
                self._send_iterable(wrapper)
                return True
            self.connection.send_file(part)
        self.left -= count
        self.body_bytes = count
        self._end()
        return True

    def _send_iterable(self, result: Iterable[bytes]) -> None:
        for block in result:
            self.write(block)
            if self.mode == NO_BODY or self.is_long:
                break  # what comes has no place: it may never end
        self._end()

    def _end(self) -> None:
        if self.mode == NOT_SENT:
            self.connection.send(self._render(0))
        elif self.mode == CHUNKED:
            self.connection.send(LAST_CHUNK)
        self.is_ended = True
        if self.mode > 0 and self.left > 0:
            self.is_cut = True
            self._log("response.short", f"the application gave {self.left} bytes less than its Content-Length")

    def _render(self, known_length: int | None) -> bytes:
        if self.status is None:
            raise BadResponse("the application did not call start_response before its first block")
        self.begin_answer()
        connection = self.connection
        head, self.mode, self.keep_alive = connection.reactor.writer.render(
            self.status,
            self.headers,
            int(wall_s()),
            known_length,
            self.is_head,
            self.is_http11,
            self.keep_alive and connection.may_keep(),
        )
        self.left = self.mode
        return head

    def _fail(self, error: BaseException) -> None:
        """The application, or its answer, is broken."""
        connection = self.connection
        if connection.is_taken:
            self.is_cut = True
            if not isinstance(error, (StopIteration, ConnectionError)):  # simple-websocket raises the first at its end
                self._log_error(error)
            return
        if isinstance(error, RequestTimeout) and self.is_overdue:
            self.is_cut = not self.is_ended  # the log has its line
            return
        if isinstance(error, ClientGone) or connection.is_lost:
            self.is_cut = True
            if not isinstance(error, (ClientGone, RefusedRequest)):
                self._log_error(error)
            return
        if isinstance(error, RefusedRequest) and self.mode == NOT_SENT:
            self._refuse(error)
            return
        self._log_error(error)
        if self.is_ended:
            return  # close() has failed after a whole answer
        if self.mode != NOT_SENT:
            self.is_cut = self.mode != NO_BODY and not (self.mode >= 0 and self.left == 0)
            return
        self._send_page("500 Internal Server Error", ERROR_PAGE)

    def _refuse(self, refused: RefusedRequest) -> None:
        """The body was read as it came, and is not what it should be."""
        self.keep_alive = False
        self._send_page(f"{refused.status} {refused.phrase}", refused.page)

    def _send_page(self, status: str, page: bytes) -> None:
        self.status, self.headers = status, [("Content-Type", "text/plain; charset=utf-8")]
        try:
            self._send_whole([page])
        except ClientGone:
            self.is_cut = True

    def _leave_child(self, error: BaseException) -> NoReturn:
        """End a child that the application forked and that has left its code: it is no worker, the client not its."""
        if isinstance(error, SystemExit):
            process.leave(error.code if isinstance(error.code, int) else int(error.code is not None))
        self._log_error(error)
        process.leave(1)

    def _log_excess(self, count: int) -> None:
        self._log("response.long", f"the application gave at least {count} bytes more than its Content-Length")

    def _log(self, code: str, message: str) -> None:
        environ = self.environ
        log.event(log.WARNING, code, message, method=environ.get("REQUEST_METHOD"), target=environ.get("RAW_URI"))

    def _log_error(self, error: BaseException) -> None:
        environ = self.environ
        trace = tracebacks.first_own_frame(error, (__file__,)) or error.__traceback__
        log.event(
            log.ERROR,
            "request.failed",
            f"the application failed: {type(error).__name__}: {_text(error)}"[:1000],
            method=environ.get("REQUEST_METHOD"),
            target=environ.get("RAW_URI"),
            client=environ.get("REMOTE_ADDR"),
            traceback="".join(traceback.format_exception(type(error), error, trace)),
        )


def _claim(claim: list[None] | None) -> bool:
    try:
        return claim is not None and claim.pop() is None
    except IndexError:
        return False


def _text(error: BaseException) -> str:
    """``str(error)``, whatever the application's class makes of it."""
    try:
        return str(error)
    except BaseException as failure:
        return f"(its __str__ raised {type(failure).__name__})"
