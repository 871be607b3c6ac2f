"""What is asked in a benchmark, as data, and what would be possible at best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WORKERS: Final = ("sync", "gthread", "gevent")
"""The worker types that are compared."""

THREADS: Final = 4
"""Threads of gthread workers, and of granian beside gthread and gevent, where a workload does not say otherwise."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of request.

    Attributes:
        what: in a few words.
        path: asked of ``target``, an application as module:attribute.
        headers: how many are sent beside Host.
        threads: of a gthread worker.
        wait_s: how long the application waits, without using the processor.
        is_judged_alone: does the application cost enough for its cost without a server to be worth measuring?
    """

    name: str
    what: str
    path: str
    target: str = "pages:app"
    method: str = "GET"
    body_bytes: int = 0
    headers: int = 0
    threads: int = THREADS
    wait_s: float = 0.0
    is_judged_alone: bool = False

    def calls_at_once(self, server: str, worker: str, connections: int) -> int:
        """How many calls of the application can run at a time in one worker process."""
        if worker == "sync":
            return 1
        if worker == "gevent" and server != "granian":
            return connections
        return min(self.threads, connections)

    def possible_per_s(self, calls_at_once: int, alone_us: float) -> float | None:
        """Answers a second if server and load cost nothing; None where that is no measure.

        Args:
            alone_us: processor time of a call without a server; 0 where it was not measured.
        """
        if self.wait_s:
            return calls_at_once / self.wait_s
        return 1e6 / alone_us if alone_us else None


_ALL: Final = (
    Workload("hello", "13 bytes", "/hello"),
    Workload("json", "a document of 900 bytes", "/json", is_judged_alone=True),
    Workload("wait", "20 ms of waiting", "/wait", threads=32, wait_s=0.02),
    Workload("compute", "about 2 ms of computing", "/compute", is_judged_alone=True),
    Workload("upload", "a body of 64 KB", "/upload", method="POST", body_bytes=64 * 1024),
    Workload("stream", "20 blocks of 1 KB", "/stream"),
    Workload("headers", "hello with 30 request headers", "/hello", headers=30),
    Workload("file", "100 KB by wsgi.file_wrapper", "/file"),
    Workload("flask", "docs/examples/flask_app.py", "/", "flask_app:app", is_judged_alone=True),
    Workload("django", "docs/examples/django_site", "/", "mysite.wsgi:application", is_judged_alone=True),
)

WORKLOADS: Final = {workload.name: workload for workload in _ALL}
"""By name, in the order of the tables."""
