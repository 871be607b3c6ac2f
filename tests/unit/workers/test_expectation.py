"""Whether calls block, as a guess from the last ones: its transitions as a table, its promises over any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.workers.expectation import (
    PAUSE_MAX_NS,
    PAUSE_MIN_NS,
    TRIAL_CALLS,
    WINDOW_NS,
    Expectation,
    Mode,
)

SECOND = 1_000_000_000
INLINE, QUEUED, TRIAL = Mode.INLINE, Mode.QUEUED, Mode.TRIAL

Step = tuple[int, str]
"""After so many nanoseconds: a call ``ran``, ``blocked`` (perhaps by bad luck) or was ``relieved`` (for certain)."""

PAUSE_OVER = (PAUSE_MIN_NS, "")
BLOCKING: list[Step] = [(0, "relieved"), PAUSE_OVER]
"""Into the first trial."""

TABLE: dict[str, tuple[list[Step], Mode]] = {
    "at first": ([], INLINE),
    "calls run": ([(0, "ran")] * 100, INLINE),
    "one has blocked": ([(0, "blocked")], INLINE),
    "two have, far apart": ([(0, "blocked"), (WINDOW_NS + 1, "blocked")], INLINE),
    "many have, all far apart": ([(WINDOW_NS + 1, "blocked")] * 20, INLINE),
    "two have, close together": ([(0, "blocked"), (WINDOW_NS, "blocked")], QUEUED),
    "two have, with others between": ([(0, "blocked"), (1, "ran"), (1, "blocked")], QUEUED),
    "one was relieved": ([(0, "relieved")], QUEUED),
    "just before the pause is over": ([(0, "relieved"), (PAUSE_MIN_NS - 1, "")], QUEUED),
    "the pause is over": (BLOCKING, TRIAL),
    "the trial goes well so far": ([*BLOCKING, *[(0, "ran")] * (TRIAL_CALLS - 1)], TRIAL),
    "the trial went well": ([*BLOCKING, *[(0, "ran")] * TRIAL_CALLS], INLINE),
    "the trial fails": ([*BLOCKING, (0, "blocked")], QUEUED),
    "the trial fails late": ([*BLOCKING, *[(0, "ran")] * (TRIAL_CALLS - 1), (0, "blocked")], QUEUED),
    "the second pause is twice as long": ([*BLOCKING, (0, "blocked"), (2 * PAUSE_MIN_NS - 1, "")], QUEUED),
    "and then over": ([*BLOCKING, (0, "blocked"), (2 * PAUSE_MIN_NS, "")], TRIAL),
    "the third is twice that": (
        [*BLOCKING, (0, "blocked"), (2 * PAUSE_MIN_NS, "relieved"), (4 * PAUSE_MIN_NS - 1, "")],
        QUEUED,
    ),
    "a trial that went well forgets": (
        [*BLOCKING, (0, "blocked"), (2 * PAUSE_MIN_NS, ""), *[(0, "ran")] * TRIAL_CALLS, (0, "relieved"), PAUSE_OVER],
        TRIAL,
    ),
}


def after(history: list[Step]) -> tuple[Expectation, int]:
    """An expectation with this history, and the time."""
    expectation, now_ns = Expectation(), SECOND
    for later_ns, what in history:
        now_ns += later_ns
        if what == "ran":
            expectation.note_run()
        elif what:
            expectation.note_blocked(now_ns, is_certain=what == "relieved")
    return expectation, now_ns


@pytest.mark.parametrize(("history", "mode"), TABLE.values(), ids=TABLE.keys())
def test_the_mode_after(history: list[Step], mode: Mode) -> None:
    expectation, now_ns = after(history)
    assert expectation.mode(now_ns) is mode
    assert expectation.mode(now_ns) is mode, "asking changes nothing"


def test_the_pause_grows_to_its_limit_and_not_beyond() -> None:
    expectation, now_ns = after([(0, "relieved")])
    pauses = []
    for _ in range(20):
        begun_ns = now_ns
        while expectation.mode(now_ns) is QUEUED:
            now_ns += PAUSE_MIN_NS // 2
        pauses.append(now_ns - begun_ns)
        expectation.note_blocked(now_ns, is_certain=True)
    assert pauses[:4] == [PAUSE_MIN_NS, 2 * PAUSE_MIN_NS, 4 * PAUSE_MIN_NS, 8 * PAUSE_MIN_NS]
    assert pauses[-1] == max(pauses) == PAUSE_MAX_NS


HISTORIES = st.lists(st.tuples(st.integers(0, 3 * SECOND), st.sampled_from(["ran", "blocked", "relieved", ""])))


@given(HISTORIES)
def test_whatever_has_happened_it_is_tried_again_in_the_end_and_calls_that_run_are_believed(
    history: list[Step],
) -> None:
    expectation, now_ns = after(history)
    now_ns += PAUSE_MAX_NS
    assert expectation.mode(now_ns) is not QUEUED
    for _ in range(TRIAL_CALLS):
        expectation.note_run()
    assert expectation.mode(now_ns) is INLINE


@given(HISTORIES)
def test_a_call_that_has_blocked_for_certain_is_followed_by_a_pause(history: list[Step]) -> None:
    expectation, now_ns = after([*history, (0, "relieved")])
    assert expectation.mode(now_ns) is QUEUED
    assert expectation.mode(now_ns + PAUSE_MIN_NS - 1) is QUEUED
