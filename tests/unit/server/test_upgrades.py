"""Interim answers of the application, and connections whose protocol it changes."""

from __future__ import annotations

import logging
import select
import selectors
import threading
import time
from queue import SimpleQueue
from typing import Any

import pytest

from forkserve.errors import RequestTimeout
from forkserve.posix.scoreboard import REQUESTS
from tests.serving import DEADLINE_S, read_answer, read_answers, serving
from tests.unit.server.test_connections import GET, ask, ends_quietly, wait_for

pytestmark = pytest.mark.usefixtures("worker_type")

UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\n\r\n"


def hinting(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    hints = environ.get("wsgi.early_hints")
    if hints is not None:
        hints([("Link", "</a.css>; rel=preload; as=style")])
        hints([("Link", "</b.js>; rel=preload"), ("X-More", "1")])
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"hello")
    if hints is not None:
        hints([("Link", "</late.css>")])  # the head is out: nothing more can be hinted
    return []


def test_early_hints_come_before_the_answer_and_not_after_its_head() -> None:
    with serving(hinting) as server:
        answers = server.talk(GET + GET)
    assert [answer.status for answer in answers] == [103, 103, 200] * 2
    assert answers[0].headers == [("Link", "</a.css>; rel=preload; as=style")]
    assert answers[1].headers == [("Link", "</b.js>; rel=preload"), ("X-More", "1")]
    assert answers[2].body == b"hello"


def test_http10_clients_get_no_interim_answer() -> None:
    with serving(hinting) as server:
        assert [answer.status for answer in server.talk(GET10)] == [200]


@pytest.mark.parametrize(
    "header", [("Content-Length", "3"), ("Connection", "close"), ("X", "a\r\nb"), ("Transfer-Encoding", "chunked"), "X"]
)
def test_a_hint_that_cannot_be_sent_fails_the_request(header: Any, caplog: pytest.LogCaptureFixture) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.early_hints"]([header])
        return []

    with serving(application) as server:
        assert [answer.status for answer in server.talk(GET)] == [500]


