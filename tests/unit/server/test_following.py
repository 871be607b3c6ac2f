"""What waits for room begins in the order in which it came, in the thread whose call has ended (Reactor.follow)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from forkserve.posix.scoreboard import CALLS, REQUESTS, WAITING
from forkserve.workers.expectation import Mode
from forkserve.workers.gthread import CallThread
from tests.serving import DEADLINE_S, Served, read_answer, serving
from tests.unit.server.test_connections import GET, wait_for

THREADS = 2


class Held:
    """An application whose calls end when they are told to, each by itself."""

    def __init__(self) -> None:
        self.may_end: dict[str, threading.Event] = defaultdict(threading.Event)
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.running = self.running_max = 0
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        path = environ["PATH_INFO"]
        with self._lock:
            self.begun.append(path)
            self.running += 1
            self.running_max = max(self.running_max, self.running)
        assert self.may_end[path].wait(DEADLINE_S)
        with self._lock:
            self.running -= 1
            self.ended.append(path)
        start_response("200 OK", [])
        return [path.encode()]


def ask_all(stack: ExitStack, server: Served, application: Held, count: int) -> list[Any]:
    """Requests /0, /1, …, of which as many run as may, and the others wait."""
    streams = []
    for number in range(count):
        client = stack.enter_context(server.connect())
        client.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        streams.append(stack.enter_context(client.makefile("rb")))
        wait_for(has_come(server, application, number), "the request runs or waits")
    return streams


def has_come(server: Served, application: Held, number: int) -> Callable[[], bool]:
    return lambda: len(application.begun) + len(server.reactor._waiting) == number + 1


def test_what_waits_begins_in_order_and_never_more_than_may_run() -> None:
    application = Held()
    with ExitStack() as stack:
        server = stack.enter_context(serving(application, worker_class="gthread", threads=THREADS))
        streams = ask_all(stack, server, application, 8)
        assert application.begun == ["/0", "/1"]
        assert server.reactor.words[WAITING] == 6
        for number in range(8):
            application.may_end[f"/{number}"].set()
            answer = read_answer(streams[number])
            assert answer is not None
            assert answer.body == b"/%d" % number
            wait_for(lambda: len(application.begun) == min(8, number + 1 + THREADS), "the next begins")  # noqa: B023
        assert application.begun == [f"/{number}" for number in range(8)]
        assert application.running_max == THREADS
        wait_for(lambda: server.reactor.words[REQUESTS] == 8, "all are noted")
        assert (server.reactor.words[CALLS], server.reactor.words[WAITING]) == (0, 0)
        assert len(server.reactor._cells) == THREADS, "each cell was given back once"


def test_what_waits_begins_though_the_thread_that_polls_is_busy() -> None:
    application = Held()
    is_busy, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        is_busy.set()
        assert may_go_on.wait(DEADLINE_S)

    with ExitStack() as stack:
        server = stack.enter_context(serving(application, worker_class="gthread", threads=THREADS))
        ask_all(stack, server, application, 4)
        server.wake(hold)
        assert is_busy.wait(DEADLINE_S)
        try:
            application.may_end["/1"].set()  # /0 is run by the thread that serves
            wait_for(lambda: "/2" in application.begun, "/2 begins")
            application.may_end["/2"].set()
            wait_for(lambda: "/3" in application.begun, "/3 begins")
            assert application.ended == ["/1", "/2"]
        finally:
            may_go_on.set()
            for path in ("/0", "/3"):
                application.may_end[path].set()
        wait_for(lambda: server.reactor.words[REQUESTS] == 4, "all are noted")
        assert server.reactor.words[CALLS] == 0


def test_with_a_time_limit_each_call_has_its_own_from_its_beginning() -> None:
    application = Held()
    with ExitStack() as stack:
        server = stack.enter_context(
            serving(application, worker_class="gthread", threads=THREADS, request_timeout=DEADLINE_S)
        )
        streams = ask_all(stack, server, application, 4)
        waiting = [exchange.connection for exchange in server.reactor._waiting]
        for number in (0, 1):
            application.may_end[f"/{number}"].set()
            assert read_answer(streams[number]) is not None
        wait_for(lambda: len(application.begun) == 4, "all have begun")
        for connection in waiting:
            assert connection.exchange is not None
            assert connection.exchange.may_interrupt is not None
            assert connection.deadline_ns > server.reactor.now_ns
        for number in (2, 3):
            application.may_end[f"/{number}"].set()
            assert read_answer(streams[number]) is not None


def test_where_no_thread_can_be_started_calls_are_run_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: CallThread) -> None:
        raise RuntimeError("can't start new thread")

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with serving(application, threads=4, worker_class="gthread") as server:
        assert server.talk(GET)[0].status == 200
        monkeypatch.setattr(server.reactor.executor, "_expectation", Blocking())
        monkeypatch.setattr(CallThread, "start", refuse)
        assert [answer.status for answer in server.talk(GET * 5)] == [200] * 5
        assert server.reactor.calls == 0


class Blocking:
    """An expectation that all calls block."""

    def mode(self, now_ns: int) -> Mode:
        return Mode.QUEUED

    def note_run(self) -> None:
        """Nothing is learnt."""
