"""A call that takes long does not stop the reactor: its relief thread goes on (server/lead.py)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from forkserve.posix.handover import HandOver, make_pair
from forkserve.posix.scoreboard import HEARTBEAT, Scoreboard
from forkserve.server.lead import QUIET_TICKS_MAX, RELIEF_TICK_S
from tests.serving import DEADLINE_S, Served, read_answer, serving
from tests.unit.server.test_connections import GET, PART, ask, ends_quietly, wait_for

SLOW = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"


class Slow:
    """An application whose call of /slow ends when it is told to; it notes by which threads it was called."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.threads: set[int] = set()
        self.paths: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.threads.add(threading.get_ident())
        self.paths.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/slow":
            self.begun.release()
            assert self.may_end.acquire(timeout=DEADLINE_S)
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode() + environ["wsgi.input"].read()]


def begin_slow_call(application: Slow, server: Served) -> socket.socket:
    """A client whose call has begun."""
    client = server.connect()
    client.sendall(SLOW)
    assert application.begun.acquire(timeout=DEADLINE_S)
    return client


def end_slow_call(application: Slow, client: socket.socket) -> None:
    application.may_end.release()
    answer = read_answer(client.makefile("rb"))
    assert answer is not None
    assert answer.body == b"/slow"


def test_deadlines_of_others_are_kept_while_a_call_runs() -> None:
    application = Slow()
    with serving(application, header_timeout=0.2) as server, server.connect() as dribbling, server.connect() as silent:
        dribbling.sendall(PART)
        with begin_slow_call(application, server) as client:
            answer = read_answer(dribbling.makefile("rb"))
            assert answer is not None
            assert answer.status == 408
            assert ends_quietly(silent)
            end_slow_call(application, client)


def test_bad_requests_are_refused_while_a_call_runs() -> None:
    application = Slow()
    with serving(application) as server, begin_slow_call(application, server) as client:
        assert [answer.status for answer in server.talk(b"GET / HTTP/1.1\r\n\r\n")] == [400]
        end_slow_call(application, client)


def test_requests_that_complete_while_a_call_runs_wait_for_it_and_come_in_order() -> None:
    application = Slow()
    with serving(application) as server, begin_slow_call(application, server) as client:
        others = [server.connect() for _ in range(5)]
        for number, other in enumerate(others):
            head = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" % number
            other.sendall(head + GET)
            wait_for(lambda: len(server.reactor._waiting) == number + 1, "the request waits")  # noqa: B023 used at once
        end_slow_call(application, client)
        for number, other in enumerate(others):
            stream = other.makefile("rb")
            first, second = read_answer(stream), read_answer(stream)
            assert first is not None
            assert second is not None
            assert (first.body, second.body) == (b"/%dabc" % number, b"/")
            other.close()
        assert application.paths[:6] == ["/slow", "/0", "/1", "/2", "/3", "/4"]
        assert len(application.threads) == 1


def test_the_application_is_called_by_one_thread_through_many_reliefs() -> None:
    application = Slow()
    with serving(application) as server:
        for _ in range(5):
            with begin_slow_call(application, server) as client, server.connect() as other:
                other.sendall(GET)
                wait_for(lambda: len(server.reactor._waiting) == 1, "the other waits")
                end_slow_call(application, client)
                assert read_answer(other.makefile("rb")) is not None
    assert len(application.threads) == 1


def test_a_long_call_shows_no_heartbeat() -> None:
    application = Slow()
    with serving(application) as server, begin_slow_call(application, server) as client:
        wait_for(lambda: server.reactor.is_relieved, "relief")
        before = server.reactor.words[HEARTBEAT]
        assert [answer.status for answer in server.talk(b"bad\r\n\r\n")] == [400]
        assert server.reactor.words[HEARTBEAT] == before
        end_slow_call(application, client)
        wait_for(lambda: server.reactor.words[HEARTBEAT] > before, "a beat")


