"""Starting servers in stories; each is ended with its story, and its log is shown when the story fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness import EXAMPLES, WORKER_ARGUMENTS, Server, launch
from tests.serving import worker_type_here

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start("demo:app", "--workers", "2")`` gives a server that is ready; ``ready=False`` does not wait for that.

    Applications are found in the test's own folder and in docs/examples; two workers unless said otherwise, of the
    test's worker type.
    """
    with ExitStack() as stack:
        number = 0

        def run(*arguments: str, ready: bool = True, workers: int = 2, **options: Any) -> Server:
            nonlocal number
            number += 1
            options = {"cwd": tmp_path, "log_path": tmp_path / f"server-{number}.log", **options}
            paths = f"{tmp_path},{EXAMPLES}"
            own = (*WORKER_ARGUMENTS[worker_type_here.get()], "--workers", str(workers), "--pythonpath", paths)
            server = launch(*own, *arguments, **options)
            stack.callback(lambda: print(f"--- log of server {server.pid}:\n{server.log()}"))
            stack.callback(server.end)
            if ready:
                server.wait_for("server.ready")
            return server

        yield run


@pytest.fixture
def write_app(tmp_path: Path) -> Callable[..., None]:
    """``write_app("answer", name="app")`` writes app.py whose pages answer with that text, or with its own ``code``."""

    def write(answer: str = "one", *, name: str = "app", before: str = "", code: str = "") -> None:
        text = code or (
            f"{before}\n"
            "def app(environ, start_response):\n"
            f"    body = {answer!r}.encode()\n"
            "    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(body)))])\n"
            "    return [body]\n"
        )
        fresh = tmp_path / f".{name}.new"
        fresh.write_text(text)
        fresh.replace(tmp_path / f"{name}.py")  # at once: no reload may see half of it

    return write
