"""What a worker is born with: everything that the zygote hands to a worker type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forkserve.posix.channel import Channel
from forkserve.posix.handover import HandOver
from forkserve.posix.listeners import Listener
from forkserve.posix.scoreboard import Row, Scoreboard
from forkserve.server.tls import TlsServer
from forkserve.settings import Hooks, Settings

WSGIApplication = Callable[..., Any]
"""PEP 3333: called with the environ and start_response, returns an iterable of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """A worker's inheritance.

    Attributes:
        application: the preloaded application; None when the worker has to load it itself.
        tls: None where TLS is not spoken.
        stack_fd: a memfd of the master's, into which this process writes the stacks of its threads when it is aborted.
        error_fd: the open error log file; None for standard error.
        access_fd: the open access log file; None for standard output or none.
        board: the rows of all workers; None where there are no others.
        handover: shared by the workers of this generation to pass connections on; None where there are no others.
    """

    settings: Settings
    hooks: Hooks
    application: WSGIApplication | None
    listeners: Sequence[Listener]
    channel: Channel
    row: Row
    worker_id: int
    generation: int
    stack_fd: int
    error_fd: int | None
    access_fd: int | None
    master_pid: int
    board: Scoreboard | None = None
    handover: HandOver | None = None
    tls: TlsServer | None = None
