"""Does the application's next call block?  A guess from the last ones, as a pure object.

    INLINE ── calls have blocked ──▶ QUEUED for a pause ──▶ TRIAL: some calls in place, closely watched
      ▲                                 ▲                      │ one blocks: a longer pause
      └── none of the trial has blocked ┴──────────────────────┘

A call in place costs nothing but stops the reactor while it blocks; a call on another thread costs about 20 µs and a
fight for the interpreter's lock.  So it is worth to know which kind of application this is.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

WINDOW_NS: Final = 50_000_000
"""So close together two blocking calls have to be; a single one may be bad luck, such as a page read from disk."""
PAUSE_MIN_NS: Final = 1_000_000_000
PAUSE_MAX_NS: Final = 32_000_000_000
"""How long calls are queued before the next trial; doubled at each trial that fails."""
TRIAL_CALLS: Final = 16
"""So many calls of a trial must not block."""


class Mode(Enum):
    """How the next call is to be run."""

    INLINE = "inline"
    QUEUED = "queued"
    TRIAL = "trial"


class Expectation:
    """The guess of one worker.  Times are monotonic nanoseconds."""

    __slots__ = ("_blocked_ns", "_pause_ns", "_queued_until_ns", "_trial_left")

    def __init__(self) -> None:
        self._blocked_ns = -WINDOW_NS
        self._queued_until_ns = 0
        self._pause_ns = PAUSE_MIN_NS
        self._trial_left = 0

    def mode(self, now_ns: int) -> Mode:
        """How to run a call that begins now."""
        if now_ns < self._queued_until_ns:
            return Mode.QUEUED
        return Mode.TRIAL if self._trial_left else Mode.INLINE

    def note_run(self) -> None:
        """A call was run in place and has not blocked."""
        if self._trial_left:
            self._trial_left -= 1
            if not self._trial_left:
                self._pause_ns = PAUSE_MIN_NS

    def note_blocked(self, now_ns: int, *, is_certain: bool) -> None:
        """A call was run in place and has blocked.

        Args:
            is_certain: it was so long that another thread had to turn the reactor.
        """
        was_alone = now_ns - self._blocked_ns > WINDOW_NS
        self._blocked_ns = now_ns
        if self._trial_left:
            self._pause_ns = min(2 * self._pause_ns, PAUSE_MAX_NS)
        elif was_alone and not is_certain:
            return
        self._queued_until_ns = now_ns + self._pause_ns
        self._trial_left = TRIAL_CALLS
