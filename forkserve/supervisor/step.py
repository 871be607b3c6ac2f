"""What the master does about what happens: ``step(state, event, now, policy) -> (state, actions)``, pure.

    learn   record the fact or the wish that the event tells            one small function an event
    plan    compare what is with what should be, list actions           one small function a concern, all, in order

Start, reload, resize, crash, recycle and stop are the same plan seen from different states.  Planning twice changes
nothing, an event that comes late or twice changes nothing, and nothing here waits: when time alone will change the
plan, :func:`next_deadline` says when.

Promises (a checker walks the reachable states for them, see tests/model): own actions never take the ready capacity
below the floor; nothing is spawned while stopping; the phase never goes back; a candidate that does not come up is
abandoned and the proven generation stays whole; STOPPED is reached with nobody left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from forkserve.supervisor import events as ev
from forkserve.supervisor.model import (
    Generation,
    Outcome,
    Phase,
    Policy,
    Restarts,
    Stage,
    Standing,
    State,
    WorkerRecord,
    ZygoteStage,
)

BOOT_FAILED_EXIT_CODE: Final = 3
"""The exit code of a server whose first generation did not come up: gunicorn's."""

ABORT_GRACE_S: Final = 1.0
"""From SIGABRT (write your stacks, run worker_abort) to SIGKILL: gunicorn gives one turn of its loop, a second."""

LEAVE_GRACE_S: Final = 5.0
"""How long a process that says it leaves may take to run its exit handlers."""

QUICK_GRACE_S: Final = 1.0
"""From SIGQUIT to SIGKILL in a quick stop."""

REPEAT_FORCES_AFTER_S: Final = 1.0
"""A second TERM forces only when it is no twin of the first: supervisors and terminals send twice."""

RELOAD_MERGE_S: Final = 1.0
"""A reload asked for again supersedes the one under way only when that is older: a storm costs one zygote a second."""

HOW_IT_ENDED: Final = {
    Stage.BOOTING: "died while it booted",
    Stage.READY: "died",
    Stage.DRAINING: "has left",
    Stage.KILLED: "has ended",
}
"""A worker's end in words, by the stage in which it came."""

PAUSE_MAX_S: Final = 30.0
"""The longest pause between restarts of what keeps dying."""


@dataclass(slots=True)
class Draft:
    """The state while it is being changed, and the actions so far."""

    state: State
    now: float
    policy: Policy
    actions: list[ev.Action] = field(default_factory=list)

    def set(self, **changes: Any) -> None:
        """Change fields of the state."""
        self.state = replace(self.state, **changes)

    def do(self, action: ev.Action) -> None:
        """Add an action."""
        self.actions.append(action)

    def tell(self, code: str, message: str, severity: str = "info", detail: str = "", **fields: object) -> None:
        """Add an announcement."""
        self.do(ev.Announce(code, message, severity, tuple(fields.items()), detail))

    def put(self, record: WorkerRecord | Generation) -> None:
        """Put a worker's or generation's new record in the place of its old one."""
        if isinstance(record, Generation):
            old = self.state.generations
            self.set(generations=tuple(record if each.number == record.number else each for each in old))
        else:
            self.set(workers=tuple(record if each.id == record.id else each for each in self.state.workers))


def step(state: State, event: ev.Event, now: float, policy: Policy) -> tuple[State, tuple[ev.Action, ...]]:
    """The next state and what to do, in order.

    Args:
        now: seconds of the monotonic clock; never smaller than in the call before.
    """
    if state.phase is Phase.STOPPED:
        return state, ()
    draft = Draft(state, now, policy)
    LEARN[type(event)](draft, event)
    for concern in PLAN:
        concern(draft)
    return draft.state, tuple(draft.actions)


def begin(size: int, now: float) -> State:
    """The state of a server that has just been started: the first generation is asked for."""
    return State(
        phase=Phase.BOOTING,
        generations=(Generation(1, size, Standing.CANDIDATE, now),),
        next_generation=2,
    )


def next_deadline(state: State, now: float) -> float | None:
    """When the passing of time alone will change the plan; None when it never will."""
    times = [each.zygote_deadline for each in state.generations] + [each.deadline for each in state.workers]
    times.append(state.stop_deadline)
    if state.restarts.not_before > now:
        times.append(state.restarts.not_before)
    candidate = state.candidate
    if state.reload_size is not None and state.phase is Phase.RUNNING and candidate is not None:
        times.append(candidate.since + RELOAD_MERGE_S)
    return min((each for each in times if each is not None), default=None)


