"""A reload has a verdict, and loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server, assert_no_request_lost

Start = Callable[..., Server]
WriteApp = Callable[..., None]
NEVER = "import threading; threading.Event().wait()"


@pytest.mark.usefixtures("worker_type")
@pytest.mark.parametrize("preload", ["--preload-auto", "--preload", "--no-preload"])
def test_reloads_under_load_lose_no_request(start: Start, write_app: WriteApp, preload: str) -> None:
    write_app("version 0")
    server = start("app:app", preload)
    with assert_no_request_lost(server) as load:
        for version in range(1, 4):
            write_app(f"version {version}")
            server.hup()
            server.wait_for("reload.done", count=version)
            load.wait_for_answers(20)
    assert list(load.answers) == sorted(load.answers)
    assert server.get().text == "version 3"


@pytest.mark.usefixtures("worker_type")
def test_old_workers_stay_until_new_ones_are_ready(start: Start, write_app: WriteApp, tmp_path: Path) -> None:
    write_app("old")
    server = start("app:app")
    gate = tmp_path / "gate"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)"
    write_app("new", before=wait)
    before = server.worker_pids()
    server.hup()
    server.wait_for("reload.begun")
    assert {server.get().text for _ in range(10)} == {"old"}
    assert server.worker_pids() == before
    gate.touch()
    server.wait_for("reload.done")
    assert server.get().text == "new"


@pytest.mark.parametrize("preload", ["--preload-auto", "--no-preload"])
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("def app(:", "SyntaxError"),
        ("raise RuntimeError('a bug at import')", "a bug at import"),
        ("import os; os._exit(7)", "exit code 7"),
        ("other = 1", "app"),
    ],
)
def test_a_broken_application_leaves_the_old_one_serving(
    start: Start, write_app: WriteApp, broken: str, says: str, preload: str
) -> None:
    write_app("old")
    server = start("app:app", preload)
    before = server.worker_pids()
    write_app(code=broken + "\n")
    with assert_no_request_lost(server) as load:
        server.hup()
        failed = server.wait_for("reload.failed")
    assert failed["kept"] == 1
    assert "keeping generation 1" in failed["message"]
    assert says in failed["message"] + failed.get("traceback", "")
    assert set(load.answers) == {"old"}
    assert server.worker_pids() == before
    server.wait_until(lambda: len(server.processes()) == 4, "the failed generation to be gone")

    write_app("mended")
    server.hup()
    server.wait_for("reload.done")
    assert server.get().text == "mended"


def test_the_traceback_begins_at_the_applications_own_frame(start: Start, write_app: WriteApp) -> None:
    write_app("old")
    server = start("app:app")
    write_app(code="def broken():\n    raise RuntimeError('a bug at import')\nbroken()\n")
    server.hup()
    lines = server.wait_for("reload.failed")["traceback"].splitlines()
    assert lines[0].startswith("Traceback")
    assert "app.py" in lines[1]


def test_an_application_that_hangs_at_import_is_given_up(start: Start, write_app: WriteApp) -> None:
    write_app("old")
    server = start("app:app", "--boot-timeout", "1")
    write_app("new", before=NEVER)
    server.hup()
    server.wait_for("reload.failed", kept=1)
    assert server.get().text == "old"
    server.wait_for_log("app.py")  # the stack says where it hung
    server.wait_until(lambda: len(server.processes()) == 4, "the hung generation to be gone")


def test_term_during_a_reload_acts_at_once(start: Start, write_app: WriteApp) -> None:
    write_app("old")
    server = start("app:app")
    write_app("new", before=NEVER)
    server.hup()
    server.wait_for("reload.begun")
    server.wait_for_workers(2)
    server.term()
    assert server.wait_exit(within_s=15) == 0


def test_a_worker_that_dies_during_a_reload_is_replaced_meanwhile(start: Start, write_app: WriteApp) -> None:
    write_app("old")
    server = start("app:app")
    write_app("new", before=NEVER)
    server.hup()
    server.wait_for("reload.begun")
    pid = server.kill_worker()
    server.wait_for_workers(2, generation=1, without=pid)
    assert server.get().text == "old"
    server.send_signal(signal.SIGQUIT)
    server.wait_exit()


def test_a_reload_reads_the_configuration_anew(start: Start, write_app: WriteApp, tmp_path: Path) -> None:
    write_app("same")
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("raw_env = ['COLOUR=red']\n")
    write_app(
        code="import os\ndef app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n    return [os.environ['COLOUR'].encode()]\n"
    )
    server = start("app:app", "-c", str(config))
    assert server.get().text == "red"
    config.write_text("raw_env = ['COLOUR=blue']\n")
    server.hup()
    server.wait_for("reload.done")
    assert server.get().text == "blue"


def test_a_broken_configuration_leaves_everything_as_it_was(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("timeout = 30\n")
    server = start("demo:app", "-c", str(config))
    before = server.worker_pids()
    config.write_text("timeout = 'soon'\n")
    server.hup()
    server.wait_for("reload.failed")
    assert server.get("/hello").status == 200
    assert server.worker_pids() == before


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("logconfig = '/no/such/file'\n", "logconfig"),
        ("raise RuntimeError('not on my watch')\n", "not on my watch"),
        ("import os\nos._exit(5)\n", "exit code 5"),
        ("workers = 'many'\n", "workers"),
    ],
)
def test_a_configuration_that_cannot_be_used_refuses_the_reload(
    start: Start, tmp_path: Path, broken: str, says: str
) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("timeout = 30\n")
    server = start("demo:app", "-c", str(config))
    before = server.worker_pids()
    config.write_text(broken)
    server.hup()
    refused = server.wait_for("reload.failed")
    assert says in refused["message"] + refused.get("traceback", "")
    assert server.worker_pids() == before
    config.write_text("timeout = 31\n")
    server.hup()
    server.wait_for("reload.done")


def test_a_configuration_that_hangs_does_not_make_the_master_deaf(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("boot_timeout = 2\n")
    server = start("demo:app", "-c", str(config))
    config.write_text("while True:\n    pass\n")
    server.hup()
    server.send_signal(signal.SIGTTIN)
    server.wait_for_workers(3, generation=1)
    assert server.get("/hello").status == 200
    refused = server.wait_for("reload.failed")
    assert "did not end within boot_timeout" in refused["message"]
    server.hup()
    server.term()
    assert server.wait_exit() == 0
