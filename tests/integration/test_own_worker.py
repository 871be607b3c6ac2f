"""Worker types that are not ours: by their dotted path, and by the name that a package offers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.harness import EXAMPLES, Server, assert_no_request_lost

Start = Callable[..., Server]

APP = """
import threading

def app(environ, start_response):
    body = f"{threading.get_native_id()} {environ['wsgi.multithread']}".encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""


def test_the_example_serves_and_reloads_by_its_dotted_path(start: Start, write_app: Callable[..., None]) -> None:
    write_app(code=APP)
    server = start("app:app", "-k", "own_worker.FreshThreads", "--threads", "3", workers=2)
    with assert_no_request_lost(server, clients=3) as load:
        load.wait_for_answers(100)
        server.hup()
        server.wait_for("reload.done")
    threads = {answer.split()[0] for answer in load.answers}
    assert len(threads) > 50, "each call has a thread of its own"
    assert {answer.split()[1] for answer in load.answers} == {"True"}
    server.term()
    assert server.wait_exit() == 0


def test_a_package_offers_a_type_by_name(start: Start, write_app: Callable[..., None], tmp_path: Path) -> None:
    write_app(code=APP)
    offered = tmp_path / "packages" / "fresh-1.0.dist-info"
    offered.mkdir(parents=True)
    (offered / "METADATA").write_text("Metadata-Version: 2.1\nName: fresh\nVersion: 1.0\n")
    (offered / "entry_points.txt").write_text("[forkserve.workers]\nfresh = own_worker:FreshThreads\n")
    path = f"{offered.parent}:{EXAMPLES}:{EXAMPLES.parents[1]}"
    server = start("app:app", "-k", "fresh", "--threads", "2", environ={"PYTHONPATH": path})
    assert server.get().text.endswith("True")
    refused = start("app:app", "-k", "frish", ready=False, environ={"PYTHONPATH": path})
    assert refused.wait_exit() == 2
    assert "did you mean fresh?" in refused.log()
