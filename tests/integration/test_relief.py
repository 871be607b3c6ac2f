"""A long call in a sync worker, and everybody else: real workers of one server."""

from __future__ import annotations

import functools
import http.client
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.harness import DEADLINE_S, Server
from tests.serving import read_answer

Start = Callable[..., Server]

APP = """
import os, time

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/wait":
        open(os.environ["BEGUN"], "w").close()
        while not os.path.exists(os.environ["MAY_END"]):
            time.sleep(0.01)
    elif path == "/die":
        os.kill(os.getpid(), 9)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {environ['REQUEST_METHOD']} {path} {environ['wsgi.input'].read().decode()}".encode()]
"""


class Wait:
    """A call of /wait on a connection of its own."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._folder = folder
        self.connection = server.connection()
        self.connection.request("GET", "/wait")
        server.wait_until((folder / "begun").exists, "the call has begun")

    def end(self) -> bytes:
        """Let it end; its answer."""
        (self._folder / "may-end").touch()
        body = self.connection.getresponse().read()
        self.connection.close()
        return body


@pytest.fixture
def serving(start: Start, write_app: Callable[..., None], tmp_path: Path) -> Start:
    """Starts the application above."""
    write_app(name="waiting", code=APP)
    environ = {"BEGUN": str(tmp_path / "begun"), "MAY_END": str(tmp_path / "may-end")}
    return functools.partial(start, "waiting:app", environ=environ)


def ask(connection: http.client.HTTPConnection, path: str, body: bytes | None = None) -> tuple[int, str]:
    """The worker's pid, and the rest of the answer."""
    connection.request("POST" if body else "GET", path, body)
    answer = connection.getresponse().read().decode()
    pid, _, rest = answer.partition(" ")
    return int(pid), rest


def test_a_parked_connection_of_a_busy_worker_is_answered_by_an_idle_one(serving: Start, tmp_path: Path) -> None:
    server = serving(workers=2)
    with ExitStack() as stack:
        parked = [stack.enter_context(closing(server.connection())) for _ in range(12)]
        homes = [ask(connection, "/")[0] for connection in parked]
        wait = Wait(server, tmp_path)
        answers = [ask(connection, f"/{number}", b"abc") for number, connection in enumerate(parked)]
        assert [rest for _pid, rest in answers] == [f"POST /{number} abc" for number in range(12)]
        busy = int(wait.end().split()[0])
        assert busy not in {pid for pid, _rest in answers}
        assert homes.count(busy) > 0, "none was parked at the busy worker: the test has shown nothing"
        again = [ask(connection, "/again") for connection in parked]  # the connections live on where they are now
        assert len(again) == 12


def test_time_limits_hold_while_the_only_worker_runs_a_call(serving: Start, tmp_path: Path) -> None:
    server = serving("--header-timeout", "0.3", workers=1)
    wait = Wait(server, tmp_path)
    with server.raw() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.status == 408
    with server.raw() as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = read_answer(client.makefile("rb"))
        assert answer is not None
        assert answer.status == 400
    wait.end()


def test_a_stop_during_a_call_answers_it_and_what_waits(serving: Start, tmp_path: Path) -> None:
    server = serving(workers=1)
    wait = Wait(server, tmp_path)
    other = server.connection()
    other.request("GET", "/other")
    server.term()
    server.wait_for("stop.begun")
    assert b"/wait" in wait.end()
    assert other.getresponse().read().endswith(b"GET /other ")
    other.close()
    assert server.wait_exit() == 0


def test_a_worker_that_dies_during_a_hand_over_takes_only_its_own_requests_along(
    serving: Start, tmp_path: Path
) -> None:
    """Siblings hand over while one is killed again and again; whoever is not at the killed one is answered."""
    server = serving("--restart-intensity", "1000", workers=3)
    wait = Wait(server, tmp_path)
    problems: list[Exception] = []

    def client() -> None:
        try:
            for _ in range(40):
                with closing(server.connection()) as connection:
                    for _ in range(3):
                        ask(connection, "/")
        except Exception as error:
            problems.append(error)

    def killer() -> None:
        for _ in range(5):
            with closing(server.connection()) as connection:
                try:
                    ask(connection, "/die")
                except (OSError, http.client.HTTPException):
                    continue  # that was the worker

    threads = [threading.Thread(target=client) for _ in range(4)] + [threading.Thread(target=killer)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert b"/wait" in wait.end()
    # A client may only have lost a connection that was at a worker when it was killed.
    assert all(isinstance(problem, (ConnectionError, http.client.HTTPException)) for problem in problems)
    with closing(server.connection()) as connection:
        assert ask(connection, "/after")[1] == "GET /after "
