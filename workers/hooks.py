"""gunicorn's worker hooks: called with objects of gunicorn's shape, and never able to end a worker.

post_fork, post_worker_init, worker_int, worker_abort, worker_exit      hooks.call with a WorkerHandle
pre_request, post_request                                               HookObserver, for each request
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forkserve import hooks
from forkserve.http.errors import RefusedRequest
from forkserve.server.connection import Connection
from forkserve.server.exchange import Exchange
from forkserve.settings import Hooks


@dataclass(slots=True)
class WorkerHandle(hooks.WorkerView):
    """What a hook sees of the worker that it runs in (gunicorn's Worker).

    Attributes:
        ppid: the master's process id.
        nr: requests begun.
        alive: False once the worker leaves.
        wsgi: the application.
    """

    ppid: int = 0
    nr: int = 0
    alive: bool = True
    wsgi: Any = None


class HookRequest:
    """gunicorn's Request, as far as hooks read it; what the application took out of the environ is empty."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.method: str = environ.get("REQUEST_METHOD", "")
        self.uri: str = environ.get("RAW_URI", "")
        self.path: str = self.uri.partition("?")[0]
        self.query: str = environ.get("QUERY_STRING", "")
        self.version = (1, 1) if environ.get("SERVER_PROTOCOL") == "HTTP/1.1" else (1, 0)
        self.remote_addr = (environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT", ""))
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


class HookObserver:
    """Calls pre_request and post_request."""

    def __init__(self, user_hooks: Hooks, worker: WorkerHandle) -> None:
        self._hooks = user_hooks
        self._worker = worker

    def begin(self, exchange: Exchange) -> None:
        """Before the application."""
        self._worker.nr += 1
        hooks.call(self._hooks, "pre_request", self._worker, HookRequest(exchange.environ))

    def end(self, exchange: Exchange, now_ns: int) -> None:
        """After the application."""
        environ = exchange.environ
        hooks.call(self._hooks, "post_request", self._worker, HookRequest(environ), environ, HookResponse(exchange))

    def refused(self, connection: Connection, refused: RefusedRequest, head: bytes, answer_bytes: int) -> None:
        """gunicorn calls no hook for these."""

    def flush(self) -> None:
        """Nothing waits."""