# --- learn: facts about zygotes


def _zygote_loaded(draft: Draft, event: ev.ZygoteLoaded) -> None:
    generation = draft.state.generation(event.generation)
    if generation is None or generation.zygote is not ZygoteStage.LOADING:
        return
    if event.preloaded and event.hazards:
        draft.set(preload_refused=True)
        _dismiss_zygote(draft, generation)
        draft.tell(
            "preload.refused",
            f"forking after the import is not safe ({'; '.join(event.hazards)}): each worker imports the application "
            "for itself, which has now been imported once more than needed",
            "warning",
            generation=generation.number,
        )
        return
    draft.put(replace(generation, zygote=ZygoteStage.READY, zygote_deadline=None))
    draft.tell(
        "generation.loaded",
        f"generation {generation.number} {'is loaded' if event.preloaded else 'has a zygote that does not preload'}",
        generation=generation.number,
    )


def _zygote_failed(draft: Draft, event: ev.ZygoteFailed) -> None:
    generation = draft.state.generation(event.generation)
    if generation is None or generation.zygote is not ZygoteStage.LOADING:
        return
    deadline = draft.now + LEAVE_GRACE_S
    draft.put(replace(generation, zygote=ZygoteStage.LEAVING, zygote_deadline=deadline))
    _generation_failed(draft, generation.number, event.message, event.traceback_text)


def _zygote_died(draft: Draft, event: ev.ZygoteDied) -> None:
    generation = draft.state.generation(event.generation)
    if generation is None or generation.zygote is ZygoteStage.ABSENT:
        return
    draft.put(replace(generation, zygote=ZygoteStage.ABSENT, zygote_deadline=None))
    if event.stack:
        draft.tell(
            "zygote.stack",
            f"where the zygote of generation {generation.number} was when it was given up",
            "error",
            event.stack,
            generation=generation.number,
        )
    if generation.zygote is not ZygoteStage.LEAVING:
        _generation_failed(draft, generation.number, f"its zygote died: {event.cause}")


def _generation_failed(draft: Draft, number: int, message: str, traceback_text: str = "") -> None:
    """It cannot make workers: the first generation ends the server, a candidate is given up, the proven tries again."""
    generation = draft.state.generation(number)
    if generation is None or generation.standing is Standing.OUTGOING or draft.state.phase >= Phase.STOPPING:
        return
    proven = draft.state.proven
    if generation.standing is Standing.PROVEN:
        draft.tell("generation.failed", f"generation {number}: {message}", "error", traceback_text, generation=number)
        _count_crash(draft)
    elif proven is None:
        draft.set(outcome=Outcome(BOOT_FAILED_EXIT_CODE, message, traceback_text))
        draft.tell("server.failed", f"cannot start: {message}", "error", traceback_text, generation=number)
        _halt(draft)
    else:
        draft.put(replace(generation, standing=Standing.OUTGOING))
        draft.tell(
            "reload.failed",
            f"generation {number} did not come up: {message}; keeping generation {proven.number}",
            "error",
            traceback_text,
            generation=number,
            kept=proven.number,
        )


# --- learn: facts about workers


def _worker_ready(draft: Draft, event: ev.WorkerReady) -> None:
    worker = draft.state.worker(event.worker_id)
    if worker is None or worker.stage is not Stage.BOOTING:
        return
    draft.put(replace(worker, stage=Stage.READY, deadline=None))
    draft.tell(
        "worker.ready", f"worker {worker.id} is ready", worker=worker.id, generation=worker.generation, slot=worker.slot
    )


def _worker_boot_failed(draft: Draft, event: ev.WorkerBootFailed) -> None:
    worker = draft.state.worker(event.worker_id)
    if worker is None or worker.stage is not Stage.BOOTING:
        return
    draft.put(replace(worker, stage=Stage.KILLED, deadline=draft.now + LEAVE_GRACE_S))
    message = f"worker {worker.id} did not boot: {event.message}"
    generation = draft.state.generation(worker.generation)
    if generation is None or generation.standing is not Standing.CANDIDATE:  # a candidate's failure says it itself
        draft.tell("worker.boot_failed", message, "error", event.traceback_text, worker=worker.id)
    _worker_lost(draft, worker, message, event.traceback_text)


