"""What an application, its host or its operator may do to the processes, and the server goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import ROOT, Server, session_members

Start = Callable[..., Server]
WriteApp = Callable[..., None]


def test_too_few_descriptors_for_the_workers_is_one_clear_line(start: Start) -> None:
    server = start("demo:app", workers=60, ready=False, descriptors=64)
    assert server.wait_exit() == 3
    assert "ulimit -n" in server.events("server.failed")[0]["message"]
    assert "Traceback" not in server.log()


def test_a_server_that_runs_out_of_descriptors_while_it_grows_goes_on(start: Start) -> None:
    server = start("demo:app", descriptors=48)

    def grown_too_far() -> bool:
        server.send_signal(signal.SIGTTIN)
        return any("ulimit -n" in event["message"] for event in server.events("worker.exit"))

    server.wait_until(grown_too_far, "the limit")
    assert server.get("/hello").status == 200
    server.term()
    assert server.wait_exit() == 0


def test_more_workers_than_a_channel_holds_orders(start: Start, write_app: WriteApp) -> None:
    write_app()
    server = start("app:app", workers=300, ready=False)
    server.wait_for("server.ready", within_s=50)
    server.term()
    assert server.wait_exit(within_s=40) == 0


@pytest.mark.usefixtures("worker_type")
@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_an_application_that_ignores_the_end_of_children_has_workers(
    start: Start, write_app: WriteApp, preload: str
) -> None:
    write_app(before="import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    server = start("app:app", preload)
    pid = server.kill_worker()
    server.wait_for_workers(2, without=pid)
    assert server.get().text == "one"


@pytest.mark.usefixtures("worker_type")
@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_an_alarm_handler_that_was_set_at_import_works_in_requests(
    start: Start, write_app: WriteApp, preload: str
) -> None:
    write_app(
        code="import signal, time\nrang = []\nsignal.signal(signal.SIGALRM, lambda *_: rang.append('rang'))\n"
        "def app(environ, start_response):\n    signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        "    while not rang:\n        time.sleep(0.01)\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n    return [rang.pop().encode()]\n"
    )
    assert start("app:app", preload, "--timeout", "5").get().text == "rang"


@pytest.mark.parametrize("kind", ["a hook that hangs", "a stopped process"])
def test_a_zygote_that_makes_no_worker_is_replaced(start: Start, tmp_path: Path, kind: str) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "gunicorn.conf.py").write_text(
        f"import os, threading\ndef pre_fork(server, worker):\n"
        f"    if os.path.exists({str(gate)!r}):\n        threading.Event().wait()\n"
    )
    server = start("demo:app", "--boot-timeout", "3")
    zygote = server.zygote_pid()
    if kind == "a stopped process":
        os.kill(zygote, signal.SIGSTOP)
    else:
        gate.touch()
    pid = server.kill_worker()
    server.wait_for("worker.boot_timeout")
    gate.unlink(missing_ok=True)
    server.wait_for_workers(2, without=pid)
    if kind == "a hook that hangs":
        assert "in pre_fork" in server.wait_for("zygote.stack")["traceback"]


def test_an_error_of_any_length_and_letters_reaches_the_log(start: Start, write_app: WriteApp) -> None:
    for text in ("'\\x01' * 300_000", "'\\udcff is no letter'"):
        write_app(code=f"raise ValueError({text})\n")
        for preload in ("--preload", "--no-preload"):
            server = start("app:app", preload, ready=False)
            assert server.wait_exit() == 3
            assert "importing app failed: ValueError" in server.events("server.failed")[0]["message"]


@pytest.mark.usefixtures("worker_type")
def test_hooks_that_leave_the_interpreter_end_nothing(start: Start, tmp_path: Path) -> None:
    names = "when_ready on_reload child_exit pre_fork post_fork post_worker_init pre_request post_request worker_exit"
    (tmp_path / "gunicorn.conf.py").write_text(
        "".join(f"def {name}(*_):\n    raise SystemExit('from {name}')\n" for name in names.split())
    )
    server = start("demo:app")
    assert server.get("/hello").status == 200
    server.hup()
    server.wait_for("reload.done")
    server.kill_worker()
    server.wait_for_workers(2)
    assert server.get("/hello").status == 200


def test_on_starting_may_refuse_the_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("def on_starting(server):\n    raise SystemExit(4)\n")
    server = start("demo:app", ready=False)
    assert server.wait_exit() == 4
    assert server.log() == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_group_while_it_boots_is_for_the_master_alone(
    start: Start, write_app: WriteApp, signum: signal.Signals
) -> None:
    write_app()
    server = start("app:app", "--no-preload", ready=False)
    server.wait_for("listening")
    if signum == signal.SIGUSR1:

        def ready_under_signals() -> bool:
            os.killpg(server.pid, signum)
            return bool(server.events("server.ready"))

        server.wait_until(ready_under_signals, "readiness")
        assert not server.events("worker.exit")
    else:
        os.killpg(server.pid, signum)
        assert server.wait_exit() == 0
        assert not server.events("server.failed")


def test_a_daemon_lets_go_of_its_starters_output_and_has_its_pid_file_when_that_returns(
    write_app: WriteApp, tmp_path: Path
) -> None:
    write_app()
    command = [sys.executable, "-m", "forkserve", "-D", "--pid", "pid", "--log-file", "log", "--bind", "127.0.0.1:0"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "app:app"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=20, check=False
        )

    first = run()
    pid = int((tmp_path / "pid").read_text())
    pidfd = os.pidfd_open(pid)
    try:
        assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
        second = run()
        assert second.returncode == 1
        assert f"names process {pid}, which is alive" in second.stderr
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        server = Server.__new__(Server)
        server.pid = os.getsid(pid)
        server.log_path = tmp_path / "log"
        server.wait_until_nobody_is_left()
        os.close(pidfd)
    assert not (tmp_path / "pid").exists()
    assert session_members(server.pid) == []


POOLED = """
import concurrent.futures, os, pathlib, threading
pool = None
gate = threading.Event()

