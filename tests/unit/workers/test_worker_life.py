"""The life of a worker as its master sees it: a real process, its channel, its row, its signals.

The worker is a fork of pytest's process, which gevent cannot patch any more; its life is in tests/integration.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

from forkserve import messages
from forkserve.clock import monotonic_ns, monotonic_s
from forkserve.posix import process, stacks
from forkserve.posix.channel import CLOSED, Channel, channel_pair
from forkserve.posix.listeners import Listener, open_listener, parse_address
from forkserve.posix.scoreboard import REQUESTS, Row, Scoreboard
from forkserve.server.context import WorkerContext
from forkserve.settings import Hooks, Settings
from forkserve.workers.base import run_worker
from tests.serving import worker_type_here

pytestmark = [
    pytest.mark.usefixtures("worker_type"),
    pytest.mark.worker_types("sync", "gthread"),  # gevent would patch what pytest has imported
]

DEADLINE_S = 10.0
TYPES: dict[str, dict[str, Any]] = {"sync": {}, "gthread": {"threads": 2}}
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(DEADLINE_S)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello, World\n"]


@dataclass
class Born:
    """A worker process, from its master's side."""

    pid: int
    pidfd: int
    channel: Channel
    row: Row
    listener: Listener
    stack_fd: int
    context: WorkerContext

    def next_message(self) -> Any:
        """The next message, or CLOSED."""
        assert select.select([self.channel.fileno()], [], [], DEADLINE_S)[0], "no message"
        received = self.channel.receive()
        return received if received is CLOSED or received is None else received[0]

    def connect(self) -> socket.socket:
        """A client."""
        client = socket.socket()
        client.settimeout(DEADLINE_S)
        client.connect(self.listener.socket.getsockname())
        return client

    def get(self, request: bytes = GET) -> bytes:
        """One answer on a connection of its own."""
        with self.connect() as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return client.makefile("rb").read()

    def exit_status(self) -> process.ExitStatus:
        """How it ended."""
        assert select.select([self.pidfd], [], [], DEADLINE_S)[0], "the worker did not end"
        status = process.reap(self.pidfd)
        assert status is not None
        return status


@contextmanager
def worker(
    application: Callable[..., Any] | None = hello,
    *,
    hooks: Hooks | None = None,
    access_fd: int | None = None,
    error_fd: int | None = None,
    **settings: Any,
) -> Iterator[Born]:
    """A worker for the time of a test."""
    listener = open_listener(parse_address("127.0.0.1:0"), backlog=64)
    ours, theirs = channel_pair()
    board = Scoreboard.create(1)
    row = board.row(0)
    row.claim(worker_id=7, generation=2, now_ns=monotonic_ns())
    stack_fd = stacks.make_stack_file()
    context = WorkerContext(
        settings=Settings(**{**TYPES[worker_type_here.get()], **settings}),
        hooks=hooks or Hooks(),
        application=application,
        listeners=[listener],
        channel=theirs,
        row=row,
        worker_id=7,
        generation=2,
        stack_fd=stack_fd,
        error_fd=error_fd,
        access_fd=access_fd,
        master_pid=os.getpid(),
    )

    def main() -> NoReturn:
        ours.close()
        run_worker(context)

    pid = process.fork_child(main)
    theirs.close()
    pidfd = process.open_pidfd(pid)
    assert pidfd is not None
    try:
        yield Born(pid, pidfd, ours, row, listener, stack_fd, context)
    finally:
        process.signal_process(pidfd, signal.SIGKILL)
        if select.select([pidfd], [], [], DEADLINE_S)[0]:
            process.reap(pidfd)
        ours.close()
        listener.close()
        for fd in (pidfd, stack_fd, board.fd):
            os.close(fd)


def wait_for(fact: Callable[[], Any], what: str) -> None:
    deadline = monotonic_s() + DEADLINE_S
    while not fact():
        assert monotonic_s() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.005)


def test_worker_says_ready_serves_and_leaves_when_drained() -> None:
    with worker() as born:
        assert isinstance(born.next_message(), messages.Ready)
        assert born.get().endswith(b"\r\n\r\nHello, World\n")
        assert born.row.words[REQUESTS] == 1
        born.channel.send(messages.Drain(stopping=True))
        assert born.next_message() is CLOSED
        assert born.exit_status() == process.ExitStatus(0)


def test_worker_loads_the_application_itself_when_there_is_none() -> None:
    with worker(None, app="wsgiref.simple_server:demo_app") as born:
        assert isinstance(born.next_message(), messages.Ready)
        assert b"Hello world!" in born.get()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"app": "no_such_module_here:app"}, "no_such_module_here"),
        ({"app": None}, "no application"),
        ({"app": "wsgiref.simple_server:demo_app", "worker_class": "no.such.Class"}, "no.such.Class"),
    ],
)
def test_worker_that_cannot_boot_says_why_and_exits_with_3(settings: dict[str, Any], text: str) -> None:
    with worker(None, **settings) as born:
        message = born.next_message()
        assert isinstance(message, messages.BootFailed)
        assert text in message.message
        assert born.exit_status().code == 3


