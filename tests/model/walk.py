"""The checker: walks every reachable state of the master's model and holds its promises on every edge.

    state ─▶ all events that the world could send now ─▶ step ─▶ invariants ─▶ new states, until none is new

The records in a state are the world: a worker that is BOOTING may become ready, fail, or die; one that was killed can
only die.  What the world may do wrong is bounded by a budget, so that the walk ends.  Two states that differ only in
numbers given out and in when they happened are one state (:func:`canonical`).

From a share of the states three futures are played to their end: an obedient world that is asked to stop, a world
where nobody leaves unless killed, and a world without further faults, which must come to rest at the wanted size.

Run as a program it walks further than the tests do: ``python -m tests.model.walk --faults 3 --wishes 3``.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from forkserve.supervisor import events as ev
from forkserve.supervisor import step as real_step
from forkserve.supervisor.model import Phase, Policy, Stage, Standing, State, ZygoteStage

POLICY = Policy(
    graceful_timeout_s=2.0,
    boot_timeout_s=3.0,
    max_unavailable=1,
    restart_intensity=1,
    restart_period_s=1.0,
)


TELL_EVERY = 25_000
"""After how many states a long walk says how far it is."""


class Violation(AssertionError):
    """A promise does not hold; the text says which, and how the state was reached."""


@dataclass(frozen=True)
class Budget:
    """What the world may still do: faults (crashes, hangs, failures), wishes (reload, scale …), expired deadlines."""

    faults: int
    wishes: int
    ticks: int


@dataclass(frozen=True)
class Report:
    """How far a walk came."""

    states: int
    edges: int
    futures: int
    complete: bool


Cost = tuple[int, int, int]


def possible_events(state: State) -> Iterator[tuple[ev.Event, Cost]]:
    """What the world could send now, and what it costs of the budget (faults, wishes, ticks)."""
    for generation in state.generations:
        number = generation.number
        if generation.zygote is ZygoteStage.LOADING:
            yield ev.ZygoteLoaded(number, preloaded=True), (0, 0, 0)
            if not state.preload_refused:
                yield ev.ZygoteLoaded(number, preloaded=True, hazards=("a thread",)), (1, 0, 0)
            yield ev.ZygoteFailed(number, "no"), (1, 0, 0)
            yield ev.ZygoteDied(number, "signal 9"), (1, 0, 0)
        elif generation.zygote is ZygoteStage.READY:
            yield ev.ZygoteDied(number, "signal 9"), (1, 0, 0)
        elif generation.zygote is ZygoteStage.LEAVING:
            yield ev.ZygoteDied(number, "exit code 0"), (0, 0, 0)
    for worker in state.workers:
        if worker.stage is Stage.BOOTING:
            yield ev.WorkerReady(worker.id), (0, 0, 0)
            yield ev.WorkerBootFailed(worker.id, "no"), (1, 0, 0)
            yield ev.WorkerDied(worker.id, "signal 9"), (1, 0, 0)
        elif worker.stage is Stage.READY:
            yield ev.WorkerDied(worker.id, "signal 9"), (1, 0, 0)
            yield ev.WorkerHung(worker.id, 31.0), (1, 0, 0)
            yield ev.RetireAsked(worker.id, "max_requests"), (0, 1, 0)
        elif worker.stage is Stage.DRAINING:
            yield ev.WorkerDied(worker.id, "exit code 0"), (0, 0, 0)
            yield ev.WorkerHung(worker.id, 31.0), (1, 0, 0)
        else:
            yield ev.WorkerDied(worker.id, "signal 9"), (0, 0, 0)
    size = max((each.size for each in state.generations if each.standing is not Standing.OUTGOING), default=1)
    yield ev.ReloadAsked(max(size, 1)), (0, 1, 0)
    yield ev.ScaleAsked(1), (0, 1, 0)
    yield ev.ScaleAsked(-1), (0, 1, 0)
    yield ev.ParkAsked(), (0, 1, 0)
    yield ev.StopAsked(), (0, 1, 0)
    yield ev.QuitAsked(), (0, 1, 0)


def canonical(state: State, now: float) -> State:
    """The state with its numbers counted from one and its times counted from now."""
    generations = {each.number: rank for rank, each in enumerate(state.generations, 1)}
    workers = {each.id: rank for rank, each in enumerate(state.workers, 1)}

    def relative(moment: float | None) -> float | None:
        return None if moment is None else round(max(moment - now, -4.0), 3)

    return replace(
        state,
        generations=tuple(
            replace(
                each,
                number=generations[each.number],
                since=relative(each.since) or 0.0,
                zygote_deadline=relative(each.zygote_deadline),
            )
            for each in state.generations
        ),
        workers=tuple(
            replace(
                each,
                id=workers[each.id],
                slot=0,
                generation=generations.get(each.generation, 0),
                deadline=relative(each.deadline),
            )
            for each in state.workers
        ),
        next_generation=0,
        next_worker=0,
        stop_since=relative(state.stop_since),
        stop_deadline=relative(state.stop_deadline),
        restarts=replace(
            state.restarts,
            times=tuple(
                relative(each) or 0.0 for each in state.restarts.times if each > now - 2 * POLICY.restart_period_s
            ),
            pauses=min(state.restarts.pauses, 2),
            not_before=relative(state.restarts.not_before) or 0.0,
        ),
    )


# --- the promises


def check_edge(before: State, event: ev.Event, after: State, actions: tuple[ev.Action, ...], policy: Policy) -> None:
    """Raise where a promise does not hold between two states.

    Raises:
        AssertionError: with the promise.
    """
    kinds = [type(each) for each in actions]
    assert after.phase >= before.phase, "the phase never goes back"
    if any(isinstance(each, ev.DrainWorker) and not each.stopping for each in actions):
        assert after.ready_count >= after.floor, "own actions never take ready workers below the floor"
    if after.phase >= Phase.STOPPING:
        assert ev.SpawnWorker not in kinds and ev.StartZygote not in kinds, "nothing is spawned while stopping"
    assert kinds.count(ev.RefuseNew) == (isinstance(event, ev.StopAsked) and before.phase < Phase.STOPPING), (
        "a graceful stop refuses new connections, once"
    )
    stopped = after.phase is Phase.STOPPED
    assert kinds.count(ev.CloseListeners) == (stopped and before.phase is not Phase.STOPPED), (
        "listeners are open while there is a server, and closed once"
    )
    if stopped:
        assert not after.workers and not after.generations, "exit leaves nobody behind"
    if after.phase is Phase.HALTING:
        assert all(each.stage is Stage.KILLED for each in after.workers), "a quick stop leaves nobody alive"
    if isinstance(event, ev.QuitAsked):
        assert after.phase >= Phase.HALTING, "a quick stop is obeyed at once"
    if before.phase is Phase.BOOTING and after.phase >= Phase.HALTING and not isinstance(event, ev.QuitAsked | ev.Tick):
        assert after.outcome.exit_code == 3, "a first generation that does not come up ends the server with code 3"
    _check_generations(before, after)
    _check_actions(after, actions, policy)
    _check_records(after)


def _check_generations(before: State, after: State) -> None:
    for standing in (Standing.CANDIDATE, Standing.PROVEN):
        assert sum(1 for each in after.generations if each.standing is standing) <= 1, f"at most one {standing.value}"
    if after.phase is Phase.RUNNING:
        assert after.proven is not None, "while running there is a proven generation"
    if after.proven and (before.proven is None or before.proven.number != after.proven.number):
        came_up = [
            each for each in after.workers_in(Stage.READY, Stage.DRAINING) if each.generation == after.proven.number
        ]
        assert len(came_up) >= after.proven.size, "a generation is proven by all of its workers being ready"
    if before.candidate and before.proven and after.phase is Phase.RUNNING:
        newest = after.generation(before.candidate.number)
        if newest is None or newest.standing is Standing.OUTGOING:
            assert after.proven is not None and after.proven.number == before.proven.number, (
                "when a candidate is given up the proven generation stays"
            )


def _check_actions(after: State, actions: tuple[ev.Action, ...], policy: Policy) -> None:
    sizes = [each.size for each in (after.candidate, after.proven) if each is not None]
    for action in actions:
        if isinstance(action, ev.SpawnWorker):
            generation = after.generation(action.generation)
            assert generation is not None and generation.zygote is ZygoteStage.READY, "only a ready zygote spawns"
            assert generation.standing is not Standing.OUTGOING, "what goes out gets no new workers"
            assert after.live_count <= max(sizes) + policy.max_unavailable, "never more extra workers than allowed"
        elif isinstance(action, ev.DrainWorker | ev.AbortWorker | ev.KillWorker | ev.QuitWorker):
            worker = after.worker(action.worker_id)
            assert worker is not None, "only who exists can be asked to leave"
            assert worker.stage in (Stage.DRAINING, Stage.KILLED), "who was asked to leave is on the way out"


def _check_records(after: State) -> None:
    assert len({each.slot for each in after.workers}) == len(after.workers), "each worker has its own row"
    assert len({each.id for each in after.workers}) == len(after.workers), "each worker has its own number"
    for worker in after.workers:
        if worker.stage in (Stage.BOOTING, Stage.DRAINING):
            assert worker.deadline is not None, "nobody boots or drains for ever"
        assert after.generation(worker.generation) is not None, "a generation is remembered as long as its workers"
    for generation in after.generations:
        if generation.zygote is ZygoteStage.LOADING:
            assert generation.zygote_deadline is not None, "no zygote loads for ever"


def check_rest(step: ModuleType, state: State, now: float, policy: Policy) -> None:
    """A plan is complete: planning again does nothing, and the next deadline lies ahead."""
    again, actions = step.step(state, ev.Tick(), now, policy)
    assert again == state and not actions, f"planning twice changes nothing, but: {actions}"
    deadline = step.next_deadline(state, now)
    assert deadline is None or deadline > now, "the next deadline lies ahead: the master never spins"


# --- the futures


def play(step: ModuleType, state: State, now: float, policy: Policy, future: str, limit: int = 300) -> State:
    """Let one deterministic world go on until nothing happens any more.

    Args:
        future: "obey" (everybody does as told), "stubborn" (nobody leaves unless killed) or "rest" (nothing fails).
    """
    killed: set[int] = set()

    def note(actions: tuple[ev.Action, ...]) -> None:
        killed.update(each.worker_id for each in actions if isinstance(each, ev.KillWorker))
        killed.update(-each.generation for each in actions if isinstance(each, ev.KillZygote))

    if future != "rest":
        # what was killed before this future began dies of it
        killed.update(each.id for each in state.workers if each.stage is Stage.KILLED and each.deadline is None)
        killed.update(
            -each.number
            for each in state.generations
            if each.zygote is ZygoteStage.LEAVING and each.zygote_deadline is None
        )
        state, actions = step.step(state, ev.StopAsked(), now, policy)
        note(actions)
    for _turn in range(limit):
        event = _next_fact(state, future, killed)
        if event is None:
            deadline = step.next_deadline(state, now)
            if deadline is None:
                return state
            now, event = max(now, deadline), ev.Tick()
        state, actions = step.step(state, event, now, policy)
        note(actions)
        if state.phase is Phase.STOPPED:
            return state
    return state


def _next_fact(state: State, future: str, killed: set[int]) -> ev.Event | None:
    for generation in state.generations:
        if generation.zygote is ZygoteStage.LEAVING and (future != "stubborn" or -generation.number in killed):
            return ev.ZygoteDied(generation.number, "gone")
        if generation.zygote is ZygoteStage.LOADING and future == "rest":
            return ev.ZygoteLoaded(generation.number, preloaded=True)
    for worker in state.workers:
        leaving = worker.stage in (Stage.DRAINING, Stage.KILLED)
        if leaving and (future != "stubborn" or worker.id in killed):
            return ev.WorkerDied(worker.id, "gone")
        if worker.stage is Stage.BOOTING and future == "rest":
            return ev.WorkerReady(worker.id)
    return None


def check_futures(step: ModuleType, state: State, now: float, policy: Policy) -> None:
    """From here STOPPED can be reached, whoever obeys; and a world without faults comes to rest."""
    for future in ("obey", "stubborn"):
        end = play(step, state, now, policy, future)
        assert end.phase is Phase.STOPPED, f"asked to stop, a world that is {future!r} comes to an end"
    end = play(step, state, now, policy, "rest")
    if end.phase is Phase.STOPPED:
        return
    if end.phase >= Phase.STOPPING:
        raise AssertionError("a stop comes to its end when nothing fails")
    proven = end.proven
    assert proven is not None and end.candidate is None, "a reload comes to its verdict when nothing fails"
    assert end.reload_size is None, "a reload that waits is begun"
    assert [each.stage for each in end.workers] == [Stage.READY] * proven.size, "the wanted number of workers serves"
    assert all(each.generation == proven.number for each in end.workers), "old workers have left"
    assert len(end.generations) == 1, "old generations are forgotten"


# --- the walk


def walk(
    step: ModuleType = real_step,
    *,
    size: int = 2,
    budget: Budget = Budget(faults=2, wishes=2, ticks=1),
    policy: Policy = POLICY,
    limit: int = 1_000_000,
    futures_every: int = 7,
    tell: Callable[[Report], None] | None = None,
) -> Report:
    """Walk from the start until no state is new, or ``limit`` states were seen.

    Raises:
        Violation: a promise does not hold; the text has the path.
    """
    start, _ = step.step(step.begin(size, 0.0), ev.Tick(), 0.0, policy)
    queue: deque[tuple[State, float, Budget, Any]] = deque([(start, 0.0, budget, None)])
    seen = {(canonical(start, 0.0), budget)}
    edges = futures = 0
    while queue:
        state, now, left, path = queue.popleft()
        moves: list[tuple[ev.Event, float, Cost]] = [(event, now, cost) for event, cost in possible_events(state)]
        deadline = step.next_deadline(state, now)
        if deadline is not None:
            moves.append((ev.Tick(), deadline, (0, 0, 1)))
        if state.phase is Phase.STOPPING:
            moves.append((ev.StopAsked(), now + 1.0, (0, 1, 0)))
        for event, when, cost in moves:
            rest = Budget(left.faults - cost[0], left.wishes - cost[1], left.ticks - cost[2])
            if min(rest.faults, rest.wishes, rest.ticks) < 0:
                continue
            edges += 1
            trail = (path, event)
            try:
                after, actions = step.step(state, event, when, policy)
                check_edge(state, event, after, actions, policy)
                check_rest(step, after, when, policy)
                key = (canonical(after, when), rest)
                if key in seen:
                    continue
                if len(seen) % futures_every == 0 and after.phase is not Phase.STOPPED:
                    futures += 1
                    check_futures(step, after, when, policy)
            except Exception as broken:
                raise Violation(f"{type(broken).__name__}: {broken}\n{_tell(trail)}\nstate: {state}") from broken
            seen.add(key)
            if tell is not None and len(seen) % TELL_EVERY == 0:
                tell(Report(len(seen), edges, futures, complete=False))
            if len(seen) >= limit:
                return Report(len(seen), edges, futures, complete=False)
            if after.phase is not Phase.STOPPED:
                queue.append((after, when, rest, trail))
    return Report(len(seen), edges, futures, complete=True)


def _tell(trail: Any) -> str:
    steps = []
    while trail is not None:
        trail, event = trail
        steps.append(f"  {event}")
    return "reached by:\n" + "\n".join(reversed(steps))


def main() -> None:
    """Walk as far as asked and say how far that was."""
    parser = argparse.ArgumentParser(description="walk the model of the master")
    parser.add_argument("--size", type=int, default=2, help="workers (default 2)")
    parser.add_argument("--faults", type=int, default=2)
    parser.add_argument("--wishes", type=int, default=2)
    parser.add_argument("--ticks", type=int, default=2)
    parser.add_argument("--limit", type=int, default=200_000, help="most states to visit")
    options = parser.parse_args()
    begun = time.monotonic()
    report = walk(
        size=options.size,
        budget=Budget(options.faults, options.wishes, options.ticks),
        limit=options.limit,
        tell=lambda so_far: print(f"… {so_far.states:,} states, {so_far.edges:,} edges", flush=True),
    )
    print(f"{report} in {time.monotonic() - begun:.1f} s: every promise holds")


if __name__ == "__main__":
    main()