def shouting(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Speaks its own protocol: every line comes back in capitals, until an empty one."""
    client = environ["gunicorn.socket"]
    client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
    lines = b""
    while not lines.endswith(b"\n\n"):
        block = client.recv(100)
        if not block:
            break
        lines += block
        client.sendall(block.upper())
    raise StopIteration  # as simple-websocket ends a call under gunicorn


def test_an_application_may_take_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with serving(shouting) as server, server.connect() as client:
        client.sendall(UPGRADE + b"early ")
        stream = client.makefile("rb")
        answer = read_answer(stream)
        assert answer is not None
        assert (answer.status, answer.header("Upgrade")) == (101, "shout")
        client.sendall(b"bird\n")
        assert stream.readline() == b"EARLY BIRD\n"
        client.sendall(b"end\n\n")
        assert stream.read() == b"END\n\n"
    assert caplog.records == []


def test_a_drain_waits_for_a_connection_that_was_taken() -> None:
    with serving(shouting) as server, server.connect() as client:
        client.sendall(UPGRADE)
        stream = client.makefile("rb")
        assert read_answer(stream) is not None
        server.wake(lambda: server.reactor.drain(stopping=False))
        wait_for(lambda: server.reactor.stage > 0, "the drain has begun")
        client.sendall(b"still here\n\n")
        assert stream.read() == b"STILL HERE\n\n"
        server.join()


def test_a_client_that_leaves_its_upgraded_connection_ends_the_call_quietly(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with serving(shouting) as server:
        with server.connect() as client:
            client.sendall(UPGRADE)
            assert client.recv(1) == b"H"
        wait_for(lambda: server.reactor.connection_count == 0, "it is gone")
        assert server.talk(GET10)[0].status == 500  # no Upgrade, no socket: a KeyError of this application
    assert [getattr(record.msg, "code", "") for record in caplog.records] == ["request.failed"]


def test_a_thread_that_still_waits_for_the_client_is_woken_by_the_end_of_the_call() -> None:
    """As simple-websocket's, which waits for a ping's time; a worker that leaves waits for it."""
    threads: list[threading.Thread] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        client = environ["gunicorn.socket"]
        client.sendall(b"mine")
        epoll = select.epoll()
        epoll.register(client.fileno(), select.EPOLLIN)

        def wait() -> None:
            epoll.poll(4 * DEADLINE_S)
            client.close()  # a thread that has the socket, not its number alone

        threads.append(threading.Thread(target=wait, daemon=True))
        threads[0].start()
        return []

    with serving(application) as server, server.connect() as client:
        client.sendall(UPGRADE)
        assert client.makefile("rb").read() == b"mine"
        threads[0].join(DEADLINE_S)
        assert not threads[0].is_alive(), "it still waits"


def test_an_application_that_closes_the_connection_does_not_free_its_descriptor() -> None:
    """Else a newcomer could get the same number while the call goes on, and be taken for this connection."""
    descriptors: list[int] = []
    goes_on = threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        client = environ["gunicorn.socket"]
        client.sendall(b"mine")
        client.close()
        client.close()
        assert goes_on.wait(DEADLINE_S)
        descriptors.append(client.fileno())
        return []

    with serving(application) as server, server.connect() as client:
        client.sendall(UPGRADE)
        assert client.makefile("rb").read() == b"mine"
        goes_on.set()
        wait_for(lambda: server.reactor.connection_count == 0, "it is forgotten")
    assert descriptors[0] > 0


def test_a_socket_is_not_given_to_a_call_that_was_answered_for() -> None:
    caught: list[BaseException] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            for _ in range(int(DEADLINE_S * 100)):
                time.sleep(0.01)
        except RequestTimeout:
            try:
                environ["gunicorn.socket"].sendall(b"too late")
            except ConnectionError as error:
                caught.append(error)
        return []

    with serving(application, worker_class="gthread", request_timeout=0.2) as server, server.connect() as client:
        client.sendall(UPGRADE)
        answers = read_answers(client.makefile("rb"))
    assert [answer.status for answer in answers] == [504]
    assert len(caught) == 1


def test_an_answer_after_the_socket_was_taken_is_dropped() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["gunicorn.socket"].sendall(b"mine")
        start_response("200 OK", [])
        return [b"dropped"]

    with serving(application) as server, server.connect() as client:
        client.sendall(UPGRADE)
        assert client.makefile("rb").read() == b"mine"


def test_an_application_that_leaves_the_socket_alone_answers_as_usual() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert environ["gunicorn.socket"] is not None
        start_response("200 OK", [])
        return [b"no"]

    with serving(application) as server, server.connect() as client:
        assert ask(client, UPGRADE).body == b"no"
        assert ask(client, UPGRADE).body == b"no"


def test_reading_into_a_buffer_takes_early_bytes_first() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        client = environ["gunicorn.socket"]
        buffer = bytearray(3)
        assert client.recv_into(buffer) == 3
        client.sendall(bytes(buffer) + client.recv(10))
        return []

    with serving(application) as server, server.connect() as client:
        client.sendall(UPGRADE + b"abcde")
        assert client.makefile("rb").read() == b"abcde"
        assert ends_quietly(client)


def test_an_application_may_close_the_socket_itself() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if "gunicorn.socket" not in environ:
            return hinting(environ, start_response)
        environ["gunicorn.socket"].sendall(b"bye")
        environ["gunicorn.socket"].close()
        return []

    with serving(application) as server:
        with server.connect() as client:
            assert ask(client, GET10).status == 200
        with server.connect() as client:
            stream = client.makefile("rb")
            client.sendall(GET)
            assert [answer and answer.status for answer in (read_answer(stream) for _ in range(3))] == [103, 103, 200]
            wait_for(lambda: server.reactor.words[REQUESTS] == 2, "the connection is kept")
            client.sendall(UPGRADE)
            assert stream.read() == b"bye"
        wait_for(lambda: server.reactor.connection_count == 0, "it is gone")
        assert server.talk(GET10)[0].status == 200


@pytest.mark.worker_types("sync", "gthread")
def test_a_thread_that_waits_for_the_socket_sees_the_end_of_the_call() -> None:
    """As those of simple-websocket do, which wait with an epoll of their own until the next ping."""
    seen: SimpleQueue[bytes] = SimpleQueue()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        client = environ["gunicorn.socket"]
        waiting = threading.Event()

        def wait() -> None:
            with selectors.EpollSelector() as selector:
                selector.register(client.fileno(), selectors.EVENT_READ)
                waiting.set()
                if selector.select(DEADLINE_S):
                    seen.put(client.recv(1))

        threading.Thread(target=wait).start()
        assert waiting.wait(DEADLINE_S)
        client.sendall(b"bye")
        return []

    with serving(application) as server, server.connect() as client:
        client.sendall(UPGRADE)
        assert client.makefile("rb").read() == b"bye"
        assert seen.get(timeout=DEADLINE_S / 2) == b""
