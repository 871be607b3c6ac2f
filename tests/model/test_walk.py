"""The promises of the master's model, walked; and planted faults, which the walk must find."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from forkserve.supervisor import step as real_step
from tests.model.walk import Budget, Violation, walk


@pytest.mark.parametrize(
    ("size", "budget"),
    [
        (1, Budget(faults=2, wishes=1, ticks=1)),
        (1, Budget(faults=1, wishes=2, ticks=1)),
        (2, Budget(faults=1, wishes=1, ticks=1)),
        (2, Budget(faults=2, wishes=0, ticks=1)),
        (3, Budget(faults=0, wishes=1, ticks=1)),
    ],
)
def test_every_promise_holds_in_every_reachable_state(size: int, budget: Budget) -> None:
    report = walk(size=size, budget=budget)
    assert report.complete
    assert report.states > 300
    assert report.futures > 50


FAULTS = {
    "drains below the floor": ("[: max(0, len(ready) - state.floor)]", "[: len(ready)]"),
    "spawns on, a worker a turn": ("missing = proven.size - len(draft.state.fresh(proven))", "missing = 1"),
    "starts zygotes while stopping": (
        "if state.phase >= Phase.STOPPING or generation.standing is Standing.OUTGOING:",
        "if generation.standing is Standing.OUTGOING:",
    ),
    "forgets to refuse new connections": ("    draft.do(ev.RefuseNew())\n", ""),
    "goes without waiting for workers": (
        "if state.phase < Phase.STOPPING or state.workers:",
        "if state.phase < Phase.STOPPING:",
    ),
    "goes without waiting for zygotes": (
        "each.zygote is not ZygoteStage.ABSENT for each in state.generations",
        "False for each in ()",
    ),
    "lets a quick stop leave workers alone": (
        "            draft.put(replace(worker, stage=Stage.KILLED, deadline=draft.now + QUICK_GRACE_S))\n",
        "            pass\n",
    ),
    "never kills who does not leave": ("            _worker_overdue(draft, worker)\n", "            pass\n"),
    "never gives up a loading zygote": ("            _zygote_overdue(draft, generation)\n", "            pass\n"),
    "gives up the proven generation too": (
        "        draft.put(replace(generation, standing=Standing.OUTGOING))\n",
        "        draft.put(replace(generation, standing=Standing.OUTGOING))\n"
        "        draft.put(replace(proven, standing=Standing.OUTGOING))\n",
    ),
    "serves on with a first generation that failed": (
        "        draft.set(outcome=Outcome(BOOT_FAILED_EXIT_CODE, message, traceback_text))\n",
        "        pass\n",
    ),
    "exits with success when the application does not boot": ("Outcome(BOOT_FAILED_EXIT_CODE,", "Outcome(0,"),
    "takes as many extra workers as it likes": (
        "draft.policy.max_unavailable - draft.state.live_count",
        "draft.policy.max_unavailable + 5 - draft.state.live_count",
    ),
    "trusts a candidate without workers": ("    if ready < candidate.size:\n        return\n", ""),
    "forgets generations that still have workers": ("or each.number in peopled", ""),
    "closes the listeners twice": (
        "    draft.do(ev.CloseListeners())\n",
        "    draft.do(ev.CloseListeners())\n    draft.do(ev.CloseListeners())\n",
    ),
    "spawns again and again": ("min(missing, room)", "1"),
    "loses a reload that waits": ("next_generation=number + 1, reload_size=None)", "next_generation=number + 1)"),
    "comes back from stopping": ("draft.set(phase=Phase.RUNNING)", "draft.set(phase=Phase.BOOTING)"),
}


def mutant(old: str, new: str) -> ModuleType:
    source = Path(real_step.__file__).read_text(encoding="utf-8")
    assert source.count(old) >= 1, f"the text to plant a fault in is gone: {old!r}"
    module = ModuleType("mutant_step")
    module.__dict__["__name__"] = "forkserve.supervisor.step"  # dataclasses look their module up
    exec(compile(source.replace(old, new), "mutant_step.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("fault", FAULTS)
def test_the_walk_finds_a_planted_fault(fault: str) -> None:
    with pytest.raises(Violation):
        walk(mutant(*FAULTS[fault]), budget=Budget(faults=1, wishes=1, ticks=1), futures_every=1)
