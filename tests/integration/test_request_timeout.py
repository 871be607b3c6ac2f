"""A request that takes too long, in real workers of each type: its client, its code, its worker, and everybody else.

What a client gets and when is tried one by one in tests/unit/server/test_overdue.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import Answer, Server

Start = Callable[..., Server]

pytestmark = pytest.mark.usefixtures("worker_type")

APP = """
import hashlib, os, time
import forkserve

def note(environ, what):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{environ['PATH_INFO']} {what}\\n")

def wait(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)

def app(environ, start_response):
    page = environ["PATH_INFO"].partition("/")[2]
    note(environ, "begins")
    try:
        answer = PAGES[page](environ, start_response)
    except forkserve.RequestTimeout:
        note(environ, "RequestTimeout")
        raise
    finally:
        note(environ, "finally")
    if answer is not None:
        return answer
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]

def long(environ, start_response):
    wait(60)

def sleep(environ, start_response):
    time.sleep(60)

def compute_in_c(environ, start_response):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # an hour

def stubborn(environ, start_response):
    try:
        wait(60)
    except BaseException:
        note(environ, "caught")

def other(environ, start_response):
    wait(1.5)

PAGES = {
    "quick": lambda environ, start_response: None,
    "long": long,
    "other": other,
    "sleep": sleep,
    "compute-in-c": compute_in_c,
    "stubborn": stubborn,
}
"""


class Site:
    """A server with the application above, and clients that ask it in the background."""

    def __init__(self, server: Server, notes: Path, clients: ThreadPoolExecutor) -> None:
        self.server, self._notes, self._clients = server, notes, clients

    def ask(self, page: str) -> Future[Answer]:
        """Ask for a page, and come back when its call has begun."""
        before = self.notes(page).count("begins")
        asked = self._clients.submit(self.server.get, f"/{page}")
        self.server.wait_until(lambda: self.notes(page).count("begins") > before, f"the call of /{page}")
        return asked

    def ask_later(self, page: str) -> Future[Answer]:
        """Ask for a page whose call may have to wait."""
        return self._clients.submit(self.server.get, f"/{page}")

    def notes(self, page: str) -> list[str]:
        """What the calls of a page have noted."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [line.split()[1] for line in lines if line.startswith(f"/{page} ")]

    def wait_until_noted(self, page: str, *notes: str) -> None:
        """Until the only call of a page has noted this."""
        self.server.wait_until(lambda: self.notes(page) == list(notes), f"the notes {notes}, not {self.notes(page)}")


@pytest.fixture
def serve(start: Start, write_app: Callable[..., None], tmp_path: Path) -> Callable[..., Site]:
    clients = ThreadPoolExecutor()

    def begin(*arguments: str, **options: object) -> Site:
        write_app(name="pages", code=APP)
        notes = tmp_path / "notes"
        server = start("pages:app", *arguments, environ={"NOTES": str(notes)}, **options)
        return Site(server, notes, clients)

    return begin


def test_its_client_gets_504_while_others_go_on_and_its_worker_is_replaced(serve: Callable[..., Site]) -> None:
    site = serve("--request-timeout", "1")
    asked = site.ask("long")
    begun = time.monotonic()
    while not asked.done():
        assert site.server.get("/quick").status == 200
    assert asked.result().status == 504
    assert time.monotonic() - begun < 20, "not at once"
    site.wait_until_noted("long", "begins", "RequestTimeout", "finally")
    line = site.server.wait_for("request.timeout")
    assert (line["method"], line["target"], line["level"]) == ("GET", "/long", "error")
    assert line["traceback"].splitlines()[0].endswith(", in app")
    assert "in wait" in line["traceback"]
    worker = line["id"].partition(".")[0]
    assert site.server.wait_for("worker.retiring")["worker"] == int(worker)
    assert "exit code 0" in site.server.wait_for("worker.exit", worker=int(worker))["message"]
    site.server.wait_for_workers(2)
    assert site.server.get("/quick").status == 200
    assert len(site.server.events("request.timeout")) == 1
    assert not site.server.events("request.failed")


def test_others_of_the_worker_finish_before_it_leaves(serve: Callable[..., Site], worker_type: str) -> None:
    site = serve("--request-timeout", "2", workers=1)
    before = site.server.worker_pids()
    asked = site.ask("long")
    time.sleep(1)  # so that the other one has not ended when the first is overdue
    other = site.ask_later("other")
    assert asked.result().status == 504
    answer = other.result()
    assert answer.status == 200
    site.server.wait_for_workers(1, without=before[0])
    if worker_type != "sync":  # there it waits for its turn, here or in the new worker
        assert answer.text == str(before[0])


def test_an_application_that_catches_everything_changes_nothing_for_its_client(serve: Callable[..., Site]) -> None:
    site = serve("--request-timeout", "0.5")
    assert site.ask("stubborn").result().status == 504
    site.wait_until_noted("stubborn", "begins", "caught", "finally")
    site.server.wait_for("worker.retiring")


@pytest.mark.worker_types("sync", "gevent")
def test_a_call_that_sleeps_is_woken(serve: Callable[..., Site]) -> None:
    site = serve("--request-timeout", "0.5")
    assert site.ask("sleep").result().status == 504
    site.wait_until_noted("sleep", "begins", "RequestTimeout", "finally")


@pytest.mark.worker_types("sync", "gthread")
def test_a_worker_whose_call_computes_in_c_is_replaced_and_then_killed(serve: Callable[..., Site]) -> None:
    stuck_call_costs_its_worker_alone(serve, "compute-in-c", "compute_in_c")


@pytest.mark.worker_types("gthread")
def test_a_worker_whose_call_sleeps_in_c_is_replaced_and_then_killed(serve: Callable[..., Site]) -> None:
    stuck_call_costs_its_worker_alone(serve, "sleep", "sleep")


def stuck_call_costs_its_worker_alone(serve: Callable[..., Site], page: str, function: str) -> None:
    site = serve("--request-timeout", "0.5", "--graceful-timeout", "2", "--timeout", "60", workers=1)
    (before,) = site.server.worker_pids()
    asked = site.ask(page)
    assert asked.result().status == 504
    line = site.server.wait_for("request.timeout")
    assert f"in {function}" in line["traceback"]
    worker = int(line["id"].partition(".")[0])
    while not site.server.events("worker.exit", worker=worker):
        assert site.server.get("/quick").status == 200
    codes = [event["code"] for event in site.server.events() if event.get("worker") in (worker, worker + 1)]
    assert codes.index("worker.retiring") < codes.index("worker.ready", 1) < codes.index("worker.exit")
    assert "killed by the master" in site.server.events("worker.exit", worker=worker)[0]["message"]
    assert site.notes(page) == ["begins"]
    site.server.wait_for_workers(1, without=before)