def _worker_died(draft: Draft, event: ev.WorkerDied) -> None:
    worker = draft.state.worker(event.worker_id)
    if worker is None:
        return
    draft.set(workers=tuple(each for each in draft.state.workers if each.id != worker.id))
    expected = worker.stage in (Stage.DRAINING, Stage.KILLED)
    draft.tell(
        "worker.exit",
        f"worker {worker.id} {HOW_IT_ENDED[worker.stage]}: {event.cause}",
        "info" if expected else "error",
        event.stack,
        worker=worker.id,
        generation=worker.generation,
        stage=worker.stage.value,
    )
    if not expected:
        _worker_lost(draft, worker, f"worker {worker.id} died ({event.cause})")


def _worker_lost(draft: Draft, worker: WorkerRecord, message: str, traceback_text: str = "") -> None:
    """A worker is lost that nobody had asked to leave: that counts as a crash, and may fail a candidate."""
    generation = draft.state.generation(worker.generation)
    _count_crash(draft)
    if generation is None or generation.standing is not Standing.CANDIDATE:
        return
    if worker.stage is Stage.BOOTING or draft.state.proven is not None:
        _generation_failed(draft, generation.number, message, traceback_text)


def _worker_hung(draft: Draft, event: ev.WorkerHung) -> None:
    worker = draft.state.worker(event.worker_id)
    if worker is None or worker.stage not in (Stage.READY, Stage.DRAINING):
        return
    why = f"no sign of life for {event.silent_s:.1f} s (timeout)"
    draft.tell("worker.hung", f"worker {worker.id} gives {why}: it is killed", "error", worker=worker.id)
    _abort_worker(draft, worker, why)
    if worker.stage is Stage.READY:
        _worker_lost(draft, worker, f"worker {worker.id} hung")


def _retire_asked(draft: Draft, event: ev.RetireAsked) -> None:
    worker = draft.state.worker(event.worker_id)
    if worker is None or worker.stage is not Stage.READY or worker.retiring or draft.state.phase >= Phase.STOPPING:
        return
    draft.put(replace(worker, retiring=event.reason))
    draft.tell(
        "worker.retiring",
        f"worker {worker.id} is to be replaced ({event.reason})",
        worker=worker.id,
        reason=event.reason,
    )


# --- learn: wishes


def _reload_asked(draft: Draft, event: ev.ReloadAsked) -> None:
    if draft.state.phase >= Phase.STOPPING:
        draft.tell("reload.refused", "a reload was asked for while stopping: ignored", "warning")
        return
    draft.set(reload_size=event.size, restarts=Restarts())  # new code gets a new chance, without a pause


def _scale_asked(draft: Draft, event: ev.ScaleAsked) -> None:
    state = draft.state
    current = state.candidate or state.proven
    if state.phase >= Phase.STOPPING or current is None:
        draft.tell(
            "scale.refused", "a change of the number of workers was asked for while stopping: ignored", "warning"
        )
        return
    size = max(1, current.size + event.delta)
    if size == current.size:
        draft.tell("scale.unchanged", f"the number of workers stays {size}", size=size)
        return
    _resize(draft, size)
    draft.tell("scale.changed", f"{size} workers wanted (was {current.size})", size=size, was=current.size)


def _park_asked(draft: Draft, _event: ev.ParkAsked) -> None:
    if draft.state.phase is not Phase.RUNNING:
        draft.tell("park.refused", "the workers can be stopped only while running: ignored", "warning")
        return
    _resize(draft, 0)
    draft.tell("workers.parked", "stopping the workers, keeping the master: reload or add a worker to go on", size=0)


def _resize(draft: Draft, size: int) -> None:
    for generation in (draft.state.candidate, draft.state.proven):
        if generation is not None:
            draft.put(replace(generation, size=size))
    if draft.state.reload_size is not None and size:
        draft.set(reload_size=size)


def _stop_asked(draft: Draft, _event: ev.StopAsked) -> None:
    state = draft.state
    if state.phase >= Phase.HALTING:
        return
    if state.phase is Phase.STOPPING:
        if state.stop_since is not None and draft.now - state.stop_since >= REPEAT_FORCES_AFTER_S:
            draft.tell("stop.repeated", "asked again to stop: stopping at once", "warning")
            _halt(draft)
        return
    draft.tell("stop.begun", f"stopping gracefully, within {draft.policy.graceful_timeout_s:g} s")
    deadline = draft.now + draft.policy.graceful_timeout_s
    draft.set(phase=Phase.STOPPING, stop_since=draft.now, stop_deadline=deadline, reload_size=None)
    draft.do(ev.RefuseNew())
    for worker in draft.state.workers:
        if worker.stage is Stage.READY:
            _drain_worker(draft, worker, stopping=True)
        elif worker.stage is Stage.BOOTING:
            _kill_worker(draft, worker, "the server stops")
        elif worker.stage is Stage.DRAINING and (worker.deadline is None or worker.deadline > deadline):
            draft.put(replace(worker, deadline=deadline))


