"""What surrounds a server: the service manager, configuration that is found by itself, slow clients, development."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server, read_all

Start = Callable[..., Server]
WriteApp = Callable[..., None]


# ------------------------------------------------------------------------------------------- service manager


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(f"{tmp_path}/notify")
    sock.settimeout(20)
    return sock


def messages_until(manager: socket.socket, wanted: str) -> list[dict[str, str]]:
    """The manager's messages up to the first that has an assignment."""
    received: list[dict[str, str]] = []
    while True:
        text = manager.recv(4096).decode()
        received.append(dict(line.split("=", 1) for line in text.splitlines()))
        if wanted in text.splitlines():
            return received


def test_the_service_manager_hears_of_ready_reload_and_stop(
    start: Start, write_app: WriteApp, manager: socket.socket, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    write_app("x", before=f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)")
    with manager:
        server = start("app:app", environ={"NOTIFY_SOCKET": f"{tmp_path}/notify"}, ready=False)
        server.wait_for("listening")
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):  # bound, but no worker is ready: nothing is said
            manager.recv(4096)
        manager.settimeout(20)
        gate.touch()
        messages_until(manager, "READY=1")
        assert server.events("worker.ready")
        server.hup()
        reloading = messages_until(manager, "RELOADING=1")[-1]
        assert int(reloading["MONOTONIC_USEC"]) > 0
        messages_until(manager, "READY=1")
        server.term()
        messages_until(manager, "STOPPING=1")
        assert server.wait_exit() == 0


def test_the_application_does_not_inherit_the_managers_socket(
    start: Start, write_app: WriteApp, manager: socket.socket, tmp_path: Path
) -> None:
    """Otherwise a library of its own could report its READY=1 for ours."""
    write_app(
        code="import os\ndef app(environ, start_response):\n    start_response('200 OK', [])\n"
        "    return [os.environ.get('NOTIFY_SOCKET', 'none').encode()]\n"
    )
    with manager:
        server = start("app:app", environ={"NOTIFY_SOCKET": f"{tmp_path}/notify"})
        assert server.get().text == "none"


# ------------------------------------------------------------------------------------------- configuration


def test_gunicorns_configuration_file_is_found_and_its_hooks_are_called(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        "workers = 1\n"
        "raw_env = ['FROM=file']\n"
        "def when_ready(server):\n    server.log.info('hook when_ready ran')\n"
        "def post_fork(server, worker):\n    server.log.info('hook post_fork ran in %s', worker.pid)\n"
    )
    server = start("demo:app")
    server.wait_for_log("hook when_ready ran")
    server.wait_for_log(f"hook post_fork ran in {server.worker_pids()[0]}")
    assert len(server.worker_pids()) == 2  # the command line is stronger than the file


def test_the_toml_file_is_found(start: Start, tmp_path: Path) -> None:
    (tmp_path / "forkserve.toml").write_text('proc_name = "from-the-file"\n')
    server = start("demo:app")
    assert b"from-the-file" in Path(f"/proc/{server.pid}/cmdline").read_bytes()


def test_gunicorns_environment_variable_is_read(start: Start) -> None:
    server = start("demo:app", environ={"GUNICORN_CMD_ARGS": "--access-logfile -"})
    assert server.get("/hello?seen").status == 200
    server.wait_for_log("GET /hello\\?seen")


def test_a_typing_mistake_is_one_helpful_line_and_nothing_is_started(start: Start, tmp_path: Path) -> None:
    (tmp_path / "forkserve.toml").write_text("worker = 3\n")
    server = start("demo:app", ready=False)
    assert server.wait_exit() == 2
    assert "workers" in server.log()
    assert "forkserve.toml" in server.log()
    assert len(server.log().splitlines()) == 1


# ------------------------------------------------------------------------------------------- clients


def test_slow_and_silent_clients_do_not_block_a_single_worker(start: Start) -> None:
    server = start("demo:app", workers=1)
    whole = b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    slow = [server.raw() for _ in range(50)]
    for number, connection in enumerate(slow):
        connection.sendall(whole[: number + 1])
    assert [server.get("/hello").status for _ in range(20)] == [200] * 20
    for number, connection in enumerate(slow):
        connection.sendall(whole[number + 1 :])
        assert read_all(connection).endswith(b"Hello, world!")
        connection.close()


def test_a_client_that_says_nothing_in_time_is_told_so(start: Start) -> None:
    server = start("demo:app", "--header-timeout", "0.5")
    with server.raw() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_a_kept_connection_answers_many_requests_and_pipelines(start: Start) -> None:
    server = start("demo:app")
    with server.raw() as connection:
        asked = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n" * 9
        connection.sendall(asked + b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(connection).count(b"Hello, world!") == 10


def test_smuggling_is_refused(start: Start) -> None:
    server = start("demo:app")
    with server.raw() as connection:
        connection.sendall(
            b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /"
        )
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_an_access_log_line_is_written_for_each_request(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    server = start("demo:app", "--access-logfile", str(log), log_format="text", ready=False)
    server.wait_for_log("ready: 2 workers")
    assert server.get("/hello").status == 200
    server.wait_until(lambda: log.exists() and '"GET /hello HTTP/1.1" 200 13' in log.read_text(), "the line")


# ------------------------------------------------------------------------------------------- development


def test_reload_follows_changed_files(start: Start, write_app: WriteApp, tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    extra = tmp_path / "templates"
    extra.mkdir()
    (extra / "page.html").write_text("1")
    write_app("one")
    server = start("app:app", "--reload", "--reload-extra-file", str(extra / "page.html"))
    number = 0

    def change_is_seen() -> bool:  # the watcher may not look yet at the first change
        nonlocal number
        number += 1
        write_app(f"version {number}")
        return bool(server.events("reload.done"))

    server.wait_until(change_is_seen, "a reload after a change")
    server.wait_until(lambda: server.get().text == f"version {number}", "the last version")
    seen = len(server.events("files.changed"))
    (extra / "page.html").write_text("2")
    server.wait_until(lambda: len(server.events("files.changed")) > seen, "a reload after the extra file's change")
