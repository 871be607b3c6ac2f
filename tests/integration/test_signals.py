"""What each signal to the master does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server, assert_no_request_lost

Start = Callable[..., Server]
WriteApp = Callable[..., None]


@pytest.mark.usefixtures("worker_type")
def test_hup_serves_the_new_code_with_new_workers(start: Start, write_app: WriteApp) -> None:
    write_app("one")
    server = start("app:app")
    before = server.worker_pids()
    assert server.get().text == "one"
    write_app("two")
    assert server.get().text == "one"
    server.hup()
    server.wait_for("reload.done")
    assert server.get().text == "two"
    after = server.wait_for_workers(2, generation=2)
    assert not set(before) & set(after)
    server.wait_until(lambda: len(server.processes()) == 4, "the old generation to be gone")


@pytest.mark.usefixtures("worker_type")
def test_ttin_and_ttou_change_the_number_of_workers(start: Start) -> None:
    server = start("demo:app")
    server.send_signal(signal.SIGTTIN)
    assert len(server.wait_for_workers(3)) == 3
    server.send_signal(signal.SIGTTOU)
    server.wait_for("scale.changed", size=2)
    server.wait_for_workers(2)
    server.send_signal(signal.SIGTTOU)
    server.wait_for_workers(1)
    server.send_signal(signal.SIGTTOU)
    server.wait_for("scale.unchanged")  # never below one
    assert server.get("/hello").status == 200


def test_winch_stops_the_workers_and_ttin_brings_one_back(start: Start) -> None:
    server = start("demo:app")
    server.send_signal(signal.SIGWINCH)
    server.wait_for_workers(0)
    assert server.process.poll() is None
    server.send_signal(signal.SIGTTIN)
    server.wait_for_workers(1)
    assert server.get("/hello").status == 200


def test_hup_after_winch_brings_all_workers_back(start: Start) -> None:
    server = start("demo:app")
    server.send_signal(signal.SIGWINCH)
    server.wait_for_workers(0)
    server.hup()
    server.wait_for_workers(2, generation=2)
    assert server.get("/hello").status == 200


def test_usr1_opens_moved_log_files_anew(start: Start, tmp_path: Path) -> None:
    error_log, access_log = tmp_path / "error.log", tmp_path / "access.log"
    server = start("demo:app", "--error-logfile", str(error_log), "--access-logfile", str(access_log), ready=False)
    server.wait_until(lambda: error_log.exists() and "server.ready" in error_log.read_text(), "the error log")
    port = error_log.read_text().split("http://127.0.0.1:")[1].split('"')[0]
    url = f"http://127.0.0.1:{port}"
    assert server.get("/hello?before", url=url).status == 200
    server.wait_until(lambda: "/hello?before" in access_log.read_text(), "the access log")
    error_log.rename(tmp_path / "error.log.1")
    access_log.rename(tmp_path / "access.log.1")
    server.send_signal(signal.SIGUSR1)
    server.wait_until(lambda: error_log.exists() and "logs.reopened" in error_log.read_text(), "a new error log")

    def goes_to_the_new_file() -> bool:
        assert server.get("/hello?after", url=url).status == 200
        return "/hello?after" in access_log.read_text()

    server.wait_until(goes_to_the_new_file, "a new access log")
    server.term()
    assert server.wait_exit() == 0
    assert "server.stopped" in error_log.read_text()
    assert "logs.reopened" not in (tmp_path / "error.log.1").read_text()


def test_usr2_is_refused_with_a_line(start: Start) -> None:
    server = start("demo:app")
    server.send_signal(signal.SIGUSR2)
    server.wait_for("upgrade.refused")
    assert server.get("/hello").status == 200


def test_a_storm_of_signals_is_survived_and_has_its_effect(start: Start) -> None:
    server = start("demo:app")
    for _ in range(100):
        for signum in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
            server.send_signal(signum)
    server.wait_for("reload.done")
    assert server.get("/hello").status == 200
    server.term()
    assert server.wait_exit() == 0


@pytest.mark.usefixtures("worker_type")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH])
def test_a_groups_signal_does_not_reach_past_the_master(start: Start, signum: int) -> None:
    server = start("demo:app")
    before = server.worker_pids()
    for process in server.processes():
        if process.role != "master":
            os.kill(process.pid, signum)
    assert [server.get("/hello").status for _ in range(10)] == [200] * 10
    assert server.worker_pids() == before


@pytest.mark.usefixtures("worker_type")
def test_term_to_a_worker_replaces_it_without_a_loss(start: Start) -> None:
    server = start("demo:app")
    with assert_no_request_lost(server, "/hello"):
        pid = server.kill_worker(signal.SIGTERM)
        server.wait_for_workers(2, without=pid)
    assert server.events("worker.retiring")
