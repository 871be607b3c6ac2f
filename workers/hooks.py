"""gunicorn's worker hooks: called with objects of gunicorn's shape, and never able to end a worker.

post_fork, post_worker_init, worker_int, worker_abort, worker_exit      call_hook
pre_request, post_request                                               HookObserver
"""

from __future__ import annotations

import logging
import os
import traceback
from dataclasses import dataclass, field
from typing import Any

from forkserve import log
from forkserve.http.errors import RefusedRequest
from forkserve.server.connection import Connection
from forkserve.server.exchange import Exchange
from forkserve.settings import Hooks, Settings


@dataclass(slots=True)
class HookServer:
    """What a hook in a worker may know of its master (gunicorn's Arbiter)."""

    cfg: Settings
    pid: int
    log: logging.Logger = field(default_factory=lambda: log.logger)


@dataclass(slots=True)
class HookWorker:
    """What a hook may know of its worker (gunicorn's Worker).

    Attributes:
        age: the worker's number, which grows with each worker.
        nr: requests answered.
    """

    cfg: Settings
    age: int
    ppid: int
    pid: int = field(default_factory=os.getpid)
    nr: int = 0
    alive: bool = True
    wsgi: Any = None
    log: logging.Logger = field(default_factory=lambda: log.logger)


class HookRequest:
    """gunicorn's Request, as far as hooks read it."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.method: str = environ["REQUEST_METHOD"]
        self.uri: str = environ["RAW_URI"]
        self.path: str = self.uri.partition("?")[0]
        self.query: str = environ["QUERY_STRING"]
        self.version = (1, 1) if environ["SERVER_PROTOCOL"] == "HTTP/1.1" else (1, 0)
        self.remote_addr = (environ["REMOTE_ADDR"], environ["REMOTE_PORT"])
        self.headers = [
            (key.removeprefix("HTTP_").replace("_", "-"), value)
            for key, value in environ.items()
            if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")
        ]


class HookResponse:
    """gunicorn's Response, as far as hooks read it."""

    def __init__(self, exchange: Exchange) -> None:
        self.status = exchange.status or ""
        self.status_code = int(self.status[:3]) if self.status[:3].isdecimal() else 0
        self.headers = exchange.headers if exchange.status else []
        self.sent = exchange.body_bytes


def call_hook(hooks: Hooks, name: str, *arguments: object) -> None:
    """Call a hook if there is one; what it raises is logged with its name."""
    hook = getattr(hooks, name)
    if hook is None:
        return
    try:
        hook(*arguments)
    except Exception as error:
        log.event(
            log.ERROR,
            "hook.failed",
            f"hook {name} failed, going on without it: {type(error).__name__}: {error}",
            hook=name,
            traceback=traceback.format_exc(),
        )


class HookObserver:
    """Calls pre_request and post_request."""

    def __init__(self, hooks: Hooks, worker: HookWorker) -> None:
        self._hooks = hooks
        self._worker = worker

    def begin(self, exchange: Exchange) -> None:
        """Before the application."""
        self._worker.nr += 1
        call_hook(self._hooks, "pre_request", self._worker, HookRequest(exchange.environ))

    def end(self, exchange: Exchange, now_ns: int) -> None:
        """After the application."""
        environ = exchange.environ
        call_hook(self._hooks, "post_request", self._worker, HookRequest(environ), environ, HookResponse(exchange))

    def refused(self, connection: Connection, refused: RefusedRequest, head: bytes, answer_bytes: int) -> None:
        """gunicorn calls no hook for these."""

    def flush(self) -> None:
        """Nothing waits."""
