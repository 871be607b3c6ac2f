"""What the master does about single events; the walk in tests/model holds what must be true of all of them."""

from __future__ import annotations

import pytest

from forkserve.supervisor import events as ev
from forkserve.supervisor.model import Phase, Policy, Restarts, Stage, State
from forkserve.supervisor.step import PAUSE_MAX_S, begin, count_restart, next_deadline, step

POLICY = Policy(graceful_timeout_s=30.0, boot_timeout_s=60.0, max_unavailable=1, restart_intensity=3)


def play(state: State, *events: ev.Event, now: float = 0.0, policy: Policy = POLICY) -> tuple[State, list[ev.Action]]:
    """All events at one moment; the state after them, and all actions."""
    actions: list[ev.Action] = []
    for event in events:
        state, done = step(state, event, now, policy)
        actions.extend(done)
    return state, actions


def said(actions: list[ev.Action]) -> list[str]:
    return [action.code for action in actions if isinstance(action, ev.Announce)]


@pytest.fixture
def running() -> State:
    """Two workers of generation 1, ready, at time 0."""
    state, _ = play(begin(2, 0.0), ev.Tick(), ev.ZygoteLoaded(1, preloaded=True), ev.WorkerReady(1), ev.WorkerReady(2))
    assert state.phase is Phase.RUNNING
    return state


def test_the_first_start_waits_for_zygote_and_workers() -> None:
    state, actions = play(begin(2, 0.0), ev.Tick())
    assert actions == [ev.StartZygote(1, preload=True)]
    state, actions = play(state, ev.ZygoteLoaded(1, preloaded=True))
    assert [each for each in actions if isinstance(each, ev.SpawnWorker)] == [
        ev.SpawnWorker(1, 1, 0),
        ev.SpawnWorker(2, 1, 1),
    ]
    state, actions = play(state, ev.WorkerReady(1))
    assert state.phase is Phase.BOOTING
    state, actions = play(state, ev.WorkerReady(2))
    assert state.phase is Phase.RUNNING
    assert said(actions) == ["worker.ready", "server.ready"]


@pytest.mark.parametrize(
    "failure",
    [
        (ev.ZygoteFailed(1, "no module named shop", "Traceback"),),
        (ev.ZygoteDied(1, "signal 9"),),
        (ev.ZygoteLoaded(1), ev.WorkerBootFailed(1, "no module named shop", "Traceback")),
        (ev.ZygoteLoaded(1), ev.WorkerDied(1, "signal 11")),
    ],
)
def test_a_first_generation_that_does_not_come_up_ends_the_server_with_3(failure: tuple[ev.Event, ...]) -> None:
    state, actions = play(begin(1, 0.0), ev.Tick(), *failure)
    assert state.phase >= Phase.HALTING
    assert state.outcome.exit_code == 3
    assert "server.failed" in said(actions)


def test_a_reload_exchanges_workers_one_by_one_new_before_old(running: State) -> None:
    state, actions = play(running, ev.ReloadAsked(2), ev.ZygoteLoaded(2, preloaded=True))
    spawned = [each for each in actions if isinstance(each, ev.SpawnWorker)]
    assert [(each.worker_id, each.generation) for each in spawned] == [(3, 2)]
    assert not any(isinstance(each, ev.DrainWorker) for each in actions)
    state, actions = play(state, ev.WorkerReady(3))
    assert ev.DrainWorker(1, heir=2) in actions
    assert ev.DrainWorker(2, heir=2) not in actions
    assert any(isinstance(each, ev.SpawnWorker) and each.worker_id == 4 for each in actions)
    state, actions = play(state, ev.WorkerReady(4))
    assert ev.DrainWorker(2, heir=2) in actions
    assert "reload.done" in said(actions)
    assert ev.DismissZygote(1) in actions
    state, _ = play(state, ev.WorkerDied(1, "exit code 0"), ev.WorkerDied(2, "exit code 0"), ev.ZygoteDied(1))
    assert [each.number for each in state.generations] == [2]


@pytest.mark.parametrize(
    "failure",
    [
        (ev.ZygoteFailed(2, "SyntaxError", "Traceback"),),
        (ev.ZygoteDied(2, "signal 9"),),
        (ev.ZygoteLoaded(2), ev.WorkerBootFailed(3, "no database")),
        (ev.ZygoteLoaded(2), ev.WorkerDied(3, "signal 11")),
        (ev.ZygoteLoaded(2), ev.WorkerReady(3), ev.WorkerDied(3, "signal 11")),
    ],
)
def test_a_reload_that_fails_keeps_the_old_generation(running: State, failure: tuple[ev.Event, ...]) -> None:
    state, actions = play(running, ev.ReloadAsked(2), *failure)
    assert "reload.failed" in said(actions)
    assert state.proven is not None
    assert state.proven.number == 1
    assert state.phase is Phase.RUNNING
    old = [each for each in state.workers if each.generation == 1 and each.stage in (Stage.READY, Stage.BOOTING)]
    assert len(old) >= 1
    told = next(each for each in actions if isinstance(each, ev.Announce) and each.code == "reload.failed")
    assert told.message.endswith("keeping generation 1")


