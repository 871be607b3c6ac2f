"""Servers inside other programs: `running` and `Master`."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import pytest

import forkserve
from forkserve.errors import BootError, ListenError, SettingsError
from forkserve.posix import process
from tests.harness import session_members


def answers_with_pid(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def next_line(stream: IO[bytes]) -> bytes:
    """A line of a program's unbuffered output, once it has come."""
    assert select.select([stream], [], [], 20)[0], "the program said nothing"
    return stream.readline()


def test_an_application_object_is_served_by_other_processes_and_gone_afterwards() -> None:
    with forkserve.running(answers_with_pid, workers=2) as server:
        assert int(get(server.url)) not in (os.getpid(), server.pid)
        assert server.url == f"http://127.0.0.1:{server.port}"
        deadline = time.monotonic() + 20
        while len(session_members(server.pid)) != 4:  # master, zygote, two workers; for a moment what it forks through
            assert time.monotonic() < deadline, session_members(server.pid)
            time.sleep(0.01)
    assert server.exit_code == 0
    assert session_members(server.pid) == []


def test_an_application_by_name_is_loaded_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'shop']\n"
    )
    with forkserve.running("shop:app", chdir=str(tmp_path)) as server:
        assert get(server.url) == b"shop"


def test_the_callers_signals_and_directory_are_untouched(tmp_path: Path) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)]
    directory = os.getcwd()
    with forkserve.running(answers_with_pid, chdir=str(tmp_path)):
        assert os.getcwd() == directory
    assert before == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)]
    assert signal.set_wakeup_fd(-1) == -1


def answers_with_itself(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    umask = os.umask(0)
    os.umask(umask)
    return [f"{os.getuid()} {os.getgid()} {os.getcwd()} {umask:o} {os.environ.get('COLOUR')}".encode()]


def test_an_object_is_served_with_the_settings_of_its_process(tmp_path: Path) -> None:
    settings = {"chdir": str(tmp_path), "umask": 0o27, "raw_env": ["COLOUR=red"]}
    with forkserve.running(answers_with_itself, settings) as server:
        assert get(server.url) == f"{os.getuid()} {os.getgid()} {tmp_path} 27 red".encode()
    assert "COLOUR" not in os.environ


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_an_object_is_served_as_the_user_that_is_set() -> None:
    with forkserve.running(answers_with_itself, user="65534", group="65534", chdir="/") as server:
        assert get(server.url).startswith(b"65534 65534 / ")


def test_a_signal_to_a_server_that_has_stopped_is_none() -> None:
    with forkserve.running(answers_with_pid) as server:
        pass
    server.send_signal(signal.SIGHUP)  # its descriptor may be somebody else's by now
    assert server.stop() == 0


def test_threads_may_run_several_servers_at_once() -> None:
    answers: list[bytes] = []

    def serve() -> None:
        with forkserve.running(answers_with_pid) as server:
            answers.append(get(server.url))

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(answers)) == 3


def test_a_reload_of_an_object_makes_new_workers() -> None:
    with forkserve.running(answers_with_pid) as server:
        first = get(server.url)
        pidfd = process.open_pidfd(int(first))
        assert pidfd is not None
        server.send_signal(signal.SIGHUP)
        assert select.select([pidfd], [], [], 20)[0], "the old worker did not leave"
        os.close(pidfd)
        assert get(server.url) != first


@pytest.mark.parametrize(
    ("app", "settings", "kind", "says"),
    [
        ("no_such_module_here:app", {}, BootError, "there is no module 'no_such_module_here'"),
        (answers_with_pid, {"worker": 2}, SettingsError, "did you mean workers"),
        (answers_with_pid, {"workers": 0}, SettingsError, "workers"),
        (answers_with_pid, {"bind": "nonsense:port"}, SettingsError, "nonsense:port"),
        (answers_with_pid, {"bind": "192.0.2.1:80"}, ListenError, "192.0.2.1:80"),
    ],
)
def test_what_stands_in_the_way_is_raised_in_the_caller(
    app: Any, settings: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says), forkserve.running(app, settings):
        pass


def test_an_error_in_the_with_block_stops_the_server_and_passes_on() -> None:
    with pytest.raises(ZeroDivisionError), forkserve.running(answers_with_pid) as server:
        raise ZeroDivisionError
    assert session_members(server.pid) == []


CALLER = """
import sys, time
import forkserve

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"x"]

with forkserve.running(app, workers=2) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


def test_the_server_ends_with_a_killed_caller(tmp_path: Path) -> None:
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    caller = subprocess.Popen(
        [sys.executable, str(script)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert caller.stdin is not None
    assert caller.stdout is not None
    with caller.stdin, caller.stdout:
        pid = int(next_line(caller.stdout))
        pidfd = process.open_pidfd(pid)
        assert pidfd is not None
        caller.send_signal(signal.SIGKILL)
        caller.wait(10)
        assert select.select([pidfd], [], [], 20)[0], "the server outlived its caller"
        os.close(pidfd)
    assert session_members(pid) == []


def test_master_runs_in_the_calling_process_and_returns_the_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, forkserve\nsys.exit(forkserve.Master('no_such_module_here:app', {'bind': '127.0.0.1:0'}).run())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert "there is no module 'no_such_module_here'" in done.stderr


TWO_FROM_THREADS = """
import os, sys, threading
import forkserve

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"x"]

def serve():
    with forkserve.running(app) as server:
        os.write(1, b"%d\\n" % server.pid)  # at once: print of two threads may mix its lines
        threading.Event().wait()

for _ in range(2):
    threading.Thread(target=serve, daemon=True).start()
if os.fork() == 0:
    os.read(int(sys.argv[1]), 1)
    os._exit(0)
threading.Event().wait()
"""


def test_two_servers_of_a_killed_caller_end_although_a_child_of_it_lives(tmp_path: Path) -> None:
    script = tmp_path / "caller.py"
    script.write_text(TWO_FROM_THREADS)
    reader, writer = os.pipe()
    caller = subprocess.Popen(
        [sys.executable, str(script), str(reader)],
        bufsize=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[reader],
    )
    assert caller.stdout is not None
    with caller.stdout:
        try:
            pids = [int(next_line(caller.stdout)) for _ in range(2)]
            pidfds = [os.pidfd_open(pid) for pid in pids]
        finally:
            caller.kill()
            caller.wait(10)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], 20)[0], "a server outlived its caller"
            os.close(pidfd)
    os.close(reader)
    os.close(writer)  # ends the caller's child


def test_control_c_while_it_boots_stops_it(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(100)\n")
    script = tmp_path / "caller.py"
    script.write_text(
        "import forkserve\ntry:\n    with forkserve.running('hangs:app'):\n        pass\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    caller = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline, "the application was not imported"
        time.sleep(0.02)
    caller.send_signal(signal.SIGINT)
    stdout, stderr = caller.communicate(timeout=20)
    assert "interrupted" in stdout
    assert "stopped" in stderr
    assert "Traceback" not in stderr
