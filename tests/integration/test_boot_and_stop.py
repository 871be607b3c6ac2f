"""A server comes up, serves, and goes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from tests.harness import EXAMPLES, Answer, HarnessError, Server, assert_no_request_lost, read_all

Start = Callable[..., Server]


class Asking(Thread):
    """One request that runs while the story goes on."""

    def __init__(self, server: Server, path: str) -> None:
        super().__init__(daemon=True)
        self.server, self.path = server, path
        self.result: Answer | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.server.get(self.path)
        except Exception as error:  # it is the story's to judge
            self.result = error

    def answer(self) -> Answer | Exception | None:
        self.join(30)
        return self.result


def wait_until_it_runs(server: Server, path: str) -> None:
    """Until the application has been called."""
    server.wait_for_log(f"called {path}")


BLOCKING = """
import sys, time
def app(environ, start_response):
    path = environ["PATH_INFO"]
    print("called", path, file=sys.stderr, flush=True)
    if path.startswith("/slow"):
        time.sleep(float(path[5:]))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"done"]
"""


@pytest.mark.usefixtures("worker_type")
def test_a_master_a_zygote_and_two_workers_serve_the_demo(start: Start) -> None:
    server = start("demo:app")
    server.wait_until(lambda: len(server.processes()) == 4, "what the zygote forks workers through to be gone")
    seen = server.processes()
    assert sorted(process.role for process in seen) == ["master", "worker", "worker", "zygote"]
    assert [process.pid for process in seen if process.role == "master"] == [server.pid]
    assert server.get("/hello").body == b"Hello, world!"
    page = server.get("/")
    assert page.status == 200
    assert "It runs." in page.text
    assert "generation<td>1<" in page.text
    assert server.get("/nowhere").status == 404
    assert server.request("POST", "/upload", b"x" * 300_000).text.startswith("300000 bytes")
    assert len(server.get("/stream").body.splitlines()) == 10


def test_workers_are_children_of_the_master(start: Start) -> None:
    server = start("demo:app")
    for pid in server.worker_pids():
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent == server.pid


@pytest.mark.usefixtures("worker_type")
def test_a_busy_worker_leaves_new_connections_to_its_sibling(start: Start, write_app: Callable[..., None]) -> None:
    write_app(code=BLOCKING)
    server = start("app:app")
    asking = Asking(server, "/slow2")
    wait_until_it_runs(server, "/slow")
    assert [server.get("/quick").body for _ in range(20)] == [b"done"] * 20
    assert asking.is_alive(), "the quick ones have waited for the slow one"
    assert isinstance(asking.answer(), Answer)


@pytest.mark.usefixtures("worker_type")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_an_idle_server_stops_with_code_0_and_leaves_nothing(start: Start, signum: int, tmp_path: Path) -> None:
    server = start("demo:app", "--pid", "server.pid", bind=["127.0.0.1:0", f"unix:{tmp_path}/x.sock"])
    assert (tmp_path / "server.pid").read_text().strip() == str(server.pid)
    server.send_signal(signum)
    assert server.wait_exit() == 0
    assert server.events("server.stopped")
    assert not (tmp_path / "server.pid").exists()
    assert not (tmp_path / "x.sock").exists()


@pytest.mark.usefixtures("worker_type")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop_answers_what_runs(start: Start, write_app: Callable[..., None], signum: int) -> None:
    write_app(code=BLOCKING)
    server = start("app:app")
    asking = Asking(server, "/slow0.7")
    wait_until_it_runs(server, "/slow")
    server.send_signal(signum)
    answer = asking.answer()
    assert isinstance(answer, Answer), answer
    assert answer.body == b"done"
    assert server.wait_exit() == 0


@pytest.mark.usefixtures("worker_type")
def test_a_graceful_stop_answers_what_waits_in_the_accept_queue(start: Start, write_app: Callable[..., None]) -> None:
    write_app(code=BLOCKING)
    server = start("app:app", workers=1)
    running = Asking(server, "/slow0.7")
    wait_until_it_runs(server, "/slow")
    queued = []
    for _ in range(20):
        connection = server.raw()
        connection.sendall(b"GET /queued HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        queued.append(connection)
    server.term()
    server.wait_for("stop.begun")
    with pytest.raises(ConnectionRefusedError):
        server.raw()
    for connection in queued:
        assert read_all(connection).endswith(b"done")
        connection.close()
    assert isinstance(running.answer(), Answer)
    assert server.wait_exit() == 0
    report = server.events("server.stopped")[0]
    assert 1 <= report["finished"] <= 21  # others were taken, and in threads and greenlets answered, before it began
    assert 0 <= report["accepted"] <= 20
    assert (report["refused"], report["lost"], report["exit_code"]) == (0, 0, 0)


@pytest.mark.usefixtures("worker_type")
def test_a_stop_under_load_loses_no_request(start: Start) -> None:
    server = start("demo:app")
    with assert_no_request_lost(server, "/hello", clients=6, until_refused=True) as load:
        load.wait_for_answers(200)
        server.term()
        assert server.wait_exit() == 0
    assert load.refused == 6


@pytest.mark.usefixtures("worker_type")
def test_a_quick_stop_does_not_wait_for_what_runs(start: Start, write_app: Callable[..., None]) -> None:
    write_app(code=BLOCKING)
    server = start("app:app")
    asking = Asking(server, "/slow30")
    wait_until_it_runs(server, "/slow")
    server.send_signal(signal.SIGQUIT)
    assert server.wait_exit(within_s=10) == 4
    assert isinstance(asking.answer(), Exception)


@pytest.mark.usefixtures("worker_type")
def test_a_second_term_at_once_is_a_twin_and_one_a_second_later_forces(
    start: Start, write_app: Callable[..., None]
) -> None:
    write_app(code=BLOCKING)
    server = start("app:app")
    asking = Asking(server, "/slow30")
    wait_until_it_runs(server, "/slow")
    server.term()
    server.wait_for("stop.begun")
    server.term()
    server.wait_for("signal", count=2)
    assert not server.events("stop.repeated")

    def repeated() -> bool:
        server.term()
        return bool(server.events("stop.repeated"))

    server.wait_until(repeated, "a second TERM to be taken as one")
    server.wait_exit(within_s=10)
    assert isinstance(asking.answer(), Exception)


@pytest.mark.usefixtures("worker_type")
def test_a_request_that_outlives_graceful_timeout_is_named(start: Start, write_app: Callable[..., None]) -> None:
    write_app(code=BLOCKING)
    server = start("app:app", "--graceful-timeout", "0.5")
    asking = Asking(server, "/slow30")
    wait_until_it_runs(server, "/slow")
    server.term()
    assert server.wait_exit(within_s=10) == 4
    assert isinstance(asking.answer(), Exception)
    assert "GET /slow30" in server.log()
    report = server.events("server.stopped")[0]
    assert (report["lost"], report["exit_code"]) == (1, 4)


# ------------------------------------------------------------------------------------------- addresses


def test_all_kinds_of_addresses_serve_side_by_side(start: Start, tmp_path: Path) -> None:
    name = f"@forkserve-test-{uuid.uuid4()}"
    outside = socket.create_server(("127.0.0.1", 0))
    fd = outside.fileno()
    addresses = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/x.sock", f"unix:{name}", f"fd://{fd}"]
    with outside:
        server = start("demo:app", bind=addresses, inherit=[fd])
        assert len(server.urls) == 5
        assert [url.partition(":")[0] for url in server.urls] == ["http", "http", "unix", "unix", "http"]
        for url in server.urls:
            assert server.get("/hello", url=url).body == b"Hello, world!", url
        server.term()
        assert server.wait_exit() == 0
        assert not (tmp_path / "x.sock").exists()
        socket.create_connection(outside.getsockname(), timeout=5).close()  # lent, and still open


def test_sockets_of_systemd_are_taken(start: Start, tmp_path: Path) -> None:
    """What systemd does: descriptor 3 listens, LISTEN_PID is the server's own pid."""
    shell = 'exec 3<&"$1"; shift; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
    with socket.create_server(("127.0.0.1", 0)) as outside:
        log_path = tmp_path / "activated.log"
        command = [sys.executable, "-m", "forkserve", "--log-format", "json", "--pythonpath", str(EXAMPLES), "demo:app"]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", shell, "bash", str(outside.fileno()), *command],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                stdout=log,
                stderr=log,
                pass_fds=[outside.fileno()],
                start_new_session=True,
            )
        server = Server(process, log_path)
        try:
            server.wait_for("server.ready")
            assert server.port == outside.getsockname()[1]
            assert server.get("/hello").body == b"Hello, world!"
        finally:
            server.end()