def test_a_loading_that_hangs_is_given_up_after_boot_timeout(running: State) -> None:
    state, _ = play(running, ev.ReloadAsked(2))
    assert next_deadline(state, 0.0) == 60.0
    state, actions = play(state, ev.Tick(), now=60.0)
    assert any(isinstance(each, ev.AbortZygote) and each.generation == 2 for each in actions)
    assert "reload.failed" in said(actions)


def test_reloads_asked_for_at_once_are_one_and_a_later_one_supersedes(running: State) -> None:
    state, actions = play(running, *[ev.ReloadAsked(2)] * 50)
    assert said(actions).count("reload.begun") == 1
    state, actions = play(state, ev.Tick(), now=1.0)
    assert "reload.superseded" in said(actions)
    assert state.candidate is not None
    assert state.candidate.number == 3


def test_term_during_a_reload_acts_at_once(running: State) -> None:
    state, actions = play(running, ev.ReloadAsked(2), ev.StopAsked())
    assert state.phase is Phase.STOPPING
    assert ev.KillZygote(2) in actions
    assert {each.worker_id for each in actions if isinstance(each, ev.DrainWorker) and each.stopping} == {1, 2}


def test_a_second_term_forces_only_when_it_is_no_twin(running: State) -> None:
    state, _ = play(running, ev.StopAsked(), ev.StopAsked())
    assert state.phase is Phase.STOPPING
    state, _ = play(state, ev.StopAsked(), now=0.9)
    assert state.phase is Phase.STOPPING
    state, actions = play(state, ev.StopAsked(), now=1.0)
    assert state.phase is Phase.HALTING
    assert {each.worker_id for each in actions if isinstance(each, ev.QuitWorker)} == {1, 2}


def test_a_stop_takes_graceful_timeout_and_not_more(running: State) -> None:
    state, _ = play(running, ev.StopAsked())
    assert next_deadline(state, 0.0) == 5.0  # the zygote's
    state, _ = play(state, ev.ZygoteDied(1, "exit code 0"))
    assert next_deadline(state, 0.0) == 30.0
    state, actions = play(state, ev.Tick(), now=30.0)
    assert state.phase is Phase.HALTING
    assert {each.worker_id for each in actions if isinstance(each, ev.KillWorker)} == {1, 2}
    state, actions = play(state, ev.WorkerDied(1, "signal 9"), ev.WorkerDied(2, "signal 9"), now=30.0)
    assert state.phase is Phase.STOPPED
    assert ev.CloseListeners() in actions


def test_a_planned_loss_is_new_before_old_and_one_at_a_time(running: State) -> None:
    state, actions = play(running, ev.RetireAsked(1, "max_requests"), ev.RetireAsked(2, "max_requests"))
    assert [each.worker_id for each in actions if isinstance(each, ev.SpawnWorker)] == [3]
    assert not any(isinstance(each, ev.DrainWorker) for each in actions)
    state, actions = play(state, ev.WorkerReady(3))
    assert [each.worker_id for each in actions if isinstance(each, ev.DrainWorker)] == [1]


def test_a_crashed_worker_is_replaced_at_once(running: State) -> None:
    _state, actions = play(running, ev.WorkerDied(1, "signal 11"))
    assert any(isinstance(each, ev.SpawnWorker) for each in actions)
    assert "worker.exit" in said(actions)


def test_a_replacement_that_does_not_boot_says_why_with_or_without_a_traceback(running: State) -> None:
    for text in ("", "Traceback"):
        _state, actions = play(running, ev.WorkerDied(1, "signal 11"), ev.WorkerBootFailed(3, "no attribute app", text))
        (told,) = [each for each in actions if isinstance(each, ev.Announce) and each.code == "worker.boot_failed"]
        assert (told.message, told.detail) == ("worker 3 did not boot: no attribute app", text)


def test_a_hung_worker_is_aborted_then_killed(running: State) -> None:
    state, actions = play(running, ev.WorkerHung(1, 31.0))
    assert any(isinstance(each, ev.AbortWorker) and each.worker_id == 1 for each in actions)
    assert any(isinstance(each, ev.SpawnWorker) for each in actions)
    _state, actions = play(state, ev.Tick(), now=1.0)
    assert any(isinstance(each, ev.KillWorker) and each.worker_id == 1 for each in actions)