def test_relief_comes_again_after_it_has_slept() -> None:
    application = Slow()
    with serving(application) as server:
        assert server.talk(GET)[0].status == 200
        for _ in range(2):
            lead = server.reactor.executor._lead  # type: ignore[attr-defined]
            wait_for(lambda: lead._is_asleep, f"{QUIET_TICKS_MAX} quiet looks of {RELIEF_TICK_S} s")  # noqa: B023
            with begin_slow_call(application, server) as client:
                wait_for(lambda: server.reactor.is_relieved, "relief")
                end_slow_call(application, client)


def test_a_drain_begins_while_a_call_runs_and_its_answer_is_sent() -> None:
    application = Slow()
    with serving(application) as server, begin_slow_call(application, server) as client, server.connect() as idle:
        wait_for(lambda: server.reactor.connection_count == 2, "the idle one is taken by the relief")
        server.wake(lambda: server.reactor.drain(stopping=False))
        assert ends_quietly(idle)
        end_slow_call(application, client)
        server.join()


def test_pipelined_requests_of_a_client_that_has_gone_do_no_harm() -> None:
    application = Slow()
    with serving(application) as server, begin_slow_call(application, server) as client:
        gone = server.connect()
        gone.sendall(GET * 3)
        wait_for(lambda: len(server.reactor._waiting) == 1, "it waits")
        gone.close()
        end_slow_call(application, client)
        with server.connect() as other:
            assert ask(other).status == 200


# ── siblings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def two_workers(first: Callable[..., Any], second: Callable[..., Any], board: Scoreboard, **settings: Any) -> Any:
    """Two reactors of one generation, as two workers would be."""
    handover = HandOver(*make_pair())

    def siblings(now_ns: int) -> int:
        return board.idle_workers(1, now_ns)

    options: dict[str, Any] = {"handover": handover, "idle_siblings": siblings}
    one = serving(first, row=board.row(0), reactor_options=options, **settings)
    other = serving(second, row=board.row(1), reactor_options=options, **settings)
    return handover, one, other


def test_requests_on_connections_of_a_busy_worker_go_to_an_idle_sibling() -> None:
    board = Scoreboard.create(2)
    for slot in range(2):
        board.row(slot).claim(worker_id=slot + 1, generation=1, now_ns=0)
    application, sibling = Slow(), Slow()
    handover, one, other = two_workers(application, sibling, board)
    with one as server, other, server.connect() as parked, server.connect() as long:
        assert ask(parked).status == 200
        wait_for(lambda: server.reactor.connection_count == 2, "both are parked here")
        long.sendall(SLOW)
        assert application.begun.acquire(timeout=DEADLINE_S)
        body = b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        stream = parked.makefile("rb")
        parked.sendall(body + GET)
        answers = [read_answer(stream), read_answer(stream)]
        assert [answer and answer.body for answer in answers] == [b"/bodyabc", b"/"]
        assert sibling.paths == ["/body", "/"]
        end_slow_call(application, long)
        assert ask(parked).body == b"/"  # it is the sibling's now
        assert sibling.paths == ["/body", "/", "/"]
    handover.close()


def test_newcomers_are_left_to_idle_siblings_and_taken_when_there_are_none() -> None:
    board = Scoreboard.create(2)
    for slot in range(2):
        board.row(slot).claim(worker_id=slot + 1, generation=1, now_ns=0)
    application, sibling = Slow(), Slow()
    handover, one, other = two_workers(application, sibling, board)
    with one as server, other as second, begin_slow_call(application, server) as client:
        wait_for(lambda: not server.reactor.doors.are_open, "newcomers are left to the sibling")
        with begin_slow_call(sibling, second) as client2:
            wait_for(lambda: server.reactor.doors.are_open, "nobody else is idle")
            with server.connect() as newcomer:
                newcomer.sendall(GET)
                wait_for(lambda: len(server.reactor._waiting) == 1, "the request waits")
                end_slow_call(sibling, client2)
                answer = read_answer(newcomer.makefile("rb"))
                assert answer is not None
                assert sibling.paths[-1] == "/"  # the sibling was free first
        end_slow_call(application, client)
    handover.close()