def test_term_is_passed_on_as_a_wish_and_group_signals_are_ignored() -> None:
    with worker() as born:
        born.next_message()
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            process.signal_process(born.pidfd, signum)
        assert born.next_message() == messages.RetireWish(reason="signal")
        assert b"Hello" in born.get()


def test_quit_leaves_at_once_even_in_mid_request() -> None:
    with worker() as born, born.connect() as client:
        born.next_message()
        client.sendall(GET.replace(b" / ", b" /sleep "))
        wait_for(lambda: born.row.in_flight(), "the request runs")
        process.signal_process(born.pidfd, signal.SIGQUIT)
        assert born.exit_status() == process.ExitStatus(0)


def test_abort_writes_the_stack_and_the_row_tells_the_request(tmp_path: Any) -> None:
    note = tmp_path / "aborted"
    hooks = Hooks(worker_abort=lambda view: note.write_text(str(view.age)))
    with worker(hooks=hooks) as born, born.connect() as client:
        born.next_message()
        client.sendall(GET.replace(b" / ", b" /sleep "))
        wait_for(lambda: born.row.in_flight(), "the request runs")
        process.signal_process(born.pidfd, signal.SIGABRT)
        assert born.exit_status().code == 134
        assert "in hello" in stacks.read_stacks(born.stack_fd)
        assert note.read_text() == "7"
        (in_flight,) = born.row.in_flight()
        assert in_flight.request_line == "GET /sleep HTTP/1.1"


def test_worker_without_master_answers_what_it_has_and_leaves() -> None:
    with worker() as born, born.connect() as client:
        born.next_message()
        born.channel.close()
        answer = b""
        while b"Connection: close" not in answer:  # the worker may see our request before it sees that we are gone
            client.sendall(GET)
            answer = client.recv(1000)
            assert b"Hello" in answer
        client.close()
        assert born.exit_status() == process.ExitStatus(0)


def test_worker_wishes_once_to_be_replaced_after_max_requests_and_goes_on() -> None:
    with worker(max_requests=3) as born:
        born.next_message()
        for _ in range(6):
            assert b"Hello" in born.get()
        assert born.next_message() == messages.RetireWish(reason="max_requests")
        born.channel.send(messages.Drain(stopping=False))
        assert born.next_message() is CLOSED


def test_logs_are_reopened_in_place(tmp_path: Any) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old_fd = os.open(old, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    new_fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with worker(accesslog=str(old), access_fd=old_fd) as born:
        born.next_message()
        born.get()
        wait_for(lambda: old.read_text(), "a line")
        born.channel.send(messages.ReopenLogs(error=False, access=True), [new_fd])
        wait_for(lambda: born.get() and new.read_text(), "a line in the new file")
    os.close(old_fd)
    os.close(new_fd)
    assert '"GET / HTTP/1.1" 200 13' in new.read_text()


def test_hooks_are_called_with_views_and_a_failing_one_ends_nothing(tmp_path: Any) -> None:
    notes = tmp_path / "notes"

    def note(text: str) -> None:
        with notes.open("a") as file:
            file.write(text + "\n")

    def failing(*arguments: Any) -> None:
        note("failing")
        raise RuntimeError("in a hook")

    hooks = Hooks(
        post_fork=lambda server, view: note(f"post_fork {view.age} {view.pid == os.getpid()}"),
        post_worker_init=failing,
        pre_request=lambda view, req: note(f"pre_request {req.method} {req.path} {req.query} {view.nr}"),
        post_request=lambda view, req, environ, resp: note(f"post_request {resp.status_code} {environ['PATH_INFO']}"),
        worker_exit=lambda server, view: note(f"worker_exit {view.alive}"),
    )
    with worker(hooks=hooks) as born:
        born.next_message()
        assert b"Hello" in born.get(GET.replace(b" / ", b" /p?q "))
        born.channel.send(messages.Drain(stopping=False))
        assert born.exit_status().code == 0
    assert notes.read_text().splitlines() == [
        "post_fork 7 True",
        "failing",
        "pre_request GET /p q 1",
        "post_request 200 /p",
        "worker_exit False",
    ]


def test_atexit_handlers_of_the_application_run(tmp_path: Any) -> None:
    note = tmp_path / "atexit"

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        import atexit

        atexit.register(note.write_text, "ran")
        return hello(environ, start_response)

    with worker(application) as born:
        born.next_message()
        born.get()
        born.channel.send(messages.Drain(stopping=False))
        born.exit_status()
    assert note.read_text() == "ran"
