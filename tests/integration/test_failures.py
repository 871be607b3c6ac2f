"""What breaks is said, and mended."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import Server, read_all

Start = Callable[..., Server]
WriteApp = Callable[..., None]


# ------------------------------------------------------------------------------------------- at the first start


@pytest.mark.parametrize("preload", ["--preload-auto", "--preload", "--no-preload"])
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("def app(:", "SyntaxError"),
        ("raise RuntimeError('a bug at import')", "a bug at import"),
        ("app = 5", "callable"),
    ],
)
def test_a_broken_application_ends_the_first_start_with_its_traceback(
    start: Start, write_app: WriteApp, broken: str, says: str, preload: str
) -> None:
    write_app(code=broken + "\n")
    server = start("app:app", preload, ready=False)
    assert server.wait_exit() == 3
    failed = server.events("server.failed")[0]
    assert says in failed["message"] + failed.get("traceback", "")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("no_such_module:app", "no_such_module"),
        ("demo:ap", "app"),  # the attribute that there is
        ("demo:SLEEP_S_MAX", "callable"),
    ],
)
def test_an_application_that_is_not_there_is_named(start: Start, spec: str, says: str) -> None:
    server = start(spec, ready=False)
    assert server.wait_exit() == 3
    assert says in server.events("server.failed")[0]["message"]


def test_an_application_that_hangs_at_the_first_start_is_given_up(start: Start, write_app: WriteApp) -> None:
    write_app("x", before="import threading; threading.Event().wait()")
    server = start("app:app", "--boot-timeout", "1", ready=False)
    assert server.wait_exit() == 3
    assert "app.py" in server.log()  # the stack says where


# ------------------------------------------------------------------------------------------- while serving


@pytest.mark.usefixtures("worker_type")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_replaced_and_the_cause_named(start: Start, signum: int) -> None:
    server = start("demo:app")
    pid = server.kill_worker(signum)
    server.wait_for_workers(2, without=pid)
    line = server.wait_for("worker.exit", level="error")
    assert signal.Signals(signum).name in line["message"]
    assert server.get("/hello").status == 200


@pytest.mark.usefixtures("worker_type")
def test_a_crash_names_the_request_that_ran(start: Start) -> None:
    server = start("demo:app")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        server.get("/crash?by=name")
    line = server.wait_for("worker.exit", level="error")
    assert "exit code 1" in line["message"]
    assert "GET /crash?by=name" in line["message"]
    server.wait_for_workers(2)
    assert server.get("/hello").status == 200


@pytest.mark.usefixtures("worker_type")
def test_an_error_in_the_application_is_a_500_with_its_traceback(start: Start) -> None:
    server = start("demo:app")
    before = server.worker_pids()
    answer = server.get("/error")
    assert answer.status == 500
    assert b"this page always fails" not in answer.body
    server.wait_for_log("RuntimeError: this page always fails")
    assert server.worker_pids() == before


@pytest.mark.usefixtures("worker_type")
@pytest.mark.worker_types("sync")
def test_a_hung_worker_is_replaced_with_its_stack_in_the_log(start: Start) -> None:
    server = start("demo:app", "--timeout", "1")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        server.get("/slow?s=60")
    hung = server.wait_for("worker.hung")
    server.wait_for("worker.exit", worker=hung["worker"])
    assert "GET /slow?s=60" in server.wait_for("worker.exit", worker=hung["worker"])["message"]
    server.wait_for_log(r"demo\.py.* in slow")
    server.wait_for_workers(2)
    assert server.get("/hello").status == 200


@pytest.mark.usefixtures("worker_type")
@pytest.mark.worker_types("gthread", "gevent")
def test_a_worker_whose_calls_wait_is_not_taken_for_a_hung_one(start: Start) -> None:
    server = start("demo:app", "--timeout", "1", workers=1)
    with ThreadPoolExecutor() as clients:
        slow = [clients.submit(server.get, "/slow?s=2.5") for _ in range(3)]
        while not all(each.done() for each in slow):
            assert server.get("/hello").status == 200
        assert [each.result().status for each in slow] == [200] * 3
    assert not server.events("worker.hung")


@pytest.mark.usefixtures("worker_type")
def test_a_worker_that_stands_still_is_killed_and_replaced(start: Start) -> None:
    server = start("demo:app", "--timeout", "1")
    pid = server.kill_worker(signal.SIGSTOP)
    hung = server.wait_for("worker.hung")
    assert "killed by the master: no sign of life" in server.wait_for("worker.exit", worker=hung["worker"])["message"]
    server.wait_for_workers(2, without=pid)
    assert server.get("/hello").status == 200


@pytest.mark.usefixtures("worker_type")
def test_an_idle_worker_is_never_taken_for_a_hung_one(start: Start) -> None:
    server = start("demo:app", "--timeout", "2")
    before = server.worker_pids()
    assert server.get("/slow?s=1.2").status == 200
    assert server.get("/slow?s=1.2").status == 200
    assert server.worker_pids() == before
    assert not server.events("worker.hung")


def test_workers_that_keep_dying_are_restarted_after_pauses(start: Start, write_app: WriteApp) -> None:
    write_app(
        code="import os\ndef app(environ, start_response):\n    os._exit(1)\n",
    )
    server = start("app:app", "--restart-intensity", "3", "--restart-period", "60", workers=1)

    def crash_until_paused() -> bool:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            server.get()
        return bool(server.events("restart.paused"))

    server.wait_until(crash_until_paused, "a pause between restarts")
    server.wait_for_workers(1)  # and then it goes on
    assert len(server.events("worker.exit")) < 20


@pytest.mark.usefixtures("worker_type")
def test_a_dead_zygote_is_replaced(start: Start) -> None:
    server = start("demo:app")
    zygote = server.zygote_pid()
    os.kill(zygote, signal.SIGKILL)
    server.zygote_pid(without=zygote)
    pid = server.kill_worker()
    server.wait_for_workers(2, without=pid)
    assert server.get("/hello").status == 200


@pytest.mark.usefixtures("worker_type")
def test_workers_of_a_killed_master_finish_and_leave(start: Start, write_app: WriteApp, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    write_app(
        code=f"import os, sys, time\ndef app(environ, start_response):\n"
        f"    print('called', file=sys.stderr, flush=True)\n"
        f"    while not os.path.exists({str(gate)!r}):\n        time.sleep(0.01)\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n    return [b'finished']\n"
    )
    server = start("app:app")
    connection = server.raw()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    server.wait_for_log("called")
    os.kill(server.pid, signal.SIGKILL)
    server.wait_exit()
    gate.touch()
    assert b"finished" in read_all(connection)
    connection.close()
    # that nobody is left is what every story ends with


def test_the_next_start_is_not_stopped_by_what_a_killed_one_left(start: Start, tmp_path: Path) -> None:
    arguments = ("demo:app", "--pid", "server.pid")
    bind = [f"unix:{tmp_path}/x.sock"]
    first = start(*arguments, bind=bind)
    os.kill(first.pid, signal.SIGKILL)
    first.wait_exit()
    first.wait_until_nobody_is_left()
    assert (tmp_path / "x.sock").exists()
    second = start(*arguments, bind=bind)
    assert second.get("/hello").status == 200
    assert (tmp_path / "server.pid").read_text().strip() == str(second.pid)


@pytest.mark.usefixtures("worker_type")
def test_a_child_that_the_application_forks_and_that_leaves_is_no_worker(start: Start, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import os, sys\n"
        "def app(environ, start_response):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        if environ['PATH_INFO'] == '/raise':\n"
        "            raise ValueError('in the child')\n"
        "        if environ['PATH_INFO'] == '/return':\n"
        "            start_response('200 OK', [])\n"
        "            return [b'the child']\n"
        "        sys.exit(7)\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "    start_response('200 OK', [])\n"
        "    return [b'%d' % os.waitstatus_to_exitcode(status)]\n"
    )
    server = start("app:app")
    assert [server.get(path).body for path in ("/exit", "/raise", "/return")] == [b"7", b"1", b"1"]


@pytest.mark.parametrize("arguments", [(), ("--threads", "2"), ("-k", "gevent")])
def test_a_child_that_the_application_forks_is_ended_by_signals_and_the_worker_is_not(
    start: Start, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "app.py").write_text(
        "import multiprocessing, os, signal\n"
        "def wait(ready):\n"
        "    os.write(ready, b'.')\n"
        "    while True:\n"
        "        signal.pause()\n"
        "def app(environ, start_response):\n"
        "    ours, theirs = os.pipe()\n"
        "    child = multiprocessing.get_context('fork').Process(target=wait, args=(theirs,))\n"
        "    child.start()\n"
        "    os.read(ours, 1)\n"
        "    os.kill(child.pid, int(environ['PATH_INFO'][1:]))\n"
        "    child.join(10)\n"
        "    start_response('200 OK', [])\n"
        "    return [b'%d %r' % (os.getpid(), child.exitcode)]\n"
    )
    server = start("app:app", *arguments, workers=1)
    (pid,) = server.worker_pids()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT):
        assert server.get(f"/{signum:d}").text == f"{pid} -{signum:d}"
    assert not server.events("worker.retiring")
