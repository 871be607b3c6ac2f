"""Warm-up requests: a worker is ready when the application has answered them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server

Start = Callable[..., Server]
WriteApp = Callable[..., None]

APP = """
asked = []

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path != "/asked":
        asked.append(f"{path}?{environ['QUERY_STRING']} {environ['HTTP_USER_AGENT']}")
    FAULT
    start_response("404 Not Found" if path == "/nowhere" else "200 OK", [("Content-Type", "text/plain")])
    return [" ".join(asked).encode()]
"""


def with_fault(fault: str) -> str:
    return APP.replace("FAULT", fault)


WARMUP = ("--warmup", "/one?x=%2F,/nowhere")


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_paths_are_asked_for_in_each_worker_before_it_is_ready(
    start: Start, write_app: WriteApp, worker_class: str
) -> None:
    write_app(code=with_fault("pass"))
    server = start("app:app", "-k", worker_class, *WARMUP, workers=2)
    for _ in range(8):
        assert server.get("/asked").text == "/one?x=%2F forkserve-warmup /nowhere? forkserve-warmup"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("start_response('503 Not Now', []); return []", "GET /one?x=%2F was answered 503 Not Now"),
        ("raise KeyError('a bug that no import shows')", "a bug that no import shows"),
        ("return []", "did not call start_response"),
    ],
)
def test_a_server_error_at_warm_up_leaves_the_old_code_serving(
    start: Start, write_app: WriteApp, fault: str, says: str
) -> None:
    write_app(code=with_fault("pass"))
    server = start("app:app", *WARMUP, workers=2)
    pids = server.worker_pids()
    write_app(code=with_fault(fault))
    server.hup()
    failed = server.wait_for("reload.failed")
    assert says in failed["message"] + failed.get("traceback", "")
    assert server.worker_pids() == pids
    assert server.get("/asked").status == 200


def test_a_warm_up_that_hangs_is_given_up(start: Start, write_app: WriteApp) -> None:
    write_app(code=with_fault("pass"))
    server = start("app:app", *WARMUP, "--boot-timeout", "2", workers=1)
    write_app(code=with_fault("import time; time.sleep(60)"))
    server.hup()
    assert "boot_timeout" in server.wait_for("reload.failed")["message"]
    assert server.get("/asked").status == 200


def test_a_server_error_at_the_first_start_ends_it(start: Start, write_app: WriteApp, tmp_path: Path) -> None:
    write_app(code=with_fault("1 / 0"))
    server = start("app:app", *WARMUP, ready=False)
    assert server.wait_exit() == 3
    assert "ZeroDivisionError" in server.log()
    assert "warmup.py" not in server.log()


def test_a_path_that_is_none_is_refused(start: Start) -> None:
    server = start("demo:app", "--warmup", "login", ready=False)
    assert server.wait_exit() == 2
    assert "--warmup" in server.log()