def job():
    gate.wait(1)
    pathlib.Path("done").write_text("done")

def app(environ, start_response):
    global pool
    pool = pool or concurrent.futures.ThreadPoolExecutor(1)
    pool.submit(job)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.usefixtures("worker_type")
def test_work_given_to_a_pool_is_finished_before_the_worker_leaves(
    start: Start, write_app: WriteApp, tmp_path: Path
) -> None:
    write_app(code=POOLED)
    server = start("app:app", "--chdir", str(tmp_path))
    assert server.get().text == "ok"
    server.term()
    assert server.wait_exit() == 0
    assert (tmp_path / "done").read_text() == "done"


def test_a_zygote_that_imports_dies_with_a_killed_master(start: Start, write_app: WriteApp) -> None:
    write_app(before="while True:\n    pass")
    server = start("app:app", ready=False)
    server.wait_until(lambda: any(each.role == "zygote" for each in server.processes()), "a zygote")
    server.send_signal(signal.SIGKILL)
    server.wait_until_nobody_is_left()


def test_a_reload_does_not_wait_for_the_pause_of_what_kept_dying(
    start: Start, write_app: WriteApp, tmp_path: Path
) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("restart_intensity = 1\nrestart_period = 60\n")
    server = start("demo:app", "-c", str(config))

    def paused() -> bool:
        pids = server.worker_pids()
        if pids and not server.events("restart.paused"):
            server.kill_worker(pid=pids[0])
        return len(server.events("restart.paused")) >= 1

    server.wait_until(paused, "a pause")
    server.hup()
    done = server.wait_for("reload.done")
    assert done["took_s"] < 10


def test_a_failed_reload_leaves_the_old_settings_in_force(start: Start, write_app: WriteApp, tmp_path: Path) -> None:
    write_app("old")
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("timeout = 30\n")
    server = start("app:app", "-c", str(config))
    config.write_text("timeout = 30\nloglevel = 'error'\n")
    write_app(code="raise RuntimeError('broken')\n")
    server.hup()
    server.wait_for("reload.failed")
    server.send_signal(signal.SIGTTIN)
    server.wait_for("scale.changed")  # an info line: the old loglevel