def _quit_asked(draft: Draft, _event: ev.QuitAsked) -> None:
    if draft.state.phase < Phase.HALTING:
        draft.tell("stop.quick", "stopping at once")
        _halt(draft)


def _halt(draft: Draft) -> None:
    """Quick stop: everybody leaves by own doing within a moment, or is killed."""
    draft.set(phase=Phase.HALTING, stop_deadline=None, reload_size=None)
    if draft.state.stop_since is None:
        draft.set(stop_since=draft.now)
    for worker in draft.state.workers:
        if worker.stage is not Stage.KILLED:
            draft.do(ev.QuitWorker(worker.id))
            draft.put(replace(worker, stage=Stage.KILLED, deadline=draft.now + QUICK_GRACE_S))


def _nothing(_draft: Draft, _event: ev.Tick) -> None:
    """Time has passed: the plan looks at the deadlines."""


LEARN: Final[dict[type, Callable[[Draft, Any], None]]] = {
    ev.Tick: _nothing,
    ev.ZygoteLoaded: _zygote_loaded,
    ev.ZygoteFailed: _zygote_failed,
    ev.ZygoteDied: _zygote_died,
    ev.WorkerReady: _worker_ready,
    ev.WorkerBootFailed: _worker_boot_failed,
    ev.WorkerDied: _worker_died,
    ev.WorkerHung: _worker_hung,
    ev.RetireAsked: _retire_asked,
    ev.ReloadAsked: _reload_asked,
    ev.ScaleAsked: _scale_asked,
    ev.ParkAsked: _park_asked,
    ev.StopAsked: _stop_asked,
    ev.QuitAsked: _quit_asked,
}


# --- what planners and learners share


def _count_crash(draft: Draft) -> None:
    before = draft.state.restarts
    after = count_restart(before, draft.now, draft.policy)
    draft.set(restarts=after)
    if after.not_before > before.not_before:
        draft.tell(
            "restart.paused",
            f"more than {draft.policy.restart_intensity} restarts in {draft.policy.restart_period_s:g} s: "
            f"the next comes in {after.not_before - draft.now:g} s",
            "warning",
        )


def count_restart(restarts: Restarts, now: float, policy: Policy) -> Restarts:
    """The history with one more unplanned restart: at once while they are few, after growing pauses when they are many.

    A period without one, pauses not counted, begins anew with the shortest pause.
    """
    last = max((*restarts.times[-1:], restarts.not_before), default=0.0)
    pauses = restarts.pauses if now - last <= policy.restart_period_s else 0
    recent = tuple(each for each in restarts.times if each > now - policy.restart_period_s)
    times = (*recent, now)[-(policy.restart_intensity + 1) :]
    if len(times) <= policy.restart_intensity or now < restarts.not_before:
        return Restarts(times, pauses, restarts.not_before)
    return Restarts(times, pauses + 1, now + min(2.0**pauses, PAUSE_MAX_S))


def _drain_worker(draft: Draft, worker: WorkerRecord, *, stopping: bool = False, heir: int = 0) -> None:
    draft.do(ev.DrainWorker(worker.id, stopping, heir))
    deadline = draft.now + draft.policy.graceful_timeout_s
    draft.put(replace(worker, stage=Stage.DRAINING, deadline=deadline))


def _kill_worker(draft: Draft, worker: WorkerRecord, why: str) -> None:
    draft.do(ev.KillWorker(worker.id, why))
    draft.put(replace(worker, stage=Stage.KILLED, deadline=None))


def _abort_worker(draft: Draft, worker: WorkerRecord, why: str) -> None:
    draft.do(ev.AbortWorker(worker.id, why))
    draft.put(replace(worker, stage=Stage.KILLED, deadline=draft.now + ABORT_GRACE_S))


def _dismiss_zygote(draft: Draft, generation: Generation) -> None:
    draft.do(ev.DismissZygote(generation.number))
    draft.put(replace(generation, zygote=ZygoteStage.LEAVING, zygote_deadline=draft.now + LEAVE_GRACE_S))


# --- plan


