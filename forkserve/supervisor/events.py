"""What can happen to the master (events) and what it can do about it (actions), as data.

Facts come from processes and from effects that failed; wishes from signals, the file watcher and the end of the
embedding program.  Times are not in them: ``step`` is given the time beside the event.
"""

from __future__ import annotations

from dataclasses import dataclass

# --- facts


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed."""


@dataclass(frozen=True, slots=True)
class ZygoteLoaded:
    """A zygote can spawn.  ``hazards``: it imported the application, and that makes forking unsafe."""

    generation: int
    preloaded: bool = False
    hazards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ZygoteFailed:
    """A zygote says that it cannot come up."""

    generation: int
    message: str
    traceback_text: str = ""


@dataclass(frozen=True, slots=True)
class ZygoteDied:
    """A zygote has ended; ``cause`` is a phrase such as "signal 9 (SIGKILL)", ``stack`` where it was when aborted."""

    generation: int
    cause: str = ""
    stack: str = ""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker serves."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class WorkerBootFailed:
    """A worker says that it cannot come up."""

    worker_id: int
    message: str
    traceback_text: str = ""


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker has ended, or was never made; ``cause`` is a phrase, ``stack`` where it was when aborted."""

    worker_id: int
    cause: str = ""
    stack: str = ""


@dataclass(frozen=True, slots=True)
class WorkerHung:
    """A worker has given no sign of life for ``silent_s``, which is longer than ``timeout``."""

    worker_id: int
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RetireAsked:
    """Somebody (the worker itself, an operator, a limit) wants a worker replaced, new before old."""

    worker_id: int
    reason: str


# --- wishes


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """Load the application anew, with ``size`` workers."""

    size: int


@dataclass(frozen=True, slots=True)
class ScaleAsked:
    """More (positive) or fewer (negative) workers."""

    delta: int


@dataclass(frozen=True, slots=True)
class ParkAsked:
    """Stop the workers and keep the master (WINCH)."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Stop gracefully; asked again a second or more later: at once."""


@dataclass(frozen=True, slots=True)
class QuitAsked:
    """Stop at once."""


Event = (
    Tick
    | ZygoteLoaded
    | ZygoteFailed
    | ZygoteDied
    | WorkerReady
    | WorkerBootFailed
    | WorkerDied
    | WorkerHung
    | RetireAsked
    | ReloadAsked
    | ScaleAsked
    | ParkAsked
    | StopAsked
    | QuitAsked
)

# --- actions


@dataclass(frozen=True, slots=True)
class StartZygote:
    """Fork and execute the zygote of a generation; ``preload`` tells it to import the application."""

    generation: int
    preload: bool


@dataclass(frozen=True, slots=True)
class DismissZygote:
    """End the orders to a zygote: it does those that it has, and leaves."""

    generation: int


@dataclass(frozen=True, slots=True)
class AbortZygote:
    """Have the stacks of a hanging zygote written, then let it die (SIGABRT)."""

    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class KillZygote:
    """SIGKILL."""

    generation: int


@dataclass(frozen=True, slots=True)
class SpawnWorker:
    """Have a generation's zygote fork a worker."""

    worker_id: int
    generation: int
    slot: int


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Have a worker finish what it has and exit.

    Attributes:
        stopping: the whole server does.
        heir: the generation that takes over its connections; 0: none does.
    """

    worker_id: int
    stopping: bool = False
    heir: int = 0


@dataclass(frozen=True, slots=True)
class QuitWorker:
    """Have a worker exit at once, by its own doing (SIGQUIT)."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class AbortWorker:
    """Have the stacks of a hanging worker written, then let it die (SIGABRT)."""

    worker_id: int
    why: str


@dataclass(frozen=True, slots=True)
class KillWorker:
    """SIGKILL."""

    worker_id: int
    why: str


@dataclass(frozen=True, slots=True)
class ForgetGeneration:
    """Nothing of that generation is left, nor will be: what was kept for it may go."""

    generation: int


@dataclass(frozen=True, slots=True)
class RefuseNew:
    """Have the kernel refuse new connections while those already made wait in the queue."""


@dataclass(frozen=True, slots=True)
class CloseListeners:
    """Close every listening socket; nobody else holds them any more."""


@dataclass(frozen=True, slots=True)
class Announce:
    """One state change, told once: the log line, systemd's status and the hooks are made from it.

    Attributes:
        code: a dotted word such as "reload.done", stable for those who search logs.
        severity: "info", "warning" or "error".
        fields: names and values that belong to the line.
        detail: a traceback or stack that follows the line.
    """

    code: str
    message: str
    severity: str = "info"
    fields: tuple[tuple[str, object], ...] = ()
    detail: str = ""


Action = (
    StartZygote
    | DismissZygote
    | AbortZygote
    | KillZygote
    | SpawnWorker
    | DrainWorker
    | QuitWorker
    | AbortWorker
    | KillWorker
    | ForgetGeneration
    | RefuseNew
    | CloseListeners
    | Announce
)
