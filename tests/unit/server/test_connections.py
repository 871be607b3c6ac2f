"""The connection machine over real sockets: keeping, ending, deadlines, buffering, draining."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkserve.clock import monotonic_s
from forkserve.posix.scoreboard import REQUESTS
from forkserve.server.connection import READABLE, RECV_BYTES
from forkserve.server.deadlines import STALE_ENTRIES_MAX
from forkserve.server.drainage import Stage
from tests.serving import DEADLINE_S, Answer, Served, read_answer, read_answers, serving

pytestmark = pytest.mark.usefixtures("worker_type")

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PART = b"GET / HTTP/1.1\r\nHost: a\r\n"


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello, World\n"]


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Length", environ.get("CONTENT_LENGTH", "none"))])
    return [body]


def ask(client: socket.socket, data: bytes = GET) -> Answer:
    client.sendall(data)
    answer = read_answer(client.makefile("rb"))
    assert answer is not None, "closed without an answer"
    return answer


def wait_for(fact: Any, what: str) -> None:
    deadline = monotonic_s() + DEADLINE_S
    while not fact():
        assert monotonic_s() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.005)


def read_all(client: socket.socket) -> None:
    while client.recv(1 << 20):
        pass


def ends_quietly(client: socket.socket) -> bool:
    return client.recv(1000) == b""


def test_connection_is_kept_for_many_requests() -> None:
    with serving(hello) as server, server.connect() as client:
        for _ in range(50):
            answer = ask(client)
            assert answer.status == 200
            assert answer.header("Connection") == "keep-alive"
            assert answer.header("Keep-Alive") == "timeout=75"
            assert answer.header("Content-Length") == "13"


def test_connection_ends_when_the_client_says_close() -> None:
    with serving(hello) as server, server.connect() as client:
        answer = ask(client, GET[:-2] + b"Connection: close\r\n\r\n")
        assert answer.header("Connection") == "close"
        assert ends_quietly(client)


def test_an_answer_reaches_a_client_that_sends_more_after_it_has_said_close() -> None:
    asked, more_is_sent = threading.Event(), threading.Event()

    def large(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        asked.set()
        more_is_sent.wait(DEADLINE_S)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [bytes(300_000)]

    with serving(large) as server, socket.socket() as client:
        client.settimeout(DEADLINE_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # most of the answer waits at the server's end
        client.connect(server.address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert asked.wait(DEADLINE_S)
        client.sendall(b"\r\n")
        more_is_sent.set()
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.is_whole


def test_a_refusal_of_head_has_no_body() -> None:
    head = b"HEAD / HTTP/1.1\r\nHost: a\r\n"
    with serving(hello, header_timeout=0.2, body_timeout=0.2) as server:
        for late in (head, head + b"Content-Length: 5\r\n\r\nabc"):
            assert [answer.status for answer in server.talk(late, methods=("HEAD",), finish=False)] == [408]
            assert [answer.status for answer in server.talk(late, methods=("HEAD",))] == [400]
        assert [answer.status for answer in server.talk(b"\r\n" + head + b"\0\r\n\r\n", methods=("HEAD",))] == [400]


def test_keepalive_zero_closes_after_each_answer() -> None:
    with serving(hello, keepalive=0) as server, server.connect() as client:
        assert ask(client).header("Connection") == "close"
        assert ends_quietly(client)


def test_client_that_ends_its_side_is_answered() -> None:
    with serving(hello) as server:
        assert [answer.status for answer in server.talk(GET)] == [200]


def test_client_that_leaves_amid_a_body_does_not_reach_the_application() -> None:
    calls: list[bytes] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        calls.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b""]

    with serving(application) as server:
        for head in (b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"):
            answers = server.talk(b"POST / HTTP/1.1\r\nHost: a\r\n" + head)
            assert [answer.status for answer in answers] == [400]
    assert calls == []


def test_request_head_that_dribbles_is_answered_408() -> None:
    with serving(hello, header_timeout=0.2) as server, server.connect() as client:
        client.sendall(PART)
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.status == 408


def test_silent_connection_is_closed_without_an_answer() -> None:
    with serving(hello, header_timeout=0.1) as server, server.connect() as client:
        assert ends_quietly(client)


def test_idle_connection_is_closed_a_second_after_its_promise() -> None:
    with serving(hello, keepalive=0.1) as server, server.connect() as client:
        wait_for(lambda: server.reactor.connection_count == 1, "accepted before the request comes")
        ask(client)
        begun = monotonic_s()
        assert ends_quietly(client)
        assert monotonic_s() - begun > 0.9


def test_empty_line_after_a_request_begins_nothing() -> None:
    with serving(hello, header_timeout=0.2, keepalive=0.2) as server, server.connect() as client:
        assert ask(client, GET + b"\r\n").status == 200
        assert ends_quietly(client)
        assert [answer.status for answer in server.talk(GET + b"\r\n")] == [200]


def test_empty_lines_in_pieces_begin_nothing_either() -> None:
    with serving(hello, header_timeout=0.5) as server, server.connect() as client:
        client.settimeout(0.05)
        begun = monotonic_s()
        for piece in itertools.cycle((b"\r", b"\n")):
            try:
                client.sendall(piece)
                assert client.recv(1000) == b"", "closed quietly"
                break
            except TimeoutError:
                assert monotonic_s() - begun < DEADLINE_S, "each piece moves the deadline"
            except ConnectionError:
                break  # it was closed while a piece was on its way


def test_deadlines_of_closed_connections_do_not_pile_up() -> None:
    with serving(hello) as server:
        for _ in range(STALE_ENTRIES_MAX * 2):
            with server.connect() as client:
                ask(client)
        assert len(server.reactor._deadlines) < STALE_ENTRIES_MAX * 1.5


def test_body_that_stops_coming_is_answered_408() -> None:
    with serving(hello, body_timeout=0.2) as server, server.connect() as client:
        answer = ask(client, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert answer.status == 408


def test_body_that_goes_on_coming_is_not_timed_out() -> None:
    with serving(echo, body_timeout=0.5, header_timeout=0.5, body_min_rate=0) as server, server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            time.sleep(0.1)  # a client that is slow for longer than body_timeout in all: that is the behaviour
            client.sendall(b"x")
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.body == b"x" * 8


def test_slow_and_silent_clients_do_not_stop_the_others() -> None:
    with serving(hello) as server:
        slow = [server.connect() for _ in range(50)]
        for client in slow[:25]:
            client.sendall(PART)
        with server.connect() as client:
            assert ask(client).status == 200
        for client in slow:
            client.close()


@pytest.mark.parametrize("size", [0, 1, 1000, 65536, 65537, 300_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_of_any_size_arrives(size: int, is_chunked: bool) -> None:
    body = bytes(index % 251 for index in range(size))
    if is_chunked:
        pieces = [body[start : start + 7000] for start in range(0, size, 7000)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
    else:
        data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body
    with serving(echo) as server:
        answers = server.talk([data, GET])
    assert [answer.status for answer in answers] == [200, 200]
    assert hashlib.sha256(answers[0].body).digest() == hashlib.sha256(body).digest()
    assert answers[0].header("X-Length") == str(size)


def test_body_that_cannot_be_stored_is_refused() -> None:
    with serving(echo, body_memory=10, tmp_upload_dir="/nonexistent") as server:
        answers = server.talk(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n" + b"x" * 11)
        assert [answer.status for answer in answers] == [507]


def test_continue_is_sent_once_the_head_has_passed() -> None:
    with serving(echo) as server, server.connect() as client:
        stream = client.makefile("rb")
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        interim = read_answer(stream)
        assert interim is not None
        assert (interim.status, interim.headers) == (100, [])
        client.sendall(b"ab")
        answer = read_answer(stream)
        assert answer is not None
        assert answer.body == b"ab"


def test_continue_is_not_sent_for_a_body_over_the_limit() -> None:
    with serving(echo, limit_request_body=1) as server, server.connect() as client:
        data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        assert ask(client, data).status == 413


def test_refused_client_that_still_sends_reads_its_answer() -> None:
    with serving(echo, limit_request_body=1000) as server, server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        for _ in range(20):
            client.sendall(b"x" * 10_000)
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.status == 413


@pytest.mark.worker_types("sync")
def test_end_of_a_client_is_seen_that_sent_more_while_its_last_call_ran() -> None:
    may_end = threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/last":
            assert may_end.wait(DEADLINE_S)
            start_response("200 OK", [("Connection", "close")])
            return [b"last"]
        return hello(environ, start_response)

    with serving(application) as server, server.connect() as client:
        ask(client)
        client.sendall(GET.replace(b"/", b"/last", 1))
        wait_for(lambda: server.reactor.is_relieved, "relieved")
        client.sendall(b"more")
        (connection,) = server.reactor.connections.values()
        wait_for(lambda: connection.mask == 0, "what came is seen, and not to be reported again")
        may_end.set()
        read_all(client)
        wait_for(lambda: connection.mask, "looked at again")


def test_refusal_of_head_has_no_body() -> None:
    with serving(hello) as server, server.connect() as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
        data = b"".join(iter(lambda: client.recv(1000), b""))
        assert data.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert data.endswith(b"\r\n\r\n")


def test_pipeline_does_not_starve_others() -> None:
    order: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        order.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/first":
            time.sleep(0.2)  # while both others arrive
        start_response("200 OK", [])
        return [b"x"]

    pipeline = b"".join(GET.replace(b" / ", b" /p%d " % index) for index in range(20))
    with serving(application) as server, server.connect() as one, server.connect() as two, server.connect() as three:
        ask(two, GET.replace(b" / ", b" /warm "))
        ask(three, GET.replace(b" / ", b" /warm "))
        one.sendall(GET.replace(b" / ", b" /first "))
        wait_for(lambda: "/first" in order, "the first request begins")
        two.sendall(pipeline)
        three.sendall(GET.replace(b" / ", b" /other "))
        stream = three.makefile("rb")
        assert read_answer(stream) is not None
        two.shutdown(socket.SHUT_WR)
        assert len(read_answers(two.makefile("rb"))) == 20
    assert order.index("/other") <= order.index("/first") + 4


def test_no_more_of_a_pipeline_is_read_than_is_being_answered() -> None:
    held: list[int] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        held.extend(len(connection._buffer) for connection in server.reactor.connections.values())
        start_response("200 OK", [])
        return [b"x"]

    with serving(application) as server, server.connect() as client:
        sender = threading.Thread(target=client.sendall, args=(GET * 5000,))
        sender.start()
        stream = client.makefile("rb")
        for _ in range(5000):
            answer = read_answer(stream)
            assert answer is not None
            assert answer.status == 200
        sender.join(DEADLINE_S)
    assert max(held) <= RECV_BYTES


# ── slow readers ──────────────────────────────────────────────────────────────────────────────────────────────────────


BIG = 8 * 1024 * 1024


def big(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Length", str(BIG))])
    for number in range(BIG // 65536):
        yield bytes([number % 256]) * 65536


def big_hash() -> bytes:
    return hashlib.sha256(b"".join(bytes([number % 256]) * 65536 for number in range(BIG // 65536))).digest()


@pytest.mark.parametrize("memory", [100_000_000, 100_000])
def test_slow_reader_does_not_hold_the_worker_and_gets_all(memory: int) -> None:
    with serving(big, write_buffer_memory=memory) as server, server.connect() as slow, server.connect() as other:
        slow.sendall(GET + GET)
        wait_for(lambda: server.reactor.words[REQUESTS] == 1, "the application has given all of it")
        other.sendall(GET)
        wait_for(lambda: server.reactor.words[REQUESTS] == 2, "another client's request runs meanwhile")
        stream = slow.makefile("rb")
        for _ in range(2):
            answer = read_answer(stream)
            assert answer is not None
            assert hashlib.sha256(answer.body).digest() == big_hash()


def test_reader_slower_than_all_buffers_makes_its_request_wait() -> None:
    with serving(big, write_buffer_memory=1000, write_buffer_limit=1_000_000) as server, server.connect() as slow:
        slow.sendall(GET)
        wait_for(lambda: server.reactor.words[1] != 0, "the request runs")
        answer = read_answer(slow.makefile("rb"))
        assert answer is not None
        assert hashlib.sha256(answer.body).digest() == big_hash()


@pytest.mark.parametrize("limit", [1_000_000, 100_000_000])
def test_reader_that_never_reads_is_cut_after_the_write_timeout(limit: int) -> None:
    with serving(big, write_buffer_limit=limit, write_timeout=0.2) as server, server.connect() as slow:
        slow.sendall(GET)
        wait_for(lambda: server.reactor.words[REQUESTS] == 1, "the request is over")
        wait_for(lambda: server.reactor.connection_count == 0, "the connection is closed")


def test_client_that_leaves_while_it_is_written_to_costs_its_connection_only() -> None:
    closed: list[bool] = []

    def endless(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield b"x" * 10_000
        finally:
            closed.append(True)

    with serving(endless) as server:
        client = server.connect()
        client.sendall(GET)
        client.recv(1000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_for(lambda: closed, "the iterator is closed")
        wait_for(lambda: server.reactor.connection_count == 0, "the connection is closed")


# ── accepting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_connection_that_the_epoll_refuses_is_closed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(hello) as server:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "too many watches")

        with monkeypatch.context() as broken:
            broken.setattr(server.reactor, "watch", refuse)
            with server.connect() as client:
                assert ends_quietly(client)
            wait_for(lambda: server.reactor.connection_count == 0, "it is forgotten")
        assert "worker.defect" in [getattr(record.msg, "code", "") for record in caplog.records]
        with server.connect() as client:
            assert ask(client).status == 200


def test_running_out_of_descriptors_pauses_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(hello) as server:
        kept = server.connect()
        ask(kept)
        waiting = socket.socket()
        waiting.settimeout(DEADLINE_S)
        highest = max(waiting.fileno(), kept.fileno()) + 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest - 1 if highest > 3 else 3, hard))
            fill = _fill_descriptors()
            waiting.connect(server.address)
            waiting.sendall(GET)
            assert ask(kept).status == 200
            wait_for(
                lambda: "accept.exhausted" in [getattr(record.msg, "code", "") for record in caplog.records],
                "the line about descriptors",
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in fill:
            descriptor.close()
        assert read_answer(waiting.makefile("rb")) is not None
        kept.close()
        waiting.close()


def _fill_descriptors() -> list[socket.socket]:
    found: list[socket.socket] = []
    try:
        while True:
            found.append(socket.socket())
    except OSError:
        return found


def test_unix_socket_has_server_variables(tmp_path: Path) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [repr([environ[key] for key in ("SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR")]).encode()]

    with serving(application, unix_path=str(tmp_path / "s")) as server:
        assert server.talk(GET)[0].body == b"['localhost', '80', '']"


# ── draining ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_request_that_comes_with_the_deadline_of_its_connection_is_answered_by_another_thread() -> None:
    may_end = threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert may_end.wait(DEADLINE_S)
        return hello(environ, start_response)

    gthread = serving(application, worker_class="gthread", threads=2)
    with gthread as server, server.connect() as holder, server.connect() as client:
        may_end.set()
        ask(holder)
        ask(client)
        may_end.clear()
        holder.sendall(GET)  # the serving thread is in this call: the next one is for the pool

        def close_idle() -> None:
            client.sendall(GET)
            server.reactor.drain(stopping=False)
            for connection in server.reactor.connections.values():
                connection.deadline_ns = 0
                server.reactor.schedule(connection)

        wait_for(lambda: server.reactor.is_relieved, "relieved")
        server.wake(close_idle)
        wait_for(lambda: server.reactor.calls == 2, "both calls run")
        may_end.set()
        answer = read_answer(client.makefile("rb"))
        assert answer is not None, "closed without an answer"
        assert answer.status == 200


def test_call_that_has_ended_on_another_thread_is_not_overdue_before_the_reactor_knows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    holds, may_end = threading.Event(), threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert (holds if environ["PATH_INFO"] == "/hold" else may_end).wait(DEADLINE_S)
        return hello(environ, start_response)

    gthread = serving(application, worker_class="gthread", threads=2, request_timeout=60)
    with gthread as server, server.connect() as holder, server.connect() as client:
        holder.sendall(GET.replace(b"/", b"/hold", 1))
        wait_for(lambda: server.reactor.is_relieved, "relieved")
        client.sendall(GET)
        wait_for(lambda: server.reactor.calls == 2, "both calls run")

        def look_late() -> None:
            connections = list(server.reactor.connections.values())
            ended = next(each for each in connections if each.exchange and b"/hold" not in each.exchange.head)
            exchange = ended.exchange
            assert exchange is not None
            may_end.set()
            wait_for(lambda: exchange.is_noted, "the call has ended")
            ended.deadline_ns = 0
            server.reactor.schedule(ended)
            server.reactor._expire(server.reactor.now_ns)

        server.wake(look_late)
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert ask(client).status == 200
        holds.set()
    assert not caplog.records


def test_clock_that_another_thread_has_set_back_does_not_stop_the_reactor(served: Served) -> None:
    with served.connect() as client:
        ask(client)

        def expire_late() -> None:
            reactor = served.reactor
            now_ns = reactor.now_ns
            for connection in reactor.connections.values():
                connection.deadline_ns = now_ns
                reactor.schedule(connection)
            reactor.now_ns = now_ns - 1  # by a thread that was preempted between reading the clock and noting it
            reactor._expire(now_ns)

        served.wake(expire_late)
        assert ends_quietly(client)


@pytest.mark.parametrize("stopping", [False, True])
def test_drain_answers_what_runs_and_ends(stopping: bool) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        go_on.wait(DEADLINE_S)
        start_response("200 OK", [])
        return [b"done"]

    with serving(application) as server, server.connect() as client:
        client.sendall(GET)
        begun.wait(DEADLINE_S)
        server.wake(lambda: server.reactor.drain(stopping=stopping))
        go_on.set()
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.body == b"done"
        assert ends_quietly(client)
        server.join()


def test_drain_answers_the_next_request_of_an_idle_connection_with_close() -> None:
    with serving(hello) as server, server.connect() as client:
        ask(client)
        server.wake(lambda: server.reactor.drain(stopping=False))
        wait_for(lambda: server.reactor.stage is Stage.DRAINING, "draining")
        assert ask(client).header("Connection") == "close"
        assert ends_quietly(client)
        server.join()


def test_drain_closes_idle_connections_after_a_moment() -> None:
    with serving(hello) as server, server.connect() as client:
        ask(client)
        server.wake(lambda: server.reactor.drain(stopping=True))
        assert ends_quietly(client)
        server.join()


@pytest.mark.parametrize("why", [{"stopping": True}, {"stopping": False, "is_orphan": True}], ids=["stop", "orphan"])
def test_what_is_in_the_accept_queue_is_taken_before_leaving(why: dict[str, bool]) -> None:
    go_on = threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/first":
            go_on.wait(DEADLINE_S)
        start_response("200 OK", [])
        return [b"done"]

    with serving(application) as server:
        first = server.connect()
        first.sendall(GET.replace(b" / ", b" /first "))
        wait_for(lambda: server.reactor.words[1] != 0, "the first request runs")
        queued = [server.connect() for _ in range(20)]
        for client in queued:
            client.sendall(GET)
        server.wake(lambda: server.reactor.drain(**why))
        go_on.set()
        for client in [first, *queued]:
            answer = read_answer(client.makefile("rb"))
            assert answer is not None
            assert answer.body == b"done"
            client.close()
        server.join()


def test_stopping_does_not_wait_for_quiet_for_ever() -> None:
    with serving(hello, graceful_timeout=1) as server:
        server.wake(lambda: server.reactor.drain(stopping=True))
        while server.thread.is_alive():
            try:
                server.talk(GET)
            except OSError:
                break  # refused: the listener is closed
        server.join()


def test_drain_ends_at_the_graceful_timeout() -> None:
    with serving(hello, graceful_timeout=0.3) as server, server.connect() as client:
        client.sendall(PART)
        wait_for(lambda: server.reactor.connection_count == 1, "accepted")
        server.wake(lambda: server.reactor.drain(stopping=False))
        server.join()


def test_heartbeat_goes_on_while_idle() -> None:
    with serving(hello) as server:
        first = server.reactor.words[0]
        wait_for(lambda: server.reactor.words[0] > first, "a beat")


def test_requests_and_connections_are_counted(served: Served) -> None:
    with served.connect() as client:
        for _ in range(3):
            ask(client)
        wait_for(lambda: served.reactor.words[REQUESTS] == 3, "three requests")
        assert served.reactor.words[6] == 1
        assert served.reactor.row.in_flight() == []
    wait_for(lambda: served.reactor.words[6] == 0, "no connection")


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(hello) as server:
        yield server


def test_idle_connections_of_a_full_worker_give_way_at_a_stop() -> None:
    with serving(hello, worker_connections=3, graceful_timeout=8) as server:
        idle = [server.connect() for _ in range(3)]
        for client in idle:
            ask(client)
        queued = server.connect()
        queued.sendall(GET)
        cpu_s, begun_s = time.process_time(), time.monotonic()
        server.wake(lambda: server.reactor.drain(stopping=True))
        answer = read_answer(queued.makefile("rb"))
        assert answer is not None
        assert answer.status == 200
        queued.close()
        server.join()
        assert time.monotonic() - begun_s < 5
        assert time.process_time() - cpu_s < 0.5  # it waits for time to pass, and does not spin
        for client in idle:
            client.close()


def test_drain_answers_what_was_pipelined_behind_an_answer_that_is_read_slowly() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * (8 << 20)]

    with serving(application) as server, server.connect() as client:
        client.sendall(GET + GET)
        wait_for(lambda: server.reactor.words[REQUESTS] == 1, "the first answer is buffered")
        server.wake(lambda: server.reactor.drain(stopping=True))
        wait_for(lambda: server.reactor.stage is Stage.DRAINING, "draining")
        stream = client.makefile("rb")
        answers = [read_answer(stream), read_answer(stream)]
        assert [answer and len(answer.body) for answer in answers] == [8 << 20] * 2
        assert answers[1] is not None
        assert answers[1].header("Connection") == "close"
        assert ends_quietly(client)
        server.join()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_that_finds_no_room_is_a_logged_507(
    tmp_path: Path, framing: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system is full: what the file object holds back cannot be written at its close either."""

    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        "forkserve.server.body.tempfile.TemporaryFile", lambda **_options: io.BufferedWriter(Full(), 8192)
    )
    head = b"POST / HTTP/1.1\r\nHost: a\r\n"
    if framing == "length":
        parts = [head + b"Content-Length: 20000\r\n\r\n", *[b"x" * 1000] * 20]
    else:
        parts = [head + b"Transfer-Encoding: chunked\r\n\r\n", *[b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 20, b"0\r\n\r\n"]
    with serving(echo, body_memory=10) as server, server.connect() as client:
        for part in parts:
            client.sendall(part)
            time.sleep(0.002)  # so that they are read one by one
        client.shutdown(socket.SHUT_WR)
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert (answer.status, answer.body) == (507, b"507 Insufficient Storage: the body cannot be stored\n")
    assert [record.msg.code for record in caplog.records] == ["body.unstored"]


def test_answer_that_finds_no_room_is_cut_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * (32 << 20)]

    with serving(application, tmp_upload_dir="/nonexistent") as server, server.connect() as client:
        client.sendall(GET)
        wait_for(lambda: server.reactor.words[REQUESTS] == 1, "the call has ended")
        with pytest.raises(ConnectionResetError):
            read_all(client)
    assert [record.msg.code for record in caplog.records] == ["response.unstored"]


def test_drain_answers_all_that_was_pipelined_and_says_close_with_the_last() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        go_on.wait(DEADLINE_S)
        start_response("200 OK", [])
        return [b"done"]

    with serving(application) as server, server.connect() as first, server.connect() as client:
        first.sendall(GET)
        begun.wait(DEADLINE_S)
        client.sendall(GET * 3 + PART)
        server.wake(lambda: server.reactor.drain(stopping=True))
        go_on.set()
        answers = read_answers(client.makefile("rb"))
        assert [answer.body for answer in answers] == [b"done"] * 3
        assert answers[-1].header("Connection") == "close"
        read_all(first)
        server.join()


def test_idle_connections_are_not_closed_over_what_was_pipelined(served: Served) -> None:
    with served.connect() as client:
        ask(client)
        (connection,) = served.reactor.connections.values()

        def answer_one_and_close_idle() -> None:
            client.sendall(GET * 3)
            connection.on_event(READABLE)
            served.reactor.drain(stopping=False)
            served.reactor._close_idle()

        served.wake(answer_one_and_close_idle)
        assert [answer.status for answer in read_answers(client.makefile("rb"))] == [200] * 3
