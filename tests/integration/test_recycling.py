"""Workers that are too old or too large are replaced, new before old."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import DEADLINE_S, LOOK_INTERVAL_S, Server, assert_no_request_lost

Start = Callable[..., Server]
WriteApp = Callable[..., None]

GROWING = """
kept = []

def app(environ, start_response):
    if environ["PATH_INFO"] == "/grow":
        kept.append(bytearray(b"x") * (64 << 20))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""


def test_a_worker_that_is_too_old_is_replaced_and_no_request_lost(start: Start, write_app: WriteApp) -> None:
    write_app("one")
    server = start("app:app", "--max-worker-age", "1", workers=2)
    with assert_no_request_lost(server, clients=2):
        server.wait_for("worker.retiring", count=4, reason="max_worker_age")
    exits = server.events("worker.exit")
    assert all("exit code 0" in event["message"] for event in exits)


def test_a_worker_that_is_too_large_is_replaced(start: Start, write_app: WriteApp) -> None:
    write_app(name="growing", code=GROWING)
    server = start("growing:app", "--max-worker-memory", "64M", workers=1)
    (old,) = server.worker_pids()
    assert server.get("/grow").text == "ok"
    server.wait_for("worker.retiring", reason="max_worker_memory")
    server.wait_for_workers(1, without=old)
    assert server.get("/").text == "ok"


def test_workers_within_the_limits_stay(start: Start, write_app: WriteApp) -> None:
    write_app(name="growing", code=GROWING)
    server = start("growing:app", "--max-worker-memory", "1G", "--max-worker-age", "1h", "--max-worker-age", "1h")
    pids = server.worker_pids()
    assert server.get("/grow").text == "ok"
    server.hup()  # a reload looks at nothing but itself
    server.wait_for_workers(2, generation=2)
    assert not server.events("worker.retiring")
    assert not set(pids) & set(server.worker_pids())


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A control group with 96 MB of memory, where the test may make one (cgroup v1 or v2)."""
    root = Path("/sys/fs/cgroup")
    version1 = (root / "memory" / "memory.limit_in_bytes").exists()
    group = (root / "memory" if version1 else root) / f"forkserve-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror})")
    try:
        try:
            (group / ("memory.limit_in_bytes" if version1 else "memory.max")).write_text(str(96 << 20))
            if not version1:
                (group / "memory.swap.max").write_text("0")
        except OSError as error:
            pytest.skip(f"its memory cannot be limited ({error.strerror})")
        yield group
    finally:
        deadline = time.monotonic() + DEADLINE_S
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(LOOK_INTERVAL_S)
        group.rmdir()


def test_a_worker_killed_by_the_kernel_for_want_of_memory_is_named_so(
    small_cgroup: Path, start: Start, write_app: WriteApp
) -> None:
    write_app(name="growing", code=GROWING)
    server = start("growing:app", workers=1)
    for seen in server.processes():
        (small_cgroup / "cgroup.procs").write_text(str(seen.pid))
    with pytest.raises((OSError, http.client.HTTPException)):
        _grow(server)
    died = server.wait_for("worker.exit")
    assert "for want of memory" in died["message"]
    assert "GET /grow" in died["message"]
    assert server.get("/").text == "ok"
    server.kill_worker()
    assert "for want of memory" not in server.wait_for("worker.exit", count=2)["message"]


def _grow(server: Server) -> None:
    for _ in range(10):
        server.get("/grow")