def test_an_import_that_makes_forking_unsafe_is_not_forked_from(running: State) -> None:
    state, actions = play(running, ev.ReloadAsked(2), ev.ZygoteLoaded(2, preloaded=True, hazards=("thread 'x' runs",)))
    assert ev.DismissZygote(2) in actions
    state, actions = play(state, ev.ZygoteDied(2, "exit code 0"))
    assert actions == [ev.StartZygote(2, preload=False)]
    state, actions = play(state, ev.ZygoteLoaded(2, preloaded=False))
    assert any(isinstance(each, ev.SpawnWorker) and each.generation == 2 for each in actions)
    assert state.preload_refused


def test_fewer_workers_leave_oldest_first_and_never_below_one(running: State) -> None:
    state, actions = play(running, ev.ScaleAsked(-1))
    assert [each.worker_id for each in actions if isinstance(each, ev.DrainWorker)] == [1]
    _state, actions = play(state, ev.ScaleAsked(-1))
    assert said(actions) == ["scale.unchanged"]


def test_parked_workers_come_back_by_adding_one(running: State) -> None:
    state, actions = play(running, ev.ParkAsked())
    assert len([each for each in actions if isinstance(each, ev.DrainWorker)]) == 2
    _state, actions = play(state, ev.WorkerDied(1), ev.WorkerDied(2), ev.ScaleAsked(+1))
    assert len([each for each in actions if isinstance(each, ev.SpawnWorker)]) == 1


STRANGERS: list[ev.Event] = [
    ev.Tick(),
    ev.ZygoteLoaded(99),
    ev.ZygoteFailed(99, "late"),
    ev.ZygoteDied(99),
    ev.ZygoteLoaded(1),
    ev.ZygoteFailed(1, "late"),
    ev.WorkerReady(99),
    ev.WorkerBootFailed(99, "late"),
    ev.WorkerDied(99),
    ev.WorkerHung(99),
    ev.RetireAsked(99, "late"),
    ev.WorkerReady(1),
    ev.WorkerBootFailed(1, "late"),
]


@pytest.mark.parametrize("event", STRANGERS, ids=repr)
def test_an_event_that_comes_late_or_about_a_stranger_changes_nothing(running: State, event: ev.Event) -> None:
    assert step(running, event, 0.0, POLICY) == (running, ())


@pytest.mark.parametrize("event", [*STRANGERS, ev.ReloadAsked(2), ev.ScaleAsked(1), ev.StopAsked(), ev.QuitAsked()])
def test_after_the_end_nothing_changes_anything(event: ev.Event) -> None:
    stopped = State(phase=Phase.STOPPED)
    assert step(stopped, event, 5.0, POLICY) == (stopped, ())


@pytest.mark.parametrize("event", [ev.ReloadAsked(2), ev.ScaleAsked(1), ev.ParkAsked(), ev.RetireAsked(1, "x")])
def test_wishes_that_come_while_stopping_are_refused(running: State, event: ev.Event) -> None:
    stopping, _ = play(running, ev.StopAsked())
    after, actions = play(stopping, event)
    assert after == stopping
    assert all(isinstance(each, ev.Announce) and each.code.endswith(".refused") for each in actions)


# --- restarts


def test_few_restarts_come_at_once_and_many_after_growing_pauses() -> None:
    restarts = Restarts()
    for _ in range(3):
        restarts = count_restart(restarts, 100.0, POLICY)
        assert restarts.not_before <= 100.0
    now, pauses = 100.0, []
    for _ in range(8):
        restarts = count_restart(restarts, now, POLICY)
        if restarts.not_before > now:
            pauses.append(restarts.not_before - now)
        now = max(now, restarts.not_before)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(pauses) <= PAUSE_MAX_S


def test_a_quiet_period_forgives() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts = count_restart(restarts, 100.0, POLICY)
    assert restarts.pauses > 0
    later = restarts.not_before + POLICY.restart_period_s + 1
    assert count_restart(restarts, later, POLICY) == Restarts((later,), 0, restarts.not_before)


def test_workers_that_keep_dying_are_not_a_hot_loop(running: State) -> None:
    state, now, spawns = running, 0.0, 0
    while now < 60.0:
        for worker in list(state.workers):
            state, actions = play(state, ev.WorkerDied(worker.id, "signal 11"), now=now)
            spawns += sum(isinstance(each, ev.SpawnWorker) for each in actions)
        deadline = next_deadline(state, now)
        assert deadline is None or deadline > now
        now = deadline if deadline is not None else now + 1.0
        state, actions = play(state, ev.Tick(), now=now)
        spawns += sum(isinstance(each, ev.SpawnWorker) for each in actions)
    assert spawns < 40
