"""A reactor in a thread of the tests' process, on a port of the system's choosing; and a client of raw bytes.

with serving(application, header_timeout=1) as server:
    answers = server.talk(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")

It is of the worker type of the test (the fixture ``worker_type`` in conftest.py), of sync where that does not matter.
Nothing is patched here: an application that blocks is not for gevent, whose type is tried with such in real processes.
"""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import cycle
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from forkserve.posix.scoreboard import Row, Scoreboard
from forkserve.server.reactor import Observer, Reactor
from forkserve.server.tls import TlsServer
from forkserve.settings import Settings
from forkserve.workers import load_worker_class
from forkserve.workers.expectation import Expectation, Mode
from forkserve.workers.ggevent import GeventExecutor
from forkserve.workers.gthread import ThreadExecutor

DEADLINE_S = 10.0
"""No test waits longer for a fact."""


class EveryOther(Expectation):
    """Expects the unexpected: one call on the pool, the next in place, closely watched or not."""

    def __init__(self) -> None:
        super().__init__()
        self._modes = cycle((Mode.QUEUED, Mode.INLINE, Mode.QUEUED, Mode.TRIAL))

    def mode(self, now_ns: int) -> Mode:
        return next(self._modes)


class AlternatingThreads(ThreadExecutor):
    """gthread that does not wait for calls to block before it uses its pool."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._expectation = EveryOther()


class UnpatchedGevent(GeventExecutor):
    """gevent with the hub of the serving thread, and the standard library as it is."""

    @classmethod
    def prepare(cls) -> None:
        """Patch nothing: this process is pytest's."""

    def serve(self, reactor: Reactor) -> None:
        super().serve(reactor)
        self._hub.destroy()


WORKER_TYPES: dict[str, dict[str, Any]] = {
    "sync": {"worker_class": "sync"},
    "gthread": {"worker_class": f"{__name__}.AlternatingThreads", "threads": 4},
    "gevent": {"worker_class": f"{__name__}.UnpatchedGevent"},
}
"""The settings of each type's reactors here."""

worker_type_here: ContextVar[str] = ContextVar("worker_type_here", default="sync")
"""Of which type reactors are, unless the settings say it."""


@dataclass
class Answer:
    """One response as it came over the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_whole: bool = True

    def header(self, name: str) -> str | None:
        """The only value of a header; None where it is missing."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else None


@dataclass
class Served:
    """A running reactor."""

    reactor: Reactor
    address: Any
    family: int
    wake: Callable[[Callable[[], None]], None]
    thread: threading.Thread
    problems: list[BaseException] = field(default_factory=list)

    def connect(self) -> socket.socket:
        """A new client connection."""
        client = socket.socket(self.family)
        client.settimeout(DEADLINE_S)
        try:
            client.connect(self.address)
        except OSError:
            client.close()
            raise
        return client

    def talk(
        self, data: bytes | Iterable[bytes], *, methods: tuple[str, ...] = (), finish: bool = True
    ) -> list[Answer]:
        """Send bytes, end our side, and read all answers until the server closes."""
        with self.connect() as client:
            for part in (data,) if isinstance(data, bytes) else data:
                try:
                    client.sendall(part)
                except (BrokenPipeError, ConnectionResetError):
                    break  # refused already: its answer is read below
            if finish:
                with suppress(OSError):  # the server was first
                    client.shutdown(socket.SHUT_WR)
            return read_answers(client.makefile("rb"), methods)

    def join(self) -> None:
        """Wait until the reactor has ended by itself."""
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the reactor did not end"


@contextmanager
def serving(
    application: Callable[..., Any],
    *,
    host: str = "127.0.0.1",
    unix_path: str | None = None,
    observer: Observer | None = None,
    errors: Any = None,
    tls: TlsServer | None = None,
    row: Row | None = None,
    reactor_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """Run a reactor for the time of a test."""
    if unix_path is None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        takes_both = host.startswith("::ffff:")
        listener = socket.create_server((host, 0), family=family, backlog=128, dualstack_ipv6=takes_both)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(unix_path)
        listener.listen(128)
    listener.setblocking(False)
    board = Scoreboard.create(1)
    made = Settings(**{**WORKER_TYPES[worker_type_here.get()], **settings})
    reader, writer = os.pipe2(os.O_NONBLOCK)
    calls: list[Callable[[], None]] = []

    def on_wake() -> None:
        with suppress(BlockingIOError):  # an event that is past
            os.read(reader, 1)
            calls.pop(0)()

    def wake(call: Callable[[], None]) -> None:
        calls.append(call)
        os.write(writer, b"x")

    born: SimpleQueue[Reactor | None] = SimpleQueue()
    problems: list[BaseException] = []

    def run() -> None:
        try:
            reactor = Reactor(
                application=application,
                settings=made,
                listeners=[SimpleNamespace(socket=listener)],
                executor=load_worker_class(made.worker_type)(made),
                row=row or board.row(0),
                errors=errors or sys.stderr,
                tls=tls,
                observer=observer,
                **(reactor_options or {}),
            )
            reactor.add_reader(reader, on_wake)
            born.put(reactor)
            reactor.run()
        except BaseException as error:
            problems.append(error)
            born.put(None)

    address, family = listener.getsockname(), listener.family
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    reactor = born.get()
    try:
        assert reactor is not None, problems
        yield Served(reactor, address, family, wake, thread, problems)
    finally:
        if reactor is not None:
            wake(reactor.stop)
        thread.join(DEADLINE_S)
        os.close(reader)
        os.close(writer)
        listener.close()
        os.close(board.fd)
        assert not thread.is_alive(), "the reactor did not stop"
        assert not problems, problems


def read_answers(stream: io.BufferedReader, methods: tuple[str, ...] = ()) -> list[Answer]:
    """All answers until the stream ends; informational ones too."""
    answers: list[Answer] = []
    finals = 0
    while True:
        method = methods[finals] if finals < len(methods) else "GET"
        try:
            answer = read_answer(stream, method)
        except ConnectionResetError:
            return answers
        if answer is None:
            return answers
        answers.append(answer)
        finals += answer.status >= 200


def read_answer(stream: io.BufferedReader, method: str = "GET") -> Answer | None:
    """The next answer, framed strictly; None at the end of the stream."""
    line = stream.readline()
    if not line:
        return None
    match = re.fullmatch(rb"HTTP/1\.1 ([1-9]\d\d) [^\r\n]*\r\n", line)
    assert match, f"bad status line {line!r}"
    status = int(match[1])
    headers = []
    while (line := stream.readline()) != b"\r\n":
        match = re.fullmatch(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ?([^\r\n\0]*)\r\n", line)
        assert match, f"bad header line {line!r}"
        headers.append((match[1].decode(), match[2].decode("latin-1")))
    answer = Answer(status, headers, b"")
    if status < 200 or status in (204, 304) or method == "HEAD":
        return answer
    length = answer.header("Content-Length")
    if answer.header("Transfer-Encoding") == "chunked":
        assert length is None
        answer.body, answer.is_whole = _read_chunked(stream)
    elif length is not None:
        answer.body = stream.read(int(length))
        answer.is_whole = len(answer.body) == int(length)
    else:
        answer.body = stream.read()
    return answer


def _read_chunked(stream: io.BufferedReader) -> tuple[bytes, bool]:
    body = b""
    while True:
        line = stream.readline()
        if not line:
            return body, False
        size = int(line, 16)
        body += stream.read(size)
        if stream.read(2) != b"\r\n":
            return body, False
        if size == 0:
            return body, True