def _meet_deadlines(draft: Draft) -> None:
    now = draft.now
    if draft.state.stop_deadline is not None and draft.state.stop_deadline <= now:
        draft.set(phase=Phase.HALTING, stop_deadline=None)
        left = [each for each in draft.state.workers if each.stage is not Stage.KILLED]
        if left:
            draft.tell(
                "stop.forced", f"graceful_timeout is over: killing {len(left)} workers", "error", forced=len(left)
            )
        for worker in left:
            _kill_worker(draft, worker, "graceful_timeout is over")
    for generation in draft.state.generations:
        if generation.zygote_deadline is not None and generation.zygote_deadline <= now:
            _zygote_overdue(draft, generation)
    for worker in draft.state.workers:
        if worker.deadline is not None and worker.deadline <= now:
            _worker_overdue(draft, worker)


def _zygote_overdue(draft: Draft, generation: Generation) -> None:
    if generation.zygote is not ZygoteStage.LOADING:
        draft.do(ev.KillZygote(generation.number))
        draft.put(replace(generation, zygote_deadline=None))
        return
    why = f"the application did not load within {draft.policy.boot_timeout_s:g} s (boot_timeout)"
    draft.do(ev.AbortZygote(generation.number, why))
    draft.put(replace(generation, zygote=ZygoteStage.LEAVING, zygote_deadline=draft.now + ABORT_GRACE_S))
    _generation_failed(draft, generation.number, why)


def _worker_overdue(draft: Draft, worker: WorkerRecord) -> None:
    if worker.stage is Stage.BOOTING:
        why = f"not ready within {draft.policy.boot_timeout_s:g} s (boot_timeout)"
        draft.tell("worker.boot_timeout", f"worker {worker.id} is {why}: it is killed", "error", worker=worker.id)
        _abort_worker(draft, worker, why)
        _worker_lost(draft, worker, f"worker {worker.id} was {why}")
    elif worker.stage is Stage.DRAINING:
        draft.tell(
            "worker.forced",
            f"worker {worker.id} did not finish within {draft.policy.graceful_timeout_s:g} s (graceful_timeout): "
            "it is killed",
            "error",
            worker=worker.id,
        )
        _kill_worker(draft, worker, "graceful_timeout is over")
    else:
        _kill_worker(draft, worker, "it did not leave by itself")


def _judge_candidate(draft: Draft) -> None:
    state = draft.state
    candidate = state.candidate
    if candidate is None or candidate.zygote is not ZygoteStage.READY or state.phase >= Phase.STOPPING:
        return
    ready = sum(1 for each in state.workers_in(Stage.READY) if each.generation == candidate.number)
    if ready < candidate.size:
        return
    proven = state.proven
    draft.put(replace(candidate, standing=Standing.PROVEN))
    took_s = draft.now - candidate.since
    if proven is None:
        draft.set(phase=Phase.RUNNING)
        draft.tell("server.ready", f"ready: {ready} workers", size=candidate.size, took_s=round(took_s, 3))
    else:
        draft.put(replace(proven, standing=Standing.OUTGOING))
        draft.tell(
            "reload.done",
            f"generation {candidate.number} has taken over from generation {proven.number}",
            generation=candidate.number,
            was=proven.number,
            took_s=round(took_s, 3),
        )


def _begin_reload(draft: Draft) -> None:
    state = draft.state
    if state.reload_size is None or state.phase is not Phase.RUNNING:
        return
    under_way = state.candidate
    if under_way is not None:
        if draft.now < under_way.since + RELOAD_MERGE_S:
            return
        draft.put(replace(under_way, standing=Standing.OUTGOING))
        draft.tell(
            "reload.superseded",
            f"generation {under_way.number} is given up for a newer reload",
            generation=under_way.number,
        )
    number = state.next_generation
    newcomer = Generation(number, state.reload_size, Standing.CANDIDATE, draft.now)
    draft.set(generations=(*draft.state.generations, newcomer), next_generation=number + 1, reload_size=None)
    draft.tell("reload.begun", f"reloading: loading generation {number}", generation=number)


