"""What the master knows and wants: plain values, questions about them, no effects.

    Phase        BOOTING ─▶ RUNNING ─▶ STOPPING ─▶ HALTING ─▶ STOPPED        only to the right
    Standing     CANDIDATE ─▶ PROVEN ─▶ OUTGOING      or   CANDIDATE ─▶ OUTGOING (abandoned)
    ZygoteStage  ABSENT ─▶ LOADING ─▶ READY ─▶ LEAVING ─▶ ABSENT             it may end, and be ABSENT, at any time
    Stage        BOOTING ─▶ READY ─▶ DRAINING ─▶ KILLED                      a worker's record goes when it has ended

A *generation* is one loading of the application: a zygote plus the workers forked from it.  There is at most one
candidate and at most one proven generation; the rest is on its way out.  ``size`` is the wish (how many workers),
the records are the facts.  Times are seconds of the monotonic clock, given from outside; a deadline of None never
comes.

Everything that changes these values is in step.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

SLOTS_MAX: Final = 4096
"""Rows of the scoreboard: more workers than that, draining ones included, never exist at once."""


class Phase(IntEnum):
    """The server's life; never goes back."""

    BOOTING = 0
    RUNNING = 1
    STOPPING = 2
    HALTING = 3
    STOPPED = 4


class Standing(Enum):
    """What is known of a generation."""

    CANDIDATE = "candidate"
    PROVEN = "proven"
    OUTGOING = "outgoing"


class ZygoteStage(Enum):
    """The life of a generation's zygote; ABSENT before and after."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    LEAVING = "leaving"


class Stage(Enum):
    """A worker's life; never goes back."""

    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits that decisions are made by, in seconds and numbers; from the settings.

    Attributes:
        max_unavailable: how many workers may be in exchange at once: the extra ones that a planned loss may cost.
        restart_intensity: unplanned restarts within ``restart_period_s`` before restarts begin to pause.
        preload: whether a zygote imports the application, as long as nothing speaks against it.
    """

    graceful_timeout_s: float = 30.0
    boot_timeout_s: float = 60.0
    max_unavailable: int = 1
    restart_intensity: int = 10
    restart_period_s: float = 10.0
    preload: bool = True


@dataclass(frozen=True, slots=True)
class Generation:
    """One loading of the application.

    Attributes:
        size: how many workers it should have.
        since: when it was asked for.
        zygote_deadline: when a LOADING zygote has failed, or a LEAVING one is killed.
    """

    number: int
    size: int
    standing: Standing
    since: float
    zygote: ZygoteStage = ZygoteStage.ABSENT
    zygote_deadline: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """The master's view of one worker process.

    Attributes:
        retiring: why it is to be replaced, new before old; empty while nobody wants that.
        deadline: when its stage has lasted too long.
    """

    id: int
    generation: int
    slot: int
    stage: Stage
    deadline: float | None = None
    retiring: str = ""


@dataclass(frozen=True, slots=True)
class Restarts:
    """The history of unplanned restarts that limits the next one (the idea of OTP's supervisor intensity).

    Attributes:
        times: the restarts of the last period.
        pauses: how many pauses were made in a row; the next is twice as long.
        not_before: no spawn until then.
    """

    times: tuple[float, ...] = ()
    pauses: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the server ends: exit code, one line, and the application's traceback where there is one."""

    exit_code: int
    message: str = ""
    traceback_text: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """All facts and wishes of the master.

    Attributes:
        reload_size: the size of the generation that a reload asked for and that is not begun; None when none waits.
        preload_refused: importing in the zygote proved unsafe to fork: zygotes do not import any more.
        stop_since: when a stop was asked for.
        stop_deadline: when STOPPING becomes HALTING, or what still lives in HALTING is killed.
    """

    phase: Phase
    generations: tuple[Generation, ...] = ()
    workers: tuple[WorkerRecord, ...] = ()
    next_generation: int = 1
    next_worker: int = 1
    reload_size: int | None = None
    preload_refused: bool = False
    restarts: Restarts = Restarts()
    stop_since: float | None = None
    stop_deadline: float | None = None
    outcome: Outcome = Outcome(0)

    # Questions.  They change nothing.

    def generation(self, number: int) -> Generation | None:
        """The generation of that number, if it still exists."""
        return next((each for each in self.generations if each.number == number), None)

    @property
    def candidate(self) -> Generation | None:
        """The generation that has still to prove itself."""
        return self._standing(Standing.CANDIDATE)

    @property
    def proven(self) -> Generation | None:
        """The generation that serves, and that a failed candidate falls back to."""
        return self._standing(Standing.PROVEN)

    def _standing(self, standing: Standing) -> Generation | None:
        return next((each for each in self.generations if each.standing is standing), None)

    def worker(self, worker_id: int) -> WorkerRecord | None:
        """The record of that worker, if it still exists."""
        return next((each for each in self.workers if each.id == worker_id), None)

    def workers_in(self, *stages: Stage) -> Iterator[WorkerRecord]:
        """Workers in any of these stages, oldest first."""
        return (each for each in self.workers if each.stage in stages)

    @property
    def ready_count(self) -> int:
        """How many workers serve."""
        return sum(1 for _each in self.workers_in(Stage.READY))

    @property
    def live_count(self) -> int:
        """How many workers serve or are about to."""
        return sum(1 for _each in self.workers_in(Stage.BOOTING, Stage.READY))

    @property
    def floor(self) -> int:
        """The ready capacity below which the server never goes by its own doing."""
        return min((each.size for each in (self.candidate, self.proven) if each), default=0)

    def fresh(self, generation: Generation) -> list[WorkerRecord]:
        """Live workers of a generation that nobody wants to replace."""
        return [
            each
            for each in self.workers_in(Stage.BOOTING, Stage.READY)
            if each.generation == generation.number and not each.retiring
        ]

    def is_stale(self, worker: WorkerRecord) -> bool:
        """Whether the worker is to be replaced: retiring, on the way out, or older than a candidate that can serve."""
        if worker.retiring:
            return True
        generation = self.generation(worker.generation)
        if generation is None or generation.standing is Standing.OUTGOING:
            return True
        if generation.standing is Standing.CANDIDATE:
            return False
        candidate = self.candidate
        return candidate is not None and candidate.zygote is ZygoteStage.READY

    def free_slot(self) -> int | None:
        """The lowest row of the scoreboard that no worker has; None when all are taken."""
        taken = {each.slot for each in self.workers}
        return next((slot for slot in range(SLOTS_MAX) if slot not in taken), None)
