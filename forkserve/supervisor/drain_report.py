"""What a stop has done: how many connections were still taken, requests answered, refused and lost.

    stop begins ─▶ begin(board) ─▶ workers leave; those that were cut off: lost(row) ─▶ fields() of the last line

Counted in the scoreboard, which outlives the workers.
"""

from __future__ import annotations

from typing import Final

from forkserve.posix.scoreboard import ACCEPTED, REFUSED, REQUESTS, WAITING, Row, Scoreboard

EXIT_LOST: Final = 4
"""The exit code of a stop that has cut off requests."""


class DrainReport:
    """The counts of one stop."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self.lost = 0

    @property
    def has_begun(self) -> bool:
        """Is the server stopping?"""
        return self._before is not None

    def begin(self, board: Scoreboard) -> None:
        """The stop begins; may be repeated."""
        if self._before is None:
            self._before = _totals(board)

    def worker_ended(self, row: Row) -> None:
        """A worker has ended: what it had in hand is lost."""
        if self.has_begun:
            self.lost += len(row.in_flight()) + row.words[WAITING]

    def fields(self, board: Scoreboard) -> dict[str, int]:
        """The counts since the stop began."""
        before = self._before or _totals(board)
        accepted, requests, refused = (now - then for now, then in zip(_totals(board), before, strict=True))
        return {"accepted": accepted, "finished": requests, "refused": refused, "lost": self.lost}


def _totals(board: Scoreboard) -> tuple[int, int, int]:
    accepted, requests, refused = (board.total(word) for word in (ACCEPTED, REQUESTS, REFUSED))
    return accepted, requests, refused
