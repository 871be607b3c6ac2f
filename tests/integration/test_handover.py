"""Connections outlive their workers: reload, recycle and scale-down close none of them."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness import DEADLINE_S, Server
from tests.serving import read_answer, read_answers

pytestmark = pytest.mark.usefixtures("worker_type")

Start = Callable[..., Server]
WriteApp = Callable[..., None]

APP = """
import os

def app(environ, start_response):
    body = f"{os.getpid()} {environ['PATH_INFO']} {len(environ['wsgi.input'].read())}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def serving(start: Start, write_app: WriteApp) -> Callable[..., Server]:
    write_app(name="pid", code=APP)

    def begin(*arguments: str, **options: object) -> Server:
        return start("pid:app", *arguments, **options)

    return begin


class Kept:
    """A client that keeps its connection and writes without looking whether it was closed."""

    def __init__(self, server: Server) -> None:
        self.sock = server.raw()
        self.stream = self.sock.makefile("rb")
        self.asked = 0

    def ask(self, path: str = "/", body: bytes = b"") -> str:
        """The worker's pid, and the rest of the answer."""
        self.asked += 1
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        self.sock.sendall(head.encode() + body)
        return self.answer()

    def answer(self) -> str:
        answer = read_answer(self.stream)
        assert answer is not None, f"the connection was closed after {self.asked} requests"
        assert answer.status == 200
        assert answer.header("Connection") == "keep-alive"
        return answer.body.decode()

    def close(self) -> None:
        self.stream.close()
        self.sock.close()


@contextmanager
def kept(server: Server, count: int) -> Iterator[list[Kept]]:
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = Kept(server)
            stack.callback(client.close)
            clients.append(client)
        yield clients


def test_idle_connections_outlive_reloads(serving: Callable[..., Server]) -> None:
    server = serving(workers=2)
    with kept(server, 300) as clients:
        pids = {client.ask().split()[0] for client in clients}
        for generation in (2, 3, 4):
            server.hup()
            server.wait_for("reload.done", count=generation - 1)
            server.wait_for_workers(2, generation=generation)
            now = {client.ask(f"/{generation}").split()[0] for client in clients}
            assert not now & pids
            pids = now
        assert [client.asked for client in clients] == [4] * 300


def test_silent_connections_and_half_a_head_outlive_a_reload(serving: Callable[..., Server]) -> None:
    server = serving(workers=1)
    with kept(server, 2) as (silent, half):
        half.sock.sendall(b"GET /half HTTP/1.1\r\nHo")
        server.hup()
        server.wait_for_workers(1, generation=2)
        half.sock.sendall(b"st: a\r\n\r\n")
        assert half.answer().split()[1] == "/half"
        assert silent.ask("/first").split()[1] == "/first"


def test_a_connection_with_a_body_on_its_way_moves_after_its_answer(serving: Callable[..., Server]) -> None:
    server = serving(workers=1)
    with kept(server, 1) as (client,):
        old = client.ask().split()[0]
        client.sock.sendall(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        server.hup()
        server.wait_for("reload.done")
        client.sock.sendall(b"cd")
        assert client.answer() == f"{old} /up 4"
        server.wait_for_workers(1, generation=2)
        assert client.ask().split()[0] != old


def test_a_worker_that_was_told_to_leave_outlasts_its_generation(serving: Callable[..., Server]) -> None:
    server = serving(workers=1)
    with kept(server, 1) as (client,):
        client.ask()
        client.sock.sendall(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        leaving = server.kill_worker(signal.SIGTERM)
        server.wait_until(lambda: set(server.worker_pids()) > {leaving}, "its successor is ready")
        (successor,) = set(server.worker_pids()) - {leaving}
        server.hup()
        server.wait_until(lambda: successor not in server.worker_pids(), "the successor has left")
        client.sock.sendall(b"cdGET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = read_answers(client.stream)
        assert [answer.body.decode() for answer in answers] == [f"{leaving} /up 4", f"{leaving} /next 0"]
        assert answers[-1].header("Connection") == "close"


def test_connections_outlive_a_scale_down(serving: Callable[..., Server]) -> None:
    server = serving(workers=3)
    with kept(server, 100) as clients:
        for client in clients:
            client.ask()
        for left in (2, 1):
            server.send_signal(signal.SIGTTOU)
            server.wait_for_workers(left)
        (pid,) = server.worker_pids()
        assert {client.ask().split()[0] for client in clients} == {str(pid)}


def test_connections_outlive_a_worker_that_is_told_to_leave(serving: Callable[..., Server]) -> None:
    server = serving(workers=1)
    with kept(server, 50) as clients:
        (old,) = server.worker_pids()
        for client in clients:
            client.ask()
        server.kill_worker(signal.SIGTERM)
        server.wait_for_workers(1, without=old)
        assert str(old) not in {client.ask().split()[0] for client in clients}


def test_recycling_closes_no_connection(serving: Callable[..., Server]) -> None:
    server = serving("--max-requests", "50", workers=2)
    with kept(server, 20) as clients:
        pids = set()
        for _ in range(40):
            pids |= {client.ask().split()[0] for client in clients}
        assert len(pids) > 2, "hardly a worker was recycled: the test has shown nothing"


def test_blind_clients_lose_nothing_through_many_reloads(serving: Callable[..., Server]) -> None:
    server = serving(workers=2)
    stopping = threading.Event()
    problems: list[BaseException] = []
    answered = [0] * 8

    def client(number: int) -> None:
        try:
            with kept(server, 5) as clients:
                while not stopping.is_set():
                    for each in clients:
                        each.ask("/x", b"y" * (number * 100))
                        answered[number] += 1
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for count in range(1, 6):
        server.hup()
        server.wait_for("reload.done", count=count)
    server.wait_for_workers(2, generation=6)
    stopping.set()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert problems == []
    assert min(answered) > 0


def test_connections_of_a_unix_socket_move_too(serving: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serving(workers=1, bind=(f"unix:{path}",))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(path))
        stream = client.makefile("rb")
        for generation in (1, 2):
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = read_answer(stream)
            assert answer is not None
            assert answer.status == 200
            if generation == 1:
                server.hup()
                server.wait_for_workers(1, generation=2)
        stream.close()
