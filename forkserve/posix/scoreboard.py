"""The scoreboard: what every worker is doing, in memory that outlives it.

    memfd ─ row 0 │ row 1 │ …            one row a worker slot, ROW_BYTES each
              └ words 0…15 (64 bit)      heartbeat, whose row it is, counters
              └ text                     the request line of the call that runs

The master makes it (memfd_create(2)), zygotes and workers inherit it.  A worker writes its own row, everybody may
read all.  Each word is stored aligned through a ``memoryview`` of format "Q", which is one machine store: a reader
never sees half of one.  The text is written before ``BUSY_SINCE`` is set and read together with it; a reader that sees
``BUSY_SINCE`` change meanwhile reads again.

It is the place of hot counters: nothing here takes a lock or makes a system call.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Final

HEARTBEAT: Final = 0
"""Monotonic nanoseconds of the reactor's last turn."""
BUSY_SINCE: Final = 1
"""Monotonic nanoseconds at which the running application call began; 0 when none runs."""
TEXT_LENGTH: Final = 2
"""Bytes of the text."""
WORKER_ID: Final = 3
GENERATION: Final = 4
REQUESTS: Final = 5
"""Requests finished by this worker."""
CONNECTIONS: Final = 6
"""Connections open now."""
IS_SERVING: Final = 7
"""1 while this worker takes new connections and connections of siblings."""

FRESH_NS: Final = 2_500_000_000
"""A heartbeat that is older does not count as a worker that could take something: more than two turns of a reactor."""

ROW_WORDS: Final = 16
"""More than there are: a row begins at a multiple of 128 bytes, so that no two workers write to one cache line."""
TEXT_BYTES_MAX: Final = 256
ROW_BYTES: Final = ROW_WORDS * 8 + TEXT_BYTES_MAX


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request whose application call has begun: its request line (cut to TEXT_BYTES_MAX), and when (monotonic ns)."""

    request_line: str
    since_ns: int


class Row:
    """One worker's row.  ``words`` is the hot path's door: ``row.words[HEARTBEAT] = now_ns``."""

    __slots__ = ("_text", "words")

    def __init__(self, memory: memoryview) -> None:
        self.words = memory[: ROW_WORDS * 8].cast("Q")
        self._text = memory[ROW_WORDS * 8 :]

    def claim(self, *, worker_id: int, generation: int, now_ns: int) -> None:
        """In the master, before a spawn: make the row a newcomer's."""
        for index in range(ROW_WORDS):
            self.words[index] = 0
        self.words[WORKER_ID] = worker_id
        self.words[GENERATION] = generation
        self.words[HEARTBEAT] = now_ns

    def beat(self, now_ns: int) -> None:
        """Say that the reactor turns."""
        self.words[HEARTBEAT] = now_ns

    def begin(self, now_ns: int, head: bytes) -> None:
        """An application call begins; ``head`` starts with the request line."""
        line = head[:TEXT_BYTES_MAX]
        self._text[: len(line)] = line
        words = self.words
        words[TEXT_LENGTH] = len(line)
        words[BUSY_SINCE] = now_ns

    def end(self) -> None:
        """The application call has ended; one more request is done."""
        words = self.words
        words[BUSY_SINCE] = 0
        words[REQUESTS] += 1

    def in_flight(self) -> InFlight | None:
        """The request whose call runs, or ran when the worker died."""
        for _attempt in range(3):
            since_ns = self.words[BUSY_SINCE]
            if since_ns == 0:
                return None
            text = bytes(self._text[: min(self.words[TEXT_LENGTH], TEXT_BYTES_MAX)])
            if self.words[BUSY_SINCE] == since_ns:
                line = text.split(b"\r", 1)[0].split(b"\n", 1)[0]
                return InFlight(line.decode("latin-1"), since_ns)
        return None

    def last_sign_ns(self) -> int:
        """When this worker was last seen alive: its reactor's turn or the beginning of a call, whichever is later."""
        return max(self.words[HEARTBEAT], self.words[BUSY_SINCE])


class Scoreboard:
    """All rows, and the memfd behind them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        self._memory = memoryview(self._map)
        self._words = self._memory.cast("Q")

    @classmethod
    def create(cls, rows: int) -> Scoreboard:
        """A new one with ``rows`` rows, all zero."""
        fd = os.memfd_create("forkserve-scoreboard", os.MFD_CLOEXEC)
        os.ftruncate(fd, max(rows, 1) * ROW_BYTES)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """The one behind an inherited descriptor."""
        return cls(fd)

    def idle_workers(self, generation: int, now_ns: int) -> int:
        """How many workers of a generation are alive, take connections and run no call."""
        words = self._words
        return sum(
            words[row + IS_SERVING] == 1
            and words[row + BUSY_SINCE] == 0
            and words[row + GENERATION] == generation
            and words[row + HEARTBEAT] + FRESH_NS > now_ns
            for row in range(0, len(words), ROW_BYTES // 8)
        )

    def __len__(self) -> int:
        return len(self._map) // ROW_BYTES

    def row(self, slot: int) -> Row:
        """The row of a slot.

        Raises:
            IndexError: there is no such slot.
        """
        if not 0 <= slot < len(self):
            raise IndexError(f"scoreboard has {len(self)} rows, not {slot + 1}")
        return Row(self._memory[slot * ROW_BYTES : (slot + 1) * ROW_BYTES])