def test_a_stale_unix_socket_is_replaced_and_a_live_one_refused(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = start("demo:app", bind=[f"unix:{path}"])
    second = start("demo:app", bind=[f"unix:{path}"], ready=False)
    assert second.wait_exit() == 1
    assert "a live process listens there" in second.log()
    assert server.get("/hello").body == b"Hello, world!"


@pytest.mark.parametrize(
    ("bind", "code", "line"),
    [
        ("192.0.2.1:0", 1, "cannot listen on 192.0.2.1:0"),
        ("no-such-host.invalid:80", 1, "has no address here"),
        ("unix:/nowhere/at/all.sock", 1, "its directory does not exist"),
        ("127.0.0.1:http", 2, "the port 'http' is not a number"),
        ("fd://99", 1, "cannot use descriptor 99"),
    ],
)
def test_a_bad_address_is_one_clear_line_and_nothing_is_started(start: Start, bind: str, code: int, line: str) -> None:
    server = start("demo:app", bind=[bind], ready=False)
    assert server.wait_exit() == code
    assert len(server.log().splitlines()) == 1, server.log()
    assert line in server.log()


def test_an_address_in_use_is_one_clear_line(start: Start) -> None:
    first = start("demo:app")
    second = start("demo:app", bind=[f"127.0.0.1:{first.port}"], ready=False)
    assert second.wait_exit() == 1
    assert "address already in use" in second.log()
    assert first.get("/hello").status == 200


def test_the_address_is_free_again_at_once(start: Start) -> None:
    first = start("demo:app")
    assert first.get("/hello").status == 200
    first.term()
    assert first.wait_exit() == 0
    second = start("demo:app", bind=[f"127.0.0.1:{first.port}"])
    assert second.get("/hello").status == 200


# ------------------------------------------------------------------------------------------- what people see


def test_a_log_for_people_has_one_line_a_state_change(start: Start) -> None:
    server = start("demo:app", log_format="text", ready=False)
    server.wait_for_log(r"INFO ready: 2 workers")
    server.term()
    assert server.wait_exit() == 0
    lines = server.log().splitlines()
    assert all(line.split("] ")[1].startswith("INFO ") for line in lines), server.log()


def test_a_story_that_fails_shows_the_log(start: Start) -> None:
    server = start("demo:app")
    with pytest.raises(HarnessError, match=r"(?s)waited for event never\.comes .*server\.ready"):
        server.wait_for("never.comes", within_s=0.1)