def _drain_surplus(draft: Draft) -> None:
    """Ask workers to leave: stale ones as soon as there is capacity without them, then what is over the size.

    Who still boots for a generation that is given up holds no requests: it is killed.
    """
    state = draft.state
    if state.phase >= Phase.STOPPING:
        return
    for worker in state.workers_in(Stage.BOOTING):
        generation = state.generation(worker.generation)
        if generation is None or generation.standing is Standing.OUTGOING:
            _kill_worker(draft, worker, "its generation is given up")
    ready = list(draft.state.workers_in(Stage.READY))
    stale = [each for each in ready if state.is_stale(each)]
    wanted = state.candidate if state.candidate and state.candidate.zygote is ZygoteStage.READY else state.proven
    fresh = [each for each in ready if each not in stale]
    surplus = fresh[: max(0, len(fresh) - wanted.size)] if wanted is not None else []
    for worker in [*stale, *surplus][: max(0, len(ready) - state.floor)]:
        _drain_worker(draft, worker, heir=wanted.number if wanted is not None else 0)


def _start_and_dismiss_zygotes(draft: Draft) -> None:
    """A generation that is wanted gets its zygote; that of one on its way out leaves, or is killed while it imports."""
    state = draft.state
    for generation in state.generations:
        if state.phase >= Phase.STOPPING or generation.standing is Standing.OUTGOING:
            if generation.zygote is ZygoteStage.READY:
                _dismiss_zygote(draft, generation)
            elif generation.zygote is ZygoteStage.LOADING:
                draft.do(ev.KillZygote(generation.number))
                draft.put(replace(generation, zygote=ZygoteStage.LEAVING, zygote_deadline=None))
        elif generation.zygote is ZygoteStage.ABSENT and draft.now >= state.restarts.not_before:
            preload = draft.policy.preload and not state.preload_refused
            draft.do(ev.StartZygote(generation.number, preload))
            deadline = draft.now + draft.policy.boot_timeout_s
            draft.put(replace(generation, zygote=ZygoteStage.LOADING, zygote_deadline=deadline))


def _spawn_missing(draft: Draft) -> None:
    """Spawn what is missing; never more live workers than the size and those in exchange."""
    if draft.state.phase >= Phase.STOPPING or draft.now < draft.state.restarts.not_before:
        return
    candidate, proven = draft.state.candidate, draft.state.proven
    sizes = [each.size for each in (candidate, proven) if each is not None]
    room = max(sizes, default=0) + draft.policy.max_unavailable - draft.state.live_count
    serving_candidate = candidate is not None and candidate.zygote is ZygoteStage.READY
    if proven is not None and proven.zygote is ZygoteStage.READY:
        missing = proven.size - len(draft.state.fresh(proven))
        if serving_candidate and candidate is not None:
            missing -= sum(1 for each in draft.state.fresh(candidate) if each.stage is Stage.READY)
        room -= _spawn(draft, proven, min(missing, room))
    if serving_candidate and candidate is not None:
        _spawn(draft, candidate, min(candidate.size - len(draft.state.fresh(candidate)), room))


def _spawn(draft: Draft, generation: Generation, count: int) -> int:
    """Spawn up to ``count`` workers; returns how many."""
    for spawned in range(max(0, count)):
        slot = draft.state.free_slot()
        if slot is None:
            return spawned
        number = draft.state.next_worker
        deadline = draft.now + draft.policy.boot_timeout_s
        newcomer = WorkerRecord(number, generation.number, slot, Stage.BOOTING, deadline)
        draft.set(workers=(*draft.state.workers, newcomer), next_worker=number + 1)
        draft.do(ev.SpawnWorker(number, generation.number, slot))
    return max(0, count)


def _forget_generations(draft: Draft) -> None:
    peopled = {each.generation for each in draft.state.workers}
    left = tuple(
        each
        for each in draft.state.generations
        if each.standing is not Standing.OUTGOING or each.zygote is not ZygoteStage.ABSENT or each.number in peopled
    )
    for each in draft.state.generations:
        if each not in left:
            draft.do(ev.ForgetGeneration(each.number))
    draft.set(generations=left)


def _finish(draft: Draft) -> None:
    state = draft.state
    if state.phase < Phase.STOPPING or state.workers:
        return
    if any(each.zygote is not ZygoteStage.ABSENT for each in state.generations):
        return
    draft.set(phase=Phase.STOPPED, stop_deadline=None, generations=())
    draft.do(ev.CloseListeners())
    took_s = draft.now - state.stop_since if state.stop_since is not None else 0.0
    draft.tell("server.stopped", "stopped", took_s=round(took_s, 3), exit_code=state.outcome.exit_code)


PLAN: Final[tuple[Callable[[Draft], None], ...]] = (
    _meet_deadlines,
    _judge_candidate,
    _begin_reload,
    _drain_surplus,
    _start_and_dismiss_zygotes,
    _spawn_missing,
    _forget_generations,
    _finish,
)
