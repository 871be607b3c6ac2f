"""The scoreboard: what every worker is doing, in memory that outlives it.

    memfd ─ words of row 0 │ words of row 1 │ … │ cells of row 0 │ cells of row 1 │ …
              └ 16 of 64 bit: heartbeat, whose row it is, counters
                                                   └ one for each call that runs: since when, and the request line

The master makes it (memfd_create(2)), zygotes and workers inherit it.  A worker writes its own row, everybody may
read all.  Each word is stored aligned through a ``memoryview`` of format "Q", which is one machine store: a reader
never sees half of one.  A cell's text is written before its ``since`` is set and read together with it; a reader that
sees ``since`` change meanwhile reads again.

It is the place of hot counters: nothing here takes a lock or makes a system call.  The memory is sparse: what nobody
has touched costs nothing.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

HEARTBEAT: Final = 0
"""Monotonic nanoseconds of the reactor's last turn."""
CALLS: Final = 1
"""Calls of the application that run now."""
CALLS_MAX: Final = 2
"""How many may run at once."""
WORKER_ID: Final = 3
GENERATION: Final = 4
REQUESTS: Final = 5
"""Requests finished by this worker."""
CONNECTIONS: Final = 6
"""Connections open now."""
IS_SERVING: Final = 7
"""1 while this worker takes new connections and connections of siblings."""
WAITING: Final = 8
"""Complete requests that wait for a call to end."""
ACCEPTED: Final = 9
"""Connections taken out of the accept queue by this worker."""
REFUSED: Final = 10
"""Requests that this worker has answered without the application."""

FRESH_NS: Final = 2_500_000_000
"""A heartbeat that is older does not count as a worker that could take something: more than two turns of a reactor."""

ROW_WORDS: Final = 16
"""More than there are: a row begins at a multiple of 128 bytes, so that no two workers write to one cache line."""
WORDS_BYTES: Final = ROW_WORDS * 8

CELLS: Final = 256
"""Of a row.  Calls beyond are not named when their worker dies."""
CELL_BYTES: Final = 256
TEXT_BYTES_MAX: Final = CELL_BYTES - 16

_SINCE: Final = 0
_LENGTH: Final = 1


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request whose application call has begun: its request line (cut to TEXT_BYTES_MAX), and when (monotonic ns)."""

    request_line: str
    since_ns: int


class Cell:
    """Room for one call at a time."""

    __slots__ = ("_text", "_words")

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:16].cast("Q")
        self._text = memory[16:]

    def begin(self, now_ns: int, head: bytes) -> None:
        """An application call begins; ``head`` starts with the request line."""
        line = head[:TEXT_BYTES_MAX]
        self._text[: len(line)] = line
        words = self._words
        words[_LENGTH] = len(line)
        words[_SINCE] = now_ns

    def end(self) -> None:
        """The application call has ended."""
        self._words[_SINCE] = 0

    def in_flight(self) -> InFlight | None:
        """The request whose call runs here, or ran when the worker died."""
        for _attempt in range(3):
            since_ns = self._words[_SINCE]
            if since_ns == 0:
                return None
            text = bytes(self._text[: min(self._words[_LENGTH], TEXT_BYTES_MAX)])
            if self._words[_SINCE] == since_ns:
                line = text.split(b"\r", 1)[0].split(b"\n", 1)[0]
                return InFlight(line.decode("latin-1"), since_ns)
        return None


class Row:
    """One worker's row.  ``words`` is the hot path's door: ``row.words[HEARTBEAT] = now_ns``."""

    __slots__ = ("_cells", "words")

    def __init__(self, words: memoryview, cells: memoryview) -> None:
        self.words = words
        self._cells = cells

    def cell(self, number: int) -> Cell:
        """The cell of that number, 0 to CELLS - 1."""
        return Cell(self._cells[number * CELL_BYTES : (number + 1) * CELL_BYTES])

    def claim(self, *, worker_id: int, generation: int, now_ns: int) -> None:
        """In the master, before a spawn: make the row a newcomer's."""
        for number in range(min(CELLS, self.words[CALLS_MAX])):
            self.cell(number).end()
        for index in range(ROW_WORDS):
            self.words[index] = 0
        self.words[WORKER_ID] = worker_id
        self.words[GENERATION] = generation
        self.words[HEARTBEAT] = now_ns

    def beat(self, now_ns: int) -> None:
        """Say that the reactor turns."""
        self.words[HEARTBEAT] = now_ns

    def in_flight(self) -> list[InFlight]:
        """The requests whose calls run, or ran when the worker died, the oldest first."""
        cells = (self.cell(number) for number in range(min(CELLS, self.words[CALLS_MAX])))
        found = [in_flight for cell in cells if (in_flight := cell.in_flight()) is not None]
        return sorted(found, key=lambda each: each.since_ns)

    def last_sign_ns(self) -> int:
        """When this worker was last seen alive: its reactor's turn or the beginning of a call, whichever is later."""
        return max([self.words[HEARTBEAT], *(each.since_ns for each in self.in_flight())])


class Scoreboard:
    """All rows, and the memfd behind them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        self._memory = memoryview(self._map)
        self._words = self._memory[: len(self) * WORDS_BYTES].cast("Q")

    @classmethod
    def create(cls, rows: int) -> Scoreboard:
        """A new one with ``rows`` rows, all zero."""
        fd = os.memfd_create("forkserve-scoreboard", os.MFD_CLOEXEC)
        os.ftruncate(fd, max(rows, 1) * _ROW_BYTES)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """The one behind an inherited descriptor."""
        return cls(fd)

    def idle_workers(self, generation: int, now_ns: int) -> int:
        """How many workers of a generation are alive, take connections and could run one call more."""
        words = self._words
        return sum(
            words[row + IS_SERVING] == 1
            and words[row + CALLS] < words[row + CALLS_MAX]
            and words[row + GENERATION] == generation
            and words[row + HEARTBEAT] + FRESH_NS > now_ns
            for row in self._used_rows()
        )

    def has_serving_workers(self, generation: int, now_ns: int) -> bool:
        """Is there a worker of a generation that takes connections, now or after its call?"""
        words = self._words
        return any(
            words[row + IS_SERVING] == 1
            and words[row + GENERATION] == generation
            and (words[row + CALLS] > 0 or words[row + HEARTBEAT] + FRESH_NS > now_ns)
            for row in self._used_rows()
        )

    def total(self, word: int) -> int:
        """The sum of a counter over all rows."""
        words = self._words
        return sum(words[row + word] for row in self._used_rows())

    def _used_rows(self) -> Iterator[int]:
        """Where the words of each row begin that a worker has had; slots are used from the first on."""
        for row in range(0, len(self._words), ROW_WORDS):
            if self._words[row + WORKER_ID] == 0:
                return
            yield row

    def __len__(self) -> int:
        return len(self._map) // _ROW_BYTES

    def row(self, slot: int) -> Row:
        """The row of a slot.

        Raises:
            IndexError: there is no such slot.
        """
        if not 0 <= slot < len(self):
            raise IndexError(f"scoreboard has {len(self)} rows, not {slot + 1}")
        cells = len(self) * WORDS_BYTES + slot * CELLS * CELL_BYTES
        return Row(
            self._words[slot * ROW_WORDS : (slot + 1) * ROW_WORDS], self._memory[cells : cells + CELLS * CELL_BYTES]
        )


_ROW_BYTES: Final = WORDS_BYTES + CELLS * CELL_BYTES
